"""The losses: settings and entries. The measures themselves are in `ppir_torch.losses`.

>>> LOSSES["mi"].optimizer
'lbfgs'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from .base import KindSettings
from .registry import Entry, OneOf, Registry

__all__ = [
    "DEFAULT_LOSSES",
    "LOSSES",
    "CorrelationRatioConfig",
    "LocalNccConfig",
    "Loss",
    "LossEntry",
    "MindConfig",
    "MutualInformationConfig",
    "NccConfig",
    "SquaredNccConfig",
    "SsdConfig",
]


@dataclass(frozen=True)
class LossEntry(Entry):
    """A loss; `home` is its `Measure`, made with the settings.

    Attributes:
        discloses: lines on what party_1 learns by it, or what J stands for in the lines of a protocol; an entry must
            say, if only that it is nothing beyond the protocol's own.
        deforms: it goes with control lattices, too.
        normalised: party_2's column goes to zero mean and unit variance over the points in use.
        optimizer: where the configuration names none.
        stiffness: of a control lattice where the configuration says none: the weight of "bending" in squares of the
            control spacing.
    """

    discloses: tuple[str, ...]
    deforms: bool = True
    normalised: bool = False
    optimizer: str = "gauss_newton"
    stiffness: float = 0.02


class SsdConfig(KindSettings):
    """Mean squared difference of the intensities."""

    kind: Literal["ssd"] = "ssd"


class NccConfig(KindSettings):
    """1 - correlation of the intensities over the points in use."""

    kind: Literal["ncc"] = "ncc"


class SquaredNccConfig(KindSettings):
    """1 - squared correlation of the intensities over the overlap: contrast may be inverted."""

    kind: Literal["ncc_squared"] = "ncc_squared"


class LocalNccConfig(KindSettings):
    """Of locally normalised images; see `ppir_torch.LocalCorrelation`. `radius_mm` null: four voxels of the level."""

    kind: Literal["local_ncc"] = "local_ncc"
    radius_mm: float | None = Field(default=None, gt=0, le=1000)
    floor: float = Field(default=0.1, ge=1e-3, le=10)
    noise: float = Field(default=0.0, ge=0, le=100)


class MindConfig(KindSettings):
    """Of MIND-SSC descriptors; see `ppir_torch.Mind`. Both in voxels of the level."""

    kind: Literal["mind"] = "mind"
    radius: int = Field(default=2, ge=0, le=16)
    dilation: int = Field(default=2, ge=1, le=16)


class CorrelationRatioConfig(KindSettings):
    """1 - the correlation ratio of the fixed image given the moving one; see `ppir_torch.CorrelationRatio`."""

    kind: Literal["cr"] = "cr"
    windows: int = Field(default=16, ge=4, le=64)


class MutualInformationConfig(KindSettings):
    """Minus the mutual information of the intensities; see `ppir_torch.MutualInformation`. Linear transforms only."""

    kind: Literal["mi"] = "mi"
    moving_bins: int = Field(default=16, ge=4, le=64)
    fixed_bins: int = Field(default=8, ge=4, le=64)


LOSSES = Registry(
    "loss",
    "ppir_torch.losses",
    LossEntry,
    KindSettings,
    LossEntry(
        SsdConfig,
        "mean squared difference of the intensities: one modality on one scale",
        "ppir_torch.losses.ssd:SquaredDifference",
        discloses=(),
    ),
    LossEntry(
        NccConfig,
        "1 - correlation of the intensities: one modality, whatever brightness and contrast",
        "ppir_torch.losses.ncc:Correlation",
        discloses=("with loss ncc J is the fixed image at zero mean and unit variance: neither is told",),
        normalised=True,
    ),
    LossEntry(
        SquaredNccConfig,
        "1 - squared correlation of the intensities: whatever brightness and contrast, inverted ones too",
        "ppir_torch.losses.ncc:SquaredCorrelation",
        discloses=("with loss ncc_squared J is the fixed image at zero mean and unit variance: neither is told",),
        normalised=True,
    ),
    LossEntry(
        LocalNccConfig,
        "squared difference of locally normalised images: one modality, brightness that drifts",
        "ppir_torch.losses.local_ncc:LocalCorrelation",
        discloses=("with loss local_ncc J is the locally normalised fixed image, not its intensities",),
        stiffness=0.25,
    ),
    LossEntry(
        MindConfig,
        "squared difference of MIND-SSC descriptors: across modalities",
        "ppir_torch.losses.mind:Mind",
        discloses=(
            "with loss mind J is the fixed image's MIND descriptors (12 channels, 4 in 2-D), not its intensities",
        ),
    ),
    LossEntry(
        CorrelationRatioConfig,
        "1 - the correlation ratio of the fixed image given the moving one: across modalities",
        "ppir_torch.losses.correlation_ratio:CorrelationRatio",
        discloses=(
            "with loss cr J is the fixed image at zero mean and unit variance: neither is told. Beside the gradient it "
            "learns at each iteration J's sums over the windows of its own warped image's intensities (16 numbers, "
            "as many as loss.windows), hence the mean of J as a function of them, linear in J and in the ledger",
        ),
        normalised=True,
    ),
    LossEntry(
        MutualInformationConfig,
        "minus the mutual information of the intensities: across modalities, linear transforms",
        "ppir_torch.losses.mutual_information:MutualInformation",
        discloses=(
            "with loss mi it learns the joint histogram of the two images' bins and D (D + 1) moments of its "
            "derivative at each iteration; no range, mean, scale or energy of J is told",
        ),
        deforms=False,
        optimizer="lbfgs",
    ),
)

DEFAULT_LOSSES = (SquaredNccConfig(), SsdConfig())
"""Of a run that names none: the first that goes with what it names."""

Loss = Annotated[KindSettings, OneOf(LOSSES)]
