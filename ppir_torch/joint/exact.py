"""Sums over many points, in parts that stay in the processor's cache, and in float64 without a float64 copy.

>>> exact_products(torch.ones(1, 3), torch.ones(2, 3)).tolist()
[[3.0, 3.0]]
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["PART", "Blocks", "ExactProducts", "euclidean_norms", "exact_products", "sum_of_squares"]

PART = 1 << 15  # points whose rows stay in the processor's cache


class Blocks:
    """Gathers matrices (rows, n) that come in parts, in order, into float64 blocks of `PART` points.

    However the parts are cut, the blocks are the same, and so is the last bit of what is summed over them.

    Args:
        rows: of the matrix.
        device: where it is.
        points: at most, where that is known.

    >>> blocks = Blocks(1, torch.device("cpu"))
    >>> [block.shape[1] for _ in range(3) for block in blocks.add(torch.ones(1, 20_000))], blocks.rest().shape[1]
    ([32768], 27232)
    """

    def __init__(self, rows: int, device: torch.device, points: int = PART) -> None:
        self._block = torch.empty(rows, min(points, PART), dtype=torch.float64, device=device)
        self._filled = 0

    def add(self, *parts: Tensor) -> Iterator[Tensor]:
        """The blocks (rows, PART) that are full with these further points, each good until the next one.

        Args:
            parts: of some rows each (r, n), all rows together.
        """
        start, count = 0, parts[0].shape[1]
        while start < count:
            size, row = min(PART - self._filled, count - start), 0
            for part in parts:
                place = self._block[row : row + len(part), self._filled : self._filled + size]
                place.copy_(part[:, start : start + size])
                row += len(part)
            start, self._filled = start + size, self._filled + size
            if self._filled == PART:
                self._filled = 0
                yield self._block

    def rest(self) -> Tensor:
        """What is left, (rows, n) with n < PART."""
        return self._block[:, : self._filled]


class ExactProducts:
    """rows (R, n) @ columns^T, columns (C, n), summed in float64 (R, C) as parts of both come, in order.

    A float32 sum over a million points is off by 1e-5 and more, and a loss is a small difference of such sums.

    Args:
        rows: R.
        columns: C; 0: the rows' products with themselves (R, R).
        device: where they are.

    >>> sums = ExactProducts(1, 2, torch.device("cpu"))
    >>> sums.add(torch.ones(1, 3), torch.ones(2, 3))
    >>> sums.total().tolist()
    [[3.0, 3.0]]
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self._rows, self._blocks = rows, Blocks(rows + columns, device)
        self._total = torch.zeros(rows, columns or rows, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, *columns: Tensor) -> None:
        """Take further points."""
        for block in self._blocks.add(rows, *columns):
            self._total.addmm_(*self._factors(block))

    def total(self) -> Tensor:
        """The sums, when all points were taken."""
        return torch.addmm(self._total, *self._factors(self._blocks.rest()))

    def _factors(self, block: Tensor) -> tuple[Tensor, Tensor]:
        left, right = block[: self._rows], block[self._rows :]
        return left, (right if len(right) else left).T


def exact_products(rows: Tensor, columns: Tensor) -> Tensor:
    """rows (R, n) @ columns^T, columns (C, n), summed in float64 (R, C) without a float64 copy of the whole.

    A float32 sum over a million points is off by 1e-5 and more, and a loss is a small difference of such sums.
    """
    total = torch.zeros(rows.shape[0], columns.shape[0], dtype=torch.float64, device=rows.device)
    left = torch.empty(rows.shape[0], PART, dtype=torch.float64, device=rows.device)
    right = left if columns is rows else left.new_empty(columns.shape[0], PART)
    for start in range(0, rows.shape[1], PART):
        size = min(PART, rows.shape[1] - start)
        left[:, :size].copy_(rows[:, start : start + size])
        if right is not left:
            right[:, :size].copy_(columns[:, start : start + size])
        total.addmm_(left[:, :size], right[:, :size].T)
    return total


def euclidean_norms(rows: Tensor) -> Tensor:
    """|X|_2 (rows,) of rows (rows, points), float64; summed in parts that stay in the processor's cache."""
    squares = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    for number, row in enumerate(rows):
        for part in torch.split(row, PART):
            exact = part.to(torch.float64)
            squares[number] += exact @ exact
    return squares.sqrt()


def sum_of_squares(weights: Tensor, values: Tensor) -> float:
    """sum w v^2 of one row of weights and one of values, (1, n) each.

    The squares are of values near 1: single precision has none of what is above 1e19 or below 1e-19.

    >>> round(sum_of_squares(torch.ones(1, 2), torch.tensor([[3e25, 4e25]])) / 25e50, 6)
    1.0
    """
    near = 2.0 ** -math.frexp(float(values.abs().max()))[1]
    return float(exact_products(weights, (values * near).square())) / near / near
