"""From floating rows and columns to the integers that a protocol multiplies, and how fine they may be.

Rows are rounded by powers of two, so that what was sent is exact in the rows' own dtype: the value of a loss is a
small difference of large sums. Integers lie on the device of what was rounded, scales on the CPU.

>>> header = OperandHeader(number=0, points=4, rows=2, scale=1.0, offset=0.0, max_abs=3, energy=20)
>>> limits = Limits(max_row=127, max_result=1 << 30)
>>> integers, scale = quantise_rows(torch.tensor([[0.5, 0.25, 0.0, 0.0]]), header, limits)
>>> integers.tolist(), scale.tolist()
([[64, 32, 0, 0]], [128.0])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import RangeError
from .bounds import Limits, Pairs, SumIndex, largest_sum
from .columns import BIN_PEAK, Columns, FixedColumns
from .exact import euclidean_norms
from .header import COLUMN_BITS, OperandHeader
from .public_map import MOST_BITS

__all__ = [
    "dithered",
    "quantise_columns",
    "quantise_mapped_rows",
    "quantise_rows",
    "quantise_summed_rows",
    "row_norm",
]

SUMMED_ROW_BITS = 20  # of a typical entry of rows whose products are added up, where the protocol has the room
_SHIFT = 1009


def quantise_columns(
    fixed: FixedColumns, columns: Columns, bits: int = COLUMN_BITS
) -> tuple[Tensor, tuple[float, ...]]:
    """(Y int64 (C, n), scales) with columns about scale Y and |Y| < 2^(bits-1).

    Moments share the scale of J: that of their own would say more about J. Bin weights' scale is the same for every J.
    """
    exact = fixed.values.double()
    largest = exact.abs().amax(1)
    if columns.kind == "bins":
        largest = torch.full_like(largest, BIN_PEAK)
    if columns.kind == "moments":
        largest = largest[:1].expand_as(largest)
    scales = torch.where(largest > 1e-300, largest / (2 ** (bits - 1) - 1), 1.0)
    if columns.kind == "bins":
        return dithered(exact / scales[:, None], seed=1), tuple(scales.tolist())
    return (exact / scales[:, None]).round().to(torch.int64), tuple(scales.tolist())


def quantise_rows(rows: Tensor, header: OperandHeader, limits: Limits) -> tuple[Tensor, Tensor]:
    """(X int64 (rows, n), s float64 (rows,)) with X = round(s rows), each s the largest power of two within the limits.

    A power of two, so that X / s is exact in the rows' dtype: the value of a loss is a small difference of large sums.
    |X| <= max_row, |X|_2 <= `row_norm`; so |X Y| <= max_result by Cauchy-Schwarz (|X|_2 |Y|_2) whatever J is.
    """
    count = rows.shape[1]
    largest = torch.stack([torch.stack(row.aminmax()).abs().max() for row in rows]).double()
    euclidean = euclidean_norms(rows).cpu()
    if not bool(torch.isfinite(euclidean).all()):
        raise RangeError("rows: not finite; the transform's parameters or its points have diverged")
    room = row_norm(header, limits) - 0.5 * math.sqrt(count)
    if room < 1:
        raise RangeError(f"product: {count} points leave no room in results of at most {limits.max_result}")
    most = 0.999 * limits.max_row - 0.5
    scale = torch.minimum(most / largest.cpu().clamp(min=1e-300), room / euclidean.clamp(min=1e-300))
    # No scale above 2^100, which float32 still holds: rows of less than 1e-30 are noise.
    scale = torch.where(euclidean > 0, torch.exp2(scale.clamp(max=2.0**100).log2().floor()), 1.0)
    return _rounded(rows, scale), scale


def quantise_summed_rows(
    rows: Tensor, header: OperandHeader, limits: Limits, pairs: Pairs, sum_index: SumIndex
) -> tuple[Tensor, float]:
    """(X int64 (rows, n), s) with X about s rows, s the largest number with which all sums of products fit.

    Raises:
        RangeError: rows that are not finite, or no room for them.
    """
    norms, largest, count = euclidean_norms(rows).cpu().double(), float(rows.abs().max()), rows.shape[1]
    if not bool(torch.isfinite(norms).all()):
        raise RangeError("rows: not finite; the transform's parameters or its points have diverged")
    # Rounding moves each entry by less than one, and so each row's length by less than the root of their number.
    room = 0.999 * limits.max_result - largest_sum(torch.full_like(norms, math.sqrt(count)), header, pairs, sum_index)
    longest = min(2.0**SUMMED_ROW_BITS * math.sqrt(count), 0.999 * limits.max_norm) - math.sqrt(count)
    if room <= 0 or longest <= 0:
        raise RangeError(f"product: {count} points leave no room in sums of at most {limits.max_result}")
    bounds = (
        room / max(largest_sum(norms, header, pairs, sum_index), 1e-300),
        longest / max(float(norms.max()), 1e-300),
        (0.999 * limits.max_row - 1) / max(largest, 1e-300),
    )
    scale = min(*bounds, 2.0**100)
    return dithered(rows * scale), scale


def quantise_mapped_rows(
    rows: Tensor, header: OperandHeader, limits: Limits, points_sum: int, sums: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(X int64 (rows, n), s float64 (rows,)) with X = round(s rows), s powers of two, |X| <= 2^row_bits.

    Larger where the results still fit, |X| <= 2^MOST_BITS, as a row's `sums` tell: a gradient's are far below what its
    largest entry at every point would give.

    Args:
        rows: party_1's.
        header: of the operand.
        limits: of the protocol.
        points_sum: the map's `largest_sum`.
        sums: (rows,) the map's `largest_sums` of the rows, or None.
    """
    largest = torch.stack([torch.stack(row.aminmax()).abs().max() for row in rows]).double().cpu()
    if not bool(torch.isfinite(largest).all()):
        raise RangeError("rows: not finite; the transform's parameters or its points have diverged")
    most = min(2.0**header.row_bits, limits.max_row) - 0.5
    if most < 4:
        raise RangeError(f"product: rows of at most {most:.0f} are too coarse; take a smaller control spacing")
    scale = most / largest.clamp(min=1e-30)
    if sums is not None:
        # Rounding moves each entry by half at most.
        room = max(0.999 * limits.max_result / max(header.max_abs, 1) - 0.5 * points_sum, 0.0)
        entry = min(2.0**MOST_BITS, limits.max_row) - 0.5
        scale = torch.maximum(scale, torch.minimum(room / sums.clamp(min=1e-30), entry / largest.clamp(min=1e-30)))
    scale = torch.where(largest > 0, torch.exp2(scale.log2().floor()).clamp(max=2.0**100), 1.0)
    return _rounded(rows, scale), scale


def _rounded(rows: Tensor, scale: Tensor) -> Tensor:
    """round(s rows), int64, on the rows' device and in their dtype, in which a power of two is exact."""
    return (rows * scale[:, None].to(rows)).round_().to(torch.int64)


def row_norm(header: OperandHeader, limits: Limits) -> float:
    """The largest |X|_2 of a quantised row, public: entries of 2^row_bits (root mean square) where the ring has room.

    Most rows come to within a factor of two of it, so party_2 can size its noise by it without knowing them.
    """
    by_result = 0.999 * limits.max_result / math.sqrt(max(header.energy, 1))
    bits = SUMMED_ROW_BITS if header.group_energy else header.row_bits
    return min(by_result, 0.999 * limits.max_norm, 2.0**bits * math.sqrt(header.points))


def dithered(values: Tensor, seed: int = 0) -> Tensor:
    """Values (rows, n) rounded up or down by chance (int64), right on average: coarse steps leave no bias.

    The chance is the same in every call with a seed, so that runs can be repeated and a loss does not jump. Factors of
    one product need two seeds.
    """
    rows, count = values.shape
    generator = torch.Generator().manual_seed(seed)
    # One row of numbers, from another place for each row: no voxel sees a number twice.
    chance = torch.rand(count + _SHIFT * rows, generator=generator, dtype=values.dtype)
    chance = chance.to(values.device)  # drawn on the CPU: the same on every device
    return values.add(chance.as_strided((rows, count), (_SHIFT, 1))).floor_().to(torch.int64)
