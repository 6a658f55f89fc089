"""Diffeomorphisms from stationary velocity fields: y = exp(v)(x), v a cubic B-spline on a control lattice.

Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006; Ashburner, "A fast
diffeomorphic image registration algorithm", NeuroImage 38(1), 2007. exp(v) is the flow of v after unit time; that of -v
is its inverse.

>>> transform = VelocityField(ControlLattice(Grid((9, 9)), 4.0))
>>> transform(torch.tensor([[3.0, 4.0]])).tolist()
[[3.0, 4.0]]
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.transforms import TRANSFORMS
from ..errors import ConfigError
from ..grids import Grid
from .dense import Displacement, Inverse, invert, spatial_derivative
from .folding import keep_unfolded
from .lattice import ControlLattice, LatticeTransform, expand

__all__ = ["VelocityField", "exponential"]

FEWEST_SQUARINGS = 4
FIRST_STEP_VOXELS = 0.25
_STEPS = 8  # of the flow that `settle` looks at


class VelocityField(LatticeTransform):
    """The flow exp(v) of a stationary velocity field: smooth and invertible also where a displacement would fold.

    The parameter `coefficients` (D, [mz,] my, mx) holds the control points' velocities in mm (per unit time) along the
    physical LPS axes; zeros, the identity, at first. The flow is computed on `lattice.grid` and interpolated linearly
    between its voxels; as in `Displacement`, nothing moves from half a voxel outside that grid on. A flow that leaves
    the grid is carried on with the border's velocity, so that it is smooth up to the border.

    Each call computes the whole flow. To map many sets of points, sample it once: `sampled`.

    Args:
        lattice: the control points.
        squarings: number of squarings; default: so many (at least 4) that the first step is below a quarter voxel.
        dtype: of the parameter.

    Raises:
        ConfigError: `squarings` is negative.

    >>> VelocityField(ControlLattice(Grid((9, 9)), 4.0), squarings=6)
    VelocityField(size=(5, 5), control_spacing_mm=(4.0, 4.0), squarings=6, largest_mm=0)
    """

    entry = TRANSFORMS.ours("velocity")

    def __init__(
        self, lattice: ControlLattice, squarings: int | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(lattice, dtype)
        if squarings is not None and squarings < 0:
            raise ConfigError(f"squarings: {squarings}, at least 0 are needed")
        self.squarings = squarings

    def velocity(self) -> Tensor:
        """v (D, [z,] y, x) in mm at the voxels of `lattice.grid`, in the parameter's dtype; differentiable.

        >>> VelocityField(ControlLattice(Grid((9, 7)), 4.0)).velocity().shape
        torch.Size([2, 7, 9])
        """
        return expand(self.coefficients, self.lattice.matrices(self.lattice.grid))

    def field_of(self, spline: Tensor, grid: Grid) -> Tensor:
        """exp(v) - id; see `exponential`.

        Raises:
            ConfigError: a coefficient is NaN or infinite.
        """
        return exponential(spline, grid, self.squarings)

    def response(self, field: Tensor, grid: Grid) -> Tensor:
        """dy/dx: an update of v is carried along by the flow (Vercauteren et al., MICCAI 2008)."""
        return spatial_derivative(field, grid)

    def settle(self, before: list[Tensor]) -> bool:
        """See `LatticeTransform`. A flow never folds, but squeezed by more than that it would between two voxels."""
        return keep_unfolded(self.coefficients, before[0], self.lattice, self.jacobian_min, _STEPS)

    def inverse(self) -> Inverse:
        """The map back. It begins at exp(-v), the inverse of the continuous flow, and undoes the interpolation, too.

        Raises:
            ConfigError: it does not converge, as where squarings are too few and the map folds.

        >>> transform = VelocityField(ControlLattice(Grid((9, 9)), 4.0))
        >>> _ = nn.init.ones_(transform.coefficients)
        >>> [round(x, 3) for x in transform.inverse()(torch.tensor([5.0, 4.5])).tolist()]
        [4.0, 3.5]
        """
        back = self.on(self.lattice, -self.coefficients.detach())
        grid = self.lattice.grid
        with torch.no_grad():
            return invert(self.sampled(), grid, grid, start=Displacement(grid, back.field()))

    def on(self, lattice: ControlLattice, coefficients: Tensor) -> VelocityField:
        """See `LatticeTransform`; with as many squarings."""
        result = VelocityField(lattice, self.squarings, coefficients.dtype)
        result.coefficients = nn.Parameter(coefficients)
        return result

    def extra_repr(self) -> str:
        """Shown by print: the squarings, too."""
        where, largest = super().extra_repr().rsplit(", ", 1)
        return f"{where}, squarings={self.squarings}, {largest}"


def exponential(velocity: Tensor, grid: Grid, squarings: int | None = None) -> Tensor:
    """exp(v) - id by scaling and squaring: velocity (D, [z,] y, x) in mm to displacements (D, [z,] y, x) in mm.

    u <- v / 2^K, then K times u(x) <- u(x) + u(x + u(x)) (Arsigny et al., MICCAI 2006), with linear interpolation in
    normalised coordinates; beyond the border its values are repeated. The velocity's dtype and device are kept.

    Args:
        velocity: mm along the physical axes x, y[, z], at the voxels of `grid`.
        grid: where it is sampled.
        squarings: K; default: the least K of at least 4 for which the first step is below a quarter voxel.

    Raises:
        ConfigError: the velocity is NaN or infinite somewhere.

    >>> bool((exponential(torch.full((2, 5, 5), 0.5), Grid((5, 5))) - 0.5).abs().max() < 1e-6)
    True
    """
    steps = _squarings(velocity.detach(), grid) if squarings is None else squarings
    matrix = grid.physical_to_normalised()[0].to(velocity)
    axes = [torch.linspace(-1, 1, n, dtype=velocity.dtype, device=velocity.device) for n in grid.shape]
    identity = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    moved = torch.tensordot(matrix, velocity, dims=1) / 2**steps
    for _ in range(steps):
        where = (identity + moved.movedim(0, -1))[None]
        moved = moved + F.grid_sample(moved[None], where, padding_mode="border", align_corners=True)[0]
    result: Tensor = torch.tensordot(torch.linalg.inv(matrix), moved, dims=1)
    return result


def _squarings(velocity: Tensor, grid: Grid) -> int:
    to_index = torch.linalg.inv(grid.index_to_physical()[0]).to(velocity)
    longest = float(torch.linalg.vector_norm(torch.tensordot(to_index, velocity, dims=1), dim=0).max())
    if not math.isfinite(longest):
        raise ConfigError("velocity field: NaN or infinite, finite millimetres are needed")
    if longest < FIRST_STEP_VOXELS:
        return FEWEST_SQUARINGS
    return max(FEWEST_SQUARINGS, math.floor(math.log2(longest / FIRST_STEP_VOXELS)) + 1)
