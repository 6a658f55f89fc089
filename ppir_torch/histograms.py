"""Joint histograms with cubic B-spline Parzen windows, and the mutual information in them.

>>> values = torch.linspace(0, 1, 200)
>>> weights = bin_weights(values, 0.0, 1.0, 12)
>>> information(weights.T @ weights)[0] > information(weights.T @ weights[torch.randperm(200)])[0]
tensor(True)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import ConfigError, ImageError

__all__ = ["bin_slopes", "bin_weights", "information", "spline_of"]

_PADDING = 2  # empty bins at either end, so that the cubic window never leaves the histogram


def bin_weights(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Cubic B-spline Parzen weights of each value in each bin: not negative, 1 in all for each value.

    Bin k weighs B3(t - k), t = 2 + (bins - 4) (value - low) / (high - low): ITK's histogram, two bins of padding at
    either end. (Mattes et al., IEEE TMI 2003.)

    Args:
        values: (n,) floating; those beyond [low, high] count as the nearer end.
        low: value at bin 2.
        high: value at bin `bins` - 2.
        bins: at least 5.

    Returns:
        (n, bins) in the dtype of the values; four at most of each row are not 0.

    Raises:
        ConfigError: bins below 5, or not finite low < high.

    >>> bin_weights(torch.tensor([0.0, 0.25]), 0.0, 1.0, 6).mul(48).round().int().tolist()
    [[0, 8, 32, 8, 0, 0], [0, 1, 23, 23, 1, 0]]
    """
    first, t = _places(values, low, high, bins)
    square, cube = t.square(), t**3
    taps = [(1 - t) ** 3, 4 - 6 * square + 3 * cube, 1 + 3 * (t + square - cube), cube]
    return _spread(torch.stack(taps) / 6, first, bins, values)


def bin_slopes(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Derivatives of `bin_weights` by the value, (n, bins) per unit of intensity: arguments and errors as there.

    Each row sums to 0; values beyond [low, high] have slope 0.

    >>> bin_slopes(torch.tensor([0.0, 2.0]), 0.0, 1.0, 6).int().tolist()
    [[0, -1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
    """
    first, t = _places(values, low, high, bins)
    square = t.square()
    taps = [-(1 - t).square(), 3 * square - 4 * t, 1 + 2 * t - 3 * square, square]
    inside = (values.double() >= low) & (values.double() <= high)
    per_bin = inside.to(t) * ((bins - 2 * _PADDING) / (2 * (high - low)))  # in float64 as t, not in torch's default
    return _spread(torch.stack(taps) * per_bin, first, bins, values)


def spline_of(values: Tensor, low: float, high: float, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """(f, f' per unit of intensity) of f(v) = sum_k coefficients[k] `bin_weights`(v)[k] at each value, both (n,).

    The same sums without a table of the weights: bins are as many as coefficients (k,). Errors as of `bin_weights`;
    values beyond [low, high] have the nearer end's f, and slope 0.

    >>> f, slope = spline_of(torch.tensor([0.25, 2.0]), 0.0, 1.0, 3 * torch.arange(6.0))
    >>> f.tolist(), slope.tolist()
    ([7.5, 12.0], [6.0, 0.0])
    """
    bins = len(coefficients)
    first, t = _places(values, low, high, bins)
    here = coefficients.to(t)
    c0, c1, c2, c3 = (here[first + tap] for tap in range(4))
    # The spline of the four as a cubic in t.
    cubic, square, linear = c3 - c0 + 3 * (c1 - c2), 3 * (c0 - 2 * c1 + c2), 3 * (c2 - c0)
    inside = (values.double() >= low) & (values.double() <= high)
    per_bin = inside.to(t) * ((bins - 2 * _PADDING) / (high - low))
    fitted = (((cubic * t + square) * t + linear) * t + c0 + 4 * c1 + c2) / 6
    slope = ((3 * cubic * t + 2 * square) * t + linear) / 6 * per_bin
    return fitted.to(values.dtype), slope.to(values.dtype)


def information(table: Tensor) -> tuple[Tensor, Tensor]:
    """Mutual information of a joint histogram, in nats, and its derivative by every entry.

    With p = table / sum, r and c its row and column sums:   value = sum p log(p / (r c)),
    d value / d table = (log(p / (r c)) - value) / sum   (Thevenaz and Unser, IEEE TIP 2000).

    Args:
        table: (rows, columns) floating, counts or probabilities. Entries not above 0 are empty cells: they add
            nothing and have derivative 0 (a B-spline's slope is 0 where its weight is, so no voxel ever asks).

    Returns:
        (scalar, (rows, columns)) in the table's dtype; the value carries autograd's graph too.

    Raises:
        ImageError: not a matrix, an entry that is not finite, or none above 0.

    >>> value, slopes = information(torch.eye(2))
    >>> round(value.item(), 5), slopes.tolist()
    (0.69315, [[0.0, 0.0], [0.0, 0.0]])
    """
    kept = table.clamp(min=0)
    total = kept.sum()
    if table.ndim != 2 or not 0 < float(total.detach()) < math.inf:
        raise ImageError(f"joint histogram {tuple(table.shape)} of sum {float(total):g}: a positive finite is needed")
    p = kept / total
    filled = p > 0
    independent = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    # The logarithm of an empty cell would be infinite, and its derivative not a number.
    ratio = torch.where(filled, p, 1.0).log() - torch.where(filled, independent, 1.0).log()
    value = (p * ratio).sum()
    return value, (torch.where(filled, ratio - value, 0.0) / total).detach()


def _places(values: Tensor, low: float, high: float, bins: int) -> tuple[Tensor, Tensor]:
    """(n,) the first of the four bins that a value is in, and how far (0 to 1) it is beyond the second one."""
    if bins < 2 * _PADDING + 1:
        raise ConfigError(f"histogram: {bins} bins, at least {2 * _PADDING + 1} are needed")
    if not 0 < high - low < math.inf:
        raise ConfigError(f"histogram: range {low:g} to {high:g}, finite ones with low < high are needed")
    # In float64: a narrow range far from 0 has no float32 between its ends.
    place = _PADDING + (values.double().clamp(low, high) - low) / (high - low) * (bins - 2 * _PADDING)
    second = place.detach().floor().clamp(max=bins - _PADDING - 1)
    return second.long() - 1, place - second


def _spread(taps: Tensor, first: Tensor, bins: int, values: Tensor) -> Tensor:
    """(n, bins) in the dtype of the values: the four taps (4, n) in their bins, 0 elsewhere."""
    where = first + torch.arange(4, device=first.device)[:, None]
    return taps.new_zeros(bins, len(values), dtype=values.dtype).scatter_(0, where, taps.to(values.dtype)).T
