"""party_2's columns: by hand, by numpy, and by what the losses make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from ppir_torch.config.transforms import linear_names
from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.bounds import all_pairs
from ppir_torch.joint.columns import IMAGE, Columns, FixedColumns, columns_of, functionals, homogeneous
from ppir_torch.joint.operands import ClearOperand
from ppir_torch.joint.quantise import quantise_columns
from ppir_torch.losses import SSD
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.sampling import Chunks, Full, GradientMagnitude, Permuted, Sample, Uniform
from ppir_torch.transforms import linear_transform
from ppir_torch.warping import grid_gradient

Make = Callable[..., Any]
FULL = Level(1, 0.0)
MOMENTS = Columns("moments")
EVERY_KIND = [IMAGE, MOMENTS, *(Columns("steepest_descent", name) for name in linear_names())]
every_kind = pytest.mark.parametrize("columns", EVERY_KIND, ids=lambda c: f"{c.kind} {c.transform}")


def noise(grid: Grid, dtype: torch.dtype = torch.float64) -> Image:
    """Every voxel different: a wrong neighbour or axis shows at once."""
    generator = torch.Generator().manual_seed(2)
    return Image(torch.randn(1, *grid.shape, generator=generator, dtype=torch.float64).to(dtype) + 5, grid)


def quadratic(grid: Grid) -> tuple[Callable[[Tensor], Tensor], Image]:
    """A polynomial of degree two in the physical coordinates, whose central differences are exact; and its image."""
    generator = torch.Generator().manual_seed(3)
    d = grid.dimension
    curvature = torch.randn(d, d, generator=generator, dtype=torch.float64) / grid.radius
    slope = torch.randn(d, generator=generator, dtype=torch.float64)

    def value(points: Tensor) -> Tensor:
        x = points - grid.centre
        return ((x @ curvature) * x).sum(-1) + x @ slope + 40

    return value, Image(value(grid.points(dtype=torch.float64)).reshape(1, *grid.shape), grid)


def interior(grid: Grid) -> Tensor:
    """(N,) True where a voxel has neighbours on both sides along every axis."""
    inside = torch.zeros(grid.shape, dtype=torch.bool)
    inside[tuple(slice(1, -1) for _ in grid.shape)] = True
    return inside.flatten()


# --- which columns there are


@every_kind
def test_as_many_columns_as_are_announced(columns: Columns, dimension: int, dtype: torch.dtype, pair: Make) -> None:
    image = pair("rigid", dimension, dtype).fixed
    values = columns_of(image, None, None, columns).values
    assert values.shape == (columns.count(image.grid), image.grid.count)
    assert values.dtype == dtype
    some = torch.tensor([5, 3, 100])
    # Up to the order in which a matrix product adds.
    atol = (1e-6 if dtype == torch.float32 else 1e-14) * float(values.abs().max())
    torch.testing.assert_close(columns_of(image, None, some, columns).values, values[:, some], rtol=0, atol=atol)


@every_kind
def test_the_first_is_j_less_the_mean_of_the_mask(
    columns: Columns, dimension: int, dtype: torch.dtype, pair: Make
) -> None:
    image = pair("rigid", dimension, dtype).fixed
    count = image.grid.count
    candidates = torch.arange(count // 3, count // 2)
    index = Permuted(1).draw(candidates.numel(), 0).index
    assert index is not None
    fixed = columns_of(image, candidates, candidates[index], columns)
    exact = image.tensor.flatten().double()[candidates]
    assert fixed.offset == pytest.approx(float(exact.mean()), rel=1e-6)
    assert fixed.offset == float(np.float32(fixed.offset)), "an offset that images of either dtype subtract exactly"
    assert torch.equal(fixed.values[0], (exact[index] - fixed.offset).to(dtype))
    # Of all of the mask's points, also where the operand has some of them.
    some = columns_of(image, candidates, candidates[index[:7]], columns)
    assert (some.offset, some.level_mean_square) == (fixed.offset, fixed.level_mean_square)
    assert fixed.level_mean_square == pytest.approx(float((exact - fixed.offset).square().mean()))


@pytest.mark.parametrize(
    ("kind", "transform"),
    [("pixels", ""), ("", ""), ("image", "affine"), ("moments", "rigid"), ("steepest_descent", ""),
     ("steepest_descent", "spline")],
)  # fmt: skip
def test_other_columns_are_refused(kind: Any, transform: str) -> None:
    with pytest.raises(ConfigError, match="columns"):
        Columns(kind, transform)


# --- moments


def test_moments_are_j_times_the_normalised_coordinates(dimension: int, dtype: torch.dtype, pair: Make) -> None:
    """Counted from the voxel indices: -1 is the first voxel's centre, +1 the last one's."""
    image = pair("rigid", dimension, dtype).fixed
    values = columns_of(image, None, None, MOMENTS).values
    centred = (image.tensor[0].double() - columns_of(image, None, None, IMAGE).offset).numpy()
    indices = np.indices(image.grid.shape)[::-1]  # x, y[, z]
    for axis, size in enumerate(image.grid.size):
        expected = (2 * indices[axis] / (size - 1) - 1) * centred
        np.testing.assert_allclose(values[1 + axis].numpy(), expected.reshape(-1), rtol=0, atol=1e-5)
    assert float((values[1:].abs() - values[0].abs()).max()) <= 1e-5 * float(values[0].abs().max())


def test_moments_along_an_axis_of_one_voxel_are_zero() -> None:
    grid = Grid((6, 1), (2.0, 3.0), (10.0, 20.0))
    values = columns_of(noise(grid), None, None, MOMENTS).values
    assert values.isfinite().all()
    assert values[2].abs().max() < 1e-12
    assert values[1].abs().max() > 0.1


SAMPLES = ["all", "mask", "uniform", "gradient magnitude", "hidden gradient magnitude", "chunks"]


@pytest.mark.parametrize("sampler", SAMPLES)
def test_moments_give_the_value_gradient_and_hessian_of_the_ssd(
    sampler: str, kind: str, dimension: int, pair: Make
) -> None:
    images = pair(kind, dimension, torch.float64)
    grid = images.fixed.grid
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(grid.shape, generator=generator) < 0.4 if sampler == "mask" else None
    by_gradient = GradientMagnitude(0.3, 1).draw(images.fixed.tensor.flatten(), 0)
    choice = {"uniform": Uniform(0.3, 1), "gradient magnitude": by_gradient, "chunks": Permuted(1)}.get(sampler, Full())
    transform = linear_transform(kind)(grid)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        transform.translation += images.moving.grid.centre - grid.centre
    found = []
    for columns in (IMAGE, MOMENTS):
        operand = ClearFixed(images.fixed, mask).operand(OperandRequest(FULL, choice, columns=columns))
        if sampler == "hidden gradient magnitude":
            operand = operand.part(by_gradient.index, by_gradient.weights)
        if sampler == "chunks":
            operand = operand.part(Chunks(0.3, 1).window(grid.count, 0), None)
        found.append(SSD(operand).linearise(transform, images.moving))
        found.append(SSD(operand).linearise(transform, images.moving, with_hessian=False))
    direct, _, by_moments, without = found
    size = float(direct.gradient.abs().max())
    assert size > 0.1
    for at in (by_moments, without):
        assert at.value == pytest.approx(direct.value, rel=1e-9)
        torch.testing.assert_close(at.gradient, direct.gradient, rtol=0, atol=1e-10 * size)
        assert at.nominal == direct.nominal
    assert torch.equal(by_moments.hessian, direct.hessian)


def test_moments_need_as_many_products_as_the_affine_has_parameters(dimension: int, pair: Make) -> None:
    """D (D + 1) sums of G h J and one of I J, from D + 1 rows."""
    images = pair("affine", dimension)
    asked: list[tuple[int, int]] = []
    operand = ClearFixed(images.fixed).operand(OperandRequest(FULL, columns=MOMENTS))

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(operand, name)

        def multiply(self, rows: Tensor, pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
            asked.append((rows.shape[0], len(pairs)))
            return operand.multiply(rows, pairs)

    loss = SSD(Counting())  # type: ignore[arg-type]
    loss.linearise(images.truth, images.moving)
    loss(images.truth, images.moving).backward()
    with torch.no_grad():
        loss(images.truth, images.moving)
    full = (dimension + 1, dimension * (dimension + 1) + 1)
    assert asked == [full, full, (1, 1)]


# --- gradients and steepest-descent images of the fixed image


def test_grid_gradient_is_numpys_in_physical_space(dimension: int, dtype: torch.dtype, oblique_grid: Make) -> None:
    """numpy differentiates along tensor axes; the chain rule through the voxels' positions makes millimetres of it."""
    grid = oblique_grid(dimension)
    image = noise(grid, dtype)
    along = np.stack([g.reshape(-1) for g in np.gradient(image.tensor[0].double().numpy())][::-1], 1)  # by x, y[, z]
    axes = np.array(grid.direction).reshape(dimension, dimension) * np.array(grid.spacing)
    # d/d index = axes^T d/d physical
    expected = np.linalg.solve(axes.T, along.T).T
    got = grid_gradient(image)
    assert got.dtype == dtype
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=0, atol=atol)


def test_grid_gradient_of_a_plane_is_its_slope_also_at_the_border(dimension: int, oblique_grid: Make) -> None:
    grid = oblique_grid(dimension)
    slope = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64)[:dimension]
    image = Image((grid.points(dtype=torch.float64) @ slope).reshape(1, *grid.shape), grid)
    torch.testing.assert_close(grid_gradient(image), slope.expand(grid.count, -1), rtol=0, atol=1e-9)


def test_grid_gradient_along_an_axis_of_one_voxel_is_zero() -> None:
    grid = Grid((6, 1, 5), (2.0, 3.0, 1.0))
    gradient = grid_gradient(noise(grid))
    assert gradient.shape == (30, 3)
    assert gradient[:, 1].abs().max() == 0
    assert gradient[:, [0, 2]].abs().min(0).values.max() > 0


def derivatives(kind: str, full: Grid, points: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """(P, n) derivative of J(W(x; dp)) by dp at dp = 0, by autograd through the formula of J."""
    transform = linear_transform(kind)(full)
    names = [name for name, _ in transform.named_parameters()]

    def moved(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return value(torch.func.functional_call(transform, given, (points,)))

    zeros = tuple(torch.zeros_like(p) for p in transform.parameters())
    parts = torch.autograd.functional.jacobian(moved, zeros)
    return torch.cat([part.reshape(len(points), -1).T for part in parts])


def test_steepest_descent_images_are_the_derivatives_of_a_moved_image(
    kind: str, dimension: int, oblique_grid: Make
) -> None:
    grid = oblique_grid(dimension)
    value, image = quadratic(grid)
    index = torch.nonzero(interior(grid)).flatten()[::37]
    points = grid.points(index, torch.float64)
    columns = columns_of(image, None, index, Columns("steepest_descent", kind)).values
    expected = derivatives(kind, grid, points, value)
    assert expected.abs().amax(1).min() > 0.05
    torch.testing.assert_close(columns[1:], expected, rtol=0, atol=1e-9)
    # And by finite differences, which know no chain rule.
    transform, step = linear_transform(kind)(grid), 1e-4
    vector = torch.nn.utils.parameters_to_vector(transform.parameters()).detach()
    for number in range(vector.numel()):
        ends = []
        for sign in (1, -1):
            moved = vector.clone()
            moved[number] = sign * step
            torch.nn.utils.vector_to_parameters(moved, transform.parameters())
            ends.append(value(transform(points).detach()))
        torch.testing.assert_close(columns[1 + number], (ends[0] - ends[1]) / (2 * step), rtol=0, atol=1e-6)


def test_steepest_descent_images_of_a_level_refer_to_the_full_grids_transform(kind: str, pair: Make) -> None:
    """Centre and radius of a coarse grid are not those of the full one."""
    images = pair("rigid", 2, torch.float64)
    full, level = images.fixed.grid, Level(3, 0.0)
    value, _ = quadratic(full)
    coarse = images.fixed.at_level(level).grid
    assert not torch.equal(coarse.centre, full.centre)
    image = Image(value(coarse.points(dtype=torch.float64)).reshape(1, *coarse.shape), coarse)
    columns = columns_of(image, None, None, Columns("steepest_descent", kind), full).values
    inside = interior(coarse)
    expected = derivatives(kind, full, coarse.points(dtype=torch.float64), value)
    torch.testing.assert_close(columns[1:, inside], expected[:, inside], rtol=0, atol=1e-9)
    operand = ClearFixed(images.fixed).operand(OperandRequest(level, columns=Columns("steepest_descent", kind)))
    at_level = columns_of(images.fixed.at_level(level), None, None, Columns("steepest_descent", kind), full)
    assert isinstance(operand, ClearOperand)
    assert torch.equal(operand.fixed.values, at_level.values)


def test_steepest_descent_images_of_a_phantom_converge(kind: str, dimension: int, phantom: Make) -> None:
    """Halving the voxels quarters the error of the central differences."""
    errors = []
    for voxels in (20, 40):
        grid = Grid((voxels,) * dimension, (40 / voxels,) * dimension)
        formula = phantom(Grid((40,) * dimension), 0)
        index = torch.nonzero(interior(grid)).flatten()[:: 5 if dimension == 2 else 197]
        columns = columns_of(formula.image(grid, dtype=torch.float64), None, index, Columns("steepest_descent", kind))
        points = grid.points(index, torch.float64)
        tracked = points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(formula(tracked).sum(), tracked)
        transform = linear_transform(kind)(grid)
        names = [name for name, _ in transform.named_parameters()]

        def moved(*parameters: Tensor, transform: Any = transform, names: Any = names, at: Any = points) -> Tensor:
            given = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(transform, given, (at,))

        zeros = tuple(torch.zeros_like(p) for p in transform.parameters())
        jacobian = torch.autograd.functional.jacobian(moved, zeros)
        parts = [torch.einsum("nd...,nd->n...", part, gradient).reshape(len(points), -1).T for part in jacobian]
        expected = torch.cat(parts)
        errors.append(float((columns.values[1:] - expected).norm() / expected.norm()))
    assert errors[0] < 0.15
    assert errors[1] < 0.3 * errors[0]


# --- integers


@every_kind
def test_columns_are_quantised_to_twelve_bits(columns: Columns, dimension: int, dtype: torch.dtype, pair: Make) -> None:
    fixed = columns_of(pair("rigid", dimension, dtype).fixed, None, None, columns)
    integers, scales = quantise_columns(fixed, columns)
    assert integers.dtype == torch.int64
    assert integers.shape == fixed.values.shape
    assert int(integers.abs().max()) == 2**11 - 1
    steps = torch.tensor(scales, dtype=torch.float64)[:, None]
    assert bool(((integers * steps - fixed.values.double()).abs() <= 0.5001 * steps).all())
    if columns.kind == "moments":
        assert set(scales) == {scales[0]}, "a scale of its own would say more about J"
    else:
        assert integers.abs().amax(1).tolist() == [2**11 - 1] * len(scales)


@pytest.mark.parametrize("kind", ["image", "moments"])
def test_columns_of_nothing_are_zeros(kind: Literal["image", "moments"]) -> None:
    integers, scales = quantise_columns(FixedColumns(torch.zeros(3, 7), 0.0, 0.0), Columns(kind))
    assert not integers.any()
    assert scales == (1.0, 1.0, 1.0)


# --- what a product says about J


@pytest.mark.parametrize("points", ["all", "some"])
@every_kind
def test_functionals_of_j_are_the_products(columns: Columns, points: str, dimension: int, pair: Make) -> None:
    """R[i] = F[i] . (J - offset); F is made without J."""
    images = pair("rigid", dimension, torch.float64)
    image = noise(images.fixed.grid)
    grid = image.grid
    index = None if points == "all" else Permuted(1).draw(grid.count, 0).index[: grid.count // 3]  # type: ignore[index]
    fixed = columns_of(image, None, index, columns)
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(3, fixed.values.shape[1], generator=generator, dtype=torch.float64)
    pairs = all_pairs(3, len(fixed.values))
    pairs = [pairs[n] for n in torch.randperm(len(pairs), generator=generator)[: max(3, len(pairs) // 2)]]
    said = functionals(rows, pairs, columns, grid, index)
    centred = image.tensor.flatten() - fixed.offset
    known = centred if said.shape[1] == grid.count else centred[index]
    expected = torch.stack([rows[row] @ fixed.values[column] for row, column in pairs])
    torch.testing.assert_close(said @ known, expected, rtol=1e-9, atol=1e-6)


def test_normalised_coordinates_of_some_points(dimension: int, dtype: torch.dtype, oblique_grid: Make) -> None:
    grid = oblique_grid(dimension)
    like = torch.empty(0, dtype=dtype)
    whole = homogeneous(grid, None, like)
    assert whole.shape == (1 + dimension, grid.count)
    assert whole.dtype == dtype
    assert float(whole.abs().max()) == pytest.approx(1, abs=1e-5)
    corners = whole[1:, [0, grid.count - 1]]
    torch.testing.assert_close(corners, torch.tensor([[-1.0, 1.0]] * dimension, dtype=dtype), rtol=0, atol=1e-5)
    some = torch.tensor([17, 3, 3])
    assert torch.equal(homogeneous(grid, some, like), whole[:, some])


def test_a_part_of_a_sample_is_the_sample_of_the_parts_points() -> None:
    sample = Sample(torch.tensor([40, 10, 30, 20]), None)
    part = sample.at(torch.tensor([1, 3]), torch.tensor([0.5, 0.25]))
    assert part.index is not None
    assert part.positions is not None
    assert part.weights is not None
    assert (part.index.tolist(), part.positions.tolist(), part.weights.tolist()) == ([10, 20], [1, 3], [0.5, 0.25])
    whole = Sample(None, None).at(torch.tensor([1, 3]), None)
    assert whole.index is not None
    assert whole.index.tolist() == [1, 3]
    assert replace(part, positions=None).at(torch.tensor([0]), None).index.tolist() == [10]
