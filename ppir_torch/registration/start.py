"""Where a registration starts: the linear transform before the first iteration, and whether the images meet there."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..errors import ConfigError, ImageError
from ..grids import Grid
from ..images import Image, Level, level_grid
from ..transforms import Affine, LinearTransform, linear_transform
from .plan import Plan
from .source import FixedSource

__all__ = ["check_overlap", "start_transform"]

SINGULAR = 1e-6  # of a start's largest singular value: what its smallest must not be below
SAME_VOXELS = 0.01  # what numbers in single precision, or of few digits, make
log = logging.getLogger(__name__)


def start_transform(plan: Plan, moving: Image, fixed: FixedSource) -> LinearTransform:
    """The plan's linear transform at the plan's start.

    Of a start that is a transform of another kind the closest one is taken, about the fixed image's centre; how far the
    two are apart is logged.

    Raises:
        ConfigError: an unknown transform or start, or a start that the transform cannot take.
    """
    transform = linear_transform(plan.transform)(fixed.grid)
    if isinstance(plan.start, Affine):
        _take(transform, plan.start, fixed.grid)
    elif plan.start in ("centres", "centre_of_mass"):
        centres = plan.start == "centres"
        to = moving.grid.centre if centres else moving.centre_of_mass()
        with torch.no_grad():
            transform.translation.copy_(to - (fixed.grid.centre if centres else fixed.centre_of_mass()))
    elif plan.start != "identity":
        raise ConfigError(f"start: {plan.start!r}, one of centres, centre_of_mass, identity is needed")
    return transform


def _take(transform: LinearTransform, start: Affine, grid: Grid) -> None:
    if start.dimension != transform.dimension:
        raise ConfigError(f"start: {start.dimension}-D transform, the images are {transform.dimension}-D")
    matrix, offset = (part.detach().double() for part in start.affine_map())
    _check_map(matrix, offset, transform)
    centre = grid.centre.double()
    nearest = transform.nearest(matrix)
    transform.set_affine_map(nearest, matrix @ centre + offset - nearest @ centre)
    corners = _corners(grid)
    with torch.no_grad():
        apart = float(torch.linalg.vector_norm(transform(corners) - start(corners), dim=1).max())
    if not apart < float("inf"):
        raise ConfigError(f"start: of the transform that was given there is none of kind {transform.name!r}")
    if apart > SAME_VOXELS * min(grid.spacing):
        log.warning(
            "start: the transform that was given is not %s; the closest one is taken, up to %.3g mm from it within the "
            "fixed image",
            transform.name,
            apart,
        )


def _check_map(matrix: Tensor, offset: Tensor, transform: LinearTransform) -> None:
    if not bool(torch.isfinite(matrix).all() & torch.isfinite(offset).all()):
        raise ConfigError("start: the transform that was given holds NaN or infinite numbers")
    stretches = torch.linalg.svdvals(matrix)
    if float(stretches[-1]) <= SINGULAR * float(stretches[0]):
        raise ConfigError(
            f"start: the transform that was given is singular (it stretches by {float(stretches[-1]):.3g} to "
            f"{float(stretches[0]):.3g}), one that can be inverted is needed"
        )
    determinant = float(torch.linalg.det(matrix))
    if determinant < 0 and transform.any_affine_map:
        log.warning("start: the transform that was given mirrors (determinant %.3g)", determinant)
    elif determinant < 0:
        raise ConfigError(
            f"start: the transform that was given mirrors (determinant {determinant:.3g}), and none of kind "
            f"{transform.name!r} does; are its coordinates LPS millimetres?"
        )


def _corners(grid: Grid) -> Tensor:
    """(2^D, D) mm."""
    matrix, origin = grid.index_to_physical()
    last = [torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in grid.size]
    return torch.cartesian_prod(*last) @ matrix.T + origin


def check_overlap(transform: LinearTransform, moving: Image, grid: Grid) -> None:
    """Refuse a start at which no voxel of `grid` maps into the moving image.

    Raises:
        ImageError: there is none, of a coarse selection.
    """
    coarse, _ = level_grid(grid, Level(max(grid.size) // 16 + 1, 0.0))
    matrix, offset = moving.grid.physical_to_normalised()
    with torch.no_grad():
        where = transform(coarse.points(dtype=torch.float64)) @ matrix.T + offset
    if not bool((where.abs() <= 1).all(1).any()):
        raise ImageError(
            "no overlap: every fixed point maps outside the moving image; check origins and directions, "
            "or start from centres or an initial transform"
        )
