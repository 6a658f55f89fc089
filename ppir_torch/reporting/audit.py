"""`ppir audit`: party_1's ledger of a run, and party_2's count of released values over all runs, as tables."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ConfigError
from .console import say, show_table

__all__ = ["print_ledger", "print_releases"]


def print_ledger(run: Path) -> None:
    """Print what the opened values of a run say about the fixed image, level by level.

    Raises:
        ConfigError: the folder holds no result of a private run.
    """
    try:
        values = json.loads((run / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run}: not the folder of a run (no readable result.json: {error})") from None
    entries = values.get("ledger")
    if not entries:
        raise ConfigError(f"{run}: no ledger; it is kept in private runs, with ledger.enabled (the default)")
    head = ["level", "points", "values opened", "rank", "J explained", "by own image", "added", "of the rest"]
    rows = [
        [
            str(entry["operand"]),
            f"{entry['points']:,}",
            str(entry["opened"]),
            str(entry["rank"]),
            f"{entry['explained']:.3%}",
            f"{entry['own']:.3%}",
            f"{max(entry['explained'] - entry['own'], 0):.3%}",
            f"{entry['beyond']:.1%}",
        ]
        for entry in entries
    ]
    _show(f"{run}: what the opened values told party_1 (backend {values['backend']})", head, rows)
    budget = values.get("budget")
    if budget:
        left = budget["cap"] - budget["spent"]
        say(
            f"party_2 released {budget['spent'] - budget['spent_before']} values in this run, {budget['spent']} in all "
            f"to {budget['peer']!r}; {left} of {budget['cap']} are left ({budget['file']})"
        )


def print_releases(path: Path, rows: list[list[str]]) -> None:
    """Print what a site has released, by peer and image: the rows of its file `path`."""
    _show(f"{path}: values released", ["peer", "image", "values", "runs", "first (UTC)", "last (UTC)"], rows)


def _show(title: str, head: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < 1 else "right")
    for row in rows:
        table.add_row(*row)
    show_table(table)
