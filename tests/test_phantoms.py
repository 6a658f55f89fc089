"""The brain pair of the demo: its truth is exact, and it is the same every time."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import SimpleITK
import torch

from ppir_torch import phantoms
from ppir_torch.errors import MissingExtra
from ppir_torch.grids import Grid
from ppir_torch.images import load_image
from ppir_torch.metrics import displacement_rmse, foreground_points
from ppir_torch.phantoms import MNI_GRID, BrainPair, brain_pair, known_affine, save_pair
from ppir_torch.transforms import Affine, load_transform
from ppir_torch.warping import warp

NOISE = 0.02
needs_nilearn = pytest.mark.skipif(importlib.util.find_spec("nilearn") is None, reason="nilearn ships the image")


@pytest.fixture(scope="module")
def brain() -> BrainPair:
    return brain_pair(NOISE)


@pytest.fixture(scope="module")
def clean() -> BrainPair:
    return brain_pair(noise=0.0)


@needs_nilearn
def test_the_images_are_a_brain_on_the_mni_grid(brain: BrainPair) -> None:
    for image in (brain.fixed, brain.moving):
        assert image.grid == MNI_GRID
        assert image.tensor.shape == (1, 91, 109, 91)
    # Dark around, bright inside, about the size of a head.
    foreground = foreground_points(brain.fixed)
    volume_ml = len(foreground) * 8 / 1000
    assert 1200 < volume_ml < 2500
    assert abs(float(brain.fixed.outside)) < 0.01 * float(brain.fixed.tensor.max())


@needs_nilearn
def test_moving_warped_by_the_truth_is_fixed_up_to_noise(brain: BrainPair, clean: BrainPair) -> None:
    scale = float(brain.fixed.tensor.max())
    difference = (warp(clean.moving, clean.truth, MNI_GRID).tensor - clean.fixed.tensor)[0]
    inside = clean.fixed.tensor[0] > 0.1 * scale
    # Resampled twice, by cubic splines and linearly: what is left is interpolation.
    assert difference[inside].square().mean().sqrt() < 0.02 * scale
    assert abs(float(difference[inside].mean())) < 0.005 * scale
    # The noise is what was asked for, and comes on top.
    noise = (brain.moving.tensor - clean.moving.tensor)[0]
    assert float(noise.std()) == pytest.approx(NOISE * float(clean.moving.tensor.max()), rel=0.01)
    assert abs(float(noise.mean())) < 1e-4 * scale


@needs_nilearn
def test_the_truth_is_the_best_of_its_neighbours(clean: BrainPair) -> None:
    """Half a voxel off in any direction, and the images differ more; its inverse is far off."""

    coarse, keep = MNI_GRID.shrunk((3, 3, 3))

    def loss(transform: Affine) -> float:
        warped = warp(clean.moving, transform, coarse).tensor
        return float((warped - clean.fixed.tensor[(slice(None), *keep)]).square().mean())

    best = loss(clean.truth)
    for axis in range(3):
        for step in (-1.0, 1.0):
            moved = Affine(MNI_GRID)
            moved.load_state_dict(clean.truth.state_dict())
            moved.translation.data[axis] += step
            assert loss(moved) > 1.5 * best
    assert loss(clean.truth.inverse()) > 10 * best
    assert loss(Affine(MNI_GRID)) > 10 * best


@needs_nilearn
def test_the_pair_is_the_same_every_time(brain: BrainPair) -> None:
    again = brain_pair(NOISE)
    assert torch.equal(again.moving.tensor, brain.moving.tensor)
    assert torch.equal(again.fixed.tensor, brain.fixed.tensor)


@needs_nilearn
def test_saved_pairs_load_as_they_were(brain: BrainPair, tmp_path: Path) -> None:
    paths = save_pair(brain, tmp_path)
    assert [path.name for path in paths] == ["moving.nii.gz", "fixed.nii.gz", "truth.tfm"]
    moving, fixed = load_image(paths[0]), load_image(paths[1])
    assert torch.equal(moving.tensor, brain.moving.tensor)
    assert torch.equal(fixed.tensor, brain.fixed.tensor)
    assert fixed.grid == MNI_GRID
    points = foreground_points(fixed)
    assert displacement_rmse(load_transform(paths[2], MNI_GRID), brain.truth, points) < 1e-6


def test_the_known_affine_is_as_documented() -> None:
    """Turns of 10, 8, 9 degrees about x, y, z, scales 1.08, 0.93, 1.06, shears of 2-3 %, a shift of 8.1 mm."""
    for grid in (MNI_GRID, Grid((40, 50, 60), (1.0, 2.0, 3.0), (-7.0, 8.0, 9.0))):
        truth = known_affine(grid)
        matrix, _ = truth.affine_map()
        shift = truth(grid.centre[None])[0] - grid.centre
        assert float(shift.norm().detach()) == pytest.approx(8.1, abs=0.05)
        stretch = torch.tensor([[1.08, 0.03, 0.02], [0.0, 0.93, -0.03], [0.0, 0.0, 1.06]], dtype=torch.float64)
        rotation = matrix.detach() @ torch.linalg.inv(stretch)
        assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
        assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)
        euler = SimpleITK.Euler3DTransform()
        euler.SetRotation(*(torch.deg2rad(torch.tensor([10.0, 8.0, 9.0], dtype=torch.float64)).tolist()))
        euler.SetComputeZYX(True)
        assert euler.GetMatrix() == pytest.approx(rotation.flatten().tolist(), abs=1e-9)


def test_without_nilearn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantoms.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=r"pip install ppir-torch\[demo\]") as caught:
        brain_pair()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
