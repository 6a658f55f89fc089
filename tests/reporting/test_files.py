"""The files of a run, and its values as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppir_torch.images import load_image
from ppir_torch.optimizers import Iteration
from ppir_torch.registration import LevelIteration, Result
from ppir_torch.reporting.files import save_result, summary
from ppir_torch.transforms import load_transform


@pytest.fixture(params=[2, 3], ids=["2-D", "3-D"])
def result(request: pytest.FixtureRequest, pair: Callable[..., Any]) -> Result:
    made = pair("similarity", request.param)
    history = [LevelIteration(0, 1, 2, 50, Iteration(k, 3.0 - k, k != 2, 0.5, 1e-4), 0.1 * k) for k in (1, 2)]
    return Result(made.truth, made.moving, 2.0, history, 1.5)


def test_files_load_as_they_were(result: Result, tmp_path: Path) -> None:
    save_result(result, tmp_path / "deep", result.warped.grid)
    names = {path.name for path in (tmp_path / "deep").iterdir()}
    pictures = {"warped.png"} if result.warped.grid.dimension == 2 else set()
    assert names == {"warped.nii.gz", "transform.tfm"} | pictures
    warped = load_image(tmp_path / "deep" / "warped.nii.gz")
    assert torch.equal(warped.tensor, result.warped.tensor)
    grid = result.warped.grid
    for mine, theirs in zip(
        (warped.grid.spacing, warped.grid.origin, warped.grid.direction),
        (grid.spacing, grid.origin, grid.direction),
        strict=True,
    ):
        assert mine == pytest.approx(theirs, abs=1e-4)
    loaded = load_transform(tmp_path / "deep" / "transform.tfm", grid)
    points = grid.points(dtype=torch.float64)
    assert torch.allclose(loaded(points), result.transform(points), atol=1e-9)


def test_summary_is_plain_json(result: Result) -> None:
    values = summary(result)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    matrix, offset = result.transform.affine_map()
    where = {"file": "transform.tfm", "matrix": matrix.tolist(), "offset_mm": offset.tolist()}
    assert values["transform"] == {"kind": "similarity"} | where
    assert (values["ssd"], values["iterations"], values["loop_seconds"]) == (2.0, 2, 1.5)
    assert values["value"] == 2.0
    assert values["history"][1] == {
        "level": 0,
        "shrink": 2,
        "points": 50,
        "iteration": 2,
        "value": 1.0,
        "accepted": False,
        "step_mm": 0.5,
        "damping": 1e-4,
        "seconds": 0.2,
    }


@pytest.mark.parametrize("loss", ["ncc", "mind"])
def test_only_a_run_of_ssd_has_an_ssd(loss: str, result: Result) -> None:
    result.loss = loss
    values = summary(result)
    assert values["value"] == 2.0
    assert "ssd" not in values


def test_a_run_without_a_value_has_none(result: Result) -> None:
    """NaN is not JSON: other languages refuse the file."""
    result.value, result.history = float("nan"), []
    assert json.loads(json.dumps(summary(result), allow_nan=False))["ssd"] is None
