"""Both ends of a protocol in one process: party_1 in the test's thread, party_2 and the dealer in their own threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppir_torch.errors import PeerLost
from ppir_torch.joint.interface import FixedSide, MovingSide, OperandHeader, Release, all_pairs, release_all
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.parties.moving import PrivateFixed
from ppir_torch.protocols import load_protocol
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, link_pair

OVERHEAD = 44 + 16  # bytes of every message beside its payload: header and tag


def header_of(values: Tensor, rows: int = 8, number: int = 0) -> OperandHeader:
    """What party_2 says of integers (columns, points), or (points,) of one column."""
    table = values.reshape(-1, values.shape[-1]).tolist()
    largest = max(abs(v) for column in table for v in column)
    energy = max(sum(v * v for v in column) for column in table)
    further = (1.0,) * (len(table) - 1)
    return OperandHeader(number, values.shape[-1], rows, 1.0, 0.0, largest, energy, len(table), further)


def python_products(rows: Tensor, values: Tensor, pairs: Sequence[tuple[int, int]] | None = None) -> list[int]:
    """The oracle: Python's integers, which have no width. Without pairs every row with every column."""
    left, right = rows.tolist(), values.reshape(-1, values.shape[-1]).tolist()
    pairs = all_pairs(len(left), len(right)) if pairs is None else pairs
    return [sum(x * y for x, y in zip(left[row], right[column], strict=True)) for row, column in pairs]


class Trio:
    """The links of party_1, party_2 and a dealer, as seen by each end, and threads for those who are not the test."""

    def __init__(self) -> None:
        self.one_two, self.two_one = link_pair("party_1", "party_2", timeout=120)
        self.one_dealer, self.dealer_one = link_pair("party_1", "dealer", timeout=120)
        self.two_dealer, self.dealer_two = link_pair("party_2", "dealer", timeout=120)
        self.links = [v for v in vars(self).values() if isinstance(v, Link)]
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def start(self, work: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            try:
                work(*args)
            except BaseException as error:
                self.errors.append(error)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def stop(self) -> None:
        for link in (self.one_two, self.one_dealer):
            with contextlib.suppress(PeerLost):
                link.send(MessageKind.FINISH)
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def answer_all(
    link: Link, fixed: FixedSide, operands: Sequence[tuple[OperandHeader, Tensor]], release: Release = release_all
) -> None:
    """party_2's loop: LEVEL asks for the next operand; when it fails, party_1 hears that it is gone."""
    left = iter(operands)
    try:
        while (request := link.receive()).kind is not MessageKind.FINISH:
            if request.kind is MessageKind.LEVEL:
                fixed.send_operand(*next(left))
            else:
                fixed.answer(request, release)
    except BaseException:
        link.close()
        raise


@dataclass
class Session:
    """party_1's end of a running session."""

    moving: MovingSide
    trio: Trio
    headers: list[OperandHeader]
    operand: int = -1

    def next_operand(self) -> OperandHeader:
        self.operand += 1
        self.trio.one_two.send(MessageKind.LEVEL)
        self.moving.accept_operand(self.headers[self.operand])
        return self.headers[self.operand]


@contextmanager
def session(
    protocol: str, *operands: Tensor, rows: int = 8, device: str = "cpu", release: Release = release_all
) -> Iterator[Session]:
    """A session of `protocol`; the first operand is there. No party ends with an error."""
    trio, entry = Trio(), load_protocol(protocol)
    headers = [header_of(values, rows, i) for i, values in enumerate(operands)]
    if entry.dealer is not None:
        trio.start(entry.dealer, trio.dealer_one, trio.dealer_two)
    fixed = entry.fixed_side(trio.two_one, trio.two_dealer, device)
    trio.start(answer_all, trio.two_one, fixed, list(zip(headers, operands, strict=True)), release)
    running = Session(entry.moving_side(trio.one_two, trio.one_dealer, device), trio, headers)
    running.next_operand()
    yield running
    trio.stop()
    assert trio.errors == []


@contextmanager
def private_fixed(protocol: str, party: FixedParty) -> Iterator[PrivateFixed]:
    """party_1's handle on the image of a party_2 that serves it in a thread; raises the error that this ended with."""
    trio, entry = Trio(), load_protocol(protocol)
    if entry.dealer is not None:
        trio.start(entry.dealer, trio.dealer_one, trio.dealer_two)
    fixed = entry.fixed_side(trio.two_one, trio.two_dealer, "cpu")

    def serve() -> None:
        try:
            party.serve(trio.two_one, fixed, protocol)
        except BaseException:
            trio.two_one.abort("party_2 cannot go on")
            raise

    trio.start(serve)
    source = PrivateFixed(trio.one_two, entry.moving_side(trio.one_two, trio.one_dealer, "cpu"), protocol)
    yield source
    with contextlib.suppress(PeerLost):
        source.finish()
    trio.stop()
    for error in trio.errors:
        raise error
