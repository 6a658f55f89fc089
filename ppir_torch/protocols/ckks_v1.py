"""The published CKKS product, as a baseline: INSECURE and slow. Runs only where the configuration says so.

J in vectors of 128 values, each encrypted by TenSEAL (degree 4096, primes of 30+24+24+30 bits, scale 2^24); party_1
multiplies each vector by its plain matrix, which takes rotations and 9 MB of keys for them, and adds the products;
party_2 decrypts the sum and tells party_1 what it is (Taiello et al., Medical Image Analysis 2024: D = 128).

What is missing:
- party_1 is given CKKS decryptions with their noise, which is a function of party_2's key (Li and Micciancio, EUROCRYPT
  2021; tests/attacks/test_ckks_keys.py has the key from two of them, with every slot shared; here P slots are).
- the reply is neither masked nor flooded: party_2, who has the key, sees R, and 4,096 words of noise that are known
  linear functions of X (tests/attacks/test_ckks_reply.py has X from such noise at every pixel, where the reply is the
  product with one ciphertext), up to the little noise of the fresh encryption of zero that TenSEAL's product starts
  from. That one does hide X in c1.
`ckks` is what this becomes with that mended.

Results are approximate and not exact as those of the other protocols: their standard error is about 5e-6 |X|_2 |Y|_2,
24 bits of scale less the noise. They are rounded to integers only because the interface says so. Two things in favour
of the published one: J is encrypted once and not in every iteration, and rescaling is off, without which TenSEAL takes
the scale of a product for what it was before and is wrong by a factor of 1 + 2^-10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError, LinkError, RangeError
from ..joint.interface import (
    FixedSide,
    Into,
    Limits,
    MovingSide,
    OperandHeader,
    Pairs,
    ProtocolEntry,
    Release,
    all_pairs,
    check_no_map,
    check_operand,
    check_pairs,
    check_range,
)
from ..joint.public_map import PublicMap
from ..wire.kinds import MessageKind
from ..wire.link import Link, Received
from ..wire.payload import pack, unpack

__all__ = ["CHUNK", "ENTRY", "CkksV1FixedSide", "CkksV1MovingSide"]

DEGREE = 4096
PRIME_BITS = (30, 24, 24, 30)
SCALE = 2.0**24
CHUNK = 128
# A vector holds values of at most 1, and a sum of 2^28 of them is what the modulus has room for beside the scales.
MAX_POINTS = 1 << 28
MAX_ROW_BITS = 24
LIMITS = Limits(max_row=1 << MAX_ROW_BITS, max_result=1 << 48)

_MAX_KEY_BYTES = 1 << 24
_MAX_CIPHERTEXT_BYTES = 1 << 18
_PER_MESSAGE = 16


class CkksV1MovingSide(MovingSide):
    """party_1: vector times matrix under encryption, with rotations.

    Args:
        link: to party_2.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._context: Any = None
        self._header: OperandHeader | None = None
        self._vectors: list[Any] = []
        self.limits = LIMITS

    def accept_operand(self, header: OperandHeader, public_map: PublicMap | None = None) -> None:
        """Receive the public and rotation keys (first operand only) and the operand's vectors.

        Raises:
            RangeError: an operand that is too large.
            LinkError: what arrived is not a key or not the vectors of this header.
        """
        check_no_map(public_map, "ckks-v1")
        _check_header(header)
        if self._context is None:
            self._context = _receive_context(self._link)
        self._header, self._vectors = None, []
        count = header.columns * _chunks(header)
        while len(self._vectors) < count:
            due = min(_PER_MESSAGE, count - len(self._vectors))
            _, arrays = unpack(self._link.receive(MessageKind.OPERAND_CIPHERTEXTS).payload)
            if len(arrays) != due:
                raise LinkError(f"OPERAND_CIPHERTEXTS: {len(arrays)} vectors, {due} are due")
            self._vectors += [_vector(self._context, array, CHUNK, MessageKind.OPERAND_CIPHERTEXTS) for array in arrays]
        self._header = header

    def prefers_moments(self, points: int) -> bool:  # noqa: ARG002
        """The published product is of P + 1 rows."""
        return False

    def multiply(
        self,
        rows: Tensor,
        pairs: Pairs | None = None,
        used: Tensor | None = None,  # noqa: ARG002
        into: Into | None = None,
    ) -> Tensor:
        """The products (pairs,) of int64 rows (rows, points), about; int64.

        Raises:
            RangeError: rows beyond the limits; nothing was sent.
            LinkError: the answer is malformed.
        """
        if self._header is None:
            raise RuntimeError("multiply before accept_operand")
        if into is not None:
            raise ConfigError("backend ckks-v1: no sums of products, the published protocol has none")
        check_range(rows, self._header, self.limits)
        pairs = all_pairs(rows.shape[0], self._header.columns) if pairs is None else pairs
        pairs = check_pairs(pairs, rows.shape[0], self._header)
        exponents = torch.tensor([int(row.abs().max()).bit_length() for row in rows])
        scaled = torch.zeros(_chunks(self._header) * CHUNK, rows.shape[0], dtype=torch.float64)
        scaled[: rows.shape[1]] = (rows.cpu().double() * torch.exp2(-exponents.double())[:, None]).T
        matrices = list(scaled.numpy().reshape(-1, CHUNK, rows.shape[0]))
        replies = []
        for column in sorted({column for _, column in pairs}):
            vectors = self._vectors[column * len(matrices) : (column + 1) * len(matrices)]
            total = vectors[0].mm(matrices[0])
            for vector, matrix in zip(vectors[1:], matrices[1:], strict=True):
                total = total + vector.mm(matrix)
            replies.append(np.frombuffer(total.serialize(), np.uint8))
        asked = np.array(pairs, np.uint16)
        self._link.send(MessageKind.NAIVE_REPLY, pack({}, [asked, exponents.numpy().astype(np.uint8), *replies]))
        answer = self._link.receive(MessageKind.NAIVE_RESULT).payload
        if len(answer) != 8 * len(pairs):
            raise LinkError(f"NAIVE_RESULT: {len(answer)} bytes, {8 * len(pairs)} are due")
        values = torch.from_numpy(np.frombuffer(answer, np.float64).copy())
        if not bool((values.abs() < 2.0**62).all()):
            raise LinkError("NAIVE_RESULT: numbers below 2^62 are due")
        return values.round().to(torch.int64)


class CkksV1FixedSide(FixedSide):
    """party_2: holds the keys, encrypts its operand, decrypts results and hands them over.

    Args:
        link: to party_1.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._context: Any = None
        self._header: OperandHeader | None = None
        self.limits = LIMITS

    def send_operand(self, header: OperandHeader, values: Tensor, public_map: PublicMap | None = None) -> None:
        """Encrypt and send the operand, int64 (columns, points); the keys go before the first one.

        Raises:
            RangeError: the values are not those of the header, or too many; nothing was sent.
        """
        check_no_map(public_map, "ckks-v1")
        _check_header(header)
        table = check_operand(values, header).cpu().double() / max(header.max_abs, 1)
        import tenseal

        if self._context is None:
            self._context = _new_context()
            self._link.send(MessageKind.GALOIS_KEYS, self._context.serialize(True, False, True, False))
        padded = torch.zeros(header.columns, _chunks(header) * CHUNK, dtype=torch.float64)
        padded[:, : header.points] = table
        vectors = list(padded.reshape(-1, CHUNK).numpy())
        for start in range(0, len(vectors), _PER_MESSAGE):
            batch = [tenseal.ckks_vector(self._context, part) for part in vectors[start : start + _PER_MESSAGE]]
            arrays = [np.frombuffer(vector.serialize(), np.uint8) for vector in batch]
            self._link.send(MessageKind.OPERAND_CIPHERTEXTS, pack({}, arrays))
        self._header = header

    def answer(self, request: Received, release: Release) -> None:
        """Decrypt the sums of NAIVE_REPLY and send what was asked for.

        Raises:
            LinkError: another kind of message, or not of the agreed shape.
        """
        if self._header is None or request.kind is not MessageKind.NAIVE_REPLY:
            raise LinkError(f"{request.kind.name} is not due; refused")
        pairs, exponents, replies = _read_reply(request, self._header)
        columns = sorted({column for _, column in pairs})
        if len(replies) != len(columns):
            raise LinkError(f"NAIVE_REPLY: {len(replies)} results, {len(columns)} are due; refused")
        sums = {
            column: _vector(self._context, reply, len(exponents), MessageKind.NAIVE_REPLY)
            for column, reply in zip(columns, replies, strict=True)
        }
        noise = release(len(pairs)).double()
        decrypted = {column: vector.decrypt() for column, vector in sums.items()}
        steps = max(self._header.max_abs, 1) * np.exp2(exponents)
        values = torch.tensor([decrypted[column][row] * steps[row] for row, column in pairs], dtype=torch.float64)
        self._link.send(MessageKind.NAIVE_RESULT, (values + noise).numpy().tobytes())


def _new_context() -> Any:
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


def _receive_context(link: Link) -> Any:
    import tenseal

    payload = link.receive(MessageKind.GALOIS_KEYS).payload
    if not 0 < len(payload) <= _MAX_KEY_BYTES:
        raise LinkError(f"GALOIS_KEYS: {len(payload)} bytes, at most {_MAX_KEY_BYTES} are allowed")
    context = _read(lambda: tenseal.context_from(bytes(payload), torch.get_num_threads()), MessageKind.GALOIS_KEYS)
    if context.has_secret_key() or not context.has_galois_keys() or not context.has_public_key():
        raise LinkError("GALOIS_KEYS: public and rotation keys, and no others, are due; refused")
    context.auto_rescale = False
    return context


def _vector(context: Any, data: NDArray[Any], size: int, kind: MessageKind) -> Any:
    """A received vector of `size` values."""
    import tenseal

    if data.dtype != np.uint8 or data.ndim != 1 or not 0 < data.size <= _MAX_CIPHERTEXT_BYTES:
        raise LinkError(f"{kind.name}: {data.shape} {data.dtype} is not a vector; refused")
    vector = _read(lambda: tenseal.ckks_vector_from(context, data.tobytes()), kind)
    if vector.size() != size:
        raise LinkError(f"{kind.name}: a vector of {vector.size()}, {size} are due; refused")
    return vector


def _read(load: Callable[[], Any], kind: MessageKind) -> Any:
    try:
        return load()
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:
        raise LinkError(f"{kind.name}: bytes that TenSEAL refuses ({error})") from None


def _read_reply(
    request: Received, header: OperandHeader
) -> tuple[list[tuple[int, int]], NDArray[np.float64], list[NDArray[Any]]]:
    """(pairs, the exponent of each row's scale, the results' ciphertexts) of a NAIVE_REPLY."""
    _, arrays = unpack(request.payload)
    if len(arrays) < 3 or arrays[0].dtype != np.uint16 or arrays[1].dtype != np.uint8:
        raise LinkError("NAIVE_REPLY: pairs, exponents and results are due; refused")
    pairs, exponents, *replies = arrays
    if pairs.ndim != 2 or pairs.shape[1] != 2 or exponents.ndim != 1 or (exponents > MAX_ROW_BITS + 1).any():
        raise LinkError("NAIVE_REPLY: pairs of rows and columns, and the rows' scales, are due; refused")
    checked = check_pairs([(int(row), int(column)) for row, column in pairs], len(exponents), header)
    return checked, exponents.astype(np.float64), replies


def _chunks(header: OperandHeader) -> int:
    """Of one column."""
    return -(-header.points // CHUNK)


def _check_header(header: OperandHeader) -> None:
    if header.points > MAX_POINTS or header.rows > DEGREE // 2:
        raise RangeError(
            f"operand: {header.points} points, {header.rows} rows; at most {MAX_POINTS} and {DEGREE // 2} are possible"
        )


ENTRY = ProtocolEntry(
    name="ckks-v1",
    party_1_learns="INSECURE baseline: CKKS decryptions with their noise, which say something of party_2's key (Li and "
    "Micciancio 2021), besides the products of each iteration; per level the mean, scale and energy of J",
    party_2_learns="INSECURE baseline: the products of each iteration, the scale of each row, and many linear "
    "functions of X itself: the reply is neither masked nor flooded",
    moving_side=lambda link, _dealer, _device: CkksV1MovingSide(link),
    fixed_side=lambda link, _dealer, _device: CkksV1FixedSide(link),
)
