"""Deformable 3-D registration in clear, ours and other tools, taking turns in one run.

    sh benchmarks/peers_env.sh
    python benchmarks/deformable.py [--cases known 05 06] [--tools ...] [-o outputs/benchmarks/deformable.json]

- known: the demo's brain (2 mm) under a known affine and a smooth displacement of up to 6 mm, 2 % noise: RMSE in mm to
  the truth inside the brain.
- 05, 06: pairs of ../shared/data with labels, skipped where absent: Dice of the moved labels, mean over the structures.
  Ours runs with `experiment=between_subjects` there: two people's images need a local correlation. The others' metrics
  suit both cases.

Every run is a fresh process. Times go from loaded images to the transform, the affine stage included. The share of
voxels that fold is that of the displacement field each tool wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
from deformable_worker import TOOLS
from peers import available

WORKER = Path(__file__).resolve().parent / "deformable_worker.py"
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
# The weight again: the worker chooses the transform, and a choice drops what an experiment sets.
BETWEEN = ["experiment=between_subjects", "transform.weight=1.0"]
SETTINGS = {"known": list[str](), "05": BETWEEN, "06": BETWEEN}
PAIRS = {
    "05": (
        "05_brain3d_subject_to_mni_labels",
        ("fixed_mni152_t1_brain.nii.gz", "fixed_mni152_labels4.nii.gz"),
        ("moving_subject_t1.nii.gz", "moving_subject_labels4.nii.gz"),
    ),
    "06": (
        "06_brain3d_subject_pair_tissue",
        ("fixed_t1.nii.gz", "fixed_seg2.nii.gz"),
        ("moving_t1.nii.gz", "moving_seg2.nii.gz"),
    ),
}


def prepare(case: str, scratch: Path) -> tuple[Path, Path, Callable[[Path], dict[str, float]]]:
    """(fixed file, moving file, what to measure in a tool's folder)."""
    import torch

    from ppir_torch.images import Image, load_image, save_image
    from ppir_torch.metrics.overlap import dice
    from ppir_torch.metrics.registration import (
        displacement_rmse,
        folding_share,
        foreground_points,
        jacobian_determinant,
    )
    from ppir_torch.phantoms import deformed_pair
    from ppir_torch.transforms import load_displacement
    from ppir_torch.warping import warp

    if case == "known":
        pair = deformed_pair()
        fixed, moving = scratch / "fixed.nii.gz", scratch / "moving.nii.gz"
        save_image(pair.fixed, fixed)
        save_image(pair.moving, moving)
        points = foreground_points(pair.fixed)

        def of_truth(folder: Path) -> dict[str, float]:
            found = load_displacement(folder / "displacement.nii.gz")
            folded = folding_share(jacobian_determinant(found, pair.fixed.grid))
            return {"rmse_mm": displacement_rmse(found, pair.truth, points), "folding": folded}

        return fixed, moving, of_truth
    folder, (fixed_name, fixed_labels), (moving_name, moving_labels) = PAIRS[case]
    where = DATA / folder
    target = load_image(where / fixed_labels).tensor[0].round().long()
    labels = load_image(where / moving_labels)
    grid = load_image(where / fixed_name).grid

    def of_labels(folder: Path) -> dict[str, float]:
        found = load_displacement(folder / "displacement.nii.gz")
        moved = warp(Image(labels.tensor, labels.grid), found, grid, mode="nearest").tensor[0].round().long()
        shares = dice(moved, target)
        folded = folding_share(jacobian_determinant(found, grid))
        return {"dice": float(torch.tensor(list(shares.values())).mean()), "folding": folded}

    return where / fixed_name, where / moving_name, of_labels


def run_once(python: str, tool: str, fixed: Path, moving: Path, folder: Path, settings: list[str]) -> float:
    """One registration in a process of its own, in its folder (elastix writes into the current one); its seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [str(path.resolve()) for path in (fixed, moving, folder)]
    done = subprocess.run(
        [python, str(WORKER), tool, *files, *settings], capture_output=True, text=True, check=False, cwd=folder
    )
    if done.returncode != 0:
        raise SystemExit(f"deformable.py: {tool} failed ({done.returncode}): {done.stderr[-500:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["known", *PAIRS], choices=["known", *PAIRS])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-env", type=Path, default=Path("outputs/benchmarks/peers-env"))
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/deformable.json"))
    arguments = parser.parse_args()
    timing.set_threads(arguments.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    peer = os.path.abspath(arguments.peers_env / "bin" / "python")
    modules = {"ants": "ants", "greedy": "picsl_greedy", "elastix": "itk"}
    found = set(available(Path(peer), modules))
    tools = {
        tool: sys.executable if tool.startswith("ours") else peer
        for tool in arguments.tools
        if tool.startswith("ours") or tool.split()[0] in found
    }
    facts = timing.machine(arguments.threads, ("torch",))
    entries: list[dict[str, Any]] = []
    for case in arguments.cases:
        if case in PAIRS and not (DATA / PAIRS[case][0]).exists():
            print(f"{case}: skipped, {DATA / PAIRS[case][0]} is absent", file=sys.stderr)
            continue
        scratch = arguments.output.parent / "deformable" / case
        scratch.mkdir(parents=True, exist_ok=True)
        fixed, moving, measure = prepare(case, scratch)

        def contender(
            tool: str,
            python: str,
            scratch: Path = scratch,
            pair: tuple[Path, Path] = (fixed, moving),
            settings: list[str] = SETTINGS[case],
        ) -> Callable[[], float]:
            return lambda: run_once(python, tool, *pair, scratch / tool.replace(" ", "-"), settings)

        runs = timing.alternate({t: contender(t, p) for t, p in tools.items()}, arguments.repeats, warm_up=0)
        for tool, seconds in runs.items():
            figures = measure(scratch / tool.replace(" ", "-"))
            entries.append({"case": case, "tool": tool, "seconds": timing.median(seconds), **figures})
            print(entries[-1], file=sys.stderr, flush=True)
    timing.write_report(arguments.output, {"machine": facts, "tools": entries}, report(entries, facts))


def report(entries: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        [
            e["case"],
            e["tool"],
            f"{e['rmse_mm']:.3f}" if "rmse_mm" in e else "-",
            f"{e['dice']:.4f}" if "dice" in e else "-",
            f"{e['seconds']:.1f}",
            f"{e['folding']:.4%}",
        ]
        for e in entries
    ]
    head = ["case", "tool", "RMSE mm", "Dice", "s", "folding"]
    load = f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']} at the start"
    return f"# Deformable 3-D in clear, ours and peers\n\n{load}\n\n{timing.markdown_table(head, rows)}"


if __name__ == "__main__":
    main()
