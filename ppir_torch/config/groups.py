"""The parts of a configuration: one class for each group of settings, with types, ranges and defaults.

>>> StoppingConfig(max_iterations=5).decrease
1e-05
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

__all__ = [
    "LARGEST_SEED",
    "AdamConfig",
    "AutoConfig",
    "Backend",
    "BeaverConfig",
    "BfvConfig",
    "BudgetConfig",
    "ChunksSamplerConfig",
    "CkksConfig",
    "CkksV1Config",
    "ClearConfig",
    "DataConfig",
    "DeformableConfig",
    "File",
    "GaussNewtonConfig",
    "GradientSamplerConfig",
    "InverseCompositionalConfig",
    "LbfgsConfig",
    "LedgerConfig",
    "LevelConfig",
    "LinearConfig",
    "LocalNccConfig",
    "Loss",
    "MindConfig",
    "MutualInformationConfig",
    "NccConfig",
    "NoSamplerConfig",
    "Optimizer",
    "PairPreprocessConfig",
    "PreprocessConfig",
    "PrivateBackend",
    "PrivateKind",
    "PyramidConfig",
    "Sampler",
    "Settings",
    "SpdzConfig",
    "SsdConfig",
    "StartConfig",
    "StoppingConfig",
    "Transform",
    "TransportConfig",
    "UniformSamplerConfig",
]

LARGEST_SEED = 2**32 - 1
_INSECURE = (
    "true is needed: ckks-v1 is the published protocol, a baseline for benchmarks; attacks read both images from it"
)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _usable_path(path: Path) -> Path:
    if str(path) == "." or "\0" in str(path):
        raise ValueError("the path of a file is needed")
    return path


# strict=False: YAML and JSON have no paths and no tuples, so a string and a list are taken.
File = Annotated[Path, Field(strict=False), AfterValidator(_usable_path)]


class LinearConfig(Settings):
    kind: Literal["translation", "rigid", "similarity", "affine"] = "affine"

    @property
    def linear(self) -> str:
        """The linear stage's transform."""
        return self.kind


class DeformableConfig(Settings):
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


class SsdConfig(Settings):
    """Mean squared difference of the intensities."""

    kind: Literal["ssd"] = "ssd"


class NccConfig(Settings):
    """1 - correlation of the intensities over the points in use."""

    kind: Literal["ncc"] = "ncc"


class LocalNccConfig(Settings):
    """Of locally normalised images; see `ppir_torch.LocalCorrelation`. `radius_mm` null: four voxels of the level."""

    kind: Literal["local_ncc"] = "local_ncc"
    radius_mm: float | None = Field(default=None, gt=0, le=1000)
    floor: float = Field(default=0.1, ge=1e-3, le=10)


class MindConfig(Settings):
    """Of MIND-SSC descriptors; see `ppir_torch.Mind`. Both in voxels of the level."""

    kind: Literal["mind"] = "mind"
    radius: int = Field(default=2, ge=0, le=16)
    dilation: int = Field(default=2, ge=1, le=16)


class MutualInformationConfig(Settings):
    """Minus the mutual information of the intensities; see `ppir_torch.MutualInformation`. Linear transforms only."""

    kind: Literal["mi"] = "mi"
    moving_bins: int = Field(default=16, ge=4, le=64)
    fixed_bins: int = Field(default=8, ge=4, le=64)


class StoppingConfig(Settings):
    """When a level ends; see `ppir_torch.Stopping`, which has the same defaults."""

    max_iterations: int = Field(default=30, ge=1, le=10_000)
    step_voxels: float = Field(default=1e-3, ge=0, le=1000)
    decrease: float = Field(default=1e-5, ge=0, le=1)


class GaussNewtonConfig(Settings):
    kind: Literal["gauss_newton"] = "gauss_newton"
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig()


class LbfgsConfig(Settings):
    """L-BFGS from the loss's own Hessian: for losses whose Gauss-Newton model is rough. It stops later."""

    kind: Literal["lbfgs"] = "lbfgs"
    memory: int = Field(default=10, ge=1, le=100)
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig(decrease=1e-7)


class InverseCompositionalConfig(Settings):
    """Gauss-Newton on the fixed image's steepest-descent images; party_2 discloses the sums of their products."""

    kind: Literal["inverse_compositional"] = "inverse_compositional"
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig()


class AdamConfig(Settings):
    kind: Literal["adam"] = "adam"
    learning_rate_voxels: float = Field(default=0.25, gt=0, le=1000)
    stopping: StoppingConfig = StoppingConfig()


class ClearConfig(Settings):
    kind: Literal["clear"] = "clear"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class SpdzConfig(Settings):
    kind: Literal["spdz"] = "spdz"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    provider: Literal["trusted_third_party"] = "trusted_third_party"

    @field_validator("provider", mode="before")
    @classmethod
    def _refuse_first_party(cls, value: object) -> object:
        if isinstance(value, str) and value.lower() in ("trusted_first_party", "tfp"):
            raise ValueError("refused: rank 0 would make the triples and read the other image; use trusted_third_party")
        return value


class BeaverConfig(Settings):
    kind: Literal["beaver"] = "beaver"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class BfvConfig(Settings):
    kind: Literal["bfv"] = "bfv"


class CkksConfig(Settings):
    kind: Literal["ckks"] = "ckks"


class CkksV1Config(Settings):
    """The published CKKS product, a baseline for benchmarks; it protects neither image."""

    kind: Literal["ckks-v1"] = "ckks-v1"
    allow_insecure: bool = Field(default=False, validate_default=True)

    @field_validator("allow_insecure")
    @classmethod
    def _refuse_by_default(cls, value: bool) -> bool:
        if not value:
            raise ValueError(_INSECURE)
        return value


class AutoConfig(Settings):
    """Let the sizes of the images and the network choose the protocol; the run says which, and why."""

    kind: Literal["auto"] = "auto"
    bandwidth_mbit: float = Field(default=1000, gt=0, le=1e6)
    dealer: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"


class NoSamplerConfig(Settings):
    kind: Literal["none"] = "none"


class UniformSamplerConfig(Settings):
    kind: Literal["urs"] = "urs"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)


class GradientSamplerConfig(Settings):
    kind: Literal["gms"] = "gms"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    floor: float = Field(default=0.2, gt=0, le=1)
    disclose_points: bool = False


class ChunksSamplerConfig(Settings):
    """URS for encrypted operands: a window of a public random order; party_2 sends its points once."""

    kind: Literal["chunks"] = "chunks"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)


class LevelConfig(Settings):
    """One resolution level; `smoothing_mm` null means 0 at shrink 1, else half the level's smallest spacing."""

    shrink: int = Field(ge=1, le=64)
    smoothing_mm: float | None = Field(default=None, ge=0, le=1000)


class PyramidConfig(Settings):
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


class PreprocessConfig(Settings):
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


class PairPreprocessConfig(Settings):
    """Each party is given its own part only."""

    moving: PreprocessConfig = PreprocessConfig()
    fixed: PreprocessConfig = PreprocessConfig()


class DataConfig(Settings):
    """Files. `truth` and `reference` are ITK transforms to compare with: the known one, and that of the clear run."""

    moving: File
    fixed: File
    fixed_mask: File | None = None
    disclose_mask: bool = False
    disclose_centre_of_mass: bool = False
    truth: File | None = None
    reference: File | None = None
    preprocess: PairPreprocessConfig = PairPreprocessConfig()


class BudgetConfig(Settings):
    """party_2's cap on the values that it releases of its image to one peer, over all runs, and its noise on them.

    `file` null: the site's own, see `ppir audit`. `max_values` null: `fraction` of the image's foreground voxels.
    """

    file: File | None = None
    peer: str = Field(default="party_1", min_length=1, max_length=200)
    fraction: float = Field(default=0.05, gt=0, le=1e6)
    max_values: int | None = Field(default=None, ge=1, le=2**62)
    noise: float = Field(default=0.0, ge=0, le=1)


class LedgerConfig(Settings):
    """party_1's running account of what the opened values say about J; `most` stops the run where they say more.

    `most` is the share of J's variance that they explain and party_1's own warped image does not.
    """

    enabled: bool = True
    most: float | None = Field(default=None, gt=0, le=1)


class StartConfig(Settings):
    kind: Literal["centres", "centre_of_mass", "identity", "file"] = "centres"
    path: File | None = None


class TransportConfig(Settings):
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
