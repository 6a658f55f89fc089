"""The Link: what crosses it, what it refuses, and that it counts the bytes that really went."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

import ppir_torch.wire.link as link_module
from ppir_torch.errors import LinkError, PeerLost
from ppir_torch.parties.accounting import peak_memory_mb
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, link_pair
from ppir_torch.wire.payload import pack, unpack

SESSION = bytes(range(16))
KEY = bytes(range(16, 32))
# The wire: magic, session, sequence, level, iteration, kind, payload length, little endian; then the tag; then the
# payload. The tag is that of AES-128-GCM for no text and header + payload as associated data; its nonce is the first 4
# bytes of the SHA-256 of the sender's name, then the sequence number, big endian.
HEADER = struct.Struct("<4s16sQhiHQ")
TAG_SIZE = 16


def wire(payload: bytes = b"", sender: str = "party_2", **fields: Any) -> bytes:
    values = {
        "magic": b"PPI1",
        "session": SESSION,
        "sequence": 0,
        "level": 1,
        "iteration": 2,
        "kind": int(MessageKind.HELLO),
    }
    values |= {"length": len(payload), **fields}
    header = HEADER.pack(*values.values())
    nonce = hashlib.sha256(sender.encode()).digest()[:4] + struct.pack(">Q", values["sequence"])
    return header + AESGCM(KEY).encrypt(nonce, b"", header + payload) + payload


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Link]]:
    """A raw socket and the Link at its other end."""
    raw, other = socket.socketpair()
    link = Link(other, SESSION, KEY, "party_1", "party_2", timeout=60.0)
    yield raw, link
    raw.close()
    link.close()


@pytest.fixture
def pair() -> Iterator[tuple[Link, Link]]:
    left, right = link_pair("party_1", "party_2", timeout=60.0)
    yield left, right
    left.close()
    right.close()


def refused(link: Link, *kinds: MessageKind, error: type[LinkError] = LinkError) -> str:
    with pytest.raises(LinkError) as caught:
        link.receive(*kinds)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert "party_2" in str(caught.value)
    return str(caught.value)


# --- what arrives


@pytest.mark.parametrize("kind", [k for k in MessageKind if k is not MessageKind.ABORT], ids=lambda k: k.name)
def test_every_declared_kind_arrives(kind: MessageKind, pair: tuple[Link, Link]) -> None:
    left, right = pair
    left.at(2, 17)
    left.send(kind, b"content")
    message = right.receive(kind)
    assert (message.kind, message.level, message.iteration, bytes(message.payload)) == (kind, 2, 17, b"content")


@given(parts=st.lists(st.binary(max_size=3000), max_size=5))
@settings(deadline=None, max_examples=50)
def test_the_parts_of_a_payload_arrive_joined(parts: list[bytes]) -> None:
    left, right = link_pair("party_1", "party_2", timeout=60.0)
    left.send(MessageKind.OPENING, parts)
    assert bytes(right.receive(MessageKind.OPENING).payload) == b"".join(parts)
    left.close()
    right.close()


def test_messages_arrive_in_order(pair: tuple[Link, Link]) -> None:
    left, right = pair
    for number in range(100):
        left.send(MessageKind.PRODUCT, bytes([number]))
    assert [right.receive(MessageKind.PRODUCT).payload[0] for _ in range(100)] == list(range(100))


@pytest.mark.parametrize("size", [0, 5, 2_600_000])
def test_the_wire_is_as_written_here(size: int, ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    payload = np.random.default_rng(size).bytes(size)
    sending = threading.Thread(target=raw.sendall, args=(wire(payload) + wire(payload, sequence=1),))
    sending.start()
    for _ in range(2):
        assert bytes(link.receive(MessageKind.HELLO).payload) == payload
    sending.join()
    link.at(3, 9)
    for number in range(2):
        link.send(MessageKind.GEOMETRY, payload)
        expected = wire(payload, "party_1", sequence=number, level=3, iteration=9, kind=int(MessageKind.GEOMETRY))
        assert raw.recv(len(expected), socket.MSG_WAITALL) == expected


def test_both_ends_may_send_much_at_once(pair: tuple[Link, Link]) -> None:
    # Far more than the socket's buffers hold: with blocking sends both would wait for ever.
    data = np.random.default_rng(0).bytes(1 << 24)
    for link in pair:
        link.send(MessageKind.OPENING, data)
    for link in pair:
        assert bytes(link.receive(MessageKind.OPENING).payload) == data


def test_a_message_may_arrive_in_pieces(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    data = wire(b"0123456789")

    def trickle() -> None:
        for start in range(0, len(data), 7):
            raw.sendall(data[start : start + 7])
            time.sleep(0.002)

    thread = threading.Thread(target=trickle)
    thread.start()
    assert bytes(link.receive(MessageKind.HELLO).payload) == b"0123456789"
    thread.join()


# --- what is refused


def test_another_session_is_refused(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(wire(session=bytes(16)))
    assert "another session" in refused(link)


def test_another_program_is_refused(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(b"GET / HTTP/1.1\r\nHost: somewhere\r\nUser-Agent: curl\r\n\r\n")
    assert "another session or program" in refused(link)


def test_a_replayed_message_is_refused(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(wire(b"once") * 2)
    link.receive(MessageKind.HELLO)
    assert "replayed or lost" in refused(link)


@pytest.mark.parametrize("sequence", [1, 2, 2**63])
def test_a_lost_or_reordered_message_is_refused(sequence: int, ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(wire(sequence=sequence))
    assert "0 expected" in refused(link)


@pytest.mark.parametrize("number", [0, 9, 30, 39, 65535])
def test_an_undeclared_kind_is_refused(number: int, ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(wire(kind=number))
    assert "not declared" in refused(link)


def test_a_kind_that_is_not_due_is_refused(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(wire(kind=int(MessageKind.SEED)))
    message = refused(link, MessageKind.LEVEL, MessageKind.FINISH)
    assert "SEED" in message
    assert "LEVEL or FINISH is due" in message


def test_an_oversized_message_is_refused_before_it_is_read(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(wire(length=2**63))
    assert "not declared" in refused(link)


def test_an_oversized_payload_is_not_sent(pair: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = pair
    monkeypatch.setattr(link_module, "MAX_PAYLOAD", 100)
    with pytest.raises(LinkError, match="101 bytes"):
        left.send(MessageKind.OPENING, [bytes(100), bytes(1)])
    left.send(MessageKind.OPENING, bytes(100))
    assert len(right.receive(MessageKind.OPENING).payload) == 100
    assert left.bytes_sent == HEADER.size + 100 + TAG_SIZE


def test_a_length_alone_allocates_nothing(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(wire(bytes(1000), length=1 << 32))
    raw.close()
    before = peak_memory_mb()
    refused(link, error=PeerLost)
    assert peak_memory_mb() < before + 100


def test_a_message_that_does_not_fit_into_memory_is_refused(
    ends: tuple[socket.socket, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, link = ends
    raw.sendall(wire(length=1 << 32))
    empty = np.empty

    def small_machine(size: int, *rest: Any) -> Any:
        if size > 1 << 20:
            raise MemoryError
        return empty(size, *rest)

    monkeypatch.setattr(np, "empty", small_machine)
    assert "4294967296 bytes from party_2 does not fit into memory" in refused(link)


@pytest.mark.parametrize("kept", [0, 1, HEADER.size - 1, HEADER.size, HEADER.size + TAG_SIZE, -1])
def test_a_stream_that_ends_early_is_a_lost_peer(kept: int, ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    raw.sendall(wire(b"content")[:kept])
    raw.close()
    assert "connection was closed" in refused(link, MessageKind.HELLO, error=PeerLost)


def test_a_silent_peer_is_lost_after_the_timeout() -> None:
    raw, other = socket.socketpair()
    link = Link(other, SESSION, KEY, "party_1", "party_2", timeout=0.1)
    raw.sendall(wire())
    link.receive(MessageKind.HELLO)
    assert "nothing arrived" in refused(link, MessageKind.HELLO, error=PeerLost)
    assert link.waited >= 0.1
    raw.close()
    link.close()


def test_a_peer_that_stops_halfway_through_a_message_is_lost() -> None:
    raw, other = socket.socketpair()
    link = Link(other, SESSION, KEY, "party_1", "party_2", timeout=0.1)
    raw.sendall(wire(b"content")[:-1])
    refused(link, MessageKind.HELLO, error=PeerLost)
    raw.close()
    link.close()


def test_abort_carries_its_reason(pair: tuple[Link, Link]) -> None:
    left, right = pair
    right.abort("data.fixed: no such file")
    assert "stopped: data.fixed: no such file" in refused(left, MessageKind.LEVEL, error=PeerLost)


def test_sending_to_a_peer_that_is_gone_ends_with_peer_lost() -> None:
    left, right = link_pair("party_1", "party_2", timeout=60.0)
    right.close()
    deadline = time.monotonic() + 60

    def send_on() -> None:
        while time.monotonic() < deadline:
            left.send(MessageKind.OPENING, bytes(1000))
            time.sleep(0.001)

    with pytest.raises(PeerLost, match="party_2 is gone"):
        send_on()
    left.abort("never raises")
    left.close()


def test_what_was_sent_before_closing_still_arrives(pair: tuple[Link, Link]) -> None:
    left, right = pair
    left.send(MessageKind.FINISH, bytes(1 << 16))
    left.close()
    assert len(right.receive(MessageKind.FINISH).payload) == 1 << 16


@given(junk=st.binary(min_size=1, max_size=300), after=st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_bytes_on_the_wire_are_a_link_error(junk: bytes, after: bool) -> None:
    raw, other = socket.socketpair()
    link = Link(other, SESSION, KEY, "party_1", "party_2", timeout=60.0)
    raw.sendall((wire() if after else b"") + junk)
    raw.close()
    if after:
        link.receive(MessageKind.HELLO)
    with pytest.raises(LinkError):
        link.receive()
    link.close()


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_session_or_key_of_another_length_is_refused(size: int) -> None:
    a, b = socket.socketpair()
    with pytest.raises(ValueError, match="16 needed"):
        Link(a, bytes(size), KEY, "party_1", "party_2")
    with pytest.raises(ValueError, match="16 needed"):
        Link(a, SESSION, bytes(size), "party_1", "party_2")
    a.close()
    b.close()


def test_both_ends_of_one_name_are_refused() -> None:
    a, b = socket.socketpair()
    with pytest.raises(ValueError, match="two names that differ"):
        Link(a, SESSION, KEY, "party_1", "party_1")
    a.close()
    b.close()


def test_threads_that_send_at_once_never_share_a_sequence_number(pair: tuple[Link, Link]) -> None:
    """A number is a nonce; two messages under one nonce would give the tag key away."""
    left, right = pair

    def send(who: int) -> None:
        for _ in range(100):
            left.send(MessageKind.PRODUCT, bytes([who]))

    threads = [threading.Thread(target=send, args=(who,)) for who in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        got = Counter(right.receive(MessageKind.PRODUCT).payload[0] for _ in range(400))
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert got == dict.fromkeys(range(4), 100)


# --- bytes


def test_counted_bytes_are_those_in_the_socket(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    link.send(MessageKind.HELLO)
    link.send(MessageKind.OPERAND, [b"abc", b"", b"defg"])
    link.send(MessageKind.PRODUCT, pack({"a": 1}, [np.arange(1000)]))
    link.close()
    received = b""
    while part := raw.recv(1 << 16):
        received += part
    assert link.bytes_sent == len(received)
    assert link.set_up_bytes_sent == 2 * (HEADER.size + TAG_SIZE) + 7
    assert sum(link.sent.values()) == len(received)


def test_what_one_end_sends_the_other_counts_as_received(pair: tuple[Link, Link]) -> None:
    left, right = pair
    for kind, size in ((MessageKind.LEVEL, 10), (MessageKind.PRODUCT, 1000), (MessageKind.PRODUCT, 0)):
        left.send(kind, bytes(size))
        right.receive(kind)
    assert right.received == left.sent
    assert right.bytes_sent == 0


# --- payloads

ARRAYS = [
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.array(2.5),
    np.zeros((0, 4), np.float32),
    np.arange(5, dtype=np.uint8),
    np.arange(12, dtype=">i4").reshape(3, 4).T,
    np.zeros((2, 0)),
]


def test_values_and_arrays_round_trip() -> None:
    meta = {"text": "äöü", "number": 1.5, "nested": [1, None, {"a": True}]}
    got, arrays = unpack(b"".join(pack(meta, ARRAYS)))
    assert got == meta
    assert len(arrays) == len(ARRAYS)
    for got_array, array in zip(arrays, ARRAYS, strict=True):
        np.testing.assert_array_equal(got_array, array)
        assert (got_array.dtype, got_array.shape) == (array.dtype, array.shape)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def payload_of(head: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<I", len(head)) + head + content


def unpacks_or_refuses(payload: bytes) -> None:
    """Any payload is (a mapping, arrays) or a LinkError."""
    try:
        meta, arrays = unpack(payload)
    except LinkError:
        return
    assert isinstance(meta, dict)
    assert all(isinstance(a, np.ndarray) and a.dtype.kind in "iuf" for a in arrays)
    assert sum(a.nbytes for a in arrays) <= len(payload)


@given(payload=st.binary(max_size=400))
@settings(deadline=None)
def test_random_bytes_unpack_or_are_refused(payload: bytes) -> None:
    unpacks_or_refuses(payload)


@given(head=JSON, content=st.binary(max_size=40))
@settings(deadline=None)
def test_random_json_unpacks_or_is_refused(head: Any, content: bytes) -> None:
    unpacks_or_refuses(payload_of(json.dumps(head).encode(), content))


DTYPES = st.sampled_from(["<i8", "|u1", "<f4", "|O", "|V8", "<U4", "<M8[s]", "|b1", "i4,i4", "3i4", "", "("])
SHAPES = st.lists(st.one_of(st.integers(-2, 5), st.integers(), st.floats(), st.text(max_size=2)), max_size=4)


@given(
    meta=JSON,
    arrays=st.lists(st.tuples(st.one_of(DTYPES, JSON), st.one_of(SHAPES, JSON)), max_size=3),
    content=st.binary(max_size=64),
)
@settings(deadline=None, max_examples=300)
def test_random_array_headers_unpack_or_are_refused(meta: Any, arrays: list[Any], content: bytes) -> None:
    unpacks_or_refuses(payload_of(json.dumps({"meta": meta, "arrays": arrays}).encode(), content))


def head(arrays: Any, meta: Any = None) -> bytes:
    return json.dumps({"meta": {} if meta is None else meta, "arrays": arrays}).encode()


MALFORMED = {
    "nothing": b"",
    "half a length": b"\x01\x00",
    "a head that is not there": struct.pack("<I", 100),
    "no JSON": payload_of(b"{"),
    "no text": payload_of(b"\xff\xfe"),
    "deeply nested JSON": payload_of(b"[" * 100_000),
    "a list": payload_of(b"[]"),
    "no arrays": payload_of(b'{"meta": {}}'),
    "no meta": payload_of(b'{"arrays": []}'),
    "meta that is no mapping": payload_of(head([], meta=[1])),
    "objects": payload_of(head([["|O", [1]]]), bytes(8)),
    "records": payload_of(head([["i4,i4", [1]]]), bytes(8)),
    "too few bytes": payload_of(head([["<i8", [2]]]), bytes(15)),
    "too many bytes": payload_of(head([["<i8", [2]]]), bytes(17)),
    "a negative axis": payload_of(head([["<i8", [-1]]]), bytes(8)),
    "a size beyond 64 bits": payload_of(head([["<i8", [2**70]]]), bytes(8)),
    "a size that wraps to 0": payload_of(head([["<i8", [2**32, 2**32]]])),
    "a size that wraps to -1": payload_of(head([["<i8", [3 * 5 * 17 * 257 * 641, 65537 * 6700417]]]), bytes(8)),
    "a fractional axis": payload_of(head([["<i8", [1.5]]]), bytes(8)),
    "a hundred axes": payload_of(head([["<i8", [1] * 100]]), bytes(8)),
}


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED)
def test_malformed_payloads_are_one_line(payload: bytes) -> None:
    with pytest.raises(LinkError, match="malformed payload") as caught:
        unpack(payload)
    assert "\n" not in str(caught.value)


def test_settling_waits_until_what_was_sent_is_on_its_way(pair: tuple[Link, Link]) -> None:
    left, right = pair
    settled = threading.Event()

    def settle() -> None:
        left.settle(1000)
        settled.set()

    left.settle(0)  # nothing was sent
    left.send(MessageKind.LEVEL, bytes(1 << 24))  # far more than a socket holds
    thread = threading.Thread(target=settle, daemon=True)
    thread.start()
    assert not settled.wait(0.2)
    assert len(right.receive(MessageKind.LEVEL).payload) == 1 << 24
    assert settled.wait(60)
    thread.join(60)


def test_nobody_waits_for_a_broken_stream(ends: tuple[socket.socket, Link]) -> None:
    raw, link = ends
    link.send(MessageKind.LEVEL, bytes(1 << 24))
    raw.close()
    link.settle(0)
    refused(link, MessageKind.LEVEL, error=PeerLost)
