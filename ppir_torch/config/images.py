"""The configuration of a run: what may be set, within which ranges, and what goes together.

It may come from another organisation, so it is untrusted: unknown keys, wrong types and values out of range are
refused, and nothing in it can name code to load. Only pydantic is imported here; torch comes with `plans`.

>>> mapping = {"data": {"moving": "a.nii.gz", "fixed": "b.nii.gz"}, "backend": {"kind": "bfv"}}
>>> load_config(mapping).pyramid.levels[0]
LevelConfig(shrink=4, smoothing_mm=None)
>>> load_config({**mapping, "threads": 0})
Traceback (most recent call last):
ppir_torch.errors.ConfigError: threads: 0, an integer >= 1 and <= 1024 is needed
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from ..errors import ConfigError
from .groups import (
    LARGEST_SEED,
    AutoConfig,
    Backend,
    BudgetConfig,
    ClearConfig,
    DataConfig,
    DeformableConfig,
    File,
    GaussNewtonConfig,
    LedgerConfig,
    LinearConfig,
    Loss,
    NoSamplerConfig,
    Optimizer,
    PreprocessConfig,
    PrivateBackend,
    PrivateKind,
    PyramidConfig,
    Sampler,
    Settings,
    SsdConfig,
    StartConfig,
    Transform,
    TransportConfig,
)
from .problems import checked, kinds, show

__all__ = ["FixedPartyConfig", "MovingPartyConfig", "RunConfig", "fixed_party", "load_config", "moving_party"]


class _SharedConfig(Settings):
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
                    f"optimizer.kind: 'inverse_compositional', with loss {self.loss.kind!r} gauss_newton, lbfgs or "
                    "adam is needed: party_2's steepest-descent images are those of ssd"
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
            if backend is not None and backend.kind == "ckks-v1":
                lines.append(
                    f"backend.kind: {backend.kind!r}, with transform {self.transform.kind!r} one of clear, beaver, "
                    "spdz, bfv, ckks is needed"
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
    return checked(RunConfig, mapping)


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
