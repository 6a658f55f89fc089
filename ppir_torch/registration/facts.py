"""What is known of a level at its end, for `verdict`: from the transform, the moving image's grid and what was public.

Nothing is asked of party_2 for it: the loss's values and the operand's mean square are those that the run has anyway.

>>> from ppir_torch import Grid
>>> grid = Grid((8, 8))
>>> round(share_inside(grid.points() + 4, grid), 3)
0.25
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..grids import Grid
from ..metrics.registration import folding_share, jacobian_determinant
from ..overlap import inside
from ..transforms import Composite, LatticeTransform, LinearTransform, expand
from ..transforms.dense import Displacement
from .verdict import LevelFacts

__all__ = ["Course", "Watch", "share_inside", "spread_points", "stretches"]

MOST_POINTS = 1 << 15
MOST_VOXELS = 1 << 20  # of a grid on which a deformation is looked at


@dataclass(frozen=True)
class Course:
    """How a level went.

    Attributes:
        level: its number in the run.
        shrink: of the level.
        iterations: how many there were.
        limit: most iterations of the level.
        explained_before: at the first iteration, see `Measure.explained`; None where that is not known.
        explained: at the last iteration that was kept.
        held_back: the level ended because the images came apart, and the steps that led there were taken back.
    """

    level: int
    shrink: int
    iterations: int
    limit: int
    explained_before: float | None = None
    explained: float | None = None
    held_back: bool = False


class Watch:
    """Looks at the transforms of a run, from its start on, at the same points of the fixed image.

    Args:
        moving: grid of the moving image.
        fixed: grid of the fixed image.
        mask: its foreground, or None.
        start: the transform before the first level.
        moving_mask: bool ([z,] y, x), what of the moving image counts; None: all of it.
    """

    def __init__(
        self,
        moving: Grid,
        fixed: Grid,
        mask: Tensor | None,
        start: LinearTransform,
        moving_mask: Tensor | None = None,
    ) -> None:
        self._moving, self._fixed, self._mask = moving, fixed, moving_mask
        self._points = spread_points(fixed, mask)
        self._volumes = _volume(fixed, mask), _volume(moving, moving_mask)
        self._start = copy.deepcopy(start)
        with torch.no_grad():
            self._first = self._start(self._points)
        self._overlap = share_inside(self._first, moving, moving_mask)

    def facts(self, found: LinearTransform | Composite, course: Course) -> LevelFacts:
        """Of the transform at the end of a level."""
        linear, deformation = _parts(found)
        mapped, folding = self._points, None
        if deformation is not None:
            field = _field(deformation, self._fixed)
            mapped = field(mapped)
            folding = folding_share(jacobian_determinant(field, field.grid)) if min(field.grid.size) > 1 else None
        with torch.no_grad():
            mapped = linear(mapped)
            matrix, before = (transform.affine_map()[0].double() for transform in (linear, self._start))
        least, most = stretches(matrix, before)
        overlap, determinant = share_inside(mapped, self._moving, self._mask), float(torch.linalg.det(matrix))
        return LevelFacts(
            level=course.level,
            stage="linear" if deformation is None else "deformable",
            shrink=course.shrink,
            iterations=course.iterations,
            limit=course.limit,
            overlap=overlap,
            overlap_at_start=self._overlap,
            visible=self._visible(overlap, determinant),
            determinant=determinant,
            determinant_at_start=float(torch.linalg.det(before)),
            least_stretch=least,
            most_stretch=most,
            displacement_mm=float((mapped - self._first).square().sum(1).mean().sqrt()),
            extent_mm=max(_diagonal(grid) for grid in (self._fixed, self._moving)),
            explained_before=course.explained_before,
            explained=course.explained,
            folding_share=folding,
            held_back=course.held_back,
        )

    def _visible(self, overlap: float, determinant: float) -> float:
        """The overlap as a share of the smaller image, in the fixed image's space."""
        fixed, moving = self._volumes
        back = moving / abs(determinant) if determinant else math.inf
        return min(1.0, overlap * fixed / min(fixed, back)) if back > 0 else 0.0


def share_inside(mapped: Tensor, moving: Grid, mask: Tensor | None = None) -> float:
    """The share of points (n, D) mm that lie in a grid's voxels (in those of a mask), with their whole extent."""
    counted, index = inside(moving, mapped.double())
    if mask is not None:
        last = torch.tensor(moving.size) - 1
        places = index.nan_to_num().round().long().clamp(min=torch.zeros_like(last), max=last)
        counted &= mask.cpu()[places.flip(1).unbind(1)]
    return float(counted.double().mean())


def stretches(matrix: Tensor, before: Tensor) -> tuple[float, float]:
    """Least and most by which y = matrix x scales a direction, against y = before x; NaN where they are not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return math.nan, math.nan
    values = torch.linalg.svdvals(matrix.double() @ torch.linalg.inv(before.double()))
    return float(values[-1]), float(values[0])


def spread_points(grid: Grid, mask: Tensor | None = None, most: int = MOST_POINTS) -> Tensor:
    """At most `most` points (n, D) float64 mm, spread over a grid's voxels, or over those of a mask."""
    if mask is None:
        return _coarse(grid, most).points(dtype=torch.float64)
    index = torch.nonzero(mask.flatten().cpu()).flatten()
    if len(index) > most:
        index = index[torch.arange(most) * len(index) // most]
    return grid.points(index, torch.float64)


def _coarse(grid: Grid, most: int) -> Grid:
    """The grid, or the finest of it that keeps every f-th voxel along all axes and has at most `most`."""
    factor, coarse = 1, grid
    while coarse.count > most:
        factor += 1
        coarse = grid.shrunk(tuple(min(factor, n) for n in grid.size))[0]
    return coarse


def _parts(found: LinearTransform | Composite) -> tuple[LinearTransform, LatticeTransform | None]:
    parts: Sequence[object] = list(found.parts) if isinstance(found, Composite) else [found]
    linear = next(part for part in parts if isinstance(part, LinearTransform))
    return linear, next((part for part in parts if isinstance(part, LatticeTransform)), None)


def _field(deformation: LatticeTransform, grid: Grid) -> Displacement:
    """The deformation sampled on a grid of not too many voxels."""
    coarse = _coarse(grid, MOST_VOXELS)
    if not bool(torch.isfinite(deformation.coefficients).all()):
        return Displacement(coarse, torch.full((grid.dimension, *coarse.shape), math.nan))
    with torch.no_grad():
        spline = expand(deformation.coefficients.double().cpu(), deformation.lattice.matrices(coarse))
        return Displacement(coarse, deformation.field_of(spline, coarse)).requires_grad_(False)


def _volume(grid: Grid, mask: Tensor | None) -> float:
    return (grid.count if mask is None else int(mask.sum())) * math.prod(grid.spacing)


def _diagonal(grid: Grid) -> float:
    return math.hypot(*(n * s for n, s in zip(grid.size, grid.spacing, strict=True)))
