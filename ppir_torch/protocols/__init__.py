"""The private protocols: exact products of one party's rows with the other's columns. Their entries: config/protocols.

>>> load_protocol("beaver").name
'beaver'
"""

from __future__ import annotations

from ..config.protocols import CLEAR, PROTOCOLS
from ..errors import ConfigError
from ..joint.interface import Protocol

__all__ = ["load_protocol"]


def load_protocol(name: str) -> Protocol:
    """The code of a private protocol; its module (and CrypTen or TenSEAL) loads only now.

    Raises:
        ConfigError: no such protocol.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"backend: {PROTOCOLS.refusal(name, (CLEAR.name, *PROTOCOLS.names()))}")
    protocol: Protocol = PROTOCOLS[name].load()
    return protocol
