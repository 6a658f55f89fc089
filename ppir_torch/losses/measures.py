"""Which similarity a run minimises: what each party makes of its own image alone, and the loss on top of it.

Whatever the measure, the parties compute one joint product: party_1's rows are made of its warped features and their
derivatives, party_2's column of its own. With f = phi(I) of the moving image on its own grid, T the transform and
g = phi(J) of the fixed image, both of C channels, the bilinear form that is computed privately is

    sum_c sum_x f_c(T(x)) g_c(x)      (and the same with the derivatives of f_c(T(x)) in the place of f_c(T(x)))

mean (f - g)^2 = mean f^2 - 2 mean f g + mean g^2: the last does not change, so what is maximised is the product
mean f g up to the energy of the warped features. Each loss has its measure in its own file; `config.losses` lists them.

>>> import torch
>>> from ppir_torch import Affine, ClearFixed, Grid, Image, Level, Mind, OperandRequest
>>> image = Image(torch.rand(1, 16, 16), Grid((16, 16)))
>>> inverted = Image(1 - image.tensor, image.grid)
>>> measure = Mind()
>>> operand = ClearFixed(inverted).operand(OperandRequest(Level(1, 0.0), measure=measure))
>>> loss, features = measure.loss(operand), measure.features(image, operand.grid)
>>> operand.channels, round(loss(Affine(image.grid), features).item(), 5)
(4, 0.0)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from ..config.losses import LossEntry
from ..errors import ConfigError
from ..grids import Grid
from ..images import Image
from ..joint.columns import IMAGE, Columns
from ..joint.operands import Operand
from ..transforms import LatticeTransform, LinearTransform
from .linearisation import LatticeLoss, LinearLoss
from .smooth import Smoothness

__all__ = ["Measure"]


class Measure(ABC):
    """A similarity measure: a value, agreed on by both parties and public.

    A measure that is the mean squared difference of features is a `FeatureDifference`; it says what the features are.

    Attributes:
        entry: what is known of it: its name, what it discloses, what it goes with.
        follows_axes: features depend on the tensor's axes and voxels; a registration makes those of the moving image
            along the transform that a level starts from (`resampled_along`), which is party_1's alone.
    """

    entry: ClassVar[LossEntry]
    follows_axes: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """Its name in configurations and reports."""
        return self.entry.name

    @property
    def normalised(self) -> bool:
        """Whether party_2's column goes to zero mean and unit variance over the operand's points."""
        return self.entry.normalised

    @property
    def deforms(self) -> bool:
        """Whether it goes with control lattices, too."""
        return self.entry.deforms

    def channels(self, dimension: int) -> int:  # noqa: ARG002
        """C, of D-dimensional images."""
        return 1

    def features(self, image: Image, fixed: Grid) -> Image:  # noqa: ARG002
        """What a party makes of its own image at a level, (C, [z,] y, x) on a grid of the same voxels.

        Args:
            image: one channel, at the level's smoothing and spacing.
            fixed: the fixed image's grid at the level (public): features follow its axes and voxels.
        """
        return image

    def columns(self) -> Columns:
        """What party_2's operand is made of, where the optimiser and the protocol have no other wish."""
        return IMAGE

    def most_rows(self, dimension: int) -> int:  # noqa: ARG002
        """Of one product of the loss's own, beside those of a transform's derivatives."""
        return 1

    def rows_beside(self) -> int:
        """Of products that go through no map where the transform is a control lattice; 0: there are none."""
        return 0

    def to_meta(self) -> dict[str, Any]:
        """Kind and settings as JSON values: both parties must have the same."""
        return {"kind": self.kind}

    @abstractmethod
    def loss(self, operand: Operand) -> LinearLoss:
        """The loss over an operand of this measure; it takes `features` of the moving image."""

    def explained(self, value: float, operand: Operand) -> float | None:  # noqa: ARG002
        """The share of the fixed image that the warped one explains where the loss has this value; None: not known.

        1 is all of it; 0 or less is what an image that has nothing to do with it would reach.
        """
        return None

    def deformable_loss(
        self,
        operand: Operand,  # noqa: ARG002
        part: LatticeTransform,  # noqa: ARG002
        outer: LinearTransform,  # noqa: ARG002
        smoothness: Smoothness,  # noqa: ARG002
    ) -> LatticeLoss:
        """The same for a control lattice's coefficients.

        Raises:
            ConfigError: the measure is for linear transforms.
        """
        raise ConfigError(f"loss: {self.kind!r} is for linear transforms")
