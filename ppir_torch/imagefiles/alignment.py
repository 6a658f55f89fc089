"""A mask on the grid of its image, compared in millimetres: voxels are never matched by their numbers alone.

A tool may have stored the mask with its axes reversed or permuted, cropped to the organ, or on finer voxels over the
same field of view: all of that is the same region in space. What lies elsewhere has lost its header, or is another
image's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ImageError
from ..grids import Grid

__all__ = ["aligned_mask"]

SAME_VOXEL = 0.1  # voxels: what headers in single precision round away, and more


def aligned_mask(mask: Tensor, own: Grid, grid: Grid) -> Tensor:
    """The mask's voxels in the order of the image's.

    Args:
        mask: bool ([z,] y, x) on its own grid.
        own: that grid.
        grid: the image's.

    Returns:
        Bool ([z,] y, x) on `grid`: reordered where the voxels are the same (those that a cropped mask lacks are
        outside it), the nearest voxel's where both cover the same field of view.

    Raises:
        ImageError: the mask lies elsewhere.
    """
    if own.dimension != grid.dimension:
        raise ImageError(f"mask of size {own.size}, the image has {grid.size}: of another dimension")
    matrix, offset = _between(own, grid)
    axes = matrix.abs().argmax(0).tolist()  # image axis -> the mask's axis that runs along it
    if sorted(axes) != list(range(grid.dimension)):
        raise _elsewhere(own, grid)
    scales = [float(matrix[axis, k]) for k, axis in enumerate(axes)]
    starts = [float(offset[axis]) for axis in axes]
    counts = [own.size[axis] for axis in axes]
    straight = torch.zeros_like(matrix)
    for k, axis in enumerate(axes):
        straight[axis, k] = scales[k]
    last = torch.tensor([n - 1 for n in grid.size], dtype=torch.float64)
    skew = float(((matrix - straight).abs() @ last).max())
    stretch = max(abs(abs(s) - 1) * (n - 1) for s, n in zip(scales, grid.size, strict=True))
    shift = max(abs(start - round(start)) for start in starts)
    same_voxels = max(skew, stretch, shift) <= SAME_VOXEL and max(skew + stretch + shift, 0) <= 2 * SAME_VOXEL
    boxes = [_box(s, b, n) for s, b, n in zip(scales, starts, counts, strict=True)]
    if same_voxels:
        inside = all(low >= -0.75 and high <= n - 0.25 for (low, high), n in zip(boxes, grid.size, strict=True))
        around = all(low <= -0.25 and high >= n - 0.75 for (low, high), n in zip(boxes, grid.size, strict=True))
        if not inside and not around:
            raise _elsewhere(own, grid)
    elif skew > 0.5 or not all(_covers(box, n, s) for box, n, s in zip(boxes, grid.size, scales, strict=True)):
        raise _elsewhere(own, grid)
    return _taken(mask, axes, scales, starts, grid)


def _between(own: Grid, grid: Grid) -> tuple[Tensor, Tensor]:
    """(M, t) with mask index = M image index + t."""
    to_physical, origin = own.index_to_physical()
    matrix, start = grid.index_to_physical()
    back = torch.linalg.inv(to_physical)
    return back @ matrix, back @ (start - origin)


def _box(scale: float, start: float, count: int) -> tuple[float, float]:
    """From where to where the mask's voxels reach along an axis, as indices of the image's voxels."""
    ends = sorted(((-0.5 - start) / scale, (count - 0.5 - start) / scale))
    return ends[0], ends[1]


def _covers(box: tuple[float, float], count: int, scale: float) -> bool:
    """Whether that is the image's field of view, within the larger of both voxels."""
    voxel = max(1.0, 1 / abs(scale)) + SAME_VOXEL
    return abs(box[0] + 0.5) <= voxel and abs(box[1] - (count - 0.5)) <= voxel


def _taken(mask: Tensor, axes: list[int], scales: list[float], starts: list[float], grid: Grid) -> Tensor:
    """The mask at the image's voxels: the nearest voxel along each axis, outside where there is none."""
    d = grid.dimension
    ordered = mask.permute([d - 1 - axes[d - 1 - axis] for axis in range(d)])  # tensor axes are the reverse of x, y, z
    for k in range(d):
        where = torch.arange(grid.size[k], dtype=torch.float64) * scales[k] + starts[k]
        index = torch.floor(where + 0.5).long()
        count = ordered.shape[d - 1 - k]
        there = (index >= 0) & (index < count)
        along = ordered.index_select(d - 1 - k, index.clamp(0, count - 1))
        shape = [1] * d
        shape[d - 1 - k] = -1
        ordered = along & there.reshape(shape)
    return ordered.contiguous()


def _elsewhere(own: Grid, grid: Grid) -> ImageError:
    """The line that names what differs."""
    parts = [f"mask of size {own.size}, the image has {grid.size}"]
    for name, of_mask, of_image in (
        ("spacing", own.spacing, grid.spacing),
        ("origin", own.origin, grid.origin),
        ("direction", own.direction, grid.direction),
    ):
        if not all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in zip(of_mask, of_image, strict=True)):
            parts.append(f"{name} {_short(of_mask)}, the image {_short(of_image)}")
    hint = "it must lie on the image's voxels or cover the same field of view; save it with the image's header"
    return ImageError(f"{'; '.join(parts)}: {hint}")


def _short(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
