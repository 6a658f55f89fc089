"""Transforms: nn.Modules that map fixed points to moving points in physical space, and their ITK files."""

from .itk import load_transform, save_transform, to_simpleitk_transform
from .linear import LINEAR_TRANSFORMS, Affine, LinearTransform, Rigid, Similarity, Translation, affine_from_map

__all__ = [
    "LINEAR_TRANSFORMS",
    "Affine",
    "LinearTransform",
    "Rigid",
    "Similarity",
    "Translation",
    "affine_from_map",
    "load_transform",
    "save_transform",
    "to_simpleitk_transform",
]
