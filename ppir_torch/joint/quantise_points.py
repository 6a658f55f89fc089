"""Point sets as integers: columns of party_2's points and rows of party_1's, as fine as a protocol's results allow.

>>> z = torch.tensor([[3.0, 0.0], [-3.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
>>> header, values = quantise_fixed(z, result_bits=62, tells_spread=True)
>>> bool(((values.T.double() * header.scale - z).abs() <= header.scale).all()), header.columns
(True, 2)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import RangeError
from .bounds import Limits
from .header import OperandHeader

__all__ = ["quantise_fixed", "quantise_moving"]

TYPICAL_BITS = 22  # of an entry of rows or columns, where the protocol has room
BALANCED_POINTS = 20_000  # whose rounding is chosen so that its moments cancel; more do not cancel better
STEPS = 4  # of the ladder 2^(k/4) on which the columns' scale is chosen


def quantise_fixed(centred: Tensor, result_bits: int, tells_spread: bool) -> tuple[OperandHeader, Tensor]:
    """(public header, Y int64 (D, n)) with Z^T about scale Y, and |Y|_2 as large as the protocol's results allow.

    The scale follows from n and from the next power of 2^(1/4) above |Z|_2; `energy` is |Y|_2^2, or, where that is not
    disclosed, a bound that follows from n alone.

    Args:
        centred: Z (n, D) mm.
        result_bits: about log2 of the largest result that the protocol carries.
        tells_spread: whether the header may say |Y|_2^2.

    Raises:
        RangeError: more points than such results have room for.
    """
    count, dimension = centred.shape
    above = 2.0 ** (math.ceil(STEPS * math.log2(float(centred.square().sum().sqrt())) + 1e-9) / STEPS)
    room = result_bits - math.log2(count)  # a typical row entry and column entry
    bits = min(room / 2, TYPICAL_BITS)
    if room - bits < 4:
        raise RangeError(f"point sets: {count} points are more than results of {result_bits} bits carry")
    longest = 2.0**bits * math.sqrt(count)
    scale = above / longest
    values = _balanced_rounding(centred / scale).T.contiguous()
    bound = math.ceil((longest + math.sqrt(count * dimension)) ** 2)
    header = OperandHeader(
        number=0,
        points=count,
        rows=dimension,
        scale=scale,
        offset=0.0,
        max_abs=math.ceil(longest) + 2,
        energy=int(values.square().sum()) if tells_spread else bound,
        columns=dimension,
        further_scales=(scale,) * (dimension - 1),
    )
    return header, values


def quantise_moving(centred: Tensor, header: OperandHeader, limits: Limits) -> tuple[Tensor, float]:
    """(X int64 (D, n), s) with X about s Q^T, as fine as no product of theirs can overflow.

    Args:
        centred: Q (n, D) mm.
        header: of party_2's columns.
        limits: of the protocol.

    Raises:
        RangeError: there is no room for rows at all.
    """
    count = len(centred)
    longest = min(
        0.999 * limits.max_result / math.sqrt(max(header.energy, 1)),
        0.999 * limits.max_norm,
        2.0**TYPICAL_BITS * math.sqrt(count),
    )
    room, most = longest - math.sqrt(count), 0.999 * limits.max_row - 1
    if min(room / math.sqrt(count), most) < 16:
        raise RangeError(f"point sets: {count} points leave no room in results of at most {limits.max_result}")
    scale = min(room / float(centred.square().sum(0).max().sqrt()), most / float(centred.abs().max()))
    return _balanced_rounding(centred * scale).T.contiguous(), scale


def _balanced_rounding(values: Tensor) -> Tensor:
    """Integers (n, D) within 1 of float64 values Y (n, D), up or down such that Y^T (integers - Y) nearly vanishes.

    The other set is about A y: what rounding does to Q^T Z is then about A times this sum, which in plain rounding
    grows with sqrt(n), or with n where points lie on a lattice. The rest of it meets only the residual. Error feedback
    as in sigma-delta modulation, the points nearest to the centre last: those move the sum least.
    """
    integers = values.round()
    order = values.square().sum(1).argsort(descending=True)
    chosen = order[:: -(-len(order) // BALANCED_POINTS)]
    error = values.T @ (integers - values)  # (D of the moment, D of the column)
    exact, rounded = values[chosen].numpy(), integers[chosen].numpy()
    sums = (error - values[chosen].T @ (integers[chosen] - values[chosen])).numpy()
    low = np.floor(exact)
    for point, (whole, below) in enumerate(zip(exact, low, strict=True)):
        down = sums + np.outer(whole, below - whole)
        up = down + whole[:, None]
        higher = (up * up).sum(0) < (down * down).sum(0)
        rounded[point] = below + higher
        sums = np.where(higher, up, down)
    integers[chosen] = torch.from_numpy(rounded)
    return integers.to(torch.int64)
