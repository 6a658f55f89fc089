"""What a registration gives: the transform, the warped image, and every iteration on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..images import Image
from ..optimizers import Iteration
from ..transforms import Composite, LinearTransform

__all__ = ["LevelIteration", "Result"]


@dataclass(frozen=True)
class LevelIteration:
    """One iteration in its place in the run; `levels` in total, `points` in its product."""

    level: int
    levels: int
    shrink: int
    points: int
    iteration: Iteration
    seconds: float


@dataclass
class Result:
    """What a registration gives.

    Attributes:
        transform: fixed points to moving points, mm LPS; the best so far where `complete` is False.
        warped: the moving image on the fixed grid.
        value: the loss at the last accepted iteration (at the last level's smoothing).
        history: every iteration.
        seconds: of the loop.
        complete: False where the other party was lost; `error` says how.
        metrics: figures of the whole run where a runner adds them (`ppir_torch.register`: those of result.json).
        loss: the measure's kind.
    """

    transform: LinearTransform | Composite
    warped: Image
    value: float
    history: list[LevelIteration]
    seconds: float
    complete: bool = True
    error: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    loss: str = "ssd"
