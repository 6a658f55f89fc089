"""The published CKKS product, as a baseline: INSECURE and slow. Runs only where the configuration says so.

J in vectors of 128 values, each encrypted by TenSEAL (degree 4096, primes of 30+24+24+30 bits, scale 2^24); party_1
multiplies each vector by its plain matrix, which takes rotations and 9 MB of keys for them, and adds the products;
party_2 decrypts the sum and tells party_1 what it is (Taiello et al., Medical Image Analysis 2024: D = 128).

What is missing, and which attack shows it, is in docs/protocols/ckks.md: party_1 is given CKKS decryptions with their
noise, and the reply is neither masked nor flooded. `ckks` is what this becomes with that mended.

Results are approximate and not exact as those of the other protocols: their standard error is about 5e-6 |X|_2 |Y|_2,
24 bits of scale less the noise. They are rounded to integers only because the interface says so. Two things in favour
of the published one: J is encrypted once and not in every iteration, and rescaling is off, without which TenSEAL takes
the scale of a product for what it was before and is wrong by a factor of 1 + 2^-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError, LinkError, RangeError
from ..joint.bounds import Limits, Pairs, check_operand, check_pairs
from ..joint.header import OperandHeader
from ..joint.interface import FixedOperand, FixedSide, MovingOperand, MovingSide, Product, Protocol, Release
from ..wire.channel import Channel, Received
from ..wire.kinds import MessageKind
from ..wire.messages import Message
from ..wire.payload import Buffer, pack, unpack

__all__ = ["CHUNK", "PROTOCOL", "CkksV1FixedSide", "CkksV1MovingSide"]

DEGREE = 4096
PRIME_BITS = (30, 24, 24, 30)
SCALE = 2.0**24
CHUNK = 128
# A vector holds values of at most 1, and a sum of 2^28 of them is what the modulus has room for beside the scales.
MAX_POINTS = 1 << 28
MAX_ROW_BITS = 24
LIMITS = Limits(max_row=1 << MAX_ROW_BITS, max_result=1 << 48)

MAX_KEY_BYTES = 1 << 24
MAX_CIPHERTEXT_BYTES = 1 << 18
_PER_MESSAGE = 16


@dataclass(frozen=True, eq=False)
class GaloisKeys(Message):
    """party_2 to party_1: its public and rotation keys, as TenSEAL writes them."""

    file: bytes

    kind = MessageKind.GALOIS_KEYS

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return [self.file]

    @classmethod
    def decode(cls, payload: Buffer) -> GaloisKeys:
        """See `Message`."""
        if not 0 < len(payload) <= MAX_KEY_BYTES:
            raise LinkError(f"{cls.kind.name}: {len(payload)} bytes, at most {MAX_KEY_BYTES} are allowed")
        return cls(bytes(payload))


@dataclass(frozen=True, eq=False)
class OperandVectors(Message):
    """party_2 to party_1: some of the operand's vectors, as TenSEAL writes them."""

    files: Sequence[NDArray[np.uint8]]

    kind = MessageKind.OPERAND_CIPHERTEXTS

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack({}, self.files)

    @classmethod
    def decode(cls, payload: Buffer) -> OperandVectors:
        """See `Message`."""
        return cls(_checked_files(unpack(payload)[1], cls.kind))


@dataclass(frozen=True, eq=False)
class NaiveReply(Message):
    """party_1 to party_2: result ciphertexts, neither masked nor flooded.

    Args:
        pairs: the products that are wanted.
        exponents: uint8 (rows,), 2^exponent is each row's scale.
        files: one vector a column that is asked for, as TenSEAL writes it.
    """

    pairs: Pairs
    exponents: NDArray[np.uint8]
    files: Sequence[NDArray[np.uint8]]

    kind = MessageKind.NAIVE_REPLY

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack({}, [np.array(self.pairs, np.uint16), self.exponents, *self.files])

    @classmethod
    def decode(cls, payload: Buffer) -> NaiveReply:
        """See `Message`."""
        _, arrays = unpack(payload)
        if len(arrays) < 3 or arrays[0].dtype != np.uint16 or arrays[1].dtype != np.uint8:
            raise LinkError("NAIVE_REPLY: pairs, exponents and results are due; refused")
        pairs, exponents, *files = arrays
        if pairs.ndim != 2 or pairs.shape[1] != 2 or exponents.ndim != 1 or (exponents > MAX_ROW_BITS + 1).any():
            raise LinkError("NAIVE_REPLY: pairs of rows and columns, and the rows' scales, are due; refused")
        return cls([(int(row), int(column)) for row, column in pairs], exponents, _checked_files(files, cls.kind))


@dataclass(frozen=True, eq=False)
class NaiveResult(Message):
    """party_2 to party_1: the decrypted products (pairs,), float64."""

    values: NDArray[np.float64]

    kind = MessageKind.NAIVE_RESULT

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return [self.values.tobytes()]

    @classmethod
    def decode(cls, payload: Buffer) -> NaiveResult:
        """See `Message`."""
        if len(payload) % 8:
            raise LinkError(f"{cls.kind.name}: {len(payload)} bytes, 8 a number are due")
        values = np.frombuffer(payload, np.float64)
        if not bool((np.abs(values) < 2.0**62).all()):
            raise LinkError(f"{cls.kind.name}: numbers below 2^62 are due")
        return cls(values)


class CkksV1MovingSide(MovingSide):
    """party_1: vector times matrix under encryption, with rotations.

    Args:
        channel: to party_2.
    """

    name = "ckks-v1"

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._context: Any = None

    def open(self, header: OperandHeader) -> CkksV1MovingOperand:
        """Receive the public and rotation keys (first operand only) and the operand's vectors.

        Raises:
            RangeError: an operand that is too large.
            LinkError: what arrived is not a key or not the vectors of this header.
        """
        _check_header(header)
        if self._context is None:
            self._context = read_context(GaloisKeys.receive(self.channel))
        count, vectors = header.columns * _chunks(header), list[Any]()
        while len(vectors) < count:
            due = min(_PER_MESSAGE, count - len(vectors))
            files = OperandVectors.receive(self.channel).files
            if len(files) != due:
                raise LinkError(f"OPERAND_CIPHERTEXTS: {len(files)} vectors, {due} are due")
            vectors += [read_vector(self._context, file, CHUNK, OperandVectors.kind) for file in files]
        return CkksV1MovingOperand(self, header, vectors)

    def prefers_moments(self, points: int) -> bool:  # noqa: ARG002
        """The published product is of P + 1 rows."""
        return False


class CkksV1MovingOperand(MovingOperand):
    """One operand at party_1: its encrypted vectors. Products are about right, int64."""

    def __init__(self, side: CkksV1MovingSide, header: OperandHeader, vectors: list[Any]) -> None:
        super().__init__(side, header, LIMITS)
        self._channel, self._vectors = side.channel, vectors

    def admit(self, product: Product) -> None:
        """Refuse sums of products; raises ConfigError."""
        if product.sum_index is not None:
            raise ConfigError("backend ckks-v1: no sums of products, the published protocol has none")

    def compute(self, product: Product) -> Tensor:
        """See `MovingOperand`."""
        rows, pairs = product.rows, product.pairs
        exponents = torch.tensor([int(row.abs().max()).bit_length() for row in rows])
        scaled = torch.zeros(_chunks(self.header) * CHUNK, rows.shape[0], dtype=torch.float64)
        scaled[: rows.shape[1]] = (rows.cpu().double() * torch.exp2(-exponents.double())[:, None]).T
        matrices = list(scaled.numpy().reshape(-1, CHUNK, rows.shape[0]))
        replies = []
        for column in sorted({column for _, column in pairs}):
            vectors = self._vectors[column * len(matrices) : (column + 1) * len(matrices)]
            total = vectors[0].mm(matrices[0])
            for vector, matrix in zip(vectors[1:], matrices[1:], strict=True):
                total = total + vector.mm(matrix)
            replies.append(np.frombuffer(total.serialize(), np.uint8))
        NaiveReply(pairs, exponents.numpy().astype(np.uint8), replies).send(self._channel)
        values = NaiveResult.receive(self._channel).values
        if len(values) != len(pairs):
            raise LinkError(f"NAIVE_RESULT: {8 * len(values)} bytes, {8 * len(pairs)} are due")
        return torch.from_numpy(values.copy()).round().to(torch.int64)


class CkksV1FixedSide(FixedSide):
    """party_2: holds the keys, encrypts its operand, decrypts results and hands them over.

    Args:
        channel: to party_1.
    """

    name = "ckks-v1"

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._context: Any = None

    def open(self, header: OperandHeader, values: Tensor) -> CkksV1FixedOperand:
        """Encrypt and send the operand, int64 (columns, points); the keys go before the first one.

        Raises:
            RangeError: the values are not those of the header, or too many; nothing was sent.
        """
        _check_header(header)
        table = check_operand(values, header).cpu().double() / max(header.max_abs, 1)
        import tenseal

        if self._context is None:
            self._context = new_context()
            GaloisKeys(self._context.serialize(True, False, True, False)).send(self.channel)
        padded = torch.zeros(header.columns, _chunks(header) * CHUNK, dtype=torch.float64)
        padded[:, : header.points] = table
        vectors = list(padded.reshape(-1, CHUNK).numpy())
        for start in range(0, len(vectors), _PER_MESSAGE):
            batch = [tenseal.ckks_vector(self._context, part) for part in vectors[start : start + _PER_MESSAGE]]
            OperandVectors([np.frombuffer(vector.serialize(), np.uint8) for vector in batch]).send(self.channel)
        return CkksV1FixedOperand(self.channel, header, self._context)


class CkksV1FixedOperand(FixedOperand):
    """One operand at party_2, which needs no more of it than its header, and the session's keys."""

    def __init__(self, channel: Channel, header: OperandHeader, context: Any) -> None:
        super().__init__(header, LIMITS)
        self._channel, self._context = channel, context

    def answer(self, request: Received, release: Release) -> None:
        """Decrypt the sums of NAIVE_REPLY and send what was asked for.

        Raises:
            LinkError: another kind of message, or not of the agreed shape.
        """
        if request.kind is not MessageKind.NAIVE_REPLY:
            raise LinkError(f"{request.kind.name} is not due; refused")
        asked = NaiveReply.decode(request.payload)
        pairs = check_pairs(asked.pairs, len(asked.exponents), self.header)
        columns = sorted({column for _, column in pairs})
        if len(asked.files) != len(columns):
            raise LinkError(f"NAIVE_REPLY: {len(asked.files)} results, {len(columns)} are due; refused")
        sums = {
            column: read_vector(self._context, file, len(asked.exponents), NaiveReply.kind)
            for column, file in zip(columns, asked.files, strict=True)
        }
        noise = release(len(pairs)).double()
        decrypted = {column: vector.decrypt() for column, vector in sums.items()}
        steps = max(self.header.max_abs, 1) * np.exp2(asked.exponents.astype(np.float64))
        values = torch.tensor([decrypted[column][row] * steps[row] for row, column in pairs], dtype=torch.float64)
        NaiveResult((values + noise).numpy()).send(self._channel)


def new_context() -> Any:
    """party_2's fresh keys."""
    import tenseal  # here, so that `import ppir_torch` stays light

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        DEGREE,
        coeff_mod_bit_sizes=list(PRIME_BITS),
        n_threads=torch.get_num_threads(),
    )
    context.global_scale = SCALE
    context.auto_rescale = False
    context.generate_galois_keys()
    return context


def read_context(keys: GaloisKeys) -> Any:
    """What party_1 computes with, of party_2's keys; raises LinkError where they are not public and rotation keys."""
    import tenseal

    context = _read(lambda: tenseal.context_from(keys.file, torch.get_num_threads()), keys.kind)
    if context.has_secret_key() or not context.has_galois_keys() or not context.has_public_key():
        raise LinkError("GALOIS_KEYS: public and rotation keys, and no others, are due; refused")
    context.auto_rescale = False
    return context


def read_vector(context: Any, file: NDArray[np.uint8], size: int, kind: MessageKind) -> Any:
    """A received vector of `size` values; raises LinkError where it is none."""
    import tenseal

    vector = _read(lambda: tenseal.ckks_vector_from(context, file.tobytes()), kind)
    if vector.size() != size:
        raise LinkError(f"{kind.name}: a vector of {vector.size()}, {size} are due; refused")
    return vector


def _checked_files(arrays: Sequence[NDArray[Any]], kind: MessageKind) -> list[NDArray[np.uint8]]:
    for data in arrays:
        if data.dtype != np.uint8 or data.ndim != 1 or not 0 < data.size <= MAX_CIPHERTEXT_BYTES:
            raise LinkError(f"{kind.name}: {data.shape} {data.dtype} is not a vector; refused")
    return list(arrays)


def _read(load: Callable[[], Any], kind: MessageKind) -> Any:
    try:
        return load()
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:
        raise LinkError(f"{kind.name}: bytes that TenSEAL refuses ({error})") from None


def _chunks(header: OperandHeader) -> int:
    """Of one column."""
    return -(-header.points // CHUNK)


def _check_header(header: OperandHeader) -> None:
    if header.points > MAX_POINTS or header.rows > DEGREE // 2:
        raise RangeError(
            f"operand: {header.points} points, {header.rows} rows; at most {MAX_POINTS} and {DEGREE // 2} are possible"
        )


PROTOCOL = Protocol(
    name="ckks-v1",
    moving_side=lambda channel, _dealer, _device: CkksV1MovingSide(channel),
    fixed_side=lambda channel, _dealer, _device: CkksV1FixedSide(channel),
    product_kinds=(MessageKind.NAIVE_REPLY,),
    result_bits=36,
)
