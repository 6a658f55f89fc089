"""Samplers: what is drawn, that it repeats, and that weighted sums stay unbiased."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppir_torch.errors import ConfigError
from ppir_torch.sampling import Full, GradientMagnitude, Uniform

FRACTIONS = st.floats(1e-3, 1.0)


def test_full_takes_every_point_without_weights() -> None:
    sample = Full().draw(10, 0)
    assert sample.index is None
    assert sample.weights is None


@given(fraction=FRACTIONS, count=st.integers(1, 3000), seed=st.integers(0, 2**31), level=st.integers(0, 9))
@settings(deadline=None)
def test_uniform_draws_its_share_sorted_and_without_repeats(fraction: float, count: int, seed: int, level: int) -> None:
    index = Uniform(fraction, seed).draw(count, level).index
    assert index is not None
    assert index.dtype == torch.int64
    assert index.numel() == max(1, round(fraction * count))
    assert bool((index.diff() > 0).all())
    assert int(index[0]) >= 0
    assert int(index[-1]) < count


def test_uniform_reaches_every_point_equally_often() -> None:
    times = torch.zeros(50)
    for seed in range(2000):
        times[Uniform(0.2, seed).draw(50, 0).index] += 1
    # Binomial(2000, 0.2): mean 400, standard deviation 17.9; five of them.
    assert float((times - 400).abs().max()) < 90


MAGNITUDE = torch.linspace(0, 1, 500).square() * 1000

DRAWS: dict[str, Callable[[int, int], torch.Tensor | None]] = {
    "URS": lambda seed, level: Uniform(0.2, seed).draw(500, level).index,
    "GMS": lambda seed, level: GradientMagnitude(0.2, seed).draw(MAGNITUDE, level).index,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_seed_and_the_level_decide(draw: Callable[[int, int], torch.Tensor]) -> None:
    assert torch.equal(draw(3, 1), draw(3, 1))
    assert not torch.equal(draw(3, 1), draw(3, 2))
    assert not torch.equal(draw(3, 1), draw(4, 1))


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_drawing_neither_reads_nor_moves_torchs_global_generator(draw: Callable[[int, int], torch.Tensor]) -> None:
    torch.manual_seed(0)
    first, state = draw(3, 1), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(first, draw(3, 1))
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("seed", [2**40, 2**62, 2**70, -1])
def test_any_integer_is_a_seed(seed: int) -> None:
    # The seed may come in another party's message.
    assert Uniform(0.5, seed).draw(10, 3).index.numel() == 5  # type: ignore[union-attr]


def test_weighted_sums_are_unbiased() -> None:
    """The mean over seeds of sum w_i f_i is mean f (Horvitz and Thompson), within five standard errors."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, generator=generator, dtype=torch.float64) + MAGNITUDE.double() / 100
    estimates = []
    for seed in range(3000):
        sample = GradientMagnitude(0.1, seed).draw(MAGNITUDE, 0)
        estimates.append(float((sample.weights * values[sample.index]).sum()))
    spread = torch.tensor(estimates)
    error = 5 * float(spread.std()) / math.sqrt(len(estimates))
    assert float(spread.mean()) == pytest.approx(float(values.mean()), abs=error)
    # The bound is narrow enough to see a missing weight.
    plain = [float(values[GradientMagnitude(0.1, seed).draw(MAGNITUDE, 0).index].mean()) for seed in range(50)]
    assert abs(sum(plain) / len(plain) - float(values.mean())) > 5 * error


@given(fraction=st.floats(0.01, 1.0), floor=st.floats(0.01, 1.0), power=st.floats(0, 6))
@settings(deadline=None)
def test_the_floor_bounds_the_weights(fraction: float, floor: float, power: float) -> None:
    count = 400
    magnitude = torch.linspace(0, 1, count, dtype=torch.float64) ** power
    sample = GradientMagnitude(fraction, 1, floor).draw(magnitude, 0)
    assert sample.weights is not None
    # pi_i >= fraction * floor, so a weight is at most that many times the plain mean's 1 / N.
    assert float(sample.weights.max()) <= 1 / (count * fraction * floor) * (1 + 1e-9)
    assert float(sample.weights.min()) >= 1 / count * (1 - 1e-9)


@given(fraction=st.floats(0.01, 1.0), power=st.floats(0, 4))
@settings(deadline=None)
def test_about_the_fraction_is_drawn(fraction: float, power: float) -> None:
    count = 4000
    magnitude = torch.linspace(0, 1, count, dtype=torch.float64) ** power
    drawn = GradientMagnitude(fraction, 2).draw(magnitude, 0).index.numel()  # type: ignore[union-attr]
    assert drawn == pytest.approx(fraction * count, abs=6 * math.sqrt(fraction * count) + 1)


def test_more_points_are_drawn_where_the_magnitude_is_high() -> None:
    index = GradientMagnitude(0.2, 0).draw(MAGNITUDE, 0).index
    assert int((index >= 250).sum()) > 2 * int((index < 250).sum())


def test_indices_are_sorted_unique_and_go_with_their_weights() -> None:
    sample = GradientMagnitude(0.3, 0).draw(MAGNITUDE, 0)
    assert bool((sample.index.diff() > 0).all())
    assert sample.weights.shape == sample.index.shape
    assert bool((sample.weights.diff() <= 1e-12).all()), "a larger magnitude has a smaller weight"


def test_a_flat_image_is_sampled_uniformly() -> None:
    sample = GradientMagnitude(0.25, 0).draw(torch.zeros(400), 0)
    assert 60 < sample.index.numel() < 140
    torch.testing.assert_close(sample.weights, torch.full_like(sample.weights, 1 / 100))


def test_scaling_the_magnitude_changes_nothing() -> None:
    a, b = (GradientMagnitude(0.2, 0).draw(MAGNITUDE.double() * scale, 0) for scale in (1.0, 1024.0))
    assert torch.equal(a.index, b.index)
    torch.testing.assert_close(a.weights, b.weights)


@pytest.mark.parametrize("sampler", [Uniform, GradientMagnitude])
@given(fraction=st.one_of(st.floats(max_value=0), st.floats(min_value=1, exclude_min=True), st.just(math.nan)))
def test_a_fraction_outside_0_to_1_is_refused(sampler: type, fraction: float) -> None:
    with pytest.raises(ConfigError, match="sampler fraction"):
        sampler(fraction)


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.1, math.nan])
def test_a_floor_outside_0_to_1_is_refused(floor: float) -> None:
    with pytest.raises(ConfigError, match="sampler floor"):
        GradientMagnitude(0.1, floor=floor)


@pytest.mark.parametrize("sampler", [Full(), Uniform(0.1), GradientMagnitude(0.1)], ids=lambda s: type(s).__name__)
def test_every_sampler_says_what_it_discloses(sampler: Full | Uniform | GradientMagnitude) -> None:
    assert ("edges" in sampler.discloses_to_party_2) == isinstance(sampler, GradientMagnitude)
    assert "nothing" in sampler.discloses_to_party_1
