"""What both parties of a point-set run do with their own points, before and beside the protocol.

party_1 holds the moving points Q (n, D), party_2 the fixed points Z (n, D), in one order, both centred on their means.
Only Q^T Z, D x D numbers, is joint (`points.rigid_from_moments`): one product of any exact protocol, rows from Q,
columns from Z. party_2 discloses beside it its centre (D numbers) and one number of its size. n is public.

    HELLO <-> HELLO, LEVEL (n, D) ->, <- OPERAND (header, centre), one product of the protocol, FINISH ->
"""

from __future__ import annotations

from torch import Tensor

from ..errors import ConfigError, RangeError
from ..joint.prepared import LARGEST_MM
from ..points.rigid import check_spread

__all__ = ["UnequalSets", "centred_points", "greeting", "released_values"]


class UnequalSets(ConfigError):
    """The two sets differ in number or dimension, which are public: both parties may read why the run stops."""


def greeting(protocol: str) -> str:
    """What a party with points says it runs: it does not meet one with an image.

    >>> greeting("beaver")
    'points, beaver'
    """
    return f"points, {protocol}"


def released_values(dimension: int) -> int:
    """How many numbers of its points party_2 releases in a run: D x D moments, D of its centre, one of its size.

    >>> released_values(3)
    13
    """
    return dimension * dimension + dimension + 1


def centred_points(points: Tensor) -> tuple[Tensor, Tensor]:
    """(mean (D,), points less their mean (n, D)) in float64, checked before anything is sent.

    Args:
        points: (n, D) mm.

    Raises:
        ConfigError: too few points to be private, or all in one place or on one line.
        RangeError: coordinates beyond 10^9 mm.
    """
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ConfigError(f"point set: {tuple(points.shape)}, (n, 2) or (n, 3) is needed")
    count, dimension = points.shape
    exact = points.detach().cpu().double()
    largest = float(exact.abs().max()) if count else 0.0
    if not largest <= LARGEST_MM:  # NaN as well
        raise RangeError(f"point set: a coordinate of {largest:.3g} mm, at most {LARGEST_MM:.0g} mm is allowed")
    least = -(-2 * released_values(dimension) // dimension)
    if count < least:
        raise ConfigError(
            f"point set: {count} points, at least {least} {dimension}-D ones are needed in private: of fewer, the "
            f"{released_values(dimension)} numbers that party_2 releases would give away half of the coordinates"
        )
    centre = exact.mean(0)
    centred = exact - centre
    check_spread(exact, "point set")
    return centre, centred
