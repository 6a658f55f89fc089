"""Tables: units, dashes where there is nothing, the same figures on the screen and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ppir_torch.reporting.tables import comparison, markdown, print_table, write_markdown

PARTY = {"seconds": 3.04, "bytes_sent": 9_620_000, "set_up_bytes": 9_500_000, "peak_memory_mb": 300.4}
PRIVATE: dict[str, Any] = {
    "ssd": 1.25,
    "iterations": 12,
    "rmse_to_truth_mm": 0.0123456,
    "rmse_to_clear_mm": 0.00034567,
    "seconds": 13.56,
    "party_1": PARTY,
    "party_2": PARTY | {"seconds": 1.0, "bytes_sent": 1200, "set_up_bytes": 1200},
}
CLEAR = PRIVATE | {"party_1": None, "party_2": None, "rmse_to_clear_mm": None, "seconds": 0.04}


def cells(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """run -> column -> cell; party columns that have the same name get the party's."""
    headers, rows = comparison(results)
    party, names = "", []
    for header in headers:
        party = header.split(" ")[0] if header.startswith("party") else party
        names.append(header if header.startswith("party") or not party else f"{party} {header}")
    assert len(set(names)) == len(names)
    assert all(len(row) == len(names) for row in rows)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def test_units_and_digits() -> None:
    row = cells({"bfv": PRIVATE})["bfv"]
    assert row == {
        "run": "bfv",
        "SSD": "1.2500",
        "iterations": "12",
        "to truth [mm]": "0.0123",
        "to clear [mm]": "0.000346",
        "wall [s]": "13.6",
        "party_1 [s]": "3.0",
        "party_1 MB/iteration": "0.010",  # (9.62 - 9.5) MB in 12 iterations: set-up is not smeared over them
        "party_1 MB set-up": "9.50",
        "party_1 MB total": "9.62",
        "party_1 peak [MB]": "300",
        "party_2 [s]": "1.0",
        "party_2 MB/iteration": "0.000",
        "party_2 MB set-up": "0.00",
        "party_2 MB total": "0.00",
        "party_2 peak [MB]": "300",
    }


def test_dashes_for_what_is_missing() -> None:
    row = cells({"clear": CLEAR})["clear"]
    assert row["to clear [mm]"] == "-"
    assert {cell for name, cell in row.items() if name.startswith("party")} == {"-"}
    assert {"SSD": row["SSD"], "wall [s]": row["wall [s]"]} == {"SSD": "1.2500", "wall [s]": "0.0"}
    lost = PRIVATE | {"ssd": None, "iterations": 0, "rmse_to_truth_mm": None, "party_2": None}
    row = cells({"lost": lost})["lost"]
    assert (row["SSD"], row["to truth [mm]"], row["party_2 MB total"]) == ("-", "-", "-")
    assert row["party_1 MB/iteration"] == "0.120"


def test_the_order_of_runs_is_kept() -> None:
    assert list(cells({"b": PRIVATE, "a": CLEAR})) == ["b", "a"]


def test_markdown(tmp_path: Path) -> None:
    headers, rows = comparison({"clear": CLEAR, "bfv": PRIVATE})
    lines = markdown(headers, rows).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(headers) + 1}
    assert lines[1] == "| " + " | ".join(["---"] * len(headers)) + " |"
    assert lines[3].startswith("| bfv | 1.2500 | 12 | 0.0123 |")
    path = tmp_path / "deep" / "table.md"
    write_markdown(path, "Title", headers, rows, "A note.\n")
    assert path.read_text() == f"# Title\n\n{markdown(headers, rows)}\nA note.\n"


def test_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a quantity, one column a run, in 80 characters; brackets are text, not rich's markup."""
    print_table(*comparison({"clear": CLEAR, "spdz": PRIVATE, "bfv": PRIVATE}), title="Affine")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Affine"
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for words in ("to truth [mm]", "party_1 [s]", "party_1 MB/iteration", "party_2 MB set-up", "party_2 peak [MB]"):
        assert words in text
    [truth] = [line for line in lines if "to truth" in line]
    assert truth.count("0.0123") == 3
    [total] = [line for line in lines if "party_1 MB total" in line]
    assert (total.count("9.62"), total.count("-")) == (2, 1)
