"""Gauss-Newton (Levenberg-Marquardt) on small functions: steps, rejections, and every way to stop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppir_torch.losses import Linearisation
from ppir_torch.optimizers import GaussNewton, Stopping

NEVER = Stopping(max_iterations=30, step_voxels=0.0, decrease=0.0)


class Parameters(nn.Module):
    """A bare vector, in two parts so that the order of parts matters."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(values[:1], dtype=torch.float64))
        self.rest = nn.Parameter(torch.tensor(values[1:], dtype=torch.float64))

    def vector(self) -> Tensor:
        return torch.cat([self.first, self.rest]).detach()


def quadratic(at: Parameters, minimum: Tensor, hessian: Tensor, floor: float = 0.0) -> Callable[[], Linearisation]:
    def linearise() -> Linearisation:
        difference = at.vector() - minimum
        value = float(0.5 * difference @ hessian @ difference) + floor
        return Linearisation(value, hessian @ difference, hessian)

    return linearise


def arctangent(at: Parameters) -> Callable[[], Linearisation]:
    """atan(p)^2: from 2 a plain Gauss-Newton step overshoots ever more."""

    def linearise() -> Linearisation:
        p = at.vector()
        residual, slope = torch.atan(p), 1 / (1 + p**2)
        return Linearisation(float(residual @ residual), 2 * residual * slope, torch.diag(2 * slope**2))

    return linearise


@settings(deadline=None)
@given(
    entries=st.lists(st.floats(-3, 3), min_size=9, max_size=9),
    minimum=st.lists(st.floats(-50, 50), min_size=3, max_size=3),
)
def test_a_quadratic_is_solved_in_one_step(entries: list[float], minimum: list[float]) -> None:
    root = torch.tensor(entries, dtype=torch.float64).reshape(3, 3)
    hessian = root @ root.T + torch.eye(3, dtype=torch.float64)
    parameters, target = Parameters(1.0, 2.0, 3.0), torch.tensor(minimum, dtype=torch.float64)
    iterations = GaussNewton(damping=0.0).minimise(parameters, quadratic(parameters, target, hessian), NEVER, 1.0)
    next(iterations)
    second = next(iterations, None)
    assert second is None or second.value < 1e-12 * float(hessian.max())
    torch.testing.assert_close(parameters.vector(), target, rtol=0, atol=1e-7)


def test_every_iteration_is_one_linearisation() -> None:
    parameters, calls = Parameters(2.0, 1.0), []
    inner = arctangent(parameters)

    def counted() -> Linearisation:
        calls.append(parameters.vector())
        return inner()

    history = list(GaussNewton().minimise(parameters, counted, NEVER, 1.0))
    assert [h.number for h in history] == list(range(1, len(calls) + 1))
    assert history[0].accepted
    assert history[0].step_mm == 0.0


def test_a_step_that_raises_the_loss_is_taken_back() -> None:
    parameters = Parameters(2.0)
    history, positions = [], []
    for iteration in GaussNewton(damping=0.0).minimise(parameters, arctangent(parameters), NEVER, 1.0):
        history.append(iteration)
        positions.append(parameters.vector().item())
    rejected = [i for i, h in enumerate(history) if not h.accepted]
    assert rejected, "the plain step from 2 overshoots"
    for i in rejected:
        assert positions[i] == positions[i - 1]
        assert history[i].value >= min(h.value for h in history[:i])
    damping = [h.damping for h in history]
    assert damping[rejected[0] + 1] > damping[rejected[0]]
    assert abs(positions[-1]) < 1e-6


@pytest.mark.parametrize(("start", "then"), [(1.38, 0.1), (1.3, 1e-2), (0.5, 1e-3)])
def test_damping_follows_what_a_kept_step_gained_of_what_was_expected(start: float, then: float) -> None:
    """From 1.38 it gains less than a tenth of what the model says, from 1.3 a seventh, from 0.5 all."""
    parameters = Parameters(start)
    history = list(GaussNewton(damping=1e-2).minimise(parameters, arctangent(parameters), NEVER, 1.0))
    assert history[1].accepted
    assert history[2].damping == then


def test_yielded_parameters_always_hold_the_best_so_far() -> None:
    parameters, best = Parameters(2.0, -1.7), math.inf
    linearise = arctangent(parameters)
    for iteration in GaussNewton(damping=0.0).minimise(parameters, linearise, NEVER, 1.0):
        best = min(best, iteration.value)
        assert linearise().value == pytest.approx(best, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
def test_a_linearisation_that_fails_leaves_the_best(failing_call: int) -> None:
    parameters, values = Parameters(2.0, 1.0), []
    inner = arctangent(parameters)

    def fails_once() -> Linearisation:
        if len(values) + 1 == failing_call:
            raise ConnectionError("the other party is gone")
        values.append(inner().value)
        return inner()

    with pytest.raises(ConnectionError):
        list(GaussNewton(damping=0.0).minimise(parameters, fails_once, NEVER, 1.0))
    start = float(torch.atan(torch.tensor([2.0, 1.0], dtype=torch.float64)).square().sum())
    assert inner().value == pytest.approx(min([start, *values]), rel=1e-12)


def test_closing_the_generator_leaves_the_best() -> None:
    parameters = Parameters(2.0)
    iterations = GaussNewton(damping=0.0).minimise(parameters, arctangent(parameters), NEVER, 1.0)
    first, second = next(iterations), next(iterations)
    iterations.close()
    assert not second.accepted
    assert parameters.vector().item() == 2.0
    assert first.value < second.value


def run(stopping: Stopping, voxel_mm: float = 1.0, floor: float = 0.0) -> tuple[int, float]:
    """(iterations, remaining distance) on a quadratic, with a damping that shrinks the steps."""
    parameters = Parameters(100.0, 100.0)
    hessian = torch.eye(2, dtype=torch.float64)
    linearise = quadratic(parameters, torch.zeros(2, dtype=torch.float64), hessian, floor)
    history = list(GaussNewton(damping=1.0).minimise(parameters, linearise, stopping, voxel_mm))
    return len(history), float(parameters.vector().norm())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_stops_at_the_largest_number_of_iterations(most: int) -> None:
    assert run(Stopping(most, 0.0, 0.0))[0] == most


def test_stops_at_small_steps_measured_in_voxels() -> None:
    coarse, fine = (run(Stopping(30, share, 0.0)) for share in (1e-1, 1e-6))
    assert coarse[0] < fine[0] < 30
    assert coarse[1] < 0.2
    assert fine[1] < 1e-5
    assert run(Stopping(30, 1e-3, 0.0), voxel_mm=100.0) == run(Stopping(30, 1e-1, 0.0), voxel_mm=1.0)


def test_stops_when_little_is_left_to_gain_relative_to_the_loss() -> None:
    often = run(Stopping(30, 0.0, 1e-5), floor=1.0)
    seldom = run(Stopping(30, 0.0, 1e-5), floor=1e6)
    assert seldom[0] < often[0] < 30


@pytest.mark.parametrize("units", [1e-6, 1e6])
def test_the_units_of_the_loss_do_not_matter(units: float) -> None:
    def path(factor: float) -> list[float]:
        parameters = Parameters(2.0, 1.0)
        inner = arctangent(parameters)

        def scaled() -> Linearisation:
            at = inner()
            return Linearisation(at.value * factor, at.gradient * factor, at.hessian * factor)

        return [h.step_mm for h in GaussNewton().minimise(parameters, scaled, Stopping(), 1.0)]

    assert path(units) == pytest.approx(path(1.0), rel=1e-9)


def test_stops_after_four_rejections_in_a_row() -> None:
    parameters = Parameters(1.0)
    count = 0

    def only_worse() -> Linearisation:
        nonlocal count
        count += 1
        return Linearisation(float(count), torch.ones(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))

    history = list(GaussNewton().minimise(parameters, only_worse, NEVER, 1.0))
    assert [h.accepted for h in history] == [True, False, False, False, False]
    assert parameters.vector().item() == pytest.approx(1.0)


def test_a_parameter_without_effect_stays_where_it_is() -> None:
    parameters = Parameters(3.0, 4.0)
    hessian = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    linearise = quadratic(parameters, torch.zeros(2, dtype=torch.float64), hessian)
    list(GaussNewton().minimise(parameters, linearise, Stopping(), 1.0))
    assert parameters.vector().tolist() == pytest.approx([0.0, 4.0], abs=1e-3)


def test_nothing_to_see_ends_the_level() -> None:
    parameters = Parameters(3.0, 4.0)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    history = list(GaussNewton().minimise(parameters, lambda: Linearisation(5.0, zero[0], zero), Stopping(), 1.0))
    assert len(history) == 1
    assert parameters.vector().tolist() == [3.0, 4.0]


def test_frozen_parameters_are_left_alone() -> None:
    parameters = Parameters(3.0, 4.0)
    parameters.first.requires_grad_(False)
    one = torch.eye(1, dtype=torch.float64)

    def linearise() -> Linearisation:
        rest = parameters.rest.detach()
        return Linearisation(float(rest.square().sum()), 2 * rest, 2 * one)

    list(GaussNewton().minimise(parameters, linearise, Stopping(), 1.0))
    assert parameters.vector().tolist() == pytest.approx([3.0, 0.0], abs=1e-3)


@pytest.mark.parametrize("most", [0.25, 3.0])
def test_no_step_is_longer_than_that(most: float) -> None:
    """In voxels; the whole step is shortened, and its minimum is reached all the same."""
    parameters, voxel_mm = Parameters(9.0, -40.0), 2.0
    bounded = Stopping(max_iterations=400, step_voxels=1e-6, decrease=0.0, longest_voxels=most)
    target, hessian = torch.tensor([0.0, 0.0], dtype=torch.float64), torch.diag(torch.tensor([1.0, 3.0]).double())
    places = [parameters.vector()]
    for iteration in GaussNewton(damping=1e-9).minimise(
        parameters, quadratic(parameters, target, hessian), bounded, voxel_mm
    ):
        assert iteration.step_mm <= most * voxel_mm * (1 + 1e-9)
        places.append(parameters.vector())
    torch.testing.assert_close(places[-1], target, rtol=0, atol=1e-5)
    first = places[2] - places[1]
    torch.testing.assert_close(first / first.norm(), -places[1] / places[1].norm(), rtol=0, atol=1e-6)


class Walled(Parameters):
    """No parameter goes below 1: a step is cut short there."""

    def settle(self, before: list[Tensor]) -> bool:
        cut = any(bool((p < 1).any()) for p in self.parameters())
        for parameter, value in zip(self.parameters(), before, strict=True):
            parameter.data.copy_(torch.where(parameter < 1, torch.minimum(value, (value + 1) / 2), parameter))
        return cut


def test_a_transform_may_cut_its_step_short() -> None:
    """It ends at the wall, with the damping of steps that do what was expected of them, and it does end."""
    parameters = Walled(5.0, 8.0)
    target, hessian = torch.tensor([-3.0, 2.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    stopping = Stopping(max_iterations=200, step_voxels=0.0, decrease=1e-6)
    seen = list(GaussNewton().minimise(parameters, quadratic(parameters, target, hessian), stopping, 1.0))
    assert len(seen) < 60
    assert all(iteration.accepted for iteration in seen)
    torch.testing.assert_close(parameters.vector(), torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=0, atol=1e-3)


def test_stops_where_the_loss_does_not_fall_as_expected() -> None:
    """After three kept steps in a row that gain next to nothing."""
    parameters, calls = Parameters(1.0, 1.0), 0

    def hardly() -> Linearisation:
        nonlocal calls
        calls += 1
        return Linearisation(1.0 - 1e-9 * calls, torch.ones(2).double(), torch.eye(2).double())

    list(GaussNewton().minimise(parameters, hardly, Stopping(decrease=1e-5), 1.0))
    assert calls == 4
