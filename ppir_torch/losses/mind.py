"""Mean squared difference of MIND-SSC descriptors: across modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config.losses import LOSSES
from ..features import mind_ssc, turned_towards
from ..grids import Grid
from ..images import Image
from .ssd import FeatureDifference

__all__ = ["Mind"]


@dataclass(frozen=True)
class Mind(FeatureDifference):
    """Mean squared difference of MIND-SSC descriptors (Heinrich et al., MICCAI 2013): across modalities.

    Distances are in voxels of the level. Descriptors follow the axes and voxels of the grid that they are made on: at
    the start of every level party_1 resamples its image along the transform so far, so that neither a rotation nor a
    scale that the level before has found is left between the two images' descriptors. What the first level has to find
    is in its descriptors, so beyond some 30 degrees give a start transform. `features` alone permutes and flips axes.

    Args:
        radius: of the patches, voxels.
        dilation: from a voxel to the centres of the patches that are compared, voxels.
    """

    radius: int = 2
    dilation: int = 2

    entry = LOSSES.ours("mind")
    follows_axes = True

    def channels(self, dimension: int) -> int:
        """Pairs of face neighbours that lie diagonally: 4 in 2-D, 12 in 3-D."""
        return 2 * dimension * (dimension - 1)

    def features(self, image: Image, fixed: Grid) -> Image:
        """See `Measure`."""
        return mind_ssc(turned_towards(image, fixed), self.radius, self.dilation)

    def to_meta(self) -> dict[str, Any]:
        """See `Measure`."""
        return {"kind": self.kind, "radius": self.radius, "dilation": self.dilation}
