"""Mean squared difference of a network's channels: from Python only, no configuration names it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ..config.base import KindSettings
from ..config.losses import LossEntry
from ..errors import ConfigError, ImageError
from ..features import apply_module, turned_towards
from ..grids import Grid
from ..images import Image
from .ssd import FeatureDifference

__all__ = ["ModuleFeatures"]

MAX_CHANNELS = 1024


class _ModuleSettings(KindSettings):
    # A name for messages and reports; the module itself is no setting.
    kind: Literal["module"] = "module"


@dataclass(frozen=True)
class ModuleFeatures(FeatureDifference):
    """Mean squared difference of the channels that a network makes of each image: from Python only.

    A configuration never names code, so no YAML has this measure: each party's program hands its own copy of the module
    to `Plan` or `FixedParty`. The copies must have the same weights, which is checked by their SHA-256; what the
    network computes besides (its code, its preprocessing) is for the parties to agree on.

    Args:
        module: (1, 1, [z,] y, x) to (1, C, [z,] y, x), see `features.apply_module`; put it in `eval()` first.
        channels_made: C.

    Raises:
        ConfigError: not 1 to 1024 channels, or a module in training mode.
    """

    module: nn.Module = field(repr=False)
    channels_made: int

    entry = LossEntry(
        _ModuleSettings,
        "squared difference of a network's channels: from Python",
        f"{__name__}:ModuleFeatures",
        discloses=("with a network's features J is what it makes of the fixed image, not its intensities",),
    )
    follows_axes = True

    def __post_init__(self) -> None:
        if not 1 <= self.channels_made <= MAX_CHANNELS:
            raise ConfigError(f"module: {self.channels_made} channels, 1 to {MAX_CHANNELS} are needed")
        if any(part.training for part in self.module.modules() if not isinstance(part, nn.Sequential)):
            raise ConfigError("module: it is in training mode, its output may change from call to call; call eval()")

    def channels(self, dimension: int) -> int:  # noqa: ARG002
        """As many as the network makes."""
        return self.channels_made

    def features(self, image: Image, fixed: Grid) -> Image:
        """See `Measure`; raises ImageError where the module returns another number of channels."""
        made = apply_module(self.module, turned_towards(image, fixed))
        if made.tensor.shape[0] != self.channels_made:
            raise ImageError(f"module: returned {made.tensor.shape[0]} channels, {self.channels_made} were declared")
        return made

    def to_meta(self) -> dict[str, Any]:
        """Channels and a digest of the weights, by which the parties see that they have the same."""
        digest = hashlib.sha256()
        for name, value in self.module.state_dict().items():
            digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return {"kind": self.kind, "channels": self.channels_made, "weights": digest.hexdigest()}
