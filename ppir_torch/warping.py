"""Sampling an image through a transform: values, exact spatial gradients, steepest-descent images.

>>> grid = Grid(size=(8, 8))
>>> image = Image(grid.points()[:, 0].reshape(1, 8, 8).clone(), grid)
>>> sample(image, torch.tensor([[2.5, 3.0]])).item()
2.5
"""

from __future__ import annotations

import copy
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from .grids import Grid
from .images import Image
from .transforms.dense import sampled_once

__all__ = [
    "affine_table",
    "channels_above_outside",
    "grid_gradient",
    "parameters_of",
    "resampled_along",
    "sample",
    "sample_with_gradient",
    "steepest_descent",
    "warp",
]

CHUNK = 1 << 20  # points that are mapped at once


def sample(image: Image, points: Tensor, mode: str = "bilinear", outside: float | None = None) -> Tensor:
    """Values (N,) of a one-channel image at physical points (N, D) mm; linear interpolation.

    Beyond the border the value is `outside`; None: `image.outside`.
    """
    beyond = image.outside if outside is None else outside
    return _sample_normalised(image, beyond, _normalise(image, points), mode)


def sample_with_gradient(image: Image, outside: float | None, points: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N,) and their spatial gradient (N, D) per mm at physical points (N, D).

    Beyond the border the value is `outside`; None: that of the nearest point of the border, for points that count for
    little or nothing there (`overlap`). The gradient is that of the interpolant itself (not of a smoothed image), so
    that it is autograd's gradient.
    """
    with torch.enable_grad():
        normalised = _normalise(image, points.detach()).requires_grad_(True)
        values = _sample_normalised(image, outside, normalised, "bilinear")
        (gradient,) = torch.autograd.grad(values.sum(), normalised)
    matrix, _ = image.grid.physical_to_normalised()
    return values.detach(), gradient @ matrix.to(gradient)


def channels_above_outside(image: Image) -> list[tuple[Image, float]]:
    """(a channel less its outside value, that value) of every channel: what `sample_with_gradient` takes best."""
    channels = [Image(channel[None], image.grid) for channel in image.tensor]
    outside = [channel.outside for channel in channels]
    return [(Image(c.tensor - value, c.grid), value) for c, value in zip(channels, outside, strict=True)]


def grid_gradient(image: Image) -> Tensor:
    """Spatial gradient (N, D) per mm of a one-channel image at its voxels: central differences, one-sided at borders.

    Where `sample_with_gradient` would give the slope to one side of each voxel, this is the mean of both.
    """
    axes = [a for a in range(image.grid.dimension) if image.tensor.shape[a + 1] > 1]
    slopes = torch.zeros(image.grid.dimension, *image.grid.shape, dtype=image.tensor.dtype, device=image.tensor.device)
    for axis, slope in zip(axes, torch.gradient(image.tensor[0], dim=axes), strict=True):
        slopes[image.grid.dimension - 1 - axis] = slope  # tensor axes are the reverse of x, y, z
    matrix, _ = image.grid.index_to_physical()
    result: Tensor = slopes.reshape(image.grid.dimension, -1).T @ torch.linalg.inv(matrix).to(slopes)
    return result


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters of a transform by name, in order."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def steepest_descent(transform: nn.Module, points: Tensor, gradient: Tensor) -> Tensor:
    """Steepest-descent images S^T (P, N): the derivative of the warped image by every parameter of the transform.

    Args:
        transform: any nn.Module that maps points (N, D) to points (N, D), each on its own.
        points: (N, D) fixed points, mm.
        gradient: (N, D) spatial gradient of the moving image at the mapped points, per mm.

    S = gradient x Jacobian of the point map (grid_sample itself has no forward-mode derivative). Linear transforms
    need the Jacobian of their matrix only; any other module is differentiated in forward mode, parameter by parameter.
    """
    parameters = {name: p.detach() for name, p in parameters_of(transform).items()}
    affine_map = getattr(transform, "affine_map", None)
    if affine_map is not None:
        return _linear_steepest_descent(transform, points, gradient)

    def along(tangent: Tensor) -> Tensor:
        tangents = _unflatten(tangent, parameters)
        moved = jvp(lambda p: functional_call(transform, p, (points,)), (parameters,), (tangents,))[1]
        return (moved * gradient).sum(-1)  # type: ignore[no-any-return]

    count = sum(p.numel() for p in parameters.values())
    identity = torch.eye(count, dtype=points.dtype, device=points.device)
    chunk = max(1, 2**24 // max(points.numel(), 1))
    return vmap(along, chunk_size=chunk)(identity)


def warp(moving: Image, transform: nn.Module, grid: Grid, mode: str = "bilinear") -> Image:
    """The moving image resampled onto `grid` through `transform` (fixed points to moving points)."""
    moving = moving.seen_from(grid)
    like, ((above, outside),) = moving.tensor, channels_above_outside(moving)
    values = like.new_empty(grid.count)
    with torch.no_grad():
        once = sampled_once(_on_device(transform, like.device))
        for start in range(0, grid.count, CHUNK):
            index = torch.arange(start, min(start + CHUNK, grid.count))
            mapped = once(grid.points(index, like.dtype, like.device))
            part = _sample_normalised(above, 0.0, _normalise(above, mapped), mode)
            values[start : start + len(part)] = part if outside == 0 else part + outside
    return Image(values.reshape(1, *grid.shape), grid)


def _on_device(transform: nn.Module, device: torch.device) -> nn.Module:
    """The transform with its parameters on a device, where a flow is worked out: itself, or a copy."""
    here = all(tensor.device == device for tensor in [*transform.parameters(), *transform.buffers()])
    return transform if here else copy.deepcopy(transform).to(device)


def resampled_along(image: Image, matrix: Tensor, grid: Grid) -> Image:
    """The image resampled onto axes and voxels that a linear map takes `grid` to, as far as a grid can: no shear.

    What depends on a tensor's axes and voxels (descriptors, networks) is then made of alike neighbourhoods in both
    images, though one is turned or larger. Beyond its border the image is continued by its border values.

    Args:
        image: any number of channels; smooth enough for the new spacing.
        matrix: (D, D) of the map from the fixed points to the image's.
        grid: the fixed image's; the new spacings stay within a half and twice its own.

    Returns:
        Image on a grid about as large as the image's own, whose axes are the orthonormal ones nearest to the mapped.
    """
    d = grid.dimension
    axes = torch.tensor(grid.direction, dtype=torch.float64).reshape(d, d)
    mapped = matrix.detach().double().cpu() @ axes
    lengths = torch.linalg.vector_norm(mapped, dim=0)
    left, _, right = torch.linalg.svd(mapped / lengths.clamp(min=1e-12))
    turned = left @ right
    spacing = torch.tensor(grid.spacing, dtype=torch.float64) * lengths.clamp(0.5, 2.0)
    to_physical, origin = image.grid.index_to_physical()
    ends = torch.tensor(list(product(*((0, n - 1) for n in image.grid.size))), dtype=torch.float64)
    corners = (ends @ to_physical.T + origin) @ turned  # along the new axes
    low, high = corners.amin(0), corners.amax(0)
    size = ((high - low) / spacing - 1e-6).ceil().clamp(min=0).long() + 1
    start = (low + high) / 2 - (size - 1) / 2 * spacing
    wanted = Grid(
        tuple(size.tolist()),
        tuple(spacing.tolist()),
        tuple((turned @ start).tolist()),
        tuple(turned.flatten().tolist()),
    )
    points = wanted.points(dtype=image.tensor.dtype, device=image.tensor.device)
    where = _normalise(image, points).clamp(-1, 1).reshape(1, *([1] * (d - 1)), -1, d)
    values = F.grid_sample(image.tensor[None], where, mode="bilinear", padding_mode="border", align_corners=True)
    return Image(values.reshape(-1, *wanted.shape), wanted)


def _normalise(image: Image, points: Tensor) -> Tensor:
    matrix, offset = image.grid.physical_to_normalised()
    return torch.addmm(offset.to(points), points, matrix.T.to(points))


def _sample_normalised(image: Image, outside: float | None, normalised: Tensor, mode: str) -> Tensor:
    d = image.grid.dimension
    # grid_sample fills with zeros beyond the border
    volume = (image.tensor - outside if outside else image.tensor)[None].to(normalised.dtype)
    where = normalised.reshape(1, *([1] * (d - 1)), -1, d)
    padding = "border" if outside is None else "zeros"
    if outside is None:  # a NaN there ends the process: torch reads beyond the volume (2-D, CPU)
        where = where.nan_to_num(nan=0.0)
    values = F.grid_sample(volume, where, mode=mode, padding_mode=padding, align_corners=True)
    return values.reshape(-1) + outside if outside else values.reshape(-1)


def affine_table(transform: nn.Module) -> Tensor:
    """(D (D + 1), P) derivative of a linear transform's map [A b], row-major, by its parameters."""
    parameters = {name: p.detach() for name, p in parameters_of(transform).items()}
    names = list(parameters)

    def entries(*values: Tensor) -> Tensor:
        given = {f"inner.{name}": value for name, value in zip(names, values, strict=True)}
        matrix, offset = functional_call(_AffineMap(transform), given, ())
        return torch.cat([matrix, offset[:, None]], 1).flatten()

    # Reverse mode: torch's forward-mode rules import torch._dynamo, which takes seconds.
    jacobian = torch.autograd.functional.jacobian(entries, tuple(parameters.values()))  # type: ignore[no-untyped-call]
    return torch.cat([part.reshape(part.shape[0], -1) for part in jacobian], 1)


def _linear_steepest_descent(transform: nn.Module, points: Tensor, gradient: Tensor) -> Tensor:
    table = affine_table(transform)
    homogeneous = torch.cat([points.T, torch.ones_like(points[:, :1]).T])  # (D+1, N)
    outer = (gradient.T[:, None, :] * homogeneous[None]).reshape(table.shape[0], -1)  # (D (D+1), N)
    return table.T.to(outer) @ outer


class _AffineMap(nn.Module):
    """Lets functional_call reach a linear transform's `affine_map`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.inner.affine_map()  # type: ignore[no-any-return, operator]


def _unflatten(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = torch.split(vector, [p.numel() for p in like.values()])
    return {name: part.reshape(p.shape).to(p) for (name, p), part in zip(like.items(), parts, strict=True)}
