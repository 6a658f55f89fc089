"""beaver: the one-sided product over Z_2^k. party_1 knows X, party_2 knows Y, so neither is ever shared.

    R = X Y^T,   X = E + A,   Y = d + b     (Beaver, CRYPTO 1991, with both inputs known to one party each)
    R = E Y^T + A d^T + A b^T

The dealer, a third process, gives party_1 the key of (A, c1), party_2 the key of b, and party_2 c2 = A b^T - c1.

1. Once per operand party_2 sends d = Y - b.
2. Every product party_1 sends E = X - A with a fresh A; party_2 answers z = E Y^T + c2 for the pairs asked for, or the
   sums of z that are asked for.
3. party_1 computes R = z + A d^T + c1.

What each party sees, and why it says nothing more: docs/protocols/beaver.md. b is used for one operand only and A for
one product only; with an A used twice, party_2 would see X - X'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..arithmetic.csprng import KeyStream, new_key
from ..arithmetic.words import narrowest_width, pack_words, signed_words, unpack_words, word_type
from ..errors import LinkError, PeerLost
from ..joint.bounds import SIGNED, Limits, Pairs, SumIndex, add_up, check_operand, check_pairs, check_sum_index
from ..joint.header import COLUMN_BITS, OperandHeader
from ..joint.interface import (
    FixedOperand,
    FixedSide,
    MovingMappedOperand,
    MovingOperand,
    MovingSide,
    Product,
    Protocol,
    Release,
)
from ..joint.public_map import PublicMap
from ..joint.rows import HeldRows, IntegerRows
from ..wire.channel import Channel, Received
from ..wire.kinds import MessageKind
from .beaver_messages import MapOfProducts, MaskedRows, OpenedOperand, TripleRequest, drawn_bits
from .dealing import Correction, DealerKey, ResultShare, draw_words, with_dealer
from .word_parts import DealtWords, NarrowColumns, ReceivedWords, Shifted, Words, message_ranges, products, ranges

__all__ = ["PROTOCOL", "BeaverFixedSide", "BeaverMovingSide", "serve_dealer", "width_of"]

ROW_BITS = 12  # of a typical entry of a row; its rounding is multiplied by the small residual I - J only
MANY_POINTS = 1 << 18  # from here on rounding averages out, and words of 32 bits will do: half the time and bytes
MANY_POINTS_ROW_BITS, MANY_POINTS_COLUMN_BITS = 4, 8
_CPU = torch.device("cpu")


def width_of(header: OperandHeader) -> int:
    """Bits per word for an operand: rows of typical size 2^_row_bits give |R| <= |X|_2 |Y|_2 below 2^(width - 1)."""
    largest = math.sqrt(header.points) * math.sqrt(max(header.energy, 1))
    return narrowest_width(math.ceil(math.log2(largest)) + _row_bits(header) + 2)


def mapped_width(header: OperandHeader, public_map: PublicMap) -> int:
    """Bits per word where the products are mapped: rows with entries up to 2^row_bits stay in the ring."""
    needed = math.log2(max(header.max_abs, 1) * public_map.largest_sum) + header.row_bits + 2
    return narrowest_width(math.ceil(needed))


def _row_bits(header: OperandHeader) -> int:
    return min(header.row_bits, MANY_POINTS_ROW_BITS if header.points >= MANY_POINTS else ROW_BITS)


def _limits(width: int) -> Limits:
    # One sixteenth of the ring stays free, for the noise that party_2 may add.
    return Limits(max_row=1 << (width - 2), max_result=(1 << (width - 1)) - (1 << (width - 5)))


def serve_dealer(channel_1: Channel, channel_2: Channel) -> None:
    """The dealer's loop, until party_1 sends FINISH or a party is gone.

    Args:
        channel_1: to party_1, which asks for products; it gets a key and nothing else.
        channel_2: to party_2, which gets a key and c2 = A b^T - c1 for each product.

    Raises:
        LinkError: party_1 sent something that is not a request for a product.
    """
    key_1, key_2 = new_key(), new_key()
    stream_1, number = KeyStream(key_1), 0
    operand, b = -1, None
    shapes: dict[int, tuple[int, int, int]] = {}  # of each operand's b
    public_map: PublicMap | None = None
    try:
        DealerKey(key_1).send(channel_1)
        DealerKey(key_2).send(channel_2)
        while (
            message := channel_1.receive(MessageKind.TRIPLE, MessageKind.PUBLIC_MAP, MessageKind.FINISH)
        ).kind is not MessageKind.FINISH:
            if message.kind is MessageKind.PUBLIC_MAP:
                public_map = MapOfProducts.decode(message.payload).public_map
                continue
            asked = TripleRequest.decode(message.payload)
            shape = (asked.columns, asked.points, asked.bits)
            if asked.mapped and (public_map is None or public_map.points != asked.points or asked.columns != 1):
                raise LinkError(f"TRIPLE: {asked} does not go with the map before it; refused")
            if shapes.setdefault(asked.operand, shape) != shape:
                raise LinkError(f"TRIPLE: {asked} is not the operand's shape {shapes[asked.operand]}; refused")
            if asked.operand != operand or b is None:
                # An earlier operand's b is the same words again, of a stream of its own: one mask of one operand.
                operand, again = asked.operand, KeyStream(key_2)
                b = DealtWords(again, "b", operand, (asked.columns, asked.points), asked.bits, _CPU)
            a = DealtWords(stream_1, "A", number, (asked.rows, asked.points), asked.bits, _CPU)
            c2 = _bilinear(a, b, asked.points, public_map if asked.mapped else None, _CPU)
            c2.sub_(draw_words(stream_1, "c", number, *c2.shape, bits=asked.bits))
            Correction.of(c2, asked.bits).send(channel_2)
            number += 1
    except PeerLost:
        return  # the parties say on their own link why they stopped


@dataclass(frozen=True, eq=False)
class _Opened:
    """An operand as party_1 has it: d (columns, points) on its device."""

    header: OperandHeader
    width: int
    words: ReceivedWords
    public_map: PublicMap | None


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What the next product needs and X is no part of: its number, A (rows, points), and A d^T + c1."""

    operand: _Opened
    number: int
    rows: int
    mask: DealtWords
    known: Tensor


class BeaverMovingSide(MovingSide):
    """party_1's end.

    Args:
        channel: to party_2.
        dealer: channel to the dealer.
        device: where the products are computed.
    """

    def __init__(self, channel: Channel, dealer: Channel, device: str | torch.device = "cpu") -> None:
        super().__init__(channel)
        self._dealer, self._device = dealer, torch.device(device)
        self._stream: KeyStream | None = None
        self._products = 0
        self._dealt = -1  # the operand that the dealer was last asked for
        self._ready: _Prepared | None = None
        self._last: tuple[_Opened, int] | None = None  # operand and rows of the last product
        self._rows_after = dict[int, int]()  # of the next product with an operand, after one of so many rows

    def open(self, header: OperandHeader) -> BeaverMovingOperand:
        """Receive d = Y - b.

        Raises:
            LinkError: it is not as long as the header says.
        """
        return BeaverMovingOperand(self, self._receive(header, width_of(header), None))

    def open_mapped(self, header: OperandHeader, public_map: PublicMap) -> BeaverMovingMappedOperand:
        """The same for an operand with a map."""
        opened = self._receive(header, mapped_width(header, public_map), public_map)
        return BeaverMovingMappedOperand(self, opened, public_map)

    def exchange(self, opened: _Opened, rows: IntegerRows, pairs: Pairs | None, sum_index: SumIndex | None) -> Tensor:
        """Checked rows to results: of the pairs or their sums, or of the map where there are no pairs."""
        count = rows.count
        ready, self._ready = self._ready, None
        if ready is None or ready.operand is not opened or ready.rows != count:
            ready = self._prepare(opened, count)
        last, self._last = self._last, (opened, count)
        if last is not None and last[0] is opened:
            self._rows_after[last[1]] = count
        asked = partial(MaskedRows, ready.number, count, pairs or [(0, 0)], sum_index)
        for start, stop in message_ranges(count, rows.points):
            words = pack_words(self._masked(rows, ready.mask, start, stop, opened.width), opened.width)
            asked(words).send(self.channel)
            self.channel.settle(sum(part.nbytes for part in words))  # party_2 is reading, and memory is not without end
        wanted = ready.known if pairs is None else _wanted(ready.known, pairs, sum_index)
        # While party_2 computes; what an iteration asks for follows the last one's order.
        self._ready = self._prepare(opened, self._rows_after.get(count, count))
        z = ResultShare.receive(self.channel).words(wanted.numel(), opened.width)
        return signed_words(z.view_as(wanted) + wanted, opened.width)

    def _masked(self, rows: IntegerRows, mask: DealtWords, start: int, stop: int, width: int) -> Tensor:
        """E = X - A at a range of points (rows, n), of whose making nothing stays."""
        masked = torch.empty(rows.count, stop - start, dtype=word_type(width), device=self._device)
        for first, last in ranges(start, stop, self._device):
            part = masked[:, first - start : last - start]
            torch.sub(rows.part(first, last).to(masked), mask.part(first, last), out=part)
        return masked

    def _receive(self, header: OperandHeader, width: int, public_map: PublicMap | None) -> _Opened:
        words = ReceivedWords(header.columns, header.points, width, self._device)
        for start, stop in message_ranges(header.columns, header.points):
            (payload,) = OpenedOperand.receive(self.channel).parts
            words.put(start, stop, memoryview(payload))
        return _Opened(header, width, words, public_map)

    def _prepare(self, opened: _Opened, rows: int) -> _Prepared:
        """Ask the dealer for the next product, with so many rows."""
        header, number = opened.header, self._products
        self._products += 1
        if self._stream is None:
            self._stream = KeyStream(DealerKey.receive(self._dealer).key)
        if opened.public_map is not None and self._dealt != header.number:
            MapOfProducts(opened.public_map).send(self._dealer)
        self._dealt, mapped = header.number, opened.public_map is not None
        asked = TripleRequest(header.number, rows, header.columns, header.points, opened.width, mapped)
        asked.send(self._dealer)
        mask = DealtWords(self._stream, "A", number, (rows, header.points), asked.bits, self._device)
        known = _bilinear(mask, opened.words, header.points, opened.public_map, self._device).cpu()
        known.add_(draw_words(self._stream, "c", number, *known.shape, bits=asked.bits))
        return _Prepared(opened, number, rows, mask, known)


class BeaverMovingOperand(MovingOperand):
    """One operand at party_1; products int64 on the CPU."""

    def __init__(self, side: BeaverMovingSide, opened: _Opened) -> None:
        super().__init__(side, opened.header, _limits(opened.width))
        self._side, self._words = side, opened

    def compute(self, product: Product) -> Tensor:
        """See `MovingOperand`."""
        return self._side.exchange(self._words, product.source, product.pairs, product.sum_index)


class BeaverMovingMappedOperand(MovingMappedOperand):
    """One operand with a map at party_1; results int64 on the CPU."""

    def __init__(self, side: BeaverMovingSide, opened: _Opened, public_map: PublicMap) -> None:
        super().__init__(side, opened.header, _limits(opened.width), public_map)
        self._side, self._words = side, opened

    def compute(self, rows: Tensor) -> Tensor:
        """See `MovingMappedOperand`."""
        return self._side.exchange(self._words, HeldRows(rows), None, None)


class BeaverFixedSide(FixedSide):
    """party_2's end.

    Args:
        channel: to party_1.
        dealer: channel to the dealer.
        device: where the products are computed.
    """

    takes_narrow = True

    def __init__(self, channel: Channel, dealer: Channel, device: str | torch.device = "cpu") -> None:
        super().__init__(channel)
        self.device, self._dealer = torch.device(device), dealer
        self._stream: KeyStream | None = None
        self._corrections = 0

    def open(self, header: OperandHeader, values: Tensor) -> BeaverFixedOperand:
        """Send d = Y - b for values int64 (columns, points).

        Raises:
            RangeError: values do not fit the header.
        """
        return self._open(header, values, width_of(header), None)

    def open_mapped(self, header: OperandHeader, values: Tensor, public_map: PublicMap) -> BeaverFixedOperand:
        """The same for an operand with a map."""
        return self._open(header, values, mapped_width(header, public_map), public_map)

    def column_bits(self, points: int) -> int:
        """Fewer where rounding averages out over many points: then words of 32 bits will do."""
        return MANY_POINTS_COLUMN_BITS if points >= MANY_POINTS else COLUMN_BITS

    def correction(self, number: int) -> Correction:
        """c2 of product `number`; corrections that party_1 prepared and did not use are passed over.

        Raises:
            LinkError: the product was answered before, or passed over.
        """
        if number < self._corrections:
            raise LinkError(f"MASKED_ROWS: product {number} was answered before; refused")
        while True:
            found = Correction.receive(self._dealer)
            self._corrections += 1
            if self._corrections > number:
                return found

    def _open(
        self, header: OperandHeader, values: Tensor, width: int, public_map: PublicMap | None
    ) -> BeaverFixedOperand:
        table = check_operand(values, header, SIGNED)
        if self._stream is None:
            self._stream = KeyStream(DealerKey.receive(self._dealer).key)
        shape, here = (header.columns, header.points), table.device
        mask = DealtWords(self._stream, "b", header.number, shape, drawn_bits(width), here)
        columns = NarrowColumns(table, header.max_abs, word_type(width), here)
        for start, stop in message_ranges(*shape):
            opened = torch.empty(header.columns, stop - start, dtype=word_type(width), device=here)
            for first, last in ranges(start, stop, here):
                part = opened[:, first - start : last - start]
                torch.sub(columns.part(first, last), mask.part(first, last), out=part)
            message = OpenedOperand.of(opened, width)
            message.send(self.channel)
            self.channel.settle(sum(len(part) for part in message.parts))
        if here != self.device:
            columns = NarrowColumns(table, header.max_abs, word_type(width), self.device)
        return BeaverFixedOperand(self, header, width, columns, public_map)


class BeaverFixedOperand(FixedOperand):
    """One operand at party_2: Y itself, (columns, points) on its device."""

    def __init__(
        self,
        side: BeaverFixedSide,
        header: OperandHeader,
        width: int,
        words: NarrowColumns,
        public_map: PublicMap | None,
    ) -> None:
        super().__init__(header, _limits(width))
        self._side, self._width, self._words, self._map = side, width, words, public_map

    def answer(self, request: Received, release: Release) -> None:
        """z = E Y^T + c2 for the pairs that MASKED_ROWS asks for.

        Raises:
            LinkError: another kind of message, or not of the agreed shape.
            PeerLost: party_1 or the dealer is gone.
        """
        if request.kind is not MessageKind.MASKED_ROWS:
            raise LinkError(f"{request.kind.name} is not due; refused")
        asked, header = MaskedRows.decode(request.payload), self.header
        pairs = check_pairs(asked.pairs, asked.rows, header)
        results = 1 + max(check_sum_index(asked.sum_index, len(pairs)))
        if self._map is not None and asked.rows != header.rows:
            raise LinkError(f"product of {asked.rows} rows, {header.rows} were agreed; refused")
        products = self._products(asked).cpu()
        size = (asked.rows, header.columns) if self._map is None else (self._map.results(asked.rows),)
        c2 = self._side.correction(asked.number).words(math.prod(size), drawn_bits(self._width)).reshape(size)
        noise = release(results if self._map is None else size[0])
        products = products + c2
        if self._map is None:
            products = _wanted(products, pairs, asked.sum_index)
        ResultShare.of(products + noise.to(products), self._width).send(self._side.channel)

    def _products(self, asked: MaskedRows) -> Tensor:
        """E Y^T, or mapped; E comes with `asked`, and where it is much in further messages."""
        header, device, total = self.header, self._side.device, None
        whole = None if self._map is None else ReceivedWords(asked.rows, header.points, self._width, device)
        for start, stop in message_ranges(asked.rows, header.points):
            if start > 0:
                more = MaskedRows.receive(self._side.channel)
                if (more.number, more.rows) != (asked.number, asked.rows):
                    raise LinkError(f"MASKED_ROWS: rows of product {more.number}, {asked.number} is not whole; refused")
                asked = more
            if whole is not None:
                whole.put(start, stop, memoryview(asked.words[0]))
                continue
            masked = unpack_words(memoryview(asked.words[0]), asked.rows * (stop - start), self._width)
            here = Shifted(masked.reshape(asked.rows, stop - start).to(device), start)
            part = products(here, self._words, (start, stop), device)
            total = part if total is None else total.add_(part)
        if whole is not None:
            total = _bilinear(whole, self._words, header.points, self._map, device)
        assert total is not None
        return total


def _bilinear(left: Words, right: Words, points: int, public_map: PublicMap | None, device: torch.device) -> Tensor:
    """Every row with every column (rows, columns); or, mapped, the results (count,). All of it is bilinear."""
    if public_map is None:
        return products(left, right, (0, points), device)
    return public_map.forms(left.part(0, points), right.part(0, points))


def _wanted(products: Tensor, pairs: Pairs, sum_index: SumIndex | None) -> Tensor:
    """Of every row with every column, the pairs (pairs,) or their sums (results,)."""
    chosen = products[[row for row, _ in pairs], [column for _, column in pairs]]
    return chosen if sum_index is None else add_up(chosen, sum_index)


PROTOCOL = Protocol(
    name="beaver",
    moving_side=lambda channel, dealer, device: BeaverMovingSide(channel, with_dealer(dealer, "beaver"), device),
    fixed_side=lambda channel, dealer, device: BeaverFixedSide(channel, with_dealer(dealer, "beaver"), device),
    dealer=serve_dealer,
    product_kinds=(MessageKind.MASKED_ROWS,),
    result_bits=62,
)
