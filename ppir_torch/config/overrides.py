"""What the words of the command line say (`backend=bfv`, `sampler.fraction=0.05`), in Hydra's grammar."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..errors import ConfigError
from .guard import kinds_in
from .problems import choice_of, holds_settings

__all__ = ["Overrides", "combinations", "config_folder", "hydra_loader", "sorted_overrides"]

EXPERIMENT, BACKEND = "experiment", "backend"


@dataclass
class Overrides:
    """Words of the command line, by what they do; later ones win.

    Attributes:
        groups: lines for Hydra: which file of a group is taken, and groups that are left out.
        choices: group -> the line that chooses its file.
        experiment: whether an experiment is chosen.
        left_out: groups that are left out.
        kinds: field -> its new kind, where no file is chosen.
        whole: fields that are given as a whole mapping, with a kind.
        plain: field -> value of fields that are no group here, though there is a group of that name.
        values: everything else, as Hydra's parser gives it.
        files: group, name and line of every file that is chosen, also of one that a later line replaces.
        backends: the backends that are named, with every kind in a mapping, whether a later word replaces it or not.
    """

    groups: list[str] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)
    experiment: bool = False
    left_out: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    plain: dict[str, object] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    files: list[tuple[str, str, str]] = field(default_factory=list)
    backends: list[str] = field(default_factory=list)


def config_folder() -> Path:
    """The folder of the YAML groups: in an installed package beside the rooms, in a checkout one above."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def combinations(overrides: Sequence[str], sweep: bool, loader: Any) -> list[list[str]]:
    """Every combination of `key=a,b`; `loader` is that of `hydra_loader`.

    Raises:
        ConfigError: several values without `sweep`, or an interval.
    """
    choices: list[list[str]] = []
    for override in _parsed(overrides, loader):
        if not override.is_sweep_override():
            choices.append([override.input_line])
        elif not sweep:
            raise ConfigError(f"{override.input_line}: several values; one is needed, or a sweep with -m")
        elif not override.is_discrete_sweep():
            raise ConfigError(f"{override.input_line}: an interval; a list of values or range(a,b) is needed")
        else:
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
    return [list(one) for one in itertools.product(*choices)]


def sorted_overrides(
    overrides: Sequence[str], loader: Any, model: type[BaseModel], folders: Sequence[Path]
) -> Overrides:
    """The words by what they do to a configuration of this type.

    Args:
        overrides: in Hydra's grammar.
        loader: of `hydra_loader`.
        model: of the configuration.
        folders: where group files are.

    Raises:
        ConfigError: a group without a name, a second experiment, or a word that is Hydra's own.
    """
    said = Overrides()
    parsed = _parsed(overrides, loader)
    _refuse_forgotten_experiment(parsed)
    for override in parsed:
        if override.key_or_group in (BACKEND, f"{BACKEND}.kind"):
            said.backends += kinds_in(override.value())
        key, line, value = override.key_or_group, str(override.input_line), override.value()
        options = _options(key, loader, folders)
        if override.is_hydra_override():
            raise ConfigError(f"{line}: Hydra's own settings are not taken; folders of YAML go with --config-dir")
        if override.package is not None or (options and override.is_force_add() and not isinstance(value, dict)):
            said.groups.append(line)  # Hydra refuses it, or it becomes an unknown key
        elif not options:
            _sort_value(said, override, key, value)
        elif key in model.model_fields and not holds_settings(model, key):
            said.plain[key] = value
        elif override.is_delete():
            said.groups.append(line)
            said.left_out.append(key)
        elif isinstance(value, dict):
            _sort_value(said, override, key, value)
        elif isinstance(value, str):
            _sort_choice(said, key, line, value, options, model)
        else:
            raise ConfigError(f"{line}: one of {', '.join(_names(key, options, model))} is needed")
    return said


def _refuse_forgotten_experiment(parsed: Sequence[Any]) -> None:
    # Hydra keeps the last one without a word: what the others ask for, a private backend too, would be forgotten.
    lines = [str(override.input_line) for override in parsed if override.key_or_group == EXPERIMENT]
    if len(lines) > 1 or any(line.startswith("~") for line in lines):
        raise ConfigError(f"experiment: {' '.join(lines)}, one experiment=NAME or none is needed")


def _sort_choice(said: Overrides, group: str, line: str, name: str, options: list[str], model: type[BaseModel]) -> None:
    """A file of the group, or the kind of an entry that has none: both replace the group."""
    said.kinds.pop(group, None)
    said.choices.pop(group, None)
    if name in options:
        said.groups.append(line)
        said.files.append((group, name, line))
        if group == EXPERIMENT:
            said.experiment = True
        else:
            said.choices[group] = line
    elif name in _names(group, options, model):
        said.kinds[group] = name
        said.whole.add(group)
    else:
        raise ConfigError(f"{group}: {name!r}, one of {', '.join(_names(group, options, model))} is needed")


def _sort_value(said: Overrides, override: Any, key: str, value: object) -> None:
    """A single value; where it is a kind, or a mapping with one, it replaces what was there."""
    if isinstance(value, dict) and isinstance(value.get("kind"), str) and "." not in key:
        said.kinds[key] = value["kind"]
        said.whole.add(key)
    elif key.count(".") == 1 and key.endswith(".kind") and isinstance(value, str):
        said.kinds[key.removesuffix(".kind")] = value
    said.values.append(override)


def _options(key: str, loader: Any, folders: Sequence[Path]) -> list[str]:
    """The names of a group's files; none where there is no such group."""
    packaged = loader.get_group_options(key)
    further = [path.stem for folder in folders for path in (folder / key).glob("*.yaml")]
    return sorted({*packaged, *further})


def _names(group: str, options: list[str], model: type[BaseModel]) -> list[str]:
    """The files of a group, and the entries that can be chosen without one."""
    choice = choice_of(model.model_fields.get(group))
    return sorted({*options, *(choice.settings() if choice else ())})


def _parsed(overrides: Sequence[str], loader: Any) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parsed = list(OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)))
    for override in parsed:
        if not override.key_or_group:
            raise OverrideParseException(override.input_line, "no key")
    return parsed


@contextmanager
def hydra_loader() -> Iterator[Any]:
    """Hydra over the packaged groups, gives its config loader; what it refuses becomes a ConfigError of one line."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        allowed = f"one of {', '.join(error.options)} is needed" if error.options else "no such configuration"
        raise ConfigError(f"{group or 'configuration'}: {name!r}, {allowed}") from None
    except OverrideParseException as error:
        hint = "key=value is needed; quote a value with special characters: \"key='a=b (1)'\""
        raise ConfigError(f"{error.override!r}: {hint}") from None
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"configuration: {_first_line(str(error))}") from None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "unknown reason")
