"""The private local correlation: mean squared difference of locally normalised images.

The product that is maximised is 1/N sum_x n(I)(T(x)) n(J)(x), n = `features.local_normalised`. n(I) is computed on the
moving image's own grid and warped, it is not n of the warped image (they differ where T scales or shears the window).
`features` says how it relates to the LNCC of ANTs and MONAI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..config.losses import LOSSES
from ..features import local_normalised
from ..grids import Grid
from ..images import Image
from .ssd import FeatureDifference

__all__ = ["LocalCorrelation"]

_WINDOW_VOXELS, _LEAST_WINDOW_VOXELS = 4.0, 2.0


@dataclass(frozen=True)
class LocalCorrelation(FeatureDifference):
    """Mean squared difference of locally normalised images: the private local NCC, see the module's docstring.

    Args:
        radius_mm: half-width of the window, at least two voxels of the level (of the fixed image; the geometric mean
            of its spacings); None: four of them.
        floor: added deviation as a share of the image's own, so that noise in flat regions stays small.
        noise: added deviation in deviations of the image's noise (`noise_deviation`), where that is more: air and lung
            stay flat whatever the range of the intensities. Of 2, what is noise alone has a fifth of the variance of
            what is texture alone.
    """

    radius_mm: float | None = None
    floor: float = 0.1
    noise: float = 0.0

    entry = LOSSES.ours("local_ncc")

    def features(self, image: Image, fixed: Grid) -> Image:
        """See `Measure`."""
        voxel = math.prod(fixed.spacing) ** (1 / fixed.dimension)
        radius = _WINDOW_VOXELS * voxel if self.radius_mm is None else max(self.radius_mm, _LEAST_WINDOW_VOXELS * voxel)
        return local_normalised(image, radius, self.floor, self.noise)

    def to_meta(self) -> dict[str, Any]:
        """See `Measure`."""
        return {"kind": self.kind, "radius_mm": self.radius_mm, "floor": self.floor, "noise": self.noise}
