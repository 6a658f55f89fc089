"""Progress: on a pipe one line a level, on a terminal a bar, on standard output nothing."""

from __future__ import annotations

import pytest

from ppir_torch.optimizers import Iteration
from ppir_torch.registration import LevelIteration
from ppir_torch.reporting.progress import Progress


def event(level: int, number: int, value: float = 2.5) -> LevelIteration:
    return LevelIteration(level, 2, 2 - level, 100, Iteration(number, value, True, 0.1, 0.0), 1.25)


def test_on_a_pipe_there_is_one_line_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    sent = iter((1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000, 6_000_000, 7_000_000))
    with Progress("bfv", lambda: next(sent)) as progress:
        for level, numbers in ((0, 3), (1, 2)):
            for number in range(1, numbers + 1):
                progress.show(event(level, number, value=10.0 / number))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("bfv: level 1/2, 3 iterations, loss 3.33333  1.2 s")
    assert lines[1].startswith("bfv: level 1/1, 2 iterations, loss 5  1.2 s")
    assert all(line.endswith("MB sent") for line in lines)


def test_a_clear_run_sends_nothing_and_says_nothing_of_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("clear") as progress:
        progress.show(event(0, 1))
    assert capsys.readouterr().err == "clear: level 1/2, 1 iterations, loss 2.5  1.2 s\n"


def test_a_run_that_never_began_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("clear"):
        pass
    assert capsys.readouterr().err == ""


def test_what_was_reached_is_said_when_the_run_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Progress("clear") as progress:  # noqa: PT012
        progress.show(event(0, 4))
        raise ZeroDivisionError
    assert "level 1/2, 4 iterations" in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar_and_no_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with Progress("bfv", lambda: 1_500_000) as progress:
        progress.show(event(0, 1))
        progress.show(event(1, 2))
    text = capsys.readouterr().err
    assert "level 1/1  iteration 2" in text
    assert "1.5 MB sent" in text
    assert "iterations," not in text
