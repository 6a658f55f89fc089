"""Gauss-Newton with Levenberg-Marquardt damping: sees value, gradient and Hessian, never an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..config.optimizers import OPTIMIZERS
from ..losses import AnyLinearisation
from .base import Optimizer
from .parameters import add_step, copies, restore, settle
from .stopping import Iteration, Stopping

__all__ = ["GaussNewton"]

_MOST_REJECTIONS = 4
_MOST_STALLS = 3  # kept steps in a row that gain next to nothing, whatever the model says


@dataclass(frozen=True)
class GaussNewton(Optimizer):
    """Solve (H + damping diag H) step = -g; keep the step when the loss falls (Marquardt, 1963).

    The loss's linearisation solves: directly, or by conjugate gradients where the Hessian is an operator.

    Each iteration costs one joint product: the evaluation that judges a step is also the next linearisation.

    Args:
        damping: the first damping; divided by 10 after a step that lowered the loss by at least half of what the model
            expected, times 10 (and at least 0.1, below which a step hardly shortens) after one that lowered it by less
            than a tenth of that, or not at all. Steps that are kept and too long would lead two runs, a rounding apart,
            to other minima.
    """

    damping: float = 1e-4

    entry = OPTIMIZERS.ours("gauss_newton")

    def minimise(
        self,
        transform: nn.Module,
        linearise: Callable[[], AnyLinearisation],
        stopping: Stopping,
        voxel_mm: float,
        move: Callable[[Tensor], None] | None = None,
    ) -> Iterator[Iteration]:
        """Move the parameters to lower loss, yielding every iteration; they always hold the best so far.

        `move` applies a step (P,) to the transform; by default it is added to the parameters.
        """
        parameters = [p for p in transform.parameters() if p.requires_grad]
        damping, rejected, stalled = self.damping, 0, 0
        best = first = linearise()
        yield Iteration(1, best.value, True, 0.0, damping)
        for number in range(2, stopping.max_iterations + 1):
            step = best.shortened(best.solve(damping), stopping.longest_voxels * voxel_mm)
            length, expected = best.length(step), _expected(best, step)
            if length < stopping.step_voxels * voxel_mm or expected < stopping.decrease * best.size:
                return
            if not math.isfinite(length + expected):  # a model that says nothing
                return
            before, kept = copies(parameters), False
            try:  # whatever ends it, an interruption as well, leaves no step that was not judged
                if move is None:
                    add_step(parameters, step)
                    taken = settle(transform, parameters, before, step)
                    if taken is not step:
                        length, expected = best.length(taken), _expected(best, taken)
                else:
                    move(step)
                trial = linearise()
                kept = trial.value < best.value
            finally:
                if not kept:
                    restore(parameters, before)
            yield Iteration(number, trial.value, kept, length, damping)
            gained = best.value - trial.value
            if gained >= 0.5 * expected:
                damping = max(damping / 10, 1e-12)
            elif gained < 0.1 * expected:
                damping = max(damping * 10, 0.1)
            if kept:
                # Where a value is known up to a constant only, what was gained so far is the better measure.
                small = stopping.decrease * max(best.size, first.value - best.value)
                stalled = stalled + 1 if gained < small else 0
                best, rejected = trial, 0
            else:
                rejected += 1
            if rejected == _MOST_REJECTIONS or stalled == _MOST_STALLS:
                return


def _expected(at: AnyLinearisation, step: Tensor) -> float:
    """How far the quadratic model says that the loss falls."""
    return float(-at.gradient @ step) - 0.5 * at.curvature(step)
