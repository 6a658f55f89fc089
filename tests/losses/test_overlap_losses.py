"""Losses over an overlap: numpy's weighted moments and autograd through grid_sample are the oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint.ends import private_fixed
from torch import Tensor

from ppir_torch.config.losses import LOSSES
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.columns import Columns, columns_of
from ppir_torch.joint.quantise import quantise_columns
from ppir_torch.losses import Correlation, Measure, Smoothness, SquaredCorrelation, SquaredDifference
from ppir_torch.overlap import content, weights_at
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.transforms import BSpline, ControlLattice
from ppir_torch.transforms.smoothness import Regulariser
from ppir_torch.warping import sample

Make = Callable[..., Any]
FULL = Level(1, 0.0)
MEASURES = [SquaredDifference(), Correlation(), SquaredCorrelation()]


def expected(measure: Measure, warped: Tensor, fixed: Tensor, weights: Tensor) -> Tensor:
    """The loss by its definition, of values (n,) float64 that count by weights (n,)."""
    share = weights / weights.sum()
    if measure.kind == "ssd":
        return (share * (warped - fixed) ** 2).sum()
    one, two = (values - (share * values).sum() for values in (warped, fixed))
    covariance = (share * one * two).sum()
    squared = covariance**2 / ((share * one**2).sum() * (share * two**2).sum())
    return 1 - squared if measure.kind == "ncc_squared" else 1 - squared.sqrt() * covariance.sign()


def warped_by(transform: torch.nn.Module, moving: Image, points: Tensor) -> Tensor:
    """I(T(x)), differentiable by the transform's parameters, border values beyond the border."""
    matrix, offset = moving.grid.physical_to_normalised()
    where = transform(points) @ matrix.T + offset
    shaped = where.reshape(1, *[1] * (moving.grid.dimension - 1), -1, moving.grid.dimension)
    return F.grid_sample(moving.tensor[None].double(), shaped, padding_mode="border", align_corners=True).flatten()


def partly(images: Any, random_transform: Make, kind: str = "affine") -> tuple[Any, Tensor]:
    """A transform that takes some fixed points out of the moving image, and the weights there."""
    transform = random_transform(kind, images.fixed.grid, 3.0, seed=4)
    weights = weights_at(
        content(images.moving.grid, images.moving.tensor),
        transform(images.fixed.grid.points(dtype=torch.float64)).detach(),
    )
    assert 0.3 < float(weights.mean()) < 0.95
    return transform, weights


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind)
@pytest.mark.parametrize("columns", ["image", "moments"])
def test_value_and_gradient_are_those_of_the_definition(
    measure: Measure, columns: str, dimension: int, pair: Make, random_transform: Make
) -> None:
    images = pair("affine", dimension, torch.float64)
    transform, weights = partly(images, random_transform)
    asked = OperandRequest(FULL, columns=Columns(columns, squares=True), measure=measure)
    operand = ClearFixed(images.fixed).operand(asked).within(weights)
    at = measure.loss(operand).linearise(transform, images.moving)
    points = images.fixed.grid.points(dtype=torch.float64)
    truth = expected(measure, warped_by(transform, images.moving, points), images.fixed.tensor.flatten(), weights)
    gradient = torch.autograd.grad(truth, list(transform.parameters()))
    assert at.value == pytest.approx(truth.item(), rel=1e-9)
    assert torch.allclose(at.gradient, torch.cat([g.flatten() for g in gradient]), rtol=1e-6, atol=1e-9)
    assert torch.linalg.eigvalsh(at.hessian).min() > -1e-9


def test_the_correlation_is_numpys_over_the_weights(dimension: int, pair: Make, random_transform: Make) -> None:
    images = pair("affine", dimension, torch.float64)
    transform, weights = partly(images, random_transform)
    fixed = ClearFixed(images.fixed)
    asked = OperandRequest(FULL, columns=Columns("image", squares=True), measure=Correlation())
    value = Correlation().loss(fixed.operand(asked).within(weights)).linearise(transform, images.moving).value
    warped = sample(images.moving, transform(images.fixed.grid.points(dtype=torch.float64)).detach())
    counted = (weights > 0).numpy()
    table = np.cov(
        warped.numpy()[counted], images.fixed.tensor.flatten().numpy()[counted], aweights=weights.numpy()[counted]
    )
    assert value == pytest.approx(1 - table[0, 1] / np.sqrt(table[0, 0] * table[1, 1]), abs=2e-2)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind)
def test_a_control_lattice_has_the_same_gradient(measure: Measure, pair: Make, random_transform: Make) -> None:
    images = pair("affine", 2, torch.float64)
    outer, weights = partly(images, random_transform)
    lattice = ControlLattice(images.fixed.grid, 20.0)
    part = BSpline(lattice)
    with torch.no_grad():
        part.coefficients.copy_(torch.randn(part.coefficients.shape, generator=torch.Generator().manual_seed(3)))
    regulariser = Regulariser.of("bending", lattice.size, lattice.control_spacing, lattice.grid.direction)
    asked = OperandRequest(FULL, rows=3, lattice=lattice, measure=measure)
    operand = ClearFixed(images.fixed).operand(asked).within(weights)
    at = measure.deformable_loss(operand, part, outer, Smoothness(regulariser, 0.0)).linearise(images.moving)
    points, fixed = images.fixed.grid.points(dtype=torch.float64), images.fixed.tensor.flatten()
    warped = warped_by(lambda x: outer(part(x)), images.moving, points)  # type: ignore[arg-type]
    share = weights / weights.sum()
    # J's variance over the overlap is not opened: the correlation is told up to that factor.
    level = fixed.std(unbiased=False)
    truth = expected(measure, warped, fixed, weights)
    if measure.kind != "ssd":
        inside = (share * (fixed - (share * fixed).sum()) ** 2).sum().sqrt() / level
        correlation = (1 - truth) * inside if measure.kind == "ncc" else (1 - truth) * inside**2
        truth = 1 - correlation
        assert at.value == pytest.approx(truth.item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(truth, part.coefficients)
    error = (at.gradient - gradient.flatten()).norm() / gradient.norm()
    assert error < 2e-3  # points of float32 fall on other sides of voxels, where the slopes of linear pieces jump


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind)
@pytest.mark.parametrize("protocol", ["beaver", "bfv", "spdz", "ckks"])
def test_a_private_operand_says_the_same(measure: Measure, protocol: str, pair: Make, random_transform: Make) -> None:
    images = pair("affine", 2, torch.float32)
    transform, weights = partly(images, random_transform)
    for columns in ("image", "moments"):
        asked = OperandRequest(FULL, columns=Columns(columns, squares=True), measure=measure)
        clear = measure.loss(ClearFixed(images.fixed).operand(asked).within(weights.float()))
        truth = clear.linearise(transform, images.moving)
        with private_fixed(protocol, FixedParty(images.fixed, measure=measure)) as source:
            operand = source.operand(asked).within(weights.float())
            at = measure.loss(operand).linearise(transform, images.moving)
            opened = source.ledger_rows()[-1]["opened"]
        scale = 1.0 if measure.kind != "ssd" else float(images.fixed.tensor.var())
        assert at.value == pytest.approx(truth.value, abs=2e-4 * scale)
        assert (at.gradient - truth.gradient).norm() < 2e-3 * truth.gradient.norm() + 1e-5 * scale
        # The gradient and the warped image, J's mean and its square's: two numbers more than over all points.
        assert opened == 2 + 1 + 6


def test_every_measure_of_the_registry_takes_an_overlap(pair: Make, random_transform: Make) -> None:
    images = pair("affine", 2)
    transform, weights = partly(images, random_transform)
    for entry in LOSSES:
        measure = entry.make(entry.settings(kind=entry.name))
        columns = measure.columns()
        asked = OperandRequest(FULL, rows=measure.most_rows(2), columns=columns, measure=measure)
        fixed = ClearFixed(images.fixed).operand(asked).within(weights.float())
        features = measure.features(images.moving, images.fixed.grid)
        at = measure.loss(fixed).linearise(transform, features)
        assert torch.isfinite(at.gradient).all(), entry.name
        # What lies outside does not matter: other values there change nothing.
        assert at.gradient.norm() > 0, entry.name


@pytest.mark.parametrize("bits", [8, 12])
def test_squares_of_the_integers_sum_to_a_few_steps_whatever_the_background(bits: int) -> None:
    """Python's integers are the oracle; a background of one value, the hardest case for rounding."""
    generator = torch.Generator().manual_seed(0)
    values = torch.where(torch.rand(5000, generator=generator) < 0.7, 1.0, 0.0).double()
    values[2000:2600] = 100 * torch.randn(600, generator=generator, dtype=torch.float64)
    fixed = columns_of(Image(values.reshape(1, 50, 100), Grid((100, 50))), None, None, Columns("image", squares=True))
    integers, scales = quantise_columns(fixed, Columns("image", squares=True), bits)
    weights = torch.linspace(0, 1, 5000, dtype=torch.float64)
    exact = sum(w * int(q) ** 2 for w, q in zip(weights.tolist(), integers[0].tolist(), strict=True))
    found = float(integers[1].double() @ weights) * scales[1] / scales[0] ** 2
    assert abs(found - exact) <= 3 * 2 ** (bits - 1)
    assert int(integers[1].min()) >= 0
    assert int(integers.abs().max()) < 2 ** (bits - 1)
