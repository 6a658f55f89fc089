"""Which operand a product is with: several live in one session, and the wire names one only when it changes.

A product goes with the operand that was opened last, or that OPERAND_IN_USE named last. party_2 keeps the last
`OPERANDS_KEPT`; party_1 counts alike, and refuses a product with an older one before anything is sent.

>>> from ppir_torch.wire.link import link_pair
>>> left, right = link_pair("party_1", "party_2")
>>> opened, kept = OpenedOperands(left), KeptOperands[str]()
>>> for number, name in enumerate(["coarse", "fine"]):
...     opened.add(number)
...     kept.add(number, name)
>>> kept.in_use
'fine'
>>> opened.use(0)
>>> kept.use(OperandInUse.receive(right).number)
>>> kept.in_use
'coarse'
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ..errors import ConfigError, LinkError
from ..wire.channel import Channel
from ..wire.messages import OperandInUse

__all__ = ["OPERANDS_KEPT", "KeptOperands", "OpenedOperands"]

OPERANDS_KEPT = 16

Kept = TypeVar("Kept")


class OpenedOperands:
    """party_1's account of the operands that party_2 keeps, and of the one that it takes the next product to be with.

    Args:
        channel: to party_2.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers: list[int] = []
        self._in_use = -1

    def add(self, number: int) -> None:
        """An operand was opened: it is the one in use, and the oldest one may be kept no longer."""
        self._numbers = [*self._numbers, number][-OPERANDS_KEPT:]
        self._in_use = number

    def check(self, number: int) -> None:
        """Refuse an operand that party_2 keeps no longer.

        Raises:
            ConfigError: so many were opened after it.
        """
        if number not in self._numbers:
            raise ConfigError(
                f"operand {number}: {OPERANDS_KEPT} more were opened since, and party_2 keeps no more; open it again"
            )

    def use(self, number: int) -> None:
        """Have the next product be with this operand; sends OPERAND_IN_USE where it is another one than before.

        Raises:
            ConfigError: as `check`; nothing was sent.
        """
        self.check(number)
        if number != self._in_use:
            OperandInUse(number).send(self._channel)
            self._in_use = number


class KeptOperands(Generic[Kept]):
    """party_2's last operands, by number, and the one that products are with."""

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self._in_use: Kept | None = None

    def add(self, number: int, operand: Kept) -> None:
        """Keep an operand, which is the one in use, and forget the oldest one where there are too many."""
        self._kept[number] = operand
        self._in_use = operand
        for oldest in list(self._kept)[:-OPERANDS_KEPT]:
            del self._kept[oldest]

    def use(self, number: int) -> None:
        """Take the products that follow to be with this operand, as party_1's OPERAND_IN_USE asks.

        Raises:
            LinkError: there is no such operand, or it is kept no longer.
        """
        if number not in self._kept:
            raise LinkError(f"operand {number} is asked for, and is not among those kept; refused")
        self._in_use = self._kept[number]

    @property
    def in_use(self) -> Kept:
        """The operand of the next product; raises LinkError before the first one."""
        if self._in_use is None:
            raise LinkError("product before the first operand; refused")
        return self._in_use
