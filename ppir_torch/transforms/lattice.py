"""Control lattices: the control points of cubic B-splines over an image's grid, and the transforms that have them.

Control point j of an axis lies at (j - 1) control spacings from the first voxel, and nothing moves outside the
lattice's domain: the convention of ITK's BSplineTransform of order 3.

>>> lattice = ControlLattice(Grid(size=(9, 5), spacing=(2.0, 2.0)), spacing_mm=8.0)
>>> lattice.size, lattice_transform("bspline")(lattice).coefficients.shape
((5, 4), torch.Size([2, 4, 5]))
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..config.transforms import TRANSFORMS, TransformEntry
from ..errors import ConfigError
from ..grids import Grid
from .dense import Displacement, interpolate, invert

__all__ = [
    "ControlLattice",
    "LatticeTransform",
    "adjoint",
    "cubic_weights",
    "expand",
    "inside_domain",
    "lattice_transform",
    "refinement",
]

L = TypeVar("L", bound="LatticeTransform")


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
            result.append(_basis(position, cells) * inside_domain(position, cells)[:, None])
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


class LatticeTransform(nn.Module):
    """Base of the transforms whose parameter is a control lattice's: y = x + u(x), u made of a cubic B-spline.

    The parameter `coefficients` (D, [mz,] my, mx) holds mm along the physical LPS axes x, y[, z]; zeros, the identity,
    at first. What a subclass has to say is `field_of`: what becomes of the spline. Everything else follows from that,
    on the grid that the lattice lies on: points between its voxels are interpolated linearly, files hold the sampled
    displacement, the inverse is found by iteration. A subclass that knows better overrides the method.

    Args:
        lattice: the control points.
        dtype: of the parameter.

    Attributes:
        entry: what is known of it: its name in configurations, files and messages.
        has_itk_form: ITK files hold it as it is (`to_simpleitk_transform`), not its sampled displacement.
        jacobian_min: while it is fitted, the least determinant of the map's derivative that a step may lead to; 0: any.
    """

    entry: ClassVar[TransformEntry]
    has_itk_form: ClassVar[bool] = False
    jacobian_min: float = 0.0

    def __init__(self, lattice: ControlLattice, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.lattice = lattice
        self.dimension = lattice.grid.dimension
        self.coefficients = nn.Parameter(torch.zeros(self.dimension, *lattice.shape, dtype=dtype))

    @property
    def name(self) -> str:
        """As in configurations."""
        return self.entry.name

    @abstractmethod
    def field_of(self, spline: Tensor, grid: Grid) -> Tensor:
        """Displacements (D, [z,] y, x) in mm at the voxels of a grid.

        Args:
            spline: B c, the spline's values there, of the same shape.
            grid: of the lattice's direction; dtype and device are those of `spline`.
        """

    def response(self, field: Tensor, grid: Grid) -> Tensor | None:  # noqa: ARG002
        """How far points move where the spline changes: (N, D, D), [n, i, j] of component i by component j, or None.

        None stands for the identity: the displacement is the spline. It may be an approximation; the gradient that a
        loss gives is as good as it.

        Args:
            field: displacements (D, [z,] y, x) in mm, as `field_of` gave them.
            grid: where they are.
        """
        return None

    def settle(self, before: list[Tensor]) -> bool:  # noqa: ARG002
        """Cut the step that was just taken short, in place, where `jacobian_min` asks for it; whether it was.

        Args:
            before: the coefficients (in a list: optimisers know parameters) that the step began at.
        """
        return False

    def field(self) -> Tensor:
        """u (D, [z,] y, x) in mm at the voxels of `lattice.grid`, in the parameter's dtype; differentiable."""
        grid = self.lattice.grid
        return self.field_of(expand(self.coefficients, self.lattice.matrices(grid)), grid)

    def forward(self, points: Tensor) -> Tensor:
        """Map any points (..., D) in mm to points (..., D) in mm, in the points' dtype; reverse-mode differentiable."""
        return points + interpolate(self.field(), self.lattice.grid, points)

    def displacement(self, grid: Grid) -> Tensor:
        """u (N, D) in mm at the voxels of any `grid`, in the parameter's dtype; differentiable."""
        if grid == self.lattice.grid:
            return self.field().flatten(1).T
        points = grid.points(dtype=self.coefficients.dtype, device=self.coefficients.device)
        return interpolate(self.field(), self.lattice.grid, points)

    def sampled(self) -> nn.Module:
        """The same map for many calls without derivatives: here with the field worked out."""
        with torch.no_grad():
            return Displacement(self.lattice.grid, self.field())

    def refined(self: L, spacing_mm: float | tuple[float, ...]) -> L:
        """The same map with control points `spacing_mm` apart, for the next resolution level; self is left alone.

        Exact on the grid, to rounding, where each old control spacing is a whole multiple of the new one (halving, as
        by knot insertion). Otherwise least squares along each axis: an approximation.

        Raises:
            ConfigError: as ControlLattice.
        """
        lattice = ControlLattice(self.lattice.grid, spacing_mm)
        return self.on(lattice, expand(self.coefficients.detach(), refinement(self.lattice, lattice)))

    def on(self: L, lattice: ControlLattice, coefficients: Tensor) -> L:
        """A transform of the same kind and settings, with these coefficients on this lattice.

        A subclass whose constructor takes more than a lattice overrides this method.
        """
        result = type(self)(lattice)
        result.coefficients = nn.Parameter(coefficients)
        return result

    def inverse(self) -> nn.Module:
        """The map back, by fixed-point iteration from its samples on the lattice's grid on; see `dense.Inverse`.

        Raises:
            ConfigError: it does not converge, as where the map folds.
        """
        return invert(self.sampled(), self.lattice.grid, self.lattice.grid)

    def extra_repr(self) -> str:
        """Shown by print: the lattice and the largest coefficient in mm."""
        return (
            f"size={self.lattice.size}, control_spacing_mm={self.lattice.control_spacing}, "
            f"largest_mm={float(self.coefficients.detach().abs().max()):.4g}"
        )


def lattice_transform(name: str) -> type[LatticeTransform]:
    """The class of a control lattice's transform.

    Raises:
        ConfigError: an unknown name, or code that cannot be imported.

    >>> lattice_transform("velocity").__name__
    'VelocityField'
    """
    names = [entry.name for entry in TRANSFORMS if entry.lattice]
    if name not in names:
        raise ConfigError(f"deformable: {TRANSFORMS.refusal(name, names)}")
    found: type[LatticeTransform] = TRANSFORMS[name].load()
    return found


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


def cubic_weights(fraction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four uniform cubic B-splines that are not zero in a cell, at `fraction` in [0, 1] of it."""
    f = fraction
    rest = 1 - f
    return rest**3 / 6, (4 - 6 * f**2 + 3 * f**3) / 6, (4 - 6 * rest**2 + 3 * rest**3) / 6, f**3 / 6


def _basis(position: Tensor, cells: int) -> Tensor:
    """(n, cells + 3) weights at `position` (n,) in cells; the outer cells' polynomials are carried on beyond them."""
    cell = position.floor().clamp(0, cells - 1)
    columns = cell.long()[:, None] + torch.arange(4)
    weights = torch.stack(cubic_weights(position - cell), -1)
    return torch.zeros(len(position), cells + 3, dtype=position.dtype).scatter_(1, columns, weights)


def inside_domain(position: Tensor, cells: Tensor | int) -> Tensor:
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
