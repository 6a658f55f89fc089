"""L-BFGS on top of the Gauss-Newton model: where that model's curvature is wrong, differences of gradients mend it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from ..config.optimizers import OPTIMIZERS
from ..losses import AnyLinearisation
from .base import Optimizer
from .parameters import add_step, copies, restore, settle
from .stopping import Iteration, Stopping

__all__ = ["LBFGS"]

_MOST_REJECTIONS = 4
_MOST_STALLS = 8  # steps in a row, kept or not, that reach no lower value
_SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo)
_EQUAL = 1e-5  # of a value's size: what values that were rounded do not tell apart


@dataclass(frozen=True)
class LBFGS(Optimizer):
    """Limited-memory BFGS whose first Hessian is the loss's own (Nocedal and Wright 2006, algorithm 7.4).

    Gauss-Newton converges in few steps where its model is right: residuals that vanish, as of SSD. Where it is not
    (mutual information), steps of a wrong length follow each other for long; with the last pairs of steps and
    gradients the convergence is superlinear again. Each iteration costs as many joint products as in `GaussNewton`.

    Args:
        memory: pairs of steps and gradients that are kept.
        damping: of the loss's own Hessian, as in `GaussNewton`, there fixed.
    """

    memory: int = 10
    damping: float = 1e-4

    entry = OPTIMIZERS.ours("lbfgs")

    def minimise(
        self,
        transform: nn.Module,
        linearise: Callable[[], AnyLinearisation],
        stopping: Stopping,
        voxel_mm: float,
    ) -> Iterator[Iteration]:
        """Move the parameters to lower loss, yielding every iteration; they hold the best so far (to 1e-5)."""
        parameters = [p for p in transform.parameters() if p.requires_grad]
        pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.memory)
        shorten, rejected, stalled = 1.0, 0, 0
        best = linearise()
        lowest = best.value
        yield Iteration(1, best.value, True, 0.0, self.damping)
        for number in range(2, stopping.max_iterations + 1):
            step = best.shortened(shorten * self._direction(best, pairs), stopping.longest_voxels * voxel_mm)
            length, slope = best.length(step), float(best.gradient @ step)
            # A step of a quadratic model, shortened or not, falls by half of what the slope says.
            if length < stopping.step_voxels * voxel_mm or -0.5 * slope < stopping.decrease * best.size:
                return
            if not math.isfinite(length + slope):  # as in `GaussNewton`
                return
            before, kept = copies(parameters), False
            try:  # as in `GaussNewton`
                add_step(parameters, step)
                taken = settle(transform, parameters, before, step)
                if taken is not step:
                    step, slope = taken, float(best.gradient @ taken)
                trial = linearise()
                kept = trial.value < best.value + _SUFFICIENT * slope or _flatter(trial, best, step)
            finally:
                if not kept:
                    restore(parameters, before)
            yield Iteration(number, trial.value, kept, length, self.damping)
            lowest, stalled = min(lowest, trial.value), 0 if trial.value < lowest else stalled + 1
            if stalled == _MOST_STALLS:
                return
            if kept:
                change = trial.gradient - best.gradient
                if float(change @ step) > 1e-8 * float(
                    change.norm() * step.norm()
                ):  # else it says nothing of a minimum
                    pairs.append((step, change))
                best, shorten, rejected = trial, 1.0, 0
            else:
                shorten, rejected = shorten / 4, rejected + 1
                if rejected == _MOST_REJECTIONS:
                    return

    def _direction(self, at: AnyLinearisation, pairs: deque[tuple[Tensor, Tensor]]) -> Tensor:
        """-H gradient by the two-loop recursion, H the inverse Hessian."""
        rest, along = at.gradient.clone(), []
        for step, change in reversed(pairs):
            along.append(float(step @ rest) / float(step @ change))
            rest -= along[-1] * change
        direction: Tensor = -replace(cast(Any, at), gradient=rest).solve(self.damping)
        for (step, change), share in zip(pairs, reversed(along), strict=True):
            direction += (share - float(change @ direction) / float(step @ change)) * step
        return -direction


def _flatter(trial: AnyLinearisation, best: AnyLinearisation, step: Tensor) -> bool:
    """Whether a step to an equal value goes on to where the slope along it has become smaller.

    Near a minimum values differ by less than their rounding, slopes do not (the approximate Wolfe condition: Hager and
    Zhang, SIAM J. Optim. 2005).
    """
    if trial.value > best.value + _EQUAL * best.size:
        return False
    return float(trial.gradient @ step) <= (2 * _SUFFICIENT - 1) * float(best.gradient @ step)
