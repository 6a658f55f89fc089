"""Global normalised cross-correlation, clear or private: the joint product of SSD between normalised images.

    value = 1 - rho = mean (I^ - J^)^2 / 2,   I^ = (I(T(x)) - m) / s,   J^ = (J(x) - mean J) / deviation of J

m and s are the mean and the deviation of the warped image over the points in use: party_1 normalises it alone, in every
iteration; party_2's operand is J^ (`columns_of`, `normalised`). Through the normalisation

    dI^ = (S - mean S - I^ mean(I^ S)) / s,   gradient = mean dI^ (I^ - J^),   Hessian (Gauss-Newton) = mean dI^ dI^^T

with S the steepest-descent images of I(T(x)): the rows of the product are dI^ and I^. (The same residual as in the
enhanced correlation coefficient of Evangelidis and Psarakis, TPAMI 2008.)

By moments (affine transforms under some protocols) the product has S's spatial gradient as rows instead, and party_1
takes mean(I^ (I^ - J^)) out of the sums afterwards; it has that from the value.

Over an overlap J^ has another mean and variance than over all points; party_1 is told both (`Operand.within`), and the
correlation is that of the overlap.

`SquaredNCC` is 1 - rho^2, what a linear function of I leaves unexplained of J: contrast may be inverted, and a shift to
where the images are flat gains nothing. Its Gauss-Newton model is that of J regressed on I: with the slope rho
the steepest-descent images are rho dI^ (the correlation ratio's, Roche et al., MICCAI 1998, for one straight line).

`DeformableNCC` and `DeformableSquaredNCC` are the same on a control lattice's coefficients. Their derivatives lose what
lies along 1 and along the normalised image, which party_1 subtracts alone; the joint product is that of
`DeformableSSD`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.losses import LOSSES
from ..errors import ConfigError
from ..images import Image
from ..joint.exact import ExactProducts, exact_products
from ..joint.operands import Operand
from ..joint.placement import WARPED
from ..joint.rows import Rows, row_parts
from ..transforms import LatticeTransform, LinearTransform
from .deformable import DeformableSSD
from .linearisation import Linearisation, OperatorLinearisation
from .measures import Measure
from .rows import Changed, WarpedRows, Weights, parameter_count
from .smooth import Smoothness
from .ssd import SSD

__all__ = ["NCC", "Correlation", "DeformableNCC", "DeformableSquaredNCC", "SquaredCorrelation", "SquaredNCC"]

_LEAST_SLOPE = 0.3  # of the regression, in the model's curvature: below it a step would be longer than it is right
_FLAT = 1e-6  # deviation, as a share of the largest value, that is rounding


class NCC(SSD):
    """1 - correlation of the warped moving image with a fixed image that may be another party's.

    Not changed by an increasing affine map of either image's intensities. Where the points in use are known to party_1
    alone (samplers chunks and gms), J^ is normalised over all points of the operand: rho is then known up to a factor.

    Args:
        operand: of the measure `Correlation`.

    Raises:
        ConfigError: moments of an operand of which only some points are used (J^ has another mean there).

    >>> from ppir_torch import Affine, ClearFixed, Grid, Image, Level, OperandRequest
    >>> image = Image(torch.rand(1, 9, 9), Grid((9, 9)))
    >>> brighter = Image(3 * image.tensor + 20, image.grid)
    >>> from ppir_torch.losses import Correlation
    >>> request = OperandRequest(Level(1, 0.0), measure=Correlation())
    >>> loss = NCC(ClearFixed(brighter).operand(request))
    >>> abs(loss(Affine(image.grid), image).item()) < 1e-5
    True
    """

    def __init__(self, operand: Operand) -> None:
        super().__init__(operand)
        if operand.columns.kind == "moments" and not operand.energy_known:
            raise ConfigError("ncc: by moments all points of the operand are needed")

    def linearise(self, transform: nn.Module, moving: Image, with_hessian: bool = True) -> Linearisation:
        """See `SSD.linearise`."""
        by_moments = self.operand.columns.kind == "moments"
        rows = self._made(transform, moving, "slopes" if by_moments else "images")
        weights = Weights(self.operand, rows.points)
        nominal = 0.0 if self.operand.energy_known else 0.01 * self.operand.mean_square
        standard, count = _Standard.of(rows, weights, self.operand), parameter_count(transform)
        if standard.deviation == 0:  # a flat warped image: no correlation, and no way to tell where there is some
            return Linearisation(1.0, torch.zeros(count, dtype=torch.float64), _nothing(count), nominal)
        sums, hessian = ExactProducts(count, 2, rows.device), torch.empty(0)
        for start, stop in row_parts(rows.points):
            part = rows.part(start, stop)
            images, last = rows.images(part, start), standard.row(part)
            sums.add(weights.on(images, start), torch.cat([torch.ones_like(last), last]))
        mean, along = (sums.total() / weights.total(self.operand)).T

        def changes(part: Tensor, start: int) -> Tensor:
            """dI^ (P, n) at a part of the rows."""
            changed: Tensor = rows.images(part, start) - mean.to(part)[:, None]
            last = standard.row(part)[0]
            for image, factor in zip(changed, along.tolist(), strict=True):
                image.sub_(last, alpha=factor)
            changed /= standard.deviation
            return changed

        gram = ExactProducts(count, count if weights else 0, rows.device)

        def change(part: Tensor, start: int) -> Tensor:
            return torch.cat([part[:-1] if by_moments else changes(part, start), standard.row(part)])

        def see(part: Tensor, start: int) -> None:
            images = changes(part, start)
            gram.add(*((weights.on(images, start), images) if weights else (images,)))

        looked = Changed(rows, seen=see) if with_hessian else rows
        value, gradient = self._compared(Changed(looked, change), transform)
        if with_hessian:
            hessian = gram.total().cpu() / weights.normaliser
        if not by_moments:
            return self._model(value, gradient / 2, hessian, nominal)
        left = 1 - (1 + self.operand.mean_square - value) / 2  # mean of I^ (I^ - J^); that of I^ - J^ is -mean J^
        gradient = (gradient / 2 + self.operand.mean * mean.cpu() - left * along.cpu()) / standard.deviation
        return self._model(value, gradient, hessian, nominal)

    def _compared(self, rows: Rows, transform: nn.Module) -> tuple[float, Tensor]:
        return self._by_moments(rows, transform) if self.operand.columns.kind == "moments" else self._compare(rows)

    def _value(self, transform: nn.Module, moving: Image) -> float:
        rows = self._made(transform, moving, "nothing")
        standard = _Standard.of(rows, Weights(self.operand, rows.points), self.operand)
        if standard.deviation == 0:
            return 1.0
        compared = self._compare(Changed(rows, lambda part, _: standard.row(part)))
        return self._of_correlation(self._correlation(compared[0]))

    def _model(self, value: float, gradient: Tensor, hessian: Tensor, nominal: float) -> Linearisation:
        """From mean (I^ - J^)^2, mean dI^ (I^ - J^) and mean dI^ dI^^T."""
        correlation, spread = self._correlation(value), _spread(self.operand)
        slope, curvature = self._derivatives(correlation)
        return Linearisation(self._of_correlation(correlation), slope / spread * gradient, curvature * hessian, nominal)

    def _correlation(self, value: float) -> float:
        return (1 + self.operand.mean_square - value) / 2 / _spread(self.operand)

    def _of_correlation(self, correlation: float) -> float:
        return 1 - correlation

    def _derivatives(self, correlation: float) -> tuple[float, float]:  # noqa: ARG002
        """What the gradient of -rho and the mean dI^ dI^^T are multiplied by."""
        return 1.0, 1.0


class SquaredNCC(NCC):
    """1 - squared correlation of the warped moving image with a fixed image that may be another party's.

    Not changed by any affine map of either image's intensities, inverted ones neither.

    Args:
        operand: of the measure `SquaredCorrelation`.

    >>> from ppir_torch import Affine, ClearFixed, Grid, Image, Level, OperandRequest
    >>> image = Image(torch.rand(1, 9, 9), Grid((9, 9)))
    >>> inverted = Image(20 - 3 * image.tensor, image.grid)
    >>> from ppir_torch.losses import SquaredCorrelation
    >>> request = OperandRequest(Level(1, 0.0), measure=SquaredCorrelation())
    >>> loss = SquaredNCC(ClearFixed(inverted).operand(request))
    >>> abs(loss(Affine(image.grid), image).item()) < 1e-5
    True
    """

    def _of_correlation(self, correlation: float) -> float:
        return 1 - correlation**2

    def _derivatives(self, correlation: float) -> tuple[float, float]:
        return 2 * correlation, 2 * max(abs(correlation), _LEAST_SLOPE) ** 2


class DeformableNCC(DeformableSSD):
    """1 - correlation with a smoothness term, half of `DeformableSSD`'s value at normalised images; arguments as there.

    With r = I^ - J^ of the normalised images and G^ = G / deviation of I:

        gradient = 1/n B^T (G^ * (r - mean r - I^ mean(I^ r)))
    """

    def __init__(
        self, operand: Operand, transform: LatticeTransform, outer: LinearTransform, smoothness: Smoothness
    ) -> None:
        super().__init__(operand, transform, outer, smoothness)
        self._alpha /= 2

    def linearise(self, moving: Image) -> OperatorLinearisation:
        """Value, gradient (P,) and Hessian operator, from one joint product."""
        rows = self._rows(moving)
        weights = self.operand.sample.combined
        weights, n = (None, float(rows.shape[1])) if weights is None else (weights.to(rows), 1.0)
        deviation = standardise(rows, weights)
        if deviation == 0:  # a flat warped image: no correlation, and no way to tell where there is some
            rows.zero_()
        else:
            rows[:-1] /= deviation
        weighted = rows if weights is None else rows * weights
        quantised, projected, total = self.operand.project(weighted)
        # The rounding of a row meets the small I^ - J^ alone.
        energy = float(exact_products(2 * quantised[WARPED:] - weighted[WARPED:], rows[WARPED:]))
        mean = float(exact_products(weighted[WARPED:], torch.ones_like(rows[WARPED:]))) / n - self.operand.mean
        along = (energy - total) / n  # mean of I^ r; that of r is `mean`
        own = self.operand.adjoint(quantised[:WARPED] * (rows[WARPED] * (1 - along) - mean))
        gradient = (own - projected.to(own)).flatten() / n
        correlation = 1 - 0.5 * ((energy - 2 * total) / n + 1) if deviation > 0 else 0.0
        slope, curvature = self._derivatives(correlation)
        fields = [self.operand.adjoint(weighted[:-1]), self.operand.adjoint(weighted[:-1] * rows[-1])]
        without = torch.stack([field.flatten() for field in fields]) * (math.sqrt(curvature) / n)
        tensor = self._structure_tensor(rows[:-1], weights, 2 * n / curvature)
        return self._smoothed(self._of_correlation(correlation), slope * gradient, tensor, without)

    def _of_correlation(self, correlation: float) -> float:
        return 1 - correlation

    def _derivatives(self, correlation: float) -> tuple[float, float]:  # noqa: ARG002
        """See `NCC`."""
        return 1.0, 1.0


class DeformableSquaredNCC(DeformableNCC):
    """1 - squared correlation with a smoothness term; arguments as of `DeformableSSD`."""

    def __init__(
        self, operand: Operand, transform: LatticeTransform, outer: LinearTransform, smoothness: Smoothness
    ) -> None:
        super().__init__(operand, transform, outer, smoothness)
        self._alpha *= 2  # 1 - rho^2 is twice 1 - rho where the images are alike

    def _of_correlation(self, correlation: float) -> float:
        return 1 - correlation**2

    def _derivatives(self, correlation: float) -> tuple[float, float]:
        return 2 * correlation, 2 * max(abs(correlation), _LEAST_SLOPE) ** 2


@dataclass(frozen=True)
class Correlation(Measure):
    """1 - Pearson's correlation of the intensities (NCC), over the points in use.

    An increasing affine change of either image's intensities leaves it as it is. party_2's mean and variance are not
    disclosed: its column is normalised before anything is said about it.
    """

    entry = LOSSES.ours("ncc")

    def loss(self, operand: Operand) -> NCC:
        """See `Measure`."""
        return NCC(operand)

    def explained(self, value: float, operand: Operand) -> float:  # noqa: ARG002
        """See `Measure`: the correlation."""
        return 1 - value

    def deformable_loss(
        self, operand: Operand, part: LatticeTransform, outer: LinearTransform, smoothness: Smoothness
    ) -> DeformableNCC:
        """See `Measure`."""
        return DeformableNCC(operand, part, outer, smoothness)


@dataclass(frozen=True)
class SquaredCorrelation(Measure):
    """1 - the squared correlation of the intensities, over the points in use.

    Any affine change of either image's intensities leaves it as it is, an inversion too. party_2's mean and variance
    are not disclosed: its column is normalised before anything is said about it.
    """

    entry = LOSSES.ours("ncc_squared")

    def loss(self, operand: Operand) -> SquaredNCC:
        """See `Measure`."""
        return SquaredNCC(operand)

    def explained(self, value: float, operand: Operand) -> float:  # noqa: ARG002
        """See `Measure`: the squared correlation."""
        return 1 - value

    def deformable_loss(
        self, operand: Operand, part: LatticeTransform, outer: LinearTransform, smoothness: Smoothness
    ) -> DeformableSquaredNCC:
        """See `Measure`."""
        return DeformableSquaredNCC(operand, part, outer, smoothness)


def _spread(operand: Operand) -> float:
    """The deviation of J^ over the points in use: 1 where that is not known."""
    if not operand.energy_known:
        return 1.0
    return math.sqrt(max(operand.mean_square - operand.mean**2, 1e-12))


@dataclass(frozen=True)
class _Standard:
    # How the last of a product's rows becomes one of (weighted) mean 0 and variance 1; a deviation of 0: it is flat.
    mean: float
    deviation: float

    @classmethod
    def of(cls, rows: WarpedRows, weights: Weights, operand: Operand) -> _Standard:
        largest, sums = 0.0, ExactProducts(1, 2, rows.device)
        for start, last in rows.warped():
            largest = max(largest, float(last.abs().max()))
            sums.add(weights.on(last, start), torch.cat([torch.ones_like(last), last]))
        mean, square = (sums.total()[0] / weights.total(operand)).tolist()
        deviation = math.sqrt(max(square - mean**2, 0.0))
        return cls(mean, deviation if deviation > _FLAT * largest else 0.0)

    def row(self, part: Tensor) -> Tensor:
        """The new last row (1, n) of a part of the rows."""
        return (part[-1:] - self.mean) / self.deviation


def standardise(rows: Tensor, weights: Tensor | None) -> float:
    """Bring the last row to (weighted) mean 0 and variance 1, in place; returns its deviation, 0 where it is flat."""
    last = rows[-1:]
    largest = float(last.abs().max())
    ones = torch.ones_like(last) if weights is None else weights[None]
    total = float(rows.shape[1]) if weights is None else float(weights.double().sum())
    last -= float(exact_products(last, ones)) / total
    energy = float(exact_products(last if weights is None else last * weights, last))
    deviation = math.sqrt(max(energy / total, 0.0))
    if not deviation > _FLAT * largest:
        last.zero_()
        return 0.0
    last /= deviation
    return deviation


def _nothing(count: int) -> Tensor:
    return torch.zeros(count, count, dtype=torch.float64)
