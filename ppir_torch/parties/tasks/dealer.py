"""The dealer of a run: it makes a protocol's randomness for both parties, and has no data of either."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import ConfigError
from ...protocols import load_protocol
from ..session import Role, Session

__all__ = ["DealerRole"]


class DealerRole(Role):
    """Serves until party_1 ends the run, or a party's link closes.

    Args:
        config: the backend's settings, JSON.
    """

    name = "dealer"
    patience_s = 7 * 86400.0  # an idle dealer costs nothing

    def __init__(self, config: str) -> None:
        super().__init__(config)
        self._kind = str(json.loads(config)["kind"])

    def work(self, session: Session) -> None:
        """See `Role`."""
        protocol = load_protocol(self._kind)
        if protocol.dealer is None:
            raise ConfigError(f"backend {protocol.name}: it has no dealer")
        protocol.dealer(session.channels["party_1"], session.channels["party_2"])

    def keep(self, folder: Path) -> None:
        """A dealer has no results."""
