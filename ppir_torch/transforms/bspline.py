"""Free-form deformations: y = x + u(x), u a uniform cubic B-spline with control points on a lattice.

Rueckert et al., "Nonrigid registration using free-form deformations", IEEE TMI 18(8), 1999. Lattice and map are those
of ITK's BSplineTransform of order 3.

>>> from ppir_torch.transforms import ControlLattice
>>> lattice = ControlLattice(Grid(size=(9, 5), spacing=(2.0, 2.0)), spacing_mm=8.0)
>>> BSpline(lattice).coefficients.shape
torch.Size([2, 4, 5])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.transforms import TRANSFORMS
from ..grids import Grid
from .dense import Displacement, Inverse, invert
from .folding import keep_unfolded
from .lattice import LatticeTransform, cubic_weights, expand, inside_domain

__all__ = ["BSpline"]

CHUNK = 2**13


class BSpline(LatticeTransform):
    """Free-form deformation: x -> x + u(x), u a cubic B-spline (Rueckert et al., TMI 1999, equation 1).

    The parameter `coefficients` (D, [mz,] my, mx) holds the control points' displacements in mm along the physical LPS
    axes x, y[, z]; zeros, the identity, at first.

    Args:
        lattice: the control points.
        dtype: of the parameter.

    >>> from ppir_torch.transforms import ControlLattice
    >>> BSpline(ControlLattice(Grid((9, 9)), 4.0))
    BSpline(size=(5, 5), control_spacing_mm=(4.0, 4.0), largest_mm=0)
    """

    entry = TRANSFORMS.ours("bspline")
    has_itk_form = True

    def field_of(self, spline: Tensor, grid: Grid) -> Tensor:  # noqa: ARG002
        """The spline itself."""
        return spline

    def forward(self, points: Tensor) -> Tensor:
        """Map any points (..., D) in mm to points (..., D) in mm, in the points' dtype; nothing moves outside.

        Differentiable in both modes (autograd, torch.func.jvp) in the points and in the parameter.

        >>> from ppir_torch.transforms import ControlLattice
        >>> BSpline(ControlLattice(Grid((9, 9)), 4.0))(torch.tensor([[3.0, 4.0]])).tolist()
        [[3.0, 4.0]]
        """
        flat = points.reshape(-1, self.dimension)
        # A part's 4^D neighbours are added up within the processor's cache.
        moved = [self._displacement_at(part) for part in torch.split(flat, CHUNK)]
        return points + torch.cat(moved).reshape(points.shape)

    def _displacement_at(self, points: Tensor) -> Tensor:
        lattice = self.lattice
        matrix, origin = lattice.grid.index_to_physical()
        cells = torch.tensor(lattice.cells, device=points.device)
        index = (points - origin.to(points)) @ torch.linalg.inv(matrix).T.to(points)
        position = index / torch.tensor(lattice.multiples).to(points)
        inside = inside_domain(position, cells).all(-1, keepdim=True)
        position = torch.where(inside, position, 0.0)
        cell = torch.minimum(position.detach().floor().clamp(min=0), cells - 1)
        strides = [math.prod(lattice.size[:axis]) for axis in range(self.dimension)]
        first = (cell.long() * torch.tensor(strides, device=points.device)).sum(-1)
        table = self.coefficients.flatten(1).to(points)
        moved = _weighted(table, first, cubic_weights((position - cell).T.contiguous()), strides)
        return torch.where(inside, moved.T, 0.0)

    def displacement(self, grid: Grid) -> Tensor:
        """u (N, D) in mm at the voxels of a level's grid, in the parameter's dtype: fast, axis by axis, differentiable.

        Raises:
            ConfigError: the grid's direction or dimension is another than the lattice's.

        >>> from ppir_torch.transforms import ControlLattice
        >>> BSpline(ControlLattice(Grid((9, 9)), 4.0)).displacement(Grid((3, 3), (4.0, 4.0))).shape
        torch.Size([9, 2])
        """
        return expand(self.coefficients, self.lattice.matrices(grid)).flatten(1).T

    def settle(self, before: list[Tensor]) -> bool:
        """See `LatticeTransform`."""
        return keep_unfolded(self.coefficients, before[0], self.lattice, self.jacobian_min)

    def sampled(self) -> BSpline:
        """Itself: nothing is worked out before a call."""
        return self

    def inverse(self, grid: Grid | None = None, iterations: int = 100, tolerance_mm: float = 1e-3) -> Inverse:
        """The map back, sampled on `grid` (default: the lattice's), by fixed-point iteration; see `dense.invert`.

        Raises:
            ConfigError: after `iterations` a point is more than `tolerance_mm` from its target, as where the map folds.

        >>> from ppir_torch.transforms import ControlLattice
        >>> BSpline(ControlLattice(Grid((9, 9)), 4.0)).inverse().field.abs().max().item()
        0.0
        """
        grid, domain = grid or self.lattice.grid, self.lattice.domain
        # Linear interpolation of the sampled map is far faster and leaves few steps with the map itself.
        sampled = Displacement(domain, expand(self.coefficients.double(), self.lattice.matrices(domain)))
        near = invert(sampled, domain, grid, iterations, tolerance_mm)
        return invert(self, domain, grid, iterations, tolerance_mm, near)


def _weighted(table: Tensor, first: Tensor, weights: tuple[Tensor, ...], strides: list[int]) -> Tensor:
    """(D, n): the sum of 4^a neighbours in `table` (D, m), a = len(strides), from `first` (n,) on; weights (a, n)."""
    if not strides:
        return table.index_select(1, first)
    *inner, stride = strides
    slabs = [weights[o][len(inner)] * _weighted(table, first + o * stride, weights, inner) for o in range(4)]
    return slabs[0] + slabs[1] + slabs[2] + slabs[3]
