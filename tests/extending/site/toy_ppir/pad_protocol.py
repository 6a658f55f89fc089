"""The protocol `pad`: products modulo 2^64 under one-time pads, X = E + A at party_1 and Y = d + b at party_2.

    R = X Y^T = E Y^T + A d^T + A b^T        (Beaver, CRYPTO 1991, with both inputs known to one party each)

The dealer gives party_1 the key of A and c1, party_2 the key of b and c2 = A b^T - c1. party_2 sees E and c2, both
uniform; party_1 sees d, uniform, and z = E Y^T + c2, which is R less what it knows itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from ppir_torch import LinkError, PeerLost
from ppir_torch.arithmetic.csprng import KeyStream, new_key
from ppir_torch.arithmetic.words import pack_words, unpack_words, word_products
from ppir_torch.joint.bounds import Limits, add_up, check_operand, check_pairs, check_sum_index
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import (
    FixedOperand,
    FixedSide,
    MovingOperand,
    MovingSide,
    Product,
    Protocol,
    Release,
)
from ppir_torch.protocols.dealing import (
    KeyMessage,
    WordsMessage,
    asked_arrays,
    draw_words,
    read_asked,
    with_dealer,
)
from ppir_torch.wire.channel import Channel, Received
from ppir_torch.wire.fields import read_integer, read_only
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.messages import Message
from ppir_torch.wire.payload import Buffer, pack, unpack

WIDTH = 64
LIMITS = Limits(max_row=1 << 40, max_result=1 << 62)  # half of the ring: the rest is room for party_2's noise
MOST = 1 << 31


class Key(KeyMessage):
    """The dealer to either party: the key of its pads."""

    kind = MessageKind.EXTENSION_DEALER


class Correction(WordsMessage):
    """The dealer to party_2: c2 of a product."""

    kind = MessageKind.EXTENSION_DEALER


class Padded(WordsMessage):
    """party_2 to party_1: d of an operand."""

    kind = MessageKind.EXTENSION_SET_UP


class Answer(WordsMessage):
    """party_2 to party_1: z of the products that were asked for."""

    kind = MessageKind.EXTENSION_ANSWER


@dataclass(frozen=True, eq=False)
class Sizes(Message):
    """party_1 to the dealer: of the next product."""

    operand: int
    rows: int
    columns: int
    points: int

    kind = MessageKind.EXTENSION_DEALER

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack(asdict(self))

    @classmethod
    def decode(cls, payload: Buffer) -> Sizes:
        """See `Message`."""
        meta, _ = unpack(payload)
        read_only(meta, "operand", "rows", "columns", "points")
        sizes = [read_integer(meta, name, 1, MOST) for name in ("rows", "columns", "points")]
        return cls(read_integer(meta, "operand", 0, MOST), *sizes)


@dataclass(frozen=True, eq=False)
class Request(Message):
    """party_1 to party_2: E (rows, points), and which products with it are wanted."""

    rows: int
    pairs: Sequence[tuple[int, int]]
    sum_index: Sequence[int] | None
    words: Sequence[Buffer]

    kind = MessageKind.EXTENSION_REQUEST

    def encode(self) -> list[Buffer]:
        """See `Message`: the length of what says the shape, that, then the words."""
        head = pack({"rows": self.rows}, asked_arrays(self.pairs, self.sum_index))
        return [sum(map(len, head)).to_bytes(4, "little"), *head, *self.words]

    @classmethod
    def decode(cls, payload: Buffer) -> Request:
        """See `Message`."""
        view = memoryview(payload)
        size = 4 + int.from_bytes(view[:4], "little")
        meta, arrays = unpack(view[4:size])
        return cls(read_integer(meta, "rows", 1, MOST), *read_asked(arrays, cls.kind), [view[size:]])


class PadMovingSide(MovingSide):
    """party_1's end: its key, and how many products there were."""

    def __init__(self, channel: Channel, dealer: Channel) -> None:
        super().__init__(channel)
        self.dealer, self.products = dealer, 0
        self.stream = KeyStream(Key.receive(dealer).key)

    def open(self, header: OperandHeader) -> PadMovingOperand:
        """Receive d."""
        words = Padded.receive(self.channel).words(header.columns * header.points, WIDTH)
        return PadMovingOperand(self, header, words.reshape(header.columns, header.points))


class PadMovingOperand(MovingOperand):
    """party_1's end of one operand."""

    def __init__(self, side: PadMovingSide, header: OperandHeader, padded: Tensor) -> None:
        super().__init__(side, header, LIMITS)
        self.side, self.padded = side, padded

    def compute(self, product: Product) -> Tensor:
        """E goes up, z comes down, R = z + A d^T + c1."""
        side, (count, points), number = self.side, product.rows.shape, self.side.products
        side.products += 1
        Sizes(self.header.number, count, self.header.columns, points).send(side.dealer)
        pad = draw_words(side.stream, "A", number, count, points)
        Request(count, product.pairs, product.sum_index, pack_words(product.rows - pad, WIDTH)).send(side.channel)
        known = word_products(pad, self.padded) + draw_words(side.stream, "c", number, count, self.header.columns)
        return Answer.receive(side.channel).words(product.results, WIDTH) + wanted(
            known, product.pairs, product.sum_index
        )


class PadFixedSide(FixedSide):
    """party_2's end: its key."""

    def __init__(self, channel: Channel, dealer: Channel) -> None:
        super().__init__(channel)
        self.dealer = dealer
        self.stream = KeyStream(Key.receive(dealer).key)

    def open(self, header: OperandHeader, values: Tensor) -> PadFixedOperand:
        """Send d = Y - b."""
        table = check_operand(values, header)
        pad = draw_words(self.stream, "b", header.number, header.columns, header.points)
        Padded.of(table - pad, WIDTH).send(self.channel)
        return PadFixedOperand(self, header, table)


class PadFixedOperand(FixedOperand):
    """party_2's end of one operand: Y itself."""

    def __init__(self, side: PadFixedSide, header: OperandHeader, table: Tensor) -> None:
        super().__init__(header, LIMITS)
        self.side, self.table = side, table

    def answer(self, request: Received, release: Release) -> None:
        """z = E Y^T + c2 of what is asked for, when the cap was charged."""
        if request.kind is not Request.kind:
            raise LinkError(f"{request.kind.name} is not due; refused")
        asked, header = Request.decode(request.payload), self.header
        pairs = check_pairs(asked.pairs, asked.rows, header)
        noise = release(1 + max(check_sum_index(asked.sum_index, len(pairs))))
        padded = unpack_words(memoryview(asked.words[0]), asked.rows * header.points, WIDTH)
        c2 = Correction.receive(self.side.dealer).words(asked.rows * header.columns, WIDTH)
        products = word_products(padded.reshape(asked.rows, -1), self.table) + c2.reshape(asked.rows, -1)
        Answer.of(wanted(products, pairs, asked.sum_index) + noise, WIDTH).send(self.side.channel)


def wanted(products: Tensor, pairs: Sequence[tuple[int, int]], sum_index: Sequence[int] | None) -> Tensor:
    """Of every row with every column, the pairs or their sums."""
    chosen = products[[row for row, _ in pairs], [column for _, column in pairs]]
    return chosen if sum_index is None else add_up(chosen, sum_index)


def serve_dealer(channel_1: Channel, channel_2: Channel) -> None:
    """The dealer: both keys, then c2 of every product, until party_1 has finished."""
    key_1, key_2 = new_key(), new_key()
    stream, number = KeyStream(key_1), 0
    try:
        Key(key_1).send(channel_1)
        Key(key_2).send(channel_2)
        while (message := channel_1.receive(Sizes.kind, MessageKind.FINISH)).kind is Sizes.kind:
            asked = Sizes.decode(message.payload)
            a = draw_words(stream, "A", number, asked.rows, asked.points)
            # The same pad of the same operand in every product with it, so each time of a new stream.
            b = draw_words(KeyStream(key_2), "b", asked.operand, asked.columns, asked.points)
            c1 = draw_words(stream, "c", number, asked.rows, asked.columns)
            Correction.of(word_products(a, b) - c1, WIDTH).send(channel_2)
            number += 1
    except PeerLost:
        return  # the parties say on their own link why they stopped


PROTOCOL = Protocol(
    name="pad",
    moving_side=lambda channel, dealer, _device: PadMovingSide(channel, with_dealer(dealer, "pad")),
    fixed_side=lambda channel, dealer, _device: PadFixedSide(channel, with_dealer(dealer, "pad")),
    dealer=serve_dealer,
    product_kinds=(Request.kind,),
    result_bits=62,
)
