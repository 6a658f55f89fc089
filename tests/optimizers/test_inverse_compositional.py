"""Inverse-compositional Gauss-Newton: the step's algebra, the phantoms' truth, and private runs like clear ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint.ends import private_fixed
from numpy.typing import NDArray
from torch import Tensor

from ppir_torch.errors import ConfigError, LinkError, PeerLost
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.bounds import Pairs
from ppir_torch.joint.operands import Operand
from ppir_torch.losses import Linearisation
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.optimizers import GaussNewton, InverseCompositional, Stopping
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.registration import ClearFixed, OperandRequest, Plan, Result, register_images
from ppir_torch.sampling import Chunks, GradientMagnitude, Sampler, Uniform
from ppir_torch.transforms import Affine, LinearTransform, Rigid, Similarity, Translation, linear_transform

Make = Callable[..., Any]
# As in tests/registration/test_registration.py.
CLOSE_MM = 0.06
LEVELS = (Level(2, 4.0), Level(1, 0.0))
PROTOCOLS = ("spdz", "beaver", "bfv", "ckks")
SOME_SLOW = [pytest.param(name, marks=pytest.mark.slow if name in ("bfv", "ckks") else []) for name in PROTOCOLS]


def plan(**changes: Any) -> Plan:
    return replace(Plan(levels=LEVELS, optimizer=InverseCompositional()), **changes)


@pytest.fixture(scope="session")
def pair(covering_pair: Make) -> Make:
    """Where a fixed point maps outside the moving image Gauss-Newton takes over."""
    return covering_pair


def distance(images: Any, result: Result) -> float:
    """RMSE of the displacement over the fixed foreground, in mm."""
    return displacement_rmse(result.transform, images.truth, foreground_points(images.fixed))


# --- set_affine_map and step_back


def homogeneous(transform: LinearTransform) -> NDArray[np.float64]:
    """(D + 1, D + 1) of the map, in numpy."""
    matrix, offset = (part.detach().double().numpy() for part in transform.affine_map())
    result = np.eye(transform.dimension + 1)
    result[:-1, :-1], result[:-1, -1] = matrix, offset
    return result


def parameters_of(transform: LinearTransform) -> Tensor:
    return torch.nn.utils.parameters_to_vector(transform.parameters()).detach()


def check_family(transform: LinearTransform) -> None:
    """The matrix is one of the family's: so the parameters say all of it."""
    matrix = homogeneous(transform)[:-1, :-1]
    identity = np.eye(len(matrix))
    if type(transform) is Translation:
        np.testing.assert_allclose(matrix, identity)
    elif type(transform) is not Affine:
        scale = np.linalg.det(matrix) ** (1 / len(matrix))
        np.testing.assert_allclose(matrix @ matrix.T, scale**2 * identity, atol=1e-12)
        assert scale == pytest.approx(1) or type(transform) is Similarity


def test_a_map_of_the_family_survives_set_affine_map(
    kind: str, dimension: int, oblique_grid: Make, random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    for size in (0.0, 1e-9, 1e-3, 2.5, 20.0):
        for seed in range(5):
            transform, again = random_transform(kind, grid, size, seed), random_transform(kind, grid, 3.0, 99)
            again.set_affine_map(*(part.detach() for part in transform.affine_map()))
            # torch's matrix exponential is right to 1e-10, which 100 mm from the origin is 1e-8 mm.
            np.testing.assert_allclose(homogeneous(again), homogeneous(transform), rtol=0, atol=1e-7)
            # The parameters themselves: nothing turns by half a turn or more.
            torch.testing.assert_close(parameters_of(again), parameters_of(transform), rtol=0, atol=1e-6)


@given(
    axis=st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda a: math.hypot(*a) > 0.1),
    angle=st.floats(0, 3.1),
)
def test_a_rotation_by_less_than_half_a_turn_survives(axis: list[float], angle: float) -> None:
    grid = Grid((30, 20, 10), (1.0, 2.0, 3.0), (40.0, -50.0, 60.0))
    transform, again = Rigid(grid), Rigid(grid)
    with torch.no_grad():
        vector = torch.tensor(axis, dtype=torch.float64)
        transform.rotation.copy_(vector / vector.norm() * angle * grid.radius)
    again.set_affine_map(*(part.detach() for part in transform.affine_map()))
    np.testing.assert_allclose(homogeneous(again), homogeneous(transform), rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [1e-6, 2.5, 10.0])
def test_a_step_back_is_the_composition_with_the_inverse_of_the_step(
    size: float, kind: str, dimension: int, oblique_grid: Make, random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    transform, step = random_transform(kind, grid, 5.0, seed=4), random_transform(kind, grid, size, seed=5)
    expected = homogeneous(transform) @ np.linalg.inv(homogeneous(step))
    moved = np.abs(expected - homogeneous(transform)).max()
    transform.step_back(parameters_of(step))
    np.testing.assert_allclose(homogeneous(transform), expected, rtol=0, atol=1e-8)
    assert moved > 0.3 * size
    check_family(transform)


def test_a_transform_steps_back_to_the_identity_and_a_step_of_nothing_leaves_it(
    kind: str, dimension: int, oblique_grid: Make, random_transform: Make
) -> None:
    grid = oblique_grid(dimension)
    transform = random_transform(kind, grid, 5.0)
    before = parameters_of(transform).clone()
    transform.step_back(torch.zeros_like(before))
    torch.testing.assert_close(parameters_of(transform), before, rtol=0, atol=1e-9)
    transform.step_back(before)
    torch.testing.assert_close(parameters_of(transform), torch.zeros_like(before), rtol=0, atol=1e-9)


def test_a_transform_in_single_precision_steps_back(kind: str, dimension: int, oblique_grid: Make) -> None:
    grid = oblique_grid(dimension)
    transform, exact = linear_transform(kind)(grid, torch.float32), linear_transform(kind)(grid)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        step = torch.randn(parameters_of(exact).numel(), generator=generator, dtype=torch.float64)
        transform.step_back(step)
        exact.step_back(step)
    assert all(p.dtype == torch.float32 for p in transform.parameters())
    np.testing.assert_allclose(homogeneous(transform), homogeneous(exact), rtol=0, atol=1e-3)


def test_the_parameters_stay_the_same_tensors(kind: str, oblique_grid: Make) -> None:
    """An optimiser that holds them sees the step."""
    transform = linear_transform(kind)(oblique_grid(3))
    before = list(transform.parameters())
    transform.step_back(torch.ones(sum(p.numel() for p in before), dtype=torch.float64))
    assert all(a is b for a, b in zip(before, transform.parameters(), strict=True))
    assert all(p.requires_grad for p in transform.parameters())
    assert sum(float(p.detach().abs().sum()) for p in before) > 0.5


# --- the optimiser


def test_it_is_gauss_newton_with_steps_back(oblique_grid: Make) -> None:
    """On |p|^2 of a translation, whose derivative by a step back is -2 p; damping shortens the first steps."""
    transform = Translation(oblique_grid(2))
    with torch.no_grad():
        transform.translation.copy_(torch.tensor([3.0, -4.0]))
    hessian, values = 2 * torch.eye(2, dtype=torch.float64), []

    def linearise() -> Linearisation:
        at = transform.translation.detach().clone()
        values.append(float(at @ at))
        return Linearisation(values[-1], -2 * at, hessian)

    history = list(InverseCompositional(damping=1.0).minimise(transform, linearise, Stopping(30, 0.0, 0.0), 1.0))
    assert [h.value for h in history] == values
    assert history[0].value == 25
    assert history[1].value == pytest.approx(25 / 4)
    assert all(h.accepted for h in history[:4])
    assert history[-1].value < 1e-12


def test_a_rejected_step_leaves_the_transform_where_it_was(oblique_grid: Make, random_transform: Make) -> None:
    transform = random_transform("rigid", oblique_grid(3), 5.0)
    before = parameters_of(transform).clone()
    count = 0

    def only_worse() -> Linearisation:
        nonlocal count
        count += 1
        slope = torch.ones(6, dtype=torch.float64)
        return Linearisation(float(count), slope, torch.eye(6, dtype=torch.float64))

    history = list(InverseCompositional().minimise(transform, only_worse, Stopping(30, 0.0, 0.0), 1.0))
    assert [h.accepted for h in history] == [True, False, False, False, False]
    assert torch.equal(parameters_of(transform), before)


# --- clear runs


def test_recovers_a_known_transform_as_closely_as_forward_gauss_newton(
    kind: str, dimension: int, dtype: torch.dtype, pair: Make
) -> None:
    images = pair(kind, dimension, dtype)
    inverse, forward = (
        register_images(images.moving, ClearFixed(images.fixed), plan(transform=kind, optimizer=optimizer))
        for optimizer in (InverseCompositional(), GaussNewton())
    )
    assert distance(images, inverse) < CLOSE_MM
    assert distance(images, forward) < CLOSE_MM
    assert displacement_rmse(inverse.transform, forward.transform, foreground_points(images.fixed)) < CLOSE_MM
    assert len(inverse.history) <= 2 * len(forward.history) + 4


@pytest.mark.parametrize("sampler", [Uniform(0.3, 5)], ids=str)
def test_sampled_runs_end_near_the_truth(sampler: Sampler, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    assert distance(images, register_images(images.moving, ClearFixed(images.fixed), plan(sampler=sampler))) < 0.3


def test_nothing_outside_the_mask_is_looked_at_but_for_slopes_at_its_border(dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    mask = torch.zeros(images.fixed.grid.shape, dtype=torch.bool)
    mask[tuple(slice(n // 5, n - n // 5) for n in images.fixed.grid.shape)] = True
    # One voxel around it is a neighbour of a central difference.
    near = torch.nn.functional.max_pool3d if dimension == 3 else torch.nn.functional.max_pool2d
    reach = near(mask[None, None].float(), 3, 1, 1)[0, 0] > 0
    corrupt = images.fixed.tensor.clone()
    corrupt[0][~reach] = 1e4
    unsmoothed = plan(levels=(Level(1, 0.0),))
    clean, dirty = (
        register_images(images.moving, ClearFixed(Image(tensor, images.fixed.grid), mask), unsmoothed)
        for tensor in (images.fixed.tensor, corrupt)
    )
    for a, b in zip(clean.transform.parameters(), dirty.transform.parameters(), strict=True):
        assert torch.equal(a, b)
    assert clean.history[-1].points == int(mask.sum())
    assert distance(images, clean) < 0.3


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_the_units_of_the_intensities_do_not_matter(factor: float, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension, torch.float64)
    results = []
    for scale in (1.0, factor):
        moving, fixed = (Image(i.tensor * scale, i.grid) for i in (images.moving, images.fixed))
        results.append(register_images(moving, ClearFixed(fixed), plan()))
    one, other = results
    assert displacement_rmse(one.transform, other.transform, foreground_points(images.fixed)) < 1e-6
    assert len(one.history) == len(other.history)


HIDDEN: list[Sampler] = [
    GradientMagnitude(0.3, 5),
    GradientMagnitude(0.3, 5, disclose_points=True),
    Chunks(0.3, 5),
]


@pytest.mark.parametrize("sampler", HIDDEN, ids=str)
def test_samples_that_party_2_cannot_sum_over_are_refused(sampler: Sampler, pair: Make) -> None:
    images = pair("rigid", 2)
    with pytest.raises(ConfigError, match="inverse-compositional") as caught:
        register_images(images.moving, ClearFixed(images.fixed), plan(sampler=sampler))
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class LosingFixed(ClearFixed):
    """A fixed image whose party is gone after some products."""

    products: int = 0

    def operand(self, request: OperandRequest) -> Operand:
        inner, outer = super().operand(request), self

        class Losing:
            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

            def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
                if outer.products == 0:
                    raise PeerLost("party_1: party_2 is gone (the connection was closed)")
                object.__setattr__(outer, "products", outer.products - 1)
                return inner.multiply(rows, pairs)

        return Losing()  # type: ignore[return-value]


@pytest.mark.parametrize("products", [0, 1, 2, 4])
def test_a_lost_party_leaves_the_best_transform_so_far(products: int, pair: Make) -> None:
    images = pair("affine", 2)
    result = register_images(images.moving, LosingFixed(images.fixed, products=products), plan())
    assert not result.complete
    assert len(result.history) == products
    whole = register_images(images.moving, ClearFixed(images.fixed), plan())
    assert [h.iteration for h in result.history] == [h.iteration for h in whole.history[:products]]
    start = register_images(images.moving, ClearFixed(images.fixed), plan(stopping=Stopping(1), levels=LEVELS[:1]))
    assert (distance(images, result) < distance(images, start)) == (products >= 2)


# --- private runs


@pytest.mark.parametrize("protocol", SOME_SLOW)
def test_a_private_run_is_the_clear_run(protocol: str, kind: str, dimension: int, pair: Make) -> None:
    images = pair(kind, dimension)
    clear = register_images(images.moving, ClearFixed(images.fixed), plan(transform=kind))
    with private_fixed(protocol, FixedParty(images.fixed, disclose_gram=True)) as fixed:
        private = register_images(images.moving, fixed, plan(transform=kind))
        assert private.error == ""
        assert fixed.channel.sent
    assert displacement_rmse(private.transform, clear.transform, foreground_points(images.fixed)) < 1e-3
    assert distance(images, private) < CLOSE_MM
    # Rounding the rows adds its own variance: under bfv about 8 bits of a typical entry are left.
    assert private.value == pytest.approx(clear.value, rel=0.02)


def test_where_points_map_outside_it_says_so_and_gauss_newton_goes_on(
    pair: Make, caplog: pytest.LogCaptureFixture
) -> None:
    images = pair("affine", 2)
    grid = images.moving.grid
    keep = int(grid.size[1] * 0.55)
    cut = Image(images.moving.tensor[:, :keep].contiguous(), replace(grid, size=(grid.size[0], keep)))
    result = register_images(cut, ClearFixed(images.fixed), plan(start="identity"))
    said = [line for line in caplog.messages if "needs every fixed point" in line]
    assert said == [
        "optimizer: InverseCompositional needs every fixed point inside the moving image, some are not; "
        "GaussNewton goes on"
    ]
    assert distance(images, result) < 0.5


def test_what_party_2_did_not_agree_to_disclose_is_refused(pair: Make) -> None:
    images = pair("rigid", 2)

    def ask() -> None:
        with private_fixed("bfv", FixedParty(images.fixed)) as fixed:
            result = register_images(images.moving, fixed, plan(transform="rigid"))
            assert not result.complete
            assert result.history == []
            assert result.error == "party_2 stopped: party_2 cannot go on"

    with pytest.raises(LinkError, match="does not disclose"):
        ask()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_clear_run_on_cuda_is_that_on_the_cpu(kind: str, dimension: int, pair: Make) -> None:
    images = pair(kind, dimension)
    wanted = plan(transform=kind)
    on_cpu = register_images(images.moving, ClearFixed(images.fixed), wanted)
    on_cuda = register_images(images.moving.to("cuda"), ClearFixed(images.fixed.to("cuda")), wanted)
    assert displacement_rmse(on_cuda.transform, on_cpu.transform, images.fixed.grid.points(dtype=torch.float64)) < 0.01
