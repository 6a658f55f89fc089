"""Similarities of two images in the clear: metrics, and the oracles of what is computed privately.

All of them are larger for a better match, differentiable, and 0 where an image is constant. Both tensors have one
shape and no channel axis; sums run in float64.

>>> fixed = torch.rand(12, 12, dtype=torch.float64)
>>> round(ncc(-3 * fixed + 1, fixed).item(), 6), round(local_ncc(-3 * fixed + 1, fixed, radius=2).item(), 6)
(-1.0, 1.0)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ImageError
from ..histograms import bin_weights, information

__all__ = ["local_correlation", "local_ncc", "mutual_information", "ncc"]

_CHUNK = 1 << 16  # values whose (n, bins) weights are held at once
_FLAT = 1e-10  # variance, as a share of the squared half-range, below which a window counts as flat


def ncc(warped: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
    """Correlation of the intensities, in [-1, 1] (Pearson's; for images: Lewis, Vision Interface 1995).

    Args:
        warped: any shape, floating.
        fixed: the same shape.
        weights: the same shape, not negative, of each voxel; None weighs all alike.

    Returns:
        Scalar in the dtype of `warped`, without unit.

    Raises:
        ImageError: the shapes differ, the tensors are empty, or the weights are negative or all zero.

    >>> ncc(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 7.0, 9.0])).item()
    1.0
    """
    _check_shapes(warped, fixed)
    share = _shares(weights, fixed)
    a, b = _unit_range(warped).flatten(), _unit_range(fixed).flatten()
    a, b = a - share @ a, b - share @ b
    energy = (share @ a.square()) * (share @ b.square())
    varies = energy > 0
    return (share @ (a * b) * varies / torch.where(varies, energy, 1.0).sqrt()).to(warped.dtype)


def local_ncc(warped: Tensor, fixed: Tensor, radius: int) -> Tensor:
    """Mean over voxels of the squared correlation in the box about each (ANTs' CC: Avants et al., MedIA 2008).

    Args:
        warped: ([z,] y, x), floating.
        fixed: the same shape.
        radius: of the box, voxels; (2 radius + 1)^D of them, at the border those within the image.

    Returns:
        Scalar in [0, 1] in the dtype of `warped`.

    Raises:
        ImageError: the shapes differ, or are not 2-D or 3-D.
        ConfigError: radius below 1.

    >>> round(local_ncc(torch.eye(6), 1 - torch.eye(6), radius=1).item(), 5)
    0.66667
    """
    return local_correlation(warped, fixed, radius).square().mean().to(warped.dtype)


def local_correlation(warped: Tensor, fixed: Tensor, radius: int) -> Tensor:
    """The correlation c(x) in the box about each voxel: arguments and errors as `local_ncc`.

    Returns:
        ([z,] y, x) float64 in [-1, 1]; 0 in windows whose standard deviation is far below 1e-5 of the half-range.

    >>> local_correlation(torch.eye(6), 1 - torch.eye(6), radius=1).diag().round().tolist()
    [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    """
    _check_shapes(warped, fixed)
    if warped.ndim not in (2, 3):
        raise ImageError(f"local correlation: tensors {tuple(warped.shape)}, 2-D or 3-D ones are needed")
    if radius < 1:
        raise ConfigError(f"local correlation: radius {radius}, at least 1 voxel is needed")
    a, b = _unit_range(warped), _unit_range(fixed)
    mean_a, mean_b, aa, bb, ab = _box_mean(torch.stack([a, b, a * a, b * b, a * b]), radius).unbind(0)
    energy = (aa - mean_a.square()).clamp(min=_FLAT) * (bb - mean_b.square()).clamp(min=_FLAT)
    return (ab - mean_a * mean_b) / energy.sqrt()


def mutual_information(
    warped: Tensor,
    fixed: Tensor,
    bins: int = 32,
    warped_range: tuple[float, float] | None = None,
    fixed_range: tuple[float, float] | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mutual information in nats of a joint histogram with cubic B-spline Parzen windows on both images.

    (Thevenaz and Unser, IEEE TIP 2000. Mattes et al., IEEE TMI 2003, and ITK put a box on the fixed image, which makes
    the value some 5 to 8 % larger.)

    Args:
        warped: any shape, floating.
        fixed: the same shape.
        bins: of either axis of the histogram.
        warped_range: (low, high) of the histogram's first axis, values beyond are held; None takes the tensor's own,
            which the derivative treats as constant.
        fixed_range: of its second axis.
        weights: the same shape, not negative, of each voxel; None weighs all alike.

    Returns:
        Scalar in the dtype of `warped`, at least 0.

    Raises:
        ImageError: the shapes differ, the tensors are empty, or the weights are negative or all zero.
        ConfigError: bins below 5, or a range that is not finite with low < high.

    >>> fixed = torch.rand(2000)
    >>> (mutual_information(fixed.square(), fixed) > 5 * mutual_information(torch.rand(2000), fixed)).item()
    True
    """
    _check_shapes(warped, fixed)
    share = _shares(weights, fixed)
    a, b = warped.flatten().double(), fixed.flatten().double()
    (a_low, a_high), (b_low, b_high) = warped_range or _own_range(a), fixed_range or _own_range(b)
    parts = []
    for start in range(0, len(a), _CHUNK):
        part = slice(start, start + _CHUNK)
        of_a = bin_weights(a[part], a_low, a_high, bins) * share[part, None]
        parts.append(of_a.T @ bin_weights(b[part], b_low, b_high, bins))
    return information(torch.stack(parts).sum(0))[0].to(warped.dtype)


def _check_shapes(warped: Tensor, fixed: Tensor) -> None:
    if warped.shape != fixed.shape or warped.numel() == 0:
        raise ImageError(
            f"similarity of {tuple(warped.shape)} and {tuple(fixed.shape)}: one shape with voxels is needed"
        )


def _shares(weights: Tensor | None, fixed: Tensor) -> Tensor:
    """(n,) float64: each voxel's share of the whole weight."""
    if weights is None:
        return torch.full((fixed.numel(),), 1 / fixed.numel(), dtype=torch.float64, device=fixed.device)
    total = float(weights.double().sum())
    if weights.shape != fixed.shape or bool((weights < 0).any()) or not (math.isfinite(total) and total > 0):
        raise ImageError(f"weights {tuple(weights.shape)}: {tuple(fixed.shape)}, none negative, not all 0, are needed")
    return weights.flatten().double() / total


def _unit_range(values: Tensor) -> Tensor:
    """Mapped to [-1, 1] in float64, exactly 0 where constant: no square overflows, no constant is rounded to noise."""
    values = values.double()
    low, high = torch.aminmax(values.detach())
    half = high / 2 - low / 2
    return (values - (low / 2 + high / 2)) / torch.where(half > 0, half, 1.0)


def _own_range(values: Tensor) -> tuple[float, float]:
    low, high = (float(extreme) for extreme in torch.aminmax(values.detach()))
    return low, high if high > low else low + max(1.0, abs(low))  # a constant is in one bin, whatever the width


def _box_mean(channels: Tensor, radius: int) -> Tensor:
    """Mean over a box of 2 radius + 1 voxels a side, of the voxels that lie within the image; an axis at a time."""
    dimension = channels.ndim - 1
    pool = F.avg_pool2d if dimension == 2 else F.avg_pool3d
    for axis in range(dimension):
        window = [2 * radius + 1 if a == axis else 1 for a in range(dimension)]
        channels = pool(channels, window, 1, [n // 2 for n in window], count_include_pad=False)
    return channels
