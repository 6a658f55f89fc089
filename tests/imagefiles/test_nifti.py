"""NIfTI and Analyze files that ITK's reader would take without a word."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from made_files import nifti

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.imagefiles.nifti import check_nifti, read_header
from ppir_torch.images import load_image, load_mask

VALUES = np.random.default_rng(0).normal(100, 30, (5, 6, 7)).astype(np.float32)
LOADERS = pytest.mark.parametrize("load", [load_image, lambda p: load_mask(p, Grid((7, 6, 5)))], ids=["image", "mask"])
Load = Callable[[Path], Any]


def line_of(load: Load, path: Path, *names: str) -> None:
    with pytest.raises(ImageError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def write_pair(folder: Path, values: Any, endings: tuple[str, str] = (".hdr", ".img")) -> tuple[Path, Path]:
    """A header and its image, NIfTI's or Analyze's as SimpleITK writes them; zipped where the ending says so."""
    paths = folder / "pair.hdr", folder / "pair.img"
    sitk.WriteImage(sitk.GetImageFromArray(values), str(paths[1]))
    for path, ending in zip(paths, endings, strict=True):
        if ending.endswith(".gz"):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return folder / f"pair{endings[0]}", folder / f"pair{endings[1]}"


@LOADERS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_that_are_not_finite_are_refused(
    ending: str, dtype: type, value: float, load: Load, tmp_path: Path
) -> None:
    values = VALUES.astype(dtype)
    values[1, 2, 3], values[-1, -1, -1] = value, value
    line_of(load, nifti(tmp_path / f"bad{ending}", values), f"bad{ending}", "2 voxels are NaN or infinite")


def test_they_are_seen_across_the_borders_of_chunks(tmp_path: Path) -> None:
    """A megabyte is read at a time."""
    values = np.ones((70, 70, 70))
    for index in (0, 131_027, 131_028, 131_029, 262_100, values.size - 1):
        values.flat[index] = np.nan
    for ending in (".nii", ".nii.gz"):
        line_of(load_image, nifti(tmp_path / f"large{ending}", values), "6 voxels are NaN")


def test_they_are_seen_in_pairs(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[0, 0, 1] = np.nan
    line_of(load_image, write_pair(tmp_path, values)[1], "1 voxels are NaN")


def test_they_are_seen_in_the_other_byte_order(tmp_path: Path) -> None:
    """Where a swapped NaN is none, and a swapped number may be one."""
    values = VALUES.copy()
    path = nifti(tmp_path / "big.nii", values)
    data = bytearray(path.read_bytes())
    fields = ">i10s18sihcb8h3f4h8f3fhcb4f2i80s24s2h6f4f4f4f16s4s"
    head = struct.pack(fields, *struct.unpack(fields.replace(">", "<"), data[:348]))
    for bad in (0, 1):
        values.flat[17] = np.nan if bad else values.flat[17]
        path.write_bytes(head + b"\0" * 4 + values.astype(">f4").tobytes())
        if bad:
            line_of(load_image, path, "1 voxels are NaN")
        else:
            np.testing.assert_array_equal(load_image(path).tensor[0].numpy(), values)


@LOADERS
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("missing", [1, 100])
@pytest.mark.parametrize("endings", [(".hdr", ".img"), (".hdr.gz", ".img.gz")], ids="".join)
@pytest.mark.parametrize("named", [0, 1], ids=["by its header", "by its image"])
def test_a_pair_without_its_last_bytes(
    named: int, endings: tuple[str, str], missing: int, dtype: type, load: Load, tmp_path: Path
) -> None:
    paths = write_pair(tmp_path, VALUES.astype(dtype), endings)
    load(paths[named])
    data = paths[1].read_bytes()
    data = gzip.compress(gzip.decompress(data)[:-missing]) if endings[1].endswith(".gz") else data[:-missing]
    paths[1].write_bytes(data)
    line_of(load, paths[named], "pair.img", "truncated")


@LOADERS
@pytest.mark.parametrize("gone", [0, 1], ids=["header", "image"])
def test_a_pair_of_which_one_is_missing(gone: int, load: Load, tmp_path: Path) -> None:
    paths = write_pair(tmp_path, VALUES)
    paths[gone].unlink()
    line_of(load, paths[1 - gone], "pair")


def test_a_zipped_file_whose_contents_end_early(tmp_path: Path) -> None:
    """The zip is whole: only the header says that voxels are missing."""
    path = nifti(tmp_path / "short.nii.gz", VALUES)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-8]))
    line_of(load_image, path, "short.nii.gz", "truncated")


@pytest.mark.parametrize(
    ("slope", "intercept", "factor", "offset"),
    [(0, 0, 1, 0), (1, 0, 1, 0), (2, -7, 2, -7), (np.nan, np.nan, 1, 0), (0.5, 0, 0.5, 0), (1, -33792, 1, -33792)],
)
def test_slope_and_intercept(slope: float, intercept: float, factor: float, offset: float, tmp_path: Path) -> None:
    """A slope of 0 or NaN means none, says the format's definition."""
    values = VALUES.astype(np.int16)
    path = nifti(tmp_path / "scaled.nii", values, {112: struct.pack("<2f", slope, intercept)})
    np.testing.assert_allclose(load_image(path).tensor[0].numpy(), factor * values.astype(float) + offset, rtol=1e-6)


def test_other_files_pass(tmp_path: Path) -> None:
    for name in ("text.nii", "text.hdr", "text.img", "text.nii.gz", "text.mha"):
        (tmp_path / name).write_text("no header at all\n" * 60)
        check_nifti(tmp_path / name)
        assert read_header(tmp_path / name) is None


def test_a_damaged_zip_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(b"\x1f\x8b" + bytes(range(200)))
    line_of(check_nifti, path, "bad.nii.gz", "truncated or damaged")
