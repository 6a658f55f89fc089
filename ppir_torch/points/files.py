"""Point sets: their files, and rigid alignment from moments, which is all of it that two parties need to share.

Points are (n, D) LPS millimetres. As every transform here, an alignment (matrix, offset) maps fixed points to moving
points: y = matrix x + offset.

>>> fixed = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
>>> matrix, offset = rigid_from_points(fixed, fixed + torch.tensor([3.0, -1.0]))
>>> [round(v, 6) for v in offset.tolist()]
[3.0, -1.0]
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = [
    "iterate_closest_points",
    "load_points",
    "registered_rms",
    "rigid_from_moments",
    "rigid_from_points",
]

_UNIQUE = 1e-9  # singular values below this share of the largest leave the rotation open


def load_points(path: str | Path, columns: Sequence[str] | None = None) -> Tensor:
    """Read a point set, (n, D) float64; LPS mm where the file says what it holds, else as it is written.

    - .csv: with a header, the columns x, y[, z] or those named by `columns` (pixel indices stay indices: "row" is y,
      "col" is x); without one, two or three numbers a line.
    - .txt: two or three numbers a line, `#` begins a comment; an elastix point file ("point", then the count).
    - .fcsv and .mrk.json (3-D Slicer): RAS is turned to LPS; the points of a .mrk.json's first markup.
    - .npy: (n, 2) or (n, 3) real numbers.

    Args:
        path: the file; its ending says the format.
        columns: header names of x, y[, z], of a .csv only.

    Raises:
        ConfigError: the file is missing or of another kind, a line or number cannot be read, a coordinate is NaN or
            infinite, the points are not 2-D or 3-D, or there are fewer than D + 1.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "points.csv"
    >>> _ = file.write_text("x,y\\n1,2\\n3,4\\n5,7\\n")
    >>> load_points(file).tolist()
    [[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]
    """
    path = Path(path)
    ending = next((e for e in _READERS if path.name.lower().endswith(e)), None)
    if ending is None:
        raise ConfigError(f"{path}: unknown kind of point file, one of {', '.join(_READERS)} is needed")
    if columns is not None and ending != ".csv":
        raise ConfigError(f"{path}: columns {', '.join(columns)} were named, only a .csv has named columns")
    try:
        rows = _csv_rows(path, columns) if columns is not None else _READERS[ending](path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, csv.Error) as error:
        # What parsers raise on a damaged file; their texts may run over several lines.
        raise ConfigError(f"{path}: cannot be read as points ({' '.join(str(error).split())[:120]})") from None
    lengths = {len(row) for row in rows}
    if not lengths <= {2} and not lengths <= {3}:
        raise ConfigError(f"{path}: {', '.join(map(str, sorted(lengths)))} numbers a point, 2 or 3 in all are needed")
    if len(rows) < 1 + max(lengths, default=2):
        raise ConfigError(f"{path}: {len(rows)} points, at least one more than dimensions is needed")
    points = torch.tensor(rows, dtype=torch.float64)
    finite = torch.isfinite(points).all(1)
    if not bool(finite.all()):
        raise ConfigError(f"{path}: point {int((~finite).nonzero()[0]) + 1} is NaN or infinite")
    return points


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


def iterate_closest_points(
    fixed: Tensor,
    moving: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    iterations: int = 100,
    tolerance: float = 1e-9,
) -> tuple[Tensor, Tensor, float]:
    """Rigid alignment of point sets without known correspondence (Besl and McKay, TPAMI 1992), in the clear only.

    Each mapped fixed point is paired with the moving point next to it, then the pairs are aligned; the distance never
    grows, and ends in a minimum near the start. There is no private counterpart here: a nearest neighbour needs every
    distance between one party's points and the other's, which is the joint content itself. Two parties use
    corresponding points (`rigid_from_moments`) or register images or distance maps of the shapes.

    Args:
        fixed: (n, D) mm.
        moving: (m, D) mm; m need not be n.
        start: (matrix, offset), fixed to moving; default the shift between the means.
        iterations: at most.
        tolerance: stops where the root mean square distance falls by less than this share of it.

    Returns:
        (matrix (D, D), offset (D,), root mean square distance in mm of the mapped fixed points to the moving set),
        float64.

    Raises:
        ConfigError: sets of different dimension or of fewer than D + 1 points, or as in `rigid_from_moments`.

    >>> line = torch.linspace(0, 10, 40, dtype=torch.float64)
    >>> shape = torch.stack([line, line.sin()], 1)
    >>> matrix, offset, rms = iterate_closest_points(shape, shape + 0.05)
    >>> round(rms, 6), [round(v, 4) for v in offset.tolist()]
    (0.0, [0.05, 0.05])
    """
    d = fixed.shape[-1]
    if fixed.ndim != 2 or moving.ndim != 2 or moving.shape[1] != d or min(len(fixed), len(moving)) <= d:
        raise ConfigError(
            f"point sets: {tuple(fixed.shape)} and {tuple(moving.shape)}, (n, D) and (m, D) with more than D are needed"
        )
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    fixed, moving = fixed.detach().double().cpu(), moving.detach().double().cpu()
    tree = cKDTree(moving.numpy())
    if start is None:
        start = torch.eye(d, dtype=torch.float64), moving.mean(0) - fixed.mean(0)
    matrix, offset = (part.detach().double().cpu() for part in start)

    def closest() -> tuple[float, Tensor]:
        distances, index = tree.query((fixed @ matrix.T + offset).numpy())
        return math.sqrt(float((distances**2).mean())), torch.from_numpy(index)

    rms, index = closest()
    for _ in range(iterations):
        matrix, offset = rigid_from_points(fixed, moving[index])
        last = rms
        rms, index = closest()
        if last - rms <= tolerance * last:
            break
    return matrix, offset, rms


def _csv_rows(path: Path, columns: Sequence[str] | None = None) -> list[list[float]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = [line for line in csv.reader(stream) if any(cell.strip() for cell in line)]
    if not lines:
        return []
    header = [cell.strip().lower() for cell in lines[0]]
    if all(_is_number(cell) for cell in header):
        if columns is not None:
            raise ConfigError(f"no header, but columns {', '.join(columns)} were named")
        return _numbers(lines, None)
    wanted = [c.lower() for c in columns] if columns is not None else [c for c in ("x", "y", "z") if c in header]
    if len(wanted) not in (2, 3) or any(header.count(column) != 1 for column in wanted) or wanted == ["x", "z"]:
        raise ConfigError(f"columns {', '.join(header)}; x, y[, z] are needed, or the names of those columns")
    return _numbers(lines[1:], [header.index(column) for column in wanted])


def _txt_rows(path: Path) -> list[list[float]]:
    lines = [line.split("#")[0].replace(",", " ").split() for line in path.read_text("utf-8").splitlines()]
    lines = [line for line in lines if line]
    if lines and lines[0] == ["index"]:
        raise ConfigError("an elastix file of voxel indices, one of points is needed")
    if lines and lines[0] == ["point"]:
        if len(lines) < 2 or lines[1] != [str(len(lines) - 2)]:
            raise ConfigError(f"an elastix point file, whose second line must say that it has {len(lines) - 2} points")
        lines = lines[2:]
    return _numbers(lines, None)


def _fcsv_rows(path: Path) -> list[list[float]]:
    text = path.read_text("utf-8").splitlines()
    comments = [line.lstrip("# ").split("=") for line in text if line.startswith("#") and "=" in line]
    said = {parts[0].strip(): parts[1].strip() for parts in comments}
    columns = [name.strip() for name in said["columns"].split(",")]
    lines = list(csv.reader(line for line in text if line.strip() and not line.startswith("#")))
    return _as_lps(_numbers(lines, [columns.index(axis) for axis in "xyz"]), said["CoordinateSystem"])


def _markup_rows(path: Path) -> list[list[float]]:
    markup = json.loads(path.read_text("utf-8"))["markups"][0]
    if any(point.get("positionStatus", "defined") != "defined" for point in markup["controlPoints"]):
        raise ConfigError("a control point was not placed")
    rows = [[float(v) for v in point["position"]] for point in markup["controlPoints"]]
    return _as_lps(rows, markup["coordinateSystem"])


def _npy_rows(path: Path) -> list[list[float]]:
    import numpy as np

    with path.open("rb") as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise ConfigError(f"{array.dtype} array {array.shape}, a real (n, 2) or (n, 3) one is needed")
    rows: list[list[float]] = array.astype("float64").tolist()
    return rows


def _as_lps(rows: list[list[float]], system: Any) -> list[list[float]]:
    """Slicer writes LPS or RAS, before version 4.11 1 or 0 for them."""
    if str(system).upper() in ("LPS", "1"):
        return rows
    if str(system).upper() in ("RAS", "0"):
        return [[-x, -y, z] for x, y, z in rows]
    raise ConfigError(f"coordinate system {system!r}, LPS or RAS is needed")


def _numbers(lines: list[list[str]], places: list[int] | None) -> list[list[float]]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append([float(cell) for cell in (line if places is None else [line[place] for place in places])])
        except (ValueError, IndexError):
            raise ConfigError(f"point {number}: {','.join(line)[:60]!r} is not read as numbers") from None
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path], list[list[float]]]] = {
    ".csv": _csv_rows,
    ".txt": _txt_rows,
    ".fcsv": _fcsv_rows,
    ".mrk.json": _markup_rows,
    ".npy": _npy_rows,
}
