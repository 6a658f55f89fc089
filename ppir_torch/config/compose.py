"""From overrides (`backend=bfv sampler.fraction=0.05`) and YAML files to checked configurations, with Hydra.

There are three steps, and the order of the arguments does not matter to them:

1. files: the groups and an experiment, merged by Hydra; or a saved configuration in their place (`--config`);
2. choices of the command line (`backend=bfv`, `sampler.kind=gms`): each replaces the whole group. So no file can set
   another kind in it, and no setting of the old kind stays;
3. single values of the command line (`sampler.fraction=0.05`).

Hydra only composes. Its own check of keys is passed by (every value is force-added), so that there is one judge of
keys, types and ranges: `config.load_config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .guard import (
    asked_backends,
    backend_of_file,
    is_private_name,
    refuse_clear,
    refuse_clear_files,
    refuse_mixture,
)
from .images import RunConfig
from .overrides import BACKEND, EXPERIMENT, Overrides, combinations, config_folder, hydra_loader, sorted_overrides
from .points import PointsConfig
from .problems import checked

__all__ = ["compose", "compose_runs", "config_folder"]


def compose_runs(
    overrides: Sequence[str], sweep: bool = False, extra: Path | None = None, saved: Path | None = None
) -> list[tuple[list[str], RunConfig | PointsConfig]]:
    """(overrides, configuration) of every run; more than one where `sweep` expands `key=a,b` into its combinations.

    Every run is checked before any is returned.

    Args:
        overrides: in Hydra's grammar.
        sweep: expand sweeps; without it a sweep is refused.
        extra: a folder with further group files, beside the packaged ones.
        saved: a configuration that a run has saved, of images or of points, in the place of groups and experiment.

    Raises:
        ConfigError: one line per problem.
    """
    with hydra_loader() as loader:
        mappings = [(one, _composed(loader, one, extra, saved)) for one in combinations(overrides, sweep, loader)]
    runs = [(one, _checked(mapping, saved)) for one, mapping in mappings]
    for one, config in runs:
        refuse_clear(asked_backends(one), config.backend.kind)
    return runs


def compose(overrides: Sequence[str], extra: Path | None = None, saved: Path | None = None) -> dict[str, object]:
    """The composed configuration as a plain mapping, not checked yet; arguments as of `compose_runs`.

    Raises:
        ConfigError: a file or a word that cannot be read, a value that is missing, a word or a file that asks for a
            private backend where the run would be in clear, or words that ask for both.
    """
    with hydra_loader() as loader:
        return _composed(loader, overrides, extra, saved)


def _composed(loader: Any, overrides: Sequence[str], extra: Path | None, saved: Path | None) -> dict[str, object]:
    folders = [config_folder()] if extra is None else [config_folder(), _folder(extra)]
    search = [f"hydra.searchpath=['file://{folder}']" for folder in folders[1:]]
    read = None if saved is None else _read(saved)
    said = sorted_overrides(overrides, loader, RunConfig if read is None else _model_of(read), folders)
    asked = _asked_by_choices(loader, said, search, folders)
    named = [*said.backends, *asked_backends(overrides), *_in_backend_files(loader, said, search, folders)]
    refuse_mixture(named)
    if read is None:
        asked |= _asked_by_files(loader, [*said.groups, *search], folders)
        composed = _of_groups([*said.groups, *search])
    else:
        asked[str(saved)] = backend_of_file(read, str(saved))
        composed = _of_saved(read, said)
    if read is not None or said.experiment or search:  # else no file sets anything in another file's group
        composed |= _chosen_groups(said.choices, search)
    composed = {key: value for key, value in composed.items() if key not in said.left_out}
    composed = _with_kinds(composed, said) | said.plain
    plain = _with_values(composed, said.values)
    kind = backend_of_file(plain, "")
    refuse_clear(named, kind)
    refuse_clear_files(asked, said.backends, kind)
    return plain


def _checked(mapping: Mapping[str, object], saved: Path | None) -> RunConfig | PointsConfig:
    model: type[RunConfig] | type[PointsConfig] = RunConfig if saved is None else _model_of(mapping)
    return checked(model, mapping)


def _model_of(mapping: Mapping[str, object]) -> type[RunConfig] | type[PointsConfig]:
    """Which configuration a saved one is: that of points names both files at its top."""
    return PointsConfig if {"moving", "fixed"} & mapping.keys() else RunConfig


# --- the first step: files


def _of_groups(lines: list[str]) -> dict[str, Any]:
    composed = _merged(lines)
    if EXPERIMENT in composed:
        raise ConfigError(
            "experiment: its file starts with '# @package _global_'; a saved configuration goes with --config FILE"
        )
    return composed


def _merged(lines: list[str]) -> dict[str, Any]:
    """What Hydra makes of our files and these lines; interpolations are not resolved yet."""
    from hydra import compose as hydra_compose
    from omegaconf import OmegaConf

    merged = OmegaConf.to_container(hydra_compose("config", lines), resolve=False)
    return {str(key): value for key, value in merged.items()}


def _read(saved: Path) -> dict[str, Any]:
    """A saved configuration as it stands.

    Raises:
        ConfigError: no file that can be read, or none with a mapping.
    """
    from omegaconf import OmegaConf

    try:
        read = OmegaConf.to_container(OmegaConf.load(saved), resolve=False)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"--config: {str(saved)!r}, a YAML file that can be read is needed ({reason})") from None
    if not isinstance(read, dict):
        raise ConfigError(f"--config: {str(saved)!r}, a mapping of settings is needed in it")
    return {str(key): value for key, value in read.items()}


def _of_saved(read: dict[str, Any], said: Overrides) -> dict[str, Any]:
    chosen = said.choices.keys() | said.left_out
    others = [line for line in said.groups if line.lstrip("+~").partition("=")[0] not in chosen]
    if said.experiment:
        raise ConfigError("experiment: goes with the groups, not with --config, whose file stands for all of them")
    if others:
        raise ConfigError(f"{others[0]}: GROUP=NAME or GROUP.KEY=VALUE is needed with --config")
    return read


def _asked_by_files(loader: Any, lines: list[str], folders: list[Path]) -> dict[str, str]:
    """file -> the backend that it names by itself, of all files that Hydra merges, whatever the others make of it."""
    from hydra.types import RunMode

    asked = {}
    for default in loader.compute_defaults_list("config", lines, RunMode.RUN).defaults:
        found = [path for folder in folders if (path := folder / f"{default.config_path}.yaml").is_file()]
        file, content = f"{default.config_path}.yaml", _content(found[0]) if found else {}
        _refuse_resolvers(content.get("defaults"), f"{file}: defaults")
        asked[file] = backend_of_file({default.package: content} if default.package else content, file)
    return asked


def _content(path: Path) -> dict[str, Any]:
    """A group file as it stands; one without a mapping names nothing, and Hydra refuses it."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _asked_by_choices(loader: Any, said: Overrides, search: list[str], folders: list[Path]) -> dict[str, str]:
    """The same of every file that the command line chooses, whatever becomes of the choice later on."""
    asked: dict[str, str] = {}
    for group, name, line in said.files if search else ():  # a packaged file sets no other group's backend
        for path in (folder / group / f"{name}.yaml" for folder in folders):
            # Before Hydra reads it: Hydra runs the resolvers in a list of defaults.
            _refuse_resolvers(_content(path).get("defaults") if path.is_file() else None, f"{group}/{name}.yaml")
        asked |= _asked_by_files(loader, [line, *search], folders)
    return asked


def _in_backend_files(loader: Any, said: Overrides, search: list[str], folders: list[Path]) -> list[str]:
    """The kinds in the files of backends that the command line chooses: as good as named there."""
    named: list[str] = []
    for group, _, line in said.files if search else ():  # a packaged file has its kind's name
        if group == BACKEND:
            named += filter(is_private_name, _asked_by_files(loader, [line, *search], folders).values())
            named.append(backend_of_file(_merged([line, *search]), line))
    return named


# --- the second and third step: choices and values


def _chosen_groups(choices: Mapping[str, str], search: list[str]) -> dict[str, Any]:
    """The groups that are chosen, each as its own file has it."""
    if not search:
        together = _merged(list(choices.values()))
        return {group: together[group] for group in choices}
    # One at a time: a file of the user's own may set something in another group.
    return {group: _merged([line, *search]).get(group, {}) for group, line in choices.items()}


def _with_kinds(composed: dict[str, Any], said: Overrides) -> dict[str, Any]:
    """Every field whose kind is named anew without what belonged to the old one."""
    kept = {}
    for key, kind in said.kinds.items():
        there = composed.get(key)
        same = isinstance(there, dict) and there.get("kind") == kind and key not in said.whole
        kept[key] = there if same else {"kind": kind}
    return composed | kept


def _with_values(composed: dict[str, Any], values: Sequence[Any]) -> dict[str, object]:
    """The mapping with single values, all interpolations resolved, nothing missing."""
    from omegaconf import OmegaConf

    whole = OmegaConf.create(composed)
    for override in values:
        if override.is_delete():
            _delete(whole, override.key_or_group)
        else:
            OmegaConf.update(whole, override.key_or_group, override.value(), merge=True, force_add=True)
    missing = sorted(OmegaConf.missing_keys(whole))
    if missing:
        raise ConfigError("\n".join(f"{key}: missing, a value is needed ({key}=...)" for key in missing))
    _refuse_resolvers(OmegaConf.to_container(whole, resolve=False), "")
    return {str(key): value for key, value in OmegaConf.to_container(whole, resolve=True).items()}


def _delete(whole: Any, key: str) -> None:
    from omegaconf import OmegaConf

    parent, _, name = key.rpartition(".")
    inside = OmegaConf.select(whole, parent) if parent else whole
    if inside is None or name not in inside:
        raise ConfigError(f"configuration: Could not delete from config. {key!r} does not exist.")
    del inside[name]


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
