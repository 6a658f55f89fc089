"""Attack 4 of the threat model on whole ciphertexts: shares of element-wise products (ckks_slots).

party_2 holds the secret key and knows the ciphertexts that it sent: their random polynomial a, and m + t e, message and
noise. With w the polynomial whose slots are party_1's rows, the product has c1 = a w and phase (m + t e) w: either
gives w, and so every pixel. Each attack below first succeeds where a protection is missing (positive control), then
runs unchanged on ours.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from attacks.test_bfv_reply import times_secret
from numpy.typing import NDArray

from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import release_all
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.protocols.lattice import ckks_slots
from ppir_torch.protocols.lattice.ckks import CkksFixedSide, CkksMovingSide
from ppir_torch.protocols.lattice.ckks_slots import LAST_SLOT, PHASE
from ppir_torch.protocols.lattice.packing import DEGREE
from ppir_torch.protocols.lattice.seal_format import ciphertext_file, ciphertext_words, compose_residues, unpack_pairs
from ppir_torch.protocols.lattice.slots import POINTS, PRIMES
from ppir_torch.protocols.lattice.slots import SLOT_MODULUS as T
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import link_pair

Words = NDArray[np.uint64]
Q = math.prod(PRIMES)
TRIALS = 48
# A guess between two rows: certain is 48 of 48; a fair coin is outside of 24 +- 21 once in 10^11 times.
AT_CHANCE = range(TRIALS // 2 - 21, TRIALS // 2 + 22)


class Session:
    """Both parties after one operand of one ciphertext."""

    def __init__(self) -> None:
        self.map = PublicMap((1, POINTS), (np.ones((1, 1), np.int64), np.ones((POINTS, 1), np.int64)), 1.0)
        self.values = torch.randint(-255, 256, (POINTS,), generator=torch.Generator().manual_seed(1))
        self.header = OperandHeader(0, POINTS, 3, 1.0, 0.0, 255, int(self.values.square().sum()))
        self.ends = link_pair("party_1", "party_2")
        self.moving, self.fixed = CkksMovingSide(self.ends[0]), CkksFixedSide(self.ends[1])
        self.one, self.two = self.moving.slots.cipher, self.fixed.slots.cipher
        self.theirs = self.fixed.open_mapped(self.header, self.values, self.map)
        self.operand = self.moving.open_mapped(self.header, self.map)
        self.scheme = ckks_slots.scheme()

    def product(self, row: NDArray[np.int64], fresh: bool) -> Words:
        """The product (2, primes, n) as party_1 computes it, without a mask; with `fresh` re-randomised."""
        product = self.operand.product(row, range(1))
        if fresh:
            self.one.refresh(product)
        return ckks_slots.coefficients(product, range(2))

    def sent(self, row: NDArray[np.int64]) -> tuple[Words, Words]:
        """(what party_1 sends (2, primes, n), its mask's slots)."""
        reply, mask = self.one.cover(self.operand.product(row, range(1)))
        return unpack_pairs(np.frombuffer(reply, np.uint8), 60).reshape(2, -1, DEGREE), mask

    def phase(self, words: Words, count: int = DEGREE) -> list[int]:
        """What party_2 decrypts, in [0, q): the first coefficients of it."""
        residues = self.two.phase(words)[:, :count].T
        return [compose_residues(r, PRIMES) for r in residues.tolist()]

    def ntt(self, words: Words) -> Words:
        """A ciphertext (2, primes, n) in NTT form."""
        ciphertext = loaded(words, ntt=False)
        self.scheme.evaluator.transform_to_ntt_inplace(ciphertext)
        return ciphertext_words(ciphertext, 0, 2 * len(PRIMES) * DEGREE).reshape(2, -1, DEGREE)


def loaded(words: Words, ntt: bool) -> Any:
    scheme = ckks_slots.scheme()
    file, ciphertext = ciphertext_file(DEGREE, len(PRIMES), scheme.top, ntt=ntt), scheme.seal.Ciphertext()
    file.words[:] = words.reshape(-1)
    file.load(ciphertext, scheme.context)
    return ciphertext


def centred(values: list[int], modulus: int) -> list[int]:
    return [(v + modulus // 2) % modulus - modulus // 2 for v in values]


def slots(polynomial: list[int]) -> NDArray[np.int64]:
    """The centred slots of a polynomial modulo t."""
    residues = np.array([[v % T % prime for v in polynomial] for prime in PRIMES], np.uint64)
    found = ckks_slots.slots_modulo_t(residues).astype(np.int64)
    return np.where(found > T // 2, found - T, found)


def row_at_random(seed: int, size: int = 127) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(-size, size + 1, POINTS)


@pytest.fixture(scope="module")
def running() -> Session:
    return Session()


# --- the bounds


def test_phase_of_the_docstring_holds(running: Session) -> None:
    """Noise of 21 coins each way, a multiple of t; products of any rows, all of whose polynomials are long."""
    operand = loaded(
        ciphertext_words(running.operand.ciphertexts[0], 0, 2 * len(PRIMES) * DEGREE).reshape(2, -1, DEGREE), ntt=True
    )
    words = ckks_slots.coefficients(operand, range(2))
    phase = centred(running.phase(words), Q)
    message = np.append(running.values.numpy(), LAST_SLOT)
    assert (slots(phase) == message).all()
    noise = [(v - m) // T for v, m in zip(phase, centred(phase, T), strict=True)]
    assert 6 < max(map(abs, noise)) <= 21
    for row in (row_at_random(1, 2047), np.full(POINTS, 2047), np.zeros(POINTS, np.int64)):
        for fresh in (False, True):
            phase = centred(running.phase(running.product(row, fresh)), Q)
            assert PHASE / 1e5 < max(map(abs, phase)) < PHASE
            assert (slots(phase)[:POINTS] == row * running.values.numpy()).all()


def test_party_2_decrypts_as_the_definition_says(running: Session) -> None:
    """c0 + c1 s, with s in {-1, 0, 1} and c1 s computed in numpy."""
    form = ciphertext_words(running.two._secret, 0, len(PRIMES) * DEGREE).reshape(-1, DEGREE)
    secret = ckks_slots.coefficients(loaded(np.stack([form, form]), ntt=True), range(1))[0, 0].astype(np.int64)
    secret[secret > 1] -= PRIMES[0]
    assert set(secret.tolist()) == {-1, 0, 1}
    words = running.sent(row_at_random(2))[0]
    found = running.two.phase(words)
    for i, prime in enumerate(PRIMES):
        c1 = times_secret(words[1, i], secret, prime)
        assert found[i].tolist() == [(int(a) + b) % prime for a, b in zip(words[0, i], c1, strict=True)]


# --- c1


def quotient(session: Session, words: Words) -> list[int]:
    """c1 / a modulo the first prime, centred: w where c1 is a w."""
    known = ciphertext_words(session.operand.ciphertexts[0], 0, 2 * len(PRIMES) * DEGREE).reshape(2, -1, DEGREE)
    seen, result = session.ntt(words), np.ones_like(known)
    result[1, 0] = [
        int(c) * pow(int(a), -1, PRIMES[0]) % PRIMES[0] for a, c in zip(known[1, 0], seen[1, 0], strict=True)
    ]
    return centred(ckks_slots.coefficients(loaded(result, ntt=True), range(1, 2))[0, 0].tolist(), PRIMES[0])


def test_c1_gives_every_pixel_and_with_a_fresh_zero_none(running: Session) -> None:
    row = row_at_random(3)
    found = slots(quotient(running, running.product(row, fresh=False)))
    assert (found == np.append(row, LAST_SLOT)).all()
    for words in (running.product(row, fresh=True), running.sent(row)[0]):
        found = slots(quotient(running, words))
        assert (found[:POINTS] == row).sum() <= 2


def guesses(candidates: list[NDArray[np.int64]], distance: Callable[[NDArray[np.int64]], list[float]]) -> int:
    """How often the nearest of two candidates is the row; `distance` of what a row makes party_2 see from each."""
    chosen = [secrets.randbelow(2) for _ in range(TRIALS)]
    return sum(int(np.argmin(distance(candidates[secret]))) == secret for secret in chosen)


def test_c1_tells_two_rows_apart_unless_it_is_fresh(running: Session) -> None:
    candidates = [row_at_random(4), row_at_random(5)]
    predicted = [running.product(c, fresh=False)[1, 0].astype(np.int64) for c in candidates]

    def distance(seen: Words) -> list[float]:
        apart = [(seen[1, 0].astype(np.int64) - p + PRIMES[0] // 2) % PRIMES[0] - PRIMES[0] // 2 for p in predicted]
        return [float(np.abs(a).astype(np.float64).sum()) for a in apart]

    assert guesses(candidates, lambda row: distance(running.product(row, fresh=False))) == TRIALS
    assert guesses(candidates, lambda row: distance(running.sent(row)[0])) in AT_CHANCE


# --- the phase


def test_without_a_mask_the_phase_gives_every_pixel(running: Session) -> None:
    """Its slots are X * Y; what is left is (m + t e) w, the same multiple of w in every product."""
    row, values = row_at_random(6), running.values.numpy()
    bare = slots(centred(running.phase(running.product(row, fresh=True)), Q))[:POINTS]
    assert (bare == row * values).all()
    assert (bare[values != 0] // values[values != 0] == row[values != 0]).all()


@pytest.mark.parametrize(("mask", "hides"), [(0, False), (T, False), (1 << 104, False), (Q, True)])
def test_the_phase_tells_two_rows_apart_unless_it_is_masked_modulo_q(running: Session, mask: int, hides: bool) -> None:
    """A mask below t makes the share uniform, but the quotient by t says (m + t e) w to within one.

    Wider ones hide more and more of it, but not that a sum is negative, or above what the mask can be.
    """
    candidates, count = [row_at_random(7), row_at_random(8)], 1024
    predicted = [centred(running.phase(running.product(c, fresh=False), count), Q) for c in candidates]

    def seen(row: NDArray[np.int64]) -> list[int]:
        if hides:
            return running.phase(running.sent(row)[0], count)
        phase = running.phase(running.product(row, fresh=True), count)
        return [(v + secrets.randbelow(max(mask, 1))) % Q for v in phase]

    def distance(row: NDArray[np.int64]) -> list[float]:
        at = seen(row)
        apart = [centred([v - known for v, known in zip(at, p, strict=True)], Q) for p in predicted]
        return [float(sum(abs(a) if hides else max(-a, a - mask, 0) for a in each)) for each in apart]

    right = guesses(candidates, distance)
    assert right in AT_CHANCE if hides else right == TRIALS


# --- party_2's shares, and what is sent


def chi_square(bins: NDArray[np.int64]) -> float:
    """Of numbers in 256 bins, as standard deviations from its mean: above 8 with probability 2e-11."""
    counts = np.bincount(bins, minlength=256)
    return float((((counts - len(bins) / 256) ** 2).sum() / (len(bins) / 256) - 255) / math.sqrt(2 * 255))


def test_shares_and_phases_are_uniform_whatever_the_rows_are(running: Session) -> None:
    values = running.values.numpy()
    bare = running.phase(running.product(row_at_random(9), fresh=True))
    assert chi_square(np.array([v * 256 // Q for v in bare])) > 100  # positive control
    for x in (np.zeros(POINTS, np.int64), row_at_random(10), np.full(POINTS, 2047)):
        shares, masks, phases = [], [], list[int]()
        for _ in range(8):
            words, mask = running.sent(x)
            phases += running.phase(words)
            shares.append(slots(phases[-DEGREE:]) % T)
            masks.append(mask.astype(np.int64))
        seen = np.concatenate(shares)
        assert abs(chi_square(seen >> 40)) < 8
        assert abs(chi_square(np.array([v * 256 // Q for v in phases]))) < 8
        for prime in (*PRIMES, T, 1 << 60):
            assert abs(chi_square(np.array([v % prime * 256 // prime for v in phases]))) < 8
        # Two of these 2^16 words below 2^48 are equal with a chance of 8e-6; a mask that comes again repeats 8192.
        assert len(np.unique(seen)) > len(seen) - 3
        # The share less the mask is the product: the masks are party_1's alone.
        less = (seen - np.concatenate(masks)).reshape(8, DEGREE)[:, :POINTS] % T
        assert (less == (x * values) % T).all()
        predicted = np.tile(np.append(x * values, 0), 8).astype(np.float64)
        if predicted.any():
            assert abs(np.corrcoef(predicted, seen - T / 2)[0, 1]) < 7 / math.sqrt(len(seen))


def test_equal_products_share_no_word_on_the_wire(running: Session) -> None:
    row = row_at_random(11)
    rows, total = torch.from_numpy(np.stack([row, row, row])), int((row * running.values.numpy()).sum())
    heard: list[Words] = []
    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(running.operand.project, rows)
            request = running.ends[1].receive(MessageKind.REPLY_CIPHERTEXTS)
            running.theirs.answer(request, release_all)
            assert result.result().tolist() == [total] * 3
        heard.append(unpack_pairs(np.frombuffer(request.payload, np.uint8), 60).reshape(3, 2, -1, DEGREE))
    replies = np.concatenate(heard)
    for i, prime in enumerate(PRIMES):
        words = replies[:, :, i]
        assert len(np.unique(words)) > words.size - 3
        assert abs(chi_square((words.reshape(-1) >> np.uint64(52)).astype(np.int64))) < 8
        assert int(words.max()) < prime
