"""What a party sees says no more than its own result: real transcripts against simulators and attackers.

The definition (semi-honest parties, nobody works with the dealer): whoever has one party's input, output and the public
sizes can make a view that cannot be told from the real one. Each protocol's docstring says how; here that simulator is
a class, one for each protocol and party, and the tests check what of the proof can be checked:

1. exactly: view = f(own input, own output, own keys, tape). `explain` reads the tape off a real view, `rebuild` makes
   the same view of it again, byte for byte: the view carries its tape and nothing else.
2. exactly: kinds, order and sizes of all messages are the same whatever the images are; so is every byte of the
   dealer's view. One exception, measured below: SEAL compresses party_2's public key and, under ckks, its ciphertexts.
   How long party_1 computes under encryption does not depend on how many blocks of its rows are all zero, either.
3. statistically: the tape is what the simulator draws, and the same for two images as different as can be (a blob on
   black, noise) where the party's own output is the same. Attackers try to tell: frequencies of bytes, distribution of
   values, correlation with the truth, and a trained classifier. Each of them succeeds where a defence is missing.

What no test can show: that AES-128-CTR words are as good as uniform (spdz, beaver, every mask), and that RLWE
ciphertexts are (all of party_1's view under bfv and ckks but its masked result; c1 in party_2's view). MT19937 passes
everything in 3 and hides nothing, as the last test shows: 3 adds to 1 and to those assumptions and replaces neither.

Keys are fresh in every run. An attacker "succeeds" beyond `SIGMAS`: by chance less than once in 10^7 trials.
A further protocol is one entry of `SIMULATORS`.
"""

from __future__ import annotations

import math
import secrets
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import tenseal.sealapi as seal
import torch
from joint.ends import OVERHEAD, Trio, answer_all, header_of
from numpy.typing import NDArray
from test_bfv_reply import secret_key
from test_crypten_masks import read_behind_the_background
from torch import Tensor

from ppir_torch.arithmetic.csprng import KeyStream, new_key
from ppir_torch.arithmetic.words import pack_words, unpack_words
from ppir_torch.joint.bounds import Pairs
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import MovingOperand
from ppir_torch.protocols import beaver, load_protocol, spdz
from ppir_torch.protocols.lattice import bfv_coefficients as bfv
from ppir_torch.protocols.lattice import ckks_coefficients as ckks
from ppir_torch.protocols.lattice.bfv import BfvFixedSide
from ppir_torch.protocols.lattice.ckks import CkksFixedSide
from ppir_torch.protocols.lattice.coefficient_sides import CoefficientReply
from ppir_torch.protocols.lattice.packing import DEGREE
from ppir_torch.protocols.lattice.seal_format import compose_residues, load_seal, pack_pairs, plaintext_file, save_seal
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, link_pair
from ppir_torch.wire.payload import pack

Words = NDArray[np.int64]
Messages = list[tuple[MessageKind, bytes]]
View = dict[str, Messages]  # what one party receives, by sender
ONE, TWO, DEALER = "party_1", "party_2", "dealer"
SIGMAS = 6.0
SESSION = 40  # products: an attacker that is always right is 6.3 standard deviations from chance
SealEncryptor = seal.Encryptor


# Sessions, recorded.


@dataclass(frozen=True)
class Product:
    """One product: how many rows, which pairs and which of their sums is public; rows and result are party_1's."""

    count: int
    pairs: Pairs
    rows: Tensor | None = None
    result: Tensor | None = None
    into: tuple[int, ...] | None = None

    def sums(self, products: Any) -> Any:
        """Of what belongs to the pairs (an array): added up as the products are."""
        if self.into is None:
            return products
        added = np.zeros(1 + max(self.into), products.dtype)
        np.add.at(added, list(self.into), products)
        return added


@dataclass(frozen=True)
class Level:
    """Products with one operand; its header is public, its values (columns, points) are party_2's.

    An operand is opened at its first level; a later level of the same number goes on with it.
    """

    header: OperandHeader
    products: list[Product]
    operand: Tensor | None = None


@dataclass(frozen=True)
class Own:
    """All that a simulator is given: one party's input and output, what it drew for itself, and what it sent."""

    levels: list[Level]
    secret: Words | None  # party_2's secret polynomial
    masks: list[Words]  # party_1's, of each product
    sent: Messages

    def products(self) -> Iterator[tuple[OperandHeader, Product]]:
        return ((level.header, product) for level in self.levels for product in level.products)

    def opened(self) -> list[OperandHeader]:
        """Of each operand, in the order in which they were opened."""
        return list({level.header.number: level.header for level in self.levels}.values())

    def switches(self) -> Iterator[Messages]:
        """What party_1 says before each product: which earlier operand it is with, where that changes."""
        opened = set[int]()
        for level in self.levels:
            again = level.header.number in opened
            opened.add(level.header.number)
            for number in range(len(level.products)):
                said = b"".join(pack({"number": level.header.number}))
                yield [(MessageKind.OPERAND_IN_USE, said)] if again and number == 0 else []


@dataclass(frozen=True)
class Transcript:
    views: dict[str, View] = field(default_factory=lambda: {ONE: {}, TWO: {}, DEALER: {}})
    owns: dict[str, Own] = field(default_factory=dict)
    played: list[Level] = field(default_factory=list)  # for the judge: both inputs


def record(link: Link, into: Messages) -> None:
    receive = link.receive

    def recorded(*kinds: MessageKind) -> Any:
        message = receive(*kinds)
        if message.kind not in (MessageKind.LEVEL, MessageKind.FINISH):  # the harness's own, without payload
            into.append((message.kind, bytes(message.payload)))
        return message

    link.receive = recorded


@contextmanager
def recorded_masks(into: list[Words]) -> Iterator[None]:
    """What party_1 draws for its own masks under encryption."""
    words = KeyStream.words

    def recorded(stream: KeyStream, purpose: str, counter: int, shape: tuple[int, ...], bits: int = 64) -> Words:
        drawn = words(stream, purpose, counter, shape, bits)
        if purpose == "mask":
            into.append(drawn & (1 << bfv.PLAIN_BITS) - 1 if len(shape) == 1 else drawn)
        return drawn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyStream, "words", recorded)
        yield


def play(protocol: str, levels: Sequence[Level]) -> Transcript:
    """A session of the real parties over real links, with every message recorded that each of the three receives."""
    trio, entry, out, masks = Trio(), load_protocol(protocol), Transcript(), list[Words]()
    operands: dict[int, MovingOperand] = {}
    prepared = {level.header.number: (level.header, level.operand) for level in levels}
    for link in trio.links:
        record(link, out.views[link.me].setdefault(link.peer, []))
    if entry.dealer is not None:
        trio.start(entry.dealer, trio.dealer_one, trio.dealer_two)
    fixed = entry.fixed_side(trio.two_one, trio.two_dealer, "cpu")
    trio.start(answer_all, trio.two_one, fixed, list(prepared.values()))
    moving = entry.moving_side(trio.one_two, trio.one_dealer, "cpu")
    for level in levels:
        number = level.header.number
        if number not in operands:
            trio.one_two.send(MessageKind.LEVEL)
            operands[number] = moving.open(level.header)
        with recorded_masks(masks):
            multiply = operands[number].multiply
            products = [replace(p, result=multiply(p.rows, p.pairs, None, p.into)) for p in level.products]
        out.played.append(replace(level, products=products))
        for p in products:
            exact = np.array([int(p.rows[row] @ level.operand[column]) for row, column in p.pairs])
            assert p.result.tolist() == p.sums(exact).tolist()
    trio.stop()
    assert trio.errors == []
    for link in trio.links:
        # Nothing came past the recorder.
        received = sum(n for kind, n in link.received.items() if kind not in (MessageKind.LEVEL, MessageKind.FINISH))
        assert received == sum(OVERHEAD + len(payload) for _, payload in out.views[link.me][link.peer])
        link.close()
    of_one = [replace(level, operand=None) for level in out.played]
    of_two = [replace(v, products=[replace(p, rows=None, result=None) for p in v.products]) for v in out.played]
    out.owns[ONE] = Own(of_one, None, masks, out.views[TWO][ONE])
    out.owns[TWO] = Own(of_two, secret_polynomial(fixed), [], out.views[ONE][TWO])
    return out


def secret_polynomial(side: Any) -> Words | None:
    if isinstance(side, BfvFixedSide):
        return secret_key(side)
    return side.coefficients.cipher._secret if isinstance(side, CkksFixedSide) else None


def sizes(messages: Messages) -> list[tuple[MessageKind, int]]:
    return [(kind, len(payload)) for kind, payload in messages]


def payloads(messages: Messages, kind: MessageKind) -> list[memoryview]:
    return [memoryview(bytearray(payload)) for k, payload in messages if k is kind]


# Simulators.


class Part(NamedTuple):
    """Words of a tape, said to be uniform in [0, 2^bits) (64: signed) unless the simulator draws them otherwise."""

    words: NDArray[Any]
    bits: int

    def drawn(self) -> Part:
        """As many uniform words, of the operating system."""
        if self.words.dtype == object:
            return Part(np.array([secrets.randbits(self.bits) for _ in self.words], object), self.bits)
        words = np.frombuffer(bytearray(secrets.token_bytes(8 * self.words.size)), np.int64).reshape(self.words.shape)
        return Part(words if self.bits == 64 else words & ((1 << self.bits) - 1), self.bits)

    def aligned(self) -> Words:
        """Flat, the most significant bit on bit 63, so that sums and differences wrap as those of the words do."""
        flat = self.words.reshape(-1)
        if flat.dtype != object:
            return flat.astype(np.int64) << (64 - self.bits)
        top = [(int(w) >> self.bits - 64 if self.bits > 64 else int(w) << 64 - self.bits) & (1 << 64) - 1 for w in flat]
        return np.array(top, np.uint64).view(np.int64)


Parts = dict[str, Part]


@dataclass(frozen=True)
class Tape:
    """What a view carries beside its owner's own: random seeds, and parts, one dictionary a product (or operand)."""

    seeds: list[bytes]
    parts: list[Parts]

    def same_as(self, other: Tape) -> bool:
        return self.seeds == other.seeds and all(
            a.keys() == b.keys() and all(np.array_equal(a[k].words, b[k].words) for k in a)
            for a, b in zip(self.parts, other.parts, strict=True)
        )


class Simulator(ABC):
    """Of one party of one protocol; it never sees more than `own`."""

    def __init__(self, own: Own) -> None:
        self.own = own

    @abstractmethod
    def explain(self, view: View) -> Tape:
        """The tape of a view."""

    @abstractmethod
    def rebuild(self, tape: Tape) -> View:
        """The view of a tape."""

    def draw(self, like: Tape) -> Tape:
        """A fresh tape of the same sizes (which are public)."""
        return Tape([new_key() for _ in like.seeds], [{k: p.drawn() for k, p in parts.items()} for parts in like.parts])

    def clues(self, tape: Tape) -> list[Parts]:
        """What attackers look at: the parts, and what the party can compute from several of them."""
        return tape.parts

    def rows_of_zeros(self) -> list[Words]:
        return [np.zeros((product.count, header.points), np.int64) for header, product in self.own.products()]


def ring(words: Words, bits: int) -> Words:
    """Words modulo 2^bits, as a tape holds them."""
    return words if bits == 64 else words & ((1 << bits) - 1)


def packed(words: Words, bits: int) -> bytes:
    return b"".join(pack_words(torch.from_numpy(np.ascontiguousarray(words)), bits))


def words_of(payload: memoryview) -> Words:
    return np.frombuffer(payload, np.int64)


def seeds_of(messages: Messages) -> list[bytes]:
    return [payload for kind, payload in messages if kind in (MessageKind.SEED, MessageKind.ZERO_SEED)]


def requested(product: Product, /, **shape: int) -> bytes:
    """Shape, pairs and sums of a product as they are sent."""
    sums = [] if product.into is None else [np.array(product.into, np.uint16)]
    return b"".join(pack(shape, [np.array(product.pairs, np.uint16), *sums]))


def opened(table: Words, product: Product) -> Words:
    return product.sums(np.array([table[row, column] for row, column in product.pairs], np.int64))


def beaver_products(own: Own) -> Iterator[tuple[list[tuple[int, int]], OperandHeader, Product]]:
    """With each product: (number, rows x columns) of those that party_1 prepared since the last, this one at the end.

    party_1 prepares the next product while it waits; it is passed over where the rows or the operand change.
    """
    number, prepared = 0, list[tuple[int, int]]()
    for level in own.levels:
        ready = 0  # rows of the product that is prepared
        for product in level.products:
            words = product.count * level.header.columns
            if ready != product.count:
                prepared.append((number, words))
                number += 1
            yield prepared, level.header, product
            prepared, ready = [(number, words)], product.count
            number += 1


def in_ring(words: NDArray[np.signedinteger], width: int) -> Words:
    """Words as the protocol has them (int32 where they are 32 bits wide), as a tape holds them."""
    return ring(words.astype(np.int64), width)


def ring_words(stream: KeyStream, purpose: str, number: int, shape: tuple[int, ...], width: int) -> Words:
    """Words of a key stream as beaver draws them: 32 bits each where its words are that wide, else 64."""
    return stream.words(purpose, number, shape, drawn_bits(width)).astype(np.int64)


def drawn_bits(width: int) -> int:
    return 32 if width == 32 else 64


class BeaverOne(Simulator):
    """party_1 sees its key, d, and z = R - A d^T - c1. The tape is d."""

    def explain(self, view: View) -> Tape:
        parts = []
        for header, payload in zip(self.own.opened(), payloads(view[TWO], MessageKind.OPENED_OPERAND), strict=True):
            shape, bits = (header.columns, header.points), beaver.width_of(header)
            d = in_ring(unpack_words(payload, math.prod(shape), bits).numpy().reshape(shape), bits)
            parts.append({"Y - b": Part(d, bits)})
        return Tape(seeds_of(view[DEALER]), parts)

    def rebuild(self, tape: Tape) -> View:
        stream, messages, opened_before = KeyStream(tape.seeds[0]), Messages(), dict[int, Part]()
        opening = iter(tape.parts)
        for prepared, header, product in beaver_products(self.own):
            if header.number not in opened_before:
                opened_before[header.number] = next(opening)["Y - b"]
                messages.append((MessageKind.OPENED_OPERAND, packed(*opened_before[header.number])))
            d, bits = opened_before[header.number]
            number = prepared[-1][0]
            a = ring_words(stream, "A", number, (product.count, header.points), bits)
            known = a @ d.T + ring_words(stream, "c", number, (product.count, header.columns), bits)
            messages.append((MessageKind.RESULT_SHARE, packed(product.result.numpy() - opened(known, product), bits)))
        return {TWO: messages, DEALER: [(MessageKind.SEED, tape.seeds[0])]}


class BeaverTwo(Simulator):
    """party_2 sees its key, E = X - A and c2 = A b^T - c1. The tape is E and c2: all of it."""

    def explain(self, view: View) -> Tape:
        corrections = iter(payloads(view[DEALER], MessageKind.TRIPLE_CORRECTION))
        requests, parts = iter(payloads(view[ONE], MessageKind.MASKED_ROWS)), []
        for prepared, header, product in beaver_products(self.own):
            shape, bits = (product.count, header.points), beaver.width_of(header)
            words = next(requests)[-math.prod(shape) * bits // 8 :]
            e = in_ring(unpack_words(words, math.prod(shape), bits).numpy().reshape(shape), bits)
            kind, drawn = f"i{drawn_bits(bits) // 8}", drawn_bits(bits)
            c2 = np.concatenate([np.frombuffer(next(corrections), kind) for _ in prepared])
            parts.append({"X - A": Part(e, bits), "c2": Part(in_ring(c2, drawn), drawn)})
        return Tape(seeds_of(view[DEALER]), parts)

    def rebuild(self, tape: Tape) -> View:
        from_one, from_dealer = Messages(), [(MessageKind.SEED, tape.seeds[0])]
        steps = zip(tape.parts, beaver_products(self.own), self.own.switches(), strict=True)
        for parts, (prepared, _, product), switch in steps:
            from_one += switch
            head = requested(product, product=prepared[-1][0], rows=product.count)
            from_one.append((MessageKind.MASKED_ROWS, len(head).to_bytes(4, "little") + head + packed(*parts["X - A"])))
            ends = np.cumsum([words for _, words in prepared])[:-1]
            for c2 in np.split(parts["c2"].words, ends):
                from_dealer.append((MessageKind.TRIPLE_CORRECTION, packed(c2, parts["c2"].bits)))
        return {ONE: from_one, DEALER: from_dealer}

    def clues(self, tape: Tape) -> list[Parts]:
        """party_2 knows b, and so E b^T + c2 = X b^T - c1."""
        joint = zip(tape.parts, self.minus_c1(tape, self.rows_of_zeros()), strict=True)
        return [parts | {"X b - c1": Part(words, parts["X - A"].bits)} for parts, words in joint]

    def minus_c1(self, tape: Tape, guess: list[Words]) -> list[Words]:
        """(X - guess) b - c1: where the guess of X is right, c1 alone."""
        stream, masks, out = KeyStream(tape.seeds[0]), dict[int, Words](), list[Words]()
        for parts, rows, (_, header, product) in zip(tape.parts, guess, beaver_products(self.own), strict=True):
            if header.number not in masks:
                shape, width = (header.columns, header.points), beaver.width_of(header)
                masks[header.number] = ring_words(stream, "b", header.number, shape, width)
            b = masks[header.number]
            e, bits = parts["X - A"]
            c2 = parts["c2"].words[-product.count * header.columns :].reshape(product.count, -1)
            out.append(ring((e - rows) @ b.T + c2, bits))
        return out


class SpdzChunk(NamedTuple):
    """One triple: its number, its points, and the sharings of zero, which both parties know."""

    number: int
    part: slice
    x: Words  # (rows, n)
    y: Words  # (columns, n)

    def words(self, stream: KeyStream, purpose: str) -> Words:
        """A share of a (rows, n), of b (columns, n; the protocol has it transposed), or of c (rows, columns)."""
        (rows, n), columns = self.x.shape, len(self.y)
        shape = {"a": (rows, n), "b": (n, columns), "c": (rows, columns)}[purpose]
        words = stream.words(purpose, self.number, shape)
        return words.T if purpose == "b" else words


def spdz_products(own: Own, zero_keys: list[bytes]) -> Iterator[tuple[OperandHeader, Product, list[SpdzChunk]]]:
    triple = 0
    streams = {header.number: KeyStream(key) for header, key in zip(own.opened(), zero_keys, strict=True)}
    shares = {h.number: streams[h.number].words("Y", 0, (h.columns, h.points)) for h in own.opened()}
    done = dict.fromkeys(streams, 0)  # chunks of each operand
    for header, product in own.products():
        zeros, y, chunks = streams[header.number], shares[header.number], []
        for start, stop in spdz.chunks(product.count + header.columns, header.points):
            x = zeros.words("X", done[header.number], (product.count, stop - start))
            chunks.append(SpdzChunk(triple, slice(start, stop), x, y[:, start:stop]))
            triple, done[header.number] = triple + 1, done[header.number] + 1
        yield header, product, chunks


def opening(e: Words, d: Words) -> tuple[MessageKind, bytes]:
    return MessageKind.OPENING, e.tobytes() + np.ascontiguousarray(d.T).tobytes()


def read_opening(payload: memoryview, chunk: SpdzChunk) -> tuple[Words, Words]:
    """Shares of e (rows, n) and d (columns, n)."""
    words = words_of(payload)
    return words[: chunk.x.size].reshape(chunk.x.shape), words[chunk.x.size :].reshape(chunk.y.T.shape).T


class SpdzOne(Simulator):
    """party_1 sees its key, the keys of the sharings of zero, party_2's shares of e and d, and R less its own share.

    It knows party_2's share z of X, so e says a2; and the share z of Y that it holds itself, so d says Y - b2.
    The tape is a2 and Y - b2.
    """

    def explain(self, view: View) -> Tape:
        zero_keys = seeds_of(view[TWO])
        openings, parts = iter(payloads(view[TWO], MessageKind.OPENING)), []
        for _, _, chunks in spdz_products(self.own, zero_keys):
            shares = [(chunk, *read_opening(next(openings), chunk)) for chunk in chunks]
            a2 = np.concatenate([chunk.x - e for chunk, e, _ in shares], axis=1)
            y = np.concatenate([d + chunk.y for chunk, _, d in shares], axis=1)
            parts.append({"a2": Part(a2, 64), "Y - b2": Part(y, 64)})
        return Tape(seeds_of(view[DEALER]) + zero_keys, parts)

    def rebuild(self, tape: Tape) -> View:
        (seed, *zero_keys), messages, opened_before = tape.seeds, Messages(), set[int]()
        stream, keys = KeyStream(seed), iter(zero_keys)
        for parts, (header, product, chunks) in zip(tape.parts, spdz_products(self.own, zero_keys), strict=True):
            if header.number not in opened_before:
                messages.append((MessageKind.ZERO_SEED, next(keys)))
                opened_before.add(header.number)
            share = np.zeros((product.count, header.columns), np.int64)
            for chunk in chunks:
                e2 = chunk.x - parts["a2"].words[:, chunk.part]
                d2 = parts["Y - b2"].words[:, chunk.part] - chunk.y
                messages.append(opening(e2, d2))
                a, b = chunk.words(stream, "a"), chunk.words(stream, "b")
                e = product.rows.numpy()[:, chunk.part] - chunk.x - a + e2
                d = chunk.y - b + d2
                share += chunk.words(stream, "c") + e @ b.T + a @ d.T + e @ d.T
            result = product.result.numpy() - opened(share, product)
            messages.append((MessageKind.RESULT_SHARE, result.tobytes()))
        return {TWO: messages, DEALER: [(MessageKind.SEED, seed)]}


class SpdzTwo(Simulator):
    """party_2 sees its key, party_1's shares of e and d, and c2 = a b - c1; it drew the sharings of zero itself.

    So e says X - a1 and d says b1. The tape is these and c2: all of the view.
    """

    def _products(self) -> Iterator[tuple[OperandHeader, Product, list[SpdzChunk]]]:
        return spdz_products(self.own, seeds_of(self.own.sent))

    def explain(self, view: View) -> Tape:
        openings = iter(payloads(view[ONE], MessageKind.OPENING))
        corrections, parts = iter(payloads(view[DEALER], MessageKind.TRIPLE_CORRECTION)), []
        for _, _, chunks in self._products():
            shares = [(chunk, *read_opening(next(openings), chunk)) for chunk in chunks]
            x = np.concatenate([e + chunk.x for chunk, e, _ in shares], axis=1)
            b1 = np.concatenate([chunk.y - d for chunk, _, d in shares], axis=1)
            c2 = np.concatenate([words_of(next(corrections)) for _ in chunks])
            parts.append({"X - a1": Part(x, 64), "b1": Part(b1, 64), "c2": Part(c2, 64)})
        return Tape(seeds_of(view[DEALER]), parts)

    def rebuild(self, tape: Tape) -> View:
        from_one, from_dealer = Messages(), [(MessageKind.SEED, tape.seeds[0])]
        steps = zip(tape.parts, self._products(), self.own.switches(), strict=True)
        for parts, (header, product, chunks), switch in steps:
            from_one += switch
            from_one.append((MessageKind.PRODUCT, requested(product, rows=product.count, points=header.points)))
            for chunk, c2 in zip(chunks, np.split(parts["c2"].words, len(chunks)), strict=True):
                e1 = parts["X - a1"].words[:, chunk.part] - chunk.x
                from_one.append(opening(e1, chunk.y - parts["b1"].words[:, chunk.part]))
                from_dealer.append((MessageKind.TRIPLE_CORRECTION, c2.tobytes()))
        return {ONE: from_one, DEALER: from_dealer}

    def clues(self, tape: Tape) -> list[Parts]:
        """party_2 knows a2 and b = b1 + b2, and so e b + c2 = X b - c1."""
        joint = zip(tape.parts, self.minus_c1(tape, self.rows_of_zeros()), strict=True)
        return [parts | {"X b - c1": Part(words, 64)} for parts, words in joint]

    def minus_c1(self, tape: Tape, guess: list[Words]) -> list[Words]:
        """(X - guess) b - c1: where the guess of X is right, c1 alone."""
        stream, out = KeyStream(tape.seeds[0]), []
        for parts, rows, (header, product, chunks) in zip(tape.parts, guess, self._products(), strict=True):
            joint = []
            for chunk, c2 in zip(chunks, np.split(parts["c2"].words, len(chunks)), strict=True):
                e = parts["X - a1"].words[:, chunk.part] - chunk.words(stream, "a") - rows[:, chunk.part]
                b = parts["b1"].words[:, chunk.part] + chunk.words(stream, "b")
                joint.append(e @ b.T + c2.reshape(product.count, header.columns))
            out.append(np.stack(joint))
        return out


class EncryptedOne(Simulator):
    """party_1 sees party_2's public key, encryptions of Y, and R plus its own mask, masked result by masked result.

    The simulator encrypts zeros instead, under a key of its own; that nobody can tell is RLWE and not tested.
    A protocol says what a masked result carries beside R and the mask (`part`), and the inverse (`answer`).
    """

    protocol: str
    module: Any
    part: Callable[[memoryview, list[int], Any], Parts]
    answer: Callable[[Parts, list[int], Any], bytes]

    def mask_sums(self, product: Product, masks: Words) -> Any:
        return product.sums(masks)

    def explain(self, view: View) -> Tape:
        uploads = [p for kind, p in view[TWO] if kind is not MessageKind.MASKED_RESULT]
        answers = zip(payloads(view[TWO], MessageKind.MASKED_RESULT), self.own.products(), self.own.masks, strict=True)
        parts = [self.part(answer, p.result.tolist(), self.mask_sums(p, masks)) for answer, (_, p), masks in answers]
        return Tape(uploads, parts)

    def rebuild(self, tape: Tape) -> View:
        uploads, answers = iter(tape.seeds), zip(tape.parts, self.own.products(), self.own.masks, strict=True)
        messages, opened_before = [(MessageKind.PUBLIC_KEY, next(uploads))], set[int]()
        for level in self.own.levels:
            ciphertexts = (
                self.module.layout(level.header).ciphertexts if level.header.number not in opened_before else 0
            )
            opened_before.add(level.header.number)
            messages += [(MessageKind.OPERAND_CIPHERTEXTS, next(uploads)) for _ in range(-(-ciphertexts // 16))]
            for _ in level.products:
                parts, (_, product), masks = next(answers)
                added = self.mask_sums(product, masks)
                messages.append((MessageKind.MASKED_RESULT, self.answer(parts, product.result.tolist(), added)))
        return {TWO: messages}

    def draw(self, like: Tape) -> Tape:
        headers = self.own.opened()
        zeros = [torch.zeros(header.columns, header.points, dtype=torch.int64) for header in headers]
        uploads = [payload for _, payload in upload(self.protocol, headers, zeros)]
        return Tape(uploads, super().draw(like).parts)


class BfvOne(EncryptedOne):
    """The masked result is (R + mask) mod t: nothing on the tape."""

    protocol, module = "bfv", bfv

    def part(self, *_: Any) -> Parts:
        return {}

    def answer(self, _parts: Parts, results: list[int], masks: Words) -> bytes:
        return ring(np.array(results) + masks, bfv.PLAIN_BITS).tobytes()


class CkksOne(EncryptedOne):
    """The masked result is scale R + mask + flood, and noise that is 2^-58 of the flood; the tape is flood + noise.

    Of a sum of products all of them are sums.
    """

    protocol, module, half = "ckks", ckks, 1 << ckks.FLOOD_BITS - 1

    def mask_sums(self, product: Product, masks: Words) -> Any:
        return product.sums(np.array([ckks.mask(mask) for mask in masks], object))

    def part(self, answer: memoryview, results: list[int], masks: Any) -> Parts:
        scheme, steps = (
            ckks.scheme(),
            zip(ckks.CkksResult.decode(answer).words, results, masks, strict=True),
        )
        floods = [
            compose_residues(word.tolist(), scheme.kept) - scheme.scale * r - mask + self.half
            for word, r, mask in steps
        ]
        return {"flood": Part(np.array([f % math.prod(scheme.kept) for f in floods], object), ckks.FLOOD_BITS)}

    def answer(self, parts: Parts, results: list[int], masks: Any) -> bytes:
        scheme, steps = ckks.scheme(), zip(parts["flood"].words.tolist(), results, masks, strict=True)
        words = [scheme.scale * r + mask + flood - self.half for flood, r, mask in steps]
        return pack_pairs(
            np.array([[word % prime for prime in scheme.kept] for word in words], np.uint64), 60
        ).tobytes()


def upload(protocol: str, headers: list[OperandHeader], operands: list[Tensor]) -> Messages:
    """The messages of a fresh party_2 that encrypts these operands."""
    ends, messages = link_pair(ONE, TWO, timeout=120), Messages()
    record(ends[0], messages)
    fixed = load_protocol(protocol).fixed_side(ends[1], None, "cpu")
    for header, values in zip(headers, operands, strict=True):
        fixed.open(header, values)
    for number, header in enumerate(headers):
        for _ in range((number == 0) - (-MODULES[protocol].layout(header).ciphertexts // 16)):
            ends[0].receive()
    for end in ends:
        end.close()
    return messages


class EncryptedTwo(Simulator):
    """party_2, who has the secret key s, sees words of c0 and all of c1. The tape is c1 and what c0 + c1 s says.

    The simulator encrypts zero with the public key, and puts uniform words and (bfv) flood on it. A protocol says:
    the primes of its reply; what c0 + c1 s (pairs, primes) says (`read`) and the inverse (`written`); the order of c0
    and places in the message; and how an encryption of zero is covered: c0 at some positions, c1.
    """

    module: Any
    form: type[CoefficientReply]
    primes: tuple[int, ...]
    read: Callable[[NDArray[Any]], Parts]
    written: Callable[[Parts], NDArray[Any]]
    ordered: Callable[[NDArray[np.uint64], NDArray[np.uint16]], bytes]
    cover: Callable[[Any, list[int]], tuple[NDArray[Any], Words]]

    def explain(self, view: View) -> Tape:
        parts = []
        replies = zip(payloads(view[ONE], MessageKind.REPLY_CIPHERTEXTS), self.own.products(), strict=True)
        for payload, (header, product) in replies:
            reply = self.form.decode(payload, header.rows * header.columns, self.module.layout(header).group)
            c0, c1 = reply.c0.astype(object), reply.c1.view(np.int64)
            parts.append(self.read(c0 + self.phases(header, product, c1)) | {"c1": Part(c1, 60)})
        return Tape([], parts)

    def clues(self, tape: Tape) -> list[Parts]:
        """Of c1 every sixteenth coefficient, to save time."""
        return [parts | {"c1": Part(parts["c1"].words[..., ::16], 60)} for parts in tape.parts]

    def rebuild(self, tape: Tape) -> View:
        messages = Messages()
        for parts, (header, product), switch in zip(tape.parts, self.own.products(), self.own.switches(), strict=True):
            messages += switch
            c1 = parts["c1"].words
            c0 = self.written(parts) - self.phases(header, product, c1)
            messages.append((MessageKind.REPLY_CIPHERTEXTS, self.reply(header, product, c0, c1)))
        return {ONE: messages}

    def draw(self, _like: Tape) -> Tape:
        scheme, messages = self.module.scheme(), Messages()
        key = scheme.seal.PublicKey()
        load_seal(key, scheme.context, payloads(self.own.sent, MessageKind.PUBLIC_KEY)[0], "PUBLIC_KEY")
        encryptor = SealEncryptor(scheme.context, key)
        for header, product in self.own.products():
            c0, c1 = np.zeros((len(product.pairs), len(self.primes)), object), []
            for places in self.polynomials(header, product):
                zero = scheme.seal.Ciphertext()
                encryptor.encrypt_zero(zero)
                words, polynomial = self.cover(zero, [position for _, _, position in places])
                c0[[number for number, _, _ in places]] = words
                c1.append(polynomial)
            messages.append((MessageKind.REPLY_CIPHERTEXTS, self.reply(header, product, c0, np.stack(c1))))
        return self.explain({ONE: messages})

    def polynomials(self, header: OperandHeader, product: Product) -> list[list[tuple[int, int, int]]]:
        """For each polynomial of a reply the (pair, row in its group, position) of each word that goes with it."""
        layout, out = self.module.layout(header), []
        for start in range(0, product.count, layout.group):
            of_column: dict[int, list[tuple[int, int, int]]] = {}
            for number, (row, column) in enumerate(product.pairs):
                if start <= row < start + layout.group:
                    place = (number, row - start, layout.position(row - start))
                    of_column.setdefault(column, []).append(place)
            out += of_column.values()
        return out

    def phases(self, header: OperandHeader, product: Product, c1: Words) -> NDArray[Any]:
        """c1 s modulo x^n + 1 at each released position (pairs, primes): exact, not reduced."""
        out = np.zeros((len(product.pairs), c1.shape[1]), object)
        for polynomial, places in zip(c1, self.polynomials(header, product), strict=True):
            for number, _, position in places:
                turned = np.concatenate([self.own.secret[position::-1], -self.own.secret[:position:-1]])
                low, high = polynomial & (1 << 30) - 1, polynomial >> 30
                out[number] = [int(v @ turned) + (int(w @ turned) << 30) for v, w in zip(low, high, strict=True)]
        return out

    def reply(self, header: OperandHeader, product: Product, c0: NDArray[Any], c1: Words) -> bytes:
        places = np.zeros((len(c0), 2), np.uint16)
        for polynomial, of_it in enumerate(self.polynomials(header, product)):
            for number, slot, _ in of_it:
                places[number] = polynomial, slot
        words = (c0 % np.array(self.primes, object)).astype(np.uint64)
        head = struct.pack("<II", len(c0), len(c1))
        sums = b"" if product.into is None else np.array(product.into, np.uint16).tobytes()
        return head + self.ordered(words, places) + pack_pairs(c1.view(np.uint64), 60).tobytes() + sums


class BfvTwo(EncryptedTwo):
    """c0 + c1 s says the decrypted word, uniform mod t, and the noise: flood, and the rounding of the switch."""

    module, form, primes, T = bfv, bfv.BfvReply, bfv.scheme().primes[:1], 1 << bfv.PLAIN_BITS
    # The flood divided by the second prime, at most 2^21 and a little; the switch adds less than 2^9.5.
    REACH, BITS = (1 << bfv.FLOOD_BITS - 1) // bfv.scheme().primes[1] + 1024, 23
    assert min(bfv.scheme().primes[0] // (2 * T), 1 << BITS - 1) > REACH

    def read(self, total: NDArray[Any]) -> Parts:
        (q,) = self.primes
        values = total[:, 0] % q
        words = (values * self.T + q // 2) // q % self.T
        noise = (values - self.scaled(words) + q // 2) % q - q // 2
        assert abs(noise).max() < self.REACH  # decrypts right
        of_noise = Part(noise.astype(np.int64) + (1 << self.BITS - 1), self.BITS)
        return {"word": Part(words.astype(np.int64), bfv.PLAIN_BITS), "noise": of_noise}

    def scaled(self, words: NDArray[Any]) -> NDArray[Any]:
        return (words.astype(object) * self.primes[0] + self.T // 2) // self.T

    def written(self, parts: Parts) -> NDArray[Any]:
        return (self.scaled(parts["word"].words) + parts["noise"].words - (1 << self.BITS - 1))[:, None]

    def ordered(self, words: NDArray[np.uint64], places: NDArray[np.uint16]) -> bytes:
        return words.tobytes() + places.tobytes()

    def cover(self, zero: Any, positions: list[int]) -> tuple[NDArray[Any], Words]:
        primes, words, out = bfv.scheme().primes, zero.dyn_array(), []
        modulus = math.prod(primes)
        for position in positions:
            value = compose_residues([words.at(i * DEGREE + position) for i in range(len(primes))], primes)
            value += secrets.randbelow(self.T) * modulus // self.T
            value += secrets.randbits(bfv.FLOOD_BITS) - (1 << bfv.FLOOD_BITS - 1)
            out.append(bfv.switched([value % modulus]))
        return np.array(out, object), bfv.switched_c1(zero).view(np.int64)


class CkksTwo(EncryptedTwo):
    """c0 + c1 s is uniform modulo q1 q2: message, scale and noise are all under the mask."""

    module, form, primes = ckks, ckks.CkksReply, ckks.scheme().kept

    def read(self, total: NDArray[Any]) -> Parts:
        residues = (total % np.array(self.primes, object)).tolist()
        words = [compose_residues(row, self.primes) for row in residues]
        return {"word": Part(np.array(words, object), 120)}

    def written(self, parts: Parts) -> NDArray[Any]:
        return np.repeat(parts["word"].words[:, None], len(self.primes), axis=1)

    def ordered(self, words: NDArray[np.uint64], places: NDArray[np.uint16]) -> bytes:
        return places.tobytes() + pack_pairs(words, 60).tobytes()

    def cover(self, zero: Any, positions: list[int]) -> tuple[NDArray[Any], Words]:
        words = [secrets.randbelow(math.prod(self.primes)) for _ in positions]
        return np.array([[w] * len(self.primes) for w in words], object), ckks.rescaled(zero, [])[1].view(np.int64)


SIMULATORS: dict[str, dict[str, type[Simulator]]] = {
    "spdz": {ONE: SpdzOne, TWO: SpdzTwo},
    "beaver": {ONE: BeaverOne, TWO: BeaverTwo},
    "bfv": {ONE: BfvOne, TWO: BfvTwo},
    "ckks": {ONE: CkksOne, TWO: CkksTwo},
}
MODULES = {"bfv": bfv, "ckks": ckks}
ENCRYPTED = tuple(MODULES)
EVERY_VIEW = [(protocol, party) for protocol, parties in SIMULATORS.items() for party in parties]


# Secrets: two images as different as can be.


def two_images(images: int, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """(images, points) each: a blob on black (zero) in the last tenth, and noise; equal largest value and energies."""
    draw = np.random.default_rng(seed)
    blob, noise = np.zeros((2, images, points), np.int64)
    place = np.linspace(-1, 1, points // 10)
    for number in range(images):
        blob[number, -len(place) :] = (1000 + 1047 * (1 - place**2)) * (0.8 if number else 1)
        blob[number, -len(place) // 2] = 2047
        energy = int((blob[number] ** 2).sum())
        shape = draw.uniform(-1, 1, points)
        noise[number] = np.rint(shape * math.sqrt(0.8 * energy / (shape @ shape)))
        noise[number, : points // 16] = 0  # values that make the energies equal
        noise[number, 0] = -2047
        left = energy - int((noise[number] ** 2).sum())
        for i in range(1, points // 16):
            noise[number, i] = min(math.isqrt(left), 2047)
            left -= int(noise[number, i]) ** 2
    assert np.array_equal((blob**2).sum(1), (noise**2).sum(1))
    assert np.abs(blob).max() == np.abs(noise).max() == 2047
    return torch.from_numpy(blob), torch.from_numpy(noise)


def blind_rows(one: Tensor, other: Tensor, pairs: Pairs, seed: int) -> Tensor:
    """Rows (one for each pair) whose opened products are the same for both operands: party_1's output is no clue."""
    draw, rows = np.random.default_rng(seed), []
    for _, column in pairs:
        difference = (one - other)[column].numpy()
        row = draw.integers(-2047, 2048, len(difference))
        shown = np.flatnonzero(difference)
        left, right = shown[: len(shown) // 2], shown[len(shown) // 2 : len(shown) // 2 * 2]
        row[shown] = 0
        sign = draw.choice([-1, 1], len(left))
        row[left], row[right] = sign * difference[right], -sign * difference[left]
        assert row @ difference == 0
        rows.append(row)
    return torch.from_numpy(np.stack(rows))


# Variants: each lacks one defence.


Patch = pytest.MonkeyPatch


def no_masks(patch: Patch) -> None:
    def nothing(_stream: KeyStream, _purpose: str, _counter: int, shape: tuple[int, ...], bits: int = 64) -> Words:
        return np.zeros(shape, np.int32 if bits == 32 else np.int64)

    patch.setattr(KeyStream, "words", nothing)


def short_masks(patch: Patch) -> None:
    """Of 12 bits, which is as long as the images' own values."""
    words = KeyStream.words

    def short(stream: KeyStream, purpose: str, counter: int, shape: tuple[int, ...], bits: int = 64) -> Words:
        return words(stream, purpose, counter, shape, bits) >> bits - 12

    patch.setattr(KeyStream, "words", short)


def reuse(*purposes: str) -> Callable[[Patch], None]:
    """Every mask of these purposes is the first one again."""

    def apply(patch: Patch) -> None:
        words = KeyStream.words

        def repeated(stream: KeyStream, purpose: str, counter: int, shape: tuple[int, ...], bits: int = 64) -> Words:
            counter = 0 if purpose in purposes else counter
            return words(KeyStream(stream._key), purpose, counter, shape, bits)

        patch.setattr(KeyStream, "words", repeated)

    return apply


def no_flood(patch: Patch) -> None:
    patch.setattr(bfv, "flood", lambda _low, _high: 0)
    patch.setattr(ckks, "flood", lambda _low, _high: 0)


class SameZero:
    """An encryptor with one encryption of zero for all."""

    def __init__(self, context: Any, key: Any) -> None:
        self._inner, self._context, self._zero = SealEncryptor(context, key), context, b""

    def encrypt_symmetric(self, plain: Any) -> Any:
        return self._inner.encrypt_symmetric(plain)

    def encrypt_zero(self, into: Any) -> None:
        if not self._zero:
            self._inner.encrypt_zero(into)
            self._zero = save_seal(into)
        load_seal(into, self._context, self._zero, "zero")


def same_zero(patch: Patch) -> None:
    patch.setattr(seal, "Encryptor", SameZero)


VARIANTS: dict[str, Callable[[Patch], None]] = {
    "ours": lambda _patch: None,
    "no masks": no_masks,
    "short masks": short_masks,
    "no flood": no_flood,
    "one zero for all replies": same_zero,
    "one b for all operands": reuse("b"),
    "one A for all products": reuse("A"),
    "one c1 for all products": reuse("c"),
    "one triple for all products": reuse("a", "b", "c"),
    "one mask for all products": reuse("mask"),
}


# Observations.


HIDES = {"Y - b": "operand", "Y - b2": "operand", "X - A": "rows", "X - a1": "rows", "word": "results"}


@dataclass(frozen=True)
class Observed:
    """Many products of one session: which image it was each time, clues, the simulator's clues, and `truths`.

    Those are what an attacker hopes to find in the clues (`HIDES`), aligned with them.
    """

    labels: NDArray[np.bool_]
    clues: list[dict[str, Words]]
    simulated: list[dict[str, Words]]
    truths: list[dict[str, Words]]


def session_with_two_images(protocol: str, party: str, count: int) -> tuple[Transcript, NDArray[np.bool_]]:
    """The *other* party's image is at random one of two; this party's input and output are always the same."""
    encrypted, labels = protocol in ENCRYPTED, np.random.default_rng(0).permutation(count) % 2 == 1
    points, columns = (1500, 1) if encrypted else (400, 2)
    pairs = [(row, 0) for row in range(8)] if encrypted else [(0, 0), (1, 1), (2, 0)]
    operands = two_images(columns, points, 1)
    header = header_of(operands[0], rows=len(pairs))
    assert header == header_of(operands[1], rows=len(pairs))
    if party == TWO:
        images = two_images(len(pairs), points, 2)
        images[0][0] = 0  # a row that is all black
        products = [Product(len(pairs), pairs, images[int(label)]) for label in labels]
        return play(protocol, [Level(header, products, operands[1])]), labels
    product = Product(len(pairs), pairs, blind_rows(*operands, pairs, 3))
    if encrypted:  # which takes long: one operand for eight products
        labels = np.arange(count) // 8 % 2 == 1
    levels = [
        Level(replace(header, number=i), [product] * (8 if encrypted else 1), operands[int(label)])
        for i, label in enumerate(labels[:: 8 if encrypted else 1])
    ]
    transcript = play(protocol, levels)
    assert len({tuple(p.result.tolist()) for level in transcript.played for p in level.products}) == 1
    return transcript, labels


@cache
def observe(protocol: str, party: str, variant: str, count: int) -> Observed:
    with Patch.context() as patch:
        VARIANTS[variant](patch)
        transcript, labels = session_with_two_images(protocol, party, count)
        simulator = SIMULATORS[protocol][party](transcript.owns[party])
        tape = simulator.explain(transcript.views[party])
        real = simulator.clues(tape)
        drawn = simulator.clues(simulator.draw(tape)) if variant != "no masks" else []
    played = [(level, product) for level in transcript.played for product in level.products]
    truths = [
        {name: secret_under(name, part, *at) for name, part in parts.items() if name in HIDES}
        for parts, at in zip(real, played, strict=True)
    ]
    return Observed(labels, *(with_differences(aligned(clues)) for clues in (real, drawn, truths)))


def secret_under(name: str, part: Part, level: Level, product: Product) -> Part:
    secret = {"operand": level.operand, "rows": product.rows, "results": product.result}[HIDES[name]]
    return Part(secret.numpy(), min(part.bits, 64))


def aligned(clues: list[Parts]) -> list[dict[str, Words]]:
    return [{name: part.aligned() for name, part in parts.items()} for parts in clues]


def with_differences(clues: list[dict[str, Words]]) -> list[dict[str, Words]]:
    """And each clue less that of the product before (of the first: the last), which shows what is used twice."""
    return [
        clue | {f"{k}, less the last": v - before[k] for k, v in clue.items() if before[k].size == v.size}
        for before, clue in zip([*clues[-1:], *clues[:-1]], clues, strict=True)
    ]


# Attackers: each says by how many standard deviations its guess is better than chance.


def pooled(clues: list[dict[str, Words]], name: str) -> Words:
    return np.concatenate([clue[name] for clue in clues])


def by_bytes(one: list[dict[str, Words]], other: list[dict[str, Words]]) -> float:
    """Two-sample chi-square of each byte of each kind of word."""
    return max(
        chi_square(left >> shift & 255, right >> shift & 255)
        for name in one[0]
        for left, right in [(pooled(one, name), pooled(other, name))]
        for shift in range(0, 64, 8)
    )


def chi_square(left: Words, right: Words) -> float:
    width = 1 if min(len(left), len(right)) >= 4096 else 16  # at least ten in a bin
    counts = np.stack([np.bincount(v // width, minlength=256) for v in (left, right)]).astype(float)
    counts = counts[:, counts.sum(0) > 0]
    freedom, share = counts.shape[1] - 1, counts.sum(1, keepdims=True) / counts.sum()
    if freedom == 0:
        return 0.0
    expected = share * counts.sum(0)
    value = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    return ((value / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread)  # Wilson and Hilferty, 1931


def by_values(one: list[dict[str, Words]], other: list[dict[str, Words]]) -> float:
    """Kolmogorov and Smirnov's two-sample test of each kind of word."""
    found = 0.0
    for name in one[0]:
        left, right = np.sort(pooled(one, name)), np.sort(pooled(other, name))
        both = np.concatenate([left, right])
        shares = [np.searchsorted(v, both, "right") / len(v) for v in (left, right)]
        weight = len(left) * len(right) / len(both)
        found = max(found, 2 * math.sqrt(weight) * float(np.abs(shares[0] - shares[1]).max()))
    return found


def by_classifier(one: list[dict[str, Words]], other: list[dict[str, Words]]) -> float:
    """Logistic regression on what `features` sees of each product, tried on the half that it was not trained with."""
    table = np.array([features(clue) for clue in (*one, *other)])
    is_one = np.arange(len(table)) < len(one)
    half = np.random.default_rng(1).permutation(len(table)) % 2 == 0
    right = sum(np.sum(trained(table[t], is_one[t], table[~t]) == is_one[~t]) for t in (half, ~half))
    return float(2 * right - len(table)) / math.sqrt(len(table))


def trained(table: NDArray[np.float64], is_one: NDArray[np.bool_], unseen: NDArray[np.float64]) -> NDArray[np.bool_]:
    mean, deviation = table.mean(0), table.std(0) + 1e-12
    known, asked = (np.clip((t - mean) / deviation, -10, 10) / math.sqrt(table.shape[1]) for t in (table, unseen))
    weights, bias = np.zeros(table.shape[1]), 0.0
    for _ in range(200):
        error = is_one - 1 / (1 + np.exp(-(known @ weights + bias)))
        weights += known.T @ error / len(error) * 4 - 0.01 * weights
        bias += 4 * error.mean()
    return asked @ weights + bias > 0


def features(clue: dict[str, Words]) -> NDArray[np.float64]:
    """Histograms of the upper half of each byte, and means by position of the value, its size and two low bits."""
    found = []
    for words in clue.values():
        found += [np.bincount(words >> shift & 15, minlength=16) / words.size for shift in range(4, 64, 8)]
        values = words * 2.0**-63
        starts = np.linspace(0, words.size, min(words.size, 32), endpoint=False).astype(int)
        count = np.diff([*starts, words.size])
        for table in (values, np.abs(values), words & 1, words >> 24 & 1):
            found.append(np.add.reduceat(table, starts) / count)
    return np.concatenate(found)


def by_correlation(clues: list[dict[str, Words]], truths: list[dict[str, Words]]) -> float:
    """Of each word with the secret value under it, where there is one."""
    found = 0.0
    for name in truths[0]:
        seen, secret = pooled(clues, name) * 2.0**-63, pooled(truths, name) * 2.0**-63
        found = max(found, abs(float(np.corrcoef(seen, secret)[0, 1])) * math.sqrt(len(seen)))
    return found


TELLING = {"bytes": by_bytes, "values": by_values, "classifier": by_classifier}


def which_image(attacker: str, seen: Observed) -> float:
    if attacker == "correlation":
        return by_correlation(seen.clues, seen.truths)
    one, other = ([c for c, label in zip(seen.clues, seen.labels, strict=True) if label == k] for k in (True, False))
    return TELLING[attacker](one, other)


def told_from_simulation(seen: Observed) -> dict[str, float]:
    return {name: attack(seen.clues, seen.simulated) for name, attack in TELLING.items()}


# 1. The view is its owner's own and the tape, exactly.


def mixed_levels(x: str, y: str) -> list[Level]:
    """Two operands of 1 and 3 columns, products of 2 to 4 rows; which secrets is `x` and `y`.

    Not all pairs are opened, and of two products only sums.
    """
    pairs = [[(0, 0), (2, 0)], [(1, 0)], [(1, 0), (0, 0)], [(0, 2), (3, 1), (1, 2), (3, 0)], [(2, 2), (0, 1)]]
    sums = {2: (0, 0), 3: (0, 1, 1, 0)}
    levels = []
    for number, (columns, points, numbers) in enumerate([(1, 2100, (0, 1, 2)), (3, 1500, (3, 4))]):
        operands = dict(zip(("blob", "noise"), two_images(columns, points, number), strict=True))
        header = header_of(operands[y], rows=4, number=number)
        products = []
        for i in numbers:
            count = (3, 3, 2, 4, 4)[i]
            rows = dict(zip(("blob", "noise"), two_images(count, points, i), strict=True))
            rows["black"] = torch.zeros_like(rows["blob"])
            products.append(Product(count, pairs[i], rows[x], into=sums.get(i)))
        levels.append(Level(header, products, operands[y]))
    return levels


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: Patch) -> None:
    """spdz cuts products into chunks of points, one triple each: here also small ones."""
    monkeypatch.setattr(spdz, "MAX_CHUNK_WORDS", 4000)


@cache
def mixed(protocol: str, x: str, y: str) -> Transcript:
    return play(protocol, mixed_levels(x, y))


@pytest.mark.parametrize(("protocol", "party"), EVERY_VIEW)
@pytest.mark.parametrize("y", ["blob", "noise"])
def test_view_is_own_input_output_and_tape_and_nothing_else(protocol: str, party: str, y: str) -> None:
    transcript = mixed(protocol, "noise", y)
    own, view = transcript.owns[party], transcript.views[party]
    for level in own.levels:  # of the other party's input there is nothing in what the simulator gets
        assert (level.operand is None) == (party == ONE)
        assert all((p.rows is None) == (p.result is None) == (party == TWO) for p in level.products)
    simulator = SIMULATORS[protocol][party](own)
    tape = simulator.explain(view)
    rebuilt = simulator.rebuild(tape)
    for peer, messages in view.items():
        assert rebuilt.get(peer, []) == messages


def in_turn(levels: list[Level]) -> list[Level]:
    """Both operands are opened first, then their products take turns; party_1 says which operand each is with."""
    first, second = levels
    turns = [replace(first, products=first.products[:1]), replace(second, products=second.products[:1])]
    for number in (1, 2):
        turns += [replace(level, products=level.products[number : number + 1]) for level in (first, second)]
    return [level for level in turns if level.products]


@pytest.mark.parametrize(("protocol", "party"), EVERY_VIEW)
def test_view_of_operands_in_turn_is_own_input_output_and_tape_and_nothing_else(protocol: str, party: str) -> None:
    """No mask of one operand's products is another's, and party_2 hears which operand a product is with, no more."""
    transcript = play(protocol, in_turn(mixed_levels("noise", "blob")))
    simulator = SIMULATORS[protocol][party](transcript.owns[party])
    view = transcript.views[party]
    tape = simulator.explain(view)
    rebuilt = simulator.rebuild(tape)
    for peer, messages in view.items():
        assert rebuilt.get(peer, []) == messages
    named = [payload for kind, payload in view.get(ONE, []) if kind is MessageKind.OPERAND_IN_USE]
    assert named == [b"".join(pack({"number": number})) for number in (0, 1, 0)] * (party == TWO)
    drawn = simulator.draw(tape)
    assert simulator.explain(simulator.rebuild(drawn)).same_as(drawn)


@pytest.mark.parametrize(("protocol", "party"), EVERY_VIEW)
def test_simulated_view_has_the_form_of_a_real_one(protocol: str, party: str) -> None:
    transcript = mixed(protocol, "noise", "noise")
    simulator = SIMULATORS[protocol][party](transcript.owns[party])
    tape = simulator.explain(transcript.views[party])
    drawn = simulator.draw(tape)
    assert not drawn.same_as(tape)
    simulated = simulator.rebuild(drawn)
    assert simulator.explain(simulated).same_as(drawn)
    for peer, messages in transcript.views[party].items():
        simulated_sizes = without_compressed(protocol, sizes(simulated.get(peer, [])))
        assert simulated_sizes == without_compressed(protocol, sizes(messages))


@pytest.mark.parametrize("protocol", SIMULATORS)
def test_view_of_a_sum_is_made_of_the_sum_alone(protocol: str) -> None:
    """Two images of the same sums and other products: all that the simulator of party_1 is given is the same."""
    one, _ = two_images(3, 1500, 8)
    other = one[[1, 0, 2]]
    rows = two_images(2, 1500, 9)[1][:1].expand(3, -1).clone()
    pairs, into = [(0, 0), (1, 1), (2, 2), (0, 2), (2, 0), (0, 1)], (0, 0, 1, 1, 2, 2)
    assert not torch.equal(rows @ one.T, rows @ other.T)
    owns = []
    for operand in (one, other):
        transcript = play(
            protocol, [Level(header_of(operand, rows=3), [Product(3, pairs, rows, into=into)] * 2, operand)]
        )
        own, view = transcript.owns[ONE], transcript.views[ONE]
        simulator = SIMULATORS[protocol][ONE](own)
        rebuilt = simulator.rebuild(simulator.explain(view))
        for peer, messages in view.items():
            assert rebuilt.get(peer, []) == messages
        [level] = own.levels
        assert level.operand is None
        owns.append((level.header, [(p.count, p.pairs, p.into, p.result.tolist()) for p in level.products]))
    assert owns[0] == owns[1]


# SEAL compresses these, so that their sizes vary by some bytes from one to the next. Ciphertexts of primes of 60 bits
# alone it leaves as they are.
COMPRESSED = {"bfv": (MessageKind.PUBLIC_KEY,), "ckks": (MessageKind.PUBLIC_KEY, MessageKind.OPERAND_CIPHERTEXTS)}


def without_compressed(protocol: str, messages: list[tuple[MessageKind, int]]) -> list[tuple[MessageKind, int]]:
    return [(kind, 0 if kind in COMPRESSED.get(protocol, ()) else size) for kind, size in messages]


# 2. Kinds and sizes, exactly.


@pytest.mark.parametrize("protocol", SIMULATORS)
def test_kinds_order_and_sizes_of_messages_depend_on_public_values_only(protocol: str) -> None:
    secrets_of_both = [("noise", "noise"), ("noise", "blob"), ("blob", "noise"), ("black", "blob")]
    shapes = []
    for x, y in secrets_of_both:
        views = [view for _, view in sorted(mixed(protocol, x, y).views.items())]
        shapes.append([{peer: without_compressed(protocol, sizes(m)) for peer, m in v.items()} for v in views])
    assert all(shape == shapes[0] for shape in shapes[1:])


@pytest.mark.parametrize("protocol", ["spdz", "beaver"])
def test_every_byte_that_the_dealer_sees_is_the_same_for_every_secret(protocol: str) -> None:
    one, other = (mixed(protocol, *images).views[DEALER] for images in (("noise", "blob"), ("blob", "noise")))
    assert one == other
    assert [kind for kind, _ in one[ONE]] == [MessageKind.TRIPLE] * len(one[ONE])
    assert one[TWO] == []


@pytest.mark.parametrize("protocol", ENCRYPTED)
def test_sizes_of_ciphertexts_do_not_vary_with_the_image_compressed_or_not(protocol: str) -> None:
    operands = list(two_images(1, DEGREE, 6)) * 20
    headers = [header_of(operand, rows=1, number=i) for i, operand in enumerate(operands)]
    found = [len(p) for p in payloads(upload(protocol, headers, operands), MessageKind.OPERAND_CIPHERTEXTS)]
    blobs, noises = ([{"size": np.array([size])} for size in found[k::2]] for k in (0, 1))
    # One image, many sizes; without compression one size for every image.
    assert (len(set(found)) > 1) == (MessageKind.OPERAND_CIPHERTEXTS in COMPRESSED[protocol])
    assert by_values(blobs, noises) < SIGMAS
    # what a compressed image would say: its plaintext
    file, plain, packed_sizes = plaintext_file(DEGREE), seal.Plaintext(), []
    for image in operands[:2]:
        file.words[:] = image.numpy() & (1 << bfv.PLAIN_BITS) - 1
        file.load(plain, bfv.scheme().context)
        packed_sizes.append(len(save_seal(plain)))
    assert 2 * packed_sizes[0] < packed_sizes[1]


class Counting:
    """SEAL's evaluator, and how often it multiplied."""

    def __init__(self, evaluator: Any) -> None:
        self._evaluator, self.products = evaluator, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)

    def multiply_plain(self, *args: Any) -> Any:
        self.products += 1
        return self._evaluator.multiply_plain(*args)


@pytest.mark.parametrize("protocol", ENCRYPTED)
def test_work_under_encryption_does_not_tell_how_many_blocks_of_rows_are_black(
    protocol: str, monkeypatch: Patch
) -> None:
    """SEAL refuses to multiply by zero; skipping such blocks told party_2, which has a clock, the share of black:
    14 ms (all black) to 62 ms (nothing black) for 7 rows of 56,797 points under bfv. They are multiplied by one now.
    """
    (operand, _), rows = two_images(1, 4 * 2048, 7), torch.ones(3, 4 * 2048, dtype=torch.int64)
    header, module, work, shapes = header_of(operand, rows=3), MODULES[protocol], [], []
    assert module.layout(header).blocks == 4
    for shown in (0, 1, 3, 4):
        counting = Counting(module.scheme().evaluator)
        scheme = replace(module.scheme(), evaluator=counting)
        black = torch.where(torch.arange(4 * 2048) < 2048 * shown, rows, 0)
        with monkeypatch.context() as patch:
            patch.setattr(module, "scheme", lambda scheme=scheme: scheme)
            transcript = play(protocol, [Level(header, [Product(3, [(0, 0), (2, 0)], black)], operand)])
        work.append(counting.products)
        shapes.append(sizes(transcript.views[TWO][ONE]))
    assert len(set(work)) == 1
    assert all(shape == shapes[0] for shape in shapes)


# 3. The tape is what the simulator draws, whichever image it was.


@pytest.mark.parametrize(("protocol", "party"), [view for view in EVERY_VIEW if view != ("bfv", ONE)])
def test_tape_is_not_told_from_the_simulators(protocol: str, party: str) -> None:
    count = SESSION // 2 if protocol in ENCRYPTED and party == ONE else SESSION
    found = told_from_simulation(observe(protocol, party, "ours", count))
    assert max(found.values()) < SIGMAS, found


@pytest.mark.parametrize(
    ("protocol", "party", "variant", "count"),
    [
        ("beaver", ONE, "one b for all operands", 16),
        ("beaver", TWO, "one A for all products", 16),
        ("beaver", TWO, "one c1 for all products", 48),
        ("spdz", ONE, "one triple for all products", 16),
        ("spdz", TWO, "one triple for all products", 16),
        ("bfv", TWO, "no flood", 20),
        ("bfv", TWO, "one mask for all products", 12),
        ("bfv", TWO, "one zero for all replies", 4),
        ("ckks", TWO, "one mask for all products", 12),
        ("ckks", TWO, "one zero for all replies", 4),
        ("ckks", ONE, "no flood", 16),
    ],
)
def test_leaky_variant_is_told_from_the_simulation(protocol: str, party: str, variant: str, count: int) -> None:
    found = told_from_simulation(observe(protocol, party, variant, count))
    assert max(found.values()) > SIGMAS, found


# party_1's view under encryption is ciphertexts (RLWE, not tested) and what section 1 says exactly.
TOLD = [(protocol, party) for protocol, party in EVERY_VIEW if protocol not in ENCRYPTED or party == TWO]


@pytest.mark.parametrize("attacker", [*TELLING, "correlation"])
@pytest.mark.parametrize(("protocol", "party"), TOLD)
def test_attacker_cannot_tell_which_image_the_other_party_has(protocol: str, party: str, attacker: str) -> None:
    assert which_image(attacker, observe(protocol, party, "ours", SESSION)) < SIGMAS


@pytest.mark.parametrize("attacker", [*TELLING, "correlation"])
@pytest.mark.parametrize(("protocol", "party"), TOLD)
def test_same_attacker_tells_the_images_without_masks(protocol: str, party: str, attacker: str) -> None:
    assert which_image(attacker, observe(protocol, party, "no masks", SESSION)) > SIGMAS


@pytest.mark.parametrize("attacker", ["bytes", "values", "correlation"])  # the classifier would need more products
@pytest.mark.parametrize("party", [ONE, TWO])
def test_same_attacker_tells_the_images_under_masks_that_are_too_short(party: str, attacker: str) -> None:
    assert which_image(attacker, observe("beaver", party, "short masks", 2 * SESSION)) > SIGMAS


@pytest.mark.parametrize(("protocol", "party"), [view for view in TOLD if view[0] not in ENCRYPTED])
def test_no_word_is_one_of_the_other_partys_input(protocol: str, party: str) -> None:
    def hits(seen: Observed) -> NDArray[np.bool_]:
        return np.concatenate([c[k] == t[k] for c, t in zip(seen.clues, seen.truths, strict=True) for k in t])

    # 96,000 words of 32 bits under beaver: one is right with a chance of 2e-5, two are with 2e-10.
    assert np.count_nonzero(hits(observe(protocol, party, "ours", SESSION))) < 2
    assert hits(observe(protocol, party, "no masks", SESSION)).all()


@pytest.mark.parametrize(("variant", "repeats"), [("ours", 0), ("one c1 for all products", 7)])
@pytest.mark.parametrize("protocol", ["spdz", "beaver"])
def test_who_guesses_the_rows_right_sees_no_c1_again(
    protocol: str, variant: str, repeats: int, monkeypatch: Patch
) -> None:
    """No statistic above need show a c1 used twice (b changes in spdz); X b - c1 less a right guess of X b does."""
    VARIANTS[variant](monkeypatch)
    transcript, _ = session_with_two_images(protocol, TWO, 8)
    simulator = SIMULATORS[protocol][TWO](transcript.owns[TWO])
    guess = [product.rows.numpy() for product in transcript.played[0].products]
    c1 = simulator.minus_c1(simulator.explain(transcript.views[TWO]), guess)
    assert sum(np.array_equal(one, following) for one, following in pairwise(c1)) == repeats


def test_uniformity_alone_proves_nothing_mt19937_passes_every_attacker_and_is_read_completely() -> None:
    """Stock CrypTen's masks, and the attack of test_crypten_masks.py: black background shows the generator's words."""
    labels, images = np.random.default_rng(4).permutation(64) % 2 == 1, two_images(3, 640, 5)
    blob, noise = (image.numpy() for image in images)
    blob[0] = 0
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    differences, keyed, stream = [], [], KeyStream(new_key())
    for number, label in enumerate(labels):
        image = noise if label else blob
        masks = torch.randint(-(2**63), 2**63 - 1, image.shape, generator=generator).numpy()
        differences.append(image - masks)
        keyed.append(image - stream.words("A", number, image.shape))
    clues = with_differences([{"X - A": d.reshape(-1)} for d in differences])
    truths = with_differences([{"X - A": (noise if label else blob).reshape(-1)} for label in labels])
    seen = Observed(labels, clues, [], truths)
    for attacker in (*TELLING, "correlation"):
        assert which_image(attacker, seen) < SIGMAS
    first = int(np.flatnonzero(~labels)[0])
    hidden = blob.reshape(-1)[312:]
    assert np.count_nonzero(hidden) > 100
    assert np.array_equal(read_behind_the_background(differences[first]), hidden)
    assert not np.any(read_behind_the_background(keyed[first]) == hidden)
