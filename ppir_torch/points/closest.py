"""Rigid alignment of point sets without known correspondence, in the clear."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError
from .rigid import rigid_from_points

__all__ = ["iterate_closest_points"]


def iterate_closest_points(
    fixed: Tensor,
    moving: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    iterations: int = 100,
    tolerance: float = 1e-9,
) -> tuple[Tensor, Tensor, float]:
    """Rigid alignment of point sets without known correspondence (Besl and McKay, TPAMI 1992), in the clear only.

    Each mapped fixed point is paired with the moving point next to it, then the pairs are aligned; the distance never
    grows, and ends in a minimum near the start. There is no private counterpart here: a nearest neighbour needs every
    distance between one party's points and the other's, which is the joint content itself. Two parties use
    corresponding points (`rigid_from_moments`) or register images or distance maps of the shapes.

    Args:
        fixed: (n, D) mm.
        moving: (m, D) mm; m need not be n.
        start: (matrix, offset), fixed to moving; default the shift between the means.
        iterations: at most.
        tolerance: stops where the root mean square distance falls by less than this share of it.

    Returns:
        (matrix (D, D), offset (D,), root mean square distance in mm of the mapped fixed points to the moving set),
        float64.

    Raises:
        ConfigError: sets of different dimension or of fewer than D + 1 points, or as in `rigid_from_moments`.

    >>> line = torch.linspace(0, 10, 40, dtype=torch.float64)
    >>> shape = torch.stack([line, line.sin()], 1)
    >>> matrix, offset, rms = iterate_closest_points(shape, shape + 0.05)
    >>> round(rms, 6), [round(v, 4) for v in offset.tolist()]
    (0.0, [0.05, 0.05])
    """
    d = fixed.shape[-1]
    if fixed.ndim != 2 or moving.ndim != 2 or moving.shape[1] != d or min(len(fixed), len(moving)) <= d:
        raise ConfigError(
            f"point sets: {tuple(fixed.shape)} and {tuple(moving.shape)}, (n, D) and (m, D) with more than D are needed"
        )
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    fixed, moving = fixed.detach().double().cpu(), moving.detach().double().cpu()
    tree = cKDTree(moving.numpy())
    if start is None:
        start = torch.eye(d, dtype=torch.float64), moving.mean(0) - fixed.mean(0)
    matrix, offset = (part.detach().double().cpu() for part in start)

    def closest() -> tuple[float, Tensor]:
        distances, index = tree.query((fixed @ matrix.T + offset).numpy())
        return math.sqrt(float((distances**2).mean())), torch.from_numpy(index)

    rms, index = closest()
    for _ in range(iterations):
        matrix, offset = rigid_from_points(fixed, moving[index])
        last = rms
        rms, index = closest()
        if last - rms <= tolerance * last:
            break
    return matrix, offset, rms
