"""Images in physical space: loading, saving, checking, smoothing and resolution levels.

>>> image = Image(torch.arange(12.0).reshape(1, 3, 4), Grid(size=(4, 3), spacing=(2.0, 1.0)))
>>> image
Image(channels=1, size=(4, 3), spacing=(2.0, 1.0), dtype=float32)
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import ImageError, MissingExtra
from .grids import Grid
from .levels import Level, level_grid

if TYPE_CHECKING:
    import SimpleITK

__all__ = [
    "Image",
    "Level",
    "check_content",
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


def load_image(path: str | Path, dtype: torch.dtype = torch.float32) -> Image:
    """Read NIfTI, NRRD, MHA, PNG, ... or a folder with one DICOM series (through SimpleITK), as LPS millimetres.

    Colour is averaged to one channel. Raises ImageError where the file is missing, unreadable, truncated, not 2-D or
    3-D, constant, or holds NaN (in NIfTI files ITK's reader replaces NaN by 0).
    """
    sitk = simpleitk()
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder")
    try:
        if path.is_dir():
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
            if not names:
                raise ImageError(f"{path}: the folder holds no DICOM series")
            loaded = sitk.ReadImage(names)
        else:
            loaded = sitk.ReadImage(str(path))
            _check_whole(path)
    except RuntimeError as error:
        reason = _reason(str(error))
        raise ImageError(f"{path}: cannot be read as an image ({reason})") from None
    try:
        image = from_simpleitk(loaded, dtype)
        check_content(image, str(path))
    except ImageError as error:
        raise ImageError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return image


def image_size(path: str | Path) -> tuple[int, ...]:
    """Voxels along x, y[, z] from the file's header alone; no voxel is read. Raises ImageError as `load_image`."""
    sitk = simpleitk()
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else [str(path)]
    if not names:
        raise ImageError(f"{path}: the folder holds no DICOM series")
    reader = sitk.ImageFileReader()
    reader.SetFileName(names[0])
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageError(f"{path}: cannot be read as an image ({_reason(str(error))})") from None
    size = tuple(int(n) for n in reader.GetSize())
    size = (*size[:2], len(names)) if len(names) > 1 else size
    return size[:2] if len(size) == 3 and size[2] == 1 else size


def load_mask(path: str | Path, grid: Grid) -> Tensor:
    """A foreground mask as bool ([z,] y, x): voxels above 0. Raises ImageError where empty or not on `grid`."""
    sitk = simpleitk()
    if not Path(path).exists():
        raise ImageError(f"{path}: no such file")
    try:
        read = sitk.ReadImage(str(path))
        _check_whole(Path(path))
    except RuntimeError as error:
        raise ImageError(f"{path}: cannot be read as an image ({_reason(str(error))})") from None
    try:
        loaded = from_simpleitk(read)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    if loaded.grid.size != grid.size:
        raise ImageError(f"{path}: mask of size {loaded.grid.size}, the image has {grid.size}")
    mask = loaded.tensor[0] > 0
    if not bool(mask.any()):
        raise ImageError(f"{path}: empty mask, at least one voxel above 0 is needed")
    return mask


def _check_whole(path: Path) -> None:
    """Refuse a truncated or damaged NIfTI file, of which ITK would read the missing part as zeros."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    with path.open("rb") as stream:
        head = stream.read(348)
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as unzipped:
                while unzipped.read(1 << 20):
                    pass
        except (EOFError, OSError, zlib.error) as error:
            raise ImageError(f"{path}: truncated or damaged file ({error})") from None
        return
    order = next((o for o in "<>" if head[:4] == struct.pack(f"{o}i", 348)), None)
    if order is not None:  # NIfTI-1; a NIfTI-2 header is not checked
        axes, *sizes = struct.unpack_from(f"{order}8h", head, 40)
        (bits,), (start,) = struct.unpack_from(f"{order}h", head, 72), struct.unpack_from(f"{order}f", head, 108)
        needed = int(start) + math.prod(sizes[:axes]) * bits // 8
        if path.stat().st_size < needed:
            raise ImageError(f"{path}: truncated file, {path.stat().st_size} bytes of {needed}")


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ") if lines else "unknown reason"


def from_simpleitk(loaded: SimpleITK.Image, dtype: torch.dtype = torch.float32) -> Image:
    """A SimpleITK image as an Image; a 3-D file with a single slice becomes 2-D."""
    sitk = simpleitk()
    if loaded.GetDimension() == 3 and loaded.GetSize()[2] == 1:
        collapse = sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX
        loaded = sitk.Extract(loaded, [*loaded.GetSize()[:2], 0], [0, 0, 0], collapse)
    if loaded.GetDimension() not in (2, 3):
        raise ImageError(f"{loaded.GetDimension()}-D image of size {loaded.GetSize()}, 2-D or 3-D is needed")
    array = torch.from_numpy(sitk.GetArrayFromImage(loaded).astype("float64"))
    if loaded.GetNumberOfComponentsPerPixel() > 1:
        array = array.mean(-1)
    grid = Grid(loaded.GetSize(), loaded.GetSpacing(), loaded.GetOrigin(), loaded.GetDirection())
    return Image(array[None].to(dtype), grid)


def to_simpleitk(image: Image) -> SimpleITK.Image:
    """One-channel Image as a SimpleITK image with the same geometry."""
    sitk = simpleitk()
    result = sitk.GetImageFromArray(image.tensor[0].detach().cpu().numpy())
    result.SetSpacing(image.grid.spacing)
    result.SetOrigin(image.grid.origin)
    result.SetDirection(image.grid.direction)
    return result


def save_image(image: Image, path: str | Path) -> None:
    """Write in the format of the ending (.nii.gz, .nrrd, .mha, ...; .png clips to 0..255), whole or not at all."""
    sitk = simpleitk()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = to_simpleitk(image)
    if path.suffix == ".png":
        data = sitk.Cast(sitk.Clamp(data, lowerBound=0, upperBound=255), sitk.sitkUInt8)
    partial = path.with_name(f".partial-{path.name}")
    try:
        sitk.WriteImage(data, str(partial))
    except RuntimeError as error:
        partial.unlink(missing_ok=True)
        raise ImageError(f"{path}: cannot be written ({_reason(str(error))})") from None
    partial.replace(path)


def simpleitk() -> Any:
    """The SimpleITK module, loaded where it is used; the core imports without it."""
    try:
        import SimpleITK
    except ImportError:
        raise MissingExtra("SimpleITK is not installed; `pip install SimpleITK` reads and writes image files") from None
    return SimpleITK
