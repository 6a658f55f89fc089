"""Where a registration starts: the linear transform before the first iteration, and whether the images meet there."""

from __future__ import annotations

import torch

from ..errors import ConfigError, ImageError
from ..grids import Grid
from ..images import Image, Level, level_grid
from ..transforms import Affine, LinearTransform, linear_transform
from .plan import Plan
from .source import FixedSource

__all__ = ["check_overlap", "start_transform"]


def start_transform(plan: Plan, moving: Image, fixed: FixedSource) -> LinearTransform:
    """The plan's linear transform at the plan's start.

    Raises:
        ConfigError: an unknown transform or start, or a start that the transform cannot take.
    """
    transform = linear_transform(plan.transform)(fixed.grid)
    if isinstance(plan.start, Affine):
        if not transform.any_affine_map:
            raise ConfigError(f"start: a transform file goes with transform 'affine' only, not {plan.transform!r}")
        if plan.start.dimension != transform.dimension:
            raise ConfigError(f"start: {plan.start.dimension}-D transform, the images are {transform.dimension}-D")
        transform.set_affine_map(*(part.detach() for part in plan.start.affine_map()))
    elif plan.start in ("centres", "centre_of_mass"):
        centres = plan.start == "centres"
        to = moving.grid.centre if centres else moving.centre_of_mass()
        with torch.no_grad():
            transform.translation.copy_(to - (fixed.grid.centre if centres else fixed.centre_of_mass()))
    elif plan.start != "identity":
        raise ConfigError(f"start: {plan.start!r}, one of centres, centre_of_mass, identity is needed")
    return transform


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
