"""spdz: exact products through real CrypTen, refusals before sending, directions of the messages, lost parties."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from joint.ends import OVERHEAD, Trio, answer_all, header_of, python_products, session
from torch import Tensor

from ppir_torch.errors import ConfigError, LinkError, PeerLost, RangeError
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import FixedOperand, release_all
from ppir_torch.protocols import crypten_link, spdz
from ppir_torch.protocols.spdz import SpdzFixedSide, SpdzMovingSide, serve_dealer
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, link_pair
from ppir_torch.wire.payload import pack

crypten = crypten_link.crypten
EDGE = 1 << 62


def party_2_alone(values: Tensor) -> tuple[FixedOperand, Link, Link]:
    """party_2's operand, its link and party_1's end of it."""
    one, two = link_pair("party_1", "party_2")
    return SpdzFixedSide(two, two).open(header_of(values), values), two, one


def test_exact_on_random_cases() -> None:
    draw = random.Random(5)
    cases = []
    for _ in range(60):
        points, rows = draw.randint(1, 40), draw.randint(1, 8)
        x_bits, y_bits = draw.randint(1, 40), draw.randint(1, 15)
        x = torch.tensor([[draw.randint(-(1 << x_bits), 1 << x_bits) for _ in range(points)] for _ in range(rows)])
        cases.append((x, torch.tensor([draw.randint(-(1 << y_bits), 1 << y_bits) for _ in range(points)])))
    with session("spdz", *(y for _, y in cases)) as run:
        for i, (x, y) in enumerate(cases):
            if i:
                run.next_operand()
            for factor in (1, -1):  # two products with one operand
                result = run.operand.multiply(factor * x)
                assert result.dtype == torch.int64
                assert result.tolist() == [factor * r for r in python_products(x, y)]


@pytest.mark.parametrize(("x", "y"), [(EDGE, 1), (-EDGE, 1), (EDGE, -1), (1, EDGE), (1 << 40, -(1 << 22)), (0, 7)])
def test_exact_at_the_edges_of_the_range(x: int, y: int) -> None:
    x, y = (v - v // (1 << 20) if abs(v) > 7 else v for v in (x, y))  # check_range keeps a margin for rounding
    with session("spdz", torch.tensor([y, 0])) as run:
        assert run.operand.multiply(torch.tensor([[x, 0]])).tolist() == [x * y]


@pytest.mark.parametrize("points", [1, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 1), (7, 1), (1, 4), (3, 2), (7, 5)])
def test_exact_at_chunk_borders(points: int, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdz, "MAX_CHUNK_WORDS", 16)
    monkeypatch.setattr(spdz, "MAX_CHUNK_POINTS", 8)
    x = torch.arange(rows * points).reshape(rows, points) - 10
    y = torch.arange(columns * points).reshape(columns, points) * 3 - 4
    with session("spdz", y) as run:
        assert run.operand.multiply(x).tolist() == python_products(x, y)
        chunks = -(-points // max(1, min(8, 16 // (rows + columns))))
        corrections = chunks * (OVERHEAD + 8 * rows * columns)
        assert run.trio.two_dealer.received[MessageKind.TRIPLE_CORRECTION] == corrections


def test_chunks_cover_all_points_and_bound_memory() -> None:
    for rows, points in [(1, 902_629), (13, 902_629), (13, 1 << 20), (4096, 5000)]:
        pieces = list(spdz.chunks(rows, points))
        assert (pieces[0][0], pieces[-1][1]) == (0, points)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
        assert all(rows * (stop - start) <= 1 << 20 for start, stop in pieces)


OUT_OF_RANGE = ([[EDGE + 1, 0]], [[EDGE // 2, EDGE // 2]], [[-(1 << 63), 0]], [[0, 0, 0]], [[0, 0]] * 9, [[0.0, 0.0]])


@pytest.mark.parametrize("rows", [torch.tensor(rows) for rows in OUT_OF_RANGE])
def test_out_of_range_is_refused_before_anything_is_sent(rows: Tensor) -> None:
    with session("spdz", torch.tensor([3, -3])) as run:
        before = run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent
        with pytest.raises(RangeError):
            run.operand.multiply(rows)
        assert (run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent) == before
        assert run.operand.multiply(torch.tensor([[2, 1]])).tolist() == [3]


@pytest.mark.parametrize(
    ("values", "match"),
    [(torch.zeros(3), "float"), (torch.tensor([1, 2]), r"\(2,\)"), (torch.tensor([1, 2, -9]), "-9")],
)
def test_operand_that_does_not_fit_its_header_is_refused(values: Tensor, match: str) -> None:
    link, _ = link_pair("party_2", "party_1")
    fixed = SpdzFixedSide(link, link)
    with pytest.raises(RangeError, match=match):
        fixed.open(OperandHeader(0, 3, 2, 1.0, 0.0, 5, 30), values)
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
    with session("spdz", torch.tensor([3, -3])) as run:
        before = run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent
        with crypten.cfg.temp_override(setting), pytest.raises(ConfigError, match=match):
            run.operand.multiply(torch.tensor([[2, 1]]))
        assert (run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent) == before
        assert run.operand.multiply(torch.tensor([[2, 1]])).tolist() == [3]


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
    with session("spdz", y) as run:
        assert run.operand.multiply(x).tolist() == python_products(x, y)
    assert all(not kept for kept in crypten.generators.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_messages_go_only_where_the_protocol_sends_them() -> None:
    y, x = torch.arange(50) - 25, torch.arange(150).reshape(3, 50)
    with session("spdz", y) as run:
        for _ in range(2):
            run.operand.multiply(x)
    opening = 2 * (OVERHEAD + 8 * (150 + 50))
    assert set(run.trio.two_one.received) == {
        MessageKind.LEVEL,
        MessageKind.PRODUCT,
        MessageKind.OPENING,
        MessageKind.FINISH,
    }
    assert set(run.trio.one_two.received) == {MessageKind.ZERO_SEED, MessageKind.OPENING, MessageKind.RESULT_SHARE}
    assert run.trio.one_two.received[MessageKind.OPENING] == run.trio.two_one.received[MessageKind.OPENING] == opening
    assert run.trio.one_two.received[MessageKind.RESULT_SHARE] == 2 * (OVERHEAD + 8 * 3)
    # the dealer hears shapes from party_1 and nothing from party_2; party_1 hears a seed from it
    assert set(run.trio.dealer_one.received) == {MessageKind.TRIPLE, MessageKind.FINISH}
    assert run.trio.dealer_one.received[MessageKind.TRIPLE] < 2 * 150
    assert not run.trio.dealer_two.received
    assert set(run.trio.one_dealer.received) == {MessageKind.SEED}
    assert set(run.trio.two_dealer.received) == {MessageKind.SEED, MessageKind.TRIPLE_CORRECTION}


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


PAIR = np.zeros((1, 2), np.uint16)


@pytest.mark.parametrize("meta", [{"rows": 1}, [1, 2], *({"rows": r, "points": n} for r, n in OTHER_SHAPES)])
def test_party_2_refuses_another_shape(meta: Any) -> None:
    fixed, two, one = party_2_alone(torch.tensor([3, -3]))
    sent = two.bytes_sent
    one.send(MessageKind.PRODUCT, pack(meta, [PAIR]))
    with pytest.raises(LinkError):
        fixed.answer(two.receive(MessageKind.PRODUCT), release_all)
    assert two.bytes_sent == sent


OTHER_PAIRS: dict[str, list[Any]] = {
    "none": [],
    "no pair": [PAIR[:0]],
    "two arrays": [PAIR, PAIR],
    "one pair twice": [np.zeros((2, 2), np.uint16)],
    "beyond the rows": [np.array([[2, 0]], np.uint16)],
    "beyond the columns": [np.array([[0, 1]], np.uint16)],
    "negative": [np.array([[0, -1]], np.int16)],
    "one number": [np.zeros((1, 1), np.uint16)],
    "flat": [np.zeros(2, np.uint16)],
    "not a number": [np.full((1, 2), np.nan)],
    "fractions": [np.full((1, 2), 0.5)],
}


@pytest.mark.parametrize("name", OTHER_PAIRS)
def test_party_2_refuses_other_pairs(name: str) -> None:
    fixed, two, one = party_2_alone(torch.tensor([3, -3]))
    sent = two.bytes_sent
    one.send(MessageKind.PRODUCT, pack({"rows": 2, "points": 2}, OTHER_PAIRS[name]))
    with pytest.raises(LinkError):
        fixed.answer(two.receive(MessageKind.PRODUCT), lambda _: pytest.fail("released"))
    assert two.bytes_sent == sent


SHAPE = {"rows": 1, "points": 1, "columns": 1}


@pytest.mark.parametrize(
    "meta",
    [
        *(SHAPE | wrong for wrong in ({"points": 0}, {"rows": 1 << 21}, {"columns": 1 << 21}, {"columns": 0})),
        *(SHAPE | wrong for wrong in ({"rows": None}, {"columns": True}, {"operand": 1})),
        {"rows": 1, "points": 1},
        7,
    ],
    ids=str,
)
def test_the_dealer_refuses_what_is_no_shape(meta: Any) -> None:
    trio = Trio()
    trio.one_dealer.send(MessageKind.TRIPLE, pack(meta))
    with pytest.raises(LinkError):
        serve_dealer(trio.dealer_one, trio.dealer_two)


def test_products_before_an_operand_are_refused() -> None:
    one, two = link_pair("party_1", "party_2")
    one.send(MessageKind.PRODUCT, pack({"rows": 1, "points": 1}, [PAIR]))
    with pytest.raises(LinkError, match="before the first operand"):
        answer_all(two, SpdzFixedSide(two, two), [])


def test_keys_and_openings_of_another_length_are_refused() -> None:
    trio = Trio()
    moving = SpdzMovingSide(trio.one_two, trio.one_dealer)
    header = OperandHeader(0, 2, 8, 1.0, 0.0, 3, 18)
    trio.two_one.send(MessageKind.ZERO_SEED, bytes(15))
    with pytest.raises(LinkError, match="ZERO_SEED: 15 bytes"):
        moving.open(header)
    trio.two_one.send(MessageKind.ZERO_SEED, bytes(16))
    operand = moving.open(header)
    trio.dealer_one.send(MessageKind.SEED, bytes(16))
    trio.two_one.send(MessageKind.OPENING, bytes(8))
    with pytest.raises(LinkError, match="8 bytes where 4 words of 64 bits are due"):
        operand.multiply(torch.tensor([[2, 1]]))
    assert not crypten.communicator.is_initialized()


def test_a_lost_dealer_ends_both_parties() -> None:
    def vanish(link_1: Link, link_2: Link) -> None:
        for link in (link_1, link_2):
            link.send(MessageKind.SEED, bytes(16))
        link_1.receive(MessageKind.TRIPLE)
        for link in (link_1, link_2):
            link.close()

    trio = Trio()
    values = torch.tensor([3, -3])
    trio.start(vanish, trio.dealer_one, trio.dealer_two)
    fixed = SpdzFixedSide(trio.two_one, trio.two_dealer)
    trio.start(answer_all, trio.two_one, fixed, [(header_of(values), values)])
    moving = SpdzMovingSide(trio.one_two, trio.one_dealer)
    trio.one_two.send(MessageKind.LEVEL)
    operand = moving.open(header_of(values))
    with pytest.raises(PeerLost, match="party_2 is gone"):
        operand.multiply(torch.tensor([[2, 1]]))
    trio.threads[1].join(60)
    assert [type(e) for e in trio.errors] == [PeerLost]


def test_the_dealer_ends_with_either_party() -> None:
    for lost in ("one_dealer", "two_dealer"):
        trio = Trio()
        trio.start(serve_dealer, trio.dealer_one, trio.dealer_two)
        getattr(trio, lost).close()
        if lost == "two_dealer":  # noticed at the latest when party_1 leaves
            trio.one_dealer.send(MessageKind.TRIPLE, pack({"rows": 2, "points": 5, "columns": 1}))
            trio.one_dealer.close()
        trio.threads[0].join(60)
        assert not trio.threads[0].is_alive()
        assert trio.errors == []


# party_2 as a process of its own: it answers one product, then is killed between two openings of the next one.
_PARTY_2 = """
import os, signal, socket, sys
from ppir_torch.protocols import spdz
assert "crypten" not in sys.modules
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import release_all
import torch
spdz.MAX_CHUNK_WORDS = 30
ends = zip(sys.argv[1:], (bytes(16), bytes([1] * 16)), ("party_1", "dealer"))
link, dealer = (Link(socket.socket(fileno=int(fd)), bytes(16), key, "party_2", peer) for fd, key, peer in ends)
fixed = spdz.SpdzFixedSide(link, dealer)
fixed = fixed.open(OperandHeader(0, 40, 3, 1.0, 0.0, 39, 20540), torch.arange(40))
fixed.answer(link.receive(MessageKind.PRODUCT), release_all)
from ppir_torch.protocols.crypten_link import LinkCommunicator
all_reduce, calls = LinkCommunicator.all_reduce, []
def die_at_second(self, shares, batched):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return all_reduce(self, shares, batched=batched)
LinkCommunicator.all_reduce = die_at_second
fixed.answer(link.receive(MessageKind.PRODUCT), release_all)
"""


def test_party_2_killed_in_the_middle_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdz, "MAX_CHUNK_WORDS", 30)
    near, far = socket.socketpair()
    near_dealer, far_dealer = socket.socketpair()
    trio = Trio()
    link = Link(near, bytes(16), bytes(16), "party_1", "party_2", timeout=120)
    dealer_two = Link(near_dealer, bytes(16), bytes([1] * 16), "dealer", "party_2")
    trio.start(serve_dealer, trio.dealer_one, dealer_two)
    fds = (far.fileno(), far_dealer.fileno())
    command = [sys.executable, "-c", _PARTY_2, *map(str, fds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, pass_fds=fds, env=environment) as party_2:
        far.close()
        far_dealer.close()
        operand = SpdzMovingSide(link, trio.one_dealer).open(OperandHeader(0, 40, 3, 1.0, 0.0, 39, 20540))
        x = torch.arange(120).reshape(3, 40)
        assert operand.multiply(x).tolist() == python_products(x, torch.arange(40))
        # Noticed as it happens, not by the silence after it.
        with pytest.raises(PeerLost, match=r"party_2 is gone \((?!nothing arrived)"):
            operand.multiply(x)
    assert party_2.returncode == -9
    trio.one_dealer.send(MessageKind.FINISH)
    trio.threads[0].join(60)
    assert not trio.threads[0].is_alive()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_exact_on_cuda() -> None:
    y = torch.arange(-3000, 3000)
    x = (torch.arange(18_000) * 1_000_003 % 2**30 - 2**29).reshape(3, 6000)
    with session("spdz", y, device="cuda") as run:
        result = run.operand.multiply(x.cuda())
    assert result.is_cuda
    assert result.tolist() == python_products(x, y)
