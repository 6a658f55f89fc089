"""All registries together: what help texts and `ppir info` say of them.

>>> names_for_help()["samplers"]
'none, urs, chunks or gms'
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .losses import DEFAULT_LOSSES, LOSSES
from .optimizers import OPTIMIZERS
from .presets import PRESETS
from .protocols import AUTO, PROTOCOLS, backends, suggested
from .registry import Registry, words
from .samplers import SAMPLERS
from .transforms import TRANSFORMS
from .transports import TRANSPORTS

__all__ = ["REGISTRIES", "backends", "from_elsewhere", "names_for_help"]

REGISTRIES: tuple[Registry[Any], ...] = (LOSSES, TRANSFORMS, OPTIMIZERS, SAMPLERS, PROTOCOLS, TRANSPORTS)


def names_for_help() -> dict[str, str]:
    """What can be chosen, in words, by the name that a help text has for it."""
    clear, *secure = suggested(lambda entry: not entry.insecure)
    return {
        "transforms": words(TRANSFORMS.names()),
        "presets": "; ".join(f"{name}: {whom}" for name, whom in PRESETS.items()),
        "loss": DEFAULT_LOSSES[0].kind,
        "losses": words(LOSSES.names()),
        "optimizers": words(OPTIMIZERS.names()),
        "samplers": words(SAMPLERS.names()),
        "backends": words([clear, AUTO.name, *secure]),
        "points_backends": words(suggested(lambda entry: entry.points)),
        "without_device": ", ".join(entry.name for entry in PROTOCOLS if not entry.device and not entry.insecure),
    }


def from_elsewhere() -> Iterator[str]:
    """A line for each entry of another package, and for each that cannot be used."""
    for registry in REGISTRIES:
        for entry in registry:
            if distribution := registry.distribution(entry.name):
                yield f"{registry.noun} {entry.name}: {entry.title} (of {distribution})"
        for name, reason in registry.broken().items():
            yield f"{registry.noun} {name}: {reason}"
