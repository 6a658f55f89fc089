"""How two roles of a run get the ends of a link, and who is at the other end; nothing about registration.

>>> load_transport({"kind": "local", "timeout_s": 60}).timeout_s
60.0
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..config.transports import TRANSPORTS
from .interface import LinkEnd, Transport

__all__ = ["LinkEnd", "Transport", "load_transport"]


def load_transport(settings: Mapping[str, Any]) -> Transport:
    """The transport that these settings (plain values, with its `kind`) describe.

    Raises:
        ConfigError: there is none of this kind, or its package cannot be imported.
    """
    entry = TRANSPORTS[settings["kind"]]
    transport: Transport = entry.make(entry.settings.model_validate_json(json.dumps(settings)))
    return transport
