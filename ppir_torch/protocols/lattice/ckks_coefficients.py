"""`ckks` where pixels are coefficients: CKKS' numbers, and what either party does to a ciphertext.

Exact, and without rotations (TenSEAL's `sealapi`). A mask modulo the whole modulus and a fresh encryption of zero hide
X from party_2; a uniform flood hides the key from party_1, who would solve for it (Li and Micciancio, EUROCRYPT 2021):
docs/protocols/ckks.md derives the numbers below, tests/attacks/test_ckks_reply.py runs the attacks.
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
from ...arithmetic.residues import times_modulo
from ...errors import LinkError, RangeError
from ...joint.bounds import Limits
from ...joint.header import OperandHeader
from ...wire.kinds import MessageKind
from ...wire.messages import Message
from ...wire.payload import Buffer
from .ciphers import Allowance, Scheme, centred_integer
from .coefficient_products import MovingCoefficientCipher
from .coefficient_sides import CoefficientReply, FixedCoefficientCipher
from .packing import DEGREE, Layout, layout_of
from .seal_format import (
    Words,
    ciphertext_file,
    ciphertext_words,
    ckks_context,
    compose_residues,
    load_seal,
    pack_pairs,
    plaintext_file,
    unpack_pairs,
)

__all__ = ["CkksFixedCoefficientCipher", "CkksMovingCoefficientCipher", "CkksReply", "CkksResult"]

# 186 bits, where SEAL's 128-bit table allows 218. The first two survive to the reply; the last is SEAL's special prime.
PRIME_BITS = (60, 60, 46, 20)
SCALE_STEP = 1 << 10  # times q2: the scale of the reply
FLOOD_BITS = 69  # below half the scale, so that rounding is right
NOISE_BITS = 11  # of the reply: all words of a session are within 2^18 2^11 / 2^69 = 2^-40 of words without it
MAX_WORDS = 1 << 18  # released in a session: 2^14 products of 16 rows
MAX_ROW = 1 << 24  # SEAL's encoder rounds back to whole coefficients, from which it is off by less than 2^-20
MAX_OPERAND = 1 << 40
MAX_RESULT = (1 << 49) - (1 << 45)  # what is left is room for noise that party_2 may add
FRESH_NOISE = 21  # the largest of SEAL's centred binomial errors
ZERO_NOISE = 1 << 19  # of a public-key encryption of zero, after SEAL divided it by the special prime: far less
CIPHERTEXT_BYTES = 190_000  # a seeded ciphertext as SEAL writes it
KEPT = 2  # primes of the reply
WORD_BYTES = 60 * KEPT // 8


@dataclass(frozen=True)
class CkksScheme(Scheme):
    """See `Scheme`.

    Attributes:
        encoder: of slots.
        primes: of the ciphertext modulus, without the special prime.
        top: parms_id of all primes.
        bottom: parms_id of the first prime alone.
    """

    encoder: Any
    primes: tuple[int, ...]
    top: Any
    bottom: Any

    @property
    def kept(self) -> tuple[int, ...]:
        """The primes of the reply."""
        return self.primes[:KEPT]

    @property
    def scale(self) -> int:
        """Of the reply, an integer: R is carried as scale R."""
        return SCALE_STEP * self.primes[1]


@cache
def scheme() -> CkksScheme:
    """SEAL's objects of these parameters."""
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    moduli = seal.CoeffModulus.Create(DEGREE, list(PRIME_BITS))
    context = ckks_context(DEGREE, [m.value() for m in moduli])
    primes = tuple(m.value() for m in moduli[:-1])
    evaluator, encoder = seal.Evaluator(context), seal.CKKSEncoder(context)
    return CkksScheme(seal, context, evaluator, encoder, primes, context.first_parms_id(), context.last_parms_id())


def layout(header: OperandHeader) -> Layout:
    """How an operand is packed."""
    return layout_of(header, DEGREE * WORD_BYTES, CIPHERTEXT_BYTES)


def limits(header: OperandHeader) -> Limits:
    """The largest rows whose noise the flood covers; RangeError where the operand leaves no room."""
    if header.max_abs >= MAX_OPERAND:
        raise RangeError(f"operand: values up to {header.max_abs}, below {MAX_OPERAND} are needed")
    room = (scheme().primes[-1] << (NOISE_BITS - 1)) - ZERO_NOISE
    largest = min(MAX_ROW, room // (FRESH_NOISE * layout(header).group * header.points))
    if largest < 1 << 10:
        raise RangeError(f"operand: {header.points} points are more than the noise flood can cover")
    return Limits(max_row=1 << (largest.bit_length() - 1), max_result=MAX_RESULT)


def mask(words: NDArray[np.int64]) -> int:
    """Three uniform 64-bit words as an integer modulo q1 q2; 2^-72 from uniform."""
    return int.from_bytes(words.tobytes(), "little") % math.prod(scheme().kept)


def flood(low: int, high: int) -> int:
    """Two uniform 64-bit words as a uniform integer in [-2^(b-1), 2^(b-1)), b = FLOOD_BITS."""
    return centred_integer(low, high, FLOOD_BITS)


class CkksReply(CoefficientReply):
    """See `CoefficientReply`: places, then words of 15 bytes, modulo q1 and q2 in turn."""

    word_bytes = WORD_BYTES

    @classmethod
    def primes(cls) -> tuple[int, ...]:
        """See `CoefficientReply`."""
        return scheme().kept

    def words_and_places(self) -> list[Buffer]:
        """See `CoefficientReply`."""
        return [self.places.data.cast("B"), pack_pairs(self.c0, 60).data]

    @classmethod
    def read_words_and_places(cls, payload: memoryview, count: int) -> tuple[Words, NDArray[np.uint16]]:
        """See `CoefficientReply`."""
        c0 = unpack_pairs(np.frombuffer(payload[4 * count :], np.uint8), 60).reshape(count, KEPT)
        return c0, np.frombuffer(payload, np.uint16, 2 * count).reshape(count, 2)


@dataclass(frozen=True, eq=False)
class CkksResult(Message):
    """party_2 to party_1: decrypted words, masked and flooded.

    Args:
        words: uint64 (results, 2), modulo q1 and q2.
    """

    words: Words

    kind = MessageKind.MASKED_RESULT

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return [pack_pairs(self.words, 60).data]

    @classmethod
    def decode(cls, payload: Buffer) -> CkksResult:
        """See `Message`."""
        if len(payload) == 0 or len(payload) % WORD_BYTES:
            raise LinkError(f"MASKED_RESULT: {len(payload)} bytes, words of {WORD_BYTES} are due")
        words = unpack_pairs(np.frombuffer(payload, np.uint8), 60).reshape(-1, KEPT)
        if (words >= np.array(scheme().kept, np.uint64)).any():
            raise LinkError("MASKED_RESULT: a word above the prime; refused")
        return cls(words)


class CkksCoefficients:
    """What the ciphers of both parties are made for."""

    @property
    def scheme(self) -> CkksScheme:
        """See `MovingCipher` and `FixedCipher`."""
        return scheme()

    def layout(self, header: OperandHeader) -> Layout:
        """See `MovingCoefficientCipher` and `FixedCoefficientCipher`."""
        return layout(header)

    def limits(self, header: OperandHeader) -> Limits:
        """See `MovingCoefficientCipher` and `FixedCoefficientCipher`."""
        return limits(header)


class CkksMovingCoefficientCipher(CkksCoefficients, MovingCoefficientCipher):
    """See `MovingCoefficientCipher`; products are in NTT form until they are covered."""

    name = "ckks"
    max_words = MAX_WORDS

    def __init__(self) -> None:
        super().__init__()
        self._stream = KeyStream(new_key())
        self._products = 0  # in this session

    def load(self, file: bytes) -> Any:
        """See `MovingCipher`."""
        scheme = self.scheme
        ciphertext = scheme.seal.Ciphertext()
        load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
        fresh = ciphertext.size() == 2 and ciphertext.parms_id() == scheme.top and ciphertext.is_ntt_form()
        if not fresh or ciphertext.scale != 1.0:
            raise LinkError("OPERAND_CIPHERTEXTS: not a fresh ciphertext of the agreed parameters")
        return ciphertext

    def plaintext(self, coefficients: NDArray[np.int64]) -> Any:
        """See `MovingCoefficientCipher`: SEAL's encoder, given the slots, rounds back to the coefficients."""
        scheme, (twist, slots) = self.scheme, roots()
        values = np.fft.ifft(coefficients * twist, norm="forward")[slots]
        plain = scheme.seal.Plaintext()
        scheme.encoder.encode(values.tolist(), scheme.top, 1.0, plain)
        return plain

    def draw(self, count: int) -> tuple[list[int], list[int]]:
        """See `MovingCoefficientCipher`: modulo q1 q2; a mask hides message and noise together."""
        self._products += 1
        masks = [mask(words) for words in self._stream.words("mask", self._products, (count, 3))]
        return masks, masks

    def cover(self, product: Any, positions: Sequence[int], hiding: Sequence[int]) -> tuple[Words, Words]:
        """See `MovingCoefficientCipher`."""
        self.refresh(product)
        words, polynomial = rescaled(product, positions)
        masked = [hidden_word(word, hidden) for word, hidden in zip(words, hiding, strict=True)]
        return np.array(masked, np.uint64), polynomial

    def refresh(self, product: Any) -> None:
        """Re-randomise a product in place: without this its c1 is a known multiple of X."""
        self.scheme.evaluator.add_inplace(product, self.fresh_zero())

    def opened(self, answer: memoryview, masks: Sequence[int]) -> Tensor:
        """See `MovingCoefficientCipher`."""
        words = CkksResult.decode(answer).words
        if len(words) != len(masks):
            raise LinkError(f"MASKED_RESULT: {len(answer)} bytes, {WORD_BYTES * len(masks)} are due")
        return torch.tensor([integer_of(word, m) for word, m in zip(words, masks, strict=True)], dtype=torch.int64)


class CkksFixedCoefficientCipher(CkksCoefficients, FixedCoefficientCipher):
    """See `FixedCoefficientCipher`.

    Attributes:
        released: words of this session.
    """

    reply = CkksReply

    def __init__(self) -> None:
        super().__init__()
        self.released = Allowance("ckks", MAX_WORDS, "results", "the flood covers")
        self._stream = KeyStream(new_key())
        self._answers = 0  # in this session

    def keep(self, secret_key: Any) -> None:
        """See `FixedCipher`."""
        self._secret = secret_coefficients(secret_key)
        self._file = plaintext_file(DEGREE, len(self.scheme.primes), self.scheme.top)

    def plaintext(self, values: NDArray[np.int64]) -> Any:
        """See `FixedCipher`: up to n / group points, scaled; zero modulo q2 and q3."""
        scheme, plain = self.scheme, self.scheme.seal.Plaintext()
        coefficients = np.zeros(DEGREE, np.int64)
        coefficients[: len(values)] = values
        self._file.words[:DEGREE] = scaled_ntt(coefficients)
        self._file.load(plain, scheme.context)
        return plain

    def charge(self, words: int) -> None:
        """See `FixedCoefficientCipher`: the flood is ours."""
        self.released.use(words)

    def opened(self, reply: CoefficientReply, layout: Layout, noise: Tensor) -> CkksResult:
        """See `FixedCoefficientCipher`; flooded."""
        self._answers += 1
        drawn = self._stream.words("flood", self._answers, (len(noise), 2)).tolist()
        scheme = self.scheme
        # One flood for each result: a sum has the noise of all its words, each of which was counted as released.
        hidden = [flood(*pair) + extra * scheme.scale for pair, extra in zip(drawn, noise.tolist(), strict=True)]
        totals, targets = [[value] * KEPT for value in hidden], reply.targets.tolist()
        for number, (polynomial, place) in enumerate(reply.places.tolist()):
            phase = phase_at(reply.c1[polynomial].view(np.int64), self._secret, layout.position(place))
            total = totals[targets[number]]
            for i in range(KEPT):
                total[i] += int(reply.c0[number, i]) + phase[i]
        kept = [[value % prime for value, prime in zip(total, scheme.kept, strict=True)] for total in totals]
        return CkksResult(np.array(kept, np.uint64))


@cache
def roots() -> tuple[NDArray[np.complex128], NDArray[np.int64]]:
    """exp(i pi k / n) for each k, and which of the n odd powers of exp(i pi / n) is SEAL's slot j: the one with 3^j."""
    powers = [(pow(3, j, 2 * DEGREE) - 1) // 2 for j in range(DEGREE // 2)]
    return np.exp(1j * np.pi * np.arange(DEGREE) / DEGREE), np.array(powers)


def scaled_ntt(coefficients: NDArray[np.int64]) -> Words:
    """The operand's scale times integers below 2^40 (n,), in NTT form modulo q1.

    SEAL transforms ciphertexts of CKKS only, so the polynomial goes in as one.
    """
    objects = scheme()
    file, ciphertext = ciphertext_file(DEGREE, 1, objects.bottom), objects.seal.Ciphertext()
    file.words[:DEGREE] = times_modulo(coefficients, objects.scale * objects.primes[-1], objects.primes[0])
    file.words[DEGREE:] = 1  # SEAL refuses a ciphertext without c1
    file.load(ciphertext, objects.context)
    objects.evaluator.transform_to_ntt_inplace(ciphertext)
    return ciphertext_words(ciphertext, 0, DEGREE)


def rescaled(product: Any, positions: Sequence[int]) -> tuple[Words, Words]:
    """A product divided by q3 and rounded: c0 at these positions (positions, primes), c1 (primes, n)."""
    objects, small = scheme(), scheme().seal.Ciphertext()
    objects.evaluator.rescale_to_next(product, small)
    objects.evaluator.transform_from_ntt_inplace(small)
    words = small.dyn_array()
    c0 = [[words.at(i * DEGREE + position) for i in range(KEPT)] for position in positions]
    return np.array(c0, np.uint64), ciphertext_words(small, KEPT * DEGREE, 2 * KEPT * DEGREE).reshape(KEPT, DEGREE)


def secret_coefficients(secret_key: Any) -> NDArray[np.int64]:
    """s (n,) in {-1, 0, 1}."""
    objects = scheme()
    file, ciphertext = ciphertext_file(DEGREE, 1, objects.bottom, ntt=True), objects.seal.Ciphertext()
    words = secret_key.data()
    file.words[DEGREE:] = [words.data(i) for i in range(DEGREE)]
    file.load(ciphertext, objects.context)
    objects.evaluator.transform_from_ntt_inplace(ciphertext)
    secret = ciphertext_words(ciphertext, DEGREE, 2 * DEGREE).astype(np.int64)
    secret[secret > 1] -= objects.primes[0]
    return secret


def phase_at(c1: NDArray[np.int64], secret: NDArray[np.int64], position: int) -> list[int]:
    """The coefficient of x^position in c1 s, c1 (primes, n): an integer for each prime, not reduced.

    Decryption of one coefficient is one inner product; SEAL's decryption gives all of them in NTT form.
    """
    turned = np.concatenate([secret[position::-1], -secret[:position:-1]])
    low, high = (c1 & ((1 << 30) - 1)) @ turned, (c1 >> 30) @ turned  # below 2^43 each
    return [int(a) + (int(b) << 30) for a, b in zip(low, high, strict=True)]


def hidden_word(word: Words, value: int) -> list[int]:
    """An integer added to its residues (primes,)."""
    return [(int(residue) + value) % prime for residue, prime in zip(word, scheme().kept, strict=True)]


def integer_of(word: Words, hiding: int) -> int:
    """The integer R whose scaled, flooded and masked residues (primes,) these are."""
    primes, scale = scheme().kept, scheme().scale
    half = math.prod(primes) // 2
    value = (compose_residues(word.tolist(), primes) - hiding + half) % (2 * half + 1) - half
    return (value + scale // 2) // scale
