"""Mutual information of the warped moving image and the fixed image, clear or private: two joint products.

With u_a(x) the Parzen weights of I(T(x)) in the moving image's bins, party_1's, and w_b(x) those of J, party_2's:

    H[a, b] = sum_x u_a(x) w_b(x),   value = - sum p log(p / (r c)),  p = H / sum H, r and c its sums
    gradient = - sum_x S(x) s(x),   s(x) = sum_b F_b(x) w_b(x),   F_b(x) = sum_a L[a, b] u_a'(x),
    L = d information / d H

(Cubic windows on both images: Thevenaz and Unser, IEEE TIP 2000; Mattes et al., IEEE TMI 2003.) The histogram is the
first product: party_1 opens it and knows L. For the second its rows are F_b G_d, G the spatial gradient of the warped
image, against the columns w_b h_j, h the homogeneous coordinates; the products are added up over b before anything is
opened, so that party_1 sees D (D + 1) moments and not D (D + 1) K numbers. The bins stay secret on both sides.

The Hessian is that of Fisher scoring, of party_1 alone: n s(x) is the derivative of log p(J | I) by I, and

    H = mean S S^T E[(n s)^2 | I] = mean S(x) S(x)^T sum_b p(b | I(T(x))) (n F_b(x))^2

with p(b | a) = H[a, b] / sum_b H[a, b]. It is positive and takes some ten iterations a level, where steps along the
gradient take hundreds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.losses import LOSSES
from ..errors import ConfigError, ImageError
from ..histograms import bin_slopes, information
from ..images import Image
from ..joint.bounds import all_pairs
from ..joint.columns import MOST_BINS, Columns, table_of
from ..joint.exact import exact_products
from ..joint.operands import Operand
from ..transforms import LinearTransform
from .linearisation import Linearisation
from .measures import Measure
from .ssd import SSD

__all__ = ["MI", "MutualInformation"]


class MI(SSD):
    """Minus the mutual information, in nats, of the warped moving image with a fixed image that may be another party's.

    Args:
        operand: of the measure `MutualInformation`.
        moving_bins: of the moving image, over its range at the level.

    Raises:
        ConfigError: an operand of other columns than bins; (when called) a transform that is not linear.
        ImageError: (when called) a constant moving image, or one of several channels.

    >>> from ppir_torch import Affine, ClearFixed, Grid, Image, Level, OperandRequest
    >>> from ppir_torch.losses import MutualInformation
    >>> image = Image(torch.rand(1, 9, 9), Grid((9, 9)))
    >>> inverted = Image(1 - image.tensor, image.grid)
    >>> measure = MutualInformation()
    >>> request = OperandRequest(Level(1, 0.0), columns=measure.columns(), measure=measure)
    >>> loss = measure.loss(ClearFixed(inverted).operand(request))
    >>> shifted = Affine(image.grid)
    >>> _ = torch.nn.init.constant_(shifted.translation, 2.0)
    >>> (loss(Affine(image.grid), image) < loss(shifted, image)).item()
    True
    """

    def __init__(self, operand: Operand, moving_bins: int) -> None:
        super().__init__(operand)
        if operand.columns.kind != "bins":
            raise ConfigError(f"mi: an operand of bins is needed, not of {operand.columns.kind!r}")
        self._moving_bins, self._fixed_bins = moving_bins, operand.columns.bins

    def linearise(self, transform: nn.Module, moving: Image, with_hessian: bool = True) -> Linearisation:
        """Value, gradient and Hessian from two joint products; see `SSD.linearise`."""
        if not isinstance(transform, LinearTransform):
            raise ConfigError(f"mi: {type(transform).__name__}, a linear transform is needed")
        rows, images = self._rows(transform, moving, with_images=with_hessian, with_slopes=True)
        gradient, warped = rows[:-1], rows[-1]
        low, high = _range(moving)
        weights = self.operand.sample.combined
        windows = table_of(warped, low, high, self._moving_bins)
        table = self._histogram(windows, weights)
        value, by_entry = information(table)
        slopes = bin_slopes(warped, low, high, self._moving_bins + 1)[:, 1:].T
        forces = by_entry.T.to(slopes) @ slopes
        hessian = torch.empty(0)
        if with_hessian:
            given = table.clamp(min=0) / table.clamp(min=0).sum(1, keepdim=True).clamp(min=1e-300)
            curvature = ((given.T.to(windows) @ windows) * forces.square()).sum(0) * float(table.sum())
            hessian = exact_products(images * (curvature if weights is None else curvature * weights), images).cpu()
        products = forces[:, None] * gradient
        moments = self._moments_of(products if weights is None else products * weights.to(products))
        return Linearisation(-float(value), -self._of_moments(moments, transform), hessian)

    def _value(self, transform: nn.Module, moving: Image) -> float:
        rows, _ = self._rows(transform, moving, with_images=False, with_slopes=False)
        windows = table_of(rows[-1], *_range(moving), self._moving_bins)
        return -float(information(self._histogram(windows, self.operand.sample.combined))[0])

    def _histogram(self, windows: Tensor, weights: Tensor | None) -> Tensor:
        """H (moving bins, fixed bins) float64 on the CPU: the first product."""
        pairs = all_pairs(self._moving_bins, self._fixed_bins)
        each = range(len(pairs))
        products = self.operand.sums(windows if weights is None else windows * weights.to(windows), pairs, each)
        return products.cpu().reshape(self._moving_bins, self._fixed_bins)

    def _moments_of(self, products: Tensor) -> Tensor:
        """sum_x sum_b F_b G_d w_b h_j (D, D + 1), of F_b G_d (fixed bins, D, n): the second product."""
        bins, dimension, points = products.shape
        asked = [
            (b * dimension + d, j * bins + b, d * (dimension + 1) + j)
            for d in range(dimension)
            for j in range(dimension + 1)
            for b in range(bins)
        ]
        pairs, sum_index = [(row, column) for row, column, _ in asked], [result for *_, result in asked]
        sums = self.operand.sums(products.reshape(-1, points), pairs, sum_index)
        return sums.cpu().reshape(dimension, dimension + 1)


@dataclass(frozen=True)
class MutualInformation(Measure):
    """Minus the mutual information of the intensities, in nats: across modalities, for linear transforms.

    See `losses.mutual_information` for what is opened. Bins divide each party's own range of intensities, which is not
    told; a cubic window lies over three of them on either side, so few are needed.

    Args:
        moving_bins: of the moving image, 4 to 64; every iteration sends as many rows.
        fixed_bins: of the fixed image, 4 to 64; every iteration sends D times as many rows.

    Raises:
        ConfigError: other numbers of bins.
    """

    moving_bins: int = 16
    fixed_bins: int = 8

    entry = LOSSES.ours("mi")

    def __post_init__(self) -> None:
        for name, bins in (("moving_bins", self.moving_bins), ("fixed_bins", self.fixed_bins)):
            if not 4 <= bins <= MOST_BINS:
                raise ConfigError(f"{name}: {bins}, 4 to {MOST_BINS} are needed")

    def columns(self) -> Columns:
        """Bin weights, see `Columns`."""
        return Columns("bins", bins=self.fixed_bins)

    def most_rows(self, dimension: int) -> int:
        """Of the histogram, and of its derivative."""
        return max(self.moving_bins, dimension * self.fixed_bins)

    def to_meta(self) -> dict[str, Any]:
        """See `Measure`."""
        return {"kind": self.kind, "moving_bins": self.moving_bins, "fixed_bins": self.fixed_bins}

    def loss(self, operand: Operand) -> MI:
        """See `Measure`."""
        return MI(operand, self.moving_bins)

    def explained(self, value: float, operand: Operand) -> float:  # noqa: ARG002
        """See `Measure`; the squared correlation that normal variables of this information have (Linfoot, 1957)."""
        return 1 - math.exp(2 * min(value, 0.0))


def _range(moving: Image) -> tuple[float, float]:
    if moving.tensor.shape[0] != 1:
        raise ImageError(f"moving image: {moving.tensor.shape[0]} channels, mutual information takes one")
    low, high = (float(extreme) for extreme in moving.tensor.aminmax())
    if not low < high:
        raise ImageError("moving image: constant at this level, its mutual information is not defined")
    return low, high
