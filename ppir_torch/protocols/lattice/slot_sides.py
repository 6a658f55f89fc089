"""Both ends of a product through a public map over ciphertexts with slots modulo t: common to `bfv` and `ckks`.

    R = B^T (X[d] * Y) for the rows of party_1's gradient, and X[-1] . Y     (see `PublicMap`)

1. Once per operand party_2 sends Y, encrypted, 8191 points to a ciphertext (`SlotLayout`).
2. Every product party_1 multiplies slot by slot, adds channels (and, of the last row, all blocks), covers each result
   with a uniform mask, and sends it.
3. party_2 decrypts its share, X * Y + mask modulo t in every slot. It maps the share, exactly modulo t, adds its noise
   and returns the sums; party_1 takes off the mapped mask. The masks hide nothing from party_1: it learns R.

Here are the messages, their order, and what is refused. What a ciphertext is, and why a covered one says nothing of X,
is behind `MovingSlotCipher` and `FixedSlotCipher`: bfv_slots.py and ckks_slots.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arithmetic.words import pack_words, unpack_words
from ...errors import LinkError
from ...joint.bounds import Limits, check_operand
from ...joint.header import OperandHeader
from ...joint.interface import FixedOperand, MovingMappedOperand, MovingSide, Release
from ...joint.public_map import PublicMap
from ...wire.channel import Channel, Received
from ...wire.kinds import MessageKind
from ...wire.messages import Message
from ...wire.payload import Buffer
from .ciphers import Allowance, FixedCipher, MovingCipher, receive_operand, send_operand
from .seal_format import Words
from .slots import SLOT_MODULUS, WIDTH, SlotLayout, mapped_sums, slot_limits

__all__ = ["FixedSlotCipher", "FixedSlotSide", "MovingSlotCipher", "MovingSlotSide", "SlotReplies", "SlotResult"]

_REPLIES_PER_MESSAGE = 4  # party_2 decrypts while party_1 works on


class MovingSlotCipher(MovingCipher):
    """What party_1 does to a ciphertext with slots.

    Attributes:
        max_products: multiplications in a session, for which the cipher's bounds hold.
    """

    max_products: ClassVar[int]

    @abstractmethod
    def product(self, ciphertext: Any, values: NDArray[np.int64]) -> Any:
        """A new ciphertext: each slot times a row's value, up to 8191 of them, zero or not. Not yet safe to send."""

    def add(self, total: Any, product: Any) -> None:
        """Add a product to another one, in place."""
        self.scheme.evaluator.add_inplace(total, product)

    @abstractmethod
    def cover(self, product: Any) -> tuple[Buffer, Words]:
        """Hide the rows in a product, in place: the reply's bytes, safe to send, and the mask's slots (n,)."""


class FixedSlotCipher(FixedCipher):
    """What party_2 does to a ciphertext with slots; holds the secret key.

    Attributes:
        reply_bytes: of a covered product.
    """

    reply_bytes: ClassVar[int]

    @abstractmethod
    def decrypt(self, reply: NDArray[np.uint8]) -> Words:
        """party_2's share's slots (n,) in a reply of `reply_bytes`; raises LinkError where a word is out of range."""


@dataclass(frozen=True, eq=False)
class SlotReplies(Message):
    """party_1 to party_2: up to four covered products, one after the other.

    Args:
        replies: as `MovingSlotCipher.cover` makes them.
    """

    replies: Sequence[Buffer]

    kind = MessageKind.REPLY_CIPHERTEXTS

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return list(self.replies)

    @classmethod
    def decode(cls, payload: Buffer, due: int = 1, size: int | None = None) -> SlotReplies:
        """See `Message`; of as many replies as are due, at most four, of this size; None: one reply of any size."""
        count, size = min(due, _REPLIES_PER_MESSAGE), len(payload) if size is None else size
        if size < 1 or len(payload) != count * size:
            raise LinkError(f"REPLY_CIPHERTEXTS: {len(payload)} bytes, {count} x {size} are due; refused")
        view = memoryview(payload)
        return cls([view[start : start + size] for start in range(0, count * size, size)])


@dataclass(frozen=True, eq=False)
class SlotResult(Message):
    """party_2 to party_1: the mapped sums of its shares, masked.

    Args:
        words: int64 (results,) in [0, t).
    """

    words: Tensor

    kind = MessageKind.MASKED_RESULT

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return list(pack_words(self.words, WIDTH))

    @classmethod
    def decode(cls, payload: Buffer) -> SlotResult:
        """See `Message`."""
        words = unpack_words(memoryview(payload), 8 * len(payload) // WIDTH, WIDTH)
        if len(words) == 0 or int(words.max()) >= SLOT_MODULUS:
            raise LinkError(f"MASKED_RESULT: {len(words)} words, each below {SLOT_MODULUS}, are due")
        return cls(words)


class MovingSlotSide:
    """party_1's session: opens encrypted operands with a map.

    Args:
        channel: to party_2.
        cipher: how it works with ciphertexts.

    Attributes:
        products: multiplications of this session.
    """

    def __init__(self, channel: Channel, cipher: MovingSlotCipher) -> None:
        self.channel, self.cipher = channel, cipher
        self.products = Allowance(cipher.name, cipher.max_products, "products", "its bounds cover")

    def open(self, side: MovingSide, header: OperandHeader, public_map: PublicMap) -> MovingSlotOperand:
        """Receive the public key (first operand only) and the operand's ciphertexts; `side` is the one this is part of.

        Raises:
            RangeError: the operand and its map leave no room below t.
            LinkError: what arrived is not a key or not the ciphertexts of this header.
        """
        limits, layout = slot_limits(header, public_map), SlotLayout.of(public_map)
        files = receive_operand(self.channel, self.cipher, layout.ciphertexts)
        ciphertexts = [self.cipher.load(file) for file in files]
        return MovingSlotOperand(side, self, header, limits, public_map, ciphertexts)


class MovingSlotOperand(MovingMappedOperand):
    """See `MovingMappedOperand`: multiplies by its rows and sends shares that say nothing of them.

    Args:
        side: of the session.
        session: the part of it that opened this operand.
        header: of the operand.
        limits: of its rows.
        public_map: of its products.
        ciphertexts: of the operand, ready to be multiplied.
    """

    def __init__(
        self,
        side: MovingSide,
        session: MovingSlotSide,
        header: OperandHeader,
        limits: Limits,
        public_map: PublicMap,
        ciphertexts: Sequence[Any],
    ) -> None:
        super().__init__(side, header, limits, public_map)
        self.ciphertexts = ciphertexts
        self._session, self._layout = session, SlotLayout.of(public_map)

    def admit(self, rows: Tensor) -> None:
        """Refuse, before anything is sent, what the session's bounds do not cover."""
        self._session.products.use(rows.shape[0] * self._layout.ciphertexts)

    def compute(self, rows: Tensor) -> Tensor:
        """See `MovingMappedOperand`; raises LinkError where the answer is malformed."""
        channel = self._session.channel
        masks: list[Words] = []
        batch: list[Buffer] = []
        for product in self._multiply(rows.detach().cpu().numpy()):
            reply, mask = self._session.cipher.cover(product)
            masks.append(mask)
            batch.append(reply)
            if len(batch) == _REPLIES_PER_MESSAGE:
                SlotReplies(batch).send(channel)
                batch = []
        if batch:
            SlotReplies(batch).send(channel)
        own = mapped_sums(masks, rows.shape[0], self._layout, self.public_map)  # while party_2 decrypts
        answer = SlotResult.receive(channel).words
        if len(answer) != len(own):
            raise LinkError(f"MASKED_RESULT: {len(answer)} words, {len(own)} are due")
        result = (answer - own) % SLOT_MODULUS
        return torch.where(result > SLOT_MODULUS // 2, result - SLOT_MODULUS, result)

    def product(self, row: NDArray[np.int64], numbers: range, total: Any = None) -> Any:
        """`total` (None: zero) and the products of a row with these ciphertexts; not yet safe to send."""
        cipher = self._session.cipher
        for number in numbers:
            product = cipher.product(self.ciphertexts[number], self._layout.part(row, number))
            if total is None:
                total = product
            else:
                cipher.add(total, product)
        return total

    def _multiply(self, rows: NDArray[np.int64]) -> Iterator[Any]:
        """The products (not yet safe to send): of each block each row but the last, then the last one's sum."""
        layout = self._layout
        total: Any = None
        for block in range(layout.blocks):
            numbers = range(block, layout.ciphertexts, layout.blocks)  # of each channel
            for row in rows[:-1]:
                yield self.product(row, numbers)
            total = self.product(rows[-1], numbers, total)
        yield total


class FixedSlotSide:
    """party_2's session: encrypts its operands with a map.

    Args:
        channel: to party_1.
        cipher: how it works with ciphertexts.
    """

    def __init__(self, channel: Channel, cipher: FixedSlotCipher) -> None:
        self.channel, self.cipher = channel, cipher

    def open(self, header: OperandHeader, values: Tensor, public_map: PublicMap) -> FixedSlotOperand:
        """Encrypt and send the operand, int64 (1, points); the public key goes before the first one.

        Raises:
            RangeError: the values are not those of the header, or leave no room below t with their map; nothing was
                sent.
        """
        table = check_operand(values, header).detach().cpu().numpy()
        limits, layout = slot_limits(header, public_map), SlotLayout.of(public_map)
        send_operand(self.channel, self.cipher, (layout.part(table[0], n) for n in range(layout.ciphertexts)))
        return FixedSlotOperand(self, header, limits, public_map)


class FixedSlotOperand(FixedOperand):
    """See `FixedOperand`: decrypts its shares and returns their mapped sums.

    Args:
        session: that opened it.
        header: of the operand.
        limits: of party_1's rows.
        public_map: of its products.
    """

    def __init__(self, session: FixedSlotSide, header: OperandHeader, limits: Limits, public_map: PublicMap) -> None:
        super().__init__(header, limits)
        self._session, self._map, self._layout = session, public_map, SlotLayout.of(public_map)

    def answer(self, request: Received, release: Release) -> None:
        """Decrypt the replies, of which `request` brings the first, and return the masked sums.

        Raises:
            LinkError: another kind of message, or not the ciphertexts that are due; nothing was released.
        """
        if request.kind is not MessageKind.REPLY_CIPHERTEXTS:
            raise LinkError(f"{request.kind.name} is not due; refused")
        channel, rows = self._session.channel, self.header.rows
        due = (rows - 1) * self._layout.blocks + 1
        shares = self._decrypt(request.payload, due)
        while len(shares) < due:
            shares += self._decrypt(channel.receive(MessageKind.REPLY_CIPHERTEXTS).payload, due - len(shares))
        sums = mapped_sums(shares, rows, self._layout, self._map)
        SlotResult((sums + release(len(sums)).to(sums)) % SLOT_MODULUS).send(channel)

    def _decrypt(self, payload: Buffer, left: int) -> list[Words]:
        """The slots (n,) of the next replies of a product, of which `left` are due."""
        cipher = self._session.cipher
        replies = SlotReplies.decode(payload, left, cipher.reply_bytes).replies
        return [cipher.decrypt(np.frombuffer(reply, np.uint8)) for reply in replies]
