"""spdz: additive shares and Beaver triples on CrypTen tensors; the paper's MPC protocol, with its masks repaired.

R = X Y^T mod 2^64 (Beaver, CRYPTO 1991; CrypTen: Knott et al., NeurIPS 2021). The dealer, a third process, gives the
parties shares of a, b and c = a b. They open e = X - a and d = Y - b to each other; c + e b + a d + e d = R stays
shared until party_2 sends its share to party_1. Products run in chunks of points, one triple each; a triple used twice
would open X - X'. For the sharing of zero party_2 draws a key for each operand and sends it.

Mapped products (see `PublicMap`) are the same with c = a b point by point: the rows' products with Y stay shared, each
party maps its own share modulo 2^64, and only the sums are opened.

What each party sees, and why it says nothing more: docs/protocols/spdz.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..arithmetic.csprng import KeyStream, new_key
from ..arithmetic.words import word_products
from ..errors import LinkError, PeerLost, RangeError
from ..joint.bounds import SIGNED, Limits, Pairs, SumIndex, add_up, check_operand, check_pairs, check_sum_index
from ..joint.header import OperandHeader
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
from .dealing import Correction, DealerKey, draw_words, with_dealer
from .spdz_messages import MAX_CHUNK_WORDS, ProductRequest, TripleRequest, ZeroKey
from .word_parts import DealtWords, NarrowColumns

__all__ = ["PROTOCOL", "SpdzFixedSide", "SpdzMovingSide", "chunks", "serve_dealer"]

LIMITS = Limits(max_row=1 << 62, max_result=1 << 62)  # half of the ring: room for party_2's noise
MAX_CHUNK_POINTS = 1 << 20  # CrypTen on CUDA sums in float64: exact up to an inner dimension of 2^21


def serve_dealer(channel_1: Channel, channel_2: Channel) -> None:
    """The dealer's loop, until party_1 sends FINISH or a party is gone.

    Args:
        channel_1: to party_1, which asks for triples; it gets a seed and nothing else.
        channel_2: to party_2, which gets a seed and c2 = (a1 + a2)(b1 + b2) - c1 for each chunk; of a mapped product
            (n, rows, 1) words for a (n, rows, 1) and b (n, 1, 1), one small matrix product for each point.

    Raises:
        LinkError: party_1 sent something that is not a request for a triple.
    """
    seed_1, seed_2 = new_key(), new_key()
    stream_1, stream_2 = KeyStream(seed_1), KeyStream(seed_2)
    number = 0
    try:
        DealerKey(seed_1).send(channel_1)
        DealerKey(seed_2).send(channel_2)
        while (message := channel_1.receive(MessageKind.TRIPLE, MessageKind.FINISH)).kind is MessageKind.TRIPLE:
            asked = TripleRequest.decode(message.payload)
            rows, columns = asked.rows, asked.columns
            for start, stop in chunks(rows + columns, asked.points):
                n = stop - start
                size_a, size_b = ((n, rows, 1), (n, 1, 1)) if asked.mapped else ((rows, n), (n, columns))
                a = draw_words(stream_1, "a", number, *size_a).add_(draw_words(stream_2, "a", number, *size_a))
                b = draw_words(stream_1, "b", number, *size_b).add_(draw_words(stream_2, "b", number, *size_b))
                c2 = a * b if asked.mapped else word_products(a, b.T.contiguous())
                c2.sub_(draw_words(stream_1, "c", number, *c2.shape))
                Correction.of(c2, 64).send(channel_2)
                number += 1
    except PeerLost:
        return  # the parties say on their own link why they stopped


class SpdzMovingSide(MovingSide):
    """party_1's end.

    Args:
        channel: to party_2.
        dealer: channel to the dealer.
        device: where the product is computed.

    Raises:
        ConfigError: CrypTen is already in use in this process.
    """

    def __init__(self, channel: Channel, dealer: Channel, device: str | torch.device = "cpu") -> None:
        super().__init__(channel)
        self.party = Party(0, channel, dealer, device)

    def open(self, header: OperandHeader) -> SpdzMovingOperand:
        """Receive the key of the operand's sharings of zero; this party's share of Y is such words alone."""
        return SpdzMovingOperand(self, header, self._receive(header))

    def open_mapped(self, header: OperandHeader, public_map: PublicMap) -> SpdzMovingMappedOperand:
        """The same for an operand with a map."""
        _check_points(header, public_map)
        return SpdzMovingMappedOperand(self, header, public_map, self._receive(header))

    def _receive(self, header: OperandHeader) -> Shares:
        return Shares(self.party, header, ZeroKey.receive(self.channel).key, None)


class SpdzMovingOperand(MovingOperand):
    """One operand at party_1; products int64 on the device of the rows."""

    def __init__(self, side: SpdzMovingSide, header: OperandHeader, shares: Shares) -> None:
        super().__init__(side, header, LIMITS)
        self._channel, self._shares = side.channel, shares

    def admit(self, product: Product) -> None:  # noqa: ARG002
        """Refuse triples that are not the dealer's; raises ConfigError."""
        self._shares.party.crypten.check_provider()

    def compute(self, product: Product) -> Tensor:
        """See `MovingOperand`."""
        source = product.source
        self._shares.party.ask(TripleRequest(source.count, source.points, self.header.columns))
        ProductRequest(source.count, source.points, product.pairs, product.sum_index).send(self._channel)
        opened = self._shares.product(source.count, product.pairs, product.sum_index, source, None)
        result: Tensor = opened.data.to(source.device)
        return result


class SpdzMovingMappedOperand(MovingMappedOperand):
    """One operand with a map at party_1; results int64 on the device of the rows."""

    def __init__(self, side: SpdzMovingSide, header: OperandHeader, public_map: PublicMap, shares: Shares) -> None:
        super().__init__(side, header, LIMITS, public_map)
        self._channel, self._shares = side.channel, shares

    def admit(self, rows: Tensor) -> None:  # noqa: ARG002
        """Refuse triples that are not the dealer's; raises ConfigError."""
        self._shares.party.crypten.check_provider()

    def compute(self, rows: Tensor) -> Tensor:
        """See `MovingMappedOperand`."""
        self._shares.party.ask(TripleRequest(rows.shape[0], rows.shape[1], 1, mapped=True))
        ProductRequest(rows.shape[0], rows.shape[1]).send(self._channel)
        result: Tensor = self._shares.mapped_product(self.public_map, HeldRows(rows), None).data.to(rows.device)
        return result


class SpdzFixedSide(FixedSide):
    """party_2's end.

    Args:
        channel: to party_1.
        dealer: channel to the dealer.
        device: where the product is computed.

    Raises:
        ConfigError: CrypTen is already in use in this process.
    """

    takes_narrow = True

    def __init__(self, channel: Channel, dealer: Channel, device: str | torch.device = "cpu") -> None:
        super().__init__(channel)
        self.party = Party(1, channel, dealer, device)

    def open(self, header: OperandHeader, values: Tensor) -> SpdzFixedOperand:
        """Send the key of the operand's sharings of zero; values int64 (columns, points) stay here.

        Raises:
            RangeError: values do not fit the header.
        """
        return self._open(header, values, None)

    def open_mapped(self, header: OperandHeader, values: Tensor, public_map: PublicMap) -> SpdzFixedOperand:
        """The same for an operand with a map; raises RangeError where that does not fit the header."""
        _check_points(header, public_map)
        return self._open(header, values, public_map)

    def _open(self, header: OperandHeader, values: Tensor, public_map: PublicMap | None) -> SpdzFixedOperand:
        table, key = check_operand(values, header, SIGNED), new_key()
        ZeroKey(key).send(self.channel)
        return SpdzFixedOperand(header, public_map, Shares(self.party, header, key, table))


class SpdzFixedOperand(FixedOperand):
    """One operand at party_2."""

    def __init__(self, header: OperandHeader, public_map: PublicMap | None, shares: Shares) -> None:
        super().__init__(header, LIMITS)
        self._map, self._shares = public_map, shares

    def answer(self, request: Received, release: Release) -> None:
        """Take part in the product that PRODUCT announces; `release` is asked before the result's share is sent.

        Raises:
            LinkError: another kind of message, or the shape is not the agreed one.
            ConfigError: CrypTen was set to other triples than the dealer's.
            PeerLost: party_1 or the dealer is gone.
        """
        if request.kind is not MessageKind.PRODUCT:
            raise LinkError(f"{request.kind.name} is not due; refused")
        asked, header = ProductRequest.decode(request.payload), self.header
        rows, points, mapped = asked.rows, asked.points, self._map is not None
        if rows > header.rows or points != header.points or (mapped and rows != header.rows):
            raise LinkError(f"product of {rows} x {points}, {header.rows} x {header.points} was agreed; refused")
        if self._map is not None:
            self._shares.party.crypten.check_provider()
            self._shares.mapped_product(self._map, None, release(self._map.results(rows)))
            return
        if asked.pairs is None:
            raise LinkError(f"{request.kind.name}: the pairs of a product are due; refused")
        pairs = check_pairs(asked.pairs, rows, header)
        results = 1 + max(check_sum_index(asked.sum_index, len(pairs)))
        self._shares.party.crypten.check_provider()
        self._shares.product(rows, pairs, asked.sum_index, None, release(results))


class Party:
    """What both sides do alike in a session, as CrypTen's rank 0 or 1: draw shares of triples, each once."""

    def __init__(self, rank: int, channel: Channel, dealer: Channel, device: str | torch.device) -> None:
        from . import crypten_link  # CrypTen takes seconds to import: only where it runs

        crypten_link.install()
        self.crypten, self.device = crypten_link, torch.device(device)
        self._rank, self._channel, self._dealer = rank, channel, dealer
        self._stream: KeyStream | None = None
        self._triples = 0

    def ask(self, request: TripleRequest) -> None:
        """party_1: ask the dealer for a product's triples."""
        request.send(self._dealer)

    def communicator(self) -> Any:
        """CrypTen's, for the `with` block of a product."""
        return self.crypten.LinkCommunicator(self._rank, self._channel, self._draw_triple)

    def shared(self, share: Tensor) -> Any:
        """CrypTen's tensor of this party's share."""
        return self.crypten.shared(share, self.device)

    def _draw_triple(self, size_a: tuple[int, ...], size_b: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """This party's shares of the next triple: a, b and party_1's c from its seed, party_2's c from the dealer."""
        if self._stream is None:
            self._stream = KeyStream(DealerKey.receive(self._dealer).key)
        number = self._triples
        self._triples += 1
        a = draw_words(self._stream, "a", number, *size_a)
        b = draw_words(self._stream, "b", number, *size_b)
        size_c = (*size_a[:-1], size_b[-1])
        if self._rank == 0:
            return a, b, draw_words(self._stream, "c", number, *size_c)
        return a, b, Correction.receive(self._dealer).words(math.prod(size_c), 64).reshape(size_c)


class Shares:
    """One operand in shares, at either party: party_1's of Y is z (values None), party_2's is Y - z.

    Args:
        party: of the session.
        header: the operand's.
        zero_key: of its sharings of zero, z.
        values: Y (columns, points) at party_2.
    """

    def __init__(self, party: Party, header: OperandHeader, zero_key: bytes, values: Tensor | None) -> None:
        self.party, self._header = party, header
        self._zeros, self._chunk = KeyStream(zero_key), 0
        self._z = DealtWords(self._zeros, "Y", 0, (header.columns, header.points), 64, party.device)
        self._values = None
        if values is not None:
            self._values = NarrowColumns(values, header.max_abs, torch.int64, party.device)

    def _share_of_columns(self, start: int, stop: int) -> Tensor:
        """This party's share of some points of the operand: z at party_1, Y - z at party_2."""
        z = self._z.part(start, stop)
        return z if self._values is None else self._values.part(start, stop) - z

    def product(
        self, rows: int, pairs: Pairs, sums: SumIndex | None, x: IntegerRows | None, noise: Tensor | None
    ) -> Any:
        """The opened products (pairs,), or their sums, at party_1, None at party_2.

        x is X (rows, points) at party_1, read chunk by chunk, None at party_2; noise (results,) is what party_2 adds,
        None at party_1.
        """
        total: Any = None
        columns = self._header.columns
        with self.party.communicator():
            for start, stop in chunks(rows + columns, self._header.points):
                x_share = self._share_of_rows(rows, x, start, stop)
                y_share = self._share_of_columns(start, stop).T.contiguous()
                part = self.party.shared(x_share).matmul(self.party.shared(y_share))
                total = part if total is None else total + part
            # Only the share of the wanted pairs is opened; the other products stay shared.
            # `data` is the share's plain tensor, also where CrypTen wraps those of a GPU.
            wanted = total.share.data.flatten()[[row * columns + column for row, column in pairs]]
            if sums is not None:
                wanted = add_up(wanted, sums)
            if noise is not None:
                wanted = wanted + noise.to(wanted.device)
            return self.party.shared(wanted).reveal(dst=0)

    def mapped_product(self, public_map: PublicMap, x: IntegerRows | None, noise: Tensor | None) -> Any:
        """The opened sums of a product with the map, flat, at party_1; None at party_2. x and noise as in `product`."""
        rows, parts = self._header.rows, list[Tensor]()
        with self.party.communicator():
            for start, stop in chunks(rows + 1, self._header.points):
                x_share = self._share_of_rows(rows, x, start, stop).T[:, :, None].contiguous()
                y_share = self._share_of_columns(start, stop)[0, :, None, None]
                part = self.party.shared(x_share).matmul(self.party.shared(y_share))
                parts.append(part.share.data[:, :, 0].T)
            fields = torch.cat(parts, 1)
            sums = torch.cat([public_map.apply(fields[:-1]).flatten(), fields[-1].sum()[None]])
            if noise is not None:
                sums += noise.to(sums.device)
            return self.party.shared(sums).reveal(dst=0)

    def _share_of_rows(self, rows: int, x: IntegerRows | None, start: int, stop: int) -> Tensor:
        """This party's share of some points of the rows: z at party_2, X - z at party_1."""
        z = draw_words(self._zeros, "X", self._chunk, rows, stop - start)
        self._chunk += 1
        return z if x is None else x.part(start, stop) - z.to(x.device)


def chunks(rows: int, points: int) -> Iterator[tuple[int, int]]:
    """Ranges of points, one triple each; the parties and the dealer cut alike.

    >>> list(chunks(4, 10))
    [(0, 10)]
    """
    step = min(MAX_CHUNK_POINTS, max(1, MAX_CHUNK_WORDS // rows))
    for start in range(0, points, step):
        yield start, min(start + step, points)


def _check_points(header: OperandHeader, public_map: PublicMap) -> None:
    if (header.columns, header.points) != (1, public_map.points):
        raise RangeError(f"operand: {header.columns} x {header.points} points, its map has 1 x {public_map.points}")


PROTOCOL = Protocol(
    name="spdz",
    moving_side=lambda channel, dealer, device: SpdzMovingSide(channel, with_dealer(dealer, "spdz"), device),
    fixed_side=lambda channel, dealer, device: SpdzFixedSide(channel, with_dealer(dealer, "spdz"), device),
    dealer=serve_dealer,
    product_kinds=(MessageKind.PRODUCT,),
    result_bits=62,
)
