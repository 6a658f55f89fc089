"""Overlap of label maps, and the distance of their surfaces in mm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..errors import ConfigError, ImageError
from ..grids import Grid

__all__ = ["dice", "hausdorff_mm"]


def dice(first: Tensor, second: Tensor, labels: Sequence[int] | None = None) -> dict[int, float]:
    """Overlap 2 |A and B| / (|A| + |B|) of each label of two label maps (Dice, Ecology 1945), through MONAI.

    Args:
        first: integer or bool ([z,] y, x).
        second: the same shape.
        labels: which labels; default every label but 0 that is in either map.

    Returns:
        Label to overlap in [0, 1]; NaN for a label that is in neither map.

    Raises:
        ImageError: the maps are not integers or not of one shape.

    `ppir_torch.warp` with mode="nearest" resamples a label map and makes no new labels.

    >>> import torch
    >>> dice(torch.tensor([[1, 1], [0, 2]]), torch.tensor([[1, 0], [0, 2]]))
    {1: 0.6666666865348816, 2: 1.0}
    """
    first, second, wanted = _label_maps(first, second, labels)
    from monai.metrics.meandice import compute_dice  # takes seconds to import

    result = {}
    for label in wanted:
        one, other = first == label, second == label
        some = bool(one.any()) or bool(other.any())
        value = compute_dice(one[None, None].float(), other[None, None].float(), ignore_empty=False)
        result[label] = float(value) if some else math.nan
    return result


def hausdorff_mm(
    first: Tensor, second: Tensor, grid: Grid, percentile: float = 95, labels: Sequence[int] | None = None
) -> dict[int, float]:
    """Hausdorff distance in mm between the border voxels of each label of two label maps, through MONAI.

    The larger of the two directed percentiles of the distances from border to border (Huttenlocher et al., TPAMI
    1993, with a rank in place of the maximum); 100 is the maximum.

    Args:
        first: integer or bool ([z,] y, x).
        second: the same shape.
        grid: of both maps; gives the spacing.
        percentile: 0 to 100.
        labels: which labels; default every label but 0 that is in either map.

    Returns:
        Label to mm; infinity for a label that is in one map only, NaN for one that is in neither.

    Raises:
        ImageError: the maps are not integers, or not of the grid's shape.
        ConfigError: the percentile is not in 0 to 100.

    >>> import torch
    >>> from ppir_torch import Grid
    >>> row = torch.eye(4, dtype=torch.int64)
    >>> hausdorff_mm(row[:1], row[2:3], Grid((4, 1), spacing=(1.5, 1.0)))
    {1: 3.0}
    """
    first, second, wanted = _label_maps(first, second, labels)
    if tuple(first.shape) != grid.shape:
        raise ImageError(f"label maps of shape {tuple(first.shape)}, the grid has {grid.shape}")
    if not 0 <= percentile <= 100:
        raise ConfigError(f"percentile: {percentile}, 0 to 100 is needed")
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # takes seconds to import

    result = {}
    for label in wanted:
        one, other = first == label, second == label
        if not (bool(one.any()) and bool(other.any())):
            result[label] = math.inf if bool(one.any()) or bool(other.any()) else math.nan
            continue
        result[label] = float(
            compute_hausdorff_distance(
                one[None, None].float(),
                other[None, None].float(),
                include_background=True,  # the only channel is the label itself
                percentile=percentile,
                spacing=grid.spacing[::-1],  # MONAI's order is that of the tensor's axes
            )
        )
    return result


def _label_maps(first: Tensor, second: Tensor, labels: Sequence[int] | None) -> tuple[Tensor, Tensor, list[int]]:
    """Both maps as int64, and the labels that are wanted."""
    for label_map in (first, second):
        if label_map.is_floating_point() or label_map.is_complex() or label_map.ndim not in (2, 3):
            raise ImageError(
                f"label map: {tuple(label_map.shape)} {label_map.dtype}, an integer one of two or three axes is needed"
            )
    if first.shape != second.shape:
        raise ImageError(f"label maps of shapes {tuple(first.shape)} and {tuple(second.shape)}, the same is needed")
    first, second = first.long(), second.long()
    if labels is not None:
        return first, second, [int(label) for label in labels]
    present = {int(label) for label_map in (first, second) for label in np.unique(label_map.cpu().numpy())}
    return first, second, sorted(present - {0})
