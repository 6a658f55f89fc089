"""Runs from Python take a configuration, shorthands, or both; what stands in neither has the settings' own default."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parties.harness import Files, started_parties, write_pair

from ppir_torch import ConfigError, Level, OperandRequest, align_points, open_private, register
from ppir_torch.config.images import load_config
from ppir_torch.config.points import load_points_config
from ppir_torch.images import load_image
from ppir_torch.runs import images as images_module
from ppir_torch.runs.images import run


@pytest.fixture(scope="module")
def files(pair: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_pair(pair("rigid", 2), tmp_path_factory.mktemp("pair"))


def settings(files: Files, **more: Any) -> dict[str, Any]:
    data = {"moving": str(files.moving), "fixed": str(files.fixed)}
    return {"data": data, "backend": {"kind": "clear"}, "pyramid": {"levels": [{"shrink": 2}]}, "threads": 1} | more


@pytest.mark.parametrize("as_object", [False, True], ids=["a mapping", "an object"])
def test_register_runs_a_configuration(as_object: bool, files: Files, tmp_path: Path) -> None:
    mapping = settings(files, transform={"kind": "rigid"}, optimizer={"kind": "adam"}, loss={"kind": "ncc"})
    found = register(config=load_config(mapping) if as_object else mapping, output=tmp_path / "api")
    same = run(load_config(mapping), tmp_path / "run")
    assert found.metrics["transform"] == same["transform"]
    assert (found.metrics["loss"], found.metrics["backend"]) == ("ncc", "clear")
    assert {h.shrink for h in found.history} == {2}


def test_a_shorthand_goes_before_the_configuration(files: Files) -> None:
    mapping = settings(files, transform={"kind": "rigid"}, sampler={"kind": "urs", "fraction": 0.5}, seed=3)
    whole = register(config=mapping)
    assert whole.metrics["transform"]["kind"] == "rigid"
    moved = register(transform="translation", fraction=0.25, config=mapping)
    assert moved.metrics["transform"]["kind"] == "translation"
    assert moved.metrics["sampler"] == "urs"
    assert moved.history[0].points == pytest.approx(whole.history[0].points / 2, abs=1)
    fixed = load_image(files.fixed)
    assert register(fixed, config=mapping).metrics["value"] < 1e-6  # the moving image is the fixed one


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"config": {"transform": {"kind": "rigid"}}}, "backend"),
        ({}, "data: missing"),
        ({"fixed": "b.mha"}, "data.moving: missing"),
        ({"loss": 3}, "loss: int, a name or a mapping is needed"),
        ({"config": {"backend": "bfv"}}, "backend: 'bfv', a name or a mapping with its kind is needed"),
    ],
    ids=str,
)
def test_what_is_missing_is_one_line(given: dict[str, Any], line: str) -> None:
    """A configuration without a backend is no clear run."""
    with pytest.raises(ConfigError) as caught:
        register(**given)
    assert line in str(caught.value)


@pytest.mark.parametrize("function", [register, align_points, open_private])
def test_defaults_stand_in_the_settings_alone(function: Callable[..., Any]) -> None:
    assert {p.default for p in inspect.signature(function).parameters.values()} == {None}


def test_align_points_runs_a_configuration(tmp_path: Path) -> None:
    fixed = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 30
    given = align_points(2 * fixed + 1, fixed, transform="similarity", output=tmp_path / "given")
    lines = {"moving": 2 * fixed + 1, "fixed": fixed}
    for name, points in lines.items():
        rows = "\n".join(",".join(map(repr, row)) for row in points.tolist())
        (tmp_path / f"{name}.csv").write_text(f"x,y,z\n{rows}\n")
    mapping = {name: str(tmp_path / f"{name}.csv") for name in lines}
    mapping |= {"transform": "similarity", "backend": {"kind": "clear"}, "output": str(tmp_path / "out")}
    for config in (mapping, load_points_config(mapping)):
        found = align_points(config=config)
        assert found.metrics["transform"]["matrix"] == given.metrics["transform"]["matrix"]
        assert (tmp_path / "out" / "result.json").exists()
    assert align_points(transform="rigid", config=mapping).metrics["residual_rms_mm"] > 1
    with pytest.raises(ConfigError, match="backend"):
        align_points(config={"moving": "a.csv", "fixed": "b.csv"})


@pytest.mark.parametrize("backend", ["bfv", "beaver"])
def test_open_private_takes_a_configuration(backend: str, files: Files, tmp_path: Path) -> None:
    budget = {"max_values": 1000, "file": str(tmp_path / "releases.sqlite")}  # other tests release this image, too
    mapping = settings(files, backend={"kind": backend}, budget=budget)
    with started_parties() as started, open_private(config=mapping) as unseen:
        assert unseen.grid == load_image(files.fixed).grid
        unseen.operand(OperandRequest(Level(2, 0.0)))
    assert [party.role for party in started] == ["party_2", *(["dealer"] if backend == "beaver" else [])]
    assert '"max_values": 1000' in started.configs["party_2"]
    assert str(files.moving) not in started.configs["party_2"]


@pytest.mark.parametrize("config", [{"data": {}}, {"backend": "bfv"}, {"backend": {}}, {"backend": {"kind": "clear"}}])
def test_open_private_needs_a_private_backend(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="backend"), open_private("fixed.mha", config=config):
        pass


# --- what is said meanwhile, and before -------------------------------------------------------------------------------


def test_what_a_run_discloses_is_known_before_any_party_is_started(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of which there were no lines raised KeyError when party_2's budget was spent."""

    def nothing_to_say(_config: Any) -> Any:
        raise KeyError("lines")

    monkeypatch.setattr(images_module, "disclosed_of_images", nothing_to_say)
    with started_parties() as started, pytest.raises(KeyError):
        run(files.configuration("bfv"), tmp_path)
    assert list(started) == []


def test_a_run_says_in_the_log_which_protocol_it_chose(
    files: Files,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("ppir_torch"), "handlers", [])  # those of a command line that ran before
    budget = {"max_values": 1000, "file": str(tmp_path / "releases.sqlite")}
    config = load_config(settings(files, backend={"kind": "auto", "dealer": False}, budget=budget))
    with caplog.at_level(logging.INFO, "ppir_torch"), started_parties():
        result = run(config, tmp_path)
    assert result["backend"] == "bfv"
    (record,) = [record for record in caplog.records if "auto" in record.getMessage()]
    assert record.getMessage() == f"backend auto: {result['backend_reason']}"
    assert "backend auto" not in "".join(capsys.readouterr())
