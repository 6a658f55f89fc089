"""Which voxels a level keeps, and which levels an image has of itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.images import Image
from ppir_torch.levels import Level, automatic_levels, level_grid, smoothing_of

Shrink = int | tuple[int, ...]

# size, spacing, what follows: images of the kinds that clinics have
PYRAMIDS: list[tuple[tuple[int, ...], tuple[float, ...], list[Shrink]]] = [
    ((91, 109, 91), (2.0, 2.0, 2.0), [4, 2, 1]),  # the demo's brain
    ((256, 256), (1.0, 1.0), [16, 8, 4, 2, 1]),
    ((2000, 2500), (0.14, 0.14), [64, 32, 16, 8, 4, 2]),  # a radiograph; finer points gain nothing
    ((512, 512, 300), (0.7, 0.7, 1.0), [16, 8, 4]),  # a CT
    ((256, 256, 24), (0.9, 0.9, 5.0), [(16, 16, 1), 8, 4, 2, 1]),  # thick slices: 7.2 mm leave those of 5 mm alone
    ((320, 320, 8), (0.6, 0.6, 6.0), [(16, 16, 1), 8, 4, 2, 1]),
    ((512, 512, 3), (0.5, 0.5, 10.0), [(32, 32, 1), 16, 8, 4, 2, 1]),
    ((98, 116, 15), (2.0, 2.0, 2.0), [(4, 4, 1), (2, 2, 1), 1]),  # a slab
    ((64, 64, 20), (0.5, 0.5, 3.0), [4, 2, 1]),  # a cord
    ((40, 24), (1.0, 1.0), [1]),
    ((20, 20, 20), (8.0, 8.0, 8.0), [1]),
]


@pytest.mark.parametrize(("size", "spacing", "shrinks"), PYRAMIDS, ids=lambda v: str(v))
def test_levels_follow_from_the_grid(size: tuple[int, ...], spacing: tuple[float, ...], shrinks: list[Shrink]) -> None:
    assert [level.shrink for level in automatic_levels(Grid(size, spacing))] == shrinks


@given(
    size=st.lists(st.integers(1, 3000), min_size=2, max_size=3),
    spacing=st.lists(st.floats(0.05, 20), min_size=3, max_size=3),
    least=st.integers(8, 64),
    most=st.none() | st.integers(4096, 10**8),
)
def test_levels_of_any_grid(size: list[int], spacing: list[float], least: int, most: int | None) -> None:
    grid = Grid(tuple(size), tuple(spacing[: len(size)]))
    levels = automatic_levels(grid, least, most)
    assert 1 <= len(levels) <= 7
    counts, smoothing = [], []
    for level in levels:
        coarse, _ = level_grid(grid, level)
        assert all(m >= min(n, least) for n, m in zip(grid.size, coarse.size, strict=True))
        counts.append(coarse.count)
        smoothing.append(level.smoothing_mm)
    assert counts == sorted(counts)
    assert smoothing == sorted(smoothing, reverse=True)
    if most is None:
        assert level_grid(grid, levels[-1])[0] == grid
        assert smoothing[-1] == 0
    elif len(levels) > 1:  # else there may be nothing that can be left out
        assert counts[-1] <= most or levels[-1].factor == 64


@given(
    size=st.lists(st.integers(8, 300), min_size=3, max_size=3),
    spacing=st.lists(st.floats(0.3, 8), min_size=3, max_size=3),
    shrink=st.integers(1, 64),
)
def test_axes_are_shrunk_to_about_the_same_millimetres(size: list[int], spacing: list[float], shrink: int) -> None:
    grid = Grid(tuple(size), tuple(spacing))
    coarse, _ = level_grid(grid, Level(shrink, 0.0))
    wanted = shrink * min(spacing)
    for n, before, after in zip(size, spacing, coarse.spacing, strict=True):
        factor = round(after / before)
        assert (
            factor == n // 8 or abs(after - wanted) <= 0.5 * before + 1e-9 or (factor == 1 and before >= wanted / 1.5)
        )


def test_factors_of_ones_own_hold_for_each_axis() -> None:
    grid = Grid((40, 32, 16), (1.0, 1.0, 4.0))
    coarse, keep = level_grid(grid, Level((4, 2, 1), 0.0))
    assert coarse.size == (10, 16, 16)
    assert keep == (slice(0, None, 1), slice(0, None, 2), slice(1, None, 4))
    image = Image(torch.rand(1, *grid.shape, dtype=torch.float64), grid)
    assert torch.equal(image.at_level(Level((4, 2, 1), 0.0)).tensor[0], image.tensor[0][keep])
    assert Level((4, 2, 1), 0.0).factor == Level(4, 0.0).factor == 4


@pytest.mark.parametrize("shrink", [(2, 2), (2, 2, 1, 1), (2,)])
def test_factors_of_other_axes_are_refused(shrink: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="one factor or 3 are needed for a 3-D image"):
        level_grid(Grid((32, 32, 32)), Level(shrink, 0.0))


@pytest.mark.parametrize(
    ("shrink", "sigma"), [(1, 0.0), (2, 0.7), (8, 2.8), ((1, 1, 1), 0.0), ((8, 8, 1), 2.5), ((2, 2, 1), 0.7)]
)
def test_smoothing_is_half_the_smallest_spacing_that_is_left(shrink: Shrink, sigma: float) -> None:
    assert math.isclose(smoothing_of(Grid((256, 256, 30), (0.7, 0.7, 5.0)), shrink), sigma)


def test_an_axis_of_one_voxel_has_no_spacing() -> None:
    grid = Grid((64, 64, 1), (1.0, 1.0, 0.1))
    assert level_grid(grid, Level(4, 0.0))[0].size == (16, 16, 1)
    assert smoothing_of(grid, 4) == 2.0
