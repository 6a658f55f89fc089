"""The control lattice `limited`: u = l tanh(s / l) of a spline s, l = 10 mm, so that no point moves farther."""

from __future__ import annotations

import torch
from torch import Tensor

from ppir_torch import Grid
from ppir_torch.transforms import LatticeTransform

from .limited import LIMITED

LIMIT_MM = 10.0


class LimitedSpline(LatticeTransform):
    """y = x + l tanh(s(x) / l), component by component."""

    entry = LIMITED

    def field_of(self, spline: Tensor, grid: Grid) -> Tensor:
        """Displacements (D, [z,] y, x) in mm, of the spline's values."""
        return LIMIT_MM * torch.tanh(spline / LIMIT_MM)

    def response(self, field: Tensor, grid: Grid) -> Tensor:
        """The derivative by the spline, (N, D, D): diagonal, 1 - (u / l)^2."""
        return torch.diag_embed(1 - (field.flatten(1).T / LIMIT_MM) ** 2)
