"""Sum of squared differences (its mean), clear or private: an ordinary torch loss over one joint product.

    value    = mean (I(T(x)) - J(x))^2 = mean I^2 - 2 mean I J + mean J^2
    gradient = 2 S^T (I - J) / N,   Hessian (Gauss-Newton) = 2 S^T S / N,   S = dI(T(x)) / dtheta   (N, P)

Only S^T J and I^T J need both images; they are one product of P + 1 rows. Of features (several channels) the points are
those of one channel after the other: means are over points and channels. (Taiello et al., MICCAI 2022, eq. 3-5;
Gauss-Newton for images: Lucas and Kanade 1981, Baker and Matthews 2004.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..config.losses import LOSSES
from ..images import Image
from ..joint.bounds import Pairs
from ..joint.exact import ExactProducts
from ..joint.operands import Operand
from ..joint.placement import WARPED
from ..joint.rows import Rows
from ..transforms import LatticeTransform, LinearTransform
from ..warping import affine_table, parameters_of
from . import rows as rows_module
from .deformable import DeformableSSD
from .linearisation import Linearisation
from .measures import Measure
from .rows import Changed, Homogeneous, Leading, SampledPoints, WarpedRows, Weights, parameter_count
from .smooth import Smoothness

__all__ = ["SSD", "FeatureDifference", "SquaredDifference"]


class SSD(nn.Module):
    """Mean squared difference between the warped moving image and a fixed image that may be another party's.

    Args:
        operand: the fixed image at one level, clear or private (`ClearFixed.operand`, `PrivateFixed.operand`). Of an
            operand of features (`Measure`), the moving image given is that of the same features.

    Raises:
        ImageError: (when called) a moving image of another number of channels than the operand.

    >>> from ppir_torch import Affine, Grid, Image, Level
    >>> from ppir_torch.registration import ClearFixed, OperandRequest
    >>> image = Image(torch.rand(1, 9, 9), Grid((9, 9)))
    >>> fixed = ClearFixed(image)
    >>> transform = Affine(fixed.grid)
    >>> value = SSD(fixed.operand(OperandRequest(Level(1, 0.0))))(transform, image)
    >>> value.backward()
    >>> abs(value.item()) < 1e-6, transform.translation.grad.shape
    (True, torch.Size([2]))
    """

    def __init__(self, operand: Operand) -> None:
        super().__init__()
        self.operand = operand
        self._points: dict[tuple[torch.dtype, torch.device], SampledPoints] = {}
        self._moments = Homogeneous(operand)

    def forward(self, transform: nn.Module, moving: Image) -> Tensor:
        """The loss value, a scalar with gradients for the parameters of `transform` (any module of points to points).

        `moving` is (C, [z,] y, x), C as in the operand.

        One product is run (P + 1 rows; one row only under `torch.no_grad()`); `backward` sends nothing.
        """
        parameters = list(parameters_of(transform).values())
        if not torch.is_grad_enabled() or not parameters:
            return torch.tensor(self._value(transform, moving), dtype=moving.tensor.dtype)
        return cast(Tensor, _JointLoss.apply(self, transform, moving, *parameters))  # type: ignore[no-untyped-call]

    def linearise(self, transform: nn.Module, moving: Image, with_hessian: bool = True) -> Linearisation:
        """Value, gradient and Gauss-Newton Hessian from one joint product of P + 1 rows (or of moments)."""
        by_moments = self.operand.columns.kind == "moments"
        rows = self._made(transform, moving, "slopes" if by_moments else "images")
        weights, hessian = Weights(self.operand, rows.points), torch.empty(0)
        count = parameter_count(transform)
        sums = ExactProducts(count, count if weights else 0, rows.device)

        def see(part: Tensor, start: int) -> None:
            images = rows.images(part, start)
            sums.add(*((weights.on(images, start), images) if weights else (images,)))

        seen = Changed(rows, seen=see) if with_hessian else rows
        value, gradient = self._by_moments(seen, transform) if by_moments else self._compare(seen)
        if with_hessian:
            hessian = (2 / weights.normaliser) * sums.total().cpu()
        nominal = 0.0 if self.operand.energy_known else 0.01 * self.operand.mean_square
        return Linearisation(value, gradient, hessian, nominal)

    def _value(self, transform: nn.Module, moving: Image) -> float:
        return self._compare(self._made(transform, moving, "nothing"))[0]

    def _made(self, transform: nn.Module, moving: Image, leading: Leading) -> WarpedRows:
        """The rows of a product, which are made where they are read; the last is the warped image less the offset."""
        key = (moving.tensor.dtype, moving.tensor.device)
        if key not in self._points:
            self._points[key] = SampledPoints(self.operand, *key)
        beyond = 0.0 if self.operand.sample.overlap is None else None
        return WarpedRows(self.operand, transform, moving, leading, beyond, self._points[key])

    def _compare(self, rows: Rows) -> tuple[float, Tensor]:
        """Value and gradient (P,) from the product of the rows with J."""
        pairs = [(row, 0) for row in range(rows.count)]
        (own, energy, products), normaliser = self._sums(rows, pairs, 1, _alone)
        value = (energy - 2 * float(products[-1])) / normaliser + self.operand.mean_square
        return value, 2 * (own[:-1, 0] - products[:-1]) / normaliser

    def _by_moments(self, rows: Rows, transform: nn.Module) -> tuple[float, Tensor]:
        """The same from the products of the gradient's D rows with J's D + 1 moments: sum G_d h_j (I - J)."""
        dimension = rows.count - 1
        pairs = [(row, column) for row in range(dimension) for column in range(dimension + 1)] + [(dimension, 0)]
        (own, energy, products), normaliser = self._sums(rows, pairs, dimension + 1, self._moments.at)
        moments = (own[:-1] - products[:-1].reshape(dimension, -1)) / normaliser
        value = (energy - 2 * float(products[-1])) / normaliser + self.operand.mean_square
        return value, 2 * self._of_moments(moments, transform)

    def _sums(
        self, rows: Rows, pairs: Pairs, columns: int, factors: Callable[[int, Tensor], Tensor]
    ) -> tuple[tuple[Tensor, float, Tensor], float]:
        """((the rows' products with I, weighted, (rows, columns) float64; sum w I^2; those with J), what they are of).

        I is multiplied by `factors` (columns, n) of a part of the points. The rows are those that were carried.
        """
        weights, bare = Weights(self.operand, rows.points), torch.empty(0)
        own = ExactProducts(rows.count, columns, rows.device)
        energies = ExactProducts(1, 1, rows.device)

        def weigh(part: Tensor, start: int) -> Tensor:
            nonlocal bare
            bare = part[WARPED:]
            return weights.on(part, start)

        def see(carried: Tensor, start: int) -> None:
            warped = bare if weights else carried[WARPED:]
            own.add(carried, factors(start, warped) * warped)
            if weights:
                energies.add(weights.on(bare, start), bare)

        weighted = Changed(rows, weigh) if weights else rows
        if rows.count * rows.points <= rows_module.KEPT:
            carried, products = self.operand.multiply(weighted.whole(), pairs)
            see(carried, 0)
        else:
            products = self.operand.products(weighted, pairs, see)
        products = products.cpu()
        total = own.total().cpu()
        # The rounding of w I meets the small I - J alone, twice the rounded less what it is: sum w I^2.
        energy = 2 * float(total[-1, 0]) - float(energies.total()) if weights else float(total[-1, 0])
        return (total, energy, products), weights.normaliser

    def _of_moments(self, moments: Tensor, transform: nn.Module) -> Tensor:
        """S^T e (P,) from the moments sum_x G_d h_j e (D, D + 1) of a field e, for an affine map."""
        # h = (1, M x + o) in terms of the physical x: S_A = G (x) x and S_b = G
        matrix, offset = self.operand.grid.physical_to_normalised()
        by_matrix = (moments[:, 1:] - moments[:, :1] * offset) @ torch.linalg.inv(matrix).T
        entries = torch.cat([by_matrix, moments[:, :1]], 1).flatten()
        return affine_table(transform).T.to(entries) @ entries

    # What follows is for losses that need all rows at once.

    def _rows(self, transform: nn.Module, moving: Image, with_images: bool, with_slopes: bool) -> tuple[Tensor, Tensor]:
        """(rows of the product, steepest-descent images (P, n)); the last row is the warped image less the offset.

        The rows before it are the steepest-descent images, or with `with_slopes` the spatial gradient (D, n).
        """
        made = self._made(transform, moving, "slopes" if with_slopes else "images" if with_images else "nothing")
        rows = made.whole()
        return rows, made.images(rows, 0) if with_images else rows[:0] if with_slopes else rows[:-1]

    def _weights(self, rows: Tensor) -> tuple[Tensor | None, float]:
        weights = Weights(self.operand, rows.shape[-1])
        return (weights.at(0, rows) if weights else None), weights.normaliser

    def _homogeneous(self, like: Tensor) -> Tensor:
        return self._moments.at(0, like)


class FeatureDifference(Measure):
    """Base of the measures that are the mean squared difference of features: `Measure.features` says of which."""

    def loss(self, operand: Operand) -> SSD:
        """See `Measure`."""
        return SSD(operand)

    def explained(self, value: float, operand: Operand) -> float | None:
        """See `Measure`; features of images that have nothing in common differ by what both vary."""
        return _share(value, 2 * _variance(operand))

    def deformable_loss(
        self, operand: Operand, part: LatticeTransform, outer: LinearTransform, smoothness: Smoothness
    ) -> DeformableSSD:
        """See `Measure`."""
        return DeformableSSD(operand, part, outer, smoothness)


@dataclass(frozen=True)
class SquaredDifference(FeatureDifference):
    """Mean squared difference of the intensities (SSD)."""

    entry = LOSSES.ours("ssd")

    def explained(self, value: float, operand: Operand) -> float | None:
        """See `Measure`; 0 is what a constant image reaches, one of another brightness falls below."""
        return _share(value, _variance(operand))


def _variance(operand: Operand) -> float:
    """J's, over the points in use."""
    return operand.mean_square - operand.mean**2


def _share(value: float, nothing: float) -> float | None:
    return 1 - value / nothing if nothing > 0 else None


def _alone(_start: int, warped: Tensor) -> Tensor:
    """No factors: the warped image itself."""
    return torch.ones_like(warped)


class _JointLoss(torch.autograd.Function):
    """Carries the gradient that the joint product gave back to autograd."""

    @staticmethod
    def forward(ctx: Any, loss: SSD, transform: nn.Module, moving: Image, *parameters: Tensor) -> Tensor:
        at = loss.linearise(transform, moving, with_hessian=False)
        ctx.save_for_backward(at.gradient)
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return torch.tensor(at.value, dtype=torch.promote_types(moving.tensor.dtype, parameters[0].dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        parts = torch.split(gradient, [shape.numel() for shape, _, _ in ctx.like])
        grads = [
            (outputs[0].to(part) * part).reshape(shape).to(dtype=dtype, device=device)
            for part, (shape, dtype, device) in zip(parts, ctx.like, strict=True)
        ]
        return (None, None, None, *grads)
