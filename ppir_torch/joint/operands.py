"""Operands as the losses see them: `multiply(rows, pairs)` gives products with J's columns, clear or private.

    R[i] = X[r_i] . Y[c_i],   X: (rows, n) floating,   Y: (columns, n),   R: (pairs,) float64.

>>> operand = ClearOperand.of(Image(torch.eye(8)[None], Grid((8, 8))), None, Sample(None, None))
>>> quantised, result = operand.multiply(torch.ones(1, 64), [(0, 0)])
>>> round(result.item(), 6)  # J minus its mean, summed
0.0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..grids import Grid
from ..images import Image
from ..sampling import Sample
from ..wire.channel import Channel
from .bounds import Pairs, SumIndex, add_up
from .columns import IMAGE, Columns, FixedColumns, columns_of
from .exact import ExactProducts, euclidean_norms, exact_products, sum_of_squares
from .header import OperandHeader
from .interface import MovingMappedOperand, MovingOperand
from .opened import Equations, KeptLedger
from .placement import WARPED, on_map, places_of, scattered
from .public_map import FEW_BITS, PublicMap
from .quantise import QuantisedRows, quantise_mapped_rows, quantise_rows, quantise_summed_rows
from .rows import Rows, ScatteredRows, Seen, row_parts

__all__ = ["ClearOperand", "Operand", "PrivateOperand"]


class Operand(Protocol):
    """What a loss needs of the fixed image at one level; the same for clear and private runs.

    Attributes:
        grid: the level's grid.
        sample: which of its points are used, with which weights.
        offset: the public constant that was subtracted from J.
        mean_square: mean of (J - offset)^2 over the sample as its points count; over all points of the level where
            that is not known (`energy_known`).
        energy_known: whether `mean_square` is that of the points in use.
        mean: mean of J - offset over the points in use, where party_1 was told (`within`); else 0.
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
    def energy_known(self) -> bool: ...
    @property
    def mean(self) -> float: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def channels(self) -> int: ...
    @property
    def gram(self) -> Tensor | None: ...
    @property
    def beside(self) -> Operand:
        """The operand of the same points whose products go through no map; without a map, the operand itself."""
        ...

    def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(quantised rows (rows, n), their products (pairs,) with the columns, float64)."""
        ...

    def products(self, rows: Rows, pairs: Pairs, seen: Seen) -> Tensor:
        """As `multiply`, of rows that are made where they are read: their products (pairs,) with the columns.

        Args:
            rows: no more than the operand was asked for.
            pairs: of rows and columns.
            seen: is called with (a part of the quantised rows, where it begins), once for each point, in order.
        """
        ...

    def sums(self, rows: Tensor, pairs: Pairs, sum_index: SumIndex) -> Tensor:
        """Sums (results,) float64 of the products of the pairs; no product is opened by itself."""
        ...

    def part(self, positions: Tensor, weights: Tensor | None) -> Operand:
        """The same operand, of which only these positions are used; party_2 learns nothing of it."""
        ...

    def within(self, overlap: Tensor) -> Operand:
        """The same operand, whose points count by the overlap (n,), too; party_2 does not learn it.

        One product opens J's sum by these weights, and where there is a column of squares that of J^2.
        """
        ...

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor, float]:
        """(quantised rows (D + 1, n), B^T (X[d] * J) (D, M) float64, X[WARPED] . J), where the operand has a map.

        n points of the sample; at the operand's other points the rows are zero.
        """
        ...

    def adjoint(self, fields: Tensor) -> Tensor:
        """B^T of party_1's own fields (rows, n) at the sample's points, with the map's weights: (rows, M) float64."""
        ...


@dataclass(frozen=True)
class _Overlap:
    # What party_1 knows of J - offset over its overlap; the mean square only where there is a column of squares.
    mean: float
    mean_square: float | None


@dataclass(frozen=True)
class ClearOperand:
    """J in the clear: the reference, and the oracle of every private run."""

    grid: Grid
    sample: Sample
    columns: Columns
    fixed: FixedColumns
    public_map: PublicMap | None = None
    channels: int = 1
    over: _Overlap | None = None

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
        if self.over is not None and self.over.mean_square is not None:
            return self.over.mean_square
        if self.sample.known:
            return self._own_mean_square
        return self.fixed.level_mean_square

    @cached_property
    def _own_mean_square(self) -> float:
        return float(euclidean_norms(self.fixed.own[:1])) ** 2 / self.fixed.points

    @property
    def energy_known(self) -> bool:
        """See `Operand`."""
        return self.sample.known if self.over is None else self.over.mean_square is not None

    @property
    def mean(self) -> float:
        """See `Operand`."""
        return 0.0 if self.over is None else self.over.mean

    @property
    def gram(self) -> Tensor | None:
        """See `Operand`."""
        values = self.fixed.values
        return exact_products(values, values).cpu() if self.columns.kind == "steepest_descent" else None

    @property
    def beside(self) -> ClearOperand:
        """Itself: in the clear both kinds of product are there."""
        return self

    def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The plain products."""
        values = self.fixed.values.to(rows)
        places = places_of(self.sample.positions, values.shape[1], self.channels)
        table = exact_products(rows, values if places is None else values[:, places])
        return rows, torch.stack([table[row, column] for row, column in pairs])

    def products(self, rows: Rows, pairs: Pairs, seen: Seen) -> Tensor:
        """See `Operand`."""
        sums = ExactProducts(rows.count, self.fixed.count, rows.device)
        places = places_of(self.sample.positions, self.fixed.points, self.channels)
        for start, stop in row_parts(rows.points):
            part = rows.part(start, stop)
            seen(part, start)
            sums.add(part, self.fixed.part(start, stop) if places is None else self.fixed.at(places[start:stop]))
        table = sums.total()
        return torch.stack([table[row, column] for row, column in pairs])

    def sums(self, rows: Tensor, pairs: Pairs, sum_index: SumIndex) -> Tensor:
        """See `Operand`."""
        return add_up(self.multiply(rows, pairs)[1], sum_index)

    def part(self, positions: Tensor, weights: Tensor | None) -> ClearOperand:
        """See `Operand`."""
        return replace(self, sample=self.sample.at(positions, weights))

    def within(self, overlap: Tensor) -> ClearOperand:
        """See `Operand`."""
        sample = self.sample.within(overlap)
        if self.columns.kind == "bins":
            return replace(self, sample=sample)
        row = sample.row(self.channels, self.fixed.own)
        values = self.fixed.own[:1]
        places = places_of(self.sample.positions, values.shape[1], self.channels)
        values = values if places is None else values[:, places]
        mean = float(exact_products(row, values))
        square = sum_of_squares(row, values) if self.columns.squares else None
        return replace(self, sample=sample, over=_Overlap(mean, square))

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor, float]:
        """See `Operand`."""
        values = self.fixed.values.to(rows)
        places = places_of(self.sample.positions, values.shape[1], self.channels)
        values = values if places is None else values[:, places]
        return rows, self.adjoint(rows[:WARPED] * values), float(exact_products(rows[WARPED:], values))

    def adjoint(self, fields: Tensor) -> Tensor:
        """See `Operand`."""
        assert self.public_map is not None
        return self.public_map.adjoint(on_map(fields, self.sample, self.public_map))


@dataclass(frozen=True)
class PrivateOperand:
    """party_1's handle on an operand that only party_2 knows; every product goes through the protocol."""

    grid: Grid
    sample: Sample
    columns: Columns
    remote: MovingOperand | MovingMappedOperand
    channel: Channel
    sample_mean_square: float
    level_mean_square: float
    gram: Tensor | None = None
    kept: KeptLedger | None = None
    full: Grid | None = None
    channels: int = 1
    over: _Overlap | None = None
    without_map: PrivateOperand | None = None

    @property
    def beside(self) -> PrivateOperand:
        """See `Operand`; what both open is entered into one ledger."""
        if self.public_map is None:
            return self
        assert self.without_map is not None
        return self.without_map

    @property
    def header(self) -> OperandHeader:
        """The operand's public numbers."""
        return self.remote.header

    @property
    def public_map(self) -> PublicMap | None:
        """Of its products, or None."""
        return self.remote.public_map if isinstance(self.remote, MovingMappedOperand) else None

    @property
    def offset(self) -> float:
        """The public constant that party_2 subtracted."""
        return self.header.offset

    @property
    def mean_square(self) -> float:
        """See `Operand`."""
        if self.over is not None and self.over.mean_square is not None:
            return self.over.mean_square
        return self.sample_mean_square if self.sample.known else self.level_mean_square

    @property
    def energy_known(self) -> bool:
        """See `Operand`."""
        return self.sample.known if self.over is None else self.over.mean_square is not None

    @property
    def mean(self) -> float:
        """See `Operand`."""
        return self._mapped_mean if self.over is None else self.over.mean

    @cached_property
    def _mapped_mean(self) -> float:
        # Only losses that centre J ask for it: one product, of one row that is not zero.
        if self.public_map is None or self.sample.overlap is None:
            return 0.0
        row = self.sample.row(self.channels, self.sample.overlap)
        return self.project(torch.cat([row.new_zeros(self.grid.dimension, row.shape[1]), row]))[2]

    def part(self, positions: Tensor, weights: Tensor | None) -> PrivateOperand:
        """See `Operand`."""
        beside = None if self.without_map is None else self.without_map.part(positions, weights)
        return replace(self, sample=self.sample.at(positions, weights), without_map=beside)

    def within(self, overlap: Tensor) -> PrivateOperand:
        """See `Operand`."""
        sample = self.sample.within(overlap)
        used = replace(self, sample=sample)
        if self.columns.kind == "bins":
            return used
        if self.public_map is not None:
            beside = self.without_map
            return used if beside is None else replace(used, without_map=replace(beside, sample=sample))
        over, row = used._sums_by(sample.row(self.channels, overlap))
        # The rounded weights are those in use: sums of I^2 and of J^2 by others would not cancel.
        rounded = row[0, : overlap.numel()]
        if sample.weights is not None:
            rounded = rounded / sample.weights.to(rounded)
        return replace(used, sample=self.sample.within(rounded.to(overlap)), over=over)

    def _sums_by(self, row: Tensor) -> tuple[_Overlap, Tensor]:
        """J's and J^2's means by weights (1, n), opened, and the weights as they were rounded."""
        asked = [(0, 0), (0, self.header.columns - 1)] if self.columns.squares else [(0, 0)]
        quantised, results = self._opened(row, asked)
        whole = float(exact_products(quantised, torch.ones_like(quantised)))  # rounded weights have another sum
        mean, *squares = (results / whole).tolist()
        if self.kept is not None:
            self.kept.enter_weights(self._equations, quantised, float(results[0]))
        return _Overlap(mean, max(squares[0], 0.0) if squares else None), quantised

    def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Quantise each row as finely as the protocol carries exactly, multiply as integers, scale back.

        The returned rows are the quantised ones, so that a caller who uses them for its own sums, too, leaves the
        rounding multiplied by the small residual I - J and not by J.
        """
        quantised, results = self._opened(rows, pairs)
        if self.kept is not None:
            self.kept.enter_products(self._equations, quantised, pairs, results)
        return quantised, results

    def products(self, rows: Rows, pairs: Pairs, seen: Seen) -> Tensor:
        """See `Operand`; in two passes over the rows."""
        remote, header = self._plain, self.header
        entry = None if self.kept is None else self.kept.entering(self._equations, pairs, rows)
        integers = QuantisedRows(rows, header, remote.limits, seen if entry is None else entry.before(seen))
        places = places_of(self.sample.positions, header.points, self.channels)
        carried = integers if places is None else ScatteredRows(integers, places, header.points)
        self.channel.at(self.channel.level, self.channel.iteration + 1)
        exact = remote.multiply(carried, pairs, self._nonzero_positions(places)).cpu().double()
        integers.finish()
        steps = integers.scale[[row for row, _ in pairs]]
        scales = torch.tensor(header.scales, dtype=torch.float64)
        results = exact / steps * scales[[column for _, column in pairs]]
        if entry is not None:
            entry.end(results)
        return results

    def _opened(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """`multiply` without an entry in the ledger."""
        remote = self._plain
        results = torch.empty(len(pairs), dtype=torch.float64)
        scales = torch.tensor(self.header.scales, dtype=torch.float64)
        quantised = torch.empty_like(rows)
        places = places_of(self.sample.positions, self.header.points, self.channels)
        for start in range(0, rows.shape[0], self.header.rows):
            stop = min(start + self.header.rows, rows.shape[0])
            numbers = [n for n, (row, _) in enumerate(pairs) if start <= row < stop]
            if not numbers:
                continue
            integers, scale = quantise_rows(rows[start:stop], self.header, remote.limits)
            quantised[start:stop] = integers.to(rows) / scale[:, None].to(rows)
            wanted = [(pairs[n][0] - start, pairs[n][1]) for n in numbers]
            self.channel.at(self.channel.level, self.channel.iteration + 1)
            integers = scattered(integers, places, self.header.points)
            exact = remote.multiply(integers, wanted, self._nonzero_positions(places)).cpu().double()
            steps = scale[[row for row, _ in wanted]]
            results[numbers] = exact / steps * scales[[column for _, column in wanted]]
        return quantised, results

    def sums(self, rows: Tensor, pairs: Pairs, sum_index: SumIndex) -> Tensor:
        """See `Operand`; all rows are quantised alike, and all columns must have one scale."""
        remote = self._plain
        integers, scale = quantise_summed_rows(rows, self.header, remote.limits, pairs, sum_index)
        places = places_of(self.sample.positions, self.header.points, self.channels)
        integers = scattered(integers, places, self.header.points)
        self.channel.at(self.channel.level, self.channel.iteration + 1)
        exact = remote.multiply(integers, pairs, self._nonzero_positions(places), sum_index).cpu().double()
        results = exact / scale * self.header.scale
        if self.kept is not None:
            self.kept.enter_sums(self.columns.bins, integers.to(rows) / scale, results)
        return results

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor, float]:
        """See `Operand`; the rows are quantised to the header's bits, by a power of two for each."""
        remote = self._mapped
        public_map, sums = remote.public_map, None
        if self.header.row_bits < FEW_BITS:
            sums = public_map.largest_sums(on_map(rows, self.sample, public_map)).cpu()
        integers, scale = quantise_mapped_rows(rows, self.header, remote.limits, public_map.largest_sum, sums)
        self.channel.at(self.channel.level, self.channel.iteration + 1)
        whole = on_map(integers, self.sample, public_map)
        exact = remote.project(whole).cpu().double() * self.header.scale
        fields = exact[:-1].reshape(rows.shape[0] - 1, -1) / (scale[:WARPED, None] * public_map.unit)
        quantised = integers.to(rows) / scale[:, None].to(rows)
        total = float(exact[-1] / scale[WARPED])
        if self.kept is not None:
            opened = torch.cat([fields.flatten(), torch.tensor([total]).double()])
            self.kept.enter_mapped(self._equations, quantised, opened)
        return quantised, fields, total

    def adjoint(self, fields: Tensor) -> Tensor:
        """See `Operand`."""
        return self._mapped.public_map.adjoint(on_map(fields, self.sample, self._mapped.public_map))

    def _nonzero_positions(self, places: Tensor | None) -> Tensor | None:
        """Positions that may be seen. Skipping unused ciphertexts shows in the time a product takes: that is safe for
        a window of the public random order (chunks), and unsafe for points chosen by the gradient, which have weights.
        """
        return places if self.sample.weights is None else None

    @property
    def _equations(self) -> Equations:
        return Equations(
            self.grid, self.sample, self.columns, self.header.points, self.channels, self.full, self.public_map
        )

    @property
    def _plain(self) -> MovingOperand:
        assert isinstance(self.remote, MovingOperand)
        return self.remote

    @property
    def _mapped(self) -> MovingMappedOperand:
        assert isinstance(self.remote, MovingMappedOperand)
        return self.remote
