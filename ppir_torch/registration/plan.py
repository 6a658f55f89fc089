"""What to run: the plan of a registration, all of it public and agreed on by both parties.

>>> Plan(transform="rigid").check()
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import ConfigError
from ..grids import Grid
from ..levels import DEFORMABLE_POINTS, Level, automatic_levels
from ..losses import Measure, SquaredDifference
from ..optimizers import GaussNewton, Optimizer, Stopping
from ..sampling import Full, Sampler
from ..transforms import Affine

__all__ = ["Deformable", "Plan", "smoothed_for_lattices"]


@dataclass(frozen=True)
class Deformable:
    """The deformable stage of a run, which follows the linear one.

    Args:
        kind: "bspline" (free-form deformation) or "velocity" (diffeomorphic).
        spacing_mm: between control points at the finest level; twice that a level before, and so on.
        regulariser: "bending", "diffusion" or "elastic".
        weight: of the regulariser at the finest level in units of the fixed image's variance, see `Smoothness`. It
            counts from where a level starts, and differences between neighbouring control points cost the same at each
            level: what a coarse level has found, smooth by its few control points, is not held back at the finer ones.
        levels: coarse to fine; None: from the fixed image's grid, the finest smoothed by a voxel.
        stopping: of each level.
        jacobian_min: no step of the fit makes the map squeeze a volume below this share of it; 0: it may fold.
    """

    kind: str = "bspline"
    spacing_mm: float = 8.0
    regulariser: Literal["bending", "diffusion", "elastic"] = "bending"
    weight: float = 0.3
    levels: tuple[Level, ...] | None = None
    stopping: Stopping = field(default_factory=lambda: Stopping(100, 0.01, 1e-3, longest_voxels=1.5))
    jacobian_min: float = 0.1


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        transform: "translation", "rigid", "similarity" or "affine".
        levels: coarse to fine; None: from the fixed image's grid (`automatic_levels`).
        sampler: `Full`, `Uniform` (URS), `Chunks` (URS under encryption) or `GradientMagnitude` (GMS). In a deformable
            stage their fraction is of the finest level's points; coarser levels take as many, up to all.
        optimizer: `GaussNewton`, `LBFGS` (for `MutualInformation`), `InverseCompositional` or `Adam`.
        stopping: of each level.
        start: "centres" (of the two images), "centre_of_mass", "identity", or a start Affine.
        turns: degrees by which the images may lie turned to each other at the start: the coarsest level is tried from
            some turns up to that, and goes on from the best. 0: from the start alone.
        deformable: what follows the linear stage, if anything does.
        loss: the measure of similarity: `SquaredDifference`, `Correlation`, `LocalCorrelation`, `Mind`, or
            `ModuleFeatures` of any network.
    """

    transform: str = "affine"
    levels: tuple[Level, ...] | None = None
    sampler: Sampler = field(default_factory=Full)
    optimizer: Optimizer = field(default_factory=GaussNewton)
    stopping: Stopping = field(default_factory=Stopping)
    start: str | Affine = "centres"
    turns: float = 0.0
    deformable: Deformable | None = None
    loss: Measure = field(default_factory=SquaredDifference)

    @property
    def count(self) -> int:
        """Levels of both stages."""
        deformable = () if self.deformable is None else self.deformable.levels
        return len(self.levels or ()) + len(deformable or ())

    def on(self, grid: Grid) -> Plan:
        """The plan for a fixed image on this grid: every level of its own instead of None."""
        levels = automatic_levels(grid) if self.levels is None else self.levels
        wanted = self.deformable
        if wanted is not None and wanted.levels is None:
            free = automatic_levels(grid, most_points=DEFORMABLE_POINTS)
            wanted = replace(wanted, levels=tuple(smoothed_for_lattices(level, grid) for level in free))
        return replace(self, levels=levels, deformable=wanted)

    def check(self) -> None:
        """Refuse what does not go together, before anything is computed or sent.

        Raises:
            ConfigError: one line: what was chosen, and what goes with it.
        """
        self.optimizer.check(self.loss.kind)
        if self.deformable is None:
            return
        if not self.loss.deforms:
            raise ConfigError(
                f"loss: {self.loss.kind!r} is for linear transforms; take cr, mind, local_ncc or ncc to deform"
            )
        sampler = type(self.sampler).__name__
        if not self.sampler.entry.deforms:
            raise ConfigError(
                f"sampler: {sampler}, with a deformable stage one of Full, Uniform (URS), GradientMagnitude (GMS) is "
                "needed: mapped products keep the image's order"
            )
        if self.loss.normalised and self.sampler.entry.weighted:
            raise ConfigError(
                f"sampler: {sampler}, with a deformable stage and loss {self.loss.kind!r} one of Full, Uniform "
                "(URS) is needed: its gradient asks for J's mean over the weighted points, which is not opened"
            )


def smoothed_for_lattices(level: Level, grid: Grid) -> Level:
    """A level of a deformable stage whose smoothing nobody said: at full resolution by a voxel, not by nothing.

    Between voxels linear interpolation averages noise away, and a free deformation would follow that.
    """
    return replace(level, smoothing_mm=min(grid.spacing)) if level.factor == 1 else level
