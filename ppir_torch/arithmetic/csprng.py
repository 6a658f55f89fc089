"""Uniform words from AES-128-CTR (`cryptography`): the only source of masks and shares.

MT19937 and torch's generators are predictable from their output (attack 2 of docs/threat-model.md); AES-CTR is not.

>>> stream = KeyStream(new_key())
>>> stream.words("mask", 0, (2, 3)).shape
(2, 3)
"""

from __future__ import annotations

import hashlib
import math
import secrets
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DrawnWords", "KeyStream", "gaussian_words", "new_key"]

_BLOCK = 16  # bytes of AES


def new_key() -> bytes:
    """A fresh 128-bit key from the operating system."""
    return secrets.token_bytes(16)


class KeyStream:
    """Deterministic uniform 64-bit words of one key; each (purpose, counter) can be drawn once.

    Args:
        key: 16 secret bytes, one key per role and session.

    Two holders of one key draw equal words for equal (purpose, counter, shape).
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != 16:
            raise ValueError(f"key: {len(key)} bytes, 16 needed")
        self._key = key
        self._used: set[tuple[str, int]] = set()

    def words(self, purpose: str, counter: int, shape: tuple[int, ...], bits: int = 64) -> NDArray[Any]:
        """Uniform words of the given shape, int64 or (32 bits) int32.

        Raises:
            ValueError: this (purpose, counter) was drawn before; a mask used twice hides nothing.
        """
        return self.drawn(purpose, counter, shape, bits).whole()

    def drawn(self, purpose: str, counter: int, shape: tuple[int, ...], bits: int = 64) -> DrawnWords:
        """The same words, to be made in parts.

        Raises:
            ValueError: as `words`.
        """
        if (purpose, counter) in self._used:
            raise ValueError(f"mask {purpose!r} number {counter} was already used")
        self._used.add((purpose, counter))
        # A 96-bit nonce leaves 2^32 blocks (64 GiB) to each draw.
        nonce = hashlib.sha256(f"{purpose}|{counter}".encode()).digest()[:12]
        return DrawnWords(self._key, nonce, shape, bits)


class DrawnWords:
    """The words of one draw; of many, a part is made where it is needed, again and again, and the whole never kept.

    >>> drawn = KeyStream(bytes(16)).drawn("mask", 0, (2, 5))
    >>> bool((drawn.part(1, 4) == drawn.whole()[:, 1:4]).all())
    True

    Args:
        key: of the stream.
        nonce: 12 bytes, of this draw alone.
        shape: of the words.
        bits: 64 (int64) or 32 (int32).
    """

    def __init__(self, key: bytes, nonce: bytes, shape: tuple[int, ...], bits: int) -> None:
        self.shape, self._key, self._nonce, self._bytes = shape, key, nonce, bits // 8

    @property
    def count(self) -> int:
        """Words of the draw."""
        return math.prod(self.shape)

    def whole(self) -> NDArray[Any]:
        """All words."""
        return self._run(0, self.count).reshape(self.shape)

    def part(self, start: int, stop: int) -> NDArray[Any]:
        """Those from `start` to `stop` along the last axis."""
        *leading, length = self.shape
        rows = [self._run(row * length + start, stop - start) for row in range(math.prod(leading))]
        return np.stack(rows).reshape(*leading, stop - start)

    def _run(self, first: int, count: int) -> NDArray[Any]:
        """`count` words of the flat draw, from word `first` on."""
        block, skip = divmod(first * self._bytes, _BLOCK)
        size = skip + count * self._bytes
        out = bytearray(size + _BLOCK - 1)
        encryptor = Cipher(algorithms.AES128(self._key), modes.CTR(self._nonce + block.to_bytes(4, "big"))).encryptor()
        step = max(1, min(1 << 22, size))
        zeros = bytes(step)
        for start in range(0, size, step):
            stop = min(start + step, size)
            encryptor.update_into(memoryview(zeros)[: stop - start], memoryview(out)[start : stop + _BLOCK - 1])
        return np.frombuffer(out, f"i{self._bytes}", count, skip)


def gaussian_words(stream: KeyStream, number: int, count: int, deviation: float, reach: float) -> Tensor:
    """Rounded Gaussian noise int64 (count,), cut at `reach` standard deviations (Box and Muller, 1958)."""
    words = stream.words("noise", number, (2, count)).view(np.uint64)
    # The 53 upper bits, in (0, 1]: the logarithm stays finite.
    radius, angle = ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    return torch.from_numpy(np.rint(deviation * normal.clip(-reach, reach)).astype(np.int64))
