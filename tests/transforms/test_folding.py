"""Folding of B-splines: autograd of the module's own map and SciPy's splines are the oracles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline as ScipySpline
from torch import Tensor

from ppir_torch.grids import Grid
from ppir_torch.metrics.registration import folding_share, jacobian_determinant
from ppir_torch.transforms import BSpline, ControlLattice
from ppir_torch.transforms.folding import PARTS, least_determinants, unfolded_step

Oblique = Callable[..., Grid]
ABOVE = 0.1


def lattice_of(dimension: int, oblique_grid: Oblique) -> ControlLattice:
    return ControlLattice(oblique_grid(dimension), 8.0 if dimension == 2 else 12.0)


def random(lattice: ControlLattice, size_mm: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (lattice.grid.dimension, *lattice.shape)
    size_mm *= lattice.control_spacing[0] / 8
    return size_mm * torch.randn(shape, generator=generator, dtype=torch.float64)


def independent(coefficients: Tensor, lattice: ControlLattice) -> Tensor:
    """Determinants at the same places by autograd through the map, the least in each cell."""
    part = BSpline(lattice)
    part.coefficients.data.copy_(coefficients)
    ticks = [torch.arange(n * PARTS + 1, dtype=torch.float64) / PARTS for n in lattice.cells]
    where = torch.stack(torch.meshgrid(*ticks[::-1], indexing="ij")[::-1], -1)
    matrix, origin = lattice.grid.index_to_physical()
    shape = where.shape[:-1]
    points = (
        (where * torch.tensor(lattice.multiples)).reshape(-1, lattice.grid.dimension) @ matrix.T + origin
    ).requires_grad_()
    moved = part(points)
    rows = [torch.autograd.grad(moved[:, i].sum(), points, retain_graph=True)[0] for i in range(moved.shape[1])]
    found = torch.linalg.det(torch.stack(rows, 1)).reshape(shape)
    for axis in range(found.ndim):
        found = found.unfold(axis, PARTS + 1, PARTS)
    return found.flatten(found.ndim // 2).amin(-1)


@pytest.mark.parametrize("size_mm", [0.2, 2.0, 6.0])
def test_determinants_are_those_of_autograd(size_mm: float, dimension: int, oblique_grid: Oblique) -> None:
    """In the cells that were looked at; the others have none below."""
    lattice = lattice_of(dimension, oblique_grid)
    coefficients = random(lattice, size_mm)
    found, expected = least_determinants(coefficients, lattice, ABOVE), independent(coefficients, lattice)
    looked = torch.isfinite(found)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[looked], expected[looked], rtol=1e-9, atol=1e-9)
    assert bool((expected[~looked] >= ABOVE).all())
    assert bool(looked.any()) == (size_mm > 1)


def test_along_one_axis_it_is_scipys_derivative() -> None:
    lattice = ControlLattice(Grid((33, 5)), 4.0)
    coefficients = torch.zeros(2, *lattice.shape, dtype=torch.float64)
    coefficients[0] = 3 * torch.randn(lattice.size[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    knots = 4.0 * (np.arange(lattice.size[0] + 4) - 3)
    spline = ScipySpline(knots, coefficients[0, 0].numpy(), 3).derivative()
    expected = 1 + spline(np.arange(lattice.cells[0] * PARTS + 1) * 4.0 / PARTS)
    found = least_determinants(coefficients, lattice, 0.999)
    cells = np.stack([expected[c * PARTS : (c + 1) * PARTS + 1].min() for c in range(lattice.cells[0])])
    np.testing.assert_allclose(found[0][torch.isfinite(found[0])], cells[torch.isfinite(found[0]).numpy()], atol=1e-12)


@pytest.mark.parametrize("size_mm", [6.0, 30.0])
def test_a_step_never_folds(size_mm: float, dimension: int, oblique_grid: Oblique) -> None:
    lattice = lattice_of(dimension, oblique_grid)
    before, after = torch.zeros_like(random(lattice, 1.0)), random(lattice, size_mm)
    kept = unfolded_step(before, after, lattice, ABOVE)
    assert float(independent(after, lattice).min()) < 0
    assert float(independent(kept, lattice).min()) >= ABOVE - 1e-9
    part = BSpline(lattice)
    part.coefficients.data.copy_(kept)
    assert folding_share(jacobian_determinant(part, lattice.grid)) == 0
    # What is left of the step goes its way: no further, and not back.
    share = kept / after
    assert float(share.min()) >= 0
    assert float(share.max()) <= 1
    assert float(share.mean()) > 1 / size_mm


def test_far_from_a_fold_the_step_is_as_it_was(dimension: int) -> None:
    lattice = ControlLattice(Grid((65,) * dimension), 4.0)
    after = torch.full((dimension, *lattice.shape), 2.5, dtype=torch.float64)
    after[(0, *[3] * dimension)] = -12.0
    kept = unfolded_step(torch.zeros_like(after), after, lattice, ABOVE)
    changed = (kept != after).any(0).nonzero()
    assert len(changed) > 0
    assert int(changed.max()) < 9
    assert torch.equal(unfolded_step(torch.zeros_like(after), after, lattice, 0.0), after)


def test_what_is_folded_already_does_not_fold_more(oblique_grid: Oblique) -> None:
    lattice = lattice_of(2, oblique_grid)
    before = random(lattice, 6.0)
    worse = unfolded_step(before, before + random(lattice, 1.0, seed=3), lattice, ABOVE)
    was, found = independent(before, lattice), independent(worse, lattice)
    assert float(was.min()) < 0
    assert bool((found >= was.clamp(max=ABOVE) - 1e-9).all())
    assert not torch.equal(worse, before)


def test_on_refinement_nothing_folds_that_did_not(oblique_grid: Oblique) -> None:
    """Halved control spacings hold the same map, whose determinants are looked at in more places."""
    lattice = ControlLattice(oblique_grid(2), 12.0)
    part = BSpline(lattice)
    part.coefficients.data.copy_(unfolded_step(0 * random(lattice, 1.0), random(lattice, 20.0), lattice, ABOVE))
    fine = part.refined(6.0)
    assert float(least_determinants(fine.coefficients, fine.lattice, ABOVE).min()) > 0.5 * ABOVE
