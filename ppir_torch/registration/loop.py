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
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from ..errors import ImageError, LedgerStop, LinkError
from ..images import Image, Level, check_content, check_mask, level_grid
from ..interruption import Interrupted
from ..joint.operands import Operand
from ..losses import Smoothness
from ..optimizers import Iteration, Optimizer, Stopping
from ..overlap import content
from ..transforms import Composite, ControlLattice, LatticeTransform, LinearTransform, lattice_transform
from ..transforms.smoothness import Regulariser
from ..warping import warp
from .facts import Course, Watch
from .level_operand import RunLevel, moving_features
from .plan import Deformable, Plan
from .result import LevelIteration, Result
from .rounds import rounds
from .source import FixedSource
from .start import check_overlap, start_transform
from .turns import TRIED, best_turn
from .verdict import LevelFacts, is_fatal, judge, warnings_of

__all__ = ["register_images"]

log = logging.getLogger(__name__)


def register_images(
    moving: Image,
    fixed: FixedSource,
    plan: Plan | None = None,
    observer: Callable[[LevelIteration], None] | None = None,
    moving_mask: Tensor | None = None,
) -> Result:
    """Fit `plan.transform` so that the moving image, warped, looks like the fixed one where the two overlap.

    Args:
        moving: one channel.
        fixed: the source of the fixed image's operands.
        plan: what to run; default `Plan()`.
        observer: called after every iteration.
        moving_mask: bool ([z,] y, x) of the moving image: what is outside does not count; nobody else learns it.

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
    mask = _as_image(moving_mask, moving)
    watch = Watch(moving.grid, fixed.grid, fixed.mask, transform, moving_mask)
    run = _Run(moving, fixed, plan, started, observer, watch, transform, mask)
    error, interrupted = "", None
    try:
        transform = run.turned(transform)
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
        tried: starts, where the plan asks for turns.
    """

    moving: Image
    fixed: FixedSource
    plan: Plan
    started: float
    observer: Callable[[LevelIteration], None] | None
    watch: Watch
    found: LinearTransform | Composite
    mask: Image | None = None
    history: list[LevelIteration] = field(default_factory=list)
    levels: list[LevelFacts] = field(default_factory=list)
    tried: int = 0
    _under_way: _LevelUnderWay | None = None
    _useless: int | None = None  # the level that went wrong
    _replaced: bool = False  # the optimiser, and it was said

    def turned(self, start: LinearTransform) -> LinearTransform:
        """The start, or that of its turns from which the coarsest level fits best, where the plan asks for turns."""
        levels = self.plan.levels or ()
        if not (self.plan.turns and levels):
            return start
        short = replace(self.plan.stopping, max_iterations=TRIED)
        plan = replace(self.plan, levels=levels[:1], stopping=short, deformable=None)

        def fit(candidate: LinearTransform) -> float:
            watch = Watch(self.moving.grid, self.fixed.grid, self.fixed.mask, candidate)
            run = _Run(self.moving, self.fixed, plan, self.started, None, watch, candidate, self.mask)
            try:
                run.fit_linear(candidate)
            except _WentWrong:
                return math.inf
            return next(h.iteration.value for h in reversed(run.history) if h.iteration.accepted)

        best, self.tried = best_turn(start, self.plan.turns, fit)
        self.found = best
        return best

    def fit_linear(self, transform: LinearTransform) -> None:
        """The linear stage, coarse to fine."""
        for number, level in enumerate(self.plan.levels or ()):
            here = self._enter(level, number, transform)

            def operand_of(partly: bool, here: RunLevel = here) -> Operand:
                return here.linear_operand(self._able(partly), partly)

            def minimise(operand: Operand, stopping: Stopping, here: RunLevel = here) -> Iterator[Iteration]:
                able = self._able(operand.columns.squares or operand.sample.overlap is not None)
                loss = able.loss(self.plan.loss, operand)
                linearise = partial(loss.linearise, transform, here.moving)
                return able.minimise(transform, linearise, stopping, min(operand.grid.spacing))

            stopping = self.plan.stopping
            under_way = _LevelUnderWay(here, stopping, copy.deepcopy(self.found))
            steps = rounds(
                transform, here.candidates, here.domain, operand_of, minimise, stopping, under_way.was_held_back
            )
            self._follow(steps, under_way)

    def _able(self, partly: bool) -> Optimizer:
        """The plan's optimiser of the linear stage, or what goes on for it where images overlap in part."""
        optimizer = self.plan.optimizer
        able = optimizer.for_overlaps() if partly else optimizer
        if able is not optimizer and not self._replaced:
            self._replaced = True
            log.warning(
                "optimizer: %s needs every fixed point inside the moving image, some are not; %s goes on",
                type(optimizer).__name__,
                type(able).__name__,
            )
        return able

    def fit_deformable(self, outer: LinearTransform, wanted: Deformable) -> None:
        """The deformable stage, coarse to fine."""
        part: LatticeTransform | None = None
        family, optimizer = lattice_transform(wanted.kind), self.plan.optimizer.for_lattices()
        levels = wanted.levels or ()
        for place, level in enumerate(levels):
            spacing = wanted.spacing_mm * 2 ** (len(levels) - 1 - place)
            part = family(ControlLattice(self.fixed.grid, spacing)) if part is None else part.refined(spacing)
            part.jacobian_min = wanted.jacobian_min
            before, self.found = copy.deepcopy(self.found), Composite([part, outer])
            here = self._enter(level, len(self.plan.levels or ()) + place, outer)
            lattice = part.lattice
            operand = here.mapped_operand(lattice)
            regulariser = Regulariser.of(
                wanted.regulariser, lattice.size, lattice.control_spacing, lattice.grid.direction
            )
            weight = wanted.weight * (spacing / wanted.spacing_mm) ** (2 * regulariser.order)
            smoothness = Smoothness(regulariser, weight, part.coefficients.detach().clone())

            def minimise(
                operand: Operand,
                stopping: Stopping,
                part: LatticeTransform = part,
                here: RunLevel = here,
                smoothness: Smoothness = smoothness,
            ) -> Iterator[Iteration]:
                loss = self.plan.loss.deformable_loss(operand, part, outer, smoothness)
                linearise = partial(loss.linearise, here.moving)
                return optimizer.minimise(part, linearise, stopping, min(operand.grid.spacing))

            under_way, same = _LevelUnderWay(here, wanted.stopping, before), partial(_same, operand)
            steps = rounds(
                self.found, here.candidates, here.domain, same, minimise, wanted.stopping, under_way.was_held_back
            )
            self._follow(steps, under_way)

    def _enter(self, level: Level, number: int, transform: LinearTransform) -> RunLevel:
        features = moving_features(self.moving, self.plan.loss, self.fixed.grid, level, transform)
        mask = None if self.mask is None else self.mask.at_level(level)
        of = content(level_grid(self.moving.grid, level)[0], self.moving.tensor, mask)
        return RunLevel(self.plan, self.fixed, features, transform, level, number, of, mask is not None)

    def _follow(self, iterations: Iterator[tuple[Iteration, Operand]], of: _LevelUnderWay) -> None:
        """Go through a level's iterations, and judge it at its end."""
        self._under_way, here = of, of.here
        try:
            for iteration, operand in iterations:
                points = operand.grid.count if operand.sample.index is None else operand.sample.index.numel()
                if iteration.accepted:
                    of.enter(iteration.value, operand)
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


@dataclass
class _LevelUnderWay:
    """A level that is being fitted, a copy of what was found before it, and what its steps that were kept explain."""

    here: RunLevel
    stopping: Stopping
    before: LinearTransform | Composite
    explained: list[float | None] = field(default_factory=list)
    held_back: bool = False

    def was_held_back(self) -> None:
        """The level ends because the images came apart."""
        self.held_back = True

    def enter(self, value: float, operand: Operand) -> None:
        """A loss that was kept, over the operand's points."""
        # Of points or weights that party_2 does not know the loss is known up to a constant only.
        known = operand.energy_known or operand.columns.kind == "bins"
        self.explained.append(self.here.plan.loss.explained(value, operand) if known else None)

    def course(self, history: Sequence[LevelIteration]) -> Course:
        """How it went so far."""
        number = sum(entry.level == self.here.number for entry in history)
        first, last = (self.explained[0], self.explained[-1]) if self.explained else (None, None)
        return Course(
            level=self.here.number,
            shrink=self.here.level.factor,
            iterations=number,
            limit=self.stopping.max_iterations,
            explained_before=first,
            explained=None if self.held_back else last,  # of the last step, which was taken back
            held_back=self.held_back,
        )


def _same(operand: Operand, squares: bool) -> Operand:  # noqa: ARG001
    """A mapped operand is the same for every round: it has no column of squares."""
    return operand


def _as_image(mask: Tensor | None, moving: Image) -> Image | None:
    if mask is None:
        return None
    check_mask(mask, moving.grid, "moving mask", "the moving image")
    return Image(mask[None].to(moving.tensor), moving.grid)
