"""The session's messages as classes: what is decoded is what was encoded, and nothing else is ever decoded."""

from __future__ import annotations

import inspect
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.decoding import JSON, damaged, decodes_or_refuses, joined, round_trips

from ppir_torch.errors import LinkError
from ppir_torch.wire import messages as module
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import link_pair
from ppir_torch.wire.messages import (
    Abort,
    Finish,
    Geometry,
    Hello,
    Message,
    OperandInUse,
    PointsRequest,
    SampleIndices,
    SharedTransform,
)
from ppir_torch.wire.payload import pack

CLASSES = [
    kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, Message) and kind is not Message
]
NUMBERS = st.floats(-1e6, 1e6)
NAMES = st.text(max_size=40)


def tuples(count: int) -> st.SearchStrategy[tuple[float, ...]]:
    return st.tuples(*[NUMBERS] * count)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    d = draw(st.sampled_from([2, 3]))
    size = draw(st.tuples(*[st.integers(1, 9)] * d))
    mask = None
    if draw(st.booleans()):
        mask = np.random.default_rng(draw(st.integers(0, 99))).random(int(np.prod(size))) < 0.5
    centre = draw(st.none() | tuples(d))
    plane = draw(st.just(()) | tuples(13))
    return Geometry(size, draw(tuples(d)), draw(tuples(d)), draw(tuples(d * d)), centre, mask, plane)


@st.composite
def finishes(draw: st.DrawFn) -> Finish:
    d = draw(st.sampled_from([2, 3]))
    matrix = [list(draw(tuples(d))) for _ in range(d)]
    linear = SharedTransform(matrix, list(draw(tuples(d))))
    table = np.random.default_rng(0).normal(size=(d, *range(2, 2 + d)))
    lattice = SharedTransform(matrix, linear.offset_mm, draw(NAMES), draw(tuples(d)), table)
    return draw(st.sampled_from([Finish(), Finish(linear), Finish(lattice if lattice.deformation else linear)]))


MESSAGES: dict[type[Message], st.SearchStrategy[Message]] = {
    Hello: st.builds(Hello, NAMES, NAMES),
    Geometry: geometries(),
    SampleIndices: st.sets(st.integers(0, 2**31 - 1), min_size=1, max_size=50).map(
        lambda points: SampleIndices(np.array(sorted(points), np.int64))
    ),
    OperandInUse: st.builds(OperandInUse, st.integers(0, 2**16 - 1)),
    PointsRequest: st.builds(PointsRequest, st.integers(0, 2**40), st.integers(2, 3)),
    Finish: finishes(),
    Abort: st.builds(Abort, st.text(max_size=2000)),
}


def test_every_class_of_message_is_tested_here() -> None:
    assert set(CLASSES) == set(MESSAGES)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_what_is_decoded_is_what_was_encoded(kind: type[Message]) -> None:
    @given(message=MESSAGES[kind])
    @settings(deadline=None, max_examples=60)
    def check(message: Message) -> None:
        round_trips(message)

    check()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_any_payload_is_the_message_or_a_link_error(kind: type[Message]) -> None:
    @given(payload=st.binary(max_size=200))
    @settings(deadline=None, max_examples=60)
    def check_bytes(payload: bytes) -> None:
        decodes_or_refuses(kind, payload)

    @given(meta=JSON, content=st.binary(max_size=32))
    @settings(deadline=None, max_examples=60)
    def check_values(meta: Any, content: bytes) -> None:
        head = json.dumps({"meta": meta, "arrays": [["|u1", [len(content)]]]}).encode()
        decodes_or_refuses(kind, struct.pack("<I", len(head)) + head + content)

    check_bytes()
    check_values()


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not Abort], ids=lambda kind: kind.__name__)
def test_a_damaged_payload_is_the_message_or_a_link_error(kind: type[Message]) -> None:
    @given(data=st.data(), message=MESSAGES[kind])
    @settings(deadline=None, max_examples=150)
    def check(data: st.DataObject, message: Message) -> None:
        decodes_or_refuses(kind, data.draw(damaged(joined(message))))

    check()


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not Abort], ids=lambda kind: kind.__name__)
def test_a_message_crosses_a_link_under_its_own_kind(kind: type[Message]) -> None:
    @given(message=MESSAGES[kind])
    @settings(deadline=None, max_examples=3)
    def check(message: Message) -> None:
        mine, theirs = link_pair("party_1", "party_2", timeout=60)
        message.send(mine)
        assert kind.receive(theirs) == message
        assert set(mine.sent) == {kind.kind}
        mine.close()
        theirs.close()

    check()


def test_messages_of_different_kinds_or_values_differ() -> None:
    assert Hello("1", "bfv") == Hello("1", "bfv")
    assert Hello("1", "bfv") != Hello("1", "ckks")
    assert hash(Hello("1", "bfv")) == hash(Hello("1", "bfv"))
    assert Finish() != Hello("1", "bfv")


def test_a_mask_that_is_announced_but_not_sent_allocates_nothing() -> None:
    grid = {"size": [1 << 20, 1 << 20], "spacing": [1.0] * 2, "origin": [0.0] * 2, "direction": [1.0, 0.0, 0.0, 1.0]}
    payload = b"".join(pack({"grid": grid, "centre_of_mass": None, "mask": True}, [np.zeros(8, np.uint8)]))
    with pytest.raises(LinkError, match="a bit a voxel"):
        Geometry.decode(payload)


@pytest.mark.parametrize("size", [[10**9] * 3, [1 << 41, 1]], ids=str)
def test_a_geometry_beyond_any_image_is_refused(size: list[int]) -> None:
    d = len(size)
    grid = {"size": size, "spacing": [1.0] * d, "origin": [0.0] * d, "direction": [1.0] * d * d}
    payload = b"".join(pack({"grid": grid, "centre_of_mass": None, "mask": False}))
    with pytest.raises(LinkError, match="voxels are allowed"):
        Geometry.decode(payload)


def test_a_long_reason_is_cut_between_characters() -> None:
    reason = Abort("a" * 999 + "äöü").reason
    assert reason == "a" * 999
    assert Abort("\udcff").reason == "?"


def test_a_reason_is_one_line_that_a_terminal_does_not_obey() -> None:
    assert Abort("the cap\r\nis\x1b[2J reached").reason == "the cap  is [2J reached"
    assert Abort.decode(b"one\ntwo").reason == "one two"


def test_kinds_of_extensions_are_set_up_or_part_of_a_product() -> None:
    assert MessageKind.EXTENSION_SET_UP.is_set_up
    assert MessageKind.OPERAND_IN_USE.is_set_up
    assert not any(
        kind.is_set_up
        for kind in (MessageKind.EXTENSION_REQUEST, MessageKind.EXTENSION_ANSWER, MessageKind.EXTENSION_DEALER)
    )
