"""What a run's opened values say about J, entered into the ledger of the operand they are from.

A product is an equation on J (`Equations`), a joint histogram nearly one; party_1 keeps account of them as it goes, and
may stop where they say more than was agreed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import LedgerStop
from ..grids import Grid
from ..sampling import Sample
from .bounds import Pairs
from .columns import Columns, functionals
from .ledger import Ledger, LedgerEntry, Recording
from .placement import WARPED, on_map, places_of
from .public_map import PublicMap
from .rows import Rows, Seen

__all__ = ["Equations", "KeptLedger"]

MOST_EQUATIONS = 300  # of mapped products, which the ledger keeps; more of them count as everything


@dataclass(frozen=True)
class Equations:
    """How an operand's products become equations on J.

    Attributes:
        grid: of the level.
        sample: its points that are used.
        columns: of the operand.
        points: of the operand, those of all channels.
        channels: of the fixed image's features.
        full: grid of the unshrunk image; None: the level's.
        public_map: of its products, or None.
    """

    grid: Grid
    sample: Sample
    columns: Columns
    points: int
    channels: int = 1
    full: Grid | None = None
    public_map: PublicMap | None = None

    def of_products(self, rows: Tensor, pairs: Pairs, count: int) -> tuple[Tensor, Tensor]:
        """(F (pairs, count), party_1's own warped image (count,)) over the ledger's `count` points."""
        positions = places_of(self.sample.positions, self.points, self.channels)
        own = self._unweighted(rows[WARPED:])[0]
        equations = functionals(rows, pairs, self.columns, self.grid, self.sample.index, self.full)
        if positions is not None or equations.shape[1] != own.shape[0]:
            # party_1 uses part of the operand's points, or the equations are on all points of the level
            place = self.sample.index if positions is None else positions
            own = rows.new_zeros(count).index_copy_(0, place.to(rows.device), own) if place is not None else own
            if equations.shape[1] != count:
                whole = rows.new_zeros(len(pairs), count)
                whole[:, place] = equations
                equations = whole
        return equations, own

    @property
    def in_parts(self) -> bool:
        """Whether those of a part of the points follow from the rows there."""
        return self.sample.positions is None and self.columns.kind in ("image", "moments")

    def of_part(self, rows: Tensor, start: int, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(F (pairs, n), party_1's own warped image (1, n)) at the part of the points that begins at `start`."""
        count = rows.shape[1]
        each = self.points // self.channels
        places = torch.arange(start, start + count) % each
        own, weights = rows[WARPED:], self.sample.weights
        if weights is not None:
            own = own / weights.to(rows)[places.to(rows.device)]
        index = places if self.sample.index is None else self.sample.index[places.to(self.sample.index.device)]
        return functionals(rows, pairs, self.columns, self.grid, index, self.full), own

    def of_map(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(F (results, points), party_1's own warped image (points,)) of a product through the map."""
        assert self.public_map is not None
        whole, own = (on_map(r, self.sample, self.public_map) for r in (rows, self._unweighted(rows[WARPED:])))
        return self.public_map.functionals(whole), own[0]

    def _unweighted(self, rows: Tensor) -> Tensor:
        # By the sampler's weights alone: the image's own overlap stays in what party_1 knows by itself.
        weights = self.sample.weights
        return rows if weights is None else rows / weights.to(rows).repeat(self.channels)


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
    waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)

    def enter_weights(self, equations: Equations, row: Tensor, total: float) -> None:
        """Enter the sum of J by the overlap's weights (1, n), and that of J^2, which were opened together.

        The first is an equation on J, kept until party_1's own image w I comes with a product. Linearised at that image
        the second says what sum w I J does, which the round's products open anyway; so it is counted and no equation.
        """
        said, _ = equations.of_products(row, [(0, 0)], self.points)
        self.waiting.append((said, torch.tensor([total], dtype=torch.float64)))
        self.further += 1

    def enter_products(self, equations: Equations, rows: Tensor, pairs: Pairs, results: Tensor) -> None:
        """Enter products (pairs,) of quantised rows (rows, n), the last of them party_1's own warped image.

        Raises:
            LedgerStop: the opened values say more than was agreed.
        """
        said, own = equations.of_products(rows, pairs, self.points)
        if self.waiting:
            said = torch.cat([*(row for row, _ in self.waiting), said])
            results = torch.cat([*(total for _, total in self.waiting), results.double().cpu()])
            self.waiting.clear()
        entry = self.ledger.record(said, results, own)
        self._keep(replace(entry, opened=entry.opened + self.further))

    def take(self, recording: Recording, results: Tensor) -> None:
        """Enter the results (pairs,) of a product whose rows were recorded, those that waited before them.

        Raises:
            LedgerStop: the opened values say more than was agreed.
        """
        opened = torch.cat([*(total for _, total in self.waiting), results.double().cpu()])
        self.waiting.clear()
        entry = recording.end(opened)
        self._keep(replace(entry, opened=entry.opened + self.further))

    def entering(self, equations: Equations, pairs: Pairs, rows: Rows) -> Entering:
        """Begin to enter products (pairs,) of rows that are made where they are read."""
        return Entering(self, equations, pairs, rows)

    def enter_mapped(self, equations: Equations, rows: Tensor, results: Tensor) -> None:
        """Enter what a product through a map opened; a fine control grid's equations are too many to keep.

        Raises:
            LedgerStop: the opened values say more than was agreed.
        """
        if self.ledger.rank + len(results) > MOST_EQUATIONS:
            self._keep(self.ledger.take_as_known(len(results)))
        else:
            said, own = equations.of_map(rows)
            self._keep(self.ledger.record(said, results, own))

    def enter_sums(self, bins: int, rows: Tensor, results: Tensor) -> None:
        """Enter a joint histogram (rows over all points): numbers of bins times their weights are J, w_a . J is linear.

        What it says of J's spread within a bin of the warped image is no linear equation on J, and is not counted; nor
        are the histogram's derivatives.

        Raises:
            LedgerStop: the opened values say more than was agreed.
        """
        if len(results) != bins * len(rows):
            self.further += len(results)
            if self.last is not None:
                self.last = replace(self.last, opened=self.last.opened + len(results))
            return
        table = results.reshape(len(rows), bins)
        numbers = torch.arange(bins, dtype=torch.float64)
        mean = float((table.sum(0) @ numbers) / table.sum())
        equations = table @ (numbers - mean)
        own = torch.arange(len(rows)).to(rows) @ rows / rows.sum(0).clamp(min=1e-6)
        counted = rows.sum(0) > 0
        own = torch.where(counted, own - own[counted].mean(), 0.0)
        # Of J at variance 1: a cubic B-spline has a third of a bin of variance by itself.
        variance = float((table.sum(0) @ (numbers - mean).square()) / table.sum()) - 1 / 3
        equations /= math.sqrt(max(variance, 1e-6))
        entry = self.ledger.record(rows, equations, own)
        self.further += len(results) - len(rows)
        self._keep(replace(entry, opened=entry.opened + self.further))

    def _keep(self, entry: LedgerEntry) -> None:
        """Keep what was entered, and stop the run where the opened values say more than was agreed."""
        self.last = entry
        added = entry.explained - entry.own
        if self.most is not None and added > self.most:
            raise LedgerStop(
                f"ledger: the opened values explain {added:.2%} of the fixed image that the moving one does not, "
                f"more than ledger.most = {self.most:.2%}; the run stops here and keeps what it has"
            )


class Entering:
    """The rows of one product on their way into an operand's ledger.

    Args:
        kept: the ledger.
        equations: of the operand.
        pairs: of the product.
        rows: that are on their way; the last is party_1's own warped image.
    """

    def __init__(self, kept: KeptLedger, equations: Equations, pairs: Pairs, rows: Rows) -> None:
        self._kept, self._equations, self._pairs, self._whole = kept, equations, pairs, None
        self._waiting = [row for row, _ in kept.waiting]
        if equations.in_parts:
            self._recording = kept.ledger.begin(len(self._waiting) + len(pairs), rows.device, rows.dtype)
        else:
            self._whole = torch.empty(rows.count, rows.points, dtype=rows.dtype, device=rows.device)

    def before(self, seen: Seen) -> Seen:
        """Somebody else who sees the rows, after the ledger."""

        def pass_on(part: Tensor, start: int) -> None:
            self.add(part, start)
            seen(part, start)

        return pass_on

    def add(self, part: Tensor, start: int) -> None:
        """Take the next points' quantised rows."""
        stop = start + part.shape[1]
        if self._whole is not None:
            self._whole[:, start:stop] = part
            return
        said, own = self._equations.of_part(part, start, self._pairs)
        self._recording.add(torch.cat([*(row[:, start:stop] for row in self._waiting), said]), own)

    def end(self, results: Tensor) -> None:
        """Enter the product's results (pairs,).

        Raises:
            LedgerStop: the opened values say more than was agreed.
        """
        if self._whole is not None:
            self._kept.enter_products(self._equations, self._whole, self._pairs, results)
        else:
            self._kept.take(self._recording, results)
