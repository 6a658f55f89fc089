"""Messages of the encrypted protocols: what is encoded is decoded, and what is not of the agreed form is refused."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch

from ppir_torch.errors import LinkError
from ppir_torch.protocols.lattice.bfv_coefficients import BfvReply, BfvResult
from ppir_torch.protocols.lattice.ciphers import OperandCiphertexts, PublicKey
from ppir_torch.protocols.lattice.ckks_coefficients import CkksReply, CkksResult
from ppir_torch.protocols.lattice.coefficient_sides import CoefficientReply
from ppir_torch.protocols.lattice.packing import DEGREE, Layout
from ppir_torch.protocols.lattice.slot_sides import SlotReplies, SlotResult
from ppir_torch.protocols.lattice.slots import SLOT_MODULUS
from ppir_torch.wire.messages import Message

RESULTS: list[Any] = [
    BfvResult(np.array([0, 1, (1 << 37) - 1], np.uint64)),
    CkksResult(np.array([[0, 1], [1 << 58, 5]], np.uint64)),
    SlotResult(torch.tensor([0, 7, SLOT_MODULUS - 1])),
]
replies = pytest.mark.parametrize("kind", [BfvReply, CkksReply])


def payload_of(message: Message) -> bytes:
    return b"".join(bytes(part) for part in message.encode())


def reply(kind: type[CoefficientReply], sums: list[int] | None = None) -> CoefficientReply:
    """Three words of two polynomials."""
    draw, primes = np.random.default_rng(1), len(kind.primes())
    c0 = draw.integers(0, 1 << 59, (3, primes)).astype(np.uint64)
    c1 = draw.integers(0, 1 << 59, (2, primes, DEGREE)).astype(np.uint64)
    places = np.array([(0, 0), (1, 3), (0, 2)], np.uint16)
    return kind(c0, places, c1, None if sums is None else np.array(sums, np.uint16))


@replies
@pytest.mark.parametrize("sums", [None, [0, 1, 0]])
def test_a_reply_is_read_as_it_was_written(kind: type[CoefficientReply], sums: list[int] | None) -> None:
    sent = reply(kind, sums)
    found = kind.decode(memoryview(payload_of(sent)), most=3, group=4)
    assert found == sent
    assert np.array_equal(found.c0, sent.c0)
    assert np.array_equal(found.places, sent.places)
    assert np.array_equal(np.stack(found.c1), sent.c1)
    assert found.targets.tolist() == ([0, 1, 2] if sums is None else sums)
    assert found.results == (3 if sums is None else 2)


@replies
def test_a_reply_beyond_what_was_agreed_is_refused(kind: type[CoefficientReply]) -> None:
    good = payload_of(reply(kind))
    with pytest.raises(LinkError, match="3 words"):
        kind.decode(good, most=2, group=4)
    with pytest.raises(LinkError, match="beyond the polynomials"):
        kind.decode(good, most=3, group=3)
    for sums in ((0, 2, 0), (1, 1, 1), (65535, 0, 0)):
        with pytest.raises(LinkError, match="sums"):
            kind.decode(good + struct.pack("<3H", *sums), most=3, group=4)


@replies
@pytest.mark.parametrize(("count", "polynomials"), [(1 << 32, 1), (1 << 31, 1 << 31), (3, (1 << 32) - 1), (0, 0)])
def test_a_reply_that_announces_more_than_it_brings_is_refused(
    kind: type[CoefficientReply], count: int, polynomials: int
) -> None:
    """Whatever its head says: before anything of that size is allocated."""
    head = struct.pack("<II", count & 0xFFFFFFFF, polynomials)
    with pytest.raises(LinkError, match="REPLY_CIPHERTEXTS"):
        kind.decode(head + payload_of(reply(kind))[8:])


@pytest.mark.parametrize("message", RESULTS, ids=lambda m: type(m).__name__)
def test_a_result_is_read_as_it_was_written(message: Message) -> None:
    assert type(message).decode(memoryview(payload_of(message))) == message


@pytest.mark.parametrize("message", RESULTS, ids=lambda m: type(m).__name__)
def test_a_result_of_odd_length_or_of_words_out_of_range_is_refused(message: Message) -> None:
    good = payload_of(message)
    for bad in (b"", good[:-1], good + b"\0", b"\xff" * len(good)):
        with pytest.raises(LinkError):
            type(message).decode(memoryview(bad))


def test_keys_and_ciphertexts_are_read_as_they_were_written() -> None:
    assert PublicKey.decode(payload_of(PublicKey(b"key"))).file == b"key"
    files = [bytes([number]) * (number + 1) for number in range(16)]
    assert OperandCiphertexts.decode(payload_of(OperandCiphertexts(files))).files == files


def test_keys_and_ciphertexts_that_are_too_long_or_too_many_are_refused() -> None:
    for key in (b"", bytes((1 << 20) + 1)):
        with pytest.raises(LinkError, match="PUBLIC_KEY"):
            PublicKey.decode(key)
    for files in ([b"a"] * 17, [b""], [bytes((1 << 18) + 1)]):
        with pytest.raises(LinkError, match="OPERAND_CIPHERTEXTS"):
            OperandCiphertexts.decode(payload_of(OperandCiphertexts(files)))


def test_replies_with_slots_are_as_many_as_are_due_and_at_most_four() -> None:
    payload = payload_of(SlotReplies([b"abc", b"def", b"ghi", b"jkl"]))
    for due in (4, 5, 100):
        assert [bytes(r) for r in SlotReplies.decode(payload, due, 3).replies] == [b"abc", b"def", b"ghi", b"jkl"]
    assert [bytes(r) for r in SlotReplies.decode(payload).replies] == [payload]
    for due, size in ((3, 3), (4, 4), (1, 3)):
        with pytest.raises(LinkError, match="REPLY_CIPHERTEXTS"):
            SlotReplies.decode(payload, due, size)


def test_blocks_of_a_column_that_hold_some_points() -> None:
    layout = Layout(group=4, block=2048, blocks=5, columns=2)
    assert layout.blocks_with(None) == [0, 1, 2, 3, 4]
    assert layout.blocks_with(torch.tensor([2047, 2048, 9000, 2049])) == [0, 1, 4]
    assert layout.ciphertexts == 10
    assert [layout.position(place) for place in range(4)] == [2047, 4095, 6143, 8191]
