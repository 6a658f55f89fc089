"""The files of a run: `warped.nii.gz`, `transform.tfm`, and the plain values that go into `result.json`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..images import save_image
from ..registration import Result
from ..transforms import save_transform

__all__ = ["save_result", "summary"]


def save_result(result: Result, output: Path) -> None:
    """Write `warped.nii.gz` (the moving image on the fixed grid; .png too where 2-D) and `transform.tfm`."""
    save_image(result.warped, output / "warped.nii.gz")
    if result.warped.grid.dimension == 2:
        save_image(result.warped, output / "warped.png")
    save_transform(result.transform, output / "transform.tfm")


def summary(result: Result) -> dict[str, Any]:
    """The run as JSON values: transform (fixed to moving, mm LPS), loss value, iterations and their history."""
    matrix, offset = (part.detach().tolist() for part in result.transform.affine_map())
    history = [
        {
            "level": h.level,
            "shrink": h.shrink,
            "points": h.points,
            "iteration": h.iteration.number,
            "value": h.iteration.value,
            "accepted": h.iteration.accepted,
            "step_mm": h.iteration.step_mm,
            "damping": h.iteration.damping,
            "seconds": h.seconds,
        }
        for h in result.history
    ]
    return {
        "transform": {"kind": type(result.transform).__name__.lower(), "matrix": matrix, "offset_mm": offset},
        "ssd": result.value if math.isfinite(result.value) else None,  # none yet; NaN is not JSON
        "iterations": len(result.history),
        "loop_seconds": result.seconds,
        "history": history,
    }
