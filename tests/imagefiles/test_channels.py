"""Voxels of several numbers: colour is averaged, everything else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from made_files import nifti, png, write_slices

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.images import load_image, load_mask

RANDOM = np.random.default_rng(1)
GREY = RANDOM.integers(0, 255, (7, 9)).astype(np.uint8)
COLOUR = RANDOM.integers(0, 255, (7, 9, 3)).astype(np.uint8)
MEAN = COLOUR.mean(-1)


def opaque(values: Any, alpha: int) -> Any:
    values = values[..., None] if values.ndim == 2 else values
    return np.concatenate([values, np.full_like(values[..., :1], alpha)], -1)


def vector(array: Any) -> Any:
    return sitk.GetImageFromArray(array, isVector=True)


def line_of(path: Path, *names: str) -> None:
    for load in (load_image, lambda p: load_mask(p, Grid((9, 7)))):
        with pytest.raises(ImageError) as caught:
            load(path)
        message = str(caught.value)
        assert "\n" not in message
        for name in (path.name, *names):
            assert name in message


@pytest.mark.parametrize("depth", [1, 257], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [(0, GREY), (2, COLOUR), (6, opaque(COLOUR, 255)), (6, opaque(COLOUR, 90))],
    ids=["grey", "colour", "colour and alpha", "evenly faint"],
)
def test_pictures_are_their_brightness(kind: int, values: Any, depth: int, tmp_path: Path) -> None:
    """An alpha channel that is the same everywhere says nothing, and is no fourth colour."""
    values = values.astype(np.uint8 if depth == 1 else np.uint16) * np.uint16(depth)
    values = values.astype(np.uint8 if depth == 1 else np.uint16)
    image = load_image(png(tmp_path / "a.png", values, kind))
    expected = (GREY.astype(float) if kind == 0 else MEAN) * depth
    np.testing.assert_allclose(image.tensor[0].numpy(), expected, rtol=1e-6)


def test_transparent_pixels_are_refused(tmp_path: Path) -> None:
    values = opaque(COLOUR, 255)
    values[:, :3, -1] = 0
    line_of(png(tmp_path / "a.png", values, 6), "alpha channel", "33%")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_with_an_alpha_channel_says_what_to_do(dtype: type, tmp_path: Path) -> None:
    """SimpleITK does not read it."""
    line_of(png(tmp_path / "a.png", opaque(GREY, 255).astype(dtype), 4), "alpha channel", "without transparency")


def test_a_palette_is_its_colours(tmp_path: Path) -> None:
    palette = RANDOM.integers(0, 255, (256, 3)).astype(np.uint8)
    image = load_image(png(tmp_path / "a.png", GREY, 3, palette.tobytes()))
    np.testing.assert_allclose(image.tensor[0].numpy(), palette[GREY].mean(-1), rtol=1e-6)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "mha", "mhd"])
def test_colour_in_formats_that_know_it(ending: str, tmp_path: Path) -> None:
    sitk.WriteImage(vector(COLOUR), str(tmp_path / f"a.{ending}"))
    np.testing.assert_allclose(load_image(tmp_path / f"a.{ending}").tensor[0].numpy(), MEAN, rtol=1e-6)


def test_a_photograph(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(9)[None, :, None] * 20, (7, 9, 3)).astype(np.uint8)
    sitk.WriteImage(vector(smooth), str(tmp_path / "a.jpg"))
    np.testing.assert_allclose(load_image(tmp_path / "a.jpg").tensor[0].numpy(), smooth.mean(-1), atol=12)


def test_a_colour_picture_in_dicom(tmp_path: Path) -> None:
    (path,) = write_slices(tmp_path, "1", [(0, 0, 0)], [COLOUR], t0028_0004="RGB")
    np.testing.assert_allclose(load_image(path).tensor[0].numpy(), MEAN, rtol=1e-6)


def test_colour_in_nifti_is_a_data_type(tmp_path: Path) -> None:
    planar = COLOUR.reshape(1, 7, 27)
    path = nifti(tmp_path / "rgb.nii", planar, {42: b"\x09\x00", 70: b"\x80\x00\x18\x00"})  # 9 voxels, RGB24
    np.testing.assert_allclose(load_image(path).tensor[0].numpy(), MEAN, rtol=1e-6)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("components", [2, 3, 4, 6, 9])
@pytest.mark.parametrize("dimension", [2, 3])
def test_vectors_and_tensors_are_refused(components: int, dimension: int, ending: str, tmp_path: Path) -> None:
    values = RANDOM.normal(size=(*(5, 7, 9)[3 - dimension :], components)).astype(np.float32)
    sitk.WriteImage(vector(values), str(tmp_path / f"field.{ending}"))
    line_of(tmp_path / f"field.{ending}", f"{components} components", "save one of them")


def test_layers_of_a_segmentation_are_no_colours(tmp_path: Path) -> None:
    """Slicer keeps overlapping segments as a list of bytes a voxel."""
    layers = RANDOM.integers(0, 2, (5, 7, 9, 3)).astype(np.uint8)
    head = (
        "NRRD0004\ntype: uchar\ndimension: 4\nspace: left-posterior-superior\nsizes: 3 9 7 5\n"
        "space directions: none (1,0,0) (0,1,0) (0,0,1)\nkinds: list domain domain domain\nencoding: raw\n"
        "space origin: (0,0,0)\n\n"
    )
    (tmp_path / "a.seg.nrrd").write_bytes(head.encode() + layers.tobytes())
    line_of(tmp_path / "a.seg.nrrd", "3 components")


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd"])
def test_complex_numbers_are_refused(ending: str, tmp_path: Path) -> None:
    values = (RANDOM.normal(size=(5, 7, 9)) + 1j * RANDOM.normal(size=(5, 7, 9))).astype(np.complex64)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"a.{ending}"))
    line_of(tmp_path / f"a.{ending}", "complex", "magnitude")


@pytest.mark.parametrize("ending", ["nii.gz", "mha", "nrrd"])
def test_several_volumes_are_refused_and_one_is_read(ending: str, tmp_path: Path) -> None:
    one = sitk.GetImageFromArray(RANDOM.normal(size=(5, 7, 9)).astype(np.float32))
    one.SetSpacing((1.0, 2.0, 3.0))
    one.SetOrigin((4.0, 5.0, 6.0))
    sitk.WriteImage(sitk.JoinSeries([one]), str(tmp_path / f"one.{ending}"))
    image = load_image(tmp_path / f"one.{ending}")
    np.testing.assert_array_equal(image.tensor[0].numpy(), sitk.GetArrayFromImage(one))
    assert image.grid == Grid((9, 7, 5), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    sitk.WriteImage(sitk.JoinSeries([one, one]), str(tmp_path / f"two.{ending}"))
    line_of(tmp_path / f"two.{ending}", "4-D image of size (9, 7, 5, 2)")
