"""A real brain pair with an exact truth, made from an image that a package ships; for the demo, tests and benchmarks.

The fixed image is the MNI152 T1 template (in the nilearn wheel, read with SimpleITK: importing nilearn takes long) on
the 2 mm MNI grid (91 x 109 x 91); the moving image is the same brain moved by a known affine, with 2 % noise.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import MissingExtra
from .grids import Grid
from .images import Image, from_simpleitk, save_image, simpleitk, to_simpleitk
from .transforms import (
    Affine,
    Composite,
    Displacement,
    affine_from_map,
    save_transform,
    to_simpleitk_transform,
)
from .warping import warp

__all__ = ["BrainPair", "DeformedPair", "brain_pair", "deformed", "deformed_pair", "known_affine", "save_pair"]

MNI_GRID = Grid(
    size=(91, 109, 91),
    spacing=(2.0, 2.0, 2.0),
    origin=(90.0, 126.0, -72.0),
    direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
)
_FILE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class BrainPair:
    """Two images and the transform that maps fixed points to moving points."""

    moving: Image
    fixed: Image
    truth: Affine


def known_affine(grid: Grid) -> Affine:
    """Twelve parameters about the grid's centre: turns of 10, 8, 9 degrees about x, y, z, scales 1.08, 0.93, 1.06,
    shears of 2-3 %, a shift of 8.1 mm."""
    matrix = _turn(2, 9.0) @ _turn(1, 8.0) @ _turn(0, 10.0)
    stretch = torch.tensor([[1.08, 0.03, 0.02], [0.0, 0.93, -0.03], [0.0, 0.0, 1.06]], dtype=torch.float64)
    shift = torch.tensor([5.0, -4.5, 4.5], dtype=torch.float64)
    linear = matrix @ stretch
    return affine_from_map(grid, linear, grid.centre + shift - linear @ grid.centre)


def brain_pair(noise: float = 0.02, seed: int = 0) -> BrainPair:
    """The pair; `noise` is the standard deviation of white noise in the moving image, as a share of the range.

    Raises:
        MissingExtra: nilearn, which ships the image, is not installed.
    """
    sitk = simpleitk()
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise MissingExtra("nilearn ships the demo's brain and is not installed; `pip install ppir-torch[demo]`")
    # Half a 2 mm voxel of smoothing before sampling at 2 mm, against aliasing.
    template = sitk.ReadImage(str(Path(spec.origin).parent / _FILE), sitk.sitkFloat32)
    template = sitk.SmoothingRecursiveGaussian(template, 0.85)
    reference = to_simpleitk(Image(torch.zeros(1, *MNI_GRID.shape), MNI_GRID))
    fixed = sitk.Resample(template, reference, sitk.Transform(), sitk.sitkLinear, 0.0)
    truth = known_affine(MNI_GRID)
    moved = sitk.Resample(fixed, reference, to_simpleitk_transform(truth.inverse()), sitk.sitkBSpline, 0.0)
    clean = from_simpleitk(moved).tensor.clamp(min=0)
    generator = torch.Generator().manual_seed(seed)
    noisy = clean + noise * float(clean.max()) * torch.randn(clean.shape, generator=generator)
    return BrainPair(Image(noisy, MNI_GRID), from_simpleitk(fixed), truth)


def save_pair(pair: BrainPair, folder: Path) -> tuple[Path, Path, Path]:
    """Write moving.nii.gz, fixed.nii.gz and truth.tfm; returns their paths."""
    paths = folder / "moving.nii.gz", folder / "fixed.nii.gz", folder / "truth.tfm"
    save_image(pair.moving, paths[0])
    save_image(pair.fixed, paths[1])
    save_transform(pair.truth, paths[2])
    return paths


@dataclass(frozen=True)
class DeformedPair:
    """Two images and the map from fixed points to moving points: a smooth displacement, then an affine one."""

    moving: Image
    fixed: Image
    truth: Composite


def deformed_pair(
    largest_mm: float = 6.0, smoothness_mm: float = 16.0, noise: float = 0.02, seed: int = 1
) -> DeformedPair:
    """The brain of `brain_pair`, moved by the known affine and a random smooth displacement.

    Args:
        largest_mm: of the displacement inside the brain (its root mean square there is about 2.4 mm of 6).
        smoothness_mm: standard deviation of the Gaussian that makes it smooth; it vanishes at the volume's border.
        noise: as in `brain_pair`.
        seed: of displacement and noise.

    Raises:
        MissingExtra: as `brain_pair`.
        ConfigError: the displacement folds; a smaller or smoother one is needed.
    """
    return deformed(brain_pair(noise=0.0).fixed, known_affine(MNI_GRID), largest_mm, smoothness_mm, noise, seed)


def deformed(
    fixed: Image, affine: Affine, largest_mm: float, smoothness_mm: float, noise: float, seed: int
) -> DeformedPair:
    """An image (1, [z,] y, x) and itself moved by a random smooth displacement and then an affine map.

    Arguments and errors as in `deformed_pair`.
    """
    grid, d = fixed.grid, fixed.grid.dimension
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(d, *grid.shape, generator=generator, dtype=torch.float64)
    field = Image(field, grid).smoothed(smoothness_mm).tensor
    for axis, n in enumerate(grid.shape):
        window = torch.sin(math.pi * torch.arange(n, dtype=torch.float64) / (n - 1))
        field = field * window.reshape([-1 if a == axis else 1 for a in range(d)])
    inside = fixed.tensor[0] > fixed.outside + 0.1 * (float(fixed.tensor.max()) - fixed.outside)
    field = field * (largest_mm / float(torch.linalg.vector_norm(field, dim=0)[inside.cpu()].max()))
    truth = Composite([Displacement(grid, field), affine])
    moved = warp(fixed, truth.inverse(), grid).tensor
    noisy = moved + noise * float(moved.max()) * torch.randn(moved.shape, generator=generator).to(moved)
    return DeformedPair(Image(noisy, grid), fixed, truth)


def _turn(axis: int, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(3, dtype=torch.float64)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix
