"""DICOM folders as archives export them: read right, or refused with what lies there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from made_files import ROOT_UID, patched, write_slices

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.images import from_simpleitk, image_size, load_image, load_mask

C, S = math.cos(0.3), math.sin(0.3)
AXES = ((C, S, 0.0), (-S, C, 0.0))
COUNT = 6


def volume(depth: int = COUNT, low: int = -1000) -> Any:
    """Random, oblique, far from the origin; its slices are those of `series`."""
    values = np.random.default_rng(0).integers(low, 2000, (depth, 11, 13)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.75, 1.25, 3.0))
    image.SetOrigin((-20.0, 35.0, 110.0))
    image.SetDirection((C, -S, 0, S, C, 0, 0, 0, 1))
    return image


def series(
    folder: Path, image: Any, uid: str = "1", which: Sequence[int] | None = None, start: int = 0, **tags: str
) -> Path:
    """Slices of a volume as a series, those of `which` only."""
    which = range(image.GetDepth()) if which is None else which
    places = [image.TransformIndexToPhysicalPoint((0, 0, k)) for k in which]
    values = sitk.GetArrayFromImage(image)[list(which)]
    write_slices(folder, uid, places, list(values), AXES, start=start, **tags)
    return folder


def line_of(path: Path | str, *names: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message
    for name in (str(path).split("::")[0], *names):
        assert name in message


def assert_is(path: Path | str, image: Any) -> None:
    loaded, expected = load_image(path), from_simpleitk(image)
    np.testing.assert_array_equal(loaded.tensor.numpy(), expected.tensor.numpy())
    for field in ("size", "spacing", "origin", "direction"):
        assert getattr(loaded.grid, field) == pytest.approx(getattr(expected.grid, field), abs=1e-6), field
    assert image_size(path) == expected.grid.size


@pytest.mark.parametrize("reverse", [False, True])
def test_one_series_is_a_volume(reverse: bool, tmp_path: Path) -> None:
    """Whatever the order of its files' names and numbers."""
    order = range(COUNT)[::-1] if reverse else range(COUNT)
    assert_is(series(tmp_path / "é a", volume(), which=order), volume())


def test_other_files_beside_the_slices_do_not_matter(tmp_path: Path) -> None:
    series(tmp_path, volume())
    (tmp_path / "README.txt").write_text("export of today")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 200)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "viewer").mkdir()
    assert_is(tmp_path, volume())


def test_several_series_are_listed_and_one_is_named(tmp_path: Path) -> None:
    series(tmp_path, volume())
    series(tmp_path, volume() + 7, uid="2", t0008_103e="T2 axial")
    uids = [f"{ROOT_UID}.{number}" for number in (1, 2)]
    line_of(tmp_path, "2 DICOM series", f"{tmp_path}::UID", *uids, "T2 axial", "6 files")
    assert_is(f"{tmp_path}::{uids[0]}", volume())
    assert_is(f"{tmp_path}::{uids[1]}", volume() + 7)
    line_of(f"{tmp_path}::{ROOT_UID}.3", f"no DICOM series '{ROOT_UID}.3'", *uids)


def test_a_name_with_the_mark_in_it_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a::b.mha"
    sitk.WriteImage(volume(), str(path))
    np.testing.assert_array_equal(load_image(path).tensor[0].numpy(), sitk.GetArrayFromImage(volume()))
    with pytest.raises(ImageError, match="no such file or folder"):
        load_image(tmp_path / "nowhere::1.2.3")


def test_a_folder_whose_series_lies_deeper_says_where(tmp_path: Path) -> None:
    series(tmp_path / "inner é", volume())
    line_of(tmp_path, "no DICOM series", str(tmp_path / "inner é"))


@pytest.mark.parametrize(
    ("absent", "count"), [([3], 1), ([2, 3], 2), ([1], 1), ([4], 1)], ids=["middle", "two", "second", "last but one"]
)
def test_missing_slices_are_counted(absent: list[int], count: int, tmp_path: Path) -> None:
    which = [k for k in range(COUNT) if k not in absent]
    line_of(series(tmp_path, volume(), which=which), f"{count} slices are missing", "even stack")


def test_one_missing_slice_of_many_is_seen(tmp_path: Path) -> None:
    many = volume(60)
    line_of(series(tmp_path, many, which=[k for k in range(60) if k != 57]), "1 slices are missing")


@pytest.mark.parametrize("factor", [1.3, 2.0])
def test_uneven_distances_are_refused(factor: float, tmp_path: Path) -> None:
    image = volume()
    places = [(0.0, 0.0, 3.0 * k if k < 3 else 3.0 * (2 + (k - 2) * factor)) for k in range(COUNT)]
    write_slices(tmp_path, "1", places, list(sitk.GetArrayFromImage(image)))
    line_of(tmp_path, "distances", "even stack")


def test_positions_rounded_by_the_scanner_are_even(tmp_path: Path) -> None:
    values = list(sitk.GetArrayFromImage(volume(40)))
    write_slices(tmp_path, "1", [(0.0, 0.0, round(0.6667 * k, 2)) for k in range(40)], values)
    assert load_image(tmp_path).grid.spacing[2] == pytest.approx(0.6667, abs=1e-3)


@pytest.mark.parametrize("offset", [0.0, 0.001])
def test_two_time_points_in_one_series_are_refused(offset: float, tmp_path: Path) -> None:
    image = volume()
    series(tmp_path, image)
    image.SetOrigin((-20.0, 35.0, 110.0 + offset))
    series(tmp_path, image + 5, start=100)
    line_of(tmp_path, "6 of 12 slices lie where another one lies", "time points")


def test_one_doubled_slice_is_refused(tmp_path: Path) -> None:
    series(tmp_path, volume())
    series(tmp_path, volume(), which=[2], start=100)
    line_of(tmp_path, "1 of 7 slices lie where another one lies")


def test_a_localizer_in_the_series_is_refused(tmp_path: Path) -> None:
    series(tmp_path, volume())
    write_slices(tmp_path, "1", [(0.0, 0.0, 0.0)], [np.zeros((11, 13), np.int16)], ((1, 0, 0), (0, 0, -1)), start=90)
    line_of(tmp_path, "several orientations", "localizer")


@pytest.mark.parametrize("tilt", [1.5, 15.0])
def test_a_gantry_tilt_is_refused(tilt: float, tmp_path: Path) -> None:
    shift = math.tan(math.radians(tilt))
    places = [(0.0, shift * 3.0 * k, 3.0 * k) for k in range(COUNT)]
    write_slices(tmp_path, "1", places, list(sitk.GetArrayFromImage(volume())))
    line_of(tmp_path, f"gantry tilt of {tilt} degrees", "straight stack")


def test_slices_of_several_sizes_are_refused(tmp_path: Path) -> None:
    series(tmp_path, volume())
    write_slices(tmp_path, "1", [(-20.0, 35.0, 128.0)], [np.zeros((5, 13), np.int16)], AXES, start=50)
    line_of(tmp_path, "several sizes")


def test_slices_of_several_spacings_are_refused(tmp_path: Path) -> None:
    series(tmp_path, volume())
    more = [sitk.GetArrayFromImage(volume())[0]]
    write_slices(tmp_path, "1", [(-20.0, 35.0, 128.0)], more, AXES, (1.5, 1.25), start=50)
    line_of(tmp_path, "several spacings")


def test_slices_that_lie_nowhere_are_refused(tmp_path: Path) -> None:
    paths = write_slices(
        tmp_path, "1", [(0.0, 0.0, 3.0 * k) for k in range(3)], list(sitk.GetArrayFromImage(volume(3)))
    )
    for path in paths:
        patched(path, t0020_0032=None)
    line_of(tmp_path, "say not where they lie")


@pytest.mark.parametrize(("bits", "signed"), [(16, True), (12, False)])
def test_monochrome1_is_turned(bits: int, signed: bool, tmp_path: Path) -> None:
    """There 0 is white: the highest stored value becomes the lowest."""
    dark = volume(low=-1000 if signed else 0)
    stored = sitk.GetArrayFromImage(dark).astype(np.int16 if signed else np.uint16)
    places = [dark.TransformIndexToPhysicalPoint((0, 0, k)) for k in range(COUNT)]
    for path in write_slices(tmp_path, "1", places, list(stored), AXES):
        depth = {"t0028_0101": bytes([bits, 0]), "t0028_0102": bytes([bits - 1, 0])}
        patched(path, t0028_0004=b"MONOCHROME1 ", **depth)
    highest = -1 if signed else 2**bits - 1  # lowest plus highest stored value
    np.testing.assert_array_equal(load_image(tmp_path).tensor[0].numpy(), highest - stored.astype(float))
    one = sorted(tmp_path.iterdir())[0]
    np.testing.assert_array_equal(load_image(one).tensor[0].numpy(), highest - stored[-1].astype(float))


def test_slopes_that_differ_from_slice_to_slice_are_applied(tmp_path: Path) -> None:
    """As in PET: a reader that takes the first slice's type for all of them cuts the others' fractions off."""
    image = volume(3)
    stored = sitk.GetArrayFromImage(image)
    places = [image.TransformIndexToPhysicalPoint((0, 0, k)) for k in range(3)]
    slopes = [1.0, 0.375, 2.5]
    paths = write_slices(tmp_path, "1", places, list(stored), AXES, t0028_1053="1", t0028_1052="0")
    for path, slope in zip(paths, slopes, strict=True):
        patched(path, t0028_1053=f"{slope:.3f} ".encode())
    expected = stored * np.array(slopes)[:, None, None]
    np.testing.assert_allclose(load_image(tmp_path).tensor[0].numpy(), expected, rtol=1e-6)


def test_a_single_slice_is_2d_where_it_lies_in_space(tmp_path: Path) -> None:
    (path,) = write_slices(
        tmp_path, "1", [(-20.0, 35.0, 110.0)], [sitk.GetArrayFromImage(volume())[0]], ((0, 1, 0), (0, 0, -1))
    )
    for place in (path, tmp_path):
        image = load_image(place)
        assert image.grid.dimension == 2
        assert image.grid.in_space().origin == pytest.approx((-20.0, 35.0, 110.0))
        assert image.grid.in_space().direction == pytest.approx((0, 0, -1, 1, 0, 0, 0, -1, 0))
        assert image_size(place) == (13, 11)


def test_a_mask_may_be_a_series(tmp_path: Path) -> None:
    folder = series(tmp_path / "mask", volume())
    grid = load_image(folder).grid
    np.testing.assert_array_equal(load_mask(folder, grid).numpy(), sitk.GetArrayFromImage(volume()) > 0)


def test_a_mosaic_is_refused(tmp_path: Path) -> None:
    line_of(series(tmp_path, volume(1), t0008_0008="ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC"), "mosaic", "dcm2niix")


@pytest.mark.parametrize("missing", [1, 200])
def test_a_truncated_slice_is_refused(missing: int, tmp_path: Path) -> None:
    series(tmp_path, volume())
    path = sorted(tmp_path.iterdir())[2]
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_helper_writes_what_simpleitks_own_reader_reads(tmp_path: Path) -> None:
    """Of an even series both are the same volume."""
    series(tmp_path, volume())
    theirs = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), sitk.GetArrayFromImage(volume()))
    shutil.rmtree(tmp_path)
    assert Grid(theirs.GetSize()).count == volume().GetNumberOfPixels()
