"""Be party_1 of a private run from Python: hold a handle on an image that stays with party_2's process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.images import FixedPartyConfig, RunConfig, fixed_party, load_config
from ..config.losses import LOSSES
from ..config.protocols import PROTOCOLS
from ..errors import ConfigError, LinkError, PeerLost
from ..joint.interface import compute_device
from ..parties.moving import PrivateFixed
from ..protocols import load_protocol
from ..transport import load_transport
from ..transport.wiring import open_links
from ..wire.messages import Finish
from . import processes
from .shorthands import merged, named, path_text, values_of

__all__ = ["open_private"]


@contextmanager
def open_private(
    fixed: str | Path | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    timeout_s: float | None = None,
    releases: str | Path | None = None,
    max_values: int | None = None,
    loss: str | Mapping[str, Any] | None = None,
    *,
    config: RunConfig | Mapping[str, Any] | None = None,
) -> Iterator[PrivateFixed]:
    """Be party_1: start party_2 (and a dealer, where needed) on `fixed`, and hold a handle on the image it keeps.

    What is left at None is as `config` says, or else as named below.

    Args:
        fixed: file of the fixed image; only party_2's process opens it.
        backend: a private protocol: "bfv" (without a `config`, the default), "ckks", "beaver" or "spdz".
        device: of the products of spdz and beaver, "cpu" (without a `config`, the default) or "cuda".
        threads: of party_2 (2).
        timeout_s: silence after which a party counts as lost (600).
        releases: party_2's SQLite file of released values; by default the site's own.
        max_values: its cap, over all runs; by default 5 % of the fixed image's foreground voxels.
        loss: what party_2 makes operands of: "ssd" (the default), "ncc", "local_ncc", "mind", "cr", or a mapping
            with the kind and its settings. Operands are asked for with the same measure:
            `source.operand(OperandRequest(level, measure=Mind()))`.
        config: a configuration of a whole run; what it says of the moving image is not used.

    Raises:
        ConfigError: unknown backend. PeerLost: party_2 could not start (its own line says why).
    """
    base = values_of(config)
    if config is None:
        backend, device = backend or "bfv", device or "cpu"
    chosen = named(backend, base.get("backend"), PROTOCOLS, {"device": device})
    if chosen is None:
        raise ConfigError(f"backend.kind: missing, one of {', '.join(PROTOCOLS.names())} is needed")
    load_protocol(str(chosen.get("kind")))
    given = {
        "data": {"moving": base.get("data", {}).get("moving", "-"), "fixed": path_text(fixed)},
        "backend": chosen,
        "budget": {"file": path_text(releases), "max_values": max_values},
        "threads": threads,
        "transport": merged(base.get("transport", {"kind": "local"}), {"timeout_s": timeout_s}),
        # As an `OperandRequest` has it; that of a whole run, where a configuration says it.
        "loss": named(loss, base.get("loss", {"kind": "ssd"}), LOSSES, {}),
    }
    party = fixed_party(load_config(merged(base, given)))
    with tempfile.TemporaryDirectory() as folder:
        yield from _opened(party, Path(folder))


def _opened(config: FixedPartyConfig, folder: Path) -> Iterator[PrivateFixed]:
    protocol, transport = load_protocol(config.backend.kind), load_transport(config.transport.model_dump())
    device = compute_device(getattr(config.backend, "device", "cpu"))
    wiring = processes.wired(config.backend.kind, config.transport)
    others: dict[str, processes.PartyConfig] = {"party_2": config, "dealer": config.backend}
    parties = processes.start_parties(RunConfig.task, others, config.transport, wiring, folder)
    ends, keys = wiring.ends["party_1"], wiring.keys["party_1"]
    try:
        links = open_links(transport, "party_1", ends, keys, wiring.session, transport.timeout_s)
    except LinkError:
        processes.stop(parties)
        raise
    link, dealer = links["party_2"], links.get("dealer")
    try:
        source = PrivateFixed(link, protocol.moving_side(link, dealer, device), protocol.name)
        yield source
        source.finish()
        if dealer is not None:
            Finish().send(dealer)
    except PeerLost as lost:
        reports = [party.wait(processes.GRACE_S) for party in parties]
        first = next((report.error for report in reports if report.exit_code == 2), str(lost))
        raise PeerLost(first) from None
    finally:
        for end in links.values():
            end.close()
        for party in parties:
            party.wait(processes.GRACE_S)
