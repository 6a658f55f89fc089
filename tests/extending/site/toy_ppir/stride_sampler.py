"""The sampler `stride`: which points party_2 is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppir_torch.sampling import LevelView, Sample, Sampler, Selection

from .stride import STRIDE


@dataclass(frozen=True)
class Stride(Sampler):
    """Every `step`-th point of a level. The indices are sent to party_2: they say nothing of either image."""

    step: int = 3

    entry = STRIDE

    def select(self, level: LevelView) -> Selection:
        """The points of a level, from the first on."""
        return Selection(Sample(torch.arange(0, level.count, self.step), None))
