"""How much a fixed point counts: SimpleITK's linear resampling and its idea of inside are the oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ppir_torch.grids import Grid
from ppir_torch.images import Image, to_simpleitk
from ppir_torch.overlap import content, inside, weights_at

Make = Callable[..., Any]


def scattered_points(grid: Grid, seed: int = 0, reach: float = 0.7) -> torch.Tensor:
    """Points in and around a grid: up to `reach` of its size from its centre along each axis."""
    generator = torch.Generator().manual_seed(seed)
    matrix, origin = grid.index_to_physical()
    size = torch.tensor(grid.size, dtype=torch.float64)
    where = (torch.rand(500, grid.dimension, generator=generator, dtype=torch.float64) - 0.5) * 2 * reach
    return ((size - 1) / 2 + where * size) @ matrix.T + origin


def test_weights_are_simpleitks_linear_interpolation_of_the_content(dimension: int, oblique_grid: Make) -> None:
    grid = oblique_grid(dimension)
    of = content(grid, torch.empty(0, dtype=torch.float64))
    points, oracle = scattered_points(grid), to_simpleitk(of)
    found = weights_at(of, points)
    for point, weight in zip(points.tolist(), found.tolist(), strict=True):
        index = oracle.TransformPhysicalPointToContinuousIndex(point)
        if all(0 <= i <= n - 1 for i, n in zip(index, grid.size, strict=True)):
            assert weight == pytest.approx(oracle.EvaluateAtPhysicalPoint(point, sitk.sitkLinear), abs=1e-6)
        elif any(i <= -1 or i >= n for i, n in zip(index, grid.size, strict=True)):
            assert weight == 0


def test_inside_is_simpleitks(dimension: int, oblique_grid: Make) -> None:
    grid = oblique_grid(dimension)
    oracle = to_simpleitk(Image(torch.zeros(1, *grid.shape), grid))
    points = scattered_points(grid, reach=0.52)
    due = []
    for point in points.tolist():
        index = oracle.TransformPhysicalPointToContinuousIndex(point)
        due.append(all(-0.5 <= i <= n - 0.5 for i, n in zip(index, grid.size, strict=True)))
    assert 0 < sum(due) < len(due)
    assert inside(grid, points)[0].tolist() == due
    assert inside(grid, points.float())[0].tolist() == due


def test_an_axis_of_one_voxel_is_that_voxel() -> None:
    grid = Grid((1, 4))
    points = torch.tensor([[-0.6, 0.0], [-0.4, 0.0], [0.4, 3.4], [0.6, 0.0]])
    assert inside(grid, points)[0].tolist() == [False, True, True, False]


def test_the_edge_is_two_voxels_wide_and_thin_axes_keep_most_of_their_voxels() -> None:
    edge = content(Grid((20, 3)), torch.empty(0)).tensor[0]
    assert edge[1].tolist() == [0, 0.5, *[1.0] * 16, 0.5, 0]
    assert (edge[:, 10] == 1).all()  # of three slices each counts in full


def test_outside_the_mask_nothing_counts(dimension: int, oblique_grid: Make) -> None:
    grid = oblique_grid(dimension)
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[(slice(8, -8),) * dimension] = True
    image = Image(torch.rand(1, *grid.shape), grid)
    smooth = Image(mask[None].float(), grid).smoothed(min(grid.spacing))
    weights = content(grid, image.tensor, smooth).tensor[0]
    assert (weights[~mask] == 0).all()
    assert weights[(slice(10, -10),) * dimension].min() > 0.9


@pytest.mark.parametrize("n", [1, 2, 5, 11, 12, 40])
def test_weights_are_between_none_and_all(n: int) -> None:
    weights = content(Grid((n, 16)), torch.empty(0)).tensor.numpy()
    assert weights.min() >= 0
    assert weights.max() == 1
    assert np.array_equal(weights, weights[:, ::-1, ::-1])
