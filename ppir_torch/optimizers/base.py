"""What a registration asks of an optimiser: iterations, and where it is unlike the others, what it needs instead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

from torch import nn

from ..config.optimizers import OptimizerEntry
from ..config.registry import words
from ..errors import ConfigError
from ..joint.columns import Columns
from ..joint.operands import Operand
from ..losses import AnyLinearisation, LinearLoss, Measure
from .stopping import Iteration, Stopping

__all__ = ["Optimizer"]


class Optimizer(ABC):
    """An optimiser sees value, gradient and Hessian of a linearised loss, never an image.

    `minimise` is all that most have to say. The other methods are for those whose loss is of another form.

    Attributes:
        entry: what is known of it: what it discloses, what it goes with.
    """

    entry: ClassVar[OptimizerEntry]

    @abstractmethod
    def minimise(
        self,
        transform: nn.Module,
        linearise: Callable[[], AnyLinearisation],
        stopping: Stopping,
        voxel_mm: float,
    ) -> Iterator[Iteration]:
        """Move the parameters of `transform` to lower loss, yielding every iteration; they end at the best seen.

        Args:
            transform: its parameters are mm.
            linearise: the loss at the transform as it is; one joint product.
            stopping: when the level ends.
            voxel_mm: of the level.
        """

    def check(self, loss: str) -> None:
        """Refuse a loss, by its name, that does not go with this optimiser.

        Raises:
            ConfigError: the two do not go together.
        """
        if not self.entry.goes_with(loss):
            names = words(map(repr, self.entry.losses or ()))
            raise ConfigError(f"optimizer: {type(self).__name__} goes with loss {names} only, not {loss!r}")

    def columns(self, transform: str) -> Columns | None:  # noqa: ARG002
        """The columns that it needs of the fixed image with a linear transform; None: those of the loss."""
        return None

    def loss(self, measure: Measure, operand: Operand) -> LinearLoss:
        """What is linearised with a linear transform."""
        return measure.loss(operand)

    def for_lattices(self) -> Optimizer:
        """The optimiser of a deformable stage: this one, unless it is for few parameters only."""
        return self

    def for_overlaps(self) -> Optimizer:
        """The optimiser where some fixed points map outside the moving image: this one, unless it needs all of them."""
        return self
