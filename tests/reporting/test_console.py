"""The terminal: what was asked for on standard output, what goes on meanwhile on standard error."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.table import Table

from ppir_torch.reporting.console import print_result, print_warnings, say, say_meanwhile, show_table


def test_what_was_asked_for_and_what_goes_on_meanwhile_are_apart(capsys: pytest.CaptureFixture[str]) -> None:
    say("asked for")
    say_meanwhile("meanwhile")
    assert capsys.readouterr() == ("asked for\n", "meanwhile\n")


def test_brackets_in_a_table_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="[bold]")
    table.add_column("[red] column")
    show_table(table)
    shown = capsys.readouterr().out
    assert "[bold]" in shown
    assert "[red]" in shown


def test_a_result_says_what_ran_what_it_cost_and_what_was_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "result.json").write_text("{}")
    party = {"seconds": 1.25, "bytes_sent": 2_500_000, "set_up_bytes": 1000, "peak_memory_mb": 512.0}
    result = {
        "transform": {"kind": "affine", "matrix": [[1.0, 0.0], [0.0, 1.0]], "offset_mm": [1.0, -2.0]},
        "backend": "bfv",
        "iterations": 12,
        "value": 3.14159265,
        "party_1": party,
        "party_2": None,
        "ledger": [{"opened": 7, "explained": 0.5, "own": 0.25}],
        "disclosed": {"party_1": ["the transform"], "party_2": []},
    }
    print_result(result, tmp_path)
    shown = capsys.readouterr().out
    for words in ("affine", "bfv", "3.142", "1.25 s", "2.5 MB sent", "7 values opened", "25.00% of J", "result.json"):
        assert words in shown
    assert "nothing" in shown  # what party_2 learned
    assert "to the truth" not in shown


@pytest.mark.parametrize(("fatal", "colour"), [(False, "33"), (True, "31")], ids=["yellow", "red"])
def test_warnings_are_in_colour_on_a_terminal(
    fatal: bool, colour: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = {"kind": "unlike", "message": "[odd] " + 40 * "long ", "advice": "ncc", "levels": [0], "fatal": fatal}
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_warnings({"warnings": [warning]})
    shown = capsys.readouterr().err.splitlines()
    assert [f"{colour}m" in line for line in shown] == [True, True]  # one line each, however long
    monkeypatch.delenv("FORCE_COLOR")
    print_warnings({"warnings": [warning]})
    plain = capsys.readouterr()
    assert plain.err.splitlines() == [f"ppir: warning: {warning['message']}".rstrip(" ") + " ", "      try: ncc"]
    assert plain.out == ""


def test_nothing_is_printed_of_a_run_without_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    print_warnings({})
    print_warnings({"warnings": []})
    assert capsys.readouterr() == ("", "")
