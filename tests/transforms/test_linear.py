"""Linear transforms: identity at the start, millimetre parameters, composition, inverse, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from ppir_torch.config.transforms import linear_names
from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.transforms import (
    Affine,
    LinearTransform,
    Rigid,
    Similarity,
    Translation,
    affine_from_map,
    linear_transform,
)

Make = Callable[..., LinearTransform]
COUNTS = {"translation": (2, 3), "rigid": (3, 6), "similarity": (4, 7), "affine": (6, 12)}


def test_identity_at_the_start_is_exactly_identity(
    kind: str, dimension: int, dtype: torch.dtype, oblique_grid: Callable[..., Grid]
) -> None:
    grid = oblique_grid(dimension)
    points = grid.points(dtype=dtype)
    with torch.no_grad():
        assert torch.equal(linear_transform(kind)(grid)(points), points)


def test_number_of_parameters(kind: str, dimension: int, oblique_grid: Callable[..., Grid]) -> None:
    transform = linear_transform(kind)(oblique_grid(dimension))
    assert sum(p.numel() for p in transform.parameters()) == COUNTS[kind][dimension - 2]


def test_points_keep_their_dtype_and_leading_axes(
    kind: str, dimension: int, dtype: torch.dtype, oblique_grid: Callable[..., Grid], random_transform: Make
) -> None:
    transform = random_transform(kind, oblique_grid(dimension))
    points = torch.randn(4, 5, dimension, dtype=dtype)
    mapped = transform(points)
    assert mapped.shape == points.shape
    assert mapped.dtype == dtype
    torch.testing.assert_close(mapped[2, 3], transform(points[2:3, 3])[0])


def test_affine_map_is_the_forward_map(
    kind: str, dimension: int, oblique_grid: Callable[..., Grid], random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    transform = random_transform(kind, grid)
    matrix, offset = transform.affine_map()
    points = grid.points(dtype=torch.float64)
    torch.testing.assert_close(transform(points), points @ matrix.T + offset)


def test_gradients_of_the_forward_map(
    kind: str, dimension: int, oblique_grid: Callable[..., Grid], random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    transform = random_transform(kind, grid)
    names, values = zip(*transform.named_parameters(), strict=True)
    points = grid.points(torch.tensor([0, 17, grid.count - 1]), dtype=torch.float64).requires_grad_()

    def forward(points: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return functional_call(transform, dict(zip(names, parameters, strict=True)), (points,))

    inputs = [points, *(v.detach().clone().requires_grad_() for v in values)]
    assert torch.autograd.gradcheck(forward, inputs, eps=1e-4, atol=1e-6)


def rms_motion(transform: nn.Module, points: torch.Tensor) -> float:
    with torch.no_grad():
        return float((transform(points) - points).square().sum(1).mean().sqrt())


def test_one_unit_of_every_parameter_moves_the_grid_by_about_one_mm(
    kind: str, dimension: int, oblique_grid: Callable[..., Grid]
) -> None:
    grid = oblique_grid(dimension)
    points = grid.points(dtype=torch.float64)
    reference = linear_transform(kind)(grid)
    for name, parameter in reference.named_parameters():
        for entry in range(parameter.numel()):
            transform = linear_transform(kind)(grid)
            with torch.no_grad():
                transform.get_parameter(name).view(-1)[entry] = 1.0
            motion = rms_motion(transform, points)
            # A turn about one axis, or one entry of a matrix, moves points along some of the axes only.
            assert 0.4 < motion < 1.05, f"{name}[{entry}]: {motion}"
            if name in ("translation", "log_scale") or (name == "rotation" and dimension == 2):
                assert motion == pytest.approx(1.0, abs=0.05), f"{name}[{entry}]: {motion}"


def test_rotation_is_orthonormal_and_similarity_one_scale(
    dimension: int, oblique_grid: Callable[..., Grid], random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    identity = torch.eye(dimension, dtype=torch.float64)
    rigid = random_transform("rigid", grid, 20.0).matrix()
    torch.testing.assert_close(rigid @ rigid.T, identity)
    assert torch.linalg.det(rigid).item() == pytest.approx(1.0)
    similarity = random_transform("similarity", grid, 20.0)
    assert isinstance(similarity, Similarity)
    scale = torch.exp(similarity.log_scale / grid.radius).item()
    matrix = similarity.matrix()
    torch.testing.assert_close(matrix @ matrix.T, scale**2 * identity)


def test_rotation_is_counter_clockwise_about_the_grids_centre() -> None:
    grid = Grid((11, 11), origin=(100.0, 200.0))
    transform = Rigid(grid)
    with torch.no_grad():
        transform.rotation.fill_(math.pi / 2 * grid.radius)
    moved = transform(grid.centre + torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(moved, grid.centre + torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_3d_rotation_about_an_axis_leaves_it_alone(axis: int) -> None:
    grid = Grid((11, 11, 11))
    transform = Rigid(grid)
    with torch.no_grad():
        transform.rotation[axis] = math.pi / 2 * grid.radius
    x, y, z = torch.eye(3, dtype=torch.float64).roll(-axis, 0)
    matrix = transform.matrix()
    for before, after in ((x, x), (y, z), (z, -y)):
        torch.testing.assert_close(matrix @ before, after)


def test_inverse_takes_points_back(
    kind: str, dimension: int, oblique_grid: Callable[..., Grid], random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    transform = random_transform(kind, grid, 8.0)
    points = grid.points(dtype=torch.float64)
    torch.testing.assert_close(transform.inverse()(transform(points)), points, rtol=0, atol=1e-9)


@pytest.mark.parametrize("first", list(linear_names()))
def test_compose_applies_first_then_self(
    kind: str, first: str, dimension: int, oblique_grid: Callable[..., Grid], random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    outer, inner = random_transform(kind, grid, seed=4), random_transform(first, oblique_grid(dimension, 9.0), seed=5)
    points = grid.points(dtype=torch.float64)
    torch.testing.assert_close(outer.compose(inner)(points), outer(inner(points)), rtol=0, atol=1e-9)


def test_inverse_and_compose_leave_the_transform_alone_and_can_be_trained(
    oblique_grid: Callable[..., Grid], random_transform: Make
) -> None:
    transform = random_transform("rigid", oblique_grid(3))
    before = {name: p.detach().clone() for name, p in transform.named_parameters()}
    result = transform.inverse().compose(transform)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in transform.named_parameters())
    assert all(p.requires_grad for p in result.parameters())


@settings(deadline=None)
@given(entries=st.lists(st.floats(-3, 3), min_size=6, max_size=6), origin=st.floats(-500, 500))
def test_affine_takes_any_map(entries: list[float], origin: float) -> None:
    grid = Grid((30, 20), (1.0, 2.0), (origin, -origin))
    matrix = torch.tensor(entries[:4], dtype=torch.float64).reshape(2, 2)
    offset = torch.tensor(entries[4:], dtype=torch.float64) * 100
    got_matrix, got_offset = affine_from_map(grid, matrix, offset).affine_map()
    torch.testing.assert_close(got_matrix, matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(got_offset, offset, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("matrix", "offset"), [((3, 3), (3,)), ((2, 2), (3,)), ((2, 3), (2,))])
def test_a_map_of_another_dimension_is_refused(matrix: tuple[int, ...], offset: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="2-D grid"):
        affine_from_map(Grid((4, 4)), torch.zeros(matrix), torch.zeros(offset))


def test_state_dict_carries_a_transform_to_another(
    kind: str, dimension: int, oblique_grid: Callable[..., Grid], random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    transform = random_transform(kind, grid)
    again = linear_transform(kind)(grid)
    again.load_state_dict(transform.state_dict())
    points = grid.points()
    assert torch.equal(again(points), transform(points))


def test_print_shows_the_matrix_in_mm() -> None:
    transform = Translation(Grid((4, 4)))
    transform.translation.data.fill_(1.5)
    assert repr(transform) == "Translation(matrix=[[1.0, 0.0], [0.0, 1.0]], offset_mm=[1.5, 1.5])"
    assert "Affine" in repr(Affine(Grid((4, 4))))
