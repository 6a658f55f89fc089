"""The iterations of one level over the overlap of the two images: rounds, in each of which the weights stay.

In a round the points' weights, and so the sum of w J^2, do not change: values can be compared, and no step gains by
moving a misfit out of sight. Where the transform has moved so far that the weights are others, a new round begins.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..images import Image
from ..joint.operands import Operand
from ..optimizers import Iteration, Stopping
from ..optimizers.parameters import copies, restore
from ..overlap import inside, weights_at

__all__ = ["Domain", "rounds"]

RENEWED = 0.05  # share of the weights that may change before a round ends early
SETTLED = 0.01  # share up to which the weights are those that the round had
LEAST = 0.4  # of the overlap that a level begins with: a transform that leaves less is not taken
_CHUNK, _FEW = 1 << 18, 20_000


@dataclass(frozen=True)
class Domain:
    """The fixed points of one level, and the moving image's content there.

    Attributes:
        content: see `overlap.content`, at the level.
        points: (n, D) of the operand's sample, mm, on the content's device.
        masked: whether the moving image has a mask.
    """

    content: Image
    points: Tensor
    masked: bool = False

    def weights(self, transform: nn.Module) -> Tensor | None:
        """(n,) of every point at the transform as it is; None: all map inside, and each counts in full."""
        return self._at(transform, self.points)

    def change(self, weights: Tensor | None, transform: nn.Module) -> float:
        """Share of the weights that are others now, estimated at some 20,000 points."""
        step = max(1, len(self.points) // _FEW)
        now = self._at(transform, self.points[::step])
        return difference(None if weights is None else weights[::step], now)

    def _at(self, transform: nn.Module, points: Tensor) -> Tensor | None:
        parts, whole = [], not self.masked
        with torch.no_grad():
            for part in torch.split(points, _CHUNK):
                mapped = transform(part)
                whole = whole and bool(inside(self.content.grid, mapped)[0].all())
                parts.append(weights_at(self.content, mapped))
        return None if whole else torch.cat(parts)


def difference(before: Tensor | None, after: Tensor | None) -> float:
    """sum |w' - w| / sum w of weights (n,); None stands for ones."""
    if before is None and after is None:
        return 0.0
    known = after if before is None else before
    assert known is not None
    one = torch.ones_like(known)
    old, new = (one if weights is None else weights for weights in (before, after))
    return float((new - old).abs().double().sum() / old.double().sum().clamp(min=1e-300))


def share(weights: Tensor | None) -> float:
    """Mean weight, 1 where all points map inside."""
    return 1.0 if weights is None else float(weights.double().mean())


def rounds(
    transform: nn.Module,
    candidates: Tensor | None,
    domain_of: Callable[[Tensor | None], Domain],
    operand_of: Callable[[bool], Operand],
    minimise: Callable[[Operand, Stopping], Iterator[Iteration]],
    stopping: Stopping,
    held_back: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Iteration, Operand]]:
    """The iterations of one level, numbered through, each with the operand that its product was with.

    Args:
        transform: fixed points to moving points; it is moved.
        candidates: flat indices of the level's points that count; None: all.
        domain_of: the level's, at the points of flat indices (None: all).
        operand_of: the level's operand; whether its points are to count by an overlap.
        minimise: the optimiser's iterations on an operand.
        stopping: of the level, all rounds together.
        held_back: called where the level ends because the images came apart.
    """
    parameters = [p for p in transform.parameters() if p.requires_grad]
    partly, done = domain_of(candidates).weights(transform) is not None, 0
    operand = operand_of(partly)
    domain = domain_of(operand.sample.index)
    weights = domain.weights(transform)
    least = LEAST * share(weights)
    while True:
        used, before = operand if weights is None else operand.within(weights), copies(parameters)
        steps, number = minimise(used, replace(stopping, max_iterations=stopping.max_iterations - done)), 0
        try:
            for iteration in steps:
                number = iteration.number
                yield replace(iteration, number=done + number), used
                moved = iteration.accepted and number > 1
                if moved and domain.change(weights, transform) > RENEWED:
                    break
        finally:
            if isinstance(steps, Generator):  # its parameters go back to the best it has seen
                steps.close()
        done += number
        # What is not finite is not sampled: torch's grid_sample ends the process there (2-D, CPU).
        finite = all(bool(torch.isfinite(p).all()) for p in parameters)
        now = domain.weights(transform) if finite else None
        if not finite or share(now) < least:
            restore(parameters, before)
            held_back()
            return
        if difference(weights, now) <= SETTLED or done >= stopping.max_iterations:
            return
        weights = now
        if weights is not None and not partly:
            partly, operand = True, operand_of(True)
            domain = domain_of(operand.sample.index)
            weights = domain.weights(transform)
