"""The multi-modal table: correlation ratio, mutual information, MIND and, to compare, correlation, clear and privately.

    python experiments/multimodal_table.py [--seeds 3] [--cases affine-2d affine-3d deformable] [--docs]

affine-2d: T1 <- PD slices of ../shared/data/01 with an exact truth.
affine-3d: T1 <- T2 and T1 <- CT templates of data/09, the moving header turned by up to 10 degrees and moved by up to
    10 mm, another way for each seed (truth: that motion; the templates themselves agree to a few mm only); URS.
deformable: T1 <- T2 of data/09, both within the demo's brain, the T2 image under a known affine and a smooth
    displacement of up to 6 mm; affine alone and with a velocity field (diffeomorphic), levels 4 and 2; not mi, which
    is for linear transforms.

Displacement RMSE in mm inside the fixed foreground, to the truth and to the clear run of the same seed; mean and
standard deviation over the seeds. The published figures (Taiello et al., 2024) are those of another image pair, and
marked as theirs.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ppir_torch import Affine, Image, PpirError, affine_from_map, load_image, register, save_image, save_transform
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.parties.accounting import write_json
from ppir_torch.phantoms import deformed_pair
from ppir_torch.reporting.tables import markdown
from ppir_torch.transforms import Displacement
from ppir_torch.warping import warp

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared/data"
T1, T2, CT = "fixed_avg152_t1.nii.gz", "moving_avg152_t2.nii.gz", "moving_ct_scct.nii.gz"
VELOCITY = {"kind": "velocity", "spacing_mm": 20.0, "weight": 3.0, "max_iterations": 40, "decrease": 1e-4}
NEAR_MIND = {"kind": "mind", "radius": 1, "dilation": 1}  # templates are averages: wide patches see their blur
SLICES, TEMPLATES = DATA / "01_itk2d_brain_known", DATA / "09_templates3d_multimodal"
LOSSES = ("cr", "mi", "mind", "ncc")
PROTOCOLS = ("clear", "beaver", "spdz", "bfv", "ckks")
COLUMNS = (
    ("iterations", "iterations", "{:.1f}"),
    ("RMSE at the start [mm]", "start_mm", "{:.2f}"),
    ("RMSE to truth [mm]", "rmse_to_truth_mm", "{:.3f}"),
    ("RMSE to clear [mm]", "rmse_to_clear_mm", "{:.4f}"),
    ("values opened", "opened", "{:.0f}"),
    ("J beyond own image [%]", "beyond", "{:.1f}"),
    ("s/iteration", "seconds_per_iteration", "{:.2f}"),
    ("party_1 + party_2 [MB/iteration]", "mb_per_iteration", "{:.2f}"),
)
THEIRS = (
    "Published (theirs; other images, one process, key material not counted): MI affine 3-D under MPC 264 iterations, "
    "1.02 s and 15 MB an iteration, the bins in clear; CC diffeomorphic 3-D under MPC 26 iterations, 24 s and 164 MB."
)


def slices(folder: Path) -> dict[str, Any]:
    """T1 <- PD in 2-D with the truth of data/01's card."""
    moving, fixed = "moving_pd_R10X13Y17S12", "fixed_t1_border20"
    card = json.loads((SLICES / f"{SLICES.name}.json").read_text())
    known = next(v for k, v in card["known"]["pairs"].items() if k.endswith(f"<- {moving}"))
    files = {name: next(SLICES.glob(f"{stem}.*")) for name, stem in (("moving", moving), ("fixed", fixed))}
    matrix, offset = torch.tensor(known["A"]).double(), torch.tensor(known["b"]).double()
    save_transform(affine_from_map(load_image(files["fixed"]).grid, matrix, offset), folder / "truth.tfm")
    return files | {"truth": folder / "truth.tfm", "sampler": "none"}


def templates(folder: Path, moving: str, seed: int) -> dict[str, Any]:
    """T1 <- another contrast in 3-D, the moving image's header moved in a known way."""
    generator = torch.Generator().manual_seed(seed)
    image = load_image(TEMPLATES / moving)
    angles, shift = ((2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1) * 10 for _ in range(2))
    turn = torch.eye(3, dtype=torch.float64)
    for axis, degrees in enumerate(angles.tolist()):
        turn = turn @ _rotation(axis, degrees)
    centre = image.grid.centre.double()
    offset = centre + shift - turn @ centre
    origin = turn @ torch.tensor(image.grid.origin, dtype=torch.float64) + offset
    direction = turn @ torch.tensor(image.grid.direction, dtype=torch.float64).reshape(3, 3)
    grid = replace(image.grid, origin=tuple(origin.tolist()), direction=tuple(direction.flatten().tolist()))
    save_image(Image(image.tensor, grid), folder / "moving.nii.gz")
    fixed = TEMPLATES / T1
    save_transform(affine_from_map(load_image(fixed).grid, turn, offset), folder / "truth.tfm")
    return {"moving": folder / "moving.nii.gz", "fixed": fixed, "truth": folder / "truth.tfm", "sampler": "urs"}


def deformed(folder: Path) -> dict[str, Any]:
    """T1 <- T2 in 3-D, brains alone, T2 under the demo's affine and displacement."""
    pair = deformed_pair()
    brain = pair.fixed.tensor > pair.fixed.outside + 0.1 * (float(pair.fixed.tensor.max()) - pair.fixed.outside)
    mask = Image(brain.float(), pair.fixed.grid)
    fixed, other = (_within(load_image(TEMPLATES / name), mask) for name in (T1, T2))
    save_image(fixed, folder / "fixed.nii.gz")
    save_image(warp(other, pair.truth.inverse(), other.grid), folder / "moving.nii.gz")
    save_transform(Displacement.from_transform(pair.truth, fixed.grid), folder / "truth.h5")
    return {name: folder / f"{name}.nii.gz" for name in ("moving", "fixed")} | {
        "truth": folder / "truth.h5",
        "sampler": "none",
        "levels": (4, 2),
    }


def _within(image: Image, mask: Image) -> Image:
    inside = warp(mask, torch.nn.Identity(), image.grid).tensor > 0.5
    return Image(torch.where(inside, image.tensor, torch.zeros(())), image.grid)


def _rotation(axis: int, degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(3, dtype=torch.float64)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def run_rows(
    files: dict[str, Any], transform: Any, loss: Any, seed: int, protocols: list[str], arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """One pair, transform and loss: the figures of every protocol, the clear run first."""
    points = foreground_points(load_image(files["fixed"]))
    clear, rows = None, {}
    for protocol in protocols:
        print(f"{transform} {loss} {protocol} seed {seed + 1}", file=sys.stderr, flush=True)
        result = register(
            files["moving"],
            files["fixed"],
            transform=transform,
            loss=loss,
            levels=files.get("levels", (4, 2, 1)),
            backend=protocol,
            sampler=files["sampler"],
            fraction=arguments.fraction,
            seed=seed,
            truth=files["truth"],
            releases=arguments.output / "releases.sqlite",
            max_values=10**12,  # an experiment with public images
        )
        clear = clear or result.transform
        ledger = result.metrics["ledger"] or []
        accounts = [result.metrics[party] for party in ("party_1", "party_2")]
        sent = sum(a["bytes_sent"] - a["set_up_bytes"] for a in accounts if a is not None)
        iterations = result.metrics["iterations"]
        rows[protocol] = {
            "iterations": iterations,
            "rmse_to_truth_mm": result.metrics["rmse_to_truth_mm"],
            "rmse_to_clear_mm": displacement_rmse(result.transform, clear, points),
            "opened": sum(entry["opened"] for entry in ledger) if ledger else None,
            "beyond": 100 * ledger[-1]["beyond"] if ledger else None,
            "seconds_per_iteration": result.seconds / iterations,
            "mb_per_iteration": sent / iterations / 1e6 if sent else None,
        }
    return rows


def start_error(files: dict[str, Any]) -> float:
    """RMSE to the truth of the start, centre on centre."""
    from ppir_torch.transforms import load_any_transform

    fixed, moving = (load_image(files[name]).grid for name in ("fixed", "moving"))
    start = Affine(fixed)
    with torch.no_grad():
        start.translation.copy_(moving.centre - fixed.centre)
    return displacement_rmse(
        start, load_any_transform(files["truth"], fixed), foreground_points(load_image(files["fixed"]))
    )


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean and standard deviation over the seeds."""

    def cell(runs: list[dict[str, Any]], key: str, form: str) -> str:
        values = [run[key] for run in runs if run.get(key) is not None]
        if not values:
            return "-"
        spread = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
        return form.format(statistics.mean(values)) + spread

    body = [[label, *(cell(runs, key, form) for _, key, form in COLUMNS)] for label, runs in rows.items()]
    return markdown(["run", *(name for name, _, _ in COLUMNS)], body)


def figure(path: Path, cases: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Error to the truth and to the clear run, a pair of panels a case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [max(2.0, 0.3 * len(rows)) for rows in cases.values()]
    drawing = Figure(figsize=(11, sum(heights) + 1), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(len(cases), 2, squeeze=False, height_ratios=heights)
    for (name, rows), (left, right) in zip(cases.items(), axes, strict=True):
        labels = list(rows)
        for axis, key, what in (
            (left, "rmse_to_truth_mm", "RMSE to the truth [mm]"),
            (right, "rmse_to_clear_mm", "RMSE to the clear run [mm]"),
        ):
            axis.barh(labels, [statistics.mean(run[key] for run in runs) for runs in rows.values()])
            axis.set_xlabel(what)
            axis.locator_params(axis="x", nbins=5)
            axis.invert_yaxis()
        left.set_title(name)
    drawing.savefig(path, dpi=110)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of the 3-D affine case; the others have one")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the points, for URS")
    every = ["affine-2d", "affine-3d", "deformable"]
    parser.add_argument("--cases", nargs="+", default=every, choices=every)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS, help="in 2-D")
    few = ["clear", "beaver"]
    parser.add_argument(
        "--protocols-3d", nargs="+", default=few, choices=PROTOCOLS, help="the others take up to an hour"
    )
    parser.add_argument("--docs", action="store_true", help="copy table and figure to docs/")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/multimodal_table"))
    arguments = parser.parse_args()
    if {arguments.protocols[0], arguments.protocols_3d[0]} != {"clear"}:
        parser.error("--protocols, --protocols-3d: the clear run comes first, the others are compared with it")
    arguments.output.mkdir(parents=True, exist_ok=True)
    cases: dict[str, dict[str, list[dict[str, Any]]]] = {}
    parts = ["# Multi-modal table", f"`python experiments/multimodal_table.py {' '.join(sys.argv[1:])}`", THEIRS]
    for name in arguments.cases:
        if not TEMPLATES.exists() or not SLICES.exists():
            print(f"{name}: skipped, {DATA} is absent", file=sys.stderr)
            continue
        rows: dict[str, list[dict[str, Any]]] = {}
        folder = arguments.output / name
        folder.mkdir(exist_ok=True)
        for what, files, transform, loss, seed in jobs(name, folder, arguments):
            start = start_error(files)
            protocols = arguments.protocols if name == "affine-2d" else arguments.protocols_3d
            for protocol, figures in run_rows(files, transform, loss, seed, protocols, arguments).items():
                rows.setdefault(f"{what} {protocol}", []).append(figures | {"start_mm": start})
        cases[name] = rows
        parts.append(f"## {name}\n\n{table(rows)}")
        # After every case: the next may take an hour.
        (arguments.output / "multimodal_table.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        write_json(arguments.output / "multimodal_table.json", json.loads(json.dumps(cases)))
        figure(arguments.output / "multimodal_table.png", cases)
    print("\n\n".join(parts))
    if arguments.docs:
        for ending in ("md", "png"):
            shutil.copy(arguments.output / f"multimodal_table.{ending}", ROOT / "docs" / f"multimodal_table.{ending}")
    return 0


def jobs(name: str, folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], Any, Any, int]]:
    """(what, files, transform, loss, seed) of every run of a case."""
    if name == "affine-2d":
        for loss in arguments.losses:
            yield f"T1 <- PD {loss}", slices(folder), "affine", loss, 0
    elif name == "affine-3d":
        for seed in range(arguments.seeds):
            for what, file in (("T1 <- T2", T2), ("T1 <- CT", CT)):
                for loss in arguments.losses:
                    yield f"{what} {loss}", templates(folder, file, seed), "affine", loss, seed
    else:
        for loss in (name for name in arguments.losses if name != "mi"):
            for transform in ("affine", VELOCITY):
                kind = transform if isinstance(transform, str) else transform["kind"]
                yield f"T1 <- T2 {loss} {kind}", deformed(folder), transform, NEAR_MIND if loss == "mind" else loss, 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PpirError as error:
        print(f"multimodal_table: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
