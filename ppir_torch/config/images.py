"""The configuration of an image run: what may be set, within which ranges, and what goes together.

It may come from another organisation, so it is untrusted: unknown keys, wrong types and values out of range are
refused, and nothing in it can name code to load. Only pydantic is imported here; torch comes with `registration.build`.

>>> mapping = {"data": {"moving": "a.nii.gz", "fixed": "b.nii.gz"}, "backend": {"kind": "bfv"}}
>>> load_config(mapping).transform.kind
'affine'
>>> load_config({**mapping, "threads": 0})
Traceback (most recent call last):
ppir_torch.errors.ConfigError: threads: 0, an integer >= 1 and <= 1024 is needed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from .base import LARGEST_SEED, File, KindSettings, Settings
from .checks import centre_lines, deformable_lines, fail, loss_lines, mask_lines, sampler_lines, start_lines
from .groups import BudgetConfig, DataConfig, LedgerConfig, PreprocessConfig, PyramidConfig, StartConfig
from .losses import DEFAULT_LOSSES, LOSSES, Loss
from .optimizers import OPTIMIZERS, GaussNewtonConfig, Optimizer
from .parts import is_private, part_of
from .problems import checked
from .protocols import PROTOCOLS, Backend, PrivateBackend
from .registry import Registry
from .samplers import SAMPLERS, NoSamplerConfig, Sampler
from .transforms import TRANSFORMS, AffineConfig, Transform
from .transports import LocalConfig, Transport

__all__ = ["FixedPartyConfig", "MovingPartyConfig", "RunConfig", "fixed_party", "load_config", "moving_party"]


class _SharedConfig(Settings):
    # What both parties' processes need, beside the backend.
    loss: Loss = DEFAULT_LOSSES[0]
    transport: Transport = LocalConfig()
    dtype: Literal["float32", "float64"] = "float32"
    threads: int = Field(default=2, ge=1, le=1024)


class _PublicConfig(_SharedConfig):
    # Everything of a run but the data.
    transform: Transform = AffineConfig()
    optimizer: Optimizer = GaussNewtonConfig()
    sampler: Sampler = NoSamplerConfig()
    pyramid: PyramidConfig = PyramidConfig()
    start: StartConfig = StartConfig()
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    share_transform: bool = False
    ledger: LedgerConfig = LedgerConfig()
    backend: Backend  # no default: a private run never turns into a clear one because a line got lost

    @model_validator(mode="before")
    @classmethod
    def _optimizer_of_the_loss(cls, values: object) -> object:
        # Where no optimiser is named: Gauss-Newton's model is poor for mutual information.
        if not isinstance(values, Mapping):
            return values
        if values.get("loss") is None:
            values = {**values, "loss": _suiting_loss(values)}
        chosen, loss = values.get("optimizer"), values["loss"]
        if chosen is not None and not (isinstance(chosen, Mapping) and "kind" not in chosen):
            return values
        named = str(loss.get("kind")) if isinstance(loss, Mapping) else ""
        kind = LOSSES[named if named in LOSSES else DEFAULT_LOSSES[0].kind].optimizer
        return {**values, "optimizer": {"kind": kind, **(chosen or {})}}

    @model_validator(mode="after")
    def _check_sampler(self) -> _PublicConfig:
        fail(sampler_lines(self.optimizer, self.sampler))
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> _PublicConfig:
        fail(loss_lines(self.loss, self.optimizer, self.backend))
        return self

    @model_validator(mode="after")
    def _check_deformable(self) -> _PublicConfig:
        fail(deformable_lines(self.transform, self.loss, self.sampler, self.backend))
        return self

    @model_validator(mode="after")
    def _check_start(self) -> _PublicConfig:
        fail(start_lines(self.start))
        return self


def _suiting_loss(values: Mapping[str, Any]) -> KindSettings:
    """The first default loss that goes with what is named: optimiser, protocol, sampler and transform."""

    def named(group: str, registry: Registry[Any]) -> Any:
        said = values.get(group)
        kind = said.get("kind") if isinstance(said, Mapping) else getattr(said, "kind", None)
        return registry[kind] if isinstance(kind, str) and kind in registry else None

    optimizer, protocol = named("optimizer", OPTIMIZERS), named("backend", PROTOCOLS)
    sampler, transform = named("sampler", SAMPLERS), named("transform", TRANSFORMS)
    weighted = sampler is not None and sampler.weighted and transform is not None and transform.lattice
    for loss in DEFAULT_LOSSES:
        goes = all(one is None or one.goes_with(loss.kind) for one in (optimizer, protocol))
        if goes and not (weighted and LOSSES[loss.kind].normalised):
            return loss
    return DEFAULT_LOSSES[0]


class RunConfig(_PublicConfig):
    """A whole run, as its user describes it: both images named. A party's process is given its own part only."""

    task: ClassVar[str] = "images"

    data: DataConfig
    budget: BudgetConfig = BudgetConfig()
    output: File | None = None

    @property
    def private(self) -> bool:
        """True where the images stay with their parties."""
        return is_private(self.backend)

    @model_validator(mode="after")
    def _check_consent(self) -> RunConfig:
        if self.private:
            consent = mask_lines(self.backend, "data.", self.data.fixed_mask, self.data.disclose_mask)
            fail(consent + centre_lines(self.backend, self.start, self.data))
        return self


class MovingPartyConfig(_PublicConfig):
    """What party_1's process is given: everything public, and its own image. It never names the fixed image's file."""

    backend: PrivateBackend
    moving: File
    moving_mask: File | None = None
    preprocess: PreprocessConfig = PreprocessConfig()


class FixedPartyConfig(_SharedConfig):
    """What party_2's process is given: its own image and mask, and what it agrees to disclose of them."""

    backend: PrivateBackend
    fixed: File
    fixed_mask: File | None = None
    disclose_mask: bool = False
    disclose_centre_of_mass: bool = False
    disclose_gram: bool = False
    disclose_atlas_map: bool = False
    atlas: File | None = None
    preprocess: PreprocessConfig = PreprocessConfig()
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _check_consent(self) -> FixedPartyConfig:
        fail(mask_lines(self.backend, "", self.fixed_mask, self.disclose_mask))
        return self


def load_config(mapping: Mapping[str, object]) -> RunConfig:
    """Check a plain mapping (from YAML, JSON or the command line).

    Raises:
        ConfigError: one line per problem: the field, its value, what is allowed.
    """
    return checked(RunConfig, mapping)


def moving_party(config: RunConfig) -> MovingPartyConfig:
    """party_1's part of a private run."""
    data = config.data
    own: dict[str, Any] = {
        "moving": data.moving,
        "moving_mask": data.moving_mask,
        "preprocess": data.preprocess.moving,
    }
    return part_of(config, MovingPartyConfig, PROTOCOLS.names(), own)


def fixed_party(config: RunConfig) -> FixedPartyConfig:
    """party_2's part of a private run."""
    own = {name: getattr(config.data, name) for name in _OF_FIXED}
    own["preprocess"] = config.data.preprocess.fixed
    own["disclose_atlas_map"] = config.start.kind == "atlas" and config.data.disclose_atlas_map
    own["atlas"] = config.start.path if config.start.kind == "atlas" else None
    own["disclose_gram"] = OPTIMIZERS[config.optimizer.kind].by_party_2
    return part_of(config, FixedPartyConfig, PROTOCOLS.names(), own)


_OF_FIXED = ("fixed", "fixed_mask", "disclose_mask", "disclose_centre_of_mass")
