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

import copy
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..errors import ImageError, LedgerStop, LinkError
from ..images import Image, Level, check_content
from ..interruption import Interrupted
from ..joint.operands import Operand
from ..losses import Smoothness
from ..optimizers import Iteration, Stopping
from ..transforms import Composite, ControlLattice, LatticeTransform, LinearTransform, lattice_transform
from ..transforms.smoothness import Regulariser
from ..warping import warp
from .facts import Course, Watch
from .level_operand import RunLevel, moving_features
from .plan import Deformable, Plan
from .result import LevelIteration, Result
from .source import FixedSource
from .start import check_overlap, start_transform
from .verdict import LevelFacts, is_fatal, judge, warnings_of

__all__ = ["register_images"]


def register_images(
    moving: Image,
    fixed: FixedSource,
    plan: Plan | None = None,
    observer: Callable[[LevelIteration], None] | None = None,
) -> Result:
    """Fit `plan.transform` so that the moving image, warped, looks like the fixed one.

    At the end of each level it is judged whether the run went right (`Result.levels`, `Result.warnings`). Where it
    collapsed, ran away or lost all overlap, it ends, and the result is what was found before that level.

    Raises:
        ImageError: different dimensions, constant image, no overlap at the start.
        ConfigError: an unknown transform or start, or an optimiser that does not go with the loss.
        Interrupted: Ctrl-C, after the first level was begun; its `result` is the best so far.
    """
    plan = (plan or Plan()).on(fixed.grid)
    started = time.perf_counter()
    plan.check()
    check_content(moving, "moving image")
    if moving.grid.dimension != fixed.grid.dimension:
        raise ImageError(f"moving image is {moving.grid.dimension}-D, fixed image {fixed.grid.dimension}-D; unequal")
    moving = moving.seen_from(fixed.grid)
    transform = start_transform(plan, moving, fixed)
    check_overlap(transform, moving, fixed.grid)
    watch = Watch(moving.grid, fixed.grid, fixed.mask, transform)
    run = _Run(moving, fixed, plan, started, observer, watch, transform)
    error, interrupted = "", None
    try:
        run.fit_linear(transform)
        if plan.deformable is not None:
            run.fit_deformable(transform, plan.deformable)
    except _WentWrong:
        pass
    except (LinkError, LedgerStop) as lost:
        error = str(lost)
        run.keep_what_is_sane()
    except KeyboardInterrupt as stop:
        interrupted = Interrupted.of(stop)
        error = str(interrupted)
        run.keep_what_is_sane()
    result = run.result(error)
    if interrupted is not None:
        interrupted.result = result
        raise interrupted
    return result


class _WentWrong(Exception):
    """A level's transform is of no use; the run has said why, and kept the one before."""


@dataclass
class _Run:
    """The state of a run: what it was given, its history so far, and what it keeps.

    Attributes:
        found: what is being fitted; once a level went wrong, a copy of what was found before it.
        levels: of each level that ended, what is known of it.
    """

    moving: Image
    fixed: FixedSource
    plan: Plan
    started: float
    observer: Callable[[LevelIteration], None] | None
    watch: Watch
    found: LinearTransform | Composite
    history: list[LevelIteration] = field(default_factory=list)
    levels: list[LevelFacts] = field(default_factory=list)
    _under_way: _LevelUnderWay | None = None
    _useless: int | None = None  # the level that went wrong

    def fit_linear(self, transform: LinearTransform) -> None:
        """The linear stage, coarse to fine."""
        optimizer = self.plan.optimizer
        for number, level in enumerate(self.plan.levels or ()):
            here = self._enter(level, number, transform)
            operand = here.linear_operand()
            loss = optimizer.loss(self.plan.loss, operand)

            linearise = partial(loss.linearise, transform, here.moving)
            steps = optimizer.minimise(transform, linearise, self.plan.stopping, min(operand.grid.spacing))
            self._follow(steps, _LevelUnderWay(here, operand, self.plan.stopping, copy.deepcopy(self.found)))

    def fit_deformable(self, outer: LinearTransform, wanted: Deformable) -> None:
        """The deformable stage, coarse to fine."""
        part: LatticeTransform | None = None
        family, optimizer = lattice_transform(wanted.kind), self.plan.optimizer.for_lattices()
        levels = wanted.levels or ()
        for place, level in enumerate(levels):
            spacing = wanted.spacing_mm * 2 ** (len(levels) - 1 - place)
            part = family(ControlLattice(self.fixed.grid, spacing)) if part is None else part.refined(spacing)
            before, self.found = copy.deepcopy(self.found), Composite([part, outer])
            here = self._enter(level, len(self.plan.levels or ()) + place, outer)
            lattice = part.lattice
            operand = here.mapped_operand(lattice)
            regulariser = Regulariser.of(
                wanted.regulariser, lattice.size, lattice.control_spacing, lattice.grid.direction
            )
            loss = self.plan.loss.deformable_loss(operand, part, outer, Smoothness(regulariser, wanted.weight))

            linearise = partial(loss.linearise, here.moving)
            steps = optimizer.minimise(part, linearise, wanted.stopping, min(operand.grid.spacing))
            self._follow(steps, _LevelUnderWay(here, operand, wanted.stopping, before))

    def _enter(self, level: Level, number: int, transform: LinearTransform) -> RunLevel:
        features = moving_features(self.moving, self.plan.loss, self.fixed.grid, level, transform)
        return RunLevel(self.plan, self.fixed, features, transform, level, number)

    def _follow(self, iterations: Iterator[Iteration], of: _LevelUnderWay) -> None:
        """Go through a level's iterations, and judge it at its end."""
        self._under_way, here, operand = of, of.here, of.operand
        points = operand.grid.count if operand.sample.index is None else operand.sample.index.numel()
        try:
            for iteration in iterations:
                elapsed = time.perf_counter() - self.started
                entry = LevelIteration(here.number, self.plan.count, here.level.factor, points, iteration, elapsed)
                self.history.append(entry)
                if self.observer is not None:
                    self.observer(entry)
        finally:
            if isinstance(iterations, Generator):  # interrupted between two steps: back to the best it has seen
                iterations.close()
        self.levels += self.keep_what_is_sane()
        if self._useless is not None:
            raise _WentWrong

    def keep_what_is_sane(self) -> list[LevelFacts]:
        """Look at the level under way, if any; where it went wrong, `found` is again what was there before it."""
        of, self._under_way = self._under_way, None
        if of is None:
            return []
        facts = self.watch.facts(self.found, of.course(self.history))
        if is_fatal(judge(facts)):
            self.found, self._useless = of.before, of.here.number
        return [facts]

    def result(self, error: str) -> Result:
        """What the run gives; `error` says why it ended early, empty where it did not."""
        seconds, warnings = time.perf_counter() - self.started, warnings_of(self.levels)
        error = warnings[0].message if is_fatal(warnings) else error
        useful = (h.iteration for h in reversed(self.history) if h.level != self._useless)
        return Result(
            transform=self.found,
            warped=warp(self.moving, self.found, self.fixed.grid),
            value=next((iteration.value for iteration in useful if iteration.accepted), float("nan")),
            history=self.history,
            seconds=seconds,
            complete=not error,
            error=error,
            loss=self.plan.loss.kind,
            levels=self.levels,
            warnings=warnings,
        )


@dataclass(frozen=True)
class _LevelUnderWay:
    """A level that is being fitted, and a copy of what was found before it."""

    here: RunLevel
    operand: Operand
    stopping: Stopping
    before: LinearTransform | Composite

    def course(self, history: Sequence[LevelIteration]) -> Course:
        """How it went so far."""
        mine = [entry.iteration for entry in history if entry.level == self.here.number]
        values = [iteration.value for iteration in mine if iteration.accepted]
        explained = [self._explained(values[place]) if values else None for place in (0, -1)]
        return Course(self.here.number, self.here.level.factor, len(mine), self.stopping.max_iterations, *explained)

    def _explained(self, value: float) -> float | None:
        # Of points or weights that party_2 does not know the loss is known up to a constant only.
        return self.here.plan.loss.explained(value, self.operand) if self.operand.sample.known else None
