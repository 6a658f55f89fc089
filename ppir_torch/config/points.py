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
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .base import File, Settings, show
from .groups import PointsBudgetConfig
from .parts import is_private, part_of
from .problems import checked
from .protocols import PROTOCOLS, PointsBackend, PrivatePointsBackend
from .transports import LocalConfig, Transport

__all__ = [
    "FixedPointsConfig",
    "MovingPointsConfig",
    "PointsConfig",
    "fixed_points_party",
    "load_points_config",
    "moving_points_party",
]


class _PartyConfig(Settings):
    # What every party's process needs, beside the backend.
    transport: Transport = LocalConfig()
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

    task: ClassVar[str] = "points"

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
        return is_private(self.backend)

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
    return part_of(config, MovingPointsConfig, _private(), {})


def fixed_points_party(config: PointsConfig) -> FixedPointsConfig:
    """party_2's part of a private run."""
    return part_of(config, FixedPointsConfig, _private(), {})


def _private() -> list[str]:
    return [entry.name for entry in PROTOCOLS if entry.points]
