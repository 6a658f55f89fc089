"""Sums in float64 over parts: the last bit does not depend on how they are cut."""

from __future__ import annotations

import pytest
import torch

from ppir_torch.joint.exact import PART, ExactProducts, exact_products


@pytest.mark.parametrize("step", [1000, PART, PART + 1, 3 * PART])
@pytest.mark.parametrize("points", [5, PART, 2 * PART + 77])
def test_sums_of_parts_are_those_of_the_whole_to_the_last_bit(points: int, step: int) -> None:
    draw = torch.Generator().manual_seed(points)
    rows, columns = torch.randn(3, points, generator=draw), torch.randn(2, points, generator=draw)
    sums = ExactProducts(3, 2, rows.device)
    for start in range(0, points, step):
        sums.add(rows[:, start : start + step], columns[:, start : start + step])
    assert torch.equal(sums.total(), exact_products(rows, columns))
    torch.testing.assert_close(sums.total(), rows.double() @ columns.double().T, rtol=1e-12, atol=1e-9)
