"""What a party computes from its image alone; a loop straight from the paper, SciPy and numpy are the oracles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from ppir_torch.errors import ConfigError, ImageError
from ppir_torch.features import (
    FeatureExtractor,
    apply_module,
    local_normalised,
    mind_ssc,
    noise_deviation,
    preprocess,
    turned_towards,
)
from ppir_torch.grids import Grid
from ppir_torch.images import Image

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}
SMALL = {2: (9, 7), 3: (5, 4, 6)}
CHANNELS = {2: 4, 3: 12}


def noise(dimension: int, dtype: torch.dtype = torch.float64, seed: int = 0, channels: int = 1) -> Image:
    """Uniform noise on a small anisotropic grid."""
    grid = Grid(SMALL[dimension], (1.0, 1.5, 2.0)[:dimension])
    generator = torch.Generator().manual_seed(seed)
    return Image(torch.rand(channels, *grid.shape, dtype=torch.float64, generator=generator).to(dtype), grid)


def mind_ssc_by_loops(values: np.ndarray[Any, Any], radius: int, dilation: int) -> np.ndarray[Any, Any]:
    """Voxel by voxel: Heinrich et al. 2013; what lies beyond the border is what convexAdam takes there."""

    def at(place: Any) -> float:
        return float(values[tuple(min(max(int(p), 0), n - 1) for p, n in zip(place, values.shape, strict=True))])

    steps = [s * np.eye(values.ndim, dtype=int)[axis] * dilation for axis in range(values.ndim) for s in (-1, 1)]
    pairs = [(a, b) for a, b in itertools.combinations(steps, 2) if ((a - b) ** 2).sum() == 2 * dilation**2]
    result = []
    for a, b in pairs:
        square = np.empty_like(values)
        for x in np.ndindex(values.shape):
            square[x] = (at(x + a) - at(x + b)) ** 2
        beyond = np.pad(square, radius, mode="edge")
        distance = np.empty_like(values)
        for x in np.ndindex(values.shape):
            distance[x] = beyond[tuple(slice(start, start + 2 * radius + 1) for start in x)].mean()
        result.append(distance)
    above = np.stack(result) - np.min(result, 0)
    variance = above.mean(0)
    return np.exp(-above / np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean()))


# --- MIND-SSC


@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (2, 2), (0, 3)])
def test_mind_ssc_is_the_papers_formula(radius: int, dilation: int, dimension: int, dtype: torch.dtype) -> None:
    image = noise(dimension, dtype)
    got = mind_ssc(image, radius, dilation)
    assert got.tensor.dtype == dtype
    assert got.grid == image.grid
    assert got.tensor.shape[0] == CHANNELS[dimension]
    expected = mind_ssc_by_loops(image.tensor[0].double().numpy(), radius, dilation)
    np.testing.assert_allclose(got.tensor.numpy(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_mind_ssc_of_ramps_by_hand() -> None:
    # I = 10 x: only pairs with one neighbour along x differ, all alike: D = 100 but for the border columns.
    grid = Grid((7, 5))
    got = mind_ssc(Image(10 * grid.points(dtype=torch.float64)[:, 0].reshape(1, 5, 7), grid), 0, 1).tensor
    assert got[:, 2, 3].tolist() == pytest.approx([1.0] * 4), "all four pairs are alike, the least is taken off"
    # I = 10 (x + y): (-y, -x) and (+y, +x) are 0 apart, (-y, +x) and (+y, -x) 20; V = 400 / 2.
    points = grid.points(dtype=torch.float64)
    got = mind_ssc(Image(10 * points.sum(1).reshape(1, 5, 7), grid), 0, 1).tensor
    assert got[:, 2, 3].tolist() == pytest.approx([1.0, math.exp(-2), math.exp(-2), 1.0])


@given(scale=st.floats(1e-30, 1e30), sign=st.sampled_from([-1, 1]), shift=st.floats(-10, 10), single=st.booleans())
def test_mind_ssc_does_not_change_with_scale_shift_or_inverted_contrast(
    scale: float, sign: int, shift: float, single: bool
) -> None:
    image = noise(2, torch.float32 if single else torch.float64)
    changed = mind_ssc(Image(sign * scale * (image.tensor + shift), image.grid))
    torch.testing.assert_close(changed.tensor, mind_ssc(image).tensor, rtol=0, atol=1e-3 if single else 1e-10)


def test_mind_ssc_tells_different_structures_apart(dimension: int) -> None:
    first, second = (mind_ssc(noise(dimension, seed=seed)).tensor for seed in (0, 1))
    assert float((first - second).abs().mean()) > 0.05


@pytest.mark.parametrize("value", [0.0, 0.1, -3e30])
def test_mind_ssc_of_a_constant_image_is_one(value: float, dimension: int, dtype: torch.dtype) -> None:
    image = noise(dimension, dtype)
    got = mind_ssc(Image(torch.full_like(image.tensor, value), image.grid))
    assert bool((got.tensor == 1).all())


def test_mind_ssc_of_an_axis_of_one_voxel() -> None:
    got = mind_ssc(Image(torch.rand(1, 1, 8, 8), Grid((8, 8, 1))))
    assert got.tensor.shape == (12, 1, 8, 8)


def test_mind_ssc_has_autograds_derivative(dimension: int) -> None:
    image = noise(dimension, seed=3)
    weights = noise(dimension, seed=4, channels=CHANNELS[dimension]).tensor

    def some_of_it(values: Tensor) -> Tensor:
        return (weights * mind_ssc(Image(values, image.grid), 1, 1).tensor).sum()

    assert torch.autograd.gradcheck(some_of_it, image.tensor.requires_grad_(True))


def test_mind_ssc_refuses_bad_input() -> None:
    with pytest.raises(ImageError, match="2 channels"):
        mind_ssc(noise(2, channels=2))
    for radius, dilation in ((-1, 1), (1, 0), (1, -2)):
        with pytest.raises(ConfigError, match=f"radius {radius}, dilation {dilation}"):
            mind_ssc(noise(2), radius, dilation)


# --- local normalisation


def test_local_normalisation_is_scipys(dimension: int, dtype: torch.dtype, oblique_grid: Callable[..., Grid]) -> None:
    grid = oblique_grid(dimension)
    image = Image(torch.rand(2, *grid.shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 900, grid)
    got = local_normalised(image, radius_mm=6.0, floor=0.05)
    assert got.tensor.dtype == dtype
    assert got.grid == grid
    for channel, values in zip(got.tensor, image.tensor.double().numpy(), strict=True):
        sigma = [6.0 / math.sqrt(3) / s for s in grid.spacing[::-1]]
        mean, square = (
            ndimage.gaussian_filter(v, sigma, mode="nearest", radius=[math.ceil(4 * s) for s in sigma])
            for v in (values, values**2)
        )
        expected = (values - mean) / np.sqrt(square - mean**2 + (0.05 * values.std()) ** 2)
        np.testing.assert_allclose(channel.numpy(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_the_bilinear_form_is_the_mean_correlation_in_gaussian_windows() -> None:
    # What the module's docstring says of LNCC, for a texture of 1 mm in windows of 6 mm.
    grid = Grid((96, 96))
    generator = torch.Generator().manual_seed(0)
    a, b = (
        Image(torch.randn(1, 96, 96, dtype=torch.float64, generator=generator), grid).smoothed(1.0).tensor
        for _ in range(2)
    )
    b = 0.6 * a + 0.8 * b

    def smooth(values: Tensor) -> Tensor:
        return Image(values, grid).smoothed(6 / math.sqrt(3)).tensor

    covariance = smooth(a * b) - smooth(a) * smooth(b)
    variances = (smooth(a * a) - smooth(a) ** 2) * (smooth(b * b) - smooth(b) ** 2)
    mean_correlation = float((covariance / variances.sqrt()).mean())
    own, other, inverted = (local_normalised(Image(v, grid), 6.0, floor=1e-6).tensor for v in (a, b, -b))
    size = float((own.square().mean() * other.square().mean()).sqrt())
    form = float((own * other).mean())
    assert form / size == pytest.approx(mean_correlation, rel=0.03)
    assert 0.5 * mean_correlation < form < mean_correlation
    assert float((own * inverted).mean()) == pytest.approx(-form)


def test_flat_regions_do_not_blow_up_noise(dimension: int, dtype: torch.dtype) -> None:
    grid = Grid((24, 24, 24)[:dimension])
    values = 0.001 * torch.randn(1, *grid.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    values[:, 12:] += torch.rand(values[:, 12:].shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    got = local_normalised(Image(values, grid), radius_mm=3.0).tensor
    flat, textured = got[:, :4].std(), got[:, -4:].std()
    assert float(textured) > 0.7
    assert float(flat) < 0.05
    # Without a floor the noise would be as large as the structure.
    assert float(local_normalised(Image(values, grid), 3.0, floor=1e-6).tensor[:, :4].std()) > 0.7


@pytest.mark.parametrize("sigma", [0.5, 8.0])
def test_noise_is_told_from_a_smooth_image(sigma: float, dimension: int, dtype: torch.dtype) -> None:
    """Half of it blackened; the other channel has none."""
    size = (48, 40, 36)[:dimension] if dimension == 3 else (160, 128)
    grid = Grid(size, (1.0, 2.0, 1.5)[:dimension])
    points = grid.points(dtype=torch.float64)
    smooth = (200 * torch.sin(points / 15).sum(1)).reshape(1, *grid.shape)
    generator = torch.Generator().manual_seed(3)
    noisy = smooth + sigma * torch.randn(smooth.shape, dtype=torch.float64, generator=generator)
    noisy[:, : grid.shape[0] // 2] = 0
    found = noise_deviation(Image(torch.cat([noisy, 0 * smooth]).to(dtype), grid))
    assert found.dtype == torch.float64
    # The smooth image's own second differences come on top.
    assert float(found[0]) == pytest.approx(sigma, rel=0.15 if sigma > 1 else 0.8)
    assert float(found[1]) == 0


def test_a_noise_aware_floor_leaves_noise_small_whatever_the_images_range() -> None:
    """A bright half that is noise alone and a half of texture: 10 % of the whole deviation is below the noise."""
    grid = Grid((96, 96))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 96, 96, generator=generator, dtype=torch.float64)
    texture = Image(torch.randn(1, 96, 96, generator=generator, dtype=torch.float64), grid).smoothed(3.0).tensor
    values[:, :24] += 200 * texture[:, :24]
    plain, aware = (local_normalised(Image(values, grid), 5.0, 0.02, times).tensor for times in (0.0, 3.0))
    assert float(plain[:, 40:].std()) > 0.8
    assert float(aware[:, 40:].std()) == pytest.approx(1 / math.sqrt(1 + 9), rel=0.1)
    assert float(aware[:, :16].std()) > 0.55


@given(scale=st.floats(1e-200, 1e200), sign=st.sampled_from([-1, 1]), shift=st.floats(-10, 10))
def test_local_normalisation_follows_the_contrast_only_in_sign(scale: float, sign: int, shift: float) -> None:
    image = noise(2)
    changed = local_normalised(Image(sign * scale * (image.tensor + shift), image.grid), 2.0)
    torch.testing.assert_close(changed.tensor, sign * local_normalised(image, 2.0).tensor, rtol=0, atol=1e-8)


def test_local_normalisation_of_a_faint_texture_is_not_rounded_away_in_float32() -> None:
    values = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) * 1e-3
    values[:, 16:] += 1
    image = Image(values, Grid((32, 32)))
    got, exact = (local_normalised(i, 2.0, floor=1e-4).tensor.double() for i in (image, image.to(dtype=torch.float64)))
    assert float((got - exact).abs().max()) < 1e-6


def test_a_constant_channel_gives_zeros(dtype: torch.dtype) -> None:
    image = noise(2, dtype, channels=2)
    image.tensor[0] = 0.1
    got = local_normalised(image, 2.0)
    assert not got.tensor[0].any()
    assert bool(got.tensor[1].any())


def test_local_normalisation_has_autograds_derivative(dimension: int) -> None:
    # The derivative takes the range for constant: the result does not depend on it.
    grid = Grid((4, 3, 3)[:dimension])
    image = torch.rand(1, *grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(lambda t: local_normalised(Image(t, grid), 2.0).tensor, image.requires_grad_(True))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_local_normalisation_refuses_bad_input(bad: float) -> None:
    with pytest.raises(ConfigError, match="radius_mm"):
        local_normalised(noise(2), bad)
    with pytest.raises(ConfigError, match="floor"):
        local_normalised(noise(2), 2.0, floor=bad)


# --- preprocessing


@given(
    clip=st.tuples(st.floats(0, 49), st.floats(51, 100)),
    low=st.floats(-1e3, 1e3),
    width=st.floats(0.1, 1e3),
    masked=st.booleans(),
    single=st.booleans(),
)
def test_percentiles_and_range_are_numpys(
    clip: tuple[float, float], low: float, width: float, masked: bool, single: bool
) -> None:
    image = noise(2, torch.float32 if single else torch.float64)
    mask = image.tensor[0] > 0.3 if masked else None
    got = preprocess(image, (low, low + width), clip, mask).tensor
    assert got.dtype == image.tensor.dtype
    values = image.tensor[0].double().numpy()
    ends = np.percentile(values if mask is None else values[mask.numpy()], clip)
    expected = low + width * (np.clip(values, *ends) - ends[0]) / (ends[1] - ends[0])
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=0, atol=(abs(low) + width) * (1e-6 if single else 1e-12))


def test_without_rescaling_only_the_tails_change(dtype: torch.dtype) -> None:
    image = noise(3, dtype)
    assert torch.equal(preprocess(image).tensor, image.tensor)
    clipped = preprocess(image, clip=(10, 90)).tensor
    kept = clipped == image.tensor
    assert 0.75 < float(kept.double().mean()) < 0.85
    assert clipped.min() == clipped[image.tensor < 0.05].max()


def test_a_mask_sets_the_range_and_is_not_multiplied_in() -> None:
    grid = Grid((8, 8))
    image = Image(torch.arange(64.0).reshape(1, 8, 8), grid)
    mask = (image.tensor[0] >= 20) & (image.tensor[0] <= 40)
    got = preprocess(image, rescale=(0.0, 1.0), mask=mask).tensor.flatten()
    assert got[[0, 19, 20, 30, 40, 41, 63]].tolist() == pytest.approx([0, 0, 0, 0.5, 1, 1, 1])


def test_preprocessing_refuses_bad_input() -> None:
    image = noise(2)
    ones = torch.ones(image.grid.shape, dtype=torch.bool)
    for clip in ((-1, 50), (50, 50), (60, 40), (0, 101), (math.nan, 50)):
        with pytest.raises(ConfigError, match="percentiles"):
            preprocess(image, clip=clip)
    for rescale in ((1, 1), (1, 0), (0, math.inf), (math.nan, 1)):
        with pytest.raises(ConfigError, match="rescale"):
            preprocess(image, rescale=rescale)
    for mask in (ones.double(), ones[1:], ~ones, ones[None]):
        with pytest.raises(ImageError, match="mask"):
            preprocess(image, mask=mask)
    only = ~ones
    only[0, 0] = True
    with pytest.raises(ImageError, match="both"):
        preprocess(image, mask=only)
    with pytest.raises(ImageError, match="constant"):
        preprocess(Image(torch.ones(1, 4, 4), Grid((4, 4))))
    with pytest.raises(ImageError, match="channels"):
        preprocess(noise(2, channels=2))


# --- a user's own network


class Network(nn.Module):
    """A layer, in single precision, whose output's shape or type a test may spoil."""

    def __init__(self, dimension: int, spoil: Callable[[Tensor], Any] = lambda made: made) -> None:
        super().__init__()
        self.layer = (nn.Conv2d if dimension == 2 else nn.Conv3d)(1, 5, 3, padding=1)
        self.spoil = spoil

    def forward(self, image: Tensor) -> Any:
        return self.spoil(self.layer(image))


def test_a_network_makes_channels_on_the_same_grid(dimension: int, dtype: torch.dtype) -> None:
    image, network = noise(dimension, dtype), Network(dimension)
    got = apply_module(network, image)
    assert got.tensor.dtype == dtype
    assert got.grid == image.grid
    assert not got.tensor.requires_grad
    assert torch.equal(got.tensor, network.layer(image.tensor[None].float())[0].to(dtype))


def test_a_network_without_parameters_gets_the_images_own_dtype(dtype: torch.dtype) -> None:
    image = noise(2, dtype)
    assert torch.equal(apply_module(nn.Identity(), image).tensor, image.tensor)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: made[..., 1:],
        lambda made: made[0],
        lambda made: torch.cat([made, made]),
        lambda made: made[:, :0],
        lambda made: made.transpose(-1, -2),
        lambda made: made * math.nan,
        lambda made: {"features": made},
        lambda made: made.sum(),
    ],
    ids=["smaller", "no batch", "two", "no channel", "transposed", "nan", "dictionary", "scalar"],
)
def test_a_network_that_returns_something_else_is_refused(spoil: Callable[[Tensor], Any], dimension: int) -> None:
    with pytest.raises(ImageError):
        apply_module(Network(dimension, spoil), noise(dimension))


@pytest.mark.parametrize(
    "extract",
    [mind_ssc, lambda image: local_normalised(image, 3.0), preprocess, lambda image: apply_module(Network(2), image)],
    ids=["mind_ssc", "local_normalised", "preprocess", "apply_module"],
)
def test_extractors_leave_the_image_as_it_was(extract: FeatureExtractor) -> None:
    image = noise(2)
    before = image.tensor.clone()
    first, second = extract(image), extract(image)
    assert torch.equal(image.tensor, before)
    assert first.grid == image.grid
    assert second.tensor.shape == first.tensor.shape


# --- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [2, 3])
def test_turned_image_is_the_same_in_space_and_runs_along_the_grid(dimension: int) -> None:
    """Every order and sign of the axes, on an oblique anisotropic grid."""
    d, turn = dimension, torch.linalg.matrix_exp(torch.tensor([[0.0, 0.3, 0.1], [-0.3, 0.0, 0.2], [-0.1, -0.2, 0.0]]))
    axes = torch.linalg.qr(turn.double()[:d, :d])[0]
    generator = torch.Generator().manual_seed(0)
    for order in itertools.permutations(range(d)):
        for signs in itertools.product((-1.0, 1.0), repeat=d):
            direction = (axes[:, list(order)] * torch.tensor(signs, dtype=torch.float64)).flatten().tolist()
            grid = Grid((4, 5, 6)[:d], (1.0, 1.5, 2.5)[:d], (7.0, -3.0, 2.0)[:d], tuple(direction))
            image = Image(torch.rand(2, *grid.shape, dtype=torch.float64, generator=generator), grid)
            turned = turned_towards(image, Grid((3,) * d))
            places = torch.tensor(turned.grid.direction).reshape(d, d)
            assert bool((places.diagonal() > 0.8).all())
            # The same values at the same points.
            own, new = (
                torch.cat([i.grid.points(dtype=torch.float64), i.tensor.flatten(1).T], 1) for i in (image, turned)
            )
            order_own, order_new = (torch.from_numpy(np.lexsort(p.round(decimals=6).T.numpy())) for p in (own, new))
            torch.testing.assert_close(own[order_own], new[order_new])
            assert turned_towards(turned, Grid((3,) * d)) is turned
