"""A run that goes wrong says so, and gives the best that was sane; one that stops short says that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppir_torch.errors import PeerLost
from ppir_torch.images import Image, Level
from ppir_torch.joint.operands import Operand
from ppir_torch.losses import AnyLinearisation, Correlation, LocalCorrelation
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.optimizers import GaussNewton, Iteration, Optimizer, Stopping
from ppir_torch.registration import ClearFixed, Deformable, OperandRequest, Plan, Result, register_images
from ppir_torch.transforms import Affine, Composite, LinearTransform

Make = Callable[..., Any]
LEVELS = (Level(2, 4.0), Level(1, 0.0))


def untouched(transform: nn.Module) -> None:
    """Nothing is spoiled."""


@dataclass(frozen=True)
class Spoiler(GaussNewton):
    """Gauss-Newton, which at one level does nothing but set the parameters to something else, once."""

    at: int = 1
    spoil: Callable[[nn.Module], None] = untouched
    seen: list[tuple[nn.Module, float]] = field(default_factory=list)  # of every level

    def minimise(
        self,
        transform: nn.Module,
        linearise: Callable[[], AnyLinearisation],
        stopping: Stopping,
        voxel_mm: float,
        move: Callable[[Tensor], None] | None = None,
    ) -> Iterator[Iteration]:
        first = (transform, voxel_mm) not in self.seen
        if first:
            self.seen.append((transform, voxel_mm))
        if self.seen.index((transform, voxel_mm)) != self.at:
            yield from super().minimise(transform, linearise, stopping, voxel_mm, move)
            return
        yield Iteration(1, linearise().value, True, 0.0, 0.0)
        if first:
            with torch.no_grad():
                self.spoil(transform)

    def for_lattices(self) -> Optimizer:
        return self


def mirrored(transform: nn.Module) -> None:
    assert isinstance(transform, LinearTransform)
    matrix, offset = transform.affine_map()
    centre, other = matrix @ transform.centre + offset, matrix[:, [1, 0]]
    transform.set_affine_map(other, centre - other @ transform.centre)


def nudged(transform: nn.Module) -> None:
    next(iter(transform.parameters())).add_(1.0)


def shrunk(transform: nn.Module) -> None:
    assert isinstance(transform, LinearTransform)
    matrix, offset = transform.affine_map()
    centre = matrix @ transform.centre + offset
    transform.set_affine_map(matrix / 100, centre - matrix @ transform.centre / 100)


def far_away(transform: nn.Module) -> None:
    next(iter(transform.parameters())).add_(1e5)


def not_a_number(transform: nn.Module) -> None:
    next(iter(transform.parameters())).fill_(float("nan"))


def folded(transform: nn.Module) -> None:
    (coefficients,) = transform.parameters()
    coefficients.copy_(20 * torch.randn(coefficients.shape, generator=torch.Generator().manual_seed(1)))


def plan(**changes: Any) -> Plan:
    return replace(Plan(levels=LEVELS), **changes)


def distance(images: Any, result: Result) -> float:
    return displacement_rmse(result.transform, images.truth, foreground_points(images.fixed))


def test_a_good_run_knows_each_of_its_levels(dimension: int, pair: Make) -> None:
    images = pair("affine", dimension)
    result = register_images(images.moving, ClearFixed(images.fixed), plan())
    assert (result.warnings, result.failed, result.complete) == ((), False, True)
    assert [facts.level for facts in result.levels] == [0, 1]
    for facts, level in zip(result.levels, LEVELS, strict=True):
        mine = [h for h in result.history if h.level == facts.level]
        assert (facts.shrink, facts.iterations, facts.limit, facts.converged) == (level.shrink, len(mine), 30, True)
        assert facts.explained is not None
        assert facts.explained_before is not None
        assert facts.explained > facts.explained_before
        assert facts.explained > 0.99
        assert facts.folding_share is None
    determinant = torch.linalg.det(images.truth.matrix().detach())
    assert result.levels[-1].determinant == pytest.approx(float(determinant), abs=0.01)
    assert result.levels[-1].overlap > 0.8


@pytest.mark.parametrize("spoil", [mirrored, shrunk], ids=lambda f: f.__name__)
@pytest.mark.parametrize("at", [0, 1])
def test_what_was_found_before_is_kept(spoil: Callable[[nn.Module], None], at: int, pair: Make) -> None:
    images = pair("affine", 2)
    fixed = ClearFixed(images.fixed)
    result = register_images(images.moving, fixed, plan(optimizer=Spoiler(at=at, spoil=spoil)))
    assert (result.failed, result.complete) == (True, False)
    assert [finding.fatal for finding in result.warnings] == [True]
    assert result.error == result.warnings[0].message
    assert {h.level for h in result.history} == set(range(at + 1))  # the run ended there
    if at == 0:
        start = Affine(images.fixed.grid)
        with torch.no_grad():
            start.translation.copy_(images.moving.grid.centre - images.fixed.grid.centre)
        assert displacement_rmse(result.transform, start, images.fixed.grid.points()) < 1e-5
        assert result.value != result.value  # no level was of use
    else:
        before = register_images(images.moving, fixed, plan(levels=LEVELS[:1]))
        pairs = zip(result.transform.parameters(), before.transform.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(result.warped.tensor, before.warped.tensor)
        assert result.value == before.value


@pytest.mark.parametrize("spoil", [far_away, not_a_number], ids=lambda f: f.__name__)
def test_steps_out_of_sight_are_taken_back(spoil: Callable[[nn.Module], None], pair: Make) -> None:
    """Before they are judged: the next level goes on from where the images overlap."""
    images = pair("affine", 2)
    for at in (0, 1):
        result = register_images(images.moving, ClearFixed(images.fixed), plan(optimizer=Spoiler(at=at, spoil=spoil)))
        assert [facts.held_back for facts in result.levels] == [at == 0, at == 1]
        assert not result.failed
        assert bool(torch.isfinite(result.warped.tensor).all())
        assert [finding.kind for finding in result.warnings] == ([] if at == 0 else ["little_overlap"])


def test_a_deformation_that_folds_everywhere_is_not_kept(pair: Make) -> None:
    images = pair("rigid", 2)
    deformable = Deformable(kind="bspline", levels=LEVELS, spacing_mm=12.0, stopping=Stopping(max_iterations=2))
    chosen = plan(levels=LEVELS[1:], deformable=deformable, optimizer=Spoiler(at=2, spoil=folded))
    result = register_images(images.moving, ClearFixed(images.fixed), chosen)
    assert result.failed
    assert result.warnings[0].kind == "collapsed"
    assert isinstance(result.transform, Composite)  # of the level before
    assert distance(images, result) < 1.0


def test_levels_that_stop_short_are_named_and_the_run_is_complete(pair: Make) -> None:
    images = pair("affine", 2)
    result = register_images(images.moving, ClearFixed(images.fixed), plan(stopping=Stopping(max_iterations=2)))
    assert [(f.kind, f.fatal, f.levels) for f in result.warnings] == [("not_converged", False, (0, 1))]
    assert (result.complete, result.failed, result.error) == (True, False, "")
    assert not any(facts.converged for facts in result.levels)


def test_a_lost_party_leaves_what_was_sane(pair: Make) -> None:
    """The level that it was lost in did not come to its end: nothing is said of it; one that ran away is not kept."""

    @dataclass(frozen=True)
    class Lost(Spoiler):
        def minimise(self, transform: nn.Module, *rest: Any, **more: Any) -> Iterator[Iteration]:
            yield from super().minimise(transform, *rest, **more)
            if len(self.seen) > self.at:
                raise PeerLost("party_2 is gone")

    images = pair("affine", 2)
    fixed = ClearFixed(images.fixed)
    before = register_images(images.moving, fixed, plan(levels=LEVELS[:1]))
    for spoil, kept in ((far_away, True), (nudged, False)):
        result = register_images(images.moving, fixed, plan(optimizer=Lost(at=1, spoil=spoil)))
        assert (result.complete, result.failed, result.error) == (False, False, "party_2 is gone")
        assert [facts.level for facts in result.levels] == [0]
        assert (displacement_rmse(result.transform, before.transform, images.fixed.grid.points()) < 1e-9) == kept


@pytest.mark.parametrize(
    "change",
    [lambda v: 100 * v, lambda v: v.max() - v, lambda v: v + 65280, lambda v: 3 * v - 1000],
    ids=["brighter", "inverted", "MONOCHROME1", "Hounsfield"],
)
@pytest.mark.parametrize("transform", ["rigid", "affine"])
def test_unlike_brightness_is_told_or_overcome(change: Callable[[Any], Any], transform: str, pair: Make) -> None:
    """Whatever the loss makes of such a pair: it finds the transform, or it says that something is wrong."""
    images = pair("rigid", 3)
    moving = Image(change(images.moving.tensor), images.moving.grid)
    result = register_images(moving, ClearFixed(images.fixed), plan(transform=transform))
    assert distance(images, result) < 0.5 or result.warnings


def test_images_that_have_nothing_in_common_are_told(pair: Make) -> None:
    random = torch.Generator().manual_seed(2)
    images = pair("rigid", 2)
    noise = Image(torch.randn(images.moving.tensor.shape, generator=random), images.moving.grid)
    for measure in (Correlation(), LocalCorrelation()):
        result = register_images(noise, ClearFixed(images.fixed), plan(transform="rigid", loss=measure))
        assert result.levels[-1].explained is not None
        assert result.levels[-1].explained < 0.2


class Counted(ClearFixed):
    """Counts the operands that are asked for: judging asks for none."""

    asked = 0

    def operand(self, request: OperandRequest) -> Operand:
        type(self).asked += 1
        return super().operand(request)


def test_judging_asks_nothing_of_party_2(pair: Make) -> None:
    images = pair("rigid", 2)
    register_images(images.moving, Counted(images.fixed), plan())
    assert Counted.asked == len(LEVELS)


def test_images_that_come_apart_are_held_back_and_that_is_said(pair: Make) -> None:
    """Steps to where less than 40 % of the overlap is left are taken back; the level did not converge."""

    @dataclass(frozen=True)
    class Drift(GaussNewton):
        def minimise(
            self,
            transform: nn.Module,
            linearise: Callable[[], AnyLinearisation],
            *rest: Any,  # noqa: ARG002
            **more: Any,  # noqa: ARG002
        ) -> Iterator[Iteration]:
            value = linearise().value
            for number in (1, 2):
                yield Iteration(number, value, True, 1.0, 0.0)
                with torch.no_grad():
                    next(iter(transform.parameters())).add_(40.0)

    images = pair("rigid", 2)
    result = register_images(images.moving, ClearFixed(images.fixed), plan(optimizer=Drift(), levels=LEVELS[1:]))
    (facts,) = result.levels
    assert (facts.held_back, facts.converged, result.failed) == (True, False, False)
    assert [finding.kind for finding in result.warnings] == ["little_overlap"]
    assert facts.overlap == facts.overlap_at_start
    assert facts.explained is None
