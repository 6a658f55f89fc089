"""How encrypted operands are packed and sent: common to `bfv` and `ckks`.

Packing (Cheetah: Huang et al., USENIX Security 2022): with blocks of L = n / group points,
    y(x) = sum_i Y[i] x^i,   w(x) = sum_k x^(kL) sum_i X[k, i] x^(L-1-i)
have (w y)[kL + L-1] = sum_i X[k, i] Y[i] for each of the `group` rows k side by side; no other term falls there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...errors import LinkError
from ...joint.interface import OperandHeader, check_into
from ...wire.kinds import MessageKind
from ...wire.link import Link
from ...wire.payload import unpack

__all__ = ["DEGREE", "PER_MESSAGE", "Layout", "layout_of", "read_into", "receive_files", "receive_key"]

DEGREE = 8192  # n
PER_MESSAGE = 16
_MAX_CIPHERTEXT_BYTES = 1 << 18
_MAX_KEY_BYTES = 1 << 20
_SMALL_UPLOAD = 12_000_000
_EXPECTED_PRODUCTS = 10


@dataclass(frozen=True)
class Layout:
    """`group` rows side by side, each column in `blocks` ciphertexts of n / group points."""

    group: int
    block: int
    blocks: int
    columns: int

    @property
    def ciphertexts(self) -> int:
        """Of the whole operand; those of one column follow each other."""
        return self.blocks * self.columns

    def used_blocks(self, positions: Tensor | None) -> list[int]:
        """The blocks of a column that hold any of these positions; None: all."""
        if positions is None:
            return list(range(self.blocks))
        return sorted(set((positions // self.block).tolist()))

    def position(self, slot: int) -> int:
        """The coefficient of the product polynomial that holds row `slot` of a group."""
        return slot * self.block + self.block - 1


def layout_of(header: OperandHeader, reply_bytes: int, ciphertext_bytes: int) -> Layout:
    """The packing of an operand, which both sides derive from its header.

    More rows per ciphertext make replies smaller and the one-time upload larger.

    Args:
        header: of the operand.
        reply_bytes: of one ciphertext of a reply.
        ciphertext_bytes: of one ciphertext of the operand.
    """
    upload = header.columns * header.points / DEGREE * ciphertext_bytes
    best = math.sqrt(header.rows * header.columns * _EXPECTED_PRODUCTS * reply_bytes / upload)
    group = 1
    while group < min(header.rows, DEGREE // 2) and (2 * group <= best or 2 * group * upload <= _SMALL_UPLOAD):
        group *= 2
    block = DEGREE // group
    return Layout(group, block, -(-header.points // block), header.columns)


def receive_key(link: Link) -> bytes:
    """party_2's public key as SEAL wrote it; raises LinkError where it is too long."""
    payload = link.receive(MessageKind.PUBLIC_KEY).payload
    if not 0 < len(payload) <= _MAX_KEY_BYTES:
        raise LinkError(f"PUBLIC_KEY: {len(payload)} bytes, at most {_MAX_KEY_BYTES} are allowed")
    return bytes(payload)


def receive_files(link: Link, due: int) -> list[bytes]:
    """The next `due` ciphertexts of an operand as SEAL wrote them; raises LinkError where they cannot be that."""
    _, arrays = unpack(link.receive(MessageKind.OPERAND_CIPHERTEXTS).payload)
    if len(arrays) != due:
        raise LinkError(f"OPERAND_CIPHERTEXTS: {len(arrays)} ciphertexts, {due} are due")
    for array in arrays:
        if array.dtype != np.uint8 or array.ndim != 1 or not 0 < array.size <= _MAX_CIPHERTEXT_BYTES:
            raise LinkError(f"OPERAND_CIPHERTEXTS: {array.shape} {array.dtype} is not a ciphertext")
    return [array.tobytes() for array in arrays]


def read_into(payload: memoryview, count: int) -> NDArray[np.uint16]:
    """The result that each of `count` words goes into, as it ends a REPLY_CIPHERTEXTS; nothing: each into its own."""
    if len(payload) == 0:
        return np.arange(count, dtype=np.uint16)
    into = np.frombuffer(payload, np.uint16).tolist()
    return np.array(check_into(into, count), np.uint16)
