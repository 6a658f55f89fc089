"""What the sums over windows say of J: the correlation ratio's opened numbers, solved by an attacker who has them all.

The sums are linear in J with rows that party_1 knows, so they go into the least-norm solution with those of the
gradient. The ledger must have every one of them, of both products, and say what the attacker gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from joint.ends import private_fixed
from torch import Tensor

from ppir_torch.images import Image, Level
from ppir_torch.joint.ledger import Ledger, LedgerEntry
from ppir_torch.losses import CorrelationRatio
from ppir_torch.optimizers import Stopping
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.registration import Deformable, Plan, register_images

Make = Callable[..., Any]
LEVEL = Level(1, 0.0)
FEW = Stopping(max_iterations=6)
WINDOWS = 12
PLANS = {
    "affine": Plan("affine", (LEVEL,), stopping=FEW, loss=CorrelationRatio(WINDOWS)),
    "bspline": Plan(
        "translation",
        (),
        loss=CorrelationRatio(WINDOWS),
        deformable=Deformable("bspline", 24.0, levels=(LEVEL,), stopping=Stopping(max_iterations=2)),
    ),
}


@pytest.mark.parametrize("protocol", ["beaver", "spdz", "bfv", "ckks"])
@pytest.mark.parametrize("name", PLANS)
def test_the_ledger_says_what_an_attacker_gets(
    name: str, protocol: str, small_pair: Make, wide: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, moving = small_pair(2)
    moving = wide(moving, 20)  # every fixed point maps inside: no sums by weights are opened beside the products
    noise = torch.rand(fixed.tensor.shape, generator=torch.Generator().manual_seed(0))
    fixed = Image(fixed.tensor + 0.1 * float(fixed.tensor.max()) * noise, fixed.grid)
    seen: list[tuple[Tensor, Tensor]] = []
    record = Ledger.record

    def remember(ledger: Ledger, rows: Tensor, results: Tensor, own: Tensor) -> LedgerEntry:
        seen.append((rows.double(), results.double()))
        return record(ledger, rows, results, own)

    monkeypatch.setattr(Ledger, "record", remember)
    released = dict.fromkeys(("products", "operand"), 0)

    def charge(count: int, kind: str) -> None:
        released[kind] += count

    party = FixedParty(fixed, measure=PLANS[name].loss, charge=charge)
    with private_fixed(protocol, party) as source:
        assert register_images(moving, source, PLANS[name]).complete
        [entry] = source.ledger_rows()  # one, though a lattice has two operands: they are of one J
    rows, results = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert entry["opened"] == len(results) == released["products"]
    # The equations are true of J: every opened number is what its row says, to the rounding of J.
    j = fixed.tensor.double().flatten()
    j = (j - j.mean()) / j.std(unbiased=False)
    assert float((rows @ j - results).norm()) < 2e-3 * float(results.norm())
    basis = torch.linalg.svd(rows, full_matrices=False)
    independent = basis.Vh[1e-5 * basis.S[0] < basis.S]
    share = float((independent @ j).square().sum() / j.square().sum())
    assert entry["explained"] == pytest.approx(share, abs=0.02)
    assert 0 < entry["own"] < entry["explained"]


def test_an_iteration_opens_the_windows_sums_and_the_gradient(small_pair: Make, wide: Make) -> None:
    """K + P + 1 numbers in 2-D: 12 + 6 + 1, where mutual information with as many bins opens 12 x 8 + 6."""
    fixed, moving = small_pair(2)
    moving = wide(moving, 20)
    plan, released = PLANS["affine"], []
    party = FixedParty(fixed, measure=plan.loss, charge=lambda count, _: released.append(count))
    with private_fixed("beaver", party) as source:
        found = register_images(moving, source, plan)
    assert released[0] == 4
    assert sum(released[1:]) == (WINDOWS + 6 + 1) * len(found.history)
