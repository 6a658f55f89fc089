"""A private backend that was asked for, and a run in clear: never both. Looks at words, not at how they were composed.

This is a second line of defence. `config.compose` already lets the command line win over every file; here what was
asked for is read again, from the words alone, and compared with what is about to run.

>>> asked_backends(["seed=3", "backend=bfv", "sampler={kind: gms}"])
['bfv']
>>> asked_backends(["++backend.kind='spdz'", "backend={kind: clear}"])
['spdz', 'clear']
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import ConfigError
from .protocols import AUTO, CLEAR, PROTOCOLS

__all__ = ["asked_backends", "is_private_name", "refuse_clear", "refuse_clear_files"]

_BACKEND = re.compile(r"[+~]*backend(@[^=.]*)?(\.kind)?\s*=\s*(?P<value>.*)", re.DOTALL)
_KIND = re.compile(r"['\"]?kind['\"]?\s*:\s*(?P<value>[^,}\s]+)")


def asked_backends(overrides: Iterable[str]) -> list[str]:
    """The names of backends in these words of the command line, in their order."""
    names = []
    for line in overrides:
        if found := _BACKEND.fullmatch(line.strip()):
            value = found["value"].strip()
            inside = [kind["value"] for kind in _KIND.finditer(value)] if value.startswith("{") else [value]
            names += [name.strip("'\" ") for name in inside]
    return names


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


def refuse_clear_files(asked: Mapping[str, str], overrides: Sequence[str], backend: str) -> None:
    """The same for the files that a run was composed of; the command line may say `backend=clear`.

    Args:
        asked: file -> the backend that it names.
        overrides: the words of the command line.
        backend: what is about to run.

    Raises:
        ConfigError: a file names a private one, the command line does not say clear, and `backend` is clear.
    """
    if backend != CLEAR.name or CLEAR.name in asked_backends(overrides):
        return
    for file, name in asked.items():
        if is_private_name(name):
            raise ConfigError(
                f"backend: {name!r} is asked for in {file}, but the run would be in clear; refused: say "
                f"backend={name} or backend=clear"
            )
