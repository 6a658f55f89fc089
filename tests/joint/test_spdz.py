"""spdz: exact products through real CrypTen, refusals before sending, directions of the messages, lost parties."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ppir_torch.errors import ConfigError, LinkError, PeerLost, RangeError
from ppir_torch.joint import crypten_link, spdz
from ppir_torch.joint.protocol import OperandHeader
from ppir_torch.joint.spdz import SpdzFixedSide, SpdzMovingSide, serve_dealer
from ppir_torch.link import Kind, Link, link_pair, pack

crypten = crypten_link.crypten
EDGE = 1 << 62


def header_of(values: Tensor, rows: int, number: int = 0) -> OperandHeader:
    exact = [int(v) for v in values]
    return OperandHeader(number, len(exact), rows, 1.0, 0.0, max(map(abs, exact)), sum(v * v for v in exact))


def python_product(rows: Tensor, values: Tensor) -> list[int]:
    return [sum(x * y for x, y in zip(row, values.tolist(), strict=True)) for row in rows.tolist()]


class Trio:
    """party_1 in the test's thread, party_2 and the dealer in threads of their own; links as seen by each end."""

    def __init__(self) -> None:
        self.one_two, self.two_one = link_pair("party_1", "party_2", timeout=20)
        self.one_dealer, self.dealer_one = link_pair("party_1", "dealer", timeout=20)
        self.two_dealer, self.dealer_two = link_pair("party_2", "dealer", timeout=20)
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
            link.send(Kind.FINISH)
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def answer_all(link: Link, dealer: Link, operands: list[tuple[Tensor, OperandHeader]], device: str = "cpu") -> None:
    """party_2's loop: LEVEL asks for the next operand."""
    fixed = SpdzFixedSide(link, dealer, device)
    left = iter(operands)
    while (request := link.receive(Kind.LEVEL, Kind.PRODUCT, Kind.FINISH)).kind is not Kind.FINISH:
        if request.kind is Kind.LEVEL:
            values, header = next(left)
            fixed.send_operand(header, values)
        else:
            fixed.answer(request)


@contextmanager
def parties(*operands: Tensor, device: str = "cpu") -> Iterator[tuple[SpdzMovingSide, Callable[[], None], Trio]]:
    trio = Trio()
    headers = [header_of(values, 8, i) for i, values in enumerate(operands)]
    trio.start(serve_dealer, trio.dealer_one, trio.dealer_two)
    trio.start(answer_all, trio.two_one, trio.two_dealer, list(zip(operands, headers, strict=True)), device)
    moving = SpdzMovingSide(trio.one_two, trio.one_dealer, device)
    left = iter(headers)

    def next_operand() -> None:
        trio.one_two.send(Kind.LEVEL)
        moving.accept_operand(next(left))

    next_operand()
    yield moving, next_operand, trio
    trio.stop()
    assert trio.errors == []


def test_exact_on_random_cases() -> None:
    draw = random.Random(5)
    cases = []
    for _ in range(60):
        points, rows = draw.randint(1, 40), draw.randint(1, 8)
        x_bits, y_bits = draw.randint(1, 40), draw.randint(1, 15)
        x = torch.tensor([[draw.randint(-(1 << x_bits), 1 << x_bits) for _ in range(points)] for _ in range(rows)])
        cases.append((x, torch.tensor([draw.randint(-(1 << y_bits), 1 << y_bits) for _ in range(points)])))
    with parties(*(y for _, y in cases)) as (moving, next_operand, _):
        for i, (x, y) in enumerate(cases):
            if i:
                next_operand()
            for factor in (1, -1):  # two products with one operand
                result = moving.multiply(factor * x)
                assert result.dtype == torch.int64
                assert result.tolist() == [factor * r for r in python_product(x, y)]


@pytest.mark.parametrize(("x", "y"), [(EDGE, 1), (-EDGE, 1), (EDGE, -1), (1, EDGE), (1 << 40, -(1 << 22)), (0, 7)])
def test_exact_at_the_edges_of_the_range(x: int, y: int) -> None:
    x, y = (v - v // (1 << 20) if abs(v) > 7 else v for v in (x, y))  # check_range keeps a margin for rounding
    with parties(torch.tensor([y, 0])) as (moving, _, _):
        assert moving.multiply(torch.tensor([[x, 0]])).tolist() == [x * y]


@pytest.mark.parametrize("points", [1, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_exact_at_chunk_borders(points: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdz, "MAX_CHUNK_WORDS", 12)
    monkeypatch.setattr(spdz, "MAX_CHUNK_POINTS", 8)
    x = torch.arange(rows * points).reshape(rows, points) - 10
    y = torch.arange(points) * 3 - 4
    with parties(y) as (moving, _, trio):
        assert moving.multiply(x).tolist() == python_product(x, y)
        chunks = -(-points // min(8, 12 // rows))
        assert trio.two_dealer.received[Kind.TRIPLE_CORRECTION] == chunks * (44 + 8 * rows)


def test_chunks_cover_all_points_and_bound_memory() -> None:
    for rows, points in [(1, 902_629), (13, 902_629), (13, 1 << 20), (4096, 5000)]:
        pieces = list(spdz._chunks(rows, points))
        assert (pieces[0][0], pieces[-1][1]) == (0, points)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
        assert all(rows * (stop - start) <= 1 << 20 for start, stop in pieces)


OUT_OF_RANGE = ([[EDGE + 1, 0]], [[EDGE // 2, EDGE // 2]], [[-(1 << 63), 0]], [[0, 0, 0]], [[0, 0]] * 9, [[0.0, 0.0]])


@pytest.mark.parametrize("rows", [torch.tensor(rows) for rows in OUT_OF_RANGE])
def test_out_of_range_is_refused_before_anything_is_sent(rows: Tensor) -> None:
    with parties(torch.tensor([3, -3])) as (moving, _, trio):
        before = trio.one_two.bytes_sent, trio.one_dealer.bytes_sent
        with pytest.raises(RangeError):
            moving.multiply(rows)
        assert (trio.one_two.bytes_sent, trio.one_dealer.bytes_sent) == before
        assert moving.multiply(torch.tensor([[2, 1]])).tolist() == [3]


@pytest.mark.parametrize(
    ("values", "match"),
    [(torch.zeros(3), "float"), (torch.tensor([1, 2]), r"\(2,\)"), (torch.tensor([1, 2, -9]), "-9")],
)
def test_operand_that_does_not_fit_its_header_is_refused(values: Tensor, match: str) -> None:
    link, _ = link_pair("party_2", "party_1")
    fixed = SpdzFixedSide(link, link)
    with pytest.raises(RangeError, match=match):
        fixed.send_operand(OperandHeader(0, 3, 2, 1.0, 0.0, 5, 30), values)
    assert link.bytes_sent == 0


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"mpc.provider": "TFP"}, "TFP, which lets party_1 read the other image"),
        ({"mpc.provider": "TTP"}, "TTP"),
        ({"mpc.active_security": True}, "active_security"),
    ],
)
def test_other_triples_than_the_dealers_are_refused(setting: dict[str, Any], match: str) -> None:
    with parties(torch.tensor([3, -3])) as (moving, _, trio):
        before = trio.one_two.bytes_sent, trio.one_dealer.bytes_sent
        with crypten.cfg.temp_override(setting), pytest.raises(ConfigError, match=match):
            moving.multiply(torch.tensor([[2, 1]]))
        assert (trio.one_two.bytes_sent, trio.one_dealer.bytes_sent) == before
        assert moving.multiply(torch.tensor([[2, 1]])).tolist() == [3]


def test_a_process_that_uses_crypten_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started:
        @staticmethod
        def is_initialized() -> bool:
            return True

    monkeypatch.setattr(crypten.communicator, "DistributedCommunicator", Started)
    link, _ = link_pair("party_1", "party_2")
    with pytest.raises(ConfigError, match=r"crypten\.init"):
        SpdzMovingSide(link, link)


def test_no_generator_of_torch_or_crypten_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a predictable generator was used")

    for module in (crypten.common.rng, crypten.mpc.primitives.arithmetic, crypten.mpc.provider.tfp_provider):
        monkeypatch.setattr(module, "generate_random_ring_element", refuse)
    for name in ("randint", "rand", "randn", "randperm", "Generator", "manual_seed"):
        monkeypatch.setattr(torch, name, refuse)
    state = torch.get_rng_state()
    y = torch.arange(50) - 25
    x = torch.arange(150).reshape(3, 50)
    with parties(y) as (moving, _, _):
        assert moving.multiply(x).tolist() == python_product(x, y)
    assert all(not kept for kept in crypten.generators.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_messages_go_only_where_the_protocol_sends_them() -> None:
    y, x = torch.arange(50) - 25, torch.arange(150).reshape(3, 50)
    with parties(y) as (moving, _, trio):
        for _ in range(2):
            moving.multiply(x)
    opening = 2 * (44 + 8 * (150 + 50))
    assert set(trio.two_one.received) == {Kind.LEVEL, Kind.PRODUCT, Kind.OPENING, Kind.FINISH}
    assert set(trio.one_two.received) == {Kind.ZERO_SEED, Kind.OPENING, Kind.RESULT_SHARE}
    assert trio.one_two.received[Kind.OPENING] == trio.two_one.received[Kind.OPENING] == opening
    assert trio.one_two.received[Kind.RESULT_SHARE] == 2 * (44 + 8 * 3)
    # the dealer hears shapes from party_1 and nothing from party_2; party_1 hears a seed from it
    assert set(trio.dealer_one.received) == {Kind.TRIPLE, Kind.FINISH}
    assert trio.dealer_one.received[Kind.TRIPLE] < 2 * 150
    assert not trio.dealer_two.received
    assert set(trio.one_dealer.received) == {Kind.SEED}
    assert set(trio.two_dealer.received) == {Kind.SEED, Kind.TRIPLE_CORRECTION}


def test_crypten_opens_nothing_else() -> None:
    link, _ = link_pair("party_1", "party_2")
    with crypten_link.LinkCommunicator(0, link, lambda a, b: pytest.fail(f"{a} {b}")):
        secret = crypten_link.shared(torch.tensor([1, 2]), torch.device("cpu"))
        for leak in (secret.reveal, secret.get_plain_text, lambda: secret.reveal(dst=1), lambda: secret.mul(secret)):
            with pytest.raises(NotImplementedError):
                leak()
        for name in ("gather", "all_gather", "broadcast", "scatter", "send", "recv", "send_obj", "recv_obj"):
            with pytest.raises((NotImplementedError, TypeError)):
                getattr(crypten.communicator.get(), name)(torch.tensor([1]), 0)
    assert link.bytes_sent == 0
    assert not crypten.communicator.is_initialized()


OTHER_SHAPES = ((9, 2), (1, 3), (0, 2), (True, 2), (1.0, 2), ("1", 2), (1, None))


@pytest.mark.parametrize("meta", [{"rows": 1}, [1, 2], *({"rows": r, "points": n} for r, n in OTHER_SHAPES)])
def test_party_2_refuses_another_shape(meta: Any) -> None:
    one, two = link_pair("party_1", "party_2")
    fixed = SpdzFixedSide(two, two)
    values = torch.tensor([3, -3])
    fixed.send_operand(header_of(values, 8), values)
    sent = two.bytes_sent
    one.send(Kind.PRODUCT, pack(meta))
    with pytest.raises(LinkError):
        fixed.answer(two.receive(Kind.PRODUCT))
    assert two.bytes_sent == sent


@pytest.mark.parametrize("meta", [{"rows": 1, "points": 0}, {"rows": 1 << 21, "points": 1}, {"rows": None}, 7])
def test_the_dealer_refuses_what_is_no_shape(meta: Any) -> None:
    trio = Trio()
    trio.one_dealer.send(Kind.TRIPLE, pack(meta))
    with pytest.raises(LinkError):
        serve_dealer(trio.dealer_one, trio.dealer_two)


def test_products_before_an_operand_are_refused() -> None:
    one, two = link_pair("party_1", "party_2")
    with pytest.raises(LinkError, match="before the first operand"):
        SpdzMovingSide(one, one).multiply(torch.tensor([[1]]))
    one.send(Kind.PRODUCT, pack({"rows": 1, "points": 1}))
    with pytest.raises(LinkError, match="before the first operand"):
        SpdzFixedSide(two, two).answer(two.receive())


def test_keys_and_openings_of_another_length_are_refused() -> None:
    trio = Trio()
    moving = SpdzMovingSide(trio.one_two, trio.one_dealer)
    header = OperandHeader(0, 2, 8, 1.0, 0.0, 3, 18)
    trio.two_one.send(Kind.ZERO_SEED, bytes(15))
    with pytest.raises(LinkError, match="ZERO_SEED: 15 bytes"):
        moving.accept_operand(header)
    trio.two_one.send(Kind.ZERO_SEED, bytes(16))
    moving.accept_operand(header)
    trio.dealer_one.send(Kind.SEED, bytes(16))
    trio.two_one.send(Kind.OPENING, bytes(8))
    with pytest.raises(LinkError, match="8 bytes where 4 words are due"):
        moving.multiply(torch.tensor([[2, 1]]))
    assert not crypten.communicator.is_initialized()


def test_a_lost_dealer_ends_both_parties() -> None:
    def vanish(link_1: Link, link_2: Link) -> None:
        for link in (link_1, link_2):
            link.send(Kind.SEED, bytes(16))
        link_1.receive(Kind.TRIPLE)
        for link in (link_1, link_2):
            link.close()

    def answer_and_close(two_one: Link, *rest: Any) -> None:
        try:
            answer_all(two_one, *rest)
        finally:
            two_one.close()

    trio = Trio()
    values = torch.tensor([3, -3])
    trio.start(vanish, trio.dealer_one, trio.dealer_two)
    trio.start(answer_and_close, trio.two_one, trio.two_dealer, [(values, header_of(values, 8))])
    moving = SpdzMovingSide(trio.one_two, trio.one_dealer)
    trio.one_two.send(Kind.LEVEL)
    moving.accept_operand(header_of(values, 8))
    with pytest.raises(PeerLost, match="party_2 is gone"):
        moving.multiply(torch.tensor([[2, 1]]))
    trio.threads[1].join(5)
    assert [type(e) for e in trio.errors] == [PeerLost]


def test_the_dealer_ends_with_either_party() -> None:
    for lost in ("one_dealer", "two_dealer"):
        trio = Trio()
        trio.start(serve_dealer, trio.dealer_one, trio.dealer_two)
        getattr(trio, lost).close()
        if lost == "two_dealer":  # noticed at the latest when party_1 leaves
            trio.one_dealer.send(Kind.TRIPLE, pack({"rows": 2, "points": 5}))
            trio.one_dealer.close()
        trio.threads[0].join(5)
        assert not trio.threads[0].is_alive()
        assert trio.errors == []


# party_2 as a process of its own: it answers one product, then is killed between two openings of the next one.
_PARTY_2 = """
import os, signal, socket, sys
from ppir_torch.joint import spdz
assert "crypten" not in sys.modules
from ppir_torch.link import Kind, Link
from ppir_torch.joint.protocol import OperandHeader
import torch
spdz.MAX_CHUNK_WORDS = 30
link, dealer = (Link(socket.socket(fileno=int(fd)), bytes(16), "party_2", "peer") for fd in sys.argv[1:])
fixed = spdz.SpdzFixedSide(link, dealer)
fixed.send_operand(OperandHeader(0, 40, 3, 1.0, 0.0, 39, 20540), torch.arange(40))
fixed.answer(link.receive(Kind.PRODUCT))
from ppir_torch.joint.crypten_link import LinkCommunicator
all_reduce, calls = LinkCommunicator.all_reduce, []
def die_at_second(self, shares, batched):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return all_reduce(self, shares, batched=batched)
LinkCommunicator.all_reduce = die_at_second
fixed.answer(link.receive(Kind.PRODUCT))
"""


def test_party_2_killed_in_the_middle_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdz, "MAX_CHUNK_WORDS", 30)
    near, far = socket.socketpair()
    near_dealer, far_dealer = socket.socketpair()
    trio = Trio()
    link = Link(near, bytes(16), "party_1", "party_2", timeout=60)
    dealer_two = Link(near_dealer, bytes(16), "dealer", "party_2")
    trio.start(serve_dealer, trio.dealer_one, dealer_two)
    fds = (far.fileno(), far_dealer.fileno())
    command = [sys.executable, "-c", _PARTY_2, *map(str, fds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, pass_fds=fds, env=environment) as party_2:
        far.close()
        far_dealer.close()
        moving = SpdzMovingSide(link, trio.one_dealer)
        moving.accept_operand(OperandHeader(0, 40, 3, 1.0, 0.0, 39, 20540))
        x = torch.arange(120).reshape(3, 40)
        assert moving.multiply(x).tolist() == python_product(x, torch.arange(40))
        started = time.monotonic()
        with pytest.raises(PeerLost, match="party_2 is gone"):
            moving.multiply(x)
        assert time.monotonic() - started < 10
    assert party_2.returncode == -9
    trio.one_dealer.send(Kind.FINISH)
    trio.threads[0].join(5)
    assert not trio.threads[0].is_alive()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_exact_on_cuda() -> None:
    y = torch.arange(-3000, 3000)
    x = (torch.arange(18_000) * 1_000_003 % 2**30 - 2**29).reshape(3, 6000)
    with parties(y, device="cuda") as (moving, _, _):
        result = moving.multiply(x.cuda())
    assert result.is_cuda
    assert result.tolist() == python_product(x, y)
