"""How the coefficients of operands and rows are packed into polynomials: common to `bfv` and `ckks`.

Packing (Cheetah: Huang et al., USENIX Security 2022): with blocks of L = n / group points,
    y(x) = sum_i Y[i] x^i,   w(x) = sum_k x^(kL) sum_i X[k, i] x^(L-1-i)
have (w y)[kL + L-1] = sum_i X[k, i] Y[i] for each of the `group` rows k side by side; no other term falls there.

>>> import torch
>>> layout = Layout(group=2, block=4096, blocks=3, columns=1)
>>> layout.ciphertexts, layout.position(0), layout.position(1)
(3, 4095, 8191)
>>> layout.blocks_with(torch.tensor([5, 4096, 4097]))
[0, 1]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...joint.header import OperandHeader

__all__ = ["DEGREE", "Layout", "layout_of"]

DEGREE = 8192  # n
_SMALL_UPLOAD = 12_000_000  # bytes of an operand that are cheap, once a level
_EXPECTED_PRODUCTS = 10  # with one operand


@dataclass(frozen=True)
class Layout:
    """`group` rows side by side, each column in `blocks` ciphertexts of n / group points.

    Attributes:
        group: rows that share a polynomial.
        block: points of a row in a polynomial.
        blocks: ciphertexts of a column.
        columns: of the operand.
    """

    group: int
    block: int
    blocks: int
    columns: int

    @property
    def ciphertexts(self) -> int:
        """Of the whole operand; those of one column follow each other."""
        return self.blocks * self.columns

    def blocks_with(self, positions: Tensor | None) -> list[int]:
        """The blocks of a column that hold any of these positions; None: all. The others are skipped by a product.

        Skipping ciphertexts shows in the time that a product takes. That is safe for a window of the public random
        order (chunks), which says nothing of an image, and unsafe for points chosen by the gradient (gms), which would
        tell party_2 where the moving image has its edges: for those the caller must give None.
        """
        if positions is None:
            return list(range(self.blocks))
        return sorted(set((positions // self.block).tolist()))

    def position(self, place: int) -> int:
        """The coefficient of the product polynomial that holds the row at this place of a group."""
        return place * self.block + self.block - 1


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
