"""party_2's answer to a request: the public numbers of the operand that it prepared, encoded and decoded in one file.

`PreparedOperand` is that of an image's level, `PreparedPoints` that of a point set. Whether they are what was asked
for is checked by whoever asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import LinkError
from ..wire.fields import read_flag, read_number, shown
from ..wire.kinds import MessageKind
from ..wire.messages import Message
from ..wire.payload import Buffer, pack, unpack
from .header import OperandHeader

__all__ = ["LARGEST_MM", "PreparedOperand", "PreparedPoints"]

LARGEST_MM = 1e9  # of a point's coordinate


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
