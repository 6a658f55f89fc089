"""The bytes that seal_format writes are what SEAL reads, and what SEAL refuses is one clear LinkError."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

from ppir_torch.errors import LinkError
from ppir_torch.protocols.lattice.seal_format import (
    ciphertext_file,
    ciphertext_words,
    compose_residues,
    load_seal,
    pack_pairs,
    plaintext_file,
    save_seal,
    stored_content,
    unpack_pairs,
)

DEGREE = 4096
T = 1 << 20


@pytest.fixture(scope="module")
def scheme() -> SimpleNamespace:
    import tenseal.sealapi as seal

    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(DEGREE)
    moduli = seal.CoeffModulus.Create(DEGREE, [36, 36, 37])
    parameters.set_coeff_modulus(moduli)
    parameters.set_plain_modulus(T)
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    secret = seal.KeyGenerator(context).secret_key()
    return SimpleNamespace(
        seal=seal,
        context=context,
        primes=[m.value() for m in moduli[:-1]],
        encryptor=seal.Encryptor(context, secret),
        decryptor=seal.Decryptor(context, secret),
    )


def encrypted(scheme: SimpleNamespace, values: np.ndarray) -> object:
    file, plain, ciphertext = plaintext_file(DEGREE), scheme.seal.Plaintext(), scheme.seal.Ciphertext()
    file.words[:] = values
    file.load(plain, scheme.context)
    scheme.encryptor.encrypt_symmetric(plain, ciphertext)
    return ciphertext


def decrypted(scheme: SimpleNamespace, ciphertext: object) -> list[int]:
    plain = scheme.seal.Plaintext()
    scheme.decryptor.decrypt(ciphertext, plain)
    return [plain.data(i) if i < plain.coeff_count() else 0 for i in range(DEGREE)]


def test_plaintext_words_are_coefficients(scheme: SimpleNamespace) -> None:
    file, plain = plaintext_file(DEGREE), scheme.seal.Plaintext()
    for values in (np.arange(DEGREE), np.full(DEGREE, T - 1), np.zeros(DEGREE)):
        file.words[:] = values.astype(np.uint64)
        file.load(plain, scheme.context)
        assert [plain.data(i) for i in range(DEGREE)] == values.astype(int).tolist()
        assert not plain.is_ntt_form()


def test_plaintext_agrees_with_seals_own_text_form(scheme: SimpleNamespace) -> None:
    file, plain = plaintext_file(DEGREE), scheme.seal.Plaintext()
    file.words[[0, 3]] = 5, 0xAB
    file.load(plain, scheme.context)
    assert plain.to_string() == "ABx^3 + 5"


def test_ciphertext_words_are_residues(scheme: SimpleNamespace) -> None:
    values = np.random.default_rng(0).integers(0, T, DEGREE)
    ciphertext = encrypted(scheme, values)
    words = ciphertext.dyn_array()
    file, rebuilt = ciphertext_file(DEGREE, 2, ciphertext.parms_id()), scheme.seal.Ciphertext()
    file.words[:] = [words.at(i) for i in range(words.size())]
    file.load(rebuilt, scheme.context)
    assert decrypted(scheme, rebuilt) == values.tolist()
    # An edit of the first c0 residues by round(Q / t) moves the first coefficient by one.
    step = (scheme.primes[0] * scheme.primes[1] + T // 2) // T
    for i, prime in enumerate(scheme.primes):
        file.words[i * DEGREE] = (int(file.words[i * DEGREE]) + step) % prime
    file.load(rebuilt, scheme.context)
    assert decrypted(scheme, rebuilt)[0] == (values[0] + 1) % T


def test_ntt_flag(scheme: SimpleNamespace) -> None:
    ciphertext = scheme.seal.Ciphertext()
    ciphertext_file(DEGREE, 2, scheme.context.first_parms_id(), ntt=True).load(ciphertext, scheme.context)
    assert ciphertext.is_ntt_form()


def test_words_out_of_range_are_refused_by_seal(scheme: SimpleNamespace) -> None:
    plain_file = plaintext_file(DEGREE)
    plain_file.words[7] = T
    with pytest.raises(RuntimeError):
        plain_file.load(scheme.seal.Plaintext(), scheme.context)
    file = ciphertext_file(DEGREE, 2, scheme.context.first_parms_id())
    file.words[0] = scheme.primes[0]
    with pytest.raises(RuntimeError):
        file.load(scheme.seal.Ciphertext(), scheme.context)


def test_save_and_load_round_trip(scheme: SimpleNamespace) -> None:
    values = np.random.default_rng(1).integers(0, T, DEGREE)
    copy = scheme.seal.Ciphertext()
    load_seal(copy, scheme.context, save_seal(encrypted(scheme, values)), "test")
    assert decrypted(scheme, copy) == values.tolist()


@pytest.mark.parametrize("damage", ["empty", "short", "half", "last", "magic", "size", "noise"])
def test_damaged_bytes_are_refused(scheme: SimpleNamespace, damage: str) -> None:
    good = save_seal(encrypted(scheme, np.zeros(DEGREE)))
    bad = {
        "empty": b"",
        "short": good[:10],
        "half": good[: len(good) // 2],
        "last": good[:-1],
        "magic": b"\0" + good[1:],
        "size": good[:8] + (1 << 62).to_bytes(8, "little") + good[16:],
        "noise": good[:16] + np.random.default_rng(2).bytes(len(good) - 16),
    }[damage]
    with pytest.raises(LinkError, match="SEAL refuses"):
        load_seal(scheme.seal.Ciphertext(), scheme.context, bad, "test")


@pytest.mark.parametrize("bits", [52, 56, 60])
def test_packed_pairs_round_trip(bits: int) -> None:
    words = np.random.default_rng(3).integers(0, 1 << bits, 1000).astype(np.uint64)
    words[:4] = 0, (1 << bits) - 1, (1 << bits) - 1, 0
    packed = pack_pairs(words, bits)
    assert packed.nbytes == 1000 * bits // 8
    assert (unpack_pairs(packed, bits) == words).all()
    assert packed.tobytes() == b"".join(
        (int(a) | int(b) << bits).to_bytes(bits // 4, "little") for a, b in words.reshape(-1, 2)
    )


def test_words_are_read_alike_whether_seals_file_is_compressed_or_not(scheme: SimpleNamespace) -> None:
    """Of 36 bits: Zstandard shortens them; of 60 bits: it stores them, and the file is read instead of each word."""
    small = encrypted(scheme, np.arange(DEGREE))
    moduli, parameters = (
        scheme.seal.CoeffModulus.Create(8192, [60, 60, 60]),
        scheme.seal.EncryptionParameters(scheme.seal.SCHEME_TYPE.CKKS),
    )
    parameters.set_poly_modulus_degree(8192)
    parameters.set_coeff_modulus(moduli)
    context = scheme.seal.SEALContext(parameters, True, scheme.seal.SEC_LEVEL_TYPE.TC128)
    large, count = scheme.seal.Ciphertext(), 4 * 8192
    scheme.seal.Encryptor(context, scheme.seal.KeyGenerator(context).secret_key()).encrypt_zero_symmetric(large)
    for ciphertext, words, stored in ((small, 4 * DEGREE, False), (large, count, True)):
        content = stored_content(save_seal(ciphertext)[16:])
        assert (content is not None) is stored
        at = ciphertext.dyn_array().at
        for start, stop in ((0, words), (words // 2, words), (5, 6), (words - 300, words - 1)):
            assert ciphertext_words(ciphertext, start, stop).tolist() == [at(i) for i in range(start, stop)]


@pytest.mark.parametrize("frame", [b"", b"PK\3\4" + bytes(20), bytes.fromhex("28b52ffd2001040000")])
def test_frames_that_are_none_or_not_raw(frame: bytes) -> None:
    assert stored_content(frame) is None


def test_compose_residues() -> None:
    primes = (1152921504606830593, 1125899906629633, 1125899906826241)
    modulus = primes[0] * primes[1] * primes[2]
    for value in (0, 1, modulus - 1, modulus // 2, 3**100 % modulus):
        assert compose_residues([value % p for p in primes], primes) == value


def test_nothing_touches_the_disk_and_descriptors_are_closed(scheme: SimpleNamespace) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = plaintext_file(DEGREE)
    assert os.readlink(file.path).startswith("/memfd:")
    del file
    save_seal(encrypted(scheme, np.zeros(DEGREE)))
    assert len(os.listdir("/proc/self/fd")) == before
