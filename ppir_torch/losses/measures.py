"""Which similarity a run minimises: what each party makes of its own image alone, and the loss on top of it.

Whatever the measure, the parties compute one joint product: party_1's rows are made of its warped features and their
derivatives, party_2's column of its own. With f = phi(I) of the moving image on its own grid, T the transform and
g = phi(J) of the fixed image, both of C channels, the bilinear form that is computed privately is

    sum_c sum_x f_c(T(x)) g_c(x)      (and the same with the derivatives of f_c(T(x)) in the place of f_c(T(x)))

| measure | phi | value that is minimised |
|---|---|---|
| `SquaredDifference` | the image | mean (f - g)^2 |
| `Correlation` | the image, to zero mean and unit variance over the points in use | 1 - rho = mean (f - g)^2 / 2 |
| `LocalCorrelation` | (I - local mean) / local deviation | mean (f - g)^2 |
| `Mind` | MIND-SSC descriptors, 12 channels (4 in 2-D) | mean (f - g)^2 over points and channels |
| `ModuleFeatures` | a network's channels | mean (f - g)^2 over points and channels |
| `MutualInformation` | the image | - information of the joint histogram, see `losses.mutual_information` |

mean (f - g)^2 = mean f^2 - 2 mean f g + mean g^2: the last does not change, so what is maximised is the product
mean f g up to the energy of the warped features. For `LocalCorrelation` that product is

    C(T) = 1/N sum_x n(I)(T(x)) n(J)(x),     n = `features.local_normalised`:

n(I) is computed on the moving image's own grid and warped, it is not n of the warped image (they differ where T scales
or shears the window). `features` says how C relates to the LNCC of ANTs and MONAI.

`Correlation` is exact: rho = mean f g is Pearson's correlation of I(T(x)) and J(x), whatever increasing affine map was
applied to the intensities of either. party_1 normalises its warped image in every iteration, party_2 its own once a
level.

>>> from ppir_torch import Affine, ClearFixed, Grid, Image, Level, OperandRequest
>>> image = Image(torch.rand(1, 16, 16), Grid((16, 16)))
>>> inverted = Image(1 - image.tensor, image.grid)
>>> measure = Mind()
>>> operand = ClearFixed(inverted).operand(OperandRequest(Level(1, 0.0), measure=measure))
>>> loss, features = measure.loss(operand), measure.features(image, operand.grid)
>>> operand.channels, round(loss(Affine(image.grid), features).item(), 5)
(4, 0.0)
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import ConfigError, ImageError
from ..features import apply_module, local_normalised, mind_ssc, turned_towards
from ..grids import Grid
from ..images import Image
from ..joint.columns import IMAGE, MOST_BINS, Columns
from ..joint.operands import Operand
from ..transforms import LatticeTransform, LinearTransform
from .deformable import DeformableNCC, DeformableSSD, Smoothness
from .mutual_information import MI
from .ncc import NCC
from .ssd import SSD

__all__ = [
    "Correlation",
    "LocalCorrelation",
    "Measure",
    "Mind",
    "ModuleFeatures",
    "MutualInformation",
    "SquaredDifference",
]

MAX_CHANNELS = 1024
_WINDOW_VOXELS, _LEAST_WINDOW_VOXELS = 4.0, 2.0


class Measure(ABC):
    """A similarity measure: a value, agreed on by both parties and public.

    Attributes:
        kind: its name in configurations and reports.
        normalised: party_2's column goes to zero mean and unit variance over the operand's points.
        follows_axes: features depend on the tensor's axes and voxels; a registration makes those of the moving image
            along the transform that a level starts from (`resampled_along`), which is party_1's alone.
        deforms: it goes with control lattices, too.
    """

    kind: ClassVar[str]
    follows_axes: ClassVar[bool] = False
    normalised: ClassVar[bool] = False
    deforms: ClassVar[bool] = True

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
        """Of one product where `columns` are not the image: the loss's own."""
        return 1

    def to_meta(self) -> dict[str, Any]:
        """Kind and settings as JSON values: both parties must have the same."""
        return {"kind": self.kind}

    def loss(self, operand: Operand) -> SSD:
        """The loss over an operand of this measure; it takes `features` of the moving image."""
        return NCC(operand) if self.normalised else SSD(operand)

    def deformable_loss(
        self, operand: Operand, part: LatticeTransform, outer: LinearTransform, smoothness: Smoothness
    ) -> DeformableSSD:
        """The same for a control lattice's coefficients."""
        return (DeformableNCC if self.normalised else DeformableSSD)(operand, part, outer, smoothness)


@dataclass(frozen=True)
class SquaredDifference(Measure):
    """Mean squared difference of the intensities (SSD)."""

    kind = "ssd"


@dataclass(frozen=True)
class Correlation(Measure):
    """1 - Pearson's correlation of the intensities (NCC), over the points in use.

    An increasing affine change of either image's intensities leaves it as it is. party_2's mean and variance are not
    disclosed: its column is normalised before anything is said about it.
    """

    kind = "ncc"
    normalised = True


@dataclass(frozen=True)
class Mind(Measure):
    """Mean squared difference of MIND-SSC descriptors (Heinrich et al., MICCAI 2013): across modalities.

    Distances are in voxels of the level. Descriptors follow the axes and voxels of the grid that they are made on: at
    the start of every level party_1 resamples its image along the transform so far, so that neither a rotation nor a
    scale that the level before has found is left between the two images' descriptors. What the first level has to find
    is in its descriptors, so beyond some 30 degrees give a start transform. `features` alone permutes and flips axes.

    Args:
        radius: of the patches, voxels.
        dilation: from a voxel to the centres of the patches that are compared, voxels.
    """

    radius: int = 2
    dilation: int = 2

    kind = "mind"
    follows_axes = True

    def channels(self, dimension: int) -> int:
        """Pairs of face neighbours that lie diagonally: 4 in 2-D, 12 in 3-D."""
        return 2 * dimension * (dimension - 1)

    def features(self, image: Image, fixed: Grid) -> Image:
        """See `Measure`."""
        return mind_ssc(turned_towards(image, fixed), self.radius, self.dilation)

    def to_meta(self) -> dict[str, Any]:
        """See `Measure`."""
        return {"kind": self.kind, "radius": self.radius, "dilation": self.dilation}


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

    kind = "mi"
    deforms = False

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

    def loss(self, operand: Operand) -> SSD:
        """See `Measure`."""
        return MI(operand, self.moving_bins)


@dataclass(frozen=True)
class LocalCorrelation(Measure):
    """Mean squared difference of locally normalised images: the private local NCC, see the module's docstring.

    Args:
        radius_mm: half-width of the window, at least two voxels of the level (of the fixed image; the geometric mean
            of its spacings); None: four of them.
        floor: added deviation as a share of the image's own, so that noise in flat regions stays small.
    """

    radius_mm: float | None = None
    floor: float = 0.1

    kind = "local_ncc"

    def features(self, image: Image, fixed: Grid) -> Image:
        """See `Measure`."""
        voxel = math.prod(fixed.spacing) ** (1 / fixed.dimension)
        radius = _WINDOW_VOXELS * voxel if self.radius_mm is None else max(self.radius_mm, _LEAST_WINDOW_VOXELS * voxel)
        return local_normalised(image, radius, self.floor)

    def to_meta(self) -> dict[str, Any]:
        """See `Measure`."""
        return {"kind": self.kind, "radius_mm": self.radius_mm, "floor": self.floor}


@dataclass(frozen=True)
class ModuleFeatures(Measure):
    """Mean squared difference of the channels that a network makes of each image: from Python only.

    A configuration never names code, so no YAML has this measure: each party's program hands its own copy of the module
    to `Plan` or `FixedParty`. The copies must have the same weights, which is checked by their SHA-256; what the
    network computes besides (its code, its preprocessing) is for the parties to agree on.

    Args:
        module: (1, 1, [z,] y, x) to (1, C, [z,] y, x), see `features.apply_module`; put it in `eval()` first.
        channels_made: C.

    Raises:
        ConfigError: not 1 to 1024 channels, or a module in training mode.
    """

    module: nn.Module = field(repr=False)
    channels_made: int

    kind = "module"
    follows_axes = True

    def __post_init__(self) -> None:
        if not 1 <= self.channels_made <= MAX_CHANNELS:
            raise ConfigError(f"module: {self.channels_made} channels, 1 to {MAX_CHANNELS} are needed")
        if any(part.training for part in self.module.modules() if not isinstance(part, nn.Sequential)):
            raise ConfigError("module: it is in training mode, its output may change from call to call; call eval()")

    def channels(self, dimension: int) -> int:  # noqa: ARG002
        """As many as the network makes."""
        return self.channels_made

    def features(self, image: Image, fixed: Grid) -> Image:
        """See `Measure`; raises ImageError where the module returns another number of channels."""
        made = apply_module(self.module, turned_towards(image, fixed))
        if made.tensor.shape[0] != self.channels_made:
            raise ImageError(f"module: returned {made.tensor.shape[0]} channels, {self.channels_made} were declared")
        return made

    def to_meta(self) -> dict[str, Any]:
        """Channels and a digest of the weights, by which the parties see that they have the same."""
        digest = hashlib.sha256()
        for name, value in self.module.state_dict().items():
            digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return {"kind": self.kind, "channels": self.channels_made, "weights": digest.hexdigest()}
