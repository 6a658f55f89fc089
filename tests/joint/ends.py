"""Both ends of a protocol in one process: party_1 in the test's thread, party_2 and the dealer in their own threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from ppir_torch.arithmetic.csprng import KeyStream
from ppir_torch.errors import PeerLost
from ppir_torch.joint.bounds import all_pairs
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.in_use import KeptOperands
from ppir_torch.joint.interface import (
    FixedOperand,
    FixedSide,
    MovingMappedOperand,
    MovingOperand,
    MovingSide,
    Release,
    release_all,
)
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.parties.moving import PrivateFixed
from ppir_torch.protocols import load_protocol
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, link_pair
from ppir_torch.wire.messages import OperandInUse

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


def keys_of_streams(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """The key of every stream that is made from now on, by its identity: equal keys are of one secret."""
    keys: dict[int, bytes] = {}
    make = KeyStream.__init__

    def remember(stream: KeyStream, key: bytes) -> None:
        make(stream, key)
        keys[id(stream)] = key

    monkeypatch.setattr(KeyStream, "__init__", remember)
    return keys


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


Prepared = tuple[OperandHeader, Tensor] | tuple[OperandHeader, Tensor, PublicMap]
"""What party_2 opens when party_1 asks for the next operand: header, integers, and perhaps a map for its products."""


def opened_by(fixed: FixedSide, operand: Prepared) -> FixedOperand:
    """party_2's operand, with or without a map."""
    if len(operand) == 2:
        return fixed.open(*operand)
    return fixed.open_mapped(*operand)


def answer_all(link: Link, fixed: FixedSide, operands: Sequence[Prepared], release: Release = release_all) -> None:
    """party_2's loop: LEVEL asks for the next operand; when it fails, party_1 hears that it is gone."""
    left, kept = iter(operands), KeptOperands[FixedOperand]()
    try:
        while (request := link.receive()).kind is not MessageKind.FINISH:
            if request.kind is MessageKind.LEVEL:
                operand = opened_by(fixed, next(left))
                kept.add(operand.header.number, operand)
            elif request.kind is MessageKind.OPERAND_IN_USE:
                kept.use(OperandInUse.decode(request.payload).number)
            else:
                kept.in_use.answer(request, release)
    except BaseException:
        link.close()
        raise


@dataclass
class Session:
    """party_1's end of a running session.

    Attributes:
        operands: those opened so far, of headers without a map.
        mapped: those opened so far, of headers with one.
    """

    moving: MovingSide
    trio: Trio
    prepared: Sequence[Prepared]
    operands: list[MovingOperand] = field(default_factory=list)
    mapped: list[MovingMappedOperand] = field(default_factory=list)

    @property
    def headers(self) -> list[OperandHeader]:
        return [operand[0] for operand in self.prepared]

    @property
    def operand(self) -> MovingOperand:
        """The one opened last, of those without a map."""
        return self.operands[-1]

    @property
    def mapped_operand(self) -> MovingMappedOperand:
        """The one opened last, of those with a map."""
        return self.mapped[-1]

    @property
    def sent(self) -> tuple[int, int]:
        """Bytes that party_1 has sent to party_2 and to the dealer."""
        return self.trio.one_two.bytes_sent, self.trio.one_dealer.bytes_sent

    def next_operand(self) -> OperandHeader:
        """Have party_2 open the next one."""
        header, _, *maps = self.prepared[len(self.operands) + len(self.mapped)]
        self.trio.one_two.send(MessageKind.LEVEL)
        if maps:
            self.mapped.append(self.moving.open_mapped(header, *maps))
        else:
            self.operands.append(self.moving.open(header))
        return header


@contextmanager
def serving(
    protocol: str,
    *operands: Prepared,
    device: str = "cpu",
    release: Release = release_all,
    dealer: Callable[[Link, Link], None] | None = None,
) -> Iterator[Session]:
    """A session of `protocol` with these operands, none of which is open yet. No party ends with an error.

    `dealer` stands in for the protocol's own.
    """
    trio, found = Trio(), load_protocol(protocol)
    if (serve := dealer or found.dealer) is not None:
        trio.start(serve, trio.dealer_one, trio.dealer_two)
    fixed = found.fixed_side(trio.two_one, trio.two_dealer, device)
    trio.start(answer_all, trio.two_one, fixed, operands, release)
    yield Session(found.moving_side(trio.one_two, trio.one_dealer, device), trio, operands)
    trio.stop()
    assert trio.errors == []


@contextmanager
def session(
    protocol: str, *operands: Tensor, rows: int = 8, device: str = "cpu", release: Release = release_all
) -> Iterator[Session]:
    """A session of `protocol`; the first operand is there. No party ends with an error."""
    prepared = [(header_of(values, rows, number), values) for number, values in enumerate(operands)]
    with serving(protocol, *prepared, device=device, release=release) as running:
        running.next_operand()
        yield running


@contextmanager
def private_fixed(
    protocol: str, party: FixedParty, device: str = "cpu", with_ledger: bool = True
) -> Iterator[PrivateFixed]:
    """party_1's handle on the image of a party_2 that serves it in a thread; raises the error that this ended with."""
    trio, found = Trio(), load_protocol(protocol)
    if found.dealer is not None:
        trio.start(found.dealer, trio.dealer_one, trio.dealer_two)
    fixed = found.fixed_side(trio.two_one, trio.two_dealer, device)

    def serve() -> None:
        try:
            party.serve(trio.two_one, fixed, found)
        except BaseException:
            trio.two_one.abort("party_2 cannot go on")
            raise

    trio.start(serve)
    source = PrivateFixed(trio.one_two, found.moving_side(trio.one_two, trio.one_dealer, device), protocol, with_ledger)
    yield source
    with contextlib.suppress(PeerLost):
        source.finish()
    trio.stop()
    for error in trio.errors:
        raise error
