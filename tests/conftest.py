"""Phantoms with exact truth: images evaluated from a formula, so that a warped image needs no interpolation."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from ppir_torch.config.transforms import linear_names
from ppir_torch.grids import Grid
from ppir_torch.images import Image
from ppir_torch.transforms import LinearTransform, linear_transform

# What the tests' parties release is not entered into this user's own file.
_RELEASES = tempfile.TemporaryDirectory(prefix="ppir-releases-")
os.environ["PPIR_RELEASES"] = str(Path(_RELEASES.name) / "releases.sqlite")

# These problems are small: a second thread gains nothing, and on a busy machine costs a factor of four.
torch.set_num_threads(1)

# The same cases each time; `pytest --hypothesis-profile=default` looks for new ones. A slow machine is no fault.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

SIZES = {2: (48, 40), 3: (32, 28, 24)}
SPACINGS = {2: (1.5, 2.0), 3: (1.5, 1.75, 2.0)}


@dataclass(frozen=True)
class Phantom:
    """A sum of Gaussians: a smooth, textured image that is known at every physical point."""

    centres: Tensor  # (K, D) mm
    widths: Tensor  # (K,) mm
    heights: Tensor  # (K,)

    def __call__(self, points: Tensor) -> Tensor:
        """Values (N,) float64 at physical points (N, D)."""
        square = torch.cdist(points.double(), self.centres).square()
        return torch.exp(-square / (2 * self.widths**2)) @ self.heights

    def image(self, grid: Grid, before: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> Image:
        """The phantom on a grid; `before` maps the grid's points to the phantom's first."""
        points = grid.points(dtype=torch.float64)
        with torch.no_grad():
            values = self(points if before is None else before(points))
        return Image(values.reshape(1, *grid.shape).to(dtype), grid)


@dataclass(frozen=True)
class Pair:
    """fixed(x) = moving(truth(x)) exactly, on two different oblique anisotropic grids."""

    fixed: Image
    moving: Image
    truth: LinearTransform
    phantom: Phantom


def make_oblique_grid(dimension: int, shift: float = 0.0, turn: float = 0.3) -> Grid:
    """Turned out of the axes, with unequal spacings, an origin far from 0, and one axis reversed."""
    c, s = math.cos(turn), math.sin(turn)
    if dimension == 2:
        direction = torch.tensor([[c, s], [s, -c]], dtype=torch.float64)
    else:
        about_z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
        about_x = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
        direction = about_z @ about_x @ torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    origin = tuple(50.0 * (-1) ** i * (i + 1) + shift for i in range(dimension))
    return Grid(SIZES[dimension], SPACINGS[dimension], origin, tuple(direction.flatten().tolist()))


def make_phantom(grid: Grid, seed: int = 0) -> Phantom:
    """Twelve Gaussians about the grid's centre, faint at its border."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([n * s for n, s in zip(grid.size, grid.spacing, strict=True)], dtype=torch.float64)
    axes = torch.tensor(grid.direction, dtype=torch.float64).reshape(grid.dimension, -1)
    where = (torch.rand(12, grid.dimension, generator=generator, dtype=torch.float64) - 0.5) * 0.55 * extent
    widths = extent.min() * (0.08 + 0.06 * torch.rand(12, generator=generator, dtype=torch.float64))
    heights = 40 + 80 * torch.rand(12, generator=generator, dtype=torch.float64)
    return Phantom(grid.centre + where @ axes.T, widths, heights)


def make_transform(kind: str, grid: Grid, size_mm: float = 2.5, seed: int = 1) -> LinearTransform:
    """A transform with random parameters of about `size_mm`; every parameter is in mm."""
    generator = torch.Generator().manual_seed(seed)
    transform = linear_transform(kind)(grid)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(size_mm * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return transform


@pytest.fixture(params=[2, 3], ids=["2-D", "3-D"], scope="session")
def dimension(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"], scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value: torch.dtype = request.param
    return value


@pytest.fixture(params=list(linear_names()), scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def oblique_grid() -> Callable[..., Grid]:
    """Factory: `oblique_grid(dimension)`."""
    return make_oblique_grid


@pytest.fixture(scope="session")
def phantom() -> Callable[..., Phantom]:
    """Factory: `phantom(grid, seed)`."""
    return make_phantom


@pytest.fixture(scope="session")
def random_transform() -> Callable[..., LinearTransform]:
    """Factory: `random_transform(kind, grid, size_mm, seed)`."""
    return make_transform


@pytest.fixture(scope="session")
def overlapping_pair() -> Callable[..., Pair]:
    """Factory: `overlapping_pair(kind, dimension, dtype)`, a fixed and a moving image related by a known transform of
    that kind; they overlap in part."""

    def make(kind: str, dimension: int, dtype: torch.dtype = torch.float32, size_mm: float = 2.5) -> Pair:
        grid = make_oblique_grid(dimension)
        moving_grid = make_oblique_grid(dimension, shift=3.0, turn=0.25)
        phantom = make_phantom(grid)
        truth = make_transform(kind, grid, size_mm)
        # The shift between the two images' centres, which the default start takes away, is part of the truth.
        with torch.no_grad():
            truth.translation += moving_grid.centre - grid.centre
        moving = phantom.image(moving_grid, before=truth.inverse(), dtype=dtype)
        return Pair(phantom.image(grid, dtype=dtype), moving, truth, phantom)

    return make


@pytest.fixture(scope="session")
def pair(overlapping_pair: Callable[..., Pair]) -> Callable[..., Pair]:
    """The same; folders whose tests count products have pairs in its place that overlap in full."""
    return overlapping_pair


@pytest.fixture(scope="session")
def small_pair() -> Callable[[int], tuple[Image, Image]]:
    """Factory: `small_pair(dimension)`, (fixed, moving) of few voxels at about the same place, on turned axes."""

    def make(dimension: int) -> tuple[Image, Image]:
        grid = Grid((20, 18, 16)[:dimension], (1.5, 1.75, 2.0)[:dimension])
        c, s = math.cos(0.2), math.sin(0.2)
        turn = (c, s, s, -c) if dimension == 2 else (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, -1.0)
        phantom, truth = make_phantom(grid), make_transform("affine", grid, 1.0)
        other = Grid(grid.size, grid.spacing, (0.0,) * dimension, turn)
        other = replace(other, origin=tuple((grid.centre - other.centre).tolist()))
        return phantom.image(grid), phantom.image(other, before=truth.inverse())

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout; tests that need it skip where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("../shared/data is not here")
    return path


@pytest.fixture(scope="session")
def covering_pair(overlapping_pair: Callable[..., Pair], wide: Callable[[Image, int], Image]) -> Callable[..., Pair]:
    """The same, but for a moving image that holds every fixed point: a level is one round, each product an iteration's.

    A module whose tests count products, or whose optimiser needs every point, takes it as its `pair`.
    """

    def make(*arguments: Any, **settings: Any) -> Pair:
        images = overlapping_pair(*arguments, **settings)
        return replace(images, moving=wide(images.moving, 24))

    return make


@pytest.fixture(scope="session")
def wide() -> Callable[[Image, int], Image]:
    """Factory: `wide(image, margin)`, the image continued by its border values, so that more points map inside."""

    def make(image: Image, margin: int) -> Image:
        grid = image.grid
        matrix, origin = grid.index_to_physical()
        size, first = tuple(n + 2 * margin for n in grid.size), origin - margin * matrix.sum(1)
        padded = torch.nn.functional.pad(image.tensor[None], [margin] * (2 * grid.dimension), mode="replicate")[0]
        return Image(padded, Grid(size, grid.spacing, tuple(first.tolist()), grid.direction))

    return make
