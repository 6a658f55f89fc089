"""party_1 of an image run: its image against the operands of party_2's, and the transform that it finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...config.images import MovingPartyConfig
from ...errors import PeerLost, RegistrationFailed
from ...grids import Grid
from ...images import Image, load_image, load_mask
from ...interruption import best_so_far
from ...joint.interface import compute_device
from ...protocols import load_protocol
from ...registration import Result, register_images
from ...registration.atlas import loaded_start
from ...registration.build import build_plan, preprocessed
from ...reporting.files import save_result, summary
from ...reporting.progress import Progress
from ...warping import warp
from ...wire.messages import Finish
from ..moving import PrivateFixed
from ..session import Role, Session

__all__ = ["MovingImagesRole"]


class MovingImagesRole(Role):
    """See the module's docstring.

    Args:
        config: a `MovingPartyConfig`, JSON.
    """

    name, told = "party_1", "party_2"

    def __init__(self, config: str) -> None:
        super().__init__(config)
        self._config = MovingPartyConfig.model_validate_json(config)
        self.threads = self._config.threads
        self._result: Result | None = None
        self._grid: Grid | None = None

    def work(self, session: Session) -> None:
        """See `Role`."""
        config = self._config
        protocol = load_protocol(config.backend.kind)
        device = compute_device(getattr(config.backend, "device", "cpu"))
        loaded = load_image(config.moving, getattr(torch, config.dtype))
        side = protocol.moving_side(session.channels["party_2"], session.dealer(), device)
        fixed = PrivateFixed(
            session.channels["party_2"], side, protocol.name, config.ledger.enabled, config.ledger.most
        )
        original = loaded.precise(fixed.grid).seen_from(fixed.grid)
        self._grid = original.grid
        moving = preprocessed(original, config.preprocess).to(device)
        mask = load_mask(config.moving_mask, loaded.grid).to(device) if config.moving_mask else None
        result, interrupted = best_so_far(lambda: self._register(session, moving, fixed, mask))
        if config.preprocess.changes:  # the file that is written has the intensities of the one that was read
            result = replace(result, warped=warp(original.to(device), result.transform, fixed.grid))
        # One that went wrong is over, but its session ends as it should.
        if interrupted is None and (result.complete or result.failed):
            fixed.finish(result.transform if config.share_transform and result.complete else None)
            if (dealer := session.dealer()) is not None:
                Finish().send(dealer)
        if not result.complete:
            code = RegistrationFailed.exit_code if result.failed else PeerLost.exit_code
            self.report.complete, self.report.error, self.report.exit_code = False, result.error, code
        self._result, self.report.ledger = result, fixed.ledger_rows()
        if interrupted is not None:
            raise interrupted

    def keep(self, folder: Path) -> None:
        """The transform and the warped image: the best so far where party_2 was lost, or this party interrupted."""
        if self._result is not None:
            assert self._grid is not None
            save_result(self._result, folder, self._grid)
            self.report.run = summary(self._result)

    def _register(self, session: Session, moving: Image, fixed: PrivateFixed, mask: Tensor | None) -> Result:
        config = self._config
        start = loaded_start(config.start, moving, fixed.grid, lambda _: fixed.atlas_map())
        with Progress(config.backend.kind, session.bytes_sent) as progress:
            plan = build_plan(config, fixed.grid, start)
            return register_images(moving, fixed, plan, progress.show, mask)
