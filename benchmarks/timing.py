"""What every benchmark here shares: alternating repeats, medians, the machine's line, tables and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

__all__ = ["alternate", "machine", "markdown_table", "median", "set_threads", "write_report"]


def set_threads(threads: int) -> None:
    """Limit this process and those it starts; call it before torch or ITK is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = str(threads)


def alternate(contenders: Mapping[str, Callable[[], T]], repeats: int, warm_up: int = 1) -> dict[str, list[T]]:
    """Call every contender `repeats` times, taking turns, so that a slow minute of the machine hits all of them.

    The `warm_up` rounds before are not returned.
    """
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(warm_up + repeats):
        for name, run in contenders.items():
            result = run()
            if number >= warm_up:
                results[name].append(result)
    return results


def median(values: Sequence[float]) -> float:
    """The median, as a plain float."""
    return float(statistics.median(values))


def machine(threads: int, packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, its load now, the threads of each process, and the versions of `packages` in this environment."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads_per_process": threads,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_report(path: Path, values: Mapping[str, Any], text: str) -> None:
    """Write `values` as JSON to `path`, `text` as Markdown beside it, and print the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")
    path.with_suffix(".md").write_text(text + "\n")
    print(text)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
