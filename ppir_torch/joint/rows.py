"""party_1's rows as a product reads them: some points of all rows at a time, one part after the other.

Of a large image nobody needs room for all rows: they are made where they are read. What reads them asks for the points
in their order, each of them once.

>>> rows = HeldRows(torch.tensor([[1, 2, 3], [4, 5, 6]]))
>>> rows.part(1, 3).tolist()
[[2, 3], [5, 6]]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .exact import PART, euclidean_norms

__all__ = ["ROWS_PART", "HeldRows", "IntegerRows", "RowBounds", "Rows", "ScatteredRows", "Seen", "row_parts"]

ROWS_PART = 4 * PART  # points of all rows that are made at once


Seen = Callable[[Tensor, int], None]
"""Called with (a part of rows, the point at which it begins), once for each point, in order."""


class Rows(ABC):
    """X (count, points): floating rows of a loss.

    Attributes:
        count: of rows.
        points: of a row.
        dtype: of the entries.
        device: where they are.
    """

    count: int
    points: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def part(self, start: int, stop: int) -> Tensor:
        """All rows at the points from `start` to `stop`; the same values whenever they are asked for."""

    def whole(self) -> Tensor:
        """All of them."""
        return self.part(0, self.points)


@dataclass(frozen=True)
class RowBounds:
    """What is known of integer rows before they are multiplied.

    Attributes:
        largest: bound of |X|.
        norms: bounds (count,) float64 of each row's length |X|_2.
    """

    largest: int
    norms: Tensor


class IntegerRows(Rows):
    """X (count, points) int64 as a protocol multiplies it."""

    dtype = torch.int64

    @abstractmethod
    def bounds(self) -> RowBounds:
        """Bounds of the rows, known before any part of them is made."""

    @abstractmethod
    def absolute_sums(self) -> Tensor:
        """Bounds (count,) float64 of each row's sum of |X|."""


class HeldRows(IntegerRows):
    """Rows that are all there: int64 ones for a protocol.

    Args:
        rows: (count, points), at least one.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows, self.dtype = rows, rows.dtype
        self.count, self.points, self.device = rows.shape[0], rows.shape[1], rows.device

    def bounds(self) -> RowBounds:
        """Exact."""
        low, high = (int(v) for v in self._rows.aminmax())
        return RowBounds(max(-low, high), euclidean_norms(self._rows))

    def absolute_sums(self) -> Tensor:
        """Exact."""
        return self._rows.to(torch.float64).abs_().sum(1)

    def part(self, start: int, stop: int) -> Tensor:
        """See `Rows`."""
        return self._rows if (start, stop) == (0, self.points) else self._rows[:, start:stop]


class ScatteredRows(IntegerRows):
    """Rows at some of an operand's points, zero at the others.

    Args:
        rows: at these points.
        places: (n,) where they lie among the operand's points, in increasing order.
        points: of the operand.
    """

    def __init__(self, rows: IntegerRows, places: Tensor, points: int) -> None:
        self._rows, self._places = rows, places.cpu()
        self.count, self.points, self.device = rows.count, points, rows.device

    def bounds(self) -> RowBounds:
        """As of the rows."""
        return self._rows.bounds()

    def absolute_sums(self) -> Tensor:
        """As of the rows."""
        return self._rows.absolute_sums()

    def part(self, start: int, stop: int) -> Tensor:
        """See `Rows`."""
        first, last = (int(n) for n in torch.searchsorted(self._places, torch.tensor([start, stop])))
        whole = torch.zeros(self.count, stop - start, dtype=torch.int64, device=self.device)
        if last > first:
            whole[:, (self._places[first:last] - start).to(self.device)] = self._rows.part(first, last)
        return whole


def row_parts(points: int, step: int = ROWS_PART) -> Iterator[tuple[int, int]]:
    """The ranges of points in which rows are read where nothing else says so."""
    for start in range(0, points, step):
        yield start, min(start + step, points)
