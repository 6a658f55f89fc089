"""party_1 of a point-set run: its points, and the rotation that it computes from the opened moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LinkError
from ..joint.interface import MovingSide
from ..joint.prepared import PreparedPoints
from ..joint.quantise_points import quantise_moving
from ..points.rigid import registered_rms, rigid_from_moments
from ..wire.channel import Channel
from ..wire.messages import Finish, PointsRequest, SharedTransform
from .handshake import greet
from .points import centred_points, greeting

__all__ = ["Alignment", "MovingPoints"]

REFINEMENTS = 3


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
    """party_1's points.

    Args:
        points: (n, D) mm, in the order of party_2's.
        with_scale: whether a similarity is wanted.

    Raises:
        ConfigError: too few points to be private, or all on one place. RangeError: coordinates beyond 10^9 mm.
    """

    def __init__(self, points: Tensor, with_scale: bool = False) -> None:
        self.centre, self._rows = centred_points(points)
        self._with_scale = with_scale

    def align(self, channel: Channel, side: MovingSide, protocol: str, share: bool = False) -> Alignment:
        """One session with party_2; `share` tells it the transform at the end.

        Raises:
            ConfigError: the moments leave the rotation open. RangeError: the product could overflow; it was not sent.
            LinkError: a message that is not allowed here. PeerLost: party_2 is gone, or the sets are not equal.
        """
        count, dimension = self._rows.shape
        greet(channel, greeting(protocol))
        channel.at(0, -1)
        PointsRequest(count, dimension).send(channel)
        prepared = PreparedPoints.receive(channel)
        header, wanted = prepared.header, (count, dimension, dimension)
        if header.number != 0 or (header.points, header.rows, header.columns) != wanted:
            raise LinkError(f"operand of points, rows and columns {header}, {wanted} were asked for")
        operand = side.open(header)
        integers, scale = quantise_moving(self._rows, header, operand.limits)
        channel.at(0, 0)
        exact = operand.multiply(integers).cpu().double().reshape(dimension, dimension)
        found = self._align(exact * (header.scale / scale), integers.T.double() / scale, prepared)
        Finish(SharedTransform(found.matrix.tolist(), found.offset.tolist()) if share else None).send(channel)
        return found

    def _align(self, cross: Tensor, quantised: Tensor, prepared: PreparedPoints) -> Alignment:
        """From `cross` = Q'^T Z', where Q' = `quantised` are the rounded rows.

        The rounding of Q is party_1's to know: Q^T Z is Q'^T Z plus (Q - Q')^T Z, and Z is about Q A^-T, so that
        rounding meets the residual and not the points themselves.
        """
        count, variance = len(self._rows), float(self._rows.square().sum())
        centre = torch.tensor(prepared.centre, dtype=torch.float64)
        rest, refined = self._rows - quantised, cross
        matrix, offset = rigid_from_moments(cross, self.centre, centre, variance, self._with_scale)
        for _ in range(REFINEMENTS):
            refined = cross + rest.T @ torch.linalg.solve(matrix, self._rows.T).T
            matrix, offset = rigid_from_moments(refined, self.centre, centre, variance, self._with_scale)
        # The spread is that of the rounded Z' in the product, so that their small difference is not lost in rounding.
        spread = prepared.spread
        rms = None if spread is None else registered_rms(matrix, refined, variance, spread, count)
        return Alignment(matrix, offset, rms, count)
