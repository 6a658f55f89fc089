"""One role's session, whatever its task: its clock, what its peer is told where it cannot go on, and its report.

What a role does in its session is a `Role`, one file each in `parties.tasks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ..errors import BudgetExceeded, PpirError
from ..interruption import Interrupted, no_more_interrupts
from ..wire.channel import Channel
from .accounting import Stopwatch
from .reports import PartyReport

__all__ = ["Role", "Session", "run_session"]


@dataclass(frozen=True)
class Session:
    """What a role has once its links are there.

    Attributes:
        channels: by peer.
    """

    channels: Mapping[str, Channel]

    def dealer(self) -> Channel | None:
        """The channel to the dealer, where the protocol has one."""
        return self.channels.get("dealer")

    def bytes_sent(self) -> int:
        """By this role, up to now."""
        return sum(channel.bytes_sent for channel in self.channels.values())


class Role(ABC):
    """What one role does in a session of one task.

    Args:
        config: its part of the run's configuration, JSON.

    Attributes:
        name: "party_1", "party_2" or "dealer".
        told: the peer that is told why this role stops; empty where nobody is.
        patience_s: seconds of silence after which a peer counts as lost; None: as the transport's settings say.
        threads: of this process's computations; None: as many as torch takes.
        report: filled during the session.
    """

    name: ClassVar[str]
    told: ClassVar[str] = ""
    patience_s: ClassVar[float | None] = None
    threads: int | None = None

    def __init__(self, config: str) -> None:  # noqa: ARG002
        self.report = PartyReport(self.name)

    @abstractmethod
    def work(self, session: Session) -> None:
        """The whole session.

        Raises:
            PpirError: this role cannot go on.
        """

    def reason(self, error: PpirError | Interrupted) -> str:
        """The line that the peer is told: that the run is over, not what this role's files look like."""
        if isinstance(error, Interrupted):
            return f"{self.name} was interrupted"
        return f"{self.name} cannot go on ({type(error).__name__}); see its own report"

    @abstractmethod
    def keep(self, folder: Path) -> None:
        """Write this role's results, and what its report says of them: when its session was counted."""


def run_session(role: Role, channels: Mapping[str, Channel], folder: Path) -> PartyReport:
    """Run one role to its end, whatever this is; its channels are closed then.

    Args:
        role: what to do.
        channels: to its peers, by name.
        folder: for its results.

    Returns:
        Its report. Where it could not go on, or was interrupted, `error` says why and the peer was told that it
        stopped.
    """
    if role.threads is not None:
        torch.set_num_threads(role.threads)
    watch = Stopwatch()
    try:
        role.work(Session(channels))
    except PpirError as error:
        _say_why(role, channels, error)
        role.report.error, role.report.cap_reached = str(error), isinstance(error, BudgetExceeded)
    except KeyboardInterrupt as error:
        no_more_interrupts()
        stop = Interrupted.of(error)
        _say_why(role, channels, stop)
        role.report.error = f"{role.name}: {stop}"
    no_more_interrupts()  # what there is is written whole
    role.report.account = watch.account(channels.values())
    role.keep(folder)
    for channel in channels.values():
        channel.close()
    return role.report


def _say_why(role: Role, channels: Mapping[str, Channel], error: PpirError | Interrupted) -> None:
    if role.told:
        channels[role.told].abort(role.reason(error))
    role.report.complete, role.report.exit_code = False, error.exit_code
