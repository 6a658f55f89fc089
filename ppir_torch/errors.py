"""The errors a user may see. Each is one clear line: the field or file, the value, what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "BudgetExceeded",
    "ConfigError",
    "ImageError",
    "LedgerStop",
    "LinkError",
    "MissingExtra",
    "PeerLost",
    "PpirError",
    "RangeError",
    "RegistrationFailed",
]


class PpirError(Exception):
    """Base of every error that is the input's fault, not the program's; the command line prints it and exits with 2."""

    exit_code = 2


class ConfigError(PpirError):
    """A configuration field is unknown, of the wrong type, out of range, or does not go with another."""


class ImageError(PpirError):
    """An image file or array cannot be used: unreadable, NaN, constant, wrong dimension, no overlap."""


class RangeError(PpirError):
    """An integer would leave the ring or the plaintext modulus; refused before anything is sent."""


class MissingExtra(PpirError):
    """An optional package is not installed; the message names the extra that brings it."""


class LinkError(PpirError):
    """A message is not what the protocol allows here: wrong session, order, kind, length or content."""


class PeerLost(LinkError):
    """The other party ended or went silent; what this party has so far is kept."""

    exit_code = 3


class LedgerStop(PpirError):
    """party_1's own limit on what the opened values say about the other image is passed; what it has so far is kept."""

    exit_code = 3


class RegistrationFailed(PpirError):
    """A registration collapsed, ran away or lost all overlap: the best transform before that is kept.

    Args:
        message: what went wrong, and where what was kept is.
        values: those of result.json.

    Attributes:
        values: as above; `values["warnings"]` says what to try.
        result: of `ppir_torch.register`, the Result with the transform that was kept; else None.
    """

    exit_code = 4

    def __init__(self, message: str, values: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.values = dict(values)
        self.result: Any = None


class BudgetExceeded(PpirError):
    """party_2's cap on released values is reached: not a fault of the input; what party_1 has so far is kept."""

    exit_code = 3
