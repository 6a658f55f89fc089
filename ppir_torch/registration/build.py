"""From a configuration to what a run needs: its plan, its measure and sampler, a party's own image.

Settings become objects through their entries: `LOSSES[kind].make(settings)`. No kind has a name here.

>>> from ppir_torch.config import load_config
>>> config = load_config({"data": {"moving": "a.nii.gz", "fixed": "b.nii.gz"}, "backend": {"kind": "bfv"}})
>>> plan = build_plan(config, Grid((64, 64, 64)))
>>> plan.transform, [level.shrink for level in plan.levels]
('affine', [4, 2, 1])
"""

from __future__ import annotations

from ..config.base import KindSettings
from ..config.groups import PreprocessConfig, PyramidConfig
from ..config.images import MovingPartyConfig, RunConfig
from ..config.losses import LOSSES
from ..config.optimizers import OPTIMIZERS
from ..config.samplers import SAMPLERS
from ..config.transforms import DeformableConfig
from ..errors import ConfigError
from ..features import preprocess
from ..grids import Grid
from ..images import Image, load_mask
from ..intensities import equalised, windowed
from ..levels import DEFORMABLE_POINTS, LINEAR_POINTS, Level, automatic_levels, smoothing_of
from ..losses import Measure
from ..optimizers import Stopping
from ..sampling import Sampler
from ..transforms import Affine
from .plan import Deformable, Plan, smoothed_for_lattices

__all__ = ["build_measure", "build_plan", "build_sampler", "preprocessed"]


def build_plan(config: RunConfig | MovingPartyConfig, grid: Grid, start: Affine | None = None) -> Plan:
    """The registration's plan for a fixed image on `grid`; `start` goes with start.kind "file" and "atlas".

    Raises:
        ConfigError: a start transform where none is asked for, or the other way round; code that cannot be imported.
    """
    if (config.start.kind in ("file", "atlas")) != (start is not None):
        raise ConfigError(
            f"start.kind: {config.start.kind!r}, a transform goes with 'file' and 'atlas' and only with them"
        )
    linear, chosen = config.transform.linear, config.optimizer
    stiffness = LOSSES[config.loss.kind].stiffness
    wanted = config.transform.deformable
    levels = tuple(level for level, _ in _levels(config.pyramid, grid, LINEAR_POINTS))
    return Plan(
        transform="affine" if linear == "none" else linear,
        levels=() if linear == "none" else levels,
        sampler=build_sampler(config),
        optimizer=OPTIMIZERS[chosen.kind].make(chosen),
        stopping=Stopping(**chosen.stopping.model_dump()),
        start=start or config.start.kind,
        turns=config.start.turns,
        deformable=None if wanted is None else _deformable(wanted, stiffness, config.pyramid, grid),
        loss=build_measure(config.loss),
    )


def build_measure(loss: KindSettings) -> Measure:
    """The measure of similarity that the settings describe."""
    measure: Measure = LOSSES[loss.kind].make(loss)
    return measure


def build_sampler(config: RunConfig | MovingPartyConfig) -> Sampler:
    """The sampler that the configuration describes; its seed is the run's where it has none of its own."""
    chosen = config.sampler
    if getattr(chosen, "seed", 0) is None:
        chosen = chosen.model_copy(update={"seed": config.seed})
    sampler: Sampler = SAMPLERS[chosen.kind].make(chosen)
    return sampler


def preprocessed(image: Image, settings: PreprocessConfig) -> Image:
    """A party's own image after its own settings; where they ask for nothing, the image itself.

    Raises:
        ImageError: a mask that cannot be used, or percentiles that coincide.
    """
    if not settings.changes:
        return image
    mask = None if settings.mask is None else load_mask(settings.mask, image.grid)
    if settings.window is not None:
        image = windowed(image, settings.window)
    if settings.equalise:
        image = equalised(image, mask)
    if settings.rescale is None and settings.clip is None:
        return image
    return preprocess(image, settings.rescale, settings.clip, mask)


def _levels(pyramid: PyramidConfig, grid: Grid, most_points: int) -> tuple[tuple[Level, bool], ...]:
    """Levels, and whether their smoothing is what somebody said; from the configuration, or else from the grid."""
    if pyramid.levels is None:
        most = most_points if pyramid.most_points is None else pyramid.most_points
        return tuple((level, False) for level in automatic_levels(grid, pyramid.least_voxels, most))
    said = [(level.shrink, level.smoothing_mm) for level in pyramid.levels]
    return tuple((Level(n, smoothing_of(grid, n) if mm is None else mm), mm is not None) for n, mm in said)


def _deformable(wanted: DeformableConfig, of_loss: float, pyramid: PyramidConfig, grid: Grid) -> Deformable:
    spacing_mm = 5 * min(grid.spacing) if wanted.spacing_mm is None else wanted.spacing_mm
    levels = _levels(pyramid, grid, DEFORMABLE_POINTS)
    return Deformable(
        kind=wanted.kind,
        spacing_mm=spacing_mm,
        regulariser=wanted.regulariser,
        weight=_weight(wanted, of_loss, spacing_mm),
        levels=tuple(level if said else smoothed_for_lattices(level, grid) for level, said in levels),
        stopping=Stopping(wanted.max_iterations, wanted.step_voxels, wanted.decrease, wanted.longest_voxels),
        jacobian_min=wanted.jacobian_min,
    )


def _weight(wanted: DeformableConfig, of_loss: float, spacing_mm: float) -> float:
    """Of the regulariser; see `DeformableConfig`. `of_loss`: the stiffness where the configuration says none."""
    if wanted.weight is not None:
        return wanted.weight
    stiffness = of_loss if wanted.stiffness is None else wanted.stiffness
    return stiffness * (spacing_mm**2 if wanted.regulariser == "bending" else 1.0)
