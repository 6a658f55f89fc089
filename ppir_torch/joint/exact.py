"""Sums over many points, in parts that stay in the processor's cache, and in float64 without a float64 copy.

>>> exact_products(torch.ones(1, 3), torch.ones(2, 3)).tolist()
[[3.0, 3.0]]
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PART", "euclidean_norms", "exact_products"]

PART = 1 << 15  # points whose rows stay in the processor's cache


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
