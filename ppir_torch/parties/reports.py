"""What a party's process reports of its session: a value, and the JSON file that it leaves in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..wire.messages import SharedTransform
from .accounting import Account, write_json

__all__ = ["BudgetReport", "PartyReport"]


@dataclass(frozen=True)
class BudgetReport:
    """party_2's count of the values that it released to one peer, over all runs.

    Attributes:
        file: of the count.
        peer: who receives the values.
        image: SHA-256 of the image or point set.
        cap: most values that may ever be released of it to this peer.
        spent_before: values released before this run.
        spent: values released up to now.
        foreground_voxels: of an image, by which the cap is set; None of a point set.
        coordinates: of a point set, by which the cap is set; None of an image.
    """

    file: str
    peer: str
    image: str
    cap: int
    spent_before: int
    spent: int
    foreground_voxels: int | None = None
    coordinates: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class PartyReport:
    """How one role's session went.

    Attributes:
        role: "party_1", "party_2" or "dealer".
        error: one line, or empty.
        exit_code: of the process: 0, or the error's.
        complete: False where the session did not come to its end.
        account: what it cost this party; None where it ended before its session began.
        run: of party_1: what was found, the values of result.json.
        ledger: of party_1 with an image: what the opened values say about the other one, an entry an operand.
        budget: of party_2.
        cap_reached: of party_2: its cap on released values ended the run.
        shared: of party_2: the final transform, where party_1 shares it.
    """

    role: str
    error: str = ""
    exit_code: int = 0
    complete: bool = True
    account: Account | None = None
    run: dict[str, Any] | None = None
    ledger: list[dict[str, Any]] | None = None
    budget: BudgetReport | None = None
    cap_reached: bool = False
    shared: SharedTransform | None = None

    def to_json(self) -> dict[str, Any]:
        """As the values of the file; those that this role does not have are left out."""
        values: dict[str, Any] = {"role": self.role, "error": self.error, "exit_code": self.exit_code}
        values["complete"] = self.complete
        for name, value in (("account", self.account), ("run", self.run), ("ledger", self.ledger)):
            if value is not None:
                values[name] = value
        if self.budget is not None:
            values["budget"] = self.budget.to_json()
        if self.cap_reached:
            values["cap_reached"] = True
        if self.role == "party_2" and self.complete:
            values["transform"] = None if self.shared is None else _shared_values(self.shared)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PartyReport:
        """Of the values of a file, but for the shared transform, which is party_2's own."""
        known = {item.name for item in fields(cls)} - {"account", "budget", "shared"}
        report = cls(**{name: value for name, value in values.items() if name in known})
        account, budget = values.get("account"), values.get("budget")
        report.account = None if account is None else Account(**account)
        report.budget = None if budget is None else BudgetReport(**budget)
        return report

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> PartyReport:
        """Read a file that `write` wrote."""
        return cls.from_json(json.loads(path.read_text()))


def _shared_values(shared: SharedTransform) -> dict[str, Any]:
    values = shared.to_meta()
    return values if shared.coefficients is None else values | {"coefficients": shared.coefficients}
