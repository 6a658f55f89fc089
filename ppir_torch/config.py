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

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from .errors import ConfigError

if TYPE_CHECKING:
    from .registration import Plan
    from .transforms import Affine

__all__ = [
    "FixedPartyConfig",
    "MovingPartyConfig",
    "RunConfig",
    "build_plan",
    "fixed_party",
    "load_config",
    "moving_party",
]

LARGEST_SEED = 2**32 - 1


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _usable_path(path: Path) -> Path:
    if str(path) == "." or "\0" in str(path):
        raise ValueError("the path of a file is needed")
    return path


# strict=False: YAML and JSON have no paths and no tuples, so a string and a list are taken.
File = Annotated[Path, Field(strict=False), AfterValidator(_usable_path)]


class TransformConfig(_Settings):
    kind: Literal["translation", "rigid", "similarity", "affine"] = "affine"


class LossConfig(_Settings):
    kind: Literal["ssd"] = "ssd"


class StoppingConfig(_Settings):
    """When a level ends; see `ppir_torch.Stopping`, which has the same defaults."""

    max_iterations: int = Field(default=30, ge=1, le=10_000)
    step_voxels: float = Field(default=1e-3, ge=0, le=1000)
    decrease: float = Field(default=1e-5, ge=0, le=1)


class GaussNewtonConfig(_Settings):
    kind: Literal["gauss_newton"] = "gauss_newton"
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


class BfvConfig(_Settings):
    kind: Literal["bfv"] = "bfv"


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


class DataConfig(_Settings):
    """Files. `truth` and `reference` are ITK transforms to compare with: the known one, and that of the clear run."""

    moving: File
    fixed: File
    fixed_mask: File | None = None
    disclose_mask: bool = False
    disclose_centre_of_mass: bool = False
    truth: File | None = None
    reference: File | None = None


class StartConfig(_Settings):
    kind: Literal["centres", "centre_of_mass", "identity", "file"] = "centres"
    path: File | None = None


class TransportConfig(_Settings):
    kind: Literal["local"] = "local"
    timeout_s: float = Field(default=600, ge=1, le=86_400)


Optimizer = Annotated[GaussNewtonConfig | AdamConfig, Field(discriminator="kind")]
Backend = Annotated[ClearConfig | SpdzConfig | BfvConfig, Field(discriminator="kind")]
PrivateBackend = Annotated[SpdzConfig | BfvConfig, Field(discriminator="kind")]
Sampler = Annotated[NoSamplerConfig | UniformSamplerConfig | GradientSamplerConfig, Field(discriminator="kind")]


class _SharedConfig(_Settings):
    # What every party's process needs, beside the backend.
    transport: TransportConfig = TransportConfig()
    dtype: Literal["float32", "float64"] = "float32"
    threads: int = Field(default=2, ge=1, le=1024)


class _PublicConfig(_SharedConfig):
    # Everything of a run but the data.
    transform: TransformConfig = TransformConfig()
    loss: LossConfig = LossConfig()
    optimizer: Optimizer = GaussNewtonConfig()
    sampler: Sampler = NoSamplerConfig()
    pyramid: PyramidConfig = PyramidConfig()
    start: StartConfig = StartConfig()
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    share_transform: bool = False

    @model_validator(mode="after")
    def _check_start(self) -> _PublicConfig:
        lines = []
        if self.start.kind == "file" and self.start.path is None:
            lines.append("start.path: missing, the path of an ITK transform is needed with start.kind 'file'")
        if self.start.kind != "file" and self.start.path is not None:
            lines.append(f"start.path: {_show(self.start.path)}, goes with start.kind 'file' only")
        if self.start.kind == "file" and self.transform.kind != "affine":
            lines.append(f"transform.kind: {self.transform.kind!r}, only 'affine' goes with start.kind 'file'")
        _raise(lines)
        return self


class RunConfig(_PublicConfig):
    """A whole run, as its user describes it: both images named. A party's process is given its own part only."""

    backend: Backend  # no default: a private run never turns into a clear one because a line got lost
    data: DataConfig
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


class FixedPartyConfig(_SharedConfig):
    """What party_2's process is given: its own image and mask, and what it agrees to disclose of them."""

    backend: PrivateBackend
    fixed: File
    fixed_mask: File | None = None
    disclose_mask: bool = False
    disclose_centre_of_mass: bool = False

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
        lines = [_problem_line(problem) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def moving_party(config: RunConfig) -> MovingPartyConfig:
    """party_1's part of a private run."""
    public = {name: getattr(config, name) for name in _PublicConfig.model_fields}
    return MovingPartyConfig(backend=_private_backend(config), moving=config.data.moving, **public)


def fixed_party(config: RunConfig) -> FixedPartyConfig:
    """party_2's part of a private run."""
    shared = {name: getattr(config, name) for name in _SharedConfig.model_fields}
    own = {
        name: getattr(config.data, name) for name in FixedPartyConfig.model_fields if name in DataConfig.model_fields
    }
    return FixedPartyConfig(backend=_private_backend(config), **shared, **own)


def _private_backend(config: RunConfig) -> SpdzConfig | BfvConfig:
    if isinstance(config.backend, ClearConfig):
        raise ConfigError("backend.kind: 'clear', one of spdz, bfv is needed to give the parties a process each")
    return config.backend


def build_plan(
    config: RunConfig | MovingPartyConfig, fixed_spacing: tuple[float, ...], start: Affine | None = None
) -> Plan:
    """The registration's plan; `start` is the loaded transform where start.kind is "file"."""
    from .images import Level
    from .optimizers import Adam, GaussNewton, Stopping
    from .registration import Plan
    from .sampling import Full, GradientMagnitude, Uniform

    if (config.start.kind == "file") != (start is not None):
        raise ConfigError(f"start.kind: {config.start.kind!r}, a loaded transform goes with 'file' and only with it")
    optimizer: GaussNewton | Adam
    if isinstance(config.optimizer, GaussNewtonConfig):
        optimizer = GaussNewton(config.optimizer.damping)
    else:
        optimizer = Adam(config.optimizer.learning_rate_voxels)
    sampler: Full | Uniform | GradientMagnitude = Full()
    if not isinstance(config.sampler, NoSamplerConfig):
        seed = config.seed if config.sampler.seed is None else config.sampler.seed
        if isinstance(config.sampler, UniformSamplerConfig):
            sampler = Uniform(config.sampler.fraction, seed)
        else:
            sampler = GradientMagnitude(config.sampler.fraction, seed, config.sampler.floor)
    levels = tuple(Level(level.shrink, _smoothing_mm(level, min(fixed_spacing))) for level in config.pyramid.levels)
    stopping = Stopping(**config.optimizer.stopping.model_dump())
    return Plan(config.transform.kind, levels, sampler, optimizer, stopping, start or config.start.kind)


def _smoothing_mm(level: LevelConfig, spacing: float) -> float:
    if level.smoothing_mm is not None:
        return level.smoothing_mm
    return 0.0 if level.shrink == 1 else 0.5 * level.shrink * spacing


def _mask_lines(backend: str, prefix: str, mask: Path | None) -> list[str]:
    if mask is None:
        return []
    return [
        f"{prefix}fixed_mask: {_show(mask)}, with backend {backend!r} its shape is told to party_1; "
        f"allow it with {prefix}disclose_mask=true, or leave the mask out"
    ]


def _raise(lines: list[str]) -> None:
    if lines:
        raise ValueError("\n".join(lines))


def _problem_line(problem: Any) -> str:
    """One line for one of pydantic's errors: the field, its value, what is allowed."""
    path, holder, family = _locate(problem["loc"])
    kind, value, context = problem["type"], _show(problem["input"]), problem.get("ctx", {})
    name = problem["loc"][-1] if problem["loc"] else ""
    if kind == "value_error":
        return f"{path}: {value}, {context['error']}" if path else str(context["error"])
    if kind == "extra_forbidden":
        return f"{path}: {_unknown_key(name, holder, family)}"
    if kind.startswith("union_tag"):
        kinds = [str(k) for model in _models(holder.model_fields[name].annotation) for k in _kinds(model)]
        given = _show(context["tag"]) if "tag" in context else "missing"
        return f"{path}.kind: {given}, one of {', '.join(kinds)} is needed"
    field = holder.model_fields.get(name)
    needed = context["expected"] if kind == "literal_error" else _needed(field) if field else "a mapping"
    return f"{path or 'configuration'}: {'missing' if kind == 'missing' else value}, {needed} is needed"


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel], list[type[BaseModel]]]:
    """(the field's dotted name, the model that it is in, that model and its alternatives) of an error's place."""
    path, holder = "", cast(type[BaseModel], RunConfig)
    inside = family = [holder]
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif len(inside) > 1:  # pydantic puts the kind of a union's member here
            family, inside = inside, [model for model in inside if part in _kinds(model)]
        elif inside:
            holder = inside[0]
            family = family if holder in family else [holder]
            path += ("." if path else "") + (part if part.isidentifier() else _show(part))
            field = holder.model_fields.get(part)
            inside = _models(field.annotation) if field else []
    return path, holder, family


def _unknown_key(name: str, holder: type[BaseModel], family: list[type[BaseModel]]) -> str:
    known = list(holder.model_fields)
    if any(name in other.model_fields for other in family):
        settings = ", ".join(key for key in known if key != "kind") or "nothing else"
        return f"not a setting of {_kinds(holder)[0]}; beside kind it takes {settings}"
    near = difflib.get_close_matches(name, known, 1, 0.7)
    return f"unknown key, did you mean {near[0]}?" if near else f"unknown key, known here: {', '.join(known)}"


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _needed(field: FieldInfo) -> str:
    """What a field takes, in words: its type and its range."""
    annotation = str(field.annotation)
    words = {"Path": "the path of a file", "tuple": "a list of 1 to 10 levels", "Config": "a mapping of settings"}
    words |= {"int": "an integer", "float": "a number", "bool": "true or false"}
    word = next((word for part, word in words.items() if part in annotation), "another value")
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    ranges = [f"{signs[k]} {getattr(m, k):.10g}" for m in field.metadata for k in signs if hasattr(m, k)]
    return " ".join([word, " and ".join(ranges)]).strip() + (" (or null)" if "None" in annotation else "")


def _show(value: object) -> str:
    """The value on one line, cut where it is long."""
    try:
        text = repr(str(value) if isinstance(value, Path) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a mapping in itself
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."
