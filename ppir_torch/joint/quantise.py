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
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import RangeError
from .bounds import Limits, Pairs, SumIndex, largest_sum
from .columns import BIN_PEAK, Columns, FixedColumns
from .exact import Blocks, euclidean_norms
from .header import COLUMN_BITS, OperandHeader
from .public_map import MOST_BITS
from .rows import ROWS_PART, IntegerRows, RowBounds, Rows, row_parts

__all__ = [
    "QuantisedRows",
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
    fixed: FixedColumns, columns: Columns, bits: int = COLUMN_BITS, kind: torch.dtype = torch.int64
) -> tuple[Tensor, tuple[float, ...]]:
    """(Y (C, n) of an integer type, scales) with columns about scale Y and |Y| < 2^(bits-1).

    Moments share the scale of J: that of their own would say more about J. Bin weights' scale is the same for every J.
    Squares are those of the integers of J, to as many bits.
    """
    most = 2 ** (bits - 1) - 1
    if columns.kind == "bins":
        largest = torch.full((fixed.count,), BIN_PEAK, dtype=torch.float64, device=fixed.own.device)
    else:
        largest = torch.zeros(fixed.count, dtype=torch.float64, device=fixed.own.device)
        for start, stop in row_parts(fixed.points):
            largest = torch.maximum(largest, fixed.part(start, stop).double().abs().amax(1))
    if columns.kind == "moments":
        largest = largest[:1].expand_as(largest)
    scales = torch.where(largest > 1e-300, largest / most, 1.0)
    if columns.kind == "bins":
        return dithered(fixed.values.double() / scales[:, None], seed=1), tuple(scales.tolist())
    result = torch.empty(fixed.count, fixed.points, dtype=kind, device=fixed.own.device)
    total = torch.zeros(1, dtype=torch.float64, device=fixed.own.device)
    for start, stop in row_parts(fixed.points):
        integers = (fixed.part(start, stop).double() / scales[:, None]).round()
        if columns.squares:  # of the integers
            # Running sums are rounded, so that sums with weights that change slowly are right to a step or two: each
            # square by itself would leave the root of their number, and a background of one value far more.
            sums = torch.cat([total, total + integers[0].square().cumsum(0)])
            integers[-1], total = (sums / (most + 1)).floor().diff(), sums[-1:]
        result[:, start:stop] = integers.to(kind)
    if columns.squares:  # by a scale that follows from J's
        scales[-1] = scales[0].square() * (most + 1)
    return result, tuple(scales.tolist())


def quantise_rows(rows: Tensor, header: OperandHeader, limits: Limits) -> tuple[Tensor, Tensor]:
    """(X int64 (rows, n), s float64 (rows,)) with X = round(s rows), each s the largest power of two within the limits.

    A power of two, so that X / s is exact in the rows' dtype: the value of a loss is a small difference of large sums.
    |X| <= max_row, |X|_2 <= `row_norm`; so |X Y| <= max_result by Cauchy-Schwarz (|X|_2 |Y|_2) whatever J is.
    """
    largest = torch.stack([torch.stack(row.aminmax()).abs().max() for row in rows]).double()
    scale = _scales(largest.cpu(), euclidean_norms(rows).cpu(), rows.shape[1], header, limits)
    return _rounded(rows, scale), scale


def _scales(largest: Tensor, euclidean: Tensor, count: int, header: OperandHeader, limits: Limits) -> Tensor:
    """See `quantise_rows`; from each row's largest entry and length, float64 (rows,)."""
    if not bool(torch.isfinite(euclidean).all()):
        raise RangeError("rows: not finite; the transform's parameters or its points have diverged")
    room = row_norm(header, limits) - 0.5 * math.sqrt(count)
    if room < 1:
        raise RangeError(f"product: {count} points leave no room in results of at most {limits.max_result}")
    most = 0.999 * limits.max_row - 0.5
    scale = torch.minimum(most / largest.clamp(min=1e-300), room / euclidean.clamp(min=1e-300))
    # No scale above 2^100, which float32 still holds: rows of less than 1e-30 are noise.
    return torch.where(euclidean > 0, torch.exp2(scale.clamp(max=2.0**100).log2().floor()), 1.0)


class QuantisedRows(IntegerRows):
    """The integers of `quantise_rows`, made where a protocol reads them: two passes over the rows, and no copy of them.

    Args:
        rows: floating.
        header: of the operand.
        limits: of the protocol.
        seen: is called with (what a part's integers stand for, where it begins), once for each point, in order.

    Attributes:
        scale: s, float64 (rows,).
    """

    def __init__(self, rows: Rows, header: OperandHeader, limits: Limits, seen: Callable[[Tensor, int], None]) -> None:
        self.count, self.points, self.device = rows.count, rows.points, rows.device
        largest, norms = _sizes(rows)
        self.scale = _scales(largest, norms, rows.points, header, limits)
        self._rows, self._seen, self._next = rows, seen, 0
        # Rounding moves each entry by a half at most.
        entry = math.floor(float((self.scale * largest).max()) + 0.5)
        self._bounds = RowBounds(entry, self.scale * norms + 0.5 * math.sqrt(rows.points))

    def bounds(self) -> RowBounds:
        """From the rows' own."""
        return self._bounds

    def absolute_sums(self) -> Tensor:
        """None are known; lengths are, and suffice."""
        return torch.full((self.count,), math.inf, dtype=torch.float64)

    def part(self, start: int, stop: int) -> Tensor:
        """See `Rows`.

        Raises:
            RangeError: the rows are larger than when they were measured; the product is not to be used.
        """
        rows = self._rows.part(start, stop)
        integers = _rounded(rows, self.scale)
        low, high = (int(v) for v in integers.aminmax())
        if max(-low, high) > self._bounds.largest:
            raise RangeError(f"rows: entry of magnitude {max(-low, high)}, {self._bounds.largest} was measured before")
        if start == self._next:
            self._seen(integers.to(rows) / self.scale[:, None].to(rows), start)
            self._next = stop
        return integers

    def finish(self) -> None:
        """Show what the protocol had no use for."""
        for start in range(self._next, self.points, ROWS_PART):
            self.part(start, min(start + ROWS_PART, self.points))


def _sizes(rows: Rows) -> tuple[Tensor, Tensor]:
    """Each row's largest |entry| and its length, float64 (count,) on the CPU, from one pass."""
    largest = torch.zeros(rows.count, dtype=torch.float64, device=rows.device)
    squares, blocks = torch.zeros_like(largest), Blocks(rows.count, rows.device, rows.points)

    def take(block: Tensor) -> None:
        for number, row in enumerate(block):
            squares[number] += row @ row

    for start, stop in row_parts(rows.points):
        part = rows.part(start, stop)
        largest = torch.maximum(largest, torch.stack([torch.stack(row.aminmax()).abs().max() for row in part]).double())
        for block in blocks.add(part):
            take(block)
    take(blocks.rest())
    return largest.cpu(), squares.sqrt().cpu()


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
