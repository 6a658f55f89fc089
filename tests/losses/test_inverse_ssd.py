"""Inverse-compositional SSD: the same value as the SSD, derivatives by a step of the fixed image's coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.columns import IMAGE, Columns
from ppir_torch.losses import SSD, InverseSSD
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.sampling import Full, GradientMagnitude, Sample, Uniform
from ppir_torch.transforms import linear_transform
from ppir_torch.warping import sample

Make = Callable[..., Any]
FULL = Level(1, 0.0)


def columns(kind: str) -> Columns:
    return Columns("steepest_descent", kind)


def bowl(grid: Grid) -> tuple[Callable[[Tensor], Tensor], Image]:
    """J of degree two in the physical coordinates: its central differences are exact. The formula, and the image."""
    generator = torch.Generator().manual_seed(3)
    d = grid.dimension
    curvature = 20 * torch.randn(d, d, generator=generator, dtype=torch.float64) / grid.radius**2
    slope = torch.randn(d, generator=generator, dtype=torch.float64)

    def value(points: Tensor) -> Tensor:
        x = points - grid.centre
        return ((x @ curvature) * x).sum(-1) + x @ slope + 40

    return value, Image(value(grid.points(dtype=torch.float64)).reshape(1, *grid.shape), grid)


def interior(grid: Grid) -> Tensor:
    """Flat indices of the voxels that have neighbours on both sides along every axis."""
    inside = torch.zeros(grid.shape, dtype=torch.bool)
    inside[tuple(slice(1, -1) for _ in grid.shape)] = True
    return torch.nonzero(inside.flatten()).flatten()


@pytest.mark.parametrize("choice", [None, Uniform(0.3, 1), "mask"], ids=str)
def test_the_value_is_that_of_the_ssd(
    choice: Any, kind: str, dimension: int, dtype: torch.dtype, pair: Make, random_transform: Make
) -> None:
    images = pair(kind, dimension, dtype)
    mask = None
    if choice == "mask":
        mask, choice = images.fixed.tensor[0] > images.fixed.tensor.median(), None
    fixed = ClearFixed(images.fixed, mask)
    transform = random_transform(kind, images.fixed.grid)
    request = OperandRequest(FULL, choice or Full())
    inverse = InverseSSD(fixed.operand(replace(request, columns=columns(kind)))).linearise(transform, images.moving)
    forward = SSD(fixed.operand(request)).linearise(transform, images.moving)
    assert inverse.value == pytest.approx(forward.value, rel=1e-5 if dtype == torch.float32 else 1e-10)
    assert forward.value > 1
    assert inverse.nominal == forward.nominal == 0
    assert inverse.gradient.dtype == inverse.hessian.dtype == torch.float64


def test_gradient_and_hessian_are_those_of_a_moved_fixed_image(
    kind: str, dimension: int, pair: Make, random_transform: Make
) -> None:
    """By finite differences of dp -> mean (J(W(x; dp)) - I(T(x)))^2, J from its formula."""
    images = pair(kind, dimension, torch.float64)
    grid = images.fixed.grid
    formula, image = bowl(grid)
    index = interior(grid)[::7]
    points = grid.points(index, torch.float64)
    transform = random_transform(kind, grid)
    with torch.no_grad():
        warped = sample(images.moving, transform(points))
    step_transform = linear_transform(kind)(grid)
    count = sum(p.numel() for p in step_transform.parameters())

    def residual(step: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(step, step_transform.parameters())
        return formula(step_transform(points).detach()) - warped

    operand = ClearFixed(image).operand(OperandRequest(FULL, Sample(index, None), columns=columns(kind)))
    at = InverseSSD(operand).linearise(transform, images.moving)
    zero = torch.zeros(count, dtype=torch.float64)
    assert at.value == pytest.approx(float(residual(zero).square().mean()), rel=1e-10)
    size, steps = 1e-3, torch.eye(count, dtype=torch.float64)
    ends = [[residual(sign * size * step) for sign in (1, -1)] for step in steps]
    gradient = torch.stack([(a.square().mean() - b.square().mean()) / (2 * size) for a, b in ends])
    slopes = torch.stack([(a - b) / (2 * size) for a, b in ends])
    assert gradient.abs().min() > 1e-4 * gradient.abs().max()
    torch.testing.assert_close(at.gradient, gradient, rtol=0, atol=1e-6 * float(gradient.abs().max()))
    hessian = 2 * slopes @ slopes.T / len(points)
    torch.testing.assert_close(at.hessian, hessian, rtol=0, atol=1e-6 * float(hessian.abs().max()))


def test_the_gradient_does_not_depend_on_how_the_moving_image_is_differentiated(pair: Make) -> None:
    """Only its values are read: with nearest-voxel noise on I_w the gradient is still J's."""
    images = pair("rigid", 2, torch.float64)
    transform = linear_transform("rigid")(images.fixed.grid)
    operand = ClearFixed(images.fixed).operand(OperandRequest(FULL, columns=columns("rigid")))
    at = InverseSSD(operand).linearise(transform, images.moving)
    assert operand.gram is not None
    values = operand.fixed.values  # type: ignore[attr-defined]
    points = images.fixed.grid.points(dtype=torch.float64)
    with torch.no_grad():
        difference = values[0] + operand.offset - sample(images.moving, transform(points))
    torch.testing.assert_close(at.gradient, 2 * values[1:] @ difference / len(points))
    torch.testing.assert_close(at.hessian, 2 * values[1:] @ values[1:].T / len(points))


def test_one_row_meets_every_column(kind: str, dimension: int, pair: Make) -> None:
    images = pair(kind, dimension)
    operand = ClearFixed(images.fixed).operand(OperandRequest(FULL, columns=columns(kind)))
    asked: list[Any] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(operand, name)

        def multiply(self, rows: Tensor, pairs: Any) -> tuple[Tensor, Tensor]:
            asked.append((rows.shape, pairs))
            return operand.multiply(rows, pairs)

    loss = InverseSSD(Watched())  # type: ignore[arg-type]
    parameters = sum(p.numel() for p in images.truth.parameters())
    for _ in range(2):
        at = loss.linearise(images.truth, images.moving)
        assert at.gradient.shape == (parameters,)
        assert at.hessian.shape == (parameters, parameters)
    assert asked == 2 * [((1, images.fixed.grid.count), [(0, column) for column in range(parameters + 1)])]


def test_the_hessian_never_changes(pair: Make, random_transform: Make) -> None:
    images = pair("affine", 3)
    loss = InverseSSD(ClearFixed(images.fixed).operand(OperandRequest(FULL, columns=columns("affine"))))
    first, second = (
        loss.linearise(random_transform("affine", images.fixed.grid, seed=seed), images.moving) for seed in (1, 2)
    )
    assert torch.equal(first.hessian, second.hessian)
    assert not torch.equal(first.gradient, second.gradient)


def refused(operand: Any) -> None:
    with pytest.raises(ConfigError, match=r"inverse-compositional: .* known points is needed") as caught:
        InverseSSD(operand)
    assert "\n" not in str(caught.value)


def test_an_operand_of_points_that_party_2_does_not_know_is_refused(pair: Make) -> None:
    """S_J^T S_J and S_J^T J are over party_2's own points."""
    fixed = ClearFixed(pair("rigid", 2).fixed)
    operand = fixed.operand(OperandRequest(FULL, columns=columns("rigid")))
    chosen = GradientMagnitude(0.3, 1).draw(fixed.image.tensor.flatten(), 0)
    assert chosen.index is not None
    refused(operand.part(chosen.index, chosen.weights))
    refused(operand.part(torch.arange(50), None))
    refused(fixed.operand(OperandRequest(FULL, chosen, columns=columns("rigid"))))
    InverseSSD(operand)


@pytest.mark.parametrize("other", [IMAGE, Columns("moments")], ids=str)
def test_an_operand_of_other_columns_is_refused(other: Columns, pair: Make) -> None:
    refused(ClearFixed(pair("rigid", 2).fixed).operand(OperandRequest(FULL, columns=other)))
