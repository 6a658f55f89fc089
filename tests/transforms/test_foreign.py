"""Transform files of other programs and of older ITK: read right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.io import savemat

from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.transforms import load_any_transform, load_transform

GRID = Grid((8, 9, 10), (1.0, 2.0, 3.0), (-3.0, 4.0, 5.0))
MATRIX = np.array([[0.9, 0.2, -0.1], [-0.15, 1.1, 0.05], [0.02, -0.2, 1.05]])
OFFSET, CENTRE = np.array([3.0, -2.0, 1.0]), np.array([7.0, -3.0, 2.0])
TRANSLATION = MATRIX @ CENTRE + OFFSET - CENTRE
PARAMETERS = " ".join(f"{v:.17g}" for v in [*MATRIX.ravel(), *TRANSLATION])
TEXT = "#Insight Transform File V1.0\n"


def one(name: str, number: int = 0, parameters: str = PARAMETERS, centre: str = "7 -3 2") -> str:
    return f"#Transform {number}\nTransform: {name}\nParameters: {parameters}\nFixedParameters: {centre}\n"


def assert_is_the_map(path: Path, tolerance: float = 1e-9) -> None:
    matrix, offset = (part.detach().numpy() for part in load_transform(path, GRID).affine_map())
    np.testing.assert_allclose(matrix, MATRIX, rtol=0, atol=tolerance)
    np.testing.assert_allclose(offset, OFFSET, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize(
    "name", ["AffineTransform_double_3_3", "AffineTransform_float_3_3", "MatrixOffsetTransformBase_double_3_3"]
)
@pytest.mark.parametrize("ending", ["tfm", "txt"])
def test_texts_of_itk_ants_and_c3d(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text(TEXT + one(name))
    assert_is_the_map(path, 1e-6 if "float" in name else 1e-9)


@pytest.mark.parametrize("precision", ["float", "double"])
def test_ants_generic_affine(precision: str, tmp_path: Path) -> None:
    kind = np.float32 if precision == "float" else np.float64
    numbers = np.concatenate([MATRIX.ravel(), TRANSLATION])[:, None].astype(kind)
    held = {f"AffineTransform_{precision}_3_3": numbers, "fixed": CENTRE[:, None].astype(kind)}
    savemat(tmp_path / "0GenericAffine.mat", held, format="4")
    assert_is_the_map(tmp_path / "0GenericAffine.mat", 1e-6 if precision == "float" else 1e-9)


FOREIGN = {
    "TransformParameters.0.txt": ('(Transform "EulerTransform")\n(NumberOfParameters 6)\n', "elastix"),
    "commented.txt": ('// elastix\n\n(Transform "EulerTransform")\n', "elastix"),
    "flirt.mat": ("1 0 0 5\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "bare matrix"),
    "greedy.txt": ("1.0 0 0 5\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "bare matrix"),
    "afni.txt": ("# 3dvolreg matrices\n1 0 0 5 0 1 0 0 0 0 1 0\n", "AFNI"),
    "a.aff12.1D": ("1 0 0 5 0 1 0 0 0 0 1 0\n", "bare matrix"),
    "reg.lta": ("type      = 1\nnxforms   = 1\n", "FreeSurfer"),
    "minc.xfm": ("MNI Transform File\nTransform_Type = Linear;\nLinear_Transform =\n 1 0 0 5;\n", "MNI"),
    "warp.nii.gz": ("", "image"),
    "warp.mha": ("", "image"),
    "junk.tfm": ("no transform\n", "cannot be read as an ITK transform"),
    "empty.h5": ("", "cannot be read as an ITK transform"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("load", [load_transform, load_any_transform])
def test_files_of_other_programs_are_named(name: str, load: Callable[..., object], tmp_path: Path) -> None:
    content, said = FOREIGN[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path / name, GRID)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read as an ITK transform")


def test_an_xfm_is_refused_though_itk_reads_it(tmp_path: Path) -> None:
    """MINC's coordinates are RAS and its direction the other: read as it stands it would be wrong in silence."""
    path = tmp_path / "minc.xfm"
    rows = "\n".join(" ".join(f"{v:g}" for v in [*row, t]) for row, t in zip(MATRIX, OFFSET, strict=True))
    path.write_text(f"MNI Transform File\n\nTransform_Type = Linear;\nLinear_Transform =\n{rows};\n")
    with pytest.raises(ConfigError, match=r"minc\.xfm: .*MNI \.xfm"):
        load_transform(path, GRID)


@pytest.mark.parametrize("load", [load_transform, load_any_transform])
def test_several_transforms_side_by_side_are_refused(load: Callable[..., object], tmp_path: Path) -> None:
    """ITK would take the first and forget the others."""
    (tmp_path / "two.txt").write_text(
        TEXT + one("AffineTransform_double_3_3") + one("AffineTransform_double_3_3", number=1)
    )
    with pytest.raises(ConfigError, match=r"two\.txt: 2 transforms side by side"):
        load(tmp_path / "two.txt", GRID)
    numbers = np.concatenate([MATRIX.ravel(), TRANSLATION])[:, None]
    with (tmp_path / "two.mat").open("wb") as stream:
        for _ in range(2):
            savemat(stream, {"AffineTransform_double_3_3": numbers, "fixed": CENTRE[:, None]}, format="4")
    with pytest.raises(ConfigError, match=r"two\.mat: 2 transforms side by side"):
        load(tmp_path / "two.mat", GRID)


@pytest.mark.parametrize("ending", ["tfm", "txt", "h5"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_composite_is_one_transform(ending: str, nested: bool, tmp_path: Path) -> None:
    first, second = sitk.AffineTransform(3), sitk.TranslationTransform(3, (1.0, 2.0, 3.0))
    first.SetMatrix(MATRIX.ravel().tolist())
    both = sitk.CompositeTransform([first, second])
    if nested:
        both = sitk.CompositeTransform([both, second])
        both.FlattenTransform()
    path = tmp_path / f"both.{ending}"
    sitk.WriteTransform(both, str(path))
    points = GRID.points(dtype=torch.float64)[::50]
    expected = torch.tensor([both.TransformPoint(p.tolist()) for p in points], dtype=torch.float64)
    torch.testing.assert_close(load_transform(path, GRID)(points).detach(), expected, rtol=0, atol=1e-9)


BROKEN = {
    "nan in the matrix": one("AffineTransform_double_3_3", parameters="nan" + PARAMETERS[PARAMETERS.index(" ") :]),
    "infinite translation": one("AffineTransform_double_3_3", parameters=PARAMETERS.rsplit(" ", 1)[0] + " 1e999"),
    "nan in the centre": one("AffineTransform_double_3_3", centre="nan 0 0"),
    "too few numbers": one("AffineTransform_double_3_3", parameters="1 0 0 0 1 0 0 0 1"),
    "no class of itk": one("WarpTransform_double_3_3"),
    "no parameters": "#Transform 0\nTransform: AffineTransform_double_3_3\n",
    "no centre": one("AffineTransform_double_3_3").replace("FixedParameters: 7 -3 2\n", ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_texts_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.tfm").write_text(TEXT + BROKEN[name])
    with pytest.raises(ConfigError, match=r"a\.tfm: ") as caught:
        load_transform(tmp_path / "a.tfm", GRID)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["tfm", "h5", "mat"])
def test_the_class_that_simpleitk_writes_and_does_not_read_is_one_line(ending: str, tmp_path: Path) -> None:
    theirs = sitk.ComposeScaleSkewVersor3DTransform((1.1, 0.9, 1.2), (0.1, 0.05, 0.02), (0.0, 0.6, 0.8), 0.5, (1, 2, 3))
    sitk.WriteTransform(theirs, str(tmp_path / f"a.{ending}"))
    with pytest.raises(ConfigError, match=rf"a\.{ending}: cannot be read as an ITK transform"):
        load_transform(tmp_path / f"a.{ending}", GRID)


@pytest.mark.parametrize("what", ["field", "bspline"])
def test_what_is_not_linear_is_no_start(what: str, tmp_path: Path) -> None:
    if what == "field":
        theirs = sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64))
    else:
        theirs = sitk.BSplineTransform(3)
    sitk.WriteTransform(sitk.CompositeTransform([theirs]), str(tmp_path / "curved.h5"))
    with pytest.raises(ConfigError, match="a linear 3-D transform is needed"):
        load_transform(tmp_path / "curved.h5", GRID)


def test_a_folder_or_nothing_is_no_transform(tmp_path: Path) -> None:
    (tmp_path / "folder.tfm").mkdir()
    for name in ("folder.tfm", "missing.tfm"):
        with pytest.raises(ConfigError, match=rf"{name}: no such transform file"):
            load_transform(tmp_path / name, GRID)
