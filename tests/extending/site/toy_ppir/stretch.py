"""The linear transform `stretch`: its settings and its entry."""

from __future__ import annotations

from typing import Literal

from ppir_torch.config import LinearConfig, TransformEntry


class StretchConfig(LinearConfig):
    """A shift and a scale along each axis: 2 D parameters."""

    kind: Literal["stretch"] = "stretch"


STRETCH = TransformEntry(StretchConfig, "a shift and a scale along each axis", "toy_ppir.stretch_transform:Stretch")
