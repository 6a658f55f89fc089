"""The transport `loopback`: its settings and its entry."""

from __future__ import annotations

from typing import Literal

from ppir_torch.config import TransportConfig, TransportEntry


class LoopbackConfig(TransportConfig):
    """TCP over the loopback device of this machine."""

    kind: Literal["loopback"] = "loopback"


LOOPBACK = TransportEntry(
    LoopbackConfig, "TCP over this machine's loopback device", "toy_ppir.loopback_transport:LoopbackTransport"
)
