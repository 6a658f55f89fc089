"""Transforms between slices that their files keep in 3-D: SimpleITK applies them to the files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, from_simpleitk, to_simpleitk
from ppir_torch.transforms import (
    BSpline,
    Composite,
    ControlLattice,
    LinearTransform,
    affine_from_map,
    load_any_transform,
    load_transform,
    save_transform,
    to_simpleitk_transform,
)
from ppir_torch.transforms.slices import displacement_in_space, in_space, within_plane
from ppir_torch.warping import warp

DIRECTIONS = {
    "axial": np.eye(3),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal, reversed": np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "between coronal and axial": np.array([[1, 0, 0], [0, 0.7, 0.714142842854285], [0, -0.714142842854285, 0.7]]),
}


def tilted(direction: np.ndarray[Any, Any], degrees: float) -> np.ndarray[Any, Any]:
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*(math.radians(d) for d in (degrees, -degrees, degrees / 2)))
    return np.array(turn.GetMatrix()).reshape(3, 3) @ direction


def slice_image(direction: np.ndarray[Any, Any], height: float, axis: int = 2, seed: int = 0) -> Any:
    """A random slice as a 3-D SimpleITK image, centred at `height` across the plane."""
    values = np.random.default_rng(seed).normal(size=(9, 11))
    image = sitk.GetImageFromArray(np.expand_dims(np.kron(values, np.ones((4, 4))), 2 - axis))
    spacing = [1.5, 2.0]
    spacing.insert(axis, 5.0)
    image.SetSpacing(spacing)
    image.SetDirection(direction.flatten().tolist())
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    image.SetOrigin((direction[:, axis] * height - middle).tolist())
    return image


@pytest.mark.parametrize("tilt", [0.0, 3.0])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_simpleitk_resamples_the_files_as_warp_does(
    name: str, tilt: float, random_transform: Callable[..., LinearTransform]
) -> None:
    files = [slice_image(DIRECTIONS[name], 30.0), slice_image(tilted(DIRECTIONS[name], tilt), 18.0, seed=1)]
    fixed, moving = (from_simpleitk(file, torch.float64) for file in files)
    transform = random_transform("affine", fixed.grid)
    warped = to_simpleitk(warp(moving, transform, fixed.grid))
    lifted = to_simpleitk_transform(in_space(transform, fixed.grid, moving.grid))
    assert lifted.GetDimension() == 3
    outside = float(moving.outside)
    theirs = sitk.Resample(files[1], files[0], lifted, sitk.sitkLinear, outside, sitk.sitkFloat64)
    assert warped.GetSize() == theirs.GetSize()
    # ITK has an image reach half a voxel beyond its last centres; what lies farther in is compared.
    inner = np.zeros(sitk.GetArrayFromImage(files[1]).shape)
    inner[:, 1:-1, 1:-1] = 1
    inside = sitk.GetImageFromArray(inner)
    inside.CopyInformation(files[1])
    deep = sitk.GetArrayFromImage(sitk.Resample(inside, files[0], lifted, sitk.sitkLinear, 0.0)) > 1 - 1e-9
    assert deep.sum() > 500
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(warped)[deep], sitk.GetArrayFromImage(theirs)[deep], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_3d_file_gives_the_2d_transform_back(
    name: str, axis: int, random_transform: Callable[..., LinearTransform], tmp_path: Path
) -> None:
    fixed, moving = (
        from_simpleitk(slice_image(tilted(DIRECTIONS[name], tilt), height, axis)).grid
        for tilt, height in ((0.0, 30.0), (4.0, -12.0))
    )
    transform = random_transform("affine", fixed)
    save_transform(in_space(transform, fixed, moving), tmp_path / "t.tfm")
    for load in (load_transform, load_any_transform):
        again = load(tmp_path / "t.tfm", fixed)
        assert isinstance(again, LinearTransform)
        for mine, theirs in zip(again.affine_map(), transform.affine_map(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)


def test_a_mirrored_map_comes_back_too() -> None:
    fixed, moving = (from_simpleitk(slice_image(DIRECTIONS["coronal"], h)).grid for h in (0.0, 7.0))
    mirror = affine_from_map(fixed, torch.diag(torch.tensor([-1.0, 1.0])).double(), torch.tensor([3.0, 1.0]).double())
    lifted = in_space(mirror, fixed, moving)
    again = within_plane(*(part.detach() for part in lifted.affine_map()), fixed)
    torch.testing.assert_close(again.matrix(), mirror.matrix())


def test_a_3d_file_needs_a_slice_in_space(random_transform: Callable[..., LinearTransform], tmp_path: Path) -> None:
    save_transform(random_transform("rigid", Grid((4, 4, 4))), tmp_path / "t.tfm")
    for load in (load_transform, load_any_transform):
        with pytest.raises(ConfigError, match="3-D"):
            load(tmp_path / "t.tfm", Grid((4, 4)))


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_deformation_is_written_for_the_files(name: str, random_transform: Callable[..., LinearTransform]) -> None:
    files = [slice_image(DIRECTIONS[name], 30.0), slice_image(tilted(DIRECTIONS[name], 2.0), 18.0, seed=1)]
    fixed, moving = (from_simpleitk(file, torch.float64) for file in files)
    part = BSpline(ControlLattice(fixed.grid, 15.0))
    with torch.no_grad():
        part.coefficients.copy_(torch.randn(part.coefficients.shape, generator=torch.Generator().manual_seed(2)))
    transform = Composite([part, random_transform("rigid", fixed.grid)])
    field = displacement_in_space(transform, fixed.grid, moving.grid)
    theirs = sitk.Resample(
        files[1], files[0], to_simpleitk_transform(field), sitk.sitkLinear, float(moving.outside), sitk.sitkFloat64
    )
    mine = sitk.GetArrayFromImage(to_simpleitk(warp(moving, transform, fixed.grid)))
    inner = (slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(sitk.GetArrayFromImage(theirs)[inner], mine[inner], rtol=0, atol=1e-6)


def test_grids_without_a_plane_leave_the_transform_alone(random_transform: Callable[..., LinearTransform]) -> None:
    grid, flat = Grid((6, 5)), from_simpleitk(slice_image(np.eye(3), 0.0)).grid
    transform = random_transform("affine", grid)
    for fixed, moving in itertools.permutations([grid, flat]):
        assert in_space(transform, fixed, moving) is transform
    assert Image(torch.zeros(1, 5, 6), grid).seen_from(flat).grid is grid
