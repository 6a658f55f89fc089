"""A run that goes wrong, from files to exit code: what is written, what is raised, what the parties report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parties.harness import Files, started_parties, write_pair
from typer.testing import CliRunner

from ppir_torch import Grid, Image, RegistrationFailed, register
from ppir_torch.cli import app
from ppir_torch.images import load_image, save_image
from ppir_torch.runs.images import run
from ppir_torch.transforms import Affine, load_transform


@pytest.fixture(scope="module")
def apart(phantom: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A pair of which the corners alone overlap where they lie, by 1 %."""
    folder = tmp_path_factory.mktemp("apart")
    files = Files(folder / "moving.mha", folder / "fixed.mha", folder / "truth.tfm")
    grid = Grid((40, 40))
    save_image(phantom(grid).image(grid), files.fixed)
    save_image(Image(load_image(files.fixed).tensor, Grid((40, 40), origin=(36.0, 36.0))), files.moving)
    return files


@pytest.fixture(scope="module")
def good(pair: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_pair(pair("rigid", 2), tmp_path_factory.mktemp("good"))


def settings(**more: Any) -> dict[str, Any]:
    return {"transform": "rigid", "start": {"kind": "identity"}} | more


@pytest.mark.parametrize("backend", ["clear", "beaver"])
def test_a_run_gone_wrong_is_written_with_what_was_found_before(backend: str, apart: Files, tmp_path: Path) -> None:
    with started_parties(), pytest.raises(RegistrationFailed) as caught:
        run(apart.configuration(backend, **settings()), tmp_path)
    assert caught.value.exit_code == 4
    assert str(tmp_path) in str(caught.value)
    values = json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert values == json.loads(json.dumps(caught.value.values))
    assert values["complete"] is False
    (warning,) = values["warnings"]
    assert warning["fatal"]
    assert warning["kind"] in ("no_overlap", "runaway", "collapsed")
    assert values["error"] == warning["message"]
    assert [level["level"] for level in values["levels"]] == [0]
    grid = load_image(apart.fixed).grid
    kept = load_transform(tmp_path / "transform.tfm", grid)  # nothing was found before the first level: the start
    assert torch.allclose(kept(grid.points()), Affine(grid)(grid.points()), atol=1e-5)
    assert load_image(tmp_path / "warped.nii.gz").grid.size == grid.size
    if backend != "clear":
        one, two = (json.loads((tmp_path / f"{role}.json").read_text()) for role in ("party_1", "party_2"))
        assert (one["exit_code"], one["complete"], one["error"]) == (4, False, warning["message"])
        assert (two["exit_code"], two["complete"], two["error"]) == (0, True, "")  # its session came to its end
        assert two["transform"] is None


def test_a_failed_transform_is_not_shared(apart: Files, tmp_path: Path) -> None:
    with started_parties(), pytest.raises(RegistrationFailed):
        run(apart.configuration("beaver", **settings(share_transform=True)), tmp_path)
    assert json.loads((tmp_path / "party_2.json").read_text())["transform"] is None


def test_register_raises_with_the_result(apart: Files) -> None:
    with pytest.raises(RegistrationFailed) as caught:
        register(apart.moving, apart.fixed, transform="rigid", start="identity", threads=1)
    result = caught.value.result
    assert (result.failed, result.complete) == (True, False)
    assert [finding.to_json() for finding in result.warnings] == caught.value.values["warnings"]
    assert [facts.to_json() for facts in result.levels] == caught.value.values["levels"]
    assert result.error == result.warnings[0].message
    assert result.warped.grid.size == (40, 40)


def test_the_command_line_ends_with_4_and_says_what_to_try(apart: Files, tmp_path: Path) -> None:
    words = ["register", str(apart.moving), str(apart.fixed), "--transform", "rigid", "--start", "identity"]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")])
    assert done.exit_code == 4, done.output
    shown = [line for line in done.stderr.splitlines() if line.startswith(("ppir: ", "      try: "))]
    assert [line[:10] for line in shown] == ["ppir: warn", "      try:", "ppir: erro"]
    assert (tmp_path / "out" / "transform.tfm").exists()


def test_warnings_of_a_run_that_is_complete(good: Files, caplog: pytest.LogCaptureFixture) -> None:
    short = {"optimizer": {"kind": "gauss_newton", "stopping": {"max_iterations": 2}}}
    with caplog.at_level(logging.WARNING, "ppir_torch"):
        result = register(good.moving, good.fixed, backend="clear", threads=1, config=short)
    assert (result.complete, [finding.kind for finding in result.warnings]) == (True, ["not_converged"])
    assert not any(facts.converged for facts in result.levels)
    (record,) = [r for r in caplog.records if r.name.startswith("ppir_torch") and r.levelno == logging.WARNING]
    assert result.warnings[0].message in record.getMessage()
    assert result.warnings[0].advice in record.getMessage()


def test_a_private_run_knows_of_its_levels_what_the_clear_one_knows(good: Files, tmp_path: Path) -> None:
    clear = run(good.configuration("clear", "rigid"), tmp_path / "clear")
    with started_parties():
        private = run(good.configuration("beaver", "rigid"), tmp_path / "beaver")
    assert clear["warnings"] == private["warnings"] == []
    for one, two in zip(clear["levels"], private["levels"], strict=True):
        for name in ("overlap", "visible", "determinant", "least_stretch", "displacement_mm", "explained"):
            assert two[name] == pytest.approx(one[name], abs=0.01), name
        assert one["converged"] == two["converged"] is True
