"""How a party's part is taken from the configuration of a whole run, of images or of points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..errors import ConfigError
from .base import KindSettings, Settings
from .protocols import CLEAR

__all__ = ["is_private", "part_of"]

Part = TypeVar("Part", bound=Settings)


def is_private(backend: KindSettings) -> bool:
    """Whether the data stay with their parties."""
    return backend.kind != CLEAR.name


def part_of(config: Any, part: type[Part], private: Iterable[str], own: Mapping[str, object]) -> Part:
    """The fields of the whole that a party's part has, too, and those of its own.

    Raises:
        ConfigError: the backend is not one of the `private` ones.
    """
    private = tuple(private)
    if config.backend.kind not in private:
        raise ConfigError(
            f"backend.kind: {config.backend.kind!r}, one of {', '.join(private)} is needed to give the parties a "
            "process each"
        )
    shared = {name: getattr(config, name) for name in part.model_fields if name in type(config).model_fields}
    return part.model_validate({**shared, **own})
