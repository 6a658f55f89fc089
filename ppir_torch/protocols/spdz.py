"""spdz: additive shares and Beaver triples on CrypTen tensors; the paper's MPC protocol, with its masks repaired.

R = X Y^T mod 2^64 (Beaver, CRYPTO 1991; CrypTen: Knott et al., NeurIPS 2021). The dealer, a third process, gives the
parties shares of a, b and c = a b. They open e = X - a and d = Y - b to each other; c + e b + a d + e d = R stays
shared until party_2 sends its share to party_1.

What each party learns, when nobody works with the dealer:

- Each knows its own input and the sharing of zero (so do both parties of stock CrypTen), hence from the opened
  differences the *other's share of its own mask*: party_1 learns a2 from e, party_2 learns b1 from d. AES-CTR words
  tell nothing about other words of the key. Stock CrypTen's MT19937 words give the whole stream away.
- party_1 sees d = Y - b1 - b2. b2 is from party_2's seed, used in this product only: d is uniform to party_1. party_2's
  share of the result is R minus a number that party_1 knows: it says R and nothing else.
- party_2 sees e = X - a1 - a2. a1 is from party_1's seed: e is uniform to party_2; so is c2, hidden by c1.
- The dealer sees shapes. With stock CrypTen's trusted *first* party the dealer is party_1, who then reads Y = d + b.
- A triple used twice opens X - X'. `KeyStream` raises at the second draw.

Sharing of zero: party_2 draws a key for each operand and sends it. Products run in chunks of points, one triple each.

Mapped products (see `PublicMap`) are the same with c = a b point by point: the rows' products with Y stay shared, each
party maps its own share modulo 2^64, and only the sums are opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arithmetic.csprng import KeyStream, new_key
from ..arithmetic.words import word_products
from ..errors import LinkError, PeerLost, RangeError
from ..joint.interface import (
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
from ..wire.payload import pack, unpack
from .dealing import draw_words, read_key, with_dealer

__all__ = ["ENTRY", "SpdzFixedSide", "SpdzMovingSide", "serve_dealer"]

LIMITS = Limits(max_row=1 << 62, max_result=1 << 62)  # half of the ring: room for party_2's noise
MAX_CHUNK_POINTS = 1 << 20  # CrypTen on CUDA sums in float64: exact up to an inner dimension of 2^21
MAX_CHUNK_WORDS = 1 << 20  # 8 MiB per matrix; larger blocks are mapped afresh each time, which costs more than it saves


def serve_dealer(link_1: Link, link_2: Link) -> None:
    """The dealer's loop, until party_1 sends FINISH or a party is gone.

    Args:
        link_1: link to party_1, which asks for triples; it gets a seed and nothing else.
        link_2: link to party_2, which gets a seed and c2 = (a1 + a2)(b1 + b2) - c1 for each chunk; of a mapped product
            (n, rows, 1) words for a (n, rows, 1) and b (n, 1, 1), one small matrix product for each point.

    Raises:
        LinkError: party_1 sent something that is not a request for a triple.
    """
    seed_1, seed_2 = new_key(), new_key()
    stream_1, stream_2 = KeyStream(seed_1), KeyStream(seed_2)
    number = 0
    try:
        link_1.send(MessageKind.SEED, seed_1)
        link_2.send(MessageKind.SEED, seed_2)
        while (request := link_1.receive(MessageKind.TRIPLE, MessageKind.FINISH)).kind is MessageKind.TRIPLE:
            rows, points, columns, mapped = _read_shape(request)
            for start, stop in _chunks(rows + columns, points):
                n = stop - start
                size_a, size_b = ((n, rows, 1), (n, 1, 1)) if mapped else ((rows, n), (n, columns))
                a = draw_words(stream_1, "a", number, *size_a).add_(draw_words(stream_2, "a", number, *size_a))
                b = draw_words(stream_1, "b", number, *size_b).add_(draw_words(stream_2, "b", number, *size_b))
                c2 = a * b if mapped else word_products(a, b.T.contiguous())
                c2.sub_(draw_words(stream_1, "c", number, *c2.shape))
                link_2.send(MessageKind.TRIPLE_CORRECTION, c2.numpy().data)
                number += 1
    except PeerLost:
        return  # the parties say on their own link why they stopped


class SpdzMovingSide(MovingSide):
    """party_1's end.

    Args:
        link: link to party_2.
        dealer_link: link to the dealer.
        device: where the product is computed.

    Raises:
        ConfigError: CrypTen is already in use in this process.
    """

    limits = LIMITS

    def __init__(self, link: Link, dealer_link: Link, device: str | torch.device = "cpu") -> None:
        self._dealer_link = dealer_link
        self._party = _Party(0, link, dealer_link, device)

    def accept_operand(self, header: OperandHeader, public_map: PublicMap | None = None) -> None:
        """Receive the key of the operand's sharings of zero; this party's share of Y is such words alone."""
        _check_points(header, public_map)
        self._party.set_operand(header, read_key(self._party.link.receive(MessageKind.ZERO_SEED)), None, public_map)

    def multiply(
        self,
        rows: Tensor,
        pairs: Pairs | None = None,
        used: Tensor | None = None,  # noqa: ARG002
        into: Into | None = None,
    ) -> Tensor:
        """The products (pairs,) of int64 rows (rows, points) or their sums, int64 on the device of `rows`.

        Raises:
            RangeError: rows of a wrong shape, or a product that could leave +-2^62; nothing was sent.
            ConfigError: CrypTen was set to other triples than the dealer's; nothing was sent.
            PeerLost: party_2 or the dealer is gone.
        """
        header = self._party.header
        if self._party.public_map is not None:
            raise RuntimeError("multiply after accept_operand with a map; use project")
        norms = check_range(rows, header, self.limits)
        self._party.crypten.check_provider()
        shape = {"rows": rows.shape[0], "points": rows.shape[1]}
        pairs = all_pairs(rows.shape[0], header.columns) if pairs is None else pairs
        pairs = check_pairs(pairs, rows.shape[0], header)
        if into is not None:
            into = check_into(into, len(pairs))
            check_sums(rows, norms, header, self.limits, pairs, into)
        self._dealer_link.send(MessageKind.TRIPLE, pack(shape | {"columns": header.columns}))
        sums = [] if into is None else [np.array(into, np.uint16)]
        self._party.link.send(MessageKind.PRODUCT, pack(shape, [np.array(pairs, np.uint16), *sums]))
        result: Tensor = self._party.product(rows.shape[0], pairs, into, rows, None).data.to(rows.device)
        return result

    def project(self, rows: Tensor) -> Tensor:
        """See `MovingSide`; raises as `multiply`."""
        header, public_map = self._party.header, self._party.public_map
        if public_map is None:
            raise RuntimeError("project before accept_operand with a map")
        check_mapped(rows, header, public_map, self.limits)
        self._party.crypten.check_provider()
        shape = {"rows": rows.shape[0], "points": rows.shape[1]}
        self._dealer_link.send(MessageKind.TRIPLE, pack(shape | {"columns": 1, "mapped": True}))
        self._party.link.send(MessageKind.PRODUCT, pack(shape))
        result: Tensor = self._party.mapped_product(public_map, rows, None).data.to(rows.device)
        return result


class SpdzFixedSide(FixedSide):
    """party_2's end.

    Args:
        link: link to party_1.
        dealer_link: link to the dealer.
        device: where the product is computed.

    Raises:
        ConfigError: CrypTen is already in use in this process.
    """

    limits = LIMITS

    def __init__(self, link: Link, dealer_link: Link, device: str | torch.device = "cpu") -> None:
        self._party = _Party(1, link, dealer_link, device)

    def send_operand(self, header: OperandHeader, values: Tensor, public_map: PublicMap | None = None) -> None:
        """Send the key of the operand's sharings of zero; values int64 (columns, points) stay here.

        Raises:
            RangeError: values do not fit the header, or the header not the map.
        """
        _check_points(header, public_map)
        values = check_operand(values, header)
        key = new_key()
        self._party.link.send(MessageKind.ZERO_SEED, key)
        self._party.set_operand(header, key, values, public_map)

    def answer(self, request: Received, release: Release) -> None:
        """Take part in the product that PRODUCT announces; `release` is asked before the result's share is sent.

        Raises:
            LinkError: another kind of message, or the shape is not the agreed one.
            ConfigError: CrypTen was set to other triples than the dealer's.
            PeerLost: party_1 or the dealer is gone.
        """
        header, public_map = self._party.header, self._party.public_map
        rows, points, pairs, into = _read_product(request, public_map is not None)
        if rows > header.rows or points != header.points or (public_map is not None and rows != header.rows):
            raise LinkError(f"product of {rows} x {points}, {header.rows} x {header.points} was agreed; refused")
        if public_map is not None:
            self._party.crypten.check_provider()
            self._party.mapped_product(public_map, None, release(public_map.results(rows)))
            return
        pairs = check_pairs(pairs, rows, header)
        results = 1 + max(check_into(into, len(pairs)))
        self._party.crypten.check_provider()
        self._party.product(rows, pairs, into, None, release(results))


class _Party:
    """What both sides do alike: draw shares and run the product in chunks, as CrypTen's rank 0 or 1."""

    def __init__(self, rank: int, link: Link, dealer_link: Link, device: str | torch.device) -> None:
        from . import crypten_link  # CrypTen takes seconds to import: only where it runs

        crypten_link.install()
        self.crypten = crypten_link
        self.rank, self.link = rank, link
        self._dealer_link = dealer_link
        self._device = torch.device(device)
        self._stream: KeyStream | None = None
        self._triples = 0
        self._header: OperandHeader | None = None
        self.public_map: PublicMap | None = None

    @property
    def header(self) -> OperandHeader:
        """The operand in use; raises LinkError before the first."""
        if self._header is None:
            raise LinkError("product before the first operand; refused")
        return self._header

    def set_operand(
        self, header: OperandHeader, zero_key: bytes, values: Tensor | None, public_map: PublicMap | None
    ) -> None:
        """Replace the operand: party_1's share of Y is z (values None), party_2's is Y - z."""
        self._header, self.public_map = header, public_map
        self._zeros = KeyStream(zero_key)
        self._chunk = 0
        z = draw_words(self._zeros, "Y", 0, header.columns, header.points).to(self._device)
        self._operand = z if values is None else values.to(self._device) - z

    def product(self, rows: int, pairs: Pairs, into: Into | None, x: Tensor | None, noise: Tensor | None) -> Any:
        """The opened products (pairs,), or their sums, at party_1, None at party_2.

        x is X (rows, points) at party_1, None at party_2; noise (results,) is what party_2 adds, None at party_1.
        """
        total: Any = None
        with self.crypten.LinkCommunicator(self.rank, self.link, self._draw_triple):
            for start, stop in _chunks(rows + self.header.columns, self.header.points):
                x_share = self._share_of_rows(rows, x, start, stop)
                y_share = self._operand[:, start:stop].T.contiguous()
                part = self.crypten.shared(x_share, self._device).matmul(self.crypten.shared(y_share, self._device))
                total = part if total is None else total + part
            # Only the share of the wanted pairs is opened; the other products stay shared.
            wanted = total.share.flatten()[[row * self.header.columns + column for row, column in pairs]]
            if into is not None:
                wanted = add_up(wanted, into)
            if noise is not None:
                wanted = wanted + noise.to(wanted.device)
            return self.crypten.shared(wanted, self._device).reveal(dst=0)

    def mapped_product(self, public_map: PublicMap, x: Tensor | None, noise: Tensor | None) -> Any:
        """The opened sums of a product with the map, flat, at party_1; None at party_2. x and noise as in `product`."""
        header, parts = self.header, list[Tensor]()
        with self.crypten.LinkCommunicator(self.rank, self.link, self._draw_triple):
            for start, stop in _chunks(header.rows + 1, header.points):
                x_share = self._share_of_rows(header.rows, x, start, stop).T[:, :, None].contiguous()
                y_share = self._operand[0, start:stop, None, None]
                part = self.crypten.shared(x_share, self._device).matmul(self.crypten.shared(y_share, self._device))
                parts.append(part.share.data[:, :, 0].T)
            fields = torch.cat(parts, 1)
            sums = torch.cat([public_map.apply(fields[:-1]).flatten(), fields[-1].sum()[None]])
            if noise is not None:
                sums += noise.to(sums.device)
            return self.crypten.shared(sums, self._device).reveal(dst=0)

    def _share_of_rows(self, rows: int, x: Tensor | None, start: int, stop: int) -> Tensor:
        """This party's share of some points of the rows: z at party_2, X - z at party_1."""
        z = draw_words(self._zeros, "X", self._chunk, rows, stop - start)
        self._chunk += 1
        return z if x is None else x[:, start:stop] - z.to(x.device)

    def _draw_triple(self, size_a: tuple[int, ...], size_b: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """This party's shares of the next triple: a, b and party_1's c from its seed, party_2's c from the dealer."""
        if self._stream is None:
            self._stream = KeyStream(read_key(self._dealer_link.receive(MessageKind.SEED)))
        number = self._triples
        self._triples += 1
        a = draw_words(self._stream, "a", number, *size_a)
        b = draw_words(self._stream, "b", number, *size_b)
        size_c = (*size_a[:-1], size_b[-1])
        if self.rank == 0:
            return a, b, draw_words(self._stream, "c", number, *size_c)
        correction = self._dealer_link.receive(MessageKind.TRIPLE_CORRECTION)
        return a, b, self.crypten.words_from(correction.payload, math.prod(size_c)).reshape(size_c)


ENTRY = ProtocolEntry(
    name="spdz",
    party_1_learns="the opened products of each iteration; per level the mean, scale and energy of J",
    party_2_learns="sizes and timing only; the dealer the same",
    moving_side=lambda link, dealer_link, device: SpdzMovingSide(link, with_dealer(dealer_link, "spdz"), device),
    fixed_side=lambda link, dealer_link, device: SpdzFixedSide(link, with_dealer(dealer_link, "spdz"), device),
    dealer=serve_dealer,
)


def _chunks(rows: int, points: int) -> Iterator[tuple[int, int]]:
    """Ranges of points, one triple each; the parties and the dealer cut alike."""
    step = min(MAX_CHUNK_POINTS, max(1, MAX_CHUNK_WORDS // rows))
    for start in range(0, points, step):
        yield start, min(start + step, points)


def _check_points(header: OperandHeader, public_map: PublicMap | None) -> None:
    if public_map is not None and (header.columns, header.points) != (1, public_map.points):
        raise RangeError(f"operand: {header.columns} x {header.points} points, its map has 1 x {public_map.points}")


def _read_shape(message: Received) -> tuple[int, int, int, bool]:
    """(rows, points, columns, whether point by point) of a request to the dealer."""
    meta, arrays = unpack(message.payload)
    mapped = meta.pop("mapped", False)
    if set(meta) != {"rows", "points", "columns"} or arrays or type(mapped) is not bool:
        raise LinkError(f"{message.kind.name}: the shape of a product is due; refused")
    _check_shape(message, meta["rows"], meta["points"], meta["columns"])
    if mapped and meta["columns"] != 1:
        raise LinkError(f"{message.kind.name}: {meta['columns']} columns of a mapped product; refused")
    return meta["rows"], meta["points"], meta["columns"], mapped


def _read_product(message: Received, mapped: bool) -> tuple[int, int, list[tuple[int, int]], list[int] | None]:
    """(rows, points, pairs, their sums) of a product that party_1 announces; no pairs where it is mapped."""
    if message.kind is not MessageKind.PRODUCT:
        raise LinkError(f"{message.kind.name} is not due; refused")
    meta, arrays = unpack(message.payload)
    sums = arrays[1:]
    pairs_due = len(arrays) in (1, 2) and arrays[0].shape[1:] == (2,) and arrays[0].dtype == np.uint16
    pairs_due = pairs_due and all(array.ndim == 1 and array.dtype == np.uint16 for array in sums)
    if set(meta) != {"rows", "points"} or not (pairs_due or (mapped and not arrays)):
        raise LinkError(f"{message.kind.name}: the shape and pairs of a product are due; refused")
    _check_shape(message, meta["rows"], meta["points"], 1)
    pairs = [(int(row), int(column)) for array in arrays[:1] for row, column in array]
    return meta["rows"], meta["points"], pairs, [int(number) for number in sums[0]] if sums else None


def _check_shape(message: Received, *shape: object) -> None:
    sizes = [n for n in shape if type(n) is int and 1 <= n < 1 << 40]
    if len(sizes) != len(shape) or sizes[0] > MAX_CHUNK_WORDS or sizes[-1] > MAX_CHUNK_WORDS:
        raise LinkError(f"{message.kind.name}: shape {' x '.join(map(repr, shape))} is out of range; refused")
