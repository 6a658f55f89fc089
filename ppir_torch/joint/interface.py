"""What a protocol is: exact integer products of party_1's rows with the columns of party_2's operand.

    R[i] = X[r_i] . Y[c_i]   for the pairs (r_i, c_i) that party_1 asks for, and for no other pair

X: (rows, points) int64 of party_1, Y: (columns, points) int64 of party_2, R: (pairs,) int64 for party_1. Where party_1
wants sums of products only (`sum_index`), party_2 adds up what is still masked, and no product is opened by itself.

A side is one party's end of a protocol for a whole session: its channels, its keys, its counters. What belongs to one
operand is in the object that `open` or `open_mapped` returns; several of them live at once (`in_use`).

A further protocol is one new file with a `MovingSide`, a `FixedSide`, their operands, where needed a dealer, and a
`Protocol`. Losses, transforms, optimisers and parties do not change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..wire.channel import Channel, Received
from ..wire.kinds import MessageKind
from .bounds import (
    LARGEST_MAPPED,
    Limits,
    Pairs,
    SumIndex,
    all_pairs,
    check_mapped,
    check_pairs,
    check_range,
    check_rows,
    check_sum_index,
    check_sums,
)
from .header import COLUMN_BITS, OperandHeader
from .in_use import OpenedOperands
from .public_map import PublicMap
from .rows import IntegerRows

__all__ = [
    "FixedOperand",
    "FixedSide",
    "MovingMappedOperand",
    "MovingOperand",
    "MovingSide",
    "Product",
    "Protocol",
    "Release",
    "compute_device",
    "release_all",
]

Release = Callable[[int], Tensor]
"""Called by party_2 before it releases `count` values: charges its cap (or raises) and returns the noise to add,
int64 (count,), zeros where the site adds none."""


@dataclass(frozen=True)
class Product:
    """One product as a protocol computes it: checked, nothing in it can overflow.

    Attributes:
        source: the rows (rows, points) int64, to be read in parts.
        pairs: (row, column) of each product.
        sum_index: which result each pair is added to; None: each is a result of its own.
        nonzero_positions: positions (n,) outside which all rows are zero, where that may be seen; None: all.
    """

    source: IntegerRows
    pairs: list[tuple[int, int]]
    sum_index: list[int] | None = None
    nonzero_positions: Tensor | None = None

    @cached_property
    def rows(self) -> Tensor:
        """All rows at once (rows, points) int64, for a protocol that has room for them."""
        return self.source.whole()

    @property
    def results(self) -> int:
        """How many values are opened."""
        return len(self.pairs) if self.sum_index is None else 1 + max(self.sum_index)


class MovingSide(ABC):
    """party_1's end of a protocol: what belongs to the session, and not to one operand.

    Args:
        channel: to party_2.

    Attributes:
        name: of the protocol, for error lines.
    """

    name: ClassVar[str] = "of this kind"

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.opened = OpenedOperands(channel)

    @abstractmethod
    def open(self, header: OperandHeader) -> MovingOperand:
        """Receive the protocol's set-up messages of a new operand."""

    def open_mapped(self, header: OperandHeader, public_map: PublicMap) -> MovingMappedOperand:  # noqa: ARG002
        """Receive the set-up messages of a new operand whose products go through a map.

        Raises:
            ConfigError: the protocol has no such products.
        """
        raise ConfigError(f"backend {self.name}: no deformable transforms, for it has no products through a map")

    def carried(self, public_map: PublicMap) -> PublicMap:
        """The map that this protocol's products go through in the place of a lattice's own, where it has little room.

        party_1 tells party_2 which.
        """
        return public_map

    def prefers_moments(self, points: int) -> bool:  # noqa: ARG002
        """Whether an affine product of N points is cheaper as D + 1 rows with D + 1 columns than as P + 1 rows."""
        return True


class MovingOperand(ABC):
    """An operand of party_2 as party_1 holds it; to be made when its set-up messages have arrived.

    Args:
        side: of the session.
        header: its public numbers.
        limits: what can be carried exactly with it.
    """

    def __init__(self, side: MovingSide, header: OperandHeader, limits: Limits) -> None:
        self.header, self.limits, self._opened = header, limits, side.opened
        side.opened.add(header.number)

    def multiply(
        self,
        rows: Tensor | IntegerRows,
        pairs: Pairs | None = None,
        nonzero_positions: Tensor | None = None,
        sum_index: SumIndex | None = None,
    ) -> Tensor:
        """Products of int64 rows (rows, points) with the operand's columns, exactly.

        Args:
            rows: X (rows, points) int64, or what makes its parts.
            pairs: (row, column) of each product; None: every row with every column, row by row.
            nonzero_positions: positions outside which all rows are zero, where that may be seen: encrypted products
                skip the rest, and take visibly less time.
            sum_index: which result each pair is added to, before anything is opened.

        Returns:
            (results,) int64: of the pairs, or their sums.

        Raises:
            RangeError: rows of a wrong shape, or a product that could overflow; nothing was sent.
            ConfigError: party_2 keeps this operand no longer, or the protocol has no such products; nothing was sent.
            LinkError: the answer is malformed. PeerLost: the other party is gone.
        """
        source = check_rows(rows, self.header)
        norms = check_range(source, self.header, self.limits)
        pairs = all_pairs(source.count, self.header.columns) if pairs is None else pairs
        product = Product(source, check_pairs(pairs, source.count, self.header), None, nonzero_positions)
        if sum_index is not None:
            sums = check_sum_index(sum_index, len(product.pairs))
            check_sums(source, norms, self.header, self.limits, product.pairs, sums)
            product = Product(source, product.pairs, sums, nonzero_positions)
        self._opened.check(self.header.number)
        self.admit(product)
        self._opened.use(self.header.number)
        return self.compute(product)

    def admit(self, product: Product) -> None:  # noqa: B027 - most protocols have nothing to add
        """Refuse, before anything is sent, what the protocol cannot do beyond the header's limits; and count it."""

    @abstractmethod
    def compute(self, product: Product) -> Tensor:
        """The results (results,) int64 of a checked product: its messages to party_2, and the answer."""


class MovingMappedOperand(ABC):
    """An operand whose products go through a map, as party_1 holds it; to be made when its set-up has arrived.

    Args:
        side: of the session.
        header: its public numbers.
        limits: what can be carried exactly with it.
        public_map: of its products.
    """

    def __init__(self, side: MovingSide, header: OperandHeader, limits: Limits, public_map: PublicMap) -> None:
        self.header, self.limits, self.public_map, self._opened = header, limits, public_map, side.opened
        side.opened.add(header.number)

    def project(self, rows: Tensor) -> Tensor:
        """B^T (X * Y) of all int64 rows (rows, points) but the last, and the last one's product, exactly; see
        `PublicMap`.

        Returns:
            (results,) int64: M for each row but the last, then one.

        Raises:
            As `MovingOperand.multiply`.
        """
        check_mapped(rows, self.header, self.public_map, self.limits)
        self._opened.check(self.header.number)
        self.admit(rows)
        self._opened.use(self.header.number)
        return self.compute(rows)

    def admit(self, rows: Tensor) -> None:  # noqa: B027 - most protocols have nothing to add
        """Refuse, before anything is sent, what the protocol cannot do beyond the header's limits; and count it."""

    @abstractmethod
    def compute(self, rows: Tensor) -> Tensor:
        """The results (results,) int64 of checked rows: the product's messages to party_2, and the answer."""


class FixedSide(ABC):
    """party_2's end of a protocol: what belongs to the session, and not to one operand.

    Args:
        channel: to party_1.

    Attributes:
        name: of the protocol, for error lines.
        takes_narrow: whether values may be of a narrower integer type than int64.
    """

    name: ClassVar[str] = "of this kind"
    takes_narrow: ClassVar[bool] = False

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def column_bits(self, points: int) -> int:  # noqa: ARG002
        """Bits, sign included, to which the columns of an operand of N points are to be quantised."""
        return COLUMN_BITS

    def mapped_bits(self, public_map: PublicMap) -> tuple[int, int]:
        """Of an operand with a map: bits of a row's largest entry, and of the column, sign included."""
        return public_map.bits_within(LARGEST_MAPPED)

    @abstractmethod
    def open(self, header: OperandHeader, values: Tensor) -> FixedOperand:
        """Send the set-up messages of a new operand, values int64 (columns, points) or, of one column, (points,).

        Raises:
            RangeError: values that are not the header's, or too large to be carried; nothing was sent.
        """

    def open_mapped(self, header: OperandHeader, values: Tensor, public_map: PublicMap) -> FixedOperand:  # noqa: ARG002
        """The same for an operand whose products go through a map.

        Raises:
            ConfigError: the protocol has no such products.
        """
        raise ConfigError(f"backend {self.name}: no deformable transforms, for it has no products through a map")


class FixedOperand(ABC):
    """An operand as party_2, whose it is, holds it.

    Args:
        header: its public numbers.
        limits: what can be carried exactly with it.
    """

    def __init__(self, header: OperandHeader, limits: Limits) -> None:
        self.header, self.limits = header, limits

    @abstractmethod
    def answer(self, request: Received, release: Release) -> None:
        """Answer the first message of one product; calls `release` once, before anything is sent.

        Raises:
            LinkError: another kind of message, or not of the agreed shape. PeerLost: the other party is gone.
        """


@dataclass(frozen=True)
class Protocol:
    """How to build the two ends of a protocol: each from its channel, its channel to the dealer (or None), a device.

    Attributes:
        name: as configurations say it.
        moving_side: party_1's end.
        fixed_side: party_2's end.
        dealer: serves (channel to party_1, channel to party_2) in a process of its own; None where none is needed.
        product_kinds: the messages that may begin a product.
        result_bits: about log2 of the largest |R|, by which point sets choose their scales.
    """

    name: str
    moving_side: Callable[[Channel, Channel | None, str], MovingSide]
    fixed_side: Callable[[Channel, Channel | None, str], FixedSide]
    dealer: Callable[[Channel, Channel], None] | None = None
    product_kinds: tuple[MessageKind, ...] = ()
    result_bits: int = 36


def compute_device(name: str) -> str:
    """ "cpu" or "cuda" for "auto", "cpu" or "cuda".

    Raises:
        ConfigError: "cuda" where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("backend.device: 'cuda', but this machine has no CUDA device; use auto or cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def release_all(count: int) -> Tensor:
    """A `Release` without cap and without noise, for tests and benchmarks of protocol code."""
    return torch.zeros(count, dtype=torch.int64)
