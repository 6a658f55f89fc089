"""Tables of runs, for the screen and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .console import show_table

__all__ = ["comparison", "markdown", "print_table", "write_markdown"]


def comparison(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(headers, rows) of one table over runs, by label; a run is the values of its result.json.

    MB are bytes that the party gave to its links: keys, operands and headers included in the total.
    """
    headers = ["run", "SSD", "iterations", "to truth [mm]", "to clear [mm]", "wall [s]"]
    for party in ("party_1", "party_2"):
        headers += [f"{party} [s]", "MB/iteration", "MB set-up", "MB total", "peak [MB]"]
    return headers, [_row(label, values) for label, values in results.items()]


def _row(label: str, values: Mapping[str, Any]) -> list[str]:
    row = [
        label,
        _number(values.get("value", values.get("ssd")), "{:.4f}"),
        str(values["iterations"]),
        _number(values.get("rmse_to_truth_mm"), "{:.4f}"),
        _number(values.get("rmse_to_clear_mm"), "{:.6f}"),
        f"{values['seconds']:.1f}",
    ]
    for party in ("party_1", "party_2"):
        account = values.get(party)
        if account is None:
            row += ["-"] * 5
            continue
        moving = (account["bytes_sent"] - account["set_up_bytes"]) / max(values["iterations"], 1)
        row += [f"{account['seconds']:.1f}", f"{moving / 1e6:.3f}", f"{account['set_up_bytes'] / 1e6:.2f}"]
        row += [f"{account['bytes_sent'] / 1e6:.2f}", f"{account['peak_memory_mb']:.0f}"]
    return row


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """The same on the screen, one line a quantity and one column a run, so that it fits a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    table.add_column(headers[0])
    for row in rows:
        table.add_column(row[0], justify="right")
    party = ""
    for number, name in enumerate(headers[1:], 1):
        party = name.split(" ")[0] if name.startswith("party") else party
        label = name if name.startswith("party") or not party else f"{party} {name}"
        table.add_row(Text(label), *(row[number] for row in rows))
    show_table(table)


def write_markdown(
    path: Path, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> None:
    """A Markdown file with one table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {title}\n\n{markdown(headers, rows)}\n{note}", encoding="utf-8")
