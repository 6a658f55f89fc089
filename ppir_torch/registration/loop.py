"""The registration loop: levels, iterations, one joint product each. The same code for clear and private runs.

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
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, ImageError, LedgerStop, LinkError
from ..grids import Grid
from ..images import Image, Level, check_content, level_grid
from ..joint.columns import IMAGE, Columns
from ..joint.operands import ClearOperand, Operand
from ..joint.public_map import PublicMap
from ..losses import SSD, AnyLinearisation, DeformableSSD, InverseSSD, Measure, Smoothness, SquaredDifference
from ..optimizers import LBFGS, Adam, GaussNewton, InverseCompositional, Iteration, Stopping
from ..sampling import Chunks, Full, GradientMagnitude, Permuted, Sample, Sampler, Uniform
from ..transforms import LINEAR_TRANSFORMS, Affine, BSpline, Composite, ControlLattice, LinearTransform, VelocityField
from ..transforms.smoothness import Regulariser
from ..warping import channels_above_outside, resampled_along, sample_with_gradient, warp

__all__ = [
    "Choice",
    "ClearFixed",
    "Deformable",
    "FixedSource",
    "LevelIteration",
    "Plan",
    "Result",
    "map_of",
    "register_images",
    "select_points",
]

Choice = Full | Uniform | Permuted | Sample
"""Which points an operand has, and in which order; a Sample's are told to party_2."""

SSD_MEASURE = SquaredDifference()
MATRIX_STEPS = 32
DEFAULT_LEVELS = (Level(4, 4.0), Level(2, 2.0), Level(1, 0.0))


class FixedSource(Protocol):
    """Where a run gets its fixed image from: the image itself (`ClearFixed`) or another party (`PrivateFixed`)."""

    @property
    def grid(self) -> Grid: ...
    @property
    def mask(self) -> Tensor | None: ...
    def centre_of_mass(self) -> Tensor: ...
    def prefers_moments(self, points: int) -> bool:
        """Whether affine products of N points should go by the columns "moments"."""
        ...

    def operand(
        self,
        level: Level,
        choice: Choice | None = None,
        number: int = 0,
        rows: int = 16,
        columns: Columns = IMAGE,
        lattice: ControlLattice | None = None,
        measure: Measure = SSD_MEASURE,
    ) -> Operand:
        """The operand of one level; `rows` is the largest product that is expected. With a lattice, its map's.

        It is made of the measure's features of the fixed image; the choice is one of voxels, the same for each channel.
        """
        ...


@dataclass(frozen=True)
class ClearFixed:
    """The fixed image in this process, with an optional foreground mask (bool, [z,] y, x).

    Raises:
        ImageError: a constant image, or a mask that is empty or not of the image's shape.
    """

    image: Image
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_content(self.image, "fixed image")
        if self.mask is None:
            return
        if self.mask.dtype != torch.bool or self.mask.shape != self.grid.shape:
            shape = tuple(self.mask.shape)
            raise ImageError(f"mask: {shape} {self.mask.dtype}, the image needs {self.grid.shape} torch.bool")
        if not bool(self.mask.any()):
            raise ImageError("mask: empty, at least one voxel is needed")

    @property
    def grid(self) -> Grid:
        """Of the full image."""
        return self.image.grid

    def centre_of_mass(self) -> Tensor:
        """Physical centre of mass (D,), mm."""
        return self.image.centre_of_mass()

    def prefers_moments(self, points: int) -> bool:  # noqa: ARG002
        """Never: one process has no bytes to save."""
        return False

    def operand(
        self,
        level: Level,
        choice: Choice | None = None,
        number: int = 0,
        rows: int = 16,  # noqa: ARG002
        columns: Columns = IMAGE,
        lattice: ControlLattice | None = None,
        measure: Measure = SSD_MEASURE,
    ) -> Operand:
        """The fixed image's features at this level, restricted to the chosen points."""
        candidates, sample = select_points(self.grid, self.mask, level, choice or Full(), number)
        coarse = self.image.at_level(level)
        image = measure.features(coarse, coarse.grid)
        public_map = None if lattice is None else map_of(lattice, image.grid, sample, image.tensor.shape[0])
        return ClearOperand.of(image, candidates, sample, columns, self.grid, public_map, measure.normalised)


def map_of(lattice: ControlLattice, grid: Grid, sample: Sample, channels: int = 1) -> PublicMap:
    """The public linear map of a lattice at one level's grid and points."""
    return PublicMap.of(grid.shape, lattice.matrices(grid)[::-1], sample.index, channels)


def select_points(
    grid: Grid, mask: Tensor | None, level: Level, choice: Choice, number: int
) -> tuple[Tensor | None, Sample]:
    """(candidate points of a level, the sample among them) as flat indices on the level's grid; None means all.

    Both parties run this on public values and get the same points. They are voxels: of features every channel is used
    at each of them.
    """
    coarse, keep = level_grid(grid, level)
    candidates = None if mask is None else torch.nonzero(mask[keep].flatten()).flatten()
    count = coarse.count if candidates is None else candidates.numel()
    if count == 0:
        raise ImageError(f"mask: no voxel left at shrink factor {level.shrink}; use fewer levels or a larger mask")
    sample = choice if isinstance(choice, Sample) else choice.draw(count, number)
    if sample.index is not None and (int(sample.index.min()) < 0 or int(sample.index.max()) >= count):
        raise LinkError(f"sample: indices outside 0..{count - 1}")
    if candidates is not None:
        sample = Sample(candidates if sample.index is None else candidates[sample.index], sample.weights)
    return candidates, sample


@dataclass(frozen=True)
class Deformable:
    """The deformable stage of a run, which follows the linear one; all of it public.

    Args:
        kind: "bspline" (free-form deformation) or "velocity" (diffeomorphic).
        spacing_mm: between control points at the finest level; twice that a level before, and so on.
        regulariser: "bending", "diffusion" or "elastic".
        weight: of the regulariser in units of the fixed image's variance, see `Smoothness`.
        levels: coarse to fine.
        stopping: of each level.
    """

    kind: str = "bspline"
    spacing_mm: float = 8.0
    regulariser: Literal["bending", "diffusion", "elastic"] = "bending"
    weight: float = 0.3
    levels: tuple[Level, ...] = DEFAULT_LEVELS
    stopping: Stopping = field(default_factory=lambda: Stopping(max_iterations=15, step_voxels=0.01, decrease=1e-3))


@dataclass(frozen=True)
class Plan:
    """What to run, all of it public.

    Args:
        transform: "translation", "rigid", "similarity" or "affine".
        levels: coarse to fine.
        sampler: `Full`, `Uniform` (URS), `Chunks` (URS under encryption) or `GradientMagnitude` (GMS). In a deformable
            stage their fraction is of the finest level's points; coarser levels take as many, up to all.
        optimizer: `GaussNewton`, `LBFGS` (for `MutualInformation`), `InverseCompositional` or `Adam`.
        stopping: of each level.
        start: "centres" (of the two images), "centre_of_mass", "identity", or a start Affine.
        deformable: what follows the linear stage, if anything does.
        loss: the measure of similarity: `SquaredDifference`, `Correlation`, `LocalCorrelation`, `Mind`, or
            `ModuleFeatures` of any network.
    """

    transform: str = "affine"
    levels: tuple[Level, ...] = DEFAULT_LEVELS
    sampler: Sampler = field(default_factory=Full)
    optimizer: GaussNewton | LBFGS | InverseCompositional | Adam = field(default_factory=GaussNewton)
    stopping: Stopping = field(default_factory=Stopping)
    start: str | Affine = "centres"
    deformable: Deformable | None = None
    loss: Measure = field(default_factory=SquaredDifference)


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
    _check_plan(plan)
    check_content(moving, "moving image")
    if moving.grid.dimension != fixed.grid.dimension:
        raise ImageError(f"moving image is {moving.grid.dimension}-D, fixed image {fixed.grid.dimension}-D; unequal")
    transform = _start(plan, moving, fixed)
    _check_overlap(transform, moving, fixed.grid)
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
        plan = self.plan
        for number, level in enumerate(plan.levels):
            coarse = self._features(level, transform)
            operand = _operand(plan, transform, coarse, self.fixed, level, number)
            inverse = isinstance(plan.optimizer, InverseCompositional)
            loss = InverseSSD(operand) if inverse else plan.loss.loss(operand)

            def linearise(loss: SSD | InverseSSD = loss, coarse: Image = coarse) -> AnyLinearisation:
                return loss.linearise(transform, coarse)

            voxel = min(operand.grid.spacing)
            self._follow(plan.optimizer.minimise(transform, linearise, plan.stopping, voxel), operand, number, level)

    def fit_deformable(self, outer: LinearTransform, wanted: Deformable) -> Iterator[BSpline | VelocityField]:
        """The deformable stage, coarse to fine; yields what is being fitted before each level."""
        part: BSpline | VelocityField | None = None
        chosen = self.plan.optimizer  # steepest-descent images of J are those of few parameters
        optimizer = GaussNewton() if isinstance(chosen, InverseCompositional) else chosen
        for place, level in enumerate(wanted.levels):
            number = len(self.plan.levels) + place
            spacing = wanted.spacing_mm * 2 ** (len(wanted.levels) - 1 - place)
            part = _lattice_transform(wanted.kind, self.fixed.grid, spacing) if part is None else part.refined(spacing)
            yield part
            coarse = self._features(level, outer)
            lattice, rows, measure = part.lattice, 1 + self.fixed.grid.dimension, self.plan.loss
            operand = _sampled(self.plan, outer, coarse, self.fixed, level, number, rows, IMAGE, lattice)
            regulariser = Regulariser.of(
                wanted.regulariser, lattice.size, lattice.control_spacing, lattice.grid.direction
            )
            loss = measure.deformable_loss(operand, part, outer, Smoothness(regulariser, wanted.weight))

            def linearise(loss: DeformableSSD = loss, coarse: Image = coarse) -> AnyLinearisation:
                return loss.linearise(coarse)

            voxel = min(operand.grid.spacing)
            self._follow(optimizer.minimise(part, linearise, wanted.stopping, voxel), operand, number, level)

    def _features(self, level: Level, transform: LinearTransform) -> Image:
        """The moving image's own at the level; of the fixed image only the public grid counts.

        Those that depend on axes and voxels are made along the transform that the level starts from. Its matrix is
        rounded: voxels that fell on the fixed image's own would hold the transform where it is (they alone are not
        blurred by interpolation), and private and clear runs, a rounding apart, make the same features.
        """
        measure, grid = self.plan.loss, level_grid(self.fixed.grid, level)[0]
        if not measure.follows_axes:
            return measure.features(self.moving.at_level(level), grid)
        smooth = self.moving.at_level(Level(1, level.smoothing_mm))
        return measure.features(resampled_along(smooth, _rounded_matrix(transform), grid), grid)

    def _follow(self, iterations: Iterator[Iteration], operand: Operand, number: int, level: Level) -> None:
        points = operand.grid.count if operand.sample.index is None else operand.sample.index.numel()
        later = 0 if self.plan.deformable is None else len(self.plan.deformable.levels)
        for iteration in iterations:
            elapsed = time.perf_counter() - self.started
            levels = len(self.plan.levels) + later
            self.history.append(LevelIteration(number, levels, level.shrink, points, iteration, elapsed))
            if self.observer is not None:
                self.observer(self.history[-1])


def _lattice_transform(kind: str, grid: Grid, spacing_mm: float) -> BSpline | VelocityField:
    kinds: dict[str, type[BSpline] | type[VelocityField]] = {"bspline": BSpline, "velocity": VelocityField}
    if kind not in kinds:
        raise ConfigError(f"deformable: {kind!r}, one of {', '.join(kinds)} is needed")
    return kinds[kind](ControlLattice(grid, spacing_mm))


def _check_plan(plan: Plan) -> None:
    """Refuse what does not go together before anything is computed or sent."""
    if isinstance(plan.optimizer, InverseCompositional) and plan.loss.kind != "ssd":
        raise ConfigError(f"optimizer: InverseCompositional goes with loss 'ssd' only, not {plan.loss.kind!r}")
    if plan.deformable is None:
        return
    if not plan.loss.deforms:
        raise ConfigError(f"loss: {plan.loss.kind!r} is for linear transforms; take mind, local_ncc or ncc to deform")
    if isinstance(plan.sampler, Chunks):
        raise ConfigError(
            "sampler: Chunks, with a deformable stage one of Full, Uniform (URS), GradientMagnitude (GMS) is needed: "
            "mapped products keep the image's order"
        )
    if isinstance(plan.sampler, GradientMagnitude) and plan.loss.normalised:
        raise ConfigError(
            f"sampler: GradientMagnitude, with a deformable stage and loss {plan.loss.kind!r} one of Full, Uniform "
            "(URS) is needed: its gradient asks for J's mean over the weighted points, which is not opened"
        )


def _start(plan: Plan, moving: Image, fixed: FixedSource) -> LinearTransform:
    if plan.transform not in LINEAR_TRANSFORMS:
        raise ConfigError(f"transform: {plan.transform!r}, one of {', '.join(LINEAR_TRANSFORMS)} is needed")
    transform = LINEAR_TRANSFORMS[plan.transform](fixed.grid)
    if isinstance(plan.start, Affine):
        if not isinstance(transform, Affine):
            raise ConfigError(f"start: a transform file goes with transform 'affine' only, not {plan.transform!r}")
        if plan.start.dimension != transform.dimension:
            raise ConfigError(f"start: {plan.start.dimension}-D transform, the images are {transform.dimension}-D")
        transform.set_affine_map(*(part.detach() for part in plan.start.affine_map()))
    elif plan.start in ("centres", "centre_of_mass"):
        centres = plan.start == "centres"
        to = moving.grid.centre if centres else moving.centre_of_mass()
        with torch.no_grad():
            transform.translation.copy_(to - (fixed.grid.centre if centres else fixed.centre_of_mass()))
    elif plan.start != "identity":
        raise ConfigError(f"start: {plan.start!r}, one of centres, centre_of_mass, identity is needed")
    return transform


def _operand(
    plan: Plan, transform: LinearTransform, moving: Image, fixed: FixedSource, level: Level, number: int
) -> Operand:
    """The operand that the plan's optimiser and sampler need at this level."""
    sampler, measure = plan.sampler, plan.loss
    count = level_grid(fixed.grid, level)[0].count * measure.channels(fixed.grid.dimension)
    some_points = isinstance(sampler, Chunks | GradientMagnitude)
    rows, columns = 1 + sum(p.numel() for p in transform.parameters()), measure.columns()
    if columns.kind != "image":
        rows = measure.most_rows(fixed.grid.dimension)
    elif isinstance(plan.optimizer, InverseCompositional):
        rows, columns = 1, Columns("steepest_descent", plan.transform)
    elif isinstance(transform, Affine) and fixed.prefers_moments(count) and not (measure.normalised and some_points):
        rows, columns = 1 + fixed.grid.dimension, Columns("moments")
    return _sampled(plan, transform, moving, fixed, level, number, rows, columns)


def _sampled(
    plan: Plan,
    transform: LinearTransform,
    moving: Image,
    fixed: FixedSource,
    level: Level,
    number: int,
    rows: int,
    columns: Columns,
    lattice: ControlLattice | None = None,
) -> Operand:
    """The operand at the points of the plan's sampler, which may look at the moving image where it maps to."""
    sampler = plan.sampler if lattice is None else _for_deformation(plan, fixed.grid, level)

    def operand(choice: Choice) -> Operand:
        return fixed.operand(level, choice, number, rows, columns, lattice, plan.loss)

    if isinstance(sampler, Chunks):
        permuted = operand(Permuted(sampler.seed))
        assert permuted.sample.index is not None
        return permuted.part(sampler.window(permuted.sample.index.numel(), number), None)
    if not isinstance(sampler, GradientMagnitude):
        return operand(sampler)
    chosen = sampler.draw(_gradient_magnitude(transform, moving, fixed, level, number), number)
    if sampler.disclose_points:
        return operand(chosen)
    assert chosen.index is not None
    return operand(Full()).part(chosen.index, chosen.weights)


def _for_deformation(plan: Plan, grid: Grid, level: Level) -> Sampler:
    """The sampler with as many points at a coarse level as at the finest, up to all of it.

    Control points lie as many voxels apart at every level. A share of few voxels says too little of them, the level
    ends in another minimum, and the finer ones do not get out of it.
    """
    assert plan.deformable is not None
    if not isinstance(plan.sampler, Uniform | GradientMagnitude):
        return plan.sampler
    finest, here = (level_grid(grid, chosen)[0].count for chosen in (plan.deformable.levels[-1], level))
    return replace(plan.sampler, fraction=min(1.0, plan.sampler.fraction * finest / here))


def _gradient_magnitude(
    transform: LinearTransform, moving: Image, fixed: FixedSource, level: Level, number: int
) -> Tensor:
    """Of the warped moving image (of its features: of all channels) at the level's candidate points (N,).

    Along the rounded transform: private and clear runs, a rounding apart, draw the same points. The weights make up for
    other probabilities.
    """
    candidates, _ = select_points(fixed.grid, fixed.mask, level, Full(), number)
    coarse, _ = level_grid(fixed.grid, level)
    centre = fixed.grid.centre
    with torch.no_grad():
        target = transform(centre[None])[0].double()
    matrix, step = _rounded_matrix(transform).double(), min(fixed.grid.spacing)
    offset = (target / step).round() * step - matrix @ centre.double()
    points = coarse.points(candidates, torch.float64)
    mapped = (points @ matrix.T + offset).to(moving.tensor)
    gradients = [sample_with_gradient(above, 0.0, mapped)[1] for above, _ in channels_above_outside(moving)]
    magnitude: Tensor = torch.linalg.vector_norm(torch.cat(gradients, 1), dim=1)
    return magnitude


def _rounded_matrix(transform: LinearTransform) -> Tensor:
    """(D, D), the same for runs whose transforms are a rounding apart."""
    return (transform.affine_map()[0].detach() * MATRIX_STEPS).round() / MATRIX_STEPS


def _check_overlap(transform: LinearTransform, moving: Image, grid: Grid) -> None:
    coarse, _ = level_grid(grid, Level(max(grid.size) // 16 + 1, 0.0))
    matrix, offset = moving.grid.physical_to_normalised()
    with torch.no_grad():
        where = transform(coarse.points(dtype=torch.float64)) @ matrix.T + offset
    if not bool((where.abs() <= 1).all(1).any()):
        raise ImageError(
            "no overlap: every fixed point maps outside the moving image; check origins and directions, "
            "or start from centres or an initial transform"
        )
