"""Runs of two slices that their files keep in 3-D: what is written fits the files, for whoever reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from parties.harness import Files

from ppir_torch import register
from ppir_torch.errors import ImageError
from ppir_torch.images import Image, load_image, save_image
from ppir_torch.planes import Plane
from ppir_torch.runs.images import run
from ppir_torch.transforms import save_transform
from ppir_torch.transforms.slices import in_space

FRAMES = {
    "axial": np.eye(3),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
}


def about_first(degrees: float) -> np.ndarray[Any, Any]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def placed(image: Image, frame: np.ndarray[Any, Any], height: float, axis: int, flipped: bool) -> Image:
    plane = Plane(tuple(frame.flatten().tolist()), height, 4.0, axis, flipped)
    return Image(image.tensor, replace(image.grid, plane=plane))


@pytest.fixture
def slices(pair: Callable[..., Any], tmp_path: Path) -> Callable[..., Files]:
    """Factory: a pair of slices of a view, the moving one's plane tilted; the truth as a 3-D file."""

    def make(view: str, axis: int = 2, tilt: float = 4.0) -> Files:
        made, frame = pair("rigid", 2), FRAMES[view]
        fixed = placed(made.fixed, frame, 12.0, axis, False)
        moving = placed(made.moving, frame @ about_first(tilt), -7.0, 2, True)
        files = Files(tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", tmp_path / "truth.tfm")
        save_image(fixed, files.fixed)
        save_image(moving, files.moving)
        save_transform(in_space(made.truth, fixed.grid, moving.grid), files.truth)
        return files

    return make


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("view", FRAMES)
def test_what_a_run_writes_fits_the_files(view: str, axis: int, slices: Callable[..., Files], tmp_path: Path) -> None:
    files = slices(view, axis)
    result = run(files.configuration("clear", "rigid", data={"truth": str(files.truth)}), tmp_path / "out")
    assert result["rmse_to_truth_mm"] < 0.1
    fixed, moving = (sitk.ReadImage(str(path)) for path in (files.fixed, files.moving))
    warped = sitk.ReadImage(str(tmp_path / "out" / "warped.nii.gz"))
    assert warped.GetSize() == fixed.GetSize()
    for field in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(warped, field)() == pytest.approx(getattr(fixed, field)(), abs=1e-4)
    transform = sitk.ReadTransform(str(tmp_path / "out" / "transform.tfm"))
    theirs = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, float(load_image(files.moving).outside))
    mine, theirs = (sitk.GetArrayFromImage(image).squeeze() for image in (warped, theirs))
    assert np.abs(mine - theirs)[3:-3, 3:-3].max() < 0.02 * mine.std()


def test_a_run_starts_from_a_3d_file(slices: Callable[..., Files], tmp_path: Path) -> None:
    files = slices("sagittal")
    start = {"start": {"kind": "file", "path": str(files.truth)}, "pyramid": {"levels": [{"shrink": 1}]}}
    data = {"data": {"truth": str(files.truth)}}
    result = run(files.configuration("clear", "affine", **start, **data), tmp_path / "out")
    assert result["rmse_to_truth_mm"] < 0.1
    assert result["iterations"] < 8


def test_a_result_from_python_is_in_the_planes_of_its_images(slices: Callable[..., Files], tmp_path: Path) -> None:
    files = slices("coronal")
    found = register(files.moving, files.fixed, transform="rigid", levels=(2, 1), output=tmp_path)
    again = found.transform(found.warped.grid.points(dtype=torch.float64))
    matrix, offset = (torch.tensor(found.metrics["transform"][n], dtype=torch.float64) for n in ("matrix", "offset_mm"))
    expected = found.warped.grid.points(dtype=torch.float64) @ matrix.T + offset
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-3)


def test_a_deformation_is_written_for_the_files(slices: Callable[..., Files], tmp_path: Path) -> None:
    files = slices("coronal")
    level = {"levels": [{"shrink": 2}]}
    run(files.configuration("clear", "bspline", pyramid=level), tmp_path / "out")
    fixed, moving = (sitk.ReadImage(str(path)) for path in (files.fixed, files.moving))
    field = sitk.ReadImage(str(tmp_path / "out" / "displacement.nrrd"), sitk.sitkVectorFloat64)
    assert field.GetSize() == fixed.GetSize()
    outside = float(load_image(files.moving).outside)
    theirs = sitk.Resample(moving, fixed, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, outside)
    mine = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "warped.nii.gz"))).squeeze()
    assert np.abs(mine - sitk.GetArrayFromImage(theirs).squeeze())[3:-3, 3:-3].max() < 0.02 * mine.std()


@pytest.mark.parametrize("backend", ["bfv", pytest.param("beaver", marks=pytest.mark.slow)])
def test_a_private_run_knows_the_plane_of_the_fixed_slice(
    backend: str, slices: Callable[..., Files], tmp_path: Path
) -> None:
    """It is part of the public geometry; party_1 writes its results with it."""
    files = slices("sagittal")
    data = {"truth": str(files.truth)}
    result = run(files.configuration(backend, "rigid", data=data), tmp_path / "out")
    assert result["rmse_to_truth_mm"] < 0.1
    warped, fixed = (sitk.ReadImage(str(p)) for p in (tmp_path / "out" / "warped.nii.gz", files.fixed))
    for field in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(warped, field)() == pytest.approx(getattr(fixed, field)(), abs=1e-4)
    assert sitk.ReadTransform(str(tmp_path / "out" / "transform.tfm")).GetDimension() == 3


@pytest.mark.parametrize("backend", ["clear", pytest.param("bfv", marks=pytest.mark.slow)])
def test_slices_of_different_views_are_one_clear_line(
    backend: str, slices: Callable[..., Files], pair: Callable[..., Any], tmp_path: Path
) -> None:
    files = slices("sagittal")
    save_image(placed(pair("rigid", 2).moving, FRAMES["axial"], 0.0, 2, False), files.moving)
    with pytest.raises(ImageError if backend == "clear" else Exception, match="planes meet at 90 degrees"):
        run(files.configuration(backend, "rigid"), tmp_path / "out")


def test_a_slice_in_space_and_a_flat_picture_are_registered_flat(
    slices: Callable[..., Files], pair: Callable[..., Any], tmp_path: Path
) -> None:
    files = slices("axial", tilt=0.0)
    save_image(pair("rigid", 2).fixed, tmp_path / "flat.mha")
    flat = Files(files.moving, tmp_path / "flat.mha", files.truth)
    result = run(flat.configuration("clear", "rigid"), tmp_path / "out")
    assert result["value"] < 1
    assert sitk.ReadTransform(str(tmp_path / "out" / "transform.tfm")).GetDimension() == 2
