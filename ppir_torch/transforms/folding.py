"""Where a cubic B-spline displacement folds, and steps of its control points that are cut short before it does.

The derivative of the map x -> x + u(x) is worked out from the spline itself, at the corners of a fine partition of
every cell, so that no grid of voxels counts. Most cells are cleared without that: a derivative lies within the range of
the differences of its neighbouring control points (it is a B-spline of one order less, whose weights are positive and
add up to one), and where the rows of the differences' matrix sum up to r_a < 1, det (1 + E) >= prod (1 - r_a)
(Ostrowski 1937, of diagonally dominant matrices).

>>> from ppir_torch import Grid
>>> from ppir_torch.transforms import ControlLattice
>>> lattice = ControlLattice(Grid((17, 17)), 4.0)
>>> bent = torch.zeros(2, *lattice.shape, dtype=torch.float64)
>>> bent[0, 3, 3] = 12.0  # a control point is drawn over three of its neighbours
>>> float(least_determinants(bent, lattice, 0.1).min()) < 0
True
>>> kept = unfolded_step(torch.zeros_like(bent), bent, lattice, 0.1)
>>> float(least_determinants(kept, lattice, 0.1).min()) >= 0.1
True
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lattice import ControlLattice, cubic_weights

__all__ = ["keep_unfolded", "least_determinants", "unfolded_step"]

PARTS = 4  # of a cell along each axis, at whose corners determinants are looked at
CHUNK = 1 << 11  # cells at once
_HALVINGS = 4  # of a step, before it is left out
_ROUNDS = 64


def least_determinants(coefficients: Tensor, lattice: ControlLattice, above: float) -> Tensor:
    """The least determinant of the map's derivative in every cell of the lattice that may have one below `above`.

    Args:
        coefficients: (D, [mz,] my, mx) mm along the physical axes.
        lattice: of the control points.
        above: below 1; a cell whose control points alone show that none is below it is not looked at.

    Returns:
        ([cz,] cy, cx) float64, infinite in the cells that were not looked at.
    """
    turned = _in_cells(coefficients, lattice)
    d, size = lattice.grid.dimension, lattice.cells[::-1]
    result = torch.full(size, torch.inf, dtype=torch.float64, device=turned.device)
    todo = torch.nonzero(_may_be_below(turned, above))
    patches = turned
    for axis in range(d):
        patches = patches.unfold(axis + 1, 4, 1)
    patches = patches.movedim(0, d)
    for cells in torch.split(todo, CHUNK):
        where = tuple(cells.T)
        result[where] = _determinants(patches[where]).amin(1)
    return result


def unfolded_step(before: Tensor, after: Tensor, lattice: ControlLattice, above: float) -> Tensor:
    """`after`, with the step from `before` cut short near cells that a determinant below `above` would appear in.

    A step is halved at the 4^D control points of such a cell until there is none, at last left out; where `before` has
    a determinant below `above` already, none becomes smaller. Everywhere else the step is as it was.

    Args:
        before: (D, [mz,] my, mx) mm.
        after: the same shape.
        lattice: of the control points.
        above: below 1; 0 and less leaves the step as it is.
    """
    if above <= 0:
        return after
    share = torch.ones(lattice.shape, dtype=after.dtype, device=after.device)
    tried, least = after, torch.empty(0)
    for number in range(_ROUNDS):
        found = least_determinants(tried, lattice, above)
        below = found < above
        if not bool(below.any()):
            return tried
        if least.numel() == 0:
            least = least_determinants(before, lattice, above).clamp(max=above)
        below &= found < least
        if not bool(below.any()):
            return tried
        touched = _control_points_of(below)
        share = torch.where(touched, share / 2 if number < _HALVINGS else torch.zeros_like(share), share)
        tried = torch.where(share == 1, after, before + share * (after - before))
    return before


@torch.no_grad()
def keep_unfolded(
    coefficients: nn.Parameter, before: Tensor, lattice: ControlLattice, above: float, times: int = 1
) -> bool:
    """`unfolded_step` of a parameter, in place; whether its step was cut short.

    With `times` k the coefficients are a velocity's, whose flow is about x + v(x) / k, k times after itself: the
    determinant of one of those is kept above the k-th root.
    """
    if above <= 0:
        return False
    kept = unfolded_step(before / times, coefficients.detach() / times, lattice, above ** (1 / times)) * times
    if torch.equal(kept, coefficients):
        return False
    coefficients.copy_(kept)
    return True


def _in_cells(coefficients: Tensor, lattice: ControlLattice) -> Tensor:
    """Components along the lattice's axes, in control spacings: derivatives by cells are then without unit."""
    grid = lattice.grid
    axes = torch.tensor(grid.direction, dtype=torch.float64, device=coefficients.device).reshape(grid.dimension, -1)
    spacing = torch.tensor(lattice.control_spacing, dtype=torch.float64, device=coefficients.device)
    turned: Tensor = torch.tensordot(axes.T / spacing[:, None], coefficients.detach().double(), dims=1)
    return turned


def _may_be_below(turned: Tensor, above: float) -> Tensor:
    """bool of the cells; see the module's docstring. One row of the derivative is that of one component."""
    d = len(turned)
    pool = F.max_pool2d if d == 2 else F.max_pool3d
    rows = torch.zeros(1, dtype=turned.dtype, device=turned.device)
    for axis in range(d):
        kernel = [3 if a == axis else 4 for a in range(d)]
        rows = rows + pool(turned.diff(dim=axis + 1).abs()[None], kernel, stride=1)[0]
    # Components are measured in their own spacings, so the matrix is a similar one: its determinant is the same.
    suspects: Tensor = (1 - rows).clamp(min=0).prod(0) < above
    return suspects


def _determinants(patches: Tensor) -> Tensor:
    """(k, (PARTS + 1)^D) determinants in k cells, of their control points (k, D, 4 ... 4)."""
    d = patches.shape[1]
    place = torch.linspace(0, 1, PARTS + 1, dtype=patches.dtype, device=patches.device)
    rest = 1 - place
    weights = torch.stack(cubic_weights(place), 1)
    slopes = torch.stack(
        [-(rest**2) / 2, (3 * place**2 - 4 * place) / 2, -(3 * rest**2 - 4 * rest) / 2, place**2 / 2], 1
    )
    columns: list[Tensor] = []
    for axis in range(d)[::-1]:  # of the tensor, which is the reverse of x, y[, z]
        along = patches
        for other in range(d):
            along = torch.tensordot(along, slopes if other == axis else weights, dims=([2], [1]))
        along = along.flatten(2).movedim(1, 0).contiguous()  # (D, k, places)
        along[len(columns)] += 1
        columns.append(along)
    if d == 2:
        return columns[0][0] * columns[1][1] - columns[0][1] * columns[1][0]
    volume: Tensor = (columns[0] * torch.linalg.cross(columns[1], columns[2], dim=0)).sum(0)
    return volume


def _control_points_of(cells: Tensor) -> Tensor:
    """bool ([mz,] my, mx): the control points that any of these cells depends on."""
    d = cells.ndim
    pool = F.max_pool2d if d == 2 else F.max_pool3d
    padded = F.pad(cells.double()[None, None], [3] * (2 * d))
    touched: Tensor = pool(padded, 4, stride=1)[0, 0] > 0
    return touched
