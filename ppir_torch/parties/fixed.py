"""party_2: holds the fixed image, prepares operands, answers products, and never sees the moving image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..arithmetic.csprng import KeyStream, gaussian_words, new_key
from ..errors import ConfigError, LinkError
from ..images import Image, level_grid
from ..joint.columns import columns_of
from ..joint.in_use import KeptOperands
from ..joint.interface import FixedOperand, FixedSide, Protocol
from ..joint.placement import select_points
from ..joint.prepared import prepare
from ..joint.public_map import FEW_BITS, PublicMap
from ..joint.quantise import row_norm
from ..losses import Measure
from ..registration.request import SSD_MEASURE, AskedOperand
from ..transforms import Affine
from ..wire.channel import Channel, Received
from ..wire.messages import Finish, Geometry, OperandInUse, SharedTransform
from .handshake import greet

__all__ = ["FixedParty"]

NOISE_REACH = 6.0  # standard deviations; what is beyond is cut
# Every operand discloses mean, scale and energy; over few points they would say much about each.
MAX_OPERANDS = 256
MIN_POINTS = 32


@dataclass(frozen=True)
class _Kept:
    """An operand that products may be with, and the map that they go through, or None."""

    operand: FixedOperand
    public_map: PublicMap | None = None


@dataclass
class FixedParty:
    """party_2's state: its image and what it agreed to disclose.

    Args:
        image: the fixed image J, one channel.
        mask: foreground, or None; disclosed to party_1 when given.
        disclose_centre_of_mass: whether GEOMETRY says where J's mass is.
        disclose_gram: whether operands of steepest-descent images, with the sums of their products, may be asked for
            (inverse-compositional Gauss-Newton).
        charge: called with (count, kind) before values are released; raises where the cap would be passed.
        noise: standard deviation of the noise on every released product, as a share of what such a product has when
            the images have nothing in common: as if J had fresh noise of this share of its own size in every voxel.
        measure: what operands are made of; another one that party_1 asks for is refused.
        atlas_map: from a template's points to J's, which GEOMETRY says; None: it does not.
    """

    image: Image
    mask: Tensor | None = None
    disclose_centre_of_mass: bool = False
    disclose_gram: bool = False
    charge: Callable[[int, str], None] | None = None
    noise: float = 0.0
    measure: Measure = SSD_MEASURE
    atlas_map: Affine | None = None

    def serve(self, channel: Channel, side: FixedSide, protocol: Protocol) -> SharedTransform | None:
        """Answer party_1 until it finishes; returns the final transform where party_1 shares it, else None.

        Raises:
            LinkError: a message that is not allowed here. PeerLost: party_1 is gone.
            BudgetExceeded: the cap of released values would be passed.
        """
        greet(channel, protocol.name)
        told = self._geometry()
        if told.atlas_map:  # of a template that whoever wrote the configuration chose: values of J like any others
            self._spend(len(told.atlas_map), "atlas")
        told.send(channel)
        kept, number = KeptOperands[_Kept](), 0
        noise = KeyStream(new_key())
        due = (AskedOperand.kind, OperandInUse.kind, *protocol.product_kinds, Finish.kind)
        while True:
            message = channel.receive(*due)
            channel.at(message.level, message.iteration)
            if message.kind is Finish.kind:
                return Finish.decode(message.payload).shared
            if message.kind is AskedOperand.kind:
                kept.add(number, self._prepare(channel, side, message, number))
                number += 1
            elif number == 0:
                raise LinkError(f"{message.kind.name} before the first level; refused")
            elif message.kind is OperandInUse.kind:
                kept.use(OperandInUse.decode(message.payload).number)
            else:
                of = kept.in_use
                of.operand.answer(message, partial(self._release, of, noise))

    def _release(self, of: _Kept, stream: KeyStream, count: int) -> Tensor:
        """Leave to release `count` products of an operand, and the noise to add to them."""
        self._spend(count, "products")
        if self.noise == 0:
            return torch.zeros(count, dtype=torch.int64)
        header, limits = of.operand.header, of.operand.limits
        root_mean_square = math.sqrt(header.energy / header.points)
        if of.public_map is None:
            # Quantised rows have |X|_2 between a half and all of row_norm (peaked ones less): 1 to 2 times `noise`.
            return self._noise(stream, of.operand, count, row_norm(header, limits) * root_mean_square)
        # A gradient's largest entry is some four times its typical one; rows scaled by their sums come to more.
        # The last result is a sum without weights.
        peak = 4 if header.row_bits >= FEW_BITS else 1
        typical = min(2.0**header.row_bits, limits.max_row) / peak * root_mean_square
        fields = self._noise(stream, of.operand, count - 1, typical * of.public_map.largest_length)
        return torch.cat([fields, self._noise(stream, of.operand, 1, typical * math.sqrt(header.points))])

    def _noise(self, stream: KeyStream, operand: FixedOperand, count: int, size: float) -> Tensor:
        """Noise for `count` results that are of this size where the images have nothing in common."""
        deviation = self.noise * size
        if NOISE_REACH * deviation > operand.limits.max_result / 32:
            raise ConfigError(f"budget.noise: {self.noise}, too large for {operand.header.points} points")
        self._noisy += 1
        return gaussian_words(stream, self._noisy, count, deviation, NOISE_REACH)

    _noisy: int = field(default=0, init=False)

    def _spend(self, count: int, kind: str) -> None:
        if self.charge is not None:
            self.charge(count, kind)

    def _geometry(self) -> Geometry:
        grid = self.image.grid
        centre = tuple(self.image.centre_of_mass().tolist()) if self.disclose_centre_of_mass else None
        mask = None if self.mask is None else self.mask.flatten().cpu().numpy()
        plane = () if grid.plane is None else grid.plane.to_numbers()
        told: tuple[float, ...] = ()
        if self.atlas_map is not None:
            matrix, offset = (part.detach().double() for part in self.atlas_map.affine_map())
            told = tuple(torch.cat([matrix, offset[:, None]], 1).flatten().tolist())
        return Geometry(grid.size, grid.spacing, grid.origin, grid.direction, centre, mask, plane, told)

    def _prepare(self, channel: Channel, side: FixedSide, request: Received, number: int) -> _Kept:
        """The operand that a message asks for: refused, or charged, told and opened."""
        asked = AskedOperand.decode(request.payload)
        self._check(asked)
        chosen = asked.points(channel)
        candidates, sample = select_points(self.image.grid, self.mask, asked.level, chosen, request.level)
        coarse = level_grid(self.image.grid, asked.level)[0]
        voxels = coarse.count if sample.index is None else sample.index.numel()
        public_map = asked.public_map(coarse, sample, self.measure.channels(coarse.dimension))
        if number >= MAX_OPERANDS or voxels < MIN_POINTS:
            raise LinkError(f"operand {number}: at most {MAX_OPERANDS} a session, of at least {MIN_POINTS} points each")
        features = self.measure.features(self.image.at_level(asked.level), coarse)
        full, normalised = self.image.grid, self.measure.normalised
        fixed = columns_of(features, candidates, sample.index, asked.columns, full, normalised)
        values, told = prepare(fixed, asked.columns, asked.rows, number, side, public_map)
        self._spend(told.released, "operand")
        told.send(channel)
        if public_map is None:
            return _Kept(side.open(told.header, values))
        return _Kept(side.open_mapped(told.header, values, public_map), public_map)

    def _check(self, asked: AskedOperand) -> None:
        """Refuse an operand of anything but what was agreed on."""
        columns, agreed = asked.columns, self.measure.to_meta()
        if columns.kind == "steepest_descent" and not self.disclose_gram:
            raise LinkError(
                "operand: inverse-compositional was asked for, and this party does not disclose S^T S and S^T J "
                "(optimizer.kind); refused"
            )
        if asked.measure != agreed:
            raise LinkError(
                f"operand: loss {str(asked.measure)[:200]} was asked for, this party agreed to {agreed}; refused"
            )
        if columns.bins != self.measure.columns().bins:
            raise LinkError(f"operand: {columns.bins} bins of loss {self.measure.kind!r}; refused")
        if columns.kind == "steepest_descent" and self.measure.kind != "ssd":
            raise LinkError(f"operand: steepest-descent images of loss {self.measure.kind!r}, there are none; refused")
