"""Both ends of a protocol over ciphertexts: products through a public map use slots, all others coefficients."""

from __future__ import annotations

from torch import Tensor

from ...joint.header import OperandHeader
from ...joint.interface import FixedSide, MovingSide
from ...joint.public_map import PublicMap
from ...wire.channel import Channel
from .coefficient_sides import (
    FixedCoefficientOperand,
    FixedCoefficientSide,
    MovingCoefficientOperand,
    MovingCoefficientSide,
)
from .slot_sides import FixedSlotOperand, FixedSlotSide, MovingSlotOperand, MovingSlotSide
from .slots import MAX_RESULT, slot_bits

__all__ = ["LatticeFixedSide", "LatticeMovingSide"]


class LatticeMovingSide(MovingSide):
    """party_1: multiplies encrypted operands by its rows and sanitises what it sends back.

    Args:
        channel: to party_2.
        coefficients: for operands without a map.
        slots: for operands with one.
    """

    def __init__(self, channel: Channel, coefficients: MovingCoefficientSide, slots: MovingSlotSide) -> None:
        super().__init__(channel)
        self.coefficients, self.slots = coefficients, slots

    def open(self, header: OperandHeader) -> MovingCoefficientOperand:
        """See `MovingSide` and `MovingCoefficientSide.open`."""
        return self.coefficients.open(self, header)

    def open_mapped(self, header: OperandHeader, public_map: PublicMap) -> MovingSlotOperand:
        """See `MovingSide` and `MovingSlotSide.open`."""
        return self.slots.open(self, header, public_map)

    def carried(self, public_map: PublicMap) -> PublicMap:
        """See `MovingSide`: t leaves fewer bits than the words of the other protocols."""
        return public_map.within(MAX_RESULT)

    def prefers_moments(self, points: int) -> bool:
        """Fewer plaintexts to transform count above a quarter of a million points; below, the smaller reply does."""
        return points > 1 << 18


class LatticeFixedSide(FixedSide):
    """party_2: holds the secret keys, encrypts its operands, decrypts masked words.

    Args:
        channel: to party_1.
        coefficients: for operands without a map.
        slots: for operands with one.
    """

    def __init__(self, channel: Channel, coefficients: FixedCoefficientSide, slots: FixedSlotSide) -> None:
        super().__init__(channel)
        self.coefficients, self.slots = coefficients, slots

    def mapped_bits(self, public_map: PublicMap) -> tuple[int, int]:
        """See `FixedSide`."""
        return slot_bits(public_map)

    def open(self, header: OperandHeader, values: Tensor) -> FixedCoefficientOperand:
        """See `FixedSide` and `FixedCoefficientSide.open`."""
        return self.coefficients.open(header, values)

    def open_mapped(self, header: OperandHeader, values: Tensor, public_map: PublicMap) -> FixedSlotOperand:
        """See `FixedSide` and `FixedSlotSide.open`."""
        return self.slots.open(header, values, public_map)
