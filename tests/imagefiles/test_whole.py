"""Truncated files of every format: a line, never zeros or grey in silence."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from made_files import png, tiff, write_slices

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.imagefiles.whole import check_whole
from ppir_torch.images import load_image, load_mask

VALUES = np.random.default_rng(2).integers(1, 255, (40, 37)).astype(np.uint8)
SOLID = np.random.default_rng(2).integers(1, 255, (9, 40, 37)).astype(np.uint8)


def write(path: Path) -> Path:
    """A picture or volume in the format of the ending; the file that holds the voxels."""
    if path.suffix == ".dcm":
        return write_slices(path.parent, "1", [(0, 0, 0)], [VALUES.astype(np.int16)])[0].rename(path)
    flat = path.suffix in (".png", ".bmp", ".jpg", ".tif")
    sitk.WriteImage(sitk.GetImageFromArray(VALUES if flat else SOLID), str(path))
    return {".mhd": path.with_suffix(".raw"), ".nhdr": path.with_suffix(".raw")}.get(path.suffix, path)


FORMATS = ["png", "bmp", "jpg", "tif", "mha", "mhd", "nrrd", "nhdr", "nii", "nii.gz", "vtk", "gipl", "dcm"]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.7, -9])
def test_a_truncated_file_is_a_line(kept: float, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    data_file = write(path)
    grid = load_image(path).grid
    data = data_file.read_bytes()
    data_file.write_bytes(data[: int(kept * len(data))] if kept > 0 else data[: int(kept)])
    for load in (load_image, lambda p: load_mask(p, grid)):
        with pytest.raises(ImageError) as caught:
            load(path)
        assert "\n" not in str(caught.value)
        assert "a." in str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
@pytest.mark.parametrize("pages", [1, 3])
def test_every_page_of_a_tiff_must_be_there(pages: int, big: bool, order: str, tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", SOLID[:pages].astype(np.uint16) * 3, order=order, big=big)
    image = load_image(path)
    np.testing.assert_array_equal(image.tensor[0].numpy(), (SOLID[:pages].astype(np.uint16) * 3).squeeze())
    data = path.read_bytes()
    for cut in (1, 40, len(data) // 2):
        path.write_bytes(data[:-cut])
        with pytest.raises(ImageError, match="truncated"):
            check_whole(path)


def test_a_tiff_in_circles_is_a_line(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", SOLID[:1])
    data = bytearray(path.read_bytes())
    entries = int.from_bytes(data[8:10], "little")
    data[10 + 12 * entries : 14 + 12 * entries] = (8).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ImageError, match="directory of pages"):
        check_whole(path)


def test_what_follows_the_end_does_not_matter(tmp_path: Path) -> None:
    for ending in ("png", "jpg", "bmp", "tif"):
        path = write(tmp_path / f"a.{ending}")
        path.write_bytes(path.read_bytes() + b"\0 added by a camera")
        check_whole(path)


@pytest.mark.parametrize(
    "start", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"\x1f\x8b"]
)
def test_any_bytes_pass_or_are_a_line(start: bytes, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for length in (0, 3, 20, 400):
        path = tmp_path / "a.tif"
        path.write_bytes(start + random.bytes(length))
        with contextlib.suppress(ImageError):
            check_whole(path)


Load = Callable[[Path], Any]


@pytest.mark.parametrize("load", [load_image, lambda p: load_mask(p, Grid((9, 7)))], ids=["image", "mask"])
def test_an_empty_file_is_a_line(load: Load, tmp_path: Path) -> None:
    for ending in FORMATS:
        path = tmp_path / f"empty.{ending}"
        path.write_bytes(gzip.compress(b"") if ending.endswith("gz") else b"")
        with pytest.raises(ImageError, match="empty"):
            load(path)


def test_the_helpers_png_is_read_as_written(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", VALUES, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VALUES)
