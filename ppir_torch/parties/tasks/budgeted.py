"""party_2 of any task: what it releases is counted against its site's cap, over all runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ...config.groups import BudgetConfig, PointsBudgetConfig
from ...errors import BudgetExceeded, PpirError
from ...interruption import Interrupted
from ..budget import ReleaseBudget, default_path
from ..reports import BudgetReport
from ..session import Role

__all__ = ["BudgetedRole"]


class BudgetedRole(Role):
    """A role whose report names its budget, and how much of it is spent.

    Attributes:
        subject: what values are released of, for the peer's line.
    """

    name, told = "party_2", "party_1"
    subject: ClassVar[str]

    def __init__(self, config: str) -> None:
        super().__init__(config)
        self._budget: ReleaseBudget | None = None

    def open_budget(
        self,
        settings: BudgetConfig | PointsBudgetConfig,
        identity: str,
        foreground_voxels: int | None = None,
        coordinates: int | None = None,
    ) -> ReleaseBudget:
        """This site's cap on what may be released of its data; the report names it.

        Args:
            settings: of the configuration.
            identity: of the image or point set, see `budget.image_identity`.
            foreground_voxels: of an image, by which the cap is set.
            coordinates: of a point set, by which the cap is set.

        Raises:
            ConfigError: the file of the count cannot be used.
        """
        size = (foreground_voxels or 0) + (coordinates or 0)
        cap = int(settings.fraction * size) if settings.max_values is None else settings.max_values
        budget = self._budget = ReleaseBudget(settings.file or default_path(), settings.peer, identity, cap)
        spent = budget.spent
        self.report.budget = BudgetReport(
            str(budget.path), budget.peer, identity, cap, spent, spent, foreground_voxels, coordinates
        )
        return budget

    def reason(self, error: PpirError | Interrupted) -> str:
        """See `Role`; that the cap is reached is told, how far it is passed is not."""
        if isinstance(error, BudgetExceeded):
            return f"its site's cap on released values of {self.subject} is reached"
        return super().reason(error)

    def keep(self, folder: Path) -> None:  # noqa: ARG002
        """See `Role`; the count as it is now."""
        if self._budget is not None and self.report.budget is not None:
            self.report.budget = replace(self.report.budget, spent=self._budget.spent)
