"""Transforms as files that ITK, ANTs, elastix, Slicer and SimpleITK read: fixed points to moving points, LPS mm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..grids import Grid
from ..images import simpleitk
from .linear import Affine, LinearTransform, affine_from_map

__all__ = ["load_transform", "save_transform", "to_simpleitk_transform"]


def to_simpleitk_transform(transform: LinearTransform) -> Any:
    """A `SimpleITK.AffineTransform` with the same map and the same centre."""
    sitk = simpleitk()
    result = sitk.AffineTransform(transform.dimension)
    result.SetMatrix(transform.matrix().detach().double().flatten().tolist())
    result.SetCenter(transform.centre.double().tolist())
    result.SetTranslation(transform.translation.detach().double().tolist())
    return result


def save_transform(transform: LinearTransform, path: str | Path) -> None:
    """Write an ITK transform file (.tfm text, .txt, .mat or .h5), whole or not at all.

    Raises:
        ConfigError: the ending is none of these, or the folder cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    try:
        simpleitk().WriteTransform(to_simpleitk_transform(transform), str(partial))
    except RuntimeError:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written; a path that ends in .tfm, .txt, .mat or .h5 is needed") from None
    partial.replace(path)


def load_transform(path: str | Path, grid: Grid) -> Affine:
    """Read any linear ITK transform as an Affine on `grid`.

    Raises:
        ConfigError: the file is missing, is no transform, is of another dimension, or is not linear.
    """
    sitk = simpleitk()
    if not Path(path).exists():
        raise ConfigError(f"{path}: no such transform file")
    try:
        loaded = sitk.ReadTransform(str(path))
    except RuntimeError:
        raise ConfigError(f"{path}: cannot be read as an ITK transform") from None
    dimension = loaded.GetDimension()
    if dimension != grid.dimension or not loaded.IsLinear():
        raise ConfigError(f"{path}: {dimension}-D {loaded.GetName()}, a linear {grid.dimension}-D transform is needed")
    # A linear map is known from the images of the origin and of the unit points.
    origin = torch.tensor(loaded.TransformPoint([0.0] * dimension), dtype=torch.float64)
    units = [loaded.TransformPoint([float(i == j) for j in range(dimension)]) for i in range(dimension)]
    matrix = torch.tensor(units, dtype=torch.float64).T - origin[:, None]
    return affine_from_map(grid, matrix, origin)
