"""Overlap, surface distance, landmarks and folding against SimpleITK, SciPy and cases by hand."""

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
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from ppir_torch.errors import ConfigError, ImageError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, load_image, to_simpleitk
from ppir_torch.metrics.overlap import dice, hausdorff_mm
from ppir_torch.metrics.registration import folding_share, jacobian_determinant, target_registration_error
from ppir_torch.transforms import LinearTransform, Translation, linear_transform, to_simpleitk_transform
from ppir_torch.warping import warp

INTEGERS = (torch.uint8, torch.int16, torch.uint16, torch.int64)


def blobs(grid: Grid, seed: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Labels 0, 1, 2, 5 in balls about random centres."""
    generator = torch.Generator().manual_seed(seed)
    points = grid.points(dtype=torch.float64)
    extent = points.max(0).values - points.min(0).values
    labels = torch.zeros(grid.count, dtype=torch.int64)
    for label in (1, 2, 5):
        centre = grid.centre + (torch.rand(grid.dimension, generator=generator, dtype=torch.float64) - 0.5) * extent / 3
        labels[(points - centre).norm(dim=1) < 0.22 * float(extent.min())] = label
    return labels.reshape(grid.shape).to(dtype)


def as_itk(labels: Tensor, grid: Grid) -> Any:
    image = sitk.GetImageFromArray(labels.long().numpy().astype("uint16"))
    image.SetSpacing(grid.spacing)
    return image


@pytest.mark.parametrize("integer", INTEGERS, ids=str)
def test_dice_is_simpleitks(dimension: int, oblique_grid: Callable[..., Grid], integer: torch.dtype) -> None:
    grid = oblique_grid(dimension)
    first, second = blobs(grid, 1, integer), blobs(grid, 2, integer)
    oracle = sitk.LabelOverlapMeasuresImageFilter()
    oracle.Execute(as_itk(first, grid), as_itk(second, grid))
    found = dice(first, second)
    assert list(found) == [1, 2, 5]
    for label, value in found.items():
        assert value == pytest.approx(oracle.GetDiceCoefficient(label), abs=1e-6)
    assert any(0.1 < value < 0.9 for value in found.values())


def border(mask: Tensor, grid: Grid) -> np.ndarray:
    inside = mask.numpy()
    edge = torch.from_numpy(inside & ~binary_erosion(inside))
    return grid.points(torch.nonzero(edge.flatten()).flatten(), dtype=torch.float64).numpy()


@pytest.mark.parametrize("percentile", [100, 95, 50])
def test_hausdorff_is_that_of_the_borders_physical_points(
    dimension: int, percentile: float, oblique_grid: Callable[..., Grid]
) -> None:
    grid = oblique_grid(dimension)
    first, second = blobs(grid, 1), blobs(grid, 2)
    for label, value in hausdorff_mm(first, second, grid, percentile).items():
        between = cdist(border(first == label, grid), border(second == label, grid))
        expected = max(np.percentile(between.min(axis, initial=np.inf), percentile) for axis in (0, 1))
        assert value == pytest.approx(expected, rel=1e-5)


def test_hausdorff_is_simpleitks_for_boxes(dimension: int) -> None:
    grid = Grid((20, 16, 12)[:dimension], (1.0, 2.5, 4.0)[:dimension])
    first, second = (torch.zeros(grid.shape, dtype=torch.int64) for _ in range(2))
    first[..., 3:8, 4:12] = 1
    second[..., 5:9, 7:16] = 1
    oracle = sitk.HausdorffDistanceImageFilter()
    oracle.Execute(as_itk(first, grid), as_itk(second, grid))
    assert hausdorff_mm(first, second, grid, 100)[1] == pytest.approx(oracle.GetHausdorffDistance(), rel=1e-5)


def test_hausdorff_knows_which_axis_is_which(dimension: int) -> None:
    grid = Grid((7, 7, 7)[:dimension], (1.0, 2.5, 4.0)[:dimension])
    for axis, spacing in enumerate(grid.spacing):
        first = torch.zeros(grid.shape, dtype=torch.int64)
        first[(3,) * dimension] = 1
        second = first.roll(2, dims=dimension - 1 - axis)
        assert hausdorff_mm(first, second, grid) == {1: pytest.approx(2 * spacing)}


def test_labels_that_are_missing() -> None:
    grid = Grid((4, 4))
    first, second = torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64)
    first[0, 0], first[1, 1], second[1, 1] = 3, 7, 7
    assert dice(first, second) == {3: 0.0, 7: 1.0}
    assert hausdorff_mm(first, second, grid) == {3: math.inf, 7: 0.0}
    assert hausdorff_mm(second, first, grid) == {3: math.inf, 7: 0.0}
    assert dice(first, second, [7]) == {7: 1.0}
    assert math.isnan(dice(first, second, [4])[4])
    assert math.isnan(hausdorff_mm(first, second, grid, labels=[4])[4])
    assert math.isnan(dice(first.byte(), second.byte(), [256 + 7])[256 + 7])  # no label of a byte wraps round
    assert dice(first, second, [0]) == {0: pytest.approx(28 / 29)}
    assert dice(first > 0, second > 0) == {1: pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(4, 4), torch.zeros(4, 4)),
        (torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4)),
        (torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 5, dtype=torch.int64)),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), torch.zeros(1, 1, 4, 4, dtype=torch.int64)),
    ],
    ids=["floating", "one floating", "shapes", "axes"],
)
def test_what_is_no_pair_of_label_maps_is_refused(first: Tensor, second: Tensor) -> None:
    for call in (lambda: dice(first, second), lambda: hausdorff_mm(first, second, Grid((4, 4)))):
        with pytest.raises(ImageError, match="label map") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_hausdorff_refuses_another_grid_and_percentile() -> None:
    labels = torch.ones(4, 5, dtype=torch.int64)
    with pytest.raises(ImageError, match=r"the grid has \(5, 4\)"):
        hausdorff_mm(labels, labels, Grid((4, 5)))
    with pytest.raises(ConfigError, match="percentile: 101"):
        hausdorff_mm(labels, labels, Grid((5, 4)), 101)


@settings(max_examples=20)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), axis=st.sampled_from([0, 1]))
def test_overlap_and_distance_are_symmetric_and_turn_with_the_maps(seeds: tuple[int, int], axis: int) -> None:
    grid = Grid((14, 12), (1.0, 1.5))
    first, second = (blobs(grid, seed) for seed in seeds)
    overlap, distance = dice(first, second), hausdorff_mm(first, second, grid)
    assert overlap == dice(second, first) == dice(first.flip(axis), second.flip(axis))
    assert distance == pytest.approx(hausdorff_mm(second, first, grid))
    assert distance == pytest.approx(hausdorff_mm(first.flip(axis), second.flip(axis), grid))
    assert all(0 <= value <= 1 for value in overlap.values())
    assert dice(first, first) == dict.fromkeys(dice(first, first), 1.0)
    assert (first == second).all() == all(v == 1 for v in overlap.values())


def test_nearest_warp_of_labels_is_simpleitks_and_makes_none(
    kind: str, dimension: int, oblique_grid: Callable[..., Grid], random_transform: Callable[..., LinearTransform]
) -> None:
    grid = oblique_grid(dimension)
    labels = Image(blobs(grid, 3)[None].double(), grid)
    transform = random_transform(kind, grid, 2.0)
    expected = sitk.Resample(
        to_simpleitk(labels), to_simpleitk(labels), to_simpleitk_transform(transform), sitk.sitkNearestNeighbor, 0.0
    )
    warped = warp(labels, transform, grid, mode="nearest").tensor[0]
    assert set(warped.unique().tolist()) <= {0.0, 1.0, 2.0, 5.0}
    differ = (warped.numpy() != sitk.GetArrayFromImage(expected)).mean()
    assert differ < 1e-4  # ties
    assert (warped != labels.tensor[0]).double().mean() > 0.01


def test_landmarks_by_hand(dimension: int, dtype: torch.dtype) -> None:
    transform = Translation(Grid((4,) * dimension))
    transform.translation.data[0] = 3.0
    fixed = torch.zeros(5, dimension, dtype=dtype)
    moving = fixed.clone()
    moving[1:, 0], moving[2:, 1] = 3.0, 4.0
    error = target_registration_error(transform, fixed, moving)
    assert (error.dtype, error.requires_grad) == (dtype, False)
    assert error.tolist() == [3.0, 0.0, 4.0, 4.0, 4.0]


def test_landmarks_go_from_fixed_to_moving(
    kind: str, dimension: int, oblique_grid: Callable[..., Grid], random_transform: Callable[..., LinearTransform]
) -> None:
    grid = oblique_grid(dimension)
    transform = random_transform(kind, grid)
    itk = to_simpleitk_transform(transform)
    fixed = grid.points(dtype=torch.float64)[::211]
    moving = torch.tensor([itk.TransformPoint(p) for p in fixed.tolist()], dtype=torch.float64)
    assert float(target_registration_error(transform, fixed, moving).max()) < 1e-9
    assert float(target_registration_error(transform, moving, fixed).min()) > 0.1


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((2,), (2,)), ((3, 2), (3, 3))])
def test_landmarks_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError, match="landmarks"):
        target_registration_error(Translation(Grid((4, 4))), torch.zeros(shapes[0]), torch.zeros(shapes[1]))


class Waves(nn.Module):
    """y_i = x_i + amplitude sin(x . wave_i), each with its own wave: its Jacobian is known."""

    def __init__(self, dimension: int, amplitude: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.amplitude = nn.Parameter(torch.tensor(amplitude, dtype=dtype))
        self.waves = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64) * 0.1

    def forward(self, points: Tensor) -> Tensor:
        return points + self.amplitude.to(points) * torch.sin(points @ self.waves.T.to(points))

    def determinant(self, points: Tensor) -> Tensor:
        slopes = torch.cos(points @ self.waves.T)[:, :, None] * self.waves
        jacobian = torch.eye(points.shape[1], dtype=points.dtype) + self.amplitude.detach() * slopes
        return torch.linalg.det(jacobian)


def inner(values: Tensor, grid: Grid) -> Tensor:
    return values.reshape(grid.shape)[(slice(1, -1),) * grid.dimension].flatten()


@pytest.mark.parametrize("kind", ["affine", "similarity"])
def test_determinant_of_a_linear_map_is_exact_to_the_border(
    kind: str, dimension: int, dtype: torch.dtype, oblique_grid: Callable[..., Grid]
) -> None:
    grid = oblique_grid(dimension)
    transform = linear_transform(kind)(grid, dtype)
    generator = torch.Generator().manual_seed(6)
    for parameter in transform.parameters():
        parameter.data = 5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    expected = torch.linalg.det(transform.matrix().detach().double())
    assert abs(float(expected) - 1) > 0.05
    found = jacobian_determinant(transform, grid)
    assert (found.dtype, found.shape, found.requires_grad) == (torch.float64, (grid.count,), False)
    torch.testing.assert_close(found, expected.expand(grid.count), rtol=1e-10, atol=0)
    points = grid.points(dtype=dtype)[::101]
    at_points = jacobian_determinant(transform, grid, points)
    assert at_points.dtype == dtype
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(at_points.double(), expected.expand(len(points)), rtol=tolerance, atol=0)


def test_determinant_of_a_bent_map_converges_with_the_square_of_the_voxel(
    dimension: int, oblique_grid: Callable[..., Grid]
) -> None:
    grid = oblique_grid(dimension)
    transform = Waves(dimension, 3.0)
    errors = []
    for share in (1, 2):
        size, spacing = tuple(share * (n - 1) + 1 for n in grid.size), tuple(s / share for s in grid.spacing)
        finer = Grid(size, spacing, grid.origin, grid.direction)
        found = jacobian_determinant(transform, finer).reshape(finer.shape)[(slice(None, None, share),) * dimension]
        exact = transform.determinant(grid.points(dtype=torch.float64))
        errors.append(float((inner(found.flatten(), grid) - inner(exact, grid)).square().mean().sqrt()))
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.8)


def test_determinant_at_given_points_is_that_of_the_voxels_inside(
    dimension: int, oblique_grid: Callable[..., Grid]
) -> None:
    grid = oblique_grid(dimension)
    transform = Waves(dimension, 3.0)
    everywhere, given_points = (
        jacobian_determinant(transform, grid),
        jacobian_determinant(transform, grid, grid.points(dtype=torch.float64)),
    )
    torch.testing.assert_close(inner(everywhere, grid), inner(given_points, grid), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(everywhere, given_points, atol=1e-4)  # one-sided at the borders


def test_determinant_is_simpleitks(dimension: int) -> None:
    grid = Grid((18, 16, 14)[:dimension], (1.5, 2.0, 2.5)[:dimension], (-10.0, 5.0, 20.0)[:dimension])
    transform = Waves(dimension, 3.0)
    points = grid.points(dtype=torch.float64)
    with torch.no_grad():
        displacement = (transform(points) - points).reshape(*grid.shape, dimension)
    field = sitk.GetImageFromArray(displacement.numpy(), isVector=True)
    field.SetSpacing(grid.spacing)
    expected = torch.from_numpy(sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))).double()
    found = jacobian_determinant(transform, grid)
    torch.testing.assert_close(inner(found, grid), inner(expected.flatten(), grid), rtol=0, atol=1e-12)


def test_folding_is_seen_and_counted(dimension: int, oblique_grid: Callable[..., Grid]) -> None:
    grid = oblique_grid(dimension)
    exact = Waves(dimension, 12.0).determinant(grid.points(dtype=torch.float64))
    expected = float((exact <= 0).double().mean())
    assert 0.02 < expected < 0.98
    assert folding_share(jacobian_determinant(Waves(dimension, 12.0), grid)) == pytest.approx(expected, abs=0.01)
    assert folding_share(jacobian_determinant(Waves(dimension, 0.1), grid)) == 0.0
    assert folding_share(torch.tensor([0.0, -1.0, math.nan, 2.0])) == 0.75


def test_determinant_refuses_flat_grids_and_other_points() -> None:
    grid = Grid((4, 1))
    with pytest.raises(ImageError, match="two voxels"):
        jacobian_determinant(Translation(grid), grid)
    assert jacobian_determinant(Translation(grid), grid, torch.zeros(1, 2)).tolist() == [1.0]
    with pytest.raises(ImageError, match=r"\(points, 2\)"):
        jacobian_determinant(Translation(grid), grid, torch.zeros(1, 3))


def test_real_labels_as_simpleitk_compares_them(shared_data: Path) -> None:
    folder = shared_data / "03_brain2d_oasis_trt_labels"
    maps = [load_image(folder / f"sub0{number}_labels.png") for number in (1, 2)]
    first, second = (image.tensor[0].long() for image in maps)
    rows, columns = (min(sizes) for sizes in zip(first.shape, second.shape, strict=True))
    first, second = first[:rows, :columns], second[:rows, :columns]
    grid = Grid((columns, rows))
    oracle = sitk.LabelOverlapMeasuresImageFilter()
    oracle.Execute(as_itk(first, grid), as_itk(second, grid))
    found = dice(first, second)
    assert len(found) > 40
    for label, value in found.items():
        assert value == pytest.approx(oracle.GetDiceCoefficient(label), abs=1e-6)
    both = [label for label in found if found[label] > 0.5]
    assert len(both) > 3
    assert all(0 < mm < 40 for mm in hausdorff_mm(first, second, grid, labels=both).values())
