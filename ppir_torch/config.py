"""The configuration of a run: what may be set, within which ranges, and what goes together.

It may come from another organisation, so it is untrusted: unknown keys, wrong types and values out of range are
refused, and nothing in it can name code to load. Only pydantic is imported here; torch comes with `build_plan`.

>>> mapping = {"data": {"moving": "a.nii.gz", "fixed": "b.nii.gz"}, "backend": {"kind": "bfv"}}
>>> load_config(mapping).pyramid.levels[0]
LevelConfig(shrink=4, smoothing_mm=None)
>>> load_config({**mapping, "threads": 0})
Traceback (most recent call last):
ppir_torch.errors.ConfigError: threads: 0, an integer >= 1 and <= 1024 is needed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .config_lines import kinds, problem_line, show
from .errors import ConfigError

if TYPE_CHECKING:
    from . import sampling
    from .images import Image, Level
    from .losses import Measure
    from .registration import Plan
    from .transforms import Affine

__all__ = [
    "FixedPartyConfig",
    "MovingPartyConfig",
    "RunConfig",
    "build_measure",
    "build_plan",
    "build_sampler",
    "fixed_party",
    "load_config",
    "moving_party",
    "preprocessed",
]

LARGEST_SEED = 2**32 - 1
_INSECURE = (
    "true is needed: ckks-v1 is the published protocol, a baseline for benchmarks; attacks read both images from it"
)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _usable_path(path: Path) -> Path:
    if str(path) == "." or "\0" in str(path):
        raise ValueError("the path of a file is needed")
    return path


# strict=False: YAML and JSON have no paths and no tuples, so a string and a list are taken.
File = Annotated[Path, Field(strict=False), AfterValidator(_usable_path)]


class LinearConfig(_Settings):
    kind: Literal["translation", "rigid", "similarity", "affine"] = "affine"

    @property
    def linear(self) -> str:
        """The linear stage's transform."""
        return self.kind


class DeformableConfig(_Settings):
    """A linear stage, then control points: free-form deformation, or a velocity field (diffeomorphic).

    `spacing_mm` lies between control points at the finest level, twice that a level before, and so on; null: five of
    the fixed image's voxels. At shrink 1 both images are smoothed by a voxel unless the level says otherwise: between
    voxels linear interpolation averages noise away, and a free deformation would follow that. `weight` of the
    regulariser is relative to the fixed image's variance.
    """

    kind: Literal["bspline", "velocity"]
    linear: Literal["translation", "rigid", "similarity", "affine", "none"] = "affine"
    spacing_mm: float | None = Field(default=None, gt=0, le=10_000)
    regulariser: Literal["bending", "diffusion", "elastic"] = "bending"
    weight: float = Field(default=0.3, ge=0, le=1e9)
    max_iterations: int = Field(default=15, ge=1, le=10_000)
    step_voxels: float = Field(default=0.01, ge=0, le=1000)
    decrease: float = Field(default=1e-3, ge=0, le=1)


class SsdConfig(_Settings):
    """Mean squared difference of the intensities."""

    kind: Literal["ssd"] = "ssd"


class NccConfig(_Settings):
    """1 - correlation of the intensities over the points in use."""

    kind: Literal["ncc"] = "ncc"


class LocalNccConfig(_Settings):
    """Of locally normalised images; see `ppir_torch.LocalCorrelation`. `radius_mm` null: four voxels of the level."""

    kind: Literal["local_ncc"] = "local_ncc"
    radius_mm: float | None = Field(default=None, gt=0, le=1000)
    floor: float = Field(default=0.1, ge=1e-3, le=10)


class MindConfig(_Settings):
    """Of MIND-SSC descriptors; see `ppir_torch.Mind`. Both in voxels of the level."""

    kind: Literal["mind"] = "mind"
    radius: int = Field(default=2, ge=0, le=16)
    dilation: int = Field(default=2, ge=1, le=16)


class MutualInformationConfig(_Settings):
    """Minus the mutual information of the intensities; see `ppir_torch.MutualInformation`. Linear transforms only."""

    kind: Literal["mi"] = "mi"
    moving_bins: int = Field(default=16, ge=4, le=64)
    fixed_bins: int = Field(default=8, ge=4, le=64)


class StoppingConfig(_Settings):
    """When a level ends; see `ppir_torch.Stopping`, which has the same defaults."""

    max_iterations: int = Field(default=30, ge=1, le=10_000)
    step_voxels: float = Field(default=1e-3, ge=0, le=1000)
    decrease: float = Field(default=1e-5, ge=0, le=1)


class GaussNewtonConfig(_Settings):
    kind: Literal["gauss_newton"] = "gauss_newton"
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig()


class LbfgsConfig(_Settings):
    """L-BFGS from the loss's own Hessian: for losses whose Gauss-Newton model is rough. It stops later."""

    kind: Literal["lbfgs"] = "lbfgs"
    memory: int = Field(default=10, ge=1, le=100)
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig(decrease=1e-7)


class InverseCompositionalConfig(_Settings):
    """Gauss-Newton on the fixed image's steepest-descent images; party_2 discloses the sums of their products."""

    kind: Literal["inverse_compositional"] = "inverse_compositional"
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig()


class AdamConfig(_Settings):
    kind: Literal["adam"] = "adam"
    learning_rate_voxels: float = Field(default=0.25, gt=0, le=1000)
    stopping: StoppingConfig = StoppingConfig()


class ClearConfig(_Settings):
    kind: Literal["clear"] = "clear"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class SpdzConfig(_Settings):
    kind: Literal["spdz"] = "spdz"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    provider: Literal["trusted_third_party"] = "trusted_third_party"

    @field_validator("provider", mode="before")
    @classmethod
    def _refuse_first_party(cls, value: object) -> object:
        if isinstance(value, str) and value.lower() in ("trusted_first_party", "tfp"):
            raise ValueError("refused: rank 0 would make the triples and read the other image; use trusted_third_party")
        return value


class BeaverConfig(_Settings):
    kind: Literal["beaver"] = "beaver"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class BfvConfig(_Settings):
    kind: Literal["bfv"] = "bfv"


class CkksConfig(_Settings):
    kind: Literal["ckks"] = "ckks"


class CkksV1Config(_Settings):
    """The published CKKS product, a baseline for benchmarks; it protects neither image."""

    kind: Literal["ckks-v1"] = "ckks-v1"
    allow_insecure: bool = Field(default=False, validate_default=True)

    @field_validator("allow_insecure")
    @classmethod
    def _refuse_by_default(cls, value: bool) -> bool:
        if not value:
            raise ValueError(_INSECURE)
        return value


class AutoConfig(_Settings):
    """Let the sizes of the images and the network choose the protocol; the run says which, and why."""

    kind: Literal["auto"] = "auto"
    bandwidth_mbit: float = Field(default=1000, gt=0, le=1e6)
    dealer: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"


class NoSamplerConfig(_Settings):
    kind: Literal["none"] = "none"


class UniformSamplerConfig(_Settings):
    kind: Literal["urs"] = "urs"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)


class GradientSamplerConfig(_Settings):
    kind: Literal["gms"] = "gms"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    floor: float = Field(default=0.2, gt=0, le=1)
    disclose_points: bool = False


class ChunksSamplerConfig(_Settings):
    """URS for encrypted operands: a window of a public random order; party_2 sends its points once."""

    kind: Literal["chunks"] = "chunks"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)


class LevelConfig(_Settings):
    """One resolution level; `smoothing_mm` null means 0 at shrink 1, else half the level's smallest spacing."""

    shrink: int = Field(ge=1, le=64)
    smoothing_mm: float | None = Field(default=None, ge=0, le=1000)


class PyramidConfig(_Settings):
    levels: tuple[LevelConfig, ...] = Field(default=tuple(LevelConfig(shrink=n) for n in (4, 2, 1)), strict=False)

    @field_validator("levels")
    @classmethod
    def _coarse_to_fine(cls, levels: tuple[LevelConfig, ...]) -> tuple[LevelConfig, ...]:
        if not 1 <= len(levels) <= 10:
            raise ValueError("1 to 10 levels are needed")
        shrinks = [level.shrink for level in levels]
        if shrinks != sorted(shrinks, reverse=True):
            raise ValueError(f"shrink goes {shrinks}, coarse to fine is needed: it must not increase")
        return levels


class PreprocessConfig(_Settings):
    """What a party does to the intensities of its own image, first of all; the other is not told.

    Values are held within the percentiles `clip`, then mapped to the range `rescale`; both taken over the voxels of
    the file `mask`, on the image's grid.
    """

    rescale: tuple[float, float] | None = Field(default=None, strict=False)
    clip: tuple[float, float] | None = Field(default=None, strict=False)
    mask: File | None = None

    @property
    def changes(self) -> bool:
        """Whether anything is done."""
        return self.rescale is not None or self.clip is not None

    @field_validator("rescale", "clip", mode="before")
    @classmethod
    def _two_numbers(cls, value: object, info: ValidationInfo) -> object:
        percentiles = info.field_name == "clip"
        if value is None:
            return None
        words = (
            "two percentiles [low, high] with 0 <= low < high <= 100 are"
            if percentiles
            else ("two numbers [low, high] with low < high, of magnitude 1e9 at most, are")
        )
        least, most = (0, 100) if percentiles else (-1e9, 1e9)
        pair = tuple(value) if isinstance(value, list | tuple) else ()
        if len(pair) != 2 or any(type(v) not in (int, float) for v in pair) or not least <= pair[0] < pair[1] <= most:
            raise ValueError(f"{words} needed (or null)")
        return tuple(float(v) for v in pair)

    @model_validator(mode="after")
    def _check_mask(self) -> PreprocessConfig:
        if self.mask is not None and not self.changes:
            raise ValueError("mask goes with rescale or clip, whose values are taken over its voxels")
        return self


class PairPreprocessConfig(_Settings):
    """Each party is given its own part only."""

    moving: PreprocessConfig = PreprocessConfig()
    fixed: PreprocessConfig = PreprocessConfig()


class DataConfig(_Settings):
    """Files. `truth` and `reference` are ITK transforms to compare with: the known one, and that of the clear run."""

    moving: File
    fixed: File
    fixed_mask: File | None = None
    disclose_mask: bool = False
    disclose_centre_of_mass: bool = False
    truth: File | None = None
    reference: File | None = None
    preprocess: PairPreprocessConfig = PairPreprocessConfig()


class BudgetConfig(_Settings):
    """party_2's cap on the values that it releases of its image to one peer, over all runs, and its noise on them.

    `file` null: the site's own, see `ppir audit`. `max_values` null: `fraction` of the image's foreground voxels.
    """

    file: File | None = None
    peer: str = Field(default="party_1", min_length=1, max_length=200)
    fraction: float = Field(default=0.05, gt=0, le=1e6)
    max_values: int | None = Field(default=None, ge=1, le=2**62)
    noise: float = Field(default=0.0, ge=0, le=1)


class LedgerConfig(_Settings):
    """party_1's running account of what the opened values say about J; `most` stops the run where they say more.

    `most` is the share of J's variance that they explain and party_1's own warped image does not.
    """

    enabled: bool = True
    most: float | None = Field(default=None, gt=0, le=1)


class StartConfig(_Settings):
    kind: Literal["centres", "centre_of_mass", "identity", "file"] = "centres"
    path: File | None = None


class TransportConfig(_Settings):
    kind: Literal["local"] = "local"
    timeout_s: float = Field(default=600, ge=1, le=86_400)


Transform = Annotated[LinearConfig | DeformableConfig, Field(discriminator="kind")]
Loss = Annotated[
    SsdConfig | NccConfig | LocalNccConfig | MindConfig | MutualInformationConfig, Field(discriminator="kind")
]
Optimizer = Annotated[
    GaussNewtonConfig | LbfgsConfig | InverseCompositionalConfig | AdamConfig, Field(discriminator="kind")
]
PrivateKind = SpdzConfig | BeaverConfig | BfvConfig | CkksConfig | CkksV1Config
Backend = Annotated[ClearConfig | AutoConfig | PrivateKind, Field(discriminator="kind")]
PrivateBackend = Annotated[PrivateKind, Field(discriminator="kind")]
Sampler = Annotated[
    NoSamplerConfig | UniformSamplerConfig | ChunksSamplerConfig | GradientSamplerConfig, Field(discriminator="kind")
]


class _SharedConfig(_Settings):
    # What every party's process needs, beside the backend.
    loss: Loss = SsdConfig()
    transport: TransportConfig = TransportConfig()
    dtype: Literal["float32", "float64"] = "float32"
    threads: int = Field(default=2, ge=1, le=1024)


class _PublicConfig(_SharedConfig):
    # Everything of a run but the data.
    transform: Transform = LinearConfig()
    optimizer: Optimizer = GaussNewtonConfig()
    sampler: Sampler = NoSamplerConfig()
    pyramid: PyramidConfig = PyramidConfig()
    start: StartConfig = StartConfig()
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    share_transform: bool = False
    ledger: LedgerConfig = LedgerConfig()

    @model_validator(mode="before")
    @classmethod
    def _optimizer_of_the_loss(cls, values: object) -> object:
        # Where no optimiser is named: Gauss-Newton's model is poor for mutual information.
        if not isinstance(values, Mapping):
            return values
        chosen, loss = values.get("optimizer"), values.get("loss")
        if chosen is not None and not (isinstance(chosen, Mapping) and "kind" not in chosen):
            return values
        of_mi = isinstance(loss, Mapping) and loss.get("kind") == "mi"
        return {**values, "optimizer": {"kind": "lbfgs" if of_mi else "gauss_newton", **(chosen or {})}}

    @model_validator(mode="after")
    def _check_sampler(self) -> _PublicConfig:
        if self.optimizer.kind == "inverse_compositional" and self.sampler.kind in ("chunks", "gms"):
            _raise(
                [
                    f"sampler.kind: {self.sampler.kind!r}, with optimizer 'inverse_compositional' one of none, urs is "
                    "needed: party_2 sums over the points itself and must know them"
                ]
            )
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> _PublicConfig:
        if self.optimizer.kind == "inverse_compositional" and self.loss.kind != "ssd":
            _raise(
                [
                    f"optimizer.kind: 'inverse_compositional', with loss {self.loss.kind!r} one of gauss_newton, adam "
                    "is needed: party_2's steepest-descent images are those of ssd"
                ]
            )
        backend = getattr(self, "backend", None)
        if backend is not None and backend.kind == "ckks-v1" and self.loss.kind != "ssd":
            _raise([f"loss.kind: {self.loss.kind!r}, with backend 'ckks-v1' (the published protocol) ssd is needed"])
        return self

    @model_validator(mode="after")
    def _check_deformable(self) -> _PublicConfig:
        lines = []
        if isinstance(self.transform, DeformableConfig):
            backend = getattr(self, "backend", None)
            if backend is not None and backend.kind in ("ckks", "ckks-v1"):
                lines.append(
                    f"backend.kind: {backend.kind!r}, with transform {self.transform.kind!r} one of clear, beaver, "
                    "spdz, bfv is needed"
                )
            if self.sampler.kind == "chunks":
                lines.append(
                    f"sampler.kind: 'chunks', with transform {self.transform.kind!r} one of none, urs, gms is needed: "
                    "its products keep the image's order"
                )
            if self.loss.kind == "mi":
                lines.append(
                    f"loss.kind: 'mi', with transform {self.transform.kind!r} ssd, ncc, local_ncc or mind is needed"
                )
            if self.sampler.kind == "gms" and self.loss.kind == "ncc":
                lines.append(
                    f"sampler.kind: 'gms', with transform {self.transform.kind!r} and loss 'ncc' one of none, urs is "
                    "needed: the gradient asks for J's mean over the weighted points, which is not opened"
                )
        _raise(lines)
        return self

    @model_validator(mode="after")
    def _check_start(self) -> _PublicConfig:
        lines = []
        if self.start.kind == "file" and self.start.path is None:
            lines.append("start.path: missing, the path of an ITK transform is needed with start.kind 'file'")
        if self.start.kind != "file" and self.start.path is not None:
            lines.append(f"start.path: {show(self.start.path)}, goes with start.kind 'file' only")
        field = "transform.kind" if isinstance(self.transform, LinearConfig) else "transform.linear"
        if self.start.kind == "file" and self.transform.linear not in ("affine", "none"):
            lines.append(f"{field}: {self.transform.linear!r}, only 'affine' goes with start.kind 'file'")
        _raise(lines)
        return self


class RunConfig(_PublicConfig):
    """A whole run, as its user describes it: both images named. A party's process is given its own part only."""

    backend: Backend  # no default: a private run never turns into a clear one because a line got lost
    data: DataConfig
    budget: BudgetConfig = BudgetConfig()
    output: File | None = None

    @property
    def private(self) -> bool:
        """True where the images stay with their parties."""
        return self.backend.kind != "clear"

    @model_validator(mode="after")
    def _check_consent(self) -> RunConfig:
        lines = []
        if self.private and not self.data.disclose_mask:
            lines += _mask_lines(self.backend.kind, "data.", self.data.fixed_mask)
        if self.private and self.start.kind == "centre_of_mass" and not self.data.disclose_centre_of_mass:
            lines.append(
                f"start.kind: 'centre_of_mass', with backend {self.backend.kind!r} it tells party_1 the fixed image's "
                "centre of mass; allow it with data.disclose_centre_of_mass=true, or use centres, identity or file"
            )
        _raise(lines)
        return self


class MovingPartyConfig(_PublicConfig):
    """What party_1's process is given: everything public, and its own image. It never names the fixed image's file."""

    backend: PrivateBackend
    moving: File
    preprocess: PreprocessConfig = PreprocessConfig()


class FixedPartyConfig(_SharedConfig):
    """What party_2's process is given: its own image and mask, and what it agrees to disclose of them."""

    backend: PrivateBackend
    fixed: File
    fixed_mask: File | None = None
    disclose_mask: bool = False
    disclose_centre_of_mass: bool = False
    disclose_gram: bool = False
    preprocess: PreprocessConfig = PreprocessConfig()
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _check_consent(self) -> FixedPartyConfig:
        if not self.disclose_mask:
            _raise(_mask_lines(self.backend.kind, "", self.fixed_mask))
        return self


def load_config(mapping: Mapping[str, object]) -> RunConfig:
    """Check a plain mapping (from YAML, JSON or the command line).

    Raises:
        ConfigError: one line per problem: the field, its value, what is allowed.
    """
    try:
        return RunConfig.model_validate(mapping)
    except ValidationError as error:
        lines = [problem_line(problem, RunConfig) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def moving_party(config: RunConfig) -> MovingPartyConfig:
    """party_1's part of a private run."""
    public = {name: getattr(config, name) for name in _PublicConfig.model_fields}
    own: dict[str, Any] = {"moving": config.data.moving, "preprocess": config.data.preprocess.moving}
    return MovingPartyConfig(backend=_private_backend(config), **own, **public)


def fixed_party(config: RunConfig) -> FixedPartyConfig:
    """party_2's part of a private run."""
    shared = {name: getattr(config, name) for name in _SharedConfig.model_fields}
    own = {
        name: getattr(config.data, name) for name in FixedPartyConfig.model_fields if name in DataConfig.model_fields
    }
    own["preprocess"] = config.data.preprocess.fixed
    by_inverse = config.optimizer.kind == "inverse_compositional"
    return FixedPartyConfig(
        backend=_private_backend(config), disclose_gram=by_inverse, budget=config.budget, **shared, **own
    )


def _private_backend(config: RunConfig) -> PrivateKind:
    if isinstance(config.backend, ClearConfig | AutoConfig):
        kind, allowed = config.backend.kind, ", ".join(_kinds_of(PrivateKind))
        raise ConfigError(f"backend.kind: {kind!r}, one of {allowed} is needed to give the parties a process each")
    return config.backend


def _kinds_of(union: Any) -> list[str]:
    return [str(kind) for model in get_args(union) for kind in kinds(model)]


def build_plan(
    config: RunConfig | MovingPartyConfig, fixed_spacing: tuple[float, ...], start: Affine | None = None
) -> Plan:
    """The registration's plan; `start` is the loaded transform where start.kind is "file"."""
    from .images import Level
    from .optimizers import LBFGS, Adam, GaussNewton, InverseCompositional, Stopping
    from .registration import Deformable, Plan

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
    from .losses import Correlation, LocalCorrelation, Mind, MutualInformation, SquaredDifference

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
    from .features import preprocess
    from .images import load_mask

    if not settings.changes:
        return image
    mask = None if settings.mask is None else load_mask(settings.mask, image.grid)
    return preprocess(image, settings.rescale, settings.clip, mask)


def build_sampler(config: RunConfig | MovingPartyConfig) -> sampling.Sampler:
    """The sampler that the configuration describes."""
    from .sampling import Chunks, Full, GradientMagnitude, Uniform

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


def _mask_lines(backend: str, prefix: str, mask: Path | None) -> list[str]:
    if mask is None:
        return []
    return [
        f"{prefix}fixed_mask: {show(mask)}, with backend {backend!r} its shape is told to party_1; "
        f"allow it with {prefix}disclose_mask=true, or leave the mask out"
    ]


def _raise(lines: list[str]) -> None:
    if lines:
        raise ValueError("\n".join(lines))
