"""Adam, over the same linearisation; for transforms without a useful Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..config.optimizers import OPTIMIZERS
from ..losses import AnyLinearisation
from .base import Optimizer
from .parameters import copies, restore, settle
from .stopping import Iteration, Stopping

__all__ = ["Adam"]


@dataclass(frozen=True)
class Adam(Optimizer):
    """torch.optim.Adam with a step in millimetres that shrinks with the level's voxel size.

    Args:
        learning_rate_voxels: length of a parameter's first step, in voxels of the level; halved when the loss has not
            improved for 5 iterations.
    """

    learning_rate_voxels: float = 0.25

    entry = OPTIMIZERS.ours("adam")

    def minimise(
        self,
        transform: nn.Module,
        linearise: Callable[[], AnyLinearisation],
        stopping: Stopping,
        voxel_mm: float,
    ) -> Iterator[Iteration]:
        """Move the parameters of `transform` to lower loss, yielding every iteration; they end at the best seen."""
        parameters = [p for p in transform.parameters() if p.requires_grad]
        rate = self.learning_rate_voxels * voxel_mm
        optimizer = _adam(parameters, rate)
        best: AnyLinearisation | None = None
        best_position = copies(parameters)
        last_improved, step_mm = 0, 0.0
        try:
            for number in range(1, stopping.max_iterations + 1):
                at = linearise()
                if best is None or at.value < best.value:
                    small = best is not None and best.value - at.value < stopping.decrease * at.size
                    best, best_position, last_improved = at, copies(parameters), number
                else:
                    small = False
                yield Iteration(number, at.value, at is best, step_mm, 0.0)
                if number - last_improved >= 5:
                    # Back to the best, slower and without the momentum that led away from it.
                    rate, last_improved, at = rate / 2, number, best
                    restore(parameters, best_position)
                    optimizer = _adam(parameters, rate)
                if small or rate < stopping.step_voxels * voxel_mm:
                    return
                before = copies(parameters)
                _give_gradient(parameters, at)
                optimizer.step()
                settle(transform, parameters, before, at.gradient)
                moved = [(p.detach() - b).square().sum() for p, b in zip(parameters, before, strict=True)]
                step_mm = float(torch.stack(moved).sum().sqrt())
        finally:
            restore(parameters, best_position)


def _adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
    # torch's eps of 1e-8 would make the steps depend on the unit of the intensities.
    eps = max(torch.finfo(p.dtype).tiny for p in parameters)
    return torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99), eps=eps)


def _give_gradient(parameters: list[nn.Parameter], at: AnyLinearisation) -> None:
    parts = torch.split(at.gradient, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.reshape(parameter.shape).to(parameter)
