"""From overrides (`backend=bfv sampler.fraction=0.05`) and the YAML groups to checked configurations, with Hydra.

Hydra only composes. Its own check of keys is passed by (every value is force-added), so that there is one judge of
keys, types and ranges: `config.load_config`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .images import RunConfig, load_config

__all__ = ["compose", "compose_runs", "config_folder"]


def config_folder() -> Path:
    """The folder of the YAML groups: in an installed package beside the rooms, in a checkout one above."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def compose_runs(
    overrides: Sequence[str], sweep: bool = False, extra: Path | None = None
) -> list[tuple[list[str], RunConfig]]:
    """(overrides, configuration) of every run; more than one where `sweep` expands `key=a,b` into its combinations.

    Every run is checked before any is returned.

    Args:
        overrides: in Hydra's grammar.
        sweep: expand sweeps; without it a sweep is refused.
        extra: a folder with further group files, beside the packaged ones.

    Raises:
        ConfigError: one line per problem.
    """
    return [(one, load_config(compose(one, extra))) for one in _combinations(overrides, sweep)]


def compose(overrides: Sequence[str], extra: Path | None = None) -> dict[str, object]:
    """The composed configuration as a plain mapping, not checked yet."""
    with _hydra() as loader:
        from hydra import compose as hydra_compose
        from omegaconf import OmegaConf

        lines = [_forced(override, loader) for override in _parse(overrides, loader)]
        if extra is not None:
            lines.append(f"hydra.searchpath=['file://{_folder(extra)}']")
        composed = hydra_compose("config", lines)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError("\n".join(f"{key}: missing, a value is needed ({key}=...)" for key in missing))
        _refuse_resolvers(OmegaConf.to_container(composed, resolve=False), "")
        plain = OmegaConf.to_container(composed, resolve=True)
    return {str(key): value for key, value in plain.items()}


def _combinations(overrides: Sequence[str], sweep: bool) -> list[list[str]]:
    choices: list[list[str]] = []
    with _hydra() as loader:
        for override in _parse(overrides, loader):
            if not override.is_sweep_override():
                choices.append([override.input_line])
            elif not sweep:
                raise ConfigError(f"{override.input_line}: several values; one is needed, or a sweep with -m")
            elif not override.is_discrete_sweep():
                raise ConfigError(f"{override.input_line}: an interval; a list of values or range(a,b) is needed")
            else:
                choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
    return [list(one) for one in itertools.product(*choices)]


def _parse(overrides: Sequence[str], loader: Any) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parsed = list(OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)))
    for override in parsed:
        if not override.key_or_group:
            raise OverrideParseException(override.input_line, "no key")
    return parsed


def _forced(override: Any, loader: Any) -> str:
    """The override's line; a plain value is marked `++`, so that unknown keys reach `load_config` too."""
    key, line = override.key_or_group, str(override.input_line)
    if override.is_hydra_override() or override.package is not None or override.type.name != "CHANGE":
        return line
    options = loader.get_group_options(key)
    if not options:
        return "++" + line
    if not isinstance(override.value(), str | dict):
        raise ConfigError(f"{line}: one of {', '.join(options)} is needed")
    return line


def _refuse_resolvers(value: object, path: str) -> None:
    # ${oc.env:NAME} in somebody else's configuration would read this machine's environment.
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse_resolvers(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _refuse_resolvers(part, f"{path}[{number}]")
    elif isinstance(value, str) and "${" in value and ":" in value.split("${", 1)[1]:
        raise ConfigError(f"{path}: {value!r}, a plain value is needed: resolvers are not run")


def _folder(extra: Path) -> Path:
    if not extra.is_dir() or "'" in str(extra):
        raise ConfigError(f"--config-dir: {str(extra)!r}, an existing folder (without a quote in its name) is needed")
    return extra.resolve()


@contextmanager
def _hydra() -> Iterator[Any]:
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
