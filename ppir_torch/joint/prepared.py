"""party_2's answer to a request: the operand that it prepared, and what is told of it, encoded and decoded in one file.

`PreparedOperand` is told of an image's level, `PreparedPoints` of a point set. Whether they are what was asked for is
checked by whoever asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import LinkError
from ..wire.fields import read_flag, read_number, shown
from ..wire.kinds import MessageKind
from ..wire.messages import Message
from ..wire.payload import Buffer, pack, unpack
from .columns import BIN_PEAK, PART, Columns, FixedColumns
from .header import OperandHeader
from .interface import FixedSide
from .public_map import PublicMap
from .quantise import quantise_columns

__all__ = ["LARGEST_MM", "PreparedOperand", "PreparedPoints", "prepare"]

LARGEST_MM = 1e9  # of a point's coordinate
TOLD_OF_J = 4  # numbers in every operand's header: mean, energy (two sums of squares), largest value


@dataclass(frozen=True, eq=False)
class PreparedOperand(Message):
    """party_2 to party_1: an image's operand is ready.

    Args:
        header: its public numbers.
        sample_mean_square: mean of (J - offset)^2 over the operand's points.
        level_mean_square: the same over all points of the level.
        gram: sums of the columns' products, float64 (columns, columns), of steepest-descent images; else None.
    """

    header: OperandHeader
    sample_mean_square: float
    level_mean_square: float
    gram: NDArray[np.float64] | None = None

    kind = MessageKind.OPERAND

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        means = {"sample_mean_square": self.sample_mean_square, "level_mean_square": self.level_mean_square}
        return pack({**self.header.to_meta(), **means}, [] if self.gram is None else [self.gram])

    @property
    def released(self) -> int:
        """How many numbers of J are told with it, for party_2's count."""
        count = 0 if self.gram is None else len(self.gram)
        # The sums of the columns' products, and the size of each but J's own; moments share J's scale.
        return TOLD_OF_J + count * (count + 1) // 2 + max(count - 1, 0)

    @classmethod
    def decode(cls, payload: Buffer) -> PreparedOperand:
        """See `Message`."""
        meta, arrays = unpack(payload)
        header = OperandHeader.from_meta(meta)
        shape = (header.columns, header.columns)
        if arrays and (len(arrays) != 1 or arrays[0].shape != shape or arrays[0].dtype != np.float64):
            raise LinkError(f"operand: the sums of its columns' products are due, {shape} float64; refused")
        if not all(bool(np.isfinite(array).all()) for array in arrays):
            raise LinkError("operand: sums of its columns' products that are not finite; refused")
        of_sample, of_level = (read_number(meta, f"{name}_mean_square", least=0) for name in ("sample", "level"))
        return cls(header, of_sample, of_level, arrays[0] if arrays else None)


@dataclass(frozen=True, eq=False)
class PreparedPoints(Message):
    """party_2 to party_1: a point set's operand is ready.

    Args:
        header: its public numbers; one scale for all columns, and as many rows as there are coordinates.
        centre: mean of the points, D numbers, mm.
        tells_spread: whether the header's energy is the sum of squares of the centred points, or only a bound of it.
    """

    header: OperandHeader
    centre: tuple[float, ...]
    tells_spread: bool

    kind = MessageKind.OPERAND

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack({**self.header.to_meta(), "centre": self.centre, "spread": self.tells_spread})

    @classmethod
    def decode(cls, payload: Buffer) -> PreparedPoints:
        """See `Message`."""
        meta, arrays = unpack(payload)
        header = OperandHeader.from_meta(meta)
        if arrays or len(set(header.scales)) != 1:
            raise LinkError(f"operand of points: {shown(header)}, one scale and no array are due; refused")
        centre = meta.get("centre")
        if not isinstance(centre, list) or len(centre) != header.rows or not all(type(v) is float for v in centre):
            raise LinkError(f"operand: centre {shown(centre)}, {header.rows} numbers are due")
        if not all(abs(value) <= LARGEST_MM for value in centre):  # NaN as well
            raise LinkError("operand: a centre out of range; refused")
        return cls(header, tuple(centre), read_flag(meta, "spread"))

    @property
    def spread(self) -> float | None:
        """Sum of squares of party_2's centred points, mm^2, where it says so."""
        return self.header.energy * self.header.scale**2 if self.tells_spread else None


def prepare(
    fixed: FixedColumns, columns: Columns, rows: int, number: int, side: FixedSide, public_map: PublicMap | None
) -> tuple[Tensor, PreparedOperand]:
    """Quantise columns as a protocol carries them.

    Args:
        fixed: the columns, of one level's points.
        columns: what they are.
        rows: most rows of one product.
        number: of the operand in its session.
        side: party_2's end of the protocol.
        public_map: that the products go through, or None.

    Returns:
        (Y (columns, points) int64, or narrower where the side takes it, what party_1 is told of it).
    """
    points = fixed.points
    row_bits, bits = columns.row_bits(points), columns.column_bits(points, side.column_bits(points))
    if public_map is not None:
        row_bits, bits = side.mapped_bits(public_map)
    values, scales = quantise_columns(fixed, columns, bits, _kind(bits) if side.takes_narrow else torch.int64)
    low, high = (int(v) for v in values.aminmax())
    energies = [sum(int(part.long().square().sum()) for part in torch.split(column, PART)) for column in values]
    max_abs, energy = max(-low, high), max(energies)
    of_sample, group_energy = float(energies[0]) * scales[0] ** 2 / points, 0
    if columns.kind == "bins":  # what any image's could be: how full J's bins are is not told
        max_abs = 2 ** (bits - 1)
        energy, of_sample = points * max_abs**2, 0.0
        # The squares of a value's weights sum to 1/2 at most, where the largest is BIN_PEAK; a tenth for rounding.
        group_energy = math.ceil(1.1 * energy / 2 / BIN_PEAK**2)
    header = OperandHeader(
        number=number,
        points=points,
        rows=rows,
        scale=scales[0],
        offset=fixed.offset,
        max_abs=max_abs,
        energy=energy,
        columns=len(scales),
        further_scales=scales[1:],
        row_bits=row_bits,
        group_energy=group_energy,
    )
    gram = _gram(values, scales) if columns.kind == "steepest_descent" else None
    return values, PreparedOperand(header, of_sample, fixed.level_mean_square, gram)


def _kind(bits: int) -> torch.dtype:
    """The narrowest integers of so many bits, sign included."""
    kinds = {8: torch.int8, 16: torch.int16, 32: torch.int32}
    return next((kind for most, kind in kinds.items() if bits <= most), torch.int64)


def _gram(values: Tensor, scales: tuple[float, ...]) -> NDArray[np.float64]:
    """Sums of the columns' products (columns, columns), of what the integers stand for."""
    steps = torch.tensor(scales, dtype=torch.float64, device=values.device)
    exact = values.double()
    gram: NDArray[np.float64] = ((exact @ exact.T) * steps[:, None] * steps).cpu().numpy()
    return gram
