"""Words of the ring Z_2^k: products modulo 2^64, and their bytes on the wire.

Since 2^k divides 2^64, every sum and product is computed in int64 (which wraps) and cut to k bits where it is sent;
for k = 32 in int32, which takes half the memory and half the time.

>>> word_products(torch.tensor([[2**62, 1]]), torch.tensor([[4, 5]]))
tensor([[5]])
>>> unpack_words(memoryview(b"".join(pack_words(torch.tensor([-1, 7]), 40))), 2, 40).tolist()
[1099511627775, 7]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import LinkError

__all__ = ["WIDTHS", "narrowest_width", "pack_words", "signed_words", "unpack_words", "word_products", "word_type"]

WIDTHS = (32, 40, 48, 64)
_HIGH = {40: np.uint8, 48: np.uint16}


def word_products(left: Tensor, right: Tensor) -> Tensor:
    """left (R, n) @ right^T, right (C, n): (R, C) modulo 2^64, or 2^32 for int32, on the device where both are."""
    if left.device.type != "cpu":  # torch has no integer matrix product on CUDA
        return torch.stack([(left * column).sum(1, dtype=left.dtype) for column in right], 1)
    # numpy's loop takes half the time of torch's integer matrix product
    return torch.from_numpy(np.einsum("in,jn->ij", left.numpy(), right.numpy()))


def pack_words(words: Tensor, width: int) -> list[memoryview]:
    """Words modulo 2^width as width / 8 bytes each: all low halves, then what is above bit 32."""
    flat = np.ascontiguousarray(words.cpu().numpy()).reshape(-1)
    if flat.itemsize * 8 == width:
        return [flat.data.cast("B")]
    parts = [flat.astype(np.uint32)]
    if width > 32:
        parts.append((flat >> 32).astype(_HIGH[width]))
    return [part.data.cast("B") for part in parts]


def unpack_words(payload: memoryview, count: int, width: int) -> Tensor:
    """Inverse of `pack_words`: int64 (count,) in [0, 2^width), or signed words of width 64 (int64) and 32 (int32).

    Raises:
        LinkError: a payload of another length.
    """
    if payload.nbytes != count * width // 8:
        raise LinkError(f"payload of {payload.nbytes} bytes where {count} words of {width} bits are due; refused")
    if width in (32, 64):
        return torch.from_numpy(np.frombuffer(payload, np.int32 if width == 32 else np.int64))
    words = np.frombuffer(payload, np.uint32, count).astype(np.int64)
    high = np.frombuffer(payload, _HIGH[width], count, 4 * count).astype(np.int64)
    high <<= 32
    words |= high
    return torch.from_numpy(words)


def signed_words(words: Tensor, width: int) -> Tensor:
    """Words modulo 2^width as the integers in [-2^(width-1), 2^(width-1)) that they stand for, int64."""
    spare = 64 - width
    return (words.to(torch.int64) << spare) >> spare


def word_type(width: int) -> torch.dtype:
    """What words of a width are computed in."""
    return torch.int32 if width == 32 else torch.int64


def narrowest_width(needed_bits: int, allowed: Sequence[int] = WIDTHS) -> int:
    """The smallest allowed width of at least `needed_bits`, or the largest there is."""
    return next((width for width in allowed if width >= needed_bits), allowed[-1])
