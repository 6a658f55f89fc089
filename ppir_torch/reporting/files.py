"""The files of a run: `warped.nii.gz`, `transform.tfm`, and the plain values that go into `result.json`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeGuard

from ..grids import Grid
from ..images import save_image
from ..metrics.registration import folding_share, jacobian_determinant
from ..registration.result import Result
from ..transforms import Composite, LatticeTransform, LinearTransform, save_displacement, save_transform
from ..transforms.slices import displacement_in_space, in_space

__all__ = ["save_result", "summary", "transform_file"]


def save_result(result: Result, output: Path, moving: Grid) -> None:
    """Write `warped.nii.gz` (the moving image on the fixed grid; .png too where 2-D) and the transform.

    A linear one as `transform.tfm`; a deformable one as `transform.h5`, and on the fixed grid as `displacement.nii.gz`.
    Of slices that their files keep in 3-D, what is written is 3-D too and fits the files (the displacement as
    `displacement.nrrd`), but for `transform.h5`, which is in the coordinates of the planes.

    Args:
        result: of the run.
        output: the folder.
        moving: the moving image's grid.
    """
    fixed = result.warped.grid
    save_image(result.warped, output / "warped.nii.gz")
    if fixed.dimension == 2:
        save_image(result.warped, output / "warped.png")
    found, path = result.transform, output / transform_file(result.transform)
    if not isinstance(found, Composite):
        save_transform(in_space(found, fixed, moving), path)
        return
    save_transform(found, path)
    if fixed.plane and moving.plane:
        # ITK's NIfTI reader takes one slice of vectors for 2-D, and refuses its orientation.
        field = displacement_in_space(found, fixed, moving)
        save_displacement(field, fixed.in_space(), output / "displacement.nrrd")
    else:
        save_displacement(found, fixed, output / "displacement.nii.gz")


def transform_file(transform: LinearTransform | Composite) -> str:
    """The name of its file in a run's folder."""
    return "transform.h5" if isinstance(transform, Composite) else "transform.tfm"


def summary(result: Result) -> dict[str, Any]:
    """The run as JSON values: transform (fixed to moving, mm LPS), loss value, iterations and their history.

    The value is that of the run's own loss; a run of the loss ssd has it as `ssd`, too.
    """
    history = [
        {
            "level": h.level,
            "shrink": h.shrink,
            "points": h.points,
            "iteration": h.iteration.number,
            "value": _finite(h.iteration.value),
            "accepted": h.iteration.accepted,
            "step_mm": _finite(h.iteration.step_mm),
            "damping": _finite(h.iteration.damping),
            "seconds": h.seconds,
        }
        for h in result.history
    ]
    value = _finite(result.value)  # none yet
    return {
        "transform": _transform_meta(result),
        **({"ssd": value} if result.loss == "ssd" else {}),
        "value": value,
        "iterations": len(result.history),
        "loop_seconds": result.seconds,
        "history": history,
        "levels": [level.to_json() for level in result.levels],
        "warnings": [warning.to_json() for warning in result.warnings],
    }


def _finite(value: float) -> float | None:
    """NaN and infinity are not JSON."""
    return value if math.isfinite(value) else None


def _transform_meta(result: Result) -> dict[str, Any]:
    found = result.transform
    linear = next(part for part in (found.parts if isinstance(found, Composite) else [found]) if _is_linear(part))
    matrix, offset = (part.detach().tolist() for part in linear.affine_map())
    meta = {"kind": linear.name, "file": transform_file(found), "matrix": matrix, "offset_mm": offset}
    if not isinstance(found, Composite):
        return meta
    deformation = next(part for part in found.parts if isinstance(part, LatticeTransform))
    determinant = jacobian_determinant(found, result.warped.grid)
    return meta | {
        "kind": deformation.name,
        "linear": linear.name,
        "control_spacing_mm": deformation.lattice.control_spacing,
        "control_points": deformation.lattice.size,
        "jacobian_min": float(determinant.min()),
        "jacobian_max": float(determinant.max()),
        "folding_share": folding_share(determinant),
    }


def _is_linear(part: object) -> TypeGuard[LinearTransform]:
    return isinstance(part, LinearTransform)
