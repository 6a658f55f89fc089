"""Microsoft SEAL 4 objects as bytes, edited in numpy.

TenSEAL's binding of SEAL reads and writes files only, and sets coefficients one by one. A `SealFile` is an anonymous
file in memory (nothing touches the disk) that already holds SEAL's uncompressed serialisation of one plaintext or
ciphertext; its coefficients are a numpy view, so that filling it is one array copy.

Layout (native/src/seal/{serialization,dynarray,plaintext,ciphertext}.cpp of SEAL 4.x), little endian:
header = magic A15E, header size 16, version major and minor, compression 0, 2 reserved bytes, total size (u64);
plaintext = header, parms_id (4 x u64), coefficients (u64), scale (f64), array;
ciphertext = header, parms_id, NTT flag (u8), polynomials, n, primes (u64 each), scale (f64), correction (u64), array;
array = header, count (u64), words (u64 each).
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LinkError

__all__ = [
    "SealFile",
    "Words",
    "bfv_context",
    "ciphertext_file",
    "ciphertext_words",
    "ckks_context",
    "compose_residues",
    "load_seal",
    "pack_pairs",
    "plaintext_file",
    "save_seal",
    "stored_content",
    "unpack_pairs",
]

Words = NDArray[np.uint64]
"""Coefficients, each modulo its prime."""

_HEADER = struct.Struct("<HBBBBHQ")
_VERSION = (4, 3)
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_FEW_WORDS = 256  # are faster read one by one


class SealFile:
    """One uncompressed SEAL object in a memory file.

    Args:
        head: everything before the words.
        count: number of words.

    Attributes:
        words: uint64 (count,), the coefficients, writable; a change is seen by the next load.
        path: under which SEAL reads it.
    """

    def __init__(self, head: bytes, count: int) -> None:
        descriptor = os.memfd_create("seal")
        weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, len(head) + 8 * count)
        memory = mmap.mmap(descriptor, len(head) + 8 * count)
        memory[: len(head)] = head
        self.words: Words = np.frombuffer(memory, np.uint64, count, len(head))
        self.path = f"/proc/self/fd/{descriptor}"

    def load(self, item: Any, context: Any) -> None:
        """Let SEAL read the words into `item`; RuntimeError where a word is out of range."""
        item.load(context, self.path)


def bfv_context(degree: int, primes: Sequence[int], plain_modulus: int) -> Any:
    """SEAL's context of BFV at 128-bit security; RuntimeError where SEAL refuses the parameters."""
    return _context("BFV", degree, primes, plain_modulus)


def ckks_context(degree: int, primes: Sequence[int]) -> Any:
    """SEAL's context of CKKS at 128-bit security; RuntimeError where SEAL refuses the parameters."""
    return _context("CKKS", degree, primes, None)


def plaintext_file(degree: int, primes: int = 1, parms_id: Sequence[int] = (0, 0, 0, 0)) -> SealFile:
    """A plaintext polynomial: of BFV in coefficient form, words[i] the coefficient of x^i, in [0, t).

    With a `parms_id` of CKKS: in NTT form, words.reshape(primes, degree), and scale 1.
    """
    count = primes * degree
    return SealFile(_with_header(struct.pack("<4QQd", *parms_id, count, 1.0), count), count)


def ciphertext_file(degree: int, primes: int, parms_id: Sequence[int], ntt: bool = False) -> SealFile:
    """A ciphertext (c0, c1) of scale 1: words.reshape(2, primes, degree) are the residues modulo each prime."""
    count = 2 * primes * degree
    body = struct.pack("<4Q?3QdQ", *parms_id, ntt, 2, degree, primes, 1.0, 1)
    return SealFile(_with_header(body, count), count)


def save_seal(item: Any) -> bytes:
    """A SEAL object's own serialisation (zstd-compressed by SEAL)."""
    descriptor = os.memfd_create("seal")
    try:
        item.save(f"/proc/self/fd/{descriptor}")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def load_seal(item: Any, context: Any, data: bytes | memoryview, what: str) -> None:
    """Load received bytes into an empty SEAL object; SEAL checks lengths, parameters and coefficient ranges.

    Raises:
        LinkError: the bytes are not a valid object of this context.
    """
    descriptor = os.memfd_create("seal")
    try:
        os.write(descriptor, data)
        item.load(context, f"/proc/self/fd/{descriptor}")
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:
        raise LinkError(f"{what}: {len(data)} bytes that SEAL refuses ({error})") from None
    finally:
        os.close(descriptor)


def ciphertext_words(ciphertext: Any, start: int, stop: int) -> Words:
    """Words start to stop of a ciphertext, in the order of its file.

    Words of 60 bits are beyond Zstandard, which stores them as they are; others are read one by one, which is slow.
    """
    if stop - start >= _FEW_WORDS:
        content = stored_content(save_seal(ciphertext)[_HEADER.size :])
        if content is not None:
            count = ciphertext.dyn_array().size()
            return np.frombuffer(content, np.uint64, stop - start, len(content) - 8 * (count - start))
    return np.fromiter(map(ciphertext.dyn_array().at, range(start, stop)), np.uint64, stop - start)


def pack_pairs(words: Words, bits: int) -> NDArray[np.uint8]:
    """Words below 2^bits (52, 56 or 60), an even number of them, as bits / 4 bytes per pair.

    >>> packed = pack_pairs(np.array([1, 2**60 - 1], np.uint64), 60)
    >>> len(packed), unpack_pairs(packed, 60).tolist() == [1, 2**60 - 1]
    (15, True)
    """
    first, second = words.reshape(-1, 2).T
    out = np.empty((len(first), bits // 4), np.uint8)
    out[:, :8] = (first | second << np.uint64(bits)).view(np.uint8).reshape(-1, 8)
    out[:, 8:] = (second >> np.uint64(64 - bits)).view(np.uint8).reshape(-1, 8)[:, : bits // 4 - 8]
    return out.reshape(-1)


def unpack_pairs(packed: NDArray[np.uint8], bits: int) -> Words:
    """Inverse of `pack_pairs`."""
    pairs = packed.reshape(-1, bits // 4)
    wide = np.zeros((len(pairs), 16), np.uint8)
    wide[:, : bits // 4] = pairs
    low, high = wide.view(np.uint64).T
    mask = np.uint64((1 << bits) - 1)
    return np.stack([low & mask, (low >> np.uint64(bits)) | (high << np.uint64(64 - bits))], axis=1).reshape(-1)


def compose_residues(residues: list[int], primes: tuple[int, ...]) -> int:
    """The integer modulo the product of the primes that has these residues (Garner).

    >>> compose_residues([1, 2], (3, 5))
    7
    """
    value, modulus = residues[0], primes[0]
    for residue, prime in zip(residues[1:], primes[1:], strict=True):
        value += (residue - value) * pow(modulus, -1, prime) % prime * modulus
        modulus *= prime
    return value


def _context(scheme: str, degree: int, primes: Sequence[int], plain_modulus: int | None) -> Any:
    import tenseal.sealapi as seal  # here, so that `import ppir_torch` stays light

    parameters = seal.EncryptionParameters(getattr(seal.SCHEME_TYPE, scheme))
    parameters.set_poly_modulus_degree(degree)
    parameters.set_coeff_modulus([seal.Modulus(prime) for prime in primes])
    if plain_modulus is not None:
        parameters.set_plain_modulus(plain_modulus)
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise RuntimeError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
    return context


def stored_content(frame: bytes) -> bytes | None:
    """What a Zstandard frame (RFC 8878, section 3.1.1) of raw blocks holds; None where a block is of another kind."""
    if frame[:4] != _ZSTD_MAGIC:
        return None
    single, dictionary, size = frame[4] >> 5 & 1, frame[4] & 3, frame[4] >> 6
    place = 5 + (not single) + (0, 1, 2, 4)[dictionary] + (single, 2, 4, 8)[size]
    parts, last = [], False
    while not last:
        head = int.from_bytes(frame[place : place + 3], "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        if kind != 0:
            return None
        parts.append(frame[place + 3 : place + 3 + length])
        place += 3 + length
    return b"".join(parts)


def _with_header(body: bytes, count: int) -> bytes:
    array = _header(_HEADER.size + 8 + 8 * count) + struct.pack("<Q", count)
    return _header(_HEADER.size + len(body) + len(array) + 8 * count) + body + array


def _header(size: int) -> bytes:
    return _HEADER.pack(0xA15E, _HEADER.size, *_VERSION, 0, 0, size)
