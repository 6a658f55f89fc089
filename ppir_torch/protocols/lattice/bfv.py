"""Exact joint products under BFV homomorphic encryption, without rotations (TenSEAL's `sealapi`).

party_2 encrypts its operand once, as polynomial coefficients; party_1 multiplies by its rows, sanitises the result and
sends it back masked; party_2 decrypts uniform words, returns them, and party_1 removes the mask.

Packing: packing.py. Products that go through a public map: bfv_slots.py.

What hides X from party_2, which holds the secret key and knows its own encryption errors, is three things together:
a uniform mask modulo t on every released coefficient; a fresh public-key encryption of zero, without which c1 is a
known multiple of X; and a uniform flood on the released noise, which otherwise is a known multiple of X
(noise flooding: Gentry, STOC 2009; Asharov et al., EUROCRYPT 2012). tests/attacks/test_bfv_reply.py runs both attacks.

Numbers: n = 8192, q of two primes of 60 bits and a special one of 20 (140 bits; SEAL's 128-bit table allows 218),
t = 2^37 (below every prime, or SEAL lifts plaintexts on its slow path). Both primes are 1 modulo t, so that SEAL's
rounding of q m / t adds |Y| / t to a fresh error and no more.
- flood: uniform over 2^82 values. The noise that depends on X is a sum of X_i e_i, e SEAL's centred binomial of 42
  coins: above 30 |w|_2 with probability below 2^-60 (Hoeffding), |w|_2 <= sqrt(group) |X|_2 the rows side by side. The
  statistical distance of all 2^18 words that a session may release from words that do not depend on X is at most
  2^18 (2^-60 + noise / 2^82); `max_norm` is chosen to keep it below 2^-40.
- exactness: the flood is at most 2^21 after the switch to one prime, where decryption is right up to q1 / 2t = 2^22;
  the switch adds |sum_j r_j s_j| + 1, |r_j| <= 1/2 and s ternary, above 2^9.5 with probability below 2^-200
  (Hoeffding).
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
from ...wire.payload import pack
from .bfv_slots import BfvFixedCipher, BfvMovingCipher
from .packing import DEGREE, PER_MESSAGE, Layout, layout_of, read_into, receive_files, receive_key
from .seal_format import (
    bfv_context,
    ciphertext_file,
    ciphertext_words,
    compose_residues,
    load_seal,
    pack60,
    plaintext_file,
    save_seal,
    unpack60,
)
from .second_process import BfvHelper, cores
from .slot_sides import SlotFixed, SlotMoving
from .slots import MAX_RESULT as MAX_SLOT_RESULT
from .slots import slot_bits

__all__ = ["ENTRY", "BfvFixedSide", "BfvMovingSide"]

# The two largest primes below 2^60 that are 1 modulo t, and the largest below 2^20 that is 1 modulo 2n.
PRIMES = (0xFFFFFA000000001, 0xFFFFEE000000001, 0xFC001)  # the first survives to the reply; the last is special
PLAIN_BITS = 37
FLOOD_BITS = 82
MAX_WORDS = 1 << 18  # released in a session: 2^14 products of 16 rows
DISTANCE_BITS = 41
MAX_ROW = 1 << 20
FRESH_NOISE = 30  # |sum X_i e_i| / |X|_2, passed with probability below 2^-60
ZERO_NOISE = 1 << 19  # of a public-key encryption of zero, after SEAL divided it by the special prime: far less

_T = 1 << PLAIN_BITS
MAX_RESULT = _T // 2 - _T // 32  # what is left is room for noise that party_2 may add
_C1_BYTES = DEGREE * 60 // 8
_CIPHERTEXT_BYTES = 131_300  # a seeded ciphertext as SEAL writes it
_LARGE = 128  # ciphertexts of an operand, from which on a second process pays


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
        self._work = BfvProducts()
        self._public_key = b""
        self._header: OperandHeader | None = None
        self._helper: BfvHelper | None = None  # a second process of this party, for large operands
        self._helper_shares = False
        self._helper_columns: range | None = None
        self._released = 0
        self._slots = SlotMoving(link, BfvMovingCipher())  # for operands with a map
        self._mapped = False

    def accept_operand(self, header: OperandHeader, public_map: PublicMap | None = None) -> None:
        """Receive the public key (first operand only) and the operand's ciphertexts; sets `limits`.

        Raises:
            RangeError: the operand's public bounds do not fit the parameters.
            LinkError: what arrived is not a key or not the ciphertexts of this header.
        """
        self._header, self._mapped = None, public_map is not None
        if public_map is not None:
            self.limits = self._slots.accept_operand(header, public_map)
            return
        layout, self.limits = _layout(header), _limits(header)
        if not self._public_key:
            self._public_key = receive_key(self._link)
            self._work.set_key(self._public_key)
        self._work.set_operand(header)
        mine, theirs = self._share_columns(header, layout)
        number = 0
        while number < layout.ciphertexts:
            due = min(PER_MESSAGE, layout.ciphertexts - number)
            for file in receive_files(self._link, due):
                column = number // layout.blocks
                if column in theirs and self._helper is not None:
                    self._helper.add(number, file)
                if column in mine:
                    self._work.add(number, file)
                number += 1
        self._header = header

    def project(self, rows: Tensor) -> Tensor:
        """See `MovingSide` and `SlotMoving.project`."""
        if not self._mapped:
            raise RuntimeError("project before accept_operand with a map")
        return self._slots.project(rows)

    def _share_columns(self, header: OperandHeader, layout: Layout) -> tuple[range, range]:
        """The columns that this process and its helper work with: of one row each its own, else both with all."""
        every, self._helper_columns = range(header.columns), None
        large = layout.group == 1 and layout.ciphertexts >= _LARGE
        self._helper_shares = large and header.rows * header.columns > 1 and cores() > 1
        if not self._helper_shares:
            return every, range(0)
        if self._helper is None:
            self._helper = BfvHelper()
            self._helper.set_key(self._public_key)
        self._helper.set_operand(header)
        if header.rows > 1:
            return every, every
        self._helper_columns = range((header.columns + 1) // 2, header.columns)
        return range(self._helper_columns.start), self._helper_columns

    def carried(self, public_map: PublicMap) -> PublicMap:
        """See `MovingSide`: t leaves fewer bits than the words of the other protocols."""
        return public_map.within(MAX_SLOT_RESULT)

    def prefers_moments(self, points: int) -> bool:
        """Fewer plaintexts to transform count above a quarter of a million points; below, the smaller reply does."""
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
        if self._released + count > MAX_WORDS:
            raise RangeError(f"bfv: at most {MAX_WORDS} results per session, the flood covers no more; start a new one")
        self._released += count
        matrix = rows.detach().cpu().numpy()
        blocks = self._work.layout.used_blocks(used)
        theirs = self._share_pairs(pairs)
        mine = [number for number in range(count) if number not in theirs]
        if theirs:
            assert self._helper is not None
            self._helper.start(matrix, [pairs[number] for number in theirs], blocks)
        reply = self._work.reply(matrix, [pairs[number] for number in mine], blocks)
        if theirs:
            assert self._helper is not None
            reply = reply.joined(self._helper.finish())
        order = np.argsort(mine + theirs)
        c0, places, masks = reply.c0[order], reply.places[order], reply.masks[order]
        head = struct.pack("<II", count, len(reply.c1))
        parts = [c0.data.cast("B"), places.data.cast("B"), *(c.data for c in reply.c1)]
        parts += [] if into is None else [places_of_sums.data.cast("B")]
        self._link.send(MessageKind.REPLY_CIPHERTEXTS, [head, *parts])
        self._work.prepare(len(reply.c1) - len(theirs))
        answer = self._link.receive(MessageKind.MASKED_RESULT).payload
        if len(answer) != 8 * results:
            raise LinkError(f"MASKED_RESULT: {len(answer)} bytes, {8 * results} are due")
        masked = np.frombuffer(answer, np.uint64)
        if masked.max() >= _T:
            raise LinkError(f"MASKED_RESULT: a word of {int(masked.max())}, below 2^{PLAIN_BITS} is due")
        result = (masked.astype(np.int64) - _sums(masks, places_of_sums)) & (_T - 1)
        return torch.from_numpy(np.where(result >= _T // 2, result - _T, result))

    def _share_pairs(self, pairs: Pairs) -> list[int]:
        """The numbers of the pairs that the helper computes: its columns, or the later rows, about half of the work."""
        if self._helper is None or self._header is None or not self._helper_shares:
            return []
        if self._helper_columns is not None:
            return [number for number, (_, column) in enumerate(pairs) if column in self._helper_columns]
        rows = sorted({row for row, _ in pairs})
        # A row costs the transforms of its plaintexts, about 1.7 products, beside its products.
        work = {row: 1.7 + sum(other == row for other, _ in pairs) for row in rows}
        later = [row for row in rows if 2 * sum(work[r] for r in rows if r < row) >= sum(work.values())]
        return [number for number, (row, _) in enumerate(pairs) if row in later]


@dataclass(frozen=True)
class Reply:
    """Sanitised products, ready to be sent, and the masks that party_1 takes off the answer.

    Attributes:
        masks: (count,) int64 in [0, t).
        c0: (count,) uint64 words modulo the first prime.
        places: (count, 2) uint16: of each word its polynomial among c1 and its row's place in the group.
        c1: packed polynomials.
    """

    masks: NDArray[np.int64]
    c0: NDArray[np.uint64]
    places: NDArray[np.uint16]
    c1: list[NDArray[np.uint8]]

    def joined(self, other: Reply) -> Reply:
        """Both, the other's words after ours."""
        shifted = other.places + np.array([len(self.c1), 0], np.uint16)
        return Reply(
            np.concatenate([self.masks, other.masks]),
            np.concatenate([self.c0, other.c0]),
            np.concatenate([self.places, shifted]),
            self.c1 + other.c1,
        )


class BfvProducts:
    """party_1's work on one operand: products with its rows, sanitised. Sends nothing."""

    def __init__(self) -> None:
        self._stream = KeyStream(new_key())
        self._encryptor: Any = None
        self._zeros: list[Any] = []  # fresh encryptions of zero, each for one product
        self._products = 0

    def set_key(self, public_key: bytes) -> None:
        """Take party_2's public key; raises LinkError where it is none."""
        scheme = _scheme()
        key = scheme.seal.PublicKey()
        load_seal(key, scheme.context, public_key, "PUBLIC_KEY")
        self._encryptor = scheme.seal.Encryptor(scheme.context, key)

    def set_operand(self, header: OperandHeader) -> None:
        """Forget the last operand; `add` brings the ciphertexts of this one."""
        self.layout = _layout(header)
        self._ciphertexts: dict[int, Any] = {}

    def add(self, number: int, file: bytes) -> None:
        """Take ciphertext `number` as it arrived; raises LinkError where it is not one of the agreed parameters."""
        scheme = _scheme()
        ciphertext = scheme.seal.Ciphertext()
        load_seal(ciphertext, scheme.context, file, "OPERAND_CIPHERTEXTS")
        if ciphertext.size() != 2 or ciphertext.parms_id() != scheme.top or ciphertext.is_ntt_form():
            raise LinkError("OPERAND_CIPHERTEXTS: not a fresh ciphertext of the agreed parameters")
        scheme.evaluator.transform_to_ntt_inplace(ciphertext)
        self._ciphertexts[number] = ciphertext

    def prepare(self, count: int) -> None:
        """Have `count` encryptions of zero at hand; made while party_2 decrypts, they do not delay the next reply."""
        while len(self._zeros) < count:
            zero = _scheme().seal.Ciphertext()
            self._encryptor.encrypt_zero(zero)
            self._zeros.append(zero)

    def reply(self, matrix: NDArray[np.int64], pairs: Pairs, blocks: Sequence[int] | None = None) -> Reply:
        """The products of the pairs with rows (rows, points) in these blocks: masked, re-randomised, flooded."""
        count, group = len(pairs), self.layout.group
        if count == 0:  # all of them are the helper's
            return Reply(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros((0, 2), np.uint16), [])
        blocks = range(self.layout.blocks) if blocks is None else blocks
        self._products += 1
        masks = self._stream.words("mask", self._products, (count,)) & (_T - 1)
        floods = [_flood(low, high) for low, high in self._stream.words("flood", self._products, (count, 2)).tolist()]
        c0, c1 = np.zeros(count, np.uint64), list[NDArray[np.uint8]]()
        places = np.zeros((count, 2), np.uint16)
        for start in range(0, len(matrix), group):
            wanted: dict[int, list[int]] = {}  # column -> the pairs of this group of rows
            for number, (row, column) in enumerate(pairs):
                if start <= row < start + group:
                    wanted.setdefault(column, []).append(number)
            part = matrix[start : start + group]
            for column, product in self._products_with(part, list(wanted), blocks).items():
                numbers = wanted[column]
                places[numbers] = [(len(c1), pairs[n][0] - start) for n in numbers]
                slots = [int(place) for place in places[numbers, 1]]
                covered = self._cover(product, slots, masks[numbers].tolist(), [floods[n] for n in numbers])
                c0[numbers] = _switch_words(covered)
                c1.append(pack60(_switch_c1(product)))
        return Reply(masks, c0, places, c1)

    def _products_with(self, rows: NDArray[np.int64], columns: list[int], blocks: Sequence[int]) -> dict[int, Any]:
        """One group of rows times each column: ciphertexts of all primes, coefficient form, not yet safe to send."""
        scheme, layout = _scheme(), self.layout
        evaluator, top = scheme.evaluator, scheme.top
        file = plaintext_file(DEGREE)
        words = file.words.view(np.int64).reshape(layout.group, layout.block)
        words[:] = 0
        coefficients, points = scheme.seal.Plaintext(), scheme.seal.Plaintext()
        totals: dict[int, Any] = {}
        if not columns:
            return totals
        term = scheme.seal.Ciphertext()
        unwanted: dict[int, Any] = {}
        for number in blocks:
            block = rows[:, number * layout.block : (number + 1) * layout.block]
            # SEAL refuses to multiply by zero. A black block is multiplied by one and left out: it takes the same time.
            black = not block.any()
            words[: len(rows), : layout.block - block.shape[1]] = 0
            np.bitwise_and(block[:, ::-1], _T - 1, out=words[: len(rows), layout.block - block.shape[1] :])
            words[0, -1] += black
            file.load(coefficients, scheme.context)
            evaluator.transform_to_ntt(coefficients, top, points)
            for column in columns:
                ciphertext = self._ciphertexts[column * layout.blocks + number]
                sums = unwanted if black else totals
                if column in sums:
                    evaluator.multiply_plain(ciphertext, points, term)
                    evaluator.add_inplace(sums[column], term)
                else:
                    sums[column] = scheme.seal.Ciphertext()
                    evaluator.multiply_plain(ciphertext, points, sums[column])
        for total in totals.values():
            evaluator.transform_from_ntt_inplace(total)
        for column in columns:
            if column not in totals:
                totals[column] = scheme.seal.Ciphertext()
                self._encryptor.encrypt_zero(totals[column])
        return totals

    def _cover(self, product: Any, slots: list[int], masks: list[int], floods: list[int]) -> list[int]:
        """Re-randomise `product` in place; its released c0 coefficients, masked and flooded, as integers modulo Q.

        `slots` are the released rows' places in the group.
        """
        scheme = _scheme()
        self.prepare(1)
        scheme.evaluator.add_inplace(product, self._zeros.pop())
        modulus = math.prod(scheme.primes)
        words = product.dyn_array()
        covered = []
        for slot, mask, flood in zip(slots, masks, floods, strict=True):
            position = self.layout.position(slot)
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
        self._slots = SlotFixed(link, BfvFixedCipher())  # for operands with a map
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
        file, plain = plaintext_file(DEGREE), scheme.seal.Plaintext()
        words, block = file.words.view(np.int64), self._layout.block
        batch: list[NDArray[np.uint8]] = []
        for number in range(self._layout.ciphertexts):
            column, place = divmod(number, self._layout.blocks)
            part = table[column, place * block : (place + 1) * block]
            words[:] = 0
            words[: len(part)] = part & (_T - 1)
            file.load(plain, scheme.context)
            # Symmetric and not yet expanded: c1 travels as its seed, which halves the upload.
            batch.append(np.frombuffer(save_seal(self._encryptor.encrypt_symmetric(plain)), np.uint8))
            if len(batch) == PER_MESSAGE or number == self._layout.ciphertexts - 1:
                self._link.send(MessageKind.OPERAND_CIPHERTEXTS, pack({}, batch))
                batch = []
        self._header = header

    def answer(self, request: Received, release: Release) -> None:
        """Decrypt a REPLY_CIPHERTEXTS message and return its masked words.

        Raises:
            LinkError: wrong kind or length, or words above the prime.
        """
        if self._mapped:
            self._slots.answer(request, release)
            return
        if self._header is None or request.kind is not MessageKind.REPLY_CIPHERTEXTS:
            raise LinkError(f"{request.kind.name} is not due; refused")
        c0, places, c1, into = _parse_reply(request.payload, self._header, self._layout.group)
        noise = release(1 + int(into.max())).numpy().astype(np.uint64)
        scheme = _scheme()
        file = ciphertext_file(DEGREE, 1, scheme.bottom)
        words = file.words
        masked = np.zeros(len(c0), np.uint64)
        for number, polynomial in enumerate(c1):
            chosen = np.flatnonzero(places[:, 0] == number)
            positions = [self._layout.position(int(slot)) for slot in places[chosen, 1]]
            words[:DEGREE] = 0
            words[positions] = c0[chosen]
            words[DEGREE:] = polynomial
            ciphertext, plain = scheme.seal.Ciphertext(), scheme.seal.Plaintext()
            file.load(ciphertext, scheme.context)
            self._decryptor.decrypt(ciphertext, plain)
            length = plain.coeff_count()  # SEAL drops leading zeros
            masked[chosen] = [plain.data(i) if i < length else 0 for i in positions]
        # Masked words may be added up: their sum is the sum of the products, masked.
        masked = (_sums(masked, into) + noise) & np.uint64(_T - 1)
        self._link.send(MessageKind.MASKED_RESULT, masked.tobytes())

    def _make_keys(self) -> None:
        scheme = _scheme()
        generator, public_key = scheme.seal.KeyGenerator(scheme.context), scheme.seal.PublicKey()
        generator.create_public_key(public_key)
        self._secret_key = generator.secret_key()
        self._encryptor = scheme.seal.Encryptor(scheme.context, self._secret_key)
        self._decryptor = scheme.seal.Decryptor(scheme.context, self._secret_key)
        self._link.send(MessageKind.PUBLIC_KEY, save_seal(public_key))


@cache
def _scheme() -> _Scheme:
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    context = bfv_context(DEGREE, PRIMES, _T)
    return _Scheme(
        seal, context, seal.Evaluator(context), PRIMES[:-1], context.first_parms_id(), context.last_parms_id()
    )


def _layout(header: OperandHeader) -> Layout:
    return layout_of(header, _C1_BYTES, _CIPHERTEXT_BYTES)


def _limits(header: OperandHeader) -> Limits:
    """The largest rows that the flood hides to 2^-40 over a session; RangeError where the operand leaves no room."""
    if header.max_abs >= _T // 2:
        raise RangeError(f"operand: values up to {header.max_abs}, below 2^{PLAIN_BITS - 1} are needed")
    room = (1 << FLOOD_BITS) // (MAX_WORDS << DISTANCE_BITS) - ZERO_NOISE
    longest = room / (FRESH_NOISE * math.sqrt(_layout(header).group))
    if longest < 4 * math.sqrt(header.points):
        raise RangeError(f"operand: {header.points} points are more than the noise flood can cover")
    return Limits(max_row=min(MAX_ROW, math.floor(longest)), max_result=MAX_RESULT, max_norm=longest)


def _flood(low: int, high: int) -> int:
    """Two uniform 64-bit words as a uniform integer in [-2^(b-1), 2^(b-1)), b = FLOOD_BITS."""
    word = (high & (1 << 64) - 1) << 64 | low & (1 << 64) - 1
    return (word & (1 << FLOOD_BITS) - 1) - (1 << FLOOD_BITS - 1)


def _sums(words: NDArray[Any], into: NDArray[np.uint16]) -> NDArray[Any]:
    """Words (pairs,) added up to (results,) modulo 2^64, of which t is a divisor."""
    sums = np.zeros(1 + int(into.max()), words.dtype)
    np.add.at(sums, into, words)
    return sums


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
    return ciphertext_words(small, DEGREE, 2 * DEGREE)


def _parse_reply(
    payload: memoryview, header: OperandHeader, group: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint16], NDArray[np.uint64], NDArray[np.uint16]]:
    """c0 words (count,), their places (count, 2), c1 polynomials (number, n), the results that the words go into.

    All words are below the first prime.
    """
    count, polynomials = struct.unpack_from("<II", payload) if len(payload) >= 8 else (0, 0)
    most = header.rows * header.columns
    stop = 8 + 12 * count + polynomials * _C1_BYTES
    if not 1 <= polynomials <= count <= most or len(payload) not in (stop, stop + 2 * count):
        raise LinkError(f"REPLY_CIPHERTEXTS: {len(payload)} bytes for {count} words (1 to {most} were agreed); refused")
    c0 = np.frombuffer(payload, np.uint64, count, 8)
    places = np.frombuffer(payload, np.uint16, 2 * count, 8 + 8 * count).reshape(count, 2)
    c1 = unpack60(np.frombuffer(payload[8 + 12 * count : stop], np.uint8)).reshape(polynomials, DEGREE)
    if max(c0.max(), c1.max()) >= _scheme().primes[0]:
        raise LinkError("REPLY_CIPHERTEXTS: a word above the prime; refused")
    if places[:, 0].max() >= polynomials or places[:, 1].max() >= group or len(np.unique(places, axis=0)) != count:
        raise LinkError("REPLY_CIPHERTEXTS: words beyond the polynomials, or one twice; refused")
    return c0, places, c1, read_into(payload[stop:], count)


ENTRY = ProtocolEntry(
    name="bfv",
    party_1_learns="the opened products of each iteration; per level the mean, scale and energy of J",
    party_2_learns="sizes and timing only (timing: about how many blocks of X are all zero)",
    moving_side=lambda link, _dealer, _device: BfvMovingSide(link),
    fixed_side=lambda link, _dealer, _device: BfvFixedSide(link),
)
