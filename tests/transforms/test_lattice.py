"""Control lattices: points and basis, and what their base gives to a transform that says what becomes of its spline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from scipy.interpolate import BSpline as ScipyBSpline
from torch import Tensor

from ppir_torch import Grid
from ppir_torch.config import DeformableConfig, TransformEntry
from ppir_torch.errors import ConfigError
from ppir_torch.transforms import (
    BSpline,
    Composite,
    ControlLattice,
    Displacement,
    LatticeTransform,
    Translation,
    VelocityField,
    adjoint,
    expand,
    lattice_transform,
    load_any_transform,
    save_transform,
    to_simpleitk_transform,
)
from ppir_torch.transforms.dense import sampled_once, spatial_derivative

Oblique = Callable[..., Grid]
GRID = Grid((14, 12), (2.0, 3.0), (5.0, -4.0), (0.8, 0.6, -0.6, 0.8))


class HalfConfig(DeformableConfig):
    kind: Literal["half"] = "half"


class Half(LatticeTransform):
    """Moves half as far as its spline says."""

    entry = TransformEntry(HalfConfig, "half of a spline", f"{__name__}:Half")

    def field_of(self, spline: Tensor, grid: Grid) -> Tensor:  # noqa: ARG002
        return spline / 2


def bent(kind: type[LatticeTransform], size_mm: float = 1.0) -> LatticeTransform:
    transform = kind(ControlLattice(GRID, 8.0))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        transform.coefficients.copy_(size_mm * torch.randn(transform.coefficients.shape, generator=generator))
    return transform


def spline_of(transform: LatticeTransform) -> BSpline:
    """The free-form deformation with half the coefficients."""
    spline = BSpline(transform.lattice)
    spline.coefficients = torch.nn.Parameter(transform.coefficients.detach() / 2)
    return spline


def test_a_transform_of_its_own_moves_points_as_its_field_says() -> None:
    transform = bent(Half)
    expected = spline_of(transform).displacement(GRID)
    assert torch.allclose(transform.displacement(GRID), expected, atol=1e-12)
    points = GRID.points(dtype=torch.float64)
    inside = points[GRID.count // 2 : GRID.count // 2 + 4]
    assert torch.allclose(transform(inside) - inside, expected[GRID.count // 2 : GRID.count // 2 + 4], atol=1e-6)
    assert torch.allclose(sampled_once(transform)(inside), transform(inside))


def test_it_is_refined_and_inverted_like_ours() -> None:
    transform = bent(Half, 0.4)
    finer = transform.refined(4.0)
    assert type(finer) is Half
    assert torch.allclose(finer.displacement(GRID), transform.displacement(GRID), atol=1e-6)
    points = GRID.points(dtype=torch.float64).reshape(12, 14, 2)[4:8, 4:10].reshape(-1, 2)
    back = transform.inverse()
    with torch.no_grad():
        assert float((back(transform(points)) - points).norm(dim=1).max()) < 0.05


def test_its_files_hold_the_sampled_displacement(tmp_path) -> None:
    transform = Composite([bent(Half), Translation(GRID)])
    assert to_simpleitk_transform(transform.parts[0]).GetName() == "DisplacementFieldTransform"
    with pytest.raises(ConfigError, match=r"\.h5 is needed for a dense field"):
        save_transform(transform, tmp_path / "transform.tfm")
    save_transform(transform, tmp_path / "transform.h5")
    again = load_any_transform(tmp_path / "transform.h5", GRID)
    assert isinstance(again, Composite)
    assert isinstance(again.parts[0], Displacement)
    points = GRID.points(dtype=torch.float64)
    assert torch.allclose(again(points), transform(points), atol=1e-6)


@pytest.mark.parametrize(("kind", "name"), [(BSpline, "bspline"), (VelocityField, "velocity"), (Half, "half")])
def test_every_lattice_transform_names_itself(kind: type[LatticeTransform], name: str) -> None:
    assert kind(ControlLattice(GRID, 8.0)).name == name
    if kind is not Half:
        assert lattice_transform(name) is kind


def test_an_unknown_lattice_transform_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^deformable: 'affine', one of bspline, velocity is needed$"):
        lattice_transform("affine")


def test_the_response_is_the_derivative_of_the_field() -> None:
    """Of a velocity field that is the same everywhere: the flow carries an update along, unchanged."""
    transform = VelocityField(ControlLattice(GRID, 8.0))
    with torch.no_grad():
        transform.coefficients.fill_(0.5)
        response = transform.response(transform.field(), GRID)
    assert torch.allclose(response, torch.eye(2, dtype=torch.float64).expand(GRID.count, 2, 2), atol=1e-6)
    assert bent(BSpline).response(torch.zeros(2, 12, 14), GRID) is None


def test_the_spatial_derivative_of_a_linear_map_is_its_matrix() -> None:
    matrix = torch.tensor([[1.1, 0.2], [-0.1, 0.9]], dtype=torch.float64)
    points = GRID.points(dtype=torch.float64)
    field = (points @ (matrix - torch.eye(2, dtype=torch.float64)).T).T.reshape(2, *GRID.shape)
    assert torch.allclose(spatial_derivative(field, GRID), matrix.expand(GRID.count, 2, 2), atol=1e-9)


# --- the lattice and its basis


@pytest.mark.parametrize(
    ("size", "spacing", "wanted", "multiples", "cells"),
    [
        ((9, 5), (2.0, 2.0), 8.0, (4, 4), (2, 1)),  # ends at the last voxel
        ((10, 6), (2.0, 2.0), 8.0, (4, 4), (3, 2)),  # extends beyond it
        ((10, 9), (2.0, 3.0), 8.0, (4, 3), (3, 3)),  # nearest whole multiple
        ((10, 9), (2.0, 3.0), 0.5, (1, 1), (9, 8)),  # never below a voxel
        ((4, 4), (1.0, 1.0), 100.0, (100, 100), (1, 1)),
        ((1, 9, 9), (3.0, 1.0, 1.0), 4.0, (1, 4, 4), (1, 2, 2)),
        ((9, 9), (1.0, 1.0), (2.0, 4.0), (2, 4), (4, 2)),
    ],
)
def test_control_spacing_is_a_whole_multiple_of_the_voxels(
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    wanted: float | tuple[float, ...],
    multiples: tuple[int, ...],
    cells: tuple[int, ...],
) -> None:
    lattice = ControlLattice(Grid(size, spacing), wanted)
    assert (lattice.multiples, lattice.cells) == (multiples, cells)
    assert lattice.control_spacing == tuple(k * s for k, s in zip(multiples, spacing, strict=True))
    assert lattice.size == tuple(c + 3 for c in cells)
    assert lattice.shape == lattice.size[::-1]
    assert lattice.count == torch.Size(lattice.size).numel()
    assert lattice.domain.size == tuple(c * k + 1 for c, k in zip(cells, multiples, strict=True))


@pytest.mark.parametrize("wanted", [0.0, -1.0, float("nan"), float("inf"), (1.0,), (1.0, 0.0)])
def test_a_spacing_that_makes_no_sense_is_refused(wanted: float | tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="control spacing"):
        ControlLattice(Grid((4, 4)), wanted)


def test_weights_are_scipys(dimension: int, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    lattice = ControlLattice(grid, 7.0)
    for n, k, cells, matrix in zip(grid.size, lattice.multiples, lattice.cells, lattice.matrices(grid), strict=True):
        knots = torch.arange(-3, cells + 4).double()
        expected = ScipyBSpline.design_matrix(torch.arange(n).double() / k, knots, 3).toarray()
        torch.testing.assert_close(matrix, torch.from_numpy(expected), rtol=0, atol=1e-14)


def test_adjoint_is_the_transpose(dimension: int, dtype: torch.dtype, oblique_grid: Oblique) -> None:
    grid = oblique_grid(dimension)
    lattice = ControlLattice(grid, 7.0)
    matrices = lattice.matrices(grid)
    c, y = torch.randn(2, 3, *lattice.shape, dtype=dtype), torch.randn(2, 3, *grid.shape, dtype=dtype)
    up, down = expand(c, matrices), adjoint(y, matrices)
    assert (up.shape, up.dtype, down.shape, down.dtype) == (y.shape, dtype, c.shape, dtype)
    scale = float(up.norm() * y.norm())
    assert float((up * y).sum()) == pytest.approx(float((c * down).sum()), abs=scale * torch.finfo(dtype).eps * 10)


def test_expand_is_the_kronecker_product(dimension: int) -> None:
    grid = Grid((7, 5, 4)[:dimension])
    lattice = ControlLattice(grid, 3.0)
    matrices = lattice.matrices(grid)
    whole = matrices[0]
    for matrix in matrices[1:]:
        whole = torch.kron(matrix, whole)
    c = torch.randn(lattice.shape, dtype=torch.float64)
    torch.testing.assert_close(expand(c, matrices).flatten(), whole @ c.flatten())


def test_voxels_outside_the_domain_have_zero_rows() -> None:
    grid = Grid((9, 5), (2.0, 2.0), (10.0, 20.0))
    wide = Grid((13, 5), (2.0, 2.0), (6.0, 20.0))
    rows = ControlLattice(grid, 8.0).matrices(wide)[0].sum(1)
    assert rows.tolist() == pytest.approx([0, 0, *[1] * 9, 0, 0])


@pytest.mark.parametrize("other", [Grid((4, 4), direction=(0.0, 1.0, 1.0, 0.0)), Grid((4, 4, 4))])
def test_a_grid_of_another_direction_or_dimension_is_refused(other: Grid) -> None:
    with pytest.raises(ConfigError, match="same direction"):
        ControlLattice(Grid((4, 4)), 2.0).matrices(other)
