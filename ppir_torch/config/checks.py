"""What goes together in a run: lines on what does not, from what the entries say of themselves."""

from __future__ import annotations

from pathlib import Path

from .base import KindSettings, show
from .groups import DataConfig, StartConfig
from .losses import LOSSES
from .optimizers import OPTIMIZERS
from .protocols import PROTOCOLS, suggested
from .registry import words
from .samplers import SAMPLERS
from .transforms import TRANSFORMS

__all__ = [
    "centre_lines",
    "deformable_lines",
    "fail",
    "loss_lines",
    "mask_lines",
    "sampler_lines",
    "start_lines",
]


def sampler_lines(optimizer: KindSettings, sampler: KindSettings) -> list[str]:
    """The sampler's points and the optimiser's sums."""
    if not OPTIMIZERS[optimizer.kind].by_party_2 or SAMPLERS[sampler.kind].known_to_party_2:
        return []
    known = ", ".join(entry.name for entry in SAMPLERS if entry.known_to_party_2)
    return [
        f"sampler.kind: {sampler.kind!r}, with optimizer {optimizer.kind!r} one of {known} is needed: party_2 sums "
        "over the points itself and must know them"
    ]


def loss_lines(loss: KindSettings, optimizer: KindSettings, backend: KindSettings) -> list[str]:
    """The loss with the optimiser, or else with the protocol."""
    chosen = OPTIMIZERS[optimizer.kind]
    if not chosen.goes_with(loss.kind):
        others = words(entry.name for entry in OPTIMIZERS if entry.goes_with(loss.kind))
        return [
            f"optimizer.kind: {optimizer.kind!r}, with loss {loss.kind!r} {others} is needed: {chosen.losses_because}"
        ]
    if backend.kind not in PROTOCOLS or PROTOCOLS[backend.kind].goes_with(loss.kind):
        return []
    protocol = PROTOCOLS[backend.kind]
    return [
        f"loss.kind: {loss.kind!r}, with backend {backend.kind!r} ({protocol.losses_because}) "
        f"{words(protocol.losses or ())} is needed"
    ]


def deformable_lines(
    transform: KindSettings, loss: KindSettings, sampler: KindSettings, backend: KindSettings
) -> list[str]:
    """What a control lattice does not go with."""
    if not TRANSFORMS[transform.kind].lattice:
        return []
    lines, drawn, measure = [], SAMPLERS[sampler.kind], LOSSES[loss.kind]
    if backend.kind in PROTOCOLS and not PROTOCOLS[backend.kind].deformable:
        others = ", ".join(suggested(lambda entry: entry.deformable))
        lines.append(f"backend.kind: {backend.kind!r}, with transform {transform.kind!r} one of {others} is needed")
    if not drawn.deforms:
        others = ", ".join(entry.name for entry in SAMPLERS if entry.deforms)
        lines.append(
            f"sampler.kind: {sampler.kind!r}, with transform {transform.kind!r} one of {others} is needed: its "
            "products keep the image's order"
        )
    if not measure.deforms:
        others = words(entry.name for entry in LOSSES if entry.deforms)
        lines.append(f"loss.kind: {loss.kind!r}, with transform {transform.kind!r} {others} is needed")
    if drawn.weighted and measure.normalised:
        others = ", ".join(entry.name for entry in SAMPLERS if entry.deforms and not entry.weighted)
        lines.append(
            f"sampler.kind: {sampler.kind!r}, with transform {transform.kind!r} and loss {loss.kind!r} one of {others} "
            "is needed: the gradient asks for J's mean over the weighted points, which is not opened"
        )
    return lines


def start_lines(start: StartConfig) -> list[str]:
    """The start's file."""
    lines = []
    if start.kind == "file" and start.path is None:
        lines.append("start.path: missing, the path of an ITK transform is needed with start.kind 'file'")
    if start.kind not in ("file", "atlas") and start.path is not None:
        lines.append(f"start.path: {show(start.path)}, goes with start.kind 'file' and 'atlas' only")
    return lines


def mask_lines(backend: KindSettings, prefix: str, mask: Path | None, disclosed: bool) -> list[str]:
    """The fixed image's mask in a private run; `prefix` is where the fields are."""
    if mask is None or disclosed:
        return []
    return [
        f"{prefix}fixed_mask: {show(mask)}, with backend {backend.kind!r} its shape is told to party_1; "
        f"allow it with {prefix}disclose_mask=true, or leave the mask out"
    ]


def centre_lines(backend: KindSettings, start: StartConfig, data: DataConfig) -> list[str]:
    """The fixed image's centre of mass, or its map to the atlas, in a private run."""
    if start.kind == "atlas" and not data.disclose_atlas_map:
        return [
            f"start.kind: 'atlas', with backend {backend.kind!r} it tells party_1 the affine map from the template to "
            "the fixed image; allow it with data.disclose_atlas_map=true, or use centres, identity or file"
        ]
    if start.kind != "centre_of_mass" or data.disclose_centre_of_mass:
        return []
    return [
        f"start.kind: 'centre_of_mass', with backend {backend.kind!r} it tells party_1 the fixed image's "
        "centre of mass; allow it with data.disclose_centre_of_mass=true, or use centres, identity or file"
    ]


def fail(lines: list[str]) -> None:
    """Raises ValueError where there are any lines."""
    if lines:
        raise ValueError("\n".join(lines))
