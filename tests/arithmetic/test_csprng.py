"""Masks are AES-CTR key stream, each drawn once."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ppir_torch.arithmetic.csprng import KeyStream, new_key

KEY = bytes(range(16))


def direct_stream(key: bytes, purpose: str, counter: int, size: int) -> bytes:
    """The key stream in one call of `cryptography`."""
    nonce = hashlib.sha256(f"{purpose}|{counter}".encode()).digest()[:12] + bytes(4)
    return Cipher(algorithms.AES128(key), modes.CTR(nonce)).encryptor().update(bytes(size))


# Around the buffer's 2^22 bytes, where a wrong offset would repeat or skip key stream.
@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 2**19 - 1, 2**19, 2**19 + 1, 2**20 + 3])
def test_words_are_the_key_stream(count: int) -> None:
    words = KeyStream(KEY).words("mask", 7, (count,))
    assert words.dtype == np.int64
    assert words.shape == (count,)
    assert words.tobytes() == direct_stream(KEY, "mask", 7, 8 * count)


# The same edges in words of 32 bits.
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1001, 2**20 - 1, 2**20, 2**20 + 1, 2**21 + 3])
def test_words_of_32_bits_are_the_key_stream_and_take_half_of_it(count: int) -> None:
    words = KeyStream(KEY).words("mask", 7, (count,), 32)
    assert words.dtype == np.int32
    assert words.shape == (count,)
    assert words.tobytes() == direct_stream(KEY, "mask", 7, 4 * count)


@pytest.mark.parametrize("bits", [32, 64])
@given(data=st.data(), rows=st.integers(1, 4), points=st.integers(1, 70))
def test_a_part_is_of_the_whole(bits: int, data: st.DataObject, rows: int, points: int) -> None:
    """Wherever it begins in a block of the cipher, and again as often as it is asked for."""
    start = data.draw(st.integers(0, points))
    stop = data.draw(st.integers(start, points))
    whole = np.frombuffer(direct_stream(KEY, "mask", 2, bits // 8 * rows * points), f"i{bits // 8}")
    drawn = KeyStream(KEY).drawn("mask", 2, (rows, points), bits)
    for _ in range(2):
        np.testing.assert_array_equal(drawn.part(start, stop), whole.reshape(rows, points)[:, start:stop])


def test_words_to_be_made_in_parts_are_drawn_once() -> None:
    stream = KeyStream(KEY)
    stream.drawn("mask", 3, (2, 5))
    for draw in (stream.drawn, stream.words):
        with pytest.raises(ValueError, match="already used"):
            draw("mask", 3, (2, 5))


@given(key=st.binary(min_size=16, max_size=16), purpose=st.text(max_size=20), counter=st.integers(0, 2**40))
@settings(deadline=None)
def test_equal_keys_draw_equal_words(key: bytes, purpose: str, counter: int) -> None:
    first = KeyStream(key).words(purpose, counter, (2, 3))
    np.testing.assert_array_equal(first, KeyStream(key).words(purpose, counter, (2, 3)))
    np.testing.assert_array_equal(first.ravel(), KeyStream(key).words(purpose, counter, (6,)))
    short = KeyStream(key).words(purpose, counter, (2, 3), 32)
    np.testing.assert_array_equal(short.ravel(), KeyStream(key).words(purpose, counter, (6,), 32))


def test_another_key_purpose_or_counter_draws_other_words() -> None:
    draws = [
        KeyStream(KEY).words("mask", 0, (4,)),
        KeyStream(KEY[::-1]).words("mask", 0, (4,)),
        KeyStream(KEY).words("share", 0, (4,)),
        KeyStream(KEY).words("mask", 1, (4,)),
    ]
    assert len(set(np.concatenate(draws).tolist())) == 16


def test_drawing_a_mask_twice_raises() -> None:
    stream = KeyStream(KEY)
    stream.words("mask", 3, (5,))
    for shape in ((5,), (1,), (2, 2)):
        with pytest.raises(ValueError, match="already used"):
            stream.words("mask", 3, shape)
    stream.words("mask", 4, (5,))
    stream.words("share", 3, (5,))


@pytest.mark.parametrize(("first", "again"), [(32, 32), (32, 64), (64, 32)])
def test_drawing_a_mask_twice_raises_whatever_its_width(first: int, again: int) -> None:
    """Words of 32 bits are the beginning of the same key stream."""
    stream = KeyStream(KEY)
    stream.words("mask", 3, (5,), first)
    with pytest.raises(ValueError, match="already used"):
        stream.words("mask", 3, (5,), again)


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="16 needed"):
        KeyStream(bytes(size))


def test_keys_are_fresh() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key()) == 16


@pytest.mark.parametrize("bits", [32, 64])
def test_bytes_are_uniform(bits: int) -> None:
    """A sanity check only. Uniformity proves nothing: the MT19937 masks that tests/attacks recovers pass this, too."""
    words = KeyStream(KEY).words("uniform", bits, (2**17,), bits)
    counts = np.bincount(words.view(np.uint8), minlength=256)
    assert 1e-6 < stats.chisquare(counts).pvalue < 1 - 1e-6
