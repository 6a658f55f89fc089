"""The private protocols: exact products of one party's rows with the other's columns."""

from __future__ import annotations

import importlib

from ..errors import ConfigError
from ..joint.interface import Protocol

__all__ = ["PROTOCOL_NAMES", "load_protocol"]

PROTOCOL_NAMES = ("spdz", "beaver", "bfv", "ckks", "ckks-v1")
_HOMES = {"spdz": "spdz", "beaver": "beaver", "bfv": "lattice.bfv", "ckks": "lattice.ckks", "ckks-v1": "ckks_v1"}


def load_protocol(name: str) -> Protocol:
    """A private protocol; its module (and CrypTen or TenSEAL) loads only now.

    Raises:
        ConfigError: no such protocol.
    """
    if name not in PROTOCOL_NAMES:
        raise ConfigError(f"backend: {name!r}, one of {', '.join(('clear', *PROTOCOL_NAMES))} is needed")
    protocol: Protocol = importlib.import_module(f".{_HOMES[name]}", __name__).PROTOCOL
    return protocol
