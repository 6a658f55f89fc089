"""Operands as the losses see them: `multiply(rows, pairs)` gives products with J's columns, clear or private.

    R[i] = X[r_i] . Y[c_i],   X: (rows, n) floating,   Y: (columns, n),   R: (pairs,) float64.

>>> operand = ClearOperand.of(Image(torch.eye(8)[None], Grid((8, 8))), None, Sample(None, None))
>>> carried, result = operand.multiply(torch.ones(1, 64), [(0, 0)])
>>> round(result.item(), 6)  # J minus its mean, summed
0.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import LedgerStop, RangeError
from ..grids import Grid
from ..images import Image
from ..sampling import Sample
from ..wire.link import Link
from .columns import BIN_PEAK, IMAGE, Columns, FixedColumns, columns_of, functionals
from .interface import (
    COLUMN_BITS,
    PART,
    Into,
    Limits,
    MovingSide,
    OperandHeader,
    Pairs,
    add_up,
    euclidean_norms,
    largest_sum,
)
from .ledger import Ledger, LedgerEntry
from .public_map import FEW_BITS, MOST_BITS, PublicMap

__all__ = [
    "ClearOperand",
    "KeptLedger",
    "Operand",
    "PrivateOperand",
    "exact_products",
    "quantise_columns",
    "quantise_mapped_rows",
    "quantise_rows",
    "row_norm",
    "take",
]

_SHIFT = 1009
SUMMED_ROW_BITS = 20  # of a typical entry of rows whose products are added up, where the protocol has the room
MOST_EQUATIONS = 300  # of mapped products, which the ledger keeps; more of them count as everything


class Operand(Protocol):
    """What a loss needs of the fixed image at one level; the same for clear and private runs.

    Attributes:
        grid: the level's grid.
        sample: which of its points are used, with which weights.
        offset: the public constant that was subtracted from J.
        mean_square: mean of (J - offset)^2 over the sample; over all points of the level where the sample's points or
            weights are not known to party_2.
        columns: which columns the operand has.
        channels: C, of the fixed image's features; rows have C n entries, one channel after the other, where the
            sample has n points.
        gram: (C, C) float64 sums of the columns' products over the sample, where the columns are
            "steepest_descent"; else None.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def sample(self) -> Sample: ...
    @property
    def offset(self) -> float: ...
    @property
    def mean_square(self) -> float: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def channels(self) -> int: ...
    @property
    def gram(self) -> Tensor | None: ...
    def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(rows as they were carried (rows, n), their products (pairs,) with the columns, float64)."""
        ...

    def combine(self, rows: Tensor, pairs: Pairs, into: Into) -> Tensor:
        """Sums (results,) float64 of the products of the pairs; no product is opened by itself."""
        ...

    def part(self, positions: Tensor, weights: Tensor | None) -> Operand:
        """The same operand, of which only these positions are used; party_2 learns nothing of it."""
        ...

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor, float]:
        """(rows as carried (D + 1, n), B^T (X[d] * J) (D, M) float64, X[-1] . J), where the operand has a map.

        n points of the sample; at the operand's other points the rows are zero.
        """
        ...

    def adjoint(self, fields: Tensor) -> Tensor:
        """B^T of party_1's own fields (rows, n) at the sample's points, with the map's weights: (rows, M) float64."""
        ...


@dataclass(frozen=True)
class ClearOperand:
    """J in the clear: the reference, and the oracle of every private run."""

    grid: Grid
    sample: Sample
    columns: Columns
    fixed: FixedColumns
    public_map: PublicMap | None = None
    channels: int = 1

    @classmethod
    def of(
        cls,
        image: Image,
        candidates: Tensor | None,
        sample: Sample,
        columns: Columns = IMAGE,
        full: Grid | None = None,
        public_map: PublicMap | None = None,
        normalised: bool = False,
    ) -> ClearOperand:
        """The operand of an image at one level; see `columns_of`."""
        fixed = columns_of(image, candidates, sample.index, columns, full, normalised)
        return cls(image.grid, sample, columns, fixed, public_map, image.tensor.shape[0])

    @property
    def offset(self) -> float:
        """The constant that was subtracted from J."""
        return self.fixed.offset

    @property
    def mean_square(self) -> float:
        """See `Operand`."""
        if self.sample.known:
            return float(self.fixed.values[0].double().square().mean())
        return self.fixed.level_mean_square

    @property
    def gram(self) -> Tensor | None:
        """See `Operand`."""
        values = self.fixed.values
        return exact_products(values, values).cpu() if self.columns.kind == "steepest_descent" else None

    def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The plain products."""
        values = self.fixed.values.to(rows)
        places = _places(self.sample.positions, values.shape[1], self.channels)
        table = exact_products(rows, values if places is None else values[:, places])
        return rows, torch.stack([table[row, column] for row, column in pairs])

    def combine(self, rows: Tensor, pairs: Pairs, into: Into) -> Tensor:
        """See `Operand`."""
        return add_up(self.multiply(rows, pairs)[1], into)

    def part(self, positions: Tensor, weights: Tensor | None) -> ClearOperand:
        """See `Operand`."""
        return replace(self, sample=self.sample.at(positions, weights))

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor, float]:
        """See `Operand`."""
        values = self.fixed.values.to(rows)
        places = _places(self.sample.positions, values.shape[1], self.channels)
        values = values if places is None else values[:, places]
        return rows, self.adjoint(rows[:-1] * values), float(exact_products(rows[-1:], values))

    def adjoint(self, fields: Tensor) -> Tensor:
        """See `Operand`."""
        assert self.public_map is not None
        return self.public_map.adjoint(_on_map(fields, self.sample, self.public_map))


@dataclass
class KeptLedger:
    """The ledger of one operand as a run keeps it.

    Attributes:
        ledger: what it is entered into.
        points: of its equations.
        most: share of J's energy, beyond what party_1's own image explains, at which the run stops; None: never.
        last: its state after the last product.
        further: values that were opened and are no equations on J (joint histograms and their derivatives).
    """

    ledger: Ledger
    points: int
    most: float | None = None
    last: LedgerEntry | None = None
    further: int = 0


@dataclass(frozen=True)
class PrivateOperand:
    """party_1's handle on an operand that only party_2 knows; every product goes through the protocol."""

    grid: Grid
    sample: Sample
    columns: Columns
    header: OperandHeader
    sample_mean_square: float
    level_mean_square: float
    gram: Tensor | None
    side: MovingSide
    link: Link
    kept: KeptLedger | None = None
    full: Grid | None = None
    public_map: PublicMap | None = None
    channels: int = 1

    @property
    def offset(self) -> float:
        """The public constant that party_2 subtracted."""
        return self.header.offset

    @property
    def mean_square(self) -> float:
        """See `Operand`."""
        return self.sample_mean_square if self.sample.known else self.level_mean_square

    def part(self, positions: Tensor, weights: Tensor | None) -> PrivateOperand:
        """See `Operand`."""
        return replace(self, sample=self.sample.at(positions, weights))

    def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Quantise each row as finely as the protocol carries exactly, multiply as integers, scale back.

        The returned rows are the quantised ones, so that a caller who uses them for its own sums, too, leaves the
        rounding multiplied by the small residual I - J and not by J.
        """
        results = torch.empty(len(pairs), dtype=torch.float64)
        scales = torch.tensor(self.header.scales, dtype=torch.float64)
        carried = torch.empty_like(rows)
        places = _places(self.sample.positions, self.header.points, self.channels)
        for start in range(0, rows.shape[0], self.header.rows):
            stop = min(start + self.header.rows, rows.shape[0])
            numbers = [n for n, (row, _) in enumerate(pairs) if start <= row < stop]
            if not numbers:
                continue
            integers, scale = quantise_rows(rows[start:stop], self.header, self.side.limits)
            carried[start:stop] = integers.to(rows) / scale[:, None].to(rows)
            integers = _scattered(integers, places, self.header.points)
            wanted = [(pairs[n][0] - start, pairs[n][1]) for n in numbers]
            self.link.at(self.link.level, self.link.iteration + 1)
            # A window of a random order says nothing by the time it takes; points chosen by their gradient would.
            used = places if self.sample.weights is None else None
            exact = self.side.multiply(integers, wanted, used).cpu().double()
            steps = scale[[row for row, _ in wanted]]
            results[numbers] = exact / steps * scales[[column for _, column in wanted]]
        if self.kept is not None:
            self._enter(self.kept, carried, pairs, results)
        return carried, results

    def combine(self, rows: Tensor, pairs: Pairs, into: Into) -> Tensor:
        """See `Operand`; all rows are quantised alike, and all columns must have one scale."""
        integers, scale = quantise_together(rows, self.header, self.side.limits, pairs, into)
        places = _places(self.sample.positions, self.header.points, self.channels)
        integers = _scattered(integers, places, self.header.points)
        self.link.at(self.link.level, self.link.iteration + 1)
        used = places if self.sample.weights is None else None
        sums = self.side.multiply(integers, pairs, used, into).cpu().double() / scale * self.header.scale
        if self.kept is not None:
            carried = integers.to(rows) / scale
            self._enter_sums(self.kept, carried, sums)
        return sums

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor, float]:
        """See `Operand`; the rows are quantised to the header's bits, by a power of two for each."""
        assert self.public_map is not None
        sums = None
        if self.header.row_bits < FEW_BITS:
            sums = self.public_map.largest_sums(_on_map(rows, self.sample, self.public_map)).cpu()
        integers, scale = quantise_mapped_rows(rows, self.header, self.side.limits, self.public_map.largest_sum, sums)
        self.link.at(self.link.level, self.link.iteration + 1)
        whole = _on_map(integers, self.sample, self.public_map)
        exact = self.side.project(whole).cpu().double() * self.header.scale
        fields = exact[:-1].reshape(rows.shape[0] - 1, -1) / (scale[:-1, None] * self.public_map.unit)
        carried = integers.to(rows) / scale[:, None].to(rows)
        total = float(exact[-1] / scale[-1])
        if self.kept is not None:
            self._enter_mapped(self.kept, carried, torch.cat([fields.flatten(), torch.tensor([total]).double()]))
        return carried, fields, total

    def adjoint(self, fields: Tensor) -> Tensor:
        """See `Operand`."""
        assert self.public_map is not None
        return self.public_map.adjoint(_on_map(fields, self.sample, self.public_map))

    def _enter(self, kept: KeptLedger, rows: Tensor, pairs: Pairs, results: Tensor) -> None:
        """Enter what was opened into the ledger, as equations on J; the last row is party_1's own warped image."""
        weights = None if self.sample.weights is None else self.sample.weights.to(rows).repeat(self.channels)
        positions = _places(self.sample.positions, self.header.points, self.channels)
        own = rows[-1] if weights is None else rows[-1] / weights
        equations = functionals(rows, pairs, self.columns, self.grid, self.sample.index, self.full)
        if positions is not None or equations.shape[1] != own.shape[0]:
            # party_1 uses part of the operand's points, or the equations are on all points of the level
            place = self.sample.index if positions is None else positions
            count = kept.points
            own = rows.new_zeros(count).index_copy_(0, place.to(rows.device), own) if place is not None else own
            if equations.shape[1] != count:
                whole = rows.new_zeros(len(pairs), count)
                whole[:, place] = equations
                equations = whole
        kept.last = kept.ledger.record(equations, results, own)
        self._check(kept)

    @staticmethod
    def _check(kept: KeptLedger) -> None:
        """Stop the run where the opened values say more than was agreed."""
        assert kept.last is not None
        added = kept.last.explained - kept.last.own
        if kept.most is not None and added > kept.most:
            raise LedgerStop(
                f"ledger: the opened values explain {added:.2%} of the fixed image that the moving one does not, "
                f"more than ledger.most = {kept.most:.2%}; the run stops here and keeps what it has"
            )

    def _enter_sums(self, kept: KeptLedger, rows: Tensor, results: Tensor) -> None:
        """Enter a joint histogram (rows over all points): numbers of bins times their weights are J, w_a . J is linear.

        What it says of J's spread within a bin of the warped image is no linear equation on J, and is not counted; nor
        are the histogram's derivatives.
        """
        bins = self.columns.bins
        if len(results) != bins * len(rows):
            kept.further += len(results)
            if kept.last is not None:
                kept.last = replace(kept.last, opened=kept.last.opened + len(results))
            return
        table = results.reshape(len(rows), bins)
        numbers = torch.arange(bins, dtype=torch.float64)
        mean = float((table.sum(0) @ numbers) / table.sum())
        equations = table @ (numbers - mean)
        own = torch.arange(len(rows)).to(rows) @ rows / rows.sum(0).clamp(min=1e-6)
        used = rows.sum(0) > 0
        own = torch.where(used, own - own[used].mean(), 0.0)
        # Of J at variance 1: a cubic B-spline has a third of a bin of variance by itself.
        variance = float((table.sum(0) @ (numbers - mean).square()) / table.sum()) - 1 / 3
        equations /= math.sqrt(max(variance, 1e-6))
        entry = kept.ledger.record(rows, equations, own)
        kept.further += len(results) - len(rows)
        kept.last = replace(entry, opened=entry.opened + kept.further)
        self._check(kept)

    def _enter_mapped(self, kept: KeptLedger, rows: Tensor, results: Tensor) -> None:
        """Enter what a mapped product opened; a fine control grid's equations are too many to keep."""
        assert self.public_map is not None
        if kept.ledger.rank + len(results) > MOST_EQUATIONS:
            kept.last = kept.ledger.take_as_known(len(results))
        else:
            weights = self.sample.weights
            own = rows[-1:] if weights is None else rows[-1:] / weights.to(rows).repeat(self.channels)
            rows, own = (_on_map(r, self.sample, self.public_map) for r in (rows, own))
            kept.last = kept.ledger.record(self.public_map.functionals(rows), results, own[0])
        self._check(kept)


def _places(positions: Tensor | None, points: int, channels: int) -> Tensor | None:
    """Where the entries of a sample's channels lie among the operand's `points`, those of all channels."""
    if positions is None or channels == 1:
        return positions
    return (torch.arange(channels)[:, None] * (points // channels) + positions.cpu()).flatten()


def _scattered(rows: Tensor, places: Tensor | None, points: int) -> Tensor:
    """Rows (rows, n) at these places as rows over all `points`, zero at the others; None: as they are."""
    if places is None:
        return rows
    whole = rows.new_zeros(len(rows), points)
    whole[:, places.to(rows.device)] = rows
    return whole


def _on_map(rows: Tensor, sample: Sample, public_map: PublicMap) -> Tensor:
    """Rows at a sample's points as rows over all points of the operand's map."""
    return _scattered(rows, _places(sample.positions, public_map.points, public_map.channels), public_map.points)


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


def quantise_together(
    rows: Tensor, header: OperandHeader, limits: Limits, pairs: Pairs, into: Into
) -> tuple[Tensor, float]:
    """(X int64 (rows, n), s) with X about s rows, s the largest number with which all sums of products fit.

    Raises:
        RangeError: rows that are not finite, or no room for them.
    """
    norms, largest, count = euclidean_norms(rows).cpu().double(), float(rows.abs().max()), rows.shape[1]
    if not bool(torch.isfinite(norms).all()):
        raise RangeError("rows: not finite; the transform's parameters or its points have diverged")
    # Rounding moves each entry by less than one, and so each row's length by less than the root of their number.
    room = 0.999 * limits.max_result - largest_sum(torch.full_like(norms, math.sqrt(count)), header, pairs, into)
    longest = min(2.0**SUMMED_ROW_BITS * math.sqrt(count), 0.999 * limits.max_norm) - math.sqrt(count)
    if room <= 0 or longest <= 0:
        raise RangeError(f"product: {count} points leave no room in sums of at most {limits.max_result}")
    bounds = (
        room / max(largest_sum(norms, header, pairs, into), 1e-300),
        longest / max(float(norms.max()), 1e-300),
        (0.999 * limits.max_row - 1) / max(largest, 1e-300),
    )
    scale = min(*bounds, 2.0**100)
    return dithered(rows.cpu() * scale), scale


def dithered(values: Tensor, seed: int = 0) -> Tensor:
    """Values (rows, n) rounded up or down by chance (int64), right on average: coarse steps leave no bias.

    The chance is the same in every call with a seed, so that runs can be repeated and a loss does not jump. Factors of
    one product need two seeds.
    """
    rows, count = values.shape
    generator = torch.Generator().manual_seed(seed)
    # One row of numbers, from another place for each row: no voxel sees a number twice.
    chance = torch.rand(count + _SHIFT * rows, generator=generator, dtype=values.dtype)
    return values.add(chance.as_strided((rows, count), (_SHIFT, 1))).floor_().to(torch.int64)


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


def take(values: Tensor, index: Tensor | None) -> Tensor:
    """values[index], or all of them."""
    return values if index is None else values[index.to(values.device)]


def row_norm(header: OperandHeader, limits: Limits) -> float:
    """The largest |X|_2 of a quantised row, public: entries of 2^row_bits (root mean square) where the ring has room.

    Most rows come to within a factor of two of it, so party_2 can size its noise by it without knowing them.
    """
    by_result = 0.999 * limits.max_result / math.sqrt(max(header.energy, 1))
    bits = SUMMED_ROW_BITS if header.together else header.row_bits
    return min(by_result, 0.999 * limits.max_norm, 2.0**bits * math.sqrt(header.points))


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
    return (rows.cpu() * scale[:, None].to(rows.dtype)).round_().to(torch.int64), scale


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
    return (rows.cpu() * scale[:, None].to(rows.dtype)).round_().to(torch.int64), scale
