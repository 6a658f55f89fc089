"""The honest competitor: each side registers to a public template in clear, the transforms compose. Beside direct runs.

    python experiments/atlas_table.py [--cases ...] [-o outputs/atlas_table.json] [--docs]

Nothing is encrypted on that route and nothing opened but transforms. Rows:

- `same person, affine`: the demo's brain under a known affine, 2 % noise; the template is another head, data/05's
  subject.
- `same person, deformed`: the same under a known smooth displacement as well.
- `two people`: data/06, Dice of the tissues; the template is data/05's MNI brain.

Displacement RMSE in mm inside the fixed foreground, or Dice: before, by the template alone, directly (clear; a private
run ends within a rounding of it, see nonlinear_table.py), and directly from the template's start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppir_torch import Image, load_image, register
from ppir_torch.metrics.overlap import dice
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.parties.accounting import write_json
from ppir_torch.phantoms import brain_pair, deformed_pair
from ppir_torch.registration.atlas import through_atlas, to_atlas
from ppir_torch.reporting.tables import markdown
from ppir_torch.transforms import Composite, affine_from_map, save_transform
from ppir_torch.warping import warp

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared/data"


@dataclass(frozen=True)
class Case:
    """A pair, a template that is neither of them, and how far a transform is from right."""

    name: str
    moving: Image
    fixed: Image
    atlas: Image
    unit: str
    judge: Callable[[nn.Module], float]
    deformable: bool


def template() -> Image:
    """A head that is none of the pairs': MNI's brain of data/05."""
    return load_image(DATA / "05_brain3d_subject_to_mni_labels/fixed_mni152_t1_brain.nii.gz")


def by_truth(fixed: Image, truth: nn.Module) -> Callable[[nn.Module], float]:
    """Millimetres to a known transform."""
    points = foreground_points(fixed)
    return lambda found: displacement_rmse(found, truth, points)


def by_labels(fixed: Path, moving: Path) -> Callable[[nn.Module], float]:
    """Mean Dice of labels."""
    there, here = load_image(fixed), load_image(moving)

    def judge(found: nn.Module) -> float:
        moved = warp(here, found, there.grid, "nearest").tensor[0].round().long()
        scores = dice(moved, there.tensor[0].round().long())
        return float(sum(scores.values()) / len(scores))

    return judge


def cases() -> dict[str, Callable[[], Case]]:
    """Name to pair; each is made when it is needed."""

    def same(deformed: bool) -> Case:
        pair = deformed_pair() if deformed else brain_pair()
        name = "same person, deformed" if deformed else "same person, affine"
        judge = by_truth(pair.fixed, pair.truth)
        return Case(name, pair.moving, pair.fixed, subject(), "mm", judge, deformed)

    def subject() -> Image:
        return load_image(DATA / "05_brain3d_subject_to_mni_labels/moving_subject_t1.nii.gz")

    def people() -> Case:
        folder = DATA / "06_brain3d_subject_pair_tissue"
        moving, fixed = (load_image(folder / f"{name}_t1.nii.gz") for name in ("moving", "fixed"))
        judge = by_labels(folder / "fixed_seg2.nii.gz", folder / "moving_seg2.nii.gz")
        return Case("two people", moving, fixed, template(), "Dice", judge, True)

    return {"affine": lambda: same(False), "deformed": lambda: same(True), "people": people}


def by_template(case: Case) -> nn.Module:
    """T_moving o T_fixed^-1 of the maps from the template, each found on its own side in clear."""
    to_moving, to_fixed = (to_atlas(image, case.atlas) for image in (case.moving, case.fixed))
    if not case.deformable:
        return through_atlas(to_moving, to_fixed, case.fixed.grid)
    found = [register(image, case.atlas, config=settings(case)).transform for image in (case.moving, case.fixed)]
    return Composite([found[1].inverse(), found[0]])


def settings(case: Case) -> dict[str, Any]:
    """Of a direct run in clear."""
    kind = {"kind": "bspline"} if case.deformable else {"kind": "affine"}
    return {"transform": kind, "loss": {"kind": "ncc_squared"}, "backend": {"kind": "clear"}}


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """One row."""
    row: dict[str, Any] = {"case": case.name, "unit": case.unit}
    centres = case.moving.grid.centre - case.fixed.grid.centre
    row["before"] = case.judge(affine_from_map(case.fixed.grid, torch.eye(3, dtype=torch.float64), centres))
    started = time.perf_counter()
    row["template"] = case.judge(by_template(case))
    row["template_seconds"] = time.perf_counter() - started
    started = time.perf_counter()
    row["direct"] = case.judge(register(case.moving, case.fixed, config=settings(case)).transform)
    row["direct_seconds"] = time.perf_counter() - started
    start = through_atlas(to_atlas(case.moving, case.atlas), to_atlas(case.fixed, case.atlas), case.fixed.grid)
    folder.mkdir(parents=True, exist_ok=True)
    save_transform(start, folder / "start.tfm")
    from_there = settings(case) | {"start": {"kind": "file", "path": str(folder / "start.tfm")}}
    row["from_template"] = case.judge(register(case.moving, case.fixed, config=from_there).transform)
    return row


COLUMNS = (
    ("pair", "case", "{}"),
    ("unit", "unit", "{}"),
    ("before", "before", "{:.3f}"),
    ("by the template alone", "template", "{:.3f}"),
    ("directly", "direct", "{:.3f}"),
    ("directly, from the template's start", "from_template", "{:.3f}"),
    ("template [s]", "template_seconds", "{:.1f}"),
    ("direct [s]", "direct_seconds", "{:.1f}"),
)


def main() -> None:
    """Measure, print and write the table."""
    made = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=tuple(made), default=list(made))
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "outputs/atlas_table.json")
    parser.add_argument("--docs", action="store_true", help="write docs/atlas_table.md")
    given = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for name in given.cases:
        rows.append(measured(made[name](), given.output.parent / "atlas_table"))
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()})
    write_json(given.output, {"rows": rows})
    table = markdown([heading for heading, *_ in COLUMNS], [[f.format(r[k]) for _, k, f in COLUMNS] for r in rows])
    print(table)
    if given.docs:
        text = f"# Direct, or through a public template\n\n`python experiments/atlas_table.py --docs`\n\n{table}\n"
        (ROOT / "docs/atlas_table.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
