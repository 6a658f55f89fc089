"""Transforms one after the other.

>>> import torch
>>> from ppir_torch import Grid, Translation
>>> shift = Translation(Grid((4, 4)))
>>> Composite([shift, shift])(torch.ones(1, 2)).tolist()
[[1.0, 1.0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ..errors import ConfigError
from .dense import sampled_once

__all__ = ["Composite"]


class Composite(nn.Module):
    """Several transforms as one: `Composite([first, second])` maps x to second(first(x)).

    A deformation of the fixed image followed by an affine map to the moving image is `Composite([bspline, affine])`.
    (ITK's CompositeTransform applies the transform that was added last first; `to_simpleitk_transform` turns the order
    round.)

    Args:
        parts: nn.Modules of points (..., D) to points (..., D) in mm, in the order in which they are applied. They are
            shared, not copied.

    Raises:
        ConfigError: no parts, or parts of different dimensions.

    >>> import torch
    >>> Composite([nn.Identity(), nn.Identity()])(torch.ones(3, 2)).shape
    torch.Size([3, 2])
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise ConfigError("composite of no transforms: at least one is needed")
        dimensions = {part.dimension for part in parts if hasattr(part, "dimension")}
        if len(dimensions) > 1:
            raise ConfigError(f"composite of transforms of dimensions {sorted(map(str, dimensions))}: one is needed")
        self.parts = nn.ModuleList(parts)

    @property
    def dimension(self) -> int:
        """2 or 3, as the first part that knows says.

        >>> from ppir_torch import Grid, Translation
        >>> Composite([Translation(Grid((4, 4)))]).dimension
        2
        """
        return next(cast(int, part.dimension) for part in self.parts if hasattr(part, "dimension"))

    def forward(self, points: Tensor) -> Tensor:
        """Map points (..., D) in mm through the parts, first to last; dtype and derivatives are those of the parts.

        >>> import torch
        >>> Composite([nn.Identity()])(torch.ones(2, 3, 2)).shape
        torch.Size([2, 3, 2])
        """
        for part in self.parts:
            points = part(points)
        return points

    def sampled(self) -> Composite:
        """The same map with every part's own `sampled`, where it has one: for many calls without derivatives.

        >>> Composite([nn.Identity()]).sampled().parts
        ModuleList(
          (0): Identity()
        )
        """
        return Composite([sampled_once(part) for part in self.parts])

    def inverse(self) -> Composite:
        """The parts' inverses in reverse order, each as the part's own `inverse()` gives it.

        Raises:
            ConfigError: a part has no `inverse`, or it does not converge.

        >>> from ppir_torch import Grid, Translation
        >>> len(Composite([Translation(Grid((4, 4)))]).inverse().parts)
        1
        """
        for part in self.parts:
            if not hasattr(part, "inverse"):
                raise ConfigError(f"composite: {type(part).__name__} has no inverse")
        return Composite([cast(nn.Module, part.inverse()) for part in reversed(self.parts)])  # type: ignore[operator]
