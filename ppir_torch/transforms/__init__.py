"""Transforms: nn.Modules that map fixed points to moving points in physical space, and their ITK files."""

from .bspline import BSpline, ControlLattice, adjoint, expand
from .composite import Composite
from .dense import Displacement
from .itk import (
    from_simpleitk_transform,
    load_any_transform,
    load_displacement,
    load_transform,
    save_displacement,
    save_transform,
    to_simpleitk_transform,
)
from .linear import (
    LINEAR_TRANSFORMS,
    Affine,
    LinearTransform,
    Rigid,
    Similarity,
    Translation,
    affine_from_map,
    linear_transform,
)
from .velocity import VelocityField, exponential

__all__ = [
    "LINEAR_TRANSFORMS",
    "Affine",
    "BSpline",
    "Composite",
    "ControlLattice",
    "Displacement",
    "LinearTransform",
    "Rigid",
    "Similarity",
    "Translation",
    "VelocityField",
    "adjoint",
    "affine_from_map",
    "expand",
    "exponential",
    "from_simpleitk_transform",
    "linear_transform",
    "load_any_transform",
    "load_displacement",
    "load_transform",
    "save_displacement",
    "save_transform",
    "to_simpleitk_transform",
]
