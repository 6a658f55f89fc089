"""The rows of a linear transform's loss, made where they are read: of a large image no array holds all of them.

Where they are few they are made once and kept; where they are many every pass over them makes them again, which takes
less time than it sounds: memory is slow, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ImageError
from ..images import Image
from ..joint.columns import homogeneous
from ..joint.operands import Operand
from ..joint.rows import Rows, Seen, row_parts
from ..warping import channels_above_outside, parameters_of, sample_with_gradient, steepest_descent

__all__ = ["KEPT", "Changed", "Homogeneous", "Leading", "SampledPoints", "WarpedRows", "Weights", "parameter_count"]

KEPT = 1 << 25  # numbers that are kept
CHUNK = 1 << 16  # points whose images stay in the processor's cache

Leading = Literal["images", "slopes", "nothing"]
"""The rows before the warped image: steepest-descent images (P, n), its spatial gradient (D, n), or none."""


class SampledPoints:
    """The physical points (n, D) of an operand's sample from one number to another, kept where they are few.

    Args:
        operand: of the level.
        dtype, device: of the points.
    """

    def __init__(self, operand: Operand, dtype: torch.dtype, device: torch.device) -> None:
        self._grid, self._index, self._like = operand.grid, operand.sample.index, (dtype, device)
        count = self._grid.count if self._index is None else self._index.numel()
        few = count * self._grid.dimension <= KEPT
        self._kept = self._grid.points(self._index, *self._like) if few else None

    def __call__(self, start: int, stop: int) -> Tensor:
        """From number `start` to `stop`."""
        if self._kept is not None:
            return self._kept[start:stop]
        index = torch.arange(start, stop) if self._index is None else self._index[start:stop]
        return self._grid.points(index, *self._like)


class Homogeneous:
    """Ones and the normalised coordinates (1 + D, n) of an operand's entries, kept where they are few.

    Args:
        operand: of the level.
    """

    def __init__(self, operand: Operand) -> None:
        self._grid, self._index = operand.grid, operand.sample.index
        self._each = self._grid.count if self._index is None else self._index.numel()
        self._kept: Tensor | None = None

    def at(self, start: int, like: Tensor) -> Tensor:
        """At the entries of a part of rows `like` (rows, n) that begins at `start`."""
        stop = start + like.shape[1]
        places = torch.arange(start, stop) % self._each
        if self._each * (1 + self._grid.dimension) <= KEPT:
            if self._kept is None:
                self._kept = homogeneous(self._grid, self._index, like)
            whole = self._kept.to(like)
            return whole[:, start:stop] if stop <= self._each else whole[:, places.to(like.device)]
        return homogeneous(self._grid, places if self._index is None else self._index[places], like)


class WarpedRows(Rows):
    """The warped image less J's offset, the last row, and before it what it is derived by.

    Of several channels (features) the entries are those of one channel after the other.

    Args:
        operand: of the level.
        transform: of points to points.
        moving: the features of the moving image.
        leading: the rows before the last.
        beyond: what the image is beyond its border, see `sample_with_gradient`.
        points: physical points (n, D) of the sample from one number to another.

    Raises:
        ImageError: a moving image of another number of channels than the operand.
    """

    def __init__(
        self,
        operand: Operand,
        transform: nn.Module,
        moving: Image,
        leading: Leading,
        beyond: float | None,
        points: Callable[[int, int], Tensor],
    ) -> None:
        self._channels = channels_above_outside(moving)
        if len(self._channels) != operand.channels:
            raise ImageError(f"moving image: {len(self._channels)} channels, the operand has {operand.channels}")
        index, self._offset, self._beyond = operand.sample.index, operand.offset, beyond
        self._each = operand.grid.count if index is None else index.numel()
        self._transform, self._leading, self._points = transform, leading, points
        before = {"images": parameter_count(transform), "slopes": moving.grid.dimension, "nothing": 0}[leading]
        self.count, self.points = 1 + before, operand.channels * self._each
        self.dtype, self.device = moving.tensor.dtype, moving.tensor.device
        self._kept: Tensor | None = None
        if self.count * self.points <= KEPT:
            self._kept = self._made(0, self.points)

    def part(self, start: int, stop: int) -> Tensor:
        """See `Rows`."""
        return self._made(start, stop) if self._kept is None else self._kept[:, start:stop]

    def warped(self) -> Iterator[tuple[int, Tensor]]:
        """(where it begins, the last row (1, n)) of every part, without the rows before it."""
        for start, stop in row_parts(self.points):
            if self._kept is not None:
                yield start, self._kept[-1:, start:stop]
                continue
            last = torch.empty(1, stop - start, dtype=self.dtype, device=self.device)
            for first, end in self._cuts(start, stop):
                (above, outside), mapped = self._channels[first // self._each], self._mapped(first, end)
                last[0, first - start : end - start] = sample_with_gradient(above, self._beyond, mapped)[0]
                last[0, first - start : end - start] += outside - self._offset
            yield start, last

    def images(self, rows: Tensor, start: int) -> Tensor:
        """The steepest-descent images (P, n) at a part of the rows that begins at entry `start`."""
        if self._leading == "images":
            return rows[:-1]
        parts = []
        for first, last in self._cuts(start, start + rows.shape[1]):
            gradient = rows[:-1, first - start : last - start].T
            parts.append(steepest_descent(self._transform, self._points_at(first, last), gradient))
        return torch.cat(parts, 1)

    def _made(self, start: int, stop: int) -> Tensor:
        rows = torch.empty(self.count, stop - start, dtype=self.dtype, device=self.device)
        for first, last in self._cuts(start, stop):
            (above, outside), place = self._channels[first // self._each], slice(first - start, last - start)
            warped, gradient = sample_with_gradient(above, self._beyond, self._mapped(first, last))
            rows[-1, place] = warped + (outside - self._offset)
            if self._leading == "slopes":
                rows[:-1, place] = gradient.T
            elif self._leading == "images":
                rows[:-1, place] = steepest_descent(self._transform, self._points_at(first, last), gradient)
        return rows

    def _points_at(self, first: int, last: int) -> Tensor:
        """Of entries of one channel."""
        point = first % self._each
        return self._points(point, point + last - first)

    def _mapped(self, first: int, last: int) -> Tensor:
        with torch.no_grad():
            mapped: Tensor = self._transform(self._points_at(first, last))
        return mapped

    def _cuts(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Ranges of entries of one channel each, few enough for the cache."""
        cuts, first = [], start
        while first < stop:
            channel, point = divmod(first, self._each)
            last = min(stop, channel * self._each + min((point // CHUNK + 1) * CHUNK, self._each))
            cuts.append((first, last))
            first = last
        return cuts


class Changed(Rows):
    """Rows after what `change` makes of each part, and perhaps seen by somebody on their first way past.

    Args:
        rows: that are changed.
        change: of (the rows at a part, where it begins) to the new ones, which are other memory.
        seen: is called with the same of the changed rows, once for each point, in order.
    """

    def __init__(
        self, rows: Rows, change: Callable[[Tensor, int], Tensor] | None = None, seen: Seen | None = None
    ) -> None:
        self._rows, self._change, self._seen, self._next = rows, change, seen, 0
        self.count, self.points, self.dtype, self.device = rows.count, rows.points, rows.dtype, rows.device

    def part(self, start: int, stop: int) -> Tensor:
        """See `Rows`."""
        rows = self._rows.part(start, stop)
        if self._change is not None:
            rows = self._change(rows, start)
        if self._seen is not None and start == self._next:
            self._seen(rows, start)
            self._next = stop
        return rows


class Weights:
    """What each entry of an operand's rows counts for, of all channels alike.

    Args:
        operand: of the level.

    Attributes:
        normaliser: what sums are divided by.
    """

    def __init__(self, operand: Operand, points: int) -> None:
        self._values = operand.sample.combined
        self.normaliser = float(points) if self._values is None else float(operand.channels)

    def __bool__(self) -> bool:
        return self._values is not None

    def at(self, start: int, like: Tensor) -> Tensor:
        """(n,) at the entries of a part of rows `like` (rows, n) that begins at `start`; ones where all count alike."""
        if self._values is None:
            return torch.ones_like(like[0])
        each, stop = len(self._values), start + like.shape[1]
        if stop <= each:
            return self._values[start:stop].to(like)
        return self._values[(torch.arange(start, stop) % each).to(self._values.device)].to(like)

    def on(self, rows: Tensor, start: int) -> Tensor:
        """Rows by their weights; where all count alike themselves."""
        return rows if self._values is None else rows * self.at(start, rows)

    def total(self, operand: Operand) -> float:
        """The sum over all entries."""
        return self.normaliser if self._values is None else operand.channels * float(self._values.double().sum())


def parameter_count(transform: nn.Module) -> int:
    """P, of the trainable ones."""
    return sum(p.numel() for p in parameters_of(transform).values())
