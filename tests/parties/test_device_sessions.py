"""Private runs whose parties hold their images on a device that is not the CPU: equal to those on the CPU.

Everything but the wire is on the device: features, columns, warp, rows, quantisation, products, ledger. bfv and ckks
compute their products on the CPU. The device is pretended (`tests/pretended_device.py`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from device_runs import DEFORMABLE, LEVELS, LINEAR, MEASURES, SAMPLERS, Make, assert_same_result, deformable
from joint.ends import private_fixed
from pretended_device import PRETENDED, copies_between_devices

from ppir_torch.images import Image
from ppir_torch.losses import Measure
from ppir_torch.optimizers import InverseCompositional, Stopping
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.registration import Plan, Result, register_images

PROTOCOLS = ("beaver", "spdz", "bfv", "ckks")
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
every_lattice = pytest.mark.parametrize("lattice", ["bspline", pytest.param("velocity", marks=pytest.mark.slow)])


def run(
    images: tuple[Image, Image],
    plan: Plan,
    protocol: str,
    device: str,
    masked: bool = False,
    with_ledger: bool = True,
) -> tuple[Result, list[dict[str, Any]]]:
    fixed, moving = (image.to(device) for image in images)
    mask = fixed.tensor[0] > fixed.tensor.median() if masked else None
    inverse = isinstance(plan.optimizer, InverseCompositional)
    party = FixedParty(fixed, mask, masked, inverse, measure=plan.loss)
    with private_fixed(protocol, party, device, with_ledger) as source:
        result = register_images(moving, source, plan)
    return result, source.ledger_rows()


def assert_equal_runs(
    images: tuple[Image, Image], plan: Plan, protocol: str, on_device: Measure | None = None, masked: bool = False
) -> None:
    there = plan if on_device is None else replace(plan, loss=on_device)
    (found, told), (wanted, due) = (
        run(images, there, protocol, PRETENDED, masked),
        run(images, plan, protocol, "cpu", masked),
    )
    assert_same_result(found, wanted)
    assert [entry["opened"] for entry in told] == [entry["opened"] for entry in due]
    for name in ("rank", "explained", "own", "beyond"):
        assert [entry[name] for entry in told] == pytest.approx([entry[name] for entry in due], abs=1e-9)


@every_protocol
def test_an_affine_run(protocol: str, dimension: int, small_pair: Make) -> None:
    assert_equal_runs(small_pair(dimension), LINEAR, protocol)


@pytest.mark.parametrize("loss", MEASURES)
def test_every_loss(loss: str, small_pair: Make) -> None:
    plan = replace(LINEAR, loss=MEASURES[loss](2, "cpu"))
    assert_equal_runs(small_pair(2), plan, "beaver", MEASURES[loss](2, PRETENDED))


@pytest.mark.parametrize("protocol", ["spdz", "bfv", "ckks"])
def test_mutual_information(protocol: str, small_pair: Make) -> None:
    plan = replace(LINEAR, levels=LEVELS[:1], loss=MEASURES["mi"](2, "cpu"))
    assert_equal_runs(small_pair(2), plan, protocol)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("protocol", ["beaver", "bfv"])
def test_every_sampler(protocol: str, sampler: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(2), replace(LINEAR, sampler=SAMPLERS[sampler]), protocol)


@every_protocol
def test_inverse_compositional(protocol: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(2), replace(LINEAR, optimizer=InverseCompositional()), protocol)


@every_protocol
def test_a_run_in_a_mask(protocol: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(2), replace(LINEAR, start="centre_of_mass"), protocol, masked=True)


@every_lattice
@every_protocol
def test_a_deformable_run(protocol: str, lattice: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(2), deformable(lattice), protocol)


def test_a_deformable_run_in_3d(small_pair: Make) -> None:
    assert_equal_runs(small_pair(3), DEFORMABLE, "beaver")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [loss for loss in MEASURES if loss != "mi"])
@every_lattice
def test_every_loss_deformed(lattice: str, loss: str, small_pair: Make) -> None:
    plan = replace(deformable(lattice), loss=MEASURES[loss](2, "cpu"))
    assert_equal_runs(small_pair(2), plan, "beaver", MEASURES[loss](2, PRETENDED))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "chunks"])
def test_every_sampler_deformed(sampler: str, small_pair: Make) -> None:
    assert_equal_runs(small_pair(2), replace(DEFORMABLE, sampler=SAMPLERS[sampler]), "beaver")


@pytest.mark.parametrize("plan", [LINEAR, DEFORMABLE], ids=["affine", "bspline"])
def test_of_rows_only_what_is_sent_leaves_the_device(plan: Plan, small_pair: Make, wide: Make) -> None:
    """With beaver, in an iteration: A comes to party_1's device, the masked words leave it and come to party_2's.

    (The ledger's sketches, at most 16,384 numbers of a row, are compared on the CPU.)
    """
    fixed, moving = small_pair(2)
    images = fixed, wide(moving, 20)  # all points map inside, and a level is one round
    points = fixed.at_level(LEVELS[0]).grid.count
    stage = plan.deformable and replace(plan.deformable, levels=LEVELS[:1])

    def long_copies(iterations: int) -> Counter[int]:
        stopping = Stopping(iterations, 0.0, 0.0)
        changed = stage and replace(stage, stopping=stopping)
        linear = plan.stopping if stage else stopping
        shorter = replace(plan, levels=LEVELS[:1], stopping=linear, deformable=changed)
        with copies_between_devices() as copies:
            run(images, shorter, "beaver", PRETENDED, with_ledger=False)
        return Counter(count for count in copies if count >= points)

    assert long_copies(4) - long_copies(3) == {3 * points: 3}
