"""Somebody between two parties who can read and write every byte, but has no key: what it changes is refused.

Each attack is also made on a naive link, which is framed the same and checks session, sequence number and kind, but has
no tag: there the attacks that need no more than care with the header succeed.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppir_torch.errors import LinkError, PeerLost
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link

HEADER = struct.Struct("<4s16sQhiHQ")
FIELDS = ("magic", "session", "sequence", "level", "iteration", "kind", "length")
TAG_SIZE = 16
PAYLOADS = [bytes([number]) * 40 for number in range(3)]


class NaiveLink:
    """One end of a link as ours would be without tags."""

    def __init__(self, stream: socket.socket, session: bytes, key: bytes, me: str, peer: str, timeout: float) -> None:  # noqa: ARG002
        self._stream, self._session, self._in, self._out = stream, session, 0, 0
        stream.settimeout(timeout)

    def send(self, kind: MessageKind, payload: bytes) -> None:
        self._stream.sendall(HEADER.pack(b"PPI1", self._session, self._out, 0, 0, kind, len(payload)) + payload)
        self._out += 1

    def receive(self, kind: MessageKind) -> Any:
        header = exactly(self._stream, HEADER.size)
        message = Caught(dict(zip(FIELDS, HEADER.unpack(header), strict=True)), b"", b"")
        expected = {"magic": b"PPI1", "session": self._session, "sequence": self._in, "kind": kind}
        if not expected.items() <= message.header.items() or message.header["length"] > 1 << 32:
            raise LinkError("refused")
        self._in += 1
        return replace(message, payload=exactly(self._stream, message.header["length"]))

    def close(self) -> None:
        self._stream.close()


def exactly(stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.recv(min(1 << 20, size - len(data)))
        if not part:
            raise PeerLost("closed")
        data += part
    return bytes(data)


@dataclass(frozen=True)
class Caught:
    """One message on its way."""

    header: dict[str, Any]
    payload: bytes
    tag: bytes

    def __bytes__(self) -> bytes:
        return HEADER.pack(*(self.header[name] for name in FIELDS)) + self.tag + self.payload

    def with_header(self, **fields: Any) -> Caught:
        return replace(self, header=self.header | fields)

    def with_payload(self, payload: bytes) -> Caught:
        return replace(self, payload=payload).with_header(length=len(payload))


class Middle:
    """party_1 and party_2, and all that passes between them goes through our hands."""

    def __init__(self, link: type[Link] | type[NaiveLink]) -> None:
        session, key = secrets.token_bytes(16), secrets.token_bytes(16)
        one, self._at_one = socket.socketpair()
        two, self._at_two = socket.socketpair()
        self._tag_size = TAG_SIZE if link is Link else 0
        self.session = session
        self.party_1 = link(one, session, key, "party_1", "party_2", 60.0)
        self.party_2 = link(two, session, key, "party_2", "party_1", 60.0)

    def caught(self, count: int, of: str = "party_1") -> list[Caught]:
        """The next messages that a party sent; they have not been passed on."""
        stream, messages = {"party_1": self._at_one, "party_2": self._at_two}[of], []
        for _ in range(count):
            header = dict(zip(FIELDS, HEADER.unpack(exactly(stream, HEADER.size)), strict=True))
            tag = exactly(stream, self._tag_size)
            messages.append(Caught(header, exactly(stream, header["length"]), tag))
        return messages

    def pass_on(self, data: bytes, to: str = "party_2") -> None:
        """All that a party will ever receive; then its connection ends."""
        stream = {"party_1": self._at_one, "party_2": self._at_two}[to]
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for end in (self.party_1, self.party_2, self._at_one, self._at_two):
            end.close()


@contextmanager
def between(link: type[Link] | type[NaiveLink]) -> Iterator[Middle]:
    with contextlib.closing(Middle(link)) as middle:
        yield middle


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def accepted(middle: Middle, of: Middle | None = None, attack: Attack | None = None) -> tuple[list[bytes], LinkError]:
    """party_1 sends three messages, we pass on what the attack makes of them: the payloads that party_2 takes."""
    source = middle if of is None else of
    for payload in PAYLOADS:
        source.party_1.send(MessageKind.OPENING, payload)
    messages = source.caught(len(PAYLOADS))
    middle.pass_on(b"".join(map(bytes, messages)) if attack is None else attack(messages))
    return taken(middle.party_2)


def taken(link: Link | NaiveLink) -> tuple[list[bytes], LinkError]:
    """What a party takes until it refuses, and why it does."""
    payloads: list[bytes] = []
    while True:
        try:
            payloads.append(bytes(link.receive(MessageKind.OPENING).payload))
        except LinkError as error:
            return payloads, error


# --- attacks ----------------------------------------------------------------------------------------------------------

Attack = Callable[[list[Caught]], bytes]
CHANGED = "was changed on its way or is not from party_1; refused"


def joined(*messages: Caught | bytes) -> bytes:
    return b"".join(map(bytes, messages))


def renumbered(*messages: Caught) -> bytes:
    """The sequence numbers as they would be due."""
    return joined(*(message.with_header(sequence=number) for number, message in enumerate(messages)))


# name -> the attack, how many messages are taken before it is noticed, and the line
REFUSED: dict[str, tuple[Attack, int, str]] = {
    "replay": (lambda m: joined(m[0], m[0], m[1]), 1, "message 0 from party_1, 1 expected: replayed or lost"),
    "replay as the next": (lambda m: renumbered(m[0], m[0], m[2]), 1, f"OPENING (message 1) {CHANGED}"),
    "reorder": (lambda m: joined(m[1], m[0], m[2]), 0, "message 1 from party_1, 0 expected"),
    "reorder and renumber": (lambda m: renumbered(m[1], m[0], m[2]), 0, f"OPENING (message 0) {CHANGED}"),
    "drop the first": (lambda m: joined(m[1], m[2]), 0, "message 1 from party_1, 0 expected"),
    "drop the second": (lambda m: joined(m[0], m[2]), 1, "message 2 from party_1, 1 expected"),
    "drop and renumber": (lambda m: renumbered(m[0], m[2]), 1, f"OPENING (message 1) {CHANGED}"),
    "shorten": (lambda m: joined(m[0].with_payload(m[0].payload[:-8]), m[1], m[2]), 0, CHANGED),
    "lengthen": (lambda m: joined(m[0].with_payload(m[0].payload + bytes(8)), m[1], m[2]), 0, CHANGED),
    "empty": (lambda m: joined(m[0].with_payload(b""), m[1], m[2]), 0, CHANGED),
    "cut bytes out": (lambda m: joined(bytes(m[0])[:70] + bytes(m[0])[78:], m[1], m[2]), 0, CHANGED),
    "another payload": (lambda m: joined(m[0], m[1].with_payload(m[0].payload), m[2]), 1, CHANGED),
    "another tag": (lambda m: joined(m[0], replace(m[1], tag=m[0].tag), m[2]), 1, CHANGED),
    "a tag of zeros": (lambda m: joined(replace(m[0], tag=bytes(TAG_SIZE))), 0, CHANGED),
    "no tag": (lambda m: joined(*(replace(message, tag=b"") for message in m)), 0, CHANGED),
    "payload into header": (lambda m: joined(m[0].with_header(length=39), m[1]), 0, CHANGED),
    "swallow the next": (lambda m: joined(m[0].with_header(length=60 + 40), m[1], m[2]), 0, CHANGED),
    "another kind": (
        lambda m: joined(m[0].with_header(kind=int(MessageKind.ABORT)), m[1]),
        0,
        f"ABORT (message 0) {CHANGED}",
    ),
    "another level": (lambda m: joined(m[0].with_header(level=1), m[1]), 0, CHANGED),
    "another iteration": (lambda m: joined(m[0].with_header(iteration=7), m[1]), 0, CHANGED),
    "another session": (lambda m: joined(m[0].with_header(session=bytes(16)), m[1]), 0, "belongs to another session"),
    "an undeclared kind": (lambda m: joined(m[0].with_header(kind=9999)), 0, "is not declared; refused"),
    "a length of 16 EB": (lambda m: joined(m[0].with_header(length=2**64 - 1)), 0, "is not declared; refused"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_done_to_messages_on_their_way_is_refused(name: str) -> None:
    attack, unharmed, line = REFUSED[name]
    with between(Link) as middle:
        payloads, error = accepted(middle, attack=attack)
    assert payloads == PAYLOADS[:unharmed]
    assert type(error) is LinkError
    assert line in str(error)
    assert "\n" not in str(error)


BYTES = dict(zip(FIELDS, (0, 4, 20, 28, 30, 34, 36), strict=True))
BYTES |= {"tag, first": 44, "tag, last": 59, "payload, first": 60, "payload, middle": 80, "payload, last": 99}


@pytest.mark.parametrize("name", BYTES)
def test_a_flipped_bit_of_every_sort_is_refused(name: str) -> None:
    with between(Link) as middle:
        payloads, error = accepted(middle, attack=lambda m: joined(m[0], flipped(bytes(m[1]), 8 * BYTES[name]), m[2]))
    assert payloads == PAYLOADS[:1]
    assert type(error) is LinkError
    assert "party_1" in str(error)


@given(bit=st.integers(0, 8 * (HEADER.size + 40 + TAG_SIZE) - 1))
@settings(deadline=None, max_examples=100)
def test_any_flipped_bit_is_refused(bit: int) -> None:
    """PeerLost where the flipped length waits for more than there is; what it waited for is not acted on."""
    with between(Link) as middle:
        payloads, error = accepted(middle, attack=lambda m: joined(m[0], flipped(bytes(m[1]), bit), m[2]))
    assert payloads == PAYLOADS[:1]
    assert type(error) is LinkError or (type(error) is PeerLost and 8 * 36 <= bit < 8 * 44)


@pytest.mark.parametrize("missing", [1, 39, 40, 41, 40 + TAG_SIZE, 40 + TAG_SIZE + 1, 40 + TAG_SIZE + HEADER.size])
def test_a_stream_cut_off_at_its_end_is_a_lost_peer(missing: int) -> None:
    with between(Link) as middle:
        payloads, error = accepted(middle, attack=lambda m: joined(*m)[:-missing])
    assert payloads == PAYLOADS[:-1]
    assert type(error) is PeerLost


def test_a_party_s_own_messages_sent_back_are_refused() -> None:
    with between(Link) as middle:
        middle.party_2.send(MessageKind.OPENING, b"my own share")
        middle.pass_on(joined(*middle.caught(1, "party_2")))
        payloads, error = taken(middle.party_2)
    assert payloads == []
    assert type(error) is LinkError
    assert CHANGED in str(error)


def test_messages_of_another_link_of_the_session_are_refused() -> None:
    """Its ends have the same names and session; only the key differs."""
    with between(Link) as middle, between(Link) as other:
        payloads, error = accepted(
            middle, of=other, attack=lambda m: joined(*(message.with_header(session=middle.session) for message in m))
        )
    assert payloads == []
    assert CHANGED in str(error)


def test_an_abort_that_the_peer_never_sent_is_refused() -> None:
    forged = HEADER.pack(b"PPI1", bytes(16), 0, -1, -1, MessageKind.ABORT, 4) + bytes(TAG_SIZE) + b"stop"
    with between(Link) as middle:
        middle.pass_on(forged.replace(bytes(16), middle.session, 1))
        payloads, error = taken(middle.party_2)
    assert payloads == []
    assert type(error) is LinkError
    assert "stop" not in str(error)


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [Link, NaiveLink])
def test_what_is_passed_on_untouched_arrives(link: type[Link] | type[NaiveLink]) -> None:
    with between(link) as middle:
        payloads, error = accepted(middle)
        assert payloads == PAYLOADS
        assert type(error) is PeerLost
        middle.party_2.send(MessageKind.OPENING, b"an answer")
        middle.pass_on(joined(*middle.caught(1, "party_2")), "party_1")
        assert taken(middle.party_1)[0] == [b"an answer"]


# What party_2 takes of each on a link without tags: all of it is what the attacker wanted.
NAIVE = {
    "replay as the next": [PAYLOADS[0], PAYLOADS[0], PAYLOADS[2]],
    "reorder and renumber": [PAYLOADS[1], PAYLOADS[0], PAYLOADS[2]],
    "drop and renumber": [PAYLOADS[0], PAYLOADS[2]],
    "shorten": [PAYLOADS[0][:-8], *PAYLOADS[1:]],
    "lengthen": [PAYLOADS[0] + bytes(8), *PAYLOADS[1:]],
    "empty": [b"", *PAYLOADS[1:]],
    "another payload": [PAYLOADS[0], PAYLOADS[0], PAYLOADS[2]],
    "another level": PAYLOADS[:2],
    "another iteration": PAYLOADS[:2],
}


@pytest.mark.parametrize("name", NAIVE)
def test_the_same_attack_succeeds_without_tags(name: str) -> None:
    with between(NaiveLink) as middle:
        payloads, _ = accepted(middle, attack=REFUSED[name][0])
    assert payloads == NAIVE[name]


def test_a_party_s_own_messages_are_taken_for_the_peer_s_without_tags() -> None:
    with between(NaiveLink) as middle:
        middle.party_2.send(MessageKind.OPENING, b"my own share")
        middle.pass_on(joined(*middle.caught(1, "party_2")))
        assert taken(middle.party_2)[0] == [b"my own share"]


@pytest.mark.parametrize("link", [Link, NaiveLink])
def test_masked_words_can_be_moved_by_who_cannot_read_them(link: type[Link] | type[NaiveLink]) -> None:
    """A mask hides a word and does not protect it: a bit flipped under the mask moves the result by a power of 2.

    Nothing about the changed words is odd, they are as uniform as before: without a tag the receiver cannot notice.
    """
    result, mask = np.array([1000, -5, 70_000], np.int64), np.frombuffer(secrets.token_bytes(24), np.int64)
    with between(link) as middle:
        middle.party_1.send(MessageKind.OPENING, (result ^ mask).tobytes())
        (message,) = middle.caught(1)
        middle.pass_on(joined(replace(message, payload=flipped(message.payload, 40))))
        payloads, error = taken(middle.party_2)
    if link is NaiveLink:
        assert (np.frombuffer(payloads[0], np.int64) ^ mask).tolist() == [1000 + 2**40, -5, 70_000]
    else:
        assert payloads == []
        assert CHANGED in str(error)
