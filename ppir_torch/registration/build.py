"""From a configuration to what a run needs: its plan, its measure and sampler, a party's own image.

Settings become objects through their entries: `LOSSES[kind].make(settings)`. No kind has a name here.

>>> from ppir_torch.config import load_config
>>> config = load_config({"data": {"moving": "a.nii.gz", "fixed": "b.nii.gz"}, "backend": {"kind": "bfv"}})
>>> build_plan(config, (1.0, 1.0, 1.0)).transform
'affine'
"""

from __future__ import annotations

from dataclasses import replace

from ..config.base import KindSettings
from ..config.groups import LevelConfig, PreprocessConfig
from ..config.images import MovingPartyConfig, RunConfig
from ..config.losses import LOSSES
from ..config.optimizers import OPTIMIZERS
from ..config.samplers import SAMPLERS
from ..config.transforms import DeformableConfig
from ..errors import ConfigError
from ..features import preprocess
from ..images import Image, Level, load_mask
from ..losses import Measure
from ..optimizers import Stopping
from ..sampling import Sampler
from ..transforms import Affine
from .plan import Deformable, Plan

__all__ = ["build_measure", "build_plan", "build_sampler", "preprocessed"]


def build_plan(
    config: RunConfig | MovingPartyConfig, fixed_spacing: tuple[float, ...], start: Affine | None = None
) -> Plan:
    """The registration's plan; `start` is the loaded transform where start.kind is "file".

    Raises:
        ConfigError: a start transform where none is asked for, or the other way round; code that cannot be imported.
    """
    if (config.start.kind == "file") != (start is not None):
        raise ConfigError(f"start.kind: {config.start.kind!r}, a loaded transform goes with 'file' and only with it")
    spacing, linear, chosen = min(fixed_spacing), config.transform.linear, config.optimizer
    levels = tuple(Level(level.shrink, _smoothing_mm(level, spacing)) for level in config.pyramid.levels)
    wanted = config.transform.deformable
    return Plan(
        transform="affine" if linear == "none" else linear,
        levels=() if linear == "none" else levels,
        sampler=build_sampler(config),
        optimizer=OPTIMIZERS[chosen.kind].make(chosen),
        stopping=Stopping(**chosen.stopping.model_dump()),
        start=start or config.start.kind,
        deformable=None if wanted is None else _deformable(wanted, config.pyramid.levels, levels, spacing),
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
    return preprocess(image, settings.rescale, settings.clip, mask)


def _deformable(
    wanted: DeformableConfig, chosen: tuple[LevelConfig, ...], levels: tuple[Level, ...], spacing: float
) -> Deformable:
    return Deformable(
        kind=wanted.kind,
        spacing_mm=5 * spacing if wanted.spacing_mm is None else wanted.spacing_mm,
        regulariser=wanted.regulariser,
        weight=wanted.weight,
        levels=tuple(_smoother(level, said, spacing) for level, said in zip(levels, chosen, strict=True)),
        stopping=Stopping(wanted.max_iterations, wanted.step_voxels, wanted.decrease),
    )


def _smoother(level: Level, chosen: LevelConfig, spacing: float) -> Level:
    """The level of a deformable stage; see `DeformableConfig`."""
    unsaid = level.shrink == 1 and chosen.smoothing_mm is None
    return replace(level, smoothing_mm=spacing) if unsaid else level


def _smoothing_mm(level: LevelConfig, spacing: float) -> float:
    if level.smoothing_mm is not None:
        return level.smoothing_mm
    return 0.0 if level.shrink == 1 else 0.5 * level.shrink * spacing
