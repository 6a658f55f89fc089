"""The figure: a PNG for 2-D and 3-D, whatever of the runs is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppir_torch.grids import Grid
from ppir_torch.images import Image
from ppir_torch.reporting.figures import checkerboard, comparison_figure, middle_slice, title_of

SIZES = {2: (20, 14), 3: (20, 14, 9)}


def image_of(dimension: int, seed: int = 0) -> Image:
    grid = Grid(SIZES[dimension], (1.5, 1.0, 2.0)[:dimension])
    return Image(torch.rand(1, *grid.shape, generator=torch.Generator().manual_seed(seed)), grid)


def result_of(values: list[float], rmse: float | None = None) -> dict[str, Any]:
    history = [{"level": k // 2, "shrink": 2 - k // 2, "value": v, "accepted": k != 1} for k, v in enumerate(values)]
    return {"history": history, "rmse_to_truth_mm": rmse}


def read_png(path: Path) -> Any:
    from matplotlib.image import imread

    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return imread(path)


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_png_with_a_row_for_each_run(dimension: int, tmp_path: Path) -> None:
    fixed, before = image_of(dimension), image_of(dimension, 1)
    results = {"clear": result_of([4.0, 5.0, 3.0, 1.0], 0.0123), "bfv": result_of([4.0, 5.0, 3.0, 1.0])}
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    comparison_figure(one, fixed, before, {"clear": image_of(dimension, 2)}, {"clear": results["clear"]})
    comparison_figure(two, fixed, before, {"clear": image_of(dimension, 2), "bfv": image_of(dimension, 3)}, results)
    first, second = read_png(one), read_png(two)
    assert first.shape[1] == second.shape[1] > 800
    assert second.shape[0] - first.shape[0] == pytest.approx(2.6 * 110, abs=2)
    for picture in (first, second):
        assert picture[..., :3].std() > 0.1  # not a blank sheet


def test_identical_images_and_a_single_iteration(tmp_path: Path) -> None:
    """No difference to spread colours over, no second point of the curve."""
    image = image_of(2)
    comparison_figure(tmp_path / "same.png", image, image, {"clear": image}, {"clear": result_of([1.0])})
    assert read_png(tmp_path / "same.png").size > 0


def test_titles_say_what_is_seen() -> None:
    assert title_of("before", None) == "moving, before"
    assert title_of("bfv", {"rmse_to_truth_mm": 0.01234}) == "bfv: 0.0123 mm from the truth"
    assert title_of("bfv", {"rmse_to_truth_mm": None}) == "bfv"


def test_the_middle_axial_slice_has_anterior_up() -> None:
    grid = Grid((4, 3, 5))
    volume = torch.arange(60, dtype=torch.float32).reshape(1, 5, 3, 4)
    lps, ras = Image(volume, grid), Image(volume, Grid((4, 3, 5), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)))
    # y of LPS grows to the back: its first row is in front; with the axis turned, the last one is.
    assert np.array_equal(middle_slice(lps), volume[0, 2].numpy())
    assert np.array_equal(middle_slice(ras), volume[0, 2].numpy()[::-1])


def test_the_checkerboard_takes_turns() -> None:
    board = checkerboard(np.zeros((12, 12)), np.ones((12, 12)), squares=6)
    assert (board[0, 0], board[0, 2], board[2, 0], board[2, 2]) == (0, 1, 1, 0)
    assert board.mean() == 0.5
    assert checkerboard(np.zeros((3, 3)), np.ones((3, 3))).mean() == pytest.approx(4 / 9)
