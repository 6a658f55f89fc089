"""From a configuration to what a run needs: its plan, its measure and sampler, a party's own image.

>>> from ppir_torch.config import load_config
>>> config = load_config({"data": {"moving": "a.nii.gz", "fixed": "b.nii.gz"}, "backend": {"kind": "bfv"}})
>>> build_plan(config, (1.0, 1.0, 1.0)).transform
'affine'
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.groups import (
    ChunksSamplerConfig,
    DeformableConfig,
    GaussNewtonConfig,
    InverseCompositionalConfig,
    LbfgsConfig,
    LevelConfig,
    LocalNccConfig,
    Loss,
    MindConfig,
    MutualInformationConfig,
    NccConfig,
    NoSamplerConfig,
    PreprocessConfig,
    UniformSamplerConfig,
)
from ..errors import ConfigError

if TYPE_CHECKING:
    from .. import sampling
    from ..config.images import MovingPartyConfig, RunConfig
    from ..images import Image, Level
    from ..losses import Measure
    from ..transforms import Affine
    from .loop import Plan

__all__ = ["build_measure", "build_plan", "build_sampler", "preprocessed"]


def build_plan(
    config: RunConfig | MovingPartyConfig, fixed_spacing: tuple[float, ...], start: Affine | None = None
) -> Plan:
    """The registration's plan; `start` is the loaded transform where start.kind is "file"."""
    from ..images import Level
    from ..optimizers import LBFGS, Adam, GaussNewton, InverseCompositional, Stopping
    from .loop import Deformable, Plan

    if (config.start.kind == "file") != (start is not None):
        raise ConfigError(f"start.kind: {config.start.kind!r}, a loaded transform goes with 'file' and only with it")
    optimizer: GaussNewton | LBFGS | InverseCompositional | Adam
    if isinstance(config.optimizer, GaussNewtonConfig):
        optimizer = GaussNewton(config.optimizer.damping)
    elif isinstance(config.optimizer, LbfgsConfig):
        optimizer = LBFGS(config.optimizer.memory, config.optimizer.damping)
    elif isinstance(config.optimizer, InverseCompositionalConfig):
        optimizer = InverseCompositional(config.optimizer.damping)
    else:
        optimizer = Adam(config.optimizer.learning_rate_voxels)
    levels = tuple(Level(level.shrink, _smoothing_mm(level, min(fixed_spacing))) for level in config.pyramid.levels)
    stopping = Stopping(**config.optimizer.stopping.model_dump())
    wanted, deformable = config.transform, None
    if isinstance(wanted, DeformableConfig):
        deformable = Deformable(
            kind=wanted.kind,
            spacing_mm=5 * min(fixed_spacing) if wanted.spacing_mm is None else wanted.spacing_mm,
            regulariser=wanted.regulariser,
            weight=wanted.weight,
            levels=tuple(
                _smoother(level, chosen, min(fixed_spacing))
                for level, chosen in zip(levels, config.pyramid.levels, strict=True)
            ),
            stopping=Stopping(wanted.max_iterations, wanted.step_voxels, wanted.decrease),
        )
    return Plan(
        transform="affine" if wanted.linear == "none" else wanted.linear,
        levels=() if wanted.linear == "none" else levels,
        sampler=build_sampler(config),
        optimizer=optimizer,
        stopping=stopping,
        start=start or config.start.kind,
        deformable=deformable,
        loss=build_measure(config.loss),
    )


def build_measure(loss: Loss) -> Measure:
    """The measure of similarity that the configuration describes."""
    from ..losses import Correlation, LocalCorrelation, Mind, MutualInformation, SquaredDifference

    if isinstance(loss, MindConfig):
        return Mind(loss.radius, loss.dilation)
    if isinstance(loss, MutualInformationConfig):
        return MutualInformation(loss.moving_bins, loss.fixed_bins)
    if isinstance(loss, LocalNccConfig):
        return LocalCorrelation(loss.radius_mm, loss.floor)
    return Correlation() if isinstance(loss, NccConfig) else SquaredDifference()


def preprocessed(image: Image, settings: PreprocessConfig) -> Image:
    """A party's own image after its own settings; where they ask for nothing, the image itself.

    Raises:
        ImageError: a mask that cannot be used, or percentiles that coincide.
    """
    from ..features import preprocess
    from ..images import load_mask

    if not settings.changes:
        return image
    mask = None if settings.mask is None else load_mask(settings.mask, image.grid)
    return preprocess(image, settings.rescale, settings.clip, mask)


def build_sampler(config: RunConfig | MovingPartyConfig) -> sampling.Sampler:
    """The sampler that the configuration describes."""
    from ..sampling import Chunks, Full, GradientMagnitude, Uniform

    chosen = config.sampler
    if isinstance(chosen, NoSamplerConfig):
        return Full()
    seed = config.seed if chosen.seed is None else chosen.seed
    if isinstance(chosen, UniformSamplerConfig):
        return Uniform(chosen.fraction, seed)
    if isinstance(chosen, ChunksSamplerConfig):
        return Chunks(chosen.fraction, seed)
    return GradientMagnitude(chosen.fraction, seed, chosen.floor, chosen.disclose_points)


def _smoother(level: Level, chosen: LevelConfig, spacing: float) -> Level:
    """The level of a deformable stage; see `DeformableConfig`."""
    unsaid = level.shrink == 1 and chosen.smoothing_mm is None
    return replace(level, smoothing_mm=spacing) if unsaid else level


def _smoothing_mm(level: LevelConfig, spacing: float) -> float:
    if level.smoothing_mm is not None:
        return level.smoothing_mm
    return 0.0 if level.shrink == 1 else 0.5 * level.shrink * spacing
