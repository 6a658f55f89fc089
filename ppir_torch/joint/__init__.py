"""Joint products: every loss is a product of rows that party_1 knows with an operand that party_2 fixed in advance."""

from __future__ import annotations

import importlib

from ..errors import ConfigError
from .protocol import ProtocolEntry

__all__ = ["PROTOCOL_NAMES", "load_protocol"]

PROTOCOL_NAMES = ("spdz", "beaver", "bfv", "ckks", "ckks-v1")


def load_protocol(name: str) -> ProtocolEntry:
    """The entry of a private protocol; its module (and CrypTen or TenSEAL) loads only now.

    Raises:
        ConfigError: no such protocol.
    """
    if name not in PROTOCOL_NAMES:
        raise ConfigError(f"backend: {name!r}, one of {', '.join(('clear', *PROTOCOL_NAMES))} is needed")
    entry: ProtocolEntry = importlib.import_module(f".{name.replace('-', '_')}", __name__).ENTRY
    return entry
