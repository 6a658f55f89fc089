"""party_1's view of the fixed image: a `FixedSource` whose pixels stay with party_2."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ImageError, LinkError
from ..grids import Grid
from ..images import level_grid
from ..joint.columns import Columns
from ..joint.interface import MovingSide
from ..joint.ledger import Ledger
from ..joint.opened import KeptLedger
from ..joint.operands import PrivateOperand
from ..joint.placement import select_points
from ..joint.prepared import PreparedOperand
from ..planes import Plane
from ..registration.request import OperandRequest
from ..transforms import Affine, Composite, LatticeTransform, LinearTransform, affine_from_map
from ..wire.channel import Channel
from ..wire.messages import Finish, Geometry, SharedTransform
from .handshake import greet

__all__ = ["PrivateFixed"]


SKETCH = 16_384  # numbers that the ledger keeps of each equation: coarse levels are exact


class PrivateFixed:
    """The fixed image as party_1 sees it: its public geometry, and operands whose products go through a protocol.

    Args:
        channel: to party_2, which runs `FixedParty.serve`.
        side: party_1's end of the protocol.
        protocol: its name; party_2 must run the same.
        with_ledger: keep account of what the opened values say about J.
        most: share of J's variance, beyond party_1's own image, that they may say; the run stops where it is passed.

    Attributes:
        ledgers: one for each operand so far, where they are kept.
        grid: geometry of the fixed image (public).
        mask: its foreground, where party_2's configuration discloses it, else None.
    """

    def __init__(
        self, channel: Channel, side: MovingSide, protocol: str, with_ledger: bool = True, most: float | None = None
    ) -> None:
        self.channel, self._side = channel, side
        self._with_ledger, self._most = with_ledger, most
        self._numbers = itertools.count()  # of the operands, as party_2 counts them
        self.ledgers: list[KeptLedger] = []
        greet(channel, protocol)
        received = channel.receive(Geometry.kind)
        try:
            told = Geometry.decode(received.payload)
            plane = Plane.from_numbers(told.plane) if told.plane else None
            self.grid = Grid(told.size, told.spacing, told.origin, told.direction, plane)
        except (LinkError, ImageError) as error:
            raise LinkError(f"geometry from {channel.peer}: {error}") from None
        self._centre_of_mass, self._atlas_map = told.centre_of_mass, told.atlas_map
        self.mask = None if told.mask is None else torch.from_numpy(told.mask).reshape(self.grid.shape)

    def centre_of_mass(self) -> Tensor:
        """Centre of mass (D,) of J, mm, where party_2 discloses it.

        Raises:
            ConfigError: party_2 does not.
        """
        if self._centre_of_mass is None:
            raise ConfigError("start: centre_of_mass, but party_2 does not disclose it (data.disclose_centre_of_mass)")
        return torch.tensor(self._centre_of_mass, dtype=torch.float64)

    def atlas_map(self) -> Affine:
        """The affine map from the template's points to J's, where party_2 discloses it.

        Raises:
            ConfigError: party_2 does not.
        """
        if not self._atlas_map:
            raise ConfigError("start: atlas, but party_2 does not disclose its map (data.disclose_atlas_map)")
        d = self.grid.dimension
        table = torch.tensor(self._atlas_map, dtype=torch.float64).reshape(d, d + 1)
        return affine_from_map(self.grid, table[:, :d], table[:, d])

    def prefers_moments(self, points: int) -> bool:
        """As the protocol says."""
        return self._side.prefers_moments(points)

    def operand(self, request: OperandRequest) -> PrivateOperand:
        """Have party_2 prepare the operand of one level; it refuses another measure than the one it agreed to.

        Where products go through no map beside those that do, it prepares two, of one J and so with one ledger.
        """
        wanted = request.beside()
        beside = None if wanted is None else self._prepared(wanted, None)
        operand = self._prepared(request, None if beside is None else beside.kept)
        return replace(operand, without_map=beside)

    def _prepared(self, request: OperandRequest, kept: KeptLedger | None) -> PrivateOperand:
        """One operand; what it opens is entered into `kept`, or into a ledger of its own."""
        coarse, _ = level_grid(self.grid, request.level)
        _, sample = select_points(self.grid, self.mask, request.level, request.choice, request.number)
        columns, channels = request.columns, request.measure.channels(coarse.dimension)
        public_map = request.public_map(coarse, sample)
        if public_map is not None:
            public_map = self._side.carried(public_map)
        self.channel.at(request.number, -1)
        request.send(self.channel, public_map)
        points = channels * (coarse.count if sample.index is None else sample.index.numel())
        wanted = (points, request.rows, columns.count(self.grid))
        prepared = PreparedOperand.receive(self.channel)
        header, due = prepared.header, next(self._numbers)
        if header.number != due:  # two operands of one number would be taken for each other
            raise LinkError(f"operand {header.number}: number {due} is due; refused")
        if (header.points, header.rows, header.columns) != wanted:
            raise LinkError(f"operand of points, rows and columns {header}, {wanted} were asked for")
        of_sample, of_level, gram = prepared.sample_mean_square, prepared.level_mean_square, None
        if columns.kind == "steepest_descent":
            if prepared.gram is None:
                raise LinkError("operand: the sums of its columns' products are due; refused")
            gram = torch.from_numpy(prepared.gram.copy())
        side = self._side
        remote = side.open(header) if public_map is None else side.open_mapped(header, public_map)
        return PrivateOperand(
            grid=coarse,
            sample=sample,
            columns=columns,
            remote=remote,
            channel=self.channel,
            sample_mean_square=of_sample,
            level_mean_square=of_level,
            gram=gram,
            kept=kept or self._open_ledger(columns, coarse, points, of_sample, of_level),
            full=self.grid,
            channels=channels,
        )

    def _open_ledger(
        self, columns: Columns, coarse: Grid, points: int, of_sample: float, of_level: float
    ) -> KeptLedger | None:
        if not self._with_ledger:
            return None
        if columns.kind == "steepest_descent":  # its equations are on all points of the level
            points, of_sample = coarse.count, of_level
        if columns.kind == "bins":  # its equations are on J at variance 1
            of_sample = 1.0
        self.ledgers.append(KeptLedger(Ledger(points, of_sample * points, SKETCH), points, self._most))
        return self.ledgers[-1]

    def ledger_rows(self) -> list[dict[str, Any]]:
        """What the opened values say about J, one entry an operand, as JSON values."""
        return [
            {"operand": number, "points": kept.points} | asdict(kept.last)
            for number, kept in enumerate(self.ledgers)
            if kept.last is not None
        ]

    def finish(self, shared: LinearTransform | Composite | None = None) -> None:
        """End the session; `shared` is the final transform, where the configuration shares it with party_2.

        A deformation goes as its coefficients (party_2 knows the fixed grid) and its control spacing.
        """
        Finish(None if shared is None else _shared(shared)).send(self.channel)


def _shared(transform: LinearTransform | Composite) -> SharedTransform:
    """A transform as party_2 is told it."""
    parts = [transform] if isinstance(transform, LinearTransform) else list(transform.parts)
    linear = next(part for part in parts if isinstance(part, LinearTransform))
    matrix, offset = (entry.detach().tolist() for entry in linear.affine_map())
    told = SharedTransform(matrix, offset)
    for part in parts:
        if isinstance(part, LatticeTransform):
            coefficients = part.coefficients.detach().double().numpy()
            told = replace(
                told, deformation=part.name, control_spacing_mm=part.lattice.control_spacing, coefficients=coefficients
            )
    return told
