"""Images far from 0, in space or in brightness, where single precision fails: as accurate as near to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parties.harness import Files

from ppir_torch.grids import Grid
from ppir_torch.images import Image, save_image
from ppir_torch.runs.images import run
from ppir_torch.transforms import affine_from_map, save_transform


def shifted(image: Image, by: float) -> Image:
    return Image(image.tensor, replace(image.grid, origin=tuple(o + by for o in image.grid.origin)))


@pytest.mark.parametrize(
    ("backend", "moved"),
    [
        ("clear", "both"),
        ("clear", "moving"),
        ("clear", "fixed"),
        ("bfv", "moving"),
        pytest.param("bfv", "both", marks=pytest.mark.slow),
    ],
)
def test_a_far_image_is_registered_as_a_near_one(
    backend: str, moved: str, pair: Callable[..., Any], tmp_path: Path
) -> None:
    made, by = pair("rigid", 2), 1e7
    fixed_by, moving_by = by * (moved != "moving"), by * (moved != "fixed")
    fixed, moving = shifted(made.fixed, fixed_by), shifted(made.moving, moving_by)
    files = Files(tmp_path / "moving.mha", tmp_path / "fixed.mha", tmp_path / "truth.tfm")
    save_image(fixed, files.fixed)
    save_image(moving, files.moving)
    matrix, offset = (part.detach() for part in made.truth.affine_map())
    far = offset + moving_by - matrix @ torch.full((2,), fixed_by, dtype=torch.float64)
    save_transform(affine_from_map(fixed.grid, matrix, far), files.truth)
    result = run(files.configuration(backend, "rigid", data={"truth": str(files.truth)}), tmp_path / "out")
    assert result["rmse_to_truth_mm"] < 0.05


@pytest.mark.parametrize("scale", [1e-25, 1e25, 1e35])
@pytest.mark.parametrize("loss", ["ssd", "ncc"])
def test_values_whose_squares_single_precision_lacks(
    loss: str, scale: float, pair: Callable[..., Any], tmp_path: Path
) -> None:
    made = pair("rigid", 2)
    files = Files(tmp_path / "moving.mha", tmp_path / "fixed.mha", tmp_path / "truth.tfm")
    save_image(Image(made.fixed.tensor * scale, made.fixed.grid), files.fixed)
    save_image(Image(made.moving.tensor * scale, made.moving.grid), files.moving)
    save_transform(made.truth, files.truth)
    data = {"truth": str(files.truth)}
    result = run(files.configuration("clear", "rigid", data=data, loss={"kind": loss}), tmp_path / "out")
    assert result["rmse_to_truth_mm"] < 0.05
    assert result["value"] > 0


@pytest.mark.parametrize(
    ("origin", "spacing", "far"), [(0.0, 1.0, False), (1500.0, 0.1, False), (1e5, 1.0, True), (0.0, 1e-5, False)]
)
def test_far_is_said_in_voxels(origin: float, spacing: float, far: bool) -> None:
    grid = Grid((50, 40), (spacing,) * 2, (origin, -origin))
    assert grid.is_far is far
    error = (grid.points().double() - grid.points(dtype=torch.float64)).abs().max()
    assert bool(error > spacing / 400) <= far
