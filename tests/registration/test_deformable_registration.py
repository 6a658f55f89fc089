"""Clear deformable registrations: a known smooth displacement, the same each time, whatever the intensities' unit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppir_torch.errors import ConfigError, LinkError, PeerLost
from ppir_torch.images import Image, Level
from ppir_torch.joint.operands import Operand
from ppir_torch.losses import Correlation, LocalCorrelation, Measure, Mind
from ppir_torch.metrics.registration import displacement_rmse, folding_share, foreground_points, jacobian_determinant
from ppir_torch.optimizers import LBFGS, Adam, InverseCompositional, Stopping
from ppir_torch.registration import (
    ClearFixed,
    Deformable,
    LevelIteration,
    OperandRequest,
    Plan,
    Result,
    register_images,
)
from ppir_torch.sampling import Chunks, Full, GradientMagnitude, Sample, Sampler, Uniform
from ppir_torch.transforms import Affine, BSpline, Composite, ControlLattice, VelocityField
from ppir_torch.transforms.lattice import refinement
from ppir_torch.warping import sample_with_gradient

Make = Callable[..., Any]
# Of the displacement in the foreground, by dimension: the truth moves points by 1.3 mm (2-D) and 1.0 mm (3-D) beyond
# the best affine map; voxels are 1.5 to 2 mm. What is left is linear interpolation, and smoothness where images say
# nothing.
CLOSE_MM = {2: 0.25, 3: 0.36}
LEVELS = (Level(2, 3.0), Level(1, 0.0))
GMS = GradientMagnitude(0.4, 5)
KINDS: dict[str, type[BSpline] | type[VelocityField]] = {"bspline": BSpline, "velocity": VelocityField}
every_kind = pytest.mark.parametrize("kind", KINDS)
# 3-D runs take seconds on a busy machine: most of them wait for the slow tests.
in_3d = pytest.param(3, marks=pytest.mark.slow, id="3-D")
kinds_and_dimensions = pytest.mark.parametrize(
    ("kind", "dimension"), [("bspline", 2), ("velocity", 2), pytest.param("bspline", 3, marks=pytest.mark.slow)]
)
# See test_refining_twice_is_bit_equal; by chance two runs may agree.


@dataclass
class Bent:
    """fixed(x) = moving(truth(x)) exactly; the truth is a smooth displacement, then an affine map."""

    fixed: Image
    moving: Image
    truth: Composite
    points: Tensor  # of the foreground


@pytest.fixture(scope="module")
def bent(oblique_grid: Make, phantom: Make, random_transform: Make) -> Callable[..., Bent]:
    """Factory: `bent(dimension, size_mm, noise)`; the phantom with finer texture, so that it tells points apart."""
    made: dict[tuple[int, float, float], Bent] = {}

    def make(dimension: int, size_mm: float = 0.0, noise: float = 0.0) -> Bent:
        if (dimension, size_mm, noise) in made:
            return made[dimension, size_mm, noise]
        grid, other = oblique_grid(dimension), oblique_grid(dimension, shift=3.0, turn=0.25)
        if dimension == 3:  # a smaller one, so that a run takes a second
            grid, other = (replace(g, size=(24, 22, 20)) for g in (grid, other))
        generator = torch.Generator().manual_seed(100)
        count = 40 if dimension == 2 else 60
        extent = torch.tensor([n * s for n, s in zip(grid.size, grid.spacing, strict=True)], dtype=torch.float64)
        axes = torch.tensor(grid.direction, dtype=torch.float64).reshape(dimension, -1)
        where = (torch.rand(count, dimension, generator=generator, dtype=torch.float64) - 0.5) * 0.65 * extent
        textured = replace(
            phantom(grid),
            centres=grid.centre + where @ axes.T,
            widths=extent.min() * (0.04 + 0.04 * torch.rand(count, generator=generator, dtype=torch.float64)),
            heights=40 + 80 * torch.rand(count, generator=generator, dtype=torch.float64),
        )
        outer = random_transform("affine", grid, 1.5)
        with torch.no_grad():
            outer.translation += other.centre - grid.centre
        bend = BSpline(ControlLattice(grid, 16.0 if dimension == 2 else 12.0))
        generator.manual_seed(7)
        random = torch.randn(bend.coefficients.shape, generator=generator, dtype=torch.float64)
        bend.coefficients.data.copy_((size_mm or dimension) * random)
        truth = Composite([bend, outer])
        clean = textured.image(grid, before=truth), textured.image(other)
        points = foreground_points(clean[0])
        fixed, moving = (
            Image(i.tensor + noise * torch.randn(i.tensor.shape, generator=generator), i.grid) for i in clean
        )
        made[dimension, size_mm, noise] = Bent(fixed, moving, truth, points)
        return made[dimension, size_mm, noise]

    return make


def deformable(**changes: Any) -> Deformable:
    return replace(Deformable(spacing_mm=12.0, weight=0.1, levels=(Level(2, 3.0), Level(1, 1.5))), **changes)


def plan(sampler: Sampler | None = None, **changes: Any) -> Plan:
    """An affine stage, then a deformable one; both of two levels."""
    return Plan(levels=LEVELS, sampler=sampler or Full(), deformable=deformable(**changes))


def affine_alone(images: Bent) -> Result:
    return known_run(images, Plan(levels=LEVELS))


def register(images: Bent, wanted: Plan, **more: Any) -> Result:
    return register_images(images.moving, ClearFixed(images.fixed), wanted, **more)


@functools.cache
def _run(number: int, wanted: str) -> Result:
    images, chosen = _WANTED[number, wanted]
    return register(images, chosen)


_WANTED: dict[tuple[int, str], tuple[Bent, Plan]] = {}


def known_run(images: Bent, wanted: Plan) -> Result:
    """The run of a plan, made once."""
    _WANTED[id(images), repr(wanted)] = images, wanted
    return _run(id(images), repr(wanted))


def distance(images: Bent, result: Result) -> float:
    """RMSE of the displacement over the fixed foreground, in mm."""
    return displacement_rmse(result.transform, images.truth, images.points)


def parts_of(result: Result) -> tuple[BSpline | VelocityField, Affine]:
    assert isinstance(result.transform, Composite)
    part, linear = result.transform.parts
    assert isinstance(part, BSpline | VelocityField)
    assert isinstance(linear, Affine)
    return part, linear


def same_map(first: Result, second: Result) -> bool:
    pairs = zip(first.transform.parameters(), second.transform.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- the truth


@every_kind
@pytest.mark.parametrize(
    ("dimension", "sampler"),
    [
        *((2, sampler) for sampler in (Full(), Uniform(0.4, 5), GMS, replace(GMS, disclose_points=True))),
        (3, Full()),
        *(pytest.param(3, sampler, marks=pytest.mark.slow) for sampler in (Uniform(0.4, 5), GMS)),
    ],
    ids=["2-D all", "2-D URS", "2-D GMS", "2-D GMS disclosed", "3-D all", "3-D URS", "3-D GMS"],
)
def test_recovers_a_known_smooth_displacement(sampler: Sampler, kind: str, dimension: int, bent: Make) -> None:
    images = bent(dimension)
    affine, result = affine_alone(images), known_run(images, plan(sampler, kind=kind))
    assert distance(images, affine) > 0.9
    assert distance(images, result) < CLOSE_MM[dimension] < 0.5 * distance(images, affine)
    assert result.complete
    assert result.error == ""
    part, linear = parts_of(result)
    assert isinstance(part, KINDS[kind])
    determinant = jacobian_determinant(result.transform, images.fixed.grid, images.points)
    assert folding_share(determinant) == 0
    assert float(determinant.min()) > 0.3
    # The linear stage is that of an affine run; only the lattice moves afterwards.
    if isinstance(sampler, Full):
        assert all(torch.equal(a, b) for a, b in zip(linear.parameters(), affine.transform.parameters(), strict=True))


@pytest.mark.parametrize(
    ("optimizer", "iterations", "factor"),
    [(LBFGS(), 15, 1.0), (Adam(), 60, 1.5), (InverseCompositional(), 15, 1.0)],
    ids=lambda value: type(value).__name__ if not isinstance(value, int | float) else str(value),
)
def test_other_optimisers_deform_too(
    optimizer: LBFGS | Adam | InverseCompositional, iterations: int, factor: float, bent: Make
) -> None:
    """The deformable stage is fitted by the plan's optimiser; inverse-compositional is Gauss-Newton there."""
    images = bent(2)
    stopping = Stopping(max_iterations=iterations, step_voxels=0.01, decrease=1e-3)
    result = register(images, replace(plan(stopping=stopping), optimizer=optimizer))
    assert distance(images, result) < factor * CLOSE_MM[2]


@pytest.mark.parametrize("measure", [LocalCorrelation(), Mind(1, 1)], ids=lambda m: m.kind)
def test_gms_of_features_finds_about_what_all_points_find(measure: Measure, bent: Make) -> None:
    images = bent(2)
    affine = register(images, Plan(levels=LEVELS, loss=measure))
    full, result = (register(images, replace(plan(sampler), loss=measure)) for sampler in (Full(), GMS))
    assert distance(images, result) < 0.8 * distance(images, affine)
    assert distance(images, result) < 1.3 * distance(images, full)


def test_the_warped_image_is_on_the_fixed_grid_and_looks_like_it(dimension: int, bent: Make) -> None:
    images = bent(dimension)
    result = known_run(images, plan())
    assert result.warped.grid == images.fixed.grid
    left = (result.warped.tensor - images.fixed.tensor).double().square().mean()
    assert float(left) < 0.01 * float(images.fixed.tensor.var())
    before = (affine_alone(images).warped.tensor - images.fixed.tensor).double().square().mean()
    assert float(left) < 0.25 * float(before)


@kinds_and_dimensions
def test_an_image_and_itself_give_the_identity(kind: str, dimension: int, bent: Make) -> None:
    image = bent(dimension).fixed
    result = register_images(image, ClearFixed(image), plan(kind=kind))
    assert displacement_rmse(result.transform, torch.nn.Identity(), foreground_points(image)) < 1e-3
    # Nothing is left to do at any level: one linearisation each, or one step more of the affine map.
    assert len(result.history) <= 6


@pytest.mark.parametrize("regulariser", ["bending", "diffusion", "elastic"])
def test_every_regulariser_pulls_towards_the_affine_map(regulariser: str, bent: Make) -> None:
    """With a large weight next to nothing moves; with a small one the truth is found."""
    images = bent(2)
    stiff, free = (register(images, plan(regulariser=regulariser, weight=w)) for w in (1e6, 1e-2))
    affine = affine_alone(images)
    assert distance(images, free) < 0.5 * distance(images, affine)
    assert distance(images, stiff) > 0.6 * distance(images, affine)
    # Bending leaves affine maps free; the others leave translations.
    moved = displacement_rmse(stiff.transform, affine.transform, images.points)
    assert moved < 0.5


def test_finer_control_points_follow_a_finer_displacement(bent: Make) -> None:
    images = bent(2)
    errors = [distance(images, register(images, plan(spacing_mm=spacing))) for spacing in (48.0, 24.0, 12.0)]
    assert errors == sorted(errors, reverse=True)


@every_kind
@pytest.mark.parametrize("spacing", [12.0, 9.0])
def test_control_points_are_halved_from_level_to_level(spacing: float, kind: str, bent: Make) -> None:
    """To the wanted spacing at the finest; nothing is lost on the way: the loss goes on falling."""
    images = bent(2)
    wanted = plan(kind=kind, spacing_mm=spacing, levels=(Level(2, 1.5), Level(2, 1.5), Level(2, 1.5)))
    result = register(images, wanted)
    part, _ = parts_of(result)
    assert part.lattice == ControlLattice(images.fixed.grid, spacing)
    first = register(images, plan(kind=kind, spacing_mm=spacing, levels=(Level(2, 1.5),)))
    assert parts_of(first)[0].lattice == ControlLattice(images.fixed.grid, spacing)
    coarse = [h.iteration.value for h in result.history if h.level == 2 and h.iteration.accepted]
    fine = [h.iteration.value for h in result.history if h.level == 4 and h.iteration.accepted]
    assert fine[0] < coarse[-1] + 0.2 * abs(coarse[-1])
    assert fine[-1] < coarse[-1]


# --- the same run


def test_refining_twice_is_bit_equal(oblique_grid: Make) -> None:
    """What a level starts from does not depend on where the allocator puts a matrix."""
    coarse, fine = (ControlLattice(oblique_grid(2), spacing) for spacing in (24.0, 12.0))
    kept, first = [], refinement(coarse, fine)
    for number in range(200):
        kept.append(torch.empty(37 * number % 1000 + 1))
        assert all(torch.equal(a, b) for a, b in zip(first, refinement(coarse, fine), strict=True))


@every_kind
@pytest.mark.parametrize("sampler", [Full(), Uniform(0.4, 5), GMS], ids=["all", "URS", "GMS"])
def test_two_runs_are_bit_equal(sampler: Sampler, kind: str, bent: Make) -> None:
    images = bent(2)
    first, second = (register(images, plan(sampler, kind=kind)) for _ in range(2))
    assert same_map(first, second)
    assert [h.iteration for h in first.history] == [h.iteration for h in second.history]
    assert torch.equal(first.warped.tensor, second.warped.tensor)


def test_another_seed_gives_another_run(bent: Make) -> None:
    images = bent(2)
    assert not same_map(*(register(images, plan(Uniform(0.4, seed))) for seed in (1, 2)))


@kinds_and_dimensions
@pytest.mark.parametrize(("factor", "apart_mm"), [(1000.0, 0.02), (1024.0, 0.0)])
def test_the_units_of_the_intensities_do_not_matter(
    factor: float, apart_mm: float, kind: str, dimension: int, bent: Make
) -> None:
    """Factors that are rounded in float32 move the steps' rounding; a power of two moves no bit."""
    images = bent(dimension)
    moving, fixed = (Image(i.tensor * factor, i.grid) for i in (images.moving, images.fixed))
    one = known_run(images, plan(kind=kind))
    other = register_images(moving, ClearFixed(fixed), plan(kind=kind))
    assert displacement_rmse(one.transform, other.transform, images.points) <= apart_mm
    assert other.value == pytest.approx(factor**2 * one.value, rel=1e-9 if apart_mm == 0 else 0.02)


def test_an_offset_of_the_intensities_does_not_matter(bent: Make) -> None:
    images = bent(2)
    moving, fixed = (Image(i.tensor - 512, i.grid) for i in (images.moving, images.fixed))
    other = register_images(moving, ClearFixed(fixed), plan())
    assert displacement_rmse(known_run(images, plan()).transform, other.transform, images.points) < 0.02


# --- folding


@pytest.mark.parametrize("size_mm", [2.5, 3.5])
def test_a_velocity_field_does_not_fold_where_a_weakly_smoothed_displacement_does(size_mm: float, bent: Make) -> None:
    """Large displacements between noisy images, control points three to four voxels apart."""
    images = bent(2, size_mm, noise=20.0)
    least, share = {}, {}
    for kind in KINDS:
        result = register(images, plan(kind=kind, spacing_mm=6.0, weight=0.01, jacobian_min=0.0))
        determinant = jacobian_determinant(result.transform, images.fixed.grid)
        least[kind], share[kind] = float(determinant.min()), folding_share(determinant)
    assert share["bspline"] > 0.005
    assert least["bspline"] < 0
    assert share["velocity"] == 0
    assert least["velocity"] > 0.05


def test_more_smoothness_folds_less(bent: Make) -> None:
    images = bent(2, 3.5, noise=20.0)
    results = [register(images, plan(spacing_mm=6.0, weight=weight, jacobian_min=0.0)) for weight in (1e-3, 1e-2, 1.0)]
    shares = [folding_share(jacobian_determinant(r.transform, images.fixed.grid)) for r in results]
    assert shares[0] > shares[1] > shares[2]


# --- starts


@kinds_and_dimensions
def test_an_affine_map_handed_over_stays_as_it_is(kind: str, dimension: int, bent: Make) -> None:
    """levels=(): no linear stage; the start is copied, not moved."""
    images = bent(dimension)
    start = affine_alone(images).transform
    assert isinstance(start, Affine)
    before = [p.clone() for p in start.parameters()]
    result = register(images, replace(plan(kind=kind), levels=(), start=start))
    part, linear = parts_of(result)
    assert linear is not start
    torch.testing.assert_close(linear.affine_map(), start.affine_map(), rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))
    assert distance(images, result) < CLOSE_MM[dimension]
    assert part.coefficients.requires_grad
    # It is what follows the linear stage of a whole run.
    whole = known_run(images, plan(kind=kind))
    assert displacement_rmse(result.transform, whole.transform, images.points) < 0.01
    assert {h.level for h in result.history} == {0, 1}
    assert {h.levels for h in result.history} == {2}


def test_without_a_linear_stage_the_centres_are_a_start(bent: Make) -> None:
    images = bent(2)
    result = register(images, replace(plan(weight=0.03, spacing_mm=16.0), levels=()))
    linear = parts_of(result)[1]
    torch.testing.assert_close(linear(images.fixed.grid.centre), images.moving.grid.centre)
    alone = register(images, Plan(levels=LEVELS, stopping=Stopping(max_iterations=1)))
    assert distance(images, result) < 0.5 * distance(images, alone)


# --- points


@pytest.mark.parametrize("dimension", [2, in_3d])
def test_nothing_outside_the_mask_is_looked_at(dimension: int, bent: Make) -> None:
    images = bent(dimension)
    grid = images.fixed.grid
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[tuple(slice(n // 5, n - n // 5) for n in grid.shape)] = True
    corrupt = images.fixed.tensor.clone()
    corrupt[0][~mask] = 1e4
    # Without smoothing: it would carry the corruption across the border of the mask.
    wanted = Plan(levels=(Level(1, 0.0),), deformable=deformable(levels=(Level(2, 0.0), Level(1, 0.0))))
    clean, dirty = (
        register_images(images.moving, ClearFixed(Image(tensor, grid), mask), wanted)
        for tensor in (images.fixed.tensor, corrupt)
    )
    assert same_map(clean, dirty)
    assert clean.history[-1].points == int(mask.sum())


def test_disclosing_points_changes_who_knows_them_and_nothing_else(bent: Make) -> None:
    """The same points, drawn from the same gradient; of the fixed image other columns are rounded, in float32."""
    images = bent(2)
    hidden, told = (known_run(images, plan(replace(GMS, disclose_points=d))) for d in (False, True))
    assert [h.points for h in hidden.history] == [h.points for h in told.history]
    assert displacement_rmse(hidden.transform, told.transform, images.points) < 0.02


def test_gms_draws_its_points_along_the_linear_map(bent: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a level, from the gradient of the moving image; not along the deformation, which private runs round."""
    images, seen = bent(2), []

    def draw(self: GradientMagnitude, magnitude: Tensor, level: int) -> Sample:
        seen.append((level, magnitude.clone()))
        return real(self, magnitude, level)

    real = GradientMagnitude.draw
    monkeypatch.setattr(GradientMagnitude, "draw", draw)
    levels = (Level(1, 1.5), Level(1, 1.5))  # the same images and grid twice
    result = register(images, replace(plan(GMS, spacing_mm=16.0, levels=levels), levels=(Level(1, 1.5),)))
    assert [level for level, _ in seen] == [0, 1, 2]
    linear, smooth = parts_of(result)[1], images.moving.at_level(Level(1, 1.5))
    with torch.no_grad():
        mapped = linear(images.fixed.grid.points(dtype=smooth.tensor.dtype))
    plain = sample_with_gradient(smooth, smooth.outside, mapped)[1].norm(dim=1)
    # The map is rounded: by up to a 64th in its matrix, and half a voxel at the centre.
    assert float((seen[1][1].to(plain) - plain).abs().mean()) < 0.5 * float(plain.mean())
    assert torch.equal(seen[2][1], seen[1][1])


def test_a_samples_points_are_those_of_the_level(bent: Make) -> None:
    images = bent(2)
    total = [images.fixed.at_level(level).grid.count for level in (*LEVELS, *deformable().levels)]
    for entry in register(images, plan(Uniform(0.4, 5))).history:
        # Of the deformable levels the finest counts: the one before has a fourth of its points, and uses them all.
        assert entry.points == (total[2] if entry.level == 2 else round(0.4 * total[entry.level]))
    for entry in register(images, plan(Uniform(0.1, 5))).history:
        assert entry.points == round(0.1 * total[3 if entry.level == 2 else entry.level])


# --- what is said while it runs


@every_kind
def test_history_and_observer_see_every_iteration_in_order(kind: str, bent: Make, wide: Make) -> None:
    images = bent(2)
    images = replace(images, moving=wide(images.moving, 20))  # every fixed point maps inside: a level is one round
    seen: list[LevelIteration] = []
    result = register(images, plan(kind=kind), observer=seen.append)
    assert seen == result.history
    assert [h.level for h in seen] == sorted(h.level for h in seen)
    assert {(h.level, h.levels, h.shrink) for h in seen} == {(0, 4, 2), (1, 4, 1), (2, 4, 2), (3, 4, 1)}
    for level in range(4):
        here = [h.iteration for h in seen if h.level == level]
        assert [i.number for i in here] == list(range(1, len(here) + 1))
        kept = [i.value for i in here if i.accepted]
        assert kept == sorted(kept, reverse=True)
    assert result.value == next(h.iteration.value for h in reversed(seen) if h.iteration.accepted)
    assert all(b.seconds >= a.seconds for a, b in itertools.pairwise(seen))
    most = deformable().stopping.max_iterations
    assert max(h.iteration.number for h in seen if h.level > 1) <= most


def test_the_number_of_iterations_is_bounded(bent: Make) -> None:
    images = bent(2)
    result = register(images, plan(stopping=Stopping(max_iterations=3, step_voxels=0, decrease=0)))
    assert [sum(h.level == level for h in result.history) for level in (2, 3)] == [3, 3]


# --- errors


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"deformable": deformable(kind="demons")}, ("deformable", "'demons'", "bspline, velocity")),
        ({"deformable": deformable(regulariser="curvature")}, ("regulariser", "'curvature'", "bending")),
        ({"deformable": deformable(spacing_mm=0.0)}, ("control spacing", "positive")),
        ({"sampler": Chunks(0.3)}, ("sampler", "Chunks", "URS", "GMS")),
        ({"sampler": GMS, "loss": Correlation()}, ("sampler", "GradientMagnitude", "'ncc'", "URS")),
    ],
    ids=["kind", "regulariser", "spacing", "chunks", "gms with ncc"],
)
def test_a_plan_that_cannot_run(changes: dict[str, Any], names: tuple[str, ...], bent: Make) -> None:
    images = bent(2)
    with pytest.raises(ConfigError) as caught:
        register(images, replace(plan(), levels=(), **changes))
    assert "\n" not in str(caught.value)
    for name in names:
        assert name in str(caught.value)


@dataclass(frozen=True)
class LosingFixed(ClearFixed):
    """A fixed image whose party is gone after some products with a lattice."""

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

            def project(self, rows: Tensor) -> tuple[Tensor, Tensor, float]:
                if outer.products == 0:
                    raise PeerLost("party_1: party_2 is gone (the connection was closed)")
                object.__setattr__(outer, "products", outer.products - 1)
                return inner.project(rows)

        return Losing()  # type: ignore[return-value]


@every_kind
@pytest.mark.parametrize("products", [0, 1, 2, 5])
def test_a_lost_party_leaves_the_best_transform_so_far(products: int, kind: str, bent: Make) -> None:
    images = bent(2)
    result = register_images(images.moving, LosingFixed(images.fixed, products=products), plan(kind=kind))
    assert not result.complete
    assert "party_2 is gone" in result.error
    affine, whole = affine_alone(images), known_run(images, plan(kind=kind))
    assert len(result.history) == len(affine.history) + products
    assert [h.iteration for h in result.history] == [h.iteration for h in whole.history[: len(result.history)]]
    assert isinstance(result.transform, Composite)
    assert result.warped.grid == images.fixed.grid
    if products < 2:
        assert displacement_rmse(result.transform, affine.transform, images.points) < 1e-9
    else:
        assert distance(images, result) < 0.9 * distance(images, affine)


def test_a_party_lost_in_the_linear_stage_leaves_an_affine_map(bent: Make) -> None:
    images = bent(2)

    class Lost(ClearFixed):
        def operand(self, *_: Any, **__: Any) -> Operand:
            raise LinkError("OPERAND from party_2 where HELLO is due; refused")

    result = register_images(images.moving, Lost(images.fixed), plan())
    assert isinstance(result.transform, Affine)
    assert (result.complete, result.history) == (False, [])


def test_the_grid_may_be_smaller_than_the_control_spacing(bent: Make) -> None:
    """Then there is one cell along each axis."""
    images = bent(2)
    result = register(images, plan(spacing_mm=1e4))
    part, _ = parts_of(result)
    assert part.lattice.size == (4, 4)
    assert folding_share(jacobian_determinant(result.transform, images.fixed.grid)) == 0
