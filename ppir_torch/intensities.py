"""What a party may do to its own image's intensities before anything else: a fixed window of them, equal counts.

Both are monotone, so that no contrast is turned over, and both are each party's own affair: the other is not told.
Histograms and the correlation ratio divide a range of intensities evenly; a few bright voxels, or the air of a
scanner's field, may have most of it.

>>> from .grids import Grid
>>> image = Image(torch.tensor([-1000.0, 0.0, 40.0, 3000.0]).reshape(1, 2, 2), Grid((2, 2)))
>>> windowed(image, (-160.0, 240.0)).tensor.flatten().tolist()
[-160.0, 0.0, 40.0, 240.0]
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import ImageError
from .images import Image

__all__ = ["equalised", "windowed"]

_LEVELS = 4096  # steps of the intensities that are counted
_MOST = 1 / 64  # share of all counts that one step has at most: air is thousands of times anything else


def windowed(image: Image, window: tuple[float, float]) -> Image:
    """Values held within [low, high], in the image's own unit (of CT: Hounsfield).

    Raises:
        ImageError: nothing of the image is inside: it would be constant.
    """
    low, high = window
    held = image.tensor.clamp(low, high)
    if not bool(held.min() < held.max()):
        raise ImageError(
            f"preprocess: no intensities between {low:g} and {high:g} to tell apart; the image's are "
            f"{float(image.tensor.min()):g} to {float(image.tensor.max()):g}"
        )
    return Image(held, image.grid)


def equalised(image: Image, mask: Tensor | None = None) -> Image:
    """Intensities by their counts, 0 to 1: about as many voxels in every part of the range (histogram equalisation).

    A single step of intensity counts for 1/64 of all at most, so that an even background does not fill the range
    (contrast-limited: Pizer et al., CVGIP 1987). Between steps the map is a straight line, so it is continuous.

    Args:
        image: one channel.
        mask: bool ([z,] y, x), the voxels that are counted; None: all.

    Raises:
        ImageError: the voxels that are counted are all the same.

    >>> from .grids import Grid
    >>> image = Image(torch.arange(64.0).reshape(1, 8, 8) ** 3, Grid((8, 8)))
    >>> [round(v.item(), 2) for v in equalised(image).tensor.flatten()[[0, 16, 32, 48, 63]]]
    [0.0, 0.21, 0.49, 0.75, 1.0]
    """
    values = image.tensor[0].double()
    counted = (values if mask is None else values[mask.to(values.device)]).flatten()
    low, high = counted.min(), counted.max()
    if not bool(low < high):
        raise ImageError(f"preprocess: intensities that are all {float(low):g} cannot be equalised")
    place = ((values - low) / (high - low)).clamp(0, 1) * _LEVELS
    of_counted = ((counted - low) / (high - low) * _LEVELS).long().clamp(max=_LEVELS - 1)
    counts = torch.bincount(of_counted, minlength=_LEVELS).double().clamp(max=_MOST * len(counted))
    below = torch.cat([counts.new_zeros(1), counts.cumsum(0)]) / counts.sum()
    step = place.long().clamp(max=_LEVELS - 1)
    share = below[step] + (place - step) * (below[step + 1] - below[step])
    return Image(share[None].to(image.tensor.dtype), image.grid)
