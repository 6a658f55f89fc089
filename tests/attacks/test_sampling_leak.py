"""Attack 7 of the threat model: the indices of a gradient-magnitude sample show party_2 where I has edges.

The attacker is party_2. It sees one level's indices, takes the smoothed density of chosen points as its score of each
pixel, and is judged by how well the score finds the edges of the warped moving image, which it never sees: the area
under the ROC curve, 1 for a perfect edge map and 0.5 for a guess. The same attacker then meets samples that do not
depend on the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from scipy.stats import rankdata
from torch import Tensor

from ppir_torch.grids import Grid
from ppir_torch.images import Image, load_image
from ppir_torch.sampling import GradientMagnitude, Uniform
from ppir_torch.transforms import Translation
from ppir_torch.warping import sample_with_gradient, warp

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
FRACTION = 0.1
DRAWS = 40
# Over 400 uniform draws the AUC's standard deviation was 0.016 on the brain and 0.030 on the phantom (smoothing joins
# pixels), so that of a mean over 40 draws is below 0.005: six of them, and five of one draw.
AT_CHANCE = pytest.approx(0.5, abs=0.03)
ONE_DRAW = 0.15


@dataclass(frozen=True)
class Scene:
    """What party_1 knows at the start of a level, on the fixed image's grid."""

    shape: tuple[int, ...]
    magnitude: Tensor  # (N,) of the gradient, what the sampler gets
    edges: Bools  # (N,) the tenth of the pixels with the steepest slope; seen by nobody but the judge


@pytest.fixture(scope="module", params=["phantom", "brain"])
def scene(request: pytest.FixtureRequest) -> Scene:
    """The moving image, warped by the start "centres"."""
    if request.param == "phantom":
        fixed, moving_grid = Grid((160, 140), (1.0, 1.0)), Grid((150, 150), (1.1, 0.9), (4.0, -3.0))
        moving = request.getfixturevalue("phantom")(moving_grid, 3).image(moving_grid)
    else:
        folder: Path = request.getfixturevalue("shared_data") / "01_itk2d_brain_known"
        if not folder.is_dir():
            pytest.skip(f"{folder} is not here")
        fixed = load_image(folder / "fixed_pd_border20.png").grid
        moving = load_image(folder / "moving_pd_R10X13Y17S12.png")
    return look(moving, fixed)


def look(moving: Image, fixed: Grid) -> Scene:
    transform = Translation(fixed)
    with torch.no_grad():
        transform.translation.copy_(moving.grid.centre - fixed.centre)
        points = transform(fixed.points())
    _, gradient = sample_with_gradient(moving, moving.outside, points)
    slope = gaussian_gradient_magnitude(warp(moving, transform, fixed).tensor[0].double().numpy(), 1.0).reshape(-1)
    return Scene(fixed.shape, torch.linalg.vector_norm(gradient, dim=1), slope > np.quantile(slope, 0.9))


def score_pixels(index: Tensor, shape: tuple[int, ...], sigma: float = 1.5) -> Floats:
    """The attacker: density (N,) of the chosen points about each pixel."""
    chosen = np.zeros(shape)
    chosen.reshape(-1)[index.numpy()] = 1
    return gaussian_filter(chosen, sigma).reshape(-1)


def auc(score: Floats, truth: Bools) -> float:
    """Chance that a random edge pixel scores above a random other one, ties counting half (Mann and Whitney, 1947)."""
    edges, others = int(truth.sum()), int((~truth).sum())
    return float((rankdata(score)[truth].sum() - edges * (edges + 1) / 2) / (edges * others))


def attacked(scene: Scene, draw: Callable[[int], Tensor | None], draws: int = DRAWS) -> Floats:
    """The attacker's AUC on each of some independent draws."""
    found = []
    for seed in range(draws):
        index = draw(seed)
        assert index is not None
        found.append(auc(score_pixels(index, scene.shape), scene.edges))
    return np.array(found)


def by_gradient(scene: Scene, seed: int) -> Tensor | None:
    return GradientMagnitude(FRACTION, seed).draw(scene.magnitude, level=0).index


def uniform(scene: Scene, seed: int) -> Tensor | None:
    return Uniform(FRACTION, seed).draw(scene.magnitude.numel(), level=0).index


def public_permutation(scene: Scene, seed: int) -> Tensor:
    return torch.randperm(scene.magnitude.numel(), generator=torch.Generator().manual_seed(1000 + seed))


def window(scene: Scene, seed: int) -> Tensor:
    """A run of a public permutation from a random start, party_1's secret; this attacker is even told the indices."""
    permutation = public_permutation(scene, seed)
    length = round(FRACTION * permutation.numel())
    start = int(np.random.default_rng(seed).integers(permutation.numel() - length + 1))
    return permutation[start : start + length]


def steepest_window(scene: Scene, seed: int) -> Tensor:
    """The same, but party_1 starts where the sum of the magnitudes is largest."""
    permutation = public_permutation(scene, seed)
    length = round(FRACTION * permutation.numel())
    total = torch.cat([torch.zeros(1, dtype=torch.float64), scene.magnitude.double()[permutation].cumsum(0)])
    start = int((total[length:] - total[:-length]).argmax())
    return permutation[start : start + length]


def test_the_measure_itself() -> None:
    truth = np.array([False, True, False, True])
    assert auc(np.array([0.0, 2.0, 1.0, 3.0]), truth) == 1
    assert auc(np.array([3.0, 1.0, 2.0, 0.0]), truth) == 0
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]), truth) == 0.75
    assert auc(np.ones(4), truth) == 0.5


def test_indices_drawn_by_gradient_show_the_edges(scene: Scene) -> None:
    found = attacked(scene, lambda seed: by_gradient(scene, seed), draws=10)
    assert found.min() > 0.8
    assert found.mean() > 0.9


@pytest.mark.parametrize("draw", [uniform, window])
def test_indices_that_do_not_depend_on_the_image_show_nothing(
    scene: Scene, draw: Callable[[Scene, int], Tensor | None]
) -> None:
    found = attacked(scene, lambda seed: draw(scene, seed))
    assert found.mean() == AT_CHANCE
    assert np.abs(found - 0.5).max() < ONE_DRAW
    # Positive control: the same attacker on the same scene.
    assert auc(score_pixels(GradientMagnitude(FRACTION).draw(scene.magnitude, 0).index, scene.shape), scene.edges) > 0.8


def test_a_window_chosen_for_its_content_shows_a_little(scene: Scene) -> None:
    """So the start has to be random, or stay hidden; and the measure sees leaks of this size."""
    found = attacked(scene, lambda seed: steepest_window(scene, seed))
    assert found.mean() > 0.515
