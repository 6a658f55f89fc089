"""The brain pair of the demo: its truth is exact, and it is the same every time."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import SimpleITK
import torch

from ppir_torch import phantoms
from ppir_torch.errors import ConfigError, MissingExtra
from ppir_torch.grids import Grid
from ppir_torch.images import load_image
from ppir_torch.metrics.registration import displacement_rmse, folding_share, foreground_points, jacobian_determinant
from ppir_torch.phantoms import (
    MNI_GRID,
    BrainPair,
    DeformedPair,
    brain_pair,
    deformed_pair,
    known_affine,
    save_pair,
)
from ppir_torch.transforms import Affine, Displacement, load_transform
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


# --- the deformed pair; on every second voxel of the MNI grid, which takes an eighth of the time

COARSE, _ = MNI_GRID.shrunk((2, 2, 2))


@pytest.fixture(scope="module")
def deformed() -> DeformedPair:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantoms, "MNI_GRID", COARSE)
        return deformed_pair(noise=0.0)


@pytest.fixture
def coarse(deformed: DeformedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without reading the image again."""
    monkeypatch.setattr(phantoms, "MNI_GRID", COARSE)
    same = BrainPair(deformed.fixed, deformed.fixed, known_affine(COARSE))
    monkeypatch.setattr(phantoms, "brain_pair", lambda noise: same if noise == 0 else pytest.fail("noise twice"))


def displacement_of(pair: DeformedPair) -> Displacement:
    part, linear = pair.truth.parts
    assert isinstance(part, Displacement)
    assert isinstance(linear, Affine)
    return part


@needs_nilearn
def test_the_deformed_pairs_truth_is_a_smooth_displacement_and_the_known_affine(deformed: DeformedPair) -> None:
    """6 mm at most inside the brain, 2.4 mm in the root mean square; nothing moves at the volume's border."""
    part = displacement_of(deformed)
    linear = deformed.truth.parts[1]
    assert isinstance(linear, Affine)
    matrix, offset = linear.affine_map()
    for found, expected in zip((matrix, offset), known_affine(COARSE).affine_map(), strict=True):
        torch.testing.assert_close(found, expected)
    points = foreground_points(deformed.fixed)
    moved = (part(points) - points).detach().norm(dim=1)
    assert float(moved.max()) == pytest.approx(6.0, abs=0.01)
    assert float(moved.square().mean().sqrt()) == pytest.approx(2.4, abs=0.3)
    field = part.field.detach()
    for axis in (1, 2, 3):
        for end in (0, -1):
            assert float(field.select(axis, end).abs().max()) < 1e-12
    # Smooth: between neighbours, 4 mm apart, it changes by far less than it is large.
    assert max(float(torch.diff(field, dim=a).abs().max()) for a in (1, 2, 3)) < 1.5
    determinant = jacobian_determinant(part, COARSE)
    assert folding_share(determinant) == 0
    assert 0.5 < float(determinant.min()) < 0.9
    # No affine map comes near it.
    ones = torch.cat([points, torch.ones(len(points), 1, dtype=torch.float64)], 1)
    displaced = (part(points) - points).detach()
    left = displaced - ones @ torch.linalg.lstsq(ones, displaced).solution
    assert float(left.square().sum(1).mean().sqrt()) > 1.5


@needs_nilearn
def test_the_deformed_moving_image_warped_by_the_truth_is_the_fixed_one(deformed: DeformedPair) -> None:
    scale = float(deformed.fixed.tensor.max())
    inside = deformed.fixed.tensor[0] > 0.1 * scale

    def error(transform: torch.nn.Module) -> float:
        difference = (warp(deformed.moving, transform, COARSE).tensor - deformed.fixed.tensor)[0]
        return float(difference[inside].square().mean().sqrt()) / scale

    # Resampled twice, linearly, at 4 mm: what is left is interpolation.
    best = error(deformed.truth)
    assert best < 0.08
    affine = deformed.truth.get_submodule("parts.1")
    assert error(affine) > 1.15 * best
    assert error(deformed.truth.inverse()) > 2 * best


@needs_nilearn
@pytest.mark.usefixtures("coarse")
def test_the_deformed_pair_is_the_same_every_time_and_another_with_another_seed(deformed: DeformedPair) -> None:
    again, other = deformed_pair(noise=0.0), deformed_pair(noise=0.0, seed=2)
    assert torch.equal(again.moving.tensor, deformed.moving.tensor)
    assert torch.equal(displacement_of(again).field, displacement_of(deformed).field)
    assert torch.equal(other.fixed.tensor, deformed.fixed.tensor)
    assert not torch.equal(displacement_of(other).field, displacement_of(deformed).field)


@needs_nilearn
@pytest.mark.usefixtures("coarse")
def test_noise_and_size_of_the_deformed_pair_are_what_was_asked_for(deformed: DeformedPair) -> None:
    noisy = deformed_pair(noise=NOISE)
    noise = (noisy.moving.tensor - deformed.moving.tensor)[0]
    assert float(noise.std()) == pytest.approx(NOISE * float(deformed.moving.tensor.max()), rel=0.01)
    assert torch.equal(noisy.fixed.tensor, deformed.fixed.tensor)
    half = deformed_pair(largest_mm=3.0, noise=0.0)
    torch.testing.assert_close(2 * displacement_of(half).field, displacement_of(deformed).field)


@needs_nilearn
@pytest.mark.usefixtures("coarse")
def test_a_displacement_that_folds_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="does the map fold") as refused:
        deformed_pair(largest_mm=80.0)
    assert "\n" not in str(refused.value)
