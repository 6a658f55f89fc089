"""The terminal, and the only place of the package that writes to it.

What was asked for goes to standard output, what goes on meanwhile to standard error; the rest of the package logs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["print_result", "print_warnings", "say", "say_meanwhile", "show_log", "show_table"]


def say(line: str) -> None:
    """A line on standard output."""
    print(line)


def say_meanwhile(line: str) -> None:
    """A line on standard error, at once; where the terminal is gone, nowhere."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def show_log() -> None:
    """From now on the package's log, from INFO on, is on standard error, a line a record."""
    log = logging.getLogger("ppir_torch")
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines(logging.INFO))
        log.setLevel(min(logging.INFO, log.level or logging.INFO))


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say_meanwhile(self.format(record))


def show_table(table: Table) -> None:
    """A table of rich's on standard output; what stands in it is not taken for rich's markup or highlighted."""
    from rich.console import Console

    Console(highlight=False, markup=False).print(table)


def print_result(result: Mapping[str, Any], folder: Path) -> None:
    """A short table: what was run, how close it came, what each party spent and learned, which files there are."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key in ("transform", "loss", "backend", "iterations", "points"):
        if result.get(key) is not None:
            table.add_row(key, _transform_line(result[key]) if isinstance(result[key], Mapping) else str(result[key]))
    for key, name, unit in (
        ("value", "loss value", ""),
        ("residual_rms_mm", "RMS distance left", " mm"),
        ("rmse_to_truth_mm", "RMSE to the truth", " mm"),
        ("rmse_to_clear_mm", "RMSE to the clear run", " mm"),
        ("seconds", "time", " s"),
    ):
        if result.get(key) is not None:
            table.add_row(name, f"{result[key]:.4g}{unit}")
    for party in ("party_1", "party_2"):
        if result.get(party):
            table.add_row(party, _party_line(result[party]))
    if result.get("backend_reason"):
        table.add_row("chosen", str(result["backend_reason"]))
    if result.get("insecure"):
        table.add_row("INSECURE", "a published baseline: attacks read both images from what it sends")
    if result.get("ledger"):
        opened = sum(entry["opened"] for entry in result["ledger"])
        last = result["ledger"][-1]
        added = f"{max(last['explained'] - last['own'], 0):.2%} of J added to the {last['own']:.2%}"
        table.add_row("ledger", f"{opened} values opened; {added} that party_1's own image explains")
    for party, lines in (result.get("disclosed") or {}).items():
        table.add_row(f"{party} learned", "\n".join(lines) or "nothing")
    files = sorted(path.name for path in folder.iterdir())
    table.add_row(str(folder), ", ".join(files))
    show_table(table)


def print_warnings(result: Mapping[str, Any]) -> None:
    """What is wrong with a run, and what to try, on standard error: in colour on a terminal, plain on a pipe."""
    warnings = result.get("warnings") or ()
    if not warnings:
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    for warning in warnings:
        style = "bold red" if warning["fatal"] else "bold yellow"
        console.print(f"ppir: warning: {warning['message']}", style=style)
        console.print(f"      try: {warning['advice']}", style=style.removeprefix("bold "))


def _transform_line(transform: Mapping[str, Any]) -> str:
    rows = [[round(v, 5) for v in row] for row in transform.get("matrix", [])]
    offset = [round(v, 4) for v in transform.get("offset_mm", [])]
    return f"{transform.get('kind')}, y = A x + b with A {rows}, b {offset} mm"


def _party_line(party: Mapping[str, Any]) -> str:
    sent, set_up = party.get("bytes_sent"), party.get("set_up_bytes")
    parts = [
        f"{party['seconds']:.4g} s" if party.get("seconds") is not None else "",
        f"{_bytes(sent)} sent" if sent is not None else "",
        f"{_bytes(set_up)} of it set-up" if set_up is not None else "",
        f"{party['peak_memory_mb']:.0f} MB of memory" if party.get("peak_memory_mb") is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
