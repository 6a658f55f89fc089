"""Adam over the same linearisation: ends at the best it saw, and stops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ppir_torch.losses import Linearisation
from ppir_torch.optimizers import Adam, Stopping


class Position(nn.Module):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def bowl(at: Position, record: list[Tensor] | None = None, floor: float = 1.0) -> Callable[[], Linearisation]:
    def linearise() -> Linearisation:
        x = at.x.detach().clone()
        if record is not None:
            record.append(x)
        return Linearisation(float(x @ x) + floor, 2 * x, torch.empty(0))

    return linearise


NEVER = Stopping(max_iterations=200, step_voxels=0.0, decrease=0.0)


def test_reaches_the_minimum_and_ends_at_the_best_seen() -> None:
    at, seen = Position(3.0, -2.0), []
    history = list(Adam().minimise(at, bowl(at, seen), NEVER, 1.0))
    best = min(seen, key=lambda x: float(x @ x))
    assert torch.equal(at.x.detach(), best)
    assert float(best.norm()) < 0.05
    assert [h.number for h in history] == list(range(1, len(seen) + 1))


def test_the_first_step_is_a_share_of_the_voxel() -> None:
    for voxel in (0.5, 4.0):
        at, seen = Position(100.0), []
        list(Adam(0.25).minimise(at, bowl(at, seen), Stopping(2, 0.0, 0.0), voxel))
        assert abs(seen[1] - seen[0]).item() == pytest.approx(0.25 * voxel)


def test_accepted_means_a_new_best() -> None:
    at = Position(1.0, 5.0)
    best = float("inf")
    for iteration in Adam(2.0).minimise(at, bowl(at), NEVER, 1.0):
        assert iteration.accepted == (iteration.value < best)
        best = min(best, iteration.value)


@pytest.mark.parametrize("failing_call", [1, 2, 40])
def test_a_linearisation_that_fails_leaves_the_best(failing_call: int) -> None:
    at, seen = Position(3.0), []
    inner = bowl(at, seen)

    def fails_once() -> Linearisation:
        if len(seen) + 1 == failing_call:
            raise ConnectionError("the other party is gone")
        return inner()

    with pytest.raises(ConnectionError):
        list(Adam(1.0).minimise(at, fails_once, NEVER, 1.0))
    best = min([torch.tensor([3.0], dtype=torch.float64), *seen], key=abs)
    assert torch.equal(at.x.detach(), best)


def length(stopping: Stopping, voxel_mm: float = 1.0, floor: float = 1.0) -> int:
    at = Position(3.0, 1.0)
    return len(list(Adam().minimise(at, bowl(at, floor=floor), stopping, voxel_mm)))


@pytest.mark.parametrize("most", [1, 7])
def test_stops_at_the_largest_number_of_iterations(most: int) -> None:
    assert length(Stopping(most, 0.0, 0.0)) == most


def test_stops_when_the_loss_hardly_falls() -> None:
    assert length(Stopping(200, 0.0, 1e-3), floor=1e6) < length(Stopping(200, 0.0, 1e-3), floor=1.0) < 200


def test_stops_when_the_halved_step_is_below_the_share_of_a_voxel() -> None:
    assert length(Stopping(400, 0.1, 0.0)) < length(Stopping(400, 0.01, 0.0)) < 400


def test_frozen_parameters_are_left_alone() -> None:
    at = Position(3.0)
    at.extra = nn.Parameter(torch.tensor([7.0]), requires_grad=False)
    list(Adam().minimise(at, bowl(at), NEVER, 1.0))
    assert at.extra.item() == 7.0
    assert abs(at.x.item()) < 0.05
