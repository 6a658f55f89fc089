"""The backends: settings and entries of the private protocols, and of what is not one (`clear`, `auto`).

Their code is in `ppir_torch.protocols`.

>>> PROTOCOLS["bfv"].dealer, PROTOCOLS["beaver"].device
(False, True)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from .base import Device, KindSettings
from .costs import Cost, Product, encrypted, one_sided, shared
from .registry import Entry, OneOf, Registry

__all__ = [
    "AUTO",
    "CLEAR",
    "PROTOCOLS",
    "AutoConfig",
    "Backend",
    "BeaverConfig",
    "BfvConfig",
    "CkksConfig",
    "CkksV1Config",
    "ClearConfig",
    "PointsBackend",
    "PrivateBackend",
    "PrivatePointsBackend",
    "ProtocolEntry",
    "SpdzConfig",
    "backends",
    "suggested",
]

_INSECURE = (
    "true is needed: ckks-v1 is the published protocol, a baseline for benchmarks; attacks read both images from it"
)


@dataclass(frozen=True)
class ProtocolEntry(Entry):
    """A private protocol; `home` is its `ppir_torch.joint.interface.Protocol`.

    Attributes:
        party_1_learns: of party_2's data, one line.
        party_2_learns: of party_1's data, one line.
        dealer: a third process makes its randomness.
        deformable: it opens the sums of a public map, so it goes with control lattices.
        points: its products are exact enough for point sets.
        losses: names of those that it goes with; None: all.
        losses_because: why not with the others.
        insecure: it protects neither image; a baseline.
        cost: of its products, for `backend: auto`; None: never chosen there.
    """

    party_1_learns: str
    party_2_learns: str
    dealer: bool = False
    deformable: bool = False
    points: bool = False
    losses: tuple[str, ...] | None = None
    losses_because: str = ""
    insecure: bool = False
    cost: Callable[[Product], Cost] | None = None

    @property
    def device(self) -> bool:
        """Its settings name a device."""
        return "device" in self.settings.model_fields

    def goes_with(self, loss: str) -> bool:
        """Whether it carries the products of the loss of this name."""
        return self.losses is None or loss in self.losses


class ClearConfig(KindSettings):
    """Both images in one process."""

    kind: Literal["clear"] = "clear"
    device: Device = "auto"


class AutoConfig(KindSettings):
    """Let the sizes of the images and the network choose the protocol; the run says which, and why.

    `bandwidth_mbit` is of the network between the sites; `dealer`: there is a third party that neither works with.
    """

    kind: Literal["auto"] = "auto"
    bandwidth_mbit: float = Field(default=1000, gt=0, le=1e6)
    dealer: bool = True
    device: Device = "auto"


class SpdzConfig(KindSettings):
    """Additive shares and Beaver triples (CrypTen)."""

    kind: Literal["spdz"] = "spdz"
    device: Device = "auto"
    provider: Literal["trusted_third_party"] = "trusted_third_party"

    @field_validator("provider", mode="before")
    @classmethod
    def _refuse_first_party(cls, value: object) -> object:
        if isinstance(value, str) and value.lower() in ("trusted_first_party", "tfp"):
            raise ValueError("refused: rank 0 would make the triples and read the other image; use trusted_third_party")
        return value


class BeaverConfig(KindSettings):
    """One-sided products of integer words."""

    kind: Literal["beaver"] = "beaver"
    device: Device = "auto"


class BfvConfig(KindSettings):
    """Homomorphic encryption of integers."""

    kind: Literal["bfv"] = "bfv"


class CkksConfig(KindSettings):
    """Homomorphic encryption of reals, rounded to exact integers."""

    kind: Literal["ckks"] = "ckks"


class CkksV1Config(KindSettings):
    """The published CKKS product, a baseline for benchmarks; it protects neither image."""

    kind: Literal["ckks-v1"] = "ckks-v1"
    allow_insecure: bool = Field(default=False, validate_default=True)

    @field_validator("allow_insecure")
    @classmethod
    def _refuse_by_default(cls, value: bool) -> bool:
        if not value:
            raise ValueError(_INSECURE)
        return value


CLEAR = Entry(ClearConfig, "both images in one process; the reference", "ppir_torch:ClearFixed")
AUTO = Entry(
    AutoConfig,
    "the cheapest secure one for these images and this network; says which, and why",
    "ppir_torch.protocols.chooser:choose",
)
_OPENED = "the opened products of each iteration; per level the mean, scale and energy of J"
_DEALER_TOO = "sizes and timing only; the dealer the same"
_TIMING = "sizes and timing only (timing: about how many blocks of X are all zero)"
PROTOCOLS = Registry(
    "backend",
    "ppir_torch.protocols",
    ProtocolEntry,
    KindSettings,
    ProtocolEntry(
        SpdzConfig,
        "additive shares and Beaver triples (CrypTen); needs a dealer process",
        "ppir_torch.protocols.spdz:PROTOCOL",
        party_1_learns=_OPENED,
        party_2_learns=_DEALER_TOO,
        dealer=True,
        deformable=True,
        points=True,
        cost=shared,
    ),
    ProtocolEntry(
        BeaverConfig,
        "one-sided product on integer words; needs a dealer process; the fastest",
        "ppir_torch.protocols.beaver:PROTOCOL",
        party_1_learns=_OPENED,
        party_2_learns=_DEALER_TOO,
        dealer=True,
        deformable=True,
        points=True,
        cost=one_sided,
    ),
    ProtocolEntry(
        BfvConfig,
        "homomorphic encryption (TenSEAL BFV); exact, no dealer",
        "ppir_torch.protocols.lattice.bfv:PROTOCOL",
        party_1_learns=_OPENED,
        party_2_learns=_TIMING,
        deformable=True,
        points=True,
        cost=encrypted,
    ),
    ProtocolEntry(
        CkksConfig,
        "homomorphic encryption (TenSEAL CKKS), rounded to exact integers; no dealer",
        "ppir_torch.protocols.lattice.ckks:PROTOCOL",
        party_1_learns=_OPENED,
        party_2_learns=_TIMING,
        deformable=True,
        points=True,
    ),
    ProtocolEntry(
        CkksV1Config,
        "the published CKKS product, INSECURE: a baseline, only with backend.allow_insecure=true",
        "ppir_torch.protocols.ckks_v1:PROTOCOL",
        party_1_learns="INSECURE baseline: CKKS decryptions with their noise, which say something of party_2's key (Li "
        "and Micciancio 2021), besides the products of each iteration; per level the mean, scale and energy of J",
        party_2_learns="INSECURE baseline: the products of each iteration, the scale of each row, and many linear "
        "functions of X itself: the reply is neither masked nor flooded",
        losses=("ssd",),
        losses_because="the published protocol",
        insecure=True,
    ),
    reserved=(CLEAR.name, AUTO.name),
)


def backends() -> list[Entry]:
    """Everything that a run's `backend` may be."""
    return [CLEAR, AUTO, *PROTOCOLS]


def suggested(where: Callable[[ProtocolEntry], bool]) -> list[str]:
    """`clear`, then the names of the protocols that will do, those with a dealer first: they are faster."""
    chosen = sorted((not entry.dealer, entry.name) for entry in PROTOCOLS if where(entry))
    return [CLEAR.name, *(name for _, name in chosen)]


def _for_points(entry: ProtocolEntry) -> bool:
    return entry.points


Backend = Annotated[KindSettings, OneOf(PROTOCOLS, also=(CLEAR, AUTO))]
PrivateBackend = Annotated[KindSettings, OneOf(PROTOCOLS)]
PointsBackend = Annotated[KindSettings, OneOf(PROTOCOLS, also=(CLEAR,), where=_for_points)]
PrivatePointsBackend = Annotated[KindSettings, OneOf(PROTOCOLS, where=_for_points)]
