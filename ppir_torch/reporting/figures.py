"""Figures of runs. They need both images, so only an experiment (never a party) can draw them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images import Image

__all__ = ["checkerboard", "comparison_figure", "middle_slice", "title_of"]


def comparison_figure(
    path: Path, fixed: Image, before: Image, after: Mapping[str, Image], results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Before and after each run (image, difference, checkerboard) in the middle slice, and the runs' convergence.

    Args:
        path: PNG to write.
        fixed: the fixed image.
        before: the moving image on the fixed grid, not registered.
        after: label -> warped moving image on the fixed grid.
        results: label -> values of result.json.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = middle_slice(fixed)
    shown = {"before": middle_slice(before)} | {label: middle_slice(image) for label, image in after.items()}
    low, high = np.percentile(target, [0.5, 99.5])
    aspect = fixed.grid.spacing[1] / fixed.grid.spacing[0]
    figure = Figure(figsize=(11, 2.6 * len(shown) + 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.6 * len(shown), 3.2])
    pictures, curves = parts
    axes = pictures.subplots(len(shown), 4, squeeze=False)
    spread = float(np.abs(shown["before"] - target).max()) or 1.0
    for row, (label, picture) in zip(axes, shown.items(), strict=True):
        difference = picture - target
        row[0].imshow(target, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        row[1].imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        row[2].imshow(difference, cmap="RdBu_r", vmin=-spread, vmax=spread, aspect=aspect)
        row[3].imshow(checkerboard(target, picture), cmap="gray", vmin=low, vmax=high, aspect=aspect)
        row[0].set_title("fixed", fontsize=9)
        row[1].set_title(title_of(label, results.get(label)), fontsize=9)
        row[2].set_title(f"difference (RMS {np.sqrt(np.mean(difference**2)):.2f})", fontsize=9)
        row[3].set_title("checkerboard", fontsize=9)
        for axis in row:
            axis.set_axis_off()
    _draw_convergence(curves.subplots(), results)
    figure.savefig(path, dpi=110)


def title_of(label: str, values: Mapping[str, Any] | None) -> str:
    """What stands above a picture: the run's label and, where it is known, its distance to the truth; None: before.

    >>> title_of("bfv", {"rmse_to_truth_mm": 0.01234})
    'bfv: 0.0123 mm from the truth'
    """
    if values is None:
        return "moving, before"
    rmse = values.get("rmse_to_truth_mm")
    return f"{label}: {rmse:.4f} mm from the truth" if rmse is not None else label


def _draw_convergence(axis: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    markers = ["o", "s", "^", "v", "D"]
    for number, (label, values) in enumerate(results.items()):
        kept = [h for h in values["history"] if h["accepted"]]
        numbers = [values["history"].index(h) + 1 for h in kept]
        marker, size = markers[number % len(markers)], 11 - 3 * number
        axis.plot(numbers, [h["value"] for h in kept], marker=marker, markersize=size, label=label, alpha=0.7)
    first = next(iter(results.values()))["history"]
    for k in range(len(first)):
        if k == 0 or first[k]["level"] != first[k - 1]["level"]:
            axis.axvline(k + 0.5, color="0.8", linewidth=1)
            axis.annotate(f"1/{first[k]['shrink']}", (k + 0.6, 0.95), xycoords=("data", "axes fraction"), fontsize=8)
    axis.set_yscale("log")
    axis.set_xlabel("joint product (iteration)")
    axis.set_ylabel("loss (SSD)")
    axis.set_title("convergence of the runs", fontsize=10)
    axis.legend()


def middle_slice(image: Image) -> NDArray[Any]:
    """The picture of an image (rows, columns): itself in 2-D, its middle axial slice in 3-D, anterior up."""
    volume: NDArray[Any] = image.tensor[0].cpu().numpy()
    if volume.ndim == 2:
        return volume
    middle: NDArray[Any] = volume[volume.shape[0] // 2]
    # The y axis of LPS grows to the back, that of RAS to the front.
    return middle[::-1] if image.grid.direction[4] < 0 else middle


def checkerboard(first: NDArray[Any], second: NDArray[Any], squares: int = 6) -> NDArray[Any]:
    """Two pictures of one shape in turns, about `squares` squares along the shorter side.

    >>> checkerboard(np.zeros((2, 2)), np.ones((2, 2)), squares=2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    rows, columns = np.indices(first.shape)
    edge = max(1, min(first.shape) // squares)
    return np.where((rows // edge + columns // edge) % 2 == 0, first, second)
