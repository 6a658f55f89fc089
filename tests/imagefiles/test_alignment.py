"""Masks on another grid than their image's: SimpleITK's nearest neighbour, in millimetres, is the oracle."""

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
from hypothesis import given
from hypothesis import strategies as st

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.imagefiles.alignment import aligned_mask
from ppir_torch.images import from_simpleitk, load_mask, to_simpleitk

Change = Callable[[Any], Any]


def random_mask(grid: Grid, seed: int = 3) -> Any:
    values = np.random.default_rng(seed).random(grid.shape) < 0.4
    image = sitk.GetImageFromArray(values.astype(np.uint8) * 255)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def by_simpleitk(mask: Any, grid: Grid) -> np.ndarray[Any, Any]:
    d = grid.dimension
    reference = sitk.Image(list(grid.size), sitk.sitkUInt8)
    reference.SetSpacing(grid.spacing)
    reference.SetOrigin(grid.origin)
    reference.SetDirection(grid.direction)
    moved = sitk.Resample(mask, reference, sitk.Transform(d, sitk.sitkIdentity), sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(moved) > 0


def header(mask: Any, **changes: tuple[float, ...]) -> Any:
    other = sitk.Image(mask)
    for name, values in changes.items():
        getattr(other, f"Set{name}")(values)
    return other


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)), ids=str)
def test_axes_in_any_order_are_the_same_region(
    order: tuple[int, ...], flips: tuple[bool, ...], oblique_grid: Callable[..., Grid]
) -> None:
    grid = oblique_grid(3)
    mask = random_mask(grid)
    stored = sitk.Flip(sitk.PermuteAxes(mask, order), flips)
    own = from_simpleitk(stored)
    found = aligned_mask(own.tensor[0] > 0, own.grid, grid)
    np.testing.assert_array_equal(found.numpy(), sitk.GetArrayFromImage(mask) > 0)
    np.testing.assert_array_equal(found.numpy(), by_simpleitk(stored, grid))


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_a_mask_whose_axes_are_reversed_in_its_file(
    flips: tuple[bool, ...], ending: str, oblique_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    grid = oblique_grid(2)
    mask = random_mask(grid)
    sitk.WriteImage(sitk.Flip(mask, flips), str(tmp_path / f"mask.{ending}"))
    np.testing.assert_array_equal(
        load_mask(tmp_path / f"mask.{ending}", grid).numpy(), sitk.GetArrayFromImage(mask) > 0
    )


def test_a_cropped_mask_lies_where_it_was_and_a_padded_one_too(oblique_grid: Callable[..., Grid]) -> None:
    grid = oblique_grid(3)
    mask = random_mask(grid)
    cropped = mask[4:20, 3:25, 2:9]
    padded = sitk.ConstantPad(mask, [3, 0, 5], [1, 2, 0])
    for other in (cropped, padded, sitk.Flip(cropped, (True, False, True))):
        own = from_simpleitk(other)
        found = aligned_mask(own.tensor[0] > 0, own.grid, grid).numpy()
        np.testing.assert_array_equal(found, by_simpleitk(other, grid))
        assert found.any()


@given(
    finer=st.tuples(*[st.sampled_from([0.4, 0.5, 0.7, 1.0, 1.6, 2.0, 3.0])] * 3),
    centred=st.booleans(),
    flip=st.booleans(),
)
def test_other_voxels_over_the_same_field_of_view_are_resampled(
    finer: tuple[float, ...], centred: bool, flip: bool
) -> None:
    grid = Grid((16, 14, 12), (1.5, 1.75, 2.0), (10.0, -20.0, 30.0))
    size = tuple(max(2, math.ceil(n / f)) for n, f in zip(grid.size, finer, strict=True))
    spacing = tuple(s * n / m for s, n, m in zip(grid.spacing, grid.size, size, strict=True))
    edge = [o - s / 2 + t / 2 for o, s, t in zip(grid.origin, grid.spacing, spacing, strict=True)]
    mask = random_mask(Grid(size, spacing, tuple(edge) if centred else grid.origin))
    mask = sitk.Flip(mask, (flip, False, False))
    own = from_simpleitk(mask)
    found = aligned_mask(own.tensor[0] > 0, own.grid, grid).numpy()
    # Where a voxel's centre lies on the border of two of the mask's, either is the nearest.
    matrix, offset = own.grid.physical_to_normalised()
    normalised = (grid.points(dtype=torch.float64) @ matrix.T + offset).numpy()
    index = (normalised + 1) / 2 * (np.array(own.grid.size) - 1)
    clear = (np.abs(index - np.floor(index) - 0.5) > 1e-6).all(1).reshape(grid.shape)
    np.testing.assert_array_equal(found[clear], by_simpleitk(mask, grid)[clear])


def shifted(mask: Any, voxels: float) -> Any:
    return header(mask, Origin=tuple(o + voxels * s for o, s in zip(mask.GetOrigin(), mask.GetSpacing(), strict=True)))


def bare(mask: Any, *names: str) -> Any:
    """Without what a header says, as a tool leaves it that knows no geometry."""
    d = mask.GetDimension()
    plain = {"Spacing": (1.0,) * d, "Origin": (0.0,) * d, "Direction": tuple(np.eye(d).flatten())}
    return header(mask, **{name: plain[name] for name in names or plain})


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda m: header(m, Origin=tuple(o + 30 for o in m.GetOrigin())), ["origin"]),
        (lambda m: shifted(m, 3), ["origin"]),
        (lambda m: bare(m, "Spacing"), ["spacing"]),
        (lambda m: bare(m, "Direction"), ["direction"]),
        (bare, ["spacing", "origin", "direction"]),
        (lambda m: header(m, Origin=tuple(-o for o in m.GetOrigin())), ["origin"]),
        (lambda m: shifted(m, 0.4), []),
        (lambda m: bare(m[tuple([slice(0, 12)] * m.GetDimension())]), ["origin"]),
    ],
    ids=["30 mm", "whole voxels", "spacing 1", "no direction", "no header", "signs", "part of a voxel", "bare crop"],
)
def test_a_mask_that_lies_elsewhere_is_refused(
    change: Change,
    names: list[str],
    dimension: int,
    oblique_grid: Callable[..., Grid],
    tmp_path: Path,
) -> None:
    grid = oblique_grid(dimension)
    path = tmp_path / "mask.mha"
    sitk.WriteImage(change(random_mask(grid)), str(path))
    if not names:  # less than a voxel over the same field of view
        np.testing.assert_array_equal(load_mask(path, grid).numpy(), by_simpleitk(sitk.ReadImage(str(path)), grid))
        return
    with pytest.raises(ImageError) as caught:
        load_mask(path, grid)
    line = str(caught.value)
    assert "\n" not in line
    for name in ["mask.mha: mask of size", "save it with the image's header", *names]:
        assert name in line


def test_a_mask_of_a_slice_in_space_is_compared_in_space(tmp_path: Path) -> None:
    direction = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # sagittal
    spatial = Grid((12, 10, 1), (1.5, 2.0, 5.0), (7.0, 8.0, 9.0), direction)
    grid = Grid.of_slice(spatial)
    mask = random_mask(spatial)
    paths = [tmp_path / f"{name}.nii.gz" for name in ("same", "reversed", "elsewhere")]
    elsewhere = header(mask, Origin=(37.0, 8.0, 9.0))  # another slice of the same stack
    for path, image in zip(paths, (mask, sitk.Flip(mask, (True, True, False)), elsewhere), strict=True):
        sitk.WriteImage(image, str(path))
    for path in paths[:2]:
        np.testing.assert_array_equal(load_mask(path, grid).numpy(), sitk.GetArrayFromImage(mask)[0] > 0)
    with pytest.raises(ImageError, match="origin"):
        load_mask(paths[2], grid)


def test_a_mask_keeps_its_place_where_its_image_is_seen_from_another_slice(tmp_path: Path) -> None:
    spatial = Grid((12, 10, 1), (1.5, 2.0, 5.0))
    c, s = math.cos(0.1), math.sin(0.1)
    other = Grid.of_slice(Grid((9, 9, 1), direction=(1, 0, 0, 0, -c, s, 0, -s, -c)))
    mask = random_mask(spatial)
    sitk.WriteImage(mask, str(tmp_path / "mask.mha"))
    seen = Grid.of_slice(spatial).seen_from(other)
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.mha", seen).numpy(), sitk.GetArrayFromImage(mask)[0] > 0)


def test_a_mask_that_misses_the_image_is_empty(tmp_path: Path) -> None:
    grid = Grid((8, 8))
    mask = np.zeros((8, 10), np.uint8)
    mask[:, 8:] = 1
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(tmp_path / "mask.mha"))
    with pytest.raises(ImageError, match="empty mask"):
        load_mask(tmp_path / "mask.mha", grid)


def test_what_a_mask_is_on_its_image_is_what_is_written(oblique_grid: Callable[..., Grid]) -> None:
    """The oracle's own check: a mask on the image's grid stays as it is."""
    grid = oblique_grid(3)
    mask = from_simpleitk(random_mask(grid))
    assert torch.equal(aligned_mask(mask.tensor[0] > 0, mask.grid, grid), mask.tensor[0] > 0)
    np.testing.assert_array_equal(by_simpleitk(to_simpleitk(mask), grid), (mask.tensor[0] > 0).numpy())
