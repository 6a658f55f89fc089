"""SSD of a control lattice: autograd through grid_sample, finite differences and dense matrices are the oracles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from joint.ends import private_fixed
from torch import Tensor

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.operands import ClearOperand, Operand
from ppir_torch.losses import DeformableSSD, Smoothness
from ppir_torch.losses.linearisation import OperatorLinearisation
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.registration.request import map_of
from ppir_torch.sampling import Full, Sample, Uniform
from ppir_torch.transforms import BSpline, ControlLattice, LinearTransform, VelocityField
from ppir_torch.transforms.smoothness import Regulariser

Make = Callable[..., Any]
FULL = Level(1, 0.0)
KINDS = ("bending", "diffusion", "elastic")
# Rows are float32; the phantoms are so smooth that the slopes to both sides of a voxel's centre are much alike.
CLOSE = 1e-4
Module = BSpline | VelocityField


def grid_of(dimension: int, shift: float = 0.0, times: int = 1) -> Grid:
    """Small, turned out of the axes, voxels that are no cubes; a lattice's domain ends beyond it."""
    c, s = 0.8, 0.6
    size = tuple(times * n for n in ((18, 14) if dimension == 2 else (12, 10, 8)))
    if dimension == 2:
        return Grid(size, (1.5, 2.0), (40.0 + shift, -30.0), (c, s, s, -c))
    return Grid(size, (1.5, 1.75, 2.0), (40.0 + shift, -30.0, 8.0), (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, -1.0))


@dataclass
class Problem:
    """Two smooth images, a transform off the identity, and an affine map that stays as it is."""

    fixed: Image
    moving: Image
    part: Module
    outer: LinearTransform
    smoothness: Smoothness

    def loss(self, operand: Operand | None = None) -> DeformableSSD:
        return DeformableSSD(operand or self.operand(), self.part, self.outer, self.smoothness)

    def operand(self, choice: Full | Uniform | Sample | None = None, level: Level = FULL) -> Operand:
        return ClearFixed(self.fixed).operand(OperandRequest(level, choice or Full(), lattice=self.part.lattice))

    def linearise(self) -> OperatorLinearisation:
        return self.loss().linearise(self.moving)


@pytest.fixture
def problem(dimension: int, phantom: Make, random_transform: Make) -> Callable[..., Problem]:
    def make(
        kind: type[Module] = BSpline,
        size_mm: float = 1.0,
        voxels: float = 4.0,
        weight: float = 0.3,
        regulariser: str = "bending",
        dtype: torch.dtype = torch.float64,
        channels: int = 1,
        times: int = 1,
    ) -> Problem:
        grid, other = grid_of(dimension, times=times), grid_of(dimension, 1.0, times)
        images = [phantom(grid, seed=n) for n in range(channels)]
        outer = random_transform("affine", grid, 0.5)
        truth = random_transform("affine", grid, 1.5, seed=2)
        moved = [p.image(other, before=truth, dtype=dtype).tensor for p in images]
        part = kind(ControlLattice(grid, tuple(voxels * s for s in grid.spacing)))
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(part.coefficients.shape, generator=generator, dtype=torch.float64)
        part.coefficients.data.copy_(size_mm * noise)
        lattice = part.lattice
        smooth = Regulariser.of(regulariser, lattice.size, lattice.control_spacing, grid.direction)
        return Problem(
            Image(torch.cat([p.image(grid, dtype=dtype).tensor for p in images]), grid),
            Image(torch.cat(moved), other),
            part,
            outer,
            Smoothness(smooth, weight),
        )

    return make


def warped_values(moving: Image, mapped: Tensor) -> Tensor:
    """I (C, N) at mapped points through torch's grid_sample, float64, differentiable in the points."""
    matrix, origin = moving.grid.index_to_physical()
    index = torch.linalg.solve(matrix, (mapped - origin).T).T
    normalised = 2 * index / (torch.tensor(moving.grid.size).double() - 1) - 1
    d = mapped.shape[1]
    where = normalised.reshape(1, *([1] * (d - 1)), -1, d)
    outside = torch.stack([Image(c[None], moving.grid).outside * torch.ones(1) for c in moving.tensor]).double()
    volume = moving.tensor.double() - outside.reshape(-1, *([1] * d))
    return F.grid_sample(volume[None], where, align_corners=True).reshape(len(moving.tensor), -1) + outside


def residual(problem: Problem, index: Tensor | None = None) -> Tensor:
    """I(T(x)) - J(x), (C, n), by the module's own forward; differentiable."""
    points = problem.fixed.grid.points(index, torch.float64)
    if isinstance(problem.part, BSpline):
        moved = problem.part(points)
    else:
        moved = points + problem.part.displacement(problem.fixed.grid)[slice(None) if index is None else index]
    fixed = problem.fixed.tensor.double().flatten(1)
    return warped_values(problem.moving, problem.outer(moved)) - (fixed if index is None else fixed[:, index])


def independent_value(problem: Problem, index: Tensor | None = None) -> Tensor:
    """The definition: mean squares, and alpha R(c) with alpha relative to the variance of the points in use."""
    fixed = problem.fixed.tensor.double().flatten(1)
    used = fixed if index is None else fixed[:, index]
    variance = (used - fixed.mean()).square().mean()
    smooth = problem.smoothness
    value = residual(problem, index).square().mean()
    return value + smooth.weight * variance * smooth.regulariser.value(problem.part.coefficients)


def autograd_gradient(problem: Problem, index: Tensor | None = None) -> Tensor:
    (result,) = torch.autograd.grad(independent_value(problem, index), problem.part.coefficients)
    return result.flatten()


def off_by(found: Tensor, expected: Tensor) -> float:
    """The length of the difference as a share of that of what is expected."""
    return float((found - expected).norm() / expected.norm())


def brute_force_hessian(problem: Problem, index: Tensor | None = None) -> Tensor:
    """2/n S^T S + alpha R'', S the derivative of the residual by every coefficient: a chain of dense matrices."""
    part, d = problem.part, problem.fixed.grid.dimension
    assert isinstance(part, BSpline)
    points = problem.fixed.grid.points(index, torch.float64)
    here, units = part.coefficients.detach().clone(), torch.eye(part.lattice.count, dtype=torch.float64)
    with torch.no_grad():
        moved = part(points)
        bases = []  # the basis has the same values for every component
        for unit in units:
            part.coefficients.copy_(unit.reshape(1, *part.lattice.shape).expand_as(here))
            bases.append((part(points) - points)[:, 0])
        part.coefficients.copy_(here)
    basis = torch.stack(bases, 1)
    moved.requires_grad_(True)
    values = warped_values(problem.moving, problem.outer(moved))
    slopes = [torch.autograd.grad(channel.sum(), moved, retain_graph=True)[0] for channel in values]
    s = torch.cat([torch.cat([slope[:, i, None] * basis for i in range(d)], 1) for slope in slopes])
    fixed = problem.fixed.tensor.double().flatten(1)
    used = fixed if index is None else fixed[:, index]
    alpha = problem.smoothness.weight * (used - fixed.mean()).square().mean()
    apply = problem.smoothness.regulariser.apply
    hessian = 2 / len(s) * s.T @ s
    if float(alpha) > 0:
        smooth = [apply(u.reshape(here.shape)).flatten() for u in torch.eye(here.numel(), dtype=torch.float64)]
        hessian = hessian + alpha * torch.stack(smooth)
    return hessian


def dense_of(at: OperatorLinearisation) -> Tensor:
    return torch.stack([at.apply(unit) for unit in torch.eye(len(at.gradient), dtype=torch.float64)], 1)


def check_hessian(at: OperatorLinearisation, expected: Tensor) -> None:
    """Along the gradient and along random directions, and its diagonal."""
    generator = torch.Generator().manual_seed(0)
    for vector in (at.gradient, *torch.randn(3, len(at.gradient), generator=generator, dtype=torch.float64)):
        assert off_by(at.apply(vector), expected @ vector) < CLOSE
    assert off_by(at.diagonal, expected.diagonal()) < CLOSE


# --- value and gradient


@pytest.mark.parametrize("regulariser", KINDS)
def test_value_and_gradient_are_those_of_autograd(
    regulariser: str, dtype: torch.dtype, problem: Callable[..., Problem]
) -> None:
    """Of mean squares through grid_sample and the B-spline's own forward, and of the regulariser's value."""
    given = problem(regulariser=regulariser, dtype=dtype)
    at = given.linearise()
    assert at.gradient.dtype == torch.float64
    assert at.value == pytest.approx(float(independent_value(given).detach()), rel=CLOSE)
    assert off_by(at.gradient, autograd_gradient(given)) < CLOSE
    # The parts that the sum is made of are of a size that would be missed.
    smooth = at.value - problem(regulariser=regulariser, weight=0.0).linearise().value
    assert smooth > 0.005 * at.value


def test_gradient_is_the_slope_of_the_value(problem: Callable[..., Problem]) -> None:
    """Central differences along the gradient and along random directions; value and gradient are one function's."""
    given = problem()
    at, here = given.linearise(), given.part.coefficients.data.clone()
    generator = torch.Generator().manual_seed(0)
    directions = [at.gradient, *torch.randn(4, len(at.gradient), generator=generator, dtype=torch.float64)]
    for direction in directions:
        unit = direction / direction.norm()
        ends = []
        for sign in (1, -1):
            given.part.coefficients.data.copy_(here + sign * 0.02 * unit.reshape(here.shape))
            ends.append(given.linearise().value)
        slope = (ends[0] - ends[1]) / 0.04
        assert slope == pytest.approx(float(at.gradient @ unit), abs=2e-3 * float(at.gradient.norm()))


@pytest.mark.parametrize("kind", [BSpline, VelocityField])
def test_at_rest_both_kinds_have_the_same_gradient(kind: type[Module], problem: Callable[..., Problem]) -> None:
    """exp(v) is x + v to first order."""
    given = problem(kind, size_mm=0.0)
    at = given.linearise()
    assert off_by(at.gradient, autograd_gradient(given)) < CLOSE
    other = problem(BSpline, size_mm=0.0).linearise()
    torch.testing.assert_close(at.gradient, other.gradient)
    assert at.value == pytest.approx(other.value)


@pytest.mark.parametrize(("size_mm", "tolerance"), [(0.1, 0.02), (0.5, 0.1)])
def test_a_velocity_fields_gradient_is_nearly_autograds(
    size_mm: float, tolerance: float, problem: Callable[..., Problem]
) -> None:
    """It is that of exp(v) after exp(w), w -> 0, not of exp(v + w): they differ by half a bracket [v, w].

    Control points 6 mm apart and more; the error grows with the slopes of v.
    """
    given = problem(VelocityField, size_mm=size_mm, weight=0.0)
    at = given.linearise()
    assert at.value == pytest.approx(float(independent_value(given).detach()), rel=1e-3)
    error = off_by(at.gradient, autograd_gradient(given))
    assert 0.1 * tolerance < error < tolerance


def test_rounded_weights_leave_a_gradient_that_is_nearly_autograds(problem: Callable[..., Problem]) -> None:
    """Control points 6 voxels apart have weights of 1/256; the same ones are used for I and for J."""
    given = problem(voxels=6.0, weight=0.0)
    operand = given.operand()
    assert isinstance(operand, ClearOperand)
    assert operand.public_map is not None
    assert operand.public_map.unit == 256.0 ** len(operand.grid.shape)
    error = off_by(given.linearise().gradient, autograd_gradient(given))
    assert 1e-5 < error < 0.01
    # At the truth nothing is left: the rounding is of the small difference, not of two large sums.
    same = Problem(given.fixed, given.fixed, given.part, type(given.outer)(given.fixed.grid), given.smoothness)
    same.part.coefficients.data.zero_()
    assert float(same.linearise().gradient.abs().max()) < 1e-5 * float(given.linearise().gradient.abs().max())


def test_smoothness_is_relative_to_the_fixed_images_variance(problem: Callable[..., Problem]) -> None:
    """Value, gradient and Hessian scale with the square of the intensities, so that a weight serves any unit."""
    one, other = problem(), problem()
    other.fixed, other.moving = (Image(1024 * image.tensor, image.grid) for image in (other.fixed, other.moving))
    a, b = one.linearise(), other.linearise()
    assert b.value == pytest.approx(1024**2 * a.value, rel=1e-9)
    torch.testing.assert_close(b.gradient, 1024**2 * a.gradient, rtol=1e-9, atol=0)
    torch.testing.assert_close(b.diagonal, 1024**2 * a.diagonal, rtol=1e-9, atol=0)
    torch.testing.assert_close(b.apply(a.gradient), 1024**2 * a.apply(a.gradient), rtol=1e-5, atol=0)


def test_the_lattices_matrices_are_the_modules_own_map_up_to_the_far_border(dimension: int) -> None:
    """Whatever the loss minimises at the grid's voxels is what the module does to them afterwards."""
    size = (17, 13, 9)[:dimension]
    turned = Grid(size, (1.5,) * dimension, direction=grid_of(dimension).direction)
    part = BSpline(ControlLattice(turned, 6.0))  # ends at the last voxel of each axis
    torch.nn.init.ones_(part.coefficients)
    points = turned.points(dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(part(points), points + part.displacement(turned))


# --- Hessian


@pytest.mark.parametrize("regulariser", KINDS)
def test_hessian_is_that_of_brute_force(regulariser: str, problem: Callable[..., Problem]) -> None:
    given = problem(regulariser=regulariser, voxels=12.0)
    at, expected = given.linearise(), brute_force_hessian(given)
    hessian = dense_of(at)
    assert off_by(hessian, expected) < CLOSE
    assert off_by(at.diagonal, expected.diagonal()) < CLOSE
    assert off_by(hessian, hessian.T) < 1e-6
    torch.testing.assert_close(at.diagonal, hessian.diagonal(), rtol=1e-5, atol=1e-7 * float(at.diagonal.max()))
    largest = float(torch.linalg.eigvalsh(expected)[-1])
    assert float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[0]) > -1e-6 * largest
    assert at.curvature(at.gradient) == pytest.approx(float(at.gradient @ expected @ at.gradient), rel=1e-3)


@pytest.mark.parametrize("kind", [BSpline, VelocityField])
@pytest.mark.parametrize("choice", [Full(), Uniform(0.4, 3)], ids=["all", "URS"])
def test_hessian_is_symmetric_and_positive_semi_definite(
    choice: Full | Uniform, kind: type[Module], problem: Callable[..., Problem]
) -> None:
    """With and without smoothness; its diagonal is its own."""
    for weight in (0.0, 0.3):
        given = problem(kind, size_mm=2.0, weight=weight, voxels=6.0)
        at = given.loss(given.operand(choice)).linearise(given.moving)
        hessian = dense_of(at)
        assert off_by(hessian, hessian.T) < 1e-6
        eigenvalues = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
        assert float(eigenvalues[0]) > -1e-6 * float(eigenvalues[-1])
        torch.testing.assert_close(at.diagonal, hessian.diagonal(), rtol=1e-5, atol=1e-7 * float(at.diagonal.max()))
        assert bool((at.diagonal >= 0).all())


def test_a_gauss_newton_step_lowers_the_value_as_predicted(problem: Callable[..., Problem]) -> None:
    """Value, gradient and Hessian are of one scale: of a quadratic model they say what happens."""
    given = problem(size_mm=0.3)
    at = given.linearise()
    step = at.solve(0.1)
    expected = float(-at.gradient @ step) - 0.5 * at.curvature(step)
    given.part.coefficients.data.add_(step.reshape(given.part.coefficients.shape))
    assert at.value - given.linearise().value == pytest.approx(expected, rel=0.5)
    assert expected > 0.05 * at.value


# --- points and channels


def test_gradient_on_chosen_points_is_autograds_on_those_points(problem: Callable[..., Problem]) -> None:
    given = problem(voxels=5.0, weight=0.0)
    operand = given.operand(Uniform(0.4, 3))
    index = operand.sample.index
    assert index is not None
    at = given.loss(operand).linearise(given.moving)
    assert at.value == pytest.approx(float(independent_value(given, index).detach()), rel=CLOSE)
    assert off_by(at.gradient, autograd_gradient(given, index)) < CLOSE
    check_hessian(at, brute_force_hessian(given, index))


def test_a_uniform_sample_is_unbiased(problem: Callable[..., Problem]) -> None:
    """Over samples of equal size that together are all points, value, gradient and Hessian are those of all points."""
    given = problem(weight=0.0)
    whole, count = given.linearise(), given.fixed.grid.count
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = 6
    assert count % parts == 0
    samples = [part.sort().values for part in order.reshape(parts, -1)]
    found = [given.loss(given.operand(Sample(index, None))).linearise(given.moving) for index in samples]
    assert sum(at.value for at in found) / parts == pytest.approx(whole.value, rel=1e-6)
    assert off_by(torch.stack([at.gradient for at in found]).mean(0), whole.gradient) < 1e-5
    vector = whole.gradient
    assert off_by(torch.stack([at.apply(vector) for at in found]).mean(0), whole.apply(vector)) < 1e-5
    assert off_by(torch.stack([at.diagonal for at in found]).mean(0), whole.diagonal) < 1e-5
    assert off_by(found[0].gradient, whole.gradient) > 0.02, "one of them alone is another"


def test_points_in_several_chunks_are_all_points(
    problem: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem(channels=2)
    loss = channelled(given)
    whole = loss.linearise(given.moving)
    monkeypatch.setattr("ppir_torch.losses.deformable.CHUNK", 100)
    parts = loss.linearise(given.moving)
    assert parts.value == pytest.approx(whole.value, rel=1e-6)
    assert off_by(parts.gradient, whole.gradient) < 1e-6
    assert off_by(parts.apply(whole.gradient), whole.apply(whole.gradient)) < 1e-6


def channelled(given: Problem, index: Tensor | None = None) -> DeformableSSD:
    """The loss of a fixed image of several channels."""
    sample, channels = Sample(index, None), len(given.fixed.tensor)
    public_map = map_of(given.part.lattice, given.fixed.grid, sample, channels)
    return given.loss(ClearOperand.of(given.fixed, None, sample, public_map=public_map))


@pytest.mark.parametrize("sampled", [False, True], ids=["all", "URS"])
def test_channels_are_averaged(sampled: bool, problem: Callable[..., Problem]) -> None:
    given = problem(channels=3, voxels=5.0, weight=0.0)
    index = Uniform(0.4, 3).draw(given.fixed.grid.count, 0).index if sampled else None
    at = channelled(given, index).linearise(given.moving)
    assert at.value == pytest.approx(float(independent_value(given, index).detach()), rel=CLOSE)
    assert off_by(at.gradient, autograd_gradient(given, index)) < CLOSE
    check_hessian(at, brute_force_hessian(given, index))


def test_another_number_of_channels_is_refused(problem: Callable[..., Problem]) -> None:
    given = problem(channels=2)
    for wrong in (given.moving.tensor[:1], given.moving.tensor.repeat(2, *[1] * given.moving.grid.dimension)):
        with pytest.raises(ImageError, match="channels, the operand has 2"):
            channelled(given).linearise(Image(wrong, given.moving.grid))


def test_a_level_compares_the_smoothed_images_at_its_own_points(problem: Callable[..., Problem]) -> None:
    given, level = problem(weight=0.0, times=2), Level(2, 1.5)
    operand = given.operand(level=level)
    assert operand.grid != given.fixed.grid
    at = given.loss(operand).linearise(given.moving.at_level(level))
    fixed = given.fixed.at_level(level)
    assert operand.grid == fixed.grid
    given.moving = given.moving.at_level(level)
    with torch.no_grad():
        mapped = given.outer(given.part(fixed.grid.points(dtype=torch.float64)))
    expected = (warped_values(given.moving, mapped) - fixed.tensor.flatten(1)).square().mean()
    assert at.value == pytest.approx(float(expected), rel=CLOSE)
    given.fixed = fixed
    assert off_by(at.gradient, autograd_gradient(given)) < CLOSE


# --- behind a protocol


@pytest.mark.parametrize("choice", [Full(), Uniform(0.4, 3)], ids=["all", "URS"])
@pytest.mark.parametrize("kind", [BSpline, VelocityField])
def test_a_private_operand_gives_the_clear_gradient(
    kind: type[Module], choice: Full | Uniform, problem: Callable[..., Problem]
) -> None:
    """J has 12 bits and the rows 11: a share of the gradient of less than 1 %. The Hessian is party_1's alone."""
    given = problem(kind, size_mm=0.3)
    clear = given.loss(given.operand(choice)).linearise(given.moving)
    with private_fixed("beaver", FixedParty(given.fixed)) as fixed:
        operand = fixed.operand(OperandRequest(FULL, choice, 0, 1 + fixed.grid.dimension, lattice=given.part.lattice))
        private = given.loss(operand).linearise(given.moving)
        [kept] = fixed.ledgers
        assert operand.public_map is not None
    assert private.value == pytest.approx(clear.value, rel=1e-3)
    assert off_by(private.gradient, clear.gradient) < 0.01
    # But for J's mean square, in 12 bits, by which smoothness is weighed.
    assert off_by(private.diagonal, clear.diagonal) < 2e-5
    assert off_by(private.apply(clear.gradient), clear.apply(clear.gradient)) < 2e-5
    assert kept.last is not None
    assert kept.last.opened == operand.public_map.results(1 + fixed.grid.dimension)
