"""Both ends of a product over ciphertexts whose coefficients are pixels: common to `bfv` and `ckks`.

1. Once per operand party_2 sends Y, encrypted, n / group points to a ciphertext (packing.py).
2. Every product party_1 multiplies by its rows, covers each product with a uniform mask (coefficient_products.py), and
   sends the released words of c0 and all of c1.
3. party_2 decrypts words that are uniform to it. Where party_1 wants sums of products, it adds up what is still masked,
   so that no product is opened by itself. It adds its noise and returns the words; party_1 takes off the masks.

Here are the messages, their order, and what is refused. What a ciphertext is, is behind `MovingCoefficientCipher` and
`FixedCoefficientCipher`: bfv_coefficients.py and ckks_coefficients.py.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...errors import LinkError
from ...joint.bounds import Limits, check_operand, check_sum_index
from ...joint.header import OperandHeader
from ...joint.interface import FixedOperand, MovingOperand, MovingSide, Product, Release
from ...wire.channel import Channel, Received
from ...wire.kinds import MessageKind
from ...wire.messages import Message
from ...wire.payload import Buffer
from .ciphers import Allowance, FixedCipher, receive_operand, send_operand
from .coefficient_products import MovingCoefficientCipher, OwnProducts, Products
from .packing import DEGREE, Layout
from .seal_format import Words, pack_pairs, unpack_pairs

__all__ = ["CoefficientReply", "FixedCoefficientCipher", "FixedCoefficientSide", "MovingCoefficientSide"]

MOST_WORDS = 1 << 16  # of a reply: sums are numbered in 16 bits


@dataclass(frozen=True, eq=False)
class CoefficientReply(Message):
    """party_1 to party_2: masked words of products, and the polynomials that decrypt them.

    Args:
        c0: released words (words, primes).
        places: (words, 2) uint16: of each word its polynomial among c1 and its row's place in the group.
        c1: (polynomials, primes, n).
        sum_index: the result that each word is added to, uint16 (words,); None: each its own.
    """

    c0: Words
    places: NDArray[np.uint16]
    c1: Sequence[Words] | Words
    sum_index: NDArray[np.uint16] | None = None

    kind = MessageKind.REPLY_CIPHERTEXTS
    word_bytes: ClassVar[int]  # of a released word, all primes

    @classmethod
    @abstractmethod
    def primes(cls) -> tuple[int, ...]:
        """Of a reply."""

    @abstractmethod
    def words_and_places(self) -> list[Buffer]:
        """c0 and places as they are sent."""

    @classmethod
    @abstractmethod
    def read_words_and_places(cls, payload: memoryview, count: int) -> tuple[Words, NDArray[np.uint16]]:
        """Inverse of `words_and_places`, of so many words: c0 (words, primes), places (words, 2)."""

    @property
    def results(self) -> int:
        """Values that are opened."""
        return len(self.c0) if self.sum_index is None else 1 + int(self.sum_index.max())

    @property
    def targets(self) -> NDArray[np.uint16]:
        """The result that each word is added to, uint16 (words,)."""
        return np.arange(len(self.c0), dtype=np.uint16) if self.sum_index is None else self.sum_index

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        polynomials = [pack_pairs(polynomial, 60).data for polynomial in self.c1]
        sums = [] if self.sum_index is None else [self.sum_index.data.cast("B")]
        return [struct.pack("<II", len(self.c0), len(self.c1)), *self.words_and_places(), *polynomials, *sums]

    @classmethod
    def decode(cls, payload: Buffer, most: int = MOST_WORDS, group: int = DEGREE) -> CoefficientReply:
        """See `Message`; of at most `most` words, whose rows' places are below `group`."""
        view, primes = memoryview(payload), cls.primes()
        count, polynomials = struct.unpack_from("<II", view) if len(view) >= 8 else (0, 0)
        start = 8 + (cls.word_bytes + 4) * count
        stop = start + polynomials * len(primes) * DEGREE * 60 // 8
        if not 1 <= polynomials <= count <= most or len(view) not in (stop, stop + 2 * count):
            raise LinkError(
                f"REPLY_CIPHERTEXTS: {len(view)} bytes for {count} words (1 to {most} were agreed); refused"
            )
        c0, places = cls.read_words_and_places(view[8:start], count)
        c1 = unpack_pairs(np.frombuffer(view[start:stop], np.uint8), 60).reshape(polynomials, len(primes), DEGREE)
        bound = np.array(primes, np.uint64)
        if (c0 >= bound).any() or (c1 >= bound[:, None]).any():
            raise LinkError("REPLY_CIPHERTEXTS: a word above the prime; refused")
        if places[:, 0].max() >= polynomials or places[:, 1].max() >= group or len(np.unique(places, axis=0)) != count:
            raise LinkError("REPLY_CIPHERTEXTS: words beyond the polynomials, or one twice; refused")
        if len(view) == stop:
            return cls(c0, places, c1)
        numbers = check_sum_index(np.frombuffer(view[stop:], np.uint16).tolist(), count)
        return cls(c0, places, c1, np.array(numbers, np.uint16))


class FixedCoefficientCipher(FixedCipher):
    """What party_2 does to ciphertexts whose coefficients are pixels; holds the secret key.

    Attributes:
        reply: the class of REPLY_CIPHERTEXTS.
    """

    reply: ClassVar[type[CoefficientReply]]

    @abstractmethod
    def layout(self, header: OperandHeader) -> Layout:
        """How an operand is packed; both parties derive it from the header."""

    @abstractmethod
    def limits(self, header: OperandHeader) -> Limits:
        """What rows may be multiplied; RangeError where the operand leaves no room."""

    @abstractmethod
    def charge(self, words: int) -> None:
        """Before words are released: raises RangeError where the session's bounds cover no more."""

    @abstractmethod
    def opened(self, reply: CoefficientReply, layout: Layout, noise: Tensor) -> Message:
        """The MASKED_RESULT: the reply's words, decrypted and summed, and the site's noise int64 (results,)."""


class MovingCoefficientSide:
    """party_1's session: opens encrypted operands.

    Args:
        channel: to party_2.
        cipher: how it works with ciphertexts.
        reply: the class of REPLY_CIPHERTEXTS.
        products: makes party_1's work on an operand of this header and layout; None: that of this process alone.

    Attributes:
        released: words of this session.
    """

    def __init__(
        self,
        channel: Channel,
        cipher: MovingCoefficientCipher,
        reply: type[CoefficientReply],
        products: Callable[[OperandHeader, Layout], Products] | None = None,
    ) -> None:
        self.channel, self.cipher, self.reply = channel, cipher, reply
        self.released = Allowance(cipher.name, cipher.max_words, "results", "the flood covers")
        self._products = products or (lambda _header, layout: OwnProducts(cipher, layout))

    def open(self, side: MovingSide, header: OperandHeader) -> MovingCoefficientOperand:
        """Receive the public key (first operand only) and the operand's ciphertexts; `side` is the one this is part of.

        Raises:
            RangeError: the operand's public bounds do not fit the parameters.
            LinkError: what arrived is not a key or not the ciphertexts of this header.
        """
        layout, limits = self.cipher.layout(header), self.cipher.limits(header)
        files = receive_operand(self.channel, self.cipher, layout.ciphertexts)
        products: Products | None = None
        for number, file in enumerate(files):
            products = products or self._products(header, layout)  # now that the key is there
            products.add(number, file)
        assert products is not None
        return MovingCoefficientOperand(side, self, header, limits, products)


class MovingCoefficientOperand(MovingOperand):
    """See `MovingOperand`: multiplies by its rows and sanitises what it sends back.

    Args:
        side: of the session.
        session: the part of it that opened this operand.
        header: of the operand.
        limits: of its rows.
        products: party_1's work on it.
    """

    def __init__(
        self,
        side: MovingSide,
        session: MovingCoefficientSide,
        header: OperandHeader,
        limits: Limits,
        products: Products,
    ) -> None:
        super().__init__(side, header, limits)
        self.products = products
        self._session = session

    def admit(self, product: Product) -> None:
        """Refuse, before anything is sent, what the session's bounds do not cover."""
        self._session.released.use(len(product.pairs))

    def compute(self, product: Product) -> Tensor:
        """See `MovingOperand`; raises LinkError where the answer is malformed."""
        session, blocks = self._session, self.products.layout.blocks_with(product.nonzero_positions)
        covered = self.products.covered(product.rows.detach().cpu().numpy(), product.pairs, blocks)
        sums = None if product.sum_index is None else np.array(product.sum_index, np.uint16)
        session.reply(covered.c0, covered.places, covered.c1, sums).send(session.channel)
        self.products.prepare()
        masks = [0] * product.results
        for number, mask in enumerate(covered.masks):
            masks[number if product.sum_index is None else product.sum_index[number]] += mask
        return session.cipher.opened(session.channel.receive(MessageKind.MASKED_RESULT).payload, masks)


class FixedCoefficientSide:
    """party_2's session: encrypts its operands.

    Args:
        channel: to party_1.
        cipher: how it works with ciphertexts.
    """

    def __init__(self, channel: Channel, cipher: FixedCoefficientCipher) -> None:
        self.channel, self.cipher = channel, cipher

    def open(self, header: OperandHeader, values: Tensor) -> FixedCoefficientOperand:
        """Encrypt and send the operand, int64 (columns, points); the public key goes before the first one.

        Raises:
            RangeError: the values are not those of the header, or do not fit the parameters; nothing was sent.
        """
        layout, limits = self.cipher.layout(header), self.cipher.limits(header)
        table = check_operand(values, header).detach().cpu().numpy()
        send_operand(self.channel, self.cipher, blocks_of(table, layout))
        return FixedCoefficientOperand(self, header, limits, layout)


class FixedCoefficientOperand(FixedOperand):
    """See `FixedOperand`: decrypts masked words.

    Args:
        session: that opened it.
        header: of the operand.
        limits: of party_1's rows.
        layout: how it is packed.
    """

    def __init__(self, session: FixedCoefficientSide, header: OperandHeader, limits: Limits, layout: Layout) -> None:
        super().__init__(header, limits)
        self._session, self._layout = session, layout

    def answer(self, request: Received, release: Release) -> None:
        """Decrypt a REPLY_CIPHERTEXTS message and return its masked words.

        Raises:
            LinkError: wrong kind or length, or words above the primes.
            RangeError: the session's releases are used up; nothing was sent.
        """
        if request.kind is not MessageKind.REPLY_CIPHERTEXTS:
            raise LinkError(f"{request.kind.name} is not due; refused")
        cipher = self._session.cipher
        reply = cipher.reply.decode(request.payload, self.header.rows * self.header.columns, self._layout.group)
        cipher.charge(len(reply.c0))
        noise = release(reply.results)
        cipher.opened(reply, self._layout, noise).send(self._session.channel)


def blocks_of(table: NDArray[np.int64], layout: Layout) -> Iterator[NDArray[np.int64]]:
    """What each ciphertext holds of an operand (columns, points), column by column."""
    for column in table:
        for start in range(0, layout.blocks * layout.block, layout.block):
            yield column[start : start + layout.block]
