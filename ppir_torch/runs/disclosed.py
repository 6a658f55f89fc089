"""What each party learns of the other's data in a run: known from its configuration, before any party is started.

The lines come from the entries of what is chosen (config/): nothing can be chosen of which there is nothing to say.

>>> from ppir_torch.config.images import load_config
>>> config = load_config({"data": {"moving": "a.nii.gz", "fixed": "b.nii.gz"}, "backend": {"kind": "bfv"}})
>>> disclosed_of_images(config)["party_1"][0]
'the geometry of the fixed image'
"""

from __future__ import annotations

from ..config.images import RunConfig
from ..config.losses import LOSSES
from ..config.optimizers import OPTIMIZERS
from ..config.points import PointsConfig
from ..config.protocols import PROTOCOLS
from ..config.samplers import SAMPLERS

__all__ = ["disclosed_of_images", "disclosed_of_points"]

Disclosed = dict[str, list[str]]
"""party_1, party_2 -> what it learns, one line each."""


def disclosed_of_images(config: RunConfig) -> Disclosed:
    """Of a run of two images; nothing else crosses the links."""
    if not config.private:
        return {"party_1": ["everything: a clear run holds both images"], "party_2": ["everything"]}
    protocol, loss = PROTOCOLS[config.backend.kind], LOSSES[config.loss.kind]
    optimizer, sampler = OPTIMIZERS[config.optimizer.kind], SAMPLERS[config.sampler.kind].discloses(config.sampler)
    party_1 = ["the geometry of the fixed image", protocol.party_1_learns, *loss.discloses]
    party_1.append("where the images overlap in part: J's sum and its square's by party_1's weights, once a round")
    party_2 = ["the number of levels and iterations", protocol.party_2_learns]
    party_2.append(
        "whether every fixed point maps into the moving image (else there are rounds, and a column of squares)"
    )
    if config.data.fixed_mask is not None:
        party_1.append("the shape of the fixed image's mask")
    if config.data.disclose_centre_of_mass:
        party_1.append("the fixed image's centre of mass")
    if config.start.kind == "atlas":
        party_1.append("the affine map from the atlas to the fixed image: its size, shears and pose")
    if config.share_transform:
        party_2.append("the final transform")
    party_1 += optimizer.discloses
    party_1.append(f"from sampler {config.sampler.kind}: {sampler.party_1}")
    party_2.append(f"from sampler {config.sampler.kind}: {sampler.party_2}")
    return {"party_1": party_1, "party_2": party_2}


def disclosed_of_points(config: PointsConfig) -> Disclosed:
    """Of a run of two point sets; nothing else crosses the links."""
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
