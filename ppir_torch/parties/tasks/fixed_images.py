"""party_2 of an image run: it prepares operands of its image and answers products, within its site's budget."""

from __future__ import annotations

import torch

from ...config.images import FixedPartyConfig
from ...images import load_image, load_mask
from ...joint.interface import compute_device
from ...metrics.registration import foreground_count
from ...protocols import load_protocol
from ...registration.atlas import load_atlas, to_atlas
from ...registration.build import build_measure, preprocessed
from ..budget import image_identity
from ..fixed import FixedParty
from ..session import Session
from .budgeted import BudgetedRole

__all__ = ["FixedImagesRole"]


class FixedImagesRole(BudgetedRole):
    """See the module's docstring.

    Args:
        config: a `FixedPartyConfig`, JSON.
    """

    subject = "this image"

    def __init__(self, config: str) -> None:
        super().__init__(config)
        self._config = FixedPartyConfig.model_validate_json(config)
        self.threads = self._config.threads

    def work(self, session: Session) -> None:
        """See `Role`."""
        config = self._config
        image = load_image(config.fixed, getattr(torch, config.dtype)).precise()
        mask = load_mask(config.fixed_mask, image.grid) if config.fixed_mask else None
        protocol = load_protocol(config.backend.kind)
        device = compute_device(getattr(config.backend, "device", "cpu"))
        foreground = int(mask.sum()) if mask is not None else foreground_count(image)
        budget = self.open_budget(config.budget, image_identity(image), foreground_voxels=foreground)
        own = preprocessed(image, config.preprocess)  # the cap is of the image as it lies in its file
        party = FixedParty(
            image=own.to(device),
            mask=mask,
            disclose_centre_of_mass=config.disclose_centre_of_mass,
            atlas_map=to_atlas(own, load_atlas(config.atlas)) if config.disclose_atlas_map else None,
            disclose_gram=config.disclose_gram,
            charge=budget.charge,
            noise=config.budget.noise,
            measure=build_measure(config.loss),
        )
        channel = session.channels["party_1"]
        self.report.shared = party.serve(channel, protocol.fixed_side(channel, session.dealer(), device), protocol)
