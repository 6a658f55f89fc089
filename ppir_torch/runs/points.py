"""One run of two point sets from its configuration to its files, clear or private.

A private run starts every party as a process of its own; this process opens neither file, unless a truth or a figure
is asked for: then it is an experiment, and this program reads both sets after the parties have ended. The files of a
run appear in its folder when all of them are there: one that fails leaves what an earlier one wrote.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.points import PointsConfig, fixed_points_party, moving_points_party
from ..errors import BudgetExceeded, ConfigError
from ..grids import Grid
from ..parties.accounting import peak_memory_mb
from ..points.closest import iterate_closest_points
from ..points.files import load_points
from ..points.rigid import check_spread, rigid_from_points
from ..transforms import affine_from_map, load_transform, save_transform
from .disclosed import disclosed_of_points
from .folder import refuse_overwriting, scratch_folder
from .outcome import Outcome, PointsReport
from .processes import lost, refuse_own_fault, run_parties

__all__ = ["TRANSFORM", "linear_grid", "run_points"]

TRANSFORM, FIGURE = "transform.tfm", "points.png"
FILES = (TRANSFORM, FIGURE, "party_1.json", "party_2.json", "dealer.json", "result.json")


def run_points(config: PointsConfig, output: Path) -> dict[str, Any]:
    """Run a configuration and write `transform.tfm` and `result.json` (`points.png` too) into `output`.

    Returns the values of `result.json` (docs/result-schema.md).

    Raises:
        PpirError: bad input (exit code 2). PeerLost: a party was lost. BudgetExceeded: party_2's cap (exit code 3).
    """
    read = {"moving": config.moving, "fixed": config.fixed, "truth": config.truth}
    refuse_overwriting(output, FILES, read)
    if config.truth is not None and not config.truth.exists():
        raise ConfigError(f"{config.truth}: no such transform file (truth)")
    started = time.perf_counter()
    disclosed = disclosed_of_points(config)
    with scratch_folder(output) as name:
        folder = Path(name)
        outcome = _run_private(config, folder) if config.private else _run_clear(config, folder)
        seconds = time.perf_counter() - started
        report = PointsReport(
            backend=config.backend.kind,
            seconds=seconds,
            disclosed=disclosed,
            outcome=outcome,
            correspondence=config.correspondence,
            rmse_to_truth_mm=_evaluate(config, folder),
        )
        report.write(folder)
        for file in FILES:  # result.json last
            if (folder / file).exists():
                (folder / file).replace(output / file)
            else:
                (output / file).unlink(missing_ok=True)
    return report.to_json()


def linear_grid(dimension: int) -> Grid:
    """Any grid: a linear transform's map does not depend on it."""
    return Grid((2,) * dimension)


def _run_clear(config: PointsConfig, folder: Path) -> Outcome:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        moving, fixed = _load(config.moving, config.moving_columns), _load(config.fixed, config.fixed_columns)
        if config.correspondence == "closest":
            matrix, offset, rms = iterate_closest_points(fixed, moving)
        else:
            for points, name in ((fixed, "fixed points"), (moving, "moving points")):
                check_spread(points, name)
            matrix, offset = rigid_from_points(fixed, moving, config.transform == "similarity")
            rms = float((moving - fixed @ matrix.T - offset).square().sum(1).mean().sqrt())
    finally:
        torch.set_num_threads(threads)
    save_transform(affine_from_map(linear_grid(len(offset)), matrix, offset), folder / TRANSFORM)
    transform = {"kind": config.transform, "matrix": matrix.tolist(), "offset_mm": offset.tolist()}
    found = {"transform": transform, "points": len(fixed), "residual_rms_mm": rms}
    return Outcome(found, peak_memory_mb=peak_memory_mb())


def _run_private(config: PointsConfig, folder: Path) -> Outcome:
    reports = run_parties(config.task, moving_points_party(config), fixed_points_party(config), folder)
    refuse_own_fault(reports)
    if reports["party_2"].cap_reached:
        raise BudgetExceeded(reports["party_2"].error)
    if any(report.exit_code != 0 for report in reports.values()):  # there is one product: nothing to keep without it
        raise lost(reports)
    return Outcome.of(reports)


def _evaluate(config: PointsConfig, folder: Path) -> float | None:
    """Displacement RMSE in mm at the fixed points to the known transform, and the figure: of experiments only."""
    apart = None
    if config.truth is None and not config.figure and config.private:
        return apart
    fixed = _load(config.fixed, config.fixed_columns)
    grid = linear_grid(fixed.shape[1])
    found = load_transform(folder / TRANSFORM, grid)
    with torch.no_grad():
        if config.truth is not None:
            difference = found(fixed) - load_transform(config.truth, grid)(fixed)
            apart = float(difference.square().sum(1).mean().sqrt())
        if config.figure or not config.private:
            from ..reporting.point_figures import points_figure

            points_figure(folder / FIGURE, fixed, _load(config.moving, config.moving_columns), found(fixed))
    return apart


def _load(path: Path, columns: str | None) -> Tensor:
    return load_points(path, columns and columns.split(","))
