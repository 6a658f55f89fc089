"""Payloads: JSON values and arrays as bytes. No pickle: what arrives is data, never code.

>>> unpack(b"".join(bytes(part) for part in pack({"shrink": 2})))
({'shrink': 2}, [])
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LinkError

__all__ = ["Buffer", "pack", "unpack"]

Buffer = bytes | bytearray | memoryview


def pack(meta: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> list[Buffer]:
    """JSON values and arrays as the buffers of one payload. No pickle: what arrives is data, never code."""
    contiguous = [np.asarray(a, order="C") for a in arrays]
    head = json.dumps({"meta": meta, "arrays": [[a.dtype.str, a.shape] for a in contiguous]}).encode()
    return [struct.pack("<I", len(head)), head, *(a.data.cast("B") for a in contiguous if a.size)]


def unpack(payload: Buffer) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Inverse of `pack`. Raises LinkError where the bytes are not what `pack` writes."""
    view = memoryview(payload)
    try:
        (size,) = struct.unpack_from("<I", view)
        head = json.loads(bytes(view[4 : 4 + size]))
        meta, offset, arrays = head["meta"], 4 + size, []
        if not isinstance(meta, dict):
            raise TypeError(f"values are a {type(meta).__name__}")
        for name, shape in head["arrays"]:
            # "<i8", "|u1", "<f4": numbers only; and sizes as Python integers, which do not wrap
            if not (isinstance(name, str) and len(name) == 3 and name[0] in "<>|=" and name[1] in "iuf"):
                raise ValueError(f"array of type {name!r}")
            if not all(isinstance(n, int) and n >= 0 for n in shape):
                raise ValueError(f"array of shape {shape!r}")
            dtype, count = np.dtype(name), math.prod(shape)
            if offset + count * dtype.itemsize > view.nbytes:
                raise ValueError(f"array of shape {shape!r} is longer than the payload")
            arrays.append(np.frombuffer(view, dtype, count, offset).reshape(shape))
            offset += count * dtype.itemsize
        if offset != view.nbytes:
            raise ValueError(f"{view.nbytes - offset} bytes left over")
        return meta, arrays
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise LinkError(f"malformed payload: {error}") from None
