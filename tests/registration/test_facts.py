"""What is measured of a level's transform, against SimpleITK and numpy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level, to_simpleitk
from ppir_torch.losses import Correlation, LocalCorrelation, Measure, Mind, MutualInformation, SquaredDifference
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.registration.facts import Course, Watch, share_inside, spread_points, stretches
from ppir_torch.transforms import (
    Affine,
    BSpline,
    Composite,
    ControlLattice,
    Translation,
    VelocityField,
    affine_from_map,
    to_simpleitk_transform,
)

COURSE = Course(level=1, shrink=2, iterations=3, limit=30)


def share_by_itk(transform: Any, moving: Grid, fixed: Grid) -> float:
    """Of the fixed grid's voxels, those at which SimpleITK samples the moving image's own nearest voxel."""
    ones, frame = (to_simpleitk(Image(torch.ones(1, *grid.shape), grid)) for grid in (moving, fixed))
    inside = SimpleITK.Resample(ones, frame, to_simpleitk_transform(transform), SimpleITK.sitkNearestNeighbor, 0.0)
    return float(SimpleITK.GetArrayViewFromImage(inside).mean())


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_what_simpleitk_samples(
    seed: int, dimension: int, oblique_grid: Callable[..., Grid], random_transform: Callable[..., Any]
) -> None:
    fixed, moving = oblique_grid(dimension), oblique_grid(dimension, shift=6.0 * seed, turn=0.2 * seed)
    transform = random_transform("affine", fixed, size_mm=4.0 * seed, seed=seed)
    mapped = transform(fixed.points(dtype=torch.float64)).detach()
    assert share_inside(mapped, moving) == pytest.approx(share_by_itk(transform, moving, fixed), abs=2e-3)


def test_overlap_with_a_mask_of_the_moving_image_is_what_simpleitk_samples(
    dimension: int, oblique_grid: Callable[..., Grid], random_transform: Callable[..., Any]
) -> None:
    fixed, moving = oblique_grid(dimension), oblique_grid(dimension, shift=5.0)
    mask = torch.rand(moving.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    mask[0] = False
    transform = random_transform("affine", fixed, size_mm=3.0)
    as_image, frame = (
        to_simpleitk(i) for i in (Image(mask[None].float(), moving), Image(torch.ones(1, *fixed.shape), fixed))
    )
    sampled = SimpleITK.Resample(as_image, frame, to_simpleitk_transform(transform), SimpleITK.sitkNearestNeighbor, 0.0)
    expected = float(SimpleITK.GetArrayViewFromImage(sampled).mean())
    mapped = transform(fixed.points(dtype=torch.float64)).detach()
    assert share_inside(mapped, moving, mask) == pytest.approx(expected, abs=2e-3)


def test_a_grid_lies_inside_of_itself(dimension: int, oblique_grid: Callable[..., Grid]) -> None:
    grid = oblique_grid(dimension)
    assert share_inside(grid.points(), grid) == 1.0
    assert share_inside(torch.full((3, dimension), math.nan), grid) == 0.0


@given(some.integers(2, 3), some.integers(0, 10_000))
def test_stretches_are_the_singular_values_against_the_start(dimension: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix, before = random.normal(size=(2, dimension, dimension))
    least, most = stretches(torch.from_numpy(matrix), torch.from_numpy(before))
    directions = random.normal(size=(dimension, 2000))
    scales = np.linalg.norm(matrix @ directions, axis=0) / np.linalg.norm(before @ directions, axis=0)
    assert least <= scales.min() * (1 + 1e-6)
    assert most >= scales.max() * (1 - 1e-6)
    values = np.linalg.svd(matrix @ np.linalg.inv(before), compute_uv=False)
    assert (least, most) == pytest.approx((values[-1], values[0]), rel=1e-6)


def test_stretches_of_what_is_not_finite() -> None:
    assert all(math.isnan(v) for v in stretches(torch.full((2, 2), math.inf), torch.eye(2)))


@pytest.mark.parametrize("most", [1, 10, 500])
def test_points_are_spread_over_the_grid_or_the_mask(
    most: int, dimension: int, oblique_grid: Callable[..., Grid]
) -> None:
    grid = oblique_grid(dimension)
    every = grid.points(dtype=torch.float64)
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[..., 5:30] = True
    for points, among in (
        (spread_points(grid, None, most), every),
        (spread_points(grid, mask, most), every[mask.flatten()]),
    ):
        assert 1 <= len(points) <= most or len(points) == len(among)
        nearest = torch.cdist(points, among).amin(1)
        assert nearest.max() < 1e-4  # cdist rounds far from the origin
        if most >= 500:
            assert (points.mean(0) - among.mean(0)).abs().max() < 0.1 * every.std()


def test_facts_of_a_linear_map(dimension: int, oblique_grid: Callable[..., Grid]) -> None:
    fixed, moving = oblique_grid(dimension), oblique_grid(dimension, shift=3.0)
    start = Translation(fixed)
    torch.nn.init.constant_(start.translation, 2.0)
    watch = Watch(moving, fixed, None, start)
    matrix = torch.diag(torch.tensor([0.8, 1.1, 1.3][:dimension], dtype=torch.float64))
    found = affine_from_map(fixed, matrix, torch.zeros(dimension))
    facts = watch.facts(found, COURSE)
    assert (facts.level, facts.shrink, facts.iterations, facts.limit, facts.stage) == (1, 2, 3, 30, "linear")
    assert facts.determinant == pytest.approx(np.linalg.det(matrix.numpy()))
    assert (facts.determinant_at_start, facts.folding_share) == (1.0, None)
    assert (facts.least_stretch, facts.most_stretch) == pytest.approx((0.8, float(matrix.max())))
    points = spread_points(fixed)
    moved = (found(points) - points - 2).detach().numpy()
    assert facts.displacement_mm == pytest.approx(np.sqrt((moved**2).sum(1).mean()))
    assert facts.overlap_at_start == pytest.approx(share_by_itk(start, moving, fixed), abs=0.02)
    sizes = [np.linalg.norm(np.multiply(grid.size, grid.spacing)) for grid in (fixed, moving)]
    assert facts.extent_mm == pytest.approx(max(sizes))


@pytest.mark.parametrize("slab", ["moving", "fixed"])
def test_a_slab_inside_of_a_volume_is_wholly_visible(slab: str) -> None:
    whole = Grid((20, 20, 20), (2.0, 2.0, 2.0))
    part = Grid((20, 20, 5), (2.0, 2.0, 2.0), (0.0, 0.0, 16.0))
    moving, fixed = (part, whole) if slab == "moving" else (whole, part)
    facts = Watch(moving, fixed, None, Affine(fixed)).facts(Affine(fixed), COURSE)
    assert facts.overlap == pytest.approx(0.25 if slab == "moving" else 1.0)
    assert facts.visible == pytest.approx(1.0)


def test_a_map_that_blows_up_is_seen_through_the_overlap_of_the_smaller() -> None:
    grid = Grid((20, 20))
    far = affine_from_map(grid, torch.eye(2, dtype=torch.float64), torch.tensor([100.0, 0.0]))
    facts = Watch(grid, grid, None, Affine(grid)).facts(far, COURSE)
    assert (facts.overlap, facts.visible, facts.overlap_at_start) == (0.0, 0.0, 1.0)


def test_a_mask_of_the_moving_image_is_what_is_visible_of_it() -> None:
    grid = Grid((20, 20))
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:10, :5] = True
    facts = Watch(grid, grid, None, Affine(grid), mask).facts(Affine(grid), COURSE)
    assert (facts.overlap, facts.overlap_at_start, facts.visible) == pytest.approx((0.125, 0.125, 1.0))


def test_facts_are_of_the_masks_points() -> None:
    grid = Grid((20, 20))
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:, :10] = True  # x below 10
    away = affine_from_map(grid, torch.eye(2, dtype=torch.float64), torch.tensor([-5.0, 0.0]))
    facts = Watch(grid, grid, mask, Affine(grid)).facts(away, COURSE)
    assert facts.overlap == pytest.approx(0.5)
    assert facts.visible == pytest.approx(0.5)


@pytest.mark.parametrize("family", [BSpline, VelocityField])
def test_facts_of_a_deformation(family: Any) -> None:
    grid = Grid((40, 32), (1.5, 2.0))
    part = family(ControlLattice(grid, 9.0))
    outer = affine_from_map(grid, torch.diag(torch.tensor([1.1, 0.9], dtype=torch.float64)), torch.tensor([1.0, 2.0]))
    watch = Watch(grid, grid, None, outer)
    still = watch.facts(Composite([part, outer]), COURSE)
    assert (still.stage, still.folding_share) == ("deformable", 0.0)
    assert (still.displacement_mm, still.determinant) == pytest.approx((0.0, 0.99))
    torch.nn.init.normal_(part.coefficients, std=3.0, generator=torch.Generator().manual_seed(1))
    bent = watch.facts(Composite([part, outer]), COURSE)
    points = spread_points(grid)
    moved = (outer(part(points)) - outer(points)).detach().square().sum(1).mean().sqrt()
    assert bent.displacement_mm == pytest.approx(float(moved), rel=0.02)


def test_folding_is_seen_and_a_deformation_that_is_not_finite() -> None:
    grid = Grid((40, 40))
    part = BSpline(ControlLattice(grid, 8.0))
    torch.nn.init.normal_(part.coefficients, std=30.0, generator=torch.Generator().manual_seed(1))
    found = Composite([part, Affine(grid)])
    watch = Watch(grid, grid, None, Affine(grid))
    field = part.displacement(grid).detach().reshape(40, 40, 2).numpy()
    (xy, xx), (yy, yx) = (np.gradient(field[..., c]) for c in range(2))  # by the tensor's axes y, x
    determinant = (1 + xx) * (1 + yy) - xy * yx
    assert watch.facts(found, COURSE).folding_share == pytest.approx(float((determinant <= 0).mean()), abs=1e-3)
    broken = copy.deepcopy(found)
    torch.nn.init.constant_(next(broken.parts[0].parameters()), math.nan)
    assert math.isnan(watch.facts(broken, COURSE).displacement_mm)


# --- the share that is explained


def textures(size: int = 48) -> tuple[Tensor, Tensor]:
    """Two images that have nothing to do with each other."""
    random = torch.Generator().manual_seed(3)
    smooth = [Image(torch.randn(1, size, size, generator=random), Grid((size, size))).smoothed(1.0) for _ in range(2)]
    return smooth[0].tensor, smooth[1].tensor


def explained(measure: Measure, moving: Tensor, fixed: Tensor) -> float:
    grid = Grid(moving.shape[1:])
    request = OperandRequest(Level(1, 0.0), columns=measure.columns(), measure=measure)
    operand = ClearFixed(Image(fixed, grid)).operand(request)
    value = measure.loss(operand).linearise(Affine(grid), measure.features(Image(moving, grid), grid)).value
    found = measure.explained(value, operand)
    assert found is not None
    return found


MEASURES = [SquaredDifference(), Correlation(), LocalCorrelation(), Mind(), MutualInformation()]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind)
def test_an_image_explains_itself_and_not_another(measure: Measure) -> None:
    one, other = textures()
    assert explained(measure, one, one) > (0.4 if measure.kind == "mi" else 0.75)  # its bins are coarse
    assert explained(measure, one, other) < 0.15


def test_ssd_explains_the_share_of_the_variance() -> None:
    one, other = textures()
    rest = (0.8 * one - one).square().mean() / one.var(unbiased=False)
    assert explained(SquaredDifference(), 0.8 * one, one) == pytest.approx(1 - float(rest), abs=1e-3)
    assert explained(SquaredDifference(), 100 * one, one) < -1000
    assert explained(SquaredDifference(), one + other, one) == pytest.approx(
        1 - float(other.square().mean() / one.var(unbiased=False)), abs=1e-3
    )


def test_correlation_is_numpys() -> None:
    one, other = textures()
    mixed = one + 0.7 * other
    expected = np.corrcoef(mixed.flatten(), one.flatten())[0, 1]
    assert explained(Correlation(), mixed, one) == pytest.approx(expected, abs=1e-4)


def test_information_stands_for_the_squared_correlation_of_normal_variables() -> None:
    random = torch.Generator().manual_seed(4)
    one, other = torch.randn(2, 1, 256, 256, generator=random)
    mixed = 0.8 * one + 0.6 * other
    found = explained(MutualInformation(32, 32), mixed, one)
    assert found == pytest.approx(0.64, abs=0.08)  # windows of three bins blur what they count
