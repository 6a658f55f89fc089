"""What ITK's NIfTI reader lets pass in silence: missing data (read as zeros), NaN and infinity (turned into 0).

NIfTI-1, and the pairs of header and image of NIfTI and Analyze 7.5, plain or gzipped. (ITK reads no NIfTI-2.)
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import ImageError

__all__ = ["Header", "check_nifti", "read_header"]

ENDINGS = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
CHUNK = 1 << 20
HEADER = 348  # bytes
# Codes of the data types of real and complex floating numbers -> numpy's.
FLOATS = {16: "f4", 64: "f8", 32: "f4", 1792: "f8"}
COLOURS = {128: 3, 2304: 4}  # RGB24, RGBA32


@dataclass(frozen=True)
class Header:
    """What of a NIfTI header says where the data lie and what they are.

    Attributes:
        order: "<" or ">", of its bytes.
        sizes: of the axes that it names.
        datatype: its code.
        bits: of one voxel.
        start: byte of the first voxel in `data`.
        data: the file of the voxels: the header's own, or its pair's.
    """

    order: str
    sizes: tuple[int, ...]
    datatype: int
    bits: int
    start: int
    data: Path

    @property
    def colour(self) -> bool:
        """Whether a voxel is a colour, and no vector."""
        return self.datatype in COLOURS

    @property
    def length(self) -> int:
        """Bytes of all voxels."""
        return -(-math.prod(max(n, 1) for n in self.sizes) * self.bits // 8)


def check_nifti(path: Path) -> None:
    """Refuse a NIfTI or Analyze file with data missing or damaged, or with NaN or infinite voxels; pass other files.

    Raises:
        ImageError: one line with the file.
    """
    if not path.name.lower().endswith(ENDINGS):
        return
    header = read_header(path)
    if header is None:
        return
    if not header.data.exists():
        raise ImageError(f"{path}: its pair {header.data.name} is missing")
    found, bad = _scan(header)
    if found < header.length:
        raise ImageError(f"{header.data}: truncated file, {found} bytes of voxels where {header.length} are due")
    if bad:
        raise ImageError(f"{path}: {bad} voxels are NaN or infinite, every voxel needs a finite value")


def read_header(path: Path) -> Header | None:
    """The header of a NIfTI or Analyze file; None of another file (named like one, perhaps).

    Raises:
        ImageError: the compressed header is damaged.
    """
    holder = _sibling(path, ".hdr") if _stem_and_ending(path)[1].startswith(".img") else path
    if not holder.is_file():
        return None
    with _damage_told(holder), _opened(holder) as stream:
        head = stream.read(HEADER)
    for order in "<>":
        if head[:4] != struct.pack(f"{order}i", HEADER) or len(head) < HEADER:
            continue
        count, *sizes = struct.unpack_from(f"{order}8h", head, 40)
        datatype, bits = struct.unpack_from(f"{order}2h", head, 70)
        (offset,) = struct.unpack_from(f"{order}f", head, 108)
        paired = head[344:348] != b"n+1\0"
        if not 1 <= count <= 7 or not math.isfinite(offset):
            return None  # ITK has its own line for such a header
        start = max(int(offset), 0 if paired else HEADER)
        return Header(order, tuple(sizes[:count]), datatype, bits, start, _sibling(path, ".img") if paired else path)
    return None


def _scan(header: Header) -> tuple[int, int]:
    """(bytes of voxels that are there, voxels or parts of them that are not finite)."""
    kind = FLOATS.get(header.datatype)
    with _damage_told(header.data), _opened(header.data) as stream:
        if kind is None and not isinstance(stream, gzip.GzipFile):  # nothing to look at but the length
            return max(0, min(header.data.stat().st_size - header.start, header.length)), 0
        skip, found, bad, rest = header.start, 0, 0, b""
        while part := stream.read(CHUNK):  # to the end, so that damage there is seen, too
            skipped = min(skip, len(part))
            skip -= skipped
            part = part[skipped : skipped + header.length - found]
            found += len(part)
            if kind is not None:
                dtype, part = np.dtype(header.order + kind), rest + part
                whole = len(part) // dtype.itemsize * dtype.itemsize
                bad += int((~np.isfinite(np.frombuffer(part[:whole], dtype))).sum())
                rest = part[whole:]
    return found, bad


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        raise ImageError(f"{path}: truncated or damaged file ({error})") from None


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")


def _stem_and_ending(path: Path) -> tuple[str, str]:
    name = path.name
    ending = next((e for e in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)], ending.lower()


def _sibling(path: Path, ending: str) -> Path:
    """The other file of a pair, gzipped or not, whatever the case of its ending; its plain name where there is none."""
    stem, _ = _stem_and_ending(path)
    tries = [ending, f"{ending}.gz", ending.upper(), f"{ending.upper()}.GZ", f"{ending.upper()}.gz"]
    paths = [path.with_name(stem + each) for each in tries]
    return next((each for each in paths if each.is_file()), paths[0])
