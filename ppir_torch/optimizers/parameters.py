"""What the optimisers do to a transform's parameters: take a copy, and put it back exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["add_step", "copies", "restore", "settle"]


def copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The values of the parameters, as tensors of their own."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def restore(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    """Give the parameters these values, bit for bit."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


@torch.no_grad()
def add_step(parameters: list[nn.Parameter], step: Tensor) -> None:
    """Add a step (P,), of all parameters one after the other."""
    parts = torch.split(step, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.add_(part.reshape(parameter.shape).to(parameter))


@torch.no_grad()
def settle(transform: nn.Module, parameters: list[nn.Parameter], before: list[Tensor], step: Tensor) -> Tensor:
    """Let the transform cut short what has just been done to its parameters; returns the step (P,) that was taken.

    Transforms that hold their parameters within limits say so by a method `settle`, which is given the values before.
    """
    limit: Callable[[list[Tensor]], bool] | None = getattr(transform, "settle", None)
    if limit is None or not limit(before):
        return step
    return torch.cat([(p - b).flatten() for p, b in zip(parameters, before, strict=True)]).to(step)
