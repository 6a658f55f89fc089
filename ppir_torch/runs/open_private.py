"""Start parties as processes of their own, connected by socket pairs; the local transport.

A network transport starts one party at each site and gives it the same Link over another stream; nothing else changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.images import FixedPartyConfig, MovingPartyConfig, fixed_party, load_config
from ..config.points import FixedPointsConfig, MovingPointsConfig
from ..errors import PeerLost
from ..parties.moving import PrivateFixed
from ..protocols import load_protocol
from ..wire.link import Link
from ..wire.messages import Finish

__all__ = ["Party", "link_keys", "open_private", "run_parties", "standard_input"]

GRACE_S = 10.0


class Party:
    """A started party process; its report is a JSON file that it writes when it ends, well or not.

    Args:
        role: "party_1", "party_2" or "dealer".
        config: the role's configuration as a JSON object.
        links: peer -> this role's end of the socket pair; closed here, when the process has it.
        session: 16 bytes, the same for all roles.
        keys: peer -> the 16 secret bytes of that link.
        report: JSON file that the process writes.
    """

    def __init__(
        self,
        role: str,
        config: str,
        links: dict[str, socket.socket],
        session: bytes,
        keys: dict[str, bytes],
        report: Path,
    ) -> None:
        self.role, self._report = role, report
        report.unlink(missing_ok=True)
        descriptors = {peer: stream.fileno() for peer, stream in links.items()}
        command = [sys.executable, "-m", "ppir_torch.parties.process", role]
        command += ["--links", json.dumps(descriptors), "--session", session.hex(), "--report", str(report)]
        # Waiting threads sleep: two parties share the machine, and spinning slows both several times.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=list(descriptors.values()),
            env=environment,
            text=True,
        )
        for stream in links.values():
            stream.close()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit code says so
            self.process.stdin.write(standard_input(config, keys))
            self.process.stdin.close()

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        """True when it ended with an error."""
        return self.process.poll() not in (None, 0)

    def kill(self) -> None:
        """End the process if it still runs."""
        if self.running:
            self.process.kill()
            self.process.wait()

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Its report, when it has ended; a killed process has none of its own, so one is made from its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        self.kill()
        code = self.process.returncode
        if self._report.exists():
            return dict(json.loads(self._report.read_text()))
        return {"role": self.role, "error": f"{self.role} ended without a report (exit code {code})", "exit_code": 3}


def standard_input(config: str, keys: dict[str, bytes]) -> str:
    """What a party's process reads on its standard input: its configuration, and the keys of its links."""
    return json.dumps({"config": json.loads(config), "keys": {peer: key.hex() for peer, key in keys.items()}})


def link_keys(links: dict[str, dict[str, socket.socket]]) -> dict[str, dict[str, bytes]]:
    """role -> peer -> the key of their link: random, the same at both ends, another one for each pair of roles."""
    made = {frozenset((role, peer)): secrets.token_bytes(16) for role, peers in links.items() for peer in peers}
    return {role: {peer: made[frozenset((role, peer))] for peer in peers} for role, peers in links.items()}


def run_parties(
    moving: MovingPartyConfig | MovingPointsConfig, fixed: FixedPartyConfig | FixedPointsConfig, output: Path
) -> dict[str, dict[str, Any]]:
    """Run one private registration, of images or points, as separate processes; returns each party's report by role.

    Every process gets its own configuration and the keys of its own links on its standard input, its ends of the links,
    and nothing of the others. When one of them fails, the others have ten seconds to end by themselves.
    """
    output.mkdir(parents=True, exist_ok=True)
    configs = {"party_1": moving.model_dump_json(), "party_2": fixed.model_dump_json()}
    session = secrets.token_bytes(16)
    links = _connect(fixed.backend.kind)
    keys = link_keys(links)
    parties = [
        Party(
            role,
            configs.get(role, fixed.backend.model_dump_json()),
            streams,
            session,
            keys[role],
            output / f"{role}.json",
        )
        for role, streams in links.items()
    ]
    try:
        while parties[0].running and not any(party.failed for party in parties):
            time.sleep(0.05)
        return {party.role: party.wait(GRACE_S) for party in parties}
    finally:
        for party in parties:
            party.kill()


@contextmanager
def open_private(
    fixed: str | Path,
    backend: str = "bfv",
    device: str = "cpu",
    threads: int = 2,
    timeout_s: float = 600.0,
    releases: str | Path | None = None,
    max_values: int | None = None,
    loss: str | Mapping[str, Any] = "ssd",
) -> Iterator[PrivateFixed]:
    """Be party_1: start party_2 (and a dealer, where needed) on `fixed`, and hold a handle on the image it keeps.

    Args:
        fixed: file of the fixed image; only party_2's process opens it.
        backend: a private protocol: "bfv", "ckks", "beaver" or "spdz".
        device: of the products of spdz and beaver, "cpu" or "cuda".
        threads: of party_2.
        timeout_s: silence after which a party counts as lost.
        releases: party_2's SQLite file of released values; None: the site's own.
        max_values: its cap, over all runs; None: 5 % of the fixed image's foreground voxels.
        loss: what party_2 makes operands of: "ssd", "ncc", "local_ncc", "mind", or a mapping with the kind and its
            settings. Operands are asked for with the same measure:
            `source.operand(OperandRequest(level, measure=Mind()))`.

    Raises:
        ConfigError: unknown backend. PeerLost: party_2 could not start (its own line says why).
    """
    entry = load_protocol(backend)
    settings = _fixed_only(fixed, backend, device, threads, timeout_s, releases, max_values)
    settings["loss"] = {"kind": loss} if isinstance(loss, str) else dict(loss)
    party_config = fixed_party(load_config(settings))
    session = secrets.token_bytes(16)
    links = _connect(backend)
    keys = link_keys(links)
    mine = links.pop("party_1")
    with tempfile.TemporaryDirectory() as folder:
        parties = [
            Party(
                role,
                (party_config if role == "party_2" else party_config.backend).model_dump_json(),
                streams,
                session,
                keys[role],
                Path(folder) / f"{role}.json",
            )
            for role, streams in links.items()
        ]
        ends = {
            peer: Link(stream, session, keys["party_1"][peer], "party_1", peer, timeout_s)
            for peer, stream in mine.items()
        }
        link, dealer = ends["party_2"], ends.get("dealer")
        try:
            source = PrivateFixed(link, entry.moving_side(link, dealer, device), backend)
            yield source
            source.finish()
            if dealer is not None:
                Finish().send(dealer)
        except PeerLost as lost:
            reports = [party.wait(GRACE_S) for party in parties]
            first = next((r["error"] for r in reports if r.get("exit_code") == 2), str(lost))
            raise PeerLost(first) from None
        finally:
            for end in ends.values():
                end.close()
            for party in parties:
                party.wait(GRACE_S)


def _connect(backend: str) -> dict[str, dict[str, socket.socket]]:
    """role -> peer -> this role's end of a socket pair."""
    one, two = socket.socketpair()
    links: dict[str, dict[str, socket.socket]] = {"party_1": {"party_2": one}, "party_2": {"party_1": two}}
    if load_protocol(backend).dealer is not None:
        links["dealer"] = {}
        for role in ("party_1", "party_2"):
            links[role]["dealer"], links["dealer"][role] = socket.socketpair()
    return links


def _fixed_only(
    fixed: str | Path,
    backend: str,
    device: str,
    threads: int,
    timeout_s: float,
    releases: str | Path | None,
    max_values: int | None,
) -> dict[str, Any]:
    with_device = {"device": device} if backend in ("spdz", "beaver") else {}
    return {
        "data": {"moving": "-", "fixed": str(fixed)},
        "backend": {"kind": backend} | with_device,
        "budget": {"file": None if releases is None else str(releases), "max_values": max_values},
        "threads": threads,
        "transport": {"kind": "local", "timeout_s": timeout_s},
    }
