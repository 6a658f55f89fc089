"""Element-wise products under CKKS, turned into additive shares: `ckks` where the products go through a public map.

    R = B^T (X[d] * Y) for the rows of party_1's gradient, and X[-1] . Y     (see `PublicMap`)

1. Once per operand party_2 encrypts Y, 8191 points to a ciphertext: the polynomial m whose slots modulo t (slots.py)
   are Y, divided by t modulo q. party_1 multiplies each by t as it arrives: its phase c0 + c1 s is m + t e then.
2. Every product party_1 multiplies by the polynomials w of its rows, adds channels (and, of the last row, all blocks),
   and adds t times a fresh encryption of zero, and to c0 a mask U, uniform modulo q in every coefficient.
3. party_2 decrypts: [phase + U]_q in [0, q). Modulo t its slots are X * Y + U, for the noise is a multiple of t: its
   share. party_1's is -U modulo t. Both map theirs, exactly modulo t; party_2 adds its noise and returns the sums.

The message is at the low end of the phase, as in BGV (Brakerski, Gentry, Vaikuntanathan, ITCS 2012), and modulo t
instead of in CKKS's own slots: those hold the 53 bits of a double, which cannot be exact and masked at once. Keys,
encryption and products are CKKS's, all at scale 1; BFV's encoder turns slots into polynomials and encrypts nothing.

What each party sees beside its own:
- party_2, who has the secret key and knows its own errors: c0 + c1 s, exactly uniform because U is, message, noise and
  quotient by t together: no flood is needed, unlike in bfv_slots.py. And c1, to which a fresh zero was added, uniform
  to party_2 under RLWE; without it c1 is a known multiple of w. tests/attacks/test_ckks_slots.py runs the attacks.
- party_1: R and the noise that party_2 adds to it, modulo t. Nothing of the key or its errors (Li and Micciancio,
  EUROCRYPT 2021): they come as multiples of t.

The last slot of each ciphertext is no point's: it is t // 2 in X and Y, more than any value. So no polynomial is zero
(SEAL refuses such products) or constant (SEAL compresses them), and background looks and takes time like any other.

Numbers: n = 8192, t and the primes are those of bfv_slots.py: 60 + 60 + 60 + 20 = 200 bits (SEAL's 128-bit table allows
218), all 1 modulo 2n; q is the product of the first three.
- phase: |m_i|, |w_i| <= t/2, so that m w is at most n t^2/4; t e w at most t (34 sqrt(n) t/2), e SEAL's centred
  binomial of 42 coins, but for 2^-78 (Hoeffding). So each multiplication adds at most PHASE < 2^107.9 to a coefficient.
- exactness: shares add up unless U + phase leaves [0, q), with probability |phase| / q. In a session below
  n MAX_PRODUCTS (PHASE / q + 2^-78) and nothing to speak of for the zeros: 2^-41 for MAX_PRODUCTS = 2^18 of them. A
  product takes rows x ciphertexts of the operand: 21 in 2-D (56,797 points), 444 in 3-D (902,629 points), so that some
  12,000 or 590 are to be had; then party_1 refuses.
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
from .packing import DEGREE
from .seal_format import (
    bfv_context,
    ciphertext_file,
    ciphertext_words,
    ckks_context,
    load_seal,
    pack60,
    plaintext_file,
    save_seal,
    unpack60,
)
from .slot_sides import FixedCipher, MovingCipher
from .slots import T, Words, slots_of, uniform_words

__all__ = ["CkksFixedCipher", "CkksMovingCipher"]

PRIMES = ((1 << 60) - 16383, (1 << 60) - 98303, (1 << 60) - 163839)
SPECIAL = (1 << 20) - 16383
FRESH_NOISE = 34  # |sum w_j e_j| / |w|_2, passed with probability below 2^-78
ZERO_NOISE = 1 << 19  # of a public-key encryption of zero, after SEAL divided it by the special prime: far less
PHASE = DEGREE * (T // 2) ** 2 + T * (math.ceil(FRESH_NOISE * math.sqrt(DEGREE) * T / 2) + 1)  # of one multiplication
MAX_PRODUCTS = 1 << 18  # multiplications of a ciphertext in a session
LAST_SLOT = T // 2

_REPLY_BYTES = 2 * len(PRIMES) * DEGREE * 60 // 8


@dataclass(frozen=True)
class _Scheme:
    """The public SEAL objects that both parties derive from the fixed parameters; nothing secret."""

    seal: Any
    context: Any
    evaluator: Any
    top: Any  # parms_id of the three primes
    t: Any  # as a plaintext
    slots: _Slots


@dataclass(frozen=True)
class _Slots:
    """BFV with the same primes, for slots modulo t and their polynomials; encrypts nothing."""

    context: Any
    evaluator: Any
    encoder: Any
    top: Any


class CkksMovingCipher(MovingCipher):
    """See `MovingCipher`; products are in NTT form until they are covered."""

    name = "ckks"
    max_products = MAX_PRODUCTS

    def __init__(self) -> None:
        self._stream = KeyStream(new_key())
        self._replies = 0  # in this session

    def set_key(self, public_key: bytes) -> None:
        """See `MovingCipher`."""
        scheme, key = _scheme(), _scheme().seal.PublicKey()
        load_seal(key, scheme.context, public_key, "PUBLIC_KEY")
        self._encryptor = scheme.seal.Encryptor(scheme.context, key)

    def load(self, file: bytes) -> Any:
        """See `MovingCipher`; t times what arrived."""
        scheme, ciphertext = _scheme(), _scheme().seal.Ciphertext()
        load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
        fresh = ciphertext.size() == 2 and ciphertext.parms_id() == scheme.top and ciphertext.is_ntt_form()
        if not fresh or ciphertext.scale != 1.0 or ciphertext.is_transparent():
            raise LinkError("OPERAND_CIPHERTEXTS: not a ciphertext of the agreed parameters; refused")
        scheme.evaluator.multiply_plain_inplace(ciphertext, scheme.t)
        return ciphertext

    def product(self, ciphertext: Any, values: NDArray[np.int64]) -> Any:
        """See `MovingCipher`."""
        product = _scheme().seal.Ciphertext()
        _scheme().evaluator.multiply_plain(ciphertext, _plaintext(_polynomial(values)), product)
        return product

    def add(self, total: Any, product: Any) -> None:
        """See `MovingCipher`."""
        _scheme().evaluator.add_inplace(total, product)

    def cover(self, product: Any) -> tuple[Buffer, Words]:
        """Re-randomise (in place) and mask a product: its bytes, and the mask's slots (n,)."""
        self._refresh(product)
        self._replies += 1
        # Residues that are uniform and independent are those of a uniform number modulo q.
        mask = np.stack([uniform_words(self._stream, f"mask {p}", self._replies, p) for p in PRIMES])
        words = _coefficients(product, range(2))
        words[0] = (words[0] + mask) % _columns(PRIMES)
        return pack60(words).data, _slots(mask)

    def _refresh(self, product: Any) -> None:
        """Add t times a fresh encryption of zero, in place: without this c1 is a known multiple of w."""
        scheme, zero = _scheme(), _scheme().seal.Ciphertext()
        self._encryptor.encrypt_zero(zero)
        scheme.evaluator.multiply_plain_inplace(zero, scheme.t)
        scheme.evaluator.add_inplace(product, zero)


class CkksFixedCipher(FixedCipher):
    """See `FixedCipher`."""

    reply_bytes = _REPLY_BYTES

    def make_keys(self) -> bytes:
        """See `FixedCipher`."""
        scheme = _scheme()
        generator, public_key = scheme.seal.KeyGenerator(scheme.context), scheme.seal.PublicKey()
        generator.create_public_key(public_key)
        secret_key = generator.secret_key()
        self._encryptor = scheme.seal.Encryptor(scheme.context, secret_key)
        self._secret = _plaintext(ciphertext_words(secret_key.data(), 0, len(PRIMES) * DEGREE))  # of the first primes
        self._file = ciphertext_file(DEGREE, len(PRIMES), scheme.top)  # a reply
        return save_seal(public_key)

    def encrypt(self, values: NDArray[np.int64]) -> bytes:
        """See `FixedCipher`; divided by t."""
        divided = [times_modulo(w, pow(T, -1, p), p) for w, p in zip(_polynomial(values), PRIMES, strict=True)]
        # Symmetric and not yet expanded: c1 travels as its seed, which halves the upload.
        return save_seal(self._encryptor.encrypt_symmetric(_plaintext(np.stack(divided))))

    def decrypt(self, reply: NDArray[np.uint8]) -> Words:
        """See `FixedCipher`."""
        return _slots(self._phase(unpack60(reply).reshape(2, -1, DEGREE)))

    def _phase(self, words: Words) -> Words:
        """c0 + c1 s modulo each prime (primes, n), of c0 and c1 (2, primes, n)."""
        if (words >= _columns(PRIMES)).any() or not words[1].any():
            raise LinkError("REPLY_CIPHERTEXTS: a word above its prime, or no c1; refused")
        scheme = _scheme()
        reply = scheme.seal.Ciphertext()
        self._file.words[:] = words.reshape(-1)
        self._file.load(reply, scheme.context)
        scheme.evaluator.transform_to_ntt_inplace(reply)
        scheme.evaluator.multiply_plain_inplace(reply, self._secret)
        phase: Words = (words[0] + _coefficients(reply, range(1, 2))[0]) % _columns(PRIMES)
        return phase


@cache
def _scheme() -> _Scheme:
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    primes = (*PRIMES, SPECIAL)
    context, slots = ckks_context(DEGREE, primes), bfv_context(DEGREE, primes, T)
    top = context.first_parms_id()
    file, t = plaintext_file(DEGREE, len(PRIMES), top), seal.Plaintext()
    file.words[:] = T
    file.load(t, context)
    encoder = _Slots(slots, seal.Evaluator(slots), seal.BatchEncoder(slots), slots.first_parms_id())
    return _Scheme(seal, context, seal.Evaluator(context), top, t, encoder)


def _polynomial(values: NDArray[np.int64]) -> Words:
    """The polynomial whose slots modulo t are up to 8191 values, coefficients centred: (primes, n) in NTT form."""
    scheme, coefficients, points = _scheme(), _scheme().seal.Plaintext(), _scheme().seal.Plaintext()
    scheme.slots.encoder.encode(slots_of(values, LAST_SLOT).tolist(), coefficients)
    scheme.slots.evaluator.transform_to_ntt(coefficients, scheme.slots.top, points)
    return ciphertext_words(points, 0, len(PRIMES) * DEGREE).reshape(-1, DEGREE)


def _plaintext(words: Words) -> Any:
    """A polynomial (primes, n) in NTT form as a plaintext of CKKS."""
    file, plain = plaintext_file(DEGREE, len(PRIMES), _scheme().top), _scheme().seal.Plaintext()
    file.words[:] = words.reshape(-1)
    file.load(plain, _scheme().context)
    return plain


def _slots(residues: Words) -> Words:
    """The slots modulo t (n,) of a polynomial of numbers in [0, q) with these residues (primes, n)."""
    scheme, file, plain = _scheme(), plaintext_file(DEGREE), _scheme().seal.Plaintext()
    file.words[:] = reduced(residues, PRIMES, T)
    file.load(plain, scheme.slots.context)
    return np.fromiter(scheme.slots.encoder.decode_uint64(plain), np.uint64, DEGREE)


def _coefficients(ciphertext: Any, polynomials: range) -> Words:
    """These of a ciphertext's polynomials (number, primes, n), which leaves its NTT form."""
    _scheme().evaluator.transform_from_ntt_inplace(ciphertext)
    size = len(PRIMES) * DEGREE
    words = ciphertext_words(ciphertext, polynomials.start * size, polynomials.stop * size)
    return words.reshape(len(polynomials), -1, DEGREE).copy()


def _columns(primes: tuple[int, ...]) -> Words:
    return np.array(primes, np.uint64)[:, None]
