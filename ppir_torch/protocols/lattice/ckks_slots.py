"""`ckks` where products go through a public map: CKKS' ciphertexts with slots modulo a prime, as additive shares.

The message is at the low end of the phase c0 + c1 s, modulo t, the noise a multiple of t, as in BGV (Brakerski, Gentry,
Vaikuntanathan, ITCS 2012). A mask modulo q in every coefficient makes uniform what party_2 decrypts, a fresh encryption
of zero c1; party_1 learns R modulo t and nothing of the key: docs/protocols/ckks.md derives the numbers below,
tests/attacks/test_ckks_slots.py runs the attacks. How products are made of ciphertexts is slot_sides.py.

The last slot of each ciphertext is no point's: it is t // 2 in X and Y, more than any value. So no polynomial is zero
(SEAL refuses such products) or constant (SEAL compresses them), and background looks and takes time like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...arithmetic.csprng import KeyStream, new_key
from ...arithmetic.residues import reduced, times_modulo
from ...errors import LinkError
from ...wire.payload import Buffer
from .ciphers import Scheme
from .packing import DEGREE
from .seal_format import (
    Words,
    bfv_context,
    ciphertext_file,
    ciphertext_words,
    ckks_context,
    load_seal,
    pack_pairs,
    plaintext_file,
    unpack_pairs,
)
from .slot_sides import FixedSlotCipher, MovingSlotCipher
from .slots import FRESH_NOISE, PRIMES, SLOT_MODULUS, SPECIAL, slots_of, uniform_words

__all__ = ["CkksFixedSlotCipher", "CkksMovingSlotCipher"]

ZERO_NOISE = 1 << 19  # of a public-key encryption of zero, after SEAL divided it by the special prime: far less
# What each multiplication adds to a coefficient of the phase, at most: 2^107.9 of q = 2^180.
PHASE = DEGREE * (SLOT_MODULUS // 2) ** 2 + SLOT_MODULUS * (
    math.ceil(FRESH_NOISE * math.sqrt(DEGREE) * SLOT_MODULUS / 2) + 1
)
MAX_PRODUCTS = 1 << 18  # multiplications in a session, all of whose shares add up but for 2^-41
LAST_SLOT = SLOT_MODULUS // 2
REPLY_BYTES = 2 * len(PRIMES) * DEGREE * 60 // 8

_BOUNDS = np.array(PRIMES, np.uint64)[:, None]  # of words (primes, n)


@dataclass(frozen=True)
class SlotEncoding:
    """BFV with the same primes, for slots modulo t and their polynomials; encrypts nothing.

    Attributes:
        top: parms_id of the three primes.
    """

    context: Any
    evaluator: Any
    encoder: Any
    top: Any


@dataclass(frozen=True)
class CkksSlotScheme(Scheme):
    """See `Scheme`.

    Attributes:
        top: parms_id of the three primes.
        t: as a plaintext.
        slots: to and from polynomials.
    """

    top: Any
    t: Any
    slots: SlotEncoding


@cache
def scheme() -> CkksSlotScheme:
    """SEAL's objects of these parameters."""
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    primes = (*PRIMES, SPECIAL)
    context, slots = ckks_context(DEGREE, primes), bfv_context(DEGREE, primes, SLOT_MODULUS)
    top = context.first_parms_id()
    file, t = plaintext_file(DEGREE, len(PRIMES), top), seal.Plaintext()
    file.words[:] = SLOT_MODULUS
    file.load(t, context)
    encoding = SlotEncoding(slots, seal.Evaluator(slots), seal.BatchEncoder(slots), slots.first_parms_id())
    return CkksSlotScheme(seal, context, seal.Evaluator(context), top, t, encoding)


class CkksMovingSlotCipher(MovingSlotCipher):
    """See `MovingSlotCipher`; products are in NTT form until they are covered."""

    name = "ckks"
    max_products = MAX_PRODUCTS

    def __init__(self) -> None:
        super().__init__()
        self._stream = KeyStream(new_key())
        self._replies = 0  # in this session

    @property
    def scheme(self) -> CkksSlotScheme:
        """See `MovingCipher`."""
        return scheme()

    def load(self, file: bytes) -> Any:
        """See `MovingCipher`; t times what arrived."""
        scheme, ciphertext = self.scheme, self.scheme.seal.Ciphertext()
        load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
        fresh = ciphertext.size() == 2 and ciphertext.parms_id() == scheme.top and ciphertext.is_ntt_form()
        if not fresh or ciphertext.scale != 1.0 or ciphertext.is_transparent():
            raise LinkError("OPERAND_CIPHERTEXTS: not a ciphertext of the agreed parameters; refused")
        scheme.evaluator.multiply_plain_inplace(ciphertext, scheme.t)
        return ciphertext

    def product(self, ciphertext: Any, values: NDArray[np.int64]) -> Any:
        """See `MovingSlotCipher`."""
        product = self.scheme.seal.Ciphertext()
        self.scheme.evaluator.multiply_plain(ciphertext, plaintext_of(polynomial_of(values)), product)
        return product

    def cover(self, product: Any) -> tuple[Buffer, Words]:
        """Re-randomise (in place) and mask a product: its bytes, and the mask's slots (n,)."""
        self.refresh(product)
        self._replies += 1
        # Residues that are uniform and independent are those of a uniform number modulo q.
        mask = np.stack([uniform_words(self._stream, f"mask {p}", self._replies, p) for p in PRIMES])
        words = coefficients(product, range(2))
        words[0] = (words[0] + mask) % _BOUNDS
        return pack_pairs(words, 60).data, slots_modulo_t(mask)

    def refresh(self, product: Any) -> None:
        """Add t times a fresh encryption of zero, in place: without this c1 is a known multiple of w."""
        zero, evaluator = self.fresh_zero(), self.scheme.evaluator
        evaluator.multiply_plain_inplace(zero, self.scheme.t)
        evaluator.add_inplace(product, zero)


class CkksFixedSlotCipher(FixedSlotCipher):
    """See `FixedSlotCipher`."""

    reply_bytes = REPLY_BYTES

    @property
    def scheme(self) -> CkksSlotScheme:
        """See `FixedCipher`."""
        return scheme()

    def keep(self, secret_key: Any) -> None:
        """See `FixedCipher`."""
        # The first primes of the key, in NTT form.
        self._secret = plaintext_of(ciphertext_words(secret_key.data(), 0, len(PRIMES) * DEGREE))
        self._file = ciphertext_file(DEGREE, len(PRIMES), self.scheme.top)  # a reply

    def plaintext(self, values: NDArray[np.int64]) -> Any:
        """See `FixedCipher`: up to 8191 points, divided by t."""
        words = zip(polynomial_of(values), PRIMES, strict=True)
        return plaintext_of(np.stack([times_modulo(w, pow(SLOT_MODULUS, -1, p), p) for w, p in words]))

    def decrypt(self, reply: NDArray[np.uint8]) -> Words:
        """See `FixedSlotCipher`."""
        return slots_modulo_t(self.phase(unpack_pairs(reply, 60).reshape(2, -1, DEGREE)))

    def phase(self, words: Words) -> Words:
        """c0 + c1 s modulo each prime (primes, n), of c0 and c1 (2, primes, n)."""
        if (words >= _BOUNDS).any() or not words[1].any():
            raise LinkError("REPLY_CIPHERTEXTS: a word above its prime, or no c1; refused")
        scheme = self.scheme
        reply = scheme.seal.Ciphertext()
        self._file.words[:] = words.reshape(-1)
        self._file.load(reply, scheme.context)
        scheme.evaluator.transform_to_ntt_inplace(reply)
        scheme.evaluator.multiply_plain_inplace(reply, self._secret)
        phase: Words = (words[0] + coefficients(reply, range(1, 2))[0]) % _BOUNDS
        return phase


def polynomial_of(values: NDArray[np.int64]) -> Words:
    """The polynomial whose slots modulo t are up to 8191 values, coefficients centred: (primes, n) in NTT form."""
    objects = scheme()
    plain, points = objects.seal.Plaintext(), objects.seal.Plaintext()
    objects.slots.encoder.encode(slots_of(values, LAST_SLOT).tolist(), plain)
    objects.slots.evaluator.transform_to_ntt(plain, objects.slots.top, points)
    return ciphertext_words(points, 0, len(PRIMES) * DEGREE).reshape(-1, DEGREE)


def plaintext_of(words: Words) -> Any:
    """A polynomial (primes, n) in NTT form as a plaintext of CKKS."""
    file, plain = plaintext_file(DEGREE, len(PRIMES), scheme().top), scheme().seal.Plaintext()
    file.words[:] = words.reshape(-1)
    file.load(plain, scheme().context)
    return plain


def slots_modulo_t(residues: Words) -> Words:
    """The slots modulo t (n,) of a polynomial of numbers in [0, q) with these residues (primes, n)."""
    objects, file, plain = scheme(), plaintext_file(DEGREE), scheme().seal.Plaintext()
    file.words[:] = reduced(residues, PRIMES, SLOT_MODULUS)
    file.load(plain, objects.slots.context)
    return np.fromiter(objects.slots.encoder.decode_uint64(plain), np.uint64, DEGREE)


def coefficients(ciphertext: Any, polynomials: range) -> Words:
    """These of a ciphertext's polynomials (number, primes, n), which leaves its NTT form."""
    scheme().evaluator.transform_from_ntt_inplace(ciphertext)
    size = len(PRIMES) * DEGREE
    words = ciphertext_words(ciphertext, polynomials.start * size, polynomials.stop * size)
    return words.reshape(len(polynomials), -1, DEGREE).copy()
