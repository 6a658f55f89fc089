"""Slices that their files keep in 3-D: SimpleITK says where their voxels are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.planes import Plane, smallest_turn

ANGLES = st.floats(-180, 180)
VIEWS = {
    "axial": (0, 1, 2),
    "coronal": (0, 2, 1),
    "sagittal": (1, 2, 0),
}


def rotation(x: float, y: float, z: float) -> np.ndarray[Any, Any]:
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*(math.radians(a) for a in (x, y, z)))
    return np.array(turn.GetMatrix()).reshape(3, 3)


def spatial_grid(direction: np.ndarray[Any, Any], axis: int = 2, origin: tuple[float, ...] = (5.0, -7.0, 40.0)) -> Grid:
    size, spacing = [6, 5], [1.5, 2.0]
    size.insert(axis, 1)
    spacing.insert(axis, 4.0)
    return Grid(tuple(size), tuple(spacing), origin, tuple(direction.flatten().tolist()))


def in_simpleitk(grid: Grid) -> Any:
    image = sitk.Image(list(grid.size), sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def points_in_space(flat: Grid) -> torch.Tensor:
    """The 2-D grid's points, through its plane."""
    assert flat.plane is not None
    points = flat.points(dtype=torch.float64)
    height = torch.full_like(points[:, :1], flat.plane.height)
    return torch.cat([points, height], 1) @ flat.plane.columns().T


@given(angles=st.tuples(ANGLES, ANGLES, ANGLES), mirrored=st.booleans(), axis=st.sampled_from([0, 1, 2]))
def test_points_of_a_slice_are_where_simpleitk_has_them(
    angles: tuple[float, float, float], mirrored: bool, axis: int
) -> None:
    spatial = spatial_grid(rotation(*angles) @ np.diag([1.0, -1.0 if mirrored else 1.0, 1.0]), axis)
    image = in_simpleitk(spatial)
    indices = itertools.product(*(range(n) for n in reversed(spatial.size)))  # x fastest
    expected = np.array([image.TransformIndexToPhysicalPoint(tuple(reversed(index))) for index in indices])
    np.testing.assert_allclose(points_in_space(Grid.of_slice(spatial)).numpy(), expected, rtol=0, atol=1e-9)


@given(angles=st.tuples(ANGLES, ANGLES, ANGLES), mirrored=st.booleans(), axis=st.sampled_from([0, 1, 2]))
def test_a_slice_goes_back_to_the_geometry_of_its_file(
    angles: tuple[float, float, float], mirrored: bool, axis: int
) -> None:
    spatial = spatial_grid(rotation(*angles) @ np.diag([1.0, -1.0 if mirrored else 1.0, 1.0]), axis)
    again = Grid.of_slice(spatial).in_space()
    assert again.size == spatial.size
    for name in ("spacing", "origin", "direction"):
        assert getattr(again, name) == pytest.approx(getattr(spatial, name), abs=1e-9)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("signs", list(itertools.product([1.0, -1.0], repeat=3)))
def test_coordinates_of_an_orthogonal_view_are_the_patients(view: str, signs: tuple[float, float, float]) -> None:
    """However the file counts its voxels, so that two parties have the same without a word."""
    order = VIEWS[view]
    direction = np.eye(3)[:, order] * np.array(signs)
    flat = Grid.of_slice(spatial_grid(direction))
    spatial = points_in_space(flat)
    torch.testing.assert_close(flat.points(dtype=torch.float64), spatial[:, list(order[:2])])


def test_levels_of_a_slice_lie_in_its_plane() -> None:
    flat = Grid.of_slice(spatial_grid(rotation(20, 30, 40)))
    coarse, keep = flat.shrunk((2, 2))
    points = points_in_space(flat).reshape(*flat.shape, 3)[keep].reshape(-1, 3)
    torch.testing.assert_close(points_in_space(coarse), points)


@given(
    angles=st.tuples(ANGLES, ANGLES, ANGLES),
    tilt=st.tuples(*[st.floats(-12, 12)] * 3),
    signs=st.tuples(*[st.sampled_from([1.0, -1.0])] * 3),
)
def test_nearly_parallel_planes_have_nearly_the_same_coordinates(
    angles: tuple[float, float, float], tilt: tuple[float, float, float], signs: tuple[float, float, float]
) -> None:
    """Oblique planes too, between two of the patient's axes, where the choice of coordinates of each alone may jump."""
    fixed = Grid.of_slice(spatial_grid(rotation(*angles)))
    moving = Grid.of_slice(spatial_grid(rotation(*tilt) @ rotation(*angles) * np.array(signs)))
    seen = moving.seen_from(fixed)
    assert seen.plane is not None
    assert fixed.plane is not None
    torch.testing.assert_close(points_in_space(seen), points_in_space(moving), rtol=0, atol=1e-9)
    between = (seen.plane.columns().T @ fixed.plane.columns()).diagonal()
    assert float(between.min()) > math.cos(math.radians(36.1))
    again = seen.in_space()
    assert again.direction == pytest.approx(moving.in_space().direction, abs=1e-9)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(VIEWS, 2)))
def test_slices_of_different_views_are_refused(one: str, other: str) -> None:
    grids = [Grid.of_slice(spatial_grid(np.eye(3)[:, VIEWS[view]])) for view in (one, other)]
    with pytest.raises(ImageError, match="different views: their planes meet at 90 degrees"):
        grids[0].seen_from(grids[1])


def test_grids_that_are_no_slices_in_space_are_left_alone() -> None:
    flat, plain = Grid.of_slice(spatial_grid(rotation(5, 0, 0))), Grid((6, 5))
    assert plain.seen_from(flat) is plain
    assert flat.seen_from(plain) is flat
    assert plain.in_space() is plain


@pytest.mark.parametrize("size", [(4, 5, 6), (4, 1)], ids=str)
def test_what_is_no_slice_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="a single voxel is needed"):
        Grid.of_slice(Grid(size))


def test_only_a_2d_grid_lies_in_a_plane() -> None:
    plane = Grid.of_slice(spatial_grid(np.eye(3))).plane
    with pytest.raises(ImageError, match="3-D grid, only a 2-D one lies in a plane"):
        Grid((4, 4, 4), plane=plane)


@given(angles=st.tuples(ANGLES, ANGLES, ANGLES), axis=st.sampled_from([0, 1, 2]))
def test_a_plane_is_its_numbers(angles: tuple[float, float, float], axis: int) -> None:
    plane = Grid.of_slice(spatial_grid(rotation(*angles), axis)).plane
    assert plane is not None
    assert Plane.from_numbers(plane.to_numbers()) == plane


@pytest.mark.parametrize(
    ("place", "value"), [(0, 3.0), (8, -1.0), (9, math.nan), (10, 0.0), (11, 3.0), (11, 0.5), (12, 2.0)]
)
def test_numbers_of_no_plane_are_refused(place: int, value: float) -> None:
    numbers = [1.0, 0, 0, 0, 1, 0, 0, 0, 1, 10, 2, 2, 0]
    assert Plane.from_numbers(numbers).height == 10
    numbers[place] = value
    with pytest.raises(ImageError, match="plane of a slice"):
        Plane.from_numbers(numbers)


@given(one=st.tuples(*[st.floats(-1, 1)] * 3), other=st.tuples(*[st.floats(-1, 1)] * 3))
def test_the_smallest_turn_is_a_rotation_by_the_angle_between(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    start, end = (torch.tensor(v, dtype=torch.float64) for v in (one, other))
    assume(float(start.norm()) > 0.1 and float(end.norm()) > 0.1)
    start, end = start / start.norm(), end / end.norm()
    assume(float(start @ end) > -0.9)
    turn = smallest_turn(start, end)
    torch.testing.assert_close(turn @ start, end)
    torch.testing.assert_close(turn.T @ turn, torch.eye(3, dtype=torch.float64))
    assert float(turn.trace()) == pytest.approx(1 + 2 * float(start @ end), abs=1e-9)  # 1 + 2 cos(angle)
