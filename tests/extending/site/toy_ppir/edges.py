"""The loss `edges`: its settings and its entry. Read by every command, so it imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ppir_torch.config import KindSettings, LossEntry


class EdgesConfig(KindSettings):
    """Squared difference of gradient magnitudes to the power of `gamma`."""

    kind: Literal["edges"] = "edges"
    gamma: float = Field(default=0.5, gt=0, le=4)


EDGES = LossEntry(
    EdgesConfig,
    "squared difference of the edges: one modality, brightness that drifts slowly",
    "toy_ppir.edges_measure:Edges",
    discloses=("with loss edges J is the fixed image's gradient magnitude, not its intensities",),
)
