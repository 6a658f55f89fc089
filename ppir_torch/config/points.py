"""The configuration of a point-set run: whole, as its user describes it, and each party's own part of it.

As `config`, untrusted input: unknown keys, wrong types and values out of range are refused with one line each.

>>> mapping = {"moving": "a.csv", "fixed": "b.csv", "backend": {"kind": "beaver"}}
>>> load_points_config(mapping).transform
'rigid'
>>> load_points_config({**mapping, "correspondence": "nearest"})
Traceback (most recent call last):
ppir_torch.errors.ConfigError: correspondence: 'nearest', 'known' or 'closest' is needed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import ConfigError
from .groups import BeaverConfig, BfvConfig, CkksConfig, ClearConfig, File, SpdzConfig, TransportConfig
from .problems import checked, show

__all__ = [
    "FixedPointsConfig",
    "MovingPointsConfig",
    "PointsConfig",
    "fixed_points_party",
    "load_points_config",
    "moving_points_party",
]

# Every protocol whose products are exact; ckks-v1 is a baseline for images.
_Private = SpdzConfig | BeaverConfig | BfvConfig | CkksConfig
PointsBackend = Annotated[ClearConfig | _Private, Field(discriminator="kind")]
PrivatePointsBackend = Annotated[_Private, Field(discriminator="kind")]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PointsBudgetConfig(_Settings):
    """party_2's cap on the values that it releases of its points to one peer, over all runs.

    `file` null: the site's own, see `ppir audit`. `max_values` null: `fraction` of the set's n D coordinates.
    """

    file: File | None = None
    peer: str = Field(default="party_1", min_length=1, max_length=200)
    fraction: float = Field(default=0.25, gt=0, le=1e6)
    max_values: int | None = Field(default=None, ge=1, le=2**62)


class _PartyConfig(_Settings):
    # What every party's process needs, beside the backend.
    transport: TransportConfig = TransportConfig()
    threads: int = Field(default=1, ge=1, le=1024)


def _check_names(columns: str | None) -> str | None:
    if columns is not None and (names := [name.strip() for name in columns.split(",")]):
        if len(names) not in (2, 3) or not all(names) or len(set(names)) != len(names):
            raise ValueError("two or three names of columns, none twice, with commas between them are needed")
        return ",".join(names)
    return columns


class PointsConfig(_PartyConfig):
    """A whole run: both files named. A party's process is given its own part only.

    `moving_columns` and `fixed_columns` name the columns x, y[, z] of a .csv ("col,row"). `correspondence` "closest"
    (clear only) is for sets without a common order. `truth` is an ITK transform to compare with and `figure` a picture
    of both sets: with either, the program that started the parties reads the points after they have ended.
    """

    moving: File
    fixed: File
    backend: PointsBackend  # no default: a private run never turns into a clear one because a line got lost
    moving_columns: str | None = None
    fixed_columns: str | None = None
    transform: Literal["rigid", "similarity"] = "rigid"
    correspondence: Literal["known", "closest"] = "known"
    disclose_spread: bool = True
    share_transform: bool = False
    budget: PointsBudgetConfig = PointsBudgetConfig()
    truth: File | None = None
    figure: bool = False
    output: File | None = None

    _columns = field_validator("moving_columns", "fixed_columns")(_check_names)

    @property
    def private(self) -> bool:
        """True where the points stay with their parties."""
        return self.backend.kind != "clear"

    @model_validator(mode="after")
    def _check_correspondence(self) -> PointsConfig:
        if self.correspondence == "closest" and self.private:
            raise ValueError(
                f"correspondence: 'closest', with backend {self.backend.kind!r} 'known' is needed: to find the closest "
                "points takes every distance between one party's points and the other's, which is all that there is "
                "to hide; use backend clear, or register images of the shapes"
            )
        if self.correspondence == "closest" and self.transform != "rigid":
            raise ValueError(f"transform: {show(self.transform)}, with correspondence 'closest' 'rigid' is needed")
        return self


class MovingPointsConfig(_PartyConfig):
    """What party_1's process is given. It never names party_2's file."""

    task: Literal["points"] = "points"
    backend: PrivatePointsBackend
    moving: File
    moving_columns: str | None = None
    transform: Literal["rigid", "similarity"] = "rigid"
    share_transform: bool = False


class FixedPointsConfig(_PartyConfig):
    """What party_2's process is given: its own file, and what it agrees to disclose of it."""

    task: Literal["points"] = "points"
    backend: PrivatePointsBackend
    fixed: File
    fixed_columns: str | None = None
    disclose_spread: bool = True
    budget: PointsBudgetConfig = PointsBudgetConfig()


def load_points_config(mapping: Mapping[str, object]) -> PointsConfig:
    """Check a plain mapping (from YAML, JSON or the command line).

    Raises:
        ConfigError: one line per problem: the field, its value, what is allowed.
    """
    return checked(PointsConfig, mapping)


def moving_points_party(config: PointsConfig) -> MovingPointsConfig:
    """party_1's part of a private run."""
    return MovingPointsConfig(**_part(config, MovingPointsConfig))  # type: ignore[arg-type]


def fixed_points_party(config: PointsConfig) -> FixedPointsConfig:
    """party_2's part of a private run."""
    return FixedPointsConfig(**_part(config, FixedPointsConfig))  # type: ignore[arg-type]


def _part(config: PointsConfig, party: type[BaseModel]) -> dict[str, object]:
    if not config.private:
        raise ConfigError("backend.kind: 'clear', one of spdz, beaver, bfv, ckks is needed")
    return {name: getattr(config, name) for name in party.model_fields if name in PointsConfig.model_fields}
