"""What a registration gives: the transform, the warped image, and every iteration on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..images import Image
from ..optimizers import Iteration
from ..transforms import Composite, LinearTransform
from .verdict import Finding, LevelFacts, is_fatal

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
        complete: False where the other party was lost, or the run went wrong; `error` says how.
        metrics: figures of the whole run where a runner adds them (`ppir_torch.register`: those of result.json).
        loss: the measure's kind.
        levels: how each level ended: whether it converged, overlap, determinant, ...
        warnings: what is wrong with the run, and what to try; see `failed`.
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
    levels: list[LevelFacts] = field(default_factory=list)
    warnings: tuple[Finding, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the last level collapsed, ran away or lost all overlap: `transform` is that of the level before."""
        return is_fatal(self.warnings)
