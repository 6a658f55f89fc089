"""Which defaults fit strangers' images: losses, levels and smoothing over pairs that clinics could have, in clear.

    python benchmarks/defaults.py [--choices ssd/auto ncc/auto ...] [--rows whole slab 03]

Rows: the MNI head at 3 mm under a known affine, 2 % noise in both, with unequal brightness, contrast, noise and drift,
cut fields of view, thick slices and few of them: millimetres (RMSE over the fixed foreground). Real pairs of
../shared/data: pixels to the known transform (01), mean Dice of labels (03, 05, 06).
A choice is LOSS/LEVELS[/SMOOTHING]: levels are `auto`, `autoN` (N voxels of the shortest axis), or factors `4,2,1`; the
smoothing multiplies the default's.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor

from ppir_torch.config.images import load_config
from ppir_torch.errors import PpirError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, load_image
from ppir_torch.metrics.overlap import dice
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.phantoms import brain_pair
from ppir_torch.registration import ClearFixed, Plan, register_images
from ppir_torch.registration.build import build_plan
from ppir_torch.transforms import Affine, affine_from_map
from ppir_torch.warping import warp

DATA = Path(__file__).parents[2] / "shared/data"
Judge = Callable[[Any], float]


@dataclass(frozen=True)
class Row:
    """A pair, the transform that it is registered with, and what is measured: "mm" or "Dice"."""

    name: str
    moving: Image
    fixed: Image
    judge: Judge
    unit: str = "mm"
    transform: str = "affine"


def known(grid: Grid, size: float = 1.0) -> Affine:
    """Turns of up to 7 degrees, scales of 3 %, shifts of 3 to 6 mm."""
    z, y = math.radians(-7 * size), math.radians(5 * size)
    about_z = torch.tensor([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]]).double()
    about_y = torch.tensor([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]]).double()
    matrix = about_z @ about_y @ torch.diag(torch.tensor([0.97, 1.03, 1.02])).double()
    shift = size * torch.tensor([-5.0, 3.0, 6.0]).double()
    return affine_from_map(grid, matrix, grid.centre + shift - matrix @ grid.centre)


def noisy(image: Image, share: float, seed: int) -> Image:
    noise = torch.randn(image.tensor.shape, generator=torch.Generator().manual_seed(seed))
    return Image(image.tensor + share * float(image.tensor.max() - image.tensor.min()) * noise, image.grid)


def part(image: Image, axis: int, low: float, high: float) -> Image:
    """From one share of an axis (0 is x) to another."""
    size, place = list(image.grid.size), image.tensor.ndim - 1 - axis
    first, last = round(low * size[axis]), round(high * size[axis])
    matrix, origin = image.grid.index_to_physical()
    origin = origin + matrix[:, axis] * first
    size[axis] = last - first
    grid = replace(image.grid, size=tuple(size), origin=tuple(origin.tolist()))
    return Image(image.tensor.narrow(place, first, last - first).contiguous(), grid)


def slices(image: Image, count: int, thickness_mm: float) -> Image:
    """A stack of thick slices about the middle: averaged along z, one kept every `thickness_mm`."""
    smooth = image.tensor
    step = max(1, round(thickness_mm / image.grid.spacing[2]))
    middle = (image.grid.size[2] - step * (count - 1)) // 2
    kept = torch.stack([smooth[:, middle + step * k - step // 2 :][:, :step].mean(1) for k in range(count)], 1)
    matrix, origin = image.grid.index_to_physical()
    origin = origin + matrix[:, 2] * (middle - step // 2 + (step - 1) / 2)
    spacing = (*image.grid.spacing[:2], step * image.grid.spacing[2])
    grid = Grid((*image.grid.size[:2], count), spacing, tuple(origin.tolist()), image.grid.direction)
    return Image(kept, grid)


def drifting(image: Image, share: float) -> Image:
    points = image.grid.points() - image.grid.centre.float()
    drift = 1 + share * torch.sin(points[:, 0] / 60 + 0.5) * torch.cos(points[:, 1] / 80)
    return Image(image.tensor * drift.reshape(1, *image.grid.shape), image.grid)


def of_values(image: Image, change: Callable[[Tensor], Tensor]) -> Image:
    return Image(change(image.tensor), image.grid)


def phantoms() -> list[Row]:
    """The MNI head at 3 mm under the known affine, each way of being unequal once."""
    whole = brain_pair(0.0).fixed
    grid = Grid((60, 72, 60), (3.0,) * 3, tuple(whole.grid.origin), whole.grid.direction)
    still = warp(whole.smoothed(1.0), Affine(grid), grid)
    truth = known(grid)
    m, f = noisy(still, 0.02, 7), noisy(warp(still, truth, grid), 0.02, 8)
    top = float(still.tensor.max())
    seen = warp(still, truth, grid)

    def of_truth(fixed: Image) -> Judge:
        """Over the foreground of the whole image, as far as the fixed one shows it."""
        points = foreground_points(seen if fixed.grid == grid else warp(seen, Affine(grid), fixed.grid))
        return lambda found: displacement_rmse(found, truth, points)

    pairs: dict[str, tuple[Image, Image]] = {
        "whole": (m, f),
        "moving lacks top 30 %": (part(m, 2, 0, 0.7), f),
        "moving lacks bottom 40 %": (part(m, 2, 0.4, 1), f),
        "moving a slab of 30 mm": (part(m, 2, 0.42, 0.59), f),
        "each lacks a quarter": (part(m, 0, 0, 0.75), part(f, 0, 0.25, 1)),
        "fixed lacks bottom 40 %": (m, part(f, 2, 0.4, 1)),
        "fixed a slab of 30 mm": (m, part(f, 2, 0.42, 0.59)),
        "fixed 10 slices of 9 mm": (m, slices(f, 10, 9.0)),
        "fixed 5 slices of 9 mm": (m, slices(f, 5, 9.0)),
        "fixed 3 slices of 9 mm": (m, slices(f, 3, 9.0)),
        "moving 10 slices of 9 mm": (slices(m, 10, 9.0), f),
        "inverted": (of_values(m, lambda v: top - v), f),
        "HU against 0": (of_values(m, lambda v: 3 * v - 1000), f),
        "100 times brighter": (of_values(m, lambda v: 100 * v), f),
        "contrast squared": (of_values(m, lambda v: v.clamp(min=0).square() / top), f),
        "10 % noise": (noisy(m, 0.1, 9), noisy(f, 0.1, 10)),
        "30 % drift": (drifting(m, 0.3), f),
        "60 % drift": (drifting(m, 0.6), f),
    }
    big = known(grid, 3.0)
    turned = noisy(warp(still, big, grid), 0.02, 8)
    there = foreground_points(warp(still, big, grid))
    far = Row("turned by 21 degrees", m, turned, lambda found: displacement_rmse(found, big, there))
    return [Row(name, moving, fixed, of_truth(fixed)) for name, (moving, fixed) in pairs.items()] + [far]


def of_labels(name: str, moving: str, fixed: str, here: str, there: str) -> Row:
    """A real pair whose labels are compared."""
    target, source = load_image(DATA / there), load_image(DATA / here)
    wanted = target.tensor[0].round().long()

    def judge(found: Any) -> float:
        labels = warp(source, found, target.grid, mode="nearest").tensor[0].round().long()
        both = [v for v in wanted.unique().tolist() if v and bool((source.tensor == v).any())]
        found_dice = dice(labels, wanted, both)
        return sum(found_dice.values()) / len(found_dice)

    return Row(name, load_image(DATA / moving), load_image(DATA / fixed), judge, "Dice")


def real() -> list[Row]:
    rows = []
    folder = "03_brain2d_oasis_trt_labels"
    for a, b in ((1, 2), (3, 4)):
        names = [f"{folder}/sub0{n}_{kind}.png" for kind in ("t1", "labels") for n in (a, b)]
        rows.append(of_labels(f"03, slices of two people ({a} to {b})", *names))
    folder = "05_brain3d_subject_to_mni_labels/"
    names = [folder + n for n in ("moving_subject_t1", "fixed_mni152_t1_brain")]
    names += [folder + n for n in ("moving_subject_labels4", "fixed_mni152_labels4")]
    rows.append(of_labels("05, a person to MNI", *(f"{n}.nii.gz" for n in names)))
    folder = "06_brain3d_subject_pair_tissue/"
    names = [folder + n for n in ("moving_t1", "fixed_t1", "moving_seg2", "fixed_seg2")]
    rows.append(of_labels("06, brains of two people", *(f"{n}.nii.gz" for n in names)))
    folder = "01_itk2d_brain_known/"
    moving, fixed = (
        load_image(DATA / f"{folder}moving_pd_R10X13Y17S12.png"),
        load_image(DATA / f"{folder}fixed_pd_border20.png"),
    )
    matrix = torch.tensor([[0.82057, 0.144652], [-0.144652, 0.82057]]).double()
    truth = affine_from_map(fixed.grid, matrix, torch.tensor([-11.8874, 26.972]).double())
    points = foreground_points(fixed)
    rows.append(
        Row("01, a slice under a known similarity", moving, fixed, lambda t: displacement_rmse(t, truth, points))
    )
    return rows


def planned(choice: str, row: Row) -> Plan:
    """The plan of LOSS/LEVELS[/SMOOTHING]."""
    loss, levels, *smoothing = choice.split("/")
    pyramid: dict[str, Any] = {}
    if levels.startswith("auto"):
        pyramid = {"least_voxels": int(levels[4:])} if levels[4:] else {}
    else:
        pyramid = {"levels": [{"shrink": int(n)} for n in levels.split(",")]}
    config = load_config(
        {
            "data": {"moving": "-", "fixed": "-"},
            "backend": {"kind": "clear"},
            "loss": {"kind": loss},
            "pyramid": pyramid,
            "transform": {"kind": row.transform},
        }
    )
    plan = build_plan(config, row.fixed.grid)
    if smoothing:
        levels_ = tuple(replace(one, smoothing_mm=float(smoothing[0]) * one.smoothing_mm) for one in plan.levels or ())
        plan = replace(plan, levels=levels_)
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", nargs="+", default=["ssd/4,2,1", "ssd/auto", "ncc/auto"])
    parser.add_argument("--rows", nargs="+", default=None, help="words of the rows to measure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/defaults.json"))
    arguments = parser.parse_args()
    timing.set_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    rows = phantoms() + (real() if DATA.is_dir() else [])
    wanted = [r for r in rows if arguments.rows is None or any(word in r.name for word in arguments.rows)]
    entries = []
    for row in wanted:
        entry: dict[str, Any] = {"row": row.name, "unit": row.unit}
        for choice in arguments.choices:
            started = time.perf_counter()
            try:
                found = row.judge(register_images(row.moving, ClearFixed(row.fixed), planned(choice, row)).transform)
            except PpirError as error:
                found = math.nan
                print(f"{row.name}, {choice}: {error}", file=sys.stderr)
            entry[choice] = {"found": found, "seconds": time.perf_counter() - started}
        entries.append(entry)
        print(entry["row"], *(f"{c}: {entry[c]['found']:.3f}" for c in arguments.choices), file=sys.stderr, sep="  ")
    facts = timing.machine(arguments.threads, ("torch",))
    timing.write_report(arguments.output, {"machine": facts, "rows": entries}, report(entries, arguments.choices))


def report(entries: list[dict[str, Any]], choices: list[str]) -> str:
    """The figures as Markdown, with the seconds of all rows together."""
    rows: list[list[object]] = [[e["row"], e["unit"], *(f"{e[c]['found']:.3f}" for c in choices)] for e in entries]
    rows.append(["seconds in all", "", *(f"{sum(e[c]['seconds'] for e in entries):.0f}" for c in choices)])
    return "\n".join(["# Defaults", "", timing.markdown_table(["pair", "", *choices], rows)])


if __name__ == "__main__":
    main()
