"""What a cipher does for either party, and how the public key and an operand's ciphertexts travel: `bfv` and `ckks`.

party_2 makes the keys and encrypts; party_1 has the public key and multiplies. How products are made of coefficients
is coefficient_products.py, of slots slot_sides.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import LinkError, RangeError
from ...wire.channel import Channel
from ...wire.kinds import MessageKind
from ...wire.messages import Message
from ...wire.payload import Buffer, pack, unpack
from .seal_format import load_seal, save_seal

__all__ = [
    "PER_MESSAGE",
    "Allowance",
    "FixedCipher",
    "MovingCipher",
    "OperandCiphertexts",
    "PublicKey",
    "Scheme",
    "centred_integer",
    "receive_operand",
    "send_operand",
]

PER_MESSAGE = 16  # ciphertexts
_MAX_CIPHERTEXT_BYTES = 1 << 18
_MAX_KEY_BYTES = 1 << 20


@dataclass(frozen=True)
class Scheme:
    """The public SEAL objects that both parties derive from the fixed parameters; nothing secret."""

    seal: Any
    context: Any
    evaluator: Any


class Allowance:
    """What a session may still do before a cipher's security bounds end.

    Args:
        name: of the protocol.
        most: units in all.
        unit: as a refusal names it.
        covers: what says how many, as a refusal names it.

    Attributes:
        used: units until now.

    >>> words = Allowance("bfv", 2, "results", "the flood covers")
    >>> words.use(2)
    >>> words.use(1)
    Traceback (most recent call last):
        ...
    ppir_torch.errors.RangeError: bfv: at most 2 results per session, the flood covers no more; start a new one
    """

    def __init__(self, name: str, most: int, unit: str, covers: str) -> None:
        self.used = 0
        self._name, self._most, self._unit, self._covers = name, most, unit, covers

    def use(self, count: int) -> None:
        """Count these units; raises RangeError, and counts nothing, where they are too many."""
        if self.used + count > self._most:
            raise RangeError(
                f"{self._name}: at most {self._most} {self._unit} per session, {self._covers} no more; start a new one"
            )
        self.used += count


def centred_integer(low: int, high: int, bits: int) -> int:
    """Two uniform 64-bit words as a uniform integer in [-2^(bits-1), 2^(bits-1)), of up to 128 bits.

    >>> centred_integer(0, 0, 8), centred_integer(-1, -1, 8)
    (-128, 127)
    """
    word = (high & (1 << 64) - 1) << 64 | low & (1 << 64) - 1
    return (word & (1 << bits) - 1) - (1 << bits - 1)


class MovingCipher(ABC):
    """What party_1 does to ciphertexts. A ciphertext is an object of SEAL's, which only a cipher looks into.

    Attributes:
        name: of the protocol.
        public_key: party_2's, as SEAL wrote it; empty before it came.
        encryptor: SEAL's, for the public key.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.public_key = b""
        self.encryptor: Any = None

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """SEAL's objects of the parameters."""

    def set_key(self, public_key: bytes) -> None:
        """Take party_2's public key, before all else; raises LinkError where it is none."""
        scheme = self.scheme
        key = scheme.seal.PublicKey()
        load_seal(key, scheme.context, public_key, "PUBLIC_KEY")
        self.encryptor = scheme.seal.Encryptor(scheme.context, key)
        self.public_key = public_key

    def fresh_zero(self) -> Any:
        """A fresh encryption of zero, with the public key."""
        zero = self.scheme.seal.Ciphertext()
        self.encryptor.encrypt_zero(zero)
        return zero

    @abstractmethod
    def load(self, file: bytes) -> Any:
        """A received ciphertext, ready to be multiplied; raises LinkError where it is none of the agreed parameters."""


class FixedCipher(ABC):
    """What party_2 does to ciphertexts; holds the secret key.

    Attributes:
        encryptor: SEAL's, for the secret key; None before there is one.
    """

    def __init__(self) -> None:
        self.encryptor: Any = None

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """SEAL's objects of the parameters."""

    def make_keys(self) -> bytes:
        """Make the keys, before all else; returns the public one as SEAL writes it."""
        scheme = self.scheme
        generator, public_key = scheme.seal.KeyGenerator(scheme.context), scheme.seal.PublicKey()
        generator.create_public_key(public_key)
        secret_key = generator.secret_key()
        self.encryptor = scheme.seal.Encryptor(scheme.context, secret_key)
        self.keep(secret_key)
        return save_seal(public_key)

    @abstractmethod
    def keep(self, secret_key: Any) -> None:
        """Keep what decrypts."""

    @abstractmethod
    def plaintext(self, values: NDArray[np.int64]) -> Any:
        """The plaintext of one ciphertext's values; it may be overwritten by the next one."""

    def encrypt(self, values: NDArray[np.int64]) -> bytes:
        """A fresh ciphertext of one block of an operand, as SEAL writes it."""
        # Symmetric and not yet expanded: c1 travels as its seed, which halves the upload.
        return save_seal(self.encryptor.encrypt_symmetric(self.plaintext(values)))


@dataclass(frozen=True, eq=False)
class PublicKey(Message):
    """party_2 to party_1, once a session: its public key.

    Args:
        file: as SEAL writes it.
    """

    file: bytes

    kind = MessageKind.PUBLIC_KEY

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return [self.file]

    @classmethod
    def decode(cls, payload: Buffer) -> PublicKey:
        """See `Message`."""
        if not 0 < len(payload) <= _MAX_KEY_BYTES:
            raise LinkError(f"PUBLIC_KEY: {len(payload)} bytes, at most {_MAX_KEY_BYTES} are allowed")
        return cls(bytes(payload))


@dataclass(frozen=True, eq=False)
class OperandCiphertexts(Message):
    """party_2 to party_1, once an operand: up to 16 of its ciphertexts, in their order.

    Args:
        files: as SEAL writes them.
    """

    files: Sequence[bytes]

    kind = MessageKind.OPERAND_CIPHERTEXTS

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack({}, [np.frombuffer(file, np.uint8) for file in self.files])

    @classmethod
    def decode(cls, payload: Buffer) -> OperandCiphertexts:
        """See `Message`."""
        _, arrays = unpack(payload)
        if len(arrays) > PER_MESSAGE:
            raise LinkError(f"OPERAND_CIPHERTEXTS: {len(arrays)} ciphertexts, at most {PER_MESSAGE} are allowed")
        for array in arrays:
            if array.dtype != np.uint8 or array.ndim != 1 or not 0 < array.size <= _MAX_CIPHERTEXT_BYTES:
                raise LinkError(f"OPERAND_CIPHERTEXTS: {array.shape} {array.dtype} is not a ciphertext")
        return cls([array.tobytes() for array in arrays])


def send_operand(channel: Channel, cipher: FixedCipher, blocks: Iterable[NDArray[np.int64]]) -> None:
    """Encrypt and send the blocks of an operand; the public key goes before the first operand of a session."""
    if cipher.encryptor is None:
        PublicKey(cipher.make_keys()).send(channel)
    batch: list[bytes] = []
    for block in blocks:
        batch.append(cipher.encrypt(block))
        if len(batch) == PER_MESSAGE:
            OperandCiphertexts(batch).send(channel)
            batch = []
    if batch:
        OperandCiphertexts(batch).send(channel)


def receive_operand(channel: Channel, cipher: MovingCipher, count: int) -> Iterator[bytes]:
    """The `count` ciphertexts of an operand as they arrive; the public key comes before the first one of a session.

    Raises:
        LinkError: what arrived is not a key, or not the ciphertexts that are due.
    """
    if cipher.encryptor is None:
        cipher.set_key(PublicKey.receive(channel).file)
    for start in range(0, count, PER_MESSAGE):
        files, due = OperandCiphertexts.receive(channel).files, min(PER_MESSAGE, count - start)
        if len(files) != due:
            raise LinkError(f"OPERAND_CIPHERTEXTS: {len(files)} ciphertexts, {due} are due")
        yield from files
