"""What every class of settings is, and the types that several of them share. Imports pydantic only.

>>> class Blur(Settings):
...     radius: int = 2
>>> Blur(radius=3).radius
3
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["LARGEST_SEED", "Device", "File", "KindSettings", "Settings", "show"]

LARGEST_SEED = 2**32 - 1


class Settings(BaseModel):
    """Base of all settings: frozen, of strict types, without unknown keys, NaN or infinity."""

    # The build waits for the first use: then every entry is known, those of other packages too.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class KindSettings(Settings):
    """Base of the settings of one entry of a registry: `kind` is its name.

    A subclass says which: `kind: Literal["ssd"] = "ssd"`.
    """

    kind: str


def _usable_path(path: Path) -> Path:
    if str(path) == "." or "\0" in str(path):
        raise ValueError("the path of a file is needed")
    return path


# strict=False: YAML and JSON have no paths and no tuples, so a string and a list are taken.
File = Annotated[Path, Field(strict=False), AfterValidator(_usable_path)]
Device = Literal["auto", "cpu", "cuda"]


def show(value: object) -> str:
    """The value on one line, cut where it is long."""
    try:
        text = repr(str(value) if isinstance(value, Path) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a mapping in itself
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."
