"""The correlation ratio of the fixed image given the warped moving one, clear or private: two products, linear in J.

    value = 1 - eta^2 = min over splines f of mean (f(I(T(x))) - J^(x))^2,   J^ of zero mean and unit variance
    gradient = 2 mean f'(I) S (f(I) - J^),   S the steepest-descent images of I(T(x))

(Roche et al., MICCAI 1998, with the conditional mean E[J | I] as a cubic spline of the intensity; FLIRT's has boxes.)
A perfect pair is a straight f, which the splines hold, so the value is 0 there and the optimum at the truth: means in
boxes are not, by some tenth of a voxel. What differs between the images by more than a function of intensity (noise,
another blur) moves it: f can give way at an edge, so a scale is held less firmly than by ncc. With U the windows of I
(`histograms.bin_weights`) and f(I) = sum_a c_a u_a(I),

    c = (U^T U + P)^-1 U^T J^,   value = 1 - J^T U c / n

P, small, keeps f straight where I has few values (a penalty on second differences: Eilers and Marx, Stat. Sci. 1996).
As c is the minimum, the gradient does not ask how c changes with T, and it is exact with P. The Hessian is that of
variable projection in Kaufman's form (BIT 1975): the rows f'(I) S less what the windows explain of them.

What meets J is linear in J: the sums U^T J^, one a window, and once they are opened and f is known, the rows f'(I) S,
as in SSD. party_1 sends the windows but one, and I itself in the place of the last: they span the same splines, and the
ledger takes a product's last row as party_1's own image. The second product's last row is the same I, which opens
nothing new. f is not told to party_2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.losses import LOSSES
from ..errors import ConfigError, ImageError
from ..histograms import spline_of
from ..images import Image
from ..joint.columns import MOST_BINS, table_of
from ..joint.exact import exact_products
from ..joint.operands import Operand
from ..joint.placement import WARPED
from ..transforms import LatticeTransform, LinearTransform
from .deformable import DeformableSSD
from .linearisation import Linearisation, OperatorLinearisation
from .measures import Measure
from .ncc import standardise
from .smooth import Smoothness
from .ssd import SSD

__all__ = ["CR", "CorrelationRatio", "DeformableCR"]

STRAIGHT = 1e-5  # penalty on the squared second differences of c, as a share of the points' weight
LEAST = 1e-10  # and on its squares, so that one intensity alone has an answer
FAINT = 1e-3  # of the largest weight; below it a quantised row says too little of the row without its weight


@dataclass(frozen=True)
class _Regression:
    """J^ regressed on a warped image: f, and what the Hessian asks of the windows.

    Attributes:
        value: 1 - eta^2, the penalty included.
        total: sum of the points' weights.
        fitted: f(I), (n,).
        slope: f'(I), (n,) per unit of intensity.
        basis: (K, n) the windows but one, and the warped image.
        inverse: (K, K) float64, of the penalised sums of their products.
    """

    value: float
    total: float
    fitted: Tensor
    slope: Tensor
    basis: Tensor
    inverse: Tensor

    def explained(self, rows: Tensor) -> Tensor:
        """(P, P) what the windows explain of the sums of products of weighted rows (P, n)."""
        along = exact_products(self.basis, rows)
        return along.T @ self.inverse.to(along) @ along


class _Windows:
    """The splines of a moving image's intensities at one level.

    Args:
        moving: the image at the level; its range is the splines'.
        count: of the windows, K.

    Raises:
        ImageError: a constant image, or one of several channels.
    """

    def __init__(self, moving: Image, count: int) -> None:
        if moving.tensor.shape[0] != 1:
            raise ImageError(f"moving image: {moving.tensor.shape[0]} channels, the correlation ratio takes one")
        self.low, self.high = (float(extreme) for extreme in moving.tensor.aminmax())
        if not self.low < self.high:
            raise ImageError("moving image: constant at this level, its correlation ratio is not defined")
        self.count = count

    def regress(self, operand: Operand, rows: Tensor, weights: Tensor | None) -> _Regression | None:
        """J^ on the last of the rows, the warped image, which goes to mean 0 and variance 1; None where it is flat.

        Args:
            operand: of J^, without a map.
            rows: (rows, n) of a product.
            weights: of the points (n,), or None.
        """
        warped = rows[WARPED].clone()
        total = float(len(warped)) if weights is None else float(weights.double().sum())
        ones = torch.ones_like(warped) if weights is None else weights.to(warped)
        mean = float(exact_products(warped[None], ones[None])) / max(total, 1e-300)
        deviation = standardise(rows, weights)
        if deviation == 0:
            return None
        basis = table_of(warped, self.low, self.high, self.count)
        basis[WARPED] = rows[WARPED]
        sent = basis if weights is None else basis * weights
        quantised, sums = operand.multiply(sent, [(row, 0) for row in range(self.count)])
        if weights is not None:  # a window's rounding meets the residual f(I) - J alone
            least = FAINT * float(weights.max())
            basis = torch.where(weights > least, quantised / weights.clamp(min=least), basis)
        else:
            basis = quantised
        gram = exact_products(quantised, basis).cpu()
        turn = self._turn(mean, deviation)
        penalty = total * (turn.T @ self._penalty() @ turn)
        inverse = torch.linalg.inv((gram + gram.T) / 2 + penalty)
        along = inverse @ sums.cpu()
        fitted, slope = spline_of(warped, self.low, self.high, torch.cat([torch.zeros(1).double(), turn @ along]))
        value = operand.mean_square - float(sums.cpu() @ along) / total
        return _Regression(value, total, fitted, slope, basis, inverse)

    def _turn(self, mean: float, deviation: float) -> Tensor:
        """(K, K) the windows' coefficients of the basis: sum_a x_a u_a(I) = I for these x_a."""
        places = torch.arange(-1, self.count - 1).double() * ((self.high - self.low) / (self.count - 3)) + self.low
        turn = torch.eye(self.count, dtype=torch.float64)
        turn[:, WARPED] = (places - mean) / deviation
        return turn

    def _penalty(self) -> Tensor:
        second = torch.eye(self.count, dtype=torch.float64).diff(n=2, dim=0)
        return STRAIGHT * second.T @ second + LEAST * torch.eye(self.count, dtype=torch.float64)


class CR(SSD):
    """1 - the correlation ratio of a fixed image, that may be another party's, given the warped moving image.

    Whatever function of the moving image's intensity the fixed one is, up to its sign and to folds, it is 0.

    Args:
        operand: of the measure `CorrelationRatio`.
        windows: of the moving image's intensities, over their range at the level.

    Raises:
        ConfigError: an operand of other columns than the image or its moments.
        ImageError: (when called) a constant moving image, or one of several channels.

    >>> from ppir_torch import Affine, ClearFixed, Grid, Image, Level, OperandRequest
    >>> from ppir_torch.losses import CorrelationRatio
    >>> image = Image(torch.rand(1, 9, 9), Grid((9, 9)))
    >>> inverted = Image(1 - image.tensor, image.grid)
    >>> measure = CorrelationRatio()
    >>> loss = measure.loss(ClearFixed(inverted).operand(OperandRequest(Level(1, 0.0), measure=measure)))
    >>> abs(loss(Affine(image.grid), image).item()) < 1e-5
    True
    """

    def __init__(self, operand: Operand, windows: int) -> None:
        super().__init__(operand)
        if operand.columns.kind not in ("image", "moments"):
            raise ConfigError(f"cr: an operand of the image is needed, not of {operand.columns.kind!r}")
        self._windows = windows

    def linearise(self, transform: nn.Module, moving: Image, with_hessian: bool = True) -> Linearisation:
        """Value, gradient and Hessian from two joint products; see `SSD.linearise`."""
        by_moments = self.operand.columns.kind == "moments"
        rows, images = self._rows(transform, moving, with_images=with_hessian or not by_moments, with_slopes=by_moments)
        weights, _ = self._weights(rows)
        nominal = 0.0 if self.operand.sample.known else 0.01 * self.operand.mean_square
        found = _Windows(moving, self._windows).regress(self.operand, rows, weights)
        if found is None:  # a flat warped image explains nothing, and there is no way to tell where there is more
            flat = images.new_zeros(images.shape[0]).double().cpu()
            return Linearisation(1.0, flat, torch.diag(flat), nominal)
        rows[:WARPED] *= found.slope
        if by_moments:
            images *= found.slope
        hessian = torch.empty(0)
        if with_hessian:
            weighted = images if weights is None else images * weights
            hessian = exact_products(weighted, images) - found.explained(weighted)
            hessian = (2 / found.total) * hessian.cpu()
        gradient, spread = self._gradient(rows, found, transform), self._spread()
        return Linearisation(found.value / spread, gradient / spread, hessian / spread, nominal)

    def _value(self, transform: nn.Module, moving: Image) -> float:
        rows, _ = self._rows(transform, moving, with_images=False, with_slopes=False)
        found = _Windows(moving, self._windows).regress(self.operand, rows, self._weights(rows)[0])
        return 1.0 if found is None else found.value / self._spread()

    def _spread(self) -> float:
        """J^'s variance over the overlap, where it was told; else 1, as over all points of the operand."""
        if self.operand.sample.overlap is None or not self.operand.energy_known:
            return 1.0
        return max(self.operand.mean_square - self.operand.mean**2, 1e-12)

    def _gradient(self, rows: Tensor, found: _Regression, transform: nn.Module) -> Tensor:
        """2 mean f'(I) S (f(I) - J^), of rows f'(I) S or, by moments, f'(I) G."""
        weights, _ = self._weights(rows)
        weighted, leading = rows if weights is None else rows * weights, len(rows) - 1
        columns = 1 if self.operand.columns.kind == "image" else 1 + self.operand.grid.dimension
        pairs = [(row, column) for row in range(leading) for column in range(columns)] + [(leading, 0)]
        quantised, products = self.operand.multiply(weighted, pairs)
        ours = found.fitted[None] if columns == 1 else self._homogeneous(rows) * found.fitted
        own = exact_products(quantised[:WARPED], ours).cpu()
        sums = (own - products[:WARPED].cpu().reshape(own.shape)) / found.total
        return 2 * (sums[:, 0] if columns == 1 else self._of_moments(sums, transform))


class DeformableCR(DeformableSSD):
    """The same with a smoothness term; arguments as of `DeformableSSD`, and the windows.

    Args:
        operand: with a map, and beside it one without (`Operand.beside`).
        transform: what is fitted.
        outer: the linear map after it.
        smoothness: of the coefficients.
        windows: as of `CR`.
    """

    def __init__(
        self,
        operand: Operand,
        transform: LatticeTransform,
        outer: LinearTransform,
        smoothness: Smoothness,
        windows: int,
    ) -> None:
        super().__init__(operand, transform, outer, smoothness)
        self._windows = windows

    def linearise(self, moving: Image) -> OperatorLinearisation:
        """Value, gradient (P,) and Hessian operator, from a product without the map and one with it."""
        rows = self._rows(moving)
        weights, total = self.operand.sample.combined, float(rows.shape[1])
        weights = None if weights is None else weights.to(rows)
        found = _Windows(moving, self._windows).regress(self.operand.beside, rows, weights)
        if found is None:
            rows.zero_()
            fitted, value = rows[WARPED], self.operand.mean_square
        else:
            rows[:WARPED] *= found.slope
            fitted, value, total = found.fitted, found.value, found.total
        quantised, projected, _ = self.operand.project(rows if weights is None else rows * weights)
        own = self.operand.adjoint(quantised[:WARPED] * fitted)
        gradient = (2 / total) * (own - projected.to(own)).flatten()
        return self._smoothed(value, gradient, self._structure_tensor(rows[:WARPED], weights, total))


@dataclass(frozen=True)
class CorrelationRatio(Measure):
    """1 - the correlation ratio of the fixed image given the moving one: across modalities.

    For pairs whose fixed intensity is some function of the moving one. See `losses.correlation_ratio` for what is
    opened: one sum a window more than of SSD at each iteration.

    Args:
        windows: cubic ones over the moving image's range of intensities, 4 to 64.

    Raises:
        ConfigError: another number of windows.
    """

    windows: int = 16

    entry = LOSSES.ours("cr")

    def __post_init__(self) -> None:
        if not 4 <= self.windows <= MOST_BINS:
            raise ConfigError(f"windows: {self.windows}, 4 to {MOST_BINS} are needed")

    def most_rows(self, dimension: int) -> int:  # noqa: ARG002
        """Of the windows' sums."""
        return self.windows

    def rows_beside(self) -> int:
        """Of the windows' sums, which go through no map."""
        return self.windows

    def to_meta(self) -> dict[str, Any]:
        """See `Measure`."""
        return {"kind": self.kind, "windows": self.windows}

    def loss(self, operand: Operand) -> CR:
        """See `Measure`."""
        return CR(operand, self.windows)

    def deformable_loss(
        self, operand: Operand, part: LatticeTransform, outer: LinearTransform, smoothness: Smoothness
    ) -> DeformableCR:
        """See `Measure`."""
        return DeformableCR(operand, part, outer, smoothness, self.windows)
