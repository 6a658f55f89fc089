"""Small runs of every kind, and what a run on the pretended device is compared with: the same run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from ppir_torch.images import Image, Level
from ppir_torch.losses import (
    Correlation,
    CorrelationRatio,
    LocalCorrelation,
    Measure,
    Mind,
    ModuleFeatures,
    MutualInformation,
    SquaredDifference,
)
from ppir_torch.optimizers import LBFGS, Adam, InverseCompositional, Stopping
from ppir_torch.registration import Deformable, Plan, Result
from ppir_torch.sampling import Chunks, GradientMagnitude, Uniform

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
    "cr": lambda *_: CorrelationRatio(8),
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


def assert_same_result(found: Result, wanted: Result) -> None:
    """A run on the device ends where that on the CPU does; its transform lies on the CPU, its image on the device."""
    assert found.complete, found.error
    assert found.warped.tensor.device.type == "pretended"
    assert [h.iteration.accepted for h in found.history] == [h.iteration.accepted for h in wanted.history]
    values = [[h.iteration.value for h in result.history] for result in (found, wanted)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert torch.allclose(found.warped.tensor.cpu(), wanted.warped.tensor, rtol=1e-6, atol=1e-5)
    for ours, theirs in zip(found.transform.parameters(), wanted.transform.parameters(), strict=True):
        assert ours.device.type == "cpu"
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
