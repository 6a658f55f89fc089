"""What the sums over an overlap tell a curious party_1: J's and J^2's, opened once a round by weights that it knows.

Between two rounds the weights change, and the difference of two sums of J^2 is about the changed voxels alone: had they
been opened whenever the transform moved, single voxels could be read. A round begins only where a hundredth of all
weights has changed, so no difference is of few voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.operands import ClearOperand
from ppir_torch.losses import SquaredCorrelation, SquaredDifference
from ppir_torch.registration import ClearFixed, Plan, register_images
from ppir_torch.registration.rounds import SETTLED

Make = Callable[..., Any]


def read_squares(weights: Tensor, opened: Tensor) -> Tensor:
    """The attacker: J^2 (n,) of least norm that gives the opened sums (k,) by weights (k, n)."""
    return torch.linalg.pinv(weights) @ opened


def explained(guess: Tensor, truth: Tensor) -> float:
    """Share of the truth's variance that the guess explains."""
    return 1 - float((guess - truth).square().sum() / (truth - truth.mean()).square().sum())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every overlap (n,) by which a run had J and J^2 summed, level by level."""
    seen: list[Tensor] = []
    within = ClearOperand.within

    def remember(operand: ClearOperand, overlap: Tensor) -> ClearOperand:
        seen.append(overlap)
        return within(operand, overlap)

    monkeypatch.setattr(ClearOperand, "within", remember)
    return seen


def cut(image: Image, share: float) -> Image:
    """The image without its last rows."""
    keep = int(image.grid.size[1] * share)
    size = (image.grid.size[0], keep, *image.grid.size[2:])
    return Image(
        image.tensor[..., :keep, :] if len(size) == 2 else image.tensor[:, :, :keep], replace(image.grid, size=size)
    )


def test_sums_at_every_step_would_tell_single_voxels() -> None:
    """The positive control: weights that change by one voxel a time."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.randint(0, 2048, (64,), generator=generator).double() ** 2
    weights = torch.tril(torch.ones(64, 64, dtype=torch.float64))
    assert torch.allclose(read_squares(weights, weights @ squares), squares, rtol=1e-6)


@pytest.mark.parametrize("measure", [SquaredDifference(), SquaredCorrelation()], ids=lambda m: m.kind)
def test_the_sums_of_a_run_tell_next_to_nothing(measure: Any, dimension: int, pair: Make, opened: list[Tensor]) -> None:
    images = pair("affine", dimension, size_mm=4.0)
    noise = torch.randn(images.fixed.tensor.shape, generator=torch.Generator().manual_seed(1))
    fixed = Image(images.fixed.tensor + 5 * noise, images.fixed.grid)
    plan = Plan(levels=(Level(1, 2.0),), loss=measure, start="identity")
    register_images(cut(images.moving, 0.7), ClearFixed(fixed), plan)
    assert len(opened) >= 2
    weights = torch.stack(opened).double()
    for before, after in itertools.pairwise(weights):
        assert float((after - before).abs().sum()) > SETTLED * float(before.sum()) * 0.99
        assert int((after != before).sum()) > 20  # never a few voxels
    squares = (fixed.tensor.flatten().double() - fixed.tensor.double().mean()) ** 2
    inside = weights.sum(0) > 0
    guess = read_squares(weights, weights @ squares)
    assert explained(guess[inside], squares[inside]) < 0.2


def test_a_whole_overlap_opens_no_sums(opened: list[Tensor]) -> None:
    grid = Grid((32, 32))
    blob = torch.exp(-((grid.points() - 16) ** 2).sum(1) / 40).reshape(1, 32, 32)
    register_images(Image(blob, grid), ClearFixed(Image(blob, grid)), Plan(levels=(Level(1, 0.0),)))
    assert opened == []
