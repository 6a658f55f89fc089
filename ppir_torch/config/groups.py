"""The groups of settings that are not chosen from a registry: levels, intensities, files, budgets, ledger, start.

>>> PyramidConfig(levels=[{"shrink": 4}, {"shrink": [2, 2, 1]}]).levels[1]
LevelConfig(shrink=(2, 2, 1), smoothing_mm=None)
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationInfo, field_serializer, field_validator, model_validator

from .base import File, Settings

__all__ = [
    "BudgetConfig",
    "CapConfig",
    "DataConfig",
    "LedgerConfig",
    "LevelConfig",
    "PairPreprocessConfig",
    "PointsBudgetConfig",
    "PreprocessConfig",
    "PyramidConfig",
    "StartConfig",
]


def _factors(value: object) -> int | tuple[int, ...]:
    """One factor, or one an axis."""
    factors = value if isinstance(value, list | tuple) else [value]
    numbers = tuple(f for f in factors if type(f) is int and 1 <= f <= 64)
    if len(numbers) != len(factors) or (factors is value and not 2 <= len(numbers) <= 3):
        raise ValueError("an integer >= 1 and <= 64, or a list of one an axis [x, y, z], is needed")
    return numbers if factors is value else numbers[0]


class LevelConfig(Settings):
    """One resolution level; `smoothing_mm` null means 0 at shrink 1, else half the level's smallest spacing.

    `shrink`: of the finest axis, the others being kept at about the same mm; or a factor an axis, [x, y, z].
    """

    shrink: Annotated[int | tuple[int, ...], PlainValidator(_factors)]
    smoothing_mm: float | None = Field(default=None, ge=0, le=1000)


class PyramidConfig(Settings):
    """`levels` "auto" (or null): powers of two from the fixed image's size.

    The coarsest leaves the shortest axis `least_voxels` (one with fewer than twice as many has no say), the finest has
    at most `most_points` (null: what a linear or a deformable stage makes use of). Levels that are given have neither.
    """

    levels: tuple[LevelConfig, ...] | None = Field(default=None, strict=False)
    least_voxels: int = Field(default=16, ge=8, le=1024)
    most_points: int | None = Field(default=None, ge=4096, le=2**40)

    @field_validator("levels", mode="before")
    @classmethod
    def _automatic(cls, levels: object) -> object:
        return None if levels == "auto" else levels

    @field_validator("levels")
    @classmethod
    def _coarse_to_fine(cls, levels: tuple[LevelConfig, ...] | None) -> tuple[LevelConfig, ...] | None:
        if levels is None:
            return None
        if not 1 <= len(levels) <= 10:
            raise ValueError("1 to 10 levels are needed")
        shrinks = [level.shrink for level in levels]
        largest = [n if isinstance(n, int) else max(n) for n in shrinks]
        if largest != sorted(largest, reverse=True):
            raise ValueError(f"shrink goes {shrinks}, coarse to fine is needed: it must not increase")
        return levels

    @model_validator(mode="after")
    def _check_automatic(self) -> PyramidConfig:
        for name in ("least_voxels", "most_points"):
            if self.levels is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: {getattr(self, name)}, goes with levels 'auto' only")
        return self

    @field_serializer("levels")
    def _said(self, levels: tuple[LevelConfig, ...] | None) -> str | list[dict[str, Any]]:
        return "auto" if levels is None else [level.model_dump() for level in levels]


class PreprocessConfig(Settings):
    """What a party does to the intensities of its own image, first of all; the other is not told.

    Values are held within `window` in the image's own unit (of CT: Hounsfield), brought to equal counts where
    `equalise` is true, held within the percentiles `clip`, then mapped to the range `rescale`; counts and percentiles
    are taken over the voxels of the file `mask`, on the image's grid.
    """

    rescale: tuple[float, float] | None = Field(default=None, strict=False)
    clip: tuple[float, float] | None = Field(default=None, strict=False)
    mask: File | None = None
    window: tuple[float, float] | None = Field(default=None, strict=False)
    equalise: bool = False

    @property
    def changes(self) -> bool:
        """Whether anything is done."""
        return self.equalise or any(pair is not None for pair in (self.rescale, self.clip, self.window))

    @field_validator("rescale", "clip", "window", mode="before")
    @classmethod
    def _two_numbers(cls, value: object, info: ValidationInfo) -> object:
        percentiles = info.field_name == "clip"
        if value is None:
            return None
        words = (
            "two percentiles [low, high] with 0 <= low < high <= 100 are"
            if percentiles
            else ("two numbers [low, high] with low < high, of magnitude 1e9 at most, are")
        )
        least, most = (0, 100) if percentiles else (-1e9, 1e9)
        pair = tuple(value) if isinstance(value, list | tuple) else ()
        if len(pair) != 2 or any(type(v) not in (int, float) for v in pair) or not least <= pair[0] < pair[1] <= most:
            raise ValueError(f"{words} needed (or null)")
        return tuple(float(v) for v in pair)

    @model_validator(mode="after")
    def _check_mask(self) -> PreprocessConfig:
        taken_over_it = self.equalise or self.rescale is not None or self.clip is not None
        if self.mask is not None and not taken_over_it:
            raise ValueError("mask goes with rescale, clip or equalise, whose values are taken over its voxels")
        return self


class PairPreprocessConfig(Settings):
    """Each party is given its own part only."""

    moving: PreprocessConfig = PreprocessConfig()
    fixed: PreprocessConfig = PreprocessConfig()


class DataConfig(Settings):
    """Files. `truth` and `reference` are ITK transforms to compare with: the known one, and that of the clear run.

    Outside `moving_mask` the moving image does not count; party_1 alone reads it, and it is told to nobody.
    """

    moving: File
    fixed: File
    moving_mask: File | None = None
    fixed_mask: File | None = None
    disclose_mask: bool = False
    disclose_centre_of_mass: bool = False
    disclose_atlas_map: bool = False
    truth: File | None = None
    reference: File | None = None
    preprocess: PairPreprocessConfig = PairPreprocessConfig()


class CapConfig(Settings):
    """party_2's cap on the values that it releases to one peer, over all runs.

    `file` null: the site's own, see `ppir audit`. `max_values` null: `fraction` of what there is.
    """

    file: File | None = None
    peer: str = Field(default="party_1", min_length=1, max_length=200)
    fraction: float = Field(gt=0, le=1e6)
    max_values: int | None = Field(default=None, ge=1, le=2**62)


class BudgetConfig(CapConfig):
    """The cap on values of an image, whose share is of the foreground voxels, and party_2's noise on them."""

    fraction: float = Field(default=0.05, gt=0, le=1e6)
    noise: float = Field(default=0.0, ge=0, le=1)


class PointsBudgetConfig(CapConfig):
    """The cap on values of a point set, whose share is of its n D coordinates."""

    fraction: float = Field(default=0.25, gt=0, le=1e6)


class LedgerConfig(Settings):
    """party_1's running account of what the opened values say about J; `most` stops the run where they say more.

    `most` is the share of J's variance that they explain and party_1's own warped image does not.
    """

    enabled: bool = True
    most: float | None = Field(default=None, gt=0, le=1)


class StartConfig(Settings):
    """Where the linear stage starts; `path` is the transform of "file" or the template of "atlas" (null: MNI's).

    `turns`: the coarsest level is tried from turns of the start by up to so many degrees, and goes on from the best.
    """

    kind: Literal["centres", "centre_of_mass", "identity", "file", "atlas"] = "centres"
    path: File | None = None
    turns: float = Field(default=0.0, ge=0, le=180)
