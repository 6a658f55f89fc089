"""Matrices of words a part at a time: nobody needs room for all of a large product's masks, openings and messages.

A matrix is read through `part(start, stop)`, a range of points of all its rows. Masks that are many words are made
again from their key where they are needed; what arrived is kept as narrow as it came.

>>> list(message_ranges(rows=4, points=10))
[(0, 10)]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arithmetic.csprng import DrawnWords, KeyStream
from ..arithmetic.words import unpack_words, word_products, word_type
from .dealing import draw_words

__all__ = ["DealtWords", "NarrowColumns", "ReceivedWords", "Shifted", "Words", "message_ranges", "products", "ranges"]

MESSAGE_WORDS = 1 << 24  # of one message; more travel in several
KEPT_WORDS = 1 << 24  # of a draw; more are made again
ALIGNED = 1 << 15  # points; as `exact.PART`
CPU_POINTS = 1 << 17  # that are worked on at once: what is made of them stays near the processor


class Words(Protocol):
    """A matrix (rows, points) of words."""

    def part(self, start: int, stop: int) -> Tensor:
        """All rows at the points from `start` to `stop`, int64 or int32."""
        ...


def ranges(start: int, stop: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """The points from `start` to `stop`, as many at a time as are worked on at once on a device."""
    step = CPU_POINTS if device.type == "cpu" else max(1, stop - start)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def message_ranges(rows: int, points: int) -> Iterator[tuple[int, int]]:
    """The points of each message of a matrix; both ends cut alike.

    >>> [stop - start for start, stop in message_ranges(rows=4, points=9_000_000)]
    [4194304, 4194304, 611392]
    """
    step = max(ALIGNED, MESSAGE_WORDS // rows // ALIGNED * ALIGNED)
    for start in range(0, points, step):
        yield start, min(start + step, points)


def products(left: Words, right: Words, points: tuple[int, int], device: torch.device) -> Tensor:
    """Every row of `left` with every one of `right` over a range of points, modulo 2^64 or 2^32, added up by parts."""
    parts = [word_products(left.part(*part), right.part(*part)) for part in ranges(*points, device)]
    total = parts[0]
    for more in parts[1:]:
        total += more
    return total


class DealtWords:
    """Words of one draw of a dealer's key: kept where they are few, and made again, by parts, where they are many.

    Args:
        stream: of the key.
        purpose, number: of the draw.
        shape: (rows, points).
        bits: of a word, 32 or 64.
        device: where they are used.
    """

    def __init__(
        self, stream: KeyStream, purpose: str, number: int, shape: tuple[int, int], bits: int, device: torch.device
    ) -> None:
        self._kept: Tensor | None = None
        self._drawn: DrawnWords | None = None
        if math.prod(shape) <= KEPT_WORDS or device.type != "cpu":
            self._kept = draw_words(stream, purpose, number, *shape, bits=bits).to(device)
        else:
            self._drawn = stream.drawn(purpose, number, shape, bits)

    def part(self, start: int, stop: int) -> Tensor:
        """See `Words`."""
        if self._kept is not None:
            return self._kept[:, start:stop]
        assert self._drawn is not None
        return torch.from_numpy(self._drawn.part(start, stop))


class ReceivedWords:
    """Words modulo 2^width as they arrive in messages; kept with no more bytes than these had.

    Args:
        rows, points: of the matrix.
        width: of a word.
        device: where they are used.

    >>> from ppir_torch.arithmetic.words import pack_words
    >>> received = ReceivedWords(2, 3, 40, torch.device("cpu"))
    >>> parts = pack_words(torch.tensor([[1, 2, 3], [4, 5, -1]]), 40)
    >>> received.put(0, 3, memoryview(b"".join(parts)))
    >>> received.part(1, 3).tolist()
    [[2, 3], [5, 1099511627775]]
    """

    def __init__(self, rows: int, points: int, width: int, device: torch.device) -> None:
        self._rows, self._width, self._device = rows, width, device
        self._low: NDArray[np.uint32] | None = None
        self._high: NDArray[np.uint8 | np.uint16] | None = None
        self._whole: Tensor | None = None
        if width in (32, 64) or device.type != "cpu":
            self._whole = torch.empty(rows, points, dtype=word_type(width), device=device)
        else:
            self._low = np.empty((rows, points), np.uint32)
            self._high = np.empty((rows, points), np.uint8 if width == 40 else np.uint16)

    def put(self, start: int, stop: int, payload: memoryview) -> None:
        """Take the bytes of the points from `start` to `stop`; raises LinkError where they are not as many as due."""
        words = unpack_words(payload, self._rows * (stop - start), self._width).reshape(self._rows, stop - start)
        if self._whole is not None:
            self._whole[:, start:stop] = words
        elif self._low is not None and self._high is not None:
            self._low[:, start:stop] = words.numpy()
            self._high[:, start:stop] = words.numpy() >> 32

    def part(self, start: int, stop: int) -> Tensor:
        """See `Words`."""
        if self._whole is not None:
            return self._whole[:, start:stop]
        assert self._low is not None
        assert self._high is not None
        words = self._high[:, start:stop].astype(np.int64)
        words <<= 32
        words |= self._low[:, start:stop]
        return torch.from_numpy(words)


class Shifted:
    """Words of some points alone, read by the points' numbers.

    Args:
        words: (rows, n).
        first: number of their first point.
    """

    def __init__(self, words: Tensor, first: int) -> None:
        self._words, self._first = words, first

    def part(self, start: int, stop: int) -> Tensor:
        """See `Words`."""
        return self._words[:, start - self._first : stop - self._first]


class NarrowColumns:
    """An operand's own columns, kept in the narrowest integers that hold them.

    Args:
        values: (columns, points), any integers.
        largest: bound of their magnitude.
        words: the type in which they are multiplied.
        device: where.
    """

    def __init__(self, values: Tensor, largest: int, words: torch.dtype, device: torch.device) -> None:
        kinds = (torch.int8, torch.int16, torch.int32, torch.int64)
        kind = next(kind for kind in kinds if largest <= torch.iinfo(kind).max)
        self._values, self._words = values.to(device=device, dtype=kind), words

    def part(self, start: int, stop: int) -> Tensor:
        """See `Words`."""
        return self._values[:, start:stop].to(self._words)
