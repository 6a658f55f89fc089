"""Transforms one after the other: order, inverse, gradients, SimpleITK's composite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.transforms import (
    Affine,
    BSpline,
    Composite,
    ControlLattice,
    Displacement,
    LinearTransform,
    Translation,
    VelocityField,
    to_simpleitk_transform,
)

Oblique = Callable[..., Grid]
Make = Callable[..., LinearTransform]


def randomised(transform: nn.Module, size_mm: float, seed: int = 2) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.normal_(0, size_mm, generator=generator)
    return transform


def parts(grid: Grid, affine: LinearTransform) -> list[nn.Module]:
    lattice = ControlLattice(grid, 12.0)
    return [
        randomised(BSpline(lattice), 1.5),
        randomised(VelocityField(lattice), 1.5),
        affine,
        Displacement.from_transform(randomised(BSpline(lattice), 1.0, 5), grid),
    ]


def near_centre(grid: Grid, half: float = 0.2, count: int = 100) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    fractions = 0.5 + half * (2 * torch.rand(count, grid.dimension, generator=generator, dtype=torch.float64) - 1)
    matrix, origin = grid.index_to_physical()
    return (fractions * (torch.tensor(grid.size) - 1)) @ matrix.T + origin


def test_the_first_is_applied_first(dimension: int, oblique_grid: Oblique, random_transform: Make) -> None:
    grid = oblique_grid(dimension)
    both = parts(grid, random_transform("affine", grid))
    points = near_centre(grid)
    first, second, third, fourth = both
    expected = fourth(third(second(first(points))))
    assert torch.equal(Composite(both)(points), expected)
    assert float((Composite(both[::-1])(points) - expected).detach().abs().max()) > 0.01


def test_the_map_is_that_of_simpleitks_composite(dimension: int, oblique_grid: Oblique, random_transform: Make) -> None:
    grid = oblique_grid(dimension)
    one, two, three, four = parts(grid, random_transform("affine", grid, 5.0))
    transform = Composite([one, Composite([two, three]), four])
    theirs = to_simpleitk_transform(transform)
    points = torch.cat([near_centre(grid), near_centre(grid, 0.8)])
    expected = torch.tensor([theirs.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)
    torch.testing.assert_close(transform(points).detach(), expected, rtol=0, atol=1e-9)


def test_the_inverse_takes_points_back(dimension: int, oblique_grid: Oblique, random_transform: Make) -> None:
    grid = oblique_grid(dimension)
    transform = Composite(parts(grid, random_transform("affine", grid))[:3])
    points = near_centre(grid)
    with torch.no_grad():
        error = (transform.inverse()(transform(points)) - points).norm(dim=1)
    assert float(error.max()) < 0.2 * min(grid.spacing)  # interpolation between voxels
    linear = Composite([random_transform("affine", grid, seed=3), random_transform("rigid", grid, seed=4)])
    torch.testing.assert_close(linear.inverse()(linear(points)), points, rtol=0, atol=1e-9)


def test_gradients_in_points_and_parameters() -> None:
    grid = Grid((5, 4), (2.0, 1.5), (7.0, -3.0))
    transform = Composite([randomised(BSpline(ControlLattice(grid, 6.0)), 0.3), randomised(Affine(grid), 0.3)])
    names, values = zip(*transform.named_parameters(), strict=True)

    def forward(at: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(transform, dict(zip(names, parameters, strict=True)), (at,))

    inputs = [near_centre(grid, count=3), *(v.detach().clone() for v in values)]
    assert torch.autograd.gradcheck(forward, [i.requires_grad_() for i in inputs], check_forward_ad=True)


def test_points_keep_their_dtype(dimension: int, dtype: torch.dtype, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    points = near_centre(grid).to(dtype)
    transform = Composite([BSpline(ControlLattice(grid, 8.0)), VelocityField(ControlLattice(grid, 8.0))])
    assert torch.equal(transform(points), points)
    assert transform.dimension == dimension


def test_what_makes_no_composite_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Composite([])
    with pytest.raises(ConfigError, match=r"dimensions \['2', '3'\]"):
        Composite([Translation(Grid((4, 4))), Translation(Grid((4, 4, 4)))])
    with pytest.raises(ConfigError, match="Identity has no inverse"):
        Composite([nn.Identity()]).inverse()
