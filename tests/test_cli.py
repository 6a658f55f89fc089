"""The command line, with the registration itself replaced: folders, saved configuration, table, exit codes."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import ppir_torch
from ppir_torch.cli import app
from ppir_torch.config.compose import compose_runs
from ppir_torch.config.images import RunConfig, load_config
from ppir_torch.config.points import load_points_config
from ppir_torch.errors import PeerLost, RegistrationFailed

DATA = ["data.moving=m.nii.gz", "data.fixed=f.nii.gz"]
RESULT: dict[str, Any] = {
    "transform": {"kind": "rigid", "matrix": [[1.0, 0.1234567], [0.0, 1.0]], "offset_mm": [2.0, 3.0]},
    "loss": "ssd",
    "backend": "bfv",
    "iterations": 12,
    "ssd": 1.25,
    "rmse_to_truth_mm": 0.0123456,
    "rmse_to_clear_mm": None,
    "seconds": 3.5,
    "party_1": {"seconds": 3.0, "bytes_sent": 57_000, "set_up_bytes": 0, "peak_memory_mb": 300.4},
    "party_2": {"seconds": 3.1, "bytes_sent": 9_600_000, "set_up_bytes": 9_500_000, "peak_memory_mb": None},
    "disclosed": {"party_1": ["R of each iteration", "[geometry] of the fixed image"], "party_2": []},
    "complete": True,
}


class Runs(list[tuple[RunConfig, Path]]):
    """The calls of `run.run`; `answers` are what it gives or raises, the last one again and again."""

    answers: list[Any]

    def __call__(self, config: RunConfig, output: Path) -> dict[str, Any]:
        self.append((config, output))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        (output / "result.json").write_text("{}")
        return dict(answer)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    calls = Runs()
    calls.answers = [RESULT]
    module = types.ModuleType("ppir_torch.runs.images")
    module.run = calls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ppir_torch.runs.images", module)
    monkeypatch.chdir(tmp_path)
    return calls


def ppir(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_run_makes_a_folder_with_the_configuration(runs: Runs) -> None:
    done = ppir("run", *DATA, "backend=bfv", "seed=3")
    assert done.exit_code == 0, done.output
    [(config, folder)] = runs
    assert (config.backend.kind, config.seed, config.output) == ("bfv", 3, folder)
    assert folder.parts[0] == "outputs"
    assert folder.name.endswith("-bfv")
    assert load_config(yaml.safe_load((folder / "config.yaml").read_text())) == config
    ppir("run", *DATA, "backend=bfv", "seed=3")
    assert runs[1][1] != folder


def test_run_prints_the_table(runs: Runs) -> None:
    text = ppir("run", *DATA, "output=out").output
    assert runs[0][1] == Path("out")
    for words in (
        "rigid",
        "0.12346",
        "0.01235 mm",
        "57 kB sent",
        "9.6 MB sent",
        "[geometry]",
        "party_2 learned",
        "nothing",
        "result.json",
    ):
        assert words in text
    assert "clear run" not in text


def test_run_prints_what_is_odd_and_what_to_try(runs: Runs) -> None:
    odd = {"kind": "folding", "message": "[2 %] folds", "advice": "weight", "levels": [2], "fatal": False}
    runs.answers = [RESULT | {"warnings": [odd]}]
    done = ppir("run", *DATA)
    assert done.exit_code == 0
    assert done.stderr.splitlines() == ["ppir: warning: [2 %] folds", "      try: weight"]
    assert "folds" not in done.stdout


def test_run_prints_a_clear_result(runs: Runs) -> None:
    runs.answers = [
        RESULT | {"transform": "affine"} | dict.fromkeys(("party_1", "party_2", "disclosed", "rmse_to_truth_mm", "ssd"))
    ]
    assert ppir("run", *DATA).exit_code == 0


def test_multirun_numbers_its_folders(runs: Runs) -> None:
    done = ppir("run", "-m", *DATA, "backend=bfv,clear", "seed=1,2", "output=sweep")
    assert done.exit_code == 0, done.output
    assert [str(folder) for _, folder in runs] == [f"sweep/{k}" for k in range(4)]
    ppir("run", "-m", *DATA, "seed=1,2")
    assert runs[4][1].parts[0] == "multirun"


def test_multirun_goes_on_after_a_failure_and_says_so(runs: Runs) -> None:
    runs.answers = [PeerLost("party_2: lost"), RESULT]
    done = ppir("run", "-m", *DATA, "seed=1,2")
    assert (len(runs), done.exit_code) == (2, 3)
    assert done.stderr.splitlines() == ["ppir: error: party_2: lost", "ppir: error: 1 of 2 runs failed"]


def test_multirun_checks_all_before_the_first(runs: Runs) -> None:
    assert ppir("run", "-m", *DATA, "seed=1,-2").exit_code == 2
    assert not runs


def test_show_runs_nothing(runs: Runs) -> None:
    done = ppir("run", "--show", *DATA, "sampler=gms")
    assert not runs
    assert list(Path().iterdir()) == []
    assert load_config(yaml.safe_load(done.stdout)) == compose_runs([*DATA, "sampler=gms"])[0][1]


def test_a_saved_configuration_runs_again(runs: Runs) -> None:
    """As it stands, into the folder that it names; words of the command line win over it."""
    assert ppir("run", *DATA, "sampler=urs", "sampler.fraction=0.3", "output=first").exit_code == 0
    done = ppir("run", "--config", "first/config.yaml")
    assert done.exit_code == 0, done.output
    assert runs[1] == runs[0]
    done = ppir("run", "backend=bfv", "--config", "first/config.yaml", "sampler.fraction=0.2", "output=second")
    assert done.exit_code == 0, done.output
    config, folder = runs[2]
    assert (config.backend.kind, config.sampler.fraction, folder) == ("bfv", 0.2, Path("second"))
    assert load_config(yaml.safe_load(Path("second/config.yaml").read_text())) == config


def test_a_saved_clear_experiment_with_a_private_backend_runs_privately(runs: Runs) -> None:
    ppir("run", *DATA, "output=first")
    Path("experiment").mkdir()
    text = "# @package _global_\n" + Path("first/config.yaml").read_text()
    Path("experiment/mine.yaml").write_text(text)
    for words in (["backend=bfv", "experiment=mine"], ["experiment=mine", "backend=bfv", "transform=rigid"]):
        done = ppir("run", "--config-dir", ".", *words)
        assert done.exit_code == 0, done.output
        assert runs[-1][0].backend.kind == "bfv"
    assert runs[-1][0].transform.kind == "rigid"


def test_points_run_again_from_their_saved_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write_points("m.csv", "f.csv")
    ppir("points", "--moving", "m.csv", "--fixed", "f.csv", "--columns", "col,row", "-o", "out")
    done = ppir("run", "--config", "out/config.yaml", "transform=similarity", "output=again")
    assert done.exit_code == 0, done.output
    saved = load_points_config(yaml.safe_load(Path("again/config.yaml").read_text()))
    assert (saved.transform, saved.moving_columns, str(saved.output)) == ("similarity", "col,row", "again")
    assert Path("again/transform.tfm").exists()


@pytest.mark.parametrize("show", [[], ["--show"], ["-m"]])
def test_private_and_clear_asked_for_at_once_is_refused(runs: Runs, show: list[str]) -> None:
    done = ppir("run", *show, *DATA, "backend=bfv", "backend.kind=clear")
    line = "backend: 'bfv' was asked for, and 'clear' too; refused: name one backend only"
    assert (done.exit_code, done.stderr) == (2, f"ppir: error: {line}\n")
    assert not runs


def test_the_guard_stands_right_before_the_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever composing makes of the words: a clear run where bfv was asked for does not begin."""
    clear = load_config({"data": {"moving": "m", "fixed": "f"}, "backend": {"kind": "clear"}})
    monkeypatch.setattr("ppir_torch.config.compose.compose_runs", lambda *_, **__: [(["backend=bfv"], clear)])
    monkeypatch.setattr("ppir_torch.config.images.load_config", lambda _mapping: clear)
    for words in (["run", "backend=bfv"], ["register", "m", "f", "--backend", "bfv"]):
        done = ppir(*words)
        assert done.exit_code == 2
        assert done.stderr.startswith("ppir: error: backend: 'bfv' was asked for, but the run would be in clear")
    assert not runs
    assert not Path("outputs").exists()


def test_help_names_what_the_registries_hold() -> None:
    text = " ".join(ppir("register", "--help").output.replace("\u2502", " ").split())
    for names in ("translation, rigid, similarity", "clear, auto, beaver, spdz, bfv", "none, urs, chunks or gms"):
        assert names in text
    assert "{losses}" not in text
    assert "clear, beaver, spdz, bfv" in ppir("points", "--help").output


def test_register_builds_the_same_configuration(runs: Runs) -> None:
    Path("start.tfm").touch()
    arguments = ["--backend", "spdz", "--device", "cpu", "--sampler", "urs", "--fraction", "0.2", "--seed", "4"]
    arguments += [
        "--optimizer",
        "adam",
        "--levels",
        "8x8x2, 4",
        "--truth",
        "t.tfm",
        "--start",
        "start.tfm",
        "-o",
        "out",
    ]
    arguments += ["--fixed-mask", "mask.nii.gz", "--disclose-mask", "--threads", "1"]
    done = ppir("register", "m.nii.gz", "f.nii.gz", *arguments)
    assert done.exit_code == 0, done.output
    overrides = ["backend=spdz", "backend.device=cpu", "sampler=urs", "sampler.fraction=0.2", "seed=4", "threads=1"]
    overrides += ["optimizer=adam", "pyramid.levels=[{shrink: [8,8,2]},{shrink: 4}]", "data.truth=t.tfm", "output=out"]
    overrides += ["start={kind: file, path: start.tfm}", "data.fixed_mask=mask.nii.gz", "data.disclose_mask=true"]
    [(_, config)] = compose_runs([*DATA, *overrides])
    assert runs == [(config, Path("out"))]


def write_points(*names: str) -> None:
    lines = ["row,col", *(f"{k * k % 7},{k}" for k in range(20))]
    for name in names:
        Path(name).write_text("\n".join(lines) + "\n")


def test_points_in_clear_writes_its_files_and_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write_points("m.csv", "f.csv")
    done = ppir("points", "--moving", "m.csv", "--fixed", "f.csv", "--columns", "col,row", "--scale", "-o", "out")
    assert done.exit_code == 0, done.output
    assert {p.name for p in Path("out").iterdir()} == {"config.yaml", "points.png", "result.json", "transform.tfm"}
    for words in ("similarity", "points", "20", "RMS distance left", "everything"):
        assert words in done.output
    saved = load_points_config(yaml.safe_load(Path("out/config.yaml").read_text()))
    assert (saved.transform, saved.moving_columns, saved.fixed_columns) == ("similarity", "col,row", "col,row")


def test_points_builds_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = []
    module = types.ModuleType("ppir_torch.runs.points")
    module.run_points = lambda config, output: calls.append((config, output)) or {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ppir_torch.runs.points", module)
    arguments = ["--backend", "beaver", "--device", "cpu", "--columns", "x,y", "--fixed-columns", "col,row"]
    arguments += ["--no-residual", "--share-transform", "--max-values", "50", "--releases", "r.sqlite", "--figure"]
    done = ppir("points", "--moving", "m.csv", "--fixed", "f.csv", *arguments)
    assert done.exit_code == 0, done.output
    [(config, folder)] = calls
    settings: dict[str, Any] = {"moving": "m.csv", "fixed": "f.csv", "backend": {"kind": "beaver", "device": "cpu"}}
    settings |= {"moving_columns": "x,y", "fixed_columns": "col,row", "disclose_spread": False, "figure": True}
    settings |= {"share_transform": True, "budget": {"file": "r.sqlite", "max_values": 50}, "output": str(folder)}
    assert config == load_points_config(settings)
    assert folder.name.endswith("-points-beaver")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--backend", "bfv", "--closest"],
            "correspondence: 'closest', with backend 'bfv' 'known' is needed: to find the closest points takes every "
            "distance between one party's points and the other's, which is all that there is to hide; use backend "
            "clear, or register images of the shapes",
        ),
        (["--backend", "auto"], "backend.kind: 'auto', one of clear, spdz, beaver, bfv, ckks is needed"),
        (
            ["--columns", "col,row", "--fixed-columns", "row,row"],
            "fixed_columns: 'row,row', two or three names of columns, none twice, with commas between them are needed",
        ),
        ([], "m.csv: columns row, col; x, y[, z] are needed, or the names of those columns"),
        (["--columns", "col,row", "--fixed", "few.csv"], "few.csv: cannot be read (No such file or directory)"),
        (["--truth", "t.tfm"], "t.tfm: no such transform file (truth)"),
    ],
)
def test_points_refuses_in_one_line(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_points("m.csv", "f.csv")
    fixed = [] if "--fixed" in arguments else ["--fixed", "f.csv"]
    done = ppir("points", "--moving", "m.csv", *fixed, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr == f"ppir: error: {line}\n"


def test_points_of_unequal_number_in_clear_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write_points("m.csv", "f.csv")
    Path("f.csv").write_text("\n".join(Path("f.csv").read_text().splitlines()[:-1]))
    done = ppir("points", "--moving", "m.csv", "--fixed", "f.csv", "--columns", "col,row")
    assert (done.exit_code, done.stderr) == (
        2,
        "ppir: error: point sets: (19, 2) and (20, 2), the same (n, D) is needed\n",
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--backend", "paillier"],
            "backend.kind: 'paillier', one of clear, auto, spdz, beaver, bfv, ckks, ckks-v1 is needed",
        ),
        (
            ["--backend", "ckks-v1"],
            "backend.allow_insecure: False, true is needed: ckks-v1 is the published protocol, a baseline for "
            "benchmarks; attacks read both images from it",
        ),
        (
            ["--backend", "bfv", "--optimizer", "inverse_compositional", "--sampler", "gms"],
            "sampler.kind: 'gms', with optimizer 'inverse_compositional' one of none, urs is needed: party_2 sums over "
            "the points itself and must know them",
        ),
        (
            ["--backend", "bfv", "--device", "cpu"],
            "backend.device: not a setting of bfv; beside kind it takes nothing else",
        ),
        (["--fraction", "0.1"], "sampler.fraction: not a setting of none; beside kind it takes nothing else"),
        (["--sampler", "urs", "--fraction", "2"], "sampler.fraction: 2.0, a number > 0 and <= 1 is needed"),
        (
            ["--levels", "4,q"],
            "pyramid.levels[1].shrink: 'q', an integer >= 1 and <= 64, or a list of one an axis [x, y, z], is needed",
        ),
        (
            ["--levels", "4x4xx1"],
            "pyramid.levels[0].shrink: [4, 4, '', 1], an integer >= 1 and <= 64, or a list of one an axis [x, y, z], "
            "is needed",
        ),
        (
            ["--start", "centers"],
            "start: 'centers', one of centres, centre_of_mass, identity, atlas or a transform file is needed",
        ),
    ],
)
def test_register_refuses_in_one_line(runs: Runs, arguments: list[str], line: str) -> None:
    done = ppir("register", "m.nii.gz", "f.nii.gz", *arguments)
    assert (done.exit_code, done.stderr) == (2, f"ppir: error: {line}\n")
    assert not runs


def test_each_problem_has_its_line(runs: Runs) -> None:
    done = ppir("run", *DATA, "seed=-1", "dtype=int8")
    assert done.exit_code == 2
    assert [line.split(":")[2] for line in done.stderr.splitlines()] == [" dtype", " seed"]
    assert not runs


def test_output_that_is_a_file(runs: Runs) -> None:
    Path("out").touch()
    done = ppir("run", *DATA, "output=out")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("ppir: error: output: 'out', ")
    assert not runs


def test_exit_codes(runs: Runs) -> None:
    runs.answers = [PeerLost("party_2: silent for 600 s")]
    done = ppir("run", *DATA)
    assert (done.exit_code, done.stderr) == (3, "ppir: error: party_2: silent for 600 s\n")
    fatal = {"kind": "collapsed", "message": "it mirrors", "advice": "ncc", "levels": [1], "fatal": True}
    runs.answers = [RegistrationFailed("it mirrors (kept in out)", {"warnings": [fatal]})]
    done = ppir("run", *DATA)
    lines = ["ppir: warning: it mirrors", "      try: ncc", "ppir: error: it mirrors (kept in out)"]
    assert (done.exit_code, done.stderr.splitlines()) == (4, lines)
    runs.answers = [KeyboardInterrupt()]
    done = ppir("run", *DATA)
    assert (done.exit_code, done.stderr) == (130, "ppir: interrupted\n")
    runs.answers = [ZeroDivisionError("a bug")]
    assert isinstance(ppir("run", *DATA).exception, ZeroDivisionError)


def test_version_and_info() -> None:
    assert ppir("--version").stdout == f"ppir_torch {ppir_torch.__version__}\n"
    text = ppir("info").stdout
    for name in ("torch 2", "crypten", "tenseal", "CUDA", "clear", "spdz", "bfv"):
        assert name in text
    assert "beaver: one-sided product on integer words; needs a dealer process; the fastest" in text.splitlines()


def test_import_is_light() -> None:
    heavy = ("torch", "hydra", "pydantic", "crypten", "tenseal", "SimpleITK")
    code = f"import sys, ppir_torch.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["register", "m", "f", "--backend", "bfv", "--backend", "clear"], "--backend"),
        (["register", "--backend=clear", "m", "f", "--backend=bfv"], "--backend"),
        (["points", "--moving", "m", "--fixed", "f", "--backend", "bfv", "--backend", "clear"], "--backend"),
        (["points", "--moving", "m", "--fixed", "f", "--no-residual", "--residual"], "--residual"),
        (["run", "--config", "private.yaml", "--config", "clear.yaml"], "--config"),
    ],
)
def test_an_option_given_twice_is_one_line(runs: Runs, words: list[str], option: str) -> None:
    """Else the last one would win, and a private backend that was asked for be forgotten."""
    done = ppir(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"ppir: error: {option}: given twice, once is needed\n"
    assert runs == []
