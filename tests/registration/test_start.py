"""A start from a file: every linear transform takes every invertible map of ITK, or the closest one of its kind."""

from __future__ import annotations

import logging
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
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.registration import ClearFixed, Plan, register_images
from ppir_torch.registration.start import start_transform
from ppir_torch.transforms import Affine, LinearTransform, Rigid, affine_from_map, linear_transform, load_transform

# Class of ITK (the plain name, then the dimension) -> the smallest of our kinds that holds it.
KINDS = {
    "Identity 2-D": (sitk.Transform(2, sitk.sitkIdentity), "translation"),
    "Translation 2-D": (sitk.TranslationTransform(2, (3.0, -4.0)), "translation"),
    "Scale 2-D": (sitk.ScaleTransform(2, (1.1, 0.8)), "affine"),
    "Equal scales 2-D": (sitk.ScaleTransform(2, (0.9, 0.9)), "similarity"),
    "Euler 2-D": (sitk.Euler2DTransform((10.0, 20.0), 2.9, (1.0, 2.0)), "rigid"),
    "Half turn 2-D": (sitk.Euler2DTransform((10.0, 20.0), math.pi, (1.0, 2.0)), "rigid"),
    "Similarity 2-D": (sitk.Similarity2DTransform(1.2, 0.3, (1.0, 2.0), (10.0, 20.0)), "similarity"),
    "Affine 2-D": (sitk.AffineTransform([1.1, 0.2, -0.15, 0.9], (1.0, 2.0), (10.0, -20.0)), "affine"),
    "Identity 3-D": (sitk.Transform(3, sitk.sitkIdentity), "translation"),
    "Translation 3-D": (sitk.TranslationTransform(3, (3.0, -4.0, 50.0)), "translation"),
    "Scale 3-D": (sitk.ScaleTransform(3, (1.1, 0.8, 1.0)), "affine"),
    "Euler 3-D": (sitk.Euler3DTransform((10.0, 20.0, 5.0), 0.3, -0.2, 3.0, (1.0, 2.0, 3.0)), "rigid"),
    "Half turn 3-D": (sitk.VersorRigid3DTransform((0.0, 0.6, 0.8), math.pi, (1.0, 2.0, 3.0), (9.0, 0.0, 5.0)), "rigid"),
    "Versor 3-D": (sitk.VersorTransform((0.0, 0.6, 0.8), 0.5, (10.0, 0.0, 5.0)), "rigid"),
    "Versor rigid 3-D": (sitk.VersorRigid3DTransform((0.0, 0.6, 0.8), 2.5, (1.0, 2.0, 3.0), (9.0, 0.0, 5.0)), "rigid"),
    "Similarity 3-D": (
        sitk.Similarity3DTransform(0.9, (1.0, 0.0, 0.0), 0.4, (1.0, 2.0, 3.0), (10.0, 0.0, 5.0)),
        "similarity",
    ),
    "Scale versor 3-D": (sitk.ScaleVersor3DTransform((1.1, 0.9, 1.2), (0.0, 0.6, 0.8), 0.5, (1.0, 2.0, 3.0)), "affine"),
    "Scale skew versor 3-D": (
        sitk.ScaleSkewVersor3DTransform((1.1, 0.9, 1.2), (0.1, 0, 0, 0.05, 0, 0.02), (0.0, 0.6, 0.8), 0.5, (1, 2, 3)),
        "affine",
    ),
    "Affine 3-D": (
        sitk.AffineTransform(
            [1.1, 0.2, -0.1, -0.15, 0.9, 0.05, 0.02, -0.2, 1.05], (1.0, 2.0, 3.0), (10.0, -20.0, 30.0)
        ),
        "affine",
    ),
    "Composite 3-D": (
        sitk.CompositeTransform(
            [sitk.TranslationTransform(3, (9, -5, 3)), sitk.Euler3DTransform((0, 0, 0), 0, 0, 3.0, (1, 2, 3))]
        ),
        "rigid",
    ),
}
ORDER = ("translation", "rigid", "similarity", "affine")


def start_of(kind: str, grid: Grid, start: Affine) -> LinearTransform:
    image = Image(torch.rand(1, *grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    return start_transform(Plan(transform=kind, start=start), image, ClearFixed(image))


def corners(grid: Grid) -> list[list[float]]:
    matrix, origin = grid.index_to_physical()
    ends = [[0.0, n - 1.0] for n in grid.size]
    return (torch.cartesian_prod(*[torch.tensor(e, dtype=torch.float64) for e in ends]) @ matrix.T + origin).tolist()


def expected_map(kind: str, theirs: Any, grid: Grid) -> tuple[Any, Any]:
    """The closest map of a kind by SciPy's polar decomposition, through theirs' image of the grid's centre."""
    d = grid.dimension
    zero = np.array(theirs.TransformPoint([0.0] * d))
    matrix = np.stack([np.array(theirs.TransformPoint(row)) - zero for row in np.eye(d).tolist()], 1)
    turn, stretch = polar(matrix)
    near = {"translation": np.eye(d), "rigid": turn, "similarity": np.trace(stretch) / d * turn, "affine": matrix}[kind]
    centre = grid.centre.double().numpy()
    return near, np.array(theirs.TransformPoint(centre.tolist())) - near @ centre


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ending", ["tfm", "h5", "mat"])
def test_every_linear_transform_starts_from_every_linear_class_of_itk(
    name: str,
    ending: str,
    kind: str,
    oblique_grid: Callable[..., Grid],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs, smallest = KINDS[name]
    if name.startswith("Composite") and ending == "mat":
        pytest.skip("ITK writes no composite into .mat")
    grid = oblique_grid(theirs.GetDimension())
    sitk.WriteTransform(theirs, str(tmp_path / f"start.{ending}"))
    theirs = sitk.ReadTransform(str(tmp_path / f"start.{ending}"))  # of a half turn it has half of the digits
    with caplog.at_level(logging.WARNING, "ppir_torch"):
        found = start_of(kind, grid, load_transform(tmp_path / f"start.{ending}", grid))
    assert found.name == kind
    matrix, offset = expected_map(kind, theirs, grid)
    points = np.array(corners(grid))
    ours = found(torch.from_numpy(points)).detach().numpy()
    np.testing.assert_allclose(ours, points @ matrix.T + offset, rtol=0, atol=1e-6)
    exact = np.array([theirs.TransformPoint(p) for p in points.tolist()])
    if ORDER.index(kind) >= ORDER.index(smallest):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-6)
        assert caplog.messages == []
    else:
        apart = np.linalg.norm(ours - exact, axis=1).max()
        (line,) = caplog.messages
        assert f"not {kind}" in line
        assert f"up to {apart:.3g} mm" in line


@given(
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: math.hypot(*a) > 1e-2),
    angle=st.floats(0, math.pi) | st.floats(math.pi - 1e-6, math.pi) | st.floats(0, 1e-6),
)
def test_every_rotation_is_taken_as_scipy_has_it(axis: tuple[float, ...], angle: float) -> None:
    """Half turns too, where the skew part of the matrix is gone."""
    vector = np.array(axis) / math.hypot(*axis) * angle
    matrix = Rotation.from_rotvec(vector).as_matrix()
    grid = Grid((5, 6, 7), (1.0, 2.0, 3.0), (4.0, 5.0, -6.0))
    rigid = Rigid(grid)
    rigid.set_affine_map(torch.from_numpy(matrix), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(rigid.matrix().detach(), torch.from_numpy(matrix), rtol=0, atol=1e-9)
    found = (rigid.rotation.detach() / rigid.radius).numpy()
    wanted = Rotation.from_matrix(matrix).as_rotvec()
    if angle < math.pi - 1e-5:  # at a half turn both signs of the axis are right
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)
    assert np.linalg.norm(found) <= math.pi + 1e-9


def test_a_rotation_of_single_precision_is_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """As ANTs writes them: not a rotation to the last digits."""
    grid = Grid((32, 32, 32), (2.0, 2.0, 2.0), (-31.0, -31.0, -31.0))
    matrix = torch.from_numpy(Rotation.from_rotvec((0.3, -0.2, 3.0)).as_matrix()).float().double()
    start = affine_from_map(grid, matrix, torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64))
    found = start_of("rigid", grid, start)
    where = torch.tensor(corners(grid), dtype=torch.float64)
    torch.testing.assert_close(found(where).detach(), start(where).detach(), rtol=0, atol=1e-4)
    assert caplog.messages == []


BAD: dict[str, tuple[Any, str]] = {
    "nan": ([[math.nan, 0.0], [0.0, 1.0]], "NaN"),
    "infinite": ([[math.inf, 0.0], [0.0, 1.0]], "NaN or infinite"),
    "singular": ([[1.0, 1.0], [1.0, 1.0]], "singular"),
    "nearly singular": ([[1.0, 0.0], [0.0, 1e-9]], r"singular \(it stretches by 1e-09 to 1\)"),
    "zero": ([[0.0, 0.0], [0.0, 0.0]], "singular"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_start_that_no_transform_takes_is_refused(name: str, kind: str) -> None:
    rows, said = BAD[name]
    grid = Grid((8, 8))
    start = affine_from_map(grid, torch.tensor(rows, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ConfigError, match=f"start: .*{said}") as caught:
        start_of(kind, grid, start)
    assert "\n" not in str(caught.value)


def test_a_mirroring_start_goes_with_affine_only_and_is_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    grid = Grid((8, 8))
    mirror = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    start = affine_from_map(grid, mirror, torch.tensor([7.0, 0.0], dtype=torch.float64))
    if kind != "affine":
        with pytest.raises(ConfigError, match=r"start: .* mirrors"):
            start_of(kind, grid, start)
        return
    torch.testing.assert_close(start_of(kind, grid, start).matrix().detach(), mirror)
    assert "mirrors (determinant -1)" in caplog.text


@pytest.mark.parametrize("dimensions", [(2, 3), (3, 2)])
def test_a_start_of_another_dimension_is_refused(dimensions: tuple[int, int], kind: str) -> None:
    start, images = (Grid((8,) * d) for d in dimensions)
    with pytest.raises(ConfigError, match=f"start: {dimensions[0]}-D transform, the images are {dimensions[1]}-D"):
        start_of(kind, images, Affine(start))


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_a_run_from_a_file_finds_what_no_other_start_finds(
    kind: str, dimension: int, pair: Callable[..., Any], tmp_path: Path
) -> None:
    """Images that are turned by 170 degrees: from 167 on."""
    images = pair("rigid", dimension)
    grid = images.fixed.grid
    half = [0.0] * (1 if dimension == 2 else 3)
    half[-1] = math.radians(170)

    def turn(degrees: float) -> LinearTransform:
        result = linear_transform("rigid")(grid)
        parameter = next(p for name, p in result.named_parameters() if name == "rotation")
        with torch.no_grad():
            parameter.copy_(torch.tensor([*half[:-1], math.radians(degrees)], dtype=torch.float64) * result.radius)
        return result

    truth = turn(170)
    fixed = images.phantom.image(grid, before=truth)
    moving = images.phantom.image(grid)
    start = turn(167)
    sitk_start = sitk.Euler2DTransform() if dimension == 2 else sitk.Euler3DTransform()
    sitk_start.SetCenter(grid.centre.double().tolist())
    angle = math.radians(167)
    if dimension == 2:
        sitk_start.SetAngle(angle)
    else:
        sitk_start.SetRotation(0.0, 0.0, angle)
    sitk.WriteTransform(sitk_start, str(tmp_path / "start.tfm"))
    loaded = load_transform(tmp_path / "start.tfm", grid)
    points = grid.points(dtype=torch.float64)
    torch.testing.assert_close(loaded(points).detach(), start(points).detach(), rtol=0, atol=1e-6)
    plan = Plan(transform=kind, start=loaded, levels=(Level(2, 2.0), Level(1, 0.0)))
    result = register_images(moving, ClearFixed(fixed), plan)
    with torch.no_grad():
        apart = (result.transform(points) - truth(points)).norm(dim=1)
    assert float(apart.max()) < 0.1
