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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import LinkError, RangeError
from ..link import Buffer, Kind, Link, Message, pack
from .csprng import KeyStream, new_key
from .packing import DEGREE, PER_MESSAGE, receive_files, receive_key
from .protocol import Limits, OperandHeader, Release, check_mapped
from .public_map import PublicMap
from .residues import reduced, times_modulo
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
from .slots import WIDTH, SlotLayout, T, Words, mapped_sums, slot_limits, slots_of, uniform_words
from .words import pack_words, unpack_words

__all__ = ["CkksSlotFixed", "CkksSlotMoving"]

PRIMES = ((1 << 60) - 16383, (1 << 60) - 98303, (1 << 60) - 163839)
SPECIAL = (1 << 20) - 16383
FRESH_NOISE = 34  # |sum w_j e_j| / |w|_2, passed with probability below 2^-78
ZERO_NOISE = 1 << 19  # of a public-key encryption of zero, after SEAL divided it by the special prime: far less
PHASE = DEGREE * (T // 2) ** 2 + T * (math.ceil(FRESH_NOISE * math.sqrt(DEGREE) * T / 2) + 1)  # of one multiplication
MAX_PRODUCTS = 1 << 18  # multiplications of a ciphertext in a session
LAST_SLOT = T // 2

_REPLY_BYTES = 2 * len(PRIMES) * DEGREE * 60 // 8
_REPLIES_PER_MESSAGE = 4  # party_2 decrypts while party_1 works on


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


class CkksSlotMoving:
    """party_1: multiplies the encrypted operand by its rows and sends shares that say nothing of them.

    Args:
        link: to party_2.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._stream = KeyStream(new_key())
        self._encryptor: Any = None
        self._header: OperandHeader | None = None
        self._products, self._replies = 0, 0  # in this session
        self._file = plaintext_file(DEGREE, len(PRIMES), _scheme().top)  # a row

    def accept_operand(self, header: OperandHeader, public_map: PublicMap) -> Limits:
        """Receive the public key (first operand only) and the operand's ciphertexts.

        Raises:
            RangeError: the operand and its map leave no room below t.
            LinkError: what arrived is not a key or not the ciphertexts of this header.
        """
        scheme, self.limits = _scheme(), slot_limits(header, public_map)
        self._header, self._map, self.layout = None, public_map, SlotLayout.of(public_map)
        if self._encryptor is None:
            key = scheme.seal.PublicKey()
            load_seal(key, scheme.context, receive_key(self._link), "PUBLIC_KEY")
            self._encryptor = scheme.seal.Encryptor(scheme.context, key)
        self._ciphertexts: list[Any] = []
        while len(self._ciphertexts) < self.layout.ciphertexts:
            for file in receive_files(self._link, min(PER_MESSAGE, self.layout.ciphertexts - len(self._ciphertexts))):
                ciphertext = _load(file)
                scheme.evaluator.multiply_plain_inplace(ciphertext, scheme.t)
                self._ciphertexts.append(ciphertext)
        self._header = header
        return self.limits

    def project(self, rows: Tensor) -> Tensor:
        """See `MovingSide`.

        Raises:
            RangeError: the rows could overflow, or the session's products are used up; nothing was sent.
            LinkError: the answer is malformed.
        """
        if self._header is None:
            raise RuntimeError("project before accept_operand with a map")
        check_mapped(rows, self._header, self._map, self.limits)
        count = rows.shape[0] * self.layout.ciphertexts
        if self._products + count > MAX_PRODUCTS:
            raise RangeError(f"ckks: at most {MAX_PRODUCTS} products per session keep it exact; start a new one")
        self._products += count
        masks: list[Words] = []
        batch: list[Buffer] = []
        for product in self._multiply(rows.detach().cpu().numpy()):
            words, mask = self._cover(product)
            masks.append(mask)
            batch.append(pack60(words).data)
            if len(batch) == _REPLIES_PER_MESSAGE:
                self._link.send(Kind.REPLY_CIPHERTEXTS, batch)
                batch = []
        if batch:
            self._link.send(Kind.REPLY_CIPHERTEXTS, batch)
        own = mapped_sums(masks, rows.shape[0], self.layout, self._map)  # while party_2 decrypts
        answer = unpack_words(self._link.receive(Kind.MASKED_RESULT).payload, len(own), WIDTH)
        if int(answer.max()) >= T:
            raise LinkError(f"MASKED_RESULT: a word of {int(answer.max())}, below {T} is due")
        result = (answer - own) % T
        return torch.where(result > T // 2, result - T, result)

    def _multiply(self, rows: NDArray[np.int64]) -> Iterator[Any]:
        """The products (not yet safe to send): of each block each row but the last, then the last one's sum."""
        layout = self.layout
        total: Any = None
        for block in range(layout.blocks):
            numbers = range(block, layout.ciphertexts, layout.blocks)  # of each channel
            for row in rows[:-1]:
                yield self._sum(row, numbers, None)
            total = self._sum(rows[-1], numbers, total)
        yield total

    def _sum(self, row: NDArray[np.int64], numbers: range, total: Any) -> Any:
        """`total` (None: zero) and the products of a row with these ciphertexts, NTT form."""
        scheme = _scheme()
        points, term = scheme.seal.Plaintext(), scheme.seal.Ciphertext()
        for number in numbers:
            self._file.words[:] = _polynomial(self.layout.part(row, number)).reshape(-1)
            self._file.load(points, scheme.context)
            if total is None:
                total = scheme.seal.Ciphertext()
                scheme.evaluator.multiply_plain(self._ciphertexts[number], points, total)
            else:
                scheme.evaluator.multiply_plain(self._ciphertexts[number], points, term)
                scheme.evaluator.add_inplace(total, term)
        return total

    def _cover(self, product: Any) -> tuple[Words, Words]:
        """A product re-randomised (in place) and masked: its words (2, primes, n), and the mask's slots (n,)."""
        self._refresh(product)
        self._replies += 1
        # Residues that are uniform and independent are those of a uniform number modulo q.
        mask = np.stack([uniform_words(self._stream, f"mask {p}", self._replies, p) for p in PRIMES])
        words = _coefficients(product, range(2))
        words[0] = (words[0] + mask) % _columns(PRIMES)
        return words, _slots(mask)

    def _refresh(self, product: Any) -> None:
        """Add t times a fresh encryption of zero, in place: without this c1 is a known multiple of w."""
        scheme = _scheme()
        zero = scheme.seal.Ciphertext()
        self._encryptor.encrypt_zero(zero)
        scheme.evaluator.multiply_plain_inplace(zero, scheme.t)
        scheme.evaluator.add_inplace(product, zero)


class CkksSlotFixed:
    """party_2: holds the secret key, encrypts its operand, decrypts its shares and returns their mapped sums.

    Args:
        link: to party_1.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._encryptor: Any = None
        self._secret: Any = None  # s as a plaintext
        self._header: OperandHeader | None = None
        self._file = ciphertext_file(DEGREE, len(PRIMES), _scheme().top)  # a reply

    def send_operand(self, header: OperandHeader, values: NDArray[np.int64], public_map: PublicMap) -> Limits:
        """Encrypt and send the values (points,), which fit the header; the public key goes before the first operand.

        Raises:
            RangeError: the operand and its map leave no room below t; nothing was sent.
        """
        limits, scheme, layout = slot_limits(header, public_map), _scheme(), SlotLayout.of(public_map)
        if self._encryptor is None:
            self._make_keys()
        file, plain = plaintext_file(DEGREE, len(PRIMES), scheme.top), scheme.seal.Plaintext()
        batch: list[NDArray[np.uint8]] = []
        for number in range(layout.ciphertexts):
            polynomial = _polynomial(layout.part(values, number))
            divided = [times_modulo(words, pow(T, -1, p), p) for words, p in zip(polynomial, PRIMES, strict=True)]
            file.words[:] = np.concatenate(divided)
            file.load(plain, scheme.context)
            # Symmetric and not yet expanded: c1 travels as its seed, which halves the upload.
            batch.append(np.frombuffer(save_seal(self._encryptor.encrypt_symmetric(plain)), np.uint8))
            if len(batch) == PER_MESSAGE or number == layout.ciphertexts - 1:
                self._link.send(Kind.OPERAND_CIPHERTEXTS, pack({}, batch))
                batch = []
        self._header, self._map, self.layout = header, public_map, layout
        return limits

    def answer(self, request: Message, release: Release) -> None:
        """Decrypt the replies, of which `request` brings the first, and return the masked sums.

        Raises:
            LinkError: another kind of message, or not the ciphertexts that are due; nothing was released.
        """
        if self._header is None or request.kind is not Kind.REPLY_CIPHERTEXTS:
            raise LinkError(f"{request.kind.name} is not due; refused")
        rows = self._header.rows
        shares, due = self._decrypt(request, left := (rows - 1) * self.layout.blocks + 1), left
        while len(shares) < due:
            shares += self._decrypt(self._link.receive(Kind.REPLY_CIPHERTEXTS), due - len(shares))
        sums = mapped_sums(shares, rows, self.layout, self._map)
        masked = (sums + release(len(sums)).to(sums)) % T
        self._link.send(Kind.MASKED_RESULT, pack_words(masked, WIDTH))

    def _decrypt(self, message: Message, left: int) -> list[Words]:
        """The slots (n,) of the next ciphertexts of a product, of which `left` are due."""
        count = min(left, _REPLIES_PER_MESSAGE)
        if len(message.payload) != count * _REPLY_BYTES:
            raise LinkError(
                f"REPLY_CIPHERTEXTS: {len(message.payload)} bytes, {count} x {_REPLY_BYTES} are due; refused"
            )
        starts = range(0, len(message.payload), _REPLY_BYTES)
        packed = (np.frombuffer(message.payload, np.uint8, _REPLY_BYTES, start) for start in starts)
        return [_slots(self._phase(unpack60(p).reshape(2, -1, DEGREE))) for p in packed]

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

    def _make_keys(self) -> None:
        scheme = _scheme()
        generator, public_key = scheme.seal.KeyGenerator(scheme.context), scheme.seal.PublicKey()
        generator.create_public_key(public_key)
        secret_key = generator.secret_key()
        self._encryptor = scheme.seal.Encryptor(scheme.context, secret_key)
        file, self._secret = plaintext_file(DEGREE, len(PRIMES), scheme.top), scheme.seal.Plaintext()
        file.words[:] = ciphertext_words(secret_key.data(), 0, len(file.words))  # of the first primes
        file.load(self._secret, scheme.context)
        self._link.send(Kind.PUBLIC_KEY, save_seal(public_key))


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


def _load(file: bytes) -> Any:
    """A received ciphertext of the operand; LinkError where it is not a fresh one of the agreed parameters."""
    scheme = _scheme()
    ciphertext = scheme.seal.Ciphertext()
    load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
    fresh = ciphertext.size() == 2 and ciphertext.parms_id() == scheme.top and ciphertext.is_ntt_form()
    if not fresh or ciphertext.scale != 1.0 or ciphertext.is_transparent():
        raise LinkError("OPERAND_CIPHERTEXTS: not a ciphertext of the agreed parameters; refused")
    return ciphertext
