"""Registries: one for each noun (loss, transform, ...), with one entry for each thing that can be chosen by its name.

What is known of a thing stands in its entry and nowhere else: its settings, its line of help, where its code is, what
it discloses, what it goes with. Entries of other installed packages come through entry points (docs/extending.md) and
have the same standing as ours. They are read when a registry is first asked; a package that cannot be imported hinders
nobody who does not ask for it.

>>> from ppir_torch.config import LOSSES
>>> LOSSES["ncc"].normalised, LOSSES["mi"].deforms
(True, False)
>>> LOSSES["cc"]
Traceback (most recent call last):
ppir_torch.errors.ConfigError: loss: 'cc', one of ssd, ncc, ncc_squared, local_ncc, mind, cr, mi is needed
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..errors import ConfigError
from .base import KindSettings, show

__all__ = ["Disclosed", "Entry", "OneName", "OneOf", "Registry", "words"]

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class Disclosed(NamedTuple):
    """What choosing a thing tells each party of the other's data, a line each."""

    party_1: str = "nothing"
    party_2: str = "nothing"


@dataclass(frozen=True)
class Entry:
    """One thing of a registry.

    Attributes:
        settings: its settings; the only value of their field `kind`, a Literal, is its name.
        title: one line for help texts and `ppir info`.
        home: "package.module:attribute" of its code, imported when it is first used.
    """

    settings: type[KindSettings]
    title: str
    home: str

    @property
    def name(self) -> str:
        """As it is chosen in a configuration."""
        names = get_args(self.settings.model_fields["kind"].annotation)
        if len(names) != 1:
            raise TypeError(f"{self.settings.__name__}: its kind is not a Literal of one name")
        return str(names[0])

    def load(self) -> Any:
        """The code at `home`.

        Raises:
            ConfigError: it, or a package that it needs, cannot be imported.
        """
        module, _, attributes = self.home.partition(":")
        try:
            return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self.name}: {self.home} cannot be imported ({_first_line(error)})") from error

    def make(self, settings: KindSettings) -> Any:
        """The object that these settings describe: `home` called with each of them, but the kind, by its name."""
        return self.load()(**{name: getattr(settings, name) for name in type(settings).model_fields if name != "kind"})


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """The entries of one noun: ours in the order given, then those of other packages.

    Args:
        noun: the field of a configuration that chooses one of them, for error lines.
        group: of the entry points; the name of an entry point is its entry's.
        entry_type: class of the entries.
        settings_type: what their settings are subclasses of.
        own: ours.
        reserved: names that mean something of ours and are in no registry, so that no other package can take them.
    """

    def __init__(
        self,
        noun: str,
        group: str,
        entry_type: type[E],
        settings_type: type | tuple[type, ...],
        *own: E,
        reserved: tuple[str, ...] = (),
    ) -> None:
        self.noun, self.group = noun, group
        self._entry_type, self._settings_type = entry_type, settings_type
        self._own = {entry.name: entry for entry in own}
        self._reserved = reserved
        self._broken: dict[str, str] = {}
        self._distributions: dict[str, str] = {}

    def names(self) -> tuple[str, ...]:
        """Of all entries."""
        return tuple(self._entries)

    def ours(self, name: str) -> E:
        """One of our own entries, for the code that it stands for: other packages are not looked at."""
        return self._own[name]

    def __iter__(self) -> Iterator[E]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> E:
        """The entry of this name; raises ConfigError with one line that says which there are."""
        if name not in self._entries:
            raise ConfigError(f"{self.noun}: {self.refusal(name, self.names())}")
        return self._entries[name]

    def refusal(self, name: str, allowed: Iterable[str]) -> str:
        """What is wrong with a name that is not among the allowed ones, with every package that could not be read."""
        if name in self._broken:
            return f"{show(name)}, {self._broken[name]}"
        rest = "".join(f"; {other}: {reason}" for other, reason in self._broken.items())
        return f"{show(name)}, one of {', '.join(allowed)} is needed{rest}"

    def distribution(self, name: str) -> str:
        """The package that an entry comes from, with its version; "" for ours."""
        return self._distributions.get(name, "") if name in self._entries else ""

    def broken(self) -> dict[str, str]:
        """name -> why it cannot be used, of the entries of other packages."""
        return dict(self._broken) if self._entries else {}

    @functools.cached_property
    def _entries(self) -> dict[str, E]:
        found = dict(self._own)
        points: importlib.metadata.EntryPoints = _entry_points().select(group=self.group)
        for point in points:
            distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
            try:
                entry = self._checked(point.name, point.load(), found)
            except (Exception, SystemExit) as error:  # whatever it raises: it must not stop those without it
                self._broken[point.name] = f"{point.value} of {distribution} cannot be used ({_first_line(error)})"
            else:
                found[entry.name], self._distributions[entry.name] = entry, distribution
        return found

    def _checked(self, name: str, entry: object, found: dict[str, E]) -> E:
        if not isinstance(entry, self._entry_type):
            raise TypeError(f"a {self._entry_type.__name__} is needed, not a {type(entry).__name__}")
        if not issubclass(entry.settings, self._settings_type):
            raise TypeError(f"{entry.settings.__name__} is not of the settings of a {self.noun}")
        if entry.name != name or not _NAME.fullmatch(name):
            raise ValueError(
                f"kind {entry.name!r}: the entry point's name, of small letters, digits, _ and -, is needed"
            )
        if name in found or name in self._reserved:
            raise ValueError(f"there is a {self.noun} {name!r} already")
        return entry


@functools.cache
def _entry_points() -> Any:  # its type differs between Python 3.11 and 3.12
    # Of all groups at once: every look takes as long as reading the metadata of all installed packages.
    return importlib.metadata.entry_points()


class OneOf:
    """Annotation of a field that holds the settings of one entry, told apart by their `kind`.

    Args:
        registry: of the entries.
        also: entries before these that are not in the registry.
        where: which of the registry's may be chosen here; None: all.
        default: the kind where none is given; None: one must be.
    """

    def __init__(
        self,
        registry: Registry[Any],
        also: tuple[Entry, ...] = (),
        where: Callable[[Any], bool] | None = None,
        default: str | None = None,
    ) -> None:
        self._registry, self._also, self._where, self._default = registry, also, where, default

    def settings(self) -> dict[str, type[KindSettings]]:
        """name -> settings of everything that may be chosen."""
        chosen = [entry for entry in self._registry if self._where is None or self._where(entry)]
        return {entry.name: entry.settings for entry in (*self._also, *chosen)}

    def refusal(self, name: str) -> str:
        """What is wrong with the name of another kind."""
        return self._registry.refusal(name, self.settings())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(model) for name, model in self.settings().items()}
        union = core_schema.tagged_union_schema(choices, "kind")
        return union if self._default is None else core_schema.no_info_before_validator_function(self._named, union)

    def _named(self, value: object) -> object:
        return {"kind": self._default, **value} if isinstance(value, dict) else value


class OneName:
    """Annotation of a string field: one of the names that a function gives when the first configuration is checked."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self._names()))


def words(names: Iterable[str]) -> str:
    """
    >>> words(["ssd"]), words(["ssd", "ncc", "mi"])
    ('ssd', 'ssd, ncc or mi')
    """
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:200]
