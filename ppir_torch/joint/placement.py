"""Where a sample's points lie among an operand's points, and rows brought from the ones to the others.

>>> scattered(torch.tensor([[5, 6]]), torch.tensor([0, 3]), 4).tolist()
[[5, 0, 0, 6]]
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import Sample
from .public_map import PublicMap

__all__ = ["on_map", "places_of", "scattered"]


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
