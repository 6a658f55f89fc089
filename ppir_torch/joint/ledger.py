"""The leakage ledger: how much of J the opened results give away (attack 6 of the threat model).

Every opened result is a linear equation on J, R = X J. Together they fix the projection P J of J on the span of all
rows so far (the least-norm solution), and nothing outside it:

    P J = X^T G^+ R,   |P J|^2 = R^T G^+ R,   G = X X^T.

The ledger keeps |P J|^2 / |J|^2 up to date from what party_1 has: its rows, the results and |J|^2. Part of it is no
news: what party_1's own warped image says of J already.

>>> j = torch.tensor([3.0, 4.0, 0.0, 0.0])
>>> ledger = Ledger(points=4, energy=25.0)
>>> row = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
>>> entry = ledger.record(row, row @ j, own=row[0])
>>> entry.opened, entry.rank, round(entry.explained, 3), round(entry.own, 3), round(entry.beyond, 3)
(1, 1, 0.36, 0.36, 0.0)
>>> round(ledger.record(torch.eye(4), j, own=row[0]).beyond, 3)
1.0

How it stays small, online and honest (sketches, recursive least squares, a control variate): docs/ledger.md.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .exact import PART, Blocks

__all__ = ["Ledger", "LedgerEntry", "Recording"]

_ACCURACY = 1e-6  # error of a result as a share of |row| |J|; the rows are rounded to integers
_FULL = 0.9  # rank / d from which on a sketch tells nothing apart
_MOST = 4096  # rank that is kept at most; bounds memory and time
_GROUP = 8  # points that are mixed


@dataclass(frozen=True)
class LedgerEntry:
    """What was opened of one operand so far.

    Attributes:
        opened: number of results.
        rank: how many of their equations are independent, at the results' accuracy.
        explained: share of |J|^2 that the equations determine, in [0, 1].
        own: (I.J)^2 / (|I|^2 |J|^2) of party_1's own warped image I, the largest so far.
        beyond: (explained - own) / (1 - own), in [0, 1]: the share of what party_1's image leaves open. Equations that
            have nothing to do with J give rank / points.
    """

    opened: int
    rank: int
    explained: float
    own: float
    beyond: float


@dataclass(frozen=True)
class _Own:
    """party_1's own image at unit norm: its sketch (d,), its products with g and with J / |J|."""

    sketch: Tensor
    with_first: float
    with_fixed: float


class Ledger:
    """Counts what the results of one operand tell, online; party_1 runs it, and it needs no message.

    Exact where points <= sketch. A rank beyond 0.9 sketch, or beyond 4096, is more than it can tell apart or keep (a
    fine control grid): then everything counts as known, explained = beyond = 1, and the rank stays where it was.

    Args:
        points: n.
        energy: |J - offset|^2 in the unit of the results.
        sketch: d, numbers kept of each row; memory is about d rank. `beyond` is uncertain by about sqrt(2/d) of itself,
            and where `own` was far lower at first, with a = (own - own at first) / (1 - own), by another
            2 sqrt(a beyond / d) + a sqrt(2 rank) / d.
        seed: of the sketch; not a secret.
        noise: standard deviation of noise that party_2 adds to every result, as if J had noise of this share of its
            root mean square in every point. What the noise hides is not counted as explained.
    """

    def __init__(self, points: int, energy: float, sketch: int = 4096, seed: int = 0, noise: float = 0.0) -> None:
        if points < 1 or sketch < 1 or not energy >= 0 or not noise >= 0:
            raise ValueError(f"ledger: points {points}, energy {energy}, sketch {sketch}, noise {noise}")
        self._points, self._sketched, self._size = points, points > sketch, min(points, sketch)
        generator = torch.Generator().manual_seed(seed)
        # As narrow as they may be: eight bytes a point would be more than the image.
        sizes = [min(PART, points - start) for start in range(0, points, PART)]
        signs = [torch.randint(2, (size,), generator=generator).to(torch.int8) for size in sizes]
        self._sign = torch.cat(signs).mul_(2).sub_(1)
        buckets = torch.randperm(points + -points % _GROUP, generator=generator).remainder_(self._size)
        self._bucket = buckets.to(torch.int16 if self._size <= 1 << 15 else torch.int32)
        # Results of unit rows in units of |J| / sqrt(n), which is what a row that has nothing to do with J gives.
        self._unit = math.sqrt(max(energy, 1e-300) / points)
        self._noise, self._error = noise, math.hypot(noise, _ACCURACY * math.sqrt(points))
        self._opened, self._too_many = 0, False
        self._basis = torch.empty(0, self._size, dtype=torch.float64)
        self._solution = torch.empty(0, 2, dtype=torch.float64)  # coordinates of P J and P g
        self._covariance = torch.empty(0, 0, dtype=torch.float64)  # of the error of P J; the identity at first
        self._first, self._first_size = torch.empty(0), 0.0  # g (n,) before it had unit norm, and its norm
        self._owns: list[_Own] = []  # g, and the one nearest to J

    def record(self, rows: Tensor, results: Tensor, own: Tensor) -> LedgerEntry:
        """Count the results of one product.

        Args:
            rows: X (k, n), floating, best as they were carried.
            results: (k,) X (J - offset).
            own: (n,) party_1's own warped image less the offset. Its product with J is taken from the equations; a part
                of it outside the rows' span counts as not known.
        """
        if rows.shape != (results.numel(), self._points) or own.shape != (self._points,):
            shapes = tuple(rows.shape), tuple(results.shape), tuple(own.shape)
            raise ValueError(f"ledger: rows, results and own image are {shapes}; {self._points} points are due")
        recording = self.begin(len(rows), rows.device, own.dtype)
        recording.add(rows, own[None])
        return recording.end(results)

    def begin(self, count: int, device: torch.device, dtype: torch.dtype) -> Recording:
        """Begin to count the results of one product, whose rows come in parts.

        Args:
            count: of the rows.
            device: where they are.
            dtype: of party_1's own image.
        """
        self._sign, self._bucket, self._first = (x.to(device) for x in (self._sign, self._bucket, self._first))
        if not self._owns and not self.full:
            self._first = torch.empty(self._points, dtype=dtype, device=device)
        return Recording(self, count, device)

    def take_as_known(self, count: int) -> LedgerEntry:
        """Count results whose equations are too many to keep (a fine control grid): everything counts as known."""
        self._opened += count
        self._too_many = True
        rank = max(len(self._basis), min(self._opened, self._points))
        return LedgerEntry(self._opened, rank, 1.0, 0.0, 1.0)

    @property
    def rank(self) -> int:
        """Independent equations so far."""
        return len(self._basis)

    @property
    def points(self) -> int:
        """n."""
        return self._points

    @property
    def size(self) -> int:
        """d, numbers kept of each row."""
        return self._size

    @property
    def full(self) -> bool:
        """Whether there are more equations than it can tell apart."""
        return self._too_many or len(self._basis) > min(_FULL * self._size if self._sketched else self._size, _MOST)

    def sketch(self, block: Tensor, start: int, sketches: Tensor, with_first: Tensor) -> None:
        """Add to S X (k, d), which is X itself where that is small, and to X g (k,), a block's part of them.

        Args:
            block: X (k, n) at the points from `start`, float64, party_1's own image last.
            start: a multiple of `PART`.
            sketches, with_first: what is added to.
        """
        part = slice(start, start + block.shape[1])
        if not self._owns:
            self._first[part] = block[-1]
        with_first += block @ self._first[part].double()
        if not self._sketched:
            sketches[:, part] = block
            return
        groups = -(-block.shape[1] // _GROUP)
        signed = block.new_zeros(len(block), groups, _GROUP)
        torch.mul(block, self._sign[part], out=signed.flatten(1)[:, : block.shape[1]])
        bucket = self._bucket[start : start + groups * _GROUP].long()
        sketches.index_add_(1, bucket, (signed @ _hadamard(_GROUP).to(block)).flatten(1))

    def count(self, sketches: Tensor, with_first: Tensor, size: float, results: Tensor) -> LedgerEntry:
        """Count a product of which all rows were sketched, party_1's own image last, |own| its length."""
        self._opened += results.numel()
        if not self.full:
            self._first_size = self._first_size if self._owns else size
            with_first = with_first / self._first_size
            own, own_with_first = sketches[-1] / size, float(with_first[-1]) / size
            sketches = sketches[:-1]
            values = torch.stack([results.detach().cpu().double().flatten() / self._unit, with_first[:-1]], 1)
            sizes = torch.linalg.vector_norm(sketches, dim=1, keepdim=True)
            use = sizes[:, 0] > 0
            self._update(self._extend(sketches[use] / sizes[use]), values[use] / sizes[use])
            self._compare(own, own_with_first)
        return self._entry()

    def _extend(self, units: Tensor) -> Tensor:
        """Coordinates (k, rank) of unit vectors (k, d) in the basis, which first takes up what is new in them.

        What is new but smaller than the results' error is left out: its coordinate would be all error.
        """
        inside = units @ self._basis.T
        rest = units - inside @ self._basis
        again = rest @ self._basis.T  # twice is enough in floating point (Giraud et al. 2005)
        rest -= again @ self._basis
        news = rest[torch.linalg.vector_norm(rest, dim=1) > self._error]
        _, sizes, directions = torch.linalg.svd(news, full_matrices=False)
        new = directions[sizes > self._error]
        self._basis = torch.cat([self._basis, new])
        return torch.cat([inside + again, rest @ new.T], 1)

    def _update(self, rows: Tensor, values: Tensor) -> None:
        """Recursive least squares: rows (k, rank) in coordinates, their values (k, 2) for J and for g."""
        new = rows.shape[1] - len(self._solution)
        solution = F.pad(self._solution, (0, 0, 0, new))
        covariance = F.pad(self._covariance, (0, new, 0, new))
        covariance.diagonal()[len(self._solution) :] = 1
        spread = covariance @ rows.T
        innovation = rows @ spread + self._error**2 * torch.eye(len(rows), dtype=torch.float64)
        gain = torch.linalg.solve(innovation, spread.T).T
        covariance -= gain @ spread.T
        self._solution = solution + gain @ (values - rows @ solution)
        self._covariance = (covariance + covariance.T) / 2

    def _compare(self, sketch: Tensor, with_first: float) -> None:
        """Keep party_1's own image, its sketch, if it is the first one, or says more of J than those before."""
        with_fixed = float(self._basis @ sketch @ self._solution[:, 0]) / math.sqrt(self._points)
        if not self._owns or abs(with_fixed) > abs(self._owns[-1].with_fixed):
            self._owns = [*self._owns[:1], _Own(sketch, with_first, with_fixed)]

    def _entry(self) -> LedgerEntry:
        own = min(self._owns[-1].with_fixed ** 2, 1.0)
        explained = 1.0 if self.full else min(max(self._explained(), own), 1.0)
        beyond = (explained - own) / (1 - own) if own < 1 else 0.0
        return LedgerEntry(self._opened, len(self._basis), explained, own, beyond)

    def _explained(self) -> float:
        """|P J|^2 = (g.J)^2 + |P (J - (g.J) g)|^2 for |J| = 1, less the noise's own energy in it."""
        rank, first, best = len(self._basis), self._owns[0], self._owns[-1]
        shrink = (1 - rank / self._size) / (1 - rank / self._points) if self._sketched else 1.0
        fixed, image = self._solution[:, 0] / math.sqrt(self._points), self._solution[:, 1]
        inside = self._basis @ first.sketch
        within = float(inside.square().sum() / first.sketch.square().sum().clamp(min=1e-300))  # 1: g is in the span
        share = float(inside @ fixed) / max(within, 1e-300)
        rest = shrink * float((fixed - share * image).square().sum())
        # What of J - (g.J) g is known exactly, from party_1's best image.
        known = float((best.with_fixed * best.sketch - share * first.sketch).square().sum())
        exact = best.with_fixed**2 - 2 * best.with_fixed * share * best.with_first + share**2
        # The error in a least-squares solution that starts from covariance I has covariance C - C^2.
        error = shrink * float(self._covariance.trace() - self._covariance.square().sum()) / self._points
        return share**2 * within + rest + (known - exact) - error * (self._noise / self._error) ** 2


class Recording:
    """The rows of one product on their way into a ledger, in parts, in the order of the points.

    Args:
        ledger: that counts them.
        count: of the rows.
        device: where they are.
    """

    def __init__(self, ledger: Ledger, count: int, device: torch.device) -> None:
        self._ledger, self._done = ledger, 0
        self._blocks = Blocks(count + 1, device, ledger.points)
        self._sketches = torch.zeros(count + 1, ledger.size, dtype=torch.float64, device=device)
        self._with_first = self._sketches.new_zeros(count + 1)
        self._energy = self._sketches.new_zeros(())

    def add(self, rows: Tensor, own: Tensor) -> None:
        """Take the rows (count, n) and party_1's own image (1, n) at the next n points."""
        if not self._ledger.full:  # it keeps nothing more
            for block in self._blocks.add(rows.detach(), own.detach()):
                self._take(block)

    def end(self, results: Tensor) -> LedgerEntry:
        """Count the results (count,), when all points were taken."""
        if not self._ledger.full:
            self._take(self._blocks.rest())
        size = max(math.sqrt(float(self._energy)), 1e-300)
        return self._ledger.count(self._sketches.cpu(), self._with_first.cpu(), size, results)

    def _take(self, block: Tensor) -> None:
        self._ledger.sketch(block, self._done, self._sketches, self._with_first)
        self._energy += block[-1] @ block[-1]
        self._done += block.shape[1]


@functools.cache
def _hadamard(size: int) -> Tensor:
    """Orthogonal (size, size) of entries +-1 / sqrt(size), size a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / math.sqrt(2)
    return matrix
