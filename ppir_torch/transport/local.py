"""All parties on one machine: a link is a pair of connected sockets, and each party's process inherits its end.

>>> transport = LocalTransport(timeout_s=60)
>>> one, two = (transport.join(end.description, end.inherited) for end in transport.connect("party_1", "party_2"))
>>> one.send(b"row"), two.recv(3)
(3, b'row')
>>> one.close(), two.close()
(None, None)
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LinkError
from .interface import LinkEnd, Transport

__all__ = ["LocalTransport"]


class LocalTransport(Transport):
    """See `Transport`."""

    def connect(self, one: str, two: str) -> tuple[LinkEnd, LinkEnd]:  # noqa: ARG002
        """See `Transport`."""
        first, second = socket.socketpair()
        return LinkEnd(inherited=(first,)), LinkEnd(inherited=(second,))

    def join(self, description: Mapping[str, Any], inherited: Sequence[socket.socket]) -> socket.socket:  # noqa: ARG002
        """See `Transport`."""
        if len(inherited) != 1:
            raise LinkError(f"transport local: {len(inherited)} inherited sockets, one is due")
        return inherited[0]
