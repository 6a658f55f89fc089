"""What a protocol is: exact integer products of party_1's rows with party_2's operand.

    R = X Y,   X: (rows, points) int64 of party_1,   Y: (points,) int64 of party_2,  R: (rows,) int64 for party_1

A further protocol is one new file with a `MovingSide`, a `FixedSide`, where needed a dealer, an `ENTRY`, its name in
`PROTOCOL_NAMES` (joint/__init__.py). Losses, transforms, optimisers and parties do not change.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, LinkError, RangeError
from ..link import Link, Message

__all__ = ["FixedSide", "Limits", "MovingSide", "OperandHeader", "ProtocolEntry", "check_range", "compute_device"]


@dataclass(frozen=True)
class OperandHeader:
    """The public numbers of one operand, sent by party_2 once per level; J is about `offset + scale * Y`.

    Attributes:
        number: counts the operands of a session.
        points: N.
        rows: the largest number of rows of one product (P + 1 for SSD); fixes how ciphertexts are packed.
        scale: intensity of one integer step.
        offset: the subtracted constant.
        max_abs: bound of |Y|.
        energy: sum of Y^2 (J^T J, disclosed once per operand).
    """

    number: int
    points: int
    rows: int
    scale: float
    offset: float
    max_abs: int
    energy: int

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> OperandHeader:
        """Inverse of `to_meta`; raises LinkError where a field is missing or not a number in range."""
        try:
            header = cls(
                **{k: int(meta[k]) for k in ("number", "points", "rows", "max_abs", "energy")},
                scale=float(meta["scale"]),
                offset=float(meta["offset"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LinkError(f"operand header: {error!r}") from None
        if header.points < 1 or header.rows < 1 or header.max_abs < 0 or header.energy < 0:
            raise LinkError(f"operand header out of range: {header}")
        if header.max_abs >= 2**62 or header.energy > header.points * header.max_abs**2:
            raise LinkError(f"operand header contradicts itself: {header}")
        if not (math.isfinite(header.scale) and header.scale > 0 and math.isfinite(header.offset)):
            raise LinkError(f"operand header out of range: {header}")
        return header


@dataclass(frozen=True)
class Limits:
    """What one protocol can carry exactly: |X| <= max_row, |R| <= max_result."""

    max_row: int
    max_result: int


class MovingSide(ABC):
    """party_1's end of a protocol over one Link."""

    limits: Limits

    @abstractmethod
    def accept_operand(self, header: OperandHeader) -> None:
        """Receive the protocol's set-up messages of a new operand, which replaces the last one."""

    @abstractmethod
    def multiply(self, rows: Tensor) -> Tensor:
        """R = X Y exactly, for int64 rows (rows, points); refuses (RangeError) before sending what could overflow."""


class FixedSide(ABC):
    """party_2's end of a protocol over one Link."""

    @abstractmethod
    def send_operand(self, header: OperandHeader, values: Tensor) -> None:
        """Send the set-up messages of a new operand, values int64 (points,)."""

    @abstractmethod
    def answer(self, request: Message) -> None:
        """Answer the first message of one product (kind PRODUCT or REPLY_CIPHERTEXTS)."""


@dataclass(frozen=True)
class ProtocolEntry:
    """How to build the two ends of a protocol: each from its link, its link to the dealer (or None), and a device.

    `party_1_learns` and `party_2_learns` go into every run's summary. `dealer` is None where none is needed; else it
    serves (link to party_1, link to party_2) in its own process.
    """

    name: str
    party_1_learns: str
    party_2_learns: str
    moving_side: Callable[[Link, Link | None, str], MovingSide]
    fixed_side: Callable[[Link, Link | None, str], FixedSide]
    dealer: Callable[[Link, Link], None] | None = None


def compute_device(name: str) -> str:
    """"cpu" or "cuda" for "auto", "cpu" or "cuda".

    Raises:
        ConfigError: "cuda" where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("backend.device: 'cuda', but this machine has no CUDA device; use auto or cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def check_range(rows: Tensor, header: OperandHeader, limits: Limits) -> None:
    """Refuse rows whose product could leave the protocol's range (Cauchy-Schwarz and Hoelder bounds on |R|).

    Raises:
        RangeError: wrong shape or type, an entry above `limits.max_row`, or a possible |R| above `limits.max_result`.
    """
    if rows.dtype != torch.int64 or rows.ndim != 2 or rows.shape[1] != header.points:
        raise RangeError(f"rows: {tuple(rows.shape)} {rows.dtype}, needed (rows, {header.points}) int64")
    if not 1 <= rows.shape[0] <= header.rows:
        raise RangeError(f"rows: {rows.shape[0]} at once, between 1 and {header.rows} were agreed")
    low, high = (int(v) for v in rows.aminmax())
    largest = max(-low, high)
    if largest > limits.max_row:
        raise RangeError(f"rows: entry of magnitude {largest}, at most {limits.max_row} is allowed")
    exact = rows.to(torch.float64)
    euclidean = float(torch.linalg.vector_norm(exact, dim=1).max()) * math.sqrt(header.energy)
    absolute = float(exact.abs_().sum(1).max()) * header.max_abs
    bound = min(euclidean, absolute) * (1 + 1e-9)
    if bound > limits.max_result:
        raise RangeError(f"product: up to {bound:.3g} is possible, at most {limits.max_result} can be carried exactly")
