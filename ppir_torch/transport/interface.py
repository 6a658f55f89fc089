"""What a transport is: it connects two roles of a run, whatever lies between them.

A transport is made twice from the same settings: in the program that starts the parties, where it makes the two ends of
every link, and in each party's process, where it turns that party's end into a stream. A further transport is one file
with a subclass and its entry in `config.transports`, or in another package's entry points (docs/extending.md).
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LinkEnd", "Transport"]


@dataclass(frozen=True)
class LinkEnd:
    """One end of a link, until its party has it.

    Args:
        description: JSON values that `Transport.join` needs beside the settings. The party's process reads them from
            its standard input, so they may be secret.
        inherited: sockets that the party's process inherits. The program that starts it closes its own copies then.
    """

    description: Mapping[str, Any] = field(default_factory=dict)
    inherited: tuple[socket.socket, ...] = ()

    def close(self) -> None:
        """Close this program's copies, when the party's process has its own."""
        for stream in self.inherited:
            stream.close()


class Transport(ABC):
    """Makes the ends of links, and joins them.

    Args:
        timeout_s: seconds of silence after which a peer counts as lost.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s

    @abstractmethod
    def connect(self, one: str, two: str) -> tuple[LinkEnd, LinkEnd]:
        """The two ends of a link between the roles `one` and `two`, in the program that starts the parties."""

    @abstractmethod
    def join(self, description: Mapping[str, Any], inherited: Sequence[socket.socket]) -> socket.socket:
        """The connected stream socket of one end, in its party's process.

        Args:
            description: of the `LinkEnd`.
            inherited: its sockets, in the same order.

        Raises:
            LinkError: the other end cannot be reached.
        """
