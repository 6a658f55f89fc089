"""From how far away an affine registration in clear finds the truth: ours and other tools, over 40 random starts.

    sh benchmarks/peers_env.sh
    python benchmarks/capture_range.py [--starts 40] [--images head ct pelvis] [--tools ours ants] [--again]

Three real images at 3 or 4 mm under a known affine, 2 % noise in both: the MNI head, the CT template of
../shared/data/09 and a pelvic MR of ../shared/data/08 (its nominal 0.4 mm taken as 1.5). For each start the moving
image is put into another pose: turned by up to 45 degrees about any axis, shifted by up to 60 mm in any direction (the
pelvis, which is a third as large: 20 mm), scaled by 0.8 to 1.25. Every tool begins at the identity. The share that ends
within 0.5 mm (RMSE over the fixed foreground). What a tool found is kept in outputs/benchmarks/capture_range; `--again`
measures ours anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timing
import torch
from peers import available
from torch import Tensor

from ppir_torch.grids import Grid
from ppir_torch.images import Image, load_image, save_image
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.phantoms import brain_pair
from ppir_torch.transforms import Affine, affine_from_map
from ppir_torch.warping import warp

WORKER = Path(__file__).parent / "capture_worker.py"
DATA = Path(__file__).parents[2] / "shared/data"
FOLDER = Path("outputs/benchmarks/capture_range")
PEERS = {"ants": "ants", "greedy": "picsl_greedy", "greedy, search": "picsl_greedy", "elastix": "itk"}
CLOSE_MM, DEGREES, SCALE, NOISE = 0.5, 45.0, 1.25, 0.02
SHIFT_MM = {"head": 60.0, "ct": 60.0, "pelvis": 20.0}


def coarse(image: Image, spacing_mm: float) -> Image:
    """Resampled to about this spacing, smoothed against aliasing."""
    factor = max(1, round(spacing_mm / min(image.grid.spacing)))
    return image.at_level(_level(factor, 0.42 * spacing_mm if factor > 1 else 0.0))


def _level(factor: int, sigma: float) -> Any:
    from ppir_torch.levels import Level

    return Level(factor, sigma)


def head() -> Image:
    return coarse(brain_pair(0.0).fixed, 4.0)


def ct() -> Image:
    return coarse(load_image(DATA / "09_templates3d_multimodal/moving_ct_scct.nii.gz"), 4.0)


def pelvis() -> Image:
    image = load_image(DATA / "08_prostate3d_mr_us_labels/case00_mr.nii.gz")
    grid = Grid(image.grid.size, (1.5,) * 3, (0.0,) * 3, image.grid.direction)
    return coarse(Image(image.tensor, grid), 3.0)


IMAGES: dict[str, Callable[[], Image]] = {"head": head, "ct": ct, "pelvis": pelvis}


def rotation(axis: Tensor, degrees: float) -> Tensor:
    x, y, z = (axis / axis.norm() * math.radians(degrees)).tolist()
    turn: Tensor = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))
    return turn


def posed(image: Image, matrix: Tensor, offset: Tensor) -> Image:
    """The image whose voxel at y lies at matrix y + offset: a similarity, so that voxels stay cubes' images."""
    scale = float(torch.linalg.det(matrix)) ** (1 / 3)
    axes = (matrix / scale) @ torch.tensor(image.grid.direction, dtype=torch.float64).reshape(3, 3)
    origin = matrix @ torch.tensor(image.grid.origin, dtype=torch.float64) + offset
    spacing = tuple(s * scale for s in image.grid.spacing)
    grid = Grid(image.grid.size, spacing, tuple(origin.tolist()), tuple(axes.flatten().tolist()))
    return Image(image.tensor, grid)


def noisy(image: Image, seed: int) -> Image:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(image.tensor.shape, generator=generator)
    spread = float(image.tensor.max() - image.tensor.min())
    return Image(image.tensor + NOISE * spread * noise, image.grid)


def prepare(name: str, starts: int) -> tuple[Path, Image, list[Affine]]:
    """(folder with the files, the fixed image without noise, the truth of each start)."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    moving = IMAGES[name]()
    grid, generator = moving.grid, torch.Generator().manual_seed(5)
    inner = rotation(torch.tensor([1.0, -2.0, 2.0]), 6.0) @ torch.diag(torch.tensor([1.04, 0.97, 1.02])).double()
    known = affine_from_map(grid, inner, grid.centre - inner @ grid.centre + 2.0)
    fixed = warp(moving, known, grid)
    save_image(noisy(fixed, 1), folder / "fixed.nii.gz")
    shown, truths = noisy(moving, 2), []
    for number in range(starts):
        axis, direction = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        angle, length, scale = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        matrix = rotation(axis, DEGREES * angle) * SCALE ** (2 * scale - 1)
        offset = grid.centre - matrix @ grid.centre + SHIFT_MM[name] * length * direction / direction.norm()
        save_image(posed(shown, matrix, offset), folder / f"start-{number:02d}.nii.gz")
        truths.append(affine_from_map(grid, matrix, offset).compose(known))
    return folder, fixed, truths


def found_by(tool: str, python: str, folder: Path, threads: int, starts: int, again: bool) -> list[tuple[float, Any]]:
    """(CPU seconds, matrix or None) of each start; what is in the cache is not measured again."""
    cache = folder / f"{tool.replace(', ', '-')}.jsonl"
    if again:
        cache.unlink(missing_ok=True)
    kept = _kept(cache)
    missing = [f"{n:02d}" for n in range(starts) if n not in kept]
    if missing:
        command = [python, str(WORKER), tool, str(folder), str(threads), *missing]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker, cache.open("a") as lines:
            assert worker.stdout is not None
            for line in worker.stdout:
                if line.startswith("#"):
                    lines.write(line[1:])
                    lines.flush()
        kept = _kept(cache)
    if any(n not in kept for n in range(starts)):
        raise SystemExit(f"capture_range.py: {tool} failed")
    return [kept[n] for n in range(starts)]


def _kept(cache: Path) -> dict[int, tuple[float, Any]]:
    """Number of a start -> what was found, from a file with a line each."""
    lines = cache.read_text().splitlines() if cache.exists() else []
    parts = [line.split(" ", 2) for line in lines if line]
    return {int(number): (float(seconds), json.loads(matrix)) for number, seconds, matrix in parts}


def distance(fixed: Image, matrix: Any, truth: Affine) -> float:
    if matrix is None:
        return math.inf
    found = torch.tensor(matrix, dtype=torch.float64)
    points = foreground_points(fixed)
    return displacement_rmse(affine_from_map(fixed.grid, found[:3, :3], found[:3, 3]), truth, points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--images", nargs="+", choices=list(IMAGES), default=list(IMAGES))
    parser.add_argument("--tools", nargs="+", default=["ours", "ours, turns", *PEERS])
    parser.add_argument("--again", action="store_true", help="measure anew what is kept of ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-env", type=Path, default=Path("outputs/benchmarks/peers-env"))
    arguments = parser.parse_args()
    timing.set_threads(arguments.threads)
    python = arguments.peers_env / "bin" / "python"
    peers = available(python, {name: module for name, module in PEERS.items() if name in arguments.tools})
    tools = [name for name in arguments.tools if name not in PEERS or name in peers]
    entries = []
    for name in arguments.images:
        folder, fixed, truths = prepare(name, arguments.starts)
        for tool in tools:
            interpreter = os.path.abspath(python) if tool in PEERS else sys.executable
            again = arguments.again and tool not in PEERS
            results = found_by(tool, interpreter, folder, arguments.threads, arguments.starts, again)
            errors = [distance(fixed, matrix, truth) for (_, matrix), truth in zip(results, truths, strict=True)]
            seconds = timing.median([seconds for seconds, _ in results])
            entries.append({"image": name, "tool": tool, "errors_mm": errors, "seconds": seconds})
            print(row(entries[-1]), file=sys.stderr)
    facts = timing.machine(arguments.threads, ("torch",))
    timing.write_report(FOLDER.with_suffix(".json"), {"machine": facts, "tools": entries}, report(entries, facts))


def row(entry: dict[str, Any]) -> list[str]:
    errors: Sequence[float] = sorted(entry["errors_mm"])
    share = sum(e < CLOSE_MM for e in errors) / len(errors)
    middle = timing.median([e for e in errors if e < CLOSE_MM] or [math.nan])
    return [entry["image"], entry["tool"], f"{100 * share:.0f} %", f"{middle:.3f}", f"{entry['seconds']:.1f}"]


def report(entries: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    head = ["image", "tool", f"within {CLOSE_MM} mm", "their median mm", "CPU seconds"]
    starts = len(entries[0]["errors_mm"])
    about = f"{facts['cpu']}, {facts['cores']} cores, {facts['threads_per_process']} threads; {starts} starts an image"
    return "\n".join(["# Capture range", "", about, "", timing.markdown_table(head, [row(e) for e in entries])])


if __name__ == "__main__":
    main()
