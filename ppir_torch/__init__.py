"""ppir_torch: privacy-preserving medical image registration, native to PyTorch.

Everything public is reachable from here and is loaded where it is first used, so that `import ppir_torch` is instant.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "errors": ("PpirError", "ConfigError", "ImageError", "LinkError", "PeerLost", "RangeError"),
    "grids": ("Grid",),
    "images": ("Image", "Level", "load_image", "save_image"),
    "transforms": (
        "Affine",
        "Rigid",
        "Similarity",
        "Translation",
        "affine_from_map",
        "load_transform",
        "save_transform",
    ),
    "warping": ("warp",),
    "sampling": ("Full", "GradientMagnitude", "Uniform"),
    "losses": (
        "MI",
        "NCC",
        "SSD",
        "Correlation",
        "LocalCorrelation",
        "Mind",
        "ModuleFeatures",
        "MutualInformation",
        "SquaredDifference",
    ),
    "optimizers": ("LBFGS", "Adam", "GaussNewton", "Stopping"),
    "registration": ("ClearFixed", "Plan", "Result", "register_images"),
    "metrics.registration": ("displacement_rmse",),
    "runs.open_private": ("open_private",),
    "runs.images": ("register",),
    "runs.points": ("align_points",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ppir_torch' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
