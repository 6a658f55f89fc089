"""When a level ends, and what is kept of each iteration. The rules are relative: units do not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Iteration", "Stopping"]


@dataclass(frozen=True)
class Stopping:
    """A level ends at the first of these.

    Args:
        max_iterations: products at this level.
        step_voxels: the next step's length |step| (parameters are mm) falls below this share of the level's voxel.
        decrease: the next step is expected (by the quadratic model; Adam: was seen) to lower the loss by less than this
            share of it. Judged before the step is tried, so that no product is spent on it.
        longest_voxels: no step moves a point farther than this share of the level's voxel: beyond it the image's slope,
            which is what a step is made of, is another's (Adam's steps are short as they are).

    Gauss-Newton also ends after four rejected steps in a row, and after three kept ones in a row that lowered the loss
    by less than `decrease`, of it or of what the level has gained so far, where more was expected.
    """

    max_iterations: int = 30
    step_voxels: float = 1e-3
    decrease: float = 1e-5
    longest_voxels: float = math.inf


@dataclass(frozen=True)
class Iteration:
    """One iteration, that is one joint product: the loss where it was evaluated, and whether the step was kept."""

    number: int
    value: float
    accepted: bool
    step_mm: float
    damping: float
