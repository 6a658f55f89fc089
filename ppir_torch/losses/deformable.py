"""The mean squared difference as a function of a control lattice's coefficients c: deformable registration.

    value    = mean (I(T(x)) - J(x))^2 + alpha R(c)
    gradient = (2/n) B^T (G * (I - J)) + alpha R'(c),   Hessian = (2/n) B^T (G G^T) B + alpha R''

B is the spline basis, G the gradient of the warped image by the displacement (n, D). Only B^T (G * J) and I . J need
both images: the element-wise product becomes additive shares, B^T is public and applied to each share, D M + 1 sums are
opened. I . G stays with party_1, and the Hessian, which is applied and never built, too.
(Free-form deformations: Rueckert et al., TMI 1999; Gauss-Newton for them: Andersson et al., FNIRT, 2007; velocity
fields: Ashburner, NeuroImage 2007, the update being added to v: Vercauteren et al., MICCAI 2008.)

Points, matrices, gradient and Hessian lie on the moving image's device; the coefficients, which are few, where the
transform has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ImageError
from ..images import Image
from ..joint.exact import exact_products
from ..joint.operands import Operand
from ..joint.placement import WARPED
from ..transforms import LatticeTransform, LinearTransform, adjoint, expand
from ..warping import channels_above_outside, sample_with_gradient
from .linearisation import OperatorLinearisation
from .smooth import Smoothness

__all__ = ["DeformableSSD"]

CHUNK = 1 << 16


class DeformableSSD:
    """Mean squared difference with a smoothness term, linearised on the coefficients of a control lattice.

    Args:
        operand: the fixed image at one level with the lattice's map, clear or private.
        transform: what is fitted.
        outer: the linear map from the deformed fixed points to the moving image; it stays as it is.
        smoothness: of the coefficients.
    """

    def __init__(
        self, operand: Operand, transform: LatticeTransform, outer: LinearTransform, smoothness: Smoothness
    ) -> None:
        self.operand, self.transform, self.outer, self.smoothness = operand, transform, outer, smoothness
        grid = operand.grid
        self._matrices = tuple(m.float() for m in transform.lattice.matrices(grid))
        self._squares = tuple(m.square() for m in self._matrices)
        index = operand.sample.index
        self._points = grid.points(index)  # float32
        self._index = index
        self._alpha = smoothness.weight * operand.mean_square

    def linearise(self, moving: Image) -> OperatorLinearisation:
        """Value, gradient (P,) and Hessian operator at the transform's coefficients, from one joint product.

        Args:
            moving: (C, ...) at this level; C as in the operand.
        """
        rows = self._rows(moving)
        weights, normaliser = self.operand.sample.combined, float(rows.shape[1])
        if weights is not None:
            weights, normaliser = weights.to(rows).repeat(moving.tensor.shape[0]), float(moving.tensor.shape[0])
        weighted = rows if weights is None else rows * weights
        quantised, projected, total = self.operand.project(weighted)
        # The rows' rounding meets the small residual I - J alone: in the gradient that of G, in the value that of I.
        own = self.operand.adjoint(quantised[:WARPED] * rows[WARPED])
        gradient = (2 / normaliser) * (own - projected.to(own)).flatten()
        energy = float(exact_products(2 * quantised[WARPED:] - weighted[WARPED:], rows[WARPED:]))
        value = (energy - 2 * total) / normaliser + self.operand.mean_square
        return self._smoothed(value, gradient, self._structure_tensor(rows[:-1], weights, normaliser))

    def _smoothed(
        self, value: float, gradient: Tensor, tensor: Tensor, without: Tensor | None = None
    ) -> OperatorLinearisation:
        """With the smoothness term; `without` (k, P) are vectors v whose v v^T the Hessian is less."""
        coefficients = self.transform.coefficients.detach().to(gradient)
        if self._alpha > 0:
            start = self.smoothness.start
            bent = coefficients if start is None else coefficients - start.to(coefficients)
            smooth = self._alpha * self.smoothness.regulariser.apply(bent)
            gradient = gradient + smooth.flatten()
            value += 0.5 * float((smooth * bent).sum())
        # What is left to deform is less than what an affine map starts from.
        nominal = 0.0 if self.operand.energy_known else 0.001 * self.operand.mean_square

        def apply(vector: Tensor) -> Tensor:
            image = self._apply(tensor, vector)
            return image if without is None else image - without.T @ (without @ vector)

        return OperatorLinearisation(value, gradient, apply, self._diagonal(tensor), len(coefficients), nominal)

    def _rows(self, moving: Image) -> Tensor:
        """(D + 1, C n): the warped image's gradient by the displacement, and the warped image less the offset."""
        self._move_to(moving.tensor.device)
        grid, d, n = self.operand.grid, self.operand.grid.dimension, len(self._points)
        field = expand(self.transform.coefficients.detach().to(self._points), self._matrices)
        # On the level's own grid: the finest one would cost as much at every level.
        field = self.transform.field_of(field, grid)
        moved, jacobian = field.flatten(1).T, self.transform.response(field, grid)
        if self._index is not None:
            moved = moved[self._index]
            jacobian = None if jacobian is None else jacobian[self._index]
        matrix = self.outer.affine_map()[0].detach().to(self._points)
        channels = channels_above_outside(moving)
        if len(channels) != self.operand.channels:
            raise ImageError(f"moving image: {len(channels)} channels, the operand has {self.operand.channels}")
        rows = self._points.new_empty(d + 1, len(channels) * n)
        beyond = 0.0 if self.operand.sample.overlap is None else None
        for start in range(0, n, CHUNK):
            stop = min(start + CHUNK, n)
            with torch.no_grad():
                mapped = self.outer(self._points[start:stop] + moved[start:stop])
            for number, (above, outside) in enumerate(channels):
                warped, gradient = sample_with_gradient(above, beyond, mapped)
                gradient = gradient @ matrix
                if jacobian is not None:
                    gradient = torch.einsum("nij,ni->nj", jacobian[start:stop], gradient)
                part = slice(number * n + start, number * n + stop)
                rows[:-1, part] = gradient.T
                rows[-1, part] = warped + (outside - self.operand.offset)
        return rows

    def _move_to(self, device: torch.device) -> None:
        """Points and matrices go to the moving image once, not in every iteration."""
        if self._points.device == device:
            return
        self._points = self._points.to(device)
        self._index = None if self._index is None else self._index.to(device)
        self._matrices = tuple(m.to(device) for m in self._matrices)
        self._squares = tuple(m.to(device) for m in self._squares)

    def _structure_tensor(self, gradient: Tensor, weights: Tensor | None, normaliser: float) -> Tensor:
        """(2/n) sum over channels of G_d G_e, upper triangle (D (D + 1) / 2, [z,] y, x), zero where no point is."""
        grid, d = self.operand.grid, len(gradient)
        parts = []
        for i in range(d):
            weighted = gradient[i] if weights is None else gradient[i] * weights
            parts += [(weighted * gradient[j]).reshape(-1, len(self._points)).sum(0) for j in range(i, d)]
        tensor = torch.stack(parts) * (2 / normaliser)
        if self._index is not None:
            whole = tensor.new_zeros(len(tensor), grid.count)
            whole[:, self._index] = tensor
            tensor = whole
        return tensor.reshape(-1, *grid.shape)

    def _apply(self, tensor: Tensor, vector: Tensor) -> Tensor:
        """H v: B^T (T (B v)) + alpha R'' v; sums over voxels in float32, of which steps need no more."""
        coefficients = vector.reshape(self.transform.coefficients.shape)
        moved = expand(coefficients.float(), self._matrices)
        d = len(moved)
        forces, place = torch.zeros_like(moved), 0
        for i in range(d):
            for j in range(i, d):
                forces[i].addcmul_(tensor[place], moved[j])
                if i != j:
                    forces[j].addcmul_(tensor[place], moved[i])
                place += 1
        result = adjoint(forces, self._matrices).double()
        if self._alpha > 0:
            result = result + self._alpha * self.smoothness.regulariser.apply(coefficients)
        return result.flatten()

    def _diagonal(self, tensor: Tensor) -> Tensor:
        d = len(self.transform.coefficients)
        places = [sum(d - k for k in range(i)) for i in range(d)]
        result = adjoint(tensor[places], self._squares).double()
        if self._alpha > 0:
            result = result + self._alpha * self.smoothness.regulariser.diagonal().to(result)
        return result.flatten()
