"""The messages of a session, one class a message: what is sent is encoded here, and decoded beside it.

`decode` takes whatever a peer sent. It checks every bound before it allocates anything and raises LinkError, never
another error. Messages that need the types of a higher room (an operand's request, its header) are classes of that
room; messages of a protocol stand beside their protocol. All of them derive from `Message`.

>>> from ppir_torch.wire.link import link_pair
>>> mine, theirs = link_pair("party_1", "party_2")
>>> Hello("0.1.0", "beaver").send(mine)
>>> Hello.receive(theirs)
Hello(version='0.1.0', protocol='beaver')
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import LinkError
from .channel import Channel
from .fields import one_line, read_flag, read_integer, read_numbers, read_only, read_text, shown
from .kinds import MessageKind
from .payload import Buffer, pack, unpack

__all__ = [
    "Abort",
    "Finish",
    "Geometry",
    "Hello",
    "Message",
    "OperandInUse",
    "PointsRequest",
    "SampleIndices",
    "SharedTransform",
]

LONGEST_NAME = 200
LONGEST_REASON = 1000  # bytes of an ABORT's line
MOST_VOXELS = 1 << 40
MOST_OPERANDS = 1 << 16
MOST_POINTS = 1 << 40
PLANE_NUMBERS = 13

M = TypeVar("M", bound="Message")


class Message(ABC):
    """One kind of message as a value. Two are equal where their kind and bytes are.

    A subclass is a frozen dataclass (`eq=False`: equality is that of the bytes). What depends on the session, such as
    whether a shape is the agreed one, is checked by whoever receives it.

    Attributes:
        kind: under which it is sent.
    """

    kind: ClassVar[MessageKind]

    @abstractmethod
    def encode(self) -> list[Buffer]:
        """The payload's buffers."""

    @classmethod
    @abstractmethod
    def decode(cls: type[M], payload: Buffer) -> M:
        """Inverse of `encode`. Raises LinkError for every other payload, before it allocates what it announces."""

    def send(self, channel: Channel) -> None:
        """Queue it for the peer. Raises PeerLost when the peer is gone."""
        channel.send(self.kind, self.encode())

    @classmethod
    def receive(cls: type[M], channel: Channel) -> M:
        """The next message, which must be of this kind. Raises LinkError or PeerLost, as `Channel.receive`."""
        return cls.decode(channel.receive(cls.kind).payload)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Message)
        return b"".join(self.encode()) == b"".join(other.encode())

    def __hash__(self) -> int:
        return hash(b"".join(self.encode()))


@dataclass(frozen=True, eq=False)
class Hello(Message):
    """Both ways, first of all: who runs what. Parties of other versions or protocols part here.

    Args:
        version: of ppir_torch.
        protocol: its name; "points, " before it where point sets are aligned.
    """

    version: str
    protocol: str

    kind = MessageKind.HELLO

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack(asdict(self))

    @classmethod
    def decode(cls, payload: Buffer) -> Hello:
        """See `Message`."""
        meta, _ = _unpack(payload, arrays=0)
        read_only(meta, "version", "protocol")
        return cls(read_text(meta, "version", LONGEST_NAME), read_text(meta, "protocol", LONGEST_NAME))


@dataclass(frozen=True, eq=False)
class Geometry(Message):
    """party_2 to party_1: the fixed image's geometry, and what else of it party_2 agreed to tell.

    Args:
        size: voxels along x, y[, z].
        spacing: mm along the same axes.
        origin: physical position of the first voxel's centre, mm LPS.
        direction: orthonormal matrix, row-major.
        centre_of_mass: of the image, mm LPS; None where it is not disclosed.
        mask: its foreground, bool (voxels,), x fastest; None where it is not disclosed.
        plane: of a slice that its file keeps in 3-D, where it lies in space: 13 numbers; empty where it is none.
        atlas_map: from a template's points to the image's, D (D + 1) numbers, row-major; empty where not told.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    centre_of_mass: tuple[float, ...] | None = None
    mask: NDArray[np.bool_] | None = None
    plane: tuple[float, ...] = ()
    atlas_map: tuple[float, ...] = ()

    kind = MessageKind.GEOMETRY

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        grid = {"size": self.size, "spacing": self.spacing, "origin": self.origin, "direction": self.direction}
        grid |= {"plane": self.plane} if self.plane else {}
        meta: dict[str, Any] = {"grid": grid, "centre_of_mass": self.centre_of_mass, "mask": self.mask is not None}
        meta |= {"atlas_map": self.atlas_map} if self.atlas_map else {}
        return pack(meta, [] if self.mask is None else [np.packbits(self.mask)])

    @classmethod
    def decode(cls, payload: Buffer) -> Geometry:
        """See `Message`."""
        meta, arrays = unpack(payload)
        by_atlas = ("atlas_map",) if "atlas_map" in meta else ()
        read_only(meta, "grid", "centre_of_mass", "mask", *by_atlas)
        grid = meta["grid"]
        if not isinstance(grid, dict):
            raise LinkError(f"grid: {shown(grid)}, size, spacing, origin and direction are due")
        in_space = ("plane",) if "plane" in grid else ()
        read_only(grid, "size", "spacing", "origin", "direction", *in_space)
        size = grid["size"]
        if not isinstance(size, list) or len(size) not in (2, 3) or any(type(n) is not int or n < 1 for n in size):
            raise LinkError(f"size: {shown(size)}, two or three integers >= 1 are due")
        count, d = math.prod(size), len(size)
        if count > MOST_VOXELS:
            raise LinkError(f"size: {shown(size)}, at most {MOST_VOXELS} voxels are allowed")
        masked = read_flag(meta, "mask")
        if len(arrays) != int(masked) or any(a.dtype != np.uint8 or a.shape != (-(-count // 8),) for a in arrays):
            raise LinkError(f"mask: {'one array of a bit a voxel' if masked else 'no array'} is due")
        return cls(
            size=tuple(size),
            spacing=read_numbers(grid, "spacing", d),
            origin=read_numbers(grid, "origin", d),
            direction=read_numbers(grid, "direction", d * d),
            centre_of_mass=None if meta["centre_of_mass"] is None else read_numbers(meta, "centre_of_mass", d),
            mask=np.unpackbits(arrays[0], count=count).astype(bool) if masked else None,
            plane=read_numbers(grid, "plane", PLANE_NUMBERS) if in_space else (),
            atlas_map=read_numbers(meta, "atlas_map", d * (d + 1)) if by_atlas else (),
        )


@dataclass(frozen=True, eq=False)
class SampleIndices(Message):
    """party_1 to party_2: the points of a gradient-magnitude sample, which it thereby discloses.

    Args:
        index: (points,) integers that increase, among the level's candidate points.
    """

    index: NDArray[np.int64]

    kind = MessageKind.SAMPLE

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack({}, [self.index.astype(np.int32)])

    @classmethod
    def decode(cls, payload: Buffer) -> SampleIndices:
        """See `Message`."""
        _, arrays = unpack(payload)
        if len(arrays) != 1 or arrays[0].ndim != 1 or arrays[0].size == 0 or arrays[0].dtype.kind != "i":
            raise LinkError("sample: one array of point indices is due; refused")
        index = arrays[0].astype(np.int64)
        if not bool((np.diff(index) > 0).all()):
            # The mean and energy of one point, asked for many times, would be its value.
            raise LinkError("sample: indices must increase, each point is taken once; refused")
        return cls(index)


@dataclass(frozen=True, eq=False)
class OperandInUse(Message):
    """party_1 to party_2: the products that follow are with this operand, not with the one opened last.

    Args:
        number: of the operand in the session, from 0.
    """

    number: int

    kind = MessageKind.OPERAND_IN_USE

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack({"number": self.number})

    @classmethod
    def decode(cls, payload: Buffer) -> OperandInUse:
        """See `Message`."""
        meta, _ = _unpack(payload, arrays=0)
        read_only(meta, "number")
        return cls(read_integer(meta, "number", 0, MOST_OPERANDS - 1))


@dataclass(frozen=True, eq=False)
class PointsRequest(Message):
    """party_1 to party_2, of point sets: how many points it has, which must be as many as party_2's.

    Args:
        points: n.
        dimension: D.
    """

    points: int
    dimension: int

    kind = MessageKind.LEVEL

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack(asdict(self))

    @classmethod
    def decode(cls, payload: Buffer) -> PointsRequest:
        """See `Message`."""
        meta, arrays = unpack(payload)
        if set(meta) != {"points", "dimension"} or arrays or any(type(n) is not int for n in meta.values()):
            raise LinkError(f"{cls.kind.name}: the number and dimension of points are due; refused")
        return cls(read_integer(meta, "points", 0, MOST_POINTS), read_integer(meta, "dimension", 0, 1024))


@dataclass(frozen=True)
class SharedTransform:
    """The final transform, fixed points to moving points, as party_1 may tell it: y = A (x + u(x)) + b.

    Args:
        matrix: A, D rows of D numbers.
        offset_mm: b, D numbers.
        deformation: name of the control lattice's transform, whose field is u; "" where there is none.
        control_spacing_mm: of its control points, D numbers.
        coefficients: of the control points, float64 (D, [mz,] my, mx), mm; party_2 knows the fixed grid.
    """

    matrix: list[list[float]]
    offset_mm: list[float]
    deformation: str = ""
    control_spacing_mm: tuple[float, ...] = ()
    coefficients: NDArray[np.float64] | None = None

    def to_meta(self) -> dict[str, Any]:
        """Everything but the coefficients, as JSON values."""
        linear = {"matrix": self.matrix, "offset_mm": self.offset_mm}
        if not self.deformation:
            return linear
        return linear | {"deformation": self.deformation, "control_spacing_mm": self.control_spacing_mm}


@dataclass(frozen=True, eq=False)
class Finish(Message):
    """party_1 to party_2 and to the dealer: the run is over.

    Args:
        shared: the final transform, where the configuration shares it with party_2; never told to the dealer.
    """

    shared: SharedTransform | None = None

    kind = MessageKind.FINISH

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        if self.shared is None:
            return pack({"transform": None})
        arrays = [] if self.shared.coefficients is None else [self.shared.coefficients]
        return pack({"transform": self.shared.to_meta()}, arrays)

    @classmethod
    def decode(cls, payload: Buffer) -> Finish:
        """See `Message`."""
        meta, arrays = unpack(payload)
        read_only(meta, "transform")
        shared = meta["transform"]
        if shared is None:
            if arrays:
                raise LinkError("transform: none, but coefficients of one; refused")
            return cls()
        if not isinstance(shared, dict) or not isinstance(shared.get("matrix"), list):
            raise LinkError(f"transform: {shown(shared)}, a matrix and an offset are due")
        dimension = len(shared["matrix"])
        if dimension not in (2, 3):
            raise LinkError(f"transform: a matrix of {dimension} rows, 2 or 3 are due")
        rows = [list(read_numbers({"matrix": row}, "matrix", dimension)) for row in shared["matrix"]]
        offset = list(read_numbers(shared, "offset_mm", dimension))
        if set(shared) == {"matrix", "offset_mm"} and not arrays:
            return cls(SharedTransform(rows, offset))
        read_only(shared, "matrix", "offset_mm", "deformation", "control_spacing_mm")
        shapes = [(a.dtype.str, a.ndim, *a.shape[:1]) for a in arrays]
        if shapes != [("<f8", dimension + 1, dimension)]:
            raise LinkError(f"transform: coefficients of a {dimension}-D control lattice are due, one float64 array")
        name = read_text(shared, "deformation", LONGEST_NAME)
        spacing = read_numbers(shared, "control_spacing_mm", dimension)
        return cls(SharedTransform(rows, offset, name, spacing, arrays[0]))


@dataclass(frozen=True, eq=False)
class Abort(Message):
    """Any to any: one line that says why this party stops. What is too long is cut, what cannot be printed left out.

    Args:
        reason: the line, of at most 1000 bytes as UTF-8.
    """

    reason: str

    kind = MessageKind.ABORT

    def __post_init__(self) -> None:
        # Cut between characters, so that what arrives is what was sent.
        printable = one_line(self.reason.encode(errors="replace").decode()).encode()
        whole = printable[:LONGEST_REASON].decode(errors="ignore")
        object.__setattr__(self, "reason", whole)

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return [self.reason.encode()]

    @classmethod
    def decode(cls, payload: Buffer) -> Abort:
        """See `Message`; of any bytes."""
        return cls(bytes(payload[:LONGEST_REASON]).decode(errors="replace"))


def _unpack(payload: Buffer, arrays: int) -> tuple[dict[str, Any], Sequence[NDArray[Any]]]:
    """As `unpack`, of a payload with this many arrays."""
    meta, found = unpack(payload)
    if len(found) != arrays:
        raise LinkError(f"malformed payload: {len(found)} arrays, {arrays} are due")
    return meta, found
