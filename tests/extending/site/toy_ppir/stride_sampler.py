"""The sampler `stride`: which points party_2 is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppir_torch.sampling import LevelView, Sample, Sampler, Selection


@dataclass(frozen=True)
class Stride(Sampler):
    """Every `step`-th point of a level. The indices are sent to party_2: they say nothing of either image."""

    step: int = 3

    points_known = True

    @property
    def discloses_to_party_2(self) -> str:
        """As it stands in the summary of a run."""
        return f"nothing (every point whose number is a multiple of {self.step})"

    def select(self, level: LevelView) -> Selection:
        """The points of a level, from the first on."""
        return Selection(Sample(torch.arange(0, level.count, self.step), None))
