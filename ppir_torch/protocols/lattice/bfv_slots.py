"""`bfv` where products go through a public map: BFV with slots modulo a prime, turned into additive shares.

The mask, a fresh encryption of zero and a uniform flood on every coefficient of c0 hide X from party_2, which has the
secret key: docs/protocols/bfv.md derives the numbers below, tests/attacks/test_bfv_slots.py runs the attacks. How the
products are made of ciphertexts is slot_sides.py.

The last slot of each ciphertext is 0 in Y and 1 in X: no plaintext is zero (SEAL refuses such products), so that blocks
of background look and take time like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...arithmetic.csprng import KeyStream, new_key
from ...errors import LinkError
from ...wire.payload import Buffer
from .ciphers import Scheme
from .packing import DEGREE
from .seal_format import Words, bfv_context, ciphertext_file, ciphertext_words, load_seal, pack_pairs, unpack_pairs
from .slot_sides import FixedSlotCipher, MovingSlotCipher
from .slots import FRESH_NOISE, PRIMES, SLOT_MODULUS, SPECIAL, slots_of, uniform_words

__all__ = ["BfvFixedSlotCipher", "BfvMovingSlotCipher"]

# The flood is f3 + q3 f2 + q3 q2 f1, f3 < q3, f2 < q2, f1 < 2^11 uniform: uniform over 2^131 values.
TOP_FLOOD_BITS = 11  # of f1
# What each multiplication adds to a coefficient: FRESH_NOISE for the error, 1/2 for SEAL's rounding of q y / t.
NOISE = math.ceil(FRESH_NOISE * math.sqrt(DEGREE) * SLOT_MODULUS / 2) + DEGREE * SLOT_MODULUS // 4 + 1
MAX_PRODUCTS = 1 << 18  # multiplications in a session, whose replies are within 2^-40 of ones that do not depend on X
C0_BITS = 52  # of 60 that a reply carries; the others are less than q1 / 2t = 2^11, up to which decryption is right

_C0_BYTES = DEGREE * C0_BITS // 8
REPLY_BYTES = _C0_BYTES + DEGREE * 60 // 8


@dataclass(frozen=True)
class BfvSlotScheme(Scheme):
    """See `Scheme`.

    Attributes:
        encoder: of slots modulo t.
        levels: parms_id of three primes, two, and the first alone.
    """

    encoder: Any
    levels: tuple[Any, ...]


@cache
def scheme() -> BfvSlotScheme:
    """SEAL's objects of these parameters."""
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    context = bfv_context(DEGREE, (*PRIMES, SPECIAL), SLOT_MODULUS)
    data, levels = context.first_context_data(), []
    while data is not None:
        levels.append(data.parms_id())
        data = data.next_context_data()
    return BfvSlotScheme(seal, context, seal.Evaluator(context), seal.BatchEncoder(context), tuple(levels))


class BfvMovingSlotCipher(MovingSlotCipher):
    """See `MovingSlotCipher`; products are in NTT form until they are covered."""

    name = "bfv"
    max_products = MAX_PRODUCTS

    def __init__(self) -> None:
        super().__init__()
        self._stream = KeyStream(new_key())
        self._replies = 0  # in this session

    @property
    def scheme(self) -> BfvSlotScheme:
        """See `MovingCipher`."""
        return scheme()

    def set_key(self, public_key: bytes) -> None:
        """See `MovingCipher`."""
        super().set_key(public_key)
        levels = self.scheme.levels
        self._digits = [ciphertext_file(DEGREE, len(levels) - i, level) for i, level in enumerate(levels)]

    def load(self, file: bytes) -> Any:
        """See `MovingCipher`."""
        scheme, ciphertext = self.scheme, self.scheme.seal.Ciphertext()
        load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
        if ciphertext.size() != 2 or ciphertext.parms_id() != scheme.levels[0] or ciphertext.is_ntt_form():
            raise LinkError("OPERAND_CIPHERTEXTS: not a ciphertext of the agreed parameters; refused")
        scheme.evaluator.transform_to_ntt_inplace(ciphertext)
        return ciphertext

    def product(self, ciphertext: Any, values: NDArray[np.int64]) -> Any:
        """See `MovingSlotCipher`."""
        scheme = self.scheme
        points, product = scheme.seal.Plaintext(), scheme.seal.Ciphertext()
        scheme.evaluator.transform_to_ntt(encoded(slots_of(values, 1)), scheme.levels[0], points)
        scheme.evaluator.multiply_plain(ciphertext, points, product)
        return product

    def cover(self, product: Any) -> tuple[Buffer, Words]:
        """Mask, re-randomise and flood a product and switch it to one prime, in place: its bytes, the mask (n,)."""
        scheme, other = self.scheme, self.scheme.seal.Ciphertext()
        scheme.evaluator.transform_from_ntt_inplace(product)
        self._replies += 1
        mask = uniform_words(self._stream, "mask", self._replies, SLOT_MODULUS)
        self.encryptor.encrypt(encoded(mask), other)  # the mask and a fresh encryption of zero in one
        scheme.evaluator.add_inplace(product, other)
        # A digit of the flood is added before the switch that drops its prime, so that no word exceeds its prime.
        for file, digit in zip(self._digits, flood(self._stream, self._replies), strict=True):
            primes = len(file.words) // (2 * DEGREE)
            file.words.reshape(2, primes, DEGREE)[0] = digit
            file.load(other, scheme.context)
            scheme.evaluator.add_inplace(product, other)
            if primes > 1:
                scheme.evaluator.mod_switch_to_next_inplace(product)
        return packed(product), mask


class BfvFixedSlotCipher(FixedSlotCipher):
    """See `FixedSlotCipher`."""

    reply_bytes = REPLY_BYTES

    @property
    def scheme(self) -> BfvSlotScheme:
        """See `FixedCipher`."""
        return scheme()

    def keep(self, secret_key: Any) -> None:
        """See `FixedCipher`."""
        self._decryptor = self.scheme.seal.Decryptor(self.scheme.context, secret_key)
        self._file = ciphertext_file(DEGREE, 1, self.scheme.levels[-1])  # a reply

    def plaintext(self, values: NDArray[np.int64]) -> Any:
        """See `FixedCipher`: up to 8191 points."""
        return encoded(slots_of(values, 0))

    def decrypt(self, reply: NDArray[np.uint8]) -> Words:
        """See `FixedSlotCipher`."""
        scheme = self.scheme
        ciphertext, plain = scheme.seal.Ciphertext(), scheme.seal.Plaintext()
        self._file.words[:DEGREE] = restored(unpack_pairs(reply[:_C0_BYTES], C0_BITS))
        self._file.words[DEGREE:] = unpack_pairs(reply[_C0_BYTES:], 60)
        if self._file.words.max() >= PRIMES[0]:
            raise LinkError("REPLY_CIPHERTEXTS: a word above the prime; refused")
        self._file.load(ciphertext, scheme.context)
        self._decryptor.decrypt(ciphertext, plain)
        return np.fromiter(scheme.encoder.decode_uint64(plain), np.uint64, DEGREE)


def encoded(slots: NDArray[np.integer[Any]]) -> Any:
    """The plaintext polynomial with these slots (n,) modulo t."""
    plain = scheme().seal.Plaintext()
    scheme().encoder.encode(slots.tolist(), plain)
    return plain


def packed(reply: Any) -> memoryview:
    """A reply of one prime as bytes, c0 without its lowest bits."""
    words = ciphertext_words(reply, 0, 2 * DEGREE)
    parts = pack_pairs(words[:DEGREE] >> np.uint64(60 - C0_BITS), C0_BITS), pack_pairs(words[DEGREE:], 60)
    return np.concatenate(parts).data


def restored(upper: Words) -> Words:
    """Words modulo q1 whose upper bits these are, in the middle of what the lower ones could be."""
    lower = np.uint64(60 - C0_BITS)
    words = upper << lower | np.uint64(1) << lower - np.uint64(1)
    return np.where(words >= PRIMES[0], words - np.uint64(PRIMES[0]), words)


def flood(stream: KeyStream, number: int) -> list[Words]:
    """The digits f3, f2 and f1 (n,) of a uniform flood; f1 centred, modulo q1."""
    top = stream.words("f1", number, (DEGREE,)) & ((1 << TOP_FLOOD_BITS) - 1)
    centred = top - (1 << TOP_FLOOD_BITS - 1)
    lowest = [uniform_words(stream, f"f{i + 1}", number, PRIMES[i]) for i in (2, 1)]
    return [*lowest, np.where(centred < 0, centred + PRIMES[0], centred).astype(np.uint64)]
