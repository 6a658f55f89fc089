"""The sampler `stride`: its settings and its entry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ppir_torch.config import Disclosed, KindSettings, SamplerEntry


class StrideConfig(KindSettings):
    """Every n-th point in the image's order, n = `step`."""

    kind: Literal["stride"] = "stride"
    step: int = Field(default=3, ge=1, le=1000)


STRIDE = SamplerEntry(
    StrideConfig,
    "every n-th point",
    "toy_ppir.stride_sampler:Stride",
    discloses=lambda settings: Disclosed(
        party_2=f"nothing (every point whose number is a multiple of {settings.step})"
    ),
    known_to_party_2=True,
)
