"""Sampling through a transform against SimpleITK and torch; derivatives against autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ppir_torch.grids import Grid
from ppir_torch.images import Image, to_simpleitk
from ppir_torch.transforms import LinearTransform, to_simpleitk_transform
from ppir_torch.warping import (
    parameters_of,
    resampled_along,
    sample,
    sample_with_gradient,
    steepest_descent,
    warp,
)

Make = Callable[..., Any]


class Bend(nn.Module):
    """A user's own transform: points plus a small network of them."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        torch.manual_seed(0)
        d = grid.dimension
        self.register_buffer("centre", grid.centre)
        self.scale = grid.radius
        self.net = nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, d)).double()

    def forward(self, points: Tensor) -> Tensor:
        return points + 2 * self.net((points - self.centre) / self.scale)


def noise(grid: Grid, dtype: torch.dtype = torch.float64) -> Image:
    """Every voxel different: a wrong neighbour or axis shows at once."""
    generator = torch.Generator().manual_seed(2)
    return Image(torch.randn(1, *grid.shape, generator=generator, dtype=torch.float64).to(dtype) + 5, grid)


def inside(points: Tensor, grid: Grid) -> Tensor:
    matrix, offset = grid.physical_to_normalised()
    return ((points @ matrix.T + offset).abs() <= 1).all(1)


def test_sampling_a_linear_function_is_exact(oblique_grid: Make, dimension: int, dtype: torch.dtype) -> None:
    grid = oblique_grid(dimension)
    slope = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64)[:dimension]
    image = Image((grid.points(dtype=torch.float64) @ slope).reshape(1, *grid.shape).to(dtype), grid)
    between = grid.points(dtype=torch.float64)[::13] * 0.6 + grid.centre * 0.4
    atol = 2e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(sample(image, between.to(dtype)).double(), between @ slope, rtol=0, atol=atol)


def test_sampling_at_the_voxels_gives_the_voxels(oblique_grid: Make, dimension: int) -> None:
    image = noise(oblique_grid(dimension))
    torch.testing.assert_close(sample(image, image.grid.points(dtype=torch.float64)), image.tensor.flatten())


def test_warp_is_simpleitks_resample_inside_the_image(
    kind: str, oblique_grid: Make, random_transform: Make, dimension: int, dtype: torch.dtype
) -> None:
    moving = noise(oblique_grid(dimension, shift=3.0, turn=0.25), dtype)
    grid = oblique_grid(dimension)
    transform = random_transform(kind, grid)
    reference = to_simpleitk(Image(torch.zeros(1, *grid.shape), grid))
    expected = sitk.GetArrayFromImage(
        sitk.Resample(to_simpleitk(moving), reference, to_simpleitk_transform(transform), sitk.sitkLinear, 0.0)
    )
    warped = warp(moving, transform, grid)
    assert warped.grid == grid
    assert warped.tensor.dtype == dtype
    where = inside(transform(grid.points(dtype=torch.float64)).detach(), moving.grid)
    assert where.float().mean() > 0.3
    atol = 5e-4 if dtype == torch.float32 else 1e-9
    theirs = torch.from_numpy(expected).flatten()[where]
    torch.testing.assert_close(warped.tensor.flatten()[where].double(), theirs.double(), rtol=0, atol=atol)


def test_labels_are_warped_without_mixing(oblique_grid: Make, random_transform: Make) -> None:
    grid = oblique_grid(3)
    labels = noise(grid).tensor.round()
    warped = warp(Image(labels, grid), random_transform("affine", grid), grid, mode="nearest")
    assert set(warped.tensor.unique().tolist()) <= set(labels.unique().tolist()) | {Image(labels, grid).outside}


def test_beyond_the_border_values_fade_to_the_outside_value(oblique_grid: Make, dimension: int) -> None:
    image = noise(oblique_grid(dimension))
    first, far = image.grid.points(torch.tensor([0, image.grid.count - 1]), torch.float64)
    matrix, _ = image.grid.index_to_physical()
    step = matrix[:, 0]
    half, whole = sample(image, torch.stack([first - step / 2, first - step])).tolist()
    corner = image.tensor.flatten()[0].item()
    assert half == pytest.approx((corner + image.outside) / 2)
    assert whole == pytest.approx(image.outside)
    assert sample(image, far[None] + 1e6).item() == pytest.approx(image.outside)


def test_warping_with_the_outside_is_torchs_grid_sample_everywhere(
    oblique_grid: Make, random_transform: Make, dimension: int
) -> None:
    moving = noise(oblique_grid(dimension, shift=12.0))
    grid = oblique_grid(dimension)
    transform = random_transform("affine", grid)
    matrix, origin = moving.grid.index_to_physical()
    with torch.no_grad():
        index = torch.linalg.solve(matrix, (transform(grid.points(dtype=torch.float64)) - origin).T).T
    normalised = 2 * index / (torch.tensor(moving.grid.size) - 1) - 1
    expected = F.grid_sample(
        (moving.tensor - moving.outside)[None], normalised.reshape(1, *grid.shape, dimension), align_corners=True
    )
    torch.testing.assert_close(warp(moving, transform, grid).tensor, expected[0] + moving.outside)


def test_spatial_gradient_is_autograds(oblique_grid: Make, random_transform: Make, dimension: int) -> None:
    image = noise(oblique_grid(dimension))
    with torch.no_grad():
        points = random_transform("rigid", image.grid)(image.grid.points(dtype=torch.float64))
    tracked = points.clone().requires_grad_()
    values = sample(image, tracked)
    (expected,) = torch.autograd.grad(values.sum(), tracked)
    got_values, gradient = sample_with_gradient(image, image.outside, points)
    torch.testing.assert_close(got_values, values.detach())
    torch.testing.assert_close(gradient, expected)
    assert not gradient.requires_grad


def test_spatial_gradient_is_per_mm(oblique_grid: Make, dimension: int) -> None:
    grid = oblique_grid(dimension)
    slope = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64)[:dimension]
    image = Image((grid.points(dtype=torch.float64) @ slope).reshape(1, *grid.shape), grid)
    inner = grid.points(dtype=torch.float64) * 0.5 + grid.centre * 0.5
    _, gradient = sample_with_gradient(image, image.outside, inner)
    torch.testing.assert_close(gradient, slope.expand_as(gradient))


def jacobian_of_warped_image(transform: nn.Module, moving: Image, points: Tensor) -> Tensor:
    """(P, N) by reverse-mode autograd through sampling and transform together."""
    parameters = parameters_of(transform)

    def warped(*values: Tensor) -> Tensor:
        return sample(moving, functional_call(transform, dict(zip(parameters, values, strict=True)), (points,)))

    parts = torch.autograd.functional.jacobian(warped, tuple(p.detach() for p in parameters.values()))
    return torch.cat([part.reshape(len(points), -1).T for part in parts])


def check_steepest_descent(transform: nn.Module, moving: Image, points: Tensor) -> None:
    with torch.no_grad():
        mapped = transform(points)
    _, gradient = sample_with_gradient(moving, moving.outside, mapped)
    expected = jacobian_of_warped_image(transform, moving, points)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(steepest_descent(transform, points, gradient), expected, rtol=0, atol=1e-10)


@pytest.fixture(scope="session")
def few_points(oblique_grid: Make) -> Callable[[int], Tensor]:
    def every(dimension: int) -> Tensor:
        points = oblique_grid(dimension).points(dtype=torch.float64)
        return points[7 :: len(points) // 40]

    return every


def test_steepest_descent_of_linear_transforms_is_autograds_jacobian(
    kind: str, oblique_grid: Make, random_transform: Make, few_points: Make, dimension: int
) -> None:
    moving = noise(oblique_grid(dimension))
    check_steepest_descent(random_transform(kind, oblique_grid(dimension)), moving, few_points(dimension))


def test_steepest_descent_of_a_users_module_is_autograds_jacobian(
    oblique_grid: Make, few_points: Make, dimension: int
) -> None:
    grid = oblique_grid(dimension)
    check_steepest_descent(Bend(grid), noise(grid), few_points(dimension))


@pytest.mark.parametrize("frozen", ["translation", "rotation", "log_scale"])
def test_frozen_parameters_have_no_row(
    frozen: str, oblique_grid: Make, random_transform: Make, few_points: Make
) -> None:
    grid = oblique_grid(3)
    transform: LinearTransform = random_transform("similarity", grid)
    transform.get_parameter(frozen).requires_grad_(False)
    assert frozen not in parameters_of(transform)
    check_steepest_descent(transform, noise(grid), few_points(3))


def test_steepest_descent_in_single_precision(oblique_grid: Make, random_transform: Make, few_points: Make) -> None:
    grid = oblique_grid(3)
    transform, points = random_transform("affine", grid), few_points(3)
    gradient = torch.randn(len(points), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = steepest_descent(transform, points, gradient)
    single = steepest_descent(transform, points.float(), gradient.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)


def test_resampled_along_a_turn_and_a_scale_has_alike_voxels(dimension: int, phantom: Any, oblique_grid: Any) -> None:
    """The phantom turned and 1.25 times larger: on the resampled grid its voxels see what the fixed one's see."""
    grid, made = oblique_grid(dimension), phantom(oblique_grid(dimension))
    angle, scale = 0.5, 1.25
    matrix = scale * torch.eye(dimension, dtype=torch.float64)
    matrix[:2, :2] = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    image = made.image(grid, dtype=torch.float64)
    turned = resampled_along(image, matrix, grid)
    axes, own = (torch.tensor(g.direction, dtype=torch.float64).reshape(dimension, -1) for g in (turned.grid, grid))
    torch.testing.assert_close(axes, matrix @ own / scale)
    assert turned.grid.spacing == pytest.approx([scale * s for s in grid.spacing])
    # Inside the image it is the phantom; outside its border values go on.
    points = turned.grid.points(dtype=torch.float64)
    to_normalised, offset = grid.physical_to_normalised()
    inside = ((points @ to_normalised.T + offset).abs() <= 1).all(1)
    expected = made(points)
    assert 0.3 < inside.double().mean() < 0.95
    assert (turned.tensor.flatten() - expected)[inside].abs().max() < 0.05 * image.tensor.max()
    low, high = image.tensor.aminmax()
    assert low <= turned.tensor.min()
    assert turned.tensor.max() <= high


def test_resampled_along_the_identity_keeps_the_voxels(dimension: int, phantom: Any, oblique_grid: Any) -> None:
    grid = oblique_grid(dimension)
    image = phantom(grid).image(grid, dtype=torch.float64)
    same = resampled_along(image, torch.eye(dimension), grid)
    assert same.grid.size == grid.size
    torch.testing.assert_close(same.tensor, image.tensor, rtol=0, atol=1e-6 * float(image.tensor.max()))
    # A map far from any rotation does not ask for a huge image.
    assert resampled_along(image, 1e-3 * torch.eye(dimension), grid).grid.count <= 3**dimension * grid.count


def test_points_that_are_not_numbers_do_not_end_the_process(dimension: int, dtype: torch.dtype) -> None:
    grid = Grid((12,) * dimension)
    image = Image(torch.rand(1, *grid.shape, dtype=dtype), grid)
    points = torch.tensor([[float("nan")] * dimension, [float("inf")] * dimension, [1.0] * dimension], dtype=dtype)
    values, gradient = sample_with_gradient(image, None, points)
    assert bool(torch.isfinite(values[2]))
    assert bool(torch.isfinite(gradient[2]).all())
