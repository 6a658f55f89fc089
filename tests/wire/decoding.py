"""What every class of message must do, whichever room it lives in: tests of all rooms ask the same questions."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

from hypothesis import strategies as st

from ppir_torch.errors import LinkError
from ppir_torch.wire.messages import Message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def joined(message: Message) -> bytes:
    """A message's payload as it arrives."""
    return b"".join(bytes(part) for part in message.encode())


def decodes_or_refuses(kind: type[Message], payload: bytes) -> Message | None:
    """The message, or None where it is a LinkError of one line; any other error fails the test."""
    refusals = []
    try:
        message = kind.decode(memoryview(payload))
    except LinkError as error:
        refusals.append(str(error))
    if refusals:
        assert "\n" not in refusals[0]
        assert len(refusals[0]) < 600
        return None
    assert isinstance(message, kind)
    return message


def round_trips(message: Message) -> None:
    """decode(encode(m)) == m."""
    assert type(message).decode(memoryview(joined(message))) == message


@st.composite
def damaged(draw: st.DrawFn, payload: bytes) -> bytes:
    """A payload of `pack` with one of its values, its arrays' headers or its bytes changed."""
    (size,) = struct.unpack_from("<I", payload)
    head, content = json.loads(payload[4 : 4 + size]), payload[4 + size :]
    place, path = copy.deepcopy(head), []
    inner: Any = place
    while isinstance(inner, dict | list) and inner and (not path or draw(st.booleans())):
        key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        path.append((inner, key))
        inner = inner[key]
    holder, key = path[-1]
    if draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw(JSON)
    cut = draw(st.integers(0, len(content))) if draw(st.booleans()) else len(content)
    text = json.dumps(place).encode()
    return struct.pack("<I", len(text)) + text + content[:cut]
