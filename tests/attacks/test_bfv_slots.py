"""Attack 4 of the threat model on whole ciphertexts: shares of element-wise products (bfv_slots).

party_2 holds the secret key and knows the ciphertexts that it sent, so their noise v and their random polynomial a.
With w the polynomial whose slots are party_1's rows, the product has c1 = a w and noise v w: either gives w, and so
every pixel. Each attack below first succeeds where a protection is missing (positive control), then runs unchanged on
ours. The mask alone makes party_2's share uniform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks.test_bfv_reply import negacyclic, times_secret
from numpy.typing import NDArray

from ppir_torch.arithmetic.csprng import KeyStream
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import release_all
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.protocols.lattice import bfv_slots
from ppir_torch.protocols.lattice.bfv import BfvFixedSide, BfvMovingSide
from ppir_torch.protocols.lattice.bfv_slots import NOISE
from ppir_torch.protocols.lattice.packing import DEGREE
from ppir_torch.protocols.lattice.seal_format import ciphertext_file, compose_residues, plaintext_file, unpack_pairs
from ppir_torch.protocols.lattice.slots import POINTS, PRIMES, slots_of
from ppir_torch.protocols.lattice.slots import SLOT_MODULUS as T
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import link_pair

Words = NDArray[np.uint64]
DATA = PRIMES
MODULUS = math.prod(DATA)
TRIALS = 32
# A guess between two rows: certain is 32 of 32; a fair coin is outside of 16 +- 13 once in two million times.
AT_CHANCE = range(TRIALS // 2 - 13, TRIALS // 2 + 14)


class Session:
    """Both parties after one operand of one ciphertext."""

    def __init__(self) -> None:
        self.map = PublicMap((1, POINTS), (np.ones((1, 1), np.int64), np.ones((POINTS, 1), np.int64)), 1.0)
        self.values = torch.randint(-255, 256, (POINTS,), generator=torch.Generator().manual_seed(1))
        self.header = OperandHeader(0, POINTS, 3, 1.0, 0.0, 255, int(self.values.square().sum()))
        self.ends = link_pair("party_1", "party_2")
        self.moving, self.fixed = BfvMovingSide(self.ends[0]), BfvFixedSide(self.ends[1])
        self.one, self.two = self.moving.slots.cipher, self.fixed.slots.cipher
        self.theirs = self.fixed.open_mapped(self.header, self.values, self.map)
        self.operand = self.moving.open_mapped(self.header, self.map)
        self.scheme = bfv_slots.scheme()
        self.secret = self.secret_key()
        # What party_2 sent, in coefficient form.
        sent = self.scheme.seal.Ciphertext()
        self.scheme.evaluator.transform_from_ntt(self.operand.ciphertexts[0], sent)
        self.error = np.array(self.noise(residues(sent)))

    def secret_key(self) -> NDArray[np.int64]:
        """s in {-1, 0, 1}: party_2 decrypts (0, q/t), whose plaintext is s."""
        scheme, ciphertext, plain = self.scheme, self.scheme.seal.Ciphertext(), self.scheme.seal.Plaintext()
        file = ciphertext_file(DEGREE, 1, scheme.levels[-1])
        file.words[DEGREE] = (DATA[0] + T // 2) // T
        file.load(ciphertext, scheme.context)
        self.two._decryptor.decrypt(ciphertext, plain)
        words = np.array([plain.data(i) if i < plain.coeff_count() else 0 for i in range(DEGREE)], np.int64)
        secret = np.where(words == T - 1, -1, words)
        assert set(secret.tolist()) == {-1, 0, 1}
        return secret

    def product(self, row: NDArray[np.int64]) -> Any:
        """The product as party_1 computes it; nothing is hidden yet."""
        product = self.operand.product(row, range(1))
        self.scheme.evaluator.transform_from_ntt_inplace(product)
        return product

    def masked(self, row: NDArray[np.int64], fresh: bool) -> Any:
        """The product with a uniform mask in every slot; with `fresh` re-randomised. Not flooded, of all primes."""
        product, plain, zero = self.product(row), self.scheme.seal.Plaintext(), self.scheme.seal.Ciphertext()
        self.scheme.encoder.encode(np.random.default_rng().integers(0, T, DEGREE).tolist(), plain)
        self.scheme.evaluator.add_plain_inplace(product, plain)
        if fresh:
            self.one.encryptor.encrypt_zero(zero)
            self.scheme.evaluator.add_inplace(product, zero)
        return product

    def covered(self, row: NDArray[np.int64]) -> tuple[Any, Words]:
        """(what party_1 sends, its mask)."""
        _, mask = self.one.cover(product := self.operand.product(row, range(1)))
        return product, mask

    def polynomial(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        """w (n,), centred."""
        plain = self.scheme.seal.Plaintext()
        self.scheme.encoder.encode(slots_of(row, 1).tolist(), plain)
        words = np.array([plain.data(i) for i in range(DEGREE)], np.int64)
        return np.where(words > T // 2, words - T, words)

    def slots(self, polynomial: list[int]) -> NDArray[np.int64]:
        """The centred slots of a polynomial modulo t."""
        file, plain = plaintext_file(DEGREE), self.scheme.seal.Plaintext()
        file.words[:] = [v % T for v in polynomial]
        file.load(plain, self.scheme.context)
        found = np.array(self.scheme.encoder.decode_uint64(plain), np.int64)
        return np.where(found > T // 2, found - T, found)

    def noise(self, words: Words) -> list[float]:
        """The noise of a ciphertext (2, primes, n), whatever its message and mask: (t (c0 + c1 s) mod Q) / t."""
        primes = DATA[: words.shape[1]]
        modulus = math.prod(primes)
        products = [times_secret(words[1, i], self.secret, p) for i, p in enumerate(primes)]
        out = []
        for j in range(DEGREE):
            first, second = ([int(w[i][j]) for i in range(len(primes))] for w in (words[0], products))
            scaled = T * (compose_residues(first, primes) + compose_residues(second, primes)) % modulus
            out.append((scaled - modulus if scaled > modulus // 2 else scaled) / T)
        return out

    def decrypted(self, ciphertext: Any) -> Words:
        """party_2's share."""
        plain = self.scheme.seal.Plaintext()
        self.two._decryptor.decrypt(ciphertext, plain)
        return np.array(self.scheme.encoder.decode_uint64(plain), np.uint64)


def residues(ciphertext: Any) -> Words:
    """(2, primes, n)."""
    words = ciphertext.dyn_array()
    return np.fromiter(map(words.at, range(words.size())), np.uint64).reshape(2, -1, DEGREE)


def row_at_random(seed: int, size: int = 127) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(-size, size + 1, POINTS)


@pytest.fixture(scope="module")
def running() -> Session:
    return Session()


# --- the noise bound


def test_noise_bound_of_the_docstring_holds(running: Session) -> None:
    """21 coins each way and a rounding of a half; products of any rows, whose polynomials are as long as each other."""
    assert np.abs(running.error).max() <= 21.5
    for row in (row_at_random(1, 2047), np.full(POINTS, 2047), np.zeros(POINTS, np.int64)):
        noise = np.abs(running.noise(residues(running.product(row))))
        assert 0 < noise.max() < NOISE
        predicted = negacyclic(running.error, running.polynomial(row).astype(np.float64))
        assert np.allclose(np.abs(predicted), noise, rtol=1e-6, atol=2**30)
    zero = running.scheme.seal.Ciphertext()
    running.one.encryptor.encrypt_zero(zero)
    assert np.abs(running.noise(residues(zero))).max() < 2**40


# --- c1


def quotient(session: Session, ciphertext: Any) -> list[int]:
    """c1 / a modulo the first prime, centred: w where c1 is a w."""
    scheme, prime = session.scheme, DATA[0]
    ntt = scheme.seal.Ciphertext()
    scheme.evaluator.transform_to_ntt(ciphertext, ntt)
    known, seen = residues(session.operand.ciphertexts[0])[1, 0], residues(ntt)[1, 0]
    file, result = ciphertext_file(DEGREE, 1, scheme.levels[-1], ntt=True), scheme.seal.Ciphertext()
    file.words[DEGREE:] = [int(c) * pow(int(a), -1, prime) % prime for a, c in zip(known, seen, strict=True)]
    file.load(result, scheme.context)
    scheme.evaluator.transform_from_ntt_inplace(result)
    return [v - prime if v > prime // 2 else v for v in residues(result)[1, 0].tolist()]


def test_c1_of_the_masked_product_gives_every_pixel_and_with_a_fresh_zero_none(running: Session) -> None:
    row = row_at_random(2)
    found = running.slots(quotient(running, running.masked(row, fresh=False)))
    assert (found[:POINTS] == row).all()
    found = running.slots(quotient(running, running.masked(row, fresh=True)))
    assert (found[:POINTS] == row).sum() <= 2
    # And of what is sent: one prime, flooded.
    found = running.slots(quotient(running, running.covered(row)[0]))
    assert (found[:POINTS] == row).sum() <= 2


def test_c1_as_it_is_sent_tells_two_rows_apart_unless_it_is_fresh(running: Session) -> None:
    candidates = [row_at_random(3), row_at_random(4)]
    last = running.scheme.levels[-1]

    def sent(ciphertext: Any) -> NDArray[np.int64]:
        small = running.scheme.seal.Ciphertext()
        running.scheme.evaluator.mod_switch_to(ciphertext, last, small)
        return residues(small)[1, 0].astype(np.int64)

    predicted = [sent(running.product(c)) for c in candidates]

    def guesses(view: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> int:
        right = 0
        for secret in np.random.default_rng(5).integers(0, 2, TRIALS):
            seen = view(candidates[secret])
            apart = [(seen - p + DATA[0] // 2) % DATA[0] - DATA[0] // 2 for p in predicted]
            distance = [np.abs(a).astype(np.float64).sum() for a in apart]
            right += int(distance[1] < distance[0]) == secret
        return right

    assert guesses(lambda row: sent(running.masked(row, fresh=False))) == TRIALS
    assert guesses(lambda row: residues(running.covered(row)[0])[1, 0].astype(np.int64)) in AT_CHANCE


# --- noise


def full_floods(session: Session) -> list[int]:
    """F of the next reply, as the docstring defines it, from the digits that are added."""
    session.one._replies += 1
    low, middle, top = bfv_slots.flood(session.one._stream, session.one._replies)
    centred = [v - DATA[0] if v > DATA[0] // 2 else v for v in top.tolist()]
    q2, q3 = DATA[1], DATA[2]
    return [f3 + q3 * f2 + q3 * q2 * f1 for f3, f2, f1 in zip(low.tolist(), middle.tolist(), centred, strict=True)]


Floods = Callable[[Session], list[int]]


def without_lowest_digit(session: Session) -> list[int]:
    return [f - f % DATA[2] for f in full_floods(session)]


@pytest.mark.parametrize(
    ("floods", "hides"), [(lambda _: [0] * DEGREE, False), (without_lowest_digit, False), (full_floods, True)]
)
def test_noise_tells_two_rows_apart_unless_all_of_it_is_flooded(running: Session, floods: Floods, hides: bool) -> None:
    """party_2 is given more than is sent: the noise before the switch to one prime, at every coefficient.

    It looks at all of it, and at what is left modulo q3 and modulo q2 q3, and believes the best fit.
    """
    candidates = [row_at_random(6), row_at_random(7)]
    predicted = [negacyclic(running.error, running.polynomial(c).astype(np.float64)) for c in candidates]
    noise = [[round(v) for v in running.noise(residues(running.masked(c, fresh=True)))] for c in candidates]
    right = 0
    for secret in np.random.default_rng(8).integers(0, 2, TRIALS):
        seen = [v + f for v, f in zip(noise[secret], floods(running), strict=True)]
        fits = []
        for view in (MODULUS, DATA[1] * DATA[2], DATA[2]):
            left = np.array([float((v + view // 2) % view - view // 2) for v in seen])
            fits += [(float(np.abs(left - p).sum()), guess) for guess, p in enumerate(predicted)]
        right += min(fits)[1] == secret
    assert right in AT_CHANCE if hides else right == TRIALS


def test_without_a_flood_the_noise_gives_every_pixel(running: Session) -> None:
    """Of the product with a mask whose own rounding is nothing: v w, divided modulo a prime by v, is w."""
    row, scheme, prime = row_at_random(9), running.scheme, DATA[0]
    product = residues(running.product(row))
    values = [round(v * T) for v in running.error.tolist()]
    # t times the noise is a whole number: t v w exactly.
    products = [times_secret(product[1, i], running.secret, p) for i, p in enumerate(DATA)]
    exact = []
    for j in range(DEGREE):
        first, second = ([int(w[i][j]) for i in range(3)] for w in (product[0], products))
        scaled = T * (compose_residues(first, DATA) + compose_residues(second, DATA)) % MODULUS
        exact.append(scaled - MODULUS if scaled > MODULUS // 2 else scaled)
    file, forms = ciphertext_file(DEGREE, 1, scheme.levels[-1]), []
    for polynomial in (exact, values):
        ciphertext = scheme.seal.Ciphertext()
        file.words[:DEGREE] = 1
        file.words[DEGREE:] = [v % prime for v in polynomial]
        file.load(ciphertext, scheme.context)
        scheme.evaluator.transform_to_ntt_inplace(ciphertext)
        forms.append(residues(ciphertext)[1, 0].tolist())
    ntt, result = ciphertext_file(DEGREE, 1, scheme.levels[-1], ntt=True), scheme.seal.Ciphertext()
    ntt.words[:DEGREE] = 1
    ntt.words[DEGREE:] = [a * pow(b, -1, prime) % prime for a, b in zip(*forms, strict=True)]
    ntt.load(result, scheme.context)
    scheme.evaluator.transform_from_ntt_inplace(result)
    found = running.slots([v - prime if v > prime // 2 else v for v in residues(result)[1, 0].tolist()])
    assert (found[:POINTS] == row).all()


def test_the_digits_are_the_flood_of_the_docstring(running: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent is c0 + F, divided by q3 and q2 and rounded, however the digits were added."""
    before: list[Words] = []
    add = running.scheme.evaluator.add_inplace

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(running.scheme.evaluator, name)

        @staticmethod
        def add_inplace(product: Any, other: Any) -> None:
            add(product, other)
            before.append(residues(product))

    scheme = replace(running.scheme, evaluator=Watched())
    product = running.operand.product(row_at_random(10), range(1))
    monkeypatch.setattr(bfv_slots, "scheme", lambda: scheme)
    number = running.one._replies
    running.one.cover(product)
    monkeypatch.undo()
    masked, sent = before[0], residues(product)  # before the first digit: mask and fresh zero
    again = KeyStream(running.one._stream._key)
    running.one._stream, kept = again, running.one._stream
    running.one._replies = number
    floods = full_floods(running)
    running.one._stream = kept
    q2, q3 = DATA[1], DATA[2]
    for j in range(0, DEGREE, 97):
        value = compose_residues([int(masked[0, i, j]) for i in range(3)], DATA) + floods[j]
        expected = ((value + q3 // 2) // q3 + q2 // 2) // q2 % DATA[0]
        assert expected == int(sent[0, 0, j])


def received(payload: memoryview) -> Words:
    """A reply (2, 1, n) as party_2 reads it."""
    packed, split = np.frombuffer(payload, np.uint8), DEGREE * bfv_slots.C0_BITS // 8
    c0 = bfv_slots.restored(unpack_pairs(packed[:split], bfv_slots.C0_BITS))
    return np.stack([c0, unpack_pairs(packed[split:], 60)])[:, None]


@pytest.mark.slow
def test_what_is_sent_is_flooded_fresh_and_of_one_prime(running: Session) -> None:
    rows = torch.from_numpy(np.stack([row_at_random(seed) for seed in (11, 11, 12)]))
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(running.operand.project, rows)
        request = running.ends[1].receive(MessageKind.REPLY_CIPHERTEXTS)
        running.theirs.answer(request, release_all)
        assert result.result().tolist() == running.map.forms(rows, running.values[None]).tolist()
    size = bfv_slots.REPLY_BYTES
    assert len(request.payload) == 3 * size
    replies = [received(request.payload[start : start + size]) for start in range(0, 3 * size, size)]
    for words in replies:
        assert words.shape == (2, 1, DEGREE)
        noise = np.array(running.noise(words))
        # Uniform in [-2^10, 2^10), the rounding of the switch (standard deviation about 21), and bits that stay behind
        # (uniform in [-2^7, 2^7): 74).
        assert 572 < noise.std() < 620
        assert 1010 < np.abs(noise).max() < 1024 + 128 + 200
        # In every coefficient, not at a few.
        assert all(400 < part.std() < 780 for part in np.split(noise, 64))
    assert not (replies[0] == replies[1]).any()


# --- party_2's shares


def chi_square(words: Words) -> float:
    """Of words below t in 256 bins, as standard deviations from its mean."""
    counts = np.bincount((words >> np.uint64(40)).astype(np.int64), minlength=256)
    return float((((counts - len(words) / 256) ** 2).sum() / (len(words) / 256) - 255) / math.sqrt(2 * 255))


def test_shares_are_uniform_whatever_the_rows_are(running: Session) -> None:
    """Positive control: without the mask the share is X * Y itself, which gives X wherever Y is not zero."""
    row, values = row_at_random(13), running.values.numpy()
    bare = running.decrypted(running.product(row)).astype(np.int64)
    bare = np.where(bare > T // 2, bare - T, bare)[:POINTS]
    assert (bare == row * values).all()
    assert (bare[values != 0] // values[values != 0] == row[values != 0]).all()
    assert abs(chi_square((bare % T).astype(np.uint64))) > 100
    for x in (np.zeros(POINTS, np.int64), row, np.full(POINTS, 2047)):
        shares, masks = [], []
        for _ in range(8):
            ciphertext, mask = running.covered(x)
            shares.append(running.decrypted(ciphertext))
            masks.append(mask)
        seen, mask = np.concatenate(shares), np.concatenate(masks)
        assert abs(chi_square(seen)) < 7
        assert int(seen.max()) < T
        # Two of these 2^16 words below 2^48 are equal with a chance of 8e-6; a mask that comes again repeats 8192.
        assert len(np.unique(seen)) > len(seen) - 3
        # The share less the mask is the product: the masks are party_1's alone.
        less = (seen.astype(np.int64) - mask.astype(np.int64)).reshape(8, DEGREE)[:, :POINTS] % T
        assert (less == (x * values) % T).all()
        predicted = np.tile(np.append(x * values, 0), 8).astype(np.float64)
        centred = seen.astype(np.float64) - T / 2
        if predicted.any():
            assert abs(np.corrcoef(predicted, centred)[0, 1]) < 6 / math.sqrt(len(seen))
