"""Inverse-compositional Gauss-Newton: steps of the fixed image's coordinates, undone on the transform's input side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from torch import nn

from ..config.optimizers import OPTIMIZERS
from ..joint.columns import Columns
from ..joint.operands import Operand
from ..losses import AnyLinearisation, InverseSSD, Measure
from ..transforms import LinearTransform
from .base import Optimizer
from .gauss_newton import GaussNewton
from .stopping import Iteration, Stopping

__all__ = ["InverseCompositional"]


@dataclass(frozen=True)
class InverseCompositional(Optimizer):
    """`GaussNewton` whose step dp replaces T by T o W(dp)^-1 (Baker and Matthews, IJCV 2004).

    Goes with the loss `InverseSSD`, which gives the derivatives by dp.

    Args:
        damping: as in `GaussNewton`.
    """

    damping: float = 1e-4

    entry = OPTIMIZERS.ours("inverse_compositional")

    def columns(self, transform: str) -> Columns:
        """See `Optimizer`."""
        return Columns("steepest_descent", transform)

    def loss(self, measure: Measure, operand: Operand) -> InverseSSD:  # noqa: ARG002
        """See `Optimizer`."""
        return InverseSSD(operand)

    def for_lattices(self) -> GaussNewton:
        """Gauss-Newton: steepest-descent images of J are those of few parameters."""
        return GaussNewton()

    def for_overlaps(self) -> GaussNewton:
        """Gauss-Newton: sums S_J^T J that party_2 tells are over all points."""
        return GaussNewton(self.damping)

    def minimise(
        self,
        transform: nn.Module,
        linearise: Callable[[], AnyLinearisation],
        stopping: Stopping,
        voxel_mm: float,
    ) -> Iterator[Iteration]:
        """Move the transform to lower loss, yielding every iteration; it always holds the best so far."""
        step_back = cast(LinearTransform, transform).step_back
        return GaussNewton(self.damping).minimise(transform, linearise, stopping, voxel_mm, step_back)
