"""A public template as the start of a run: each side registers it to its own image alone, and the two maps compose.

No cryptography: nothing is told but party_2's affine map, and only where its site agrees. Where that route alone is
accurate enough, a private registration is not needed (docs/atlas_table.md says how accurate it is).

>>> import torch
>>> from ppir_torch import Grid
>>> grid = Grid((32, 32))
>>> blob = Image(torch.exp(-((grid.points() - 16) ** 2 / torch.tensor([80, 30])).sum(1)).reshape(1, 32, 32), grid)
>>> own = to_atlas(blob, blob)
>>> matrix, offset = through_atlas(own, own, grid).affine_map()
>>> bool((matrix - torch.eye(2)).abs().max() < 1e-3)
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..config.groups import StartConfig
from ..errors import ConfigError, ImageError
from ..grids import Grid
from ..images import Image, check_content, load_image
from ..losses import SquaredCorrelation
from ..phantoms import brain_pair
from ..transforms import Affine, LinearTransform, affine_from_map, load_transform
from .loop import register_images
from .plan import Plan
from .source import ClearFixed

__all__ = ["load_atlas", "loaded_start", "through_atlas", "to_atlas"]

LEAST_EXPLAINED = 0.1  # of the template: what a start must have in common with it


def load_atlas(path: Path | None) -> Image:
    """The template: a file that both sites name, or the MNI head that the extra [demo] ships.

    Raises:
        ImageError: it cannot be read. MissingExtra: no file, and the extra is not installed.
    """
    return brain_pair(noise=0.0).fixed if path is None else load_image(path)


def to_atlas(image: Image, atlas: Image) -> Affine:
    """The affine map from the template's points to the image's own, by the squared correlation over their overlap.

    Rigid first, so that a template of another person finds the pose before it scales.

    Raises:
        ImageError: other dimensions, or nothing of the template is found in the image.
    """
    check_content(image, "image")
    if image.grid.dimension != atlas.grid.dimension:
        raise ImageError(f"start: atlas is {atlas.grid.dimension}-D, the image {image.grid.dimension}-D; unequal")
    atlas = atlas.to(image.tensor.device, image.tensor.dtype)
    source, plan = ClearFixed(atlas), Plan(transform="rigid", loss=SquaredCorrelation())
    posed = register_images(image, source, plan).transform
    assert isinstance(posed, LinearTransform)
    start = affine_from_map(atlas.grid, *(part.detach() for part in posed.affine_map()))
    result = register_images(image, source, replace(plan, transform="affine", start=start))
    if not result.complete or 1 - result.value < LEAST_EXPLAINED:
        raise ImageError(
            f"start: atlas, the template explains {max(1 - result.value, 0):.1%} of this image, at least "
            f"{LEAST_EXPLAINED:.0%} are needed; is it of the same organ and contrast?"
        )
    assert isinstance(result.transform, LinearTransform)
    matrix, offset = result.transform.affine_map()
    return affine_from_map(atlas.grid, matrix.detach().double().cpu(), offset.detach().double().cpu())


def through_atlas(moving: Affine, fixed: Affine, grid: Grid) -> Affine:
    """The map from fixed points to moving points, of the maps from the template to each image.

    Args:
        moving: template to moving image.
        fixed: template to fixed image.
        grid: of the fixed image.

    Raises:
        ConfigError: the second cannot be inverted.
    """
    if float(torch.linalg.det(fixed.affine_map()[0].detach())) <= 0:
        raise ConfigError("start: the fixed image's map to the atlas cannot be inverted")
    return affine_from_map(grid, *moving.compose(fixed.inverse()).affine_map())


def loaded_start(
    settings: StartConfig, moving: Image, grid: Grid, fixed_map: Callable[[Image], Affine]
) -> Affine | None:
    """The transform that a run starts from, of a file or through an atlas; None where the settings ask for neither.

    Args:
        settings: of the start.
        moving: the moving image.
        grid: of the fixed image.
        fixed_map: of the template, its map to the fixed image: found here, or told by party_2.
    """
    if settings.kind == "atlas":
        atlas = load_atlas(settings.path)
        return through_atlas(to_atlas(moving, atlas), fixed_map(atlas), grid)
    return load_transform(settings.path, grid) if settings.path else None
