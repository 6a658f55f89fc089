"""Sum of squared differences, linearised on the fixed image: inverse-compositional Gauss-Newton.

    minimise over dp   mean (J(W(x; dp)) - I(T(x)))^2,   then   T <- T o W(dp)^-1

    gradient = 2 S_J^T (J - I_w) / N,   Hessian = 2 S_J^T S_J / N,   S_J = dJ(W(x; dp)) / d dp at dp = 0

(Baker and Matthews, IJCV 2004, section 3.2.) S_J does not change, so party_2 prepares it once per level and discloses
S_J^T S_J and S_J^T J, once; in every iteration only the warped image I_w (one row) meets the P + 1 columns (J, S_J).
party_1 sends about 1/P of the bytes of the forward variant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..images import Image
from ..joint.exact import exact_products
from ..joint.operands import Operand
from ..warping import sample
from .linearisation import Linearisation

__all__ = ["InverseSSD"]


class InverseSSD:
    """Mean squared difference with its derivatives by a step dp of the fixed image's coordinates.

    Args:
        operand: with the columns "steepest_descent" of the transform.

    Raises:
        ConfigError: another operand, or points that party_2 does not know (its sums S_J^T J are over its own points).

    >>> from ppir_torch import Affine, Grid, Image, Level
    >>> from ppir_torch.joint.columns import Columns
    >>> from ppir_torch.registration import ClearFixed, OperandRequest
    >>> fixed = ClearFixed(Image(torch.rand(1, 9, 9), Grid((9, 9))))
    >>> columns = Columns("steepest_descent", "affine")
    >>> operand = fixed.operand(OperandRequest(Level(1, 0.0), columns=columns))
    >>> InverseSSD(operand).linearise(Affine(fixed.grid), fixed.image).gradient.abs().max().item() < 1e-6
    True
    """

    def __init__(self, operand: Operand) -> None:
        gram = operand.gram
        if gram is None or not operand.sample.known:
            raise ConfigError("inverse-compositional: an operand of steepest-descent images at known points is needed")
        self.operand = operand
        self._gram = gram
        self._points: Tensor | None = None

    def linearise(self, transform: nn.Module, moving: Image) -> Linearisation:
        """Value, gradient (P,) and Hessian (P, P) by the step dp, from one product of one row with P + 1 columns."""
        if self._points is None:
            self._points = self.operand.grid.points(
                self.operand.sample.index, moving.tensor.dtype, moving.tensor.device
            )
        count = self._points.shape[0]
        with torch.no_grad():
            warped = sample(moving, transform(self._points)) - self.operand.offset
        pairs = [(0, column) for column in range(self._gram.shape[0])]
        quantised, products = self.operand.multiply(warped[None], pairs)
        own = float(exact_products(quantised, quantised)[0, 0])
        value = (own - 2 * float(products[0])) / count + self.operand.mean_square
        gradient = 2 * (self._gram[1:, 0] - products[1:].cpu()) / count
        return Linearisation(value, gradient, 2 * self._gram[1:, 1:] / count)
