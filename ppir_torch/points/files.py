"""Point sets from files, as (n, D) LPS millimetres where the file says what it holds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["load_points"]


def load_points(path: str | Path, columns: Sequence[str] | None = None) -> Tensor:
    """Read a point set, (n, D) float64; LPS mm where the file says what it holds, else as it is written.

    - .csv: with a header, the columns x, y[, z] (ANTs), or r, a, s or l, p, s (3-D Slicer), or those named by `columns`
      (pixel indices stay indices: "row" is y, "col" is x); without one, two or three numbers a line.
    - .txt: two or three numbers a line, `#` begins a comment; an elastix point file ("point", then the count).
    - .fcsv and .mrk.json (3-D Slicer): millimetres, of one markup; RAS is turned to LPS, a file that does not say which
      of the two it has is refused.
    - .npy: (n, 2) or (n, 3) real numbers.

    Args:
        path: the file; its ending says the format.
        columns: header names of x, y[, z], of a .csv only.

    Raises:
        ConfigError: the file is missing or of another kind, a line or number cannot be read, a coordinate is NaN or
            infinite, the points are not 2-D or 3-D, not millimetres or in no known system, one was not placed, or there
            are fewer than D + 1.

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
    wanted = [c.strip().lower() for c in columns] if columns is not None else _coordinates(header)
    if len(wanted) not in (2, 3) or any(header.count(column) != 1 for column in wanted) or wanted == ["x", "z"]:
        raise ConfigError(f"columns {', '.join(header)}; x, y[, z] are needed, or the names of those columns")
    if "defined" in header:  # Slicer's: a point that was not placed has a position, too
        status = header.index("defined")
        _all_placed(line[status].strip().lower() in ("1", "true") for line in lines[1:])
    rows = _numbers(lines[1:], [header.index(column) for column in wanted])
    return _as_lps(rows, "RAS") if wanted == ["r", "a", "s"] else rows


def _coordinates(header: list[str]) -> list[str]:
    """The columns of a header that hold coordinates; none where more than one system is named."""
    named = [([axis for axis in axes if axis in header], least) for axes, least in (("xyz", 2), ("ras", 3), ("lps", 3))]
    systems = [axes for axes, least in named if len(axes) >= least]
    return systems[0] if len(systems) == 1 else []


def _txt_rows(path: Path) -> list[list[float]]:
    lines = [line.split("#")[0].replace(",", " ").split() for line in path.read_text("utf-8-sig").splitlines()]
    lines = [line for line in lines if line]
    if lines and lines[0] == ["index"]:
        raise ConfigError("an elastix file of voxel indices, one of points is needed")
    if lines and lines[0] == ["point"]:
        if len(lines) < 2 or lines[1] != [str(len(lines) - 2)]:
            raise ConfigError(f"an elastix point file, whose second line must say that it has {len(lines) - 2} points")
        lines = lines[2:]
    return _numbers(lines, None)


def _fcsv_rows(path: Path) -> list[list[float]]:
    text = path.read_text("utf-8-sig").splitlines()
    comments = [line.lstrip("# ").split("=") for line in text if line.startswith("#") and "=" in line]
    said = {parts[0].strip(): parts[1].strip() for parts in comments}
    if "CoordinateSystem" not in said or "columns" not in said:
        missing = "CoordinateSystem" if "columns" in said else "columns"
        raise ConfigError(f"no line '# {missing} = ', without which the points' coordinates are not known")
    columns = [name.strip() for name in said["columns"].split(",")]
    lines = list(csv.reader(line for line in text if line.strip() and not line.startswith("#")))
    # Slicer 5 writes the status of each point behind the columns that it names; 2 is "placed".
    status = len(columns) if "positionStatus" not in columns else columns.index("positionStatus")
    _all_placed(len(line) <= status or line[status] not in ("0", "1", "3") for line in lines)
    return _as_lps(_numbers(lines, [columns.index(axis) for axis in "xyz"]), said["CoordinateSystem"])


def _markup_rows(path: Path) -> list[list[float]]:
    markups = [markup for markup in json.loads(path.read_text("utf-8-sig"))["markups"] if markup["controlPoints"]]
    if len(markups) != 1:
        raise ConfigError(f"{len(markups)} markups with points, one is needed")
    markup = markups[0]
    _all_placed(point.get("positionStatus", "defined") == "defined" for point in markup["controlPoints"])
    unit = markup.get("coordinateUnits", "mm")  # the schema's default
    if unit != "mm" and not (isinstance(unit, list) and unit[:2] == ["mm", "UCUM"]):
        raise ConfigError(f"coordinateUnits {str(unit)[:60]!r}, 'mm' is needed")
    if "coordinateSystem" not in markup:
        raise ConfigError("no coordinateSystem, LPS or RAS is needed")
    rows = [[float(v) for v in point["position"]] for point in markup["controlPoints"]]
    return _as_lps(rows, markup["coordinateSystem"])


def _all_placed(placed: Iterable[bool]) -> None:
    for number, defined in enumerate(placed, 1):
        if not defined:
            raise ConfigError(f"point {number} was not placed")


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
