"""What is worked out a part at a time is what it is at once, wherever the parts begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppir_torch import grids, images, warping
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.metrics import registration
from ppir_torch.parties import budget


@pytest.fixture
def image(oblique_grid: Callable[..., Grid], dimension: int) -> Image:
    grid = oblique_grid(dimension)
    return Image(torch.rand(1, *grid.shape, generator=torch.Generator().manual_seed(3)) - 0.2, grid)


def both(monkeypatch: pytest.MonkeyPatch, parts: list[tuple[Any, str]], work: Callable[[], Any]) -> tuple[Any, Any]:
    """(at once, in parts of 50) of what the modules' constants of these names bound."""
    whole = work()
    for module, name in parts:
        monkeypatch.setattr(module, name, 50)
    return whole, work()


def test_points(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    index = torch.randperm(image.grid.count)[:123]

    def points() -> list[Tensor]:
        return [image.grid.points(dtype=torch.float64), image.grid.points(), image.grid.points(index)]

    for whole, parts in zip(*both(monkeypatch, [(grids, "PART")], points), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12 if whole.dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("level", [Level(1, 2.0), Level(2, 1.0), Level(2, 0.0)])
def test_levels(image: Image, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = both(monkeypatch, [(images, "PART")], lambda: image.at_level(level))
    assert parts.grid == whole.grid
    torch.testing.assert_close(parts.tensor, whole.tensor, rtol=1e-6, atol=1e-6)


def test_centre_of_mass(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = both(monkeypatch, [(images, "PART"), (grids, "PART")], image.centre_of_mass)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warped_images(
    image: Image, mode: str, random_transform: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = random_transform("affine", image.grid, 2.5)
    whole, parts = both(monkeypatch, [(warping, "CHUNK")], lambda: warping.warp(image, transform, image.grid, mode))
    torch.testing.assert_close(parts.tensor, whole.tensor, rtol=1e-6, atol=1e-6)


def test_identity_and_foreground(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = both(monkeypatch, [(budget, "PART")], lambda: budget.image_identity(image))
    assert parts == whole
    assert registration.foreground_count(image) == len(registration.foreground_points(image))


def test_distance_of_transforms(
    image: Image, random_transform: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (random_transform("affine", image.grid, 2.5, seed) for seed in (1, 2))
    points = image.grid.points(dtype=torch.float64)
    work = lambda: registration.displacement_rmse(first, second, points)  # noqa: E731
    whole, parts = both(monkeypatch, [(registration, "CHUNK")], work)
    assert parts == pytest.approx(whole, rel=1e-12)
