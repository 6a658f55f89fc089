"""Resolution levels: which voxels of a grid a level keeps, and which levels an image has of itself.

All of it follows from the grid of the fixed image, which both parties know, and from what the configuration says.

>>> [level.shrink for level in automatic_levels(Grid((91, 109, 91)))]
[4, 2, 1]
>>> [level.shrink for level in automatic_levels(Grid((91, 109, 15)))]  # a slab
[(4, 4, 1), (2, 2, 1), 1]
>>> level_grid(Grid((256, 256, 20), (0.9, 0.9, 5.0)), Level(8, 3.6))[0].size  # 7.2 mm and 5 mm
(32, 32, 20)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import ImageError
from .grids import Grid

__all__ = [
    "DEFORMABLE_POINTS",
    "LEAST_VOXELS",
    "LINEAR_POINTS",
    "MAX_SHRINK",
    "Level",
    "automatic_levels",
    "level_grid",
    "smoothing_of",
]

MAX_SHRINK = 64
LEAST_VOXELS = 16
"""What the coarsest automatic level leaves of the shortest axis: `python benchmarks/defaults.py`."""
LINEAR_POINTS = 2**22
"""Most points of an automatic linear level: more of them move a linear transform by less than its noise."""
DEFORMABLE_POINTS = 2**24
"""The same of a deformable level."""
_FEWEST = 8  # voxels that any level leaves an axis


@dataclass(frozen=True)
class Level:
    """One resolution level: keep some voxels after Gaussian smoothing of `smoothing_mm` (sigma).

    Args:
        shrink: every how many voxels of the finest axis; the other axes are kept at about the same millimetres, so that
            thick slices stay until the others are as far apart. Or a factor an axis, (x, y[, z]).
        smoothing_mm: along every axis, 0 for none.
    """

    shrink: int | tuple[int, ...]
    smoothing_mm: float

    @property
    def factor(self) -> int:
        """The largest factor of any axis, by which levels are called."""
        return self.shrink if isinstance(self.shrink, int) else max(self.shrink)


def level_grid(grid: Grid, level: Level) -> tuple[Grid, tuple[slice, ...]]:
    """The grid of a level, and the slices of the full tensor that lie on it; an axis keeps 8 voxels (or its own).

    Raises:
        ImageError: factors for another number of axes.
    """
    wanted = _factors(grid, level.shrink)
    return grid.shrunk(tuple(max(1, min(f, n // _FEWEST)) for f, n in zip(wanted, grid.size, strict=True)))


def smoothing_of(grid: Grid, shrink: int | tuple[int, ...]) -> float:
    """Sigma in mm of a level that says none: nothing at full resolution, else half the level's smallest spacing."""
    if isinstance(shrink, int):
        return 0.0 if shrink == 1 else 0.5 * shrink * _finest(grid)
    if max(shrink) == 1:
        return 0.0
    return 0.5 * min(f * s for f, s in zip(_factors(grid, shrink), grid.spacing, strict=True))


def automatic_levels(
    grid: Grid, least: int = LEAST_VOXELS, most_points: int | None = LINEAR_POINTS
) -> tuple[Level, ...]:
    """Levels by powers of two, coarse to fine, from the grid alone.

    Args:
        grid: of the fixed image.
        least: voxels that are left on every axis. One that has less than twice as many (few slices) stays as it is, and
            the others do not wait for it.
        most_points: of the finest level; None: that is the image itself.
    """
    shrinks = [1]
    if most_points is not None:
        while (points := _points(grid, shrinks[0], least)) > most_points and shrinks[0] < MAX_SHRINK:
            if _points(grid, 2 * shrinks[0], least) == points:  # no axis may lose any more
                break
            shrinks[0] *= 2
    while shrinks[-1] < MAX_SHRINK and min(_left(grid, 2 * shrinks[-1], least), default=0) >= least:
        shrinks.append(2 * shrinks[-1])
    while len(shrinks) > 1 and len(_left(grid, shrinks[-1], least)) < 2:  # one axis alone makes no coarser image
        shrinks.pop()
    return tuple(_level(grid, shrink, least) for shrink in reversed(shrinks))


def _level(grid: Grid, shrink: int, least: int) -> Level:
    """A level that leaves `least` voxels on every axis."""
    wanted = _factors(grid, shrink)
    kept = tuple(max(1, min(f, n // least)) for f, n in zip(wanted, grid.size, strict=True))
    return Level(shrink if kept == wanted else kept, smoothing_of(grid, shrink))


def _points(grid: Grid, shrink: int, least: int) -> int:
    return level_grid(grid, _level(grid, shrink, least))[0].count


def _left(grid: Grid, shrink: int, least: int) -> list[int]:
    """Voxels that are left of the axes that a level shrinks, but those that are too short to be shrunk."""
    return [n // f for n, f in zip(grid.size, _factors(grid, shrink), strict=True) if n >= 2 * least and f > 1]


def _factors(grid: Grid, shrink: int | tuple[int, ...]) -> tuple[int, ...]:
    """One an axis, (x, y[, z]): those of one number are of equal millimetres."""
    if isinstance(shrink, int):
        apart = shrink * _finest(grid)
        return tuple(max(1, math.floor(apart / s + 0.5)) for s in grid.spacing)
    if len(shrink) != grid.dimension:
        raise ImageError(
            f"level: shrink {shrink}, one factor or {grid.dimension} are needed for a {grid.dimension}-D image"
        )
    return shrink


def _finest(grid: Grid) -> float:
    """Smallest spacing, mm; an axis of one voxel has none."""
    return min((s for s, n in zip(grid.spacing, grid.size, strict=True) if n > 1), default=min(grid.spacing))
