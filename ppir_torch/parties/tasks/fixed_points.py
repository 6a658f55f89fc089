"""party_2 of a point-set run: it answers the one product, within its site's budget."""

from __future__ import annotations

from ...config.points import FixedPointsConfig
from ...errors import PpirError
from ...interruption import Interrupted
from ...joint.interface import compute_device
from ...points.files import load_points
from ...protocols import load_protocol
from ..fixed_points import FixedPoints, point_set_identity
from ..points import UnequalSets
from ..session import Session
from .budgeted import BudgetedRole

__all__ = ["FixedPointsRole"]


class FixedPointsRole(BudgetedRole):
    """See the module's docstring.

    Args:
        config: a `FixedPointsConfig`, JSON.
    """

    subject = "these points"

    def __init__(self, config: str) -> None:
        super().__init__(config)
        self._config = FixedPointsConfig.model_validate_json(config)
        self.threads = self._config.threads

    def work(self, session: Session) -> None:
        """See `Role`."""
        config = self._config
        points = load_points(config.fixed, config.fixed_columns and config.fixed_columns.split(","))
        budget = self.open_budget(config.budget, point_set_identity(points), coordinates=points.numel())
        party = FixedPoints(points, config.disclose_spread, budget.charge)
        protocol = load_protocol(config.backend.kind)
        device = compute_device(getattr(config.backend, "device", "cpu"))
        channel = session.channels["party_1"]
        self.report.shared = party.serve(channel, protocol.fixed_side(channel, session.dealer(), device), protocol)

    def reason(self, error: PpirError | Interrupted) -> str:
        """See `Role`; both sizes are public."""
        return str(error) if isinstance(error, UnequalSets) else super().reason(error)
