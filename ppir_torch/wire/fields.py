"""Reading a payload's JSON values: every value is checked here before anything is made of it.

Whatever a peer sends, these return a value within its bounds or raise LinkError with one line.

>>> read_integer({"rows": 4}, "rows", 1, 1024)
4
>>> read_integer({"rows": True}, "rows", 1, 1024)
Traceback (most recent call last):
ppir_torch.errors.LinkError: rows: True, an integer from 1 to 1024 is due; refused
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import LinkError

__all__ = ["one_line", "read_flag", "read_integer", "read_number", "read_numbers", "read_only", "read_text", "shown"]

_SHOWN = 60  # characters of a refused value in an error line


def shown(value: object) -> str:
    """A value of the peer's as it may stand in an error line: short, on one line."""
    return repr(value)[:_SHOWN]


def one_line(text: str) -> str:
    """A peer's text as it may be shown: on one line, without what a terminal would obey.

    >>> one_line("the cap\\nis reached\\x1b[2J")
    'the cap is reached [2J'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def read_only(meta: Mapping[str, Any], *names: str) -> None:
    """Refuse values without one of these names, or with any other. Raises LinkError."""
    if set(meta) != set(names):
        raise LinkError(f"values {shown(sorted(meta))}, {', '.join(names)} are due; refused")


def read_integer(meta: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """The integer of this name, from `least` to `most`. Raises LinkError."""
    value = meta.get(name)
    if type(value) is not int or not least <= value <= most:
        raise LinkError(f"{name}: {shown(value)}, an integer from {least} to {most} is due; refused")
    return value


def read_number(meta: Mapping[str, Any], name: str, least: float = -math.inf, most: float = math.inf) -> float:
    """The finite number of this name, from `least` to `most`. Raises LinkError."""
    (number,) = _numbers([meta.get(name)], name, least, most)
    return number


def read_numbers(
    meta: Mapping[str, Any], name: str, count: int, least: float = -math.inf, most: float = math.inf
) -> tuple[float, ...]:
    """The list of this name: `count` finite numbers, each from `least` to `most`. Raises LinkError."""
    values = meta.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise LinkError(f"{name}: {shown(values)}, a list of {count} numbers is due; refused")
    return _numbers(values, name, least, most)


def read_flag(meta: Mapping[str, Any], name: str) -> bool:
    """The true or false of this name. Raises LinkError."""
    value = meta.get(name)
    if type(value) is not bool:
        raise LinkError(f"{name}: {shown(value)}, true or false is due; refused")
    return value


def read_text(meta: Mapping[str, Any], name: str, longest: int) -> str:
    """The text of this name, of at most `longest` characters. Raises LinkError."""
    value = meta.get(name)
    if not isinstance(value, str) or len(value) > longest:
        raise LinkError(f"{name}: {shown(value)}, a text of at most {longest} characters is due; refused")
    return value


def _numbers(values: list[Any], name: str, least: float, most: float) -> tuple[float, ...]:
    bounds = "" if math.isinf(least) and math.isinf(most) else f" from {least:g} to {most:g}"
    numbers = []
    for value in values:
        # An integer may be too long for a float: it is compared before it is converted.
        if type(value) not in (int, float) or not (-1.7e308 < value < 1.7e308 and least <= value <= most):
            raise LinkError(f"{name}: {shown(value)}, a finite number{bounds} is due; refused")
        numbers.append(float(value))
    return tuple(numbers)
