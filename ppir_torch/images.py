"""Images in physical space: loading, saving, checking, smoothing and resolution levels.

>>> image = Image(torch.arange(12.0).reshape(1, 3, 4), Grid(size=(4, 3), spacing=(2.0, 1.0)))
>>> image
Image(channels=1, size=(4, 3), spacing=(2.0, 1.0), dtype=float32)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import ImageError
from .grids import Grid
from .imagefiles.alignment import aligned_mask
from .imagefiles.itk import reason, simpleitk
from .imagefiles.read import read_image, read_size
from .levels import Level, level_grid

if TYPE_CHECKING:
    import SimpleITK

__all__ = [
    "Image",
    "Level",
    "check_content",
    "check_mask",
    "from_simpleitk",
    "image_size",
    "level_grid",
    "load_image",
    "load_mask",
    "save_image",
    "simpleitk",
    "to_simpleitk",
]

PART = 1 << 22  # voxels that are worked out at once


@dataclass(frozen=True, repr=False)
class Image:
    """A tensor (C, [z,] y, x) of floating dtype on its grid.

    Raises:
        ImageError: the tensor's shape is not that of the grid, or it holds NaN or infinity.
    """

    tensor: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.tensor.shape[1:] != self.grid.shape or not self.tensor.is_floating_point():
            raise ImageError(
                f"image tensor: {tuple(self.tensor.shape)} {self.tensor.dtype}, "
                f"a floating one with (channels, {self.grid.shape}) is needed"
            )
        # The extremes tell it, for NaN is the extreme of what it is among: no copy of the image.
        if self.tensor.numel() and not all(math.isfinite(float(value)) for value in self.tensor.detach().aminmax()):
            bad = int((~torch.isfinite(self.tensor)).sum())
            raise ImageError(f"image: {bad} voxels are NaN or infinite, every voxel needs a finite value")

    def __repr__(self) -> str:
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        grid = self.grid
        return f"Image(channels={self.tensor.shape[0]}, size={grid.size}, spacing={grid.spacing}, dtype={dtype})"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Image:
        """The same image on another device or in another floating dtype."""
        return replace(self, tensor=self.tensor.to(device=device, dtype=dtype))

    def precise(self, *others: Grid) -> Image:
        """In float64 where its own grid, or another that its points come from, lies far from 0; else itself."""
        return self.to(dtype=torch.float64) if any(grid.is_far for grid in (self.grid, *others)) else self

    def seen_from(self, grid: Grid) -> Image:
        """The same image in coordinates that fit another slice's, where both are slices in space; see `Grid.seen_from`.

        Raises:
            ImageError: they are slices of different views.
        """
        seen = self.grid.seen_from(grid)
        return self if seen is self.grid else Image(self.tensor, seen)

    @property
    def outside(self) -> float:
        """The value the image is taken to have beyond its border: the median of its border voxels."""
        return float(torch.cat(_faces(self.tensor[0])).median())

    def centre_of_mass(self) -> Tensor:
        """Physical centre of mass (D,), float64 mm, of the intensity above the outside value."""
        outside, total = self.outside, 0.0
        moment = torch.zeros(self.grid.dimension, dtype=torch.float64)
        for start, part in _parts(self.tensor[0].flatten()):
            mass = (part.double() - outside).clamp(min=0)
            index = torch.arange(start, start + len(part))
            points = self.grid.points(index, torch.float64, mass.device)
            total += float(mass.sum())
            moment += (mass[:, None] * points).sum(0).cpu()
        if total <= 0:
            raise ImageError("image: nothing is brighter than its border, so it has no centre of mass")
        return moment / total

    def smoothed(self, sigma_mm: float) -> Image:
        """Gaussian smoothing with `sigma_mm` millimetres along every axis (border values are repeated outside)."""
        return self.at_level(Level(1, sigma_mm))

    def at_level(self, level: Level) -> Image:
        """Smooth, then keep the voxels of `level_grid`."""
        coarse, keep = level_grid(self.grid, level)
        if level.smoothing_mm <= 0 and coarse == self.grid:
            return self
        tensor = self.tensor
        for axis, slices in enumerate(keep):
            spacing = self.grid.spacing[::-1][axis]
            rows = _gaussian_matrix(tensor.shape[axis + 1], level.smoothing_mm / spacing)[slices]
            tensor = _along(tensor, axis + 1, rows.to(dtype=tensor.dtype, device=tensor.device))
        return Image(tensor.contiguous(), coarse)


def _along(tensor: Tensor, axis: int, rows: Tensor) -> Tensor:
    """sum_n tensor[.., n, ..] rows[m, n] along an axis of (C, [z,] y, x); of a large image in slabs."""
    other = 2 if axis == 1 else 1
    thickness = max(1, PART * tensor.shape[other] // max(tensor.numel(), 1))
    if thickness >= tensor.shape[other]:
        whole: Tensor = torch.tensordot(tensor, rows, dims=([axis], [1])).movedim(-1, axis)
        return whole
    result = tensor.new_empty([len(rows) if a == axis else n for a, n in enumerate(tensor.shape)])
    for slab, made in zip(torch.split(tensor, thickness, other), torch.split(result, thickness, other), strict=True):
        made.copy_(torch.tensordot(slab, rows, dims=([axis], [1])).movedim(-1, axis))
    return result


def _parts(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(where it starts, the part) of flat values, so that there is no copy of the whole in another type."""
    for start in range(0, len(values), PART):
        yield start, values[start : start + PART]


def _gaussian_matrix(count: int, sigma: float) -> Tensor:
    """(count, count) float64: row i holds the weights of a Gaussian at i, with the border voxel repeated outside."""
    if sigma < 0.01:  # the neighbours' weights are 0 in float64, and sigma^2 may underflow
        return torch.eye(count, dtype=torch.float64)
    reach = max(1, math.ceil(4 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * sigma * sigma))
    weights = weights / weights.sum()
    columns = (torch.arange(count)[:, None] + offsets.long()).clamp(0, count - 1)
    return torch.zeros(count, count, dtype=torch.float64).scatter_add_(1, columns, weights.expand(count, -1))


def _faces(volume: Tensor) -> list[Tensor]:
    return [volume.select(axis, i).flatten() for axis in range(volume.ndim) for i in (0, volume.shape[axis] - 1)]


def check_content(image: Image, name: str) -> None:
    """Refuse what cannot be registered: more than one channel, or a constant image.

    Raises:
        ImageError: with `name` (the file or argument) in its line.
    """
    if image.tensor.shape[0] != 1:
        raise ImageError(f"{name}: {image.tensor.shape[0]} channels, one is needed")
    low, high = (float(v) for v in image.tensor.aminmax())
    if low == high:
        raise ImageError(f"{name}: constant image (every voxel is {low:g}), nothing can be registered")


def check_mask(mask: Tensor, grid: Grid, name: str, whose: str) -> None:
    """Refuse a mask that is not bool, not of its image's shape, or empty.

    Raises:
        ImageError: with `name` of the mask, and `whose` it is, in its line.
    """
    if mask.dtype != torch.bool or mask.shape != grid.shape:
        raise ImageError(f"{name}: {tuple(mask.shape)} {mask.dtype}, {whose} needs {grid.shape} torch.bool")
    if not bool(mask.any()):
        raise ImageError(f"{name}: empty, at least one voxel is needed")


def load_image(path: str | Path, dtype: torch.dtype = torch.float32) -> Image:
    """Read NIfTI, NRRD, MHA, PNG, ... or a folder with one DICOM series (through SimpleITK), as LPS millimetres.

    Of several series in a folder one is named: `folder::SERIES_UID`. Colour is averaged to one channel. A single slice
    that its file keeps in 3-D becomes 2-D, in the coordinates of its plane (`Grid.plane`).

    Raises:
        ImageError: the file is missing, unreadable, truncated, not 2-D or 3-D, constant, holds NaN or infinity, or a
            voxel is no brightness (a vector, a tensor, a complex number); or `dtype` cannot tell its values apart.
    """
    read = read_image(path)
    try:
        image = from_simpleitk(read, dtype)
        check_content(image, str(path))
        _check_precision(simpleitk().GetArrayViewFromImage(read), image)
    except ImageError as error:
        raise ImageError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return image


def image_size(path: str | Path) -> tuple[int, ...]:
    """Voxels along x, y[, z] from headers alone; no voxel is read. Raises ImageError as `load_image`."""
    size = read_size(path)[:3]
    across = _single_axis(size)
    return size if across is None else tuple(n for axis, n in enumerate(size) if axis != across)


def load_mask(path: str | Path, grid: Grid) -> Tensor:
    """A foreground mask as bool ([z,] y, x) on an image's grid: voxels above 0.

    It is compared with the grid in millimetres. The same voxels in another order, or a part of them, are reordered;
    another spacing over the same field of view is resampled (nearest voxel).

    Raises:
        ImageError: the file cannot be read, the mask is empty, or it lies elsewhere than the image.
    """
    read = read_image(path)
    try:
        loaded = from_simpleitk(read)
        if grid.plane is None:
            mask = aligned_mask(loaded.tensor[0] > 0, loaded.grid, grid)
        else:
            spatial = loaded.grid.in_space()
            tensor = (loaded.tensor[0] > 0).reshape(spatial.shape)
            mask = aligned_mask(tensor, spatial, grid.in_space()).reshape(grid.shape)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    if not bool(mask.any()):
        raise ImageError(f"{path}: empty mask, at least one voxel above 0 is needed")
    return mask


def _single_axis(size: tuple[int, ...]) -> int | None:
    """The axis across a slice that is kept in 3-D: the last with one voxel."""
    return max((axis for axis, n in enumerate(size) if n == 1), default=None) if len(size) == 3 else None


def _check_precision(values: np.ndarray[Any, Any], image: Image) -> None:
    """Refuse values that the image's dtype rounds to fewer than 4096 steps: a small range far from 0."""
    if values.dtype.itemsize <= 2 or values.dtype == np.float32 or image.tensor.dtype == torch.float64:
        return
    low, high = (float(v) for v in image.tensor.aminmax())
    steps = (high - low) / float(np.spacing(np.float32(max(abs(low), abs(high)))))
    if steps < 4096 and bool((values != image.tensor[0].numpy().reshape(values.shape)).any()):
        raise ImageError(
            f"values from {float(values.min()):.12g} to {float(values.max()):.12g}, of which float32 tells only "
            f"{steps:.0f} apart; take float64 (dtype: float64), or subtract the offset first"
        )


def from_simpleitk(loaded: SimpleITK.Image, dtype: torch.dtype = torch.float32) -> Image:
    """A SimpleITK image as an Image; a single slice of a 3-D image becomes 2-D, with the plane it lies in.

    Raises:
        ImageError: not 2-D or 3-D, or several components a voxel.
    """
    if loaded.GetDimension() not in (2, 3):
        raise ImageError(f"{loaded.GetDimension()}-D image of size {loaded.GetSize()}, 2-D or 3-D is needed")
    if loaded.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(f"{loaded.GetNumberOfComponentsPerPixel()} components a voxel, one is needed")
    grid = Grid(loaded.GetSize(), loaded.GetSpacing(), loaded.GetOrigin(), loaded.GetDirection())
    if _single_axis(grid.size) is not None:
        grid = Grid.of_slice(grid)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        values = simpleitk().GetArrayViewFromImage(loaded).astype("float32" if dtype == torch.float32 else "float64")
    return Image(torch.from_numpy(values).reshape(1, *grid.shape).to(dtype), grid)


def to_simpleitk(image: Image) -> SimpleITK.Image:
    """One-channel Image as a SimpleITK image with the same geometry: 3-D where the image is a slice in space."""
    grid = image.grid.in_space()
    result = simpleitk().GetImageFromArray(image.tensor[0].detach().cpu().reshape(grid.shape).numpy())
    result.SetSpacing(grid.spacing)
    result.SetOrigin(grid.origin)
    result.SetDirection(grid.direction)
    return result


def save_image(image: Image, path: str | Path) -> None:
    """Write in the format of the ending (.nii.gz, .nrrd, .mha, ...; .png clips to 0..255), whole or not at all."""
    sitk = simpleitk()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.suffix == ".png"
    data = to_simpleitk(Image(image.tensor, replace(image.grid, plane=None)) if picture else image)
    if picture:
        data = sitk.Cast(sitk.Clamp(data, lowerBound=0, upperBound=255), sitk.sitkUInt8)
    partial = path.with_name(f".partial-{path.name}")
    try:
        sitk.WriteImage(data, str(partial))
    except RuntimeError as error:
        partial.unlink(missing_ok=True)
        raise ImageError(f"{path}: cannot be written ({reason(str(error))})") from None
    partial.replace(path)
