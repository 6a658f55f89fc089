"""Sum of squared differences (its mean), clear or private: an ordinary torch loss over one joint product.

    value    = mean (I(T(x)) - J(x))^2 = mean I^2 - 2 mean I J + mean J^2
    gradient = 2 S^T (I - J) / N,   Hessian (Gauss-Newton) = 2 S^T S / N,   S = dI(T(x)) / dtheta   (N, P)

Only S^T J and I^T J need both images; they are one product of P + 1 rows. Of features (several channels) the points are
those of one channel after the other: means are over points and channels. (Taiello et al., MICCAI 2022, eq. 3-5;
Gauss-Newton for images: Lucas and Kanade 1981, Baker and Matthews 2004.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..config.losses import LOSSES
from ..errors import ImageError
from ..images import Image
from ..joint.columns import homogeneous
from ..joint.exact import exact_products
from ..joint.operands import Operand
from ..joint.placement import WARPED
from ..transforms import LatticeTransform, LinearTransform
from ..warping import affine_table, channels_above_outside, parameters_of, sample_with_gradient, steepest_descent
from .deformable import DeformableSSD
from .linearisation import Linearisation
from .measures import Measure
from .smooth import Smoothness

__all__ = ["SSD", "FeatureDifference", "SquaredDifference"]

CHUNK = 1 << 16  # points whose images stay in the processor's cache


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
        self._points: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._moments: Tensor | None = None

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
        rows, images = self._rows(transform, moving, with_images=with_hessian or not by_moments, with_slopes=by_moments)
        weights, normaliser = self._weights(rows)
        hessian = torch.empty(0)
        if with_hessian:
            weighted = images if weights is None else images * weights
            hessian = (2 / normaliser) * exact_products(weighted, images).cpu()
        value, gradient = self._by_moments(rows, transform) if by_moments else self._compare(rows)
        nominal = 0.0 if self.operand.energy_known else 0.01 * self.operand.mean_square
        return Linearisation(value, gradient, hessian, nominal)

    def _value(self, transform: nn.Module, moving: Image) -> float:
        return self._compare(self._rows(transform, moving, with_images=False, with_slopes=False)[0])[0]

    def _rows(self, transform: nn.Module, moving: Image, with_images: bool, with_slopes: bool) -> tuple[Tensor, Tensor]:
        """(rows of the product, steepest-descent images (P, n)); the last row is the warped image less the offset.

        The rows before it are the steepest-descent images, or with `with_slopes` the spatial gradient (D, n).
        """
        points = self._sampled_points(moving)
        channels, n = channels_above_outside(moving), points.shape[0]
        beyond = 0.0 if self.operand.sample.overlap is None else None
        if len(channels) != self.operand.channels:
            raise ImageError(f"moving image: {len(channels)} channels, the operand has {self.operand.channels}")
        parameters = _count(transform) if with_images else 0
        leading = points.shape[1] if with_slopes else parameters
        rows = points.new_empty(leading + 1, len(channels) * n)
        images = points.new_empty(parameters, rows.shape[1]) if with_slopes else rows[:-1]
        for start in range(0, n, CHUNK):
            stop = min(start + CHUNK, n)
            with torch.no_grad():
                mapped = transform(points[start:stop])
            for number, (above, outside) in enumerate(channels):
                part = slice(number * n + start, number * n + stop)
                warped, gradient = sample_with_gradient(above, beyond, mapped)
                rows[-1, part] = warped + (outside - self.operand.offset)
                if with_slopes:
                    rows[:-1, part] = gradient.T
                if with_images:
                    images[:, part] = steepest_descent(transform, points[start:stop], gradient)
        return rows, images

    def _compare(self, rows: Tensor) -> tuple[float, Tensor]:
        """Value and gradient (P,) from the product of the rows with J."""
        weights, normaliser = self._weights(rows)
        pairs = [(row, 0) for row in range(rows.shape[0])]
        quantised, products = self.operand.multiply(rows if weights is None else rows * weights, pairs)
        warped = quantised[WARPED:] if weights is None else rows[WARPED:]
        own, products = exact_products(quantised, warped)[:, 0].cpu(), products.cpu()
        energy = float(own[-1]) if weights is None else 2 * float(own[-1]) - _energy(rows[WARPED:], weights)
        value = (energy - 2 * float(products[-1])) / normaliser + self.operand.mean_square
        return value, 2 * (own[:-1] - products[:-1]) / normaliser

    def _by_moments(self, rows: Tensor, transform: nn.Module) -> tuple[float, Tensor]:
        """The same from the products of the gradient's D rows with J's D + 1 moments: sum G_d h_j (I - J)."""
        dimension = rows.shape[0] - 1
        weights, normaliser = self._weights(rows)
        pairs = [(row, column) for row in range(dimension) for column in range(dimension + 1)] + [(dimension, 0)]
        quantised, products = self.operand.multiply(rows if weights is None else rows * weights, pairs)
        warped = quantised[WARPED:] if weights is None else rows[WARPED:]
        own = exact_products(quantised, self._homogeneous(rows) * warped).cpu()
        moments = (own[:-1] - products[:-1].cpu().reshape(dimension, -1)) / normaliser
        energy = float(own[-1, 0]) if weights is None else 2 * float(own[-1, 0]) - _energy(rows[WARPED:], weights)
        value = (energy - 2 * float(products[-1].cpu())) / normaliser + self.operand.mean_square
        return value, 2 * self._of_moments(moments, transform)

    def _of_moments(self, moments: Tensor, transform: nn.Module) -> Tensor:
        """S^T e (P,) from the moments sum_x G_d h_j e (D, D + 1) of a field e, for an affine map."""
        # h = (1, M x + o) in terms of the physical x: S_A = G (x) x and S_b = G
        matrix, offset = self.operand.grid.physical_to_normalised()
        by_matrix = (moments[:, 1:] - moments[:, :1] * offset) @ torch.linalg.inv(matrix).T
        entries = torch.cat([by_matrix, moments[:, :1]], 1).flatten()
        return affine_table(transform).T.to(entries) @ entries

    def _homogeneous(self, like: Tensor) -> Tensor:
        if self._moments is None:
            factors = homogeneous(self.operand.grid, self.operand.sample.index, like)
            self._moments = factors.repeat(1, self.operand.channels)
        return self._moments.to(like)

    def _weights(self, rows: Tensor) -> tuple[Tensor | None, float]:
        weights, channels = self.operand.sample.combined, self.operand.channels
        return (
            (None, float(rows.shape[-1])) if weights is None else (weights.to(rows).repeat(channels), float(channels))
        )

    def _sampled_points(self, moving: Image) -> Tensor:
        key = (moving.tensor.dtype, moving.tensor.device)
        if key not in self._points:
            self._points[key] = self.operand.grid.points(self.operand.sample.index, *key)
        return self._points[key]


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


def _energy(row: Tensor, weights: Tensor) -> float:
    """sum w I^2 of a row (1, n); the rounding of w I then meets the small I - J alone, twice the rounded less this."""
    return float(exact_products(row * weights, row))


def _count(transform: nn.Module) -> int:
    return sum(p.numel() for p in parameters_of(transform).values())


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
