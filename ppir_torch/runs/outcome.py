"""What a run found and what it cost: the values of result.json (docs/result-schema.md), as dataclasses.

>>> Outcome({"iterations": 3}).complete
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..interruption import Interrupted
from ..parties.accounting import Account, write_json
from ..parties.reports import BudgetReport, PartyReport
from .processes import lost

__all__ = ["ImagesReport", "Outcome", "PointsReport", "RunReport"]

SCHEMA = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a run, clear or private, of images or points.

    Attributes:
        found: what party_1 found, or the clear run: the transform, and how it was come by.
        complete: False where a party was lost, a limit reached, or the run interrupted; `found` is the best so far
            then.
        error: one line that says why, or empty.
        accounts: what each role spent; None of those that a clear run does not have.
        peak_memory_mb: of a clear run's process; None of a private one.
        ledger: party_1's account of what the opened values say, an entry an operand; None where none was kept.
        budget: party_2's count of released values; None in a clear run.
        interrupted: what ended the run from outside; None where nothing did.
    """

    found: Mapping[str, Any]
    complete: bool = True
    error: str = ""
    accounts: Mapping[str, Account | None] = field(default_factory=lambda: {"party_1": None, "party_2": None})
    peak_memory_mb: float | None = None
    ledger: list[dict[str, Any]] | None = None
    budget: BudgetReport | None = None
    interrupted: Interrupted | None = None

    @property
    def failed(self) -> bool:
        """Whether the registration collapsed, ran away or lost all overlap; `found` is what there was before."""
        return any(warning["fatal"] for warning in self.found.get("warnings", ()))

    @classmethod
    def of(cls, reports: Mapping[str, PartyReport], interrupted: Interrupted | None = None) -> Outcome:
        """Of a private run, from its parties' reports.

        Raises:
            PeerLost: party_1 has nothing to show. Interrupted: neither, and that is why.
        """
        one, two = reports["party_1"], reports["party_2"]
        if one.run is None:
            raise interrupted or lost(reports)
        # party_1 is told that the cap is reached; how far it was passed, stands in party_2's own report.
        error = two.error if two.cap_reached else one.error
        if interrupted is not None and not one.complete:  # the parties were asked to end, which is not why
            error = str(interrupted)
        accounts = {role: report.account for role, report in reports.items()}
        return cls(one.run, one.complete, error, accounts, None, one.ledger, two.budget, interrupted)


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What result.json says of every run.

    Attributes:
        backend: that was used; for "auto" the one that was chosen.
        seconds: wall time of the whole run.
        disclosed: what each party learned of the other's data, one line each.
        outcome: what came of it.
        rmse_to_truth_mm: distance to the known transform, where one was given.
    """

    backend: str
    seconds: float
    disclosed: dict[str, list[str]]
    outcome: Outcome
    rmse_to_truth_mm: float | None

    def to_json(self) -> dict[str, Any]:
        """The values of result.json."""
        outcome = self.outcome
        values: dict[str, Any] = {"schema": SCHEMA, **outcome.found}
        values |= {item.name: getattr(self, item.name) for item in fields(self) if item.name != "outcome"}
        values |= {"complete": outcome.complete, "error": outcome.error}
        values |= {role: None if spent is None else asdict(spent) for role, spent in outcome.accounts.items()}
        values["budget"] = None if outcome.budget is None else outcome.budget.to_json()
        if outcome.peak_memory_mb is not None:
            values["peak_memory_mb"] = outcome.peak_memory_mb
        return values

    def write(self, folder: Path) -> None:
        """Write `result.json`, whole or not at all."""
        write_json(folder / "result.json", self.to_json())


@dataclass(frozen=True, kw_only=True)
class ImagesReport(RunReport):
    """What result.json says of a run of two images.

    Attributes:
        loss: name of the loss.
        loss_settings: its settings.
        backend_reason: why "auto" chose the backend; else empty.
        insecure: the backend protects neither image.
        sampler: name of the sampler.
        rmse_to_clear_mm: distance to the clear run's transform, where it was given.
    """

    loss: str
    loss_settings: dict[str, Any]
    backend_reason: str
    insecure: bool
    sampler: str
    rmse_to_clear_mm: float | None

    def to_json(self) -> dict[str, Any]:
        """See `RunReport`."""
        return super().to_json() | {"ledger": self.outcome.ledger}


@dataclass(frozen=True, kw_only=True)
class PointsReport(RunReport):
    """What result.json says of a run of two point sets.

    Attributes:
        task: "points".
        correspondence: "known" or "closest".
    """

    correspondence: str
    task: str = "points"
