"""The correlation ratio, in clear: NumPy's least squares, SciPy's B-splines and autograd are the oracles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from losses.contrasts import FULL, REMAPS, off, operand_of
from numpy.typing import NDArray
from scipy.interpolate import BSpline as SciPySpline
from torch import Tensor, nn

from ppir_torch.errors import ConfigError, ImageError
from ppir_torch.images import Image, Level
from ppir_torch.joint.columns import Columns
from ppir_torch.losses import CR, CorrelationRatio, Smoothness
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.overlap import content, weights_at
from ppir_torch.registration import ClearFixed, Deformable, OperandRequest, Plan, register_images
from ppir_torch.sampling import Chunks, Full, GradientMagnitude, Uniform
from ppir_torch.transforms import BSpline, ControlLattice, linear_transform
from ppir_torch.transforms.smoothness import Regulariser
from ppir_torch.warping import sample

Make = Callable[..., Any]
Array = NDArray[np.float64]
LEVELS = (Level(2, 1.0), FULL)
STRAIGHT, LEAST = 1e-5, 1e-10  # what the module says of itself
every_sampler = pytest.mark.parametrize("sampler", ["full", "urs", "chunks", "gms"])


def loss_of(images: Any, sampler: str = "full", windows: int = 16, columns: str = "image") -> CR:
    """Over all points, some of them (URS), a window of a public order (chunks), or points with weights (GMS)."""
    measure = CorrelationRatio(windows)
    operand = operand_of(images.fixed, sampler, measure, Columns(columns), 0.2)  # type: ignore[arg-type]
    loss = measure.loss(operand)
    assert isinstance(loss, CR)
    return loss


def normalised_fixed(loss: CR, images: Any) -> Tensor:
    """J^ at the points in use: over a public sample's own, or all of the grid's where party_2 does not know them."""
    everywhere, index = images.fixed.tensor.double().flatten(), loss.operand.sample.index
    at = everywhere if index is None else everywhere[index]
    over = at if loss.operand.sample.known else everywhere
    return (at - over.mean()) / over.std(unbiased=False)


def windows_of(values: Tensor, moving: Image, count: int) -> Tensor:
    """(count, n) cubic B-splines by their two polynomials, with autograd's graph."""
    low, high = float(moving.tensor.min()), float(moving.tensor.max())
    away = (1 + (values - low) / (high - low) * (count - 3) - torch.arange(count).to(values)[:, None]).abs()
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away).clamp(min=0) ** 3 / 6
    made: Tensor = torch.where(away < 1, near, far)
    return made


def dense_value(loss: CR, images: Any, transform: nn.Module, count: int) -> Tensor:
    """The penalised least squares written out, with autograd's graph through everything."""
    points = images.fixed.grid.points(loss.operand.sample.index, torch.float64)
    u = windows_of(sample(images.moving, transform(points)), images.moving, count)
    j, weights = normalised_fixed(loss, images), loss.operand.sample.weights
    w = torch.full_like(j, 1 / len(j)) if weights is None else weights.double() / weights.double().sum()
    second = torch.eye(count, dtype=torch.float64).diff(n=2, dim=0)
    penalty = STRAIGHT * second.T @ second + LEAST * torch.eye(count, dtype=torch.float64)
    c = torch.linalg.solve((u * w) @ u.T + penalty, (u * w) @ j)
    mean_square = j.square().mean() if loss.operand.sample.known else torch.tensor(1.0).double()
    value: Tensor = mean_square - 2 * c @ ((u * w) @ j) + (w * (c @ u) ** 2).sum() + c @ penalty @ c
    return value


# --- value


@pytest.mark.parametrize("windows", [4, 16, 33])
@every_sampler
def test_value_is_the_residual_of_a_spline_regression(sampler: str, windows: int, dimension: int, pair: Make) -> None:
    """By SciPy's basis and NumPy's least squares, the penalty as rows of their own."""
    images = pair("affine", dimension, torch.float64)
    transform, loss = off("affine", images), loss_of(images, sampler, windows)
    points = images.fixed.grid.points(loss.operand.sample.index, torch.float64)
    warped, j = sample(images.moving, transform(points)).detach().numpy(), normalised_fixed(loss, images).numpy()
    low, high = float(images.moving.tensor.min()), float(images.moving.tensor.max())
    cubic = SciPySpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    place = 1 + (warped - low) / (high - low) * (windows - 3)
    u = np.nan_to_num(cubic(place[:, None] - np.arange(windows)))
    weights = loss.operand.sample.weights
    w = np.full(len(j), 1 / len(j)) if weights is None else weights.double().numpy() / float(weights.double().sum())
    rows = [
        np.sqrt(w)[:, None] * u,
        np.sqrt(STRAIGHT) * np.diff(np.eye(windows), 2, 0),
        np.sqrt(LEAST) * np.eye(windows),
    ]
    stacked, wanted = np.concatenate(rows), np.zeros(len(j) + 2 * windows - 2)
    wanted[: len(j)] = np.sqrt(w) * j
    c = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    known = float((w * j**2).sum())
    expected = float(((stacked @ c - wanted) ** 2).sum()) - known + (known if loss.operand.sample.known else 1.0)
    assert loss.linearise(transform, images.moving).value == pytest.approx(expected, abs=1e-9)
    with torch.no_grad():
        assert loss(transform, images.moving).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("remap", ["as it is", "brighter", "inverted"])
def test_a_straight_function_of_the_moving_image_is_explained_wholly(
    remap: str, dimension: int, dtype: torch.dtype, pair: Make
) -> None:
    images, measure = pair("affine", dimension, dtype), CorrelationRatio()
    fixed = Image(REMAPS[remap](images.moving.tensor), images.moving.grid)
    loss = measure.loss(ClearFixed(fixed).operand(OperandRequest(FULL, measure=measure)))
    at = loss.linearise(linear_transform("affine")(fixed.grid), images.moving)
    assert abs(at.value) < (1e-6 if dtype == torch.float32 else 1e-7)
    assert float(at.gradient.abs().max()) < 1e-6


def test_it_is_one_less_the_share_of_variance_between_bins(pair: Make) -> None:
    """Roche's definition: with as many windows as intensities, the means in each of them."""
    images, measure = pair("affine", 2, torch.float64), CorrelationRatio(64)
    labels = (images.moving.tensor * 5 / float(images.moving.tensor.max())).round()
    moving = Image(labels, images.moving.grid)
    noise = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fixed = Image(torch.tensor([3.0, -1, 7, 2, 11, 5]).double()[labels.long()] + 4 * noise, moving.grid)
    loss = measure.loss(ClearFixed(fixed).operand(OperandRequest(FULL, measure=measure)))
    with torch.no_grad():
        found = loss(linear_transform("affine")(fixed.grid), moving).item()
    j, classes = fixed.tensor.flatten(), labels.flatten()
    within = sum(float((j[classes == k] - j[classes == k].mean()).square().sum()) for k in range(6))
    assert found == pytest.approx(within / float((j - j.mean()).square().sum()), rel=2e-3)


# --- gradient and Hessian


@every_sampler
def test_gradient_is_autograds_through_the_regression(sampler: str, kind: str, dimension: int, pair: Make) -> None:
    """All of it: how the spline's coefficients change with the transform, too."""
    images = pair("affine", dimension, torch.float64)
    transform, loss = off(kind, images), loss_of(images, sampler)
    value = dense_value(loss, images, transform, 16)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(transform.parameters()))])
    assert float(expected.norm()) > 1e-4
    at = loss.linearise(transform, images.moving)
    assert at.value == pytest.approx(value.item(), abs=1e-9)
    torch.testing.assert_close(at.gradient, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))
    without = loss.linearise(transform, images.moving, with_hessian=False)
    assert torch.equal(without.gradient, at.gradient)
    assert without.hessian.numel() == 0


@pytest.mark.parametrize("columns", ["image", "moments"])
def test_gradient_passes_torchs_check(columns: str, dimension: int, pair: Make) -> None:
    """By central differences of the loss itself, through `loss(transform, moving)`."""
    images = pair("affine", dimension, torch.float64)
    transform, loss = off("affine", images), loss_of(images, "full", columns=columns)
    size = float(loss.linearise(transform, images.moving).gradient.abs().max())
    # Points that pass a voxel's border within the step see another slope.
    assert torch.autograd.gradcheck(
        lambda *_: loss(transform, images.moving), tuple(transform.parameters()), eps=1e-6, atol=1e-3 * size, rtol=1e-3
    )


@every_sampler
def test_moments_and_rows_give_the_same_linearisation(sampler: str, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension, torch.float64)
    transform = off("affine", images)
    by_rows, by_moments = (
        loss_of(images, sampler, columns=kind).linearise(transform, images.moving) for kind in ("image", "moments")
    )
    assert by_moments.value == pytest.approx(by_rows.value, abs=1e-12)
    torch.testing.assert_close(by_moments.gradient, by_rows.gradient, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(by_moments.hessian, by_rows.hessian, rtol=1e-8, atol=1e-10)


@every_sampler
def test_hessian_is_kaufmans(sampler: str, dimension: int, pair: Make) -> None:
    """2 S_f^T (1 - U (U^T U + P)^-1 U^T) S_f by dense matrices, S_f the derivative of f(I) with f held."""
    images, count = pair("affine", dimension, torch.float64), 12
    transform, loss = off("affine", images), loss_of(images, sampler, count)
    points = images.fixed.grid.points(loss.operand.sample.index, torch.float64)
    names = [name for name, _ in transform.named_parameters()]

    def moved(*parameters: Tensor) -> Any:
        return torch.func.functional_call(transform, dict(zip(names, parameters, strict=True)), (points,))

    parts = torch.func.jacfwd(moved, tuple(range(len(names))))(*(p.detach() for p in transform.parameters()))
    places = moved(*transform.parameters()).detach().requires_grad_()
    u = windows_of(sample(images.moving, places), images.moving, count)
    j, weights = normalised_fixed(loss, images), loss.operand.sample.weights
    w = torch.full_like(j, 1 / len(j)) if weights is None else weights.double() / weights.double().sum()
    second = torch.eye(count, dtype=torch.float64).diff(n=2, dim=0)
    normal = (u * w) @ u.T + STRAIGHT * second.T @ second + LEAST * torch.eye(count, dtype=torch.float64)
    c = torch.linalg.solve(normal, (u * w) @ j).detach()
    (slope,) = torch.autograd.grad((c @ u).sum(), places)
    u, normal = u.detach(), normal.detach()
    s = torch.cat([torch.einsum("nd...,nd->n...", part, slope).reshape(len(points), -1) for part in parts], 1)
    along = (u * w) @ s
    expected = 2 * ((s * w[:, None]).T @ s - along.T @ torch.linalg.solve(normal, along))
    found = loss.linearise(transform, images.moving).hessian
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))
    assert float(torch.linalg.eigvalsh(found).min()) >= -1e-12 * float(found.abs().max())


@pytest.mark.parametrize("columns", ["image", "moments"])
def test_over_an_overlap_it_is_the_share_of_what_varies_there(columns: str, dimension: int, pair: Make) -> None:
    """Points count by weights that party_1 alone knows: the definition over them, and its gradient by autograd."""
    images, count = pair("affine", dimension, torch.float64), 12
    measure, grid = CorrelationRatio(count), images.fixed.grid
    transform = off("affine", images)
    with torch.no_grad():
        transform.translation += 0.2 * grid.spacing[0] * grid.size[0]
    points = grid.points(dtype=torch.float64)
    weights = weights_at(content(images.moving.grid, images.moving.tensor), transform(points)).detach()
    assert 0.2 < float(weights.mean()) < 0.95
    request = OperandRequest(FULL, columns=Columns(columns, squares=True), measure=measure)  # type: ignore[arg-type]
    loss = measure.loss(ClearFixed(images.fixed).operand(request).within(weights))
    w, j = weights / weights.sum(), images.fixed.tensor.flatten()
    j = (j - (w * j).sum()) / (w * (j - (w * j).sum()) ** 2).sum().sqrt()
    u = windows_of(sample(images.moving, transform(points), outside=None), images.moving, count)
    second = torch.eye(count, dtype=torch.float64).diff(n=2, dim=0)
    normal = (u * w) @ u.T + STRAIGHT * second.T @ second + LEAST * torch.eye(count, dtype=torch.float64)
    value = 1 - ((u * w) @ j) @ torch.linalg.solve(normal, (u * w) @ j)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(transform.parameters()))])
    at = loss.linearise(transform, images.moving)
    assert at.value == pytest.approx(value.item(), abs=1e-6)
    inside = float((at.gradient - expected).norm() / expected.norm())
    assert inside < 0.02  # where the border's values are continued autograd's slope is another one
    with torch.no_grad():
        assert loss(transform, images.moving).item() == pytest.approx(at.value, abs=1e-12)


# --- control lattices


def lattice_loss(images: Any, sampler: str = "full", size_mm: float = 0.5) -> tuple[Any, BSpline, Any]:
    """(the loss, its lattice off zero, the operand)."""
    grid, measure = images.fixed.grid, CorrelationRatio(12)
    part = BSpline(ControlLattice(grid, 12.0 if grid.dimension == 2 else 20.0))
    noise = torch.randn(part.coefficients.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    part.coefficients.data.copy_(size_mm * noise)
    outer = linear_transform("translation")(grid)
    outer.translation.data.copy_(images.moving.grid.centre - grid.centre)
    choice = Uniform(0.6, 2) if sampler == "urs" else Full()
    request = OperandRequest(FULL, choice, lattice=part.lattice, measure=measure, rows_beside=measure.rows_beside())
    operand = ClearFixed(images.fixed).operand(request)
    lattice = part.lattice
    smooth = Regulariser.of("bending", lattice.size, lattice.control_spacing, grid.direction)
    return measure.deformable_loss(operand, part, outer, Smoothness(smooth, 0.3)), part, operand


@pytest.mark.parametrize("sampler", ["full", "urs"])
def test_a_lattices_gradient_is_autograds(sampler: str, dimension: int, pair: Make) -> None:
    """Its rows are float32, so close to some 1e-4."""
    images = pair("affine", dimension, torch.float64)
    loss, part, operand = lattice_loss(images, sampler)
    grid = images.fixed.grid
    points = grid.points(operand.sample.index, torch.float64)
    u = windows_of(sample(images.moving, loss.outer(part(points))), images.moving, 12)
    fixed = (
        images.fixed.tensor.flatten()
        if operand.sample.index is None
        else images.fixed.tensor.flatten()[operand.sample.index]
    )
    j = (fixed - fixed.mean()) / fixed.std(unbiased=False)
    second = torch.eye(12, dtype=torch.float64).diff(n=2, dim=0)
    normal = u @ u.T / len(j) + STRAIGHT * second.T @ second + LEAST * torch.eye(12, dtype=torch.float64)
    along = u @ j / len(j)
    value = 1 - along @ torch.linalg.solve(normal, along)
    value = value + loss.smoothness.weight * loss.smoothness.regulariser.value(part.coefficients)
    (expected,) = torch.autograd.grad(value, part.coefficients)
    at = loss.linearise(images.moving)
    assert at.value == pytest.approx(value.item(), rel=1e-4)
    assert float((at.gradient - expected.flatten()).norm()) < 3e-3 * float(expected.norm())


def test_a_lattices_hessian_is_positive_and_symmetric(dimension: int, pair: Make) -> None:
    loss, part, _ = lattice_loss(pair("affine", dimension))
    at = loss.linearise(pair("affine", dimension).moving)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(part.coefficients.numel(), generator=generator, dtype=torch.float64) for _ in range(2))
    assert float(a @ at.apply(b)) == pytest.approx(float(b @ at.apply(a)), rel=1e-4)
    assert at.curvature(a) > 0


# --- registration


@pytest.mark.parametrize("remap", REMAPS)
def test_a_turn_is_found_whatever_the_contrast(remap: str, dimension: int, pair: Make) -> None:
    images = pair("rigid", dimension)
    fixed, points = Image(REMAPS[remap](images.fixed.tensor), images.fixed.grid), foreground_points(images.fixed)
    found = register_images(images.moving, ClearFixed(fixed), Plan("rigid", LEVELS, loss=CorrelationRatio()))
    assert (found.loss, found.complete) == ("cr", True)
    assert displacement_rmse(found.transform, images.truth, points) < (0.25 if remap == "curved" else 0.05)


@pytest.mark.parametrize("remap", ["as it is", "inverted", "folded"])
def test_an_affine_map_is_found_whatever_the_contrast(remap: str, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    fixed, points = Image(REMAPS[remap](images.fixed.tensor), images.fixed.grid), foreground_points(images.fixed)
    found = register_images(images.moving, ClearFixed(fixed), Plan("affine", LEVELS, loss=CorrelationRatio()))
    assert displacement_rmse(found.transform, images.truth, points) < (0.6 if remap == "folded" else 0.15)


@pytest.mark.parametrize(
    "sampler", [Uniform(0.5, 3), Chunks(0.5, 3), GradientMagnitude(0.5, 3)], ids=lambda s: s.entry.name
)
def test_every_sampler_goes_with_it(sampler: Any, pair: Make) -> None:
    images = pair("rigid", 2)
    fixed, points = Image(REMAPS["inverted"](images.fixed.tensor), images.fixed.grid), foreground_points(images.fixed)
    found = register_images(images.moving, ClearFixed(fixed), Plan("rigid", LEVELS, sampler, loss=CorrelationRatio()))
    assert displacement_rmse(found.transform, images.truth, points) < 0.15


@pytest.mark.parametrize("kind", ["bspline", "velocity"])
def test_a_deformation_is_found_in_another_contrast(kind: str, pair: Make) -> None:
    """What a translation leaves of an affine map."""
    images = pair("affine", 2, size_mm=3.0)
    fixed, points = Image(REMAPS["folded"](images.fixed.tensor), images.fixed.grid), foreground_points(images.fixed)
    plan = Plan("translation", LEVELS, loss=CorrelationRatio())
    before = displacement_rmse(register_images(images.moving, ClearFixed(fixed), plan).transform, images.truth, points)
    plan = replace(plan, deformable=Deformable(kind, 10.0, weight=0.1, levels=LEVELS))
    found = register_images(images.moving, ClearFixed(fixed), plan)
    assert displacement_rmse(found.transform, images.truth, points) < 0.6 * before


# --- refusals and edges


def test_a_flat_warped_image_explains_nothing(pair: Make) -> None:
    images, transform = pair("affine", 2), linear_transform("affine")(pair("affine", 2).fixed.grid)
    transform.translation.data += 1e4
    at = loss_of(images).linearise(transform, images.moving)
    assert at.value == pytest.approx(1, abs=1e-6)
    assert not at.gradient.any()
    assert not at.hessian.any()
    loss, part, _ = lattice_loss(images)
    part.coefficients.data += 1e4
    assert not loss.linearise(images.moving).diagonal.isnan().any()


def test_what_it_cannot_take_is_one_line(pair: Make) -> None:
    images = pair("affine", 2)
    transform, loss = off("affine", images), loss_of(images)
    flat = Image(torch.full_like(images.moving.tensor, 7.0), images.moving.grid)
    with pytest.raises(ImageError, match=r"^moving image: constant at this level, its correlation ratio [^\n]*$"):
        loss(transform, flat)
    for windows in (-1, 3, 65):
        with pytest.raises(ConfigError, match=rf"^windows: {windows}, 4 to 64 are needed$"):
            CorrelationRatio(windows)
    inverse = ClearFixed(images.fixed).operand(OperandRequest(FULL, columns=Columns("steepest_descent", "rigid")))
    with pytest.raises(ConfigError, match=r"^cr: an operand of the image is needed, not of 'steepest_descent'$"):
        CR(inverse, 16)


def test_what_the_measure_says_of_itself(dimension: int) -> None:
    measure = CorrelationRatio(20)
    assert json.loads(json.dumps(measure.to_meta())) == measure.to_meta() == {"kind": "cr", "windows": 20}
    assert (measure.most_rows(dimension), measure.rows_beside(), measure.normalised) == (20, 20, True)
    assert (measure.channels(dimension), measure.deforms, measure.kind) == (1, True, "cr")
