"""What a protocol is: exact integer products of party_1's rows with the columns of party_2's operand.

    R[i] = X[r_i] . Y[c_i]   for the pairs (r_i, c_i) that party_1 asks for, and for no other pair

X: (rows, points) int64 of party_1, Y: (columns, points) int64 of party_2, R: (pairs,) int64 for party_1. Where party_1
wants sums of products only (`into`), party_2 adds up what is still masked, and no product is opened by itself.

A further protocol is one new file with a `MovingSide`, a `FixedSide`, where needed a dealer, an `ENTRY`, its name in
`PROTOCOL_NAMES` (joint/__init__.py). Losses, transforms, optimisers and parties do not change.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, LinkError, RangeError
from ..wire.link import Link, Received
from .public_map import MOST_BITS, PublicMap

__all__ = [
    "COLUMN_BITS",
    "PART",
    "ROW_BITS",
    "FixedSide",
    "Into",
    "Limits",
    "MovingSide",
    "OperandHeader",
    "Pairs",
    "ProtocolEntry",
    "Release",
    "add_up",
    "all_pairs",
    "check_into",
    "check_mapped",
    "check_no_map",
    "check_operand",
    "check_pairs",
    "check_range",
    "check_sums",
    "compute_device",
    "euclidean_norms",
    "largest_sum",
    "release_all",
]

COLUMN_BITS = 12
ROW_BITS = 14  # of a typical entry of a row, at most
LARGEST_MAPPED = 1 << 62  # |R| of mapped products in words of 64 bits; the rest is room for the noise
_MAPPED = "backend beaver, spdz, bfv or ckks is needed for them"
PART = 1 << 15

Pairs = Sequence[tuple[int, int]]
"""(row, column) of each product that is opened."""

Into = Sequence[int]
"""Which result, 0, 1, ..., each product is added to."""

Release = Callable[[int], Tensor]
"""Called by party_2 before it releases `count` values: charges its cap (or raises) and returns the noise to add,
int64 (count,), zeros where the site adds none."""


@dataclass(frozen=True)
class OperandHeader:
    """The public numbers of one operand, sent by party_2 once per level; J is about `offset + scale * Y[0]`.

    Attributes:
        number: counts the operands of a session.
        points: N.
        rows: the largest number of rows of one product; fixes how ciphertexts are packed.
        scale: intensity of one integer step of the first column.
        offset: the subtracted constant.
        max_abs: bound of |Y|.
        energy: the largest sum of Y^2 of a column (of J alone: J^T J, disclosed once per operand).
        columns: how many columns the operand has.
        further_scales: of the columns after the first; none where there is one column.
        row_bits: of a typical entry of party_1's rows, with a map of the largest one; protocols choose words for it,
            where they have a choice.
        together: bound of the sum of Y^2 over those columns whose products may be added up; 0: nothing is known of it.
    """

    number: int
    points: int
    rows: int
    scale: float
    offset: float
    max_abs: int
    energy: int
    columns: int = 1
    further_scales: tuple[float, ...] = ()
    row_bits: int = ROW_BITS
    together: int = 0

    @property
    def scales(self) -> tuple[float, ...]:
        """Of every column."""
        return (self.scale, *self.further_scales)

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> OperandHeader:
        """Inverse of `to_meta`; raises LinkError where a field is missing or not a number in range."""
        try:
            header = cls(
                **{
                    k: int(meta[k])
                    for k in ("number", "points", "rows", "max_abs", "energy", "columns", "row_bits", "together")
                },
                scale=float(meta["scale"]),
                offset=float(meta["offset"]),
                further_scales=tuple(float(scale) for scale in meta["further_scales"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LinkError(f"operand header: {error!r}") from None
        if header.points < 1 or header.rows < 1 or header.max_abs < 0 or header.energy < 0:
            raise LinkError(f"operand header out of range: {header}")
        if header.max_abs >= 2**62 or header.energy > header.points * header.max_abs**2:
            raise LinkError(f"operand header contradicts itself: {header}")
        if not (all(0 < scale < math.inf for scale in header.scales) and math.isfinite(header.offset)):
            raise LinkError(f"operand header out of range: {header}")
        if not 1 <= header.row_bits <= MOST_BITS or not 0 <= header.together <= header.columns * header.energy:
            raise LinkError(f"operand header out of range: {header}")
        if header.columns < 1 or header.columns != len(header.scales):
            raise LinkError(f"operand header contradicts itself: {header}")
        return header


@dataclass(frozen=True)
class Limits:
    """What one protocol can carry exactly: |X| <= max_row, |R| <= max_result, and |X|_2 <= max_norm of each row."""

    max_row: int
    max_result: int
    max_norm: float = math.inf


class MovingSide(ABC):
    """party_1's end of a protocol over one Link."""

    limits: Limits

    @abstractmethod
    def accept_operand(self, header: OperandHeader, public_map: PublicMap | None = None) -> None:
        """Receive the protocol's set-up messages of a new operand, which replaces the last one.

        With a map its products are those of `project`, else those of `multiply`.
        """

    @abstractmethod
    def multiply(
        self, rows: Tensor, pairs: Pairs | None = None, used: Tensor | None = None, into: Into | None = None
    ) -> Tensor:
        """The products (pairs,) of int64 rows (rows, points), exactly; None: every row with every column, row by row.

        With `into` their sums: the products of one number are added up before anything is opened.

        `used` are the positions outside which all rows are zero, where that may be seen: encrypted products skip the
        rest, and take visibly less time. Refuses (RangeError) before sending what could overflow.
        """

    def project(self, rows: Tensor) -> Tensor:  # noqa: ARG002
        """B^T (X * Y) of all int64 rows (rows, points) but the last, and the last one's product: exactly, int64, flat.

        See `PublicMap`. Refuses (RangeError) before sending what could overflow.
        """
        raise ConfigError(f"{type(self).__name__}: no deformable transforms; {_MAPPED}")

    def carried(self, public_map: PublicMap) -> PublicMap:
        """The map that this protocol's products go through in the place of a lattice's own, where it has little room.

        party_1 tells party_2 which.
        """
        return public_map

    def prefers_moments(self, points: int) -> bool:  # noqa: ARG002
        """Whether an affine product of N points is cheaper as D + 1 rows with D + 1 columns than as P + 1 rows."""
        return True


class FixedSide(ABC):
    """party_2's end of a protocol over one Link."""

    limits: Limits

    def column_bits(self, points: int) -> int:  # noqa: ARG002
        """Bits, sign included, to which the columns of an operand of N points are to be quantised."""
        return COLUMN_BITS

    def mapped_bits(self, public_map: PublicMap) -> tuple[int, int]:
        """Of an operand with a map: bits of a row's largest entry, and of the column, sign included."""
        return public_map.bits_within(LARGEST_MAPPED)

    @abstractmethod
    def send_operand(self, header: OperandHeader, values: Tensor, public_map: PublicMap | None = None) -> None:
        """Send the set-up messages of a new operand, values int64 (columns, points) or, of one column, (points,)."""

    @abstractmethod
    def answer(self, request: Received, release: Release) -> None:
        """Answer the first message of one product; calls `release` once, before anything is sent."""


@dataclass(frozen=True)
class ProtocolEntry:
    """How to build the two ends of a protocol: each from its link, its link to the dealer (or None), and a device.

    `party_1_learns` and `party_2_learns` go into every run's summary. `dealer` is None where none is needed; else it
    serves (link to party_1, link to party_2) in its own process.
    """

    name: str
    party_1_learns: str
    party_2_learns: str
    moving_side: Callable[[Link, Link | None, str], MovingSide]
    fixed_side: Callable[[Link, Link | None, str], FixedSide]
    dealer: Callable[[Link, Link], None] | None = None


def compute_device(name: str) -> str:
    """ "cpu" or "cuda" for "auto", "cpu" or "cuda".

    Raises:
        ConfigError: "cuda" where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("backend.device: 'cuda', but this machine has no CUDA device; use auto or cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def release_all(count: int) -> Tensor:
    """A `Release` without cap and without noise, for tests and benchmarks of protocol code."""
    return torch.zeros(count, dtype=torch.int64)


def all_pairs(rows: int, columns: int) -> list[tuple[int, int]]:
    """Every row with every column, row by row."""
    return [(row, column) for row in range(rows) for column in range(columns)]


def check_pairs(pairs: Pairs, rows: int, header: OperandHeader) -> list[tuple[int, int]]:
    """The pairs as a list.

    Raises:
        LinkError: more rows than agreed, no pair, a pair twice, or one outside the rows and columns.
    """
    if not 1 <= rows <= header.rows:
        raise LinkError(f"product of {rows} rows, 1 to {header.rows} were agreed; refused")
    checked = [(int(row), int(column)) for row, column in pairs]
    if not checked or len(set(checked)) != len(checked):
        raise LinkError(f"product: {len(checked)} pairs, at least one and none twice are due; refused")
    if any(not (0 <= row < rows and 0 <= column < header.columns) for row, column in checked):
        raise LinkError(f"product: pairs beyond {rows} rows and {header.columns} columns; refused")
    return checked


def check_into(into: Into | None, count: int) -> list[int]:
    """The number of the result that each of `count` pairs goes into; None: each into its own.

    Raises:
        LinkError: not one number for each pair, or not all of 0, 1, ..., the largest.
    """
    if into is None:
        return list(range(count))
    checked = [int(number) for number in into]
    if len(checked) != count or set(checked) != set(range(max(checked, default=-1) + 1)):
        raise LinkError(f"product: sums {str(checked)[:40]} of {count} pairs, a number for each is due; refused")
    return checked


def largest_sum(norms: Tensor, header: OperandHeader, pairs: Pairs, into: Into) -> float:
    """Bound of |R|, R sums of products, by Cauchy and Schwarz: (sum |X_r|^2)^(1/2) (sum |Y_c|^2)^(1/2).

    The header's `together` counts where no column comes twice in a sum.

    Args:
        norms: |X_r|_2 of the rows.
    """
    squares = add_up(norms.double().square()[[row for row, _ in pairs]], into)
    columns = [header.energy * terms for terms in torch.bincount(torch.tensor(into)).tolist()]
    if header.together and len(set(zip(into, (column for _, column in pairs), strict=True))) == len(pairs):
        columns = [min(energy, max(header.together, header.energy)) for energy in columns]
    return float((squares.cpu() * torch.tensor(columns, dtype=torch.float64)).max().sqrt()) * (1 + 1e-9)


def add_up(products: Tensor, into: Into) -> Tensor:
    """Sums (results,) of products (pairs,), in their dtype, in which they may wrap."""
    place = torch.tensor(into, device=products.device)
    return products.new_zeros(max(into) + 1).index_add_(0, place, products)


def check_operand(values: Tensor, header: OperandHeader) -> Tensor:
    """The values as (columns, points).

    Raises:
        RangeError: wrong shape or type, or larger than the header says; results could overflow.
    """
    shape = (header.columns, header.points)
    if values.dtype != torch.int64 or tuple(values.shape) not in (
        (shape,) if header.columns > 1 else (shape, shape[1:])
    ):
        raise RangeError(f"operand: {tuple(values.shape)} {values.dtype}, needed {shape} int64")
    low, high = (int(v) for v in values.aminmax())
    if max(-low, high) > header.max_abs:
        raise RangeError(f"operand: values in [{low}, {high}], its header says at most {header.max_abs}")
    table = values.reshape(shape)
    if max(float(column.double().square().sum()) for column in table) > header.energy * (1 + 1e-9):
        raise RangeError(f"operand: its energy is above the header's {header.energy}; results could overflow")
    return table


def check_no_map(public_map: PublicMap | None, name: str) -> None:
    """For protocols without `project`.

    Raises:
        ConfigError: there is a map.
    """
    if public_map is not None:
        raise ConfigError(f"backend {name}: no deformable transforms; {_MAPPED}")


def check_mapped(rows: Tensor, header: OperandHeader, public_map: PublicMap, limits: Limits) -> None:
    """Refuse rows whose mapped product could leave the protocol's range: |R| <= max|Y| times the map's sums of |X|.

    Raises:
        RangeError: wrong shape or type, an entry above `limits.max_row`, or a possible |R| above `limits.max_result`.
    """
    if rows.dtype != torch.int64 or rows.ndim != 2 or rows.shape != (header.rows, public_map.points):
        raise RangeError(f"rows: {tuple(rows.shape)} {rows.dtype}, needed {header.rows, public_map.points} int64")
    low, high = (int(v) for v in rows.aminmax())
    largest = max(-low, high)
    if largest > limits.max_row:
        raise RangeError(f"rows: entry of magnitude {largest}, at most {limits.max_row} is allowed")
    if largest * header.max_abs * public_map.largest_sum <= limits.max_result:
        return
    bound = header.max_abs * float(public_map.largest_sums(rows).max()) * (1 + 1e-9)
    if bound > limits.max_result:
        raise RangeError(f"product: up to {bound:.3g} is possible, at most {limits.max_result} can be carried exactly")


def check_sums(rows: Tensor, norms: Tensor, header: OperandHeader, limits: Limits, pairs: Pairs, into: Into) -> None:
    """Beside `check_range`, where results are sums: refuse rows whose sums could leave the protocol's range.

    Raises:
        RangeError: a possible |R| above `limits.max_result`.
    """
    bound = largest_sum(norms, header, pairs, into)
    if bound > limits.max_result:  # Hoelder's bound may be the smaller one
        sizes = rows.to(torch.float64).abs_().sum(1)[[row for row, _ in pairs]]
        bound = min(bound, float(add_up(sizes, into).max()) * header.max_abs * (1 + 1e-9))
    if bound > limits.max_result:
        raise RangeError(f"sums: up to {bound:.3g} is possible, at most {limits.max_result} can be carried exactly")


def check_range(rows: Tensor, header: OperandHeader, limits: Limits) -> Tensor:
    """Refuse rows whose product could leave the protocol's range (Cauchy-Schwarz and Hoelder bounds on |R|).

    Returns:
        |X|_2 (rows,) float64.

    Raises:
        RangeError: wrong shape or type, an entry above `limits.max_row`, a row longer than `limits.max_norm`, or a
            possible |R| above `limits.max_result`.
    """
    if rows.dtype != torch.int64 or rows.ndim != 2 or rows.shape[1] != header.points:
        raise RangeError(f"rows: {tuple(rows.shape)} {rows.dtype}, needed (rows, {header.points}) int64")
    if not 1 <= rows.shape[0] <= header.rows:
        raise RangeError(f"rows: {rows.shape[0]} at once, between 1 and {header.rows} were agreed")
    low, high = (int(v) for v in rows.aminmax())
    largest = max(-low, high)
    if largest > limits.max_row:
        raise RangeError(f"rows: entry of magnitude {largest}, at most {limits.max_row} is allowed")
    norms = euclidean_norms(rows)
    longest = float(norms.max())
    if longest > limits.max_norm:
        raise RangeError(f"rows: a row of length {longest:.4g}, at most {limits.max_norm:.4g} is allowed")
    bound = longest * math.sqrt(header.energy) * (1 + 1e-9)
    if bound > limits.max_result:  # Hoelder's bound may be the smaller one
        bound = min(bound, float(rows.to(torch.float64).abs_().sum(1).max()) * header.max_abs * (1 + 1e-9))
    if bound > limits.max_result:
        raise RangeError(f"product: up to {bound:.3g} is possible, at most {limits.max_result} can be carried exactly")
    return norms


def euclidean_norms(rows: Tensor) -> Tensor:
    """|X|_2 (rows,) of rows (rows, points), float64; summed in parts that stay in the processor's cache."""
    squares = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    for number, row in enumerate(rows):
        for part in torch.split(row, PART):
            exact = part.to(torch.float64)
            squares[number] += exact @ exact
    return squares.sqrt()
