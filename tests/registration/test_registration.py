"""Clear registrations end at a known truth, the same each time, or with one clear line."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppir_torch.errors import ConfigError, ImageError, PeerLost, PpirError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.bounds import Pairs
from ppir_torch.joint.operands import Operand
from ppir_torch.joint.placement import select_points
from ppir_torch.metrics.registration import displacement_rmse, foreground_points, mean_squared_difference
from ppir_torch.optimizers import Adam, GaussNewton, Stopping
from ppir_torch.registration import ClearFixed, LevelIteration, OperandRequest, Plan, Result, register_images
from ppir_torch.sampling import Chunks, Full, GradientMagnitude, Sample, Sampler, Uniform
from ppir_torch.transforms import Affine, linear_transform, load_transform, save_transform

Make = Callable[..., Any]
# The phantoms' voxels are 1.5 to 2 mm. The truth is exact, but the moving image is interpolated linearly, which moves
# the minimum by some hundredths of a millimetre.
CLOSE_MM = 0.06
NEAR_MM = 0.3
LEVELS = (Level(2, 4.0), Level(1, 0.0))


def distance(images: Any, result: Result) -> float:
    """RMSE of the displacement over the fixed foreground, in mm."""
    return displacement_rmse(result.transform, images.truth, foreground_points(images.fixed))


def plan(**changes: Any) -> Plan:
    return replace(Plan(levels=LEVELS), **changes)


def same_map(first: Result, second: Result) -> bool:
    pairs = zip(first.transform.parameters(), second.transform.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Recorded(ClearFixed):
    """Keeps the samples of the operands that are asked for."""

    @cached_property
    def drawn(self) -> list[Sample]:
        return []

    def operand(self, request: OperandRequest) -> Operand:
        if isinstance(request.choice, Sample):
            self.drawn.append(request.choice)
        return super().operand(request)


# --- the truth


def test_recovers_a_known_transform(kind: str, dimension: int, dtype: torch.dtype, pair: Make) -> None:
    images = pair(kind, dimension, dtype)
    result = register_images(images.moving, ClearFixed(images.fixed), plan(transform=kind))
    assert distance(images, result) < CLOSE_MM
    assert result.complete
    assert result.error == ""


def test_the_default_plan_recovers_a_large_affine(dimension: int, pair: Make) -> None:
    images = pair("affine", dimension, size_mm=4.0)
    result = register_images(images.moving, ClearFixed(images.fixed))
    # Some of the phantom leaves the moving image's grid.
    assert distance(images, result) < 2 * CLOSE_MM


def test_a_freer_transform_recovers_a_stiffer_truth(dimension: int, pair: Make) -> None:
    images = pair("rigid", dimension)
    assert distance(images, register_images(images.moving, ClearFixed(images.fixed), plan())) < CLOSE_MM


def test_an_image_and_itself_give_the_identity(kind: str, dimension: int, pair: Make) -> None:
    image = pair("rigid", dimension).fixed
    result = register_images(image, ClearFixed(image), plan(transform=kind))
    identity = linear_transform(kind)(image.grid)
    assert displacement_rmse(result.transform, identity, foreground_points(image)) < 1e-3
    assert len(result.history) == len(LEVELS)


def test_adam_recovers_a_known_transform(kind: str, pair: Make) -> None:
    images = pair(kind, 2)
    adam = plan(transform=kind, optimizer=Adam(), stopping=Stopping(max_iterations=60))
    assert distance(images, register_images(images.moving, ClearFixed(images.fixed), adam)) < NEAR_MM


def test_the_warped_image_is_on_the_fixed_grid_and_looks_like_it(dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    result = register_images(images.moving, ClearFixed(images.fixed), plan())
    assert result.warped.grid == images.fixed.grid
    variance = float(images.fixed.tensor.var())
    assert mean_squared_difference(result.warped, images.fixed) < 0.01 * variance


@pytest.mark.parametrize("factor", [1000.0, 0.001])
@pytest.mark.parametrize("optimizer", [GaussNewton(), Adam()], ids=lambda o: type(o).__name__)
def test_the_units_of_the_intensities_do_not_matter(
    factor: float, optimizer: GaussNewton | Adam, dimension: int, pair: Make
) -> None:
    images = pair("affine", dimension, torch.float64)
    results = []
    for scale in (1.0, factor):
        moving, fixed = (Image(i.tensor * scale, i.grid) for i in (images.moving, images.fixed))
        results.append(register_images(moving, ClearFixed(fixed), plan(optimizer=optimizer)))
    one, other = results
    assert displacement_rmse(one.transform, other.transform, foreground_points(images.fixed)) < 1e-6
    assert len(one.history) == len(other.history)


def test_an_offset_of_the_intensities_does_not_matter(pair: Make) -> None:
    images = pair("affine", 2, torch.float64)
    shifted = [Image(i.tensor - 1000, i.grid) for i in (images.moving, images.fixed)]
    one = register_images(images.moving, ClearFixed(images.fixed), plan())
    other = register_images(shifted[0], ClearFixed(shifted[1]), plan())
    assert displacement_rmse(one.transform, other.transform, foreground_points(images.fixed)) < 1e-6


# --- samplers

SAMPLERS: list[Sampler] = [
    Full(),
    Uniform(0.3, seed=5),
    Chunks(0.3, seed=5),
    GradientMagnitude(0.3, seed=5),
    GradientMagnitude(0.3, seed=5, disclose_points=True),
]


def sampler_name(sampler: Sampler) -> str:
    return type(sampler).__name__ + (" disclosed" if getattr(sampler, "disclose_points", False) else "")


@pytest.mark.parametrize("sampler", SAMPLERS, ids=sampler_name)
def test_two_runs_with_one_seed_are_bit_equal(sampler: Sampler, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    first, second = (register_images(images.moving, ClearFixed(images.fixed), plan(sampler=sampler)) for _ in range(2))
    assert same_map(first, second)
    assert [h.iteration for h in first.history] == [h.iteration for h in second.history]
    assert torch.equal(first.warped.tensor, second.warped.tensor)


@pytest.mark.parametrize("sampler", SAMPLERS[1:], ids=sampler_name)
def test_sampled_runs_end_near_the_truth(sampler: Sampler, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    result = register_images(images.moving, ClearFixed(images.fixed), plan(sampler=sampler))
    assert distance(images, result) < NEAR_MM
    total = [images.fixed.at_level(level).grid.count for level in LEVELS]
    for entry in result.history:
        assert entry.points == pytest.approx(0.3 * total[entry.level], rel=0.3)


def test_hiding_the_points_of_a_gradient_magnitude_sample_changes_nothing(dimension: int, pair: Make) -> None:
    images = pair("affine", dimension, torch.float64)
    hidden, disclosed = (
        register_images(images.moving, ClearFixed(images.fixed), plan(sampler=sampler)) for sampler in SAMPLERS[-2:]
    )
    assert displacement_rmse(hidden.transform, disclosed.transform, foreground_points(images.fixed)) < 1e-9
    assert [h.points for h in hidden.history] == [h.points for h in disclosed.history]


def test_transforms_a_rounding_apart_draw_the_same_points(dimension: int, pair: Make) -> None:
    """Private and clear runs compare the same function."""
    images = pair("affine", dimension)
    matrix, offset = images.truth.affine_map()
    drawn = []
    for shift in (0.0, 1e-4):
        start = Affine(images.fixed.grid)
        start.set_affine_map(matrix.detach() + shift / 100, offset.detach() + shift)
        source = Recorded(images.fixed)
        register_images(
            images.moving, source, plan(sampler=SAMPLERS[-1], start=start, stopping=Stopping(max_iterations=1))
        )
        drawn.append(source.drawn)
    assert len(drawn[0]) == len(LEVELS)
    for first, second in zip(*drawn, strict=True):
        assert torch.equal(first.index, second.index)
        assert torch.equal(first.weights, second.weights)


@pytest.mark.parametrize("sampler", SAMPLERS[1:], ids=sampler_name)
def test_another_seed_gives_another_run(sampler: Any, pair: Make) -> None:
    images = pair("affine", 2)
    first, second = (
        register_images(images.moving, ClearFixed(images.fixed), plan(sampler=replace(sampler, seed=seed)))
        for seed in (1, 2)
    )
    assert not same_map(first, second)


# --- masks


@pytest.mark.parametrize("sampler", SAMPLERS, ids=sampler_name)
def test_nothing_outside_the_mask_is_looked_at(sampler: Sampler, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    mask = torch.zeros(images.fixed.grid.shape, dtype=torch.bool)
    mask[tuple(slice(n // 5, n - n // 5) for n in images.fixed.grid.shape)] = True
    corrupt = images.fixed.tensor.clone()
    corrupt[0][~mask] = 1e4
    # Without smoothing: it would carry the corruption across the border of the mask.
    unsmoothed = plan(sampler=sampler, levels=(Level(2, 0.0), Level(1, 0.0)))
    clean, dirty = (
        register_images(images.moving, ClearFixed(Image(tensor, images.fixed.grid), mask), unsmoothed)
        for tensor in (images.fixed.tensor, corrupt)
    )
    assert same_map(clean, dirty)
    assert clean.history[-1].points <= int(mask.sum())
    without = register_images(images.moving, ClearFixed(Image(corrupt, images.fixed.grid)), unsmoothed)
    assert distance(images, without) > 10 * distance(images, clean), "the corruption would matter without the mask"


def test_a_mask_keeps_the_truth(dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    mask = images.fixed.tensor[0] > 0.1 * images.fixed.tensor.max()
    assert distance(images, register_images(images.moving, ClearFixed(images.fixed, mask), plan())) < CLOSE_MM


def test_selected_points_are_those_of_the_mask_on_the_level(oblique_grid: Make) -> None:
    grid = oblique_grid(3)
    mask = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    candidates, sample = select_points(grid, mask, Level(2, 0.0), Uniform(0.5, 1), 0)
    coarse, keep = grid.shrunk((2, 2, 2))
    assert torch.equal(candidates, torch.nonzero(mask[keep].flatten()).flatten())
    assert set(sample.index.tolist()) < set(candidates.tolist())
    assert sample.index.numel() == round(0.5 * candidates.numel())
    assert int(sample.index.max()) < coarse.count


# --- starts


def test_the_start_at_the_centres_maps_centre_to_centre(dimension: int, pair: Make) -> None:
    images = pair("rigid", dimension)
    start = first_transform(images, "centres")
    torch.testing.assert_close(start(images.fixed.grid.centre), images.moving.grid.centre)


def test_the_start_at_the_centres_of_mass_maps_one_to_the_other(dimension: int, pair: Make) -> None:
    images = pair("rigid", dimension)
    start = first_transform(images, "centre_of_mass")
    torch.testing.assert_close(start(images.fixed.centre_of_mass()), images.moving.centre_of_mass())


def test_the_start_at_the_identity_moves_nothing(dimension: int, pair: Make) -> None:
    images = pair("rigid", dimension)
    points = images.fixed.grid.points(dtype=torch.float64)
    torch.testing.assert_close(first_transform(images, "identity")(points), points)


def first_transform(images: Any, start: str | Affine) -> Callable[[Tensor], Tensor]:
    """The transform before the first step: the run ends after one linearisation."""
    once = Plan(levels=(Level(1, 0.0),), stopping=Stopping(max_iterations=1), start=start)
    transform = register_images(images.moving, ClearFixed(images.fixed), once).transform
    return lambda points: transform(points).detach()


@pytest.mark.parametrize("start", ["centres", "centre_of_mass", "identity"])
def test_every_start_reaches_the_truth(start: str, dimension: int, pair: Make) -> None:
    images = pair("rigid", dimension)
    result = register_images(images.moving, ClearFixed(images.fixed), plan(transform="rigid", start=start))
    assert distance(images, result) < CLOSE_MM


def test_an_affine_file_is_a_start(dimension: int, pair: Make, tmp_path: Path) -> None:
    images = pair("similarity", dimension)
    save_transform(images.truth, tmp_path / "start.tfm")
    start = load_transform(tmp_path / "start.tfm", images.fixed.grid)
    points = images.fixed.grid.points(dtype=torch.float64)
    torch.testing.assert_close(first_transform(images, start)(points), images.truth(points).detach())
    result = register_images(images.moving, ClearFixed(images.fixed), plan(start=start, levels=LEVELS[-1:]))
    assert distance(images, result) < CLOSE_MM
    assert len(result.history) <= 5


def test_the_runs_transform_is_not_the_start_itself(pair: Make) -> None:
    images = pair("affine", 2)
    start = linear_transform("affine")(images.fixed.grid)
    assert isinstance(start, Affine)
    register_images(images.moving, ClearFixed(images.fixed), plan(start=start))
    assert not any(p.any() for p in start.parameters())


# --- what is said while it runs


def test_history_and_observer_see_every_iteration_in_order(pair: Make) -> None:
    images = pair("affine", 2)
    seen: list[LevelIteration] = []
    result = register_images(images.moving, ClearFixed(images.fixed), plan(), seen.append)
    assert seen == result.history
    assert [h.level for h in seen] == sorted(h.level for h in seen)
    assert {(h.level, h.levels, h.shrink) for h in seen} == {(0, 2, 2), (1, 2, 1)}
    for level in (0, 1):
        numbers = [h.iteration.number for h in seen if h.level == level]
        assert numbers == list(range(1, len(numbers) + 1))
    kept = [h.iteration.value for h in seen if h.level == 1 and h.iteration.accepted]
    assert kept == sorted(kept, reverse=True)
    assert result.value == kept[-1]
    assert all(b.seconds >= a.seconds for a, b in itertools.pairwise(seen))


# --- errors


def refused(moving: Image, fixed: Callable[[], ClearFixed], wanted: Plan, error: type[PpirError], *names: str) -> None:
    with pytest.raises(error) as caught:
        register_images(moving, fixed(), wanted)
    assert "\n" not in str(caught.value)
    for name in names:
        assert name in str(caught.value)


def test_no_overlap_at_the_start(dimension: int, pair: Make) -> None:
    images = pair("rigid", dimension)
    far = replace(images.moving.grid, origin=tuple(o + 1e4 for o in images.moving.grid.origin))
    moving = Image(images.moving.tensor, far)
    refused(moving, lambda: ClearFixed(images.fixed), plan(start="identity"), ImageError, "no overlap", "centres")
    register_images(moving, ClearFixed(images.fixed), plan(start="centres"))


@pytest.mark.parametrize(("moving", "fixed"), [(2, 3), (3, 2)])
def test_images_of_unequal_dimension(moving: int, fixed: int, pair: Make) -> None:
    images = pair("rigid", moving).moving, pair("rigid", fixed).fixed
    refused(images[0], lambda: ClearFixed(images[1]), plan(), ImageError, f"moving image is {moving}-D", f"{fixed}-D")


@pytest.mark.parametrize("which", ["moving", "fixed"])
def test_constant_image(which: str, pair: Make) -> None:
    images = pair("rigid", 2)
    flat = {which: Image(torch.full_like(getattr(images, which).tensor, 3.0), getattr(images, which).grid)}
    both = {"moving": images.moving, "fixed": images.fixed, **flat}
    refused(both["moving"], lambda: ClearFixed(both["fixed"]), plan(), ImageError, f"{which} image", "constant")


@pytest.mark.parametrize("which", ["moving", "fixed"])
def test_more_than_one_channel(which: str, pair: Make) -> None:
    images = pair("rigid", 2)
    image = getattr(images, which)
    both = {"moving": images.moving, "fixed": images.fixed, which: Image(image.tensor.repeat(2, 1, 1), image.grid)}
    refused(both["moving"], lambda: ClearFixed(both["fixed"]), plan(), ImageError, f"{which} image", "2 channels")


@pytest.mark.parametrize(
    "mask",
    [torch.ones(100, 100, dtype=torch.bool), torch.ones(40, 48), torch.zeros(40, 48, dtype=torch.bool)],
    ids=["larger", "not boolean", "empty"],
)
def test_a_mask_that_does_not_fit(mask: Tensor, pair: Make) -> None:
    images = pair("rigid", 2)
    refused(images.moving, lambda: ClearFixed(images.fixed, mask), plan(), ImageError, "mask")


def test_a_mask_that_vanishes_on_a_coarse_level(pair: Make) -> None:
    images = pair("rigid", 2)
    mask = torch.zeros(images.fixed.grid.shape, dtype=torch.bool)
    mask[0, 0] = True
    wanted = plan(levels=(Level(4, 0.0),))
    refused(images.moving, lambda: ClearFixed(images.fixed, mask), wanted, ImageError, "mask", "shrink factor 4")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"transform": "spline"}, ("transform", "'spline'", "rigid")),
        ({"start": "somewhere"}, ("start", "'somewhere'", "centres")),
        ({"start": Affine(Grid((4, 4, 4)))}, ("start", "3-D")),
    ],
    ids=["transform", "start", "start of another dimension"],
)
def test_a_plan_that_cannot_run(changes: dict[str, Any], names: tuple[str, ...], pair: Make) -> None:
    images = pair("rigid", 2)
    refused(images.moving, lambda: ClearFixed(images.fixed), plan(**changes), ConfigError, *names)


# --- the other party is lost


@dataclass(frozen=True)
class LosingFixed(ClearFixed):
    """A fixed image whose party is gone after some products."""

    products: int = 0

    def operand(self, request: OperandRequest) -> Operand:
        return self.losing(super().operand(request))

    def losing(self, inner: Operand) -> Operand:
        outer = self

        class Losing:
            def within(self, overlap: Tensor) -> Operand:
                return outer.losing(inner.within(overlap))

            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

            def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
                if outer.products == 0:
                    raise PeerLost("party_1: party_2 is gone (the connection was closed)")
                object.__setattr__(outer, "products", outer.products - 1)
                return inner.multiply(rows, pairs)

        return Losing()  # type: ignore[return-value]


@pytest.mark.parametrize("optimizer", [GaussNewton(), Adam()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("products", [0, 1, 2, 4])
def test_a_lost_party_leaves_the_best_transform_so_far(
    products: int, optimizer: GaussNewton | Adam, pair: Make
) -> None:
    images = pair("affine", 2)
    wanted = plan(optimizer=optimizer)
    result = register_images(images.moving, LosingFixed(images.fixed, products=products), wanted)
    assert not result.complete
    assert "party_2 is gone" in result.error
    assert len(result.history) == products
    assert result.warped.grid == images.fixed.grid
    start = register_images(images.moving, ClearFixed(images.fixed), replace(wanted, stopping=Stopping(1)))
    if products < 2:
        assert same_map(result, start)
    else:
        assert distance(images, result) < distance(images, start)
    whole = register_images(images.moving, ClearFixed(images.fixed), wanted)
    assert [h.iteration for h in result.history] == [h.iteration for h in whole.history[:products]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampler", SAMPLERS, ids=sampler_name)
def test_a_clear_run_on_cuda_is_that_on_the_cpu(sampler: Sampler, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension, torch.float32)
    chosen = plan(sampler=sampler)
    on_cpu = register_images(images.moving, ClearFixed(images.fixed), chosen)
    on_cuda = register_images(images.moving.to("cuda"), ClearFixed(images.fixed.to("cuda")), chosen)
    assert displacement_rmse(on_cuda.transform, on_cpu.transform, images.fixed.grid.points(dtype=torch.float64)) < 0.01
