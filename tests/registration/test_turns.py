"""A start that is tried from turns: which turns there are, and what they find that a single start does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation

from ppir_torch.grids import Grid
from ppir_torch.images import Image
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.registration import ClearFixed, Plan, register_images
from ppir_torch.registration.turns import best_turn, turns_of
from ppir_torch.transforms import Affine, Rigid, Translation, linear_transform


@pytest.mark.parametrize("degrees", [0.0, 20.0, 45.0, 90.0, 180.0])
def test_no_rotation_is_far_from_a_turn(degrees: float) -> None:
    turns = Rotation.from_matrix(torch.stack(turns_of(3, degrees)).numpy())
    assert turns[0].magnitude() == 0
    axes = torch.randn(300, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    angles = torch.rand(300, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * math.radians(degrees)
    for one in Rotation.from_rotvec((axes / axes.norm(dim=1, keepdim=True) * angles).numpy()):
        away = math.degrees((turns * one.inv()).magnitude().min())
        assert away < (32 if degrees <= 45 else 70)


def test_turns_of_the_plane_are_to_either_side() -> None:
    angles = [math.degrees(math.atan2(t[1, 0], t[0, 0])) for t in turns_of(2, 90.0)]
    assert angles == pytest.approx([0, 35, -35, 75, -75])


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_the_best_turn_is_taken_about_where_the_centre_goes(kind: str) -> None:
    grid = Grid((20, 24, 28), (2.0, 1.0, 1.5))
    start = linear_transform(kind)(grid)
    start.translation.data += torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
    seen: list[torch.Tensor] = []

    def fit(candidate: Any) -> float:
        seen.append(candidate.affine_map()[0].detach())
        torch.testing.assert_close(candidate(grid.centre[None]), start(grid.centre[None]))
        return abs(len(seen) - 4.0)

    found, tried = best_turn(start, 45.0, fit)
    assert tried == len(seen) == 15
    torch.testing.assert_close(torch.stack(seen), torch.stack(turns_of(3, 45.0)))
    torch.testing.assert_close(found.affine_map()[0].detach(), seen[3])
    torch.testing.assert_close(start.affine_map()[0].detach(), torch.eye(3, dtype=torch.float64))


def test_a_translation_has_no_turns_and_a_lost_one_is_not_taken() -> None:
    grid = Grid((20, 20))
    assert best_turn(Translation(grid), 90.0, lambda _: 1.0)[1] == 1
    start = Rigid(grid)
    assert best_turn(start, 90.0, lambda _: math.inf)[0] is start


def head(grid: Grid, turn: float, phantom: Callable[[torch.Tensor], torch.Tensor]) -> Image:
    c, s = math.cos(turn), math.sin(turn)
    where = (grid.points(dtype=torch.float64) - grid.centre) @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    return Image(phantom(where).float().reshape(1, *grid.shape), grid)


def test_turns_find_what_a_single_start_loses() -> None:
    """A long and uneven body, turned nearly about."""
    generator = torch.Generator().manual_seed(4)
    blobs = (torch.rand(40, 2, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor([90.0, 30.0])
    heights = torch.rand(40, generator=generator, dtype=torch.float64)

    def body(points: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.cdist(points, blobs).square() / 40) @ heights

    grid, turn = Grid((128, 128)), math.radians(150)
    fixed, moving = head(grid, turn, body), head(grid, 0.0, body)
    c, s = math.cos(turn), math.sin(turn)
    truth = Affine(grid)
    matrix = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    truth.set_affine_map(matrix, grid.centre - matrix @ grid.centre)
    plan = Plan(transform="rigid")
    errors = []
    for degrees in (0.0, 180.0):
        found = register_images(moving, ClearFixed(fixed), replace(plan, turns=degrees))
        errors.append(displacement_rmse(found.transform, truth, foreground_points(fixed)))
    assert errors[0] > 5
    assert errors[1] < 0.1
