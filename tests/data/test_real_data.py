"""Clear registrations of ITK's brain slices, whose transforms are known; skipped without ../shared/data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppir_torch.images import Image, load_image, load_mask
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.optimizers import Adam, Stopping
from ppir_torch.registration import ClearFixed, Plan, Result, register_images
from ppir_torch.sampling import GradientMagnitude, Uniform
from ppir_torch.transforms import Affine, affine_from_map

SIMILARITY = "moving_pd_R10X13Y17S12"
RIGID = "moving_pd_R10X13Y17"
SHIFT = "moving_pd_shift13x17"


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "01_itk2d_brain_known"


@pytest.fixture(scope="module")
def fixed(folder: Path) -> Image:
    return load_image(folder / "fixed_pd_border20.png")


@pytest.fixture(scope="module")
def truth(folder: Path, fixed: Image) -> Callable[[str], Affine]:
    """The transform in the folder's JSON, x_moving = A x_fixed + b, of one moving image."""
    pairs = json.loads((folder / "01_itk2d_brain_known.json").read_text())["known"]["pairs"]

    def of(name: str) -> Affine:
        known = pairs[f"fixed_pd_border20 <- {name}"]
        matrix, offset = (torch.tensor(known[key], dtype=torch.float64) for key in "Ab")
        return affine_from_map(fixed.grid, matrix, offset)

    return of


@pytest.fixture(scope="module")
def rmse(fixed: Image, truth: Callable[[str], Affine]) -> Callable[[str, Result], float]:
    points = foreground_points(fixed)
    return lambda name, result: displacement_rmse(result.transform, truth(name), points)


@pytest.fixture(scope="module")
def register(folder: Path, fixed: Image) -> Callable[..., Result]:
    def run(name: str, mask: Any = None, **changes: Any) -> Result:
        return register_images(load_image(folder / f"{name}.png"), ClearFixed(fixed, mask), Plan(**changes))

    return run


# The known matrices are fits, good to 0.006 to 0.009 pixels; the shift is exact.
@pytest.mark.parametrize("start", ["centres", "centre_of_mass"])
@pytest.mark.parametrize(
    ("name", "transform", "bound_mm"),
    [
        (SIMILARITY, "similarity", 0.02),
        (SIMILARITY, "affine", 0.02),
        (RIGID, "rigid", 0.02),
        (RIGID, "similarity", 0.02),
        (RIGID, "affine", 0.02),
        (SHIFT, "translation", 0.002),
        (SHIFT, "rigid", 0.002),
        (SHIFT, "similarity", 0.002),
        (SHIFT, "affine", 0.002),
    ],
)
def test_the_default_plan_finds_the_known_transform(
    name: str, transform: str, bound_mm: float, start: str, register: Any, rmse: Any
) -> None:
    result = register(name, transform=transform, start=start)
    assert rmse(name, result) <= bound_mm
    finest = [h for h in result.history if h.level == 2]
    assert len(finest) <= 8, "the coarse levels do the work"


@pytest.mark.slow
def test_adam_finds_the_known_transform(register: Any, rmse: Any) -> None:
    result = register(SIMILARITY, transform="affine", optimizer=Adam(), stopping=Stopping(max_iterations=100))
    assert rmse(SIMILARITY, result) <= 0.05


@pytest.mark.parametrize("sampler", [Uniform(0.1, 1), GradientMagnitude(0.1, 1)], ids=lambda s: type(s).__name__)
def test_a_tenth_of_the_points_finds_the_known_transform(sampler: Any, register: Any, rmse: Any) -> None:
    assert rmse(SIMILARITY, register(SIMILARITY, transform="affine", sampler=sampler)) <= 0.3


def test_the_foreground_mask_finds_the_known_transform(folder: Path, fixed: Image, register: Any, rmse: Any) -> None:
    mask = load_mask(folder / "fixed_mask_border20.png", fixed.grid)
    assert rmse(SIMILARITY, register(SIMILARITY, mask=mask, transform="affine")) <= 0.02
