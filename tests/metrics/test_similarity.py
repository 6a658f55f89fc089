"""Similarities in the clear; ITK, MONAI, hf-deepali, SciPy's B-splines and numpy are the oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from torch import Tensor

from ppir_torch.errors import ConfigError, ImageError
from ppir_torch.grids import Grid
from ppir_torch.histograms import bin_slopes, bin_weights, information
from ppir_torch.images import Image, to_simpleitk
from ppir_torch.metrics.similarity import (
    local_correlation,
    local_ncc,
    mutual_information,
    ncc,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module")
def images(dimension: int, oblique_grid: Callable[..., Grid], phantom: Callable[..., Any]) -> tuple[Image, Image]:
    """(warped, fixed) of one phantom a little apart, in two contrasts with noise; values that float32 holds exactly."""
    grid = oblique_grid(dimension)
    generator = torch.Generator().manual_seed(0)
    fixed = phantom(grid).image(grid, dtype=torch.float64)
    warped = phantom(grid).image(grid, before=lambda points: points + 1.5, dtype=torch.float64)

    def noisy(values: Tensor) -> Image:
        noise = torch.rand(values.shape, generator=generator, dtype=torch.float64)
        return Image((values + noise).float().double(), grid)

    return noisy(3 * warped.tensor.sqrt()), noisy(fixed.tensor)


def by_itk(images: tuple[Image, Image], choose: Callable[[Any], None]) -> float:
    """The metric's value at the identity, over all voxels."""
    warped, fixed = (to_simpleitk(image.to(dtype=torch.float32)) for image in images)
    method = sitk.ImageRegistrationMethod()
    choose(method)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(sitk.Transform(fixed.GetDimension(), sitk.sitkIdentity))
    return -float(method.MetricEvaluate(fixed, warped))


def pair_of(images: tuple[Image, Image], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return images[0].tensor[0].to(dtype), images[1].tensor[0].to(dtype)


def unit(values: Tensor) -> Tensor:
    """(1, 1, ...) in [0, 1]."""
    return ((values - values.min()) / (values.max() - values.min()))[None, None]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- global correlation


def test_ncc_is_numpys(images: tuple[Image, Image], dtype: torch.dtype) -> None:
    warped, fixed = pair_of(images, dtype)
    weights = random(*fixed.shape)
    got = ncc(warped, fixed), ncc(warped, fixed, weights.to(dtype))
    assert all(value.dtype == dtype and value.ndim == 0 for value in got)
    a, b, w = (x.double().flatten().numpy() for x in (warped, fixed, weights))
    covariance = np.cov(a, b, aweights=w, ddof=0)
    expected = np.corrcoef(a, b)[0, 1], covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    assert [value.item() for value in got] == pytest.approx(expected, abs=TOLERANCE[dtype])
    assert abs(expected[0] - expected[1]) > 1e-4, "the weights matter"


def test_ncc_is_that_of_itk_and_deepali(images: tuple[Image, Image]) -> None:
    from deepali.losses import functional as deepali

    got = ncc(*pair_of(images)).item() ** 2
    assert got == pytest.approx(by_itk(images, lambda method: method.SetMetricAsCorrelation()), abs=1e-6)
    other = 1 - deepali.ncc_loss(images[0].tensor[None], images[1].tensor[None]).item()
    assert got == pytest.approx(other, abs=1e-5)


@given(
    scale=st.one_of(st.floats(1e-200, 1e200), st.floats(-1e200, -1e-200)),
    shift=st.floats(-10, 10),
    weighted=st.booleans(),
)
def test_ncc_follows_an_affine_change_only_in_sign(scale: float, shift: float, weighted: bool) -> None:
    warped, fixed = random(40, seed=1), random(40)
    weights = random(40, seed=2) if weighted else None
    got = ncc(scale * (warped + shift), fixed, weights).item()
    assert got == pytest.approx(math.copysign(1, scale) * ncc(warped, fixed, weights).item(), abs=1e-9)


def test_a_weight_of_zero_leaves_a_voxel_out() -> None:
    warped, fixed = random(40, seed=1), random(40)
    weights = (torch.arange(40) < 25).double()
    assert ncc(warped, fixed, weights).item() == pytest.approx(ncc(warped[:25], fixed[:25]).item())
    ranges = (0.0, 1.0), (0.0, 1.0)
    whole = mutual_information(warped, fixed, 8, *ranges, weights)
    assert whole.item() == pytest.approx(mutual_information(warped[:25], fixed[:25], 8, *ranges).item())


# --- local correlation


@pytest.mark.parametrize("radius", [1, 3])
def test_local_ncc_is_that_of_ants_as_itk_has_it(images: tuple[Image, Image], radius: int, dtype: torch.dtype) -> None:
    got = local_ncc(*pair_of(images, dtype), radius)
    assert got.dtype == dtype
    itk = by_itk(images, lambda method: method.SetMetricAsANTSNeighborhoodCorrelation(radius))
    assert got.item() == pytest.approx(itk, abs=5e-6)


@pytest.mark.parametrize("radius", [1, 2])
def test_local_correlation_is_monais_but_for_the_border(images: tuple[Image, Image], radius: int) -> None:
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    warped, fixed = pair_of(images)
    loss = LocalNormalizedCrossCorrelationLoss(fixed.ndim, 2 * radius + 1, reduction="none")
    inside = (slice(radius, -radius),) * fixed.ndim  # MONAI counts zeros beyond the border as voxels
    expected = -loss(warped[None, None], fixed[None, None])[0, 0][inside]
    got = local_correlation(warped, fixed, radius)
    torch.testing.assert_close(got[inside].square(), expected, rtol=0, atol=1e-7)
    assert bool((got[inside] < 0).any()), "the sign is kept"


def test_local_correlation_is_numpys_in_one_window_inside_and_one_at_the_corner(dimension: int) -> None:
    warped, fixed = random(*(6, 7, 5)[:dimension], seed=1), random(*(6, 7, 5)[:dimension])
    got = local_correlation(warped, fixed, 1)
    for centre in ((2, 3, 2), (0, 0, 0)):
        window = tuple(slice(max(c - 1, 0), c + 2) for c in centre[:dimension])
        expected = np.corrcoef(warped[window].flatten(), fixed[window].flatten())[0, 1]
        assert got[centre[:dimension]].item() == pytest.approx(expected)


def test_local_ncc_follows_a_bias_field_where_ncc_does_not(dimension: int) -> None:
    fixed = random(*(24, 20, 16)[:dimension])
    bias = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(-1, *[1] * (dimension - 1))
    warped = fixed * (2 + bias) + 20 * bias
    assert local_ncc(warped, fixed, 1).item() > 5 * ncc(warped, fixed).item() ** 2


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_similarities_to_a_constant_image_are_zero(value: float, dtype: torch.dtype) -> None:
    fixed, flat = random(9, 8).to(dtype), torch.full((9, 8), value, dtype=dtype)
    for similarity in (ncc, mutual_information, lambda a, b: local_ncc(a, b, 2)):
        for pair in ((flat, fixed), (fixed, flat), (flat, flat)):
            warped = pair[0].clone().requires_grad_(True)
            result = similarity(warped, pair[1])
            result.backward()
            assert abs(result.item()) < 1e-6
            assert warped.grad is not None
            assert bool(torch.isfinite(warped.grad).all())


def test_a_flat_region_adds_no_noise_to_local_ncc() -> None:
    warped, fixed = random(20, 20, seed=1), random(20, 20)
    warped[:, 10:] = 0.1
    assert float(local_correlation(warped, fixed, 1)[:, 11:].abs().max()) < 1e-3
    assert float(local_correlation(warped, fixed, 1)[:, :9].abs().max()) > 0.5


# --- mutual information


@pytest.mark.parametrize("bins", [16, 32])
def test_the_pieces_make_itks_mattes_information(images: tuple[Image, Image], bins: int) -> None:
    warped, fixed = (values.flatten() for values in pair_of(images))
    # ITK puts a box on the fixed image: all of a voxel's weight in one bin.
    low, high = fixed.min(), fixed.max()
    bin_of = (2 + (fixed - low) / (high - low) * (bins - 4)).floor().clamp(2, bins - 3).long()
    box = torch.nn.functional.one_hot(bin_of, bins).double()
    table = bin_weights(warped, warped.min().item(), warped.max().item(), bins).T @ box
    itk = by_itk(images, lambda method: method.SetMetricAsMattesMutualInformation(bins))
    assert information(table)[0].item() == pytest.approx(itk, rel=1e-9)
    # The cubic window on the fixed image, too, blurs the histogram: the same information less a little.
    assert 0.9 * itk < mutual_information(warped, fixed, bins).item() < itk


def test_mutual_information_is_near_monais_and_deepalis(images: tuple[Image, Image]) -> None:
    from deepali.losses import functional as deepali
    from monai.losses import GlobalMutualInformationLoss

    # Other windows and other padding: Gaussians of half a bin; their histograms are sharper or blunter than ours.
    warped, fixed = (unit(values) for values in pair_of(images))
    got = mutual_information(warped, fixed, bins=32).item()
    assert got == pytest.approx(-GlobalMutualInformationLoss(num_bins=32)(warped, fixed).item(), rel=0.1)
    assert got == pytest.approx(-deepali.mi_loss(warped, fixed, num_bins=32).item(), rel=0.2)
    # With MONAI's own B-splines (a box on the target, held one bin short of ours) the same order as against ITK.
    assert got == pytest.approx(-GlobalMutualInformationLoss("b-spline", 32)(warped, fixed).item(), rel=0.2)


def test_mutual_information_is_numpys_with_scipys_splines(dtype: torch.dtype) -> None:
    warped, fixed = (random(300, seed=seed).to(dtype) for seed in (0, 1))
    fixed = fixed + warped.square()
    bins, cubic = 9, BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    table = np.zeros((bins, bins))
    places = [2 + (v - v.min()) / (v.max() - v.min()) * (bins - 4) for v in (warped.double(), fixed.double())]
    for a, b in zip(places[0].numpy(), places[1].numpy(), strict=True):
        of_a, of_b = (np.nan_to_num(cubic(place - np.arange(bins))) for place in (a, b))
        table += np.outer(of_a, of_b) / 300
    entropy = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (table.sum(1), table.sum(0), table)]
    got = mutual_information(warped, fixed, bins)
    assert got.dtype == dtype
    assert got.item() == pytest.approx(entropy[0] + entropy[1] - entropy[2], abs=TOLERANCE[dtype])


def test_many_values_are_taken_in_parts_with_the_same_result() -> None:
    # More than one chunk of 2^16 values.
    warped, fixed = random(70_000, seed=1), random(70_000)
    table = bin_weights(warped, 0.0, 1.0, 6).T @ bin_weights(fixed, 0.0, 1.0, 6)
    got = mutual_information(warped, fixed, 6, (0.0, 1.0), (0.0, 1.0))
    assert got.item() == pytest.approx(information(table)[0].item(), abs=1e-12)


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    low=st.floats(-1e6, 1e6),
    width=st.floats(1e-3, 1e6),
    bins=st.integers(5, 40),
    single=st.booleans(),
)
def test_bin_weights_sum_to_one_and_their_slopes_to_zero(
    values: list[float], low: float, width: float, bins: int, single: bool
) -> None:
    given_values = torch.tensor(values, dtype=torch.float32 if single else torch.float64)
    weights, slopes = (f(given_values, low, low + width, bins) for f in (bin_weights, bin_slopes))
    assert weights.dtype == slopes.dtype == given_values.dtype
    tolerance = 1e-5 if single else 1e-12
    assert weights.shape == slopes.shape == (len(values), bins)
    assert float(weights.min()) >= 0
    assert int((weights > 0).sum(1).max()) <= 4
    assert float((weights.sum(1) - 1).abs().max()) < tolerance
    assert float(slopes.sum(1).abs().max()) < tolerance * bins / width


@given(place=st.floats(-0.2, 1.2), bins=st.integers(5, 40))
def test_bin_weights_keep_the_place_and_bin_slopes_are_their_derivative(place: float, bins: int) -> None:
    value = torch.tensor([3 + 2 * place], dtype=torch.float64, requires_grad=True)
    weights, slopes = bin_weights(value, 3.0, 5.0, bins), bin_slopes(value, 3.0, 5.0, bins)
    # Cubic B-splines reproduce linear functions: the mean bin is the value's place.
    mean = float(weights[0].detach() @ torch.arange(bins, dtype=torch.float64))
    assert mean == pytest.approx(2 + min(max(place, 0), 1) * (bins - 4), abs=1e-9)
    for k in range(bins):
        (by_autograd,) = torch.autograd.grad(weights[0, k], value, retain_graph=True)
        assert slopes[0, k].item() == pytest.approx(by_autograd.item(), abs=1e-9)


@given(
    counts=st.lists(st.integers(0, 50), min_size=12, max_size=12).filter(any),
    factor=st.floats(1e-6, 1e6),
    single=st.booleans(),
)
def test_information_is_bounded_symmetric_and_knows_no_scale(counts: list[int], factor: float, single: bool) -> None:
    table = torch.tensor(counts, dtype=torch.float32 if single else torch.float64).reshape(3, 4)
    value, slopes = information(table)
    tolerance = 1e-5 if single else 1e-12
    assert -tolerance <= float(value) <= math.log(3) + tolerance
    assert float(information(table.T)[0]) == pytest.approx(float(value), abs=tolerance)
    scaled_value, scaled_slopes = information(table * factor)
    assert float(scaled_value) == pytest.approx(float(value), abs=tolerance)
    torch.testing.assert_close(scaled_slopes * factor, slopes, rtol=1e-3, atol=tolerance)
    assert bool(torch.isfinite(slopes).all())
    assert abs(float((slopes * table).sum())) < 100 * tolerance, "no scale: the derivative along the table is 0"


def test_information_of_tables_by_hand() -> None:
    assert information(torch.ones(4, 6))[0].item() == pytest.approx(0, abs=1e-6)
    assert information(7 * torch.eye(4))[0].item() == pytest.approx(math.log(4))
    value, slopes = information(torch.tensor([[3.0, 1.0], [0.0, 4.0]], dtype=torch.float64))
    expected = 3 / 8 * math.log(2) + 1 / 8 * math.log(2 / 5 * 1) + 4 / 8 * math.log(8 / 5)
    assert value.item() == pytest.approx(expected)
    by_hand = (math.log((3 / 8) / (4 / 8 * 3 / 8)) - expected) / 8
    assert slopes[0, 0].item() == pytest.approx(by_hand)
    assert slopes[1, 0].item() == 0


def test_informations_slopes_are_autograds_and_finite_differences() -> None:
    table = (random(5, 6) + 0.1).requires_grad_(True)
    value, slopes = information(table)
    (by_autograd,) = torch.autograd.grad(value, table)
    torch.testing.assert_close(slopes, by_autograd)
    assert torch.autograd.gradcheck(lambda t: information(t)[0], table)


def test_slightly_negative_entries_of_an_opened_table_are_empty_cells() -> None:
    table = torch.eye(3, dtype=torch.float64)
    noisy = table.clone()
    noisy[0, 1] = -1e-7
    assert information(noisy)[0].item() == information(table)[0].item()


def test_the_pieces_chain_to_the_derivative_by_every_value() -> None:
    # What the private version does: information's slopes through the table to the warped image's bins.
    warped, fixed = random(80, seed=1).requires_grad_(True), random(80)
    (expected,) = torch.autograd.grad(mutual_information(warped, fixed, 8, (0.1, 0.9), (0.0, 1.0)), warped)
    of_fixed = bin_weights(fixed, 0.0, 1.0, 8)
    table = bin_weights(warped.detach(), 0.1, 0.9, 8).T @ of_fixed / 80
    chained = (bin_slopes(warped.detach(), 0.1, 0.9, 8) * (of_fixed @ information(table)[1].T)).sum(1) / 80
    torch.testing.assert_close(chained, expected, rtol=1e-9, atol=1e-14)
    assert float(expected.abs().max()) > 1e-3


@given(scale=st.floats(1e-9, 1e9), shift=st.floats(-10, 10))
def test_mutual_information_does_not_change_with_an_affine_change(scale: float, shift: float) -> None:
    warped, fixed = random(60, seed=1), random(60)
    expected = mutual_information(warped, fixed, 8).item()
    assert mutual_information(scale * (warped + shift), fixed, 8).item() == pytest.approx(expected, abs=1e-6)
    assert mutual_information(-scale * (warped + shift), fixed, 8).item() == pytest.approx(expected, abs=1e-6)
    assert mutual_information(fixed, warped, 8).item() == pytest.approx(expected, abs=1e-9)


# --- derivatives, and what is refused


@pytest.mark.parametrize(
    "similarity",
    [
        ncc,
        lambda a, b: ncc(a, b, random(*a.shape, seed=5)),
        lambda a, b: local_ncc(a, b, 1),
        lambda a, b: mutual_information(a, b, 7, (-0.1, 1.1), (-0.2, 1.3)),
        lambda a, b: mutual_information(a, b, 7, (0.2, 0.8), (0.1, 0.7), random(*a.shape, seed=5)),
    ],
    ids=["ncc", "weighted ncc", "local ncc", "information", "weighted information, values held"],
)
def test_derivatives_are_finite_differences(similarity: Callable[[Tensor, Tensor], Tensor], dimension: int) -> None:
    shape = (5, 4, 3)[:dimension]
    pair = [random(*shape, seed=seed).requires_grad_(True) for seed in (1, 2)]
    assert torch.autograd.gradcheck(similarity, pair)


@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=4), other=st.lists(st.integers(0, 4), max_size=4))
def test_tensors_of_two_shapes_or_none_are_refused(shape: list[int], other: list[int]) -> None:
    warped, fixed = torch.rand(shape), torch.rand(other)
    if shape == other and 0 not in shape:
        assert -1.001 <= ncc(warped, fixed).item() <= 1.001
        return
    for similarity in (ncc, mutual_information, lambda a, b: local_ncc(a, b, 1)):
        with pytest.raises(ImageError, match="similarity"):
            similarity(warped, fixed)


@pytest.mark.parametrize(
    "weights",
    [torch.zeros(6), torch.arange(6) - 1.0, torch.ones(5), torch.full((6,), math.nan), torch.full((6,), math.inf)],
    ids=["zero", "negative", "shape", "nan", "infinite"],
)
def test_bad_weights_are_refused(weights: Tensor) -> None:
    for similarity in (
        lambda a, b: ncc(a, b, weights),
        lambda a, b: mutual_information(a, b, 8, weights=weights),
    ):
        with pytest.raises(ImageError, match="weights"):
            similarity(torch.rand(6), torch.rand(6))


def test_bad_settings_are_refused() -> None:
    pair = torch.rand(6, 6), torch.rand(6, 6)
    with pytest.raises(ConfigError, match="radius 0"):
        local_ncc(*pair, 0)
    with pytest.raises(ImageError, match="2-D or 3-D"):
        local_ncc(torch.rand(6), torch.rand(6), 1)
    for bins in (-1, 0, 4):
        with pytest.raises(ConfigError, match="bins"):
            mutual_information(*pair, bins)
    for ends in ((1.0, 1.0), (1.0, 0.0), (0.0, math.inf), (math.nan, 1.0), (-1e308, 1e308)):
        for pieces in (bin_weights, bin_slopes):
            with pytest.raises(ConfigError, match="range"):
                pieces(torch.rand(3), *ends, 8)


@pytest.mark.parametrize(
    "table",
    [torch.zeros(3, 3), -torch.ones(3, 3), torch.ones(3), torch.full((2, 2), math.nan), torch.full((2, 2), math.inf)],
    ids=["empty", "negative", "no matrix", "nan", "infinite"],
)
def test_a_table_without_information_is_refused(table: Tensor) -> None:
    with pytest.raises(ImageError, match="histogram"):
        information(table)
