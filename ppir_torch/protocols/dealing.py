"""What the protocols with a dealer share: the keys it hands out, and words drawn from them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic.csprng import KeyStream
from ..errors import ConfigError, LinkError
from ..wire.link import Link, Received

__all__ = ["draw_words", "read_key", "with_dealer"]


def draw_words(stream: KeyStream, purpose: str, number: int, *shape: int, bits: int = 64) -> Tensor:
    """Uniform words of this shape, int64 or (32 bits) int32; see `KeyStream.words`."""
    return torch.from_numpy(stream.words(purpose, number, shape, bits))


def read_key(message: Received) -> bytes:
    """The 16 bytes of a received key; raises LinkError where there are more or fewer."""
    if message.payload.nbytes != 16:
        raise LinkError(f"{message.kind.name}: {message.payload.nbytes} bytes where a key of 16 is due; refused")
    return bytes(message.payload)


def with_dealer(dealer_link: Link | None, name: str) -> Link:
    """The link to the dealer; raises ConfigError where the protocol `name` has none."""
    if dealer_link is None:
        raise ConfigError(f"backend {name}: no link to the dealer; it runs in a process of its own")
    return dealer_link
