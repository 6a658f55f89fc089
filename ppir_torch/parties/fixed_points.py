"""party_2 of a point-set run: its points, and what it agreed to disclose of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import LinkError
from ..joint.interface import FixedSide, Protocol
from ..joint.prepared import PreparedPoints
from ..joint.quantise_points import quantise_fixed
from ..wire.channel import Channel
from ..wire.messages import Finish, PointsRequest, SharedTransform
from .handshake import greet
from .points import UnequalSets, centred_points, greeting, released_values

__all__ = ["FixedPoints", "point_set_identity"]


@dataclass
class FixedPoints:
    """party_2's points.

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
        self._centre, self._columns = centred_points(self.points)

    def serve(self, channel: Channel, side: FixedSide, protocol: Protocol) -> SharedTransform | None:
        """Answer party_1's one product; returns the transform where party_1 shares it, else None.

        Raises:
            UnequalSets: the sets differ in number or dimension; nothing of this one was sent.
            LinkError: a message that is not allowed here. PeerLost: party_1 is gone.
            BudgetExceeded: the cap of released values would be passed; nothing was sent.
        """
        count, dimension = self._columns.shape
        greet(channel, greeting(protocol.name))
        request = channel.receive(PointsRequest.kind)
        channel.at(request.level, request.iteration)
        asked = PointsRequest.decode(request.payload)
        if (asked.points, asked.dimension) != (count, dimension):
            raise UnequalSets(
                f"point sets: party_1 has {asked.points} {asked.dimension}-D points and party_2 {count} {dimension}-D "
                "points; the same number, in the same order, is needed"
            )
        header, values = quantise_fixed(self._columns, protocol.result_bits, self.disclose_spread)
        if self.charge is not None:  # all of it at once: what the cap does not allow in full is not begun
            self.charge(released_values(dimension), "points")
        self._left = dimension * dimension
        PreparedPoints(header, tuple(self._centre.tolist()), self.disclose_spread).send(channel)
        operand = side.open(header, values)
        message = channel.receive(*protocol.product_kinds)
        channel.at(message.level, message.iteration)
        operand.answer(message, self._release)
        return Finish.receive(channel).shared

    def _release(self, count: int) -> Tensor:
        if count > self._left:
            raise LinkError(f"product of {count} values, {self._left} are due; refused")
        self._left -= count
        return torch.zeros(count, dtype=torch.int64)


def point_set_identity(points: Tensor) -> str:
    """SHA-256, in hexadecimal digits, of a point set in any order: one cap for all of them."""
    rows = sorted(points.detach().cpu().double().tolist())
    return hashlib.sha256(json.dumps(["points", rows]).encode()).hexdigest()
