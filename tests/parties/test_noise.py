"""party_2's noise: of the documented size, cut, fresh, exact to the integer, and refused where it would not fit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from joint.ends import private_fixed
from scipy import stats
from torch import Tensor

from ppir_torch.arithmetic.csprng import KeyStream, gaussian_words, new_key
from ppir_torch.errors import ConfigError, PeerLost
from ppir_torch.images import Image, Level
from ppir_torch.joint.bounds import all_pairs
from ppir_torch.joint.columns import IMAGE, Columns, columns_of
from ppir_torch.joint.operands import PrivateOperand
from ppir_torch.joint.quantise import quantise_columns, quantise_rows, row_norm
from ppir_torch.parties.fixed import NOISE_REACH, FixedParty
from ppir_torch.registration import ClearFixed, OperandRequest, register_images
from ppir_torch.transforms import Affine
from ppir_torch.warping import grid_gradient, steepest_descent
from ppir_torch.wire.kinds import MessageKind

Make = Callable[..., Any]
FULL = Level(1, 0.0)
SHARE = 0.02
PROTOCOLS = ("spdz", "beaver", "bfv", "ckks")
SOME_SLOW = [pytest.param(name, marks=pytest.mark.slow if name in ("bfv", "ckks") else []) for name in PROTOCOLS]
every_protocol = pytest.mark.parametrize(
    "protocol", [pytest.param(n, marks=[] if n in ("beaver", "bfv") else pytest.mark.slow) for n in PROTOCOLS]
)
CHANCE = 1e-9  # that right noise, which is fresh in every run, fails one of the bounds below


def errors_of(operand: PrivateOperand, image: Image, products: int, columns: Columns = IMAGE) -> tuple[Tensor, Tensor]:
    """(opened integers, their errors), (products, rows) each, of rows that are small against every limit."""
    integers, _ = quantise_columns(columns_of(image, None, None, columns), columns)
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(-50, 51, (8, image.grid.count), generator=generator)
    exact = rows @ integers.T
    opened = torch.stack([operand.remote.multiply(rows).reshape(exact.shape) for _ in range(products)])
    return opened.flatten(1), (opened - exact).flatten(1)


def deviation_of(operand: PrivateOperand, share: float) -> float:
    """The standard deviation in integer steps: `share` of a voxel's size, over a row of the agreed norm."""
    header = operand.header
    return share * row_norm(header, operand.remote.limits) * math.sqrt(header.energy / header.points)


def deviation_is_one(draws: Tensor, freedom: int) -> bool:
    """Whether independent Gaussians of mean 0 and deviation 1 have this sum of squares, but for CHANCE."""
    low, high = stats.chi2.interval(1 - CHANCE, freedom)
    return bool(low < float(draws.square().sum()) < high)


@every_protocol
@pytest.mark.parametrize("columns", [IMAGE, Columns("moments")], ids=lambda c: c.kind)
def test_noise_is_gaussian_of_its_size_and_fresh_in_every_product(protocol: str, columns: Columns, pair: Make) -> None:
    image = pair("rigid", 2).fixed
    with private_fixed(protocol, FixedParty(image, noise=SHARE)) as fixed:
        operand = fixed.operand(OperandRequest(FULL, rows=8, columns=columns))
        _, errors = errors_of(operand, image, 100 if columns is IMAGE else 40, columns)
        expected = deviation_of(operand, SHARE)
    sizes = errors.double() / expected
    count = sizes.numel()
    assert count >= 800
    assert deviation_is_one(sizes, count)
    assert abs(float(sizes.mean())) < float(stats.norm.isf(CHANCE / 2)) / math.sqrt(count)
    assert float(sizes.abs().max()) <= NOISE_REACH
    # A Gaussian's: about one in three beyond one standard deviation, and some beyond two.
    for reach in (1, 2):
        low, high = stats.binom.interval(1 - CHANCE, count, 2 * stats.norm.sf(reach))
        assert 0 < low <= int((sizes.abs() > reach).sum()) <= high
    # The same rows were asked for again and again: no noise comes back, in no place.
    assert errors.unique().numel() > 0.9 * errors.numel()


@every_protocol
def test_without_noise_products_are_exact(protocol: str, pair: Make) -> None:
    image = pair("rigid", 2).fixed
    with private_fixed(protocol, FixedParty(image)) as fixed:
        _, errors = errors_of(fixed.operand(OperandRequest(FULL, rows=8)), image, 3)
    assert not errors.any()


def test_two_sessions_have_other_noise(pair: Make) -> None:
    """Its key is drawn when a session starts: who knows one run's noise knows nothing of another's."""
    image = pair("rigid", 2).fixed
    found = []
    for _ in range(2):
        with private_fixed("beaver", FixedParty(image, noise=SHARE)) as fixed:
            found.append(errors_of(fixed.operand(OperandRequest(FULL, rows=8)), image, 2)[1])
    # Of 16 pairs one is equal with a chance of 4e-7, two are with 1e-13; under one key all are.
    assert int((found[0] == found[1]).sum()) < 2


@every_protocol
def test_noise_is_as_if_every_voxel_of_j_had_its_share_of_noise(protocol: str, dimension: int, pair: Make) -> None:
    """What `FixedParty.noise` promises, on steepest-descent images of an affine transform: once to twice this share."""
    image = pair("rigid", dimension).fixed
    grid = image.grid
    points = grid.points(dtype=torch.float64)
    rows = steepest_descent(Affine(grid), points, grid_gradient(image).double())
    values = columns_of(image, None, None, IMAGE).values.double()[0]
    draws, errors = 30, []
    with private_fixed(protocol, FixedParty(image, noise=SHARE)) as fixed:
        operand = fixed.operand(OperandRequest(FULL, rows=16))
        # A row as long as the agreed norm gets this share, a shorter one more.
        integers, _ = quantise_rows(rows, operand.header, operand.remote.limits)
        shares = row_norm(operand.header, operand.remote.limits) / integers.double().norm(dim=1)
        for _ in range(draws):
            carried, products = operand.multiply(rows, all_pairs(len(rows), 1))
            # |X|_2 times the noise of a voxel, which is a share of J's root mean square.
            size = carried.norm(dim=1) * values.norm() / math.sqrt(grid.count)
            errors.append((products - carried @ values) / (SHARE * size * shares))
    assert float(shares.min()) > 0.99
    assert float(shares.max()) < 2.05
    # All rows together know the deviation better than 30 draws of one, which know it to 13 %.
    assert deviation_is_one(torch.stack(errors), draws * len(rows))
    for errors_of_a_row in torch.stack(errors, 1):
        assert deviation_is_one(errors_of_a_row, draws)


def test_noise_that_does_not_fit_the_ring_is_refused(pair: Make) -> None:
    """Six standard deviations must fit into the room that the protocol leaves, a thirty-second of its range."""
    image = pair("rigid", 2).fixed
    rows = torch.ones(1, image.grid.count, dtype=torch.int64)
    heard: list[set[MessageKind]] = []
    room: list[float] = []

    def ask(noise: float) -> None:
        with private_fixed("beaver", FixedParty(image, noise=noise)) as fixed:
            operand = fixed.operand(OperandRequest(FULL, rows=8))
            room.append(operand.remote.limits.max_result / 32 / NOISE_REACH / deviation_of(operand, 1.0))
            before = fixed.channel.received.copy()
            with contextlib.suppress(PeerLost):
                operand.remote.multiply(rows)
            heard.append(set(fixed.channel.received - before))

    ask(0.01)
    ask(0.99 * room[0])
    with pytest.raises(ConfigError, match=rf"budget\.noise: .*, too large for {image.grid.count} points"):
        ask(1.01 * room[0])
    assert len(heard[1]) >= 1
    assert heard[2] == {MessageKind.ABORT}, "nothing was released"


def test_a_run_hears_that_party_2_cannot_go_on(pair: Make) -> None:
    image = pair("rigid", 2).fixed

    def run() -> None:
        with private_fixed("beaver", FixedParty(image, noise=50.0)) as fixed:
            result = register_images(image, fixed)
            assert (result.complete, result.error) == (False, "party_2 stopped: party_2 cannot go on")

    with pytest.raises(ConfigError):
        run()


@pytest.mark.parametrize("protocol", SOME_SLOW)
def test_a_registration_with_a_little_noise_ends_near_the_clear_one(protocol: str, pair: Make) -> None:
    images = pair("rigid", 3)
    clear = register_images(images.moving, ClearFixed(images.fixed))
    runs = []
    # A fifth of the noise that now and then rejects every step of a level: this rejects one with a chance of 1e-15.
    for noise in (0.0, 0.001):
        with private_fixed(protocol, FixedParty(images.fixed, noise=noise)) as fixed:
            runs.append(register_images(images.moving, fixed))
    without, noisy = ([h.iteration.value for h in run.history] for run in runs)
    assert without != noisy
    points = images.fixed.grid.points(dtype=torch.float64)
    with torch.no_grad():
        apart = (runs[1].transform(points) - clear.transform(points)).norm(dim=1).square().mean().sqrt()
    assert float(apart) < 0.25  # 0.03 at most in fifty runs


# --- the noise itself


def test_rounded_noise_of_a_small_deviation() -> None:
    """Rounding to integers adds a twelfth to the variance."""
    stream = KeyStream(new_key())
    for number, deviation in enumerate((0.0, 0.3, 2.0, 1e6)):
        words = gaussian_words(stream, number, 20_000, deviation, 6.0)
        assert words.dtype == torch.int64
        if deviation >= 2:
            assert float(words.double().std()) == pytest.approx(math.sqrt(deviation**2 + 1 / 12), rel=0.05)
            assert float(words.double().mean()) == pytest.approx(0, abs=7 * deviation / math.sqrt(20_000))
        assert int(words.abs().max()) <= math.ceil(6 * deviation)


def test_noise_is_cut() -> None:
    words = gaussian_words(KeyStream(bytes(16)), 0, 20_000, 1000.0, 1.5).abs()
    assert int(words.max()) == 1500
    assert int((words == 1500).sum()) == pytest.approx(0.134 * 20_000, rel=0.1)


def test_one_number_is_drawn_once() -> None:
    stream = KeyStream(new_key())
    gaussian_words(stream, 3, 5, 1.0, 6.0)
    with pytest.raises(ValueError, match="already used"):
        gaussian_words(stream, 3, 5, 1.0, 6.0)
