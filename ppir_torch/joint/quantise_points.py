"""Rigid alignment of two point sets with a known order, where neither party sees the other's points.

party_1 holds the moving points Q (n, D), party_2 the fixed points Z (n, D), both centred on their means. Only Q^T Z,
D x D numbers, is joint (`points.rigid_from_moments`): one product of any exact protocol, rows from Q, columns from Z.
party_2 discloses beside it its centre (D numbers) and one number of its size. n is public.

    HELLO <-> HELLO, LEVEL (n, D) ->, <- OPERAND (header, centre), one product of the protocol, FINISH ->
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, LinkError, RangeError
from ..joint.interface import FixedSide, Limits, MovingSide, OperandHeader
from ..points.files import registered_rms, rigid_from_moments
from ..wire.kinds import MessageKind
from ..wire.link import Link, Received
from ..wire.payload import pack, unpack
from .fixed import PRODUCT_KINDS
from .moving import greet

__all__ = [
    "Alignment",
    "FixedPoints",
    "MovingPoints",
    "UnequalSets",
    "point_set_identity",
    "quantise_fixed",
    "quantise_moving",
    "released_values",
]

LARGEST_MM = 1e9
TYPICAL_BITS = 22  # of an entry of rows or columns, where the protocol has room
RESULT_BITS = {"bfv": 36, "ckks": 48, "beaver": 62, "spdz": 62}  # about log2 of the largest |R|
LEAST_RESULT_BITS = 36
BALANCED_POINTS = 20_000  # whose rounding is chosen so that its moments cancel; more do not cancel better
STEPS = 4  # of the ladder 2^(k/4) on which the columns' scale is chosen
REFINEMENTS = 3


class UnequalSets(ConfigError):
    """The two sets differ in number or dimension, which are public: both parties may read why the run stops."""


@dataclass(frozen=True)
class Alignment:
    """What party_1 ends with.

    Attributes:
        matrix: (D, D) float64.
        offset: (D,) mm; fixed points to moving points, y = matrix x + offset.
        rms: root mean square distance that is left, mm; None where party_2 does not disclose its spread.
        count: n.
    """

    matrix: Tensor
    offset: Tensor
    rms: float | None
    count: int


class MovingPoints:
    """party_1: its points, and the rotation it computes from the opened moments.

    Args:
        points: (n, D) mm, in the order of party_2's.
        with_scale: whether a similarity is wanted.

    Raises:
        ConfigError: too few points to be private, or all on one place. RangeError: coordinates beyond 10^9 mm.
    """

    def __init__(self, points: Tensor, with_scale: bool = False) -> None:
        self.centre, self._rows = _centred(points)
        self._with_scale = with_scale

    def align(self, link: Link, side: MovingSide, protocol: str, share: bool = False) -> Alignment:
        """One session with party_2; `share` tells it the transform at the end.

        Raises:
            ConfigError: the moments leave the rotation open. RangeError: the product could overflow; it was not sent.
            LinkError: a message that is not allowed here. PeerLost: party_2 is gone, or the sets are not equal.
        """
        count, dimension = self._rows.shape
        greet(link, _name(protocol))
        link.at(0, -1)
        link.send(MessageKind.LEVEL, pack({"points": count, "dimension": dimension}))
        meta, _ = unpack(link.receive(MessageKind.OPERAND).payload)
        header, centre, spread = _read_operand(meta, count, dimension)
        side.accept_operand(header)
        integers, scale = quantise_moving(self._rows, header, side.limits)
        link.at(0, 0)
        exact = side.multiply(integers).cpu().double().reshape(dimension, dimension)
        found = self._align(exact * (header.scale / scale), integers.T.double() / scale, centre, spread)
        shared = {"matrix": found.matrix.tolist(), "offset_mm": found.offset.tolist()} if share else None
        link.send(MessageKind.FINISH, pack({"transform": shared}))
        return found

    def _align(self, cross: Tensor, carried: Tensor, centre: Tensor, spread: float | None) -> Alignment:
        """From Q'^T Z', Q' = `carried` the rounded rows. The rounding of Q is party_1's to know: Q^T Z is Q'^T Z plus
        (Q - Q')^T Z, and Z is about Q A^-T, so that rounding meets the residual and not the points themselves.
        """
        count, variance = len(self._rows), float(self._rows.square().sum())
        rest, refined = self._rows - carried, cross
        matrix, offset = rigid_from_moments(cross, self.centre, centre, variance, self._with_scale)
        for _ in range(REFINEMENTS):
            refined = cross + rest.T @ torch.linalg.solve(matrix, self._rows.T).T
            matrix, offset = rigid_from_moments(refined, self.centre, centre, variance, self._with_scale)
        # `spread` is that of the rounded Z' in the product, so that their small difference is not lost in rounding.
        rms = None if spread is None else registered_rms(matrix, refined, variance, spread, count)
        return Alignment(matrix, offset, rms, count)


@dataclass
class FixedPoints:
    """party_2: its points, and what it agreed to disclose.

    Args:
        points: (n, D) mm.
        disclose_spread: whether party_1 may learn |Z|^2, for the residual; else a power of 2^(1/4) above |Z|.
        charge: called with (count, kind) before values are released; raises where the cap would be passed.

    Raises:
        ConfigError: too few points to be private, or all on one place. RangeError: coordinates beyond 10^9 mm.
    """

    points: Tensor
    disclose_spread: bool = True
    charge: Callable[[int, str], None] | None = None
    _left: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._centre, self._columns = _centred(self.points)

    def serve(self, link: Link, side: FixedSide, protocol: str) -> dict[str, Any] | None:
        """Answer party_1's one product; returns the transform where party_1 shares it, else None.

        Raises:
            UnequalSets: the sets differ in number or dimension; nothing of this one was sent.
            LinkError: a message that is not allowed here. PeerLost: party_1 is gone.
            BudgetExceeded: the cap of released values would be passed; nothing was sent.
        """
        count, dimension = self._columns.shape
        greet(link, _name(protocol))
        request = link.receive(MessageKind.LEVEL)
        link.at(request.level, request.iteration)
        asked = _read_request(request)
        if asked != (count, dimension):
            raise UnequalSets(
                f"point sets: party_1 has {asked[0]} {asked[1]}-D points and party_2 {count} {dimension}-D points; "
                "the same number, in the same order, is needed"
            )
        header, values = quantise_fixed(self._columns, protocol, self.disclose_spread)
        if self.charge is not None:  # all of it at once: what the cap does not allow in full is not begun
            self.charge(released_values(dimension), "points")
        self._left = dimension * dimension
        extra = {"centre": self._centre.tolist(), "spread": self.disclose_spread}
        link.send(MessageKind.OPERAND, pack({**header.to_meta(), **extra}))
        side.send_operand(header, values)
        message = link.receive(*PRODUCT_KINDS)
        link.at(message.level, message.iteration)
        side.answer(message, self._release)
        meta, _ = unpack(link.receive(MessageKind.FINISH).payload)
        shared: dict[str, Any] | None = meta.get("transform")
        return shared

    def _release(self, count: int) -> Tensor:
        if count > self._left:
            raise LinkError(f"product of {count} values, {self._left} are due; refused")
        self._left -= count
        return torch.zeros(count, dtype=torch.int64)


def released_values(dimension: int) -> int:
    """How many numbers of its points party_2 releases in a run: D x D moments, D of its centre, one of its size."""
    return dimension * dimension + dimension + 1


def quantise_fixed(centred: Tensor, protocol: str, disclose_spread: bool) -> tuple[OperandHeader, Tensor]:
    """(public header, Y int64 (D, n)) with Z^T about scale Y, and |Y|_2 as large as the protocol's results allow.

    The scale follows from n and from the next power of 2^(1/4) above |Z|_2; `energy` is |Y|_2^2, or, where that is not
    disclosed, a bound that follows from n alone.

    Args:
        centred: Z (n, D) mm.
        protocol: its name.
        disclose_spread: whether the header may say |Y|_2^2.

    >>> z = torch.tensor([[3.0, 0.0], [-3.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    >>> header, values = quantise_fixed(z, "spdz", True)
    >>> bool(((values.T.double() * header.scale - z).abs() <= header.scale).all()), header.columns
    (True, 2)
    """
    count, dimension = centred.shape
    above = 2.0 ** (math.ceil(STEPS * math.log2(float(centred.square().sum().sqrt())) + 1e-9) / STEPS)
    room = RESULT_BITS.get(protocol, LEAST_RESULT_BITS) - math.log2(count)  # a typical row entry and column entry
    bits = min(room / 2, TYPICAL_BITS)
    if room - bits < 4:
        raise RangeError(f"point sets: {count} points are more than backend {protocol} carries")
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
        energy=int(values.square().sum()) if disclose_spread else bound,
        columns=dimension,
        further_scales=(scale,) * (dimension - 1),
    )
    return header, values


def quantise_moving(centred: Tensor, header: OperandHeader, limits: Limits) -> tuple[Tensor, float]:
    """(X int64 (D, n), s) with X about s Q^T, as fine as no product of theirs can overflow.

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


def point_set_identity(points: Tensor) -> str:
    """SHA-256, in hexadecimal digits, of a point set in any order: one cap for all of them."""
    rows = sorted(points.detach().cpu().double().tolist())
    return hashlib.sha256(json.dumps(["points", rows]).encode()).hexdigest()


def _name(protocol: str) -> str:
    # A party with an image and one with points do not greet each other.
    return f"points, {protocol}"


def _centred(points: Tensor) -> tuple[Tensor, Tensor]:
    """(mean (D,), points less their mean (n, D)), checked before anything is sent."""
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ConfigError(f"point set: {tuple(points.shape)}, (n, 2) or (n, 3) is needed")
    count, dimension = points.shape
    exact = points.detach().cpu().double()
    largest = float(exact.abs().max()) if count else 0.0
    if not largest <= LARGEST_MM:  # NaN as well
        raise RangeError(f"point set: a coordinate of {largest:.3g} mm, at most {LARGEST_MM:.0g} mm is allowed")
    least = -(-2 * released_values(dimension) // dimension)
    if count < least:
        raise ConfigError(
            f"point set: {count} points, at least {least} {dimension}-D ones are needed in private: of fewer, the "
            f"{released_values(dimension)} numbers that party_2 releases would give away half of the coordinates"
        )
    centre = exact.mean(0)
    centred = exact - centre
    if float(centred.abs().max()) <= 1e-12 * max(largest, 1e-3):
        raise ConfigError("point set: all points are in one place; their rotation is not determined")
    return centre, centred


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


def _read_request(request: Received) -> tuple[int, int]:
    meta, arrays = unpack(request.payload)
    count, dimension = meta.get("points"), meta.get("dimension")
    if set(meta) != {"points", "dimension"} or arrays or type(count) is not int or type(dimension) is not int:
        raise LinkError(f"{request.kind.name}: the number and dimension of points are due; refused")
    return count, dimension


def _read_operand(meta: dict[str, Any], count: int, dimension: int) -> tuple[OperandHeader, Tensor, float | None]:
    """(header, party_2's centre (D,), its |Z|^2 in mm^2 where it says so)."""
    header, centre = OperandHeader.from_meta(meta), meta.get("centre")
    wanted = (count, dimension, dimension)
    if (header.points, header.rows, header.columns) != wanted or len(set(header.scales)) != 1:
        raise LinkError(f"operand of points, rows and columns {header}, {wanted} and one scale were asked for")
    if not isinstance(centre, list) or len(centre) != dimension or not all(type(v) is float for v in centre):
        raise LinkError(f"operand: centre {str(centre)[:60]}, {dimension} numbers are due")
    if not all(abs(v) <= LARGEST_MM for v in centre) or type(meta.get("spread")) is not bool:
        raise LinkError("operand: a centre out of range, or no word about the spread; refused")
    spread = header.energy * header.scale**2 if meta["spread"] else None
    return header, torch.tensor(centre, dtype=torch.float64), spread
