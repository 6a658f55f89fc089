"""Samplers: what is drawn, that it repeats, and that weighted sums stay unbiased."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppir_torch.config.samplers import SAMPLERS as ENTRIES
from ppir_torch.errors import ConfigError
from ppir_torch.sampling import (
    Chunks,
    Full,
    GradientMagnitude,
    LevelView,
    Permuted,
    PointChoice,
    Sample,
    Sampler,
    Selection,
    Uniform,
)

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


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**31), level=st.integers(0, 9))
@settings(deadline=None)
def test_permuted_takes_every_point_once(count: int, seed: int, level: int) -> None:
    sample = Permuted(seed).draw(count, level)
    assert sample.index is not None
    assert sample.index.dtype == torch.int64
    assert sorted(sample.index.tolist()) == list(range(count))
    assert sample.weights is None
    assert sample.positions is None


def test_permuted_brings_every_point_everywhere() -> None:
    """Point 0, and what follows it: uniform over the seeds."""
    places, following = torch.zeros(20), torch.zeros(20)
    for seed in range(4000):
        index = Permuted(seed).draw(20, 0).index.tolist()  # type: ignore[union-attr]
        places[index.index(0)] += 1
        following[(index[(index.index(0) + 1) % 20] - 1) % 20] += 1
    # Binomial(4000, 1/20): mean 200, standard deviation 13.8; five of them.
    assert float((places - 200).abs().max()) < 69
    assert following[-1] == 0
    # Binomial(4000, 1/19): mean 210.5, standard deviation 14.1.
    assert float((following[:-1] - 4000 / 19).abs().max()) < 71


@given(fraction=FRACTIONS, count=st.integers(1, 3000), seed=st.integers(0, 2**31), level=st.integers(0, 9))
@settings(deadline=None)
def test_a_window_is_one_run_of_positions_in_a_ring(fraction: float, count: int, seed: int, level: int) -> None:
    window = Chunks(fraction, seed).window(count, level)
    assert window.dtype == torch.int64
    assert window.numel() == max(1, round(fraction * count))
    assert bool((window.diff() > 0).all())
    assert int(window[0]) >= 0
    assert int(window[-1]) < count
    # At most one gap inside, and none where it does not reach around the end.
    gaps = int((window.diff() > 1).sum())
    around = int(window[0]) == 0 and int(window[-1]) == count - 1
    assert gaps <= int(around)


def test_windows_start_everywhere() -> None:
    times = torch.zeros(50)
    for seed in range(2000):
        times[Chunks(0.2, seed).window(50, 0)] += 1
    # Neighbours go together: each position is in one of five windows.
    assert float((times - 400).abs().max()) < 90


@pytest.mark.parametrize(("count", "block", "fraction"), [(100_000, 8192, 0.1), (1_000_000, 8192, 0.02)])
def test_a_window_lies_in_few_blocks_and_a_uniform_sample_in_all(count: int, block: int, fraction: float) -> None:
    """Why there are windows: under encryption a product costs as much as the blocks with points in them."""
    blocks = -(-count // block)
    for seed in range(20):
        window = Chunks(fraction, seed).window(count, 0)
        assert len((window // block).unique()) <= math.ceil(fraction * count / block) + 2
        uniform = Uniform(fraction, seed).draw(count, 0).index
        assert len((uniform // block).unique()) == blocks  # type: ignore[operator]


def test_a_window_of_a_permutation_is_a_uniform_sample() -> None:
    times = torch.zeros(50)
    together = 0
    for seed in range(2000):
        chosen = Permuted(seed).draw(50, 0).index[Chunks(0.2, seed).window(50, 0)]  # type: ignore[index]
        times[chosen] += 1
        together += bool((chosen == 0).any() and (chosen == 1).any())
    assert float((times - 400).abs().max()) < 90
    # Two neighbours of the image: 10/50 9/49 2000 = 73.5, standard deviation 8.4.
    assert abs(together - 73.5) < 42


MAGNITUDE = torch.linspace(0, 1, 500).square() * 1000

DRAWS: dict[str, Callable[[int, int], torch.Tensor | None]] = {
    "URS": lambda seed, level: Uniform(0.2, seed).draw(500, level).index,
    "GMS": lambda seed, level: GradientMagnitude(0.2, seed).draw(MAGNITUDE, level).index,
    "order": lambda seed, level: Permuted(seed).draw(500, level).index,
    "window": lambda seed, level: Chunks(0.2, seed).window(500, level),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_seed_and_the_level_decide(draw: Callable[[int, int], torch.Tensor]) -> None:
    assert torch.equal(draw(2, 1), draw(2, 1))
    assert not torch.equal(draw(2, 1), draw(2, 2))
    assert not torch.equal(draw(2, 1), draw(3, 1))


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
    assert Permuted(seed).draw(10, 3).index.numel() == 10  # type: ignore[union-attr]
    assert Chunks(0.5, seed).window(10, 3).numel() == 5


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


@pytest.mark.parametrize("sampler", [Uniform, Chunks, GradientMagnitude])
@given(fraction=st.one_of(st.floats(max_value=0), st.floats(min_value=1, exclude_min=True), st.just(math.nan)))
def test_a_fraction_outside_0_to_1_is_refused(sampler: type, fraction: float) -> None:
    with pytest.raises(ConfigError, match="sampler fraction"):
        sampler(fraction)


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.1, math.nan])
def test_a_floor_outside_0_to_1_is_refused(floor: float) -> None:
    with pytest.raises(ConfigError, match="sampler floor"):
        GradientMagnitude(0.1, floor=floor)


SAMPLERS: dict[str, tuple[Sampler, bool]] = {
    "none": (Full(), False),
    "URS": (Uniform(0.1), False),
    "URS by chunks": (Chunks(0.1), False),
    "GMS": (GradientMagnitude(0.1), False),
    "GMS, points disclosed": (GradientMagnitude(0.1, disclose_points=True), True),
}


@pytest.mark.parametrize(("sampler", "edges"), SAMPLERS.values(), ids=SAMPLERS)
def test_every_sampler_says_what_it_discloses(sampler: Sampler, edges: bool) -> None:
    assert ("edges" in sampler.discloses_to_party_2) == edges
    assert ("nothing" in sampler.discloses_to_party_2) == (not edges)
    assert "nothing" in sampler.discloses_to_party_1


def test_disclosing_the_points_does_not_change_them() -> None:
    hidden, disclosed = (GradientMagnitude(0.2, 3, disclose_points=d).draw(MAGNITUDE, 1) for d in (False, True))
    assert torch.equal(hidden.index, disclosed.index)
    assert torch.equal(hidden.weights, disclosed.weights)


# --- what a level's sampler asks party_2 for, and what it keeps to itself


class View:
    """A level of 40 points whose gradient magnitude grows along them."""

    number, count = 2, 40

    def __init__(self) -> None:
        self.looks = 0

    def gradient_magnitude(self) -> torch.Tensor:
        self.looks += 1
        return torch.arange(40.0)


@pytest.mark.parametrize(
    ("sampler", "asked", "own", "looks"),
    [
        (Full(), Full(), False, 0),
        (Uniform(0.3, 5), Uniform(0.3, 5), False, 0),
        (Chunks(0.3, 5), Permuted(5), True, 0),
        (GradientMagnitude(0.3, 5), Full(), True, 1),
    ],
    ids=["full", "uniform", "chunks", "gradient magnitude"],
)
def test_party_2_is_asked_for_points_that_say_nothing(
    sampler: Sampler, asked: PointChoice, own: bool, looks: int
) -> None:
    view = View()
    selected = sampler.select(view)
    assert selected.choice == asked
    assert (selected.positions is not None) == own
    assert (selected.weights is not None) == isinstance(sampler, GradientMagnitude)
    assert view.looks == looks


def test_points_that_are_disclosed_are_asked_for_with_their_weights() -> None:
    sampler = GradientMagnitude(0.3, 5, disclose_points=True)
    selected, drawn = sampler.select(View()), sampler.draw(torch.arange(40.0), 2)
    assert isinstance(selected.choice, Sample)
    assert selected.positions is None
    assert torch.equal(selected.choice.told(), drawn.index)
    assert torch.equal(selected.choice.weights, drawn.weights)


@pytest.mark.parametrize("sampler", [Uniform(0.3, 5), GradientMagnitude(0.3, 5)], ids=["uniform", "gradient magnitude"])
def test_a_coarse_level_takes_as_many_points_as_the_finest(sampler: Uniform | GradientMagnitude) -> None:
    assert sampler.for_level(1000, 1000) == sampler
    assert sampler.for_level(1000, 500).fraction == pytest.approx(0.6)
    assert sampler.for_level(1000, 10).fraction == 1
    assert Full().for_level(1000, 10) == Full()


@pytest.mark.parametrize("kind", ["none", "urs", "chunks", "gms"])
def test_a_samplers_facts_are_those_of_its_entry(kind: str) -> None:
    entry = ENTRIES[kind]
    sampler = entry.make(entry.settings().model_copy(update={} if kind == "none" else {"seed": 0}))
    assert sampler.entry is entry
    assert sampler.points_known == entry.known_to_party_2
    assert (sampler.discloses_to_party_1, sampler.discloses_to_party_2) == entry.discloses(sampler)


class Ends(Sampler):
    """Of all points the outer ones, which party_1 keeps to itself."""

    entry = ENTRIES.ours("gms")

    def select(self, level: LevelView) -> Selection:
        return Selection(Full(), torch.tensor([0, level.count - 1]), torch.tensor([0.5, 0.5]))


def test_a_sampler_of_ones_own_needs_one_method() -> None:
    selected = Ends().select(View())
    assert selected.positions.tolist() == [0, 39]
    assert Ends().for_level(10, 5).select(View()).weights.tolist() == [0.5, 0.5]
