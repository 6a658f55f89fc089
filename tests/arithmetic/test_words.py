"""Words of Z_2^k against Python's integers, which have no width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppir_torch.arithmetic.words import (
    WIDTHS,
    narrowest_width,
    pack_words,
    signed_words,
    unpack_words,
    word_products,
    word_type,
)
from ppir_torch.errors import LinkError

POWERS = (0, 31, 32, 39, 40, 47, 48)
EDGES = sorted({sign * 2**bits + step for bits in POWERS for sign in (1, -1) for step in (-1, 0, 1)})
WORDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([*EDGES, -(2**63), 2**63 - 1]))
every_width = pytest.mark.parametrize("width", WIDTHS)


def as_int64(value: int) -> int:
    """The int64 that stands for an integer modulo 2^64."""
    return (value + 2**63) % 2**64 - 2**63


def as_int32(value: int) -> int:
    """The int32 that stands for an integer modulo 2^32."""
    return (value + 2**31) % 2**32 - 2**31


def joined(words: Tensor, width: int) -> bytearray:
    return bytearray(b"".join(pack_words(words, width)))


def in_int32(words: list[int]) -> Tensor:
    return torch.tensor([as_int32(word) for word in words], dtype=torch.int32)


RING = {32: as_int32, 64: as_int64}


def python_ring(left: list[list[int]], right: list[list[int]], bits: int) -> list[list[int]]:
    """Every row with every column, exactly, and then cut to the ring."""
    return [[RING[bits](sum(x * y for x, y in zip(a, b, strict=True))) for b in right] for a in left]


def random_words(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(seed))


@every_width
@given(words=st.lists(WORDS, min_size=1, max_size=20))
def test_words_come_back_modulo_the_width(width: int, words: list[int]) -> None:
    """In what they are computed in: int32 for 32 bits, which is signed as int64 is for 64."""
    back = unpack_words(memoryview(joined(torch.tensor(words), width)), len(words), width)
    assert back.dtype == word_type(width) == (torch.int32 if width == 32 else torch.int64)
    assert back.tolist() == [as_int32(word) if width == 32 else as_int64(word % 2**width) for word in words]


@given(words=st.lists(WORDS, min_size=1, max_size=20))
def test_int32_words_are_sent_as_int64_words_cut_to_32_bits(words: list[int]) -> None:
    assert joined(in_int32(words), 32) == joined(torch.tensor(words), 32)
    back = unpack_words(memoryview(joined(in_int32(words), 32)), len(words), 32)
    assert torch.equal(back, in_int32(words))
    assert torch.equal(back, torch.tensor(words).to(word_type(32)))  # torch's cast cuts, too


@every_width
@given(words=st.lists(WORDS, min_size=1, max_size=20))
def test_a_word_takes_its_width_and_no_byte_more(width: int, words: list[int]) -> None:
    """All lower halves, then what is above bit 32, little endian; 64-bit words as they are."""
    cut = [word % 2**width for word in words]
    expected = b"".join((word % 2**32).to_bytes(4, "little") for word in cut)
    expected += b"".join((word >> 32).to_bytes((width - 32) // 8, "little") for word in cut)
    if width == 64:
        expected = b"".join(word.to_bytes(8, "little") for word in cut)
    assert joined(torch.tensor(words), width) == expected
    assert len(expected) == len(words) * width // 8


@every_width
def test_a_matrix_is_packed_row_by_row_whatever_its_strides(width: int) -> None:
    words = random_words(6, 5).T
    assert joined(words, width) == joined(words.clone(memory_format=torch.contiguous_format).reshape(-1), width)


@every_width
@given(words=st.lists(WORDS, min_size=1, max_size=20))
def test_signed_words_are_the_nearest_to_zero(width: int, words: list[int]) -> None:
    half = 2 ** (width - 1)
    expected = [(word + half) % 2**width - half for word in words]
    raws = [torch.tensor(words), torch.tensor([as_int64(word % 2**width) for word in words])]
    for raw in raws + [in_int32(words)] * (width == 32):
        signed = signed_words(raw, width)
        assert signed.dtype == torch.int64
        assert signed.tolist() == expected


@every_width
@given(sums=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=10))
def test_sums_and_differences_survive_the_cut(width: int, sums: list[tuple[int, int]]) -> None:
    """What the protocol relies on: cutting before or after adding is the same."""
    left, right = (torch.tensor(part) for part in zip(*sums, strict=True))
    cut = unpack_words(memoryview(joined(left - right, width)), len(sums), width)
    half = 2 ** (width - 1)
    expected = [(x + half) % 2**width - half for x in left.tolist()]
    assert signed_words(cut + right, width).tolist() == expected
    if width == 32:  # and so it is in int32 all the way
        left, right = in_int32(left.tolist()), in_int32(right.tolist())
        cut = unpack_words(memoryview(joined(left - right, 32)), len(sums), 32)
        assert (cut + right).dtype == torch.int32
        assert signed_words(cut + right, 32).tolist() == expected


@pytest.mark.parametrize("bits", [32, 64])
@given(data=st.data(), rows=st.integers(1, 4), columns=st.integers(1, 4), points=st.integers(1, 9))
def test_products_are_pythons_modulo_the_ring(
    bits: int, data: st.DataObject, rows: int, columns: int, points: int
) -> None:
    def matrix(height: int) -> list[list[int]]:
        row = st.lists(WORDS.map(RING[bits]), min_size=points, max_size=points)
        return data.draw(st.lists(row, min_size=height, max_size=height))

    left, right = matrix(rows), matrix(columns)
    result = word_products(torch.tensor(left, dtype=word_type(bits)), torch.tensor(right, dtype=word_type(bits)))
    assert result.dtype == word_type(bits)
    assert result.tolist() == python_ring(left, right, bits)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("points", [1, 1000, 70_001])
def test_products_of_many_points_and_other_strides(points: int, bits: int) -> None:
    left = random_words(points, 3, seed=1).to(word_type(bits)).T
    right = random_words(2 * points, 2, seed=2).to(word_type(bits))[::2].T
    result = word_products(left, right)
    assert result.dtype == word_type(bits)
    assert result.tolist() == python_ring(left.tolist(), right.tolist(), bits)


@pytest.mark.parametrize("bits", [32, 64])
def test_products_at_the_edge_of_the_ring(bits: int) -> None:
    """The smallest word squared, the largest, and sums that wrap many times over."""
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1
    left, right = [[least] * 5, [most] * 5, [least, most, -1, 1, 0]], [[least] * 5, [most, least, most, least, most]]
    result = word_products(torch.tensor(left, dtype=word_type(bits)), torch.tensor(right, dtype=word_type(bits)))
    assert result.tolist() == python_ring(left, right, bits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bits", [32, 64])
def test_products_on_cuda_are_those_on_the_cpu(bits: int) -> None:
    left, right = (random_words(n, 40_000, seed=n).to(word_type(bits)) for n in (5, 4))
    on_cuda = word_products(left.cuda(), right.cuda())
    assert on_cuda.is_cuda
    assert on_cuda.dtype == word_type(bits)
    assert torch.equal(on_cuda.cpu(), word_products(left, right))


@every_width
@pytest.mark.parametrize("difference", [-1, 1, None])
def test_another_length_is_refused(width: int, difference: int | None) -> None:
    payload = joined(random_words(7), width)
    payload = bytearray() if difference is None else payload[:difference] if difference < 0 else payload + b"\0"
    with pytest.raises(LinkError, match=rf"{len(payload)} bytes where 7 words of {width} bits are due; refused"):
        unpack_words(memoryview(payload), 7, width)


@given(bits=st.integers(1, 63))
def test_the_narrowest_width_has_room(bits: int) -> None:
    width = narrowest_width(bits)
    assert width >= bits
    assert all(other < bits for other in WIDTHS if other < width)


def test_without_room_the_widest_is_taken() -> None:
    assert narrowest_width(65) == narrowest_width(1000) == 64
    assert narrowest_width(20, (24, 30)) == 24
    assert narrowest_width(31, (24, 30)) == 30
