"""Exact joint products under CKKS homomorphic encryption, without rotations (TenSEAL's `sealapi`).

party_2 encrypts its operand once; party_1 multiplies by its rows, re-randomises and masks the result, and sends it;
party_2 decrypts uniform words, floods and returns them; party_1 removes the mask and rounds to the integer.

Products that go through a public map: ckks_slots.py.

Packing: pixels are coefficients, as in bfv.py; the slots hold their Fourier transform. Pixels in slots need no rotation
either (the values of a polynomial at all roots of x^n + 1 add up to n times its constant coefficient), but slots are a
unitary change of basis on both sides, which leaves R as it is and makes the coefficients irrational. The rounding of
either image times the other one would be noise to flood, too: a scale of about 2^123 |R|, and a modulus of 218 bits for
|R| < 2^47 where SEAL allows 198 beside its special prime, with slots encoded to 100 bits instead of a double's 53.
Integer coefficients are encoded exactly: rows up to 2^24 by SEAL's encoder, which rounds coefficients that are off by
less than 2^-20; the operand by its residues.

What each party sees beside its own:
- party_2, who has the secret key s, sees c1 and the released words of c0. To c1 a fresh public-key encryption of zero
  was added, u a + e1 with a secret u: uniform to party_2 under RLWE, whatever it knows of s. A word carries a mask
  uniform modulo all of q1 q2, which hides message and noise together: X needs no noise flooding, unlike in bfv.py.
- party_1 sees a multiple of R and noise, and the noise is a known linear function of s and of party_2's errors: enough
  of it gives s away (Li and Micciancio, EUROCRYPT 2021). So party_2 adds a uniform flood first. That covers a party_1
  that sends products of what it was given; one that does not could ask for s itself, as in any protocol of this kind.
tests/attacks/test_ckks_reply.py runs the attacks on both.

Numbers: n = 8192, q1 q2 q3 of 60+60+46 bits and a special prime of 20 (186 bits; SEAL's 128-bit table allows 218). The
operand is encrypted at scale 2^10 q2 q3, so that it is zero modulo q2 and q3. The reply is rescaled by q3: its scale is
2^10 q2 (above 2^69.99) modulo q1 q2.
- noise after rescaling, at most 2^11: what the fresh errors give (SEAL's centred binomial: at most 21), 21 group N
  max|X| / q3, at most 2^10 by choice of `max_row`; the rescaling, |sum_j r_j s_j| + 1/2, |r_j| <= 1/2 and s ternary and
  independent of r, above 2^9.5 with probability below 2^-180 (Hoeffding).
- flood: uniform over 2^69 values; all 2^18 words that a session may release are within 2^18 2^11 / 2^69 = 2^-40 of
  words that do not depend on the noise (statistical distance).
- exactness: flood and noise are below 2^68 + 2^11, half the scale is above 2^68.99, and |R| < 2^49 - 2^44 fits into
  q1 q2.
"""

from __future__ import annotations

import math
import struct
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
from ...joint.interface import (
    FixedSide,
    Into,
    Limits,
    MovingSide,
    OperandHeader,
    Pairs,
    ProtocolEntry,
    Release,
    all_pairs,
    check_into,
    check_operand,
    check_pairs,
    check_range,
    check_sums,
)
from ...joint.public_map import PublicMap
from ...wire.kinds import MessageKind
from ...wire.link import Link, Received
from ...wire.payload import Buffer, pack
from .ckks_slots import CkksFixedCipher, CkksMovingCipher
from .packing import DEGREE, PER_MESSAGE, Layout, layout_of, read_into, receive_files, receive_key
from .seal_format import (
    ciphertext_file,
    ciphertext_words,
    ckks_context,
    compose_residues,
    load_seal,
    pack60,
    plaintext_file,
    save_seal,
    unpack60,
)
from .slot_sides import SlotFixed, SlotMoving
from .slots import MAX_RESULT as MAX_SLOT_RESULT
from .slots import slot_bits

__all__ = ["ENTRY", "CkksFixedSide", "CkksMovingSide"]

PRIME_BITS = (60, 60, 46, 20)  # the first two survive to the reply; the last is SEAL's special prime
SCALE_STEP = 1 << 10  # times q2: the scale of the reply
FLOOD_BITS = 69
NOISE_BITS = 11  # of the reply: what the flood covers
MAX_WORDS = 1 << 18  # released in a session: 2^14 products of 16 rows
MAX_ROW = 1 << 24
MAX_OPERAND = 1 << 40
MAX_RESULT = (1 << 49) - (1 << 45)  # what is left is room for noise that party_2 may add
FRESH_NOISE = 21
ZERO_NOISE = 1 << 19  # of a public-key encryption of zero, after SEAL divided it by the special prime: far less

_KEPT = 2  # primes of the reply
_WORD_BYTES = 60 * _KEPT // 8
_C1_BYTES = DEGREE * _WORD_BYTES
_CIPHERTEXT_BYTES = 190_000  # a seeded ciphertext as SEAL writes it

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class _Scheme:
    """The public SEAL objects that both parties derive from the fixed parameters; nothing secret."""

    seal: Any
    context: Any
    evaluator: Any
    encoder: Any
    primes: tuple[int, ...]  # of the ciphertext modulus, without the special prime
    top: Any  # parms_id of all primes

    bottom: Any  # parms_id of the first prime alone

    @property
    def kept(self) -> tuple[int, ...]:
        """The primes of the reply."""
        return self.primes[:_KEPT]

    @property
    def scale(self) -> int:
        """Of the reply, an integer: R is carried as scale R."""
        return SCALE_STEP * self.primes[1]


class CkksMovingSide(MovingSide):
    """party_1: multiplies the encrypted operand by its rows and sanitises what it sends back.

    Args:
        link: to party_2.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._stream = KeyStream(new_key())
        self._encryptor: Any = None
        self._header: OperandHeader | None = None
        self._ciphertexts: list[Any] = []
        self._products = 0
        self._released = 0
        self._slots = SlotMoving(link, CkksMovingCipher())  # for operands with a map
        self._mapped = False

    def accept_operand(self, header: OperandHeader, public_map: PublicMap | None = None) -> None:
        """Receive the public key (first operand only) and the operand's ciphertexts; sets `limits`.

        Raises:
            RangeError: the operand's public bounds do not fit the parameters.
            LinkError: what arrived is not a key or not the ciphertexts of this header.
        """
        self._header, self._mapped, self._ciphertexts = None, public_map is not None, []
        if public_map is not None:
            self.limits = self._slots.accept_operand(header, public_map)
            return
        scheme, self._layout, self.limits = _scheme(), _layout(header), _limits(header)
        if self._encryptor is None:
            self._encryptor = scheme.seal.Encryptor(scheme.context, _load_key(receive_key(self._link)))
        while len(self._ciphertexts) < self._layout.ciphertexts:
            due = min(PER_MESSAGE, self._layout.ciphertexts - len(self._ciphertexts))
            self._ciphertexts += _receive_ciphertexts(self._link, due)
        self._header = header

    def project(self, rows: Tensor) -> Tensor:
        """See `MovingSide` and `SlotMoving.project`."""
        if not self._mapped:
            raise RuntimeError("project before accept_operand with a map")
        return self._slots.project(rows)

    def carried(self, public_map: PublicMap) -> PublicMap:
        """See `MovingSide`: t leaves fewer bits than the words of the other protocols."""
        return public_map.within(MAX_SLOT_RESULT)

    def prefers_moments(self, points: int) -> bool:
        """Fewer plaintexts to encode count above a quarter of a million points; below, the smaller reply does."""
        return points > 1 << 18

    def multiply(
        self, rows: Tensor, pairs: Pairs | None = None, used: Tensor | None = None, into: Into | None = None
    ) -> Tensor:
        """The products (pairs,) of int64 rows (rows, points) or their sums, exactly; int64.

        Raises:
            RangeError: the rows could overflow, or the session's releases are used up; nothing was sent.
            LinkError: the answer is malformed.
        """
        if self._header is None:
            raise RuntimeError("multiply before accept_operand")
        norms = check_range(rows, self._header, self.limits)
        pairs = all_pairs(rows.shape[0], self._header.columns) if pairs is None else pairs
        pairs = check_pairs(pairs, rows.shape[0], self._header)
        places_of_sums = np.array(check_into(into, len(pairs)), np.uint16)
        if into is not None:
            check_sums(rows, norms, self._header, self.limits, pairs, into)
        count, results = len(pairs), 1 + int(places_of_sums.max())
        _check_released(self._released + count)
        self._released += count
        self._products += 1
        masks = [_mask(words) for words in self._stream.words("mask", self._products, (count, 3))]
        matrix, group = rows.detach().cpu().numpy(), self._layout.group
        blocks = self._layout.used_blocks(used)
        c0, c1 = np.zeros((count, _KEPT), np.uint64), list[NDArray[np.uint8]]()
        places = np.zeros((count, 2), np.uint16)  # of each word: its polynomial, its row in the group
        for start in range(0, len(matrix), group):
            wanted: dict[int, list[int]] = {}  # column -> the pairs of this group of rows
            for number, (row, column) in enumerate(pairs):
                if start <= row < start + group:
                    wanted.setdefault(column, []).append(number)
            if not wanted:
                continue
            part = matrix[start : start + group]
            for column, product in self._products_with(part, list(wanted), blocks).items():
                numbers = wanted[column]
                places[numbers] = [(len(c1), pairs[n][0] - start) for n in numbers]
                positions = [self._layout.position(int(slot)) for slot in places[numbers, 1]]
                self._refresh(product)
                words, polynomial = _rescaled(product, positions)
                c0[numbers] = [_add(word, masks[n]) for word, n in zip(words, numbers, strict=True)]
                c1.append(pack60(polynomial))
        head = struct.pack("<II", count, len(c1))
        parts: list[Buffer] = [head, places.data.cast("B"), pack60(c0).data, *(c.data for c in c1)]
        parts += [] if into is None else [places_of_sums.data.cast("B")]
        self._link.send(MessageKind.REPLY_CIPHERTEXTS, parts)
        answer = self._link.receive(MessageKind.MASKED_RESULT).payload
        if len(answer) != _WORD_BYTES * results:
            raise LinkError(f"MASKED_RESULT: {len(answer)} bytes, {_WORD_BYTES * results} are due")
        masked = _unpack_words(answer, MessageKind.MASKED_RESULT).reshape(results, _KEPT)
        totals = [0] * results
        for mask, place in zip(masks, places_of_sums.tolist(), strict=True):
            totals[place] += mask
        return torch.tensor([_open(word, mask) for word, mask in zip(masked, totals, strict=True)], dtype=torch.int64)

    def _products_with(self, rows: NDArray[np.int64], columns: list[int], blocks: Sequence[int]) -> dict[int, Any]:
        """One group of rows times each column: ciphertexts of all primes, NTT form, not yet safe to send."""
        scheme, layout = _scheme(), self._layout
        evaluator = scheme.evaluator
        words = np.zeros((layout.group, layout.block), np.int64)
        totals: dict[int, Any] = {}
        term = scheme.seal.Ciphertext()
        unwanted: dict[int, Any] = {}
        for number in blocks:
            block = rows[:, number * layout.block : (number + 1) * layout.block]
            # SEAL refuses to multiply by zero. A black block is multiplied by one and left out: it takes the same time.
            black = not block.any()
            words[: len(rows), : layout.block - block.shape[1]] = 0
            words[: len(rows), layout.block - block.shape[1] :] = block[:, ::-1]
            words[0, -1] += black
            points = _encode(words.reshape(-1))
            for column in columns:
                ciphertext = self._ciphertexts[column * layout.blocks + number]
                sums = unwanted if black else totals
                if column in sums:
                    evaluator.multiply_plain(ciphertext, points, term)
                    evaluator.add_inplace(sums[column], term)
                else:
                    sums[column] = scheme.seal.Ciphertext()
                    evaluator.multiply_plain(ciphertext, points, sums[column])
        for column in columns:
            if column not in totals:
                totals[column] = scheme.seal.Ciphertext()
                self._encryptor.encrypt_zero(totals[column])
        return totals

    def _refresh(self, product: Any) -> None:
        """Re-randomise a product in place: without this its c1 is a known multiple of X."""
        scheme = _scheme()
        zero = scheme.seal.Ciphertext()
        self._encryptor.encrypt_zero(zero)
        scheme.evaluator.add_inplace(product, zero)


class CkksFixedSide(FixedSide):
    """party_2: holds the secret key, encrypts its operand, decrypts masked words.

    Args:
        link: to party_1.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._stream = KeyStream(new_key())
        self._encryptor: Any = None
        self._header: OperandHeader | None = None
        self._answers = 0
        self._released = 0
        self._slots = SlotFixed(link, CkksFixedCipher())  # for operands with a map
        self._mapped = False

    def mapped_bits(self, public_map: PublicMap) -> tuple[int, int]:
        """See `FixedSide`."""
        return slot_bits(public_map)

    def send_operand(self, header: OperandHeader, values: Tensor, public_map: PublicMap | None = None) -> None:
        """Encrypt and send the operand, int64 (columns, points); the public key goes before the first one.

        Raises:
            RangeError: the values are not those of the header, or do not fit the parameters; nothing was sent.
        """
        self._header, self._mapped = None, public_map is not None
        if public_map is not None:
            table = check_operand(values, header).detach().cpu().numpy()
            self.limits = self._slots.send_operand(header, table[0], public_map)
            return
        scheme, self._layout, self.limits = _scheme(), _layout(header), _limits(header)
        table = check_operand(values, header).detach().cpu().numpy()
        if self._encryptor is None:
            self._make_keys()
        file, plain = plaintext_file(DEGREE, len(scheme.primes), scheme.top), scheme.seal.Plaintext()
        words, block = np.zeros(DEGREE, np.int64), self._layout.block
        batch: list[NDArray[np.uint8]] = []
        for number in range(self._layout.ciphertexts):
            column, place = divmod(number, self._layout.blocks)
            part = table[column, place * block : (place + 1) * block]
            words[: len(part)], words[len(part) :] = part, 0
            file.words[:DEGREE] = _scaled_ntt(words)  # zero modulo the other primes
            file.load(plain, scheme.context)
            # Symmetric and not yet expanded: c1 travels as its seed, which halves the upload.
            batch.append(np.frombuffer(save_seal(self._encryptor.encrypt_symmetric(plain)), np.uint8))
            if len(batch) == PER_MESSAGE or number == self._layout.ciphertexts - 1:
                self._link.send(MessageKind.OPERAND_CIPHERTEXTS, pack({}, batch))
                batch = []
        self._header = header

    def answer(self, request: Received, release: Release) -> None:
        """Decrypt a REPLY_CIPHERTEXTS message and return its masked words, flooded.

        Raises:
            LinkError: wrong kind or length, or words above the primes.
            RangeError: the session's releases are used up; nothing was sent.
        """
        if self._mapped:
            self._slots.answer(request, release)
            return
        if self._header is None or request.kind is not MessageKind.REPLY_CIPHERTEXTS:
            raise LinkError(f"{request.kind.name} is not due; refused")
        c0, places, c1, into = _parse_reply(request.payload, self._header, self._layout.group)
        _check_released(self._released + len(c0))
        self._released += len(c0)
        self._answers += 1
        noise = release(1 + int(into.max())).tolist()
        words = self._stream.words("flood", self._answers, (len(noise), 2)).tolist()
        scheme = _scheme()
        # One flood for each result: a sum has the noise of all its words, each of which was counted as released.
        hidden = [_flood(*pair) + extra * scheme.scale for pair, extra in zip(words, noise, strict=True)]
        totals = [[value] * _KEPT for value in hidden]
        for n, (polynomial, slot) in enumerate(places.tolist()):
            phase = _phase(c1[polynomial], self._secret, self._layout.position(slot))
            total = totals[into[n]]
            totals[into[n]] = [sum_ + int(first) + rest for sum_, first, rest in zip(total, c0[n], phase, strict=True)]
        kept = [[value % prime for value, prime in zip(total, scheme.kept, strict=True)] for total in totals]
        self._link.send(MessageKind.MASKED_RESULT, pack60(np.array(kept, np.uint64)).data)

    def _make_keys(self) -> None:
        scheme = _scheme()
        generator, public_key = scheme.seal.KeyGenerator(scheme.context), scheme.seal.PublicKey()
        generator.create_public_key(public_key)
        secret_key = generator.secret_key()
        self._encryptor = scheme.seal.Encryptor(scheme.context, secret_key)
        self._secret = _secret_coefficients(secret_key)
        self._link.send(MessageKind.PUBLIC_KEY, save_seal(public_key))


@cache
def _scheme() -> _Scheme:
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    moduli = seal.CoeffModulus.Create(DEGREE, list(PRIME_BITS))
    context = ckks_context(DEGREE, [m.value() for m in moduli])
    primes = tuple(m.value() for m in moduli[:-1])
    evaluator, encoder = seal.Evaluator(context), seal.CKKSEncoder(context)
    return _Scheme(seal, context, evaluator, encoder, primes, context.first_parms_id(), context.last_parms_id())


def _layout(header: OperandHeader) -> Layout:
    return layout_of(header, _C1_BYTES, _CIPHERTEXT_BYTES)


def _limits(header: OperandHeader) -> Limits:
    """The largest rows whose noise the flood covers; RangeError where the operand leaves no room."""
    if header.max_abs >= MAX_OPERAND:
        raise RangeError(f"operand: values up to {header.max_abs}, below {MAX_OPERAND} are needed")
    room = (_scheme().primes[-1] << (NOISE_BITS - 1)) - ZERO_NOISE
    largest = min(MAX_ROW, room // (FRESH_NOISE * _layout(header).group * header.points))
    if largest < 1 << 10:
        raise RangeError(f"operand: {header.points} points are more than the noise flood can cover")
    return Limits(max_row=1 << (largest.bit_length() - 1), max_result=MAX_RESULT)


def _check_released(words: int) -> None:
    if words > MAX_WORDS:
        raise RangeError(f"ckks: at most {MAX_WORDS} results per session, the flood covers no more; start a new one")


@cache
def _roots() -> tuple[NDArray[np.complex128], NDArray[np.int64]]:
    """exp(i pi k / n) for each k, and which of the n odd powers of exp(i pi / n) is SEAL's slot j: the one with 3^j."""
    powers = [(pow(3, j, 2 * DEGREE) - 1) // 2 for j in range(DEGREE // 2)]
    return np.exp(1j * np.pi * np.arange(DEGREE) / DEGREE), np.array(powers)


def _encode(coefficients: NDArray[np.int64]) -> Any:
    """Integers (n,) as a plaintext of scale 1 of all primes: SEAL's encoder, given the slots, rounds back to them."""
    scheme, (twist, slots) = _scheme(), _roots()
    values = np.fft.ifft(coefficients * twist, norm="forward")[slots]
    plain = scheme.seal.Plaintext()
    scheme.encoder.encode(values.tolist(), scheme.top, 1.0, plain)
    return plain


def _scaled_ntt(coefficients: NDArray[np.int64]) -> Words:
    """The operand's scale times integers below 2^40 (n,), in NTT form modulo q1.

    SEAL transforms ciphertexts of CKKS only, so the polynomial goes in as one.
    """
    scheme, prime = _scheme(), _scheme().primes[0]
    factor = scheme.scale * scheme.primes[-1] % prime
    # The quotient is off by less than one: the difference of the two products, modulo 2^64, is the remainder.
    quotient = np.rint(coefficients * (factor / prime)).astype(np.int64)
    rest = coefficients * np.int64(factor) - quotient * np.int64(prime)
    file, ciphertext = ciphertext_file(DEGREE, 1, scheme.bottom), scheme.seal.Ciphertext()
    file.words[:DEGREE] = np.where(rest < 0, rest + prime, rest)
    file.words[DEGREE:] = 1  # SEAL refuses a ciphertext without c1
    file.load(ciphertext, scheme.context)
    scheme.evaluator.transform_to_ntt_inplace(ciphertext)
    return _read(ciphertext, 0, DEGREE)


def _rescaled(product: Any, positions: list[int]) -> tuple[Words, Words]:
    """A product divided by q3 and rounded: c0 at these positions (positions, primes), c1 (primes, n)."""
    scheme, small = _scheme(), _scheme().seal.Ciphertext()
    scheme.evaluator.rescale_to_next(product, small)
    scheme.evaluator.transform_from_ntt_inplace(small)
    words = small.dyn_array()
    c0 = [[words.at(i * DEGREE + position) for i in range(_KEPT)] for position in positions]
    return np.array(c0, np.uint64), _read(small, _KEPT * DEGREE, 2 * _KEPT * DEGREE).reshape(_KEPT, DEGREE)


def _read(ciphertext: Any, start: int, stop: int) -> Words:
    return ciphertext_words(ciphertext, start, stop)


def _secret_coefficients(secret_key: Any) -> NDArray[np.int64]:
    """s (n,) in {-1, 0, 1}."""
    scheme = _scheme()
    file, ciphertext = ciphertext_file(DEGREE, 1, scheme.bottom, ntt=True), scheme.seal.Ciphertext()
    words = secret_key.data()
    file.words[DEGREE:] = [words.data(i) for i in range(DEGREE)]
    file.load(ciphertext, scheme.context)
    scheme.evaluator.transform_from_ntt_inplace(ciphertext)
    secret = _read(ciphertext, DEGREE, 2 * DEGREE).astype(np.int64)
    secret[secret > 1] -= scheme.primes[0]
    return secret


def _phase(c1: NDArray[np.int64], secret: NDArray[np.int64], position: int) -> list[int]:
    """The coefficient of x^position in c1 s, c1 (primes, n): an integer for each prime, not reduced.

    Decryption of one coefficient is one inner product; SEAL's decryption gives all of them in NTT form.
    """
    turned = np.concatenate([secret[position::-1], -secret[:position:-1]])
    low, high = (c1 & ((1 << 30) - 1)) @ turned, (c1 >> 30) @ turned  # below 2^43 each
    return [int(a) + (int(b) << 30) for a, b in zip(low, high, strict=True)]


def _mask(words: NDArray[np.int64]) -> int:
    """Three uniform 64-bit words as an integer modulo q1 q2; 2^-72 from uniform."""
    return int.from_bytes(words.tobytes(), "little") % math.prod(_scheme().kept)


def _flood(low: int, high: int) -> int:
    """Two uniform 64-bit words as a uniform integer in [-2^(b-1), 2^(b-1)), b = FLOOD_BITS."""
    word = (high & (1 << 64) - 1) << 64 | low & (1 << 64) - 1
    return (word & (1 << FLOOD_BITS) - 1) - (1 << FLOOD_BITS - 1)


def _add(word: Words, value: int) -> list[int]:
    """An integer added to its residues (primes,)."""
    return [(int(residue) + value) % prime for residue, prime in zip(word, _scheme().kept, strict=True)]


def _open(word: Words, mask: int) -> int:
    """The integer R whose scaled, flooded and masked residues (primes,) these are."""
    primes, scale = _scheme().kept, _scheme().scale
    half = math.prod(primes) // 2
    value = (compose_residues(word.tolist(), primes) - mask + half) % (2 * half + 1) - half
    return (value + scale // 2) // scale


def _unpack_words(packed: memoryview, kind: MessageKind) -> Words:
    """Words modulo q1 and q2 in turn (-1, 2); LinkError where one is not below its prime."""
    words = unpack60(np.frombuffer(packed, np.uint8)).reshape(-1, _KEPT)
    if (words >= np.array(_scheme().kept, np.uint64)).any():
        raise LinkError(f"{kind.name}: a word above the prime; refused")
    return words


def _load_key(data: bytes) -> Any:
    scheme = _scheme()
    key = scheme.seal.PublicKey()
    load_seal(key, scheme.context, data, "PUBLIC_KEY")
    return key


def _receive_ciphertexts(link: Link, due: int) -> list[Any]:
    """The next `due` ciphertexts of an operand, in NTT form."""
    scheme, ciphertexts = _scheme(), []
    for file in receive_files(link, due):
        ciphertext = scheme.seal.Ciphertext()
        load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
        fresh = ciphertext.size() == 2 and ciphertext.parms_id() == scheme.top and ciphertext.is_ntt_form()
        if not fresh or ciphertext.scale != 1.0:
            raise LinkError("OPERAND_CIPHERTEXTS: not a fresh ciphertext of the agreed parameters")
        ciphertexts.append(ciphertext)
    return ciphertexts


def _parse_reply(
    payload: memoryview, header: OperandHeader, group: int
) -> tuple[Words, NDArray[np.uint16], NDArray[np.int64], NDArray[np.uint16]]:
    """c0 words (count, primes), their places (count, 2), c1 polynomials (number, primes, n), the results they go into.

    All words are below the primes.
    """
    count, polynomials = struct.unpack_from("<II", payload) if len(payload) >= 8 else (0, 0)
    most, start = header.rows * header.columns, 8 + (4 + _WORD_BYTES) * count
    stop = start + polynomials * _C1_BYTES
    if not 1 <= polynomials <= count <= most or len(payload) not in (stop, stop + 2 * count):
        raise LinkError(f"REPLY_CIPHERTEXTS: {len(payload)} bytes for {count} words (1 to {most} were agreed); refused")
    places = np.frombuffer(payload, np.uint16, 2 * count, 8).reshape(count, 2)
    c0 = _unpack_words(payload[8 + 4 * count : start], MessageKind.REPLY_CIPHERTEXTS)
    c1 = unpack60(np.frombuffer(payload[start:stop], np.uint8)).reshape(polynomials, _KEPT, DEGREE)
    if any((c1[:, i] >= prime).any() for i, prime in enumerate(_scheme().kept)):
        raise LinkError("REPLY_CIPHERTEXTS: a word above the prime; refused")
    if places[:, 0].max() >= polynomials or places[:, 1].max() >= group or len(np.unique(places, axis=0)) != count:
        raise LinkError("REPLY_CIPHERTEXTS: words beyond the polynomials, or one twice; refused")
    return c0, places, c1.view(np.int64), read_into(payload[stop:], count)


ENTRY = ProtocolEntry(
    name="ckks",
    party_1_learns="the opened products of each iteration; per level the mean, scale and energy of J",
    party_2_learns="sizes and timing only (timing: about how many blocks of X are all zero)",
    moving_side=lambda link, _dealer, _device: CkksMovingSide(link),
    fixed_side=lambda link, _dealer, _device: CkksFixedSide(link),
)
