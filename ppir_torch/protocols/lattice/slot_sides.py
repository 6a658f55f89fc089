"""Both ends of a product through a public map over ciphertexts with slots modulo t: common to `bfv` and `ckks`.

    R = B^T (X[d] * Y) for the rows of party_1's gradient, and X[-1] . Y     (see `PublicMap`)

1. Once per operand party_2 sends Y, encrypted, 8191 points to a ciphertext (`SlotLayout`).
2. Every product party_1 multiplies slot by slot, adds channels (and, of the last row, all blocks), covers each result
   with a uniform mask, and sends it.
3. party_2 decrypts its share, X * Y + mask modulo t in every slot. It maps the share, exactly modulo t, adds its noise
   and returns the sums; party_1 takes off the mapped mask. The masks hide nothing from party_1: it learns R.

Here are the messages, their order, and what is refused. What a ciphertext is, and why a covered one says nothing of X,
is behind `MovingCipher` and `FixedCipher`: bfv_slots.py and ckks_slots.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arithmetic.words import pack_words, unpack_words
from ...errors import LinkError, RangeError
from ...joint.interface import Limits, OperandHeader, Release, check_mapped
from ...joint.public_map import PublicMap
from ...wire.kinds import MessageKind
from ...wire.link import Link, Received
from ...wire.payload import Buffer, pack
from .packing import PER_MESSAGE, receive_files, receive_key
from .slots import WIDTH, SlotLayout, T, Words, mapped_sums, slot_limits

__all__ = ["FixedCipher", "MovingCipher", "SlotFixed", "SlotMoving"]

_REPLIES_PER_MESSAGE = 4  # party_2 decrypts while party_1 works on


class MovingCipher(ABC):
    """What party_1 does to a ciphertext. A ciphertext is an object of SEAL's, which only a cipher looks into.

    Attributes:
        name: of the protocol.
        max_products: multiplications in a session, for which the cipher's bounds hold.
    """

    name: str
    max_products: int

    @abstractmethod
    def set_key(self, public_key: bytes) -> None:
        """Take party_2's public key, before all else; raises LinkError where it is none."""

    @abstractmethod
    def load(self, file: bytes) -> Any:
        """A received ciphertext, ready to be multiplied; raises LinkError where it is none of the agreed parameters."""

    @abstractmethod
    def product(self, ciphertext: Any, values: NDArray[np.int64]) -> Any:
        """A new ciphertext: each slot times a row's value, up to 8191 of them, zero or not. Not yet safe to send."""

    @abstractmethod
    def add(self, total: Any, product: Any) -> None:
        """Add a product to another one, in place."""

    @abstractmethod
    def cover(self, product: Any) -> tuple[Buffer, Words]:
        """Hide the rows in a product, in place: the reply's bytes, safe to send, and the mask's slots (n,)."""


class FixedCipher(ABC):
    """What party_2 does to a ciphertext; holds the secret key.

    Attributes:
        reply_bytes: of a covered product.
    """

    reply_bytes: int

    @abstractmethod
    def make_keys(self) -> bytes:
        """Make the keys, before all else; returns the public one as SEAL writes it."""

    @abstractmethod
    def encrypt(self, values: NDArray[np.int64]) -> bytes:
        """A fresh ciphertext of up to 8191 points, as SEAL writes it."""

    @abstractmethod
    def decrypt(self, reply: NDArray[np.uint8]) -> Words:
        """party_2's share's slots (n,) in a reply of `reply_bytes`; raises LinkError where a word is out of range."""


class SlotMoving:
    """party_1: multiplies the encrypted operand by its rows and sends shares that say nothing of them.

    Args:
        link: to party_2.
        cipher: how it works with ciphertexts.
    """

    def __init__(self, link: Link, cipher: MovingCipher) -> None:
        self._link, self._cipher = link, cipher
        self._has_key = False
        self._header: OperandHeader | None = None
        self._products = 0  # in this session

    def accept_operand(self, header: OperandHeader, public_map: PublicMap) -> Limits:
        """Receive the public key (first operand only) and the operand's ciphertexts.

        Raises:
            RangeError: the operand and its map leave no room below t.
            LinkError: what arrived is not a key or not the ciphertexts of this header.
        """
        self._limits = slot_limits(header, public_map)
        self._header, self._map, self._layout = None, public_map, SlotLayout.of(public_map)
        if not self._has_key:
            self._cipher.set_key(receive_key(self._link))
            self._has_key = True
        self._ciphertexts: list[Any] = []
        while (left := self._layout.ciphertexts - len(self._ciphertexts)) > 0:
            for file in receive_files(self._link, min(PER_MESSAGE, left)):
                self._ciphertexts.append(self._cipher.load(file))
        self._header = header
        return self._limits

    def project(self, rows: Tensor) -> Tensor:
        """See `MovingSide`.

        Raises:
            RangeError: the rows could overflow, or the session's products are used up; nothing was sent.
            LinkError: the answer is malformed.
        """
        if self._header is None:
            raise RuntimeError("project before accept_operand with a map")
        check_mapped(rows, self._header, self._map, self._limits)
        name, most = self._cipher.name, self._cipher.max_products
        products = self._products + rows.shape[0] * self._layout.ciphertexts
        if products > most:
            raise RangeError(f"{name}: at most {most} products per session, its bounds cover no more; start a new one")
        self._products = products
        masks: list[Words] = []
        batch: list[Buffer] = []
        for product in self._multiply(rows.detach().cpu().numpy()):
            reply, mask = self._cipher.cover(product)
            masks.append(mask)
            batch.append(reply)
            if len(batch) == _REPLIES_PER_MESSAGE:
                self._link.send(MessageKind.REPLY_CIPHERTEXTS, batch)
                batch = []
        if batch:
            self._link.send(MessageKind.REPLY_CIPHERTEXTS, batch)
        own = mapped_sums(masks, rows.shape[0], self._layout, self._map)  # while party_2 decrypts
        answer = unpack_words(self._link.receive(MessageKind.MASKED_RESULT).payload, len(own), WIDTH)
        if int(answer.max()) >= T:
            raise LinkError(f"MASKED_RESULT: a word of {int(answer.max())}, below {T} is due")
        result = (answer - own) % T
        return torch.where(result > T // 2, result - T, result)

    def _multiply(self, rows: NDArray[np.int64]) -> Iterator[Any]:
        """The products (not yet safe to send): of each block each row but the last, then the last one's sum."""
        layout = self._layout
        total: Any = None
        for block in range(layout.blocks):
            numbers = range(block, layout.ciphertexts, layout.blocks)  # of each channel
            for row in rows[:-1]:
                yield self._sum(row, numbers)
            total = self._sum(rows[-1], numbers, total)
        yield total

    def _sum(self, row: NDArray[np.int64], numbers: range, total: Any = None) -> Any:
        """`total` (None: zero) and the products of a row with these ciphertexts."""
        for number in numbers:
            product = self._cipher.product(self._ciphertexts[number], self._layout.part(row, number))
            if total is None:
                total = product
            else:
                self._cipher.add(total, product)
        return total


class SlotFixed:
    """party_2: encrypts its operand, decrypts its shares and returns their mapped sums.

    Args:
        link: to party_1.
        cipher: how it works with ciphertexts.
    """

    def __init__(self, link: Link, cipher: FixedCipher) -> None:
        self._link, self._cipher = link, cipher
        self._has_key = False
        self._header: OperandHeader | None = None

    def send_operand(self, header: OperandHeader, values: NDArray[np.int64], public_map: PublicMap) -> Limits:
        """Encrypt and send the values (points,), which fit the header; the public key goes before the first operand.

        Raises:
            RangeError: the operand and its map leave no room below t; nothing was sent.
        """
        limits, layout = slot_limits(header, public_map), SlotLayout.of(public_map)
        if not self._has_key:
            self._link.send(MessageKind.PUBLIC_KEY, self._cipher.make_keys())
            self._has_key = True
        for start in range(0, layout.ciphertexts, PER_MESSAGE):
            numbers = range(start, min(start + PER_MESSAGE, layout.ciphertexts))
            files = [np.frombuffer(self._cipher.encrypt(layout.part(values, n)), np.uint8) for n in numbers]
            self._link.send(MessageKind.OPERAND_CIPHERTEXTS, pack({}, files))
        self._header, self._map, self._layout = header, public_map, layout
        return limits

    def answer(self, request: Received, release: Release) -> None:
        """Decrypt the replies, of which `request` brings the first, and return the masked sums.

        Raises:
            LinkError: another kind of message, or not the ciphertexts that are due; nothing was released.
        """
        if self._header is None or request.kind is not MessageKind.REPLY_CIPHERTEXTS:
            raise LinkError(f"{request.kind.name} is not due; refused")
        rows = self._header.rows
        due = (rows - 1) * self._layout.blocks + 1
        shares = self._decrypt(request, due)
        while len(shares) < due:
            shares += self._decrypt(self._link.receive(MessageKind.REPLY_CIPHERTEXTS), due - len(shares))
        sums = mapped_sums(shares, rows, self._layout, self._map)
        masked = (sums + release(len(sums)).to(sums)) % T
        self._link.send(MessageKind.MASKED_RESULT, pack_words(masked, WIDTH))

    def _decrypt(self, message: Received, left: int) -> list[Words]:
        """The slots (n,) of the next replies of a product, of which `left` are due."""
        count, size = min(left, _REPLIES_PER_MESSAGE), self._cipher.reply_bytes
        if len(message.payload) != count * size:
            raise LinkError(f"REPLY_CIPHERTEXTS: {len(message.payload)} bytes, {count} x {size} are due; refused")
        replies = np.frombuffer(message.payload, np.uint8).reshape(count, size)
        return [self._cipher.decrypt(reply) for reply in replies]
