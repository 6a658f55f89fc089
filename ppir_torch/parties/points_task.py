"""What `parties.process` runs where the configuration's task is "points": one role's session, from file to report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BudgetExceeded, PpirError
from .accounting import Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

    from ..config.groups import PointsBudgetConfig
    from ..wire.link import Link
    from .budget import ReleaseBudget
    from .process import End

__all__ = ["ROLES"]

TRANSFORM_FILE = "transform.tfm"


def _party_1(text: str, ends: dict[str, End], session: bytes, output: Path) -> dict[str, Any]:
    import torch

    from ..config.points import MovingPointsConfig
    from ..grids import Grid
    from ..joint.interface import compute_device
    from ..points.files import load_points
    from ..protocols import load_protocol
    from ..transforms import affine_from_map, save_transform
    from ..wire.messages import Finish
    from .moving_points import MovingPoints

    config = MovingPointsConfig.model_validate_json(text)
    torch.set_num_threads(config.threads)
    links = _links("party_1", ends, session, config.transport.timeout_s)
    link = links["party_2"]
    watch = Stopwatch()
    try:
        party = MovingPoints(load_points(config.moving, _names(config.moving_columns)), config.transform != "rigid")
        entry = load_protocol(config.backend.kind)
        device = compute_device(getattr(config.backend, "device", "cpu"))
        side = entry.moving_side(link, links.get("dealer"), device)
        found = party.align(link, side, entry.name, config.share_transform)
        if "dealer" in links:
            Finish().send(links["dealer"])
    except PpirError as error:
        # party_2 is told that the run is over, not what party_1's files look like.
        link.abort(f"party_1 cannot go on ({type(error).__name__}); see its own report")
        raise
    account = watch.account(list(links.values()))
    grid = Grid((2,) * len(found.offset))
    save_transform(affine_from_map(grid, found.matrix, found.offset), output / TRANSFORM_FILE)
    for end in links.values():
        end.close()
    transform = {"kind": config.transform, "matrix": found.matrix.tolist(), "offset_mm": found.offset.tolist()}
    run = {"transform": transform, "points": found.count, "residual_rms_mm": found.rms}
    return {"complete": True, "account": account, "run": run}


def _party_2(text: str, ends: dict[str, End], session: bytes, output: Path) -> dict[str, Any]:  # noqa: ARG001
    import torch

    from ..config.points import FixedPointsConfig
    from ..joint.interface import compute_device
    from ..points.files import load_points
    from ..protocols import load_protocol
    from .fixed_points import FixedPoints
    from .points import UnequalSets
    from .reports import shared_values

    config = FixedPointsConfig.model_validate_json(text)
    torch.set_num_threads(config.threads)
    links = _links("party_2", ends, session, config.transport.timeout_s)
    link = links["party_1"]
    watch = Stopwatch()
    report: dict[str, Any] = {"complete": True}
    budget: ReleaseBudget | None = None
    try:
        points = load_points(config.fixed, _names(config.fixed_columns))
        budget = _open_budget(config.budget, points, report)
        party = FixedPoints(points, config.disclose_spread, budget.charge)
        entry = load_protocol(config.backend.kind)
        device = compute_device(getattr(config.backend, "device", "cpu"))
        shared = party.serve(link, entry.fixed_side(link, links.get("dealer"), device), entry.name)
        report["transform"] = shared_values(shared)
    except PpirError as error:
        if isinstance(error, BudgetExceeded):
            link.abort("its site's cap on released values of these points is reached")
            report["cap_reached"] = True
        elif isinstance(error, UnequalSets):
            link.abort(str(error))
        else:
            link.abort(f"party_2 cannot go on ({type(error).__name__}); see its own report")
        report |= {"complete": False, "error": str(error), "exit_code": error.exit_code}
    if budget is not None:
        report["budget"]["spent"] = budget.spent
    report["account"] = watch.account(list(links.values()))
    for end in links.values():
        end.close()
    return report


def _open_budget(config: PointsBudgetConfig, points: Tensor, report: dict[str, Any]) -> ReleaseBudget:
    """This site's cap on what may be released of the points; the report names it."""
    from .budget import ReleaseBudget, default_path
    from .fixed_points import point_set_identity

    cap = int(config.fraction * points.numel()) if config.max_values is None else config.max_values
    budget = ReleaseBudget(config.file or default_path(), config.peer, point_set_identity(points), cap)
    report["budget"] = {
        "file": str(budget.path),
        "peer": budget.peer,
        "image": budget.image,
        "coordinates": points.numel(),
        "cap": cap,
        "spent_before": budget.spent,
    }
    return budget


def _links(me: str, ends: dict[str, End], session: bytes, timeout: float) -> dict[str, Link]:
    from ..wire.link import Link

    return {peer: Link(end.stream, session, end.key, me, peer, timeout) for peer, end in ends.items()}


def _names(columns: str | None) -> list[str] | None:
    return None if columns is None else columns.split(",")


ROLES: dict[str, Callable[[str, dict[str, End], bytes, Path], dict[str, Any]]] = {
    "party_1": _party_1,
    "party_2": _party_2,
}
