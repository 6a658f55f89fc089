"""What party_1 asks party_2 to prepare: one level of the fixed image at chosen points, as the columns of products.

A request holds party_1's own objects. What crosses the link is the message `AskedOperand`, written and read in this
file alone; party_2 has yet to agree to it.

>>> from ppir_torch.images import Level
>>> from ppir_torch.sampling import Uniform
>>> OperandRequest(Level(2, 1.0), Uniform(0.1, seed=3)).rows
16
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..config.base import LARGEST_SEED
from ..errors import ConfigError, LinkError
from ..grids import Grid
from ..joint.columns import IMAGE, Columns
from ..joint.public_map import PublicMap
from ..levels import Level
from ..losses import Measure, SquaredDifference
from ..sampling import Full, Permuted, PointChoice, Sample, Uniform
from ..transforms import ControlLattice
from ..wire.channel import Channel
from ..wire.kinds import MessageKind
from ..wire.messages import Message, SampleIndices
from ..wire.payload import Buffer, pack, unpack

__all__ = ["SSD_MEASURE", "AskedOperand", "OperandRequest", "map_of"]

SSD_MEASURE = SquaredDifference()
MAX_ROWS, MAX_SHRINK, MAX_SMOOTHING_MM = 1024, 1024, 1000.0


@dataclass(frozen=True)
class OperandRequest:
    """One operand, as `FixedSource.operand` takes it; all of it is public.

    Args:
        level: shrink factor and smoothing of the fixed image.
        choice: all points, a uniform sample or an order from a public seed, or indices (told to party_2).
        number: of the level; samplers draw other points at each.
        rows: most rows of one product; more are sent in several products.
        columns: what the operand is made of.
        lattice: control points whose public map is applied to the element-wise products; `rows` is D + 1 then.
        measure: what party_2 makes of its image; the one that it agreed to, or it refuses.
        rows_beside: with a lattice, most rows of one product that goes through no map; 0: there are none. To party_2 it
            is an operand of its own, of the same points.
    """

    level: Level
    choice: PointChoice = field(default_factory=Full)
    number: int = 0
    rows: int = 16
    columns: Columns = IMAGE
    lattice: ControlLattice | None = None
    measure: Measure = SSD_MEASURE
    rows_beside: int = 0

    def beside(self) -> OperandRequest | None:
        """The request of the same points without the lattice, where products go through no map beside it."""
        return replace(self, rows=self.rows_beside, lattice=None, rows_beside=0) if self.rows_beside else None

    def public_map(self, grid: Grid, sample: Sample) -> PublicMap | None:
        """The map of the lattice at the level's grid and points; None where the request has no lattice."""
        if self.lattice is None:
            return None
        return map_of(self.lattice, grid, sample, self.measure.channels(grid.dimension))

    def send(self, channel: Channel, public_map: PublicMap | None) -> None:
        """Ask party_2: LEVEL, and after it SAMPLE where the points are told one by one.

        Args:
            channel: to party_2.
            public_map: that of the request, as the protocol carries it.
        """
        indices = self.choice.told()
        everywhere = None if public_map is None else replace(public_map, index=None)
        choice = self.choice if indices is None else None
        AskedOperand(self.level, choice, self.rows, self.columns, self.measure.to_meta(), everywhere).send(channel)
        if indices is not None:
            SampleIndices(indices.numpy()).send(channel)


@dataclass(frozen=True, eq=False)
class AskedOperand(Message):
    """LEVEL: a request as party_2 reads it.

    Args:
        level: within bounds.
        choice: None where the points come in a message of their own.
        rows: at most 1024.
        columns: of a known kind.
        measure: what `Measure.to_meta` gave at party_1, or whatever came in its place.
        map_everywhere: the public map, without the operand's points; None where none was asked for.
    """

    level: Level
    choice: PointChoice | None
    rows: int
    columns: Columns
    measure: Any
    map_everywhere: PublicMap | None = None

    kind = MessageKind.LEVEL

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        about_map, weights = (None, []) if self.map_everywhere is None else self.map_everywhere.to_message()
        meta = {
            "level": {"shrink": self.level.shrink, "smoothing_mm": self.level.smoothing_mm},
            "rows": self.rows,
            "choice": {"kind": Sample.kind} if self.choice is None else self.choice.to_meta(),
            "columns": asdict(self.columns),
            "measure": self.measure,
            "map": about_map,
        }
        return pack(meta, weights)

    @classmethod
    def decode(cls, payload: Buffer) -> AskedOperand:
        """See `Message`."""
        meta, weights = unpack(payload)
        try:
            level = Level(_shrink(meta["level"]["shrink"]), float(meta["level"]["smoothing_mm"]))
            rows = int(meta["rows"])
            within = level.factor <= MAX_SHRINK and 0 <= level.smoothing_mm <= MAX_SMOOTHING_MM
            if not within or not 1 <= rows <= MAX_ROWS:
                raise ValueError(f"{level}, {rows} rows")
            asked = meta["columns"]
            squares = asked.get("squares", False)
            if type(squares) is not bool:
                raise ValueError(f"squares {squares!r}")
            columns = Columns(asked["kind"], asked["transform"], int(asked.get("bins", 0)), squares)
            choice = _CHOICES[meta["choice"]["kind"]](meta["choice"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, ConfigError) as error:
            raise LinkError(f"level request out of range: {type(error).__name__} {str(error)[:200]!r}") from None
        measure = meta.get("measure", SSD_MEASURE.to_meta())
        public_map = None if meta.get("map") is None else PublicMap.from_message(meta["map"], weights)
        return cls(level, choice, rows, columns, measure, public_map)

    def points(self, channel: Channel) -> PointChoice:
        """The choice, or the points that are told one by one: the message that follows."""
        if self.choice is not None:
            return self.choice
        return Sample(torch.from_numpy(SampleIndices.receive(channel).index), None)

    def public_map(self, grid: Grid, sample: Sample, channels: int) -> PublicMap | None:
        """The map at the operand's points.

        Raises:
            LinkError: it does not fit the level's grid, the columns, the rows or the channels.
        """
        if self.map_everywhere is None:
            return None
        public_map = replace(self.map_everywhere, index=sample.index)
        if public_map.shape != grid.shape or self.columns.kind != "image" or self.rows != grid.dimension + 1:
            raise LinkError(
                f"map: of shape {public_map.shape} and {self.rows} rows, for a level of {grid.shape}; refused"
            )
        if public_map.channels != channels:
            raise LinkError(f"map: of {public_map.channels} channels, the operand has {channels}; refused")
        return public_map


def map_of(lattice: ControlLattice, grid: Grid, sample: Sample, channels: int = 1) -> PublicMap:
    """The public linear map of a lattice at one level's grid and points."""
    return PublicMap.of(grid.shape, lattice.matrices(grid)[::-1], sample.index, channels)


def _shrink(told: Any) -> int | tuple[int, ...]:
    """One factor or one an axis, each at least 1."""
    factors = [told] if isinstance(told, int) else list(told)
    if not 1 <= len(factors) <= 3 or any(type(f) is not int or f < 1 for f in factors):
        raise ValueError(f"shrink {told}")
    return factors[0] if isinstance(told, int) else tuple(factors)


def _seed(meta: dict[str, Any]) -> int:
    seed = int(meta["seed"])
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed {seed}")
    return seed


# How party_2 reads what `PointChoice.to_meta` wrote; "indices" follow in a message of their own.
_CHOICES: dict[str, Callable[[dict[str, Any]], PointChoice | None]] = {
    Full.kind: lambda meta: Full(),  # noqa: ARG005
    Uniform.kind: lambda meta: Uniform(float(meta["fraction"]), _seed(meta)),
    Permuted.kind: lambda meta: Permuted(_seed(meta)),
    Sample.kind: lambda meta: None,  # noqa: ARG005
}
