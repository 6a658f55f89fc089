"""One level of a run before its first iteration: the moving image's features, and the operand that it needs.

Which columns and rows follow from the loss, the optimiser and the protocol; which points, from the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ConfigError
from ..grids import Grid
from ..images import Image, Level, level_grid
from ..joint.columns import Columns
from ..joint.operands import Operand
from ..joint.placement import select_points
from ..losses import Measure
from ..optimizers import Optimizer
from ..sampling import Full, Sampler
from ..transforms import ControlLattice, LinearTransform
from ..warping import channels_above_outside, resampled_along, sample_with_gradient
from .plan import Plan
from .request import OperandRequest
from .rounds import Domain
from .source import FixedSource

__all__ = ["RunLevel", "moving_features"]

MATRIX_STEPS = 32


@dataclass(frozen=True)
class RunLevel:
    """A level as party_1 enters it; to samplers it is the `LevelView`.

    Attributes:
        plan: of the run.
        fixed: the source of operands.
        moving: the moving image's features at the level.
        transform: the linear transform that the level starts from.
        level: shrink factor and smoothing.
        number: of the level, in both stages together.
        content: how much the moving image counts at the level, see `overlap.content`.
        masked: whether it has a mask.
    """

    plan: Plan
    fixed: FixedSource
    moving: Image
    transform: LinearTransform
    level: Level
    number: int
    content: Image
    masked: bool = False

    @cached_property
    def grid(self) -> Grid:
        """Of the fixed image at the level."""
        return level_grid(self.fixed.grid, self.level)[0]

    @cached_property
    def candidates(self) -> Tensor | None:
        """Flat indices of the level's points that count; None means all."""
        return select_points(self.fixed.grid, self.fixed.mask, self.level, Full(), self.number)[0]

    @property
    def count(self) -> int:
        """Points that a sampler chooses from."""
        return self.grid.count if self.candidates is None else self.candidates.numel()

    def domain(self, index: Tensor | None) -> Domain:
        """Fixed points of flat indices (None: all), and how much the moving image counts where they are mapped to."""
        points = self.grid.points(index, self.content.tensor.dtype, self.content.tensor.device)
        return Domain(self.content, points, self.masked)

    def linear_operand(self, optimizer: Optimizer, squares: bool) -> Operand:
        """The operand that the plan's loss needs to fit the linear transform.

        Args:
            optimizer: of the level.
            squares: whether the points are to count by an overlap.
        """
        plan, measure, dimension = self.plan, self.plan.loss, self.fixed.grid.dimension
        rows, columns = 1 + sum(p.numel() for p in self.transform.parameters()), measure.columns()
        own = optimizer.columns(plan.transform)
        if columns.kind != "image":
            rows = 0
        elif own is not None:
            rows, columns = 1, own
        elif self._by_moments():
            rows, columns = 1 + dimension, Columns("moments")
        if columns.kind in ("image", "moments"):
            columns = replace(columns, squares=squares)
        rows = max(rows, measure.most_rows(dimension))
        return self._sampled(plan.sampler, OperandRequest(self.level, rows=rows, columns=columns))

    def mapped_operand(self, lattice: ControlLattice) -> Operand:
        """The operand that a control lattice's coefficients need, with the lattice's map."""
        assert self.plan.deformable is not None
        assert self.plan.deformable.levels
        finest = level_grid(self.fixed.grid, self.plan.deformable.levels[-1])[0]
        # Control points lie as many voxels apart at every level. A share of few voxels says too little of them, the
        # level ends in another minimum, and the finer ones do not get out of it: so as many points as at the finest.
        sampler = self.plan.sampler.for_level(finest.count, self.grid.count)
        rows, beside = 1 + self.fixed.grid.dimension, self.plan.loss.rows_beside()
        return self._sampled(sampler, OperandRequest(self.level, rows=rows, lattice=lattice, rows_beside=beside))

    def gradient_magnitude(self) -> Tensor:
        """Of the warped moving image (of its features: of all channels) at the level's candidate points (N,).

        Along the rounded transform: private and clear runs, a rounding apart, draw the same points. The weights make
        up for other probabilities.
        """
        centre = self.fixed.grid.centre
        with torch.no_grad():
            target = self.transform(centre[None])[0].double()
        matrix, step = _rounded_matrix(self.transform).double(), min(self.fixed.grid.spacing)
        offset = (target / step).round() * step - matrix @ centre.double()
        points = self.grid.points(self.candidates, torch.float64)
        mapped = (points @ matrix.T + offset).to(self.moving.tensor)
        gradients = [sample_with_gradient(above, 0.0, mapped)[1] for above, _ in channels_above_outside(self.moving)]
        magnitude: Tensor = torch.linalg.vector_norm(torch.cat(gradients, 1), dim=1)
        return magnitude

    def _by_moments(self) -> bool:
        """Whether products go by moments; a normalised J has another mean over points that party_2 does not know."""
        measure = self.plan.loss
        points = self.grid.count * measure.channels(self.grid.dimension)
        if not self.transform.any_affine_map or not self.fixed.prefers_moments(points):
            return False
        return self.plan.sampler.points_known or not measure.normalised

    def _sampled(self, sampler: Sampler, request: OperandRequest) -> Operand:
        """The operand at the sampler's points."""
        selected = sampler.select(self)
        if request.lattice is not None and not selected.choice.keeps_order:
            raise ConfigError(f"sampler: {type(sampler).__name__}, mapped products keep the image's order")
        operand = self.fixed.operand(
            replace(request, choice=selected.choice, number=self.number, measure=self.plan.loss)
        )
        return operand if selected.positions is None else operand.part(selected.positions, selected.weights)


def moving_features(moving: Image, measure: Measure, fixed: Grid, level: Level, transform: LinearTransform) -> Image:
    """The moving image's own features at the level; of the fixed image only the public grid counts.

    Those that depend on axes and voxels are made along the transform that the level starts from. Its matrix is
    rounded: voxels that fell on the fixed image's own would hold the transform where it is (they alone are not
    blurred by interpolation), and private and clear runs, a rounding apart, make the same features.
    """
    grid = level_grid(fixed, level)[0]
    if not measure.follows_axes:
        return measure.features(moving.at_level(level), grid)
    smooth = moving.at_level(Level(1, level.smoothing_mm))
    return measure.features(resampled_along(smooth, _rounded_matrix(transform), grid), grid)


def _rounded_matrix(transform: LinearTransform) -> Tensor:
    """(D, D), the same for runs whose transforms are a rounding apart."""
    return (transform.affine_map()[0].detach() * MATRIX_STEPS).round() / MATRIX_STEPS
