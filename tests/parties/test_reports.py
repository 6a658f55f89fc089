"""What a party's process is given and what it reports: written and read again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ppir_torch.parties.accounting import Account
from ppir_torch.parties.given import Given
from ppir_torch.parties.reports import BudgetReport, PartyReport
from ppir_torch.wire.messages import SharedTransform

ACCOUNT = Account(1.0, 2.0, 300, 400, 50, 60.0, {"HELLO": 300})


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    budget = BudgetReport("releases.sqlite", "party_1", "5e1f", 100, 0, 13, coordinates=60)
    run = {"transform": {"kind": "rigid"}, "iterations": 3}
    for report in (
        PartyReport("party_1", account=ACCOUNT, run=run, ledger=[{"operand": 0}]),
        PartyReport("party_2", "the cap", 3, False, ACCOUNT, budget=budget, cap_reached=True),
        PartyReport("dealer", account=ACCOUNT),
    ):
        report.write(tmp_path / "report.json")
        assert PartyReport.read(tmp_path / "report.json") == report


def test_a_role_reports_what_it_has_and_nothing_else() -> None:
    base = {"role", "error", "exit_code", "complete"}
    assert set(PartyReport("dealer").to_json()) == base
    assert set(PartyReport("party_1", run={}, ledger=[]).to_json()) == base | {"run", "ledger"}
    assert set(PartyReport("party_2").to_json()) == base | {"transform"}
    assert set(PartyReport("party_2", "gone", 3, complete=False).to_json()) == base


def test_a_budget_names_what_its_cap_is_of() -> None:
    of_image = BudgetReport("a", "party_1", "5e1f", 100, 0, 13, foreground_voxels=2000).to_json()
    assert "coordinates" not in of_image
    assert of_image["foreground_voxels"] == 2000


def test_a_shared_transform_is_in_party_2s_report() -> None:
    linear = SharedTransform([[1.0, 0.0], [0.0, 1.0]], [2.0, 3.0])
    told = PartyReport("party_2", shared=linear).to_json()["transform"]
    assert told == {"matrix": [[1.0, 0.0], [0.0, 1.0]], "offset_mm": [2.0, 3.0]}
    lattice = SharedTransform(linear.matrix, linear.offset_mm, "bspline", (8.0, 8.0), np.zeros((2, 5, 5)))
    told = PartyReport("party_2", shared=lattice).to_json()["transform"]
    assert told["deformation"] == "bspline"
    assert told["coefficients"].shape == (2, 5, 5)


def test_what_a_process_is_given_is_one_line_of_json() -> None:
    given = Given(
        "points", {"threads": 1}, {"kind": "local", "timeout_s": 5.0}, {"party_1": {}}, {"party_1": bytes(16)}
    )
    assert "\n" not in given.to_text()
    assert json.loads(given.to_text())["keys"] == {"party_1": "00" * 16}
    assert Given.from_text(given.to_text()) == given
