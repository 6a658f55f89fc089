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
from .seal_format import (
    bfv_context,
    ciphertext_file,
    ciphertext_words,
    load_seal,
    pack_pairs,
    save_seal,
    unpack_pairs,
)
from .slots import WIDTH, SlotLayout, T, Words, mapped_sums, slot_limits, slots_of, uniform_words
from .words import pack_words, unpack_words

__all__ = ["SlotFixed", "SlotMoving"]

PRIMES = ((1 << 60) - 16383, (1 << 60) - 98303, (1 << 60) - 163839, (1 << 20) - 16383)  # the last is special
TOP_FLOOD_BITS = 11  # of f1
FRESH_NOISE = 34  # |sum w_j e_j| / |w|_2, passed with probability below 2^-78
NOISE = math.ceil(FRESH_NOISE * math.sqrt(DEGREE) * T / 2) + DEGREE * T // 4 + 1
MAX_PRODUCTS = 1 << 18  # multiplications of a ciphertext in a session
C0_BITS = 52  # of 60 that a reply carries

_C0_BYTES = DEGREE * C0_BITS // 8
_REPLY_BYTES = _C0_BYTES + DEGREE * 60 // 8
_REPLIES_PER_MESSAGE = 4  # party_2 decrypts while party_1 works on


@dataclass(frozen=True)
class _Scheme:
    """The public SEAL objects that both parties derive from the fixed parameters; nothing secret."""

    seal: Any
    context: Any
    evaluator: Any
    encoder: Any
    levels: tuple[Any, ...]  # parms_id of three primes, two, and the first alone


class SlotMoving:
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
        levels = _scheme().levels
        self._digits = [ciphertext_file(DEGREE, len(levels) - i, level) for i, level in enumerate(levels)]

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
                ciphertext = _load(file, Kind.OPERAND_CIPHERTEXTS, scheme.levels[0])
                scheme.evaluator.transform_to_ntt_inplace(ciphertext)
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
            raise RangeError(f"bfv: at most {MAX_PRODUCTS} products per session, the flood covers no more; start anew")
        self._products += count
        masks: list[Words] = []
        batch: list[Buffer] = []
        for product in self._multiply(rows.detach().cpu().numpy()):
            masks.append(self._cover(product))
            batch.append(_packed(product))
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
        """The products (not yet safe to send, coefficient form): of each block each row but the last, then its sum."""
        scheme, layout = _scheme(), self.layout
        total: Any = None
        for block in range(layout.blocks):
            numbers = range(block, layout.ciphertexts, layout.blocks)  # of each channel
            for row in rows[:-1]:
                product = self._sum(row, numbers, None)
                scheme.evaluator.transform_from_ntt_inplace(product)
                yield product
            total = self._sum(rows[-1], numbers, total)
        scheme.evaluator.transform_from_ntt_inplace(total)
        yield total

    def _sum(self, row: NDArray[np.int64], numbers: range, total: Any) -> Any:
        """`total` (None: zero) and the products of a row with these ciphertexts, NTT form."""
        scheme = _scheme()
        coefficients, points, term = scheme.seal.Plaintext(), scheme.seal.Plaintext(), scheme.seal.Ciphertext()
        for number in numbers:
            scheme.encoder.encode(slots_of(self.layout.part(row, number), 1).tolist(), coefficients)
            scheme.evaluator.transform_to_ntt(coefficients, scheme.levels[0], points)
            if total is None:
                total = scheme.seal.Ciphertext()
                scheme.evaluator.multiply_plain(self._ciphertexts[number], points, total)
            else:
                scheme.evaluator.multiply_plain(self._ciphertexts[number], points, term)
                scheme.evaluator.add_inplace(total, term)
        return total

    def _cover(self, product: Any) -> Words:
        """Mask, re-randomise and flood a product and switch it to one prime, in place; returns the mask (n,)."""
        scheme, plain, other = _scheme(), _scheme().seal.Plaintext(), _scheme().seal.Ciphertext()
        self._replies += 1
        mask = uniform_words(self._stream, "mask", self._replies, T)
        scheme.encoder.encode(mask.tolist(), plain)
        self._encryptor.encrypt(plain, other)  # the mask and a fresh encryption of zero in one
        scheme.evaluator.add_inplace(product, other)
        for file, digit in zip(self._digits, _flood(self._stream, self._replies), strict=True):
            primes = len(file.words) // (2 * DEGREE)
            file.words.reshape(2, primes, DEGREE)[0] = digit
            file.load(other, scheme.context)
            scheme.evaluator.add_inplace(product, other)
            if primes > 1:
                scheme.evaluator.mod_switch_to_next_inplace(product)
        return mask


class SlotFixed:
    """party_2: holds the secret key, encrypts its operand, decrypts its shares and returns their mapped sums.

    Args:
        link: to party_1.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._encryptor: Any = None
        self._decryptor: Any = None
        self._header: OperandHeader | None = None
        self._file = ciphertext_file(DEGREE, 1, _scheme().levels[-1])  # a reply

    def send_operand(self, header: OperandHeader, values: NDArray[np.int64], public_map: PublicMap) -> Limits:
        """Encrypt and send the values (points,), which fit the header; the public key goes before the first operand.

        Raises:
            RangeError: the operand and its map leave no room below t; nothing was sent.
        """
        limits, scheme, layout = slot_limits(header, public_map), _scheme(), SlotLayout.of(public_map)
        if self._encryptor is None:
            self._make_keys()
        plain, batch = scheme.seal.Plaintext(), list[NDArray[np.uint8]]()
        for number in range(layout.ciphertexts):
            scheme.encoder.encode(slots_of(layout.part(values, number), 0).tolist(), plain)
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
        scheme, count = _scheme(), min(left, _REPLIES_PER_MESSAGE)
        if len(message.payload) != count * _REPLY_BYTES:
            raise LinkError(
                f"REPLY_CIPHERTEXTS: {len(message.payload)} bytes, {count} x {_REPLY_BYTES} are due; refused"
            )
        ciphertext, plain, found = scheme.seal.Ciphertext(), scheme.seal.Plaintext(), []
        for start in range(0, len(message.payload), _REPLY_BYTES):
            packed = np.frombuffer(message.payload, np.uint8, _REPLY_BYTES, start)
            self._file.words[:DEGREE] = _restored(unpack_pairs(packed[:_C0_BYTES], C0_BITS))
            self._file.words[DEGREE:] = unpack_pairs(packed[_C0_BYTES:], 60)
            if self._file.words.max() >= PRIMES[0]:
                raise LinkError("REPLY_CIPHERTEXTS: a word above the prime; refused")
            self._file.load(ciphertext, scheme.context)
            self._decryptor.decrypt(ciphertext, plain)
            found.append(np.fromiter(scheme.encoder.decode_uint64(plain), np.uint64, DEGREE))
        return found

    def _make_keys(self) -> None:
        scheme = _scheme()
        generator, public_key = scheme.seal.KeyGenerator(scheme.context), scheme.seal.PublicKey()
        generator.create_public_key(public_key)
        self._encryptor = scheme.seal.Encryptor(scheme.context, generator.secret_key())
        self._decryptor = scheme.seal.Decryptor(scheme.context, generator.secret_key())
        self._link.send(Kind.PUBLIC_KEY, save_seal(public_key))


@cache
def _scheme() -> _Scheme:
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    context = bfv_context(DEGREE, PRIMES, T)
    data, levels = context.first_context_data(), []
    while data is not None:
        levels.append(data.parms_id())
        data = data.next_context_data()
    return _Scheme(seal, context, seal.Evaluator(context), seal.BatchEncoder(context), tuple(levels))


def _load(file: bytes, kind: Kind, level: Any) -> Any:
    """A received ciphertext in coefficient form; LinkError where it is not one of this level."""
    scheme = _scheme()
    ciphertext = scheme.seal.Ciphertext()
    load_seal(ciphertext, scheme.context, file, kind.name)
    if ciphertext.size() != 2 or ciphertext.parms_id() != level or ciphertext.is_ntt_form():
        raise LinkError(f"{kind.name}: not a ciphertext of the agreed parameters; refused")
    return ciphertext


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
