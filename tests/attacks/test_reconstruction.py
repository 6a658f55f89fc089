"""Attack 6 of the threat model: party_1 solves the opened results for J. A property of the method, not of a protocol.

party_1 knows the rows X of every product and the results R = X J. The attacker below has exactly that, from
registrations that run on a real brain slice (on a phantom where there is none). J carries a texture that the moving
image has not: what the attacker gets of it comes from the results alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level, load_image
from ppir_torch.joint.ledger import Ledger, LedgerEntry
from ppir_torch.transforms import Affine
from ppir_torch.warping import sample_with_gradient, steepest_descent

TEXTURE = 0.03  # of the energy of J
NOISE = 0.03  # of the root mean square of J, in every pixel
ITERATIONS = {8.0: 10, 4.0: 10, 2.0: 4}  # by the control points' spacing in pixels


@dataclass(frozen=True)
class Scene:
    """Two images of one level, float64; `fixed` (n,) is J less its mean, `texture` (n,) the part that only J has."""

    moving: Image
    grid: Grid
    fixed: Tensor
    offset: float
    texture: Tensor

    @classmethod
    def of(cls, moving: Image, fixed: Image, level: Level) -> Scene:
        moving, fixed = moving.at_level(level), fixed.at_level(level)
        j = fixed.tensor.double().flatten()
        texture = torch.from_numpy(np.random.default_rng(1).standard_normal(len(j))) * (j > 0.05 * j.max())
        texture *= (TEXTURE * (j - j.mean()).square().sum() / texture.square().sum()).sqrt()
        offset = float((j + texture).mean())
        return cls(Image(moving.tensor.double(), moving.grid), fixed.grid, j + texture - offset, offset, texture)


@dataclass(frozen=True)
class Opened:
    """A run as party_1 has it: the rows (k, n) of each iteration, the last of them its own image less the offset."""

    scene: Scene
    rows: list[Tensor]

    def results(self, noise: float = 0.0) -> list[Tensor]:
        """R of each iteration; with noise as if J had it in every pixel, anew for each result."""
        fixed, random = self.scene.fixed, np.random.default_rng(2)
        size = noise * float(fixed.square().mean().sqrt())
        return [x @ fixed + size * x.norm(dim=1) * torch.from_numpy(random.standard_normal(len(x))) for x in self.rows]

    def ledger(self, sketch: int = 4096, noise: float = 0.0) -> LedgerEntry:
        """What the ledger says after the last iteration."""
        ledger = Ledger(len(self.scene.fixed), float(self.scene.fixed.square().sum()), sketch, noise=noise)
        return [ledger.record(x, r, x[-1]) for x, r in zip(self.rows, self.results(noise), strict=True)][-1]

    @cached_property
    def own(self) -> Tensor:
        """party_1's own image (n,) of unit norm that is nearest to J."""
        images = torch.stack([x[-1] / x[-1].norm() for x in self.rows])
        return images[(images @ self.scene.fixed).abs().argmax()]

    @cached_property
    def span(self) -> Tensor:
        """Orthonormal basis (rank, n) of all rows."""
        x = torch.cat(self.rows)
        x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)
        _, sizes, basis = torch.linalg.svd(torch.linalg.qr(x, mode="r").R, full_matrices=False)
        return basis[sizes > 1e-6 * math.sqrt(x.shape[1])]

    def share(self, image: Tensor) -> float:
        """|P image|^2 / |image|^2."""
        return float((self.span @ image).square().sum() / image.square().sum())

    def reconstruct(self, noise: float = 0.0) -> Tensor:
        """The attacker's J (n,): its own image, and the least-norm (with noise the ridge) solution for the rest."""
        x, r = torch.cat(self.rows), torch.cat(self.results(noise))
        size = x.norm(dim=1)
        x, r = x[size > 0] / size[size > 0, None], r[size > 0] / size[size > 0]
        energy, known = self.scene.fixed.square().sum(), self.own @ self.scene.fixed
        ridge = max(noise**2, 1e-12 * x.shape[1]) / float(1 - known**2 / energy)
        rest = r - known * (x @ self.own)
        if len(x) < x.shape[1]:
            solution = x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype), rest)
        else:
            solution = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ rest)
        return known * self.own + solution

    def quality(self, noise: float = 0.0) -> float:
        """R^2 of the reconstruction of what party_1's own image leaves open."""
        rest = self.scene.fixed - (self.own @ self.scene.fixed) * self.own
        error = self.scene.fixed - self.reconstruct(noise)
        return 1 - float(error.square().sum() / rest.square().sum())


def affine_run(scene: Scene, iterations: int) -> tuple[Affine, Opened]:
    """Gauss-Newton from the images' centres; it has converged by the tenth iteration."""
    transform, rows = Affine(scene.grid), []
    points = scene.grid.points(dtype=torch.float64)
    with torch.no_grad():
        transform.translation.copy_(scene.moving.grid.centre - scene.grid.centre)
        for _ in range(iterations):
            warped, gradient = sample_with_gradient(scene.moving, 0.0, transform(points))
            images = steepest_descent(transform, points, gradient)
            rows.append(torch.cat([images, (warped - scene.offset)[None]]))
            step = torch.linalg.solve(images @ images.T, images @ (warped - scene.offset - scene.fixed))
            for parameter, change in zip(transform.parameters(), step.split([2, 4]), strict=True):
                parameter -= change.reshape(parameter.shape)
    return transform, Opened(scene, rows)


def spline_basis(grid: Grid, spacing: float) -> Tensor:
    """Cubic B-splines (n, K) of a control grid, spacing in pixels."""
    axes = []
    for size in grid.size:
        knots = np.arange(-1, math.ceil((size - 1) / spacing) + 2)
        where = np.arange(size)[:, None] / spacing - knots
        axes.append(np.nan_to_num(BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)(where)))
    return torch.from_numpy(np.einsum("yk,xl->yxkl", axes[1], axes[0]).reshape(grid.count, -1))


def spline_run(scene: Scene, start: Affine, spacing: float, iterations: int) -> Opened:
    """Damped Gauss-Newton over the displacements (2, K) of the control points, mm, after an affine registration."""
    basis, rows = spline_basis(scene.grid, spacing), []
    with torch.no_grad():
        mapped = start(scene.grid.points(dtype=torch.float64))
    moved = torch.zeros(2, basis.shape[1], dtype=torch.float64)
    for _ in range(iterations):
        warped, gradient = sample_with_gradient(scene.moving, 0.0, mapped + basis @ moved.T)
        images = (gradient.T[:, None] * basis.T).reshape(-1, len(warped))
        rows.append(torch.cat([images, (warped - scene.offset)[None]]))
        hessian = images @ images.T
        damping = 3 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
        moved -= torch.linalg.solve(hessian + damping, images @ (rows[-1][-1] - scene.fixed)).reshape(2, -1)
    return Opened(scene, rows)


@pytest.fixture(scope="module")
def scene(pair: Callable[..., Any]) -> Callable[[int], Scene]:
    """Factory: the scene at a shrink factor; 1 pixel of smoothing at that level."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "01_itk2d_brain_known"

    def make(shrink: int) -> Scene:
        if not folder.is_dir():
            phantoms = pair("affine", 2, torch.float64)
            return Scene.of(phantoms.moving, phantoms.fixed, Level(shrink // 4, 0.0))
        moving, fixed = (load_image(folder / f"{n}.png") for n in ("moving_pd_R10X13Y17S12", "fixed_pd_border20"))
        return Scene.of(moving, fixed, Level(shrink, shrink / 2))

    return make


@pytest.fixture(scope="module")
def affine(scene: Callable[[int], Scene]) -> Opened:
    return affine_run(scene(4), 30)[1]


@pytest.fixture(scope="module", params=list(ITERATIONS), ids=lambda s: f"{s:g} px")
def spline(scene: Callable[[int], Scene], request: pytest.FixtureRequest) -> tuple[float, Opened]:
    small = scene(8)
    return request.param, spline_run(small, affine_run(small, 15)[0], request.param, ITERATIONS[request.param])


def test_affine_results_tell_of_the_texture_what_chance_does(affine: Opened) -> None:
    rank, points = affine.span.shape
    texture = affine.scene.texture
    assert rank < 0.06 * points
    chance = rank / int((texture != 0).sum())
    assert affine.share(texture) < 1.3 * chance < 0.13
    # What more is explained is blur and noise of party_1's own image, warped in different ways.
    assert affine.quality() < 0.25


def test_a_finer_control_grid_opens_the_image(spline: tuple[float, Opened]) -> None:
    spacing, opened = spline
    low, high = {8.0: (0.4, 0.7), 4.0: (0.75, 0.95), 2.0: (0.999, 1.001)}[spacing]
    assert low < opened.quality() < high
    assert low < opened.share(opened.scene.texture) < high


def test_the_ledger_says_what_the_attacker_gets_from_affine_results(affine: Opened) -> None:
    entry = affine.ledger()
    assert entry.opened == 30 * 7
    assert abs(entry.rank - len(affine.span)) <= 5
    assert entry.explained == pytest.approx(affine.share(affine.scene.fixed), abs=5e-4)
    assert entry.beyond == pytest.approx(affine.quality(), abs=0.02)


@pytest.mark.parametrize("sketch", [4096, 750], ids=["exact", "sketched"])
def test_the_ledger_says_what_the_attacker_gets_from_control_grids(sketch: int, spline: tuple[float, Opened]) -> None:
    _, opened = spline
    entry = opened.ledger(sketch)
    if sketch < len(opened.span):
        assert (entry.explained, entry.beyond) == (1.0, 1.0), "nothing is said in party_1's favour"
        return
    assert entry.rank == pytest.approx(len(opened.span), rel=0.1)
    assert entry.explained == pytest.approx(opened.share(opened.scene.fixed), abs=0.005)
    assert entry.beyond == pytest.approx(opened.quality(), abs=0.05 if sketch == 4096 else 0.1)


def test_noise_on_the_results_hides_what_a_control_grid_opens(spline: tuple[float, Opened]) -> None:
    spacing, opened = spline
    # A grid of 2 pixels asks for every pixel many times, and noise averages out: it needs more.
    noise = NOISE if spacing > 2 else 5 * NOISE
    assert opened.quality(noise) < 0.5 * opened.quality()


def test_the_ledger_leaves_out_what_the_noise_hides(affine: Opened) -> None:
    entry = affine.ledger(noise=NOISE)
    assert entry.rank < affine.ledger().rank
    assert entry.beyond == pytest.approx(affine.quality(NOISE), abs=0.03)
