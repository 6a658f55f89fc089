"""Exact joint products under BFV homomorphic encryption, without rotations (TenSEAL's `sealapi`).

party_2 encrypts its operand once; party_1 multiplies by its rows, sanitises the result and sends it back masked;
party_2 decrypts uniform words, returns them, and party_1 removes the mask. Derivation and numbers:
docs/protocols/bfv.md.

>>> import threading, torch
>>> from ppir_torch.joint.interface import release_all
>>> from ppir_torch.wire.link import link_pair
>>> one, two = link_pair("party_1", "party_2")
>>> header = OperandHeader(0, points=3, rows=2, scale=1.0, offset=0.0, max_abs=3, energy=14)
>>> theirs = BfvFixedSide(two).open(header, torch.tensor([[1, 2, 3]]))
>>> ours = BfvMovingSide(one).open(header)
>>> threading.Thread(target=lambda: theirs.answer(two.receive(), release_all)).start()
>>> ours.multiply(torch.tensor([[1, 0, 1], [0, 1, 0]])).tolist()
[4, 2]
"""

from __future__ import annotations

from ...joint.header import OperandHeader
from ...joint.interface import Protocol
from ...wire.channel import Channel
from ...wire.kinds import MessageKind
from .bfv_coefficients import BfvFixedCoefficientCipher, BfvMovingCoefficientCipher, BfvReply
from .bfv_slots import BfvFixedSlotCipher, BfvMovingSlotCipher
from .coefficient_products import OwnProducts, Products
from .coefficient_sides import FixedCoefficientSide, MovingCoefficientSide
from .packing import Layout
from .second_process import SecondProcess, SharedProducts, cores
from .sides import LatticeFixedSide, LatticeMovingSide
from .slot_sides import FixedSlotSide, MovingSlotSide

__all__ = ["PROTOCOL", "BfvFixedSide", "BfvMovingSide"]

LARGE = 128  # ciphertexts of an operand, from which on a second process pays


class _BfvProducts:
    """Makes party_1's work on an operand: that of this process, or of two where the operand is large."""

    def __init__(self, cipher: BfvMovingCoefficientCipher) -> None:
        self._cipher = cipher
        self._second: SecondProcess | None = None

    def __call__(self, header: OperandHeader, layout: Layout) -> Products:
        own = OwnProducts(self._cipher, layout)
        large = layout.group == 1 and layout.ciphertexts >= LARGE
        if not large or header.rows * header.columns == 1 or cores() == 1:
            return own
        if self._second is None:
            self._second = SecondProcess(self._cipher.public_key)
        return SharedProducts(own, self._second, header)


class BfvMovingSide(LatticeMovingSide):
    """party_1's end of `bfv`.

    Args:
        channel: to party_2.
    """

    def __init__(self, channel: Channel) -> None:
        cipher = BfvMovingCoefficientCipher()
        coefficients = MovingCoefficientSide(channel, cipher, BfvReply, _BfvProducts(cipher))
        super().__init__(channel, coefficients, MovingSlotSide(channel, BfvMovingSlotCipher()))


class BfvFixedSide(LatticeFixedSide):
    """party_2's end of `bfv`.

    Args:
        channel: to party_1.
    """

    def __init__(self, channel: Channel) -> None:
        coefficients = FixedCoefficientSide(channel, BfvFixedCoefficientCipher())
        super().__init__(channel, coefficients, FixedSlotSide(channel, BfvFixedSlotCipher()))


PROTOCOL = Protocol(
    name="bfv",
    moving_side=lambda channel, _dealer, _device: BfvMovingSide(channel),
    fixed_side=lambda channel, _dealer, _device: BfvFixedSide(channel),
    product_kinds=(MessageKind.REPLY_CIPHERTEXTS,),
    result_bits=36,
)
