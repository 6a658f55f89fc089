"""What the optimisers do to a transform's parameters: take a copy, and put it back exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["copies", "restore"]


def copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The values of the parameters, as tensors of their own."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def restore(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    """Give the parameters these values, bit for bit."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
