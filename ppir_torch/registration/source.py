"""Where a run gets its fixed image from, and the source that holds it in this process.

>>> import torch
>>> from ppir_torch.images import Level
>>> from ppir_torch.registration.request import OperandRequest
>>> fixed = ClearFixed(Image(torch.rand(1, 8, 8), Grid((8, 8))))
>>> fixed.operand(OperandRequest(Level(1, 0.0))).grid.size
(8, 8)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..grids import Grid
from ..images import Image, check_content, check_mask
from ..joint.operands import ClearOperand, Operand
from ..joint.placement import select_points
from .request import OperandRequest

__all__ = ["ClearFixed", "FixedSource"]


class FixedSource(Protocol):
    """Where a run gets its fixed image from: the image itself (`ClearFixed`) or another party (`PrivateFixed`)."""

    @property
    def grid(self) -> Grid: ...
    @property
    def mask(self) -> Tensor | None: ...
    def centre_of_mass(self) -> Tensor: ...
    def prefers_moments(self, points: int) -> bool:
        """Whether affine products of N points should go by the columns "moments"."""
        ...

    def operand(self, request: OperandRequest) -> Operand:
        """The operand of one level, made of the measure's features of the fixed image; with a lattice, its map's."""
        ...


@dataclass(frozen=True)
class ClearFixed:
    """The fixed image in this process, with an optional foreground mask (bool, [z,] y, x).

    Raises:
        ImageError: a constant image, or a mask that is empty or not of the image's shape.
    """

    image: Image
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_content(self.image, "fixed image")
        if self.mask is not None:
            check_mask(self.mask, self.grid, "mask", "the image")

    @property
    def grid(self) -> Grid:
        """Of the full image."""
        return self.image.grid

    def centre_of_mass(self) -> Tensor:
        """Physical centre of mass (D,), mm."""
        return self.image.centre_of_mass()

    def prefers_moments(self, points: int) -> bool:  # noqa: ARG002
        """Never: one process has no bytes to save."""
        return False

    def operand(self, request: OperandRequest) -> Operand:
        """The fixed image's features at the request's level, at its points; `rows` says nothing here."""
        candidates, sample = select_points(self.grid, self.mask, request.level, request.choice, request.number)
        coarse, measure = self.image.at_level(request.level), request.measure
        features = measure.features(coarse, coarse.grid)
        public_map = request.public_map(features.grid, sample)
        return ClearOperand.of(features, candidates, sample, request.columns, self.grid, public_map, measure.normalised)
