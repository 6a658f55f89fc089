"""The conventions of coordinates, against SimpleITK."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid


def itk_image(grid: Grid) -> Any:
    image = sitk.Image(grid.size, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def random_indices(grid: Grid, count: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    size = torch.tensor(grid.size, dtype=torch.float64)
    return (torch.rand(count, grid.dimension, generator=generator, dtype=torch.float64) * 1.4 - 0.2) * size


def test_index_to_physical_is_simpleitks(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    grid = oblique_grid(dimension)
    matrix, origin = grid.index_to_physical()
    image = itk_image(grid)
    for index in random_indices(grid):
        expected = torch.tensor(image.TransformContinuousIndexToPhysicalPoint(index.tolist()), dtype=torch.float64)
        torch.testing.assert_close(matrix @ index + origin, expected, rtol=0, atol=1e-10)


def test_normalised_is_the_physical_point_seen_from_simpleitks_index(
    oblique_grid: Callable[..., Grid], dimension: int
) -> None:
    grid = oblique_grid(dimension)
    matrix, offset = grid.physical_to_normalised()
    image = itk_image(grid)
    last = torch.tensor(grid.size, dtype=torch.float64) - 1
    for point in grid.points(dtype=torch.float64)[::97]:
        index = torch.tensor(image.TransformPhysicalPointToContinuousIndex(point.tolist()), dtype=torch.float64)
        torch.testing.assert_close(matrix @ point + offset, 2 * index / last - 1, rtol=0, atol=1e-10)


def test_first_and_last_voxel_are_minus_one_and_one(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    grid = oblique_grid(dimension)
    matrix, offset = grid.physical_to_normalised()
    corners = grid.points(dtype=torch.float64)[[0, -1]] @ matrix.T + offset
    torch.testing.assert_close(corners, torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, dimension))


def test_a_single_voxel_axis_has_its_centre_at_zero() -> None:
    matrix, offset = Grid((5, 1), (2.0, 3.0), (10.0, 20.0)).physical_to_normalised()
    assert (matrix @ torch.tensor([10.0, 20.0], dtype=torch.float64) + offset).tolist() == [-1.0, 0.0]


def test_points_are_in_the_order_of_the_flattened_tensor(
    oblique_grid: Callable[..., Grid], dimension: int, dtype: torch.dtype
) -> None:
    grid = oblique_grid(dimension)
    image = itk_image(grid)
    points = grid.points(dtype=dtype)
    assert points.shape == (grid.count, dimension)
    assert points.dtype == dtype
    for flat in (0, 1, grid.size[0], grid.count // 2, grid.count - 1):
        index = [flat // math.prod(grid.size[:axis]) % grid.size[axis] for axis in range(dimension)]
        expected = torch.tensor(image.TransformIndexToPhysicalPoint(index), dtype=torch.float64)
        atol = 1e-4 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(points[flat].double(), expected, rtol=0, atol=atol)


def test_points_of_an_index_are_those_rows(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    grid = oblique_grid(dimension)
    index = torch.tensor([5, 0, grid.count - 1, 117])
    assert torch.equal(grid.points(index), grid.points()[index])


def test_centre_is_the_mean_and_radius_the_rms_distance(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    grid = oblique_grid(dimension)
    points = grid.points(dtype=torch.float64)
    torch.testing.assert_close(grid.centre, points.mean(0))
    assert grid.radius == pytest.approx(float((points - grid.centre).square().sum(1).mean().sqrt()))


def test_a_shrunk_grid_lies_on_the_original_points(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    grid = oblique_grid(dimension)
    factors = (3, 4, 2)[:dimension]
    coarse, keep = grid.shrunk(factors)
    kept = grid.points(dtype=torch.float64).reshape(*grid.shape, dimension)[keep]
    assert kept.shape[:-1] == coarse.shape
    torch.testing.assert_close(coarse.points(dtype=torch.float64), kept.reshape(-1, dimension), rtol=0, atol=1e-10)


@given(size=st.lists(st.integers(1, 9), min_size=2, max_size=3), factor=st.integers(1, 11))
def test_shrinking_keeps_every_factor_th_voxel_centred(size: list[int], factor: int) -> None:
    grid = Grid(tuple(size))
    coarse, keep = grid.shrunk((factor,) * grid.dimension)
    for n, m, part in zip(grid.shape, coarse.shape, keep, strict=True):
        kept = range(n)[part]
        assert len(kept) == m == (n - 1) // factor + 1
        assert abs(kept[0] - (n - 1 - kept[-1])) <= 1


FINITE = st.floats(-1e4, 1e4)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    spacing=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    origin=st.tuples(FINITE, FINITE),
    angle=st.floats(-math.pi, math.pi),
    index=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
)
def test_physical_to_normalised_undoes_index_to_physical(
    size: tuple[int, int],
    spacing: tuple[float, float],
    origin: tuple[float, float],
    angle: float,
    index: tuple[float, float],
) -> None:
    c, s = math.cos(angle), math.sin(angle)
    grid = Grid(size, spacing, origin, (c, -s, s, c))
    (to_physical, first), (to_normalised, offset) = grid.index_to_physical(), grid.physical_to_normalised()
    at = torch.tensor(index, dtype=torch.float64)
    last = torch.tensor(size, dtype=torch.float64) - 1
    normalised = to_normalised @ (to_physical @ at + first) + offset
    scale = 1e-12 * (1e4 / min(spacing) + 100)
    torch.testing.assert_close((normalised + 1) / 2 * last, at, rtol=0, atol=max(scale, 1e-9))


BAD = {
    "one axis": ({"size": (4,)}, "dimension: 1"),
    "four axes": ({"size": (4, 4, 4, 4)}, "dimension: 4"),
    "no voxel": ({"size": (4, 0)}, "size"),
    "zero spacing": ({"size": (4, 4), "spacing": (1.0, 0.0)}, "spacing"),
    "negative spacing": ({"size": (4, 4), "spacing": (1.0, -2.0)}, "spacing"),
    "NaN spacing": ({"size": (4, 4), "spacing": (1.0, math.nan)}, "spacing"),
    "infinite spacing": ({"size": (4, 4), "spacing": (1.0, math.inf)}, "spacing"),
    "short origin": ({"size": (4, 4), "origin": (1.0,)}, "geometry"),
    "NaN origin": ({"size": (4, 4), "origin": (1.0, math.nan)}, "origin"),
    "sheared direction": ({"size": (4, 4), "direction": (1.0, 0.5, 0.0, 1.0)}, "direction"),
    "singular direction": ({"size": (4, 4), "direction": (1.0, 1.0, 0.0, 0.0)}, "direction"),
    "scaled direction": ({"size": (4, 4), "direction": (2.0, 0.0, 0.0, 2.0)}, "direction"),
}


@pytest.mark.parametrize(("arguments", "names"), BAD.values(), ids=BAD)
def test_bad_geometry_is_one_line_that_names_the_field(arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(ImageError) as caught:
        Grid(**arguments)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_is_a_value_that_survives_json(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    import json

    grid = oblique_grid(dimension)
    again = Grid(**{k: tuple(v) for k, v in json.loads(json.dumps(grid.to_meta())).items()})
    assert again == grid
    assert hash(again) == hash(grid)
