"""What a run discloses follows from the entries of what is chosen: there is a line of everything that can be chosen."""

from __future__ import annotations

from typing import Any

import pytest

from ppir_torch.config.images import RunConfig, load_config
from ppir_torch.config.losses import LOSSES
from ppir_torch.config.optimizers import OPTIMIZERS
from ppir_torch.config.points import load_points_config
from ppir_torch.config.protocols import PROTOCOLS
from ppir_torch.config.samplers import SAMPLERS
from ppir_torch.runs.disclosed import disclosed_of_images, disclosed_of_points


def config(**more: Any) -> RunConfig:
    data = {"moving": "a.nii.gz", "fixed": "b.nii.gz"}
    return load_config({"data": data, "backend": {"kind": "bfv"}} | more)


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_says_what_it_discloses(name: str) -> None:
    lines = disclosed_of_images(config(loss={"kind": name}))["party_1"]
    assert set(LOSSES[name].discloses) <= set(lines)
    assert all(lines)


@pytest.mark.parametrize("name", [name for name in PROTOCOLS.names() if not PROTOCOLS[name].insecure])
def test_every_protocol_says_what_it_discloses(name: str) -> None:
    entry = PROTOCOLS[name]
    lines = disclosed_of_images(config(backend={"kind": name}))
    assert entry.party_1_learns in lines["party_1"]
    assert entry.party_2_learns in lines["party_2"]
    if entry.points:
        points = load_points_config({"moving": "a.csv", "fixed": "b.csv", "backend": {"kind": name}})
        assert entry.party_2_learns in disclosed_of_points(points)["party_2"]


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_says_what_it_discloses(name: str) -> None:
    lines = disclosed_of_images(config(sampler={"kind": name}))
    for party in ("party_1", "party_2"):
        assert lines[party][-1].startswith(f"from sampler {name}: ")
        assert len(lines[party][-1]) > len(f"from sampler {name}: ")


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_says_what_it_discloses(name: str) -> None:
    lines = disclosed_of_images(config(optimizer={"kind": name}))["party_1"]
    assert set(OPTIMIZERS[name].discloses) <= set(lines)


def test_a_clear_run_discloses_everything() -> None:
    assert disclosed_of_images(config(backend={"kind": "clear"}))["party_2"] == ["everything"]
    points = load_points_config({"moving": "a.csv", "fixed": "b.csv", "backend": {"kind": "clear"}})
    assert disclosed_of_points(points)["party_2"] == ["everything"]
