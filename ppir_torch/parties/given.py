"""What a party's process is given on its standard input: written and read in this file alone.

It is not given as arguments, because every user of a machine can read the arguments of its processes.

>>> given = Given("images", {"threads": 1}, {"kind": "local"}, {"party_1": {}}, {"party_1": bytes(16)})
>>> Given.from_text(given.to_text()) == given
True
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """One role's part of a run, and nothing of the others'.

    Attributes:
        task: "images" or "points".
        config: its configuration as JSON values.
        transport: settings of the transport.
        links: peer -> description of this role's end, see `transport.interface.LinkEnd`.
        keys: peer -> the 16 secret bytes of that link.
    """

    task: str
    config: Mapping[str, Any]
    transport: Mapping[str, Any]
    links: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, bytes]

    def to_text(self) -> str:
        """As one line of JSON."""
        return json.dumps({**asdict(self), "keys": {peer: key.hex() for peer, key in self.keys.items()}})

    @classmethod
    def from_text(cls, text: str) -> Given:
        """Inverse of `to_text`."""
        values = json.loads(text)
        return cls(**{**values, "keys": {peer: bytes.fromhex(key) for peer, key in values["keys"].items()}})
