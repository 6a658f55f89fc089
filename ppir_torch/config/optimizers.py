"""The optimisers: settings and entries. Their code is in `ppir_torch.optimizers`.

>>> StoppingConfig(max_iterations=5).decrease
1e-05
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from .base import KindSettings, Settings
from .registry import Entry, OneOf, Registry

__all__ = [
    "OPTIMIZERS",
    "AdamConfig",
    "GaussNewtonConfig",
    "InverseCompositionalConfig",
    "LbfgsConfig",
    "Optimizer",
    "OptimizerConfig",
    "OptimizerEntry",
    "StoppingConfig",
]


class StoppingConfig(Settings):
    """When a level ends; see `ppir_torch.Stopping`, which has the same defaults."""

    max_iterations: int = Field(default=30, ge=1, le=10_000)
    step_voxels: float = Field(default=1e-3, ge=0, le=1000)
    decrease: float = Field(default=1e-5, ge=0, le=1)


class OptimizerConfig(KindSettings):
    """Base of the settings of optimisers; each has a field `stopping`, a `StoppingConfig`."""

    if TYPE_CHECKING:  # a field of the subclasses, so that it is their last one in a saved configuration
        stopping: StoppingConfig


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """An optimiser; `home` is its class, made with the settings but `stopping`.

    Attributes:
        discloses: lines on what party_1 learns by it; an entry must say, if only that there are none.
        losses: names of those that it goes with; None: all.
        losses_because: why not with the others.
        by_party_2: its equations are made of the fixed image, so that party_2 sums over the points itself: it must know
            them, and agrees to disclose the sums.
    """

    discloses: tuple[str, ...]
    losses: tuple[str, ...] | None = None
    losses_because: str = ""
    by_party_2: bool = False

    def make(self, settings: KindSettings) -> Any:
        """See `Entry`; without `stopping`, which is the loop's."""
        names = [name for name in type(settings).model_fields if name not in ("kind", "stopping")]
        return self.load()(**{name: getattr(settings, name) for name in names})

    def goes_with(self, loss: str) -> bool:
        """Whether it minimises the loss of this name."""
        return self.losses is None or loss in self.losses


class GaussNewtonConfig(OptimizerConfig):
    """See `ppir_torch.GaussNewton`."""

    kind: Literal["gauss_newton"] = "gauss_newton"
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig()


class LbfgsConfig(OptimizerConfig):
    """L-BFGS from the loss's own Hessian: for losses whose Gauss-Newton model is rough. It stops later."""

    kind: Literal["lbfgs"] = "lbfgs"
    memory: int = Field(default=10, ge=1, le=100)
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig(decrease=1e-7)


class InverseCompositionalConfig(OptimizerConfig):
    """Gauss-Newton on the fixed image's steepest-descent images; party_2 discloses the sums of their products."""

    kind: Literal["inverse_compositional"] = "inverse_compositional"
    damping: float = Field(default=1e-4, gt=0, le=1e6)
    stopping: StoppingConfig = StoppingConfig()


class AdamConfig(OptimizerConfig):
    """See `ppir_torch.Adam`."""

    kind: Literal["adam"] = "adam"
    learning_rate_voxels: float = Field(default=0.25, gt=0, le=1000)
    stopping: StoppingConfig = StoppingConfig()


OPTIMIZERS = Registry(
    "optimizer",
    "ppir_torch.optimizers",
    OptimizerEntry,
    OptimizerConfig,
    OptimizerEntry(
        GaussNewtonConfig, "Gauss-Newton with damping", "ppir_torch.optimizers.gauss_newton:GaussNewton", discloses=()
    ),
    OptimizerEntry(
        LbfgsConfig,
        "quasi-Newton from the loss's own Hessian: for mi",
        "ppir_torch.optimizers.lbfgs:LBFGS",
        discloses=(),
    ),
    OptimizerEntry(
        InverseCompositionalConfig,
        "Gauss-Newton on the fixed image's steepest-descent images: about 1/P of the bytes",
        "ppir_torch.optimizers.inverse_compositional:InverseCompositional",
        discloses=("per level S^T S and S^T J of the fixed image's steepest-descent images S",),
        losses=("ssd",),
        losses_because="party_2's steepest-descent images are those of ssd",
        by_party_2=True,
    ),
    OptimizerEntry(AdamConfig, "gradient steps of a length in voxels", "ppir_torch.optimizers.adam:Adam", discloses=()),
)

Optimizer = Annotated[OptimizerConfig, OneOf(OPTIMIZERS)]
