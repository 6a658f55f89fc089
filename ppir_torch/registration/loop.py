"""The registration loop: levels, iterations, one joint product each. The same code for clear and private runs.

>>> import torch
>>> from ppir_torch import ClearFixed, Grid
>>> grid = Grid((24, 24))
>>> points = grid.points() - 12
>>> blob = torch.exp(-(points**2).sum(1) / 40).reshape(1, 24, 24)
>>> result = register_images(Image(blob, grid), ClearFixed(Image(blob, grid)), Plan(levels=(Level(1, 0.0),)))
>>> result.complete, result.value < 1e-7
(True, True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from ..errors import ImageError, LedgerStop, LinkError
from ..images import Image, Level, check_content
from ..joint.operands import Operand
from ..losses import Smoothness
from ..optimizers import Iteration
from ..transforms import Composite, ControlLattice, LatticeTransform, LinearTransform, lattice_transform
from ..transforms.smoothness import Regulariser
from ..warping import warp
from .level_operand import RunLevel, moving_features
from .plan import Deformable, Plan
from .result import LevelIteration, Result
from .source import FixedSource
from .start import check_overlap, start_transform

__all__ = ["register_images"]


def register_images(
    moving: Image,
    fixed: FixedSource,
    plan: Plan | None = None,
    observer: Callable[[LevelIteration], None] | None = None,
) -> Result:
    """Fit `plan.transform` so that the moving image, warped, looks like the fixed one.

    Raises:
        ImageError: different dimensions, constant image, no overlap at the start.
        ConfigError: an unknown transform or start, or an optimiser that does not go with the loss.
    """
    plan = plan or Plan()
    started = time.perf_counter()
    plan.check()
    check_content(moving, "moving image")
    if moving.grid.dimension != fixed.grid.dimension:
        raise ImageError(f"moving image is {moving.grid.dimension}-D, fixed image {fixed.grid.dimension}-D; unequal")
    transform = start_transform(plan, moving, fixed)
    check_overlap(transform, moving, fixed.grid)
    run = _Run(moving, fixed, plan, started, observer)
    found: LinearTransform | Composite = transform
    complete, error = True, ""
    try:
        run.fit_linear(transform)
        if plan.deformable is not None:
            for part in run.fit_deformable(transform, plan.deformable):
                found = Composite([part, transform])
    except (LinkError, LedgerStop) as lost:
        complete, error = False, str(lost)
    history = run.history
    value = next((h.iteration.value for h in reversed(history) if h.iteration.accepted), float("nan"))
    seconds = time.perf_counter() - started
    warped = warp(moving, found, fixed.grid)
    return Result(found, warped, value, history, seconds, complete, error, loss=plan.loss.kind)


@dataclass
class _Run:
    """The state of a run: what it was given, and its history so far."""

    moving: Image
    fixed: FixedSource
    plan: Plan
    started: float
    observer: Callable[[LevelIteration], None] | None
    history: list[LevelIteration] = field(default_factory=list)

    def fit_linear(self, transform: LinearTransform) -> None:
        """The linear stage, coarse to fine."""
        optimizer = self.plan.optimizer
        for number, level in enumerate(self.plan.levels):
            here = self._enter(level, number, transform)
            operand = here.linear_operand()
            loss = optimizer.loss(self.plan.loss, operand)

            linearise = partial(loss.linearise, transform, here.moving)
            steps = optimizer.minimise(transform, linearise, self.plan.stopping, min(operand.grid.spacing))
            self._follow(steps, here, operand)

    def fit_deformable(self, outer: LinearTransform, wanted: Deformable) -> Iterator[LatticeTransform]:
        """The deformable stage, coarse to fine; yields what is being fitted before each level."""
        part: LatticeTransform | None = None
        family, optimizer = lattice_transform(wanted.kind), self.plan.optimizer.for_lattices()
        for place, level in enumerate(wanted.levels):
            spacing = wanted.spacing_mm * 2 ** (len(wanted.levels) - 1 - place)
            part = family(ControlLattice(self.fixed.grid, spacing)) if part is None else part.refined(spacing)
            yield part
            here = self._enter(level, len(self.plan.levels) + place, outer)
            lattice = part.lattice
            operand = here.mapped_operand(lattice)
            regulariser = Regulariser.of(
                wanted.regulariser, lattice.size, lattice.control_spacing, lattice.grid.direction
            )
            loss = self.plan.loss.deformable_loss(operand, part, outer, Smoothness(regulariser, wanted.weight))

            linearise = partial(loss.linearise, here.moving)
            steps = optimizer.minimise(part, linearise, wanted.stopping, min(operand.grid.spacing))
            self._follow(steps, here, operand)

    def _enter(self, level: Level, number: int, transform: LinearTransform) -> RunLevel:
        features = moving_features(self.moving, self.plan.loss, self.fixed.grid, level, transform)
        return RunLevel(self.plan, self.fixed, features, transform, level, number)

    def _follow(self, iterations: Iterator[Iteration], here: RunLevel, operand: Operand) -> None:
        points = operand.grid.count if operand.sample.index is None else operand.sample.index.numel()
        for iteration in iterations:
            elapsed = time.perf_counter() - self.started
            entry = LevelIteration(here.number, self.plan.count, here.level.shrink, points, iteration, elapsed)
            self.history.append(entry)
            if self.observer is not None:
                self.observer(entry)
