"""Inverse-compositional Gauss-Newton: steps of the fixed image's coordinates, undone on the transform's input side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..losses import AnyLinearisation
from ..transforms import LinearTransform
from .gauss_newton import GaussNewton
from .stopping import Iteration, Stopping

__all__ = ["InverseCompositional"]


@dataclass(frozen=True)
class InverseCompositional:
    """`GaussNewton` whose step dp replaces T by T o W(dp)^-1 (Baker and Matthews, IJCV 2004).

    Goes with the loss `InverseSSD`, which gives the derivatives by dp.

    Args:
        damping: as in `GaussNewton`.
    """

    damping: float = 1e-4

    def minimise(
        self,
        transform: LinearTransform,
        linearise: Callable[[], AnyLinearisation],
        stopping: Stopping,
        voxel_mm: float,
    ) -> Iterator[Iteration]:
        """Move the transform to lower loss, yielding every iteration; it always holds the best so far."""
        return GaussNewton(self.damping).minimise(transform, linearise, stopping, voxel_mm, transform.step_back)
