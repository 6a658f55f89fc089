"""The transport `loopback`: one end of a link listens, the other one calls."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from ppir_torch import LinkError
from ppir_torch.transport import LinkEnd, Transport

LOOPBACK = "127.0.0.1"


class LoopbackTransport(Transport):
    """Each link is a TCP connection; its messages are authenticated by the link's key, as always."""

    def connect(self, one: str, two: str) -> tuple[LinkEnd, LinkEnd]:
        """The first role inherits a listening socket, the second one is told its port."""
        listening = socket.create_server((LOOPBACK, 0), backlog=1)
        return LinkEnd(inherited=(listening,)), LinkEnd({"port": listening.getsockname()[1], "listens": one})

    def join(self, description: Mapping[str, Any], inherited: Sequence[socket.socket]) -> socket.socket:
        """Wait for the caller, or call."""
        try:
            if inherited:
                with inherited[0] as listening:
                    listening.settimeout(self.timeout_s)
                    stream, _ = listening.accept()
            else:
                stream = socket.create_connection((LOOPBACK, description["port"]), self.timeout_s)
        except OSError as error:
            raise LinkError(
                f"transport loopback: {description.get('listens', 'the peer')} is not there ({error})"
            ) from None
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream
