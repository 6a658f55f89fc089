"""Transforms of slices that their files keep in 3-D: found within the planes, written for the files as they are.

A 2-D transform maps coordinates in the fixed slice's plane to those in the moving one's. In space it takes the fixed
plane to the moving plane, and what lies beside one to what lies as far beside the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..grids import Grid
from ..planes import Plane, smallest_turn
from .dense import Displacement
from .linear import Affine, LinearTransform, affine_from_map

__all__ = ["displacement_in_space", "in_space", "within_plane"]


def in_space(transform: LinearTransform, fixed: Grid, moving: Grid) -> LinearTransform:
    """The 3-D form of a 2-D transform, where both grids are slices in space; else the transform itself.

    Args:
        transform: from coordinates in the fixed plane to those in the moving plane.
        fixed: the fixed image's grid.
        moving: the moving image's; its plane is taken as seen from the fixed one.

    Returns:
        Affine, float64, from fixed to moving points in mm LPS.
    """
    if fixed.plane is None or moving.plane is None:
        return transform
    matrix, offset = (part.detach().double().cpu() for part in transform.affine_map())
    here, there = fixed.plane, _seen(moving, fixed)
    start, end = here.columns(), there.columns()
    inner = torch.eye(3, dtype=torch.float64)
    inner[:2, :2] = matrix
    within = torch.cat([offset, torch.tensor([there.height - here.height], dtype=torch.float64)])
    return affine_from_map(fixed.in_space(), end @ inner @ start.T, end @ within)


def within_plane(matrix: Tensor, offset: Tensor, fixed: Grid) -> Affine:
    """Inverse of `in_space`: what y = matrix x + offset, 3-D, does within the plane of a slice.

    The moving plane is the one that the map takes the fixed plane to; a map that tilts it more than a slice can be
    seen under is refused by `Plane.seen_from` when the images meet.

    Args:
        matrix: (3, 3) float64.
        offset: (3,) float64, mm.
        fixed: the fixed image's grid, with its plane.

    Returns:
        Affine on `fixed`, 2-D.
    """
    assert fixed.plane is not None
    start = fixed.plane.columns()
    normal = torch.linalg.cross(matrix @ start[:, 0], matrix @ start[:, 1])
    normal = normal / torch.linalg.vector_norm(normal).clamp(min=1e-300)
    if float(normal @ start[:, 2]) < 0:
        normal = -normal
    end = smallest_turn(start[:, 2], normal) @ start
    inner = end[:, :2].T @ matrix @ start[:, :2]
    lifted = matrix @ start[:, 2] * fixed.plane.height + offset
    return affine_from_map(fixed, inner, end[:, :2].T @ lifted)


def displacement_in_space(transform: nn.Module, fixed: Grid, moving: Grid) -> Displacement:
    """Any transform between two slices in space as displacements in mm LPS at the fixed file's voxels, 3-D.

    Args:
        transform: from coordinates in the fixed plane to those in the moving plane.
        fixed: the fixed image's grid, with its plane.
        moving: the moving image's, with its own.
    """
    assert fixed.plane is not None
    there = _seen(moving, fixed)
    points = fixed.points(dtype=torch.float64)
    with torch.no_grad():
        mapped = transform(points).double()
    height = torch.full_like(mapped[:, :1], there.height)
    spatial = fixed.in_space()
    moved = torch.cat([mapped, height], 1) @ there.columns().T
    field = (moved - spatial.points(dtype=torch.float64)).T.reshape(3, *spatial.shape)
    return Displacement(spatial, field)


def _seen(moving: Grid, fixed: Grid) -> Plane:
    plane = moving.seen_from(fixed).plane
    assert plane is not None
    return plane
