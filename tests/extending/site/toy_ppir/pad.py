"""The protocol `pad`: its settings and its entry."""

from __future__ import annotations

from typing import Literal

from ppir_torch.config import KindSettings, ProtocolEntry


class PadConfig(KindSettings):
    """One-time pads of words of 64 bits, dealt by a third process."""

    kind: Literal["pad"] = "pad"


PAD = ProtocolEntry(
    PadConfig,
    "one-time pads of 64 bits from a dealer process; a lesson, not a fast protocol",
    "toy_ppir.pad_protocol:PROTOCOL",
    party_1_learns="the opened products of each iteration; per level the mean, scale and energy of J",
    party_2_learns="sizes and timing only; the dealer the same",
    dealer=True,
    points=True,
)
