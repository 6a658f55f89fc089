"""Files as scanners, archives and other tools write them, byte by byte where SimpleITK would not."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from numpy.typing import NDArray

ROOT_UID = "1.2.826.0.1.3680043.2.1125"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def write_slices(
    folder: Path,
    uid: str,
    places: Sequence[Sequence[float]],
    values: Sequence[NDArray[Any]],
    axes: Sequence[Sequence[float]] = AXIAL,
    spacing: tuple[float, float] = (0.75, 1.25),
    start: int = 0,
    **tags: str,
) -> list[Path]:
    """Slices of one DICOM series: (x, y, z) positions, one 2-D array each; `tags` as t0028_0004="MONOCHROME1"."""
    folder.mkdir(parents=True, exist_ok=True)
    writer, paths = sitk.ImageFileWriter(), []
    writer.KeepOriginalImageUIDOn()
    for number, (place, array) in enumerate(zip(places, values, strict=True), start):
        image = sitk.GetImageFromArray(array[None], isVector=array.ndim == 3)
        image.SetSpacing((*spacing, 3.0))
        known = {
            "0008|0060": "MR",
            "0008|0018": f"{ROOT_UID}.{uid}.{number + 1}",
            "0020|000d": f"{ROOT_UID}.7",
            "0020|000e": f"{ROOT_UID}.{uid}",
            "0008|103e": f"series {uid}",
            "0020|0032": "\\".join(f"{v:.10g}" for v in place),
            "0020|0037": "\\".join(f"{v:.10g}" for axis in axes for v in axis),
            "0020|0013": str(number),
        }
        for key, value in (known | {k[1:].replace("_", "|"): v for k, v in tags.items()}).items():
            image.SetMetaData(key, value)
        paths.append(folder / f"{uid}-{900 - number}.dcm")  # names run against the order of the slices
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


def patched(path: Path, **tags: bytes | None) -> Path:
    """Give tags of a file of `write_slices` (implicit VR) values that its writer would not; None: no such tag."""
    data = path.read_bytes()
    for name, value in tags.items():
        group, element = (int(part, 16) for part in name[1:].split("_"))
        at = data.index(struct.pack("<2H", group, element), 132)
        (length,) = struct.unpack_from("<I", data, at + 4)
        new = b"" if value is None else data[at : at + 4] + struct.pack("<I", len(value)) + value
        data = data[:at] + new + data[at + 8 + length :]
    path.write_bytes(data)
    return path


def png(path: Path, values: NDArray[Any], colour_type: int, palette: bytes = b"") -> Path:
    """A PNG of 8 or 16 bits: colour type 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    depth = values.dtype.itemsize * 8
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in values)
    middle = chunk(b"PLTE", palette) if palette else b""
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(whole + chunk(b"IEND", b""))
    return path


def nifti(path: Path, values: NDArray[Any], changes: dict[int, bytes] | None = None) -> Path:
    """A file of SimpleITK's with bytes of its header changed: offset -> bytes; zipped where its name says so."""
    plain = path.with_name("plain.nii")
    sitk.WriteImage(sitk.GetImageFromArray(values), str(plain))
    data = bytearray(plain.read_bytes())
    plain.unlink()
    for offset, new in (changes or {}).items():
        data[offset : offset + len(new)] = new
    path.write_bytes(gzip.compress(bytes(data)) if path.name.endswith(".gz") else bytes(data))
    return path


def tiff(
    path: Path, values: NDArray[Any], tags: dict[int, int] | None = None, order: str = "<", big: bool = False
) -> Path:
    """A TIFF of one uncompressed strip a page, 8 or 16 bits or float: (pages, y, x) or (pages, y, x, samples)."""
    word, entry = ("Q", struct.Struct(f"{order}HHQQ")) if big else ("I", struct.Struct(f"{order}HHII"))
    count = f"{order}Q" if big else f"{order}H"
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)
    body, at = b"", len(head)
    for page, array in enumerate(values):
        samples = 1 if array.ndim == 2 else array.shape[2]
        known = {
            256: array.shape[1],
            257: array.shape[0],
            258: array.dtype.itemsize * 8,
            259: 1,
            262: 1 if samples == 1 else 2,
            273: 0,
            277: samples,
            278: array.shape[0],
            279: array.nbytes,
            **({338: 2} if samples in (2, 4) else {}),
            339: 3 if array.dtype.kind == "f" else 1,
        } | (tags or {})
        length = struct.calcsize(count) + len(known) * entry.size + struct.calcsize(order + word)
        known[273] = at + length
        following = 0 if page + 1 == len(values) else at + length + array.nbytes
        entries = b"".join(_tiff_entry(order, big, tag, value) for tag, value in sorted(known.items()))
        body += struct.pack(count, len(known)) + entries + struct.pack(order + word, following)
        body += array.astype(array.dtype.newbyteorder(order)).tobytes()
        at = len(head) + len(body)
    path.write_bytes(head + body)
    return path


def _tiff_entry(order: str, big: bool, tag: int, value: int) -> bytes:
    long = tag in (273, 279)
    packed = struct.pack(order + ("I" if long else "H"), value)
    head = struct.pack(f"{order}HH{'Q' if big else 'I'}", tag, 4 if long else 3, 1)
    return head + packed.ljust(8 if big else 4, b"\0")
