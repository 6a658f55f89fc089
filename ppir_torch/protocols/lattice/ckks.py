"""Exact joint products under CKKS homomorphic encryption, without rotations (TenSEAL's `sealapi`).

party_2 encrypts its operand once; party_1 multiplies by its rows, re-randomises and masks the result, and sends it;
party_2 decrypts uniform words, floods and returns them; party_1 removes the mask and rounds to the integer. Derivation
and numbers: docs/protocols/ckks.md.

>>> import threading, torch
>>> from ppir_torch.joint.header import OperandHeader
>>> from ppir_torch.joint.interface import release_all
>>> from ppir_torch.wire.link import link_pair
>>> one, two = link_pair("party_1", "party_2")
>>> header = OperandHeader(0, points=3, rows=2, scale=1.0, offset=0.0, max_abs=3, energy=14)
>>> theirs = CkksFixedSide(two).open(header, torch.tensor([[1, 2, 3]]))
>>> ours = CkksMovingSide(one).open(header)
>>> threading.Thread(target=lambda: theirs.answer(two.receive(), release_all)).start()
>>> ours.multiply(torch.tensor([[1, 0, 1], [0, 1, 0]])).tolist()
[4, 2]
"""

from __future__ import annotations

from ...joint.interface import Protocol
from ...wire.channel import Channel
from ...wire.kinds import MessageKind
from .ckks_coefficients import CkksFixedCoefficientCipher, CkksMovingCoefficientCipher, CkksReply
from .ckks_slots import CkksFixedSlotCipher, CkksMovingSlotCipher
from .coefficient_sides import FixedCoefficientSide, MovingCoefficientSide
from .sides import LatticeFixedSide, LatticeMovingSide
from .slot_sides import FixedSlotSide, MovingSlotSide

__all__ = ["PROTOCOL", "CkksFixedSide", "CkksMovingSide"]


class CkksMovingSide(LatticeMovingSide):
    """party_1's end of `ckks`.

    Args:
        channel: to party_2.
    """

    def __init__(self, channel: Channel) -> None:
        coefficients = MovingCoefficientSide(channel, CkksMovingCoefficientCipher(), CkksReply)
        super().__init__(channel, coefficients, MovingSlotSide(channel, CkksMovingSlotCipher()))


class CkksFixedSide(LatticeFixedSide):
    """party_2's end of `ckks`.

    Args:
        channel: to party_1.
    """

    def __init__(self, channel: Channel) -> None:
        coefficients = FixedCoefficientSide(channel, CkksFixedCoefficientCipher())
        super().__init__(channel, coefficients, FixedSlotSide(channel, CkksFixedSlotCipher()))


PROTOCOL = Protocol(
    name="ckks",
    moving_side=lambda channel, _dealer, _device: CkksMovingSide(channel),
    fixed_side=lambda channel, _dealer, _device: CkksFixedSide(channel),
    product_kinds=(MessageKind.REPLY_CIPHERTEXTS,),
    result_bits=48,
)
