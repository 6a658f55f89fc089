"""Dense displacement fields: the map against SimpleITK's, sampling, inverse, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.transforms import Affine, Displacement, LinearTransform, to_simpleitk_transform
from ppir_torch.transforms.dense import interpolate

Oblique = Callable[..., Grid]


def random_field(grid: Grid, size_mm: float = 2.0, seed: int = 0) -> Displacement:
    generator = torch.Generator().manual_seed(seed)
    return Displacement(grid, size_mm * torch.randn(grid.dimension, *grid.shape, generator=generator).double())


def bump(grid: Grid, size_mm: float) -> Displacement:
    """Smooth, zero at the border."""
    axes = [torch.linspace(0, 1, n, dtype=torch.float64) for n in grid.shape]
    window = torch.stack(torch.meshgrid(*[torch.sin(torch.pi * a) ** 2 for a in axes], indexing="ij")).prod(0)
    directions = torch.tensor([1.0, -0.7, 0.5][: grid.dimension], dtype=torch.float64)
    return Displacement(grid, size_mm * directions.reshape(-1, *[1] * grid.dimension) * window)


def index_points(grid: Grid, low: float, high: float, count: int = 300) -> Tensor:
    """Physical points with voxel indices from `low` to size - 1 - low, and so on."""
    generator = torch.Generator().manual_seed(5)
    fractions = torch.rand(count, grid.dimension, generator=generator, dtype=torch.float64)
    index = low + fractions * (torch.tensor(grid.size) - 1 + high - low)
    matrix, origin = grid.index_to_physical()
    return index @ matrix.T + origin


def itk(transform: nn.Module, points: Tensor) -> Tensor:
    theirs = to_simpleitk_transform(transform)
    return torch.tensor([theirs.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-0.49, 0.49), (-3.0, 3.0)])
def test_the_map_is_simpleitks_inside_on_the_border_and_outside(
    dimension: int, oblique_grid: Oblique, low: float, high: float
) -> None:
    grid = oblique_grid(dimension)
    transform, points = random_field(grid), index_points(grid, low, high)
    with torch.no_grad():
        mapped = transform(points)
    torch.testing.assert_close(mapped, itk(transform, points), rtol=0, atol=1e-9)
    assert bool((mapped == points).all(1).any()) == (low < -1)


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1), (4, 1, 3)])
def test_one_voxel_axes_are_simpleitks(size: tuple[int, ...]) -> None:
    grid = Grid(size, (2.0, 3.0, 4.0)[: len(size)], (5.0, 6.0, 7.0)[: len(size)])
    transform, points = random_field(grid), index_points(grid, -0.9, 0.9)
    torch.testing.assert_close(transform(points).detach(), itk(transform, points), rtol=0, atol=1e-9)


def test_points_keep_their_dtype_and_leading_axes(dimension: int, dtype: torch.dtype, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    transform = random_field(grid)
    points = index_points(grid, 0.0, 0.0, 20).reshape(4, 5, dimension)
    mapped = transform(points.to(dtype))
    assert (mapped.shape, mapped.dtype) == (points.shape, dtype)
    torch.testing.assert_close(
        mapped.double(), transform(points), rtol=0, atol=2e-3 if dtype is torch.float32 else 1e-12
    )


def test_zeros_are_exactly_the_identity(dimension: int, dtype: torch.dtype, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    points = grid.points(dtype=dtype)
    assert torch.equal(Displacement(grid)(points), points)


def test_gradients_in_points_and_parameter(dimension: int) -> None:
    grid = Grid((4, 3, 3)[:dimension], (2.0, 1.5, 1.0)[:dimension], (7.0, -3.0, 2.0)[:dimension])
    transform = random_field(grid)
    points = index_points(grid, 0.1, -0.1, 4).requires_grad_()

    def forward(at: Tensor, field: Tensor) -> Tensor:
        return functional_call(transform, {"field": field}, (at,))

    assert torch.autograd.gradcheck(forward, (points, transform.field.detach().clone().requires_grad_()))


def test_sampling_a_transform_is_exact_at_the_voxels(
    dimension: int, oblique_grid: Oblique, random_transform: Callable[..., LinearTransform]
) -> None:
    grid = oblique_grid(dimension)
    affine = random_transform("affine", grid)
    dense = Displacement.from_transform(affine, grid)
    points = grid.points(dtype=torch.float64)
    with torch.no_grad():
        # A linear map is linear between the voxels as well; off the border, where rounding decides what is inside.
        middle = index_points(grid, 0.5, -0.5)
        torch.testing.assert_close(dense(middle), affine(middle), rtol=0, atol=1e-9)
        torch.testing.assert_close(dense.displacement(grid) + points, affine(points), rtol=0, atol=1e-9)
        coarse = grid.shrunk((2,) * dimension)[0]
        moved = dense.displacement(coarse) + coarse.points(dtype=torch.float64)
        torch.testing.assert_close(moved, affine(coarse.points(dtype=torch.float64)), rtol=0, atol=1e-9)


def test_a_field_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 4, 5\) is needed"):
        Displacement(Grid((5, 4)), torch.zeros(2, 5, 4))


def test_inverse_takes_points_back(dimension: int, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    transform = bump(grid, 5.0)
    voxels = grid.points(dtype=torch.float64)
    with torch.no_grad():
        found = transform.inverse()(voxels)
        torch.testing.assert_close(transform(found), voxels, rtol=0, atol=1e-3)
        assert float((found - voxels).norm(dim=1).max()) > 4
        points = index_points(grid, 1.0, -1.0)
        back = transform.inverse()
        error = (back(transform(points)) - points).norm(dim=1)
        rough = (back.sampled()(transform(points)) - points).norm(dim=1)
        assert float((back(points.float()) - back(points)).abs().max()) < 1e-4
        assert back(points.float()).dtype == torch.float32
    assert float(error.max()) < 0.01
    assert 0.01 < float(rough.max()) < 0.1 * min(grid.spacing), "of the samples alone, between voxels"


def test_derivatives_of_the_inverse_are_those_of_its_samples() -> None:
    grid = Grid((16, 14), (2.0, 1.5), (9.0, -5.0))
    back = bump(grid, 2.0).inverse()
    points = index_points(grid, 1.0, -1.0).requires_grad_()
    (found,) = torch.autograd.grad(back(points).square().sum(), points)
    (expected,) = torch.autograd.grad(((2 * back(points)).detach() * back.sampled()(points)).sum(), points)
    torch.testing.assert_close(found, expected)


def test_inverse_on_another_grid() -> None:
    grid, other = Grid((30, 26), (2.0, 1.5), (9.0, -5.0)), Grid((70, 60), (1.0, 1.0), (0.0, -10.0))
    transform = bump(grid, 4.0)
    back = transform.inverse(grid=other)
    assert back.grid == other
    voxels = other.points(dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(transform(back(voxels)), voxels, rtol=0, atol=1e-3)


def test_inverse_is_that_of_itk() -> None:
    grid = Grid((30, 26), (2.0, 1.5), (9.0, -5.0))
    transform = bump(grid, 4.0)
    field = to_simpleitk_transform(transform).GetDisplacementField()
    theirs = sitk.InvertDisplacementField(field, 200, 1e-5, 1e-6, True)
    expected = torch.from_numpy(sitk.GetArrayFromImage(theirs)).movedim(-1, 0)
    torch.testing.assert_close(transform.inverse().field.detach(), expected, rtol=0, atol=5e-3)


def test_inverse_of_a_folded_map_is_refused(dimension: int) -> None:
    grid = Grid((16, 14, 12)[:dimension])
    with pytest.raises(ConfigError, match=r"not converged after 30 iterations, the remaining error is [0-9.]+ mm"):
        random_field(grid, 5.0).inverse(iterations=30)


def test_interpolate_in_float32_far_from_the_origin() -> None:
    grid = Grid((40, 40), (0.5, 0.5), (900.0, -900.0))
    ramp = grid.points(dtype=torch.float64).T.reshape(2, *grid.shape)
    points = index_points(grid, 0.0, 0.0)
    torch.testing.assert_close(interpolate(ramp, grid, points.float()).double(), points, rtol=0, atol=1e-3)


def test_state_dict_and_print() -> None:
    grid = Grid((4, 4))
    again = Displacement(grid)
    again.load_state_dict(random_field(grid).state_dict())
    assert torch.equal(again.field, random_field(grid).field)
    assert "largest_mm=0" in repr(Displacement(grid))
    assert isinstance(Affine(grid).inverse(), Affine)


def test_voxels_outside_stay_unless_something_reaches_them() -> None:
    grid, wide = Grid((10, 4)), Grid((30, 4), origin=(-10.0, 0.0))
    shift = Displacement(grid)
    torch.nn.init.constant_(shift.field[0], 3.0)
    moved = shift.inverse(grid=wide).field[0, 1].detach()
    # From x = 0: the first three are reached from nowhere and carry the border's shift on; x = 10 to 12 are reached.
    torch.testing.assert_close(moved, torch.tensor([0.0] * 10 + [-3.0] * 13 + [0.0] * 7, dtype=torch.float64))
