"""What keeps a deformation smooth: a regulariser of its control points, and its weight in a loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..transforms.smoothness import Regulariser

__all__ = ["Smoothness"]


@dataclass(frozen=True)
class Smoothness:
    """alpha R(c): a regulariser and its weight, relative to the fixed image's variance, so that units do not matter.

    Args:
        regulariser: of the transform's lattice.
        weight: mm^2 for "diffusion" and "elastic" of a displacement in mm ... as R's unit asks; 0 switches it off.
        start: coefficients c_0 from which on it counts, R(c - c_0); None: zeros.
    """

    regulariser: Regulariser
    weight: float
    start: Tensor | None = None
