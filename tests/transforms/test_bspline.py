"""Free-form deformations: the lattice, the basis, the map against SimpleITK's, refinement, inverse, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, jvp

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.transforms import BSpline, ControlLattice, adjoint, to_simpleitk_transform
from ppir_torch.warping import steepest_descent

Oblique = Callable[..., Grid]


def random_bspline(grid: Grid, spacing_mm: float = 9.0, size_mm: float = 2.0, seed: int = 0) -> BSpline:
    transform = BSpline(ControlLattice(grid, spacing_mm))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        transform.coefficients.normal_(0, size_mm, generator=generator)
    return transform


def physical(grid: Grid, index: Tensor) -> Tensor:
    matrix, origin = grid.index_to_physical()
    return index @ matrix.T + origin


def random_points(grid: Grid, low: float, high: float, count: int = 200) -> Tensor:
    """Physical points at random fractions of the grid's extent."""
    generator = torch.Generator().manual_seed(3)
    fractions = low + (high - low) * torch.rand(count, grid.dimension, generator=generator, dtype=torch.float64)
    return physical(grid, fractions * (torch.tensor(grid.size) - 1))


def itk(transform: BSpline, points: Tensor) -> Tensor:
    theirs = to_simpleitk_transform(transform)
    return torch.tensor([theirs.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)


def test_level_grids_are_evaluated_at_their_voxels(dimension: int, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    transform = random_bspline(grid)
    for level in (grid, grid.shrunk((3, 2, 4)[:dimension])[0]):
        points = level.points(dtype=torch.float64)
        expected = transform(points) - points
        assert float(expected.detach().abs().max()) > 1
        torch.testing.assert_close(transform.displacement(level), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spacing_mm", [5.0, 9.0, 500.0])
def test_the_map_is_simpleitks_inside_and_outside(dimension: int, oblique_grid: Oblique, spacing_mm: float) -> None:
    grid = oblique_grid(dimension)
    transform = random_bspline(grid, spacing_mm)
    points = torch.cat([random_points(grid, 0, 1), random_points(grid, -0.2, 1.2), random_points(grid, 1.5, 3, 20)])
    with torch.no_grad():
        mapped = transform(points)
    assert torch.equal(mapped[-20:], points[-20:]) or spacing_mm == 500
    torch.testing.assert_close(mapped, itk(transform, points), rtol=0, atol=1e-9)


def test_the_map_is_simpleitks_at_the_border(dimension: int) -> None:
    grid = Grid((9, 10, 7)[:dimension], (2.0,) * dimension, (8.0, -16.0, 4.0)[:dimension])
    transform = random_bspline(grid, 4.0)
    domain = transform.lattice.domain
    corners = torch.cartesian_prod(*[torch.tensor([0.0, n - 1]).double() for n in domain.size])
    for beyond in (-1e-4, 0.0, 1e-4):
        middle = (torch.tensor(domain.size).double() - 1) / 2
        points = physical(domain, middle + (corners - middle) * (1 + beyond))
        with torch.no_grad():
            mapped = transform(points)
        assert bool((mapped == points).all()) == (beyond > 0)
        torch.testing.assert_close(mapped, itk(transform, points), rtol=0, atol=1e-9)


def test_points_keep_their_dtype_and_leading_axes(dimension: int, dtype: torch.dtype, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    transform = random_bspline(grid)
    points = random_points(grid, 0, 1, 20).to(dtype).reshape(4, 5, dimension)
    mapped = transform(points)
    assert (mapped.shape, mapped.dtype) == (points.shape, dtype)
    torch.testing.assert_close(
        mapped.double(), transform(points.double()), rtol=0, atol=1e-3 if dtype is torch.float32 else 0
    )


def test_zeros_are_exactly_the_identity(dimension: int, dtype: torch.dtype, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    points = grid.points(dtype=dtype)
    assert torch.equal(BSpline(ControlLattice(grid, 8.0), dtype)(points), points)


def test_gradients_in_points_and_parameter(dimension: int) -> None:
    grid = Grid((5, 4, 3)[:dimension], (2.0, 1.5, 1.0)[:dimension], (7.0, -3.0, 2.0)[:dimension])
    transform = random_bspline(grid, 3.0, 0.5)
    points = random_points(grid, 0.05, 0.95, 4).requires_grad_()
    inputs = (points, transform.coefficients.detach().clone().requires_grad_())

    def forward(at: Tensor, coefficients: Tensor) -> Tensor:
        return functional_call(transform, {"coefficients": coefficients}, (at,))

    assert torch.autograd.gradcheck(forward, inputs, check_forward_ad=True, fast_mode=dimension == 3)
    tangents = tuple(torch.randn_like(i) for i in inputs)
    _, forward_mode = jvp(forward, tuple(i.detach() for i in inputs), tangents)
    _, double_back = torch.autograd.functional.jvp(forward, inputs, tangents)
    torch.testing.assert_close(forward_mode, double_back)
    torch.testing.assert_close(
        torch.autograd.grad(transform.displacement(grid)[:, 0].sum(), transform.coefficients)[0][0],
        adjoint(torch.ones(grid.shape, dtype=torch.float64), transform.lattice.matrices(grid)),
    )


def test_steepest_descent_is_the_basis_times_the_gradient() -> None:
    grid = Grid((5, 4), (2.0, 1.5), (7.0, -3.0))
    transform = random_bspline(grid, 4.0)
    points, gradient = grid.points(dtype=torch.float64), torch.randn(grid.count, 2, dtype=torch.float64)
    rows = steepest_descent(transform, points, gradient)
    r = torch.randn(grid.count, dtype=torch.float64)
    expected = adjoint((gradient * r[:, None]).T.reshape(2, *grid.shape), transform.lattice.matrices(grid))
    torch.testing.assert_close(rows @ r, expected.flatten())


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_nested_refinement_is_the_same_map(dimension: int, oblique_grid: Oblique, factor: int) -> None:
    grid = Grid(oblique_grid(dimension).size, (2.0,) * dimension, (5.0, -9.0, 40.0)[:dimension])
    coarse = random_bspline(grid, 16.0)
    fine = coarse.refined(16.0 / factor)
    assert fine.lattice.control_spacing == (16.0 / factor,) * dimension
    points = random_points(grid, 0, 1)
    torch.testing.assert_close(fine(points), coarse(points), rtol=0, atol=1e-10)
    assert float(fine.coefficients.detach().abs().max()) < 1.01 * float(coarse.coefficients.detach().abs().max())


def test_another_refinement_is_near(dimension: int, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    coarse = random_bspline(grid, 12.0)
    fine = coarse.refined(5.0)
    points = random_points(grid, 0, 1)
    error = (fine(points) - coarse(points)).detach().norm(dim=1)
    assert float(error.max()) < 0.1
    assert float(fine.coefficients.detach().abs().max()) < 2 * float(coarse.coefficients.detach().abs().max())


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), size_mm=st.floats(0.1, 2.0), flat=st.booleans())
def test_inverse_takes_points_back(seed: int, size_mm: float, flat: bool) -> None:
    grid = Grid(
        (30, 26) if flat else (18, 16, 17), (2.0, 1.5) if flat else (2.0, 1.5, 2.0), (9.0, -5.0, 3.0)[: 3 - flat]
    )
    transform = random_bspline(grid, 10.0, size_mm, seed)
    voxels = grid.points(dtype=torch.float64)
    with torch.no_grad():
        back = transform.inverse()
        origin = back(voxels)
        # A voxel whose origin lies outside the domain is reached from nowhere.
        index = (origin - voxels[0]) / torch.tensor(grid.spacing)
        reached = ((index >= 0) & (index <= torch.tensor(transform.lattice.domain.size) - 1)).all(1)
        assert float(reached.double().mean()) > 0.5
        assert float((transform(origin) - voxels)[reached].norm(dim=1).max()) < 1e-3
        # Between voxels the inverse is interpolated: 0.1 voxel.
        middle = random_points(grid, 0.25, 0.75)
        assert float((back(transform(middle)) - middle).norm(dim=1).max()) < 0.15


def test_inverse_of_a_strong_expansion_converges() -> None:
    grid = Grid((21, 21), (2.0, 2.0), (-20.0, -20.0))
    transform = BSpline(ControlLattice(grid, 10.0))
    nodes = torch.arange(-1, 6).double() * 10 - 20  # a spline of linear coefficients is linear
    with torch.no_grad():
        transform.coefficients[0] = 1.5 * nodes[None, :]
    voxels = grid.points(dtype=torch.float64)
    inner = voxels.norm(dim=1) < 15
    with torch.no_grad():
        found = transform.inverse()(voxels)
    torch.testing.assert_close(found[inner, 0], voxels[inner, 0] / 2.5, rtol=0, atol=2e-3)


def test_inverse_of_a_folded_map_is_refused(dimension: int) -> None:
    grid = Grid((18, 16, 17)[:dimension], (2.0,) * dimension)
    with pytest.raises(ConfigError, match=r"points have not converged .* remaining error is [0-9.]+ mm"):
        random_bspline(grid, 8.0, 12.0).inverse(iterations=30)


def test_print_shows_the_lattice() -> None:
    assert "control_spacing_mm=(4.0, 4.0)" in repr(BSpline(ControlLattice(Grid((9, 9)), 4.0)))
