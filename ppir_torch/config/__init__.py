"""Configurations: what may be set, within which ranges, and what goes together. Imports neither torch nor Hydra."""

from .images import FixedPartyConfig, MovingPartyConfig, RunConfig, fixed_party, load_config, moving_party

__all__ = ["FixedPartyConfig", "MovingPartyConfig", "RunConfig", "fixed_party", "load_config", "moving_party"]
