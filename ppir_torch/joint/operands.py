"""Operands as the losses see them: `multiply(rows)` is the product with J, clear or private.

    R = X (J - offset),   X: (rows, n) floating,   R: (rows,) float64.

>>> operand = ClearOperand.of(Image(torch.eye(8)[None], Grid((8, 8))), None, Sample(None, None))
>>> carried, result = operand.multiply(torch.ones(1, 64))
>>> round(result.item(), 6)  # J minus its mean, summed
0.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import RangeError
from ..grids import Grid
from ..images import Image
from ..link import Link
from ..sampling import Sample
from .protocol import Limits, MovingSide, OperandHeader

__all__ = ["ClearOperand", "Operand", "PrivateOperand", "exact_products", "quantise_fixed", "quantise_rows", "take"]

FIXED_BITS = 12
ROW_BITS = 24
_BLOCK = 1 << 15


class Operand(Protocol):
    """What a loss needs of the fixed image at one level; the same for clear and private runs.

    Attributes:
        grid: the level's grid.
        sample: which of its points are used, with which weights.
        offset: the public constant that was subtracted from J.
        mean_square: mean of (J - offset)^2 over the sample; where its points have weights (which party_2 does not
            know), over all points of the level.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def sample(self) -> Sample: ...
    @property
    def offset(self) -> float: ...
    @property
    def mean_square(self) -> float: ...
    def multiply(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(rows as they were carried (rows, n), their products with J - offset (rows,) float64)."""
        ...


@dataclass(frozen=True)
class ClearOperand:
    """J in the clear: the reference, and the oracle of every private run."""

    grid: Grid
    sample: Sample
    offset: float
    mean_square: float
    centred: Tensor

    @classmethod
    def of(cls, image: Image, candidates: Tensor | None, sample: Sample) -> ClearOperand:
        """The operand of a one-channel image: mean and energy over the candidate points, values at the sample."""
        level = take(image.tensor[0].flatten().double(), candidates)
        offset = _float32(float(level.mean()))
        centred = take(image.tensor[0].flatten().double(), sample.index) - offset
        mean_square = float((centred if sample.weights is None else level - offset).square().mean())
        return cls(image.grid, sample, offset, mean_square, centred.to(image.tensor.dtype))

    def multiply(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The plain product."""
        return rows, exact_products(rows, self.centred.to(rows)[None])[:, 0]


@dataclass(frozen=True)
class PrivateOperand:
    """party_1's handle on an operand that only party_2 knows; every product goes through the protocol."""

    grid: Grid
    sample: Sample
    header: OperandHeader
    mean_square: float
    side: MovingSide
    link: Link

    @property
    def offset(self) -> float:
        """The public constant that party_2 subtracted."""
        return self.header.offset

    def multiply(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise each row as finely as the protocol carries exactly, multiply as integers, scale back.

        The returned rows are the quantised ones, so that a caller who uses them for its own sums, too, leaves the
        rounding multiplied by the small residual I - J and not by J.
        """
        results, chunk = [], self.header.rows
        carried = torch.empty_like(rows)
        for start in range(0, rows.shape[0], chunk):
            integers, scale = quantise_rows(rows[start : start + chunk], self.header, self.side.limits)
            self.link.at(self.link.level, self.link.iteration + 1)
            exact = self.side.multiply(integers)
            results.append(exact.double() / scale * self.header.scale)
            carried[start : start + chunk] = integers.to(rows.dtype) / scale[:, None].to(rows)
        return carried, torch.cat(results)


def quantise_fixed(values: Tensor, bits: int = FIXED_BITS) -> tuple[Tensor, float, float]:
    """(Y int64 (n,), scale, offset) with J about offset + scale Y and |Y| < 2^(bits-1); J is centred on its mean."""
    exact = values.double().flatten()
    offset = _float32(float(exact.mean()))
    largest = float((exact - offset).abs().max())
    scale = largest / (2 ** (bits - 1) - 1) if largest > 1e-300 else 1.0
    return ((exact - offset) / scale).round().to(torch.int64), scale, offset


def exact_products(rows: Tensor, columns: Tensor) -> Tensor:
    """rows (R, n) @ columns^T, columns (C, n), summed in float64 (R, C) without a float64 copy of the whole.

    A float32 sum over a million points is off by 1e-5 and more, and a loss is a small difference of such sums.
    """
    total = torch.zeros(rows.shape[0], columns.shape[0], dtype=torch.float64, device=rows.device)
    left = torch.empty(rows.shape[0], _BLOCK, dtype=torch.float64, device=rows.device)
    right = left if columns is rows else left.new_empty(columns.shape[0], _BLOCK)
    for start in range(0, rows.shape[1], _BLOCK):
        size = min(_BLOCK, rows.shape[1] - start)
        left[:, :size].copy_(rows[:, start : start + size])
        if right is not left:
            right[:, :size].copy_(columns[:, start : start + size])
        total.addmm_(left[:, :size], right[:, :size].T)
    return total


def _float32(value: float) -> float:
    # An offset that images of either dtype subtract exactly.
    return float(torch.tensor(value, dtype=torch.float32))


def take(values: Tensor, index: Tensor | None) -> Tensor:
    """values[index], or all of them."""
    return values if index is None else values[index.to(values.device)]


def quantise_rows(rows: Tensor, header: OperandHeader, limits: Limits) -> tuple[Tensor, Tensor]:
    """(X int64 (rows, n), s float64 (rows,)) with X = round(s rows), each s the largest power of two within the limits.

    A power of two, so that X / s is exact in the rows' dtype: the value of a loss is a small difference of large sums.
    |X| <= max_row, and |X Y| <= max_result by Cauchy-Schwarz (|X|_2 |Y|_2) whatever J is; 0.1 % is kept as margin.
    """
    count = rows.shape[1]
    largest = rows.abs().amax(1).double()
    euclidean = torch.stack([torch.linalg.vector_norm(row.double()) for row in rows]).cpu()
    if not bool(torch.isfinite(euclidean).all()):
        raise RangeError("rows: not finite; the transform's parameters or its points have diverged")
    room = 0.999 * limits.max_result / math.sqrt(max(header.energy, 1)) - 0.5 * math.sqrt(count)
    if room < 1:
        raise RangeError(f"product: {count} points leave no room in results of at most {limits.max_result}")
    most = 0.999 * min(limits.max_row, 2**ROW_BITS) - 0.5
    scale = torch.minimum(most / largest.cpu().clamp(min=1e-300), room / euclidean.clamp(min=1e-300))
    # No scale above 2^100, which float32 still holds: rows of less than 1e-30 are noise.
    scale = torch.where(euclidean > 0, torch.exp2(scale.clamp(max=2.0**100).log2().floor()), 1.0)
    return (rows.cpu() * scale[:, None].to(rows.dtype)).round_().to(torch.int64), scale
