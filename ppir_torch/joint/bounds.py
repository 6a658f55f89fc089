"""What a product may be: which pairs and sums may be asked for, and which integers cannot overflow.

Both parties check alike, before anything is sent: no rows that are refused here reach the other party.

>>> header = OperandHeader(number=0, points=4, rows=2, scale=1.0, offset=0.0, max_abs=3, energy=20)
>>> check_range(HeldRows(torch.tensor([[3, 4, 0, 0]])), header, Limits(max_row=10, max_result=100)).tolist()
[5.0]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LinkError, RangeError
from .exact import euclidean_norms
from .header import OperandHeader
from .public_map import PublicMap
from .rows import HeldRows, IntegerRows

__all__ = [
    "LARGEST_MAPPED",
    "SIGNED",
    "Limits",
    "Pairs",
    "SumIndex",
    "add_up",
    "all_pairs",
    "check_mapped",
    "check_operand",
    "check_pairs",
    "check_range",
    "check_rows",
    "check_sum_index",
    "check_sums",
    "largest_sum",
]

LARGEST_MAPPED = 1 << 62  # |R| of mapped products in words of 64 bits; the rest is room for the noise

SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)
"""Types of an operand's values, for a side that takes narrow ones."""

Pairs = Sequence[tuple[int, int]]
"""(row, column) of each product that is opened."""

SumIndex = Sequence[int]
"""Which result, 0, 1, ..., each product is added to."""


@dataclass(frozen=True)
class Limits:
    """What one protocol can carry exactly: |X| <= max_row, |R| <= max_result, and |X|_2 <= max_norm of each row."""

    max_row: int
    max_result: int
    max_norm: float = math.inf


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


def check_sum_index(sum_index: SumIndex | None, count: int) -> list[int]:
    """The number of the result that each of `count` pairs is added to; None: each into its own.

    Raises:
        LinkError: not one number for each pair, or not all of 0, 1, ..., the largest.
    """
    if sum_index is None:
        return list(range(count))
    checked = [int(number) for number in sum_index]
    if len(checked) != count or set(checked) != set(range(max(checked, default=-1) + 1)):
        raise LinkError(f"product: sums {str(checked)[:40]} of {count} pairs, a number for each is due; refused")
    return checked


def largest_sum(norms: Tensor, header: OperandHeader, pairs: Pairs, sum_index: SumIndex) -> float:
    """Bound of |R|, R sums of products, by Cauchy and Schwarz: (sum |X_r|^2)^(1/2) (sum |Y_c|^2)^(1/2).

    The header's `group_energy` counts where no column comes twice in a sum.

    Args:
        norms: |X_r|_2 of the rows.
    """
    squares = add_up(norms.double().square()[[row for row, _ in pairs]], sum_index)
    columns = [header.energy * terms for terms in torch.bincount(torch.tensor(sum_index)).tolist()]
    if header.group_energy and len(set(zip(sum_index, (column for _, column in pairs), strict=True))) == len(pairs):
        columns = [min(energy, max(header.group_energy, header.energy)) for energy in columns]
    return float((squares.cpu() * torch.tensor(columns, dtype=torch.float64)).max().sqrt()) * (1 + 1e-9)


def add_up(products: Tensor, sum_index: SumIndex) -> Tensor:
    """Sums (results,) of products (pairs,), in their dtype, in which they may wrap."""
    place = torch.tensor(sum_index, device=products.device)
    return products.new_zeros(max(sum_index) + 1).index_add_(0, place, products)


def check_operand(values: Tensor, header: OperandHeader, kinds: tuple[torch.dtype, ...] = (torch.int64,)) -> Tensor:
    """The values as (columns, points).

    Raises:
        RangeError: wrong shape or type, or larger than the header says; results could overflow.
    """
    shape = (header.columns, header.points)
    if values.dtype not in kinds or tuple(values.shape) not in ((shape,) if header.columns > 1 else (shape, shape[1:])):
        raise RangeError(f"operand: {tuple(values.shape)} {values.dtype}, needed {shape} int64")
    low, high = (int(v) for v in values.aminmax())
    if max(-low, high) > header.max_abs:
        raise RangeError(f"operand: values in [{low}, {high}], its header says at most {header.max_abs}")
    table = values.reshape(shape)
    if float(euclidean_norms(table).max()) ** 2 > header.energy * (1 + 1e-9):
        raise RangeError(f"operand: its energy is above the header's {header.energy}; results could overflow")
    return table


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


def check_rows(rows: Tensor | IntegerRows, header: OperandHeader) -> IntegerRows:
    """Rows as a product reads them.

    Raises:
        RangeError: wrong shape or type, or more rows than agreed.
    """
    if isinstance(rows, Tensor) and (rows.dtype != torch.int64 or rows.ndim != 2 or rows.shape[1] != header.points):
        raise RangeError(f"rows: {tuple(rows.shape)} {rows.dtype}, needed (rows, {header.points}) int64")
    count, points = rows.shape if isinstance(rows, Tensor) else (rows.count, rows.points)
    if points != header.points:
        raise RangeError(f"rows: of {points} points, needed (rows, {header.points}) int64")
    if not 1 <= count <= header.rows:
        raise RangeError(f"rows: {count} at once, between 1 and {header.rows} were agreed")
    return HeldRows(rows) if isinstance(rows, Tensor) else rows


def check_sums(
    rows: IntegerRows, norms: Tensor, header: OperandHeader, limits: Limits, pairs: Pairs, sum_index: SumIndex
) -> None:
    """Beside `check_range`, where results are sums: refuse rows whose sums could leave the protocol's range.

    Raises:
        RangeError: a possible |R| above `limits.max_result`.
    """
    bound = largest_sum(norms, header, pairs, sum_index)
    if bound > limits.max_result:  # Hoelder's bound may be the smaller one
        sizes = rows.absolute_sums()[[row for row, _ in pairs]]
        bound = min(bound, float(add_up(sizes, sum_index).max()) * header.max_abs * (1 + 1e-9))
    if bound > limits.max_result:
        raise RangeError(f"sums: up to {bound:.3g} is possible, at most {limits.max_result} can be carried exactly")


def check_range(rows: IntegerRows, header: OperandHeader, limits: Limits) -> Tensor:
    """Refuse rows whose product could leave the protocol's range (Cauchy-Schwarz and Hoelder bounds on |R|).

    Returns:
        Bounds of |X|_2 (rows,) float64.

    Raises:
        RangeError: an entry above `limits.max_row`, a row longer than `limits.max_norm`, or a possible |R| above
            `limits.max_result`.
    """
    known = rows.bounds()
    if known.largest > limits.max_row:
        raise RangeError(f"rows: entry of magnitude {known.largest}, at most {limits.max_row} is allowed")
    longest = float(known.norms.max())
    if longest > limits.max_norm:
        raise RangeError(f"rows: a row of length {longest:.4g}, at most {limits.max_norm:.4g} is allowed")
    bound = longest * math.sqrt(header.energy) * (1 + 1e-9)
    if bound > limits.max_result:  # Hoelder's bound may be the smaller one
        bound = min(bound, float(rows.absolute_sums().max()) * header.max_abs * (1 + 1e-9))
    if bound > limits.max_result:
        raise RangeError(f"product: up to {bound:.3g} is possible, at most {limits.max_result} can be carried exactly")
    return known.norms
