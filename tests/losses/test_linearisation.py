"""Steps of a Gauss-Newton model: a dense solve is the oracle, of the direct one and of the conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppir_torch.losses import linearisation
from ppir_torch.losses.linearisation import AnyLinearisation, Linearisation, OperatorLinearisation

SIZE = 40
DAMPINGS = (0.0, 1e-4, 0.1, 10.0)
every_damping = pytest.mark.parametrize("damping", DAMPINGS)


def spd(condition: float, seed: int = 0) -> Tensor:
    """(SIZE, SIZE) with eigenvalues from 1 to `condition`, badly scaled besides."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q
    scale = torch.logspace(-1, 2, SIZE, dtype=torch.float64)
    eigenvalues = torch.logspace(0, math.log10(condition), SIZE, dtype=torch.float64)
    hessian: Tensor = scale[:, None] * (turn * eigenvalues @ turn.T) * scale
    return hessian.add(hessian.T) / 2


def gradient(seed: int = 1) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(hessian: Tensor, value: float = 3.0, nominal: float = 0.0) -> Linearisation:
    return Linearisation(value, gradient(), hessian, nominal)


def operator(hessian: Tensor, value: float = 3.0, nominal: float = 0.0) -> OperatorLinearisation:
    return OperatorLinearisation(value, gradient(), lambda v: hessian @ v, hessian.diagonal(), 2, nominal)


both = pytest.mark.parametrize("kind", [dense, operator], ids=["direct", "conjugate gradients"])
Kind = Callable[..., AnyLinearisation]


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conjugate gradients until nothing is left."""
    monkeypatch.setattr(linearisation, "CG_TOLERANCE", 1e-12)
    monkeypatch.setattr(linearisation, "CG_ITERATIONS", 40 * SIZE)


def model(hessian: Tensor, step: Tensor) -> float:
    """The predicted change of the value."""
    return float(gradient() @ step + 0.5 * step @ hessian @ step)


def damped(hessian: Tensor, damping: float) -> Tensor:
    return hessian + damping * torch.diag(hessian.diagonal())


# --- both


@both
@every_damping
@pytest.mark.usefixtures("tight")
def test_the_step_is_that_of_a_dense_solve(damping: float, kind: Kind) -> None:
    """(H + damping diag H) step = -gradient."""
    hessian = spd(1e3)
    expected = torch.linalg.solve(damped(hessian, damping), -gradient())
    torch.testing.assert_close(
        kind(hessian).solve(damping), expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max())
    )


@both
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8])
def test_every_step_lowers_the_model(condition: float, kind: Kind) -> None:
    """Also where conjugate gradients end long before they have converged; its slope and its value."""
    hessian = spd(condition)
    for damping in DAMPINGS:
        step = kind(hessian).solve(damping)
        assert float(gradient() @ step) < 0
        assert model(damped(hessian, damping), step) < 0
        assert model(hessian, step) < 0


@both
def test_damping_shortens_the_step_towards_the_scaled_gradient(kind: Kind) -> None:
    hessian = spd(1e3)
    scale = hessian.diagonal().sqrt()
    lengths = [float((kind(hessian).solve(damping) * scale).norm()) for damping in (0.0, 0.1, 1.0, 10.0, 1e4)]
    assert lengths == sorted(lengths, reverse=True)
    torch.testing.assert_close(1e6 * kind(hessian).solve(1e6), -gradient() / hessian.diagonal(), rtol=1e-3, atol=0)


@both
@pytest.mark.usefixtures("tight")
def test_a_parameter_without_effect_stays_where_it_is(kind: Kind) -> None:
    hessian = spd(1e2)
    hessian[:, 7] = hessian[7] = 0
    at = kind(hessian)
    at.gradient[7] = 0
    step = at.solve(1e-4)
    assert float(step[7]) == 0
    rest = torch.arange(SIZE) != 7
    expected = torch.linalg.solve(damped(hessian, 1e-4)[rest][:, rest], -at.gradient[rest])
    torch.testing.assert_close(step[rest], expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


@both
def test_nothing_to_do_is_no_step(kind: Kind) -> None:
    """A flat loss, and a minimum."""
    for hessian in (spd(10.0), torch.zeros(SIZE, SIZE, dtype=torch.float64)):
        at = kind(hessian)
        at.gradient.zero_()
        assert torch.equal(at.solve(1e-4), torch.zeros(SIZE, dtype=torch.float64))


@both
@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
def test_the_unit_of_the_value_does_not_matter(unit: float, kind: Kind) -> None:
    """A power of two, so that nothing is rounded: the same step to the last bit."""
    hessian = spd(1e3)
    one, other = kind(hessian), kind(hessian * unit)
    other.gradient.mul_(unit)
    assert torch.equal(one.solve(0.1), other.solve(0.1))


@both
def test_curvature_is_the_steps_own(kind: Kind) -> None:
    hessian, step = spd(1e3), gradient(5)
    assert kind(hessian).curvature(step) == pytest.approx(float(step @ hessian @ step), rel=1e-12)


@both
@pytest.mark.parametrize(
    ("value", "nominal", "size"),
    [(3.0, 0.0, 3.0), (-3.0, 0.0, 3.0), (-3.0, 5.0, 5.0), (-300.0, 5.0, 5.0), (0.0, 0.0, 0.0)],
)
def test_size_is_the_magnitude_of_the_value_where_no_nominal_one_is_given(
    value: float, nominal: float, size: float, kind: Kind
) -> None:
    assert kind(spd(1.0), value, nominal).size == size


def test_length_is_in_mm() -> None:
    """Of a few parameters all together; of control points the root mean square of each one's step."""
    step = torch.zeros(SIZE, dtype=torch.float64)
    step[0], step[SIZE // 2] = 3.0, 4.0  # components x and y of one control point
    assert dense(spd(1.0)).length(step) == 5.0
    assert operator(spd(1.0)).length(step) == pytest.approx(5.0 / math.sqrt(SIZE / 2))
    everywhere = torch.cat([torch.full((SIZE // 2,), 3.0), torch.full((SIZE // 2,), 4.0)]).double()
    assert operator(spd(1.0)).length(everywhere) == pytest.approx(5.0)


# --- conjugate gradients


@every_damping
def test_conjugate_gradients_end_at_a_twentieth_of_the_gradient(damping: float) -> None:
    """In the norm of the preconditioner; and not one application before that."""
    hessian, calls = spd(50.0), 0

    def apply(vector: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return hessian @ vector

    at = OperatorLinearisation(1.0, gradient(), apply, hessian.diagonal(), 2)

    def left(step: Tensor) -> float:
        residual = -gradient() - damped(hessian, damping) @ step
        return float((residual.square() / hessian.diagonal()).sum().sqrt())

    step = at.solve(damping)
    assert left(step) <= 0.05 * left(torch.zeros_like(step)) * (1 + 1e-9)
    assert 1 <= calls < 30
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linearisation, "CG_ITERATIONS", calls - 1)
        assert left(at.solve(damping)) > 0.05 * left(torch.zeros_like(step))


def test_conjugate_gradients_apply_the_hessian_thirty_times_at_most() -> None:
    hessian, calls = spd(1e12), 0

    def apply(vector: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return hessian @ vector

    OperatorLinearisation(1.0, gradient(), apply, hessian.diagonal(), 2).solve(0.0)
    assert calls == 30


def test_rounding_that_makes_a_direction_concave_ends_the_solve() -> None:
    """With what it has by then."""
    hessian = -spd(10.0)
    at = OperatorLinearisation(1.0, gradient(), lambda v: hessian @ v, -hessian.diagonal(), 2)
    assert torch.equal(at.solve(0.0), torch.zeros(SIZE, dtype=torch.float64))
    assert float(gradient() @ at.solve(100.0)) < 0


def test_the_linearisation_is_left_alone() -> None:
    hessian = spd(1e3)
    at = operator(hessian)
    before = at.gradient.clone(), at.diagonal.clone()
    at.solve(0.1)
    assert torch.equal(at.gradient, before[0])
    assert torch.equal(at.diagonal, before[1])


# --- steps that are too long


@both
@pytest.mark.parametrize("most_mm", [1e-3, 0.1, math.inf])
def test_a_shortened_step_moves_nothing_farther_and_lowers_the_model(most_mm: float, kind: Kind) -> None:
    hessian = spd(1e3)
    at = kind(hessian)
    step = at.solve(1e-4)
    kept = at.shortened(step, most_mm)
    assert float(kept.norm() if kind is dense else kept.reshape(2, -1).norm(dim=0).max()) <= most_mm * (1 + 1e-9)
    assert model(hessian, kept) < 0
    assert torch.equal(at.shortened(step, math.inf), step)


def test_a_control_point_that_goes_far_does_not_hold_back_the_others() -> None:
    """The images say next to nothing of the first; the others' steps are as they were."""
    curved = torch.ones(SIZE, dtype=torch.float64)
    curved[0] = 1e-6
    at = OperatorLinearisation(1.0, torch.full((SIZE,), -0.01).double(), lambda v: curved * v, curved, 2)
    step = at.solve(0.0)
    kept = at.shortened(step, 0.5)
    assert float(step[0]) > 1000
    assert float(kept[0]) == pytest.approx(0.5)
    torch.testing.assert_close(kept[1 : SIZE // 2], step[1 : SIZE // 2])
