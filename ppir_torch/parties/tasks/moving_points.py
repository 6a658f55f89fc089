"""party_1 of a point-set run: its points, and the transform that it finds."""

from __future__ import annotations

from pathlib import Path

from ...config.points import MovingPointsConfig
from ...grids import Grid
from ...joint.interface import compute_device
from ...points.files import load_points
from ...protocols import load_protocol
from ...transforms import affine_from_map, save_transform
from ...wire.messages import Finish
from ..moving_points import Alignment, MovingPoints
from ..session import Role, Session

__all__ = ["MovingPointsRole"]

TRANSFORM_FILE = "transform.tfm"


class MovingPointsRole(Role):
    """See the module's docstring.

    Args:
        config: a `MovingPointsConfig`, JSON.
    """

    name, told = "party_1", "party_2"

    def __init__(self, config: str) -> None:
        super().__init__(config)
        self._config = MovingPointsConfig.model_validate_json(config)
        self.threads = self._config.threads
        self._found: Alignment | None = None

    def work(self, session: Session) -> None:
        """See `Role`."""
        config = self._config
        points = load_points(config.moving, config.moving_columns and config.moving_columns.split(","))
        party = MovingPoints(points, config.transform != "rigid")
        protocol = load_protocol(config.backend.kind)
        device = compute_device(getattr(config.backend, "device", "cpu"))
        channel, dealer = session.channels["party_2"], session.dealer()
        side = protocol.moving_side(channel, dealer, device)
        self._found = party.align(channel, side, protocol.name, config.share_transform)
        if dealer is not None:
            Finish().send(dealer)

    def keep(self, folder: Path) -> None:
        """The transform's file."""
        if (found := self._found) is None or not self.report.complete:
            return
        matrix, offset = found.matrix.tolist(), found.offset.tolist()
        grid = Grid((2,) * len(offset))  # a linear transform's map does not depend on it
        save_transform(affine_from_map(grid, found.matrix, found.offset), folder / TRANSFORM_FILE)
        transform = {"kind": self._config.transform, "matrix": matrix, "offset_mm": offset}
        self.report.run = {"transform": transform, "points": found.count, "residual_rms_mm": found.rms}
