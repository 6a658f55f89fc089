"""Clear runs on a device that is not the CPU: nothing is mixed, and the result is that of the CPU.

The device is pretended (`tests/pretended_device.py`): values are computed by the CPU, and so they are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pretended_device import PRETENDED, copies_between_devices
from torch import nn

from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.losses import (
    Correlation,
    LocalCorrelation,
    Measure,
    Mind,
    ModuleFeatures,
    MutualInformation,
    SquaredDifference,
)
from ppir_torch.optimizers import LBFGS, Adam, InverseCompositional, Stopping
from ppir_torch.registration import ClearFixed, Deformable, Plan, Result, register_images
from ppir_torch.sampling import Chunks, GradientMagnitude, Uniform
from ppir_torch.transforms import LinearTransform

LEVELS = (Level(2, 1.0), Level(1, 0.0))
LINEAR = Plan(levels=LEVELS, stopping=Stopping(max_iterations=3))
DEFORMABLE = replace(
    LINEAR,
    stopping=Stopping(max_iterations=2),
    deformable=Deformable(spacing_mm=12.0, levels=LEVELS, stopping=Stopping(max_iterations=2)),
)


def deformable(kind: str, regulariser: str = "bending") -> Plan:
    assert DEFORMABLE.deformable is not None
    stage = replace(DEFORMABLE.deformable, kind=kind, regulariser=regulariser)
    return replace(DEFORMABLE, deformable=stage)


def network(dimension: int, device: str) -> ModuleFeatures:
    """Three fixed filters, as a network would have."""
    weights = torch.linspace(-1, 1, 3 * 3**dimension).reshape(3, 1, *(3,) * dimension)
    module = (nn.Conv2d if dimension == 2 else nn.Conv3d)(1, 3, 3, padding=1, bias=False)
    module.weight = nn.Parameter(weights)
    return ModuleFeatures(module.to(device).eval(), 3)


MEASURES: dict[str, Callable[[int, str], Measure]] = {
    "ssd": lambda *_: SquaredDifference(),
    "ncc": lambda *_: Correlation(),
    "local_ncc": lambda *_: LocalCorrelation(),
    "mind": lambda *_: Mind(radius=1),
    "module": network,
    "mi": lambda *_: MutualInformation(8, 6),
}
SAMPLERS = {
    "urs": Uniform(0.4, 3),
    "chunks": Chunks(0.4, 3),
    "gms": GradientMagnitude(0.4, 3),
    "gms, told": GradientMagnitude(0.4, 3, disclose_points=True),
}
OPTIMIZERS = {"lbfgs": LBFGS(), "inverse_compositional": InverseCompositional(), "adam": Adam()}


Make = Callable[[int], tuple[Image, Image]]


@pytest.fixture(scope="module")
def small_pair(phantom: Callable[..., Any], random_transform: Callable[..., LinearTransform]) -> Make:
    """Factory: (fixed, moving) of few voxels."""

    def make(dimension: int) -> tuple[Image, Image]:
        grid = Grid((20, 18, 16)[:dimension], (1.5, 1.75, 2.0)[:dimension])
        c, s = math.cos(0.2), math.sin(0.2)
        turn = (c, s, s, -c) if dimension == 2 else (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, -1.0)
        content, truth = phantom(grid), random_transform("affine", grid, 1.0)
        # About the same place, on turned axes.
        other = Grid(grid.size, grid.spacing, (0.0,) * dimension, turn)
        other = replace(other, origin=tuple((grid.centre - other.centre).tolist()))
        return content.image(grid), content.image(other, before=truth.inverse())

    return make


def run(images: tuple[Image, Image], plan: Plan, device: str) -> Result:
    fixed, moving = (image.to(device) for image in images)
    return register_images(moving, ClearFixed(fixed), plan)


def assert_equal_runs(images: tuple[Image, Image], plan: Plan, on_device: Plan | None = None) -> None:
    wanted, found = run(images, plan, "cpu"), run(images, on_device or plan, PRETENDED)
    assert found.complete, found.error
    assert found.warped.tensor.device.type == "pretended"
    assert [h.iteration.accepted for h in found.history] == [h.iteration.accepted for h in wanted.history]
    values = [[h.iteration.value for h in result.history] for result in (found, wanted)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert torch.allclose(found.warped.tensor.cpu(), wanted.warped.tensor, rtol=1e-6, atol=1e-5)
    for ours, theirs in zip(found.transform.parameters(), wanted.transform.parameters(), strict=True):
        assert ours.device.type == "cpu"
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_every_linear_transform(kind: str, dimension: int, small_pair: Make) -> None:
    assert_equal_runs(small_pair(dimension), replace(LINEAR, transform=kind))


@pytest.mark.parametrize("loss", MEASURES)
def test_every_loss(loss: str, dimension: int, small_pair: Make) -> None:
    make = MEASURES[loss]
    plan, on_device = (replace(LINEAR, loss=make(dimension, device)) for device in ("cpu", PRETENDED))
    assert_equal_runs(small_pair(dimension), plan, on_device)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler: str, dimension: int, small_pair: Make) -> None:
    assert_equal_runs(small_pair(dimension), replace(LINEAR, sampler=SAMPLERS[sampler]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer: str, dimension: int, small_pair: Make) -> None:
    assert_equal_runs(small_pair(dimension), replace(LINEAR, optimizer=OPTIMIZERS[optimizer]))


@pytest.mark.parametrize("regulariser", ["bending", "diffusion", "elastic"])
@pytest.mark.parametrize("lattice", ["bspline", "velocity"])
def test_every_lattice_transform(lattice: str, regulariser: str, dimension: int, small_pair: Make) -> None:
    assert_equal_runs(small_pair(dimension), deformable(lattice, regulariser))


@pytest.mark.parametrize("loss", [loss for loss in MEASURES if loss != "mi"])
@pytest.mark.parametrize("lattice", ["bspline", "velocity"])
def test_every_loss_deformed(lattice: str, loss: str, small_pair: Make) -> None:
    make = MEASURES[loss]
    plan, on_device = (replace(deformable(lattice), loss=make(2, device)) for device in ("cpu", PRETENDED))
    assert_equal_runs(small_pair(2), plan, on_device)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "chunks"])
@pytest.mark.parametrize("lattice", ["bspline", "velocity"])
def test_every_sampler_deformed(lattice: str, sampler: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(2), replace(deformable(lattice), sampler=SAMPLERS[sampler]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_deformed(optimizer: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(2), replace(DEFORMABLE, optimizer=OPTIMIZERS[optimizer]))


@pytest.mark.parametrize("plan", [LINEAR, DEFORMABLE, deformable("velocity")], ids=["affine", "bspline", "velocity"])
def test_what_a_run_copies_from_device_to_device_does_not_grow_with_its_iterations(
    plan: Plan, small_pair: Make
) -> None:
    """An iteration copies parameters and sums; values at points are copied once a level."""
    images = small_pair(3)
    points = images[0].at_level(LEVELS[0]).grid.count

    def large_copies(iterations: int) -> list[int]:
        stage = plan.deformable and replace(plan.deformable, stopping=Stopping(iterations, 0.0, 0.0))
        with copies_between_devices() as copies:
            run(images, replace(plan, stopping=Stopping(iterations, 0.0, 0.0), deformable=stage), PRETENDED)
        return [count for count in copies if count >= points]

    assert large_copies(2) == large_copies(4) != []
