"""Windowed and equalised intensities: NumPy's clip and ranks are the oracles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from config.test_config import mapping, refused

from ppir_torch.config.groups import PreprocessConfig
from ppir_torch.config.images import load_config
from ppir_torch.errors import ImageError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, save_image
from ppir_torch.intensities import equalised, windowed
from ppir_torch.registration.build import preprocessed


def image_of(values: Any) -> Image:
    """A 2-D image of one row of values."""
    tensor = torch.as_tensor(values).reshape(1, 1, -1)
    return Image(tensor, Grid((tensor.shape[2], 1)))


def test_a_window_is_numpys_clip(dtype: torch.dtype) -> None:
    values = 800 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=dtype)
    found = windowed(image_of(values), (-160, 240))
    np.testing.assert_array_equal(found.tensor.flatten().numpy(), np.clip(values.numpy(), -160, 240))
    assert found.tensor.dtype == dtype


def test_a_window_without_anything_inside_is_one_line() -> None:
    with pytest.raises(ImageError, match=r"^preprocess: no intensities between 2000 and 3000 to tell apart; [^\n]*$"):
        windowed(image_of(torch.arange(100.0)), (2000, 3000))


def test_equal_counts_are_ranks(dtype: torch.dtype) -> None:
    """Of values without a peak: to the width of a step of 1/4096 of the range."""
    values = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    found = equalised(image_of(values.to(dtype))).tensor.flatten().double().numpy()
    ranks = values.argsort().argsort().double().numpy() / (len(values) - 1)
    assert np.abs(found - ranks).max() < 0.02
    assert np.corrcoef(found, ranks)[0, 1] > 0.9999


def test_it_never_turns_a_contrast_over_and_does_not_count_units() -> None:
    values = torch.randn(3000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = equalised(image_of(values)).tensor.flatten()
    ordered = found[values.argsort()]
    assert bool((ordered.diff() >= 0).all())
    assert ordered[[0, -1]].tolist() == [0.0, 1.0]
    again = equalised(image_of(300 * values - 1000)).tensor.flatten()
    torch.testing.assert_close(again, found, rtol=0, atol=2e-3)


def test_air_does_not_fill_the_range() -> None:
    """Nine tenths of one value: the rest has nearly all of the range."""
    tissue = 1 + torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = equalised(image_of(torch.cat([torch.zeros(9000).double(), tissue]))).tensor.flatten()
    assert not found[:9000].any()
    assert float(found[9000:].min()) < 0.2
    assert float(found[9000:].std()) > 0.2


def test_the_mask_says_what_is_counted() -> None:
    values = torch.cat([torch.linspace(0, 1, 400), torch.linspace(5, 9, 600)])
    mask = torch.arange(1000).reshape(1, 1000) < 400
    found = equalised(image_of(values), mask).tensor.flatten()
    torch.testing.assert_close(found[:400], torch.linspace(0, 1, 400), rtol=0, atol=0.01)
    assert bool((found[400:] == 1).all())
    with pytest.raises(ImageError, match=r"^preprocess: intensities that are all 3 cannot be equalised$"):
        equalised(image_of(torch.full((10,), 3.0)))


def test_configurations_say_it(tmp_path: Path, pair: Callable[..., Any]) -> None:
    said = {"moving": {"window": [-160, 240], "equalise": True}, "fixed": {"clip": [1, 99]}}
    config = load_config(mapping(data={"moving": "a.mha", "fixed": "b.mha", "preprocess": said}))
    assert config.data.preprocess.moving.window == (-160, 240)
    image = pair("affine", 2).moving
    low, high = 0.1 * float(image.tensor.max()), 0.8 * float(image.tensor.max())
    found = preprocessed(image, PreprocessConfig(window=(low, high), equalise=True))
    assert torch.equal(found.tensor, equalised(windowed(image, (low, high))).tensor)
    held = preprocessed(image, PreprocessConfig(window=(low, high), rescale=(0, 1)))
    assert (float(held.tensor.min()), float(held.tensor.max())) == (0, 1)
    mask = tmp_path / "mask.mha"
    save_image(Image((image.tensor > low).float(), image.grid), mask)
    found = preprocessed(image, PreprocessConfig(mask=mask, equalise=True))
    assert torch.equal(found.tensor, equalised(image, image.tensor[0] > low).tensor)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"window": [240, -160]},
            "data.preprocess.fixed.window: [240, -160], two numbers [low, high] with low < high, ",
        ),
        ({"window": [1]}, "data.preprocess.fixed.window: [1], two numbers [low, high] with low < high, "),
        ({"equalise": 3}, "data.preprocess.fixed.equalise: 3, "),
        ({"mask": "m.mha", "window": [0, 1]}, "data.preprocess.fixed: "),
    ],
)
def test_what_it_cannot_take_is_one_line(settings: dict[str, Any], line: str) -> None:
    [found] = refused(mapping(data={"moving": "a.mha", "fixed": "b.mha", "preprocess": {"fixed": settings}}))
    assert found.startswith(line)
