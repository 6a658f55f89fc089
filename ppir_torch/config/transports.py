"""The transports: how the parties of a run get links. Settings and entries; the code is in `ppir_torch.transport`.

>>> TRANSPORTS.names()
('local',)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from .base import KindSettings
from .registry import Entry, OneOf, Registry

__all__ = ["TRANSPORTS", "LocalConfig", "Transport", "TransportConfig", "TransportEntry"]


@dataclass(frozen=True)
class TransportEntry(Entry):
    """A transport; `home` is its class, a `ppir_torch.transport.Transport` made with the settings."""


class TransportConfig(KindSettings):
    """Base of the settings of transports; `timeout_s` of silence and a peer counts as lost."""

    timeout_s: float = Field(default=600, ge=1, le=86_400)


class LocalConfig(TransportConfig):
    """All parties on this machine."""

    kind: Literal["local"] = "local"


TRANSPORTS = Registry(
    "transport",
    "ppir_torch.transports",
    TransportEntry,
    TransportConfig,
    TransportEntry(
        LocalConfig, "socket pairs between processes of this machine", "ppir_torch.transport.local:LocalTransport"
    ),
)

Transport = Annotated[TransportConfig, OneOf(TRANSPORTS, default="local")]
