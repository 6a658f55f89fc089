"""What the protocols with a dealer share: the keys it hands out, words drawn from them, and the messages of words.

>>> from ppir_torch.wire.link import link_pair
>>> mine, theirs = link_pair("party_2", "party_1")
>>> ResultShare.of(torch.tensor([-1, 7]), 40).send(mine)
>>> ResultShare.receive(theirs).words(2, 40).tolist()
[1099511627775, 7]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arithmetic.csprng import KeyStream
from ..arithmetic.words import pack_words, unpack_words
from ..errors import ConfigError, LinkError
from ..wire.channel import Channel
from ..wire.kinds import MessageKind
from ..wire.messages import Message
from ..wire.payload import Buffer

__all__ = [
    "Correction",
    "DealerKey",
    "KeyMessage",
    "ResultShare",
    "WordsMessage",
    "asked_arrays",
    "draw_words",
    "read_asked",
    "with_dealer",
]

KEY_BYTES = 16
MOST_PAIRS = 1 << 16  # of one product

W = TypeVar("W", bound="WordsMessage")
K = TypeVar("K", bound="KeyMessage")


@dataclass(frozen=True, eq=False)
class KeyMessage(Message):
    """A key of 16 bytes; a subclass says whose."""

    key: bytes

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return [self.key]

    @classmethod
    def decode(cls: type[K], payload: Buffer) -> K:
        """See `Message`."""
        if len(payload) != KEY_BYTES:
            raise LinkError(f"{cls.kind.name}: {len(payload)} bytes where a key of {KEY_BYTES} is due; refused")
        return cls(bytes(payload))


@dataclass(frozen=True, eq=False)
class DealerKey(KeyMessage):
    """The dealer to either party: the key of its share of all that is dealt."""

    kind = MessageKind.SEED


@dataclass(frozen=True, eq=False)
class WordsMessage(Message):
    """Words modulo 2^width and nothing else; how many and how wide is agreed before. A subclass says what they are.

    Args:
        parts: the words' bytes, as `pack_words` writes them.
    """

    parts: Sequence[Buffer]

    @classmethod
    def of(cls: type[W], words: Tensor, width: int) -> W:
        """A message of these words."""
        return cls(pack_words(words, width))

    def words(self, count: int, width: int) -> Tensor:
        """The words (count,) of a received message, as `unpack_words` gives them; LinkError for any other length."""
        (payload,) = self.parts
        return unpack_words(memoryview(payload), count, width)

    def encode(self) -> list[Buffer]:
        """See `Message`."""
        return list(self.parts)

    @classmethod
    def decode(cls: type[W], payload: Buffer) -> W:
        """See `Message`; of any bytes, for `words` knows how many are due."""
        return cls([payload])


@dataclass(frozen=True, eq=False)
class ResultShare(WordsMessage):
    """party_2 to party_1: its share of the results that are opened."""

    kind = MessageKind.RESULT_SHARE


@dataclass(frozen=True, eq=False)
class Correction(WordsMessage):
    """The dealer to party_2: its explicit share of a triple's product."""

    kind = MessageKind.TRIPLE_CORRECTION


def asked_arrays(pairs: Sequence[tuple[int, int]], sum_index: Sequence[int] | None) -> list[NDArray[np.uint16]]:
    """Which products are asked for, for a payload: (pairs, 2), and where sums are wanted (pairs,)."""
    asked = [np.array(pairs, np.uint16)]
    return asked if sum_index is None else [*asked, np.array(sum_index, np.uint16)]


def read_asked(arrays: Sequence[NDArray[Any]], kind: MessageKind) -> tuple[list[tuple[int, int]], list[int] | None]:
    """Inverse of `asked_arrays`: (pairs, their sums); whether they fit the operand is for the caller to check.

    Raises:
        LinkError: other arrays than these.
    """
    if len(arrays) not in (1, 2) or any(array.dtype != np.uint16 for array in arrays):
        raise LinkError(f"{kind.name}: the pairs of a product are due, and perhaps their sums; refused")
    if arrays[0].shape[1:] != (2,) or any(array.ndim != 1 for array in arrays[1:]):
        raise LinkError(f"{kind.name}: pairs of rows and columns are due, and a sum for each; refused")
    if len({len(array) for array in arrays}) != 1 or len(arrays[0]) > MOST_PAIRS:
        lengths = [len(array) for array in arrays]
        raise LinkError(
            f"{kind.name}: {lengths} pairs and sums, as many of each and at most {MOST_PAIRS} are due; refused"
        )
    pairs = [(int(row), int(column)) for row, column in arrays[0]]
    return pairs, [int(number) for number in arrays[1]] if len(arrays) == 2 else None


def draw_words(stream: KeyStream, purpose: str, number: int, *shape: int, bits: int = 64) -> Tensor:
    """Uniform words of this shape, int64 or (32 bits) int32; see `KeyStream.words`."""
    return torch.from_numpy(stream.words(purpose, number, shape, bits))


def with_dealer(dealer: Channel | None, name: str) -> Channel:
    """The channel to the dealer; raises ConfigError where the protocol `name` has none."""
    if dealer is None:
        raise ConfigError(f"backend {name}: no link to the dealer; it runs in a process of its own")
    return dealer
