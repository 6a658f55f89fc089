"""The parties of a run as processes of this machine: started, watched, and their reports read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config.base import KindSettings
from ..config.images import FixedPartyConfig, MovingPartyConfig
from ..config.points import FixedPointsConfig, MovingPointsConfig
from ..config.transports import TransportConfig
from ..errors import PeerLost, PpirError
from ..interruption import LAST_WORDS_S, Interrupted, no_more_interrupts, pending_interrupts
from ..parties.given import Given
from ..parties.reports import PartyReport
from ..protocols import load_protocol
from ..transport import LinkEnd, load_transport
from ..transport.wiring import Wiring, wire

__all__ = ["Party", "lost", "refuse_own_fault", "run_parties", "start_parties", "start_process", "stop", "wired"]

GRACE_S = 10.0
PartyConfig = MovingPartyConfig | MovingPointsConfig | FixedPartyConfig | FixedPointsConfig | KindSettings
"""One role's part of a run; the dealer has the backend's settings only."""


class Party:
    """A started party process; its report is a JSON file that it writes when it ends, well or not.

    Args:
        role: "party_1", "party_2" or "dealer".
        given: its part of the run.
        ends: peer -> this role's end of the link; this program's copies are closed, when the process has its own.
        session: 16 bytes, the same for all roles.
        report: JSON file that the process writes.
    """

    def __init__(self, role: str, given: Given, ends: Mapping[str, LinkEnd], session: bytes, report: Path) -> None:
        self.role, self._report = role, report
        report.unlink(missing_ok=True)
        descriptors = {peer: [stream.fileno() for stream in end.inherited] for peer, end in ends.items()}
        arguments = [role, "--links", json.dumps(descriptors), "--session", session.hex(), "--report", str(report)]
        inherited = [number for numbers in descriptors.values() for number in numbers]
        self.process = start_process(arguments, given.to_text(), inherited)
        for end in ends.values():
            end.close()

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        """True when it ended with an error."""
        return self.process.poll() not in (None, 0)

    def ask_to_end(self) -> None:
        """Have the process end by itself: what it has is kept, its peer told."""
        if self.running:
            self.process.terminate()

    def kill(self) -> None:
        """End the process if it still runs."""
        if self.running:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def wait(self, timeout: float | None = None) -> PartyReport:
        """Its report, when it has ended; a killed process has none of its own, so one is made from its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        self.kill()
        if self._report.exists():
            return PartyReport.read(self._report)
        line = f"{self.role} ended without a report (exit code {self.process.returncode})"
        return PartyReport(self.role, line, exit_code=3, complete=False)


def start_process(arguments: list[str], given: str, descriptors: list[int]) -> subprocess.Popen[str]:
    """Start `parties.process`. It ends when this program does, however that ends: its standard input closes then.

    It is in a session of its own, so that Ctrl-C and the end of a terminal reach this program alone, which ends the
    parties one after the other (`run_parties`).

    Args:
        arguments: of its command line.
        given: what it reads from its standard input.
        descriptors: that it inherits.
    """
    # Waiting threads sleep: two parties share the machine, and spinning slows both several times.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with pending_interrupts():
        process = subprocess.Popen(
            [sys.executable, "-m", "ppir_torch.parties.process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
            env=environment,
            text=True,
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit code says so
        process.stdin.write(f"{given}\n")
        process.stdin.flush()
    return process


def start_parties(
    task: str, configs: Mapping[str, PartyConfig], transport: TransportConfig, wiring: Wiring, folder: Path
) -> list[Party]:
    """Start the roles that have a configuration, in the order of the wiring.

    Every process gets its own configuration and the keys of its own links on its standard input, its ends of the links,
    and nothing of the others.

    Args:
        task: "images" or "points".
        configs: by role.
        transport: settings by which the wiring was made.
        wiring: of the run.
        folder: for the reports.
    """
    parties: list[Party] = []
    settings = json.loads(transport.model_dump_json())
    try:
        for role, ends in wiring.ends.items():
            if role in configs:
                links = {peer: end.description for peer, end in ends.items()}
                given = Given(task, json.loads(configs[role].model_dump_json()), settings, links, wiring.keys[role])
                parties.append(Party(role, given, ends, wiring.session, folder / f"{role}.json"))
    except BaseException:
        stop(parties)
        wiring.close()
        raise
    return parties


def run_parties(
    task: str, moving: MovingPartyConfig | MovingPointsConfig, fixed: FixedPartyConfig | FixedPointsConfig, folder: Path
) -> dict[str, PartyReport]:
    """Run one private registration, of images or points, as separate processes; returns each party's report by role.

    When one of them fails, the others have ten seconds to end by themselves. When this program is interrupted, party_1
    has a minute to write down the best transform so far, the others end after it.

    Args:
        task: "images" or "points".
        moving: party_1's part of the run.
        fixed: party_2's part of the run.
        folder: for the results and reports.

    Raises:
        Interrupted: with the reports as its `result`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wiring = wired(moving.backend.kind, moving.transport)
    configs: dict[str, PartyConfig] = {"party_1": moving, "party_2": fixed, "dealer": moving.backend}
    parties = start_parties(task, configs, moving.transport, wiring, folder)
    try:
        while parties[0].running and not any(party.failed for party in parties):
            time.sleep(0.05)
        return {party.role: party.wait(GRACE_S) for party in parties}
    except KeyboardInterrupt as error:
        interrupted = Interrupted.of(error)
        interrupted.result = _last_reports(parties)
        raise interrupted from None
    finally:
        stop(parties)


def _last_reports(parties: Sequence[Party]) -> dict[str, PartyReport]:
    """The reports of parties that are asked to end: first party_1, which has something to keep."""
    no_more_interrupts(but=signal.SIGINT)
    reports = {}
    for party in parties:
        party.ask_to_end()
        reports[party.role] = party.wait(LAST_WORDS_S if party is parties[0] else GRACE_S)
        for other in parties:
            other.ask_to_end()
    return reports


def wired(backend: str, transport: TransportConfig) -> Wiring:
    """The links of a run of this protocol, over this transport."""
    return wire(load_transport(transport.model_dump()), load_protocol(backend).dealer is not None)


def refuse_own_fault(reports: Mapping[str, PartyReport]) -> None:
    """Refuse a run in which a party could not use what it was given.

    Raises:
        PpirError: its own line.
    """
    own_fault = next((report.error for report in reports.values() if report.exit_code == 2), None)
    if own_fault is not None:
        raise PpirError(own_fault)


def lost(reports: Mapping[str, PartyReport]) -> PeerLost:
    """Why there is no result."""
    lines = dict.fromkeys(report.error for report in reports.values() if report.exit_code != 0)
    return PeerLost("; ".join(lines) or "party_1 ended without a result")


def stop(parties: Sequence[Party]) -> None:
    """End the processes that still run."""
    for party in parties:
        party.kill()
