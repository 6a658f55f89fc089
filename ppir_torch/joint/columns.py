"""What party_2's operand is made of: the columns Y that the products need, built from the fixed image alone.

- `IMAGE`: J less its mean. With rows S^T (P) and I_w it serves any transform.
- `MOMENTS`: J times 1 and times each normalised coordinate (public). For an affine transform S = G (x) (1, x, y, z),
  G the spatial gradient (D rows): D + 1 rows with D + 1 columns say what P + 1 rows with one column do.
- `BINS`: the Parzen weights of J in each of K bins, and each of them times the normalised coordinates: what joint
  histograms and their derivatives need (mutual information).
- `STEEPEST_DESCENT`: J and its own steepest-descent images S_J at the identity, for inverse-compositional
  Gauss-Newton (Baker and Matthews 2004): then only I_w (one row) moves from iteration to iteration.

>>> grid = Grid((8, 8))
>>> columns_of(Image(torch.rand(1, 8, 8), grid), None, None, Columns("moments")).values.shape
torch.Size([3, 64])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..config.transforms import linear_names
from ..errors import ConfigError, ImageError
from ..grids import Grid
from ..histograms import bin_weights
from ..images import Image
from ..transforms import linear_transform
from ..warping import grid_gradient, steepest_descent
from .bounds import Pairs
from .header import COLUMN_BITS, ROW_BITS

__all__ = [
    "BIN_PEAK",
    "IMAGE",
    "MOST_BINS",
    "ColumnKind",
    "Columns",
    "FixedColumns",
    "columns_of",
    "functionals",
    "homogeneous",
    "table_of",
]

ColumnKind = Literal["image", "moments", "steepest_descent", "bins"]
PART = 1 << 20  # points that are worked out at once
BIN_PEAK = 2 / 3  # the largest weight of a value in a bin
MOST_BINS = 64
_MANY_POINTS = 1 << 15  # from here on the rounding of bin weights averages out
_FEW_POINTS, FINE_COLUMN_BITS = 1 << 13, 14  # up to here it does not, and words of 40 bits have room for more


@dataclass(frozen=True)
class Columns:
    """Which columns are wanted, all of it public.

    Args:
        kind: see the module's docstring.
        transform: for "steepest_descent", the transform's name.
        bins: for "bins", how many.
        squares: of "image" and "moments", whether J^2 is the last column: its sum with weights that party_1 alone knows
            is what a mean over the overlap needs.

    Raises:
        ConfigError: an unknown kind or transform, other than 4 to 64 bins, or squares of other columns.
    """

    kind: ColumnKind = "image"
    transform: str = ""
    bins: int = 0
    squares: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(ColumnKind):
            raise ConfigError(f"columns: {self.kind!r}, one of {', '.join(get_args(ColumnKind))} is needed")
        if (self.kind == "steepest_descent") != (self.transform in linear_names()):
            raise ConfigError(f"columns: {self.kind!r} of transform {self.transform!r} do not go together")
        if self.bins not in (range(4, MOST_BINS + 1) if self.kind == "bins" else (0,)):
            raise ConfigError(f"columns: {self.bins} bins with {self.kind!r}, 4 to {MOST_BINS} with 'bins' are needed")

        if self.squares and self.kind not in ("image", "moments"):
            raise ConfigError(f"columns: squares go with 'image' and 'moments', not with {self.kind!r}")

    def count(self, grid: Grid) -> int:
        """Number of columns for a fixed image on `grid`."""
        if self.kind == "steepest_descent":
            return 1 + sum(p.numel() for p in linear_transform(self.transform)(grid).parameters())
        if self.kind == "image":
            return 1 + self.squares
        return (self.bins or 1) * (1 + grid.dimension) + self.squares

    def row_bits(self, points: int) -> int:
        """Of a typical entry of party_1's rows."""
        return 6 if self.kind == "bins" and points >= _MANY_POINTS else ROW_BITS

    def column_bits(self, points: int, usual: int) -> int:
        """Bits, sign included, of the columns' integers; `usual` is what the protocol takes for images."""
        if self.kind != "bins":
            return usual
        return 8 if points >= _MANY_POINTS else COLUMN_BITS if points > _FEW_POINTS else FINE_COLUMN_BITS


IMAGE = Columns("image")


@dataclass(frozen=True)
class FixedColumns:
    """The columns of a fixed image at one level; those that follow from J are made where they are read.

    Attributes:
        own: (C, n) in the image's dtype; the first is J less `offset`. Of "bins" the K bins' weights, then these times
            each coordinate, K columns a time.
        offset: the public constant that was subtracted, the mean over the level's candidate points.
        level_mean_square: mean of (J - offset)^2 over all candidate points.
        grid: of the level, where the columns are J's "moments"; else None.
        index: flat indices of the operand's points.
        squares: whether J^2 is the last column.
    """

    own: Tensor = field(repr=False)
    offset: float
    level_mean_square: float
    grid: Grid | None = None
    index: Tensor | None = field(default=None, repr=False)
    squares: bool = False

    @property
    def count(self) -> int:
        """How many columns there are."""
        return len(self.own) * (1 if self.grid is None else 1 + self.grid.dimension) + self.squares

    @property
    def points(self) -> int:
        """n, of all channels."""
        return self.own.shape[1]

    @property
    def values(self) -> Tensor:
        """All columns (count, n)."""
        return self.part(0, self.points)

    def part(self, start: int, stop: int) -> Tensor:
        """All columns at the points from `start` to `stop`."""
        if self.grid is None and not self.squares:
            return self.own if (start, stop) == (0, self.points) else self.own[:, start:stop]
        if self.grid is not None and self.index is None and stop - start == self.grid.count == self.points:
            return self._columns(self.own, None)
        return self._columns(self.own[:, start:stop], torch.arange(start, stop))

    def at(self, places: Tensor) -> Tensor:
        """All columns at these points (n,), CPU."""
        return self._columns(self.own[:, places.to(self.own.device)], places)

    def _columns(self, image: Tensor, places: Tensor | None) -> Tensor:
        """All columns of J's values (C, n) at these points; None: at all of them."""
        columns = image
        if self.grid is not None:
            index = places
            if places is not None:  # of each channel the same
                index = places % (self.grid.count if self.index is None else self.index.numel())
                index = index if self.index is None else self.index[index.to(self.index.device)]
            columns = homogeneous(self.grid, index, image) * image
        return torch.cat([columns, image[:1].square()]) if self.squares else columns


def columns_of(
    image: Image,
    candidates: Tensor | None,
    index: Tensor | None,
    wanted: Columns,
    full: Grid | None = None,
    normalised: bool = False,
) -> FixedColumns:
    """The columns of an image at one level; of several channels (features) the points follow each other.

    Args:
        image: the fixed image at the level; one channel where `wanted` is "steepest_descent".
        candidates: flat indices of the level's points that count (a mask); None means all.
        index: flat indices of the operand's points, in its order; None means all.
        wanted: which columns.
        full: grid of the unshrunk image, which the transform's parameters refer to; default the level's.
        normalised: first bring the image to zero mean and unit variance over the operand's points (for the global
            correlation); the offset is 0 then, and neither mean nor variance is told.

    Raises:
        ImageError: a constant image where a normalised one or bins are wanted.
    """
    flat = image.tensor.flatten(1)
    if wanted.kind == "bins":
        low, high = (float(v) for v in _take(flat, candidates).aminmax())
        if not low < high:
            raise ImageError("fixed image: constant over the level's points, its mutual information is not defined")
        weights = table_of(_take(flat[0], index), low, high, wanted.bins)
        factors = homogeneous(image.grid, index, weights)
        return FixedColumns((factors[:, None] * weights).flatten(0, 1), 0.0, 0.0)
    if normalised:
        mean = _mean(flat, index)
        deviation = math.sqrt(_mean(flat, index, lambda part: (part - mean).square()))
        if not deviation > 0:
            raise ImageError("fixed image: constant over the level's points, its correlation is not defined")
        offset, mean_square = 0.0, 1.0
        centred = _changed(flat, index, lambda part: (part - mean) / deviation)
    else:
        offset = float(torch.tensor(_mean(flat, candidates), dtype=torch.float32))  # exact in either dtype
        mean_square = _mean(flat, candidates, lambda part: (part - offset).square())
        centred = _changed(flat, index, lambda part: part - offset)
    if wanted.kind == "steepest_descent":
        points = image.grid.points(index, flat.dtype, flat.device)
        gradient = grid_gradient(image)
        transform = linear_transform(wanted.transform)(full or image.grid)
        values = torch.cat([centred[None], steepest_descent(transform, points, _take(gradient.T, index).T)])
        return FixedColumns(values, offset, mean_square)
    grid = image.grid if wanted.kind == "moments" else None
    return FixedColumns(centred[None], offset, mean_square, grid, index, wanted.squares)


def table_of(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """`bin_weights` (bins, n) without the bin that is always empty: the first one."""
    return bin_weights(values, low, high, bins + 1)[:, 1:].T.contiguous()


def functionals(
    rows: Tensor, pairs: Pairs, wanted: Columns, grid: Grid, index: Tensor | None, full: Grid | None = None
) -> Tensor:
    """What each product says about J: R[i] = F[i] . (J - offset), F (pairs, n) over the rows' points.

    For "steepest_descent" over all points of the level's grid: S_J is linear in J, and F its adjoint applied to the
    row, so an attacker who knows the rows has P + 1 equations on J from each of them, as in the forward variant.

    Args:
        rows: (rows, n) at the points `index` of the grid (None: all); of several channels one after the other.
        pairs: the products.
        wanted: the operand's columns.
        grid: of the level.
        full: as in `columns_of`.
    """
    if wanted.kind == "image":
        return rows[[row for row, _ in pairs]]
    if wanted.kind == "moments":
        factors = homogeneous(grid, index, rows)
        factors = factors.repeat(1, rows.shape[1] // factors.shape[1])
        return torch.stack([rows[row] * factors[column] for row, column in pairs])
    if wanted.kind != "steepest_descent":
        raise ValueError(f"functionals: of {wanted.kind!r} there are none, its products are not linear in J")
    points = grid.points(index, rows.dtype, rows.device)
    transform = linear_transform(wanted.transform)(full or grid)
    matrix, _ = grid.index_to_physical()
    axes = torch.linalg.inv(matrix).to(rows)  # (index axis, physical direction)
    place = slice(None) if index is None else index.to(rows.device)
    with torch.enable_grad():
        image = rows.new_zeros(len(pairs), *grid.shape).requires_grad_(True)
        said = image.new_zeros(())
        for axis in range(grid.dimension):
            if grid.size[axis] == 1:
                continue
            (slope,) = torch.gradient(image, dim=[grid.dimension - axis])
            images = steepest_descent(transform, points, axes[axis].expand(points.shape[0], -1))
            weights = rows.new_zeros(len(pairs), grid.count)
            for number, (row, column) in enumerate(pairs):
                if column > 0:
                    weights[number, place] = images[column - 1] * rows[row]
            said = said + (slope.flatten(1) * weights).sum()
        (result,) = torch.autograd.grad(said, image)
    result = result.flatten(1)
    for number, (row, column) in enumerate(pairs):
        if column == 0:
            result[number, place] = rows[row]
    return result


def homogeneous(grid: Grid, index: Tensor | None, like: Tensor) -> Tensor:
    """(1 + D, n): ones, then the points' normalised coordinates in [-1, 1], in the dtype and device of `like`."""
    matrix, offset = grid.physical_to_normalised()
    points = grid.points(index, torch.float64) @ matrix.T + offset
    return torch.cat([torch.ones_like(points[:, :1]), points], 1).T.to(like)


def _mean(flat: Tensor, index: Tensor | None, change: Callable[[Tensor], Tensor] | None = None) -> float:
    """The mean of what becomes of values (C, N) at these points; in float64, without a copy of them all in it."""
    total, count = 0.0, 0
    for part in _parts(flat, index):
        exact = part.double()
        total += float((exact if change is None else change(exact)).sum())
        count += part.numel()
    return total / count


def _changed(flat: Tensor, index: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What becomes of values (C, N) at these points in float64, one channel after the other, in the values' dtype."""
    result, start = flat.new_empty(len(flat), flat.shape[1] if index is None else index.numel()), 0
    for part in _parts(flat, index):
        result[:, start : start + part.shape[1]] = change(part.double())
        start += part.shape[1]
    return result.flatten()


def _parts(flat: Tensor, index: Tensor | None) -> Iterator[Tensor]:
    for start in range(0, flat.shape[1] if index is None else index.numel(), PART):
        yield flat[:, start : start + PART] if index is None else _take(flat, index[start : start + PART])


def _take(values: Tensor, index: Tensor | None) -> Tensor:
    return values if index is None else values[..., index.to(values.device)]
