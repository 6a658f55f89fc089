"""Ctrl-C in the loop: the exception carries the best so far, wherever it came, and no step that was not judged."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppir_torch.images import Level
from ppir_torch.interruption import Interrupted
from ppir_torch.joint.bounds import Pairs
from ppir_torch.joint.operands import Operand
from ppir_torch.losses import Correlation, MutualInformation
from ppir_torch.optimizers import LBFGS, Adam
from ppir_torch.registration import (
    ClearFixed,
    Deformable,
    LevelIteration,
    OperandRequest,
    Plan,
    Result,
    register_images,
)

PLAN = Plan(transform="affine", levels=(Level(2, 2.0), Level(1, 0.0)))
PLANS = {
    "gauss_newton": PLAN,
    "adam": replace(PLAN, optimizer=Adam()),
    "lbfgs": replace(PLAN, optimizer=LBFGS(), loss=MutualInformation()),
    "deformable": replace(
        PLAN, levels=PLAN.levels[:1], deformable=Deformable(levels=PLAN.levels, spacing_mm=8.0), loss=Correlation()
    ),
}


class Count:
    """Raises at the n-th call."""

    def __init__(self, until: int, error: Callable[[], BaseException]) -> None:
        self.left, self.error = until, error

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error()


@dataclass(frozen=True)
class InterruptedFixed(ClearFixed):
    """A fixed image with whose n-th product comes a signal, before the product or after it."""

    count: Any = None
    after: bool = False

    def operand(self, request: OperandRequest) -> Operand:
        inner, outer = super().operand(request), self

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

            def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
                return self._counted(lambda: inner.multiply(rows, pairs))

            def _counted(self, work: Callable[[], Any]) -> Any:
                if not outer.after:
                    outer.count()
                result = work()
                if outer.after:
                    outer.count()
                return result

        return Counting()  # type: ignore[return-value]


@pytest.fixture(scope="session")
def pair(covering_pair: Callable[..., Any]) -> Callable[..., Any]:
    """Products are counted here."""
    return covering_pair


def interrupted(run: Callable[[], object]) -> Result:
    with pytest.raises(Interrupted) as caught:
        run()
    result = caught.value.result
    assert isinstance(result, Result)
    assert (result.complete, result.error) == (False, str(caught.value))
    return result


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("number", [1, 3, 6])
def test_between_two_steps(name: str, number: int, pair: Callable[..., Any]) -> None:
    """In the observer: every iteration that was told is in the history, the transform is the best of them."""
    images, plan = pair("affine", 2), PLANS[name]
    seen: list[LevelIteration] = []
    count = Count(number, KeyboardInterrupt)

    def observer(event: LevelIteration) -> None:
        seen.append(event)
        count()

    result = interrupted(lambda: register_images(images.moving, ClearFixed(images.fixed), plan, observer))
    assert len(seen) == number
    assert result.history == seen
    assert result.warped.grid == images.fixed.grid
    last = [h.iteration for h in seen if h.level == seen[-1].level and h.iteration.accepted]
    if last:
        assert result.value == last[-1].value
    whole = register_images(images.moving, ClearFixed(images.fixed), plan)
    assert [h.iteration for h in whole.history[:number]] == [h.iteration for h in seen]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["gauss_newton", "adam"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_within_a_step(name: str, number: int, after: bool, pair: Callable[..., Any]) -> None:
    """In a product, where the parameters hold a step that nobody has judged: it is taken back."""
    images, plan = pair("affine", 2), PLANS[name]
    fixed = InterruptedFixed(images.fixed, None, Count(number, lambda: Interrupted(signal.SIGTERM)), after)
    result = interrupted(lambda: register_images(images.moving, fixed, plan))
    assert result.error == "interrupted by SIGTERM"
    # Where the same run was after the last iteration that it told of.
    told = len(result.history)
    if told == 0:
        centres = images.moving.grid.centre - images.fixed.grid.centre
        matrix, offset = (part.detach() for part in result.transform.affine_map())  # type: ignore[union-attr]
        torch.testing.assert_close(matrix, torch.eye(2, dtype=matrix.dtype))
        torch.testing.assert_close(offset, centres.to(offset))
        return
    count = Count(told, KeyboardInterrupt)
    same = interrupted(lambda: register_images(images.moving, ClearFixed(images.fixed), plan, count))
    for mine, theirs in zip(result.transform.parameters(), same.transform.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_interruption_before_the_first_level_has_nothing_to_keep(pair: Callable[..., Any]) -> None:
    images = pair("affine", 2)

    class Fixed(ClearFixed):
        def centre_of_mass(self) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        register_images(images.moving, Fixed(images.fixed), replace(PLAN, start="centre_of_mass"))
    assert not isinstance(caught.value, Interrupted)
