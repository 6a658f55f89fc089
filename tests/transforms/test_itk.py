"""Transform files: what SimpleITK reads from ours, and what we read from SimpleITK's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.transforms import LinearTransform, Translation, load_transform, save_transform


def assert_same_map(ours: LinearTransform, theirs: Any, grid: Grid) -> None:
    points = grid.points(dtype=torch.float64)[:: max(1, grid.count // 50)]
    expected = torch.tensor([theirs.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(points), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ending", ["tfm", "txt", "mat", "h5"])
def test_simpleitk_reads_what_we_write(
    ending: str,
    kind: str,
    dimension: int,
    oblique_grid: Callable[..., Grid],
    random_transform: Callable[..., LinearTransform],
    tmp_path: Path,
) -> None:
    grid = oblique_grid(dimension)
    transform = random_transform(kind, grid)
    path = tmp_path / f"transform.{ending}"
    save_transform(transform, path)
    assert_same_map(transform, sitk.ReadTransform(str(path)), grid)
    again = load_transform(path, grid)
    points = grid.points(dtype=torch.float64)
    torch.testing.assert_close(again(points), transform(points), rtol=0, atol=1e-9)


def composite(first: Any, second: Any) -> Any:
    result = sitk.CompositeTransform(first.GetDimension())
    result.AddTransform(first)
    result.AddTransform(second)
    return result


def shifted(transform: Any, *translation: float) -> Any:
    transform.SetTranslation(translation)
    return transform


def affine(dimension: int) -> Any:
    transform = sitk.AffineTransform(dimension)
    rows = [[1.1, 0.2, -0.1], [-0.15, 0.9, 0.05], [0.02, -0.2, 1.05]]
    transform.SetMatrix([v for row in rows[:dimension] for v in row[:dimension]])
    transform.SetCenter([10.0, -20.0, 30.0][:dimension])
    return shifted(transform, *[1.0, 2.0, 3.0][:dimension])


LINEAR = {
    "Identity 2-D": sitk.Transform(2, sitk.sitkIdentity),
    "Translation 2-D": sitk.TranslationTransform(2, (3.0, -4.0)),
    "Euler 2-D": sitk.Euler2DTransform((10.0, 20.0), 0.3, (1.0, 2.0)),
    "Similarity 2-D": sitk.Similarity2DTransform(1.2, 0.3, (1.0, 2.0), (10.0, 20.0)),
    "Affine 2-D": affine(2),
    "Composite 2-D": composite(affine(2), sitk.Euler2DTransform((10.0, 20.0), 0.3, (1.0, 2.0))),
    "Identity 3-D": sitk.Transform(3, sitk.sitkIdentity),
    "Euler 3-D": sitk.Euler3DTransform((10.0, 20.0, 5.0), 0.3, -0.2, 0.1, (1.0, 2.0, 3.0)),
    "Versor 3-D": sitk.VersorRigid3DTransform((0.0, 0.6, 0.8), 0.5, (1.0, 2.0, 3.0), (10.0, 0.0, 5.0)),
    "Similarity 3-D": sitk.Similarity3DTransform(0.9, (1.0, 0.0, 0.0), 0.4, (1.0, 2.0, 3.0), (10.0, 0.0, 5.0)),
    "Affine 3-D": affine(3),
    "Composite 3-D": composite(affine(3), sitk.Euler3DTransform((1.0, 2.0, 5.0), 0.3, -0.2, 0.1, (1.0, 2.0, 3.0))),
}


@pytest.mark.parametrize("theirs", LINEAR.values(), ids=LINEAR)
def test_we_read_every_linear_transform_of_simpleitk(
    theirs: Any, oblique_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    grid = oblique_grid(theirs.GetDimension())
    sitk.WriteTransform(theirs, str(tmp_path / "theirs.tfm"))
    assert_same_map(load_transform(tmp_path / "theirs.tfm", grid), theirs, grid)


def refused(path: Path, grid: Grid, *names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_transform(path, grid)
    assert "\n" not in str(caught.value)
    for name in (path.name, *names):
        assert name in str(caught.value)


def test_a_transform_of_another_dimension_is_refused(tmp_path: Path) -> None:
    save_transform(Translation(Grid((4, 4))), tmp_path / "flat.tfm")
    refused(tmp_path / "flat.tfm", Grid((4, 4, 4)), "2-D", "a linear 3-D transform is needed")


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_transform_that_is_not_linear_is_refused(dimension: int, tmp_path: Path) -> None:
    bspline = sitk.BSplineTransform(dimension)
    bspline.SetTransformDomainMeshSize([2] * dimension)
    sitk.WriteTransform(composite(affine(dimension), bspline), str(tmp_path / "curved.tfm"))
    refused(tmp_path / "curved.tfm", Grid((4,) * dimension), "linear")


def test_a_missing_transform_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing.tfm", Grid((4, 4)), "no such transform file")


@pytest.mark.parametrize("name", ["text.tfm", "text.h5", "text.mat", "text.xyz"])
def test_a_file_that_is_no_transform_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("no transform\n")
    refused(tmp_path / name, Grid((4, 4)), "cannot be read as an ITK transform")


def test_an_ending_that_itk_does_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"transform\.xyz: cannot be written"):
        save_transform(Translation(Grid((4, 4))), tmp_path / "transform.xyz")
    assert list(tmp_path.iterdir()) == []
