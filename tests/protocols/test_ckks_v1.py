"""ckks-v1, the insecure baseline: about right, and as strict as the others with what it receives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tenseal
import torch
from joint.ends import OVERHEAD, header_of, python_products
from torch import Tensor

from ppir_torch.config.protocols import PROTOCOLS
from ppir_torch.errors import LinkError, RangeError
from ppir_torch.joint.bounds import Pairs, all_pairs
from ppir_torch.joint.interface import FixedOperand, MovingOperand, Release, release_all
from ppir_torch.protocols import ckks_v1, load_protocol
from ppir_torch.protocols.ckks_v1 import CkksV1FixedSide, CkksV1MovingSide
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Received, link_pair
from ppir_torch.wire.payload import pack, unpack

TOLERANCE = 5e-5  # of |X|_2 |Y|_2, ten standard deviations; a rescale in between is off by 1e-3 of R


class Parties:
    """Both ends in one process; party_2 answers in a thread."""

    def __init__(self) -> None:
        self.links = link_pair("party_1", "party_2", timeout=120.0)
        self.moving_side, self.fixed_side = CkksV1MovingSide(self.links[0]), CkksV1FixedSide(self.links[1])
        self.moving: MovingOperand
        self.fixed: FixedOperand

    def send(self, values: Tensor, rows: int, number: int = 0) -> None:
        header = header_of(values, rows, number)
        self.fixed = self.fixed_side.open(header, values)
        self.moving = self.moving_side.open(header)

    def multiply(self, rows: Tensor, pairs: Pairs | None = None, release: Release = release_all) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(lambda: self.fixed.answer(self.links[1].receive(), release))
            result = self.moving.multiply(rows, pairs)
            answered.result()
        assert result.dtype == torch.int64
        return result


def errors(found: Tensor, rows: Tensor, values: Tensor, pairs: Pairs | None = None) -> Tensor:
    """Relative to |X|_2 |Y|_2."""
    table = values.reshape(-1, values.shape[-1])
    pairs = pairs or all_pairs(len(rows), len(table))
    exact = torch.tensor(python_products(rows, values, pairs), dtype=torch.float64)
    sizes = torch.stack([rows[r].double().norm() * table[c].double().norm() for r, c in pairs])
    return (found.double() - exact).abs() / sizes.clamp(min=1)


def uniform(seed: int, bound: int, *shape: int) -> Tensor:
    return torch.randint(-bound, bound + 1, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def parties() -> Parties:
    """Keys take seconds to make; the operand has two columns of two vectors, the last of them not full."""
    parties = Parties()
    parties.send(VALUES, 4)
    return parties


VALUES = uniform(0, 2000, 2, 200)


def test_products_are_about_right(parties: Parties) -> None:
    rows = uniform(1, 1 << 14, 4, 200)
    rows[1], rows[2, :128] = 0, 0
    before = parties.links[0].sent.copy(), parties.links[1].sent.copy()
    assert errors(parties.multiply(rows), rows, VALUES).max() < TOLERANCE
    up, down = (link.sent - b for link, b in zip(parties.links, before, strict=True))
    assert set(up) == {MessageKind.NAIVE_REPLY}
    assert set(down) == {MessageKind.NAIVE_RESULT}
    assert down.total() == OVERHEAD + 8 * 8
    # Rotation keys are sent once and counted.
    assert 8e6 < parties.links[1].sent[MessageKind.GALOIS_KEYS] < 12e6


def test_pairs_and_noise(parties: Parties) -> None:
    rows, pairs, noise = (
        uniform(2, ckks_v1.LIMITS.max_row, 3, 200),
        [(2, 1), (0, 1)],
        torch.tensor([1 << 46, -(1 << 45)]),
    )
    counts = []

    def release(count: int) -> Tensor:
        counts.append(count)
        return noise

    found = parties.multiply(rows, pairs, release)
    assert errors(found - noise, rows, VALUES, pairs).max() < TOLERANCE
    assert counts == [2]


def test_a_second_operand_uses_the_same_keys(parties: Parties) -> None:
    values, rows = uniform(3, 1 << 20, 130), uniform(4, 1 << 20, 3, 130)
    parties.send(values, 3, number=1)
    assert errors(parties.multiply(rows), rows, values).max() < TOLERANCE
    parties.send(VALUES, 4, number=2)
    assert parties.links[1].sent[MessageKind.GALOIS_KEYS] < 12e6


def test_refused_before_anything_is_sent(parties: Parties) -> None:
    sent, ones = parties.links[0].sent.copy(), torch.ones(4, 200, dtype=torch.int64)
    for bad in (ones * ((1 << 24) + 1), ones[:, :1], ones.int(), torch.ones(5, 200, dtype=torch.int64)):
        with pytest.raises(RangeError):
            parties.moving.multiply(bad)
    with pytest.raises(LinkError, match="refused"):
        parties.moving.multiply(ones, [(0, 2)])
    assert parties.links[0].sent == sent
    with pytest.raises(RangeError, match="at most"):
        Parties().send(torch.ones(1, dtype=torch.int64), 5000)


def test_malformed_replies_are_refused(parties: Parties) -> None:
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(parties.moving.multiply, torch.ones(1, 200, dtype=torch.int64))
        good = unpack(parties.links[1].receive(MessageKind.NAIVE_REPLY).payload)[1]
        parties.links[1].send(MessageKind.NAIVE_RESULT, bytes(16))
        assert sending.result().tolist() == [0, 0]
    pairs, exponents, first, second = good
    bad = [
        [],
        [pairs, exponents],
        [pairs, exponents, first],
        [pairs.astype(np.int64), exponents, first, second],
        [pairs, exponents.astype(np.float64), first, second],
        [pairs[:, :1], exponents, first, second],
        [pairs, exponents + np.uint8(26), first, second],
        [pairs + np.uint16(1), exponents, first, second],
        [pairs[[0, 0]], exponents, first],
        [pairs, np.repeat(exponents, 3), first, second],
        [pairs, exponents, first[:-1000], second],
        [pairs, exponents, first[:0], second],
        [pairs, exponents, np.zeros(1000, np.uint8), second],
        [pairs, exponents, np.zeros(1 << 19, np.uint8), second],
    ]
    sent = parties.links[1].sent.copy()
    for arrays in bad:
        payload = memoryview(b"".join(bytes(part) for part in pack({}, arrays)))
        with pytest.raises(LinkError):
            parties.fixed.answer(Received(MessageKind.NAIVE_REPLY, 0, 0, payload), release_all)
    with pytest.raises(LinkError):
        parties.fixed.answer(Received(MessageKind.REPLY_CIPHERTEXTS, 0, 0, memoryview(b"")), release_all)
    assert parties.links[1].sent == sent


@pytest.mark.parametrize("answer", [bytes(7), np.array([np.nan]).tobytes()])
def test_malformed_answers_are_refused(parties: Parties, answer: bytes) -> None:
    parties.links[1].send(MessageKind.NAIVE_RESULT, answer)
    with pytest.raises(LinkError, match="NAIVE_RESULT"):
        parties.moving.multiply(torch.ones(1, 200, dtype=torch.int64), [(0, 0)])
    parties.links[1].receive(MessageKind.NAIVE_REPLY)


def test_malformed_keys_are_refused() -> None:
    context = ckks_v1.new_context()
    with_secret_key = context.serialize(True, True, False, False)
    without_rotations = context.serialize(True, False, False, False)
    for key in (b"", b"123", bytes(1 << 25), without_rotations, with_secret_key):
        party_1, party_2 = link_pair("party_1", "party_2", timeout=120.0)
        party_2.send(MessageKind.GALOIS_KEYS, key)
        with pytest.raises(LinkError, match="GALOIS_KEYS"):
            CkksV1MovingSide(party_1).open(header_of(VALUES, 1))


def test_malformed_vectors_are_refused() -> None:
    context = ckks_v1.new_context()
    keys = context.serialize(True, False, True, False)
    fresh = tenseal.ckks_vector(context, [0.5] * 128).serialize()
    vector = np.frombuffer(fresh, np.uint8)
    kind = MessageKind.OPERAND_CIPHERTEXTS
    again = np.frombuffer(ckks_v1.read_vector(context, vector, 128, kind).serialize(), np.uint8)
    for batch in ([vector] * 3, [vector] * 5, [again[:-100], *[vector] * 3], [vector.astype(np.int64)] * 4):
        party_1, party_2 = link_pair("party_1", "party_2", timeout=120.0)
        party_2.send(MessageKind.GALOIS_KEYS, keys)
        party_2.send(kind, pack({}, batch))
        with pytest.raises(LinkError, match="OPERAND_CIPHERTEXTS"):
            CkksV1MovingSide(party_1).open(header_of(VALUES, 4))


def test_entry_says_what_leaks() -> None:
    assert load_protocol("ckks-v1").name == "ckks-v1"
    entry = PROTOCOLS["ckks-v1"]
    assert entry.party_1_learns.startswith("INSECURE")
    assert "X itself" in entry.party_2_learns
    assert not CkksV1MovingSide(link_pair("party_1", "party_2")[0]).prefers_moments(1 << 20)
