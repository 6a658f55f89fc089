"""The loss `edges`: what each party makes of its own image. The sum of squares over it is ppir_torch's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppir_torch import Grid, Image
from ppir_torch.losses import FeatureDifference
from ppir_torch.warping import grid_gradient

from .edges import EDGES


@dataclass(frozen=True)
class Edges(FeatureDifference):
    """Mean squared difference of (|grad I| per mm)^gamma."""

    gamma: float = 0.5

    entry = EDGES

    def features(self, image: Image, fixed: Grid) -> Image:
        """Of a party's own image at a level: one channel, on the image's own grid."""
        strength = grid_gradient(image).norm(dim=1) ** self.gamma
        return Image(strength.reshape(image.tensor.shape), image.grid)

    def to_meta(self) -> dict[str, Any]:
        """Both parties must have the same settings."""
        return {"kind": self.kind, "gamma": self.gamma}
