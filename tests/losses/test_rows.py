"""Rows that are made where they are read: what comes of them is what comes of rows that are held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from joint.ends import private_fixed

from ppir_torch.images import Level
from ppir_torch.joint.columns import Columns
from ppir_torch.losses import Correlation, Measure, SquaredDifference, rows
from ppir_torch.losses.linearisation import Linearisation
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.transforms import Affine

MEASURES = [SquaredDifference(), Correlation()]
every_measure = pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind)
every_way = pytest.mark.parametrize("kind", ["image", "moments"])


def close(found: Linearisation, held: Linearisation) -> None:
    assert found.value == pytest.approx(held.value, rel=1e-9)
    torch.testing.assert_close(found.gradient, held.gradient, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.hessian, held.hessian, rtol=1e-7, atol=1e-9)


@every_measure
@every_way
@pytest.mark.parametrize("overlap", [False, True])
def test_in_clear(
    measure: Measure, kind: Any, overlap: bool, small_pair: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, moving = small_pair(3)
    request = OperandRequest(Level(1, 0.0), rows=13, columns=Columns(kind, squares=overlap), measure=measure)
    operand = ClearFixed(fixed).operand(request)
    if overlap:
        operand = operand.within(torch.rand(fixed.grid.count, generator=torch.Generator().manual_seed(1)))
    loss, transform = measure.loss(operand), Affine(fixed.grid)
    held = loss.linearise(transform, moving)
    monkeypatch.setattr(rows, "KEPT", 0)
    monkeypatch.setattr(rows, "CHUNK", 100)
    close(measure.loss(operand).linearise(transform, moving), held)


@every_measure
@every_way
@pytest.mark.parametrize("protocol", ["beaver"])
def test_between_parties(
    measure: Measure, kind: Any, protocol: str, small_pair: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, moving = small_pair(2)
    request = OperandRequest(Level(1, 0.0), rows=7, columns=Columns(kind), measure=measure)
    found, entries = [], []
    for kept in (rows.KEPT, 0):
        monkeypatch.setattr(rows, "KEPT", kept)
        with private_fixed(protocol, FixedParty(fixed, measure=measure)) as source:
            operand = source.operand(request)
            loss, transform = measure.loss(operand), Affine(fixed.grid)
            found.append(loss.linearise(transform, moving))
            entries.append(source.ledger_rows()[0])
    close(found[1], found[0])
    assert entries[1] == pytest.approx(entries[0], rel=1e-6)
