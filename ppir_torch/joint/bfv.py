"""Exact joint products under BFV homomorphic encryption, without rotations (TenSEAL's `sealapi`).

party_2 encrypts its operand once, as polynomial coefficients; party_1 multiplies by its rows, sanitises the result and
sends it back masked; party_2 decrypts uniform words, returns them, and party_1 removes the mask.

Packing (Cheetah: Huang et al., USENIX Security 2022): with blocks of L = n / group points,
    y(x) = sum_i Y[i] x^i,   w(x) = sum_k x^(kL) sum_i X[k, i] x^(L-1-i)
have (w y)[kL + L-1] = sum_i X[k, i] Y[i] for each of the `group` rows k side by side; no other term falls there.

What hides X from party_2, which holds the secret key and knows its own encryption errors, is three things together:
a uniform mask modulo t on every released coefficient; a fresh public-key encryption of zero, without which c1 is a
known multiple of X; and a uniform flood on the released noise, which otherwise is a known multiple of X
(noise flooding: Gentry, STOC 2009; Asharov et al., EUROCRYPT 2012). tests/attacks/test_bfv_reply.py runs both attacks.

Numbers: n = 8192, q = 60+50+50 bits and a special prime of 20 (180 bits; SEAL's 128-bit table allows 218), t = 2^49
(below every prime, or SEAL lifts plaintexts on its slow path).
- flood: uniform over 2^109 values. The noise that depends on X is at most 22 group N max|X| (fresh errors of SEAL's
  centred binomial are at most 21, rounding adds 1/2), so the statistical distance of all 2^18 words that a session may
  release from words that do not depend on X is at most 2^18 noise / 2^109; `max_row` is chosen to keep it below 2^-40.
- exactness: the flood is at most 2^8 after the switch to the 60-bit prime, where decryption is right up to
  q1 / 2t = 2^10; the switch adds |sum_j r_j s_j| + 1, |r_j| <= 1/2 and s ternary, above 2^9.5 with probability below
  2^-200 (Hoeffding).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import LinkError, RangeError
from ..link import Kind, Link, Message, pack, unpack
from .csprng import KeyStream, new_key
from .protocol import FixedSide, Limits, MovingSide, OperandHeader, ProtocolEntry, check_range
from .seal_format import (
    ciphertext_file,
    compose_residues,
    load_seal,
    pack60,
    plaintext_file,
    save_seal,
    unpack60,
)

__all__ = ["ENTRY", "BfvFixedSide", "BfvMovingSide"]

DEGREE = 8192
PRIME_BITS = (60, 50, 50, 20)  # the first survives to the reply; the last is SEAL's special prime
PLAIN_BITS = 49
FLOOD_BITS = 109
MAX_WORDS = 1 << 18  # released in a session: 2^14 products of 16 rows
DISTANCE_BITS = 40
MAX_ROW = 1 << 20
FRESH_NOISE = 22
ZERO_NOISE = 1 << 19  # of a public-key encryption of zero, after SEAL divided it by the special prime: far less

_T = 1 << PLAIN_BITS
_C1_BYTES = DEGREE * 60 // 8
_CIPHERTEXT_BYTES = 185_000  # a seeded ciphertext as SEAL writes it
_MAX_CIPHERTEXT_BYTES = 1 << 18
_MAX_KEY_BYTES = 1 << 20
_PER_MESSAGE = 16
_SMALL_UPLOAD = 12_000_000
_EXPECTED_PRODUCTS = 10


@dataclass(frozen=True)
class _Layout:
    """How an operand is packed: `group` rows side by side, `block` = n / group points in each of `blocks` ciphertexts.

    Row k of a group ends up in coefficient k block + block - 1.
    """

    group: int
    block: int
    blocks: int


@dataclass(frozen=True)
class _Scheme:
    """The public SEAL objects that both parties derive from the fixed parameters; nothing secret."""

    seal: Any
    context: Any
    evaluator: Any
    primes: tuple[int, ...]  # of the ciphertext modulus, without the special prime
    top: Any  # parms_id of all primes
    bottom: Any  # parms_id of the first prime alone


class BfvMovingSide(MovingSide):
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

    def accept_operand(self, header: OperandHeader) -> None:
        """Receive the public key (first operand only) and the operand's ciphertexts; sets `limits`.

        Raises:
            RangeError: the operand's public bounds do not fit the parameters.
            LinkError: what arrived is not a key or not the ciphertexts of this header.
        """
        scheme, self._layout, self.limits = _scheme(), _layout(header), _limits(header)
        if self._encryptor is None:
            self._encryptor = scheme.seal.Encryptor(scheme.context, _receive_key(self._link))
        self._header, self._ciphertexts = None, []
        while len(self._ciphertexts) < self._layout.blocks:
            due = min(_PER_MESSAGE, self._layout.blocks - len(self._ciphertexts))
            self._ciphertexts += _receive_ciphertexts(self._link, due)
        self._header = header

    def multiply(self, rows: Tensor) -> Tensor:
        """R = X Y exactly, int64 (rows,), for int64 rows (rows, points).

        Raises:
            RangeError: the rows could overflow, or the session's releases are used up; nothing was sent.
            LinkError: the answer is malformed.
        """
        if self._header is None:
            raise RuntimeError("multiply before accept_operand")
        check_range(rows, self._header, self.limits)
        count = rows.shape[0]
        if self._released + count > MAX_WORDS:
            raise RangeError(f"bfv: at most {MAX_WORDS} results per session, the flood covers no more; start a new one")
        self._released += count
        self._products += 1
        masks = self._stream.words("mask", self._products, (count,)) & (_T - 1)
        floods = [_flood(low, high) for low, high in self._stream.words("flood", self._products, (count, 2)).tolist()]
        matrix = rows.detach().cpu().numpy()
        c0, c1 = [], []
        for start in range(0, count, self._layout.group):
            part = slice(start, min(start + self._layout.group, count))
            product = self._product(matrix[part])
            covered = self._cover(product, masks[part].tolist(), floods[part])
            c0 += _switch_words(covered)
            c1.append(pack60(_switch_c1(product)))
        self._link.send(Kind.REPLY_CIPHERTEXTS, [struct.pack(f"<I{count}Q", count, *c0), *(c.data for c in c1)])
        answer = self._link.receive(Kind.MASKED_RESULT).payload
        if len(answer) != 8 * count:
            raise LinkError(f"MASKED_RESULT: {len(answer)} bytes, {8 * count} are due")
        masked = np.frombuffer(answer, np.uint64)
        if masked.max() >= _T:
            raise LinkError(f"MASKED_RESULT: a word of {int(masked.max())}, below 2^{PLAIN_BITS} is due")
        result = (masked.astype(np.int64) - masks) & (_T - 1)
        return torch.from_numpy(np.where(result >= _T // 2, result - _T, result))

    def _product(self, rows: NDArray[np.int64]) -> Any:
        """One group of rows times the operand: a ciphertext of all primes, coefficient form, not yet safe to send."""
        scheme, layout = _scheme(), self._layout
        evaluator, top = scheme.evaluator, scheme.top
        file = plaintext_file(DEGREE)
        words = file.words.view(np.int64).reshape(layout.group, layout.block)
        words[:] = 0
        coefficients, points = scheme.seal.Plaintext(), scheme.seal.Plaintext()
        total, term = None, scheme.seal.Ciphertext()
        for number, ciphertext in enumerate(self._ciphertexts):
            block = rows[:, number * layout.block : (number + 1) * layout.block]
            if not block.any():
                continue  # SEAL refuses to multiply by zero
            words[: len(rows), : layout.block - block.shape[1]] = 0
            np.bitwise_and(block[:, ::-1], _T - 1, out=words[: len(rows), layout.block - block.shape[1] :])
            file.load(coefficients, scheme.context)
            evaluator.transform_to_ntt(coefficients, top, points)
            if total is None:
                total = scheme.seal.Ciphertext()
                evaluator.multiply_plain(ciphertext, points, total)
            else:
                evaluator.multiply_plain(ciphertext, points, term)
                evaluator.add_inplace(total, term)
        if total is None:
            total = scheme.seal.Ciphertext()
            self._encryptor.encrypt_zero(total)
            return total
        evaluator.transform_from_ntt_inplace(total)
        return total

    def _cover(self, product: Any, masks: list[int], floods: list[int]) -> list[int]:
        """Re-randomise `product` in place; its released c0 coefficients, masked and flooded, as integers modulo Q."""
        scheme = _scheme()
        zero = scheme.seal.Ciphertext()
        self._encryptor.encrypt_zero(zero)
        scheme.evaluator.add_inplace(product, zero)
        modulus = math.prod(scheme.primes)
        words = product.dyn_array()
        covered = []
        for k, (mask, flood) in enumerate(zip(masks, floods, strict=True)):
            position = _position(self._layout, k)
            residues = [words.at(i * DEGREE + position) for i in range(len(scheme.primes))]
            value = compose_residues(residues, scheme.primes) + (mask * modulus + _T // 2) // _T + flood
            covered.append(value % modulus)
        return covered


class BfvFixedSide(FixedSide):
    """party_2: holds the secret key, encrypts its operand, decrypts masked words.

    Args:
        link: to party_1.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._secret_key: Any = None
        self._encryptor: Any = None
        self._decryptor: Any = None
        self._header: OperandHeader | None = None

    def send_operand(self, header: OperandHeader, values: Tensor) -> None:
        """Encrypt and send the operand, int64 (points,); the public key goes before the first one.

        Raises:
            RangeError: the values are not those of the header, or do not fit the parameters; nothing was sent.
        """
        scheme, self._layout = _scheme(), _layout(header)
        _limits(header)
        if values.dtype != torch.int64 or tuple(values.shape) != (header.points,):
            raise RangeError(f"operand: {tuple(values.shape)} {values.dtype}, needed ({header.points},) int64")
        low, high = (int(v) for v in values.aminmax())
        if max(-low, high) > header.max_abs:
            raise RangeError(f"operand: magnitude {max(-low, high)}, its header says at most {header.max_abs}")
        if float(values.to(torch.float64).square().sum()) > header.energy * (1 + 1e-9):
            raise RangeError(f"operand: its energy is above the header's {header.energy}; results could overflow")
        if self._encryptor is None:
            self._make_keys()
        operand = values.detach().cpu().numpy()
        file, plain = plaintext_file(DEGREE), scheme.seal.Plaintext()
        words, block = file.words.view(np.int64), self._layout.block
        batch: list[NDArray[np.uint8]] = []
        for number in range(self._layout.blocks):
            part = operand[number * block : (number + 1) * block]
            words[:] = 0
            words[: len(part)] = part & (_T - 1)
            file.load(plain, scheme.context)
            # Symmetric and not yet expanded: c1 travels as its seed, which halves the upload.
            batch.append(np.frombuffer(save_seal(self._encryptor.encrypt_symmetric(plain)), np.uint8))
            if len(batch) == _PER_MESSAGE or number == self._layout.blocks - 1:
                self._link.send(Kind.OPERAND_CIPHERTEXTS, pack({}, batch))
                batch = []
        self._header = header

    def answer(self, request: Message) -> None:
        """Decrypt a REPLY_CIPHERTEXTS message and return its masked words.

        Raises:
            LinkError: wrong kind or length, or words above the prime.
        """
        if self._header is None or request.kind is not Kind.REPLY_CIPHERTEXTS:
            raise LinkError(f"{request.kind.name} is not due; refused")
        c0, c1 = _parse_reply(request.payload, self._header.rows, self._layout.group)
        scheme = _scheme()
        file = ciphertext_file(DEGREE, 1, scheme.bottom)
        words = file.words
        masked = np.zeros(len(c0), np.uint64)
        for number, polynomial in enumerate(c1):
            rows = range(number * self._layout.group, min((number + 1) * self._layout.group, len(c0)))
            positions = [_position(self._layout, k) for k in range(len(rows))]
            words[:DEGREE] = 0
            words[positions] = c0[rows.start : rows.stop]
            words[DEGREE:] = polynomial
            ciphertext, plain = scheme.seal.Ciphertext(), scheme.seal.Plaintext()
            file.load(ciphertext, scheme.context)
            self._decryptor.decrypt(ciphertext, plain)
            length = plain.coeff_count()  # SEAL drops leading zeros
            masked[rows.start : rows.stop] = [plain.data(i) if i < length else 0 for i in positions]
        self._link.send(Kind.MASKED_RESULT, masked.tobytes())

    def _make_keys(self) -> None:
        scheme = _scheme()
        generator, public_key = scheme.seal.KeyGenerator(scheme.context), scheme.seal.PublicKey()
        generator.create_public_key(public_key)
        self._secret_key = generator.secret_key()
        self._encryptor = scheme.seal.Encryptor(scheme.context, self._secret_key)
        self._decryptor = scheme.seal.Decryptor(scheme.context, self._secret_key)
        self._link.send(Kind.PUBLIC_KEY, save_seal(public_key))


@cache
def _scheme() -> _Scheme:
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(DEGREE)
    moduli = seal.CoeffModulus.Create(DEGREE, list(PRIME_BITS))
    parameters.set_coeff_modulus(moduli)
    parameters.set_plain_modulus(_T)
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise RuntimeError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
    primes = tuple(m.value() for m in moduli[:-1])
    return _Scheme(seal, context, seal.Evaluator(context), primes, context.first_parms_id(), context.last_parms_id())


def _layout(header: OperandHeader) -> _Layout:
    """More rows per ciphertext make replies smaller and the one-time upload larger; both sides derive the same."""
    upload = header.points / DEGREE * _CIPHERTEXT_BYTES
    best = math.sqrt(header.rows * _EXPECTED_PRODUCTS * _C1_BYTES / upload)
    group = 1
    while group < min(header.rows, DEGREE // 2) and (2 * group <= best or 2 * group * upload <= _SMALL_UPLOAD):
        group *= 2
    block = DEGREE // group
    return _Layout(group, block, -(-header.points // block))


def _limits(header: OperandHeader) -> Limits:
    """The largest rows that the flood hides to 2^-40 over a session; RangeError where the operand leaves no room."""
    if header.max_abs >= _T // 2:
        raise RangeError(f"operand: values up to {header.max_abs}, below 2^{PLAIN_BITS - 1} are needed")
    room = (1 << FLOOD_BITS) // (MAX_WORDS << DISTANCE_BITS) - ZERO_NOISE
    largest = min(MAX_ROW, room // (FRESH_NOISE * _layout(header).group * header.points))
    if largest < 1 << 10:
        raise RangeError(f"operand: {header.points} points are more than the noise flood can cover")
    return Limits(max_row=1 << (largest.bit_length() - 1), max_result=_T // 2 - 1)


def _position(layout: _Layout, k: int) -> int:
    return k * layout.block + layout.block - 1


def _flood(low: int, high: int) -> int:
    """Two uniform 64-bit words as a uniform integer in [-2^(b-1), 2^(b-1)), b = FLOOD_BITS."""
    word = (high & (1 << 64) - 1) << 64 | low & (1 << 64) - 1
    return (word & (1 << FLOOD_BITS) - 1) - (1 << FLOOD_BITS - 1)


def _switch_words(covered: list[int]) -> list[int]:
    """Integers modulo Q, scaled and rounded to the first prime."""
    first, *rest = _scheme().primes
    divisor = math.prod(rest)
    return [(value + divisor // 2) // divisor % first for value in covered]


def _switch_c1(product: Any) -> NDArray[np.uint64]:
    """c1 of a ciphertext of all primes, scaled and rounded to the first prime: uint64 (n,)."""
    scheme = _scheme()
    small = scheme.seal.Ciphertext()
    scheme.evaluator.mod_switch_to(product, scheme.bottom, small)
    words = small.dyn_array()
    return np.fromiter(map(words.at, range(DEGREE, 2 * DEGREE)), np.uint64, DEGREE)


def _receive_key(link: Link) -> Any:
    scheme = _scheme()
    payload = link.receive(Kind.PUBLIC_KEY).payload
    if not 0 < len(payload) <= _MAX_KEY_BYTES:
        raise LinkError(f"PUBLIC_KEY: {len(payload)} bytes, at most {_MAX_KEY_BYTES} are allowed")
    key = scheme.seal.PublicKey()
    load_seal(key, scheme.context, payload, "PUBLIC_KEY")
    return key


def _receive_ciphertexts(link: Link, due: int) -> list[Any]:
    """The next `due` ciphertexts of an operand, in NTT form."""
    scheme = _scheme()
    _, arrays = unpack(link.receive(Kind.OPERAND_CIPHERTEXTS).payload)
    if len(arrays) != due:
        raise LinkError(f"OPERAND_CIPHERTEXTS: {len(arrays)} ciphertexts, {due} are due")
    ciphertexts = []
    for array in arrays:
        if array.dtype != np.uint8 or array.ndim != 1 or not 0 < array.size <= _MAX_CIPHERTEXT_BYTES:
            raise LinkError(f"OPERAND_CIPHERTEXTS: {array.shape} {array.dtype} is not a ciphertext")
        ciphertext = scheme.seal.Ciphertext()
        load_seal(ciphertext, scheme.context, array.tobytes(), "OPERAND_CIPHERTEXTS")
        if ciphertext.size() != 2 or ciphertext.parms_id() != scheme.top or ciphertext.is_ntt_form():
            raise LinkError("OPERAND_CIPHERTEXTS: not a fresh ciphertext of the agreed parameters")
        scheme.evaluator.transform_to_ntt_inplace(ciphertext)
        ciphertexts.append(ciphertext)
    return ciphertexts


def _parse_reply(payload: memoryview, most: int, group: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """c0 words (rows,) and c1 polynomials (groups, n) of a REPLY_CIPHERTEXTS payload, all below the first prime."""
    count = int.from_bytes(payload[:4], "little") if len(payload) >= 4 else 0
    groups = -(-count // group)
    if not 1 <= count <= most or len(payload) != 4 + 8 * count + groups * _C1_BYTES:
        raise LinkError(f"REPLY_CIPHERTEXTS: {len(payload)} bytes for {count} rows (1 to {most} were agreed); refused")
    c0 = np.frombuffer(payload, np.uint64, count, 4)
    c1 = unpack60(np.frombuffer(payload, np.uint8, offset=4 + 8 * count)).reshape(groups, DEGREE)
    if max(c0.max(), c1.max()) >= _scheme().primes[0]:
        raise LinkError("REPLY_CIPHERTEXTS: a word above the prime; refused")
    return c0, c1


ENTRY = ProtocolEntry(
    name="bfv",
    party_1_learns="the P + 1 opened products of each iteration; per level the mean, scale and energy of J",
    party_2_learns="sizes and timing only (timing: about how many blocks of X are all zero)",
    moving_side=lambda link, _dealer, _device: BfvMovingSide(link),
    fixed_side=lambda link, _dealer, _device: BfvFixedSide(link),
)
