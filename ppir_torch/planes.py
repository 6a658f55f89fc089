"""Where a 2-D grid lies in space: the plane of a slice that its file keeps in 3-D, in whatever orientation.

A point (a, b) of the grid is the physical point a u + b v + height n, mm LPS, where u, v, n are the columns of the
plane's frame. For an axial slice u and v are the patient's x and y, so that nothing changes; for a coronal one they are
x and z, for a sagittal one y and z, and for an oblique one what these become within the plane.

>>> plane, _ = Plane.of_axes(((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)), (0.0, 1.0, 0.0))
>>> plane.columns().T.tolist()
[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import ImageError

__all__ = ["Plane", "smallest_turn"]

# Two slices whose planes meet at more than this show other views: no motion within a plane takes one to the other.
LARGEST_ANGLE = 45.0


@dataclass(frozen=True)
class Plane:
    """The plane of a slice, and what its file says of the axis across it: a value, public as the grid is.

    Args:
        frame: rotation matrix (3, 3), row-major; its columns u, v, n are the directions of the grid's two coordinates
            and across the plane.
        height: of the plane along n, mm.
        thickness: the file's spacing across the plane, mm.
        axis: which axis of the file has the one voxel: 0, 1 or 2 for x, y or z.
        flipped: whether the file's own axis runs along -n.

    Raises:
        ImageError: the frame is no rotation, a number is not finite, or the axis is no axis.
    """

    frame: tuple[float, ...]
    height: float = 0.0
    thickness: float = 1.0
    axis: int = 2
    flipped: bool = False

    def __post_init__(self) -> None:
        numbers = (*self.frame, self.height, self.thickness)
        if len(self.frame) != 9 or not all(math.isfinite(n) for n in numbers) or self.thickness <= 0:
            raise ImageError(f"plane of a slice: {self}, nine finite numbers and a positive thickness are needed")
        columns = self.columns()
        unit = torch.eye(3, dtype=torch.float64)
        if (columns.T @ columns - unit).abs().max() > 1e-3 or torch.linalg.det(columns) < 0:
            raise ImageError(f"plane of a slice: {self.frame}, a rotation matrix is needed")
        if self.axis not in (0, 1, 2):
            raise ImageError(f"plane of a slice: axis {self.axis}, one of 0, 1, 2 is needed")

    @classmethod
    def of_axes(
        cls, within: Sequence[Sequence[float]], across: Sequence[float], axis: int = 2, thickness: float = 1.0
    ) -> tuple[Plane, Tensor]:
        """The plane through the origin of a file whose axes have these directions, and those of the 2-D grid.

        Args:
            within: physical directions of the two axes within the slice, orthonormal.
            across: that of the axis with one voxel.
            axis: which one it is.
            thickness: spacing along it, mm.

        Returns:
            (the plane, (2, 2) float64 direction matrix of the grid in the plane's coordinates).
        """
        normal = torch.tensor(across, dtype=torch.float64)
        # Of the patient's axes the two that lie nearest to the plane, in their order: the same for every slice of this
        # view, so that two parties who do not know each other's file have the same coordinates.
        first, second = sorted(range(3), key=lambda i: abs(float(normal[i])))[:2]
        first, second = min(first, second), max(first, second)
        unit = torch.eye(3, dtype=torch.float64)
        u = unit[first] - normal[first] * normal
        u = u / torch.linalg.vector_norm(u)
        v = torch.linalg.cross(normal, u)
        v = v if float(v[second]) > 0 else -v
        n = torch.linalg.cross(u, v)
        frame = torch.stack([u, v, n], 1) + 0.0  # no -0.0, which reads badly
        plane = cls(tuple(frame.flatten().tolist()), 0.0, thickness, axis, bool(n @ normal < 0))
        return plane, frame[:, :2].T @ torch.tensor(within, dtype=torch.float64).T

    def columns(self) -> Tensor:
        """The frame as a matrix (3, 3), float64, with columns u, v, n."""
        return torch.tensor(self.frame, dtype=torch.float64).reshape(3, 3)

    def angle_to(self, other: Plane) -> float:
        """Degrees between the two planes, from 0 to 90."""
        cosine = abs(float(self.columns()[:, 2] @ other.columns()[:, 2]))
        return math.degrees(math.acos(min(cosine, 1.0)))

    def seen_from(self, other: Plane) -> tuple[Plane, Tensor]:
        """This plane in the frame that the smallest turn makes of the other's, and the change of coordinates.

        Where two planes are nearly parallel, so are the coordinates in them, whichever way their files count.

        Returns:
            (the same plane with another frame, (2, 2) float64 matrix from its old coordinates to the new ones).

        Raises:
            ImageError: the planes meet at more than 45 degrees: these are different views.
        """
        angle = self.angle_to(other)
        if angle > LARGEST_ANGLE:
            raise ImageError(
                f"slices of different views: their planes meet at {angle:.0f} degrees, at most {LARGEST_ANGLE:.0f} "
                "are needed to register one slice to another within their planes"
            )
        own, frame = self.columns(), other.columns()
        normal, wanted = frame[:, 2], own[:, 2]
        reversed_ = bool(normal @ wanted < 0)
        turned = smallest_turn(normal, -wanted if reversed_ else wanted) @ frame
        plane = replace(
            self,
            frame=tuple(turned.flatten().tolist()),
            height=-self.height if reversed_ else self.height,
            flipped=self.flipped != reversed_,
        )
        return plane, turned[:, :2].T @ own[:, :2]

    def to_numbers(self) -> tuple[float, ...]:
        """As 13 numbers, for a message: the frame, height, thickness, axis, and 1 where it is flipped."""
        return (*self.frame, self.height, self.thickness, float(self.axis), float(self.flipped))

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> Plane:
        """Inverse of `to_numbers`.

        Raises:
            ImageError: these are not the numbers of a plane.
        """
        *frame, height, thickness, axis, flipped = numbers
        if axis not in (0.0, 1.0, 2.0) or flipped not in (0.0, 1.0):
            raise ImageError(f"plane of a slice: axis {axis}, flipped {flipped}, one of 0, 1, 2 and 0 or 1 are needed")
        return cls(tuple(frame), height, thickness, int(axis), bool(flipped))


def smallest_turn(start: Tensor, end: Tensor) -> Tensor:
    """The rotation (3, 3) by the smallest angle that takes one unit vector to another, which is not its opposite."""
    cross = torch.linalg.cross(start, end)
    skew = torch.zeros(3, 3, dtype=torch.float64)
    skew[0, 1], skew[0, 2], skew[1, 2] = -cross[2], cross[1], -cross[0]
    skew = skew - skew.T
    return torch.eye(3, dtype=torch.float64) + skew + skew @ skew / (1 + float(start @ end))
