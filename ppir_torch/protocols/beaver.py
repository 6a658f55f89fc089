"""beaver: the one-sided product over Z_2^k. party_1 knows X, party_2 knows Y, so neither is ever shared.

    R = X Y^T,   X = E + A,   Y = d + b     (Beaver, CRYPTO 1991, with both inputs known to one party each)
    R = E Y^T + A d^T + A b^T

The dealer, a third process, gives party_1 the key of (A, c1), party_2 the key of b, and party_2 c2 = A b^T - c1.

1. Once per operand party_2 sends d = Y - b.
2. Every product party_1 sends E = X - A with a fresh A; party_2 answers z = E Y^T + c2 for the pairs asked for, or the
   sums of z that are asked for.
3. party_1 computes R = z + A d^T + c1.

What each party sees, when nobody works with the dealer (proof by simulation; tests/attacks/test_transcripts.py runs
the simulators):

- party_2 sees E and c2. A is fresh AES-CTR words of a key that party_2 does not have: E is uniform. So is c2, for c1 is
  fresh. A simulator draws both at random.
- party_1 sees d and z. b is AES-CTR words of a key that party_1 does not have: d is uniform, whatever Y is, and stays
  so for all products with this operand. z = R - A d^T - c1 is a function of R and of what party_1 knows: a simulator
  draws d at random and computes z from R.
- b is used for one operand only and A for one product only; `KeyStream` raises at the second draw. With an A used
  twice, party_2 would see X - X' (attack 5).
- The dealer sees shapes.

Words are 32, 40, 48 or 64 bits wide, the narrowest that carries typical entries of the rows with `_row_bits` bits; the
choice follows from the operand's public header, so that all agree on it, and a product that could leave the ring is
refused before it is sent. A d^T + c1 and c2 do not depend on X: they are made while party_2 works on the last product.

Rounding is averaged over the points: with 2^18 and more of them 8 bits of J and 4 of a typical entry of X move the
result of a registration by about a thousandth of a voxel, and fit words of 32 bits, at half the time and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..arithmetic.csprng import KeyStream, new_key
from ..arithmetic.words import WIDTHS, narrowest_width, pack_words, signed_words, unpack_words, word_products, word_type
from ..errors import LinkError, PeerLost
from ..joint.interface import (
    COLUMN_BITS,
    FixedSide,
    Into,
    Limits,
    MovingSide,
    OperandHeader,
    Pairs,
    ProtocolEntry,
    Release,
    add_up,
    all_pairs,
    check_into,
    check_mapped,
    check_operand,
    check_pairs,
    check_range,
    check_sums,
)
from ..joint.public_map import PublicMap
from ..wire.kinds import MessageKind
from ..wire.link import Link, Received
from ..wire.payload import Buffer, pack, unpack
from .dealing import draw_words, read_key, with_dealer

__all__ = ["ENTRY", "BeaverFixedSide", "BeaverMovingSide", "serve_dealer", "width_of"]

ROW_BITS = 12  # of a typical entry of a row; its rounding is multiplied by the small residual I - J only
MANY_POINTS = 1 << 18  # from here on rounding averages out
MANY_POINTS_ROW_BITS, MANY_POINTS_COLUMN_BITS = 4, 8
MAX_WORDS = 1 << 34


@dataclass(frozen=True)
class _Shape:
    """What the dealer must know of one product: public sizes."""

    operand: int
    rows: int
    columns: int
    points: int
    width: int
    mapped: bool = False

    @property
    def bits(self) -> int:
        """Of the words that are drawn."""
        return _drawn_bits(self.width)

    def check(self, message: Received) -> _Shape:
        sizes = (self.rows, self.columns, self.points)
        whole = all(type(n) is int for n in (self.operand, *sizes)) and self.width in WIDTHS
        whole = whole and type(self.mapped) is bool
        if not whole or self.operand < 0 or min(sizes) < 1 or (self.rows + self.columns) * self.points > MAX_WORDS:
            raise LinkError(f"{message.kind.name}: {str(self)[:120]} is out of range; refused")
        return self


def width_of(header: OperandHeader) -> int:
    """Bits per word for an operand: rows of typical size 2^_row_bits give |R| <= |X|_2 |Y|_2 below 2^(width - 1)."""
    largest = math.sqrt(header.points) * math.sqrt(max(header.energy, 1))
    return narrowest_width(math.ceil(math.log2(largest)) + _row_bits(header) + 2)


def mapped_width(header: OperandHeader, public_map: PublicMap) -> int:
    """Bits per word where the products are mapped: rows with entries up to 2^row_bits stay in the ring."""
    needed = math.log2(max(header.max_abs, 1) * public_map.largest_sum) + header.row_bits + 2
    return narrowest_width(math.ceil(needed))


def _drawn_bits(width: int) -> int:
    """Of the words that masks are drawn and computed in, for words of a width on the wire."""
    return 32 if width == 32 else 64


def _row_bits(header: OperandHeader) -> int:
    return min(header.row_bits, MANY_POINTS_ROW_BITS if header.points >= MANY_POINTS else ROW_BITS)


def _limits(width: int) -> Limits:
    # One sixteenth of the ring stays free, for the noise that party_2 may add.
    return Limits(max_row=1 << (width - 2), max_result=(1 << (width - 1)) - (1 << (width - 5)))


def serve_dealer(link_1: Link, link_2: Link) -> None:
    """The dealer's loop, until party_1 sends FINISH or a party is gone.

    Args:
        link_1: link to party_1, which asks for products; it gets a key and nothing else.
        link_2: link to party_2, which gets a key and c2 = A b^T - c1 for each product.

    Raises:
        LinkError: party_1 sent something that is not a request for a product.
    """
    key_1, key_2 = new_key(), new_key()
    stream_1, stream_2 = KeyStream(key_1), KeyStream(key_2)
    number, operand, b = 0, -1, torch.empty(0)
    public_map: PublicMap | None = None
    try:
        link_1.send(MessageKind.SEED, key_1)
        link_2.send(MessageKind.SEED, key_2)
        while (
            request := link_1.receive(MessageKind.TRIPLE, MessageKind.PUBLIC_MAP, MessageKind.FINISH)
        ).kind is not MessageKind.FINISH:
            if request.kind is MessageKind.PUBLIC_MAP:
                public_map = PublicMap.from_message(*unpack(request.payload))
                continue
            shape = _read_shape(request)
            if shape.mapped and (public_map is None or public_map.points != shape.points or shape.columns != 1):
                raise LinkError(f"TRIPLE: {shape} does not go with the map before it; refused")
            if shape.operand != operand:
                operand = shape.operand
                b = draw_words(stream_2, "b", operand, shape.columns, shape.points, bits=shape.bits)
            elif b.shape != (shape.columns, shape.points) or b.dtype != word_type(shape.width):
                raise LinkError(f"TRIPLE: {shape} is not the operand's shape {tuple(b.shape)}; refused")
            a = draw_words(stream_1, "A", number, shape.rows, shape.points, bits=shape.bits)
            c2 = _bilinear(a, b, public_map if shape.mapped else None)
            c2.sub_(draw_words(stream_1, "c", number, *c2.shape, bits=shape.bits))
            link_2.send(MessageKind.TRIPLE_CORRECTION, c2.numpy().data)
            number += 1
    except PeerLost:
        return  # the parties say on their own link why they stopped


class BeaverMovingSide(MovingSide):
    """party_1's end.

    Args:
        link: link to party_2.
        dealer_link: link to the dealer.
        device: where the products are computed.
    """

    def __init__(self, link: Link, dealer_link: Link, device: str | torch.device = "cpu") -> None:
        self._link, self._dealer_link = link, dealer_link
        self._device = torch.device(device)
        self._stream: KeyStream | None = None
        self._header: OperandHeader | None = None
        self._map: PublicMap | None = None
        self._products = 0
        self._ready: tuple[Tensor, Tensor] | None = None  # A and A d^T + c1 of the next product
        self._rows_before, self._rows_after = 0, dict[int, int]()  # of the last product; after one of so many rows

    def accept_operand(self, header: OperandHeader, public_map: PublicMap | None = None) -> None:
        """Receive d = Y - b; sets `limits`.

        Raises:
            LinkError: it is not as long as the header says.
        """
        self._width = width_of(header) if public_map is None else mapped_width(header, public_map)
        self.limits, self._map = _limits(self._width), public_map
        if public_map is not None:
            self._dealer_link.send(MessageKind.PUBLIC_MAP, pack(*public_map.to_message()))
        count = header.columns * header.points
        words = unpack_words(self._link.receive(MessageKind.OPENED_OPERAND).payload, count, self._width)
        self._opened = words.reshape(header.columns, header.points).to(self._device)
        self._header, self._ready = header, None

    def multiply(
        self,
        rows: Tensor,
        pairs: Pairs | None = None,
        used: Tensor | None = None,  # noqa: ARG002
        into: Into | None = None,
    ) -> Tensor:
        """The products (pairs,) of int64 rows (rows, points) or their sums, int64 on the CPU.

        Raises:
            RangeError: rows of a wrong shape, or a product that could leave the ring; nothing was sent.
            LinkError: the answer is malformed. PeerLost: party_2 or the dealer is gone.
        """
        if self._header is None or self._map is not None:
            raise RuntimeError("multiply before accept_operand, or of an operand with a map")
        norms = check_range(rows, self._header, self.limits)
        pairs = all_pairs(rows.shape[0], self._header.columns) if pairs is None else pairs
        pairs = check_pairs(pairs, rows.shape[0], self._header)
        if into is not None:
            into = check_into(into, len(pairs))
            check_sums(rows, norms, self._header, self.limits, pairs, into)
        return self._product(rows, pairs, into)

    def project(self, rows: Tensor) -> Tensor:
        """See `MovingSide`; raises as `multiply`."""
        if self._header is None or self._map is None:
            raise RuntimeError("project before accept_operand with a map")
        check_mapped(rows, self._header, self._map, self.limits)
        return self._product(rows, None)

    def _product(self, rows: Tensor, pairs: list[tuple[int, int]] | None, into: list[int] | None = None) -> Tensor:
        """Checked rows to results: of the pairs or their sums, or of the map where there are none."""
        count = rows.shape[0]
        if self._ready is None or len(self._ready[0]) != count:
            self._ready = self._prepare(count)
        (a, known), self._ready = self._ready, None
        self._rows_after[self._rows_before], self._rows_before = count, count
        masked = torch.sub(rows.to(a), a, out=a)  # A is done with: no fresh memory
        asked = [np.array(pairs or [(0, 0)], np.uint16), *([] if into is None else [np.array(into, np.uint16)])]
        head = pack({"product": self._products - 1, "rows": count}, asked)
        self._link.send(MessageKind.MASKED_ROWS, _with_head(head, pack_words(masked, self._width)))
        # While party_2 computes; what an iteration asks for follows the last one's order.
        self._ready = self._prepare(self._rows_after.get(count, count))
        wanted = known if pairs is None else _wanted(known, pairs, into)
        z = unpack_words(self._link.receive(MessageKind.RESULT_SHARE).payload, wanted.numel(), self._width)
        return signed_words(z + wanted, self._width)

    def _prepare(self, rows: int) -> tuple[Tensor, Tensor]:
        """A (rows, points) and A d^T + c1 (rows, columns) of the next product, which the dealer is asked for."""
        assert self._header is not None
        if self._stream is None:
            self._stream = KeyStream(read_key(self._dealer_link.receive(MessageKind.SEED)))
        header, number = self._header, self._products
        shape = _Shape(header.number, rows, header.columns, header.points, self._width, self._map is not None)
        self._dealer_link.send(MessageKind.TRIPLE, pack(shape.__dict__))
        self._products += 1
        a = draw_words(self._stream, "A", number, rows, header.points, bits=shape.bits).to(self._device)
        known = _bilinear(a, self._opened, self._map).cpu()
        return a, known.add_(draw_words(self._stream, "c", number, *known.shape, bits=shape.bits))


class BeaverFixedSide(FixedSide):
    """party_2's end.

    Args:
        link: link to party_1.
        dealer_link: link to the dealer.
        device: where the products are computed.
    """

    def __init__(self, link: Link, dealer_link: Link, device: str | torch.device = "cpu") -> None:
        self._link, self._dealer_link = link, dealer_link
        self._device = torch.device(device)
        self._stream: KeyStream | None = None
        self._header: OperandHeader | None = None
        self._map: PublicMap | None = None
        self._corrections = 0

    def send_operand(self, header: OperandHeader, values: Tensor, public_map: PublicMap | None = None) -> None:
        """Send d = Y - b for values int64 (columns, points).

        Raises:
            RangeError: values do not fit the header.
        """
        table = check_operand(values, header)
        if self._stream is None:
            self._stream = KeyStream(read_key(self._dealer_link.receive(MessageKind.SEED)))
        self._width = width_of(header) if public_map is None else mapped_width(header, public_map)
        self.limits, self._map = _limits(self._width), public_map
        words, bits = table.to(word_type(self._width)), _drawn_bits(self._width)
        opened = words - draw_words(self._stream, "b", header.number, header.columns, header.points, bits=bits)
        self._link.send(MessageKind.OPENED_OPERAND, pack_words(opened, self._width))
        self._header, self._operand = header, words.to(self._device)

    def column_bits(self, points: int) -> int:
        """Fewer where rounding averages out over many points: then words of 32 bits will do."""
        return MANY_POINTS_COLUMN_BITS if points >= MANY_POINTS else COLUMN_BITS

    def answer(self, request: Received, release: Release) -> None:
        """z = E Y^T + c2 for the pairs that MASKED_ROWS asks for.

        Raises:
            LinkError: another kind of message, or not of the agreed shape.
            PeerLost: party_1 or the dealer is gone.
        """
        if request.kind is not MessageKind.MASKED_ROWS or self._header is None:
            raise LinkError(f"{request.kind.name} is not due; refused")
        header = self._header
        number, rows, pairs, into, words = _read_request(request)
        pairs = check_pairs(pairs, rows, header)
        results = 1 + max(check_into(into, len(pairs)))
        if self._map is not None and rows != header.rows:
            raise LinkError(f"product of {rows} rows, {header.rows} were agreed; refused")
        masked = unpack_words(words, rows * header.points, self._width).reshape(rows, header.points)
        size = (rows, header.columns) if self._map is None else (self._map.results(rows),)
        c2 = self._correction(number, size)
        noise = release(results if self._map is None else size[0])
        products = _bilinear(masked.to(self._device), self._operand, self._map).cpu() + c2
        if self._map is None:
            products = _wanted(products, pairs, into)
        self._link.send(MessageKind.RESULT_SHARE, pack_words(products + noise.to(products), self._width))

    def _correction(self, number: int, size: tuple[int, ...]) -> Tensor:
        """c2 of product `number`; corrections that party_1 prepared and did not use are passed over."""
        if number < self._corrections:
            raise LinkError(f"MASKED_ROWS: product {number} was answered before; refused")
        while True:
            payload = self._dealer_link.receive(MessageKind.TRIPLE_CORRECTION).payload
            self._corrections += 1
            if self._corrections > number:
                break
        return unpack_words(payload, math.prod(size), _drawn_bits(self._width)).reshape(size)


def _bilinear(left: Tensor, right: Tensor, public_map: PublicMap | None) -> Tensor:
    """Every row with every column (rows, columns); or, mapped, the results (count,). All of it is bilinear."""
    return word_products(left, right) if public_map is None else public_map.forms(left, right)


def _wanted(products: Tensor, pairs: list[tuple[int, int]], into: list[int] | None) -> Tensor:
    """Of every row with every column, the pairs (pairs,) or their sums (results,)."""
    chosen = products[[row for row, _ in pairs], [column for _, column in pairs]]
    return chosen if into is None else add_up(chosen, into)


def _with_head(head: Sequence[Buffer], words: Sequence[Buffer]) -> list[Buffer]:
    return [sum(len(part) for part in head).to_bytes(4, "little"), *head, *words]


def _read_request(message: Received) -> tuple[int, int, list[tuple[int, int]], list[int] | None, memoryview]:
    """(number of the product, rows, pairs, their sums, the words) of a MASKED_ROWS message."""
    size = int.from_bytes(message.payload[:4], "little")
    meta, arrays = unpack(message.payload[4 : 4 + size])
    number, rows = meta.get("product"), meta.get("rows")
    if type(number) is not int or type(rows) is not int or len(arrays) not in (1, 2) or arrays[0].ndim != 2:
        raise LinkError(f"{message.kind.name}: number, rows and pairs of a product are due; refused")
    if arrays[0].shape[1] != 2 or arrays[0].dtype != np.uint16:
        raise LinkError(f"{message.kind.name}: pairs of rows and columns are due; refused")
    if len(arrays) == 2 and (arrays[1].ndim != 1 or arrays[1].dtype != np.uint16):
        raise LinkError(f"{message.kind.name}: the sums of the products are due; refused")
    into = None if len(arrays) == 1 else [int(n) for n in arrays[1]]
    return number, rows, [(int(row), int(column)) for row, column in arrays[0]], into, message.payload[4 + size :]


def _read_shape(message: Received) -> _Shape:
    meta, arrays = unpack(message.payload)
    if set(meta) != set(_Shape.__dataclass_fields__) or arrays:
        raise LinkError(f"{message.kind.name}: the shape of a product is due; refused")
    return _Shape(**meta).check(message)


ENTRY = ProtocolEntry(
    name="beaver",
    party_1_learns="the opened products of each iteration; per level the mean, scale and energy of J",
    party_2_learns="sizes and timing only; the dealer the same",
    moving_side=lambda link, dealer_link, device: BeaverMovingSide(link, with_dealer(dealer_link, "beaver"), device),
    fixed_side=lambda link, dealer_link, device: BeaverFixedSide(link, with_dealer(dealer_link, "beaver"), device),
    dealer=serve_dealer,
)
