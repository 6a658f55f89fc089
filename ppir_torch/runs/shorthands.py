"""How the public functions read their arguments: shorthands that were given, over a configuration where there is one.

A shorthand that is None says nothing: what the configuration says holds, or else the configuration's own default, which
stands in `ppir_torch.config` and nowhere else.

>>> merged({"seed": 3, "loss": {"kind": "mind", "radius": 1}}, {"seed": None, "loss": {"kind": "ncc"}})
{'seed': 3, 'loss': {'kind': 'ncc'}}
>>> merged({"budget": {"noise": 0.1}}, {"budget": {"noise": None, "max_values": 100}})
{'budget': {'noise': 0.1, 'max_values': 100}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.base import Settings
from ..config.presets import preset_values
from ..config.registry import Registry
from ..errors import ConfigError

__all__ = ["NAMED_STARTS", "base_values", "levels_group", "merged", "named", "path_text", "start_group", "values_of"]

Values = dict[str, Any]
NAMED_STARTS = ("centres", "centre_of_mass", "identity", "atlas")


def values_of(config: Settings | Mapping[str, Any] | None) -> Values:
    """A configuration object or mapping as a mapping; an empty one where there is none."""
    if config is None:
        return {}
    return config.model_dump() if isinstance(config, Settings) else dict(config)


def base_values(config: Settings | Mapping[str, Any] | None, preset: str | None) -> Values:
    """What a configuration or a preset says; an empty mapping where there is neither.

    Raises:
        ConfigError: both, or no preset of this name.
    """
    if preset is None:
        return values_of(config)
    if config is not None:
        raise ConfigError(f"preset: {preset!r}, goes without a configuration, which says all of it")
    return preset_values(preset)


def merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> Values:
    """`base` with what is given in its place: a group with a `kind` as a whole, any other group field by field."""
    values = dict(base)
    for name, value in given.items():
        if isinstance(value, Mapping) and "kind" not in value:
            inner = values.get(name)
            group = merged(inner if isinstance(inner, Mapping) else {}, value)
            if group:
                values[name] = group
        elif value is not None:
            values[name] = value
    return values


def named(
    choice: str | Mapping[str, Any] | None,
    config: Mapping[str, Any] | None,
    registry: Registry[Any],
    details: Mapping[str, Any],
) -> Values | None:
    """The group of a thing that is chosen by its name or its settings, with those details that it has.

    Args:
        choice: name, or a mapping with the kind and its settings; None: as the configuration has it.
        config: the configuration's group; None where it has none.
        registry: of the things.
        details: further settings; None of one says nothing, and one that the thing does not have is left out.

    Returns:
        The group; None where neither says anything.
    """
    group = {"kind": choice} if isinstance(choice, str) else choice if choice is not None else config
    if group is None:
        return None
    if not isinstance(group, Mapping):
        raise ConfigError(f"{registry.noun}: {group!r}, a name or a mapping with its kind is needed")
    kind = str(group.get("kind"))
    known = registry[kind].settings.model_fields if kind in registry else {}
    return {**group, **{name: value for name, value in details.items() if value is not None and name in known}}


def levels_group(levels: str | Sequence[int | Sequence[int]] | None) -> object:
    """As configurations have them; a word as it is."""
    return levels if levels is None or isinstance(levels, str) else [{"shrink": n} for n in levels]


def start_group(start: str | None, turns: float | None, said: Mapping[str, Any] | None) -> Values | None:
    """Of a named start or of a transform's file, with the turns from which it is tried; None where nothing is given.

    Args:
        start: a name or a path.
        turns: degrees.
        said: the configuration's group.
    """
    group: Values | None = None
    if start is not None:
        group = {"kind": start} if start in NAMED_STARTS else {"kind": "file", "path": start}
        group |= {name: said[name] for name in ("turns",) if said and name in said}
    return group if turns is None else {**(said or {} if group is None else group), "turns": turns}


def path_text(path: str | Path | None) -> str | None:
    """As configurations have paths."""
    return None if path is None else str(path)
