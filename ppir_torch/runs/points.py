"""One point-set run from its configuration to its files, clear or private; and `align_points`, the same from Python.

A private run starts every party as a process of its own; this process opens neither file, unless a truth or a figure
is asked for: then it is an experiment, and this program reads both sets after the parties have ended. The files of a
run appear in its folder when all of them are there: one that fails leaves what an earlier one wrote.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.points import PointsConfig, fixed_points_party, load_points_config, moving_points_party
from ..config.protocols import PROTOCOLS
from ..errors import BudgetExceeded, ConfigError, PeerLost, PpirError
from ..grids import Grid
from ..parties.accounting import peak_memory_mb, write_json
from ..points.files import iterate_closest_points, load_points, rigid_from_points
from ..transforms import Affine, affine_from_map, load_transform, save_transform
from .open_private import run_parties

__all__ = ["PointsResult", "align_points", "run_points"]

TRANSFORM, FIGURE = "transform.tfm", "points.png"
FILES = (TRANSFORM, FIGURE, "party_1.json", "party_2.json", "dealer.json", "result.json")


@dataclass(frozen=True)
class PointsResult:
    """What `align_points` gives.

    Attributes:
        transform: fixed points to moving points, mm.
        metrics: the values of result.json (docs/result-schema.md).
    """

    transform: Affine
    metrics: dict[str, Any]


def run_points(config: PointsConfig, output: Path) -> dict[str, Any]:
    """Run a configuration and write `transform.tfm` and `result.json` (`points.png` too) into `output`.

    Returns the values of `result.json` (docs/result-schema.md).

    Raises:
        PpirError: bad input (exit code 2). PeerLost: a party was lost. BudgetExceeded: party_2's cap (exit code 3).
    """
    _check_files(config, output)
    started = time.perf_counter()
    try:
        output.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".run-", dir=output)
    except OSError as error:
        raise ConfigError(f"output: '{output}', a folder that can be written is needed ({error.strerror})") from None
    with scratch as name:
        folder = Path(name)
        values = _run_private(config, folder) if config.private else _run_clear(config, folder)
        values = {
            "schema": 1,
            "task": "points",
            "transform": values.pop("transform"),
            "backend": config.backend.kind,
            "correspondence": config.correspondence,
            **values,
            "seconds": time.perf_counter() - started,
            "disclosed": _disclosed(config),
        }
        values |= _evaluate(config, folder)
        write_json(folder / "result.json", values)
        for file in FILES:  # result.json last
            if (folder / file).exists():
                (folder / file).replace(output / file)
            else:
                (output / file).unlink(missing_ok=True)
    return values


def align_points(
    moving: Tensor | str | Path,
    fixed: Tensor | str | Path,
    transform: str = "rigid",
    backend: str = "clear",
    correspondence: str = "known",
    columns: str | None = None,
    truth: str | Path | None = None,
    output: str | Path | None = None,
    releases: str | Path | None = None,
    max_values: int | None = None,
    disclose_spread: bool = True,
    threads: int = 1,
    figure: bool = False,
) -> PointsResult:
    """Align two point sets, in clear or privately (`backend` "beaver", ...: each party a process of its own).

    Args:
        moving: points (n, D) mm or file of party_1.
        fixed: points (n, D) mm or file of party_2, in the same order. A file where this process should not hold it.
        transform: "rigid" or "similarity".
        backend: "clear", "beaver", "spdz", "bfv" or "ckks".
        correspondence: "known", or "closest" (clear only): iterative closest points.
        columns: names of the columns x, y[, z] of .csv files, with commas between them.
        truth: known ITK transform to compare with, at the fixed points.
        output: folder for the files; a temporary one where None.
        releases: party_2's SQLite file of released values; None: the site's own.
        max_values: its cap, over all runs; None: a quarter of the set's coordinates.
        disclose_spread: whether party_2 discloses its sum of squares, without which there is no residual.
        threads: of each process.
        figure: draw both sets before and after (a private run's are read here, after the parties have ended).

    Raises:
        PpirError: bad input, one clear line.

    >>> z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> found = align_points(z + 3, z)
    >>> [round(v, 6) for v in found.metrics["transform"]["offset_mm"]]
    [3.0, 3.0]
    """
    with tempfile.TemporaryDirectory(prefix="ppir-") as scratch:
        folder = Path(output) if output is not None else Path(scratch) / "run"
        settings: Mapping[str, object] = {
            "moving": _as_file(moving, Path(scratch) / "moving.npy"),
            "fixed": _as_file(fixed, Path(scratch) / "fixed.npy"),
            "moving_columns": columns,
            "fixed_columns": columns,
            "transform": transform,
            "backend": {"kind": backend},
            "correspondence": correspondence,
            "disclose_spread": disclose_spread,
            "budget": {"file": None if releases is None else str(releases), "max_values": max_values},
            "truth": None if truth is None else str(truth),
            "figure": figure,
            "threads": threads,
        }
        values = run_points(load_points_config(settings), folder)
        return PointsResult(load_transform(folder / TRANSFORM, _grid(len(values["transform"]["offset_mm"]))), values)


def _check_files(config: PointsConfig, output: Path) -> None:
    taken = {(output / name).resolve() for name in FILES}
    for name, path in (("moving", config.moving), ("fixed", config.fixed), ("truth", config.truth)):
        if path is not None and path.resolve() in taken:
            raise ConfigError(f"{name}: '{path}', the run would overwrite it; take another output folder")
    if config.truth is not None and not config.truth.exists():
        raise ConfigError(f"{config.truth}: no such transform file (truth)")


def _run_clear(config: PointsConfig, folder: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        moving, fixed = _load(config.moving, config.moving_columns), _load(config.fixed, config.fixed_columns)
        if config.correspondence == "closest":
            matrix, offset, rms = iterate_closest_points(fixed, moving)
        else:
            matrix, offset = rigid_from_points(fixed, moving, config.transform == "similarity")
            rms = float((moving - fixed @ matrix.T - offset).square().sum(1).mean().sqrt())
    finally:
        torch.set_num_threads(threads)
    save_transform(affine_from_map(_grid(len(offset)), matrix, offset), folder / TRANSFORM)
    return {
        "transform": {"kind": config.transform, "matrix": matrix.tolist(), "offset_mm": offset.tolist()},
        "points": len(fixed),
        "residual_rms_mm": rms,
        "complete": True,
        "error": "",
        "peak_memory_mb": peak_memory_mb(),
        "party_1": None,
        "party_2": None,
        "budget": None,
    }


def _run_private(config: PointsConfig, folder: Path) -> dict[str, Any]:
    reports = run_parties(moving_points_party(config), fixed_points_party(config), folder)
    errors = [(r["exit_code"], r["error"]) for r in reports.values() if r["exit_code"] != 0]
    own_fault = next((text for code, text in errors if code == 2), None)
    if own_fault is not None:
        raise PpirError(own_fault)
    if reports["party_2"].get("cap_reached"):
        raise BudgetExceeded(reports["party_2"]["error"])
    if errors or "run" not in reports["party_1"]:
        raise PeerLost("; ".join(dict.fromkeys(text for _, text in errors)) or "party_1 ended without a result")
    accounts = {role: report.get("account") for role, report in reports.items()}
    outcome = {"complete": True, "error": "", "budget": reports["party_2"].get("budget")}
    return {**reports["party_1"]["run"], **outcome, **accounts}


def _disclosed(config: PointsConfig) -> dict[str, list[str]]:
    """What each party learned of the other's points in such a run; nothing else crosses the Link."""
    if not config.private:
        return {"party_1": ["everything: a clear run holds both sets"], "party_2": ["everything"]}
    spread = "the sum of squares of its centred points" if config.disclose_spread else "a bound within 19 % of it"
    party_1 = [
        "the number of party_2's points, the same as its own",
        "party_2's centre (D numbers)",
        f"of party_2's spread {spread} (1 number)",
        "the cross-covariance of the two centred sets (D x D numbers), hence the transform",
    ]
    learns = PROTOCOLS[config.backend.kind].party_2_learns
    party_2 = ["the number of party_1's points, the same as its own", learns]
    if config.share_transform:
        party_2.append("the transform")
    return {"party_1": party_1, "party_2": party_2}


def _evaluate(config: PointsConfig, folder: Path) -> dict[str, Any]:
    """Displacement RMSE in mm at the fixed points to the known transform, and the figure: of experiments only."""
    values: dict[str, Any] = {"rmse_to_truth_mm": None}
    if config.truth is None and not config.figure and config.private:
        return values
    fixed = _load(config.fixed, config.fixed_columns)
    grid = _grid(fixed.shape[1])
    found = load_transform(folder / TRANSFORM, grid)
    with torch.no_grad():
        if config.truth is not None:
            apart = found(fixed) - load_transform(config.truth, grid)(fixed)
            values["rmse_to_truth_mm"] = float(apart.square().sum(1).mean().sqrt())
        if config.figure or not config.private:
            from ..reporting.point_figures import points_figure

            points_figure(folder / FIGURE, fixed, _load(config.moving, config.moving_columns), found(fixed))
    return values


def _load(path: Path, columns: str | None) -> Tensor:
    return load_points(path, None if columns is None else columns.split(","))


def _grid(dimension: int) -> Grid:
    return Grid((2,) * dimension)  # a linear transform's map does not depend on it


def _as_file(points: Tensor | str | Path, path: Path) -> str:
    if not isinstance(points, Tensor):
        return str(points)
    import numpy as np

    np.save(path, points.detach().cpu().double().numpy())
    return str(path)
