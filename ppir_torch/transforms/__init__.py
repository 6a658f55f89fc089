"""Transforms: nn.Modules that map fixed points to moving points in physical space, and their ITK files."""

from .bspline import BSpline
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
from .lattice import ControlLattice, LatticeTransform, adjoint, expand, lattice_transform
from .linear import (
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
    "Affine",
    "BSpline",
    "Composite",
    "ControlLattice",
    "Displacement",
    "LatticeTransform",
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
    "lattice_transform",
    "linear_transform",
    "load_any_transform",
    "load_displacement",
    "load_transform",
    "save_displacement",
    "save_transform",
    "to_simpleitk_transform",
]
