"""What memory a run of images needs, before it starts: from the headers' sizes and the configuration alone.

Figures of clear runs are above what `python benchmarks/sizes.py` measured; those of private runs, of control lattices
and of losses that hold their rows are cautious guesses, fitted to no run. Each party of a run here is a process of this
machine, so that their needs add up.

>>> need = needs(((512, 512, 300), (512, 512, 300)), points=4_915_200, protocol="beaver")
>>> sorted(need), need["party_1"] > need["party_2"] > 1e9
(['dealer', 'party_1', 'party_2'], True)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.images import RunConfig
from ..errors import ConfigError, ImageError
from ..grids import Grid
from ..images import image_size
from ..levels import level_grid
from ..registration.build import build_measure, build_plan

__all__ = ["available_memory", "check_memory", "needs"]

log = logging.getLogger(__name__)

FLOAT32 = 4
IMAGE_VOLUMES = 4.5  # while a party's own image is read, smoothed, warped and written
IN_PARTS = ("ssd", "ncc", "ncc_squared")  # losses whose rows no array holds, of linear transforms
WHOLE_ROWS = 30.0  # volumes more, of the losses that hold theirs


@dataclass(frozen=True)
class Role:
    """What a role's process takes.

    Attributes:
        base: bytes, with its packages.
        linear: float32 volumes of the finest level, of a linear transform.
        deformable: the same of a control lattice's products.
    """

    base: float
    linear: float
    deformable: float


ROLES: dict[str, dict[str, Role]] = {
    "clear": {"this process": Role(5e8, 9.0, 16.0)},
    "beaver": {
        "party_1": Role(5e8, 12.0, 40.0),
        "party_2": Role(4.5e8, 7.0, 28.0),
        "dealer": Role(4.5e8, 1.0, 24.0),
    },
    "spdz": {
        "party_1": Role(7e8, 8.0, 40.0),
        "party_2": Role(6.5e8, 7.0, 40.0),
        "dealer": Role(3.5e8, 1.0, 4.0),
    },
    "bfv": {"party_1": Role(6e8, 60.0, 60.0), "party_2": Role(4.5e8, 30.0, 30.0)},
    "ckks": {"party_1": Role(6e8, 60.0, 60.0), "party_2": Role(4.5e8, 30.0, 30.0)},
}
"""By protocol; one that is not here is not ours, and nothing is known of it."""


def needs(
    sizes: tuple[Sequence[int], Sequence[int]],
    points: int,
    protocol: str,
    channels: int = 1,
    deformable: bool = False,
    in_parts: bool = True,
) -> dict[str, float]:
    """Bytes that each role needs at its peak, about.

    Args:
        sizes: voxels along each axis of the moving and of the fixed image.
        points: of the finest level.
        protocol: as the configuration says it; of an unknown one nothing is known.
        channels: of the features.
        deformable: whether a control lattice is fitted.
        in_parts: whether the loss makes its rows where they are read.
    """
    moving, fixed = (FLOAT32 * math.prod(size) for size in sizes)
    level = FLOAT32 * points * channels
    found = {}
    for name, role in ROLES.get(protocol, {}).items():
        own = {"party_1": moving, "party_2": fixed, "dealer": 0}.get(name, moving + fixed)
        volumes = max(role.linear, role.deformable if deformable else 0.0)
        volumes += 0.0 if in_parts or deformable or name == "dealer" else WHOLE_ROWS
        # Reading and writing are over while the finest level lasts, but for the images themselves.
        found[name] = role.base + max(IMAGE_VOLUMES * own, own + volumes * level)
    return found


def available_memory() -> float:
    """Bytes that this process may still take: of the machine, or of the control group that it is in."""
    free = math.inf
    lines = _lines(Path("/proc/meminfo"))
    for line in lines:
        if line.startswith("MemAvailable:"):
            free = 1024.0 * int(line.split()[1])
    group = Path("/sys/fs/cgroup")
    limit, used = (_lines(group / name)[:1] for name in ("memory.max", "memory.current"))
    if limit and used and limit[0].isdecimal() and used[0].isdecimal():
        free = min(free, float(limit[0]) - float(used[0]))
    return free


def check_memory(config: RunConfig) -> None:
    """Say what a run needs; refuse it where there is less.

    Raises:
        ConfigError: in one line, with what would help.
    """
    try:
        sizes = image_size(config.data.moving), image_size(config.data.fixed)
    except ImageError:
        return  # refused where it is read, by whose it is
    if len(sizes[0]) != len(sizes[1]):
        return  # refused where the two meet
    grid = Grid(sizes[1])
    public = config.model_copy(update={"start": config.start.model_copy(update={"kind": "centres", "path": None})})
    plan = build_plan(public, grid).on(grid)
    levels = [*(plan.levels or ()), *((plan.deformable.levels or ()) if plan.deformable else ())]
    points = max(level_grid(grid, level)[0].count for level in levels)
    channels = build_measure(config.loss).channels(len(sizes[1]))
    in_parts = config.loss.kind in IN_PARTS
    found = needs(sizes, points, config.backend.kind, channels, plan.deformable is not None, in_parts)
    if found:
        _say_or_refuse(found, available_memory(), points)


def _say_or_refuse(found: Mapping[str, float], free: float, points: int) -> None:
    each = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in found.items())
    total = sum(found.values())
    if total > free:
        raise ConfigError(
            f"memory: about {total / 1e9:.1f} GB are needed ({each}; {points:,} points at the finest level) and "
            f"{free / 1e9:.1f} GB are free; leave out the finest level (pyramid.levels) or take a share of its points "
            "(sampler urs)"
        )
    log.info("memory: about %s of %.1f GB that are free", each, free / 1e9)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
