"""What a party measured about itself: time, bytes given to its Links, peak memory. Nothing is estimated."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..wire.channel import Channel

__all__ = ["Account", "Stopwatch", "peak_memory_mb", "write_json"]


@dataclass
class Account:
    """One party's own figures.

    Attributes:
        seconds: the party worked (wall time less the time it waited for others).
        waiting_seconds: it waited for messages.
        bytes_sent: all bytes on the wire from this party, headers, keys and set-up included.
        set_up_bytes: the part that is sent once a session or level.
        peak_memory_mb: of the whole process.
        messages: bytes sent by message kind.
    """

    seconds: float
    waiting_seconds: float
    bytes_sent: int
    bytes_received: int
    set_up_bytes: int
    peak_memory_mb: float
    messages: dict[str, int] = field(default_factory=dict)


@dataclass
class Stopwatch:
    """Starts with the party's session."""

    started: float = field(default_factory=time.perf_counter)

    def account(self, channels: Iterable[Channel]) -> Account:
        """The figures up to now over this party's channels."""
        ends = list(channels)
        waited = sum(end.waited for end in ends)
        messages: dict[str, int] = {}
        for end in ends:
            for kind, count in end.sent.items():
                messages[kind.name] = messages.get(kind.name, 0) + count
        return Account(
            seconds=time.perf_counter() - self.started - waited,
            waiting_seconds=waited,
            bytes_sent=sum(end.bytes_sent for end in ends),
            bytes_received=sum(sum(end.received.values()) for end in ends),
            set_up_bytes=sum(end.set_up_bytes_sent for end in ends),
            peak_memory_mb=peak_memory_mb(),
            messages=messages,
        )


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, MB (VmHWM: unlike ru_maxrss it does not inherit the parent's)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def write_json(path: Path, values: dict[str, object]) -> None:
    """Write whole or not at all, as strict JSON: dataclasses and paths become plain values, what is not finite null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    plain = json.loads(json.dumps(values, default=_plain), parse_constant=_none)
    partial.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def _none(_word: str) -> None:
    """In the place of NaN and infinities, which readers of other languages refuse."""


def _plain(value: object) -> object:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)  # type: ignore[call-overload]
