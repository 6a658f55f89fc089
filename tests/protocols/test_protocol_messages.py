"""Messages of beaver, spdz and ckks-v1: what is written is read again, and what is not one is refused in one line."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from ppir_torch.errors import LinkError
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.protocols import beaver_messages as beaver
from ppir_torch.protocols import ckks_v1, dealing
from ppir_torch.protocols import spdz_messages as spdz
from ppir_torch.protocols.crypten_link import Opening
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import link_pair
from ppir_torch.wire.messages import Message
from ppir_torch.wire.payload import pack

MAP = PublicMap((3, 2), (np.array([[1], [2], [1]]), np.array([[4, 0], [0, 4]])), 2.0, torch.tensor([0, 2, 5]), 2)
FILE = np.arange(40, dtype=np.uint8)
MESSAGES: dict[str, Message] = {
    "key of the dealer": dealing.DealerKey(bytes(range(16))),
    "share of the results": dealing.ResultShare.of(torch.tensor([-1, 7]), 48),
    "correction": dealing.Correction.of(torch.tensor([3, 4]), 64),
    "request of beaver": beaver.TripleRequest(3, 7, 2, 1000, 40),
    "mapped request of beaver": beaver.TripleRequest(0, 4, 1, 64, 32, mapped=True),
    "map": beaver.MapOfProducts(MAP),
    "opened operand": beaver.OpenedOperand.of(torch.arange(6), 32),
    "masked rows": beaver.MaskedRows(5, 2, [(0, 1), (1, 0)], None, [bytes(24)]),
    "masked rows for sums": beaver.MaskedRows(0, 2, [(0, 1), (1, 0)], [0, 0], [bytes(24)]),
    "key of zeros": spdz.ZeroKey(bytes(16)),
    "request of spdz": spdz.TripleRequest(7, 1000, 2),
    "mapped request of spdz": spdz.TripleRequest(4, 64, 1, mapped=True),
    "product": spdz.ProductRequest(2, 1000, [(0, 0), (1, 2)]),
    "product of sums": spdz.ProductRequest(2, 1000, [(0, 0), (1, 2)], [1, 0]),
    "mapped product": spdz.ProductRequest(4, 64),
    "opening": Opening.of(torch.arange(3), 64),
    "rotation keys": ckks_v1.GaloisKeys(b"keys"),
    "vectors": ckks_v1.OperandVectors([FILE, FILE[:3]]),
    "reply": ckks_v1.NaiveReply([(0, 0), (1, 0)], np.array([3, 25], np.uint8), [FILE]),
    "result": ckks_v1.NaiveResult(np.array([1.5, -(2.0**61)])),
}
every_message = pytest.mark.parametrize("name", MESSAGES)


@every_message
def test_what_is_written_is_read_again(name: str) -> None:
    message = MESSAGES[name]
    one, two = link_pair("party_1", "party_2")
    message.send(one)
    assert type(message).receive(two) == message
    assert set(one.sent) == {message.kind}


@every_message
def test_no_part_and_no_change_of_a_message_does_more_than_raise_a_link_error(name: str) -> None:
    """Whatever arrives: another message or a clear line, never another error."""
    message = MESSAGES[name]
    payload, draw = b"".join(bytes(part) for part in message.encode()), np.random.default_rng(0)
    others = [payload[:size] for size in range(0, len(payload), max(1, len(payload) // 20))]
    for place in draw.integers(0, len(payload), 40).tolist():
        changed = bytearray(payload)
        changed[place] ^= 1 << int(draw.integers(8))
        others.append(bytes(changed))
    for other in others:
        with contextlib.suppress(LinkError):
            type(message).decode(memoryview(other))


REFUSED: dict[str, tuple[type[Message], Any, str]] = {
    "a key of 15 bytes": (dealing.DealerKey, bytes(15), "SEED: 15 bytes where a key of 16 is due"),
    "a request with an array": (
        beaver.TripleRequest,
        pack({"operand": 0, "rows": 1, "columns": 1, "points": 1, "width": 40, "mapped": False}, [FILE]),
        "out of range; refused",
    ),
    "a request of too many words": (
        beaver.TripleRequest,
        pack({"operand": 0, "rows": 1 << 20, "columns": 1, "points": 1 << 20, "width": 40, "mapped": False}),
        "out of range; refused",
    ),
    "a mapped request of two columns": (
        spdz.TripleRequest,
        pack({"rows": 4, "points": 64, "columns": 2, "mapped": True}),
        "is not the shape of a product; refused",
    ),
    "a result of a number and a half": (ckks_v1.NaiveResult, bytes(12), "12 bytes, 8 a number are due"),
    "a result that is no number": (ckks_v1.NaiveResult, np.array([np.nan]).tobytes(), "numbers below 2\\^62 are due"),
    "keys of no bytes": (ckks_v1.GaloisKeys, b"", "GALOIS_KEYS: 0 bytes"),
    "a vector of no bytes": (ckks_v1.OperandVectors, pack({}, [FILE[:0]]), "is not a vector; refused"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_none_is_refused_in_one_line(case: str) -> None:
    kind, payload, match = REFUSED[case]
    parts = payload if isinstance(payload, list) else [payload]
    with pytest.raises(LinkError, match=match):
        kind.decode(memoryview(b"".join(bytes(part) for part in parts)))


def test_words_of_another_number_are_refused() -> None:
    share = dealing.ResultShare.decode(memoryview(bytes(12)))
    assert share.words(2, 48).tolist() == [0, 0]
    with pytest.raises(LinkError, match="12 bytes where 3 words of 48 bits are due; refused"):
        share.words(3, 48)


def test_kinds_are_the_protocols_own() -> None:
    assert dealing.ResultShare.kind is MessageKind.RESULT_SHARE
    assert {type(message).kind for message in MESSAGES.values()} >= {
        MessageKind.MASKED_ROWS,
        MessageKind.PRODUCT,
        MessageKind.NAIVE_REPLY,
    }


@pytest.mark.parametrize(("pairs", "sums"), [((1 << 16) + 1, None), (1 << 20, 1 << 20), (2, 1), (1, 2)])
def test_more_pairs_than_any_product_has_are_refused_before_they_are_read(pairs: int, sums: int | None) -> None:
    arrays = [np.zeros((pairs, 2), np.uint16), *([] if sums is None else [np.zeros(sums, np.uint16)])]
    with pytest.raises(LinkError, match="pairs and sums, as many of each and at most 65536 are due; refused"):
        dealing.read_asked(arrays, MessageKind.PRODUCT)
