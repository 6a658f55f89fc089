"""Clear runs on a device that is not the CPU: nothing is mixed, and the result is that of the CPU.

The device is pretended (`tests/pretended_device.py`): values are computed by the CPU, and so they are the same.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from device_runs import (
    DEFORMABLE,
    LEVELS,
    LINEAR,
    MEASURES,
    OPTIMIZERS,
    SAMPLERS,
    Make,
    assert_same_result,
    deformable,
)
from pretended_device import PRETENDED, copies_between_devices

from ppir_torch.images import Image
from ppir_torch.optimizers import Stopping
from ppir_torch.registration import ClearFixed, Plan, Result, register_images


def run(images: tuple[Image, Image], plan: Plan, device: str) -> Result:
    fixed, moving = (image.to(device) for image in images)
    return register_images(moving, ClearFixed(fixed), plan)


def assert_equal_runs(images: tuple[Image, Image], plan: Plan, on_device: Plan | None = None) -> None:
    assert_same_result(run(images, on_device or plan, PRETENDED), run(images, plan, "cpu"))


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
def test_every_lattice_transform(lattice: str, regulariser: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(2), deformable(lattice, regulariser))


@pytest.mark.parametrize("lattice", ["bspline", "velocity"])
def test_every_lattice_transform_in_3d(lattice: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(3), deformable(lattice, "diffusion"))


@pytest.mark.parametrize("loss", [loss for loss in MEASURES if loss != "mi"])
@pytest.mark.parametrize("lattice", ["bspline", pytest.param("velocity", marks=pytest.mark.slow)])
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
    plan: Plan, small_pair: Make, wide: Make
) -> None:
    """An iteration copies parameters and sums; values at points are copied once a level (and a round of it)."""
    fixed, moving = small_pair(2)
    images = fixed, wide(moving, 20)  # all points map inside, and a level is one round
    points = fixed.at_level(LEVELS[0]).grid.count

    def large_copies(iterations: int) -> list[int]:
        stage = plan.deformable and replace(plan.deformable, stopping=Stopping(iterations, 0.0, 0.0))
        with copies_between_devices() as copies:
            run(images, replace(plan, stopping=Stopping(iterations, 0.0, 0.0), deformable=stage), PRETENDED)
        return [count for count in copies if count >= points]

    few, more = large_copies(2), large_copies(4)
    if plan.deformable is not None and plan.deformable.kind == "velocity":
        # Whether points still map inside is asked of the flow, which a step that was kept has made anew.
        assert 0 < len(more) <= len(few) + 2 * 2 * len(LEVELS)
    else:
        assert few == more != []
