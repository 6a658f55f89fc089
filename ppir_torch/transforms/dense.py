"""Dense displacement fields as nn.Modules: y = x + u(x), u sampled on a grid in mm and interpolated linearly.

The convention outside is that of ITK's DisplacementFieldTransform: the first and last voxels reach half a voxel beyond
their centres; further out nothing moves.

>>> grid = Grid(size=(5, 4), spacing=(2.0, 2.0))
>>> shift = Displacement(grid, torch.ones(2, 4, 5))
>>> shift(torch.tensor([[4.0, 2.0], [4.0, 80.0]])).tolist()
[[5.0, 3.0], [4.0, 80.0]]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..grids import Grid

__all__ = ["Displacement", "Inverse", "interpolate", "invert", "sampled_once", "spatial_derivative"]


class Displacement(nn.Module):
    """A dense displacement field: the map x -> x + u(x) of physical LPS points, u linear between the voxels of `grid`.

    The parameter `field` (D, [z,] y, x) holds u in mm along the physical axes x, y[, z].

    Args:
        grid: where u is sampled.
        field: (D, [z,] y, x) mm, copied; default zeros, the identity.
        dtype: of the parameter; default that of `field`, or float64.

    Raises:
        ConfigError: `field` is not of the grid's shape.

    >>> Displacement(Grid((4, 4)))
    Displacement(size=(4, 4), spacing_mm=(1.0, 1.0), largest_mm=0)
    """

    def __init__(self, grid: Grid, field: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        shape = (grid.dimension, *grid.shape)
        if field is None:
            field = torch.zeros(shape, dtype=dtype or torch.float64)
        if field.shape != shape:
            raise ConfigError(f"displacement field: {tuple(field.shape)}, {shape} is needed on this grid")
        self.grid = grid
        self.dimension = grid.dimension
        self.field = nn.Parameter(field.detach().clone().to(dtype or field.dtype))

    def forward(self, points: Tensor) -> Tensor:
        """Map points (..., D) in mm to points (..., D) in mm, in the points' dtype; reverse-mode differentiable.

        >>> Displacement(Grid((4, 4)))(torch.ones(2, 3, 2)).shape
        torch.Size([2, 3, 2])
        """
        return points + interpolate(self.field, self.grid, points)

    def displacement(self, grid: Grid) -> Tensor:
        """u (N, D) in mm at the voxels of any `grid`, in the parameter's dtype and on its device.

        >>> Displacement(Grid((4, 4))).displacement(Grid((2, 2))).shape
        torch.Size([4, 2])
        """
        if grid == self.grid:
            return self.field.flatten(1).T
        return interpolate(self.field, self.grid, grid.points(dtype=self.field.dtype, device=self.field.device))

    def inverse(self, grid: Grid | None = None, iterations: int = 100, tolerance_mm: float = 1e-3) -> Inverse:
        """The map back, sampled on `grid` (default: this field's own), by fixed-point iteration; see `invert`.

        Raises:
            ConfigError: after `iterations` a point is more than `tolerance_mm` from its target, as where the map folds.

        >>> grid = Grid((6, 6))
        >>> bool((Displacement(grid, torch.ones(2, 6, 6)).inverse().field + 1).abs().max() < 1e-6)
        True
        """
        return invert(self, self.grid, grid or self.grid, iterations, tolerance_mm)

    @staticmethod
    def from_transform(transform: nn.Module, grid: Grid) -> Displacement:
        """Sample any transform of points (N, D) in mm at the voxels of `grid`; float64, detached.

        >>> Displacement.from_transform(nn.Identity(), Grid((4, 4))).field.abs().max().item()
        0.0
        """
        points = grid.points(dtype=torch.float64, device=_device(transform))
        with torch.no_grad():
            once = sampled_once(transform)
            moved = torch.cat([once(part) - part for part in torch.split(points, 2**20)])
        return Displacement(grid, moved.T.reshape(grid.dimension, *grid.shape))

    def extra_repr(self) -> str:
        """Shown by print: the grid and the largest component in mm."""
        return (
            f"size={self.grid.size}, spacing_mm={self.grid.spacing}, "
            f"largest_mm={float(self.field.detach().abs().max()):.4g}"
        )


def sampled_once(transform: nn.Module) -> nn.Module:
    """The same map as it is now, without derivatives, from which any number of calls costs one flow at most.

    Transforms that have something to work out before each call say so by a method `sampled`.

    >>> sampled_once(nn.Identity())
    Identity()
    """
    sampled: Callable[[], nn.Module] | None = getattr(transform, "sampled", None)
    return transform if sampled is None else sampled()


def interpolate(field: Tensor, grid: Grid, points: Tensor) -> Tensor:
    """Values (..., D) of a field (D, [z,] y, x) on `grid` at physical points (..., D) mm, in the points' dtype.

    Linear between voxel centres, the border's values up to half a voxel beyond, 0 outside (the convention of ITK's
    DisplacementFieldTransform with VectorLinearInterpolateImageFunction). Reverse-mode differentiable in both.

    >>> field = torch.arange(3.0).expand(2, 1, 3)
    >>> interpolate(field, Grid((3, 1)), torch.tensor([[0.5, 0.0], [2.4, 0.0], [2.6, 0.0]]))[:, 0].tolist()
    [0.5, 2.0, 0.0]
    """
    d = grid.dimension
    matrix, _ = grid.physical_to_normalised()
    # Normalised 0 is the grid's centre; taking it away first keeps float32 exact far from the origin.
    normalised = (points.reshape(-1, d) - grid.centre.to(points)) @ matrix.T.to(points)
    limit = normalised.new_tensor([n / max(n - 1, 1) for n in grid.size])  # half a voxel beyond the border
    inside = ((normalised >= -limit) & (normalised < limit)).all(-1)
    where = normalised.reshape(1, *([1] * (d - 1)), -1, d)
    values = F.grid_sample(field[None].to(points), where, padding_mode="border", align_corners=True)
    return torch.where(inside[:, None], values.reshape(d, -1).T, 0.0).reshape(points.shape)


def spatial_derivative(field: Tensor, grid: Grid) -> Tensor:
    """The derivative (N, D, D) of x + u(x), u (D, [z,] y, x) mm on the grid: [n, i, j] = d y_i / d x_j.

    Central differences, one-sided at the border; any floating dtype and device, kept.

    >>> grid = Grid((4, 4), (2.0, 2.0))
    >>> stretch = grid.points().T.reshape(2, 4, 4) * 0.5
    >>> spatial_derivative(stretch, grid)[0].tolist()
    [[1.5, 0.0], [0.0, 1.5]]
    """
    d = grid.dimension
    axes = [a for a in range(d) if grid.shape[a] > 1]
    by_index = field.new_zeros(d, d, *grid.shape)
    for axis, slope in zip(axes, torch.gradient(field, dim=[a + 1 for a in axes]), strict=True):
        by_index[:, d - 1 - axis] = slope
    inverse = torch.linalg.inv(grid.index_to_physical()[0]).to(field)
    result = torch.einsum("ik...,kj->...ij", by_index, inverse).reshape(-1, d, d)
    return result + torch.eye(d, dtype=field.dtype, device=field.device)


class Inverse(Displacement):
    """The map back of a transform: each point is taken to the one that the transform takes to it.

    A call iterates until it is there, from the sampled field on: between voxels nothing is lost to interpolation.
    `field`, files, derivatives and `sampled` are those of the sampled field.

    Args:
        transform: points (N, D) to points in mm; it moves nothing outside `domain`.
        domain: from its first to its last voxel centre.
        start: about the inverse, sampled: where the iteration begins.
        iterations: at most.
        tolerance_mm: how near to its target a point must be taken.

    >>> grid = Grid((6, 6))
    >>> shift = Displacement(grid, torch.full((2, 6, 6), 0.5))
    >>> shift.inverse()(torch.tensor([[3.0, 3.25]])).tolist()
    [[2.5, 2.75]]
    """

    def __init__(
        self, transform: nn.Module, domain: Grid, start: Displacement, iterations: int = 100, tolerance_mm: float = 1e-3
    ) -> None:
        super().__init__(start.grid, start.field)
        self.undone, self.domain = transform, domain
        self.iterations, self.tolerance_mm = iterations, tolerance_mm

    def forward(self, points: Tensor) -> Tensor:
        """Map points (..., D) in mm to points (..., D) in mm, in the points' dtype.

        Raises:
            ConfigError: a point has not converged, as where the map folds.
        """
        near = super().forward(points)
        flat = points.detach().double().reshape(-1, self.dimension)
        start = near.detach().double().reshape(flat.shape)
        found = _preimages(self.undone, self.domain, flat, start, self.iterations, self.tolerance_mm)
        return near + (found.reshape(points.shape).to(near) - near.detach())

    def sampled(self) -> Displacement:
        """The sampled field alone: for many points at once, such as those of an image."""
        return Displacement(self.grid, self.field)


def invert(
    transform: nn.Module,
    domain: Grid,
    grid: Grid,
    iterations: int = 100,
    tolerance_mm: float = 1e-3,
    start: Displacement | None = None,
) -> Inverse:
    """The inverse of `transform` sampled on `grid`: x with transform(x) = y for every voxel y, to `tolerance_mm`.

    Fixed-point iteration x <- y - u(x) (Chen et al., Med. Phys. 35(1), 2008), its step halved at the points where the
    error grew, so that maps that expand by more than two converge too. `transform` maps points (N, D) in mm and moves
    nothing outside `domain`, from its first to its last voxel centre. Where a voxel's origin lies outside, so that no
    point of the domain reaches it, the displacement of the nearest point of the border is carried on; a voxel outside
    that nothing reaches stays where it is. `start` is a first guess on `grid`.

    Returns: float64, on the transform's device.

    Raises:
        ConfigError: the iteration has not converged, as where the map folds; the line says at how many points, and the
            remaining error in mm. (A fold of a few points may go unseen: metrics.jacobian_determinant shows it.)

    >>> grid = Grid((6, 6))
    >>> shift = Displacement(grid, torch.ones(2, 6, 6))
    >>> invert(shift, grid, grid).field[0, 3, 3].item()
    -1.0
    """
    target = grid.points(dtype=torch.float64, device=_device(transform))
    near = target if start is None else target + start.displacement(grid).detach()
    found = _preimages(transform, domain, target, near, iterations, tolerance_mm)
    moved = (found - target).T.reshape(grid.dimension, *grid.shape)
    return Inverse(transform, domain, Displacement(grid, moved), iterations, tolerance_mm)


def _preimages(
    transform: nn.Module, domain: Grid, target: Tensor, near: Tensor, iterations: int, tolerance_mm: float
) -> Tensor:
    """(N, D) float64: see `invert`."""
    found, todo = near.clone(), torch.arange(len(target), device=target.device)
    step, before = torch.ones_like(target[:, 0]), torch.full_like(target[:, 0], torch.inf)
    nearest = _nearest(domain)
    with torch.no_grad():
        for _ in range(iterations):
            at = found[todo]
            held = nearest(at)
            error = target[todo] - at - (transform(held) - held)
            size = torch.linalg.vector_norm(error, dim=-1)
            left = ~(size <= tolerance_mm)  # NaN too
            if not bool(left.any()):
                break
            todo, error, size, step, before = todo[left], error[left], size[left], step[left], before[left]
            step = torch.where(size > before, step / 2, step)
            found[todo] += step[:, None] * error
            before = size
        else:
            raise ConfigError(
                f"inverse: {len(todo)} of {len(target)} points have not converged after {iterations} iterations, "
                f"the remaining error is {float(size.max()):.3g} mm (tolerance {tolerance_mm:g} mm); does the map fold?"
            )
        outside = (nearest(target) != target).any(-1) & (nearest(found) != found).any(-1)
        return torch.where(outside[:, None], target, found)


def _nearest(domain: Grid) -> Callable[[Tensor], Tensor]:
    """Maps points (N, D) to the nearest of the domain's, along its axes; points inside are returned as they are."""
    matrix, origin = domain.index_to_physical()
    last = torch.tensor(domain.size, dtype=torch.float64) - 1

    def nearest(points: Tensor) -> Tensor:
        index = (points - origin.to(points)) @ torch.linalg.inv(matrix).T.to(points)
        clamped = torch.minimum(index.clamp(min=0), last.to(index))
        # A voxel on the border is inside, whatever rounding says.
        inside = ((index - clamped).abs() < 1e-6).all(-1, keepdim=True)
        return torch.where(inside, points, clamped @ matrix.T.to(points) + origin.to(points))

    return nearest


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
