"""Stationary velocity fields: scaling and squaring, the inverse, no folding, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.metrics.registration import jacobian_determinant
from ppir_torch.transforms import BSpline, Composite, ControlLattice, Translation, VelocityField, to_simpleitk_transform
from ppir_torch.transforms.velocity import exponential

Oblique = Callable[..., Grid]


def random_velocity(grid: Grid, spacing_mm: float = 9.0, size_mm: float = 2.0, seed: int = 0) -> VelocityField:
    transform = VelocityField(ControlLattice(grid, spacing_mm))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        transform.coefficients.normal_(0, size_mm, generator=generator)
    return transform


def inner_points(grid: Grid, margin: float, count: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    fractions = torch.rand(count, grid.dimension, generator=generator, dtype=torch.float64) * (1 - 2 * margin) + margin
    matrix, origin = grid.index_to_physical()
    return (fractions * (torch.tensor(grid.size) - 1)) @ matrix.T + origin


def test_zeros_are_exactly_the_identity(dimension: int, dtype: torch.dtype, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    points = grid.points(dtype=dtype)
    assert torch.equal(VelocityField(ControlLattice(grid, 8.0), dtype=dtype)(points), points)


def test_the_flow_of_a_linear_velocity_is_the_matrix_exponential(dimension: int) -> None:
    grid = Grid((33,) * dimension, (1.5, 2.0, 1.75)[:dimension], (30.0, -70.0, 11.0)[:dimension])
    generator = torch.Generator().manual_seed(0)
    matrix = 0.25 * torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    points = grid.points(dtype=torch.float64)
    velocity = ((points - grid.centre) @ matrix.T).T.reshape(dimension, *grid.shape)
    moved = exponential(velocity, grid, squarings=10).flatten(1).T
    inner = ((points - grid.centre).abs() < torch.tensor(grid.spacing) * 5).all(1)
    expected = (points - grid.centre) @ torch.linalg.matrix_exp(matrix).T + grid.centre
    torch.testing.assert_close((points + moved)[inner], expected[inner], rtol=0, atol=0.02)
    assert float((points + velocity.flatten(1).T - expected)[inner].norm(dim=1).max()) > 0.1


def test_the_default_first_step_is_below_a_quarter_voxel() -> None:
    grid = Grid((9, 9), (2.0, 2.0))
    for size_mm, squarings in ((0.1, 4), (7.9, 4), (8.0, 5), (100.0, 8)):
        velocity = torch.zeros(2, 9, 9, dtype=torch.float64)
        velocity[0] = size_mm * torch.linspace(-1, 1, 9)[None]
        assert torch.equal(exponential(velocity, grid), exponential(velocity, grid, squarings))
        assert size_mm / 2 / 2**squarings < 0.25


def test_a_constant_velocity_is_a_translation(dimension: int, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    transform = VelocityField(ControlLattice(grid, 9.0))
    torch.nn.init.constant_(transform.coefficients, 3.0)
    points = inner_points(grid, 0.0)
    torch.testing.assert_close(transform(points), points + 3, rtol=0, atol=1e-9)


def test_displacement_is_the_map_at_the_voxels(dimension: int, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    transform = random_velocity(grid)
    for level in (grid, grid.shrunk((2,) * dimension)[0], Grid((7,) * dimension, origin=tuple(grid.centre.tolist()))):
        points = level.points(dtype=torch.float64)
        # A border voxel's last digit may differ: interpolation there meets rounding.
        torch.testing.assert_close(transform.displacement(level), transform(points) - points, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size_mm", [1.0, 3.0])
def test_the_inverse_takes_points_back(dimension: int, oblique_grid: Oblique, size_mm: float) -> None:
    grid = oblique_grid(dimension)
    transform = random_velocity(grid, 9.0, size_mm)
    points = inner_points(grid, 0.2)
    with torch.no_grad():
        moved = transform(points)
        back = transform.inverse()
        error = (back(moved) - points).norm(dim=1)
        flow = transform.on(transform.lattice, -transform.coefficients.detach())
        opposite = (flow(moved) - points).norm(dim=1)
        forth = (transform(back(points)) - points).norm(dim=1)
    assert float((moved - points).norm(dim=1).max()) > size_mm
    assert float(error.max()) < 0.01  # mm, between voxels, too
    assert float(forth.max()) < 0.01
    # That is the inverse of the continuous flow, to interpolation.
    assert float(opposite.max()) < 0.08 * size_mm * min(grid.spacing)
    assert float(opposite.mean()) < 0.02 * size_mm * min(grid.spacing)
    assert float((back.field.detach() - flow.field().detach()).norm(dim=0).mean()) < 0.1 * size_mm


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), size_mm=st.floats(0.1, 3.0))
def test_the_inverse_takes_points_back_for_any_smooth_field(seed: int, size_mm: float) -> None:
    grid = Grid((40, 36), (2.0, 1.5), (9.0, -5.0))
    transform = random_velocity(grid, 12.0, size_mm, seed)
    points = inner_points(grid, 0.25)
    with torch.no_grad():
        error = (transform.inverse()(transform(points)) - points).norm(dim=1)
    assert float(error.max()) < 0.01


def test_no_folding_where_the_displacement_folds(dimension: int) -> None:
    grid = Grid((32, 28, 22)[:dimension], (2.0, 1.5, 2.0)[:dimension])
    velocity = random_velocity(grid, 10.0, 8.0)
    displacement = BSpline(velocity.lattice)
    displacement.load_state_dict(velocity.state_dict())
    with torch.no_grad():
        assert float(jacobian_determinant(displacement, grid).min()) < -0.3
        assert float(jacobian_determinant(velocity, grid).min()) > 0


def test_nothing_moves_outside(dimension: int, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    transform = random_velocity(grid)
    matrix, origin = grid.index_to_physical()
    outside = ((torch.tensor(grid.size).double() - 1) + torch.rand(5, dimension) + 0.6) @ matrix.T + origin
    assert torch.equal(transform(outside), outside)


def test_the_map_is_simpleitks(dimension: int, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    transform = random_velocity(grid)
    theirs = to_simpleitk_transform(transform)
    points = torch.cat([inner_points(grid, 0.01), inner_points(grid, -0.3)])
    expected = torch.tensor([theirs.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)
    torch.testing.assert_close(transform(points).detach(), expected, rtol=0, atol=1e-9)


def test_gradients_in_points_and_parameter(dimension: int) -> None:
    grid = Grid((5, 4, 4)[:dimension], (2.0, 1.5, 1.0)[:dimension], (7.0, -3.0, 2.0)[:dimension])
    transform = random_velocity(grid, 6.0, 1.0)
    points = inner_points(grid, 0.13, 3).requires_grad_()

    def forward(at: Tensor, coefficients: Tensor) -> Tensor:
        return functional_call(transform, {"coefficients": coefficients}, (at,))

    inputs = (points, transform.coefficients.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(forward, inputs, fast_mode=dimension == 3)


def test_a_nested_refinement_is_the_same_map(dimension: int) -> None:
    grid = Grid((20, 17, 15)[:dimension], (2.0,) * dimension)
    coarse = random_velocity(grid, 16.0)
    points = inner_points(grid, 0.01)
    torch.testing.assert_close(coarse.refined(8.0)(points), coarse(points), rtol=0, atol=1e-9)


def test_points_keep_their_dtype_and_leading_axes(dimension: int, dtype: torch.dtype, oblique_grid: Oblique) -> None:
    transform = random_velocity(oblique_grid(dimension))
    points = inner_points(transform.lattice.grid, 0.1, 20).reshape(4, 5, dimension)
    mapped = transform(points.to(dtype))
    assert (mapped.shape, mapped.dtype) == (points.shape, dtype)
    torch.testing.assert_close(mapped.double(), transform(points), rtol=0, atol=1e-3)


def test_what_makes_no_sense_is_refused() -> None:
    lattice = ControlLattice(Grid((5, 5)), 2.0)
    with pytest.raises(ConfigError, match="squarings"):
        VelocityField(lattice, squarings=-1)
    broken = VelocityField(lattice)
    torch.nn.init.constant_(broken.coefficients, math.nan)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        broken(torch.zeros(1, 2))
    assert "squarings=6" in repr(VelocityField(lattice, squarings=6))


def test_a_sampled_composite_maps_as_before_and_works_its_flow_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((12, 10))
    flow = random_velocity(grid, 4.0)
    whole = Composite([flow, Translation(grid)])
    points = grid.points(dtype=torch.float64)
    with torch.no_grad():
        expected = whole(points)
    calls: list[None] = []
    original = VelocityField.field
    monkeypatch.setattr(VelocityField, "field", lambda self: (calls.append(None), original(self))[1])
    once = whole.sampled()
    assert torch.equal(torch.cat([once(part) for part in points.split(7)]), expected)
    assert len(calls) == 1
