"""`bfv` where pixels are coefficients: BFV's numbers, and what either party does to a ciphertext.

Exact, and without rotations (TenSEAL's `sealapi`). What hides X from party_2, which holds the secret key, is a uniform
mask, a fresh encryption of zero and a uniform flood on the noise (Gentry, STOC 2009; Asharov et al., EUROCRYPT 2012):
docs/protocols/bfv.md derives the numbers below, tests/attacks/test_bfv_reply.py runs the attacks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arithmetic.csprng import KeyStream, new_key
from ...errors import LinkError, RangeError
from ...joint.bounds import Limits
from ...joint.header import OperandHeader
from ...wire.kinds import MessageKind
from ...wire.messages import Message
from ...wire.payload import Buffer
from .ciphers import Scheme, centred_integer
from .coefficient_products import MovingCoefficientCipher
from .coefficient_sides import CoefficientReply, FixedCoefficientCipher
from .packing import DEGREE, Layout, layout_of
from .seal_format import (
    Words,
    bfv_context,
    ciphertext_file,
    ciphertext_words,
    compose_residues,
    load_seal,
    plaintext_file,
)

__all__ = ["BfvFixedCoefficientCipher", "BfvMovingCoefficientCipher", "BfvReply", "BfvResult"]

# The two largest primes below 2^60 that are 1 modulo t, and the largest below 2^20 that is 1 modulo 2n: 140 bits, where
# SEAL's 128-bit table allows 218. The first survives to the reply; the last is special.
PRIMES = (0xFFFFFA000000001, 0xFFFFEE000000001, 0xFC001)
PLAIN_BITS = 37  # of t, which is below every prime, or SEAL lifts plaintexts on its slow path
FLOOD_BITS = 82  # at most 2^21 of it are left after the switch, where decryption is right up to q1 / 2t = 2^22
MAX_WORDS = 1 << 18  # released in a session: 2^14 products of 16 rows
DISTANCE_BITS = 41  # all words of a session are within 2^-40 of words that do not depend on X: `limits` sees to it
MAX_ROW = 1 << 20
FRESH_NOISE = 30  # |sum X_i e_i| / |X|_2, passed with probability below 2^-60
ZERO_NOISE = 1 << 19  # of a public-key encryption of zero, after SEAL divided it by the special prime: far less
MODULUS = 1 << PLAIN_BITS  # t
MAX_RESULT = MODULUS // 2 - MODULUS // 32  # what is left is room for noise that party_2 may add
CIPHERTEXT_BYTES = 131_300  # a seeded ciphertext as SEAL writes it

_C1_BYTES = DEGREE * 60 // 8


@dataclass(frozen=True)
class BfvScheme(Scheme):
    """See `Scheme`.

    Attributes:
        primes: of the ciphertext modulus, without the special prime.
        top: parms_id of all primes.
        bottom: parms_id of the first prime alone.
    """

    primes: tuple[int, ...]
    top: Any
    bottom: Any


@cache
def scheme() -> BfvScheme:
    """SEAL's objects of these parameters."""
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    context = bfv_context(DEGREE, PRIMES, MODULUS)
    return BfvScheme(
        seal, context, seal.Evaluator(context), PRIMES[:-1], context.first_parms_id(), context.last_parms_id()
    )


def layout(header: OperandHeader) -> Layout:
    """How an operand is packed."""
    return layout_of(header, _C1_BYTES, CIPHERTEXT_BYTES)


def limits(header: OperandHeader) -> Limits:
    """The largest rows that the flood hides to 2^-40 over a session; RangeError where the operand leaves no room."""
    if header.max_abs >= MODULUS // 2:
        raise RangeError(f"operand: values up to {header.max_abs}, below 2^{PLAIN_BITS - 1} are needed")
    room = (1 << FLOOD_BITS) // (MAX_WORDS << DISTANCE_BITS) - ZERO_NOISE
    longest = room / (FRESH_NOISE * math.sqrt(layout(header).group))
    if longest < 4 * math.sqrt(header.points):
        raise RangeError(f"operand: {header.points} points are more than the noise flood can cover")
    return Limits(max_row=min(MAX_ROW, math.floor(longest)), max_result=MAX_RESULT, max_norm=longest)


def flood(low: int, high: int) -> int:
    """Two uniform 64-bit words as a uniform integer in [-2^(b-1), 2^(b-1)), b = FLOOD_BITS.

    >>> flood(0, 0) == -(2**81)
    True
    """
    return centred_integer(low, high, FLOOD_BITS)


class BfvReply(CoefficientReply):
    """See `CoefficientReply`: words of 64 bits, then their places."""

    word_bytes = 8

    @classmethod
    def primes(cls) -> tuple[int, ...]:
        """See `CoefficientReply`."""
        return PRIMES[:1]

    def words_and_places(self) -> list[Buffer]:
        """See `CoefficientReply`."""
        return [self.c0.data.cast("B"), self.places.data.cast("B")]

    @classmethod
    def read_words_and_places(cls, payload: memoryview, count: int) -> tuple[Words, NDArray[np.uint16]]:
        """See `CoefficientReply`."""
        places = np.frombuffer(payload, np.uint16, 2 * count, 8 * count).reshape(count, 2)
        return np.frombuffer(payload, np.uint64, count).reshape(count, 1), places


@dataclass(frozen=True, eq=False)
class BfvResult(Message):
    """party_2 to party_1: decrypted words, masked.

    Args:
        words: uint64 (results,), below t.
    """

    words: Words

    kind = MessageKind.MASKED_RESULT

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return [self.words.data.cast("B")]

    @classmethod
    def decode(cls, payload: Buffer) -> BfvResult:
        """See `Message`."""
        if len(payload) == 0 or len(payload) % 8:
            raise LinkError(f"MASKED_RESULT: {len(payload)} bytes, words of 8 are due")
        words = np.frombuffer(payload, np.uint64)
        if words.max() >= MODULUS:
            raise LinkError(f"MASKED_RESULT: a word of {int(words.max())}, below 2^{PLAIN_BITS} is due")
        return cls(words)


class BfvCoefficients:
    """What the ciphers of both parties are made for."""

    @property
    def scheme(self) -> BfvScheme:
        """See `MovingCipher` and `FixedCipher`."""
        return scheme()

    def layout(self, header: OperandHeader) -> Layout:
        """See `MovingCoefficientCipher` and `FixedCoefficientCipher`."""
        return layout(header)

    def limits(self, header: OperandHeader) -> Limits:
        """See `MovingCoefficientCipher` and `FixedCoefficientCipher`."""
        return limits(header)


class BfvMovingCoefficientCipher(BfvCoefficients, MovingCoefficientCipher):
    """See `MovingCoefficientCipher`."""

    name = "bfv"
    max_words = MAX_WORDS

    def __init__(self) -> None:
        super().__init__()
        self._stream = KeyStream(new_key())
        self._products = 0  # in this session
        self._zeros: list[Any] = []  # fresh encryptions of zero, each for one product
        self._file = plaintext_file(DEGREE)
        self._words = self._file.words.view(np.int64)

    def load(self, file: bytes) -> Any:
        """See `MovingCipher`."""
        scheme = self.scheme
        ciphertext = scheme.seal.Ciphertext()
        load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
        if ciphertext.size() != 2 or ciphertext.parms_id() != scheme.top or ciphertext.is_ntt_form():
            raise LinkError("OPERAND_CIPHERTEXTS: not a fresh ciphertext of the agreed parameters")
        scheme.evaluator.transform_to_ntt_inplace(ciphertext)
        return ciphertext

    def plaintext(self, coefficients: NDArray[np.int64]) -> Any:
        """See `MovingCoefficientCipher`."""
        scheme = self.scheme
        plain, points = scheme.seal.Plaintext(), scheme.seal.Plaintext()
        np.bitwise_and(coefficients, MODULUS - 1, out=self._words)
        self._file.load(plain, scheme.context)
        scheme.evaluator.transform_to_ntt(plain, scheme.top, points)
        return points

    def draw(self, count: int) -> tuple[list[int], list[int]]:
        """See `MovingCoefficientCipher`: masks modulo t; scaled to the modulus, and flooded."""
        self._products += 1
        masks = (self._stream.words("mask", self._products, (count,)) & (MODULUS - 1)).tolist()
        floods = self._stream.words("flood", self._products, (count, 2)).tolist()
        whole = math.prod(self.scheme.primes)
        scaled = ((mask * whole + MODULUS // 2) // MODULUS for mask in masks)
        return masks, [mask + flood(*pair) for mask, pair in zip(scaled, floods, strict=True)]

    def prepare(self, count: int) -> None:
        """See `MovingCoefficientCipher`: encryptions of zero."""
        while len(self._zeros) < count:
            self._zeros.append(self.fresh_zero())

    def cover(self, product: Any, positions: Sequence[int], hiding: Sequence[int]) -> tuple[Words, Words]:
        """See `MovingCoefficientCipher`."""
        covered = self.covered(product, positions, hiding)
        return np.array(switched(covered), np.uint64)[:, None], switched_c1(product)

    def covered(self, product: Any, positions: Sequence[int], hiding: Sequence[int]) -> list[int]:
        """Re-randomise a product, in place: its released words of c0, hidden, before primes are dropped."""
        scheme = self.scheme
        if product.is_ntt_form():
            scheme.evaluator.transform_from_ntt_inplace(product)
        self.prepare(1)
        scheme.evaluator.add_inplace(product, self._zeros.pop())
        modulus, words = math.prod(scheme.primes), product.dyn_array()
        out = []
        for position, hidden in zip(positions, hiding, strict=True):
            residues = [words.at(i * DEGREE + position) for i in range(len(scheme.primes))]
            out.append((compose_residues(residues, scheme.primes) + hidden) % modulus)
        return out

    def opened(self, answer: memoryview, masks: Sequence[int]) -> Tensor:
        """See `MovingCoefficientCipher`."""
        words = BfvResult.decode(answer).words
        if len(words) != len(masks):
            raise LinkError(f"MASKED_RESULT: {len(answer)} bytes, {8 * len(masks)} are due")
        result = (words.astype(np.int64) - np.array([mask % MODULUS for mask in masks])) & (MODULUS - 1)
        return torch.from_numpy(np.where(result >= MODULUS // 2, result - MODULUS, result))


class BfvFixedCoefficientCipher(BfvCoefficients, FixedCoefficientCipher):
    """See `FixedCoefficientCipher`."""

    reply = BfvReply

    def __init__(self) -> None:
        super().__init__()
        self._decryptor: Any = None
        self._file = plaintext_file(DEGREE)

    def keep(self, secret_key: Any) -> None:
        """See `FixedCipher`."""
        self._decryptor = self.scheme.seal.Decryptor(self.scheme.context, secret_key)

    def plaintext(self, values: NDArray[np.int64]) -> Any:
        """See `FixedCipher`: up to n / group points modulo t."""
        words, plain = self._file.words.view(np.int64), self.scheme.seal.Plaintext()
        words[:] = 0
        words[: len(values)] = values & (MODULUS - 1)
        self._file.load(plain, self.scheme.context)
        return plain

    def charge(self, words: int) -> None:
        """See `FixedCoefficientCipher`: the flood is party_1's, which counts for itself."""

    def opened(self, reply: CoefficientReply, layout: Layout, noise: Tensor) -> BfvResult:
        """See `FixedCoefficientCipher`."""
        scheme, file = self.scheme, ciphertext_file(DEGREE, 1, self.scheme.bottom)
        masked = np.zeros(len(reply.c0), np.uint64)
        for number, polynomial in enumerate(reply.c1):
            chosen = np.flatnonzero(reply.places[:, 0] == number)
            positions = [layout.position(int(place)) for place in reply.places[chosen, 1]]
            file.words[:DEGREE] = 0
            file.words[positions] = reply.c0[chosen, 0]
            file.words[DEGREE:] = polynomial[0]
            ciphertext, plain = scheme.seal.Ciphertext(), scheme.seal.Plaintext()
            file.load(ciphertext, scheme.context)
            self._decryptor.decrypt(ciphertext, plain)
            length = plain.coeff_count()  # SEAL drops leading zeros
            masked[chosen] = [plain.data(i) if i < length else 0 for i in positions]
        # Masked words may be added up: their sum is the sum of the products, masked. t divides 2^64.
        sums = np.zeros(reply.results, np.uint64)
        np.add.at(sums, reply.targets, masked)
        return BfvResult((sums + noise.numpy().astype(np.uint64)) & np.uint64(MODULUS - 1))


def switched(covered: Sequence[int]) -> list[int]:
    """Integers modulo all primes, scaled and rounded to the first prime."""
    first, *rest = scheme().primes
    divisor = math.prod(rest)
    return [(value + divisor // 2) // divisor % first for value in covered]


def switched_c1(product: Any) -> Words:
    """c1 of a ciphertext of all primes, scaled and rounded to the first prime: uint64 (1, n)."""
    objects = scheme()
    small = objects.seal.Ciphertext()
    objects.evaluator.mod_switch_to(product, objects.bottom, small)
    return ciphertext_words(small, DEGREE, 2 * DEGREE)[None]
