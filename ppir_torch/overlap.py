"""Where two images overlap: how much a point of the fixed image counts once it is mapped into the moving one.

The weight is 0 beyond the moving image's border and outside its mask, rises to 1 over two voxels, and is party_1's
alone: its mask, the border and the transform are.

>>> image = Image(torch.rand(1, 16, 16), Grid((16, 16)))
>>> of = content(image.grid, image.tensor)
>>> [round(w, 3) for w in weights_at(of, torch.tensor([[-1.0, 8.0], [1.0, 8.0], [8.0, 8.0]])).tolist()]
[0.0, 0.5, 1.0]
>>> inside(image.grid, torch.tensor([[-0.4, 15.0], [-1.0, 15.0]]))[0].tolist()
[True, False]
"""

from __future__ import annotations

import torch
from torch import Tensor

from .grids import Grid
from .images import Image
from .warping import sample

__all__ = ["content", "inside", "weights_at"]

_EDGE_VOXELS = 2.0  # over which the weight rises from the border inwards
_THIN = 12  # voxels of an axis that is too short for that


def content(grid: Grid, like: Tensor, mask: Image | None = None) -> Image:
    """How much each voxel of an image counts: (1, [z,] y, x) in [0, 1], 0 at the border and 1 two voxels inside.

    An axis of n < 12 voxels has a narrower edge, n / 6 voxels from the border voxel's outer face.

    Args:
        grid: of the image, at its level.
        like: whose dtype and device it takes.
        mask: 1 where the image counts, at the same level (smoothed with it); values below a half count as outside.
    """
    weight = like.new_ones(1, *grid.shape)
    for axis, n in enumerate(grid.shape):
        inward = torch.arange(n, dtype=weight.dtype, device=weight.device)
        inward = torch.minimum(inward, inward.flip(0))
        edge = inward / _EDGE_VOXELS if n >= _THIN else (inward + 0.5) / (n / 6)
        weight *= edge.clamp(max=1).reshape(-1, *[1] * (grid.dimension - 1 - axis))
    if mask is not None:
        weight *= (2 * mask.tensor.to(weight) - 1).clamp(0, 1)
    return Image(weight, grid)


def weights_at(of: Image, points: Tensor) -> Tensor:
    """The weights (n,) in [0, 1] of points (n, D), mm, that were mapped into the image whose `content` is given."""
    return sample(of, points, outside=0.0).clamp(0, 1)


def inside(grid: Grid, points: Tensor) -> tuple[Tensor, Tensor]:
    """Which points (n, D), mm, lie in the voxels of a grid, with their whole extent; and their indices (n, D) there."""
    matrix, origin = grid.index_to_physical()
    index = (points - origin.to(points)) @ torch.linalg.inv(matrix).T.to(points)
    size = torch.tensor(grid.size).to(index)
    slack = 1e-6 if points.dtype == torch.float64 else 1e-3  # of a voxel: the same grid is inside of itself
    return ((index >= -0.5 - slack) & (index <= size - 0.5 + slack)).all(1), index
