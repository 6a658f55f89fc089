"""Where points lie: the only module that knows conventions.

- Physical points are LPS millimetres, ordered (x, y[, z]), as ITK and DICOM have them.
- Image tensors are (C, [z,] y, x): the tensor axes are the reverse of `Grid.size`.
- Voxel indices are continuous, ordered (x, y[, z]); index 0 is the centre of the first voxel.
- Normalised coordinates are those of `torch.nn.functional.grid_sample` with align_corners=True: -1 and +1 are the
  centres of the first and last voxel.

>>> grid = Grid(size=(4, 3), spacing=(2.0, 1.0), origin=(10.0, 0.0))
>>> grid.shape, grid.points(dtype=torch.float64)[1].tolist()
((3, 4), [12.0, 0.0])
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .errors import ImageError
from .planes import Plane

__all__ = ["Grid"]

PART = 1 << 20  # points that are worked out at once


@dataclass(frozen=True)
class Grid:
    """The sampling grid of an image: a value, public in every protocol.

    Args:
        size: voxels along x, y[, z].
        spacing: millimetres between voxel centres along the same axes; positive. Default 1.
        origin: physical position of the first voxel's centre, mm LPS. Default 0.
        direction: orthonormal matrix, row-major; its columns are the axes' physical directions. Default identity.
        plane: of a 2-D grid whose file keeps it in 3-D: where it lies in space. Its coordinates are those in the plane.

    Raises:
        ImageError: a size below 1, a spacing that is not positive, a direction that is not orthonormal.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()
    plane: Plane | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        d = len(self.size)
        if d not in (2, 3):
            raise ImageError(f"image dimension: {d}, only 2-D and 3-D are supported")
        identity = tuple(float(i == j) for i in range(d) for j in range(d))
        fill = object.__setattr__
        fill(self, "size", tuple(int(n) for n in self.size))
        fill(self, "spacing", tuple(float(s) for s in self.spacing) or (1.0,) * d)
        fill(self, "origin", tuple(float(o) for o in self.origin) or (0.0,) * d)
        fill(self, "direction", tuple(float(c) for c in self.direction) or identity)
        if len(self.spacing) != d or len(self.origin) != d or len(self.direction) != d * d:
            raise ImageError(f"geometry of a {d}-D image: {self}, wrong number of values")
        if any(n < 1 for n in self.size):
            raise ImageError(f"image size: {self.size}, every axis needs at least one voxel")
        if not all(math.isfinite(s) and s > 0 for s in self.spacing):
            raise ImageError(f"image spacing: {self.spacing} mm, every axis needs a positive finite spacing")
        if not all(math.isfinite(v) for v in self.origin + self.direction):
            raise ImageError(f"image origin or direction is not finite: {self.origin}, {self.direction}")
        axes = torch.tensor(self.direction, dtype=torch.float64).reshape(d, d)
        if (axes.T @ axes - torch.eye(d, dtype=torch.float64)).abs().max() > 1e-3:
            raise ImageError(f"image direction: {self.direction}, an orthonormal matrix is needed")
        if self.plane is not None and d != 2:
            raise ImageError(f"plane of a slice: given with a {d}-D grid, only a 2-D one lies in a plane")

    @classmethod
    def of_slice(cls, spatial: Grid) -> Grid:
        """The 2-D grid of a 3-D one with a single voxel along an axis (the last such), with the plane it lies in.

        Raises:
            ImageError: the grid is no slice.
        """
        single = [axis for axis, n in enumerate(spatial.size) if n == 1]
        if spatial.dimension != 3 or not single:
            raise ImageError(f"image of size {spatial.size}, one of 3 axes with a single voxel is needed")
        across = single[-1]
        axes = torch.tensor(spatial.direction, dtype=torch.float64).reshape(3, 3).T.tolist()
        own = [axis for axis in range(3) if axis != across]
        plane, direction = Plane.of_axes([axes[axis] for axis in own], axes[across], across, spatial.spacing[across])
        *origin, height = (plane.columns().T @ torch.tensor(spatial.origin, dtype=torch.float64)).tolist()
        return cls(
            size=tuple(spatial.size[axis] for axis in own),
            spacing=tuple(spatial.spacing[axis] for axis in own),
            origin=tuple(origin),
            direction=tuple(direction.flatten().tolist()),
            plane=replace(plane, height=height),
        )

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the tensor, ([z,] y, x)."""
        return self.size[::-1]

    @property
    def count(self) -> int:
        """Number of voxels, N."""
        return math.prod(self.size)

    def index_to_physical(self) -> tuple[Tensor, Tensor]:
        """(A (D, D), b (D,)) float64 with physical = A index + b."""
        axes = torch.tensor(self.direction, dtype=torch.float64).reshape(self.dimension, -1)
        return axes * torch.tensor(self.spacing, dtype=torch.float64), torch.tensor(self.origin, dtype=torch.float64)

    def physical_to_normalised(self) -> tuple[Tensor, Tensor]:
        """(A (D, D), b (D,)) float64 with normalised = A physical + b; a one-voxel axis maps its centre to 0."""
        matrix, origin = self.index_to_physical()
        last = torch.tensor([max(n - 1, 1) for n in self.size], dtype=torch.float64)
        one = torch.tensor([n == 1 for n in self.size])
        to_index = torch.linalg.inv(matrix)
        scaled = to_index * (2 / last)[:, None]
        return scaled, -(scaled @ origin) - torch.where(one, 0.0, 1.0).double()

    def points(
        self, index: Tensor | None = None, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Physical points (N, D) in mm, in the order of `tensor.flatten()`; of the flat `index` only, where given."""
        matrix, origin = self.index_to_physical()
        count = self.count if index is None else index.numel()
        result = torch.empty(count, self.dimension, dtype=dtype, device=device)
        for start in range(0, count, PART):  # in float64, of which there is no copy of the whole
            stop = min(start + PART, count)
            flat, columns = torch.arange(start, stop) if index is None else index[start:stop].cpu(), []
            for n in self.size:
                columns.append(flat % n)
                flat = flat // n
            result[start:stop] = torch.stack(columns, -1).double() @ matrix.T + origin
        return result

    def in_space(self) -> Grid:
        """The grid as its file has it: 3-D with one voxel across the slice where it lies in a plane, else itself."""
        plane = self.plane
        if plane is None:
            return self
        frame = plane.columns()
        within = frame[:, :2] @ torch.tensor(self.direction, dtype=torch.float64).reshape(2, 2)
        columns = list(within.T)
        columns.insert(plane.axis, -frame[:, 2] if plane.flipped else frame[:, 2])
        size, spacing = list(self.size), list(self.spacing)
        size.insert(plane.axis, 1)
        spacing.insert(plane.axis, plane.thickness)
        origin = frame @ torch.tensor([*self.origin, plane.height], dtype=torch.float64)
        direction = torch.stack(columns, 1).flatten()
        return Grid(tuple(size), tuple(spacing), tuple(origin.tolist()), tuple(direction.tolist()))

    def seen_from(self, other: Grid) -> Grid:
        """The same points in coordinates that fit another slice's: see `Plane.seen_from`; other grids are left alone.

        Raises:
            ImageError: both are slices in space, of different views.
        """
        if self.plane is None or other.plane is None:
            return self
        plane, change = self.plane.seen_from(other.plane)
        direction = change @ torch.tensor(self.direction, dtype=torch.float64).reshape(2, 2)
        origin = change @ torch.tensor(self.origin, dtype=torch.float64)
        return Grid(self.size, self.spacing, tuple(origin.tolist()), tuple(direction.flatten().tolist()), plane)

    @property
    def centre(self) -> Tensor:
        """Physical centre (D,), float64 mm."""
        matrix, origin = self.index_to_physical()
        return matrix @ (torch.tensor(self.size, dtype=torch.float64) - 1).div(2) + origin

    @property
    def radius(self) -> float:
        """Root mean square distance of the grid's points to its centre, mm: what one unit of a matrix entry moves."""
        square = sum((s * s) * (n * n - 1) / 12 for n, s in zip(self.size, self.spacing, strict=True))
        return max(math.sqrt(square), min(self.spacing))

    @property
    def is_far(self) -> bool:
        """Whether single precision misses its points by more than 1/400 of a voxel, so far from 0 does it lie."""
        matrix, origin = self.index_to_physical()
        reach = origin.abs() + matrix.abs() @ (torch.tensor(self.size, dtype=torch.float64) - 1)
        return float(reach.max()) * torch.finfo(torch.float32).eps > min(self.spacing) / 400

    def shrunk(self, factors: tuple[int, ...]) -> tuple[Grid, tuple[slice, ...]]:
        """Every factor-th voxel along x, y[, z], centred: the coarser grid, and the slices of the tensor it keeps."""
        starts = [((n - 1) % f) // 2 for n, f in zip(self.size, factors, strict=True)]
        matrix, origin = self.index_to_physical()
        coarse = Grid(
            size=tuple((n - 1) // f + 1 for n, f in zip(self.size, factors, strict=True)),
            spacing=tuple(s * f for s, f in zip(self.spacing, factors, strict=True)),
            origin=tuple((matrix @ torch.tensor(starts, dtype=torch.float64) + origin).tolist()),
            direction=self.direction,
            plane=self.plane,
        )
        return coarse, tuple(slice(s, None, f) for s, f in zip(starts, factors, strict=True))[::-1]

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return {"size": self.size, "spacing": self.spacing, "origin": self.origin, "direction": self.direction}
