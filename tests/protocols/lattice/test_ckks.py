"""ckks: exact against Python integers, small replies, and refusal before anything is sent."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from joint.ends import OVERHEAD, header_of, python_products
from torch import Tensor

from ppir_torch.errors import LinkError, PpirError, RangeError
from ppir_torch.joint.bounds import Pairs
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import Release, release_all
from ppir_torch.protocols.lattice import ckks_coefficients as ckks
from ppir_torch.protocols.lattice.ckks import CkksFixedSide, CkksMovingSide
from ppir_torch.protocols.lattice.coefficient_sides import FixedCoefficientOperand, MovingCoefficientOperand
from ppir_torch.protocols.lattice.packing import DEGREE
from ppir_torch.protocols.lattice.seal_format import ciphertext_file, ciphertext_words, load_seal, save_seal
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, Received, link_pair
from ppir_torch.wire.payload import pack, unpack

LARGEST = int(ckks.MAX_RESULT * (1 - 2e-9))  # check_range keeps a margin of 1e-9


@dataclass
class Parties:
    """Both ends in one process; party_2 answers in a thread."""

    links: tuple[Link, Link] = field(default_factory=lambda: link_pair("party_1", "party_2", timeout=120.0))

    def __post_init__(self) -> None:
        self.moving, self.fixed = CkksMovingSide(self.links[0]), CkksFixedSide(self.links[1])

    def send(self, values: Tensor, rows: int, number: int = 0) -> None:
        """The operand of the products that follow."""
        header = header_of(values, rows, number)
        self.theirs: FixedCoefficientOperand = self.fixed.open(header, values)
        self.operand: MovingCoefficientOperand = self.moving.open(header)

    def multiply(self, rows: Tensor, pairs: Pairs | None = None, release: Release = release_all) -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(lambda: self.theirs.answer(next_product(self.links[1]), release))
            result = self.operand.multiply(rows, pairs)
            answered.result()
        assert result.dtype == torch.int64
        assert result.ndim == 1
        return [int(v) for v in result]


def next_product(link: Link) -> Received:
    """What party_1 asks for next, whichever operand it is with."""
    request = link.receive()
    return link.receive() if request.kind is MessageKind.OPERAND_IN_USE else request


def uniform(generator: torch.Generator, bound: int, *shape: int) -> Tensor:
    return torch.randint(-bound, bound + 1, shape, generator=generator)


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


@pytest.mark.parametrize(
    ("points", "rows", "columns"),
    [
        (1, 1, 1),
        (1, 7, 2),
        (5, 3, 3),
        (1023, 8, 1),
        (1024, 7, 2),
        (1025, 7, 1),
        (8191, 1, 1),
        (8193, 1, 2),
        (3000, 13, 1),
    ],
)
def test_agrees_with_python_integers(parties: Parties, points: int, rows: int, columns: int) -> None:
    g = torch.Generator().manual_seed(points * 100 + rows)
    values = uniform(g, 1 << 11, columns, points)
    parties.send(values, rows)
    for count, bits in ((rows, 14), (1, 20), (max(1, rows // 2), 1)):
        matrix = uniform(g, 1 << bits, count, points)
        assert parties.multiply(matrix) == python_products(matrix, values)


def test_many_random_sizes(parties: Parties) -> None:
    g = torch.Generator().manual_seed(7)
    for number in range(20):
        points, rows = int(torch.randint(1, 3000, (), generator=g)), int(torch.randint(1, 20, (), generator=g))
        columns, bits = int(torch.randint(1, 4, (), generator=g)), int(torch.randint(1, 16, (), generator=g))
        values, matrix = uniform(g, 1 << bits, columns, points), uniform(g, 1 << (20 - bits), rows, points)
        parties.send(values, rows, number)
        asked = [
            (int(r), int(c)) for r, c in torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2)
        ]
        chosen = [pair for pair in asked if torch.rand((), generator=g) < 0.5] or asked[-1:]
        assert parties.multiply(matrix, chosen) == python_products(matrix, values, chosen)


def test_pairs_in_any_order_and_only_those(parties: Parties) -> None:
    g = torch.Generator().manual_seed(8)
    values, matrix = uniform(g, 1000, 3, 700), uniform(g, 1000, 20, 700)
    parties.send(values, 20)
    pairs = [(19, 2), (0, 0), (7, 1), (7, 0), (1, 2)]
    before = parties.links[1].sent.copy()
    assert parties.multiply(matrix, pairs) == python_products(matrix, values, pairs)
    assert (parties.links[1].sent - before).total() == OVERHEAD + 5 * 15
    for bad in ([], [(20, 0)], [(0, 3)], [(-1, 0)], [(0, 0), (0, 0)]):
        with pytest.raises(LinkError, match="refused"):
            parties.operand.multiply(matrix, bad)


@pytest.mark.parametrize("points", [1, 900, 2500])
def test_edges_of_the_range(parties: Parties, points: int) -> None:
    ones = torch.ones(points, dtype=torch.int64)
    for entry in (1, ckks.MAX_ROW):
        step = min(LARGEST // points // entry, ckks.MAX_OPERAND - 1)
        parties.send(ones * step, 2)
        assert parties.operand.limits.max_row == ckks.MAX_ROW
        matrix = torch.stack([ones, -ones]) * entry
        assert parties.multiply(matrix) == [points * step * entry, -points * step * entry]
    assert points * step * entry > 0.9 * ckks.MAX_RESULT


def test_entries_of_the_largest_size_are_encoded_exactly() -> None:
    scheme, generator = ckks.scheme(), np.random.default_rng(0)
    for largest in (
        np.full(DEGREE, ckks.MAX_ROW),
        ckks.MAX_ROW * (-1) ** np.arange(DEGREE),
        generator.choice([-ckks.MAX_ROW, ckks.MAX_ROW], DEGREE),
        generator.integers(-ckks.MAX_ROW, ckks.MAX_ROW + 1, DEGREE),
    ):
        plain = ckks.CkksMovingCoefficientCipher().plaintext(largest)
        assert np.array_equal(coefficients([plain.data(i) for i in range(DEGREE)]), largest)
        # The encoder's error before rounding, seen through a scale of 2^25, has 20 bits to spare.
        slots = np.fft.ifft(largest * ckks.roots()[0], norm="forward")[ckks.roots()[1]]
        scheme.encoder.encode(slots.tolist(), scheme.top, 2.0**25, plain)
        finer = coefficients([plain.data(i) for i in range(DEGREE)])
        assert np.abs(finer - largest * 2**25).max() < 2**5


def test_operands_of_the_largest_size_are_scaled_exactly() -> None:
    scheme, prime = ckks.scheme(), ckks.scheme().primes[0]
    values = np.random.default_rng(1).integers(1 - ckks.MAX_OPERAND, ckks.MAX_OPERAND, DEGREE)
    values[:3] = 0, 1 - ckks.MAX_OPERAND, ckks.MAX_OPERAND - 1
    factor = scheme.scale * scheme.primes[2]
    assert factor % scheme.primes[1] == factor % scheme.primes[2] == 0
    found = coefficients(ckks.scaled_ntt(values).tolist())
    assert [int(v) % prime for v in found] == [int(v) * factor % prime for v in values]


def coefficients(words: list[int]) -> np.ndarray:
    """From NTT form modulo the first prime, centred."""
    scheme, prime = ckks.scheme(), ckks.scheme().primes[0]
    file, ciphertext = ciphertext_file(DEGREE, 1, scheme.bottom, ntt=True), scheme.seal.Ciphertext()
    file.words[DEGREE:] = words
    file.load(ciphertext, scheme.context)
    scheme.evaluator.transform_from_ntt_inplace(ciphertext)
    out = ciphertext_words(ciphertext, DEGREE, 2 * DEGREE).astype(np.int64)
    return np.where(out > prime // 2, out - prime, out)


def test_zero_rows_blocks_and_operands(parties: Parties) -> None:
    g = torch.Generator().manual_seed(3)
    values = uniform(g, 500, 2, 3000)
    values[:, 1000:2100] = 0
    parties.send(values, 5)
    matrix = uniform(g, 500, 5, 3000)
    matrix[2] = 0
    matrix[:, :1024] = 0
    assert parties.multiply(matrix) == python_products(matrix, values)
    assert parties.multiply(torch.zeros(5, 3000, dtype=torch.int64)) == [0] * 10
    parties.send(torch.zeros(3000, dtype=torch.int64), 5)
    assert parties.multiply(matrix) == [0] * 5


def test_row_order_and_strides_do_not_matter(parties: Parties) -> None:
    g = torch.Generator().manual_seed(4)
    values, matrix = uniform(g, 500, 1500), uniform(g, 500, 1500, 3).T
    parties.send(values, 3)
    assert parties.multiply(matrix) == python_products(matrix, values)


def test_several_operands_one_key() -> None:
    parties, g, opened = Parties(), torch.Generator().manual_seed(5), []
    for number, points in enumerate((700, 2000, 64)):
        values, matrix = uniform(g, 100, points), uniform(g, 100, 2, points)
        parties.send(values, 2, number)
        assert parties.multiply(matrix) == python_products(matrix, values)
        opened.append((values, matrix, parties.operand, parties.theirs))
    for values, matrix, parties.operand, parties.theirs in opened:  # the older ones are usable, too
        assert parties.multiply(-matrix) == python_products(-matrix, values)
    assert parties.links[1].sent[MessageKind.PUBLIC_KEY] == parties.links[0].received[MessageKind.PUBLIC_KEY] < 500_000


def test_noise_of_the_site_is_added_exactly(parties: Parties) -> None:
    g = torch.Generator().manual_seed(9)
    values, matrix = uniform(g, 1000, 2, 500), uniform(g, 1000, 4, 500)
    parties.send(values, 4)
    most = ckks.MAX_RESULT // 32  # what parties/fixed.py may add
    noise = torch.tensor([0, 1, -1, most, -most, 12345, -(1 << 40), 7])
    counts = []

    def release(count: int) -> Tensor:
        counts.append(count)
        return noise

    expected = [r + int(n) for r, n in zip(python_products(matrix, values), noise, strict=True)]
    assert parties.multiply(matrix, release=release) == expected
    assert counts == [8]
    # At both ends of the range, too.
    parties.send(torch.tensor([LARGEST]) // ckks.MAX_ROW, 2)
    matrix = torch.tensor([[1], [-1]]) * ckks.MAX_ROW
    edge = LARGEST // ckks.MAX_ROW * ckks.MAX_ROW
    assert parties.multiply(matrix, release=lambda _: torch.tensor([most, -most])) == [edge + most, -edge - most]


def test_what_release_refuses_is_not_sent(parties: Parties) -> None:
    parties.send(torch.arange(-50, 50), 2)
    request = Received(
        MessageKind.REPLY_CIPHERTEXTS, 0, 0, memoryview(reply_of(parties, torch.ones(2, 100, dtype=torch.int64)))
    )
    sent = parties.links[1].sent.copy()

    def refuse(_: int) -> Tensor:
        raise RangeError("cap")

    with pytest.raises(RangeError, match="cap"):
        parties.theirs.answer(request, refuse)
    assert parties.links[1].sent == sent


def test_reply_is_one_polynomial_in_2d(parties: Parties) -> None:
    g = torch.Generator().manual_seed(6)
    values, matrix = uniform(g, 1 << 11, 56_797), uniform(g, 1 << 14, 7, 56_797)
    parties.send(values, 7)
    before = parties.links[0].sent.copy(), parties.links[1].sent.copy()
    assert parties.multiply(matrix) == [int(v) for v in matrix.numpy() @ values.numpy()]
    up, down = (link.sent - b for link, b in zip(parties.links, before, strict=True))
    assert set(up) == {MessageKind.REPLY_CIPHERTEXTS}
    assert up.total() == OVERHEAD + 8 + 7 * (4 + 15) + DEGREE * 15
    assert set(down) == {MessageKind.MASKED_RESULT}
    assert down.total() == OVERHEAD + 7 * 15


@pytest.mark.parametrize("case", ["row", "result", "shape", "type", "count", "released"])
def test_out_of_range_is_refused_before_anything_is_sent(case: str) -> None:
    parties, values = Parties(), torch.full((100,), 1 << 30)
    parties.send(values, 2)
    rows = torch.ones(2, 100, dtype=torch.int64)
    if case == "released":
        parties.moving.coefficients.released.used = ckks.MAX_WORDS - 1
    bad = {
        "row": rows * (ckks.MAX_ROW + 1),
        "result": rows * (1 << 13),
        "shape": rows[:, :99],
        "type": rows.to(torch.int32),
        "count": rows[[0, 0, 0]],
        "released": rows,
    }[case]
    sent = parties.links[0].sent.copy()
    with pytest.raises(RangeError):
        parties.operand.multiply(bad)
    assert parties.links[0].sent == sent


def test_party_2_counts_its_words_itself() -> None:
    parties, rows = Parties(), torch.ones(2, 100, dtype=torch.int64)
    parties.send(torch.arange(-50, 50), 2)
    payload = memoryview(reply_of(parties, rows))
    parties.fixed.coefficients.cipher.released.used = ckks.MAX_WORDS - 1
    sent = parties.links[1].sent.copy()
    with pytest.raises(RangeError, match=f"at most {ckks.MAX_WORDS} results"):
        parties.theirs.answer(Received(MessageKind.REPLY_CIPHERTEXTS, 0, 0, payload), release_all)
    assert parties.links[1].sent == sent


@pytest.mark.parametrize("case", ["shape", "max_abs", "energy", "size", "points"])
def test_operand_that_does_not_fit_is_refused_before_anything_is_sent(case: str) -> None:
    parties, values = Parties(), torch.full((100,), 1000)
    header = header_of(values, 2)
    large = torch.full((100,), ckks.MAX_OPERAND)
    header, values = {
        "shape": (header, values[:99]),
        "max_abs": (replace(header, max_abs=999), values),
        "energy": (replace(header, energy=header.energy // 2), values),
        "size": (header_of(large, 2), large),
        "points": (replace(header, points=1 << 45), values),
    }[case]
    with pytest.raises(RangeError):
        parties.fixed.open(header, values)
    assert not parties.links[1].sent


def test_security_noise_and_exactness() -> None:
    scheme = ckks.scheme()
    limit = scheme.seal.CoeffModulus.MaxBitCount(DEGREE, scheme.seal.SEC_LEVEL_TYPE.TC128)
    assert sum(ckks.PRIME_BITS) <= limit == 218
    half_scale, half_modulus = scheme.scale // 2, math.prod(scheme.kept) // 2
    flood, noise = 1 << (ckks.FLOOD_BITS - 1), 1 << ckks.NOISE_BITS
    # Rounding is right, and nothing leaves the modulus: flood, noise, and what a site may add.
    assert flood + noise < half_scale
    assert (ckks.MAX_RESULT + ckks.MAX_RESULT // 32) * scheme.scale + flood + noise < half_modulus
    # Every word of a session within 2^-40 of one that tells nothing of the noise.
    assert math.log2(ckks.MAX_WORDS * noise) - ckks.FLOOD_BITS <= -40
    # Hoeffding, for all words of a session.
    rounding = 0.5 + math.sqrt(DEGREE / 2 * (math.log(2 * ckks.MAX_WORDS) + 150 * math.log(2)))
    for points in (1, 1000, 56_797, 902_629, 10**7, 10**8):
        for rows in (1, 7, 13, 64, 1000):
            header = OperandHeader(0, points, rows, 1.0, 0.0, 1 << 12, points << 24)
            limits, group = ckks.limits(header), ckks.layout(header).group
            fresh = ckks.FRESH_NOISE * group * points * limits.max_row + ckks.ZERO_NOISE
            assert fresh / scheme.primes[2] + rounding <= noise
            assert limits.max_row >= 1 << 20
            assert limits.max_result == ckks.MAX_RESULT > 1 << 48


def test_flood_and_mask_have_their_full_width() -> None:
    half = 1 << (ckks.FLOOD_BITS - 1)
    assert ckks.flood(0, 0) == -half
    assert ckks.flood(-1, -1) == half - 1
    assert ckks.flood(0, 1 << (ckks.FLOOD_BITS - 65)) == 0
    modulus = math.prod(ckks.scheme().kept)
    assert ckks.mask(np.array([-1, -1, -1])) == ((1 << 192) - 1) % modulus
    assert ckks.mask(np.array([0, 1 << 55, 0])) == (1 << 119) < modulus


def reply_of(parties: Parties, rows: Tensor) -> bytes:
    """A genuine REPLY_CIPHERTEXTS payload."""
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(parties.operand.multiply, rows)
        payload = bytes(parties.links[1].receive(MessageKind.REPLY_CIPHERTEXTS).payload)
        parties.links[1].send(MessageKind.MASKED_RESULT, bytes(15 * len(rows)))
        sending.result()
    return payload


def test_malformed_replies_are_refused() -> None:
    parties, values = Parties(), torch.arange(-50, 50)
    parties.send(values, 9)
    good = reply_of(parties, torch.ones(9, 100, dtype=torch.int64))
    words, start = 8 + 4 * 9, 8 + (4 + 15) * 9
    bad = [
        b"",
        good[:3],
        good[:4],
        good[:start],
        good[:-1],
        good + b"\0",
        struct.pack("<I", 8) + good[4:],
        struct.pack("<I", 0) + good[4:],
        struct.pack("<I", 1 << 31) + good[4:],
        struct.pack("<II", 9, 0) + good[8:],
        struct.pack("<I", 10) + good[4:8] + bytes(19) + good[8:],
        good[:8] + b"\xff" * 4 + good[12:],
        good[:8] + good[12:16] + good[12:],
        good[:words] + b"\xff" * 15 + good[words + 15 :],
        good[:start] + b"\xff" * 15 + good[start + 15 :],
        good[:-15] + b"\xff" * 15,
    ]
    sent = parties.links[1].sent.copy()
    for payload in bad:
        with pytest.raises(LinkError):
            parties.theirs.answer(Received(MessageKind.REPLY_CIPHERTEXTS, 0, 0, memoryview(payload)), release_all)
    with pytest.raises(LinkError):
        parties.theirs.answer(Received(MessageKind.PRODUCT, 0, 0, memoryview(good)), release_all)
    assert parties.links[1].sent == sent
    # A flipped bit inside a word cannot be told from another ciphertext, but must not crash.
    generator = np.random.default_rng(0)
    for position in generator.integers(4, len(good), 20):
        flipped = bytearray(good)
        flipped[position] ^= 1 << int(generator.integers(8))
        try:
            parties.theirs.answer(Received(MessageKind.REPLY_CIPHERTEXTS, 0, 0, memoryview(flipped)), release_all)
        except LinkError:
            continue


@pytest.mark.parametrize("answer", [b"", bytes(29), bytes(45), b"\xff" * 30])
def test_malformed_answers_are_refused(answer: bytes) -> None:
    parties = Parties()
    parties.send(torch.arange(-50, 50), 2)
    parties.links[1].send(MessageKind.MASKED_RESULT, answer)
    with pytest.raises(LinkError, match="MASKED_RESULT"):
        parties.operand.multiply(torch.ones(2, 100, dtype=torch.int64))


def _truncate(batch: list[np.ndarray]) -> list[np.ndarray]:
    return [batch[0][:-7], *batch[1:]]


def _flip_size(batch: list[np.ndarray]) -> list[np.ndarray]:
    first = batch[0].copy()
    first[8] ^= 1
    return [first, *batch[1:]]


def _of_fewer_primes(batch: list[np.ndarray]) -> list[np.ndarray]:
    scheme, small = ckks.scheme(), ckks.scheme().seal.Ciphertext()
    whole = scheme.seal.Ciphertext()
    load_seal(whole, scheme.context, batch[0].tobytes(), "test")
    scheme.evaluator.mod_switch_to_next(whole, small)
    return [np.frombuffer(save_seal(small), np.uint8), *batch[1:]]


def _not_ntt(batch: list[np.ndarray]) -> list[np.ndarray]:
    scheme, whole = ckks.scheme(), ckks.scheme().seal.Ciphertext()
    load_seal(whole, scheme.context, batch[0].tobytes(), "test")
    scheme.evaluator.transform_from_ntt_inplace(whole)
    return [np.frombuffer(save_seal(whole), np.uint8), *batch[1:]]


def _other_scale(batch: list[np.ndarray]) -> list[np.ndarray]:
    scheme, whole = ckks.scheme(), ckks.scheme().seal.Ciphertext()
    load_seal(whole, scheme.context, batch[0].tobytes(), "test")
    whole.scale = 2.0
    return [np.frombuffer(save_seal(whole), np.uint8), *batch[1:]]


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_size,
        _of_fewer_primes,
        _not_ntt,
        _other_scale,
        lambda batch: batch[:-1],
        lambda batch: [*batch, batch[0]],
        lambda batch: [b.astype(np.int64) for b in batch],
        lambda batch: [b[:0] for b in batch],
        lambda batch: [np.zeros(1 << 19, np.uint8) for _ in batch],
    ],
)
def test_malformed_operands_are_refused(damage: Callable[[list[np.ndarray]], list[np.ndarray]]) -> None:
    source, target = Parties(), Parties()
    values = torch.arange(-1000, 1000)
    header = header_of(values, 8)
    source.fixed.open(header, values)
    key = bytes(source.links[0].receive(MessageKind.PUBLIC_KEY).payload)
    _, batch = unpack(source.links[0].receive(MessageKind.OPERAND_CIPHERTEXTS).payload)
    target.links[1].send(MessageKind.PUBLIC_KEY, key)
    target.links[1].send(MessageKind.OPERAND_CIPHERTEXTS, pack({}, damage(batch)))
    with pytest.raises(LinkError, match="OPERAND_CIPHERTEXTS"):
        target.moving.open(header)


@pytest.mark.parametrize("key", [b"", bytes(1000), bytes(2 << 20)])
def test_malformed_keys_are_refused(key: bytes) -> None:
    parties, values = Parties(), torch.arange(10)
    parties.links[1].send(MessageKind.PUBLIC_KEY, key)
    with pytest.raises(PpirError, match="PUBLIC_KEY"):
        parties.moving.open(header_of(values, 1))
