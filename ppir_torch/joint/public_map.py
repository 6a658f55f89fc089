"""B^T with integer weights: the public linear map that large transforms need after the element-wise product.

    R[d] = B^T (X[d] * Y)   for the D rows of party_1's spatial gradient,     R[-1] = X[-1] . Y

B is separable (one matrix per axis: the cubic B-splines of the control lattice). It is linear, so every party applies
it to its own share, exactly modulo 2^k, and only the few sums are opened: never a force per voxel.

>>> spline = np.array([[2, 0], [1, 1], [0, 2]])
>>> basis = PublicMap((3, 3), (spline, spline), unit=4.0)
>>> basis.apply(torch.ones(1, 9, dtype=torch.int64)).tolist()
[[9, 9, 9, 9]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import LinkError
from .contraction import Pattern, contract, pattern_of

__all__ = ["FEW_BITS", "MOST_BITS", "PublicMap"]

MOST_BITS = 16  # of the largest entry of a row whose product with J is mapped; of J, sign included
FEW_BITS = 14  # below this rows are scaled by their sums, see `PublicMap.largest_sums`
LEAST_COLUMN_BITS = 6
ENOUGH_BITS = 22  # of a row and J together
LEAST_UNIT = 64  # what a spline's weight 1 becomes at least
ROUNDED_UNIT = 256  # what a spline's weight 1 becomes where no small unit makes all weights whole
EXACT_UNITS = tuple(6 * k**3 for k in range(1, 6))  # cubic B-splines at multiples of 1/k are multiples of 1 / (6 k^3)
MAX_WEIGHT = 1 << 16
MAX_CONTROL_POINTS = 1 << 22


@dataclass(frozen=True)
class PublicMap:
    """The adjoint of a separable basis with integer weights.

    Attributes:
        shape: of the level's grid, ([z,] y, x).
        matrices: (n_a, m_a) int64 in the order of `shape`.
        unit: what the integer weights of one point stand for: B = product of the matrices' entries / unit.
        index: flat positions (n,) int64 on the grid of the points that count; None: all.
        channels: the points are those of one channel after the other; the channels' fields are summed.
    """

    shape: tuple[int, ...]
    matrices: tuple[NDArray[np.int64], ...]
    unit: float
    index: Tensor | None = None
    channels: int = 1

    @classmethod
    def of(
        cls, shape: tuple[int, ...], weights: Sequence[Tensor], index: Tensor | None = None, channels: int = 1
    ) -> PublicMap:
        """From floating weights (n_a, m_a) per axis in the order of `shape`: exact where a small unit makes them whole.

        Else they are rounded to 1/256; the rounded weights are then used on both sides of I - J.
        """
        units = [_unit(w) for w in weights]
        matrices = tuple((w.double() * u).round().to(torch.int64).numpy() for w, u in zip(weights, units, strict=True))
        return cls(shape, matrices, float(math.prod(units)), index, channels)

    @property
    def points(self) -> int:
        """Points of a row."""
        return self.channels * (math.prod(self.shape) if self.index is None else self.index.numel())

    @property
    def control_shape(self) -> tuple[int, ...]:
        """([mz,] my, mx)."""
        return tuple(matrix.shape[1] for matrix in self.matrices)

    @property
    def count(self) -> int:
        """Control points, M."""
        return math.prod(self.control_shape)

    def results(self, rows: int) -> int:
        """How many values a product with so many rows opens: B^T of all rows but the last, and one sum."""
        return (rows - 1) * self.count + 1

    @cached_property
    def largest_sum(self) -> int:
        """The largest sum of weights of a control point over the points that count, at least their number."""
        if self.index is None:
            largest = math.prod(int(np.abs(m).sum(0).max()) for m in self.matrices)
        else:
            one = replace(self._sizes, channels=1)
            largest = int(one.adjoint(torch.ones(1, self.index.numel())).max())  # whole numbers below 2^53
        return max(self.channels * largest, self.points)

    @cached_property
    def largest_length(self) -> float:
        """The largest root of a control point's sum of squared weights."""
        return math.sqrt(self.channels * math.prod(float((m.astype(float) ** 2).sum(0).max()) for m in self.matrices))

    def bits_within(self, largest: int) -> tuple[int, int]:
        """Bits of a row's largest entry, and of J, sign included, with which no result is above `largest`.

        J has two more, where there is no room for all: a row's rounding meets the small residual I - J alone.
        """
        room = math.floor(math.log2(largest / self.largest_sum))
        column = min(MOST_BITS, max(LEAST_COLUMN_BITS, room // 2 + 2))
        return min(MOST_BITS, max(1, room - column + 1)), column

    @cached_property
    def _sizes(self) -> PublicMap:
        """|B| in whole numbers."""
        return replace(self, matrices=tuple(np.abs(m) for m in self.matrices), unit=1.0)

    def within(self, largest: int) -> PublicMap:
        """The same splines with weights in fewer steps, where results up to `largest` leave rows and J too few bits.

        The weights of a voxel still add up to one, and one party uses the same ones for I as both do for J: what they
        are off by, at most 1/64, meets the small residual I - J alone.
        """
        missing = ENOUGH_BITS - math.floor(math.log2(largest / self.largest_sum))
        if missing <= 0:
            return self
        factor, matrices, unit = 2.0 ** (missing / len(self.matrices)), [], self.unit
        for matrix in self.matrices:
            sums = matrix.sum(1)
            steps = int(sums[0]) if (sums == sums[0]).all() else ROUNDED_UNIT  # see `of`
            fewer = max(LEAST_UNIT, math.floor(steps / factor))
            if fewer >= steps:
                matrices.append(matrix)
                continue
            matrices.append(_in_fewer_steps(matrix, fewer))
            unit *= fewer / steps
        return replace(self, matrices=tuple(matrices), unit=unit)

    def apply(self, fields: Tensor) -> Tensor:
        """B^T of words (rows, points), in their own integer type and so modulo 2^64 or 2^32: (rows, M)."""
        volume = self._on_grid(fields)
        for axis, (matrix, pattern) in enumerate(zip(self.matrices, self._patterns, strict=True)):
            volume = contract(volume, matrix, pattern, axis + 1)
        return volume.reshape(len(fields), self.count)

    @cached_property
    def _patterns(self) -> list[Pattern | None]:
        return [pattern_of(matrix) for matrix in self.matrices]

    def forms(self, left: Tensor, right: Tensor) -> Tensor:
        """The whole product of words X (rows, points) with Y (1, points), flat: B^T of all rows but the last, a sum."""
        fields = left * right
        return torch.cat([self.apply(fields[:-1]).flatten(), fields[-1].sum(dtype=fields.dtype)[None]])

    def functionals(self, rows: Tensor) -> Tensor:
        """The equations on J (results, points) that a product with these floating rows opens, for the ledger."""
        basis = self.adjoint_of_points().to(rows)
        return torch.cat([(rows[:-1, None] * basis[None]).flatten(0, 1), rows[-1:]])

    def adjoint_of_points(self) -> Tensor:
        """B^T as a dense matrix (M, points), float64: for small maps."""
        dense = torch.ones(1, 1, dtype=torch.float64)
        for matrix in self.matrices:
            dense = torch.kron(dense, torch.from_numpy(np.ascontiguousarray(matrix.T, np.float64)))
        dense = dense if self.index is None else dense[:, self.index]
        return dense.repeat(1, self.channels) / self.unit

    def adjoint(self, fields: Tensor) -> Tensor:
        """B^T of floating fields (rows, points) with the rounded weights: (rows, M) float64."""
        volume = self._on_grid(fields.double())
        for axis, weights in enumerate(self._on_device(volume.device)[0]):
            volume = torch.tensordot(volume, weights, dims=([axis + 1], [0])).movedim(-1, axis + 1)
        return volume.reshape(len(fields), self.count) / self.unit

    def largest_sums(self, rows: Tensor) -> Tensor:
        """The largest entry of |B|^T |row| of rows (rows, points), of the last one its sum: float64 (rows,).

        In units of the integer weights: with integer rows the results of a product are at most this times max|Y|.
        """
        mapped = self._sizes.adjoint(rows[:-1].abs()).amax(1)
        return torch.cat([mapped, rows[-1:].abs().sum(1, dtype=torch.float64)])

    def _on_grid(self, fields: Tensor) -> Tensor:
        """(rows, points) as (rows, [z,] y, x), channels summed, zero where no point is."""
        rows = len(fields)
        summed = fields
        if self.channels > 1:
            summed = fields.reshape(rows, self.channels, self.points // self.channels).sum(1, dtype=fields.dtype)
        if self.index is None:
            return summed.reshape(rows, *self.shape)
        volume = summed.new_zeros(rows, math.prod(self.shape))
        volume[:, self._on_device(volume.device)[1]] = summed
        return volume.reshape(rows, *self.shape)

    def _on_device(self, device: torch.device) -> tuple[list[Tensor], Tensor | None]:
        """(the matrices in float64, the index) on a device: copied there once, not for every product."""
        if device not in self._copies:
            matrices = [torch.from_numpy(matrix).double().to(device) for matrix in self.matrices]
            self._copies[device] = matrices, None if self.index is None else self.index.to(device)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[list[Tensor], Tensor | None]]:
        return {}

    def to_message(self) -> tuple[dict[str, Any], list[Any]]:
        """As JSON values and arrays, for a Link."""
        arrays: list[Any] = [matrix.astype(np.int32) for matrix in self.matrices]
        if self.index is not None:
            arrays.append(self.index.numpy().astype(np.int32))
        return {"shape": self.shape, "unit": self.unit, "channels": self.channels}, arrays

    @classmethod
    def from_message(cls, meta: dict[str, Any], arrays: list[Any]) -> PublicMap:
        """Inverse of `to_message`.

        Raises:
            LinkError: not a map: other types, sizes that do not go together, weights or indices out of range.
        """
        try:
            shape = tuple(int(n) for n in meta["shape"])
            channels, unit = int(meta["channels"]), float(meta["unit"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LinkError(f"map: {error!r}; refused") from None
        matrices, rest = arrays[: len(shape)], arrays[len(shape) :]
        whole = len(shape) in (2, 3) and len(matrices) == len(shape) and len(rest) <= 1 and 1 <= channels <= 1024
        if not whole or not all(m.ndim == 2 and m.dtype == np.int32 and m.size for m in matrices):
            raise LinkError("map: one matrix of integer weights per axis is due; refused")
        if any(len(m) != n for m, n in zip(matrices, shape, strict=True)) or not 0 < unit < math.inf:
            raise LinkError(f"map: matrices that do not fit a grid of {shape}; refused")
        if max(int(np.abs(m.astype(np.int64)).max()) for m in matrices) > MAX_WEIGHT:
            raise LinkError(f"map: weights above {MAX_WEIGHT}; refused")
        if math.prod(m.shape[1] for m in matrices) > MAX_CONTROL_POINTS:
            raise LinkError(f"map: more than {MAX_CONTROL_POINTS} control points; refused")
        index = None
        if rest:
            if rest[0].ndim != 1 or rest[0].dtype != np.int32 or rest[0].size == 0:
                raise LinkError("map: point indices are due; refused")
            if int(rest[0].min()) < 0 or int(rest[0].max()) >= math.prod(shape):
                raise LinkError(f"map: indices outside the grid of {shape}; refused")
            index = torch.from_numpy(rest[0].astype(np.int64))
        return cls(shape, tuple(m.astype(np.int64) for m in matrices), unit, index, channels)


def _unit(weights: Tensor) -> int:
    for unit in EXACT_UNITS:
        scaled = weights.double() * unit
        if float((scaled - scaled.round()).abs().max()) < 1e-6:
            return unit
    return ROUNDED_UNIT


def _in_fewer_steps(matrix: NDArray[np.int64], fewer: int) -> NDArray[np.int64]:
    """Each row's weights as `fewer` in sum: rounded down, and up where the remainders are largest."""
    scaled = matrix * (fewer / matrix.sum(1, keepdims=True))
    low = np.floor(scaled + 1e-9)
    up = np.rint(fewer - low.sum(1)).astype(np.int64)
    place = np.argsort(np.argsort(-np.round(scaled - low, 9), axis=1, kind="stable"), axis=1)
    result: NDArray[np.int64] = (low + (place < up[:, None])).astype(np.int64)
    return result
