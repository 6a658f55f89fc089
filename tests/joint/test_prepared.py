"""party_2's answers as messages: what is decoded is what was encoded, and nothing else is ever decoded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.decoding import damaged, decodes_or_refuses, joined, round_trips

from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.prepared import LARGEST_MM, PreparedOperand, PreparedPoints
from ppir_torch.wire.messages import Message

SIZES = st.floats(1e-6, 1e6)


@st.composite
def headers(draw: st.DrawFn, columns: int | None = None, one_scale: bool = False) -> OperandHeader:
    count = draw(st.integers(1, 5)) if columns is None else columns
    points, largest = draw(st.integers(1, 1 << 30)), draw(st.integers(1, 1 << 20))
    scales = [draw(SIZES)] * count if one_scale else [draw(SIZES) for _ in range(count)]
    return OperandHeader(
        number=draw(st.integers(0, 255)),
        points=points,
        rows=count if one_scale else draw(st.integers(1, 1024)),
        scale=scales[0],
        offset=draw(st.floats(-1e6, 1e6)),
        max_abs=largest,
        energy=draw(st.integers(0, points * largest**2)),
        columns=count,
        further_scales=tuple(scales[1:]),
    )


@st.composite
def operands(draw: st.DrawFn) -> PreparedOperand:
    header = draw(headers())
    gram = np.random.default_rng(header.points).normal(size=(header.columns, header.columns))
    return PreparedOperand(header, draw(SIZES), draw(SIZES), draw(st.sampled_from([None, gram])))


@st.composite
def points(draw: st.DrawFn) -> PreparedPoints:
    d = draw(st.sampled_from([2, 3]))
    centre = draw(st.tuples(*[st.floats(-LARGEST_MM, LARGEST_MM)] * d))
    return PreparedPoints(draw(headers(d, one_scale=True)), centre, draw(st.booleans()))


MESSAGES: dict[type[Message], Callable[[], st.SearchStrategy[Message]]] = {
    PreparedOperand: operands,
    PreparedPoints: points,
}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_what_is_decoded_is_what_was_encoded(kind: type[Message]) -> None:
    @given(message=MESSAGES[kind]())
    @settings(deadline=None, max_examples=60)
    def check(message: Message) -> None:
        round_trips(message)

    check()


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_a_damaged_payload_is_the_message_or_a_link_error(kind: type[Message]) -> None:
    @given(data=st.data(), message=MESSAGES[kind]())
    @settings(deadline=None, max_examples=200)
    def check(data: st.DataObject, message: Message) -> None:
        decodes_or_refuses(kind, data.draw(damaged(joined(message))))

    check()


def test_the_spread_is_told_or_not() -> None:
    header = OperandHeader(0, 60, 2, 0.5, 0.0, 100, 4000, columns=2, further_scales=(0.5,))
    assert PreparedPoints(header, (1.0, 2.0), True).spread == 1000
    assert PreparedPoints(header, (1.0, 2.0), False).spread is None
