"""The control lattice `limited`: its settings and its entry."""

from __future__ import annotations

from typing import Literal

from ppir_torch.config import DeformableConfig, TransformEntry


class LimitedConfig(DeformableConfig):
    """A free-form deformation by less than 10 mm, after a linear stage."""

    kind: Literal["limited"] = "limited"


LIMITED = TransformEntry(
    LimitedConfig, "free-form deformation by less than 10 mm", "toy_ppir.limited_transform:LimitedSpline"
)
