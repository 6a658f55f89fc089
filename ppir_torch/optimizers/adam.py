"""Adam, over the same linearisation; for transforms without a useful Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..losses import Linearisation
from .stopping import Iteration, Stopping

__all__ = ["Adam"]


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam with a step in millimetres that shrinks with the level's voxel size.

    Args:
        learning_rate_voxels: length of a parameter's first step, in voxels of the level; halved when the loss has not
            improved for 5 iterations.
    """

    learning_rate_voxels: float = 0.25

    def minimise(
        self,
        transform: nn.Module,
        linearise: Callable[[], Linearisation],
        stopping: Stopping,
        voxel_mm: float,
    ) -> Iterator[Iteration]:
        """Move the parameters of `transform` to lower loss, yielding every iteration; they end at the best seen."""
        parameters = [p for p in transform.parameters() if p.requires_grad]
        rate = self.learning_rate_voxels * voxel_mm
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
        best_value, best = float("inf"), [p.detach().clone() for p in parameters]
        last_improved, step_mm = 0, 0.0
        try:
            for number in range(1, stopping.max_iterations + 1):
                at = linearise()
                improved = at.value < best_value
                small = improved and best_value - at.value < stopping.decrease * abs(at.value)
                if improved:
                    best_value, best, last_improved = at.value, [p.detach().clone() for p in parameters], number
                yield Iteration(number, at.value, improved, step_mm, 0.0)
                if number - last_improved >= 5:
                    rate, last_improved = rate / 2, number
                    optimizer.param_groups[0]["lr"] = rate
                if small or rate < stopping.step_voxels * voxel_mm:
                    return
                before = [p.detach().clone() for p in parameters]
                _give_gradient(parameters, at)
                optimizer.step()
                moved = [(p.detach() - b).square().sum() for p, b in zip(parameters, before, strict=True)]
                step_mm = float(torch.stack(moved).sum().sqrt())
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, best, strict=True):
                    parameter.copy_(value)


def _give_gradient(parameters: list[nn.Parameter], at: Linearisation) -> None:
    parts = torch.split(at.gradient, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.reshape(parameter.shape).to(parameter)
