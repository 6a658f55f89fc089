"""What protocols and parties use of a link, whatever carries its bytes: one socket pair, a network, a test's own.

`link.Link` is the channel over a stream socket.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .kinds import MessageKind
from .payload import Buffer

__all__ = ["Channel", "Received"]


@dataclass(frozen=True)
class Received:
    """One message as received: its kind, level and iteration (-1 before any), and the payload."""

    kind: MessageKind
    level: int
    iteration: int
    payload: memoryview


class Channel(ABC):
    """One party's end of a two-party stream of declared messages.

    Attributes:
        me: this party's name.
        peer: the other party's name.
        level: stamped on the messages that are sent, -1 before the first level; see `at`.
        iteration: the same, -1 outside of iterations.
        sent: bytes given to the stream by kind of message, headers and tags included.
        received: bytes taken from it, counted alike.
        waited: seconds spent in `receive` waiting for the peer.
    """

    me: str
    peer: str
    level: int
    iteration: int
    sent: Counter[MessageKind]
    received: Counter[MessageKind]
    waited: float

    def at(self, level: int, iteration: int) -> None:
        """Stamp the following messages with this level and iteration."""
        self.level, self.iteration = level, iteration

    @abstractmethod
    def send(self, kind: MessageKind, payload: Buffer | Sequence[Buffer] = b"") -> None:
        """Queue one message. Buffers must not be changed afterwards. Raises PeerLost when the peer is gone."""

    def settle(self, most: int) -> None:  # noqa: B027 - a channel that keeps nothing back has nothing to wait for
        """Wait until at most so many bytes of what was sent here wait in this process: they are memory.

        Only where the peer is receiving: two parties that wait for each other's reading wait for ever.
        """

    @abstractmethod
    def receive(self, *kinds: MessageKind) -> Received:
        """The next message, which must be of one of `kinds`.

        Raises:
            PeerLost: the peer closed the stream, was silent for too long, or sent ABORT.
            LinkError: the message is not what is due here, or not what the peer sent.
        """

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Tell the peer, in one line, why this party stops; never raises."""

    @abstractmethod
    def close(self) -> None:
        """Send what is queued, then close the stream."""

    @property
    def bytes_sent(self) -> int:
        """All bytes given to the stream, headers and tags included."""
        return sum(self.sent.values())

    @property
    def set_up_bytes_sent(self) -> int:
        """The part of `bytes_sent` that is sent once a session or level: keys, operands, geometry."""
        return sum(n for kind, n in self.sent.items() if kind.is_set_up)
