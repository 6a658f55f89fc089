"""What tests of losses across contrasts share: intensities made others, transforms off the truth, sampled operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppir_torch.images import Image, Level
from ppir_torch.joint.columns import Columns
from ppir_torch.joint.operands import ClearOperand
from ppir_torch.losses import Measure
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.sampling import Chunks, Full, GradientMagnitude, Permuted, Uniform
from ppir_torch.transforms import linear_transform

FULL = Level(1, 0.0)
REMAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda v: v,
    "brighter": lambda v: 30 + 2.5 * v,
    "inverted": lambda v: 500 - 3 * v,
    "folded": lambda v: 100 - (v - 60).abs(),
    "curved": lambda v: (v / 300).clamp(min=0).sqrt() * (1 - v / 600),
}


def off(kind: str, images: Any, seed: int = 2) -> Any:
    """A transform off the truth by some millimetres."""
    transform, generator = linear_transform(kind)(images.fixed.grid), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        transform.translation += images.moving.grid.centre - images.fixed.grid.centre
    return transform


def operand_of(
    fixed: Image, sampler: str, measure: Measure, columns: Columns | None = None, share_3d: float = 0.1
) -> ClearOperand:
    """With all points, some of them (URS), a window of a public order (chunks), or points with weights (GMS).

    Half of the points in 2-D, `share_3d` of them in 3-D; the measure's own columns where none are said.
    """
    share, columns = 0.5 if fixed.grid.dimension == 2 else share_3d, columns or measure.columns()
    choice: Any = {"urs": Uniform(share, 3), "chunks": Permuted(3)}.get(sampler, Full())
    operand = ClearFixed(fixed).operand(OperandRequest(FULL, choice, columns=columns, measure=measure))
    if sampler == "chunks":
        operand = operand.part(Chunks(share, 3).window(fixed.grid.count, 0), None)
    if sampler == "gms":
        drawn = GradientMagnitude(share, 3).draw(fixed.tensor.flatten().double() + 1, 0)
        assert drawn.index is not None
        operand = operand.part(drawn.index, drawn.weights)
    assert isinstance(operand, ClearOperand)
    return operand
