"""The messages of `beaver`, encoded and decoded in one place.

>>> request = TripleRequest(operand=0, rows=7, columns=1, points=64, width=40)
>>> TripleRequest.decode(b"".join(request.encode())) == request
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from ..arithmetic.words import WIDTHS
from ..errors import LinkError
from ..joint.bounds import Pairs, SumIndex
from ..joint.public_map import PublicMap
from ..wire.fields import read_flag, read_integer, read_only
from ..wire.kinds import MessageKind
from ..wire.messages import Message
from ..wire.payload import Buffer, pack, unpack
from .dealing import WordsMessage, asked_arrays, read_asked

__all__ = ["MapOfProducts", "MaskedRows", "OpenedOperand", "TripleRequest", "drawn_bits"]

MAX_WORDS = 1 << 34
MAX_NUMBER = 1 << 62


@dataclass(frozen=True, eq=False)
class TripleRequest(Message):
    """party_1 to the dealer: the public sizes of the next product.

    Args:
        operand: its number in the session.
        rows, columns, points: of X and Y.
        width: bits of the words on the wire.
        mapped: whether the product goes through the map that was sent last.
    """

    operand: int
    rows: int
    columns: int
    points: int
    width: int
    mapped: bool = False

    kind = MessageKind.TRIPLE

    @property
    def bits(self) -> int:
        """Of the words that are drawn."""
        return drawn_bits(self.width)

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack(asdict(self))

    @classmethod
    def decode(cls, payload: Buffer) -> TripleRequest:
        """See `Message`."""
        meta, arrays = unpack(payload)
        read_only(meta, *(field.name for field in fields(cls)))
        request = cls(
            read_integer(meta, "operand", 0, MAX_NUMBER),
            read_integer(meta, "rows", 1, MAX_WORDS),
            read_integer(meta, "columns", 1, MAX_WORDS),
            read_integer(meta, "points", 1, MAX_WORDS),
            read_integer(meta, "width", min(WIDTHS), max(WIDTHS)),
            read_flag(meta, "mapped"),
        )
        drawn = (request.rows + request.columns) * request.points
        if request.width not in WIDTHS or drawn > MAX_WORDS or arrays:
            raise LinkError(f"{cls.kind.name}: {str(request)[:120]} is out of range; refused")
        return request


@dataclass(frozen=True, eq=False)
class MapOfProducts(Message):
    """party_1 to the dealer: the public map that the following mapped products go through."""

    public_map: PublicMap

    kind = MessageKind.PUBLIC_MAP

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return pack(*self.public_map.to_message())

    @classmethod
    def decode(cls, payload: Buffer) -> MapOfProducts:
        """See `Message`."""
        return cls(PublicMap.from_message(*unpack(payload)))


@dataclass(frozen=True, eq=False)
class OpenedOperand(WordsMessage):
    """party_2 to party_1: d = Y - b, one column after the other."""

    kind = MessageKind.OPENED_OPERAND


@dataclass(frozen=True, eq=False)
class MaskedRows(Message):
    """party_1 to party_2: E = X - A, and which products with it are wanted.

    Args:
        number: of the product in the session, from 0: which correction goes with it.
        rows: of E.
        pairs: the products; (0, 0) where they go through a map.
        sum_index: their sums, or None.
        words: E's words, as `pack_words` writes them, one row after the other.
    """

    number: int
    rows: int
    pairs: Pairs
    sum_index: SumIndex | None
    words: Sequence[Buffer]

    kind = MessageKind.MASKED_ROWS

    def encode(self) -> list[Buffer]:
        """See `Message`: the length of what says the product's shape, that, then the words."""
        head = pack({"product": self.number, "rows": self.rows}, asked_arrays(self.pairs, self.sum_index))
        return [sum(len(part) for part in head).to_bytes(4, "little"), *head, *self.words]

    @classmethod
    def decode(cls, payload: Buffer) -> MaskedRows:
        """See `Message`; how many words are due is for the receiver to check."""
        view = memoryview(payload)
        size = int.from_bytes(view[:4], "little")
        meta, arrays = unpack(view[4 : 4 + size])
        read_only(meta, "product", "rows")
        number, rows = read_integer(meta, "product", 0, MAX_NUMBER), read_integer(meta, "rows", 1, MAX_WORDS)
        return cls(number, rows, *read_asked(arrays, cls.kind), [view[4 + size :]])


def drawn_bits(width: int) -> int:
    """Of the words that masks are drawn and computed in, for words of a width on the wire."""
    return 32 if width == 32 else 64
