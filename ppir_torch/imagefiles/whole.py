"""Whether an image file is whole: ITK reads what is missing from several formats as zeros or grey, in silence.

Only what the format itself says of its length is looked at, and never a pixel decoded.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ImageError
from .itk import simpleitk
from .nifti import check_nifti

__all__ = ["check_length", "check_whole"]

TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
OFFSETS, LENGTHS = (273, 324), (279, 325)  # of strips, of tiles
MOST_PAGES = 1 << 20
HEADERS = {"VTKImageIO": 0, "GiplImageIO": 256, "MRCImageIO": 1024}  # bytes before the voxels; VTK's is text


def check_whole(path: Path) -> None:
    """Refuse a truncated or damaged file of the formats whose reader would not say so; pass all others.

    Raises:
        ImageError: one line with the file.
    """
    check_nifti(path)
    with path.open("rb") as stream:
        head = stream.read(16)
    data = None
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tiff(path)
    elif head[:8] == b"\x89PNG\r\n\x1a\n":
        data = path.read_bytes()
        if b"IEND" not in data:
            raise ImageError(f"{path}: truncated file, its end is missing")
    elif head[:3] == b"\xff\xd8\xff":
        data = path.read_bytes()
        if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise ImageError(f"{path}: truncated file, its end is missing")
    elif head[:2] == b"BM" and len(head) >= 6:
        (length,) = struct.unpack_from("<I", head, 2)
        if path.stat().st_size < length:
            raise ImageError(f"{path}: truncated file, {path.stat().st_size} bytes of {length}")


def _check_tiff(path: Path) -> None:
    """Every strip and tile of every page must lie within the file."""
    data = path.read_bytes()
    try:
        needed = max((offset + length for page in _tiff_pages(data) for offset, length in _parts(page)), default=0)
    except (struct.error, OverflowError, ValueError):
        raise ImageError(f"{path}: truncated or damaged file, its directory of pages cannot be read") from None
    if needed > len(data):
        raise ImageError(f"{path}: truncated file, {len(data)} bytes of {needed}")


def _parts(page: dict[int, list[int]]) -> Iterator[tuple[int, int]]:
    for offsets, lengths in zip(OFFSETS, LENGTHS, strict=True):
        starts = page.get(offsets, [])  # old files may leave the lengths out
        yield from zip(starts, page.get(lengths) or [0] * len(starts), strict=True)


def _tiff_pages(data: bytes) -> Iterator[dict[int, list[int]]]:
    """The integer tags of each page's directory: TIFF and BigTIFF, both byte orders."""
    order, big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    word, count, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    (where,) = struct.unpack_from(order + word, data, 8 if big else 4)
    seen: set[int] = set()
    while where:
        if where in seen or len(seen) > MOST_PAGES:
            raise ValueError("directories in a circle")
        seen.add(where)
        (entries,) = struct.unpack_from(order + count, data, where)
        first = where + struct.calcsize(order + count)
        page = {}
        for at in range(first, first + entries * entry, entry):
            tag, kind = struct.unpack_from(f"{order}2H", data, at)
            (number,) = struct.unpack_from(order + word, data, at + 4)
            value_at, length = at + 4 + struct.calcsize(order + word), number * TIFF_SIZES.get(kind, 1)
            if length > struct.calcsize(order + word):
                (value_at,) = struct.unpack_from(order + word, data, value_at)
            if value_at + length > len(data):
                raise ValueError("a tag's values are missing")
            if kind not in TIFF_INTEGERS or tag not in (*OFFSETS, *LENGTHS):
                continue
            letter = TIFF_INTEGERS[kind]
            page[tag] = list(struct.unpack_from(f"{order}{number}{letter}", data, value_at))
        yield page
        (where,) = struct.unpack_from(order + word, data, first + entries * entry)


def check_length(path: Path, header: Any) -> None:
    """Refuse a VTK, GIPL or MRC file that is shorter than its voxels are, of which the rest would be read as zeros.

    Args:
        path: the file.
        header: a SimpleITK ImageFileReader that has read the file's information.

    Raises:
        ImageError: one line with the file.
    """
    io = header.GetImageIOFromFileName(str(path))
    if io not in HEADERS:
        return
    numbers = math.prod(header.GetSize()) * header.GetNumberOfComponents()
    one = simpleitk().Image([1] * header.GetDimension(), header.GetPixelID(), header.GetNumberOfComponents())
    needed = numbers * one.GetSizeOfPixelComponent()
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, OSError, zlib.error) as error:
        raise ImageError(f"{path}: truncated or damaged file ({error})") from None
    text = data[: data.find(b"\n", data.find(b"LOOKUP_TABLE")) + 1] if io == "VTKImageIO" else b""
    if b"\nASCII" in text:
        found, needed = len(data[len(text) :].split()), numbers
    else:
        found = len(data) - (len(text) or HEADERS[io])
    if found < needed:
        raise ImageError(f"{path}: truncated file, {max(found, 0)} bytes of voxels where {needed} are due")
