"""The public numbers of one operand, which party_2 sends before anything of the operand itself.

>>> header = OperandHeader(number=0, points=64, rows=8, scale=0.5, offset=10.0, max_abs=100, energy=64_000)
>>> OperandHeader.from_meta(header.to_meta()) == header
True
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import LinkError
from ..wire.messages import MOST_OPERANDS
from .public_map import MOST_BITS

__all__ = ["COLUMN_BITS", "ROW_BITS", "OperandHeader"]

COLUMN_BITS = 12
ROW_BITS = 14  # of a typical entry of a row, at most
MOST_POINTS = 1 << 48  # of all channels; below it, and with scales up to this one, no bound overflows a float
LARGEST_SCALE = 1e100


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
        group_energy: bound of the sum of Y^2 over those columns whose products may be added up; 0: nothing is known
            of it.
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
    group_energy: int = 0

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
                    for k in ("number", "points", "rows", "max_abs", "energy", "columns", "row_bits", "group_energy")
                },
                scale=float(meta["scale"]),
                offset=float(meta["offset"]),
                further_scales=tuple(float(scale) for scale in meta["further_scales"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LinkError(f"operand header: {error!r}") from None
        if not 0 <= header.number <= MOST_OPERANDS or not 1 <= header.points <= MOST_POINTS:
            raise LinkError(f"operand header out of range: {header}")
        if header.rows < 1 or header.max_abs < 0 or header.energy < 0:
            raise LinkError(f"operand header out of range: {header}")
        if header.max_abs >= 2**62 or header.energy > header.points * header.max_abs**2:
            raise LinkError(f"operand header contradicts itself: {header}")
        if not (all(0 < scale <= LARGEST_SCALE for scale in header.scales) and math.isfinite(header.offset)):
            raise LinkError(f"operand header out of range: {header}")
        if not 1 <= header.row_bits <= MOST_BITS or not 0 <= header.group_energy <= header.columns * header.energy:
            raise LinkError(f"operand header out of range: {header}")
        if header.columns < 1 or header.columns != len(header.scales):
            raise LinkError(f"operand header contradicts itself: {header}")
        return header
