"""The samplers: settings and entries. Their code is in `ppir_torch.sampling`.

>>> SAMPLERS["gms"].discloses(GradientSamplerConfig(disclose_points=True)).party_2
"each level's chosen points, which show where the moving image has edges"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from .base import LARGEST_SEED, KindSettings
from .registry import Disclosed, Entry, OneOf, Registry

__all__ = [
    "SAMPLERS",
    "ChunksSamplerConfig",
    "GradientSamplerConfig",
    "NoSamplerConfig",
    "Sampler",
    "SamplerEntry",
    "UniformSamplerConfig",
]


@dataclass(frozen=True)
class SamplerEntry(Entry):
    """A sampler; `home` is its class, made with the settings (a `seed` that is null is the run's).

    Attributes:
        discloses: the settings -> what each party learns by it; an entry must say, if only that it is nothing.
        deforms: it goes with control lattices, too: their products keep the image's order.
        known_to_party_2: party_2 knows which points count.
        weighted: the points have unequal weights.
    """

    discloses: Callable[[Any], Disclosed]
    deforms: bool = True
    known_to_party_2: bool = False
    weighted: bool = False


class NoSamplerConfig(KindSettings):
    """Every point."""

    kind: Literal["none"] = "none"


class UniformSamplerConfig(KindSettings):
    """URS; `seed` null: the run's."""

    kind: Literal["urs"] = "urs"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)


class ChunksSamplerConfig(KindSettings):
    """URS for encrypted operands: a window of a public random order; party_2 sends its points once."""

    kind: Literal["chunks"] = "chunks"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)


class GradientSamplerConfig(KindSettings):
    """GMS; the points stay with party_1 (and cost as much as all of them) unless `disclose_points`."""

    kind: Literal["gms"] = "gms"
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    floor: float = Field(default=0.2, gt=0, le=1)
    disclose_points: bool = False


def _of_gms(settings: GradientSamplerConfig) -> Disclosed:
    if settings.disclose_points:
        return Disclosed(party_2="each level's chosen points, which show where the moving image has edges")
    return Disclosed(party_2="nothing (the chosen points stay with party_1)")


SAMPLERS = Registry(
    "sampler",
    "ppir_torch.samplers",
    SamplerEntry,
    KindSettings,
    SamplerEntry(
        NoSamplerConfig,
        "every point",
        "ppir_torch.sampling:Full",
        discloses=lambda _settings: Disclosed(),
        known_to_party_2=True,
    ),
    SamplerEntry(
        UniformSamplerConfig,
        "uniform random points from a public seed; discloses nothing",
        "ppir_torch.sampling:Uniform",
        discloses=lambda _settings: Disclosed(
            "nothing (points drawn from a public seed)", "nothing (points drawn from a public seed)"
        ),
        known_to_party_2=True,
    ),
    SamplerEntry(
        ChunksSamplerConfig,
        "uniform points as a window of a public random order: under encryption the cost falls with the fraction",
        "ppir_torch.sampling:Chunks",
        discloses=lambda _settings: Disclosed(
            party_2="nothing (the points follow a public random order, which of them count is not sent)"
        ),
        deforms=False,
    ),
    SamplerEntry(
        GradientSamplerConfig,
        "points where the moving image has edges",
        "ppir_torch.sampling:GradientMagnitude",
        discloses=_of_gms,
        weighted=True,
    ),
)

Sampler = Annotated[KindSettings, OneOf(SAMPLERS)]
