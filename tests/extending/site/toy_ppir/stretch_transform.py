"""The linear transform `stretch`: A = diag(exp(stretch / radius))."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppir_torch import Grid
from ppir_torch.transforms import LinearTransform

from .stretch import STRETCH


class Stretch(LinearTransform):
    """One scale an axis, exp(stretch / radius), and the translation; all parameters in mm."""

    entry = STRETCH

    def __init__(self, grid: Grid, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(grid, dtype)
        self.stretch = nn.Parameter(torch.zeros(grid.dimension, dtype=dtype))

    def matrix(self) -> Tensor:
        """A, (D, D)."""
        return torch.diag(torch.exp(self.stretch / self.radius))

    @torch.no_grad()
    def set_affine_map(self, matrix: Tensor, offset: Tensor) -> None:
        """Take scales and translation; the matrix is diagonal and positive."""
        self.stretch.copy_(torch.diagonal(matrix).log() * self.radius)
        self.set_translation(matrix, offset)
