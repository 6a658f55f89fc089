"""Which points an operand has, where a sample's points lie among them, and rows brought from the ones to the others.

>>> scattered(torch.tensor([[5, 6]]), torch.tensor([0, 3]), 4).tolist()
[[5, 0, 0, 6]]
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ImageError, LinkError
from ..grids import Grid
from ..images import Level, level_grid
from ..sampling import PointChoice, Sample
from .public_map import PublicMap

__all__ = ["WARPED", "on_map", "places_of", "scattered", "select_points"]

WARPED = -1
"""Place of party_1's own warped image among the rows of a product: the last, after those of its derivatives."""


def places_of(positions: Tensor | None, points: int, channels: int) -> Tensor | None:
    """Where the entries of a sample's channels lie among the operand's `points`, those of all channels."""
    if positions is None or channels == 1:
        return positions
    return (torch.arange(channels)[:, None] * (points // channels) + positions.cpu()).flatten()


def scattered(rows: Tensor, places: Tensor | None, points: int) -> Tensor:
    """Rows (rows, n) at these places as rows over all `points`, zero at the others; None: as they are."""
    if places is None:
        return rows
    whole = rows.new_zeros(len(rows), points)
    whole[:, places.to(rows.device)] = rows
    return whole


def on_map(rows: Tensor, sample: Sample, public_map: PublicMap) -> Tensor:
    """Rows at a sample's points as rows over all points of the operand's map."""
    return scattered(rows, places_of(sample.positions, public_map.points, public_map.channels), public_map.points)


def select_points(
    grid: Grid, mask: Tensor | None, level: Level, choice: PointChoice, number: int
) -> tuple[Tensor | None, Sample]:
    """(candidate points of a level, the sample among them) as flat indices on the level's grid; None means all.

    Indices lie on the CPU, wherever the mask does: they are sent, drawn and counted there.

    Both parties run this on public values and get the same points. They are voxels: of features every channel is used
    at each of them.
    """
    coarse, keep = level_grid(grid, level)
    candidates = None if mask is None else torch.nonzero(mask[keep].flatten()).flatten().cpu()
    count = coarse.count if candidates is None else candidates.numel()
    if count == 0:
        raise ImageError(f"mask: no voxel left at shrink factor {level.shrink}; use fewer levels or a larger mask")
    sample = choice.draw(count, number)
    if sample.index is not None and (int(sample.index.min()) < 0 or int(sample.index.max()) >= count):
        raise LinkError(f"sample: indices outside 0..{count - 1}")
    if candidates is not None:
        sample = Sample(candidates if sample.index is None else candidates[sample.index], sample.weights)
    return candidates, sample
