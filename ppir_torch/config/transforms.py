"""The transforms: settings and entries, linear ones and control lattices. Their modules are in `ppir_torch.transforms`.

>>> TRANSFORMS["bspline"].lattice, linear_names()
(True, ('translation', 'rigid', 'similarity', 'affine'))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from .base import KindSettings
from .registry import Entry, OneName, OneOf, Registry

__all__ = [
    "TRANSFORMS",
    "AffineConfig",
    "BSplineConfig",
    "DeformableConfig",
    "LinearConfig",
    "RigidConfig",
    "SimilarityConfig",
    "Transform",
    "TransformEntry",
    "TranslationConfig",
    "VelocityConfig",
    "linear_names",
]


@dataclass(frozen=True)
class TransformEntry(Entry):
    """A transform; `home` is its class, an `nn.Module`.

    The settings say whether it is linear (`LinearConfig`) or a control lattice (`DeformableConfig`).

    Attributes:
        any_affine: of linear ones: its parameters hold any affine map.
    """

    any_affine: bool = False

    @property
    def lattice(self) -> bool:
        """A control lattice, after a linear stage."""
        return issubclass(self.settings, DeformableConfig)


class LinearConfig(KindSettings):
    """Base of the settings of linear transforms."""

    @property
    def linear(self) -> str:
        """The linear stage's transform."""
        return self.kind

    @property
    def deformable(self) -> DeformableConfig | None:
        """The settings of the stage after the linear one: there is none."""
        return None


class TranslationConfig(LinearConfig):
    """D parameters."""

    kind: Literal["translation"] = "translation"


class RigidConfig(LinearConfig):
    """Rotation and translation."""

    kind: Literal["rigid"] = "rigid"


class SimilarityConfig(LinearConfig):
    """Rotation, translation and one scale."""

    kind: Literal["similarity"] = "similarity"


class AffineConfig(LinearConfig):
    """D (D + 1) parameters."""

    kind: Literal["affine"] = "affine"


def linear_names() -> tuple[str, ...]:
    """Of all linear transforms."""
    return tuple(entry.name for entry in TRANSFORMS if not entry.lattice)


class DeformableConfig(KindSettings):
    """A linear stage (or "none"), then control points. Base of the settings of every control lattice.

    `spacing_mm` lies between control points at the finest level, twice that a level before, and so on; null: five of
    the fixed image's voxels. At shrink 1 both images are smoothed by a voxel unless the level says otherwise: between
    voxels linear interpolation averages noise away, and a free deformation would follow that. `weight` of the
    regulariser (mm^2 of "bending", a number of the others) is relative to the fixed image's variance; null: `stiffness`
    squares of the control spacing ("bending"), or `stiffness`, which null is the loss's own. Steps move no point by
    more than `longest_voxels`, and none makes the map squeeze a volume below its share `jacobian_min` (0: it may fold).
    """

    linear: Annotated[str, OneName(lambda: (*linear_names(), "none"))] = "affine"
    spacing_mm: float | None = Field(default=None, gt=0, le=10_000)
    regulariser: Literal["bending", "diffusion", "elastic"] = "bending"
    weight: float | None = Field(default=None, ge=0, le=1e9)
    stiffness: float | None = Field(default=None, ge=0, le=1e9)
    jacobian_min: float = Field(default=0.1, ge=0, lt=1)
    max_iterations: int = Field(default=100, ge=1, le=10_000)
    step_voxels: float = Field(default=0.01, ge=0, le=1000)
    decrease: float = Field(default=1e-3, ge=0, le=1)
    longest_voxels: float = Field(default=1.5, gt=0, le=1e6)

    @property
    def deformable(self) -> DeformableConfig | None:
        """The settings of the stage after the linear one: these."""
        return self


class BSplineConfig(DeformableConfig):
    """Free-form deformation."""

    kind: Literal["bspline"] = "bspline"


class VelocityConfig(DeformableConfig):
    """A stationary velocity field: diffeomorphic."""

    kind: Literal["velocity"] = "velocity"


TRANSFORMS = Registry(
    "transform",
    "ppir_torch.transforms",
    TransformEntry,
    (LinearConfig, DeformableConfig),
    TransformEntry(TranslationConfig, "a shift", "ppir_torch.transforms.linear:Translation"),
    TransformEntry(RigidConfig, "rotation and shift", "ppir_torch.transforms.linear:Rigid"),
    TransformEntry(SimilarityConfig, "rotation, shift and one scale", "ppir_torch.transforms.linear:Similarity"),
    TransformEntry(AffineConfig, "any linear map and shift", "ppir_torch.transforms.linear:Affine", any_affine=True),
    TransformEntry(BSplineConfig, "free-form deformation by cubic B-splines", "ppir_torch.transforms.bspline:BSpline"),
    TransformEntry(
        VelocityConfig,
        "flow of a stationary velocity field: diffeomorphic",
        "ppir_torch.transforms.velocity:VelocityField",
    ),
    reserved=("none",),  # of the linear stage: there is none
)

Transform = Annotated[LinearConfig | DeformableConfig, OneOf(TRANSFORMS)]
