"""Transform files: what SimpleITK reads from ours, and what we read from SimpleITK's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, to_simpleitk
from ppir_torch.transforms import (
    Affine,
    BSpline,
    Composite,
    ControlLattice,
    Displacement,
    LinearTransform,
    Translation,
    VelocityField,
    load_any_transform,
    load_displacement,
    load_transform,
    save_displacement,
    save_transform,
    to_simpleitk_transform,
)


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


def points_about(grid: Grid, low: float = -0.2, high: float = 1.2, count: int = 100) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    fractions = low + (high - low) * torch.rand(count, grid.dimension, generator=generator, dtype=torch.float64)
    matrix, origin = grid.index_to_physical()
    return (fractions * (torch.tensor(grid.size) - 1)) @ matrix.T + origin


def curved(kind: str, grid: Grid) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    lattice = ControlLattice(grid, 12.0)
    transforms: dict[str, Callable[[], nn.Module]] = {
        "bspline": lambda: BSpline(lattice),
        "velocity": lambda: VelocityField(lattice),
        "displacement": lambda: Displacement(grid),
        "composite": lambda: Composite([BSpline(lattice), Affine(grid), Composite([BSpline(lattice)])]),
        "dense composite": lambda: Composite([Displacement(grid), Affine(grid), BSpline(lattice)]),
    }
    transform = transforms[kind]()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.normal_(0, 1.5, generator=generator)
    return transform


WRITABLE = [
    *[("bspline", e) for e in ("tfm", "txt", "mat", "h5")],
    *[("composite", e) for e in ("tfm", "txt", "h5")],
    *[(kind, "h5") for kind in ("velocity", "displacement", "dense composite")],
]


@pytest.mark.parametrize(("kind", "ending"), WRITABLE)
def test_simpleitk_and_we_read_the_curved_transforms_that_we_write(
    kind: str, ending: str, dimension: int, oblique_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    grid = oblique_grid(dimension)
    transform = curved(kind, grid)
    path = tmp_path / f"transform.{ending}"
    save_transform(transform, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    theirs = sitk.ReadTransform(str(path))
    points = points_about(grid)
    expected = torch.tensor([theirs.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)
    with torch.no_grad():
        assert float((transform(points) - points).abs().max()) > 0.5
        torch.testing.assert_close(transform(points), expected, rtol=0, atol=1e-9)
        again = load_any_transform(path, grid)
        torch.testing.assert_close(again(points), expected, rtol=0, atol=1e-9)
    if kind == "bspline":
        assert isinstance(again, BSpline)
        assert again.lattice.grid == grid
        torch.testing.assert_close(again.coefficients, transform.get_parameter("coefficients"), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "ending", "hint"),
    [
        ("displacement", "tfm", r"\.h5 is needed for a dense field \(save_displacement writes \.nii\.gz"),
        ("velocity", "mat", r"\.h5 is needed for a dense field"),
        ("dense composite", "txt", r"\.h5 is needed for a dense field"),
        ("displacement", "nii.gz", "save_displacement"),
        ("composite", "mat", r"\.tfm or \.txt or \.h5 is needed for a composite"),
        ("bspline", "nii.gz", "cannot be written"),
    ],
)
def test_an_ending_that_cannot_hold_the_transform_is_refused(kind: str, ending: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=hint):
        save_transform(curved(kind, Grid((8, 8), (4.0, 4.0))), tmp_path / f"transform.{ending}")
    assert list(tmp_path.iterdir()) == []


def test_a_bspline_from_simpleitks_initialiser_is_read_exactly(dimension: int, tmp_path: Path) -> None:
    grid = Grid((20, 18, 16)[:dimension], (1.5, 2.0, 3.0)[:dimension], (10.0, -20.0, 30.0)[:dimension])
    fixed = to_simpleitk(Image(torch.zeros(1, *grid.shape), grid))
    theirs = sitk.BSplineTransformInitializer(fixed, [3, 2, 4][:dimension])
    generator = torch.Generator().manual_seed(1)
    count = len(theirs.GetParameters())
    theirs.SetParameters(torch.randn(count, generator=generator).tolist())
    sitk.WriteTransform(composite(affine(dimension), theirs), str(tmp_path / "theirs.tfm"))
    ours = load_any_transform(tmp_path / "theirs.tfm", grid)
    assert isinstance(ours, Composite)
    bspline, linear = ours.parts
    assert isinstance(bspline, BSpline)
    assert isinstance(linear, Affine)
    assert max(bspline.lattice.grid.spacing) <= min(grid.spacing) * (1 + 1e-9)
    points = points_about(grid)
    read = sitk.ReadTransform(str(tmp_path / "theirs.tfm"))
    expected = torch.tensor([read.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)
    torch.testing.assert_close(ours(points).detach(), expected, rtol=0, atol=1e-9)


def test_linear_files_are_still_read_as_affine(tmp_path: Path) -> None:
    sitk.WriteTransform(LINEAR["Composite 3-D"], str(tmp_path / "theirs.tfm"))
    assert isinstance(load_any_transform(tmp_path / "theirs.tfm", Grid((4, 4, 4))), Affine)


def test_what_cannot_be_read_as_any_transform_is_refused(tmp_path: Path) -> None:
    order_1 = sitk.BSplineTransform(2, 1)
    order_1.SetTransformDomainMeshSize([2, 2])
    sitk.WriteTransform(order_1, str(tmp_path / "order.tfm"))
    with pytest.raises(ConfigError, match=r"order\.tfm: .*cubic"):
        load_any_transform(tmp_path / "order.tfm", Grid((4, 4)))
    with pytest.raises(ConfigError, match="the image is 3-D"):
        load_any_transform(tmp_path / "order.tfm", Grid((4, 4, 4)))
    with pytest.raises(ConfigError, match="no such transform file"):
        load_any_transform(tmp_path / "missing.tfm", Grid((4, 4)))
    with pytest.raises(ConfigError, match="Identity has no form"):
        to_simpleitk_transform(nn.Identity())


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
@pytest.mark.parametrize("kind", ["bspline", "velocity", "dense composite"])
def test_displacement_images_are_read_by_simpleitk_and_by_us(
    kind: str, ending: str, dimension: int, oblique_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    grid = oblique_grid(dimension)
    transform = curved(kind, grid)
    path = tmp_path / f"warp.{ending}"
    save_displacement(transform, grid, path)
    image = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    assert (image.GetSize(), image.GetNumberOfComponentsPerPixel()) == (grid.size, dimension)
    theirs = sitk.DisplacementFieldTransform(image)
    # Voxels off the border, where NIfTI's float32 geometry decides what is inside.
    keep = torch.zeros(grid.shape, dtype=torch.bool)
    keep[(slice(1, -1),) * dimension] = True
    points = grid.points(keep.flatten().nonzero()[::97, 0], dtype=torch.float64)
    expected = torch.tensor([theirs.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(transform(points), expected, rtol=0, atol=1e-3 if "nii" in ending else 1e-5)
        ours = load_displacement(path)
        torch.testing.assert_close(ours(points), expected, rtol=0, atol=1e-9)


def test_displacement_images_that_are_refused(tmp_path: Path) -> None:
    grid = Grid((6, 5))
    with pytest.raises(ConfigError, match=r"warp\.h5: cannot be written; .* \.nii\.gz"):
        save_displacement(nn.Identity(), grid, tmp_path / "warp.h5")
    with pytest.raises(ConfigError, match="no such displacement image"):
        load_displacement(tmp_path / "warp.nrrd")
    (tmp_path / "text.nrrd").write_text("no image\n")
    with pytest.raises(ConfigError, match="cannot be read as a displacement image"):
        load_displacement(tmp_path / "text.nrrd")
    sitk.WriteImage(to_simpleitk(Image(torch.zeros(1, 5, 6), grid)), str(tmp_path / "scalar.nrrd"))
    with pytest.raises(ConfigError, match="2-D image of 1 components"):
        load_displacement(tmp_path / "scalar.nrrd")


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
def test_a_truncated_displacement_image_is_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"warp.{ending}"
    save_displacement(curved("displacement", Grid((20, 20))), Grid((20, 20)), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ConfigError, match=rf"warp\.{ending}: (truncated|cannot be read)"):
        load_displacement(path)
