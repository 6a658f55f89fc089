"""Tools of the party tests: quick starts, taps on the wires, image pairs on disk."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ppir_torch.config.images import RunConfig, load_config
from ppir_torch.images import save_image
from ppir_torch.parties.given import Given
from ppir_torch.runs import processes as launch
from ppir_torch.transforms import save_transform
from ppir_torch.transport import LinkEnd
from ppir_torch.transport.local import LocalTransport
from ppir_torch.wire.kinds import MessageKind

# As link.py documents it, written out again: magic, session, sequence, level, iteration, kind, payload length; then the
# tag; then the payload.
HEADER = struct.Struct("<4s16sQhiHQ")
TAG_SIZE = 16
MAGIC = b"PPI1"


# --- parties that start quickly -------------------------------------------------------------------------------------


class _Zygote:
    """Our end of the process in zygote.py."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # In a thread of its own: Ctrl-C comes to the main one, and an answer left unread would shift all that follow.
        self._thread = ThreadPoolExecutor(max_workers=1)
        command = [sys.executable, str(Path(__file__).with_name("zygote.py")), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()

    def ask(self, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> Any:
        return self._thread.submit(self._ask, json.dumps(request).encode(), descriptors).result()

    def _ask(self, request: bytes, descriptors: tuple[int, ...]) -> Any:
        socket.send_fds(self._control, [request], descriptors)
        return json.loads(self._control.recv(1 << 16))


_zygote = functools.cache(_Zygote)


class _Forked:
    """What `launch.Party` needs of a Popen, of a process that the zygote forked."""

    stdin = None  # it keeps both ends of its own

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _zygote().ask({"wait": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("party", timeout or 0.0)
            time.sleep(0.01)
        return code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def start_quickly(arguments: list[str], given: str, descriptors: list[int]) -> Any:
    """As `launch.start_process`, from the zygote."""
    return _Forked(_zygote().ask({"arguments": arguments, "stdin": given}, tuple(descriptors)))


class Started(list[launch.Party]):
    """The parties that were started, with the configuration that each was given."""

    def __init__(self) -> None:
        super().__init__()
        self.configs: dict[str, str] = {}

    def __getitem__(self, role: str) -> launch.Party:  # type: ignore[override]
        return next(party for party in reversed(self) if party.role == role)


@contextmanager
def started_parties(quick: bool = True) -> Iterator[Started]:
    """Record every party that is started inside; `quick` ones are forked from the zygote."""
    started = Started()

    class Recorded(launch.Party):
        def __init__(self, role: str, given: Given, *rest: Any) -> None:
            super().__init__(role, given, *rest)
            started.append(self)
            started.configs[role] = json.dumps(given.config)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "Party", Recorded)
            if quick:
                patch.setattr(launch, "start_process", start_quickly)
            # A slow machine may need long to end; whoever is still there then is killed, which tests see.
            patch.setattr(launch, "GRACE_S", 100.0)
            yield started
        assert [party.role for party in started if party.running] == []
    finally:
        for party in started:
            party.kill()


# --- taps on the wires ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tapped:
    """One message as it passed on a wire."""

    kind: int
    session: bytes
    sequence: int
    level: int
    iteration: int
    payload: bytes

    @property
    def size(self) -> int:
        return HEADER.size + len(self.payload) + TAG_SIZE


def parse(stream: bytes) -> list[Tapped]:
    """All messages of a stream; fails where a byte belongs to none."""
    messages, at = [], 0
    while at < len(stream):
        assert len(stream) - at >= HEADER.size + TAG_SIZE, f"{len(stream) - at} bytes left over"
        magic, session, sequence, level, iteration, kind, length = HEADER.unpack_from(stream, at)
        assert magic == MAGIC, f"no message at byte {at}"
        at += HEADER.size + TAG_SIZE
        assert len(stream) - at >= length, f"{kind}: {len(stream) - at} bytes of {length}"
        messages.append(Tapped(kind, session, sequence, level, iteration, stream[at : at + length]))
        at += length
    return messages


Watch = Callable[[str, str, MessageKind, int], None]


class Taps:
    """A relay on every wire: keeps each byte that passed, by (from, to).

    Args:
        watch: called before a message is passed on with (from, to, kind, how many of the kind, this one included).
    """

    def __init__(self, watch: Watch | None = None) -> None:
        self.streams: dict[tuple[str, str], bytes] = {}
        self.kinds: dict[
            tuple[str, str], set[MessageKind]
        ] = {}  # of what was begun: a stopped party's last may be cut short
        self._watch = watch
        self._threads: list[threading.Thread] = []

    def connect(self, one: str, two: str) -> tuple[LinkEnd, LinkEnd]:
        """As `LocalTransport.connect`, with a relay in the wire."""
        outer_one, inner_one = socket.socketpair()
        outer_two, inner_two = socket.socketpair()
        for source, target, way in ((inner_one, inner_two, (one, two)), (inner_two, inner_one, (two, one))):
            self._threads.append(threading.Thread(target=self._relay, args=(source, target, way), daemon=True))
            self._threads[-1].start()
        return LinkEnd(inherited=(outer_one,)), LinkEnd(inherited=(outer_two,))

    def join(self) -> None:
        """Wait until every wire is closed."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def messages(self, source: str, target: str) -> list[Tapped]:
        return parse(self.streams[source, target])

    def _relay(self, source: socket.socket, target: socket.socket, way: tuple[str, str]) -> None:
        passed, seen = bytearray(), Counter[MessageKind]()
        try:
            while data := _exactly(source, HEADER.size + TAG_SIZE):
                if len(data) == HEADER.size + TAG_SIZE:
                    *_, number, length = HEADER.unpack_from(data)
                    seen[MessageKind(number)] += 1
                    data += _exactly(source, length)
                    if self._watch is not None:
                        self._watch(*way, MessageKind(number), seen[MessageKind(number)])
                passed += data
                target.sendall(data)
        except OSError:
            pass  # an end was killed
        finally:
            self.streams[way], self.kinds[way] = bytes(passed), set(seen)
            for end in (target, source):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def _exactly(source: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the stream."""
    data = bytearray()
    while len(data) < size and (part := source.recv(min(1 << 20, size - len(data)))):
        data += part
    return bytes(data)


@contextmanager
def tapped_wires(watch: Watch | None = None) -> Iterator[Taps]:
    """Parties started inside are connected through taps."""
    taps = Taps(watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalTransport, "connect", lambda _self, one, two: taps.connect(one, two))
        yield taps
        taps.join()


# --- image pairs on disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """A pair at its two sites, and the truth at neither."""

    moving: Path
    fixed: Path
    truth: Path

    def configuration(self, backend: str, transform: str = "affine", **more: Any) -> RunConfig:
        """Two levels, one thread; `data` adds to the files, the rest replaces."""
        data = {"moving": str(self.moving), "fixed": str(self.fixed)} | more.pop("data", {})
        settings: dict[str, Any] = {"transform": {"kind": transform}, "threads": 1, "backend": {"kind": backend}}
        settings["loss"] = {"kind": "ssd"}
        settings["pyramid"] = {"levels": [{"shrink": 2}, {"shrink": 1}]}
        # 5 % of these small images is not enough for one run; tests of the cap set their own.
        settings["budget"] = {"max_values": 100_000}
        return load_config(settings | {"data": data} | more)


def write_pair(pair: Any, folder: Path) -> Files:
    """Write a pair of tests/conftest.py."""
    files = Files(folder / "site_1" / "moving.mha", folder / "site_2" / "fixed.mha", folder / "truth.tfm")
    save_image(pair.moving, files.moving)
    save_image(pair.fixed, files.fixed)
    save_transform(pair.truth, files.truth)
    return files
