"""Attack 3 of the threat model: decryptions under CKKS that party_2 shares hand party_1 the secret key.

A CKKS plaintext carries the noise of its ciphertext: m = c0 + c1 s exactly. Whoever holds (c0, c1) and m solves for s
(Li and Micciancio, EUROCRYPT 2021). TenSEAL decrypts to the real parts of the slots, which fix the polynomial
m(x) + m(1/x): two results give two linear equations in s(x) and s(1/x), at every root of x^n + 1 modulo one prime.
The naive protocol below is stock TenSEAL. Its attacker needs two results, and then reads everything party_2 ever sent.
Rounding to the integers that were encrypted, with a checked margin, takes the noise out of what is shared.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tenseal as ts
import tenseal.sealapi as seal
from numpy.typing import NDArray

from ppir_torch.protocols.lattice.seal_format import SealFile, _with_header, ciphertext_file, load_seal, save_seal

Floats = NDArray[np.float64]
Words = NDArray[np.object_]  # integers modulo the prime, as Python's own
DEGREE = 8192
SLOTS = DEGREE // 2
SCALE = 2.0**40
# Twenty times what the noise and TenSEAL's inexact rescale (2^-23 of a product) may add up to.
MARGIN = 0.01
# Six standard deviations of the correlation of independent vectors.
AT_CHANCE = 6 / np.sqrt(SLOTS)


class NaiveParty2:
    """Holds the fixed image and the key; encrypts chunks of the image, decrypts results, and shares every slot."""

    def __init__(self, image: Floats) -> None:
        self._context = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=[60, 40, 60])
        self._context.global_scale = SCALE
        self.public_key = self._context.serialize(save_galois_keys=False, save_relin_keys=False)
        self.chunks = [ts.ckks_vector(self._context, part.tolist()).serialize() for part in image.reshape(-1, SLOTS)]

    def share(self, result: bytes) -> Floats:
        return np.array(ts.ckks_vector_from(self._context, result).decrypt())

    def true_key(self) -> NDArray[np.int64]:
        """The coefficients of s, for the judge."""
        scheme = Scheme.of(self._context)
        secret_key = scheme.adopt(self._context.secret_key().data, seal.SecretKey())
        words = secret_key.data()  # a view: the key must outlive it
        return scheme.coefficients(np.array([words.data(i) for i in range(DEGREE)], object))


class RoundingParty2(NaiveParty2):
    """Shares only what was encrypted: integers."""

    def share(self, result: bytes) -> Floats:
        return round_to_integers(super().share(result))


def round_to_integers(values: Floats) -> Floats:
    rounded = np.rint(values)
    worst = float(np.abs(values - rounded).max())
    if worst > MARGIN:
        raise ValueError(f"a slot is {worst:.2g} from an integer, at most {MARGIN} is allowed; nothing is shared")
    return rounded


@dataclass(frozen=True)
class Scheme:
    """What is public: SEAL's context, and the one prime that is left of the modulus after a rescale."""

    context: Any
    prime: int

    @classmethod
    def of(cls, context: ts.Context) -> Scheme:
        known = context.seal_context().data.key_context_data().parms()
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(known.poly_modulus_degree())
        primes = [modulus.value() for modulus in known.coeff_modulus()]
        parameters.set_coeff_modulus([seal.Modulus(prime) for prime in primes])
        return cls(seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128), primes[0])

    def adopt(self, item: Any, into: Any) -> Any:
        """An object of TenSEAL's as one of `sealapi`, which shows its words."""
        load_seal(into, self.context, save_seal(item), "tenseal")
        return into

    def polynomials(self, ciphertext: Any) -> Words:
        """(c0, c1) (2, n) modulo the prime, at the roots of x^n + 1; row[::-1] is then the polynomial in 1/x."""
        words = ciphertext.dyn_array()
        return np.array([words.at(i) for i in range(words.size())], object).reshape(2, -1, DEGREE)[:, 0]

    def encode(self, slots: Floats, scale: float) -> Words:
        plain = seal.Plaintext()
        seal.CKKSEncoder(self.context).encode(slots.tolist(), self.context.last_parms_id(), scale, plain)
        return np.array([plain.data(i) for i in range(DEGREE)], object)

    def decode(self, words: Words, scale: float) -> Floats:
        head = struct.pack("<4QQd", *self.context.last_parms_id(), DEGREE, scale)
        file, plain = SealFile(_with_header(head, DEGREE), DEGREE), seal.Plaintext()
        file.words[:] = words.astype(np.uint64)
        file.load(plain, self.context)
        return np.array(seal.CKKSEncoder(self.context).decode_double(plain))

    def coefficients(self, words: Words) -> NDArray[np.int64]:
        """From the values at the roots to centred coefficients (n,)."""
        file, ciphertext = ciphertext_file(DEGREE, 1, self.context.last_parms_id(), ntt=True), seal.Ciphertext()
        file.words[DEGREE:] = words.astype(np.uint64)
        file.load(ciphertext, self.context)
        seal.Evaluator(self.context).transform_from_ntt_inplace(ciphertext)
        out = self.polynomials(ciphertext)[1]
        return np.where(out > self.prime // 2, out - self.prime, out).astype(np.int64)


def recover_key(scheme: Scheme, results: Sequence[Any], shared: Sequence[Floats], scale: float) -> Words:
    """The attacker: party_2's key s modulo the prime, at the roots of x^n + 1.

    With w = 2 Re(slots) encoded, each result says c1 s + c1' s' = w - c0 - c0', ' meaning "in 1/x".

    Args:
        scheme: public.
        results: two ciphertexts that party_1 made and party_2 decrypted.
        shared: what party_2 gave back for each: the real parts of its slots, or party_1's best estimate of them; those
            that are left out are taken to be 0.
        scale: of the results.
    """
    p = scheme.prime
    (a0, a1), (b0, b1) = (scheme.polynomials(result) for result in results)
    a, b = (scheme.encode(slots, 2 * scale) - c0 - c0[::-1] for slots, c0 in zip(shared, (a0, b0), strict=True))
    determinant = (a1 * b1[::-1] - a1[::-1] * b1) % p
    inverse = np.array([pow(int(d), p - 2, p) for d in determinant], object)
    return (a * b1[::-1] - b * a1[::-1]) * inverse % p


def read_with(key: Words, scheme: Scheme, ciphertext: Any, scale: float) -> Floats:
    """Decrypt any ciphertext of party_2."""
    c0, c1 = scheme.polynomials(ciphertext)
    return scheme.decode((c0 + c1 * key) % scheme.prime, scale)


class Party1:
    """Multiplies two chunks, or one of them twice, by its rows, as the protocol asks, and keeps the ciphertexts."""

    def __init__(self, party_2: NaiveParty2, rows: Floats, chunks: tuple[int, int] = (0, 1)) -> None:
        context = ts.context_from(party_2.public_key)
        assert not context.has_secret_key()
        self.scheme = Scheme.of(context)
        self.received = [ts.ckks_vector_from(context, chunk) for chunk in party_2.chunks]
        products = [self.received[chunk] * row.tolist() for chunk, row in zip(chunks, rows, strict=True)]
        self.results = [self.scheme.adopt(product.ciphertext()[0], seal.Ciphertext()) for product in products]
        self.scale = self.results[0].scale
        # Sent, and answered.
        self.sent = [product.serialize() for product in products]
        self.shared = [party_2.share(message) for message in self.sent]

    def read_third_chunk(self, key: Words) -> Floats:
        """No product of this chunk was ever asked for."""
        ciphertext = self.scheme.adopt(self.received[2].ciphertext()[0], seal.Ciphertext())
        return read_with(key, self.scheme, ciphertext, ciphertext.scale)


@pytest.fixture(scope="module")
def image() -> Floats:
    """Three chunks of an 8-bit image, centred."""
    return np.random.default_rng(0).integers(-128, 128, 3 * SLOTS).astype(np.float64)


@pytest.fixture(scope="module")
def rows() -> Floats:
    return np.random.default_rng(1).integers(-31, 32, (2, SLOTS)).astype(np.float64)


@pytest.mark.parametrize("chunks", [(0, 1), (0, 0)], ids=["two ciphertexts", "one ciphertext, two iterations"])
def test_two_shared_decryptions_give_the_key_and_all_that_was_ever_encrypted(
    image: Floats, rows: Floats, chunks: tuple[int, int]
) -> None:
    party_2 = NaiveParty2(image)
    party_1 = Party1(party_2, rows, chunks)
    key = recover_key(party_1.scheme, party_1.results, party_1.shared, party_1.scale)
    coefficients = party_1.scheme.coefficients(key)
    assert set(coefficients.tolist()) == {-1, 0, 1}
    assert np.array_equal(coefficients, party_2.true_key())
    assert np.array_equal(np.rint(party_1.read_third_chunk(key)), image[2 * SLOTS :])


def test_rounding_to_what_was_encrypted_gives_no_key(image: Floats, rows: Floats) -> None:
    party_2 = RoundingParty2(image)
    party_1 = Party1(party_2, rows)
    scheme, truth = party_1.scheme, party_2.true_key()
    assert np.array_equal(party_1.shared, rows * image[: 2 * SLOTS].reshape(2, -1))
    # TenSEAL calls the scale of a product what it was before; its slots are the integers times this.
    dropped = party_1.scheme.context.first_context_data().parms().coeff_modulus()[1].value()
    for factor in (1.0, SCALE / dropped):
        shared = [factor * values for values in party_1.shared]
        key = recover_key(scheme, party_1.results, shared, party_1.scale)
        coefficients = scheme.coefficients(key)
        assert not (coefficients == truth).any()
        assert abs(np.corrcoef(coefficients.astype(np.float64), truth)[0, 1]) < AT_CHANCE
        assert abs(np.corrcoef(party_1.read_third_chunk(key), image[2 * SLOTS :])[0, 1]) < AT_CHANCE
    # Positive control: the same ciphertexts, decrypted and not rounded.
    unrounded = [NaiveParty2.share(party_2, message) for message in party_1.sent]
    key = recover_key(scheme, party_1.results, unrounded, party_1.scale)
    assert np.array_equal(scheme.coefficients(key), truth)


def test_what_is_not_near_an_integer_is_not_shared(image: Floats, rows: Floats) -> None:
    with pytest.raises(ValueError, match="nothing is shared"):
        Party1(RoundingParty2(image), rows / 3)
    # Positive control: the naive party_2 shares it, and loses its key.
    party_2 = NaiveParty2(image)
    party_1 = Party1(party_2, rows / 3)
    key = recover_key(party_1.scheme, party_1.results, party_1.shared, party_1.scale)
    assert np.array_equal(party_1.scheme.coefficients(key), party_2.true_key())
