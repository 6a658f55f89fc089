"""Rigid alignment of corresponding points from moments, which is all of it that two parties need to share.

Points are (n, D) mm. As every transform here, an alignment (matrix, offset) maps fixed points to moving points:
y = matrix x + offset.

>>> fixed = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
>>> matrix, offset = rigid_from_points(fixed, fixed + torch.tensor([3.0, -1.0]))
>>> [round(v, 6) for v in offset.tolist()]
[3.0, -1.0]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["check_spread", "registered_rms", "rigid_from_moments", "rigid_from_points"]

_UNIQUE = 1e-9  # singular values below this share of the largest leave the rotation open
_THIN = 1e-4  # points within this share of their length of a line: what files round them to, or less than anybody sees


def rigid_from_moments(
    cross: Tensor,
    moving_centre: Tensor,
    fixed_centre: Tensor,
    moving_variance: float | None = None,
    with_scale: bool = False,
) -> tuple[Tensor, Tensor]:
    """Least-squares rotation (and scale) of corresponding points from their cross-covariance alone.

    party_1 holds Q (n, D), its moving points less their mean; party_2 holds Z (n, D), its fixed ones. Only the D x D
    matrix Q^T Z is joint: with Q^T Z = U S V^T the rotation that minimises sum |q - R z|^2 is R = U diag(1, ..,
    det(U V^T)) V^T (Kabsch, Acta Cryst. A 1976; Umeyama, TPAMI 1991, equations 39 to 43). The scale is |Q|^2 /
    tr(S diag(..)), least squares in the fixed points' space: that of Umeyama's equation 42 for the inverse map, as
    party_1 has |Q|^2 without asking.

    Args:
        cross: Q^T Z (D, D) mm^2, rows of the moving points.
        moving_centre: (D,) mm.
        fixed_centre: (D,) mm.
        moving_variance: |Q|^2, the sum of squares of all entries of Q, mm^2; means do as well if `cross` is one.
        with_scale: whether a similarity is wanted; needs `moving_variance`.

    Returns:
        (matrix (D, D), offset (D,)) float64, fixed points to moving points; matrix is a proper rotation, times a
        positive scale where one is wanted.

    Raises:
        ConfigError: wrong shapes, values that are not finite, a scale without its variance, or points that leave the
            rotation open: all on one point (2-D) or line (3-D), or as close to a reflection as to a rotation.

    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> z = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])
    >>> q = z @ turn.T
    >>> matrix, _ = rigid_from_moments(q.T @ z, torch.zeros(2), torch.zeros(2))
    >>> bool(torch.allclose(matrix.float(), turn, atol=1e-6))
    True
    """
    d = cross.shape[0]
    if cross.shape != (d, d) or d not in (2, 3) or {tuple(moving_centre.shape), tuple(fixed_centre.shape)} != {(d,)}:
        raise ConfigError(
            f"moments: {tuple(cross.shape)} with centres {tuple(moving_centre.shape)} and "
            f"{tuple(fixed_centre.shape)}, (D, D) and (D,) in 2-D or 3-D are needed"
        )
    joint, moving, fixed = cross.double(), moving_centre.double(), fixed_centre.double()
    if not bool(torch.isfinite(torch.cat([joint.flatten(), moving, fixed])).all()):
        raise ConfigError("moments: NaN or infinite")
    left, stretch, right = torch.linalg.svd(joint)
    sign = torch.ones_like(stretch)
    sign[-1] = torch.sign(torch.linalg.det(left @ right))
    if float(stretch[-2] + sign[-1] * stretch[-1]) <= _UNIQUE * float(stretch[0]):
        raise ConfigError(
            "point sets: their rotation is not determined; the points must not lie on one line (3-D) or point, "
            "nor be as close to a mirror image"
        )
    matrix = left @ (sign[:, None] * right)
    if with_scale:
        if moving_variance is None or not 0 < moving_variance < math.inf:
            raise ConfigError(f"similarity: moving variance {moving_variance}, a positive finite one is needed")
        matrix = matrix * (moving_variance / (stretch * sign).sum())
    return matrix, moving - matrix @ fixed


def check_spread(points: Tensor, name: str) -> None:
    """Refuse a set of points that leaves a rotation open: what fits it about its line is the rounding of its numbers.

    Either party checks its own, whose numbers are exact; in a product they are rounded, and a line is none any more.

    Args:
        points: (n, D) mm.
        name: of the set, for the line.

    Raises:
        ConfigError: the points lie in one place, or (3-D) on one line to a share of 1e-4.

    >>> check_spread(torch.outer(torch.arange(5.0), torch.tensor([1.0, 2.0, 3.0])), "moving points")
    Traceback (most recent call last):
    ppir_torch.errors.ConfigError: moving points: all on one line; their rotation is not determined
    """
    centred = points.double() - points.double().mean(0)
    lengths = torch.linalg.svdvals(centred)
    size = float(points.double().abs().max())
    if float(lengths[0]) <= 1e-12 * max(size, 1e-3):
        raise ConfigError(f"{name}: all in one place; their rotation is not determined")
    if points.shape[1] == 3 and float(lengths[1]) <= _THIN * float(lengths[0]):
        raise ConfigError(f"{name}: all on one line; their rotation is not determined")


def registered_rms(matrix: Tensor, cross: Tensor, moving_variance: float, fixed_variance: float, count: int) -> float:
    """Root mean square distance in mm that an alignment through both centres leaves, from the moments alone.

    |Q - Z A^T|^2 = |Q|^2 - 2 tr(A^T Q^T Z) + |Z A^T|^2 with A^T A = s^2 I, as `rigid_from_moments` gives it.

    Args:
        matrix: (D, D) rotation or similarity, fixed points to moving points.
        cross: Q^T Z (D, D) mm^2.
        moving_variance: |Q|^2, the sum of squares of the centred moving points, mm^2.
        fixed_variance: |Z|^2, of the fixed points: one scalar that party_2 discloses.
        count: n.

    Good to about 1e-8 of the sets' extent: a difference of large sums.

    >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> registered_rms(torch.eye(2), (2 * z).T @ z, 8.0, 2.0, 2)
    1.0
    """
    exact = matrix.double()
    square = float(exact.square().sum()) / matrix.shape[0]  # s^2
    rest = moving_variance - 2 * float((exact * cross.double()).sum()) + square * fixed_variance
    return math.sqrt(max(rest, 0.0) / count)


def rigid_from_points(fixed: Tensor, moving: Tensor, with_scale: bool = False) -> tuple[Tensor, Tensor]:
    """`rigid_from_moments` of corresponding points, both in the clear.

    Args:
        fixed: (n, D) mm.
        moving: (n, D) mm, in the same order.
        with_scale: whether a similarity is wanted.

    Returns:
        (matrix (D, D), offset (D,)) float64, fixed points to moving points.

    Raises:
        ConfigError: shapes that differ, or as in `rigid_from_moments`.
    """
    if fixed.ndim != 2 or fixed.shape != moving.shape or len(fixed) == 0:
        raise ConfigError(f"point sets: {tuple(fixed.shape)} and {tuple(moving.shape)}, the same (n, D) is needed")
    moving_centre, fixed_centre = moving.double().mean(0), fixed.double().mean(0)
    q, z = moving.double() - moving_centre, fixed.double() - fixed_centre
    return rigid_from_moments(q.T @ z, moving_centre, fixed_centre, float(q.square().sum()), with_scale)
