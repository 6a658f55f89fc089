"""What each party computes from its own image alone, before any joint product: descriptors, normalised images.

A feature extractor maps an Image to an Image of C channels on the same grid. A loss on features is a sum over channels
of products of the two parties' own channels, so nothing about the extractor has to be private or linear.

The private local NCC is the bilinear form

    C(T) = 1/N  sum_x  n(I_w)(x) n(J)(x),      n(f) = (f - m_f) / sqrt(v_f + (floor sd_f)^2),

I_w = I(T(x)), m_f and v_f the mean and variance of f in a Gaussian window w about x, sd_f the standard deviation of the
whole image (`local_normalised`). One joint product gives it: n(I_w) is party_1's row, n(J) party_2's column.
ANTs (Avants et al., MedIA 2008) and MONAI take mean_x c(x)^2 instead, with the correlation in the window

    c(x) = sum_y w(y - x) (I_w(y) - m_I(x)) (J(y) - m_J(x)) / sqrt(v_I(x) v_J(x)).

C(T) keeps of the sum over the window its centre y = x alone. Where m and v change little across a window the mean over
x makes up for the rest, as every y lies in windows of total weight 1; for textures finer than the window,
C / sqrt(mean n(I_w)^2 mean n(J)^2), which is within [-1, 1] and needs one constant more from party_2, is mean_x c(x) to
some 3 %. C alone is below it, for mean n^2 < 1. And it is the mean of the correlation, not of its square: an inverted
contrast is a mismatch.

>>> image = Image(torch.rand(1, 8, 8), Grid((8, 8)))
>>> mind_ssc(image), local_normalised(image, radius_mm=3.0).tensor.shape
(Image(channels=4, size=(8, 8), spacing=(1.0, 1.0), dtype=float32), torch.Size([1, 8, 8]))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations, product
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError, ImageError
from .grids import Grid
from .images import Image, check_content

__all__ = ["FeatureExtractor", "apply_module", "local_normalised", "mind_ssc", "preprocess", "turned_towards"]

FeatureExtractor: TypeAlias = Callable[[Image], Image]

_NOISE_SAMPLES = 1 << 18  # differences along an axis that the median is taken of
_MEDIAN_OF_NORMAL = 0.6744897501960817  # of |x|, in deviations


def mind_ssc(image: Image, radius: int = 2, dilation: int = 2) -> Image:
    """MIND-SSC descriptors in (0, 1]: how alike the patches about each voxel's neighbours are, whatever the modality.

    D_k = mean over a patch of (I(x + a_k) - I(x + b_k))^2,   channel k = exp(-(D_k - min_j D_j) / V)

    a_k, b_k are the pairs of the voxel's 2 D face neighbours at `dilation` voxels that lie sqrt(2) dilation apart: the
    self-similarity context (Heinrich et al., MICCAI 2013; MIND itself: MedIA 2012). V, the mean over k of
    D_k - min_j D_j, is held within [0.001, 1000] times its mean over the image, as in convexAdam (another order of
    channels there). Voxels beyond the border repeat it. An affine change of the intensities, a contrast inversion too,
    leaves the descriptors as they are.

    Args:
        image: one channel, any floating dtype; distances are in voxels, so spacings should be nearly equal.
        radius: of the box patch, voxels; (2 radius + 1)^D of them.
        dilation: from a voxel to its neighbours, voxels.

    Returns:
        Image (12, z, y, x), or (4, y, x) in 2-D, in the image's dtype and on its grid. A channel is a pair (axis and
        side, axis and side) in lexical order, tensor axes and the negative side first. A constant image gives ones.

    Raises:
        ImageError: more than one channel.
        ConfigError: radius below 0 or dilation below 1.

    >>> mind_ssc(Image(torch.rand(1, 6, 6, 6), Grid((6, 6, 6)))).tensor.shape
    torch.Size([12, 6, 6, 6])
    """
    if image.tensor.shape[0] != 1:
        raise ImageError(f"mind_ssc: {image.tensor.shape[0]} channels, one is needed")
    if radius < 0 or dilation < 1:
        raise ConfigError(f"mind_ssc: radius {radius}, dilation {dilation}; at least 0 and 1 voxels are needed")
    values, _ = _unit_range(image.tensor)  # so that squares neither overflow nor vanish
    padded = F.pad(values, [dilation] * (2 * image.grid.dimension), mode="replicate")
    neighbours = [(axis, side) for axis in range(image.grid.dimension) for side in (-1, 1)]
    shifted = {at: _shifted(padded, *at, dilation, image.grid) for at in neighbours}
    pairs = [(a, b) for a, b in product(neighbours, neighbours) if a[0] < b[0]]
    distance = _box_mean(torch.cat([(shifted[a] - shifted[b]).square() for a, b in pairs]), radius)
    distance = distance - distance.amin(0, keepdim=True)
    variance = distance.mean(0, keepdim=True)
    typical = variance.mean().clamp(min=torch.finfo(variance.dtype).tiny * 1e6)  # 0 in a constant image
    return Image(torch.exp(-distance / variance.clamp(0.001 * typical, 1000 * typical)), image.grid)


def noise_deviation(image: Image) -> Tensor:
    """The standard deviation (C,) of each channel's noise, float64, as far as neighbouring voxels tell it.

    Second differences along an axis have sqrt(6) times the deviation of white noise, and next to nothing of a smooth
    image; their median magnitude is that of noise, not of edges, where edges are few. Of the axes the least counts, and
    of the differences those that are not zero: background that a tool has blackened says nothing of noise.

    >>> noise = 5 * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> 4.8 < float(noise_deviation(Image(noise, Grid((64, 64))))) < 5.2
    True
    """
    found = torch.zeros(len(image.tensor), dtype=torch.float64, device=image.tensor.device)
    for number, channel in enumerate(image.tensor):
        medians = []
        for axis in (a for a in range(channel.ndim) if channel.shape[a] >= 3):
            steps = channel.diff(n=2, dim=axis).flatten()
            steps = steps[:: max(1, steps.numel() // _NOISE_SAMPLES)].abs()
            steps = steps[steps > 0]
            medians.append(float(steps.median()) if steps.numel() else 0.0)
        found[number] = min(medians, default=0.0) / (_MEDIAN_OF_NORMAL * math.sqrt(6))
    return found


def local_normalised(image: Image, radius_mm: float, floor: float = 0.1, noise: float = 0.0) -> Image:
    """(I - local mean) / local standard deviation, each channel on its own: the operand of the private local NCC.

    The window is a Gaussian of sigma = radius_mm / sqrt(3), the variance of a box of that half-width. The divisor is
    sqrt(local variance + (floor x the channel's standard deviation)^2), so noise in flat regions stays small. The
    module's docstring says which similarity it makes, and how that relates to the LNCC of ANTs and MONAI.

    Args:
        image: any number of channels, any floating dtype; worked out in float64.
        radius_mm: half-width of the window, mm along every axis.
        floor: added deviation, as a share of the channel's own.
        noise: added deviation, in those of the channel's noise, where that is more; 0: by `floor` alone.

    Returns:
        Image (C, [z,] y, x), without unit, in the image's dtype and on its grid; a constant channel gives zeros. An
        affine change of the intensities does not change it, but for its sign.

    Raises:
        ConfigError: radius_mm or floor is not positive and finite.

    >>> image = Image(torch.rand(1, 16, 16), Grid((16, 16)))
    >>> brighter = Image(100 + 7 * image.tensor, image.grid)
    >>> difference = local_normalised(image, 4.0).tensor - local_normalised(brighter, 4.0).tensor
    >>> difference.abs().max().item() < 1e-4
    True
    """
    for name, value in (("radius_mm", radius_mm), ("floor", floor)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"local_normalised: {name} {value}, a positive finite one is needed")
    values, varies = _unit_range(image.tensor.double())  # float64: the variance is a difference of squares
    sigma_mm = radius_mm / math.sqrt(3)
    mean, square = (Image(part, image.grid).smoothed(sigma_mm).tensor for part in (values, values.square()))
    spread = floor * floor * values.flatten(1).var(1, unbiased=False)
    if noise > 0:
        spread = torch.maximum(spread, (noise * noise_deviation(Image(values, image.grid))).square())
    variance = (square - mean.square()).clamp(min=0) + torch.where(varies, spread.reshape(varies.shape), 1.0)
    return Image(((values - mean) / variance.sqrt()).to(image.tensor.dtype), image.grid)


def preprocess(
    image: Image,
    rescale: tuple[float, float] | None = None,
    clip: tuple[float, float] | None = None,
    mask: Tensor | None = None,
) -> Image:
    """Intensities held within two percentiles, then mapped linearly to a range.

    Args:
        image: one channel, any floating dtype.
        rescale: (low, high) that the lowest and highest value kept are mapped to; None leaves the intensities.
        clip: percentiles in 0..100 (linear between order statistics, as numpy's) beyond which values are held; None
            means (0, 100).
        mask: bool ([z,] y, x), the voxels that percentiles and range are taken from. Values elsewhere are held within
            the same range: the image is not multiplied by the mask, which would draw the mask's outline into it.

    Returns:
        Image (1, [z,] y, x) in the image's dtype and on its grid.

    Raises:
        ImageError: more than one channel, a constant image, a mask of another shape or dtype, empty, or over
            voxels that are all the same, or percentiles that coincide.
        ConfigError: clip is not within 0 <= low < high <= 100, or rescale is not finite with low < high.

    >>> image = Image(torch.arange(64.0).reshape(1, 8, 8), Grid((8, 8)))
    >>> [round(v.item(), 3) for v in preprocess(image, rescale=(0.0, 1.0), clip=(10, 90)).tensor[0, 4, :3]]
    [0.51, 0.53, 0.55]
    """
    check_content(image, "preprocess")
    low_percent, high_percent = clip or (0.0, 100.0)
    if not 0 <= low_percent < high_percent <= 100:
        raise ConfigError(f"preprocess: clip {clip}, percentiles with 0 <= low < high <= 100 are needed")
    if rescale is not None and not (all(map(math.isfinite, rescale)) and rescale[0] < rescale[1]):
        raise ConfigError(f"preprocess: rescale {rescale}, finite values with low < high are needed")
    values = image.tensor[0].double()
    if mask is not None and (mask.shape != values.shape or mask.dtype != torch.bool or not bool(mask.any())):
        raise ImageError(f"preprocess: mask {tuple(mask.shape)} {mask.dtype}, a bool one {image.grid.shape} is needed")
    ordered = (values if mask is None else values[mask.to(values.device)]).flatten().sort().values
    low, high = (_percentile(ordered, percent) for percent in (low_percent, high_percent))
    if not low < high:
        raise ImageError(f"preprocess: percentiles {low_percent:g} and {high_percent:g} are both {low:g}")
    held = values.clamp(low, high)
    if rescale is not None:
        share = (held - low) / (high - low)
        held = torch.lerp(torch.full_like(share, rescale[0]), torch.full_like(share, rescale[1]), share)
    return Image(held[None].to(image.tensor.dtype), image.grid)


def apply_module(module: nn.Module, image: Image) -> Image:
    """The channels that a user's network makes of an image, without autograd.

    The module runs as it is: call `module.eval()` first where it has dropout or batch normalisation, whose output
    would otherwise differ from call to call. Both parties need the same weights and the same preprocessing.

    Args:
        module: maps (1, C', [z,] y, x) to (1, C, [z,] y, x), the same spatial size; on the image's device, in any
            floating dtype (the image is handed over in that of its first parameter).
        image: of the C' channels that the module takes.

    Returns:
        Image (C, [z,] y, x) in the image's dtype and on its grid.

    Raises:
        ImageError: the module returns something else, or values that are not finite.

    >>> image = Image(torch.rand(1, 8, 8), Grid((8, 8)))
    >>> apply_module(nn.Conv2d(1, 6, 3, padding=1), image)
    Image(channels=6, size=(8, 8), spacing=(1.0, 1.0), dtype=float32)
    """
    first = next(module.parameters(), image.tensor)
    with torch.no_grad():
        made = module(image.tensor[None].to(first.dtype))
    if not isinstance(made, Tensor) or made.shape[:1] + made.shape[2:] != (1, *image.grid.shape) or made.shape[1] < 1:
        what = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ImageError(f"feature module: returned {what}, a tensor (1, C, {image.grid.shape}) is needed")
    return Image(made[0].to(image.tensor.dtype), image.grid)


def turned_towards(image: Image, grid: Grid) -> Image:
    """The same image in space, its tensor's axes permuted and flipped to run most nearly along those of `grid`.

    Channels of descriptors and networks follow the tensor's axes: those of two images correspond only where the axes
    do, and scanners and file formats store the same anatomy in any of 48 ways (8 in 2-D).

    Args:
        image: any number of channels.
        grid: of the same dimension; only its direction counts.

    Returns:
        Image of the same voxels at the same physical points; itself where the axes agree.

    >>> image = Image(torch.rand(1, 2, 3), Grid((3, 2), (1.0, 2.0), (5.0, 0.0), (0.0, -1.0, 1.0, 0.0)))
    >>> turned = turned_towards(image, Grid((8, 8)))
    >>> turned.grid.size, turned.grid.origin, turned.grid.direction
    ((2, 3), (3.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    """
    d = image.grid.dimension
    own, wanted = (torch.tensor(g.direction, dtype=torch.float64).reshape(d, d) for g in (image.grid, grid))
    cosines = (wanted.T @ own).tolist()  # [axis of grid][axis of image]
    # The first of equals, and that is the order as it is.
    order = max(permutations(range(d)), key=lambda p: round(sum(abs(cosines[i][p[i]]) for i in range(d)), 6))
    flipped = [cosines[i][order[i]] < 0 for i in range(d)]
    if list(order) == list(range(d)) and not any(flipped):
        return image
    matrix, origin = image.grid.index_to_physical()
    first = [(image.grid.size[axis] - 1) * flip for axis, flip in sorted(zip(order, flipped, strict=True))]
    turned = Grid(
        size=tuple(image.grid.size[axis] for axis in order),
        spacing=tuple(image.grid.spacing[axis] for axis in order),
        origin=tuple((matrix @ torch.tensor(first, dtype=torch.float64) + origin).tolist()),
        direction=tuple(
            (torch.where(torch.tensor(flipped), -1.0, 1.0).double() * own[:, list(order)]).add(0.0).flatten().tolist()
        ),
    )
    # Tensor axes are the reverse of x, y, z.
    tensor = image.tensor.permute(0, *(d - axis for axis in reversed(order)))
    return Image(tensor.flip([d - i for i in range(d) if flipped[i]]).contiguous(), turned)


def _unit_range(values: Tensor) -> tuple[Tensor, Tensor]:
    """(values mapped to [-1, 1] per channel, exactly 0 where constant; bool (C, 1...): which channels are not)."""
    axes = tuple(range(1, values.ndim))
    low, high = (extreme.detach() for extreme in torch.aminmax(values.flatten(1), dim=1))
    half = (high / 2 - low / 2).reshape(-1, *[1] * len(axes))
    middle = (low / 2 + high / 2).reshape(half.shape)
    return (values - middle) / torch.where(half > 0, half, 1.0), half > 0


def _shifted(padded: Tensor, axis: int, side: int, dilation: int, grid: Grid) -> Tensor:
    """The image at `dilation` voxels to one side along an axis, from the image padded by as much."""
    starts = [dilation + (side * dilation if a == axis else 0) for a in range(grid.dimension)]
    return padded[(slice(None), *(slice(s, s + n) for s, n in zip(starts, grid.shape, strict=True)))]


def _box_mean(channels: Tensor, radius: int) -> Tensor:
    """Mean over a box of 2 radius + 1 voxels a side, the border repeated outside; an axis at a time."""
    dimension = channels.ndim - 1
    pool = F.avg_pool2d if dimension == 2 else F.avg_pool3d
    padded = F.pad(channels, [radius] * (2 * dimension), mode="replicate")
    for axis in range(dimension):
        padded = pool(padded, [2 * radius + 1 if a == axis else 1 for a in range(dimension)], stride=1)
    return padded


def _percentile(ordered: Tensor, percent: float) -> float:
    """Linear between order statistics; torch.quantile takes no more than 2^24 values."""
    place = percent / 100 * (ordered.numel() - 1)
    below = math.floor(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, ordered.numel() - 1)])
    return low + (place - below) * (high - low)
