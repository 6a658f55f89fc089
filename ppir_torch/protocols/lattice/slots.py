"""Slots modulo a prime t: how an operand's points lie in them, and the public map of shares. Common to `bfv`, `ckks`.

    R = B^T (X[d] * Y) for the rows of party_1's gradient, and X[-1] . Y     (see `PublicMap`)

t = 1 mod 2n, so that a polynomial modulo t is n values, one for each root of x^n + 1, which add and multiply one by
one. Shares of them add up modulo t; each party maps its own, exactly.

>>> layout = SlotLayout(channels=2, points=10_000)
>>> layout.blocks, layout.ciphertexts, len(layout.part(np.arange(20_000), 3))
(2, 4, 1809)
>>> slots_of(np.array([5, -1]), last=1)[[0, 1, 2, -1]].tolist() == [5, SLOT_MODULUS - 1, 0, 1]
True
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...arithmetic.csprng import KeyStream
from ...errors import RangeError
from ...joint.bounds import Limits
from ...joint.header import OperandHeader
from ...joint.public_map import MOST_BITS, PublicMap
from .packing import DEGREE
from .seal_format import Words

__all__ = [
    "FRESH_NOISE",
    "MAX_RESULT",
    "MAX_ROW",
    "POINTS",
    "PRIMES",
    "SLOT_MODULUS",
    "SPECIAL",
    "WIDTH",
    "SlotLayout",
    "mapped_sums",
    "slot_bits",
    "slot_limits",
    "slots_of",
    "uniform_words",
]

# The largest primes of their size that are 1 modulo 2n: t, those of q, and SEAL's special one. 60 + 60 + 60 + 20 = 200
# bits, where SEAL's 128-bit table allows 218.
SLOT_MODULUS = (1 << 48) - 16383
PRIMES = ((1 << 60) - 16383, (1 << 60) - 98303, (1 << 60) - 163839)
SPECIAL = (1 << 20) - 16383
FRESH_NOISE = 34  # |sum w_j e_j| / |w|_2 of SEAL's errors e, passed with probability below 2^-78 (Hoeffding)
MAX_RESULT = SLOT_MODULUS // 2 - SLOT_MODULUS // 32  # |R|; the rest is room for the noise that party_2 may add
MAX_ROW = 1 << MOST_BITS
POINTS = DEGREE - 1  # of a ciphertext
WIDTH = 48  # of words modulo t on the wire

_MAX_SUM = 1 << 37  # of a map's weights: words are mapped in parts of 24 or 16 bits, exactly in float64


@dataclass(frozen=True)
class SlotLayout:
    """An operand in slots: each channel's points, 8191 to a ciphertext; a map's replies are those of one channel.

    Attributes:
        channels: C.
        points: of a channel.
    """

    channels: int
    points: int

    @classmethod
    def of(cls, public_map: PublicMap) -> SlotLayout:
        """Of the points of a map."""
        return cls(public_map.channels, public_map.points // public_map.channels)

    @property
    def blocks(self) -> int:
        """Ciphertexts of a channel."""
        return -(-self.points // POINTS)

    @property
    def ciphertexts(self) -> int:
        """Of the operand, the blocks of one channel after the other."""
        return self.channels * self.blocks

    def part(self, values: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """What ciphertext `number` holds of values (points of all channels,)."""
        channel, block = divmod(number, self.blocks)
        start = channel * self.points
        return values[start + block * POINTS : start + min((block + 1) * POINTS, self.points)]

    def joined(self, slots: list[Words]) -> Tensor:
        """The slots (n,) of one row's blocks as points of a channel, int64 (points,)."""
        return torch.from_numpy(np.concatenate([s[:POINTS] for s in slots])[: self.points].astype(np.int64))


def slot_limits(header: OperandHeader, public_map: PublicMap) -> Limits:
    """The largest rows whose mapped products stay within MAX_RESULT; RangeError where there are none."""
    if (header.columns, header.points) != (1, public_map.points) or header.rows < 2:
        raise RangeError(
            f"operand: {header.columns} x {header.points} points and {header.rows} rows, "
            f"1 x {public_map.points} and two rows at least go with its map"
        )
    most = MAX_RESULT // (max(header.max_abs, 1) * public_map.largest_sum)
    if most < 1 or public_map.largest_sum > _MAX_SUM:
        raise RangeError(
            f"operand: values up to {header.max_abs} and weights up to {public_map.largest_sum} in sum leave no room "
            f"in results of at most {MAX_RESULT}; take a smaller control spacing"
        )
    return Limits(max_row=MAX_ROW, max_result=MAX_RESULT)


def slot_bits(public_map: PublicMap) -> tuple[int, int]:
    """See `FixedSide.mapped_bits`."""
    return public_map.bits_within(MAX_RESULT)


def slots_of(values: NDArray[np.int64], last: int) -> NDArray[np.int64]:
    """Up to 8191 values modulo t, zeros, and `last` in the last slot: (n,)."""
    out = np.zeros(DEGREE, np.int64)
    out[: len(values)] = np.where(values < 0, values + SLOT_MODULUS, values)
    out[-1] = last
    return out


def mapped_sums(slots: list[Words], rows: int, layout: SlotLayout, public_map: PublicMap) -> Tensor:
    """The map of shares modulo t, exactly: int64 (results,) in [0, t).

    Args:
        slots: of each block each row but the last (n,), then those of the last row's sum.
        rows: of the product.
    """
    fields = torch.stack([layout.joined(slots[row : -1 : rows - 1]) for row in range(rows - 1)])
    one = replace(public_map, channels=1, unit=1.0)
    bits = 24 if one.largest_sum <= 1 << 29 else 16
    mapped = torch.zeros(rows - 1, public_map.count, dtype=torch.int64)
    for shift in range(WIDTH - bits, -1, -bits):  # the upper parts first
        for _ in range(bits // 8):
            mapped = (mapped << 8) % SLOT_MODULUS
        part = one.adjoint(fields >> shift & (1 << bits) - 1)  # whole numbers up to 2^53
        mapped = (mapped + part.to(torch.int64)) % SLOT_MODULUS
    total = int(slots[-1][:POINTS].sum()) % SLOT_MODULUS  # fewer than 2^13 words below 2^48
    return torch.cat([mapped.flatten(), torch.tensor([total])])


def uniform_words(stream: KeyStream, purpose: str, number: int, bound: int) -> Words:
    """(n,) uniform words below a bound that is just under a power of two: what is above it is drawn again."""
    bits = np.uint64((1 << bound.bit_length()) - 1)
    words = stream.words(purpose, number, (DEGREE,)).view(np.uint64) & bits
    again = 0
    while (above := words >= bound).any():
        again += 1
        words[above] = stream.words(f"{purpose}, draw {again}", number, (DEGREE,)).view(np.uint64)[above] & bits
    return words
