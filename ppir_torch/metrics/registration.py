"""Metrics of a registration: displacement and landmark errors in mm, folding.

>>> from ppir_torch import Translation
>>> a, b = Translation(Grid((4, 4))), Translation(Grid((4, 4)))
>>> _ = a.translation.data.fill_(1.0)
>>> round(displacement_rmse(a, b, Grid((4, 4)).points(dtype=torch.float64)), 6)
1.414214
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ImageError
from ..grids import Grid
from ..images import Image
from ..transforms.dense import sampled_once

__all__ = [
    "displacement_rmse",
    "folding_share",
    "foreground_count",
    "foreground_points",
    "jacobian_determinant",
    "mean_squared_difference",
    "target_registration_error",
]

CHUNK = 1 << 20  # points that go through a transform at once


def displacement_rmse(first: nn.Module, second: nn.Module, points: Tensor) -> float:
    """sqrt(mean |first(x) - second(x)|^2) over points x (N, D), in mm."""
    total = 0.0
    with torch.no_grad():
        for part in torch.split(points, CHUNK):
            total += float((first(part) - second(part)).square().sum(dtype=torch.float64))
    return math.sqrt(total / len(points)) if len(points) else math.nan


def foreground_points(fixed: Image, share: float = 0.1) -> Tensor:
    """Points (N, D) float64 mm of the fixed image that are brighter than its border by `share` of its range."""
    return fixed.grid.points(torch.nonzero(_foreground(fixed, share)).flatten(), dtype=torch.float64)


def foreground_count(fixed: Image, share: float = 0.1) -> int:
    """How many `foreground_points` there are.

    >>> foreground_count(Image(torch.arange(25.0).reshape(1, 5, 5), Grid((5, 5))))
    13
    """
    return int(_foreground(fixed, share).sum())


def _foreground(fixed: Image, share: float) -> Tensor:
    """Which voxels (N,) these are."""
    values = fixed.tensor[0].flatten()
    return values > fixed.outside + share * (float(values.max()) - fixed.outside)


def mean_squared_difference(first: Image, second: Image) -> float:
    """Mean of (first - second)^2 over all voxels of the common grid (the table's SSD)."""
    return float((first.tensor.double() - second.tensor.double()).square().mean())


def target_registration_error(transform: nn.Module, fixed_points: Tensor, moving_points: Tensor) -> Tensor:
    """Distance in mm between each mapped fixed landmark and its moving landmark (Fitzpatrick et al., TMI 1998).

    Args:
        transform: fixed points to moving points.
        fixed_points: (n, D) mm LPS.
        moving_points: (n, D) mm LPS, in the same order.

    Returns:
        (n,) mm, in the points' dtype.

    Raises:
        ConfigError: the two sets are not of one shape (n, D).

    >>> from ppir_torch import Translation
    >>> target_registration_error(Translation(Grid((4, 4))), torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).tolist()
    [5.0]
    """
    if fixed_points.ndim != 2 or fixed_points.shape != moving_points.shape:
        raise ConfigError(
            f"landmarks: fixed {tuple(fixed_points.shape)} and moving {tuple(moving_points.shape)}, "
            "the same (points, dimension) is needed"
        )
    with torch.no_grad():
        distance: Tensor = torch.linalg.vector_norm(transform(fixed_points) - moving_points, dim=-1)
    return distance


def jacobian_determinant(transform: nn.Module, grid: Grid, points: Tensor | None = None) -> Tensor:
    """Determinant of the derivative of the map of physical points: local change of volume, negative where it folds.

    Central differences of the mapped points over one voxel to each side, exact for linear maps. Over the whole grid
    they are one-sided at its borders, so that nothing outside it is asked for; at given points both sides are.

    Args:
        transform: fixed points (N, D) to moving points (N, D), mm.
        grid: whose axes and spacing the differences are taken along.
        points: (N, D) mm; default every voxel of the grid, in the order of `tensor.flatten()`.

    Returns:
        (N,) without unit: float64, or the dtype of `points`.

    Raises:
        ImageError: points are not (N, D), or none are given and an axis of the grid has one voxel only.

    >>> from ppir_torch import affine_from_map
    >>> grid = Grid((3, 3), spacing=(2.0, 1.0))
    >>> double = affine_from_map(grid, torch.diag(torch.tensor([2.0, 3.0])), torch.zeros(2))
    >>> bool((jacobian_determinant(double, grid) - 6).abs().max() < 1e-9)
    True
    """
    d = grid.dimension
    matrix, _ = grid.index_to_physical()
    if points is None:
        if min(grid.size) < 2:
            raise ImageError(f"Jacobian on a grid of size {grid.size}: every axis needs at least two voxels")
        device = next((p.device for p in transform.parameters()), torch.device("cpu"))
        mapped = _map(transform, grid.points(dtype=torch.float64, device=device)).T.reshape(d, *grid.shape)
        # Slopes by index along x, y[, z]: the tensor axes are their reverse.
        slopes = torch.stack(torch.gradient(mapped, dim=list(range(d, 0, -1))))  # (index axis, D, [z,] y, x)
        slopes = slopes.reshape(d, d, -1)
    else:
        if points.ndim != 2 or points.shape[1] != d:
            raise ImageError(f"Jacobian at points {tuple(points.shape)}, (points, {d}) is needed")
        steps = matrix.T.to(points)  # one voxel along each axis, mm
        slopes = torch.stack([(_map(transform, points + s) - _map(transform, points - s)).T / 2 for s in steps])
    if d == 2:
        determinant = slopes[0, 0] * slopes[1, 1] - slopes[0, 1] * slopes[1, 0]
    else:
        determinant = (slopes[0] * torch.linalg.cross(slopes[1], slopes[2], dim=0)).sum(0)
    return determinant / float(torch.linalg.det(matrix))


def folding_share(determinant: Tensor) -> float:
    """Share of points, in [0, 1], at which a map folds: where its Jacobian determinant is not above 0 (or is NaN).

    >>> folding_share(torch.tensor([1.0, 0.5, 0.0, -1.0]))
    0.5
    """
    return float((~(determinant > 0)).double().mean())


def _map(transform: nn.Module, points: Tensor) -> Tensor:
    with torch.no_grad():
        once = sampled_once(transform)
        return torch.cat([once(part) for part in torch.split(points, CHUNK)])
