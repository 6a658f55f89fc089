"""A private backend that was asked for, and a run in clear: never both. Looks at words, not at how they were composed.

This is a second line of defence. `config.compose` already lets the command line win over every file; here what was
asked for is compared with what is about to run. `config.overrides` gives the names as Hydra's parser reads them;
`asked_backends` reads them again, from the text alone.

>>> asked_backends(["seed=3", "backend=bfv", "sampler={kind: gms}"])
['bfv']
>>> asked_backends(["++backend.kind='spdz'", "backend={kind: clear}"])
['spdz', 'clear']
>>> asked_backends(["backend={kind: str(bfv), kind: clear}"])  # of a key given twice the parser keeps the last
['bfv', 'clear']
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import ConfigError
from .protocols import AUTO, CLEAR, PROTOCOLS

__all__ = [
    "asked_backends",
    "backend_of_file",
    "is_private_name",
    "kinds_in",
    "refuse_clear",
    "refuse_clear_files",
    "refuse_mixture",
]

_BACKEND = re.compile(r"[+~]*backend(@[^=.]*)?(\.kind)?\s*=\s*(?P<value>.*)", re.DOTALL)
_KIND = re.compile(r"['\"]?kind['\"]?\s*:\s*(?P<value>[^,{}]+)")
_CAST = re.compile(r"\w+\(\s*(value\s*=)?")  # str(bfv)


def asked_backends(overrides: Iterable[str]) -> list[str]:
    """The names of backends in these words of the command line, in their order."""
    names = []
    for line in overrides:
        if found := _BACKEND.fullmatch(line.strip()):
            value = found["value"].strip()
            inside = [kind["value"] for kind in _KIND.finditer(value)] if value.startswith("{") else [value]
            names += [_CAST.sub("", name).strip("'\") \t") for name in inside]
    return [name for name in names if name]


def kinds_in(value: object) -> list[str]:
    """The names of backends in one value, as Hydra's parser gives it: a name, or a mapping with kinds at any depth.

    Raises:
        ConfigError: an interpolation, which would name a backend without its name.
    """
    if isinstance(value, str):
        if "${" in value:
            raise ConfigError(f"backend: {value!r}, a plain name is needed")
        return [str(value)]
    if not isinstance(value, dict):
        return []
    named = [name for key, part in value.items() if str(key) == "kind" for name in kinds_in(part)]
    return named + [name for part in value.values() if isinstance(part, dict) for name in kinds_in(part)]


def backend_of_file(content: Mapping[str, object], file: str) -> str:
    """The backend that a file names by itself; nothing where it names none.

    Raises:
        ConfigError: an interpolation in its place.
    """
    backend = content.get("backend")
    kind = backend.get("kind", "") if isinstance(backend, dict) else backend
    if isinstance(kind, str) and "${" in kind:
        raise ConfigError(f"backend: {kind!r} in {file}, a plain name is needed")
    return str(kind) if isinstance(backend, dict) else ""


def is_private_name(name: object) -> bool:
    """Whether this is the name of a private backend."""
    return name == AUTO.name or name in PROTOCOLS


def refuse_clear(asked: Sequence[str], backend: str) -> None:
    """Compare the backends that were asked for by name with the one that is about to run.

    Raises:
        ConfigError: a private one was asked for, and `backend` is clear.
    """
    private = [name for name in asked if is_private_name(name)]
    if private and backend == CLEAR.name:
        raise ConfigError(
            f"backend: {private[0]!r} was asked for, but the run would be in clear; refused: name one backend only"
        )


def refuse_mixture(asked: Sequence[str]) -> None:
    """A private backend and a clear one, both on one command line: none of the two is what was meant.

    Raises:
        ConfigError: both were asked for, in any order.
    """
    private = [name for name in asked if is_private_name(name)]
    if private and CLEAR.name in asked:
        raise ConfigError(
            f"backend: {private[0]!r} was asked for, and {CLEAR.name!r} too; refused: name one backend only"
        )


def refuse_clear_files(asked: Mapping[str, str], named: Sequence[str], backend: str) -> None:
    """The same for the files that a run was composed of; the command line may say `backend=clear`.

    Args:
        asked: file -> the backend that it names.
        named: the backends that the command line names.
        backend: what is about to run.

    Raises:
        ConfigError: a file names a private one, the command line does not say clear, and `backend` is clear.
    """
    if backend != CLEAR.name or CLEAR.name in named:
        return
    for file, name in asked.items():
        if is_private_name(name):
            raise ConfigError(
                f"backend: {name!r} is asked for in {file}, but the run would be in clear; refused: say "
                f"backend={name} or backend=clear"
            )
