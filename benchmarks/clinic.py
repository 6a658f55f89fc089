"""What clinics send: every row of defaults.py by ours and by the peers, affine, from the images as they lie.

    python benchmarks/clinic.py [--rows whole slab] [--tools ours ants] [--threads 2] [-o clinic.json]

Ours with its defaults, in clear and with `beaver` (all parties as processes of this machine); ANTs, elastix and greedy
with theirs (capture_worker.py), each with the interpreter of peers_env.sh; SimpleITK's registration method with
correlation. Millimetres (RMSE over the fixed foreground) or mean Dice; processor seconds of each tool, start-up and
reading left out. A row is held where ours is at least the best peer less 0.02 Dice, or within 20 % of its millimetres
(0.02 mm always count as equal: they are less than a hundredth of a voxel).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import defaults
import timing
import torch
from capture_worker import homogeneous

from ppir_torch import register
from ppir_torch.errors import PpirError
from ppir_torch.images import save_image
from ppir_torch.transforms import affine_from_map

WORKER = Path(__file__).parent / "capture_worker.py"
PEERS_PYTHON = Path("outputs/benchmarks/peers-env/bin/python")
PEERS = ("ants", "elastix", "greedy")
SAME_MM, WITHIN, LESS_DICE = 0.02, 1.2, 0.02


def by_worker(tool: str, python: Path, folder: Path, threads: int) -> tuple[Any, float]:
    """(4 x 4 matrix or None, processor seconds) of a tool on the folder's pair."""
    command = [str(python), str(WORKER), tool, str(folder), str(threads), "00"]
    environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=1800)
    lines = [line for line in done.stdout.splitlines() if line.startswith("#00")]
    if not lines:
        return None, math.nan
    _, seconds, found = lines[-1].split(" ", 2)
    return json.loads(found), float(seconds)


def privately(folder: Path) -> tuple[Any, float]:
    """The same by two parties' processes and a dealer, with the protocol `beaver`; wall-clock seconds."""
    started = time.perf_counter()
    result = register(
        str(folder / "start-00.nii.gz"),
        str(folder / "fixed.nii.gz"),
        backend="beaver",
        start="identity",
        releases=str(folder / "releases.sqlite"),
        max_values=10_000_000,
    )
    seconds = time.perf_counter() - started
    return homogeneous(lambda p: result.transform(torch.tensor([p], dtype=torch.float64))[0].tolist()), seconds


def simpleitk(folder: Path, threads: int) -> tuple[Any, float]:
    """ImageRegistrationMethod with correlation, three levels, from the identity."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    fixed, moving = (sitk.ReadImage(str(folder / f"{n}.nii.gz"), sitk.sitkFloat32) for n in ("fixed", "start-00"))
    started, transform = time.process_time(), sitk.AffineTransform(3)
    transform.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, relaxationFactor=0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    thin = min(fixed.GetSize()) < 32
    method.SetShrinkFactorsPerLevel([1] if thin else [4, 2, 1])
    method.SetSmoothingSigmasPerLevel([0] if thin else [2, 1, 0])
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:
        return None, time.process_time() - started
    seconds = time.process_time() - started
    return homogeneous(transform.TransformPoint), seconds


def found_by(tool: str, folder: Path, threads: int) -> tuple[Any, float]:
    """(4 x 4 matrix or None, seconds)."""
    try:
        if tool == "ours, beaver":
            return privately(folder)
        if tool == "simpleitk":
            return simpleitk(folder, threads)
        return by_worker(tool, PEERS_PYTHON if tool in PEERS else Path(sys.executable), folder, threads)
    except (PpirError, subprocess.TimeoutExpired) as error:
        print(f"{tool}: {error}", file=sys.stderr)
        return None, math.nan


def held(entry: dict[str, Any], ours: str) -> bool:
    """Whether ours is at least about the best peer."""
    others = [entry[t]["found"] for t in entry["tools"] if not t.startswith("ours") and entry[t]["found"] is not None]
    mine = entry[ours]["found"]
    if mine is None or not others:
        return mine is not None
    if entry["unit"] == "Dice":
        return bool(mine >= max(others) - LESS_DICE)
    return bool(mine <= max(WITHIN * min(others), SAME_MM))


def measured(row: defaults.Row, tools: list[str], threads: int) -> dict[str, Any]:
    """One row by every tool."""
    entry: dict[str, Any] = {"row": row.name, "unit": row.unit, "tools": tools}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_image(row.moving, folder / "start-00.nii.gz")
        save_image(row.fixed, folder / "fixed.nii.gz")
        for tool in tools:
            matrix, seconds = found_by(tool, folder, threads)
            found = None
            if matrix is not None:
                table = torch.tensor(matrix, dtype=torch.float64)
                found = row.judge(affine_from_map(row.fixed.grid, table[:3, :3], table[:3, 3]))
            entry[tool] = {"found": found, "seconds": seconds}
    return entry


def shown(entry: dict[str, Any]) -> str:
    """A figure, or a dash where the tool gave up."""
    return "-" if entry["found"] is None else f"{entry['found']:.3f}"


def report(entries: list[dict[str, Any]], tools: list[str], facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    show = []
    for entry in entries:
        good = all(held(entry, tool) for tool in tools if tool.startswith("ours"))
        show.append([entry["row"], entry["unit"], *(shown(entry[t]) for t in tools), "yes" if good else "**no**"])
    seconds = [f"{sum(e[t]['seconds'] for e in entries if not math.isnan(e[t]['seconds'])):.0f}" for t in tools]
    table = timing.markdown_table(["pair", "", *tools, "held"], [*show, ["seconds in all", "", *seconds, ""]])
    return "\n".join(["# Clinic", "", table, "", f"{facts}"])


def main() -> None:
    """Measure, print and write."""
    names = ["ours", "ours, beaver", *PEERS, "simpleitk"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=None, help="words of the rows to measure")
    parser.add_argument("--tools", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/clinic.json"))
    given = parser.parse_args()
    tools = [tool for tool in given.tools if tool not in PEERS or PEERS_PYTHON.exists()]
    for tool in sorted(set(given.tools) - set(tools)):
        print(f"{tool}: {PEERS_PYTHON} is not there (benchmarks/peers_env.sh makes it); left out", file=sys.stderr)
    timing.set_threads(given.threads)
    torch.set_num_threads(given.threads)
    rows = defaults.phantoms() + (defaults.real() if defaults.DATA.is_dir() else [])
    entries = []
    for row in rows:
        wanted = given.rows is None or any(word in row.name for word in given.rows)
        if wanted and row.fixed.grid.dimension == 3:
            entries.append(measured(row, tools, given.threads))
            print(row.name, *(f"{tool} {shown(entries[-1][tool])}" for tool in tools), sep="  ", file=sys.stderr)
    facts = timing.machine(given.threads, ("torch",))
    timing.write_report(given.output, {"machine": facts, "rows": entries}, report(entries, tools, facts))


if __name__ == "__main__":
    main()
