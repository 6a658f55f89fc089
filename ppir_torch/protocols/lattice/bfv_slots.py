"""Element-wise products under BFV, turned into additive shares: `bfv` where the products go through a public map.

    R = B^T (X[d] * Y) for the rows of party_1's gradient, and X[-1] . Y     (see `PublicMap`)

1. Once per operand party_2 encrypts Y, 8191 points to a ciphertext, in the slots that a prime t = 1 mod 2n gives BFV.
2. Every product party_1 multiplies slot by slot, adds channels (and, of the last row, all blocks), and covers each
   result with a uniform mask modulo t in every slot. It sends whole ciphertexts.
3. party_2 decrypts: X * Y + mask, its share, uniform modulo t. It maps the share, exactly modulo t, adds its noise and
   returns the sums; party_1 takes off the mapped mask. The masks hide nothing from party_1, who made them: it learns R.

The last slot of each ciphertext is 0 in Y and 1 in X: no plaintext is zero (SEAL refuses such products), so that blocks
of background look and take time like any other.

What hides X from party_2, which has the secret key and knows its own encryption errors: the mask; a fresh public-key
encryption of zero, without which c1 is a known multiple of X; a uniform flood on every coefficient of c0, without
which the noise is a known multiple of X (see bfv.py). tests/attacks/test_bfv_slots.py runs the attacks.

Numbers: n = 8192; q = q1 q2 q3 and a special prime, 60 + 60 + 60 + 20 = 200 bits (SEAL's 128-bit table allows 218),
the largest primes of their size that are 1 modulo 2n; q1 > q2 > q3. t = 2^48 - 16383, the largest of 48 bits.
- range: |R| <= t/2 - t/32, the rest is room for the noise that party_2 may add.
- flood: F = f3 + q3 f2 + q3 q2 f1, f3 < q3, f2 < q2, f1 < 2^11 uniform: uniform over 2^11 q2 q3 = 2^131 values. Its
  digits are added one by one, each before the switch that drops its prime, so that no word exceeds its prime.
- noise that depends on X: a plaintext w has coefficients up to t/2, whatever X is, and multiplies the fresh error
  e + r: e SEAL's centred binomial of 42 coins, |r| <= 1/2 SEAL's rounding of q y / t. So each multiplication adds
  to a coefficient at most NOISE = 34 sqrt(n) t/2 + n t/4 < 2^59.9, but for 2^-78 (Hoeffding; r in the worst case).
- distance: the coefficients of all replies of a session from ones that do not depend on X: at most
  n (NOISE / 2^131 + 2^-78) for each multiplication, below 2^-40 for MAX_PRODUCTS = 2^18 of them (1/2 for the rounding
  of each mask is in it). A product takes rows x ciphertexts of the operand: 21 in 2-D (56,797 points), 444 in 3-D
  (902,629 points), so that some 12,000 or 590 are to be had; then party_1 refuses.
- exactness: after the switch to q1 there are f1 (at most 2^10), the rounding |sum_j r_j s_j| + 2, |r_j| <= 1/2 and s
  ternary, above 800 with probability below 2^-224 (Hoeffding), 2^7 of the bits of c0 that are not sent, and less than
  1 of all else: below q1 / 2t = 2^11.
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
from .packing import DEGREE
from .seal_format import (
    bfv_context,
    ciphertext_file,
    ciphertext_words,
    load_seal,
    pack_pairs,
    save_seal,
    unpack_pairs,
)
from .slot_sides import FixedCipher, MovingCipher
from .slots import T, Words, slots_of, uniform_words

__all__ = ["BfvFixedCipher", "BfvMovingCipher"]

PRIMES = ((1 << 60) - 16383, (1 << 60) - 98303, (1 << 60) - 163839, (1 << 20) - 16383)  # the last is special
TOP_FLOOD_BITS = 11  # of f1
FRESH_NOISE = 34  # |sum w_j e_j| / |w|_2, passed with probability below 2^-78
NOISE = math.ceil(FRESH_NOISE * math.sqrt(DEGREE) * T / 2) + DEGREE * T // 4 + 1
MAX_PRODUCTS = 1 << 18  # multiplications of a ciphertext in a session
C0_BITS = 52  # of 60 that a reply carries

_C0_BYTES = DEGREE * C0_BITS // 8
_REPLY_BYTES = _C0_BYTES + DEGREE * 60 // 8


@dataclass(frozen=True)
class _Scheme:
    """The public SEAL objects that both parties derive from the fixed parameters; nothing secret."""

    seal: Any
    context: Any
    evaluator: Any
    encoder: Any
    levels: tuple[Any, ...]  # parms_id of three primes, two, and the first alone


class BfvMovingCipher(MovingCipher):
    """See `MovingCipher`; products are in NTT form until they are covered."""

    name = "bfv"
    max_products = MAX_PRODUCTS

    def __init__(self) -> None:
        self._stream = KeyStream(new_key())
        self._replies = 0  # in this session

    def set_key(self, public_key: bytes) -> None:
        """See `MovingCipher`."""
        scheme = _scheme()
        key, levels = scheme.seal.PublicKey(), scheme.levels
        load_seal(key, scheme.context, public_key, "PUBLIC_KEY")
        self._encryptor = scheme.seal.Encryptor(scheme.context, key)
        self._digits = [ciphertext_file(DEGREE, len(levels) - i, level) for i, level in enumerate(levels)]

    def load(self, file: bytes) -> Any:
        """See `MovingCipher`."""
        scheme, ciphertext = _scheme(), _scheme().seal.Ciphertext()
        load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
        if ciphertext.size() != 2 or ciphertext.parms_id() != scheme.levels[0] or ciphertext.is_ntt_form():
            raise LinkError("OPERAND_CIPHERTEXTS: not a ciphertext of the agreed parameters; refused")
        scheme.evaluator.transform_to_ntt_inplace(ciphertext)
        return ciphertext

    def product(self, ciphertext: Any, values: NDArray[np.int64]) -> Any:
        """See `MovingCipher`."""
        scheme, points, product = _scheme(), _scheme().seal.Plaintext(), _scheme().seal.Ciphertext()
        scheme.evaluator.transform_to_ntt(_encoded(slots_of(values, 1)), scheme.levels[0], points)
        scheme.evaluator.multiply_plain(ciphertext, points, product)
        return product

    def add(self, total: Any, product: Any) -> None:
        """See `MovingCipher`."""
        _scheme().evaluator.add_inplace(total, product)

    def cover(self, product: Any) -> tuple[Buffer, Words]:
        """Mask, re-randomise and flood a product and switch it to one prime, in place: its bytes, the mask (n,)."""
        scheme, other = _scheme(), _scheme().seal.Ciphertext()
        scheme.evaluator.transform_from_ntt_inplace(product)
        self._replies += 1
        mask = uniform_words(self._stream, "mask", self._replies, T)
        self._encryptor.encrypt(_encoded(mask), other)  # the mask and a fresh encryption of zero in one
        scheme.evaluator.add_inplace(product, other)
        for file, digit in zip(self._digits, _flood(self._stream, self._replies), strict=True):
            primes = len(file.words) // (2 * DEGREE)
            file.words.reshape(2, primes, DEGREE)[0] = digit
            file.load(other, scheme.context)
            scheme.evaluator.add_inplace(product, other)
            if primes > 1:
                scheme.evaluator.mod_switch_to_next_inplace(product)
        return _packed(product), mask


class BfvFixedCipher(FixedCipher):
    """See `FixedCipher`."""

    reply_bytes = _REPLY_BYTES

    def make_keys(self) -> bytes:
        """See `FixedCipher`."""
        scheme = _scheme()
        generator, public_key = scheme.seal.KeyGenerator(scheme.context), scheme.seal.PublicKey()
        generator.create_public_key(public_key)
        self._encryptor = scheme.seal.Encryptor(scheme.context, generator.secret_key())
        self._decryptor = scheme.seal.Decryptor(scheme.context, generator.secret_key())
        self._file = ciphertext_file(DEGREE, 1, scheme.levels[-1])  # a reply
        return save_seal(public_key)

    def encrypt(self, values: NDArray[np.int64]) -> bytes:
        """See `FixedCipher`."""
        # Symmetric and not yet expanded: c1 travels as its seed, which halves the upload.
        return save_seal(self._encryptor.encrypt_symmetric(_encoded(slots_of(values, 0))))

    def decrypt(self, reply: NDArray[np.uint8]) -> Words:
        """See `FixedCipher`."""
        scheme, ciphertext, plain = _scheme(), _scheme().seal.Ciphertext(), _scheme().seal.Plaintext()
        self._file.words[:DEGREE] = _restored(unpack_pairs(reply[:_C0_BYTES], C0_BITS))
        self._file.words[DEGREE:] = unpack_pairs(reply[_C0_BYTES:], 60)
        if self._file.words.max() >= PRIMES[0]:
            raise LinkError("REPLY_CIPHERTEXTS: a word above the prime; refused")
        self._file.load(ciphertext, scheme.context)
        self._decryptor.decrypt(ciphertext, plain)
        return np.fromiter(scheme.encoder.decode_uint64(plain), np.uint64, DEGREE)


@cache
def _scheme() -> _Scheme:
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    context = bfv_context(DEGREE, PRIMES, T)
    data, levels = context.first_context_data(), []
    while data is not None:
        levels.append(data.parms_id())
        data = data.next_context_data()
    return _Scheme(seal, context, seal.Evaluator(context), seal.BatchEncoder(context), tuple(levels))


def _encoded(slots: NDArray[np.integer[Any]]) -> Any:
    """The plaintext polynomial with these slots (n,) modulo t."""
    plain = _scheme().seal.Plaintext()
    _scheme().encoder.encode(slots.tolist(), plain)
    return plain


def _packed(reply: Any) -> memoryview:
    """A reply of one prime as bytes, c0 without its lowest bits."""
    words = ciphertext_words(reply, 0, 2 * DEGREE)
    parts = pack_pairs(words[:DEGREE] >> np.uint64(60 - C0_BITS), C0_BITS), pack_pairs(words[DEGREE:], 60)
    return np.concatenate(parts).data


def _restored(upper: Words) -> Words:
    """Words modulo q1 whose upper bits these are, in the middle of what the lower ones could be."""
    lower = np.uint64(60 - C0_BITS)
    words = upper << lower | np.uint64(1) << lower - np.uint64(1)
    return np.where(words >= PRIMES[0], words - np.uint64(PRIMES[0]), words)


def _flood(stream: KeyStream, number: int) -> list[Words]:
    """The digits f3, f2 and f1 (n,) of a uniform flood; f1 centred, modulo q1."""
    top = stream.words("f1", number, (DEGREE,)) & ((1 << TOP_FLOOD_BITS) - 1)
    centred = top - (1 << TOP_FLOOD_BITS - 1)
    lowest = [uniform_words(stream, f"f{i + 1}", number, PRIMES[i]) for i in (2, 1)]
    return [*lowest, np.where(centred < 0, centred + PRIMES[0], centred).astype(np.uint64)]
