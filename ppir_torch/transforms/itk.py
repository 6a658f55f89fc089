"""Transforms as files that ITK, ANTs, elastix, Slicer and SimpleITK read: fixed points to moving points, LPS mm.

Transform files (.tfm, .txt, .mat, .h5) hold what SimpleITK's WriteTransform writes; displacement images (.nii.gz, .nii,
.nrrd, .mha) hold a vector of D components in mm along the physical LPS axes at each voxel, as ANTs' warps do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ImageError
from ..grids import Grid
from ..imagefiles.itk import simpleitk
from ..imagefiles.whole import check_whole
from .bspline import BSpline
from .composite import Composite
from .dense import Displacement
from .foreign import foreign_kind, lacks_numbers, transforms_in
from .lattice import ControlLattice, LatticeTransform
from .linear import Affine, LinearTransform, affine_from_map
from .slices import within_plane

__all__ = [
    "from_simpleitk_transform",
    "load_any_transform",
    "load_displacement",
    "load_transform",
    "save_displacement",
    "save_transform",
    "to_simpleitk_transform",
]

TRANSFORM_ENDINGS = (".tfm", ".txt", ".mat", ".h5")
DISPLACEMENT_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


@singledispatch
def to_simpleitk_transform(transform: nn.Module) -> Any:
    """The SimpleITK transform with the same map, mm LPS, in float64.

    Linear transforms become an AffineTransform with the same centre, BSpline a BSplineTransform of order 3 with the
    same coefficients, Displacement a DisplacementFieldTransform, every other control lattice the same of its field on
    its grid, Composite a flat CompositeTransform, its parts added last to first because ITK applies the one added last
    first. For another module register a function of your own: `to_simpleitk_transform.register`.

    Raises:
        ConfigError: no such form for this module; `Displacement.from_transform` samples it.

    >>> to_simpleitk_transform(Affine(Grid((4, 4)))).GetName()
    'AffineTransform'
    """
    raise ConfigError(
        f"{type(transform).__name__} has no form as an ITK transform; Displacement.from_transform(transform, grid) has"
    )


@to_simpleitk_transform.register
def _(transform: LinearTransform) -> Any:
    result = simpleitk().AffineTransform(transform.dimension)
    result.SetMatrix(transform.matrix().detach().double().flatten().tolist())
    result.SetCenter(transform.centre.double().tolist())
    result.SetTranslation(transform.translation.detach().double().tolist())
    return result


@to_simpleitk_transform.register
def _(transform: BSpline) -> Any:
    lattice = transform.lattice
    extent = [c * s for c, s in zip(lattice.cells, lattice.control_spacing, strict=True)]
    result = simpleitk().BSplineTransform(transform.dimension, 3)
    result.SetTransformDomainOrigin(lattice.grid.origin)
    result.SetTransformDomainDirection(lattice.grid.direction)
    result.SetTransformDomainPhysicalDimensions(extent)
    result.SetTransformDomainMeshSize(lattice.cells)
    result.SetParameters(transform.coefficients.detach().double().flatten().tolist())
    return result


@to_simpleitk_transform.register
def _(transform: Displacement) -> Any:
    return simpleitk().DisplacementFieldTransform(_vector_image(transform.field, transform.grid))


@to_simpleitk_transform.register
def _(transform: LatticeTransform) -> Any:
    return to_simpleitk_transform(Displacement.from_transform(transform, transform.lattice.grid))


@to_simpleitk_transform.register
def _(transform: Composite) -> Any:
    result = simpleitk().CompositeTransform(transform.dimension)
    for part in reversed(transform.parts):
        result.AddTransform(to_simpleitk_transform(part))
    result.FlattenTransform()  # ITK writes no composite within a composite
    return result


def save_transform(transform: nn.Module, path: str | Path) -> None:
    """Write an ITK transform file (.tfm or .txt text, .mat or .h5), whole or not at all; mm LPS, float64.

    What holds a dense field goes into .h5 only: Displacement, and control lattices without a form in ITK, such as
    VelocityField. A Composite goes into any but .mat.

    Raises:
        ConfigError: the ending cannot hold this transform, or the folder cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_transform(Affine(Grid((4, 4))), f"{folder}/start.tfm")
    ...     print(type(load_any_transform(f"{folder}/start.tfm", Grid((4, 4)))).__name__)
    Affine
    """
    endings: tuple[str, ...] = TRANSFORM_ENDINGS
    hint = ""
    if any(_is_dense(part) for part in transform.modules()):
        # A text file would hold millions of numbers in one line.
        endings, hint = (".h5",), f" for a dense field (save_displacement writes {', '.join(DISPLACEMENT_ENDINGS)})"
    elif isinstance(transform, Composite):
        endings, hint = tuple(e for e in endings if e != ".mat"), " for a composite"
    converted = to_simpleitk_transform(transform)
    _write(Path(path), endings, hint, lambda partial: simpleitk().WriteTransform(converted, partial))


def _is_dense(part: nn.Module) -> bool:
    return isinstance(part, Displacement) or (isinstance(part, LatticeTransform) and not part.has_itk_form)


def save_displacement(transform: nn.Module, grid: Grid, path: str | Path) -> None:
    """Write any transform as a displacement image on `grid` (.nii.gz, .nii, .nrrd, .mha), whole or not at all.

    D components per voxel in mm LPS, float32. SimpleITK (DisplacementFieldTransform of it), ANTs and Slicer read it.
    NIfTI holds the grid's origin and direction in float32, too.

    Raises:
        ConfigError: another ending, or the folder cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_displacement(Affine(Grid((4, 4))), Grid((6, 5)), f"{folder}/warp.nii.gz")
    ...     print(load_displacement(f"{folder}/warp.nii.gz").grid.size)
    (6, 5)
    """
    image = _vector_image(Displacement.from_transform(transform, grid).field.float(), grid)
    _write(Path(path), DISPLACEMENT_ENDINGS, "", lambda partial: simpleitk().WriteImage(image, partial))


def load_displacement(path: str | Path) -> Displacement:
    """Read a displacement image (any vector image that ITK reads; D components in mm LPS) as float64 on its own grid.

    Raises:
        ConfigError: the file is missing, truncated, cannot be read, or has not one component per axis.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_displacement(nn.Identity(), Grid((6, 5)), f"{folder}/warp.nrrd")
    ...     print(load_displacement(f"{folder}/warp.nrrd"))
    Displacement(size=(6, 5), spacing_mm=(1.0, 1.0), largest_mm=0)
    """
    sitk = simpleitk()
    if not Path(path).exists():
        raise ConfigError(f"{path}: no such displacement image")
    try:
        image = sitk.ReadImage(str(path))
        check_whole(Path(path))  # ITK reads what is missing from a NIfTI file as zeros
    except RuntimeError:
        raise ConfigError(f"{path}: cannot be read as a displacement image") from None
    except ImageError as error:
        raise ConfigError(str(error)) from None
    dimension, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if dimension not in (2, 3) or components != dimension:
        raise ConfigError(f"{path}: {dimension}-D image of {components} components, one per axis is needed")
    return _from_vector_image(sitk.Cast(image, sitk.sitkVectorFloat64))


def load_transform(path: str | Path, grid: Grid) -> Affine:
    """Read any linear ITK transform, also a composite of linear ones, as an Affine (float64, mm LPS) on `grid`.

    Where `grid` is a slice in space, a 3-D transform is taken for what it does within the slice's plane.

    Raises:
        ConfigError: the file is missing, is no ITK transform, holds several, or NaN, is of another dimension, or is not
            linear.

    >>> load_transform("missing.tfm", Grid((4, 4)))
    Traceback (most recent call last):
    ppir_torch.errors.ConfigError: missing.tfm: no such transform file
    """
    loaded = _read(path)
    dimension = loaded.GetDimension()
    if not _fits(loaded, grid) or not loaded.IsLinear():
        raise ConfigError(f"{path}: {dimension}-D {loaded.GetName()}, a linear {grid.dimension}-D transform is needed")
    try:
        return _affine(loaded, grid)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def load_any_transform(path: str | Path, grid: Grid) -> nn.Module:
    """Read a linear, B-spline, displacement-field or composite ITK transform; see `from_simpleitk_transform`.

    Where `grid` is a slice in space, a linear 3-D transform is taken for what it does within the slice's plane.

    Raises:
        ConfigError: the file is missing, is no transform, is of another dimension, or is of another kind.

    >>> load_any_transform("missing.h5", Grid((4, 4)))
    Traceback (most recent call last):
    ppir_torch.errors.ConfigError: missing.h5: no such transform file
    """
    loaded = _read(path)
    if not _fits(loaded, grid):
        raise ConfigError(f"{path}: {loaded.GetDimension()}-D {loaded.GetName()}, the image is {grid.dimension}-D")
    try:
        return from_simpleitk_transform(loaded, grid)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def from_simpleitk_transform(transform: Any, grid: Grid) -> nn.Module:
    """A SimpleITK transform (mm LPS) as an nn.Module with the same map, float64.

    - Linear, also a composite of linear ones: Affine with its centre at that of `grid`.
    - BSplineTransform of order 3: BSpline, exactly. Its lattice is on `grid` where it fits there, else on a grid of
      its own over its own domain, with voxels no larger than the smallest of `grid`.
    - DisplacementFieldTransform (linear interpolation): Displacement on its own grid.
    - CompositeTransform: Composite, its parts in the order in which they are applied.

    Raises:
        ConfigError: a transform of another kind.

    >>> module = BSpline(ControlLattice(Grid((9, 9)), 4.0))
    >>> from_simpleitk_transform(to_simpleitk_transform(module), Grid((9, 9)))
    BSpline(size=(5, 5), control_spacing_mm=(4.0, 4.0), largest_mm=0)
    """
    sitk = simpleitk()
    if transform.IsLinear():
        return _affine(transform, grid)
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        count = transform.GetNumberOfTransforms()
        parts = [from_simpleitk_transform(transform.GetNthTransform(i), grid) for i in reversed(range(count))]
        return Composite(parts)
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return _from_vector_image(transform.GetDisplacementField())
    if isinstance(transform, sitk.BSplineTransform) and transform.GetOrder() == 3:
        return _bspline(transform, grid)
    raise ConfigError(f"{transform.GetName()}: only linear, cubic B-spline, displacement field, composite can be read")


def _fits(loaded: Any, grid: Grid) -> bool:
    """Whether the transform is of the grid's dimension, or of the space that a slice lies in."""
    return loaded.GetDimension() == grid.dimension or _of_space(loaded, grid)


def _of_space(loaded: Any, grid: Grid) -> bool:
    return grid.plane is not None and loaded.GetDimension() == 3 and bool(loaded.IsLinear())


def _affine(loaded: Any, grid: Grid) -> Affine:
    # A linear map is known from the images of the origin and of the unit points.
    d = loaded.GetDimension()
    origin = torch.tensor(loaded.TransformPoint([0.0] * d), dtype=torch.float64)
    units = [loaded.TransformPoint([float(i == j) for j in range(d)]) for i in range(d)]
    if not bool(torch.isfinite(torch.tensor([origin.tolist(), *units])).all()):
        raise ConfigError(f"{loaded.GetName()} with NaN or infinite numbers")
    matrix = torch.tensor(units, dtype=torch.float64).T - origin[:, None]
    return within_plane(matrix, origin, grid) if _of_space(loaded, grid) else affine_from_map(grid, matrix, origin)


def _bspline(loaded: Any, grid: Grid) -> BSpline:
    cells = loaded.GetTransformDomainMeshSize()
    extent = loaded.GetTransformDomainPhysicalDimensions()
    control = tuple(e / c for e, c in zip(extent, cells, strict=True))
    origin, direction = loaded.GetTransformDomainOrigin(), loaded.GetTransformDomainDirection()
    lattice = ControlLattice(grid, control)
    ours = (*lattice.control_spacing, *grid.origin, *grid.direction)
    theirs = (*control, *origin, *direction)
    if lattice.cells != cells or max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-6:
        voxels = [-int(-c // min(grid.spacing)) for c in control]  # per cell, rounded up
        spacing = tuple(c / v for c, v in zip(control, voxels, strict=True))
        size = tuple(c * v + 1 for c, v in zip(cells, voxels, strict=True))
        lattice = ControlLattice(Grid(size, spacing, origin, direction), control)
    result = BSpline(lattice)
    parameters = torch.tensor(loaded.GetParameters(), dtype=torch.float64)
    result.coefficients = nn.Parameter(parameters.reshape(result.coefficients.shape))
    return result


def _vector_image(field: Tensor, grid: Grid) -> Any:
    """(D, [z,] y, x) on `grid` as a SimpleITK vector image of the field's dtype (float32 or float64)."""
    image = simpleitk().GetImageFromArray(field.detach().cpu().movedim(0, -1).contiguous().numpy(), isVector=True)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def _from_vector_image(image: Any) -> Displacement:
    grid = Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Displacement(grid, torch.from_numpy(simpleitk().GetArrayFromImage(image)).movedim(-1, 0).double())


def _read(path: str | Path) -> Any:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such transform file")
    try:
        if not file.name.lower().endswith((*TRANSFORM_ENDINGS, ".hdf5")):
            raise RuntimeError  # ITK reads more (.xfm of MINC), of other conventions
        loaded = simpleitk().ReadTransform(str(path))
        if (count := transforms_in(file)) > 1:
            raise ConfigError(f"{path}: {count} transforms side by side, one (a composite counts as one) is needed")
        if lacks_numbers(file):
            raise ConfigError(f"{path}: truncated, Parameters and FixedParameters are needed of every transform")
        return loaded
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (RuntimeError, LookupError, TypeError):  # the last two: classes of ITK that SimpleITK has no name for
        kind = foreign_kind(file)
        raise ConfigError(
            f"{path}: cannot be read as an ITK transform ({', '.join(TRANSFORM_ENDINGS)}){kind and f'; it is {kind}'}"
        ) from None


def _write(path: Path, endings: tuple[str, ...], hint: str, write: Callable[[str], None]) -> None:
    """Write through a partial file, so that the file is whole or not there; one of `endings` is needed."""
    refusal = ConfigError(f"{path}: cannot be written; a path that ends in {' or '.join(endings)} is needed{hint}")
    if not path.name.lower().endswith(endings):
        raise refusal
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(str(partial))
    except RuntimeError:
        partial.unlink(missing_ok=True)
        raise refusal from None
    partial.replace(path)
