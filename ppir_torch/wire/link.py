"""The Link: the only way in which one party's bytes reach another.

A Link is one stream socket with declared message kinds. Every message carries session, sequence number, level,
iteration, kind and length, and a tag under a key that only its two ends have (AES-128-GMAC over header and payload):
what was changed, replayed, reordered, left out or sent back on its way is refused before anything in it is acted on.
Bytes are counted here, where they are sent.

On the wire: header (44 bytes, little endian), tag (16 bytes), payload.

>>> left, right = link_pair("party_1", "party_2")
>>> left.send(MessageKind.LEVEL, b"shrink")
>>> bytes(right.receive(MessageKind.LEVEL).payload)
b'shrink'
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import queue
import secrets
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import LinkError, PeerLost
from .channel import Channel, Received
from .kinds import MessageKind
from .messages import Abort
from .payload import Buffer

__all__ = ["Link", "Received", "link_pair"]

# magic, session, sequence, level, iteration, kind, payload length
_HEADER = struct.Struct("<4s16sQhiHQ")
_MAGIC = b"PPI1"
MAX_PAYLOAD = 1 << 32
_TAG_SIZE = 16
_CHUNK = 1 << 20


class Link(Channel):
    """One end of a two-party stream of declared messages.

    Args:
        stream: connected stream socket (pipe pair, loopback, or a TLS-wrapped one).
        session: 16 bytes agreed by both ends; a message of another session is refused.
        key: 16 secret bytes that the two ends of this link have and nobody else, for this link only: a second Link
            with the same key and names would repeat nonces, and two messages with one nonce give the tag key away.
        me: this party's name; the other end must name it the same, for the name tells the direction of a message.
        peer: the other party's name, as it calls itself.
        timeout: seconds of silence after which the peer counts as lost.

    Sending never blocks on the peer (a thread drains the queue), so both ends may send at once.

    Raises:
        ValueError: session or key of another length, or names that do not tell the two directions apart.
    """

    def __init__(
        self, stream: socket.socket, session: bytes, key: bytes, me: str, peer: str, timeout: float = 600.0
    ) -> None:
        if len(session) != 16:
            raise ValueError(f"session: {len(session)} bytes, 16 needed")
        if len(key) != 16:
            raise ValueError(f"key: {len(key)} bytes, 16 needed")
        self._out, self._in = _direction(me), _direction(peer)
        if self._out == self._in:
            raise ValueError(f"me: {me!r}, peer: {peer!r}, two names that differ are needed")
        self.me, self.peer, self.session = me, peer, session
        self.level, self.iteration = -1, -1
        self.sent: Counter[MessageKind] = Counter()
        self.received: Counter[MessageKind] = Counter()
        self.waited = 0.0
        self._stream = stream
        self._stream.settimeout(timeout)
        self._timeout = timeout
        self._next_in = 0
        self._next_out = 0
        self._aes = algorithms.AES(key)
        self._numbering = threading.Lock()  # one sequence number is one nonce: never given twice
        self._broken: OSError | None = None
        self._outbox: queue.Queue[list[Buffer] | None] = queue.Queue()
        self._queued, self._changed = 0, threading.Condition()  # bytes in the outbox, or on their way out of it
        self._sender = threading.Thread(target=self._drain, name=f"link-to-{peer}", daemon=True)
        self._sender.start()

    def send(self, kind: MessageKind, payload: Buffer | Sequence[Buffer] = b"") -> None:
        """Queue one message. Buffers must not be changed afterwards. Raises PeerLost when the peer is gone."""
        if self._broken is not None:
            raise self._lost(str(self._broken))
        parts = [memoryview(p).cast("B") for p in ([payload] if isinstance(payload, Buffer) else payload) if len(p)]
        length = sum(p.nbytes for p in parts)
        if length > MAX_PAYLOAD:
            raise LinkError(f"{kind.name}: payload of {length} bytes, at most {MAX_PAYLOAD} are allowed")
        with self._numbering:
            try:
                sequence, self._next_out = self._next_out, self._next_out + 1
                header = _HEADER.pack(_MAGIC, self.session, sequence, self.level, self.iteration, kind, length)
                tag = self._tag(self._out, sequence, header, *parts)
                self.sent[kind] += len(header) + len(tag) + length
                with self._changed:
                    self._queued += length
                self._outbox.put([header + tag, *parts])
            except KeyboardInterrupt:
                # The number may be used up and the message not sent: what follows it would be refused as out of order.
                self._broken = InterruptedError("interrupted within a message")
                raise

    def settle(self, most: int) -> None:
        """See `Channel`; a broken stream is not waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued <= most or self._broken is not None)

    def receive(self, *kinds: MessageKind) -> Received:
        """The next message, which must be of one of `kinds`.

        Raises:
            PeerLost: the peer closed the stream, was silent for too long, or sent ABORT.
            LinkError: the message is malformed, out of order, of another session, of another kind, was changed on its
                way, or is not from the peer.
        """
        started = time.perf_counter()
        try:
            header = self._read(_HEADER.size)
            magic, session, sequence, level, iteration, number, length = _HEADER.unpack(header)
            if magic != _MAGIC or session != self.session:
                raise LinkError(f"message from {self.peer} belongs to another session or program; refused")
            if sequence != self._next_in:
                raise LinkError(f"message {sequence} from {self.peer}, {self._next_in} expected: replayed or lost")
            if number not in MessageKind._value2member_map_ or length > MAX_PAYLOAD:
                raise LinkError(f"message kind {number} of {length} bytes from {self.peer} is not declared; refused")
            kind = MessageKind(number)
            tag, payload = self._read(_TAG_SIZE), self._read(length)
        finally:
            self.waited += time.perf_counter() - started
        if not hmac.compare_digest(self._tag(self._in, sequence, header, payload), tag):
            raise LinkError(
                f"{kind.name} (message {sequence}) was changed on its way or is not from {self.peer}; refused"
            )
        self._next_in += 1
        self.received[kind] += len(header) + len(tag) + length
        if kind is MessageKind.ABORT:
            raise PeerLost(f"{self.peer} stopped: {Abort.decode(payload).reason}")
        if kinds and kind not in kinds:
            wanted = " or ".join(k.name for k in kinds)
            raise LinkError(f"{kind.name} from {self.peer} where {wanted} is due; refused")
        return Received(kind, level, iteration, payload)

    def abort(self, reason: str) -> None:
        """Tell the peer, in one line, why this party stops; never raises."""
        try:
            Abort(reason).send(self)
        except LinkError:
            return
        self.close()

    def close(self) -> None:
        """Send what is queued, then close the stream."""
        self._outbox.put(None)
        self._sender.join(timeout=5.0)
        with contextlib.suppress(OSError):  # the peer may have been faster
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def _tag(self, direction: bytes, sequence: int, *parts: Buffer) -> bytes:
        """AES-GMAC over the joined parts, which are not copied. Direction and sequence number are the nonce."""
        gmac = Cipher(self._aes, modes.GCM(direction + sequence.to_bytes(8, "big"))).encryptor()
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), _CHUNK):  # OpenSSL takes less than 2 GB at once
                gmac.authenticate_additional_data(view[start : start + _CHUNK])
        gmac.finalize()
        return gmac.tag

    def _read(self, size: int) -> memoryview:
        try:
            # Not zeroed: the system gives memory page by page as bytes come, none for a length that is forged.
            data = np.empty(size, np.uint8).data
        except MemoryError:
            raise LinkError(f"message of {size} bytes from {self.peer} does not fit into memory; refused") from None
        done = 0
        while done < size:
            try:
                got = self._stream.recv_into(data[done:], min(size - done, _CHUNK))
            except TimeoutError:
                raise self._lost(f"nothing arrived for {self._timeout:.0f} s") from None
            except OSError as error:
                raise self._lost(str(error)) from None
            if got == 0:
                raise self._lost("the connection was closed")
            done += got
        return data

    def _drain(self) -> None:
        while (parts := self._outbox.get()) is not None:
            try:
                for part in parts:
                    self._stream.sendall(part)
            except OSError as error:
                with self._changed:
                    self._broken = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._queued -= sum(memoryview(part).nbytes for part in parts[1:])
                self._changed.notify_all()
            del parts  # what is sent is memory no longer

    def _lost(self, why: str) -> PeerLost:
        return PeerLost(f"{self.me}: {self.peer} is gone ({why}); the run stops here and keeps what it has")


def _direction(sender: str) -> bytes:
    """The part of a nonce that says who sends: without it a party's own message, sent back, would have a good tag."""
    return hashlib.sha256(sender.encode()).digest()[:4]


def link_pair(me: str, peer: str, timeout: float = 600.0) -> tuple[Link, Link]:
    """Two connected Links inside one process, for tests of protocol code."""
    a, b = socket.socketpair()
    session, key = secrets.token_bytes(16), secrets.token_bytes(16)
    return Link(a, session, key, me, peer, timeout), Link(b, session, key, peer, me, timeout)
