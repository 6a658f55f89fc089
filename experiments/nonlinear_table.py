"""The paper's non-linear table on public pairs: free-form deformations, every protocol, all points, URS and GMS.

    python experiments/nonlinear_table.py [--seeds 3 1] [--cases 2-D 3-D] [--protocols clear beaver] [--docs]

2-D: a T1 slice (../shared/data/03, 5 mm between control points) under a known affine and a smooth displacement.
2-D subjects: two subjects' slices: no truth is known; Dice of their labels.
3-D: the demo's brain under a known affine and a smooth displacement, resampled to 4 mm (`--spacing 2` for 2 mm).

Displacement RMSE in mm inside the fixed foreground to the truth, to the clear run of the same row and seed, and to the
full clear run; values opened, seconds and MB of each party; mean and standard deviation over the sampling seeds.
`ROUNDED` is a clear run whose fixed image is one float32 step off in every voxel, up or down by chance: how far apart
two runs end that compare the same function. A private run cannot be expected to be nearer.
No published figure stands beside ours (Taiello et al., MICCAI 2022): their image is not public, and their RMSE is
another quantity.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppir_torch import Image, PpirError, load_image, register, save_image
from ppir_torch.grids import Grid
from ppir_torch.metrics.overlap import dice
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.parties.accounting import write_json
from ppir_torch.phantoms import deformed, deformed_pair
from ppir_torch.reporting.tables import markdown
from ppir_torch.transforms import Displacement, affine_from_map, save_transform
from ppir_torch.warping import warp

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared/data/03_brain2d_oasis_trt_labels"
ROUNDED = "rounded"
PROTOCOLS = ("clear", ROUNDED, "spdz", "beaver", "bfv", "ckks")
CASES = ("2-D", "2-D subjects", "3-D")
SAMPLERS = {"": "none", "+URS": "urs", "+GMS": "gms"}
STOPPING = {"max_iterations": 40, "decrease": 1e-4}
ABOUT = (
    "ROUNDED is a clear run whose fixed image is one float32 step off in every voxel, up or down by chance: how far "
    "apart two clear runs end that compare the same function. A private run cannot be expected to be nearer. Two "
    "subjects' minima are many, above all where a tenth of the points is compared: there runs that are a rounding "
    "apart may end in different ones."
)
COLUMNS = (
    ("iterations", "iterations", "{:.1f}"),
    ("RMSE to truth [mm]", "rmse_to_truth_mm", "{:.4f}"),
    ("Dice", "dice", "{:.4f}"),
    ("RMSE to clear, same row [mm]", "rmse_to_clear_mm", "{:.4f}"),
    ("RMSE to full clear [mm]", "rmse_to_full_clear_mm", "{:.4f}"),
    ("folding [%]", "folding", "{:.3f}"),
    ("values opened", "opened", "{:.0f}"),
    ("J beyond own image [%]", "beyond", "{:.1f}"),
    ("loop [s]", "loop_seconds", "{:.2f}"),
    ("party_1 [MB/iteration]", "party_1_mb_per_iteration", "{:.3f}"),
    ("party_1 [MB]", "party_1_mb", "{:.2f}"),
    ("party_2 [MB]", "party_2_mb", "{:.2f}"),
)


def pair_2d(folder: Path) -> dict[str, Any]:
    """A slice of data/03 under a known affine and smooth displacement, with 2 % noise; 5 mm between control points."""
    fixed = load_image(DATA / "sub01_t1.png")
    turn = math.radians(8.0)
    linear = torch.tensor([[1.05, 0.03], [0.0, 0.96]], dtype=torch.float64) @ torch.tensor(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64
    )
    centre = fixed.grid.centre
    affine = affine_from_map(fixed.grid, linear, centre + torch.tensor([5.0, -4.0]) - linear @ centre)
    pair = deformed(fixed, affine, largest_mm=6.0, smoothness_mm=12.0, noise=0.02, seed=1)
    what = "OASIS-TRT slice under a known affine and displacement up to 6 mm, 2 % noise"
    return _written(folder, what, pair.moving, pair.fixed, pair.truth) | {
        "transform": {"kind": "bspline", "spacing_mm": 5.0, "weight": 1.0} | STOPPING
    }


def pair_of_subjects() -> dict[str, Any]:
    """Two subjects of data/03, with labels; the transform's spacing is the issue's 5 mm."""
    labels = [load_image(DATA / f"sub0{n}_labels.png").tensor[0].round().long() for n in (1, 2)]
    return {
        "what": "OASIS-TRT slices, sub02 <- sub01",
        "moving": DATA / "sub01_t1.png",
        "fixed": DATA / "sub02_t1.png",
        "truth": None,
        "labels": labels,
        # Two subjects: with smaller weights such fine control points fold, and the minimum is no single one.
        "transform": {"kind": "bspline", "spacing_mm": 5.0, "weight": 100.0} | STOPPING,
    }


def pair_3d(folder: Path, spacing_mm: float) -> dict[str, Any]:
    """The deformed brain on a grid of this spacing, with its truth as a displacement field."""
    pair = deformed_pair()
    shrink = round(spacing_mm / pair.fixed.grid.spacing[0])
    grid = pair.fixed.grid.shrunk((shrink,) * 3)[0]
    moving, fixed = (_resampled(image, grid) for image in (pair.moving, pair.fixed))
    what = f"MNI152 brain at {grid.spacing[0]:g} mm, known affine and displacement up to 6 mm, 2 % noise"
    spacing = max(12.0, 4 * grid.spacing[0])
    return _written(folder, what, moving, fixed, Displacement.from_transform(pair.truth, grid)) | {
        "transform": {"kind": "bspline", "spacing_mm": spacing, "weight": 2.0} | STOPPING
    }


def _written(folder: Path, what: str, moving: Image, fixed: Image, truth: nn.Module) -> dict[str, Any]:
    """A pair with a truth as files."""
    dimension = fixed.grid.dimension
    files = [folder / f"{dimension}d_{name}" for name in ("moving.nii.gz", "fixed.nii.gz", "truth.h5")]
    save_image(moving, files[0])
    save_image(fixed, files[1])
    save_transform(truth, files[2])
    return {"what": what, "moving": files[0], "fixed": files[1], "truth": files[2], "labels": None}


def _resampled(image: Image, grid: Grid) -> Image:
    shrink = grid.spacing[0] / image.grid.spacing[0]
    smooth = image if shrink == 1 else image.smoothed(0.5 * grid.spacing[0])
    return warp(smooth, torch.nn.Identity(), grid)


def one_step_off(image: Image) -> Image:
    """Every voxel at the next float32 number above or below."""
    up = torch.rand(image.tensor.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    towards = torch.where(up, torch.inf, -torch.inf).to(image.tensor)
    return Image(torch.nextafter(image.tensor, towards), image.grid)


def run_case(case: dict[str, Any], seeds: int, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Rows by label, one entry a seed."""
    target = load_image(case["fixed"])
    points = foreground_points(target)
    clear: dict[tuple[str, int], Any] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for protocol in arguments.protocols:
        backend, against = (protocol, case["fixed"]) if protocol != ROUNDED else ("clear", one_step_off(target))
        for suffix, sampler in SAMPLERS.items():
            label = protocol.upper() + suffix
            for seed in range(seeds if sampler != "none" else 1):
                print(f"{label} seed {seed + 1}", file=sys.stderr, flush=True)
                result = register(
                    case["moving"],
                    against,
                    transform=case["transform"],
                    backend=backend,
                    sampler=sampler,
                    fraction=arguments.fraction,
                    seed=seed,
                    truth=case["truth"],
                    releases=arguments.output / "releases.sqlite",
                    max_values=10**12,  # an experiment with public images
                )
                found = result.transform
                same = clear.setdefault((sampler, seed), found)
                values = {
                    "iterations": result.metrics["iterations"],
                    "loop_seconds": result.seconds,
                    "rmse_to_truth_mm": result.metrics["rmse_to_truth_mm"],
                    "rmse_to_clear_mm": displacement_rmse(found, same, points),
                    "rmse_to_full_clear_mm": displacement_rmse(found, clear["none", 0], points),
                    "folding": 100 * result.metrics["transform"]["folding_share"],
                }
                if case["labels"] is not None:
                    moving, fixed = case["labels"]
                    moved = warp(Image(moving[None].float(), target.grid), found, target.grid, mode="nearest")
                    shares = dice(moved.tensor[0].round().long(), fixed)
                    values["dice"] = statistics.mean(v for v in shares.values() if v == v)
                rows.setdefault(label, []).append(values | _private(result.metrics))
    return rows


def _private(metrics: dict[str, Any]) -> dict[str, float]:
    entries, values = metrics["ledger"] or [], {}
    if entries:
        values = {"opened": sum(e["opened"] for e in entries), "beyond": 100 * entries[-1]["beyond"]}
    for party in ("party_1", "party_2"):
        account = metrics[party]
        if account is not None:
            sent, set_up = account["bytes_sent"], account["set_up_bytes"]
            values[f"{party}_mb_per_iteration"] = (sent - set_up) / metrics["iterations"] / 1e6
            values[f"{party}_mb"] = sent / 1e6
    return values


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean and standard deviation over the seeds."""

    def cell(runs: list[dict[str, Any]], key: str, form: str) -> str:
        values = [run[key] for run in runs if run.get(key) is not None]
        if not values:
            return "-"
        return form.format(statistics.mean(values)) + (
            f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
        )

    body = [[label, *(cell(runs, key, form) for _, key, form in COLUMNS)] for label, runs in rows.items()]
    return markdown(["run", *(name for name, _, _ in COLUMNS)], body)


def figure(path: Path, cases: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Error and bytes of every row, one pair of panels a case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 3.2 * len(cases)), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(len(cases), 2, squeeze=False)
    for (name, rows), (left, right) in zip(cases.items(), axes, strict=True):
        labels = list(rows)
        quality = "dice" if "dice" in next(iter(rows.values()))[0] else "rmse_to_truth_mm"
        left.barh(labels, [statistics.mean(r[quality] for r in runs) for runs in rows.values()])
        left.set_xlabel("Dice" if quality == "dice" else "RMSE to the truth [mm]")
        sent = [
            statistics.mean(r.get("party_1_mb", 0) + r.get("party_2_mb", 0) for r in runs) for runs in rows.values()
        ]
        right.barh(labels, sent)
        right.set_xlabel("sent by both parties in a run [MB]")
        left.set_title(name)
        for axis in (left, right):
            axis.invert_yaxis()
    drawing.savefig(path, dpi=110)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[3], help="how many, of each case; the last for the rest"
    )
    parser.add_argument("--fraction", type=float, default=0.1, help="of the points, for URS and GMS")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--spacing", type=float, default=4.0, help="mm, of the 3-D case's voxels")
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--docs", action="store_true", help="copy table and figure to docs/")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/nonlinear_table"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    cases: dict[str, dict[str, list[dict[str, Any]]]] = {}
    parts = ["# Non-linear table", "`python experiments/nonlinear_table.py " + " ".join(sys.argv[1:]) + "`", ABOUT]
    for number, name in enumerate(arguments.cases):
        if name != "3-D" and not DATA.exists():
            print(f"{name}: skipped, {DATA} is absent", file=sys.stderr)
            continue
        if name == "3-D":
            case = pair_3d(arguments.output, arguments.spacing)
        else:
            case = pair_2d(arguments.output) if name == "2-D" else pair_of_subjects()
        seeds = arguments.seeds[min(number, len(arguments.seeds) - 1)]
        cases[name] = run_case(case, seeds, arguments)
        spacing, weight = case["transform"]["spacing_mm"], case["transform"]["weight"]
        parts.append(
            f"## {name}\n\n{case['what']}; {spacing:g} mm between control points, weight {weight}; URS and GMS at "
            f"{arguments.fraction:.0%}; mean ± sd over {seeds} seed{'s' if seeds > 1 else ''}.\n\n{table(cases[name])}"
        )
        # After every case: the next may take an hour.
        (arguments.output / "nonlinear_table.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        write_json(arguments.output / "nonlinear_table.json", json.loads(json.dumps(cases)))
        figure(arguments.output / "nonlinear_table.png", cases)
    print("\n\n".join(parts))
    if arguments.docs:
        for ending in ("md", "png"):
            shutil.copy(arguments.output / f"nonlinear_table.{ending}", ROOT / "docs" / f"nonlinear_table.{ending}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PpirError as error:
        print(f"nonlinear_table: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
