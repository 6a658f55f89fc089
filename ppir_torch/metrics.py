"""Metrics of a registration, in millimetres of physical displacement.

>>> from ppir_torch import Grid, Translation
>>> a, b = Translation(Grid((4, 4))), Translation(Grid((4, 4)))
>>> _ = a.translation.data.fill_(1.0)
>>> round(displacement_rmse(a, b, Grid((4, 4)).points(dtype=torch.float64)), 6)
1.414214
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .images import Image

__all__ = ["displacement_rmse", "foreground_points", "mean_squared_difference"]


def displacement_rmse(first: nn.Module, second: nn.Module, points: Tensor) -> float:
    """sqrt(mean |first(x) - second(x)|^2) over points x (N, D), in mm."""
    with torch.no_grad():
        difference = first(points) - second(points)
    return float(difference.square().sum(-1).mean().sqrt())


def foreground_points(fixed: Image, share: float = 0.1) -> Tensor:
    """Points (N, D) float64 mm of the fixed image that are brighter than its border by `share` of its range."""
    values = fixed.tensor[0].flatten()
    threshold = fixed.outside + share * (float(values.max()) - fixed.outside)
    return fixed.grid.points(torch.nonzero(values > threshold).flatten(), dtype=torch.float64)


def mean_squared_difference(first: Image, second: Image) -> float:
    """Mean of (first - second)^2 over all voxels of the common grid (the table's SSD)."""
    return float((first.tensor.double() - second.tensor.double()).square().mean())
