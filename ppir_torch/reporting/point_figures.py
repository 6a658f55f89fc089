"""The figure of two point sets. It needs both, so only an experiment or a clear run (never a party) can draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["points_figure"]


def points_figure(path: Path, fixed: Tensor, moving: Tensor, mapped: Tensor) -> None:
    """Both sets before and after; 3-D ones seen along two axes.

    Args:
        path: PNG to write.
        fixed: (n, D) mm.
        moving: (m, D) mm.
        mapped: the fixed points mapped by the transform (n, D) mm: they lie on the moving ones where it is right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    views = [(0, 1)] if fixed.shape[1] == 2 else [(0, 1), (0, 2)]
    figure = Figure(figsize=(10, 4.6 * len(views)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(views), 2, squeeze=False)
    for row, (across, up) in zip(axes, views, strict=True):
        for axis, title, points in zip(row, ("before", "after"), (fixed, mapped), strict=True):
            for label, shown, marker in (("moving", moving, "o"), ("fixed", points, "x")):
                axis.scatter(shown[:, across].numpy(), shown[:, up].numpy(), s=12, marker=marker, label=label, lw=0.8)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(f"{'xyz'[across]} [mm]")
            axis.set_ylabel(f"{'xyz'[up]} [mm]")
            axis.set_aspect("equal", adjustable="datalim")
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
