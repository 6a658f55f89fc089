"""Reading, writing, checking, smoothing and levels of images; SimpleITK and SciPy are the oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ppir_torch.errors import ImageError, PpirError
from ppir_torch.grids import Grid
from ppir_torch.images import (
    Image,
    Level,
    check_content,
    from_simpleitk,
    image_size,
    level_grid,
    load_image,
    load_mask,
    save_image,
    to_simpleitk,
)


def one_line(action: Callable[[], Any], *names: str) -> str:
    """The message of the one clear line that `action` ends with; it names every one of `names`."""
    with pytest.raises(PpirError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message
    return message


def random_image(grid: Grid, dtype: torch.dtype = torch.float32) -> Image:
    values = torch.randn(1, *grid.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return Image((values * 40 + 100).to(dtype), grid)


# --- smoothing and levels


@pytest.mark.parametrize("sigma_mm", [1.0, 2.0, 6.0])
def test_smoothing_is_scipys_gaussian_filter(sigma_mm: float, dtype: torch.dtype) -> None:
    # 4 sigma is a whole number of voxels on every axis, so that both cut the Gaussian at the same voxel.
    grid = Grid((21, 14, 9), (0.5, 1.0, 2.0))
    image = random_image(grid, dtype)
    sigma = [sigma_mm / s for s in reversed(grid.spacing)]
    expected = ndimage.gaussian_filter(image.tensor[0].double().numpy(), sigma, mode="nearest", truncate=4)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(image.smoothed(sigma_mm).tensor[0].numpy(), expected, rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=30)
@given(sigma_mm=st.floats(0.05, 30), spacing=st.floats(0.3, 4))
def test_smoothing_is_scipys_gaussian_filter_for_any_width(sigma_mm: float, spacing: float) -> None:
    grid = Grid((15, 11), (1.0, spacing))
    image = random_image(grid, torch.float64)
    sigma = [sigma_mm / spacing, sigma_mm]
    expected = ndimage.gaussian_filter(image.tensor[0].numpy(), sigma, mode="nearest", truncate=4)
    np.testing.assert_allclose(image.smoothed(sigma_mm).tensor[0].numpy(), expected, rtol=0, atol=0.02)


@given(value=st.floats(-1e6, 1e6), sigma_mm=st.floats(0, 50))
@settings(deadline=None, max_examples=30)
def test_smoothing_keeps_a_constant(value: float, sigma_mm: float) -> None:
    image = Image(torch.full((1, 9, 12), value, dtype=torch.float64), Grid((12, 9)))
    torch.testing.assert_close(image.smoothed(sigma_mm).tensor, image.tensor, rtol=1e-12, atol=1e-300)


def test_no_smoothing_and_no_shrinking_is_the_same_image(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    image = random_image(oblique_grid(dimension))
    assert image.at_level(Level(1, 0.0)) is image


def test_a_level_is_the_smoothed_image_at_the_coarse_points(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    image = random_image(oblique_grid(dimension), torch.float64)
    level = image.at_level(Level(2, 3.0))
    coarse, keep = level_grid(image.grid, Level(2, 3.0))
    assert level.grid == coarse
    torch.testing.assert_close(level.tensor[0], image.smoothed(3.0).tensor[0][keep])


@given(size=st.lists(st.integers(1, 70), min_size=2, max_size=3), shrink=st.integers(1, 64))
def test_no_axis_falls_below_eight_voxels_or_its_own_size(size: list[int], shrink: int) -> None:
    coarse, _ = level_grid(Grid(tuple(size)), Level(shrink, 0.0))
    assert all(m >= min(n, 8) for n, m in zip(size, coarse.size, strict=True))


def test_centre_of_mass_of_a_blob_is_its_centre(oblique_grid: Callable[..., Grid], dimension: int) -> None:
    grid = oblique_grid(dimension)
    where = grid.centre + torch.arange(1.0, dimension + 1, dtype=torch.float64)
    blob = torch.exp(-(grid.points(dtype=torch.float64) - where).square().sum(1) / (2 * 16)).reshape(1, *grid.shape)
    torch.testing.assert_close(Image(blob + 7, grid).centre_of_mass(), where, rtol=0, atol=1e-2)


def test_outside_is_the_border_and_not_zero() -> None:
    tensor = torch.full((1, 9, 9), -1000.0)
    tensor[0, 3:6, 3:6] = 50
    assert Image(tensor, Grid((9, 9))).outside == -1000


# --- files


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
def test_files_round_trip_with_their_geometry(
    ending: str, oblique_grid: Callable[..., Grid], dimension: int, tmp_path: Path
) -> None:
    image = random_image(oblique_grid(dimension))
    path = tmp_path / f"image.{ending}"
    save_image(image, path)
    again = load_image(path)
    assert torch.equal(again.tensor, image.tensor)
    assert again.grid.size == image.grid.size
    # NIfTI holds its geometry in single precision.
    for field in ("spacing", "origin", "direction"):
        assert getattr(again.grid, field) == pytest.approx(getattr(image.grid, field), abs=1e-4), field


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_saved_points_are_where_simpleitk_has_them(
    ending: str, oblique_grid: Callable[..., Grid], dimension: int, tmp_path: Path
) -> None:
    image = random_image(oblique_grid(dimension))
    save_image(image, tmp_path / f"image.{ending}")
    read = sitk.ReadImage(str(tmp_path / f"image.{ending}"))
    index = [3, 5, 7][:dimension]
    flat = torch.arange(image.grid.count).reshape(image.grid.shape)[tuple(reversed(index))][None]
    assert read.TransformIndexToPhysicalPoint(index) == pytest.approx(
        image.grid.points(flat, torch.float64)[0].tolist(), abs=1e-3
    )
    assert read[index] == pytest.approx(float(image.tensor[0].flatten()[flat]), rel=1e-6)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_saved_points_are_where_torchio_has_them(
    ending: str, oblique_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    """TorchIO has voxels as (x, y, z), and an affine to RAS, which is LPS with two signs changed."""
    torchio = pytest.importorskip("torchio")
    image, path = random_image(oblique_grid(3)), tmp_path / f"image{ending}"
    save_image(image, path)
    read = torchio.ScalarImage(path)
    torch.testing.assert_close(read.data, image.tensor.permute(0, 3, 2, 1), rtol=0, atol=0)
    affine = torch.as_tensor(np.array(read.affine), dtype=torch.float64)
    first, last = torch.zeros(3, dtype=torch.float64), torch.tensor(image.grid.size, dtype=torch.float64) - 1
    to_lps = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    corners = torch.stack([(affine[:3, :3] @ index + affine[:3, 3]) * to_lps for index in (first, last)])
    expected = image.grid.points(dtype=torch.float64)[[0, -1]]
    torch.testing.assert_close(corners, expected, rtol=0, atol=1e-3)


def test_png_is_clipped_to_bytes_and_has_no_geometry(tmp_path: Path) -> None:
    image = Image(torch.tensor([[-5.0, 0.0, 100.0], [255.0, 256.0, 1e6]])[None], Grid((3, 2)))
    save_image(image, tmp_path / "image.png")
    again = load_image(tmp_path / "image.png")
    assert again.tensor.tolist() == [[[0, 0, 100], [255, 255, 255]]]
    assert again.grid == image.grid


def test_colour_is_averaged_to_one_channel(tmp_path: Path) -> None:
    colour = np.zeros((4, 5, 3), np.uint8)
    colour[..., 0], colour[2, 3, 1] = 30, 60
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / "colour.png"))
    loaded = load_image(tmp_path / "colour.png")
    assert loaded.tensor.shape == (1, 4, 5)
    assert loaded.tensor[0, 2, 3] == 30
    assert loaded.tensor[0, 0, 0] == 10


def slice_volume(axis: int, direction: tuple[float, ...]) -> Any:
    values = np.random.default_rng(0).integers(-1000, 2000, (11, 13)).astype(np.float32)
    volume = sitk.GetImageFromArray(np.expand_dims(values, 2 - axis))
    spacing = [0.75, 1.25]
    spacing.insert(axis, 3.0)
    volume.SetSpacing(spacing)
    volume.SetOrigin((-20.0, 35.0, 110.0))
    volume.SetDirection(direction)
    return volume


TURNED = (math.cos(0.3), -math.sin(0.3), 0, math.sin(0.3), math.cos(0.3), 0, 0, 0, 1)


def test_a_volume_of_a_single_slice_becomes_2d(tmp_path: Path) -> None:
    sitk.WriteImage(slice_volume(2, TURNED), str(tmp_path / "slice.mha"))
    loaded = load_image(tmp_path / "slice.mha")
    assert loaded.grid.size == image_size(tmp_path / "slice.mha") == (13, 11)
    assert loaded.grid.spacing == (0.75, 1.25)
    assert loaded.grid.origin == (-20.0, 35.0)
    assert loaded.grid.direction == pytest.approx((math.cos(0.3), -math.sin(0.3), math.sin(0.3), math.cos(0.3)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "direction",
    [(1, 0, 0, 0, 1, 0, 0, 0, 1), (1, 0, 0, 0, 0, 1, 0, -1, 0), (0, 0, -1, 1, 0, 0, 0, -1, 0), TURNED],
    ids=["axial", "coronal", "sagittal", "turned"],
)
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_a_slice_is_written_as_its_file_had_it(
    ending: str, direction: tuple[float, ...], axis: int, tmp_path: Path
) -> None:
    """SimpleITK finds the same voxels at the same points, whichever axis has the one voxel."""
    volume = slice_volume(axis, direction)
    paths = [tmp_path / f"{name}.{ending}" for name in ("read", "written")]
    sitk.WriteImage(volume, str(paths[0]))
    loaded = load_image(paths[0])
    assert loaded.grid.size == image_size(paths[0]) == (13, 11)
    save_image(loaded, paths[1])
    again = sitk.ReadImage(str(paths[1]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(volume))
    for field in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(again, field)() == pytest.approx(getattr(volume, field)(), abs=1e-4)


def test_a_slice_in_space_is_a_flat_picture(tmp_path: Path) -> None:
    image = from_simpleitk(slice_volume(0, TURNED))
    save_image(image, tmp_path / "picture.png")
    picture = sitk.ReadImage(str(tmp_path / "picture.png"))
    assert picture.GetSize() == (13, 11)
    np.testing.assert_allclose(sitk.GetArrayFromImage(picture), image.tensor[0].clamp(0, 255).numpy(), atol=1)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int32])
def test_values_that_single_precision_cannot_tell_apart_are_refused(dtype: type, tmp_path: Path) -> None:
    values = (1e9 + np.arange(100).reshape(4, 25)).astype(dtype)
    path = write_array(tmp_path / "far.mha", values)
    one_line(lambda: load_image(path), "far.mha", "values from 1000000000 to 1000000099", "dtype: float64")
    np.testing.assert_array_equal(load_image(path, torch.float64).tensor[0].numpy(), values)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.float32])
def test_a_small_range_that_single_precision_holds_is_taken(dtype: type, tmp_path: Path) -> None:
    values = (1e6 + np.arange(100).reshape(4, 25)).astype(dtype)
    loaded = load_image(write_array(tmp_path / "near.mha", values))
    np.testing.assert_array_equal(loaded.tensor[0].numpy(), values)


def test_simpleitk_round_trip_keeps_everything(
    oblique_grid: Callable[..., Grid], dimension: int, dtype: torch.dtype
) -> None:
    image = random_image(oblique_grid(dimension), dtype)
    again = from_simpleitk(to_simpleitk(image), dtype)
    assert torch.equal(again.tensor, image.tensor)
    assert again.grid == image.grid


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.nii.gz"
    save_image(random_image(Grid((8, 8))), path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise RuntimeError("sitk::ERROR: disk full")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    assert "disk full" in one_line(lambda: save_image(random_image(Grid((9, 9))), path), "image.nii.gz")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- bad input, each with its one clear line


def write_array(path: Path, values: np.ndarray[Any, Any]) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return path


def write_mha(path: Path, **fields: str) -> Path:
    """A 2-D text-header MetaImage whose header fields can be set to anything."""
    header = {
        "ObjectType": "Image",
        "NDims": "2",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 1",
        "Offset": "0 0",
        "ElementSpacing": "1 1",
        "DimSize": "4 3",
        "ElementType": "MET_UCHAR",
        **fields,
        "ElementDataFile": "LOCAL",
    }
    path.write_bytes("".join(f"{k} = {v}\n" for k, v in header.items()).encode() + bytes(range(12)))
    return path


def test_the_mha_writer_of_these_tests_writes_what_can_be_read(tmp_path: Path) -> None:
    loaded = load_image(write_mha(tmp_path / "ok.mha", ElementSpacing="2 3", Offset="5 6"))
    assert loaded.grid == Grid((4, 3), (2.0, 3.0), (5.0, 6.0))


@pytest.mark.parametrize("load", [load_image, lambda p: load_mask(p, Grid((4, 3)))], ids=["image", "mask"])
@pytest.mark.parametrize("name", ["missing.nii.gz", "missing folder", "missing.png"])
def test_missing_file(load: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    one_line(lambda: load(tmp_path / name), name, "no such file")


@pytest.mark.parametrize("load", [load_image, lambda p: load_mask(p, Grid((4, 3)))], ids=["image", "mask"])
@pytest.mark.parametrize("name", ["text.nii.gz", "text.mha", "text.nrrd", "text.png", "text.dcm", "text.xyz", "text"])
def test_unreadable_file(load: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("this is no image\n" * 50)
    one_line(lambda: load(tmp_path / name), name, "cannot be read as an image")


@pytest.mark.parametrize("load", [load_image, lambda p: load_mask(p, Grid((32, 32, 8)))], ids=["image", "mask"])
@pytest.mark.parametrize("ending", ["nii.gz", "nii", "mha", "nrrd"])
def test_truncated_file(load: Callable[[Path], Any], ending: str, tmp_path: Path) -> None:
    # ITK's NIfTI reader gives zeros for what is missing, and no error.
    path = tmp_path / f"cut.{ending}"
    save_image(random_image(Grid((32, 32, 8))), path)
    load(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    one_line(lambda: load(path), path.name)


@pytest.mark.parametrize("missing", [1, 8, 100])
def test_nifti_file_without_its_last_bytes(missing: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.nii.gz"
    save_image(random_image(Grid((32, 32))), path)
    path.write_bytes(path.read_bytes()[:-missing])
    one_line(lambda: load_image(path), "cut.nii.gz", "truncated")


def test_damaged_nifti_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.nii.gz"
    save_image(random_image(Grid((32, 32))), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    one_line(lambda: load_image(path), "bad.nii.gz")


def test_folder_without_a_dicom_series(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    one_line(lambda: load_image(tmp_path), str(tmp_path), "no DICOM series")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite(value: float, tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    values[1, 2] = value
    one_line(lambda: load_image(write_array(tmp_path / "bad.mha", values)), "bad.mha", "1 voxels are NaN or infinite")


def test_values_too_large_for_the_working_precision(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float64).reshape(3, 4)
    values[0, 0] = 1e300
    one_line(lambda: load_image(write_array(tmp_path / "huge.nrrd", values)), "huge.nrrd")


@pytest.mark.parametrize("value", [0, 17])
def test_constant_image(value: int, tmp_path: Path) -> None:
    path = write_array(tmp_path / "flat.nrrd", np.full((5, 6), value, np.int16))
    one_line(lambda: load_image(path), "flat.nrrd", f"constant image (every voxel is {value})")


@pytest.mark.parametrize("spacing", ["0 1", "-1 0", "nan 1"])
def test_spacing_that_is_not_positive(spacing: str, tmp_path: Path) -> None:
    one_line(lambda: load_image(write_mha(tmp_path / "bad.mha", ElementSpacing=spacing)), "bad.mha", "pacing")


def test_negative_spacing_in_a_file_is_a_reversed_axis_as_itk_reads_it(tmp_path: Path) -> None:
    loaded = load_image(write_mha(tmp_path / "flipped.mha", ElementSpacing="1 -2"))
    assert loaded.grid.spacing == (1.0, 2.0)
    assert loaded.grid.direction == (1.0, 0.0, 0.0, -1.0)


@pytest.mark.parametrize("matrix", ["1 1 0 0", "0 0 0 0", "1 0.5 0 1"], ids=["singular", "zero", "sheared"])
def test_bad_direction(matrix: str, tmp_path: Path) -> None:
    one_line(lambda: load_image(write_mha(tmp_path / "bad.mha", TransformMatrix=matrix)), "bad.mha", "irection")


def test_four_dimensions(tmp_path: Path) -> None:
    image = sitk.Image([4, 4, 4, 3], sitk.sitkFloat32)
    sitk.WriteImage(image, str(tmp_path / "series.nii.gz"))
    one_line(lambda: load_image(tmp_path / "series.nii.gz"), "series.nii.gz", "4-D")
    one_line(lambda: load_mask(tmp_path / "series.nii.gz", Grid((4, 4, 4))), "series.nii.gz", "4-D")


def test_mask_is_what_is_above_zero(tmp_path: Path) -> None:
    path = write_array(tmp_path / "mask.nii.gz", np.array([[0, 1, 7], [0, 0, 255]], np.uint8))
    assert load_mask(path, Grid((3, 2))).tolist() == [[False, True, True], [False, False, True]]


def test_empty_mask(tmp_path: Path) -> None:
    path = write_array(tmp_path / "mask.nii.gz", np.zeros((3, 4), np.uint8))
    one_line(lambda: load_mask(path, Grid((4, 3))), "mask.nii.gz", "empty mask")


@pytest.mark.parametrize("grid", [Grid((3, 4)), Grid((4, 3, 2)), Grid((5, 3), (2.0, 1.0))], ids=str)
def test_mask_of_another_size(grid: Grid, tmp_path: Path) -> None:
    path = write_array(tmp_path / "mask.nii.gz", np.ones((3, 4), np.uint8))
    one_line(lambda: load_mask(path, grid), "mask.nii.gz", "mask of size (4, 3)", str(grid.size))


def test_mask_with_voxels_that_are_not_finite(tmp_path: Path) -> None:
    path = write_array(tmp_path / "mask.mha", np.array([[1, np.nan]], np.float32))
    one_line(lambda: load_mask(path, Grid((2, 1))), "mask.mha", "NaN")


def test_unwritable_ending(tmp_path: Path) -> None:
    one_line(lambda: save_image(random_image(Grid((4, 4))), tmp_path / "image.xyz"), "image.xyz", "cannot be written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1, 3, 5), torch.zeros(3, 4), torch.zeros(1, 1, 3, 4), torch.zeros(1, 3, 4, dtype=torch.int64)],
    ids=["size", "no channel", "dimension", "integers"],
)
def test_a_tensor_that_does_not_fit_its_grid(tensor: torch.Tensor) -> None:
    with pytest.raises(ImageError, match="image tensor"):
        Image(tensor, Grid((4, 3)))


def test_more_than_one_channel_cannot_be_registered() -> None:
    one_line(lambda: check_content(Image(torch.rand(2, 3, 4), Grid((4, 3))), "moving image"), "moving image", "2 chan")


def test_an_image_darker_than_its_border_has_no_centre_of_mass() -> None:
    tensor = torch.ones(1, 5, 5)
    tensor[0, 2, 2] = 0
    one_line(Image(tensor, Grid((5, 5))).centre_of_mass, "centre of mass")


@settings(deadline=None, max_examples=40)
@given(junk=st.binary(max_size=600), ending=st.sampled_from(["nii", "nii.gz", "mha", "nrrd", "png"]))
def test_any_bytes_are_an_image_or_one_line(junk: bytes, ending: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("junk") / f"junk.{ending}"
    path.write_bytes(junk)
    one_line(lambda: load_image(path), f"junk.{ending}")
