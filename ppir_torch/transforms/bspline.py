"""Free-form deformations: y = x + u(x), u a uniform cubic B-spline with control points on a lattice.

Rueckert et al., "Nonrigid registration using free-form deformations", IEEE TMI 18(8), 1999. Lattice and map are those
of ITK's BSplineTransform of order 3: control point j of an axis lies at (j - 1) control spacings from the first voxel,
and nothing moves outside the lattice's domain.

>>> lattice = ControlLattice(Grid(size=(9, 5), spacing=(2.0, 2.0)), spacing_mm=8.0)
>>> lattice.size, BSpline(lattice).coefficients.shape
((5, 4), torch.Size([2, 4, 5]))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..grids import Grid
from .dense import Displacement, invert

__all__ = ["BSpline", "ControlLattice", "adjoint", "expand", "refinement"]

CHUNK = 2**13


@dataclass(frozen=True)
class ControlLattice:
    """Control points of a cubic B-spline that covers a fixed image's grid: a value.

    Along each axis the control spacing is `multiples` voxels, the whole multiple nearest to the wanted spacing, so that
    the basis repeats from cell to cell. The domain starts at the first voxel's centre and ends at or beyond the last's.

    Args:
        grid: the fixed image's grid.
        spacing_mm: wanted control spacing in mm, one for all axes or one per axis x, y[, z]; below a voxel it becomes
            one voxel.

    Raises:
        ConfigError: a spacing that is not positive and finite, or not one per axis.

    >>> lattice = ControlLattice(Grid(size=(10, 9), spacing=(2.0, 3.0)), spacing_mm=8.0)
    >>> lattice.control_spacing, lattice.cells, lattice.shape, lattice.count
    ((8.0, 9.0), (3, 3), (6, 6), 36)
    """

    grid: Grid
    spacing_mm: float | tuple[float, ...]

    def __post_init__(self) -> None:
        wanted = self._wanted()
        if len(wanted) != self.grid.dimension or not all(math.isfinite(s) and s > 0 for s in wanted):
            raise ConfigError(f"control spacing: {self.spacing_mm} mm, positive millimetres are needed (one per axis)")

    def _wanted(self) -> tuple[float, ...]:
        given = self.spacing_mm
        return tuple(given) if isinstance(given, tuple) else (float(given),) * self.grid.dimension

    @property
    def multiples(self) -> tuple[int, ...]:
        """Voxels per control spacing along x, y[, z]."""
        return tuple(max(1, round(w / s)) for w, s in zip(self._wanted(), self.grid.spacing, strict=True))

    @property
    def control_spacing(self) -> tuple[float, ...]:
        """Millimetres between control points along x, y[, z]."""
        return tuple(k * s for k, s in zip(self.multiples, self.grid.spacing, strict=True))

    @property
    def cells(self) -> tuple[int, ...]:
        """Cells (ITK's mesh size) along x, y[, z]; at least 1."""
        return tuple(max(1, math.ceil((n - 1) / k)) for n, k in zip(self.grid.size, self.multiples, strict=True))

    @property
    def size(self) -> tuple[int, ...]:
        """Control points along x, y[, z]: cells + 3."""
        return tuple(c + 3 for c in self.cells)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one component's coefficients, ([mz,] my, mx)."""
        return self.size[::-1]

    @property
    def count(self) -> int:
        """Number of control points."""
        return math.prod(self.size)

    @property
    def domain(self) -> Grid:
        """The grid, extended to the end of the last cells: what lies beyond is not moved."""
        size = tuple(c * k + 1 for c, k in zip(self.cells, self.multiples, strict=True))
        return Grid(size, self.grid.spacing, self.grid.origin, self.grid.direction)

    def matrices(self, grid: Grid) -> tuple[Tensor, ...]:
        """The basis at the voxels of a level: one dense float64 matrix (n_a, m_a) per axis x, y[, z], on the CPU.

        Args:
            grid: a grid with this one's direction, such as `self.grid.shrunk(...)` gives; rows of voxels outside the
                domain are zero.

        Raises:
            ConfigError: another direction or dimension.

        >>> grid = Grid((9, 5))
        >>> [m.shape for m in ControlLattice(grid, 4.0).matrices(grid)]
        [torch.Size([9, 5]), torch.Size([5, 4])]
        """
        turn = [abs(a - b) for a, b in zip(grid.direction, self.grid.direction, strict=False)]
        if grid.dimension != self.grid.dimension or max(turn) > 1e-6:
            raise ConfigError(
                f"grid with direction {grid.direction}: a lattice on a grid with direction {self.grid.direction} is "
                "separable only on grids of the same direction; use forward on the grid's points"
            )
        matrix, origin = self.grid.index_to_physical()
        start = torch.linalg.inv(matrix) @ (grid.index_to_physical()[1] - origin)
        result = []
        for axis, (k, cells) in enumerate(zip(self.multiples, self.cells, strict=True)):
            ratio = grid.spacing[axis] / self.grid.spacing[axis]
            position = (start[axis] + ratio * torch.arange(grid.size[axis], dtype=torch.float64)) / k
            result.append(_basis(position, cells) * _inside(position, cells)[:, None])
        return tuple(result)


def expand(coefficients: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """Apply the separable basis: coefficients (..., [mz,] my, mx) to values (..., [z,] y, x), axis by axis.

    Any floating dtype and device, kept; units are kept too. Differentiable. `matrices` (n_a, m_a) for x, y[, z].

    >>> grid = Grid((9, 5))
    >>> matrices = ControlLattice(grid, 4.0).matrices(grid)
    >>> bool((expand(torch.ones(2, 4, 5), matrices) - 1).abs().max() < 1e-6)
    True
    """
    for axis, matrix in enumerate(matrices):
        coefficients = _along(coefficients, matrix.to(coefficients), axis)
    return coefficients


def adjoint(values: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """The transpose of `expand`: values (..., [z,] y, x) to (..., [mz,] my, mx), axis by axis.

    Any floating dtype and device, kept. Differentiable. <expand(c), y> = <c, adjoint(y)>.

    >>> grid = Grid((9, 5))
    >>> matrices = ControlLattice(grid, 4.0).matrices(grid)
    >>> adjoint(torch.ones(2, 5, 9), matrices).shape
    torch.Size([2, 4, 5])
    """
    for axis, matrix in reversed(list(enumerate(matrices))):
        values = _along(values, matrix.T.to(values), axis)
    return values


class BSpline(nn.Module):
    """Free-form deformation: x -> x + u(x), u a cubic B-spline (Rueckert et al., TMI 1999, equation 1).

    The parameter `coefficients` (D, [mz,] my, mx) holds the control points' displacements in mm along the physical LPS
    axes x, y[, z]; zeros, the identity, at first.

    Args:
        lattice: the control points.
        dtype: of the parameter.

    >>> BSpline(ControlLattice(Grid((9, 9)), 4.0))
    BSpline(size=(5, 5), control_spacing_mm=(4.0, 4.0), largest_mm=0)
    """

    def __init__(self, lattice: ControlLattice, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.lattice = lattice
        self.dimension = lattice.grid.dimension
        self.coefficients = nn.Parameter(torch.zeros(self.dimension, *lattice.shape, dtype=dtype))

    def forward(self, points: Tensor) -> Tensor:
        """Map any points (..., D) in mm to points (..., D) in mm, in the points' dtype; nothing moves outside.

        Differentiable in both modes (autograd, torch.func.jvp) in the points and in the parameter.

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
        inside = _inside(position, cells).all(-1, keepdim=True)
        position = torch.where(inside, position, 0.0)
        cell = torch.minimum(position.detach().floor().clamp(min=0), cells - 1)
        strides = [math.prod(lattice.size[:axis]) for axis in range(self.dimension)]
        first = (cell.long() * torch.tensor(strides, device=points.device)).sum(-1)
        table = self.coefficients.flatten(1).to(points)
        moved = _weighted(table, first, _cubic((position - cell).T.contiguous()), strides)
        return torch.where(inside, moved.T, 0.0)

    def displacement(self, grid: Grid) -> Tensor:
        """u (N, D) in mm at the voxels of a level's grid, in the parameter's dtype: fast, axis by axis, differentiable.

        Raises:
            ConfigError: the grid's direction or dimension is another than the lattice's.

        >>> BSpline(ControlLattice(Grid((9, 9)), 4.0)).displacement(Grid((3, 3), (4.0, 4.0))).shape
        torch.Size([9, 2])
        """
        return expand(self.coefficients, self.lattice.matrices(grid)).flatten(1).T

    def refined(self, spacing_mm: float | tuple[float, ...]) -> BSpline:
        """The same map with control points `spacing_mm` apart, for the next resolution level; self is left alone.

        Exact on the grid, to rounding, where each old control spacing is a whole multiple of the new one (halving, as
        by knot insertion). Otherwise least squares along each axis: an approximation.

        Raises:
            ConfigError: as ControlLattice.

        >>> coarse = BSpline(ControlLattice(Grid((9, 9)), 4.0))
        >>> coarse.refined(2.0).lattice.size
        (7, 7)
        """
        lattice = ControlLattice(self.lattice.grid, spacing_mm)
        finer = BSpline(lattice, self.coefficients.dtype)
        finer.coefficients = nn.Parameter(expand(self.coefficients.detach(), refinement(self.lattice, lattice)))
        return finer

    def inverse(self, grid: Grid | None = None, iterations: int = 100, tolerance_mm: float = 1e-3) -> Displacement:
        """The map back, sampled on `grid` (default: the lattice's), by fixed-point iteration; see `dense.invert`.

        Raises:
            ConfigError: after `iterations` a point is more than `tolerance_mm` from its target, as where the map folds.

        >>> BSpline(ControlLattice(Grid((9, 9)), 4.0)).inverse().field.abs().max().item()
        0.0
        """
        grid, domain = grid or self.lattice.grid, self.lattice.domain
        # Linear interpolation of the sampled map is far faster and leaves few steps with the map itself.
        sampled = Displacement(domain, expand(self.coefficients.double(), self.lattice.matrices(domain)))
        near = invert(sampled, domain, grid, iterations, tolerance_mm)
        return invert(self, domain, grid, iterations, tolerance_mm, near)

    def extra_repr(self) -> str:
        """Shown by print: the lattice and the largest coefficient in mm."""
        return (
            f"size={self.lattice.size}, control_spacing_mm={self.lattice.control_spacing}, "
            f"largest_mm={float(self.coefficients.detach().abs().max()):.4g}"
        )


def refinement(old: ControlLattice, new: ControlLattice) -> tuple[Tensor, ...]:
    """Matrices (m_new, m_old), float64, per axis x, y[, z]: `expand` with them takes coefficients to the new lattice.

    Both lattices lie on one grid. Least squares at four samples per cell over the new domain: exact, to rounding,
    where the spline spaces are nested. Where the new domain is the longer, the last cell's polynomial is carried on.

    >>> grid = Grid((9, 9))
    >>> [m.shape for m in refinement(ControlLattice(grid, 4.0), ControlLattice(grid, 2.0))]
    [torch.Size([7, 5]), torch.Size([7, 5])]
    """
    result = []
    for k_old, cells_old, k, cells in zip(old.multiples, old.cells, new.multiples, new.cells, strict=True):
        samples = torch.linspace(0, cells * k, 4 * math.ceil(cells * k / min(k, k_old)) + 1, dtype=torch.float64)
        result.append(_least_squares(_basis(samples / k, cells), _basis(samples / k_old, cells_old)))
    return tuple(result)


def _least_squares(left: Tensor, right: Tensor) -> Tensor:
    """By QR: the default driver (with pivoting) rounds differently from call to call."""
    solution: Tensor = torch.linalg.lstsq(left, right, driver="gels").solution
    return solution


def _cubic(fraction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four uniform cubic B-splines that are not zero in a cell, at `fraction` in [0, 1] of it."""
    f = fraction
    rest = 1 - f
    return rest**3 / 6, (4 - 6 * f**2 + 3 * f**3) / 6, (4 - 6 * rest**2 + 3 * rest**3) / 6, f**3 / 6


def _weighted(table: Tensor, first: Tensor, weights: tuple[Tensor, ...], strides: list[int]) -> Tensor:
    """(D, n): the sum of 4^a neighbours in `table` (D, m), a = len(strides), from `first` (n,) on; weights (a, n)."""
    if not strides:
        return table.index_select(1, first)
    *inner, stride = strides
    slabs = [weights[o][len(inner)] * _weighted(table, first + o * stride, weights, inner) for o in range(4)]
    return slabs[0] + slabs[1] + slabs[2] + slabs[3]


def _basis(position: Tensor, cells: int) -> Tensor:
    """(n, cells + 3) weights at `position` (n,) in cells; the outer cells' polynomials are carried on beyond them."""
    cell = position.floor().clamp(0, cells - 1)
    columns = cell.long()[:, None] + torch.arange(4)
    weights = torch.stack(_cubic(position - cell), -1)
    return torch.zeros(len(position), cells + 3, dtype=position.dtype).scatter_(1, columns, weights)


def _inside(position: Tensor, cells: Tensor | int) -> Tensor:
    """Whether positions in cells lie in the closed domain; half the digits are left to rounding."""
    slack = torch.finfo(position.dtype).eps ** 0.5
    return torch.logical_and(position >= -slack, position - cells <= slack)


def _along(values: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply the axis-th last axis of `values` by a matrix (n, m)."""
    if axis == 0:
        return values @ matrix.T
    rest = values.shape[values.ndim - axis :]
    flat = matrix @ values.flatten(values.ndim - axis)
    return flat.reshape(*flat.shape[:-1], *rest)
