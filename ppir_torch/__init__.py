"""ppir_torch: privacy-preserving medical image registration, native to PyTorch.

Everything public is reachable from here and is loaded where it is first used, so that `import ppir_torch` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers see; at run time the same names are loaded where they are first used
    from .errors import BudgetExceeded as BudgetExceeded
    from .errors import ConfigError as ConfigError
    from .errors import ImageError as ImageError
    from .errors import LinkError as LinkError
    from .errors import PeerLost as PeerLost
    from .errors import PpirError as PpirError
    from .errors import RangeError as RangeError
    from .errors import RegistrationFailed as RegistrationFailed
    from .grids import Grid as Grid
    from .images import Image as Image
    from .images import load_image as load_image
    from .images import save_image as save_image
    from .levels import Level as Level
    from .losses import CR as CR
    from .losses import MI as MI
    from .losses import NCC as NCC
    from .losses import SSD as SSD
    from .losses import Correlation as Correlation
    from .losses import CorrelationRatio as CorrelationRatio
    from .losses import LocalCorrelation as LocalCorrelation
    from .losses import Mind as Mind
    from .losses import ModuleFeatures as ModuleFeatures
    from .losses import MutualInformation as MutualInformation
    from .losses import SquaredDifference as SquaredDifference
    from .metrics.registration import displacement_rmse as displacement_rmse
    from .optimizers import LBFGS as LBFGS
    from .optimizers import Adam as Adam
    from .optimizers import GaussNewton as GaussNewton
    from .optimizers import Stopping as Stopping
    from .registration import ClearFixed as ClearFixed
    from .registration import Deformable as Deformable
    from .registration import OperandRequest as OperandRequest
    from .registration import Plan as Plan
    from .registration import Result as Result
    from .registration import register_images as register_images
    from .runs.api import align_points as align_points
    from .runs.api import register as register
    from .runs.open_private import open_private as open_private
    from .sampling import Chunks as Chunks
    from .sampling import Full as Full
    from .sampling import GradientMagnitude as GradientMagnitude
    from .sampling import Uniform as Uniform
    from .transforms import Affine as Affine
    from .transforms import BSpline as BSpline
    from .transforms import Rigid as Rigid
    from .transforms import Similarity as Similarity
    from .transforms import Translation as Translation
    from .transforms import VelocityField as VelocityField
    from .transforms import affine_from_map as affine_from_map
    from .transforms import load_transform as load_transform
    from .transforms import save_transform as save_transform
    from .warping import warp as warp

_HOMES = {
    "errors": (
        "PpirError",
        "BudgetExceeded",
        "ConfigError",
        "ImageError",
        "LinkError",
        "PeerLost",
        "RangeError",
        "RegistrationFailed",
    ),
    "grids": ("Grid",),
    "images": ("Image", "load_image", "save_image"),
    "levels": ("Level",),
    "transforms": (
        "Affine",
        "BSpline",
        "Rigid",
        "Similarity",
        "Translation",
        "VelocityField",
        "affine_from_map",
        "load_transform",
        "save_transform",
    ),
    "warping": ("warp",),
    "sampling": ("Chunks", "Full", "GradientMagnitude", "Uniform"),
    "losses": (
        "CR",
        "MI",
        "NCC",
        "SSD",
        "Correlation",
        "CorrelationRatio",
        "LocalCorrelation",
        "Mind",
        "ModuleFeatures",
        "MutualInformation",
        "SquaredDifference",
    ),
    "optimizers": ("LBFGS", "Adam", "GaussNewton", "Stopping"),
    "registration": ("ClearFixed", "Deformable", "OperandRequest", "Plan", "Result", "register_images"),
    "metrics.registration": ("displacement_rmse",),
    "runs.open_private": ("open_private",),
    "runs.api": ("align_points", "register"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ppir_torch' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
