"""Attacks 3 and 4 of the threat model on `ckks`: what its messages tell either party of the other.

party_2 holds the key and knows the errors e and polynomials a of what it sent. A naive reply has noise e x and
c1 = a x: dividing gives x, party_1's rows. party_1 holds the reply and what was decrypted: c1 s = decrypted - c0 is a
linear equation in the key s for each word, and enough words are solved for s.
Each attack below first succeeds where a protection is missing (positive control), then runs unchanged on ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from joint.ends import header_of, python_products
from numpy.typing import NDArray

from ppir_torch.joint.interface import release_all
from ppir_torch.protocols.lattice import ckks_coefficients as ckks
from ppir_torch.protocols.lattice.ckks import CkksFixedSide, CkksMovingSide
from ppir_torch.protocols.lattice.packing import DEGREE
from ppir_torch.protocols.lattice.seal_format import ciphertext_file, compose_residues
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Received, link_pair

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Words = NDArray[np.object_]  # integers modulo a prime, as Python's own
TRIALS = 48
# A guess between two rows: certain is 48 of 48; 24 +- 17 is five standard deviations of a fair coin.
AT_CHANCE = range(TRIALS // 2 - 17, TRIALS // 2 + 18)


class Session:
    """Both parties after one operand of one ciphertext."""

    def __init__(self, points: int, rows: int) -> None:
        self.values = torch.randint(-2048, 2048, (points,), generator=torch.Generator().manual_seed(1))
        self.header = header_of(self.values, rows)
        self.ends = link_pair("party_1", "party_2")
        self.moving, self.fixed = CkksMovingSide(self.ends[0]), CkksFixedSide(self.ends[1])
        self.theirs = self.fixed.open(self.header, self.values)
        self.operand = self.moving.open(self.header)
        self.work, self.cipher = self.operand.products, self.moving.coefficients.cipher
        (self.sent,) = self.work._ciphertexts.values()
        self.layout, self.secret = self.work.layout, self.fixed.coefficients.cipher._secret
        self.positions = [self.layout.position(k) for k in range(rows)]
        self.scheme = ckks.scheme()
        self.full_scale = self.scheme.scale * self.scheme.primes[2]
        self.error = centred(phases(self.sent, self.secret), self.full_scale)

    def product(self, rows: Integers) -> Any:
        """As party_1 computes it; nothing is hidden yet."""
        return self.work.uncovered(rows, [0], range(self.layout.blocks))[0]

    def multiply(self, rows: Integers) -> tuple[list[int], Received]:
        """A product as it is run: (R, what party_1 sent)."""
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(self.operand.multiply, torch.from_numpy(rows))
            request = self.ends[1].receive(MessageKind.REPLY_CIPHERTEXTS)
            self.theirs.answer(request, release_all)
            return result.result().tolist(), request

    def polynomial(self, rows: Integers) -> Integers:
        """The plaintext polynomial of these rows, as the packing defines it."""
        out = np.zeros((self.layout.group, self.layout.block), np.int64)
        out[: len(rows), self.layout.block - rows.shape[1] :] = rows[:, ::-1]
        return out.reshape(-1)


def residues(ciphertext: Any) -> NDArray[np.uint64]:
    """(2, primes, n), as the ciphertext has them."""
    words = ciphertext.dyn_array()
    return np.fromiter(map(words.at, range(words.size())), np.uint64).reshape(2, -1, DEGREE)


def in_coefficients(ciphertext: Any) -> NDArray[np.uint64]:
    """(2, primes, n) of a ciphertext in NTT form."""
    scheme, out = ckks.scheme(), ckks.scheme().seal.Ciphertext()
    scheme.evaluator.transform_from_ntt(ciphertext, out)
    return residues(out)


def negacyclic(a: Floats, b: Floats) -> Floats:
    """a b modulo x^n + 1."""
    full = np.fft.irfft(np.fft.rfft(a, 2 * DEGREE) * np.fft.rfft(b, 2 * DEGREE), 2 * DEGREE)
    return full[:DEGREE] - full[DEGREE:]


def divide(a: Floats, b: Floats) -> Floats:
    """a / b modulo x^n + 1, at the odd roots of unity."""
    twist = np.exp(1j * np.pi * np.arange(DEGREE) / DEGREE)
    return np.real(np.fft.ifft(np.fft.fft(a * twist) / np.fft.fft(b * twist)) / twist)


def times_secret(c1: NDArray[np.uint64], secret: Integers) -> list[int]:
    """c1 s as integers: 15-bit limbs keep the floating-point products below 2^28."""
    total = [0] * DEGREE
    for shift in range(0, 60, 15):
        limb = (c1 >> np.uint64(shift) & np.uint64(0x7FFF)).astype(np.float64)
        part = np.rint(negacyclic(limb, secret.astype(np.float64))).astype(np.int64).tolist()
        total = [old + (new << shift) for old, new in zip(total, part, strict=True)]
    return total


def phases(ciphertext: Any, secret: Integers) -> list[int]:
    """c0 + c1 s of a ciphertext in NTT form, modulo all of its primes and centred: message and noise."""
    words = in_coefficients(ciphertext)
    primes = ckks.scheme().primes[: words.shape[1]]
    modulus = math.prod(primes)
    products = [times_secret(c1, secret) for c1 in words[1]]
    out = []
    for j in range(DEGREE):
        found = [(int(words[0, i, j]) + products[i][j]) % p for i, p in enumerate(primes)]
        out.append((compose_residues(found, primes) + modulus // 2) % modulus - modulus // 2)
    return out


def phases_at(ciphertext: Any, secret: Integers, positions: list[int]) -> list[int]:
    """The same at some coefficients."""
    c0, c1 = in_coefficients(ciphertext)
    return joined_phases(c0.T[positions].tolist(), c1, secret, positions)


def joined_phases(c0: list[list[int]], c1: Any, secret: Integers, positions: list[int]) -> list[int]:
    """The same of c0 words (positions, primes) and c1 (primes, n)."""
    primes, out = ckks.scheme().primes[: len(c1)], []
    half = math.prod(primes) // 2
    for word, position in zip(c0, positions, strict=True):
        rest = ckks.phase_at(c1.view(np.int64), secret, position)
        value = compose_residues([(a + b) % p for a, b, p in zip(word, rest, primes, strict=True)], primes)
        out.append((value + half) % (2 * half + 1) - half)
    return out


def remainders(values: list[int], scale: int) -> list[int]:
    """What is beside multiples of the scale."""
    return [(value + scale // 2) % scale - scale // 2 for value in values]


def centred(values: list[int], scale: int) -> Floats:
    return np.array(remainders(values, scale), np.float64)


def rows_at_random(count: int, points: int, seed: int) -> Integers:
    return np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, (count, points))


@pytest.fixture(scope="module")
def one_row() -> Session:
    return Session(DEGREE, 1)


@pytest.fixture(scope="module")
def eight_rows() -> Session:
    return Session(DEGREE // 8, 8)


# party_2 after party_1's rows


def test_noise_of_the_naive_reply_gives_every_pixel(one_row: Session) -> None:
    rows, scale = rows_at_random(1, DEGREE, 2), one_row.full_scale
    masks = np.random.default_rng().integers(-(1 << 48), 1 << 48, DEGREE).tolist()
    naive = [
        value + scale * mask for value, mask in zip(phases(one_row.product(rows), one_row.secret), masks, strict=True)
    ]
    found = divide(centred(naive, scale), one_row.error)
    assert (np.rint(found) == one_row.polynomial(rows)).all()


def test_noise_bound_of_the_docstring_holds(one_row: Session) -> None:
    assert np.abs(one_row.error).max() <= ckks.FRESH_NOISE
    assert phases_at(one_row.sent, one_row.secret, [5, 8191]) == [
        phases(one_row.sent, one_row.secret)[j] for j in (5, 8191)
    ]
    product = one_row.product(np.full((1, DEGREE), ckks.MAX_ROW))
    assert np.abs(centred(phases(product, one_row.secret), one_row.full_scale)).max() < (
        ckks.FRESH_NOISE * DEGREE * ckks.MAX_ROW
    )
    zero = one_row.scheme.seal.Ciphertext()
    one_row.cipher.encryptor.encrypt_zero(zero)
    assert np.abs(centred(phases(zero, one_row.secret), one_row.full_scale)).max() < ckks.ZERO_NOISE
    # Of what is sent: the noise of rescaling, of standard deviation sqrt(n / 18) or 21, beside this large row's.
    one_row.cipher.refresh(product)
    small = one_row.scheme.seal.Ciphertext()
    one_row.scheme.evaluator.rescale_to_next(product, small)
    left = centred(phases(small, one_row.secret), one_row.scheme.scale)
    assert np.abs(left).max() < 1 << ckks.NOISE_BITS
    assert 15 < np.std(left) < 30


def guesses_from_noise(session: Session, mask: Callable[[], int]) -> int:
    """How often party_2 tells which of two known rows was used, from the noise of the released coefficients.

    It is given more than is sent: c0 and c1 before they are rescaled, which drowns most of this noise.
    """
    candidates = [rows_at_random(8, DEGREE // 8, seed) for seed in (3, 4)]
    at, scale = session.positions, session.full_scale
    predicted = [negacyclic(session.error, session.polynomial(c).astype(np.float64))[at] for c in candidates]
    right = 0
    for secret in np.random.default_rng(6).integers(0, 2, TRIALS):
        product = session.product(candidates[secret])
        session.cipher.refresh(product)
        observed = centred([value + mask() for value in phases_at(product, session.secret, at)], scale)
        guess = int(np.abs(observed - predicted[1]).sum() < np.abs(observed - predicted[0]).sum())
        right += guess == secret
    return right


def test_a_mask_of_the_message_alone_is_not_enough(eight_rows: Session) -> None:
    generator = np.random.default_rng()
    masks = lambda: int(generator.integers(-(1 << 48), 1 << 48)) * eight_rows.full_scale  # noqa: E731
    assert guesses_from_noise(eight_rows, masks) == TRIALS


def test_noise_under_a_mask_of_the_whole_modulus_tells_nothing(eight_rows: Session) -> None:
    generator, modulus = np.random.default_rng(), math.prod(eight_rows.scheme.primes)
    masks = lambda: int.from_bytes(generator.bytes(32), "little") % modulus  # noqa: E731
    assert guesses_from_noise(eight_rows, masks) in AT_CHANCE


def guesses_from_words(session: Session) -> int:
    """How often party_2 tells which of two known rows was used, from the words that it decrypts."""
    candidates = [rows_at_random(8, DEGREE // 8, seed) for seed in (3, 4)]
    results = [python_products(torch.from_numpy(c), session.values) for c in candidates]
    right = 0
    for secret in np.random.default_rng(6).integers(0, 2, TRIALS):
        found, request = session.multiply(candidates[secret])
        assert found == results[secret]
        read = [word / session.scheme.scale for word in decrypted(session, request)]
        distances = [sum(abs(a - b) for a, b in zip(read, r, strict=True)) for r in results]
        right += int(distances[1] < distances[0]) == secret
    return right


def decrypted(session: Session, request: Received) -> list[int]:
    """All that party_2 can read in a reply's words: message, noise and mask modulo q1 q2, centred."""
    reply = ckks.CkksReply.decode(request.payload, session.header.rows, session.layout.group)
    assert reply.places.tolist() == [[0, k] for k in range(len(reply.c0))]
    return joined_phases(reply.c0.tolist(), reply.c1[0], session.secret, session.positions)


def test_words_without_mask_say_which_rows(eight_rows: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ckks, "mask", lambda _: 0)
    assert guesses_from_words(eight_rows) == TRIALS


def test_masked_words_tell_nothing(eight_rows: Session) -> None:
    assert guesses_from_words(eight_rows) in AT_CHANCE


def divided_c1(session: Session, reply: Any) -> Integers:
    """c1 / a modulo the first prime, centred: party_1's polynomial where the reply's c1 is a x."""
    prime = session.scheme.primes[0]
    known, seen = residues(session.sent)[1, 0], residues(reply)[1, 0]
    return coefficients([int(c) * pow(int(a), -1, prime) % prime for a, c in zip(known, seen, strict=True)])


def test_c1_of_the_naive_reply_gives_every_pixel_and_ours_none(one_row: Session) -> None:
    rows = rows_at_random(1, DEGREE, 7)
    product = one_row.product(rows)
    assert (divided_c1(one_row, product) == one_row.polynomial(rows)).all()
    one_row.cipher.refresh(product)
    assert (divided_c1(one_row, product) == one_row.polynomial(rows)).sum() == 0


def guesses_from_c1(session: Session) -> int:
    """How often party_2 tells which of two known rows was used, from c1 as it is sent."""
    candidates = [rows_at_random(8, DEGREE // 8, seed) for seed in (8, 9)]
    predicted = [ckks.rescaled(session.product(c), [0])[1][0].astype(np.int64) for c in candidates]
    prime, right = session.scheme.primes[0], 0
    for secret in np.random.default_rng(10).integers(0, 2, TRIALS):
        _, request = session.multiply(candidates[secret])
        c1 = ckks.CkksReply.decode(request.payload, session.header.rows, session.layout.group).c1.view(np.int64)
        distances = [
            np.abs((c1[0, 0] - p + prime // 2) % prime - prime // 2).astype(np.float64).sum() for p in predicted
        ]
        right += int(distances[1] < distances[0]) == secret
    return right


def test_c1_without_rerandomisation_identifies_the_rows(eight_rows: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ckks.CkksMovingCoefficientCipher, "refresh", lambda *_: None)
    assert guesses_from_c1(eight_rows) == TRIALS


def test_rerandomised_c1_tells_nothing(eight_rows: Session) -> None:
    assert guesses_from_c1(eight_rows) in AT_CHANCE


def test_what_is_sent_is_uniform_and_fresh() -> None:
    session, rows = Session(DEGREE // 8, 8), rows_at_random(8, DEGREE // 8, 11)
    requests = [session.multiply(rows)[1] for _ in range(32)]
    half = math.prod(session.scheme.kept) / 2
    read = np.array([word / half for request in requests for word in decrypted(session, request)])
    # 256 words uniform in [-1, 1], six standard deviations.
    assert abs(read.mean()) < 6 * np.sqrt(1 / 3 / 256)
    assert abs(np.square(read).mean() - 1 / 3) < 6 * np.sqrt(4 / 45 / 256)
    payloads = [np.frombuffer(request.payload, np.uint8) for request in requests]
    assert all(np.mean(a[40:] == b[40:]) < 0.02 for a, b in combinations(payloads, 2))


# party_1 after party_2's key


@dataclass
class View:
    """What party_1 has: its replies before the mask, and each word as it came back, the mask taken off."""

    c0: list[NDArray[np.uint64]] = field(default_factory=list)
    c1: list[NDArray[np.uint64]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    @classmethod
    def through(cls, monkeypatch: pytest.MonkeyPatch) -> View:
        """Filled while products are run."""
        view, rescaled, opened = cls(), ckks.rescaled, ckks.integer_of
        primes, half = ckks.scheme().kept, math.prod(ckks.scheme().kept) // 2

        def see_reply(product: Any, positions: list[int]) -> Any:
            c0, c1 = rescaled(product, positions)
            view.c0.append(c0)
            view.c1.append(c1)
            return c0, c1

        def see_word(word: NDArray[np.uint64], mask: int) -> int:
            value = compose_residues(word.tolist(), primes) - mask
            view.words.append((value + half) % (2 * half + 1) - half)
            return opened(word, mask)

        monkeypatch.setattr(ckks, "rescaled", see_reply)
        monkeypatch.setattr(ckks, "integer_of", see_word)
        return view


def left_over(session: Session, view: View, products: int) -> tuple[list[int], list[int]]:
    """(what party_1 reads beside multiples of the scale, the noise that it would like to know)."""
    noise = []
    for seed in range(products):
        session.multiply(rows_at_random(8, DEGREE // 8, seed))
        noise += joined_phases(view.c0[-1].tolist(), view.c1[-1], session.secret, session.positions)
    return remainders(view.words, session.scheme.scale), remainders(noise, session.scheme.scale)


def test_without_flood_party_1_reads_the_noise(eight_rows: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ckks, "flood", lambda *_: 0)
    read, noise = left_over(eight_rows, View.through(monkeypatch), 32)
    assert read == noise
    assert 0 < max(abs(v) for v in noise) < 1 << ckks.NOISE_BITS


def test_with_flood_party_1_reads_the_flood(eight_rows: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    read, noise = left_over(eight_rows, View.through(monkeypatch), 32)
    share = np.array(read, np.float64) / 2.0 ** (ckks.FLOOD_BITS - 1)
    # 256 words uniform in [-1, 1], six standard deviations.
    assert np.abs(share).max() <= 1
    assert abs(share.mean()) < 6 * np.sqrt(1 / 3 / 256)
    assert abs(np.square(share).mean() - 1 / 3) < 6 * np.sqrt(4 / 45 / 256)
    # Nothing of the noise is left, neither in the whole nor in the low bits.
    low = [float(remainders([v], 2 ** (ckks.NOISE_BITS - 3))[0]) for v in read]
    for seen in (share, low):
        assert abs(np.corrcoef(seen, np.array(noise, np.float64))[0, 1]) < 6 / np.sqrt(256)


def in_ntt(*polynomials: list[int]) -> list[Words]:
    """Polynomials modulo the first prime at the roots of x^n + 1."""
    scheme, out = ckks.scheme(), list[Words]()
    for polynomial in polynomials:
        file, ciphertext = ciphertext_file(DEGREE, 1, scheme.bottom), scheme.seal.Ciphertext()
        file.words[DEGREE:] = np.array(polynomial, np.uint64)
        file.load(ciphertext, scheme.context)
        scheme.evaluator.transform_to_ntt_inplace(ciphertext)
        out.append(residues(ciphertext)[1, 0].astype(object))
    return out


def coefficients(words: list[int]) -> Integers:
    """Inverse of `in_ntt`, centred."""
    scheme, prime = ckks.scheme(), ckks.scheme().primes[0]
    file, ciphertext = ciphertext_file(DEGREE, 1, scheme.bottom, ntt=True), scheme.seal.Ciphertext()
    file.words[DEGREE:] = np.array(words, np.uint64)
    file.load(ciphertext, scheme.context)
    found = in_coefficients(ciphertext)[1, 0].astype(np.int64)
    return np.where(found > prime // 2, found - prime, found)


def recover_key(view: View) -> Integers:
    """The attacker of test_ckks_keys.py for released coefficients: s from the odd ones of two products.

    Of c1 s the odd part is even(c1) odd(s) + odd(c1) even(s), and party_1 knows it as word - c0: two products are two
    linear equations at each root.
    """
    prime, count = ckks.scheme().primes[0], len(view.c0[0])
    known = []
    for number in (0, 1):
        right = [0] * DEGREE
        words = view.words[number * count : (number + 1) * count]
        right[1::2] = [(word - int(c0[0])) % prime for word, c0 in zip(words, view.c0[number], strict=True)]
        even, odd = view.c1[number][0].copy(), view.c1[number][0].copy()
        even[1::2], odd[::2] = 0, 0
        known.append(in_ntt(even.tolist(), odd.tolist(), right))
    (e1, o1, r1), (e2, o2, r2) = known
    inverse = np.array([pow(int(d), prime - 2, prime) for d in (e1 * o2 - o1 * e2) % prime], object)
    s_odd, s_even = (r1 * o2 - r2 * o1) * inverse % prime, (e1 * r2 - e2 * r1) * inverse % prime
    return coefficients(((s_odd + s_even) % prime).tolist())


@pytest.mark.parametrize("flooded", [False, True])
def test_two_products_give_the_key_unless_they_are_flooded(flooded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = DEGREE // 2
    session = Session(2, rows)
    assert session.layout.block == 2  # every odd coefficient is released
    if not flooded:
        monkeypatch.setattr(ckks, "flood", lambda *_: 0)
    view = View.through(monkeypatch)
    for seed in (1, 2):
        matrix = rows_at_random(rows, 2, seed)
        assert session.multiply(matrix)[0] == python_products(torch.from_numpy(matrix), session.values)
    found = recover_key(view)
    if flooded:
        assert not (found == session.secret).any()
        assert abs(np.corrcoef(found.astype(np.float64), session.secret)[0, 1]) < 6 / np.sqrt(DEGREE)
    else:
        assert np.array_equal(found, session.secret)
        assert set(found.tolist()) == {-1, 0, 1}
