"""Presets: the same from YAML, the command line and Python; what else is said wins over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppir_torch.cli import app
from ppir_torch.config.compose import compose_runs, config_folder
from ppir_torch.config.images import RunConfig
from ppir_torch.config.presets import PRESETS, preset_values
from ppir_torch.errors import ConfigError, PpirError
from ppir_torch.runs import api, images

DATA = ["data.moving=m.nii.gz", "data.fixed=f.nii.gz"]


class Ran(PpirError):
    """In the place of a run, which these tests do not want."""


def composed(*overrides: str) -> RunConfig:
    [(_, config)] = compose_runs([*DATA, *overrides])
    assert isinstance(config, RunConfig)
    return config


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunConfig]:
    """The configurations that runs were started with."""
    found: list[RunConfig] = []

    def run(config: RunConfig, _folder: Path) -> None:
        found.append(config.model_copy(update={"output": None}))
        raise Ran("stop")

    monkeypatch.setattr(images, "run", run)
    monkeypatch.setattr(api, "run", run)
    monkeypatch.chdir(tmp_path)
    return found


def of_python(runs: list[RunConfig], **given: Any) -> RunConfig:
    with pytest.raises(Ran):
        api.register("m.nii.gz", "f.nii.gz", **given)
    return runs[-1]


def of_command_line(runs: list[RunConfig], *arguments: str) -> RunConfig:
    CliRunner().invoke(app, ["register", "m.nii.gz", "f.nii.gz", *arguments])
    return runs[-1]


def test_every_preset_has_a_file_without_data() -> None:
    for name in PRESETS:
        text = (config_folder() / "experiment" / f"{name}.yaml").read_text()
        assert "data:" not in text
        assert "backend" not in text
        assert f"experiment={name} " in text


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_is_the_same_wherever_it_is_named(preset: str, runs: list[RunConfig]) -> None:
    wanted = composed(f"experiment={preset}")
    assert of_python(runs, preset=preset) == of_command_line(runs, "--preset", preset) == wanted


def test_no_preset_is_the_same_wherever_it_is_not_named(runs: list[RunConfig]) -> None:
    assert of_python(runs) == of_command_line(runs) == composed()


def test_what_else_is_said_wins_over_a_preset(runs: list[RunConfig]) -> None:
    others = {"transform": "affine", "loss": "ncc", "sampler": "urs", "fraction": 0.2, "levels": (4, (2, 2, 1))}
    words = ["--transform", "affine", "--loss", "ncc", "--sampler", "urs", "--fraction", "0.2", "--levels", "4,2x2x1"]
    overrides = ["transform=affine", "loss=ncc", "sampler=urs", "sampler.fraction=0.2"]
    overrides += ["pyramid.levels=[{shrink: 4},{shrink: [2,2,1]}]", "backend=beaver"]
    wanted = composed("experiment=between_subjects", *overrides)
    assert of_python(runs, preset="between_subjects", backend="beaver", **others) == wanted
    assert of_command_line(runs, "--preset", "between_subjects", "--backend", "beaver", *words) == wanted


def test_turns_go_with_any_start(runs: list[RunConfig]) -> None:
    wanted = composed("start.turns=45")
    assert wanted.start.turns == 45
    assert of_python(runs, turns=45.0) == of_command_line(runs, "--turns", "45") == wanted
    wanted = composed("start.kind=identity", "start.turns=45")
    assert of_python(runs, turns=45.0, start="identity") == wanted
    assert of_command_line(runs, "--turns", "45", "--start", "identity") == wanted
    with pytest.raises(ConfigError, match=r"^start\.turns: 200.0, a number >= 0 and <= 180 is needed"):
        api.register("m", "f", turns=200.0)


def test_a_preset_never_chooses_the_backend() -> None:
    for name in PRESETS:
        assert not {"backend", "data", "budget", "output"} & preset_values(name).keys()


@pytest.mark.parametrize("name", ["demo", "itk2d", "", "Same_person", "../experiment/same_person"])
def test_an_unknown_preset_is_one_line(name: str) -> None:
    line = f"preset: {name!r}, same_person, follow_up, between_subjects or across_modalities is needed"
    for call in (lambda: preset_values(name), lambda: api.register("m", "f", preset=name)):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == line
    done = CliRunner().invoke(app, ["register", "m.nii.gz", "f.nii.gz", "--preset", name])
    assert (done.exit_code, done.stderr) == (2, f"ppir: error: {line}\n")


def test_a_preset_and_a_configuration_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"^preset: 'follow_up', goes without a configuration"):
        api.register("m", "f", preset="follow_up", config={"backend": {"kind": "clear"}})
