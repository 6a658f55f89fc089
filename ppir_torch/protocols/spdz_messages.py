"""The messages of `spdz`, encoded and decoded in one place; those of CrypTen's collectives are in crypten_link.

>>> request = ProductRequest(rows=2, points=64, pairs=[(0, 0), (1, 0)])
>>> ProductRequest.decode(b"".join(request.encode())) == request
True
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LinkError
from ..joint.bounds import Pairs, SumIndex
from ..wire.fields import read_flag, read_integer, read_only
from ..wire.kinds import MessageKind
from ..wire.messages import Message
from ..wire.payload import Buffer, pack, unpack
from .dealing import KeyMessage, asked_arrays, read_asked

__all__ = ["MAX_CHUNK_WORDS", "ProductRequest", "TripleRequest", "ZeroKey"]

MAX_CHUNK_WORDS = 1 << 20  # 8 MiB per matrix; larger blocks are mapped afresh each time, which costs more than it saves
MAX_POINTS = 1 << 40


@dataclass(frozen=True, eq=False)
class ZeroKey(KeyMessage):
    """party_2 to party_1: the key of an operand's sharings of zero."""

    kind = MessageKind.ZERO_SEED


@dataclass(frozen=True, eq=False)
class TripleRequest(Message):
    """party_1 to the dealer: the shape of the next product, for which triples are wanted.

    Args:
        rows, points, columns: of X and Y.
        mapped: whether the triples are to be point by point.
    """

    rows: int
    points: int
    columns: int
    mapped: bool = False

    kind = MessageKind.TRIPLE

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        sizes = {"rows": self.rows, "points": self.points, "columns": self.columns}
        return pack(sizes | ({"mapped": True} if self.mapped else {}))

    @classmethod
    def decode(cls, payload: Buffer) -> TripleRequest:
        """See `Message`."""
        meta, arrays = unpack(payload)
        meta.setdefault("mapped", False)
        read_only(meta, "rows", "points", "columns", "mapped")
        request = cls(
            read_integer(meta, "rows", 1, MAX_CHUNK_WORDS),
            read_integer(meta, "points", 1, MAX_POINTS),
            read_integer(meta, "columns", 1, MAX_CHUNK_WORDS),
            read_flag(meta, "mapped"),
        )
        if arrays or (request.mapped and request.columns != 1):
            raise LinkError(f"{cls.kind.name}: {request} is not the shape of a product; refused")
        return request


@dataclass(frozen=True, eq=False)
class ProductRequest(Message):
    """party_1 to party_2: the shape of the next product, and what of it is wanted.

    Args:
        rows, points: of X.
        pairs: the products; None where the product goes through a map.
        sum_index: their sums, or None.
    """

    rows: int
    points: int
    pairs: Pairs | None = None
    sum_index: SumIndex | None = None

    kind = MessageKind.PRODUCT

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        arrays = [] if self.pairs is None else asked_arrays(self.pairs, self.sum_index)
        return pack({"rows": self.rows, "points": self.points}, arrays)

    @classmethod
    def decode(cls, payload: Buffer) -> ProductRequest:
        """See `Message`."""
        meta, arrays = unpack(payload)
        read_only(meta, "rows", "points")
        rows = read_integer(meta, "rows", 1, MAX_CHUNK_WORDS)
        points = read_integer(meta, "points", 1, MAX_POINTS)
        return cls(rows, points) if not arrays else cls(rows, points, *read_asked(arrays, cls.kind))
