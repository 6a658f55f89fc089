"""Turns of a start: from which of them the coarsest level fits best, where the images may lie turned to each other.

>>> [len(turns_of(dimension, 45.0)) for dimension in (2, 3)]
[3, 15]
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..transforms import LinearTransform

__all__ = ["TRIED", "best_turn", "turns_of"]

TRIED = 8  # iterations from each turn
_FIRST, _APART = 35.0, 40.0  # degrees: what the coarsest level finds by itself is some 30 away

log = logging.getLogger(__name__)


def turns_of(dimension: int, degrees: float) -> list[Tensor]:
    """Rotations (D, D) float64 that leave none by up to `degrees` far away; the identity is the first.

    In 3-D about the axes and about the diagonals between them, to either side.
    """
    angles = [_FIRST + _APART * n for n in range(math.ceil(max(0.0, degrees - _FIRST / 2) / _APART))]
    if dimension == 2:
        planes = [torch.tensor([[0.0, -s], [s, 0.0]], dtype=torch.float64) for s in (1.0, -1.0)]
    else:
        along = [a for a in itertools.product((-1.0, 0.0, 1.0), repeat=3) if sum(map(abs, a)) in (1.0, 3.0)]
        planes = [_skew(torch.tensor(a, dtype=torch.float64)) for a in along]
    turned = [torch.linalg.matrix_exp(math.radians(angle) * plane) for angle in angles for plane in planes]
    return [torch.eye(dimension, dtype=torch.float64), *turned]


def best_turn(
    start: LinearTransform, degrees: float, fit: Callable[[LinearTransform], float]
) -> tuple[LinearTransform, int]:
    """(the turn of a start that fits best, how many were tried).

    Args:
        start: turned about where it takes the fixed grid's centre.
        degrees: by how much the images may be turned.
        fit: moves a transform a little and gives the loss there, infinite where it went wrong.
    """
    matrix, offset = (part.detach().double() for part in start.affine_map())
    centre = start.centre.double()
    target = matrix @ centre + offset
    tried: list[tuple[float, int, LinearTransform]] = []
    for turn in turns_of(start.dimension, degrees):
        candidate = copy.deepcopy(start)
        candidate.set_affine_map(turn @ matrix, target - turn @ matrix @ centre)
        if not torch.allclose(candidate.affine_map()[0].detach().double(), turn @ matrix, atol=1e-6):
            continue  # a translation has no turns
        tried.append((fit(candidate), len(tried), candidate))
    value, number, best = min(tried)
    log.info(
        "start: of %d turns number %d fits best, loss %.4g (%.4g as it is)", len(tried), number, value, tried[0][0]
    )
    return (best if math.isfinite(value) else start), len(tried)


def _skew(vector: Tensor) -> Tensor:
    x, y, z = (vector / vector.norm()).tolist()
    return torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
