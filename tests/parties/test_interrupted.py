"""Ctrl-C, SIGTERM and a parent that is gone: every party ends by itself, and party_1 keeps the best it has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parties.harness import Files, Started, started_parties, tapped_wires

from ppir_torch.config.images import load_config
from ppir_torch.errors import PeerLost
from ppir_torch.images import load_image
from ppir_torch.interruption import Interrupted
from ppir_torch.parties.budget import open_ledger_rows
from ppir_torch.runs.images import run
from ppir_torch.transforms import load_transform
from ppir_torch.wire.kinds import MessageKind

PRODUCTS = 4
# A message of party_2 in each product.
ANSWERS = {
    "bfv": MessageKind.MASKED_RESULT,
    "ckks": MessageKind.MASKED_RESULT,
    "spdz": MessageKind.RESULT_SHARE,
    "beaver": MessageKind.RESULT_SHARE,
}
Act = Callable[[Started], None]


def ctrl_c(_started: Started) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def sigterm_to(role: str) -> Act:
    return lambda started: os.kill(started[role].process.pid, signal.SIGTERM)


def interrupted_run(
    config: Any, folder: Path, kind: MessageKind, count: int, act: Act
) -> tuple[BaseException, Started]:
    """The run's end, and its parties; `act` comes with the count-th message of the kind from party_2."""

    def watch(source: str, _target: str, passing: MessageKind, number: int) -> None:
        if source == "party_2" and (passing, number) == (kind, count):
            assert wait_until(lambda: len(started) == (3 if config.backend.kind in ("beaver", "spdz") else 2))
            time.sleep(0.1)  # whoever started them waits for them now
            act(started)

    with started_parties() as started, tapped_wires(watch):
        with pytest.raises((Interrupted, PeerLost)) as caught:
            run(config, folder)
        # Nobody had to be killed: each has its report.
        assert [party.role for party in started if party.process.returncode == -signal.SIGKILL] == []
        for party in started:
            assert (folder / f"{party.role}.json").exists()
        return caught.value, started


def assert_kept(folder: Path, files: Files) -> dict[str, Any]:
    """The result: the transform of the last step that was kept, which is nearer to the truth than the start."""
    result = dict(json.loads((folder / "result.json").read_text()))
    assert result["complete"] is False
    kept = [entry for entry in result["history"] if entry["accepted"]]
    assert kept
    assert result["value"] == kept[-1]["value"]
    fixed, moving = (load_image(path).grid for path in (files.fixed, files.moving))
    points = fixed.points(dtype=torch.float64)
    with torch.no_grad():
        truth = load_transform(files.truth, fixed)(points)
        found = load_transform(folder / "transform.tfm", fixed)(points)
        start = points + moving.centre - fixed.centre
    if len(kept) > 1:
        assert float((found - truth).norm(dim=1).mean()) < float((start - truth).norm(dim=1).mean())
    assert (folder / "warped.nii.gz").exists()
    return result


@pytest.mark.parametrize("backend", ANSWERS)
def test_ctrl_c_keeps_the_best_transform(backend: str, site_files: Callable[..., Files], tmp_path: Path) -> None:
    files = site_files("affine", 2)
    error, _ = interrupted_run(files.configuration(backend), tmp_path, ANSWERS[backend], PRODUCTS, ctrl_c)
    assert isinstance(error, Interrupted)
    assert error.exit_code == 130
    assert str(error) == f"interrupted; the best transform so far is in {tmp_path}"
    result = assert_kept(tmp_path, files)
    assert result["error"] == "interrupted"
    own = json.loads((tmp_path / "party_1.json").read_text())
    assert (own["error"], own["exit_code"]) == ("party_1: interrupted by SIGTERM", 143)


@pytest.mark.parametrize("backend", ["beaver", "bfv"])
@pytest.mark.parametrize("role", ["party_1", "party_2"])
def test_sigterm_to_one_party_ends_the_others(
    backend: str, role: str, site_files: Callable[..., Files], tmp_path: Path
) -> None:
    files = site_files("affine", 2)
    config = files.configuration(backend)
    error, _ = interrupted_run(config, tmp_path, ANSWERS[backend], PRODUCTS, sigterm_to(role))
    assert isinstance(error, PeerLost)
    assert f"{role} was interrupted" in str(error) or f"{role}: interrupted by SIGTERM" in str(error)
    assert_kept(tmp_path, files)
    reports = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("party_1", "party_2")}
    other = {"party_1": "party_2", "party_2": "party_1"}[role]
    assert (reports[role]["error"], reports[role]["exit_code"]) == (f"{role}: interrupted by SIGTERM", 143)
    assert reports[other]["exit_code"] == 3


def test_sigterm_to_the_dealer_ends_the_others(site_files: Callable[..., Files], tmp_path: Path) -> None:
    config = site_files("affine", 2).configuration("beaver")
    error, _ = interrupted_run(config, tmp_path, ANSWERS["beaver"], PRODUCTS, sigterm_to("dealer"))
    assert isinstance(error, PeerLost)
    assert json.loads((tmp_path / "dealer.json").read_text())["exit_code"] == 143
    assert json.loads((tmp_path / "result.json").read_text())["complete"] is False


@pytest.mark.parametrize("backend", ["beaver", "bfv"])
@pytest.mark.parametrize("kind", [MessageKind.HELLO, MessageKind.GEOMETRY, MessageKind.OPERAND])
def test_ctrl_c_in_the_set_up(
    backend: str, kind: MessageKind, site_files: Callable[..., Files], tmp_path: Path
) -> None:
    """There is nothing to keep yet, or the start."""
    error, _ = interrupted_run(site_files("affine", 2).configuration(backend), tmp_path, kind, 1, ctrl_c)
    assert isinstance(error, Interrupted)
    if (tmp_path / "result.json").exists():
        values = json.loads((tmp_path / "result.json").read_text())
        assert (values["complete"], values["error"]) == (False, "interrupted")
        assert (tmp_path / "transform.tfm").exists()
        assert values["iterations"] <= 1
    else:
        assert str(error) == "interrupted"
        assert not (tmp_path / "transform.tfm").exists()


@pytest.mark.parametrize("level", [1, 2])
def test_ctrl_c_in_the_deformable_stage(level: int, site_files: Callable[..., Files], tmp_path: Path) -> None:
    settings = site_files("affine", 2).configuration("beaver").model_dump()
    wanted = {"transform": {"kind": "bspline", "linear": "rigid"}, "loss": {"kind": "ncc"}}
    config = load_config({**settings, **wanted})
    operands = 2 + level  # after the rigid levels
    error, _ = interrupted_run(config, tmp_path, MessageKind.OPERAND, operands, ctrl_c)
    assert isinstance(error, Interrupted)
    values = json.loads((tmp_path / "result.json").read_text())
    assert (values["complete"], values["error"], values["transform"]["kind"]) == (False, "interrupted", "bspline")
    for name in ("transform.h5", "displacement.nii.gz", "warped.nii.gz"):
        assert (tmp_path / name).exists()


def test_ctrl_c_in_a_clear_run(
    site_files: Callable[..., Files], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ppir_torch.reporting.progress import Progress

    shown: list[Any] = []

    def show(_self: Progress, event: Any) -> None:
        shown.append(event)
        if len(shown) == PRODUCTS:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "show", show)
    files = site_files("affine", 2)
    with pytest.raises(Interrupted) as caught:
        run(files.configuration("clear"), tmp_path)
    assert str(caught.value) == f"interrupted; the best transform so far is in {tmp_path}"
    values = json.loads((tmp_path / "result.json").read_text())
    assert (values["complete"], values["error"], values["iterations"]) == (False, "interrupted", PRODUCTS)
    assert (tmp_path / "transform.tfm").exists()


# --- whole programs ---------------------------------------------------------------------------------------------------


def descendants(pid: int) -> dict[int, str]:
    """Process -> its command line, of all that a process started and they did."""
    found: dict[int, str] = {}
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    todo = [pid]
    while todo:
        one = todo.pop()
        for child, parent in parents.items():
            if parent == one:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                todo.append(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 100.0) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Program:
    """A `ppir run` whose iterations do not end by themselves for long, in a session of its own."""

    def __init__(self, backend: str, files: Files, folder: Path) -> None:
        self.children: dict[int, str] = {}
        self.errors, self.releases = folder.with_suffix(".stderr"), folder.with_suffix(".sqlite")
        values = [f"data.moving={files.moving}", f"data.fixed={files.fixed}", f"output={folder}", f"backend={backend}"]
        values += ["optimizer=adam", "optimizer.stopping.max_iterations=1000", "optimizer.stopping.step_voxels=0"]
        values += ["optimizer.stopping.decrease=0", "budget.max_values=1000000", "threads=1"]
        values += [f"budget.file={self.releases}"]
        with self.errors.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ppir_torch", "run", *values],
                stderr=stream,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)],
            )

    def ready(self) -> bool:
        """Whether it catches SIGTERM: the first that it does; before, the interpreter's own start is interrupted."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def iterates(self) -> bool:
        """Whether party_2 has released values of some products."""
        return self.releases.exists() and sum(row.count for row in open_ledger_rows(self.releases)) > 30

    def roles(self) -> dict[str, int]:
        """Role -> process."""
        found = descendants(self.process.pid)
        return {line.split()[3]: pid for pid, line in found.items() if "parties.process" in line}

    def end(self) -> str:
        """Wait; nobody may be left. Returns what was said on standard error."""
        assert wait_until(lambda: not any(map(alive, self.children)))
        return self.errors.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["started", "imports", "iterations"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("backend", ["clear", "beaver"])
def test_a_signal_to_the_program_ends_all_of_it(
    backend: str, number: int, phase: str, site_files: Callable[..., Files], tmp_path: Path
) -> None:
    program = Program(backend, site_files("affine", 2), tmp_path / "run")
    try:
        if phase == "started":
            assert wait_until(program.ready)
        elif backend == "clear":
            assert wait_until(lambda: (tmp_path / "run" / "config.yaml").exists())
            time.sleep(0 if phase == "imports" else 5)
        else:
            assert wait_until(lambda: "party_2" in program.roles())
            assert phase == "imports" or wait_until(program.iterates)
        program.children = descendants(program.process.pid)
        os.killpg(program.process.pid, number)
        assert program.process.wait(100) == 128 + number
        said = program.end()
    finally:
        program.process.kill()
    # While modules are imported a signal may come in a callback of Python's own, which reports it and goes on.
    assert "Traceback" not in said or "Exception ignored in" in said
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert said.splitlines()[-1].startswith(f"ppir: interrupted{by}")
    kept = "the best transform so far is in" in said
    assert kept or phase != "iterations" or backend == "clear"  # which nobody can see from outside
    if kept:
        values = json.loads((tmp_path / "run" / "result.json").read_text())
        assert (values["complete"], values["error"]) == (False, f"interrupted{by}")
        assert (tmp_path / "run" / "transform.tfm").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["beaver", "bfv"])
@pytest.mark.parametrize("phase", ["imports", "iterations"])
def test_parties_end_with_a_program_that_is_killed(
    backend: str, phase: str, site_files: Callable[..., Files], tmp_path: Path
) -> None:
    program = Program(backend, site_files("affine", 2), tmp_path / "run")
    try:
        assert wait_until(lambda: "party_2" in program.roles())
        assert phase == "imports" or wait_until(program.iterates)
        program.children = descendants(program.process.pid)
        assert len(program.children) >= 2
        program.process.kill()
        program.process.wait()
        assert "Traceback" not in program.end()
    finally:
        program.process.kill()
    if phase == "iterations":
        report = json.loads((tmp_path / "run" / "party_1.json").read_text())
        assert report["error"] == "party_1: interrupted by SIGTERM"
        assert (tmp_path / "run" / "transform.tfm").exists()
