"""The preset for pairs of people: a turned head, larger displacements, another scale of brightness that drifts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppir_torch.config.compose import compose
from ppir_torch.config.images import load_config
from ppir_torch.grids import Grid
from ppir_torch.images import Image
from ppir_torch.metrics.registration import displacement_rmse, folding_share, foreground_points, jacobian_determinant
from ppir_torch.registration import ClearFixed, Plan, register_images
from ppir_torch.registration.build import build_plan
from ppir_torch.transforms import BSpline, Composite, ControlLattice, affine_from_map

GRID = Grid((120, 104), (2.0, 2.0))


def head(points: Tensor) -> Tensor:
    """An ellipse of 150 x 180 mm on 0, with texture of 6 to 12 mm."""
    generator = torch.Generator().manual_seed(3)
    where = points - GRID.centre
    radius = (where / torch.tensor([90.0, 75.0], dtype=torch.float64)).norm(dim=1)
    blobs = (torch.rand(80, 2, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor([160.0, 130.0])
    widths = 6 + 6 * torch.rand(80, generator=generator, dtype=torch.float64)
    heights = 60 * torch.randn(80, generator=generator, dtype=torch.float64)
    texture = torch.exp(-torch.cdist(where, blobs).square() / (2 * widths**2)) @ heights
    return torch.sigmoid((1 - radius) * 60) * (150 + texture).clamp(min=20)


@pytest.fixture(scope="module")
def pair() -> tuple[Image, Image, Composite]:
    """(fixed, moving, truth): the moving image has a third of the brightness, and drifts by a seventh of that."""
    turn = math.radians(18)
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    outer = affine_from_map(GRID, 0.94 * matrix, GRID.centre - 0.94 * matrix @ GRID.centre + 4)
    bend = BSpline(ControlLattice(GRID, 30.0))
    generator = torch.Generator().manual_seed(8)
    bend.coefficients.data.copy_(4 * torch.randn(bend.coefficients.shape, generator=generator, dtype=torch.float64))
    truth = Composite([bend, outer])
    points = GRID.points(dtype=torch.float64)
    with torch.no_grad():
        fixed = head(truth(points))
    moving = head(points) * 0.33 * (1 + 0.15 * torch.sin(points[:, 0] / 40))
    return *(Image(values.float().reshape(1, *GRID.shape), GRID) for values in (fixed, moving)), truth  # type: ignore[return-value]


def planned(*overrides: str) -> Plan:
    data = ["data.moving=m.nii.gz", "data.fixed=f.nii.gz", "backend=clear"]
    return build_plan(load_config(compose([*data, *overrides])), GRID)


def test_the_preset_finds_what_the_defaults_lose(pair: tuple[Image, Image, Composite]) -> None:
    fixed, moving, truth = pair
    wanted = planned("experiment=between_subjects")
    plans = wanted, replace(wanted, deformable=None), planned("transform=bspline", "loss=ssd")
    runs = [register_images(moving, ClearFixed(fixed), one) for one in plans]
    preset, affine, plain = (displacement_rmse(r.transform, truth, foreground_points(fixed)) for r in runs)
    assert preset < 0.8 * affine
    assert plain > 5 * affine  # it makes the brighter image's equal by folding the darker
    assert [folding_share(jacobian_determinant(r.transform, GRID)) for r in runs[:2]] == [0.0, 0.0]
