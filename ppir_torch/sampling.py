"""Samplers: which of the level's points enter the loss, with which weights, and what choosing them discloses.

A sample is drawn once per resolution level, from the run's seed, so that two runs are bit-equal and the operand stays
fixed while the level lasts.

>>> Uniform(fraction=0.25, seed=1).draw(8, level=0).index.numel()
2
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .config.samplers import SAMPLERS, SamplerEntry
from .errors import ConfigError

__all__ = [
    "Chunks",
    "Full",
    "GradientMagnitude",
    "LevelView",
    "Permuted",
    "PointChoice",
    "Sample",
    "Sampler",
    "Selection",
    "Uniform",
]


class PointChoice(ABC):
    """Which points an operand has, in which order: what party_2 is asked for. Those of this file are all there are.

    Attributes:
        kind: its name in messages.
        keeps_order: the points are in the image's order.
    """

    kind: ClassVar[str]
    keeps_order: ClassVar[bool] = True

    @abstractmethod
    def draw(self, count: int, level: int) -> Sample:
        """The points among `count` of them at a level of that number; the same for both parties."""

    def to_meta(self) -> dict[str, Any]:
        """As JSON values; `registration.request` reads them."""
        return {"kind": self.kind}

    def told(self) -> Tensor | None:
        """Indices (n,) that are sent to party_2 one by one; None where it draws the points itself."""
        return None


@dataclass(frozen=True)
class Sample(PointChoice):
    """Flat point indices (n,) int64, or None for all N points, with weights (n,) that make sums into means over N.

    `positions` (n,) says where the points lie among those of the operand, where that holds more points than the
    sample: party_1's rows are zero at the others, and party_2 does not learn which points these are.

    `overlap` (n,) in [0, 1] is 0 where a point maps outside the moving image (`overlap.weights_at`); party_1 alone
    knows it.
    """

    index: Tensor | None
    weights: Tensor | None
    positions: Tensor | None = None
    overlap: Tensor | None = None

    kind = "indices"

    def draw(self, count: int, level: int) -> Sample:  # noqa: ARG002
        """The sample itself."""
        return self

    def told(self) -> Tensor:
        """See `PointChoice`; a sample of all points is not a choice."""
        if self.index is None:
            raise ValueError("sample without indices; use Full()")
        return self.index

    @property
    def known(self) -> bool:
        """Whether party_2 knows which points count, all alike; only then can it say J's mean square over them."""
        return self.weights is None and self.positions is None and self.overlap is None

    @cached_property
    def combined(self) -> Tensor | None:
        """What each point counts for (n,), of sum 1 where the overlap has a part in it; None: all alike."""
        if self.overlap is None:
            return self.weights
        weights = self.overlap if self.weights is None else self.overlap * self.weights.to(self.overlap)
        return weights / weights.double().sum().clamp(min=1e-300).to(weights)

    def row(self, channels: int, like: Tensor) -> Tensor:
        """The weights in use over an overlap as a row (1, C n), of sum 1."""
        assert self.combined is not None
        return self.combined.to(like).repeat(channels)[None] / channels

    def within(self, overlap: Tensor) -> Sample:
        """The same points, of which each counts by its overlap (n,), too."""
        return replace(self, overlap=overlap)

    def at(self, positions: Tensor, weights: Tensor | None) -> Sample:
        """The part of a sample without weights at these positions; the operand keeps all its points."""
        index = positions if self.index is None else self.index[positions]
        return replace(self, index=index, weights=weights, positions=positions)


class LevelView(Protocol):
    """What a sampler may look at: a level of party_1's own image."""

    @property
    def number(self) -> int:
        """Of the level."""
        ...

    @property
    def count(self) -> int:
        """N, the points to choose from: the level's, or those of the mask."""
        ...

    def gradient_magnitude(self) -> Tensor:
        """(N,) of the warped moving image at these points, along the transform that the level starts from."""
        ...


@dataclass(frozen=True)
class Selection:
    """What a sampler makes of a level.

    Attributes:
        choice: the points that party_2 is asked for.
        positions: which of these count, (n,) places in their order, known to party_1 alone; None: all.
        weights: of the points at `positions`, (n,), or None where they count alike.
    """

    choice: PointChoice
    positions: Tensor | None = None
    weights: Tensor | None = None


class Sampler(ABC):
    """Which of a level's points enter the loss; any subclass goes into a `Plan`.

    Attributes:
        entry: what is known of it: what it discloses, what it goes with.
    """

    entry: ClassVar[SamplerEntry]

    @property
    def points_known(self) -> bool:
        """Whether party_2 knows which points count, all alike, and so J's mean over them."""
        return self.entry.known_to_party_2

    @property
    def discloses_to_party_1(self) -> str:
        """As it stands in the summary of a run."""
        return self.entry.discloses(self).party_1

    @property
    def discloses_to_party_2(self) -> str:
        """As it stands in the summary of a run."""
        return self.entry.discloses(self).party_2

    @abstractmethod
    def select(self, level: LevelView) -> Selection:
        """The points of a level: called once, before its first iteration."""

    def for_level(self, finest: int, here: int) -> Sampler:  # noqa: ARG002
        """For a deformable level of `here` voxels: as many points as of the finest one's `finest`, up to all.

        A sampler without a share of points is the same at every level.
        """
        return self


@dataclass(frozen=True)
class Full(Sampler, PointChoice):
    """Every point of the level. Discloses nothing."""

    kind = "full"
    entry = SAMPLERS.ours("none")

    def select(self, level: LevelView) -> Selection:  # noqa: ARG002
        """All points."""
        return Selection(self)

    def draw(self, count: int, level: int) -> Sample:  # noqa: ARG002
        """All points."""
        return Sample(None, None)


@dataclass(frozen=True)
class Uniform(Sampler, PointChoice):
    """URS: a uniform random share of the level's points, without replacement.

    Both parties draw the same points from a public seed. Discloses nothing about either image.

    Args:
        fraction: share of the points, in (0, 1].
        seed: public.
    """

    fraction: float
    seed: int = 0

    kind = "uniform"
    entry = SAMPLERS.ours("urs")

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def select(self, level: LevelView) -> Selection:  # noqa: ARG002
        """What both parties draw."""
        return Selection(self)

    def for_level(self, finest: int, here: int) -> Uniform:
        """See `Sampler`."""
        return replace(self, fraction=min(1.0, self.fraction * finest / here))

    def to_meta(self) -> dict[str, Any]:
        """See `PointChoice`."""
        return {"kind": self.kind, "fraction": self.fraction, "seed": self.seed}

    def draw(self, count: int, level: int) -> Sample:
        """About fraction * count of `count` points, in increasing order; equal weights."""
        chosen = max(1, round(self.fraction * count))
        index = torch.randperm(count, generator=_generator(self.seed, level))[:chosen].sort().values
        return Sample(index, None)


@dataclass(frozen=True)
class Permuted(PointChoice):
    """All points of a level, in an order that both parties draw from a public seed. Discloses nothing."""

    seed: int

    kind = "permuted"
    keeps_order = False

    def to_meta(self) -> dict[str, Any]:
        """See `PointChoice`."""
        return {"kind": self.kind, "seed": self.seed}

    def draw(self, count: int, level: int) -> Sample:
        """The points in their new order."""
        return Sample(torch.randperm(count, generator=_generator(self.seed, level)), None)


@dataclass(frozen=True)
class Chunks(Sampler):
    """URS for encrypted operands: party_2 sends all points once, in a public random order; party_1 uses a window.

    A run of points that follow each other in a random order is a uniform sample, and lies in few ciphertexts: under
    homomorphic encryption the cost of a product falls with the fraction. party_1 alone decides which window and how
    large; nothing is sent about it and nothing is encrypted again.

    Args:
        fraction: share of the points, in (0, 1].
        seed: of the public order; the window is drawn from it, too, so that runs can be repeated.
    """

    fraction: float
    seed: int = 0

    entry = SAMPLERS.ours("chunks")

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def select(self, level: LevelView) -> Selection:
        """The window's points, of all of them in the public order."""
        return Selection(Permuted(self.seed), self.window(level.count, level.number))

    def window(self, count: int, level: int) -> Tensor:
        """Positions (n,) of the points in use, among `count` in the public order."""
        length = max(1, round(self.fraction * count))
        start = int(torch.randint(count, (1,), generator=_generator(self.seed + 1, level)))
        return ((start + torch.arange(length)) % count).sort().values


@dataclass(frozen=True)
class GradientMagnitude(Sampler):
    """GMS: points drawn with a probability that grows with the gradient magnitude of the warped moving image.

    Poisson sampling with inclusion probability pi_i = min(1, s m_i), m_i a mixture of gradient magnitude and a uniform
    floor; weights 1 / (N pi_i) (Horvitz and Thompson, 1952) keep value and gradient unbiased.

    The chosen indices show where the warped moving image has edges (attack 7 of the threat model), so they stay with
    party_1: its rows are zero at the other points and a product costs as much as with all of them. With
    `disclose_points` they are sent to party_2 once per level, and the cost falls with the fraction.

    Args:
        fraction: expected share of the points, in (0, 1].
        seed: of the draw.
        floor: share of the uniform part of the mixture; keeps the weights bounded.
        disclose_points: party_2 may learn the chosen points.
    """

    fraction: float
    seed: int = 0
    floor: float = 0.2
    disclose_points: bool = False

    entry = SAMPLERS.ours("gms")

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        if not 0 < self.floor <= 1:
            raise ConfigError(f"sampler floor: {self.floor}, a number in (0, 1] is needed")

    def select(self, level: LevelView) -> Selection:
        """The drawn points: told to party_2, or of all points those that party_1 alone knows of."""
        chosen = self.draw(level.gradient_magnitude(), level.number)
        return Selection(chosen) if self.disclose_points else Selection(Full(), chosen.index, chosen.weights)

    def for_level(self, finest: int, here: int) -> GradientMagnitude:
        """See `Sampler`."""
        return replace(self, fraction=min(1.0, self.fraction * finest / here))

    def draw(self, magnitude: Tensor, level: int) -> Sample:
        """Draw among N = magnitude.numel() points; magnitude (N,) is the gradient magnitude at each of them."""
        magnitude = magnitude.double().flatten().cpu()
        count = magnitude.numel()
        mixture = self.floor / count + (1 - self.floor) * magnitude / magnitude.sum().clamp(min=1e-300)
        probability = _inclusion(mixture / mixture.sum(), self.fraction * count)
        coin = torch.rand(count, dtype=torch.float64, generator=_generator(self.seed, level))
        index = torch.nonzero(coin < probability).flatten()
        if index.numel() == 0:
            index = probability.argmax()[None]
        return Sample(index, 1 / (count * probability[index]))


def _inclusion(mixture: Tensor, expected: float) -> Tensor:
    # Probabilities cut at 1 leave less than expected; spread the rest over the others.
    probability = (mixture * expected).clamp(max=1)
    for _ in range(20):
        free = probability < 1
        missing = expected - float(probability.sum())
        if missing < 0.5 or not bool(free.any()):
            break
        probability = torch.where(free, probability * (1 + missing / float(probability[free].sum())), probability)
        probability = probability.clamp(max=1)
    return probability


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ConfigError(f"sampler fraction: {fraction}, a number in (0, 1] is needed")


def _generator(seed: int, level: int) -> torch.Generator:
    # Sampling is public, so torch's generator will do; nothing secret ever comes from it.
    return torch.Generator().manual_seed((seed * 1_000_003 + level) % 2**63)
