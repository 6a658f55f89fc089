"""What an optimiser sees of a loss at one transform: value, gradient, and how to solve with its Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..images import Image

__all__ = ["AnyLinearisation", "LatticeLoss", "LinearLoss", "Linearisation", "OperatorLinearisation"]

CG_TOLERANCE = 0.05
CG_ITERATIONS = 30


class AnyLinearisation(Protocol):
    """A loss about one transform: value, gradient (P,) float64, and the Gauss-Newton model's steps."""

    @property
    def value(self) -> float: ...
    @property
    def gradient(self) -> Tensor: ...
    @property
    def size(self) -> float:
        """What a relative stopping rule compares with."""
        ...

    def solve(self, damping: float) -> Tensor:
        """The step (P,) with (H + damping diag H) step = -gradient."""
        ...

    def curvature(self, step: Tensor) -> float:
        """step . H step."""
        ...

    def length(self, step: Tensor) -> float:
        """About how far the step moves points, mm."""
        ...

    def shortened(self, step: Tensor, most_mm: float) -> Tensor:
        """The step, where it moves points farther than that, shortened so that it does not."""
        ...


@dataclass(frozen=True)
class Linearisation:
    """Value, gradient (P,) and Gauss-Newton Hessian (P, P) of a loss at one transform; float64.

    `nominal` is the size for relative stopping rules where the value is known up to a constant only (weighted points):
    it may be negative then, or many times what the images differ by. 0: the value is the size.
    """

    value: float
    gradient: Tensor
    hessian: Tensor
    nominal: float = 0.0

    @property
    def size(self) -> float:
        """What a relative stopping rule compares with: `nominal` where there is one, else |value|."""
        return self.nominal or abs(self.value)

    def solve(self, damping: float) -> Tensor:
        """See `AnyLinearisation`; directly."""
        diagonal = self.hessian.diagonal()
        # A parameter without any effect (flat image direction) gets a unit entry and so a zero step.
        floor = torch.where(diagonal > 1e-12 * diagonal.max(), diagonal, diagonal.max().clamp(min=1e-300))
        damped = self.hessian + torch.diag(damping * floor + (floor - diagonal))
        step: Tensor = torch.linalg.solve(damped, -self.gradient)
        return step

    def curvature(self, step: Tensor) -> float:
        """See `AnyLinearisation`."""
        return float(step @ self.hessian @ step)

    def length(self, step: Tensor) -> float:
        """|step|: every parameter is in mm."""
        return float(torch.linalg.vector_norm(step))

    def shortened(self, step: Tensor, most_mm: float) -> Tensor:
        """See `AnyLinearisation`; a linear map's parameters are mm that the image's points move by, or about that."""
        return step * min(1.0, most_mm / max(self.length(step), 1e-300))


class LinearLoss(Protocol):
    """A loss that is linearised at the parameters of a transform with few of them."""

    def linearise(self, transform: nn.Module, moving: Image) -> Linearisation:
        """Value, gradient and Hessian, from one joint product; `moving` is of the operand's features."""
        ...


class LatticeLoss(Protocol):
    """A loss that is linearised at the coefficients of the control lattice that it was made with."""

    def linearise(self, moving: Image) -> AnyLinearisation:
        """Value, gradient and Hessian operator, from one joint product; `moving` is of the operand's features."""
        ...


@dataclass(frozen=True)
class OperatorLinearisation:
    """The same with a Hessian that is only ever applied: P may be a hundred thousand.

    Attributes:
        apply: H v for v (P,) float64.
        diagonal: (P,) of H.
        dimension: D; parameters are the D components of control points.
    """

    value: float
    gradient: Tensor
    apply: Callable[[Tensor], Tensor]
    diagonal: Tensor
    dimension: int
    nominal: float = 0.0

    @property
    def size(self) -> float:
        """As of `Linearisation`."""
        return self.nominal or abs(self.value)

    def solve(self, damping: float) -> Tensor:
        """See `AnyLinearisation`; by conjugate gradients, preconditioned with the diagonal (Nocedal and Wright, 5.3).

        Ends when the residual is 5 % of the gradient: more exact steps do not make fewer of them.
        """
        preconditioner = self.diagonal.clamp(min=1e-12 * float(self.diagonal.max().clamp(min=1e-300)))
        step, residual = torch.zeros_like(self.gradient), -self.gradient
        scaled = residual / preconditioner
        direction, energy = scaled.clone(), float(residual @ scaled)
        first = energy
        for _ in range(CG_ITERATIONS):
            if energy <= CG_TOLERANCE**2 * first:
                break
            image = self.apply(direction) + damping * preconditioner * direction
            curved = float(direction @ image)
            if curved <= 0:  # rounding alone; H is positive semi-definite
                break
            along = energy / curved
            step += along * direction
            residual = residual - along * image
            scaled = residual / preconditioner
            before, energy = energy, float(residual @ scaled)
            direction = scaled + (energy / before) * direction
        return step

    def curvature(self, step: Tensor) -> float:
        """See `AnyLinearisation`."""
        return float(step @ self.apply(step))

    def length(self, step: Tensor) -> float:
        """Root mean square length of the control points' steps, mm."""
        return float(torch.linalg.vector_norm(step)) / math.sqrt(max(step.numel() / self.dimension, 1))

    def shortened(self, step: Tensor, most_mm: float) -> Tensor:
        """See `AnyLinearisation`; of each control point by itself, unless the model expects more of the whole's.

        Control points that the images say nothing of, as at the border, may go far, and would hold back the others.
        """
        points = step.reshape(self.dimension, -1)
        share = (most_mm / torch.linalg.vector_norm(points, dim=0).clamp(min=1e-300)).clamp(max=1)
        if bool((share == 1).all()):
            return step
        each, whole = (points * share).reshape(step.shape), step * float(share.min())
        gains = [float(-self.gradient @ one) - 0.5 * self.curvature(one) for one in (each, whole)]
        return each if gains[0] >= gains[1] else whole
