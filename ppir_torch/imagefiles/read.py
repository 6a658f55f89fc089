"""Reading any image file or DICOM folder as a SimpleITK image of one channel, 2-D or 3-D, or saying why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ImageError
from .channels import check_pixels, one_channel
from .dicom import Series, choose_series, one_file
from .itk import reason, simpleitk
from .whole import check_length, check_whole

__all__ = ["read_image", "read_size"]

SERIES_MARK = "::"


def read_image(path: str | Path) -> Any:
    """The image of a file, of a folder with one DICOM series, or of a series named as `folder::SERIES_UID`.

    Returns:
        A SimpleITK image of one component a voxel.

    Raises:
        ImageError: one line with the path: missing, unreadable, truncated, not 2-D or 3-D, no brightness.
    """
    try:
        found = _located(Path(path))
        return found.read() if isinstance(found, Series) else _read_file(found)
    except RuntimeError as error:
        raise ImageError(f"{path}: cannot be read as an image ({reason(str(error))})") from None


def read_size(path: str | Path) -> tuple[int, ...]:
    """Voxels along the file's axes x, y[, z], from headers alone; no voxel is read. Raises as `read_image`."""
    try:
        found = _located(Path(path))
        return found.size if isinstance(found, Series) else tuple(int(n) for n in _header(found).GetSize())
    except RuntimeError as error:
        raise ImageError(f"{path}: cannot be read as an image ({reason(str(error))})") from None


def _located(path: Path) -> Path | Series:
    """The file, or the series of a folder."""
    if path.is_dir():
        return choose_series(path, "")
    if path.exists():
        return path
    folder, mark, uid = str(path).rpartition(SERIES_MARK)
    if mark and Path(folder).is_dir():
        return choose_series(Path(folder), uid.strip())
    raise ImageError(f"{path}: no such file or folder")


def _header(path: Path) -> Any:
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        with path.open("rb") as stream:
            head = stream.read(26)
        if head[:8] == b"\x89PNG\r\n\x1a\n" and head[25:] == b"\4":
            raise ImageError(f"{path}: grey with an alpha channel, save it without transparency") from None
        raise
    return reader


def _read_file(path: Path) -> Any:
    header = _header(path)
    check_pixels(path, header)
    size = tuple(int(n) for n in header.GetSize())
    volumes = [n for n in size[3:] if n != 1]
    if len(size) < 2 or volumes:
        raise ImageError(
            f"{path}: {len(size)}-D image of size {size}, 2-D or 3-D is needed; save one volume (one component, one "
            "time point) in a file of its own"
        )
    check_whole(path)
    check_length(path, header)
    if header.GetImageIOFromFileName(str(path)) == "GDCMImageIO":
        return one_channel(path, one_file(path, header))
    return one_channel(path, _as_volume(header.Execute()))


def _as_volume(loaded: Any) -> Any:
    """Without the axes of one voxel beyond the third: a series of one volume is that volume."""
    if loaded.GetDimension() <= 3:
        return loaded
    sitk = simpleitk()
    size = loaded.GetSize()
    wanted = [*size[:3], *(0 for _ in size[3:])]
    return sitk.Extract(loaded, wanted, [0] * len(size), sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX)
