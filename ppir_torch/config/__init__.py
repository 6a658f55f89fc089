"""Configurations: what may be set, within which ranges, and what goes together. Imports neither torch nor Hydra."""

from .base import KindSettings, Settings
from .images import FixedPartyConfig, MovingPartyConfig, RunConfig, fixed_party, load_config, moving_party
from .losses import LOSSES, LossEntry
from .optimizers import OPTIMIZERS, OptimizerConfig, OptimizerEntry, StoppingConfig
from .protocols import PROTOCOLS, ProtocolEntry
from .registry import Disclosed, Entry, Registry
from .samplers import SAMPLERS, SamplerEntry
from .transforms import TRANSFORMS, DeformableConfig, LinearConfig, TransformEntry
from .transports import TRANSPORTS, TransportConfig, TransportEntry

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "PROTOCOLS",
    "SAMPLERS",
    "TRANSFORMS",
    "TRANSPORTS",
    "DeformableConfig",
    "Disclosed",
    "Entry",
    "FixedPartyConfig",
    "KindSettings",
    "LinearConfig",
    "LossEntry",
    "MovingPartyConfig",
    "OptimizerConfig",
    "OptimizerEntry",
    "ProtocolEntry",
    "Registry",
    "RunConfig",
    "SamplerEntry",
    "Settings",
    "StoppingConfig",
    "TransformEntry",
    "TransportConfig",
    "TransportEntry",
    "fixed_party",
    "load_config",
    "moving_party",
]
