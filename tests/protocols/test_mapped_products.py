"""Products through a public map: every protocol opens Python's sums, and what could leave the range is refused."""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from joint.ends import OVERHEAD, Prepared, Session, Trio, answer_all, header_of, python_products, serving
from torch import Tensor

from ppir_torch.arithmetic.csprng import KeyStream, new_key
from ppir_torch.errors import BudgetExceeded, LinkError, PeerLost, RangeError
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import Release, release_all
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.protocols import load_protocol, spdz
from ppir_torch.protocols.lattice import bfv_slots, ckks_slots
from ppir_torch.protocols.lattice.bfv import BfvFixedSide, BfvMovingSide
from ppir_torch.protocols.lattice.bfv_slots import NOISE
from ppir_torch.protocols.lattice.ciphers import Allowance
from ppir_torch.protocols.lattice.ckks import CkksFixedSide, CkksMovingSide
from ppir_torch.protocols.lattice.packing import DEGREE
from ppir_torch.protocols.lattice.seal_format import ciphertext_file, save_seal
from ppir_torch.protocols.lattice.slots import (
    FRESH_NOISE,
    MAX_RESULT,
    MAX_ROW,
    POINTS,
    PRIMES,
    SPECIAL,
    SlotLayout,
    mapped_sums,
    slot_limits,
    uniform_words,
)
from ppir_torch.protocols.lattice.slots import SLOT_MODULUS as T
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, Received, link_pair
from ppir_torch.wire.payload import pack, unpack

MAPPED = ("beaver", "spdz", "bfv", "ckks")
every_protocol = pytest.mark.parametrize("protocol", MAPPED)
ours = pytest.mark.parametrize("protocol", ["spdz", "bfv", "ckks"])
SLOTS: dict[str, Any] = {"bfv": bfv_slots, "ckks": ckks_slots}
encrypted = pytest.mark.parametrize("protocol", list(SLOTS))


def spline_matrix(points: int, spacing: int) -> Tensor:
    """Cubic B-splines (points, control points) of a lattice with so many points from one to the next."""
    place = torch.arange(points, dtype=torch.float64) / spacing
    first, f = place.long(), place % 1
    weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    out = torch.zeros(points, int(first[-1]) + 4, dtype=torch.float64)
    for k, weight in enumerate(weights):
        out[torch.arange(points), first + k] = weight / 6
    return out


def splines(shape: tuple[int, ...], spacing: int, index: Tensor | None = None, channels: int = 1) -> PublicMap:
    return PublicMap.of(shape, [spline_matrix(n, spacing) for n in shape], index, channels)


def draw_map(draw: random.Random) -> PublicMap:
    """2-D or 3-D, of all points or a sample, of one channel or more; weights of any sign, in one of two of splines."""
    dimension = draw.choice((2, 3))
    shape = tuple(draw.randint(2, 9) for _ in range(dimension))
    points = math.prod(shape)
    index = torch.tensor(sorted(draw.sample(range(points), draw.randint(1, points)))) if draw.random() < 0.4 else None
    channels = draw.choice((1, 1, 2, 3))
    if draw.random() < 0.5:
        return splines(shape, draw.randint(1, 4), index, channels)
    matrices = [np.array([[draw.randint(-9, 9) for _ in range(draw.randint(1, 5))]] * n) for n in shape]
    for matrix in matrices:
        matrix[:] = [[draw.choice((0, draw.randint(-99, 99))) for _ in row] for row in matrix]
    return PublicMap(shape, tuple(m.astype(np.int64) for m in matrices), 1.0, index, channels)


def python_sums(rows: Tensor, y: Tensor, public_map: PublicMap) -> list[int]:
    """The oracle: Python's integers and a dense matrix."""
    dense = np.ones((1, 1), object)
    for matrix in public_map.matrices:
        dense = np.kron(dense, matrix.T.astype(object))
    if public_map.index is not None:
        dense = dense[:, public_map.index.numpy()]
    dense = np.tile(dense, (1, public_map.channels))
    fields = rows.numpy().astype(object) * y.numpy().astype(object)
    return [int(v) for row in fields[:-1] for v in dense @ row] + [int(fields[-1].sum())]


Mapped = tuple[Tensor, PublicMap]


@contextmanager
def session(
    protocol: str, *operands: tuple[Tensor, PublicMap | None], device: str = "cpu", release: Release = release_all
) -> Iterator[Session]:
    """A session with these operands, the first of which is there; rows of a map's are its dimension and one."""
    prepared: list[Prepared] = []
    for number, (y, public_map) in enumerate(operands):
        header = header_of(y, 3 if public_map is None else len(public_map.shape) + 1, number)
        prepared.append((header, y) if public_map is None else (header, y, public_map))
    with serving(protocol, *prepared, device=device, release=release) as run:
        run.next_operand()
        yield run


def uniform(draw: random.Random, most: int, *shape: int) -> Tensor:
    return torch.tensor([draw.randint(-most, most) for _ in range(math.prod(shape))]).reshape(shape)


def sent_by_party_1(trio: Trio) -> list[int]:
    return [link.bytes_sent for link in (trio.one_two, trio.one_dealer)]


# --- exactness


@pytest.mark.parametrize("protocol", ["beaver", "spdz", *(pytest.param(p, marks=pytest.mark.slow) for p in SLOTS)])
def test_sums_are_pythons(protocol: str) -> None:
    """With rows of any size, in one of three of the largest that is in range, each of one sign."""
    draw, done, seen = random.Random(f"{protocol} maps"), 0, set()
    operands: list[Mapped] = []
    for _ in range(40):
        public_map = draw_map(draw)
        y = uniform(draw, (1 << draw.choice((1, 5, 8, 11))) - 1, public_map.points)
        y[draw.randrange(len(y))] = draw.choice((-1, 1, 2047))
        operands.append((y, public_map))
        seen.add((len(public_map.shape), public_map.index is None, public_map.channels > 1))
    assert len(seen) == 8
    with session(protocol, *operands) as run:
        for number, (y, public_map) in enumerate(operands):
            if number:
                run.next_operand()
            limits, rows = run.mapped_operand.limits, len(public_map.shape) + 1
            edge = min(limits.max_row, limits.max_result // (int(y.abs().max()) * public_map.largest_sum))
            for _ in range(2):
                most = edge if draw.random() < 1 / 3 else draw.randint(0, min(edge, 1 << draw.randint(0, 20)))
                x = uniform(draw, most, rows, len(y))
                x[draw.randrange(rows)] = draw.choice((-1, 1)) * most * y.sign()
                result = run.mapped_operand.project(x)
                assert result.dtype == torch.int64
                assert result.tolist() == python_sums(x, y, public_map)
                done += len(result)
    assert done > 2000


@every_protocol
@pytest.mark.parametrize("sign", [1, -1])
def test_exact_at_the_edge_of_the_range(protocol: str, sign: int) -> None:
    """Every product has the largest size and one sign: one sum comes as near to the limit as whole entries can."""
    public_map = PublicMap((4, 5), (np.full((4, 2), 3), np.full((5, 1), 7)), 1.0)
    assert public_map.largest_sum == 12 * 35
    y = torch.full((20,), 2000)
    with session(protocol, (y, public_map)) as run:
        limits = run.mapped_operand.limits
        most = min(limits.max_row, limits.max_result // (2000 * 420))
        x = torch.full((3, 20), sign * most)
        assert run.mapped_operand.project(x).tolist() == python_sums(x, y, public_map)
    largest = MAX_RESULT // (420 * MAX_ROW)  # in slots: both at their edge
    with session(protocol, (y.sign() * largest, public_map)) as run:
        limits = run.mapped_operand.limits
        most = min(limits.max_row, limits.max_result // (largest * 420))
        x = torch.full((3, 20), sign * most)
        result = run.mapped_operand.project(x)
        assert result.tolist() == python_sums(x, largest * y.sign(), public_map)
        if most < limits.max_row or protocol in SLOTS:
            assert int(result.abs().max()) > 0.99 * limits.max_result


SIZES = [((130, 131), 5, None, 1), ((21, 20, 22), 4, None, 1), ((70, 80), 7, 0.3, 2), ((91, 90), 3, None, 3)]


@pytest.mark.parametrize(("shape", "spacing", "fraction", "channels"), SIZES)
def test_protocols_agree_over_many_blocks(
    shape: tuple[int, ...], spacing: int, fraction: float | None, channels: int
) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    points = math.prod(shape)
    index = torch.randperm(points, generator=g)[: int(fraction * points)].sort().values if fraction else None
    public_map = splines(shape, spacing, index, channels)
    y = torch.randint(-127, 128, (public_map.points,), generator=g)
    found = []
    for protocol in MAPPED:
        with session(protocol, (y, public_map)) as run:
            most = min(64, run.mapped_operand.limits.max_row)
            x = torch.randint(-most, most + 1, (len(shape) + 1, len(y)), generator=g.manual_seed(1))
            found.append(run.mapped_operand.project(x))
    fields = (x * y).reshape(len(x), channels, -1).sum(1)
    volume = torch.zeros(len(x), points, dtype=torch.int64)
    volume[:, slice(None) if index is None else index] = fields
    expected = volume[:-1].reshape(-1, *shape).numpy()
    for axis, matrix in enumerate(public_map.matrices):
        expected = np.moveaxis(np.tensordot(expected, matrix, (axis + 1, 0)), -1, axis + 1)
    numpy_sums = [*expected.reshape(-1).tolist(), int(fields[-1].sum())]
    assert [f.tolist() for f in found] == [numpy_sums] * len(MAPPED)


@ours
def test_operands_with_and_without_a_map_in_one_session(protocol: str) -> None:
    draw = random.Random(3)
    public_map = splines((7, 6), 2)
    y, x = uniform(draw, 100, 42), uniform(draw, 15, 3, 42)
    with session(protocol, (y, None), (y, public_map), (y + 1, None), (y + 2, public_map)) as run:
        assert run.operand.multiply(x).tolist() == python_products(x, y)
        assert not hasattr(run.operand, "project")
        run.next_operand()
        assert run.mapped_operand.project(x).tolist() == python_sums(x, y, public_map)
        assert not hasattr(run.mapped_operand, "multiply")
        keys = run.trio.one_two.received[MessageKind.PUBLIC_KEY]  # encrypted: one for each kind of product
        run.next_operand()
        assert run.operand.multiply(x).tolist() == python_products(x, y + 1)
        assert not hasattr(run.operand, "project")
        run.next_operand()
        assert run.mapped_operand.project(x).tolist() == python_sums(x, y + 2, public_map)
        for number in (1, 0, 0, 1):  # the older ones are usable, too
            assert run.operands[number].multiply(-x).tolist() == python_products(-x, y + number)
            assert run.mapped[number].project(-x).tolist() == python_sums(-x, y + 2 * number, public_map)
        assert run.trio.one_two.received[MessageKind.PUBLIC_KEY] == keys
        assert (keys > 0) == (protocol in SLOTS)


def test_exact_at_the_chunk_borders_of_spdz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdz, "MAX_CHUNK_WORDS", 16)
    for shape in ((2, 2), (2, 4), (3, 3), (2, 2, 3)):
        public_map, rows = splines(shape, 1), len(shape) + 1
        points = public_map.points
        y, x = torch.arange(points) * 3 - 4, torch.arange(rows * points).reshape(rows, points) - 10
        with session("spdz", (y, public_map)) as run:
            assert run.mapped_operand.project(x).tolist() == python_sums(x, y, public_map)
            chunks = -(-points // (16 // (rows + 1)))
            assert run.trio.two_dealer.received[MessageKind.TRIPLE_CORRECTION] == OVERHEAD * chunks + 8 * rows * points


# --- refusals before anything is sent


@ours
def test_out_of_range_is_refused_before_anything_is_sent(protocol: str) -> None:
    draw, refused = random.Random(f"{protocol} beyond"), 0
    for _ in range(12):
        public_map = draw_map(draw)
        rows, points = len(public_map.shape) + 1, public_map.points
        y = torch.full((points,), 63 if protocol in SLOTS else (1 << 20))
        with session(protocol, (y, public_map)) as run:
            limits = run.mapped_operand.limits
            edge = min(limits.max_row, limits.max_result // (int(y[0]) * public_map.largest_sum))
            x = torch.full((rows, points), draw.choice((-1, 1)) * edge)  # the map's largest sum is reached
            bad = [(x.sign() * (edge + 1)), x[:-1], x[:, 1:], x.double(), x[0], torch.cat([x, x])]
            bad.append(x.sign() * (limits.max_row + 1))
            before = sent_by_party_1(run.trio)
            for wrong in bad:
                with pytest.raises(RangeError):
                    run.mapped_operand.project(wrong)
                refused += 1
            assert sent_by_party_1(run.trio) == before
            assert run.mapped_operand.project(x).tolist() == python_sums(x, y, public_map)
    assert refused == 84


@every_protocol
def test_a_sparse_row_may_have_larger_entries(protocol: str) -> None:
    """What counts is what the results can come to: one voxel's entry meets one voxel's weights."""
    public_map = splines((40, 50), 9)
    y = torch.full((2000,), 1000)
    with session(protocol, (y, public_map)) as run:
        x = torch.zeros(3, 2000, dtype=torch.int64)
        x[0, 777], x[2, 3] = 1 << 15, -(1 << 15)
        if protocol in SLOTS:
            assert (1 << 15) * 1000 * public_map.largest_sum > run.mapped_operand.limits.max_result
        assert run.mapped_operand.project(x).tolist() == python_sums(x, y, public_map)


@encrypted
def test_more_products_than_a_session_has_are_refused_before_anything_is_sent(protocol: str) -> None:
    public_map = splines((100, 100), 9)  # two ciphertexts
    y, x = torch.ones(10_000, dtype=torch.int64), torch.ones(3, 10_000, dtype=torch.int64)
    with session(protocol, (y, public_map)) as run:
        products = multiplications(run)
        run.mapped_operand.project(x)
        assert products.used == 6
        products.used = SLOTS[protocol].MAX_PRODUCTS - 5
        before = sent_by_party_1(run.trio)
        with pytest.raises(RangeError, match="products per session"):
            run.mapped_operand.project(x)
        assert sent_by_party_1(run.trio) == before
        products.used -= 1
        run.mapped_operand.project(x)


@ours
@pytest.mark.parametrize("case", ["columns", "points", "values", "header"])
def test_operands_that_do_not_go_with_their_map_are_refused_before_anything_is_sent(protocol: str, case: str) -> None:
    public_map, y = splines((4, 5), 2), torch.arange(20)
    header, values = {
        "columns": (header_of(torch.stack([y, y]), 3), torch.stack([y, y])),
        "points": (header_of(y[:19], 3), y[:19]),
        "values": (header_of(y, 3), y + 1),
        "header": (replace(header_of(y, 3), points=21), y),
    }[case]
    trio = Trio()
    fixed = load_protocol(protocol).fixed_side(trio.two_one, trio.two_dealer, "cpu")
    with pytest.raises(RangeError):
        fixed.open_mapped(header, values, public_map)
    assert trio.two_one.bytes_sent == 0


@encrypted
def test_operands_and_maps_without_room_are_refused(protocol: str) -> None:
    link, _ = link_pair("party_2", "party_1")
    y, public_map = torch.tensor([1 << 40, 0, 0, 0]), PublicMap((2, 2), (np.full((2, 1), 40),) * 2, 1.0)
    with pytest.raises(RangeError, match="leave no room"):
        SIDES[protocol][1](link).open_mapped(header_of(y, 3), y, public_map)
    wide = PublicMap((2, 2), (np.full((2, 1), 1 << 16), np.full((2, 1), 1 << 20)), 1.0)
    assert wide.largest_sum == 1 << 38
    with pytest.raises(RangeError, match="leave no room"):
        slot_limits(header_of(y.sign(), 3), wide)
    with pytest.raises(RangeError, match="two rows at least"):
        slot_limits(header_of(y, 1), public_map)
    assert link.bytes_sent == 0


# --- what party_2 releases


@ours
def test_noise_is_added_once_to_each_value_and_charged_before_it_is_sent(protocol: str) -> None:
    draw, public_map, calls = random.Random(1), splines((6, 5), 3), list[int]()
    y, x = uniform(draw, 50, 30), uniform(draw, 15, 3, 30)
    count = public_map.results(3)
    noise = uniform(draw, MAX_RESULT // 32, count)
    sent_at: list[int] = []
    links: list[Link] = []

    def release(wanted: int) -> Tensor:
        calls.append(wanted)
        sent_at.append(links[0].sent[MessageKind.RESULT_SHARE] + links[0].sent[MessageKind.MASKED_RESULT])
        return noise

    with session(protocol, (y, public_map), release=release) as run:
        links.append(run.trio.two_one)
        result = run.mapped_operand.project(x)
        assert (result - noise).tolist() == python_sums(x, y, public_map)
    assert calls == [count]
    assert sent_at == [0]


@ours
def test_what_the_cap_does_not_allow_is_not_sent(protocol: str) -> None:
    public_map, trio, entry = splines((6, 5), 3), Trio(), load_protocol(protocol)
    y = torch.arange(30)
    header = header_of(y, 3)

    def refuse(count: int) -> Tensor:
        raise BudgetExceeded(f"{count} values")

    if entry.dealer is not None:
        trio.start(entry.dealer, trio.dealer_one, trio.dealer_two)
    fixed = entry.fixed_side(trio.two_one, trio.two_dealer, "cpu")
    operands: list[Any] = [(header, y, public_map)]
    trio.start(answer_all, trio.two_one, fixed, operands, refuse)
    moving = entry.moving_side(trio.one_two, trio.one_dealer, "cpu")
    trio.one_two.send(MessageKind.LEVEL)
    operand = moving.open_mapped(header, public_map)
    with pytest.raises(PeerLost):
        operand.project(torch.ones(3, 30, dtype=torch.int64))
    assert not {MessageKind.RESULT_SHARE, MessageKind.MASKED_RESULT} & set(trio.two_one.sent)
    with contextlib.suppress(PeerLost):
        trio.one_dealer.send(MessageKind.FINISH)
    trio.threads[-1].join(60)
    assert [type(e) for e in trio.errors if not isinstance(e, PeerLost)] == [BudgetExceeded]


def test_messages_of_spdz_go_only_where_the_protocol_sends_them() -> None:
    public_map = splines((5, 10), 3)
    y, x = torch.arange(50) - 25, torch.arange(150).reshape(3, 50)
    with session("spdz", (y, public_map)) as run:
        for _ in range(2):
            run.mapped_operand.project(x)
    trio = run.trio
    assert set(trio.two_one.received) == {
        MessageKind.LEVEL,
        MessageKind.PRODUCT,
        MessageKind.OPENING,
        MessageKind.FINISH,
    }
    assert set(trio.one_two.received) == {MessageKind.ZERO_SEED, MessageKind.OPENING, MessageKind.RESULT_SHARE}
    opening = 2 * (OVERHEAD + 8 * (150 + 50))
    assert trio.one_two.received[MessageKind.OPENING] == trio.two_one.received[MessageKind.OPENING] == opening
    assert trio.one_two.received[MessageKind.RESULT_SHARE] == 2 * (OVERHEAD + 8 * public_map.results(3))
    assert set(trio.dealer_one.received) == {MessageKind.TRIPLE, MessageKind.FINISH}
    assert trio.dealer_one.received[MessageKind.TRIPLE] < 2 * 180
    assert not trio.dealer_two.received
    assert set(trio.one_dealer.received) == {MessageKind.SEED}
    assert trio.two_dealer.received[MessageKind.TRIPLE_CORRECTION] == 2 * (OVERHEAD + 8 * 150)


def test_equal_rows_and_operands_of_spdz_look_different_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The openings and the dealer's corrections are uniform words, none of which comes twice."""
    heard: dict[MessageKind, list[np.ndarray]] = {MessageKind.OPENING: [], MessageKind.TRIPLE_CORRECTION: []}
    receive = Link.receive

    def record(link: Link, *due: MessageKind) -> Received:
        message = receive(link, *due)
        if message.kind in heard:
            heard[message.kind].append(np.frombuffer(bytes(message.payload), np.uint64))
        return message

    monkeypatch.setattr(Link, "receive", record)
    public_map = splines((25, 20), 5)
    y, x = torch.full((500,), 7), torch.zeros(3, 500, dtype=torch.int64)
    with session("spdz", (y, public_map), (y, public_map)) as run:
        for number in range(4):
            if number == 2:
                run.next_operand()
            assert run.mapped_operand.project(x).tolist() == [0] * public_map.results(3)
    assert [len(v) for v in heard.values()] == [8, 4]
    for words in map(np.concatenate, heard.values()):
        assert len(np.unique(words)) == len(words)
        # Uniform in [0, 2^64): mean within seven standard deviations.
        assert abs(words.astype(np.float64).mean() - 2**63) < 7 * 2**64 / (12 * len(words)) ** 0.5


@encrypted
def test_bytes_of_encrypted_products(protocol: str) -> None:
    public_map = splines((130, 131), 5)  # three ciphertexts
    y, x = torch.ones(17_030, dtype=torch.int64), torch.ones(3, 17_030, dtype=torch.int64)
    with session(protocol, (y, public_map)) as run:
        run.mapped_operand.project(x)
        up, down = run.trio.one_two.sent, run.trio.two_one.sent
    assert set(up) == {MessageKind.LEVEL, MessageKind.REPLY_CIPHERTEXTS, MessageKind.FINISH}
    assert set(down) == {MessageKind.PUBLIC_KEY, MessageKind.OPERAND_CIPHERTEXTS, MessageKind.MASKED_RESULT}
    assert up[MessageKind.REPLY_CIPHERTEXTS] == 2 * OVERHEAD + 7 * SLOTS[protocol].REPLY_BYTES
    assert down[MessageKind.MASKED_RESULT] == OVERHEAD + 6 * public_map.results(3)
    assert down[MessageKind.OPERAND_CIPHERTEXTS] <= 3 * (3 * 8 * DEGREE + 500)


@encrypted
def test_background_takes_the_same_work_and_bytes(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of zeros or ones, in some blocks or in all: as many operations of each kind, as many bytes, exact sums."""
    public_map = splines((200, 100), 10)
    g = torch.Generator().manual_seed(2)
    y = torch.randint(-100, 101, (20_000,), generator=g)
    seen = []
    with session(protocol, (y, public_map)) as run:
        for value, black in ((0, (0, 0)), (0, (0, 20_000)), (0, (3_000, 18_000)), (1, (8_191, 16_382))):
            x = torch.randint(-100, 101, (3, 20_000), generator=g)
            x[:, slice(*black)] = value
            calls: Counter[str] = Counter()
            watch(monkeypatch, SLOTS[protocol], calls)
            before = run.trio.one_two.sent.copy()
            assert torch.equal(run.mapped_operand.project(x), public_map.forms(x, y[None]))
            monkeypatch.undo()
            up = run.trio.one_two.sent - before
            seen.append((dict(calls), up.total()))
    assert all(s == seen[0] for s in seen)
    assert seen[0][0]["multiply_plain"] == 9


def watch(monkeypatch: pytest.MonkeyPatch, module: Any, calls: Counter[str]) -> None:
    """Count what is asked of SEAL."""
    scheme = module.scheme()

    class Watched:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            calls[name] += 1
            found: Callable[..., Any] = getattr(scheme.evaluator, name)
            return found

    watched = replace(scheme, evaluator=Watched())
    monkeypatch.setattr(module, "scheme", lambda: watched)


# --- malformed messages


SIDES: dict[str, Any] = {"bfv": (BfvMovingSide, BfvFixedSide), "ckks": (CkksMovingSide, CkksFixedSide)}


@dataclass
class Pair:
    """Both ends in one process, with one operand of two ciphertexts; party_2 answers when it is told to."""

    protocol: str
    links: tuple[Link, Link] = field(default_factory=lambda: link_pair("party_1", "party_2", timeout=120.0))

    def __post_init__(self) -> None:
        self.map, self.y = splines((90, 100), 9), torch.arange(9_000) % 50
        moving, fixed = SIDES[self.protocol]
        self.moving, self.fixed = moving(self.links[0]), fixed(self.links[1])
        self.theirs = self.fixed.open_mapped(header_of(self.y, 3), self.y, self.map)
        self.operand = self.moving.open_mapped(header_of(self.y, 3), self.map)

    def replies(self) -> list[bytes]:
        """The messages of a genuine product; party_1 is told zeros."""
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(self.operand.project, torch.ones(3, 9_000, dtype=torch.int64))
            messages = [self.links[1].receive(MessageKind.REPLY_CIPHERTEXTS) for _ in range(2)]
            self.links[1].send(MessageKind.MASKED_RESULT, bytes(6 * self.map.results(3)))
            sending.result()
        return [bytes(m.payload) for m in messages]

    def answer(self, messages: Sequence[bytes]) -> None:
        for payload in messages[1:]:
            self.links[0].send(MessageKind.REPLY_CIPHERTEXTS, payload)
        first = Received(MessageKind.REPLY_CIPHERTEXTS, 0, 0, memoryview(messages[0]))
        self.theirs.answer(first, lambda _: pytest.fail("released"))


@encrypted
def test_malformed_replies_are_refused(protocol: str) -> None:
    pair, size = Pair(protocol), SLOTS[protocol].REPLY_BYTES
    first, second = pair.replies()
    assert (len(first), len(second)) == (4 * size, size)
    above = bytes(size - DEGREE * 60 // 8) + b"\xff" * (DEGREE * 60 // 8)  # c1
    bad = [
        [b""],
        [first[: 3 * size]],
        [first + second],
        [first[:-5]],
        [first + b"\0"],
        [above + first[size:]],
        [first, b""],
        [first, second + second],
        [first, second[:-9]],
        [first, above],
    ]
    sent = pair.links[1].sent.copy()
    for messages in bad:
        with pytest.raises(LinkError, match="REPLY_CIPHERTEXTS"):
            pair.answer(messages)
    with pytest.raises(LinkError, match="not due"):
        pair.theirs.answer(Received(MessageKind.PRODUCT, 0, 0, memoryview(first)), release_all)
    assert pair.links[1].sent == sent
    # A flipped bit is another ciphertext or none, but no crash.
    for position in np.random.default_rng(0).integers(0, size, 20).tolist():
        flipped = bytearray(first)
        flipped[position] ^= 1
        pair.links[0].send(MessageKind.REPLY_CIPHERTEXTS, second)
        with contextlib.suppress(LinkError):
            pair.theirs.answer(Received(MessageKind.REPLY_CIPHERTEXTS, 0, 0, memoryview(flipped)), release_all)
            continue
        pair.links[1].receive(MessageKind.REPLY_CIPHERTEXTS)


def multiplications(run: Session) -> Allowance:
    assert isinstance(run.moving, BfvMovingSide | CkksMovingSide)
    return run.moving.slots.products


@encrypted
@pytest.mark.parametrize("case", ["short", "long", "above t"])
def test_malformed_answers_are_refused(case: str, protocol: str) -> None:
    pair = Pair(protocol)
    size = 6 * pair.map.results(3)
    pair.links[1].send(
        MessageKind.MASKED_RESULT, {"short": bytes(size - 6), "long": bytes(size + 1), "above t": b"\xff" * size}[case]
    )
    with pytest.raises(LinkError):
        pair.operand.project(torch.ones(3, 9_000, dtype=torch.int64))


@encrypted
def test_malformed_operands_are_refused(protocol: str) -> None:
    source, (moving, fixed) = Pair(protocol), SIDES[protocol]
    y, header = source.y, header_of(source.y, 3)
    links = link_pair("party_1", "party_2")
    fixed(links[1]).open_mapped(header, y, source.map)
    key = bytes(links[0].receive(MessageKind.PUBLIC_KEY).payload)
    _, files = unpack(links[0].receive(MessageKind.OPERAND_CIPHERTEXTS).payload)
    no_random_part, other_form = (
        np.frombuffer(save_seal(made), np.uint8) for made in malformed_ciphertexts(SLOTS[protocol])
    )
    bad = (files[:1], [*files, files[0]], [files[0][:-7], files[1]], [f[:0] for f in files])
    bad += ([files[0], other_form], [no_random_part, files[1]]) if protocol == "ckks" else ([files[0], other_form],)
    for wrong in bad:
        links = link_pair("party_1", "party_2")
        target = moving(links[0])
        links[1].send(MessageKind.PUBLIC_KEY, key)
        links[1].send(MessageKind.OPERAND_CIPHERTEXTS, pack({}, wrong))
        with pytest.raises(LinkError, match="OPERAND_CIPHERTEXTS"):
            target.open_mapped(header, source.map)
    links = link_pair("party_1", "party_2")
    links[1].send(MessageKind.PUBLIC_KEY, bytes(1000))
    with pytest.raises(LinkError, match="PUBLIC_KEY"):
        moving(links[0]).open_mapped(header, source.map)


def malformed_ciphertexts(module: Any) -> list[Any]:
    """One of the form that is due (NTT in ckks) without c1, and one of the other form."""
    scheme = module.scheme()
    top, due, made = scheme.context.first_parms_id(), module is ckks_slots, []
    for ntt, c1 in ((due, 0), (not due, 1)):
        file, ciphertext = ciphertext_file(DEGREE, 3, top, ntt=ntt), scheme.seal.Ciphertext()
        file.words[:] = 1
        file.words[3 * DEGREE :] = c1
        file.load(ciphertext, scheme.context)
        made.append(ciphertext)
    return made


PAIR = np.zeros((1, 2), np.uint16)


@pytest.mark.parametrize(
    ("meta", "arrays"),
    [
        ({"rows": 2, "points": 20}, []),
        ({"rows": 4, "points": 20}, []),
        ({"rows": 3, "points": 19}, []),
        ({"rows": 3}, []),
        ({"rows": 3, "points": 20}, [PAIR, PAIR]),
        ({"rows": 3.0, "points": 20}, []),
        ({"rows": 3, "points": 20, "mapped": True}, []),
    ],
)
def test_party_2_of_spdz_refuses_another_product(meta: Any, arrays: list[Any]) -> None:
    trio, public_map, y = Trio(), splines((4, 5), 2), torch.arange(20)
    fixed = load_protocol("spdz").fixed_side(trio.two_one, trio.two_dealer, "cpu")
    operand = fixed.open_mapped(header_of(y, 3), y, public_map)
    sent = trio.two_one.bytes_sent
    message = Received(MessageKind.PRODUCT, 0, 0, memoryview(b"".join(bytes(p) for p in pack(meta, arrays))))
    with pytest.raises(LinkError):
        operand.answer(message, lambda _: pytest.fail("released"))
    assert trio.two_one.bytes_sent == sent


def test_party_2_of_spdz_refuses_a_product_without_pairs_where_there_is_no_map() -> None:
    trio, y = Trio(), torch.arange(20)
    fixed = load_protocol("spdz").fixed_side(trio.two_one, trio.two_dealer, "cpu")
    operand = fixed.open(header_of(y, 3), y)
    message = Received(
        MessageKind.PRODUCT, 0, 0, memoryview(b"".join(bytes(p) for p in pack({"rows": 3, "points": 20})))
    )
    with pytest.raises(LinkError, match="pairs"):
        operand.answer(message, lambda _: pytest.fail("released"))


@pytest.mark.parametrize("wrong", [{"columns": 2}, {"mapped": 1}, {"mapped": None}, {"rows": 0}], ids=str)
def test_the_dealer_of_spdz_refuses_what_is_no_shape(wrong: dict[str, Any]) -> None:
    trio = Trio()
    trio.one_dealer.send(MessageKind.TRIPLE, pack({"rows": 3, "points": 20, "columns": 1, "mapped": True} | wrong))
    with pytest.raises(LinkError):
        spdz.serve_dealer(trio.dealer_one, trio.dealer_two)
    assert set(trio.dealer_two.sent) == {MessageKind.SEED}


# --- the numbers of bfv_slots


def is_prime(number: int) -> bool:
    return bool(bfv_slots.scheme().seal.Modulus(number).is_prime())


def largest_primes(bits: int, count: int) -> list[int]:
    candidates = range((1 << bits) - 2 * DEGREE + 1, 0, -2 * DEGREE)
    found = (c for c in candidates if is_prime(c))
    return [next(found) for _ in range(count)]


def test_primes_and_plain_modulus() -> None:
    assert list(PRIMES) == largest_primes(60, 3)
    assert largest_primes(20, 1) == [SPECIAL]
    assert largest_primes(48, 1) == [T]
    scheme = bfv_slots.scheme()
    assert all(p % (2 * DEGREE) == 1 for p in (*PRIMES, SPECIAL, T))
    assert sum(p.bit_length() for p in (*PRIMES, SPECIAL)) == 200
    limit = scheme.seal.CoeffModulus.MaxBitCount(DEGREE, scheme.seal.SEC_LEVEL_TYPE.TC128)
    assert limit == 218
    top = scheme.context.first_context_data().qualifiers()
    assert top.sec_level == scheme.seal.SEC_LEVEL_TYPE.TC128
    assert top.using_fast_plain_lift
    assert top.using_batching
    assert len(scheme.levels) == 3
    assert scheme.encoder.slot_count() == DEGREE


def test_security_and_noise_budget() -> None:
    """From the published constants: the flood hides every product of a session, and decryption is right."""
    first, second, third = PRIMES
    # 42 coins of a half each: Hoeffding's 2 exp(-2 s^2 / 42); the rounding of q y / t in the worst case, of the mask.
    beyond = 2 * math.exp(-2 * FRESH_NOISE**2 / 42)
    assert beyond < 2**-78
    assert math.sqrt(DEGREE) * (T / 2) * FRESH_NOISE + DEGREE * (T / 2) / 2 + 1 / 2 < NOISE < 2**59.9
    flood = second * third << bfv_slots.TOP_FLOOD_BITS
    assert 2**130.99 < flood < 2**131
    distance = bfv_slots.MAX_PRODUCTS * DEGREE * (NOISE / flood + beyond)
    assert 2**-40.5 < distance < 2**-40
    # The digits stay below every prime that is left when they are added.
    assert third < second < first
    # Right decryption: top digit, noise and rounding of two switches below q1 / 2t.
    rounding = 800 + 2 + 2 ** (59 - bfv_slots.C0_BITS)
    assert 2 * math.exp(-2 * 800**2 / DEGREE) < 2**-224
    before = 2 ** (bfv_slots.TOP_FLOOD_BITS - 1) + 1 + NOISE * bfv_slots.MAX_PRODUCTS / (second * third)
    zero = 2**40 / (second * third)  # an encryption of zero: far less
    assert before + zero + rounding < first / (2 * T)
    # Noise of party_2 and the largest result stay within half of t.
    assert MAX_RESULT + MAX_RESULT // 32 < T // 2


@pytest.mark.parametrize(
    ("shape", "spacing", "bits", "row"),
    [((239, 238), 5, 13, 2048), ((91, 109, 91), 4, 9, 128), ((91, 109, 91), 8, 8, 64), ((181, 217, 181), 10, 8, 32)],
)
def test_rows_and_columns_that_a_map_leaves_room_for(shape: tuple[int, ...], spacing: int, bits: int, row: int) -> None:
    public_map = splines(shape, spacing)
    link, _ = link_pair("party_2", "party_1")
    row_bits, found = BfvFixedSide(link).mapped_bits(public_map)
    assert CkksFixedSide(link).mapped_bits(public_map) == (row_bits, found)
    assert (1 << row_bits, found) == (row, bits)
    assert BfvFixedSide(link).column_bits(public_map.points) == 12
    largest = (1 << bits - 1) - 1
    header = OperandHeader(0, public_map.points, len(shape) + 1, 1.0, 0.0, largest, 1)
    limits = slot_limits(header, public_map)
    assert limits.max_row == MAX_ROW
    assert row * largest * public_map.largest_sum <= limits.max_result == MAX_RESULT


# --- the numbers of ckks_slots

Q = math.prod(PRIMES)


def test_primes_of_ckks() -> None:
    scheme = ckks_slots.scheme()
    of_key = scheme.context.key_context_data().parms().coeff_modulus()
    assert tuple(modulus.value() for modulus in of_key) == (*PRIMES, SPECIAL)  # tested above
    assert scheme.context.first_context_data().parms().scheme() == scheme.seal.SCHEME_TYPE.CKKS
    assert scheme.context.first_context_data().qualifiers().sec_level == scheme.seal.SEC_LEVEL_TYPE.TC128
    assert scheme.slots.context.first_context_data().qualifiers().using_fast_plain_lift
    assert scheme.slots.encoder.slot_count() == DEGREE
    # More than any row or operand has: no polynomial is constant.
    assert max(MAX_ROW, MAX_RESULT) < ckks_slots.LAST_SLOT < T - MAX_RESULT


def test_phases_stay_within_the_modulus() -> None:
    """From the published constants: all shares of a session add up, but for 2^-41."""
    beyond = 2 * math.exp(-2 * FRESH_NOISE**2 / 42)  # 42 coins of a half each: Hoeffding
    assert beyond < 2**-78
    half = (T - 1) / 2
    one = DEGREE * half**2 + T * FRESH_NOISE * math.sqrt(DEGREE) * half
    assert 0.999999 * ckks_slots.PHASE < one <= ckks_slots.PHASE < 2**107.9
    assert 2**179.99 < Q < 2**180
    replies = ckks_slots.MAX_PRODUCTS  # at most one for each multiplication
    failing = DEGREE * (ckks_slots.MAX_PRODUCTS * (ckks_slots.PHASE / Q + beyond) + replies * T * 2**19 / Q)
    assert 2**-41.5 < failing < 2**-41
    # A public-key encryption of zero: e0 + e1 s + e u, divided by the special prime, and two roundings.
    assert (21 + 2 * 21 * DEGREE) / SPECIAL + 1 / 2 + DEGREE / 2 < ckks_slots.ZERO_NOISE == 2**19


class SlowStream:
    """Words that are too large, twice."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def words(self, purpose: str, _number: int, shape: tuple[int, ...]) -> np.ndarray:
        self.drawn.append(purpose)
        words = np.arange(shape[0]) + T - 5 if len(self.drawn) < 3 else np.full(shape, 3)
        return words.astype(np.int64)


@pytest.mark.parametrize(
    "weights", [(1 << 14, 1 << 15), (1 << 14, 1), (1 << 18, 1 << 19), (-(1 << 14), 1 << 15), (3, 5)]
)
def test_shares_are_mapped_exactly(weights: tuple[int, int]) -> None:
    """Words up to t - 1 and the largest sums of weights, of which the parts fill float64: 2^29 and 2^37."""
    first, second = (np.full((1, 1), w) for w in weights)
    shape = (1, 1)
    public_map = PublicMap(shape, (first, second), 7.0, torch.zeros(1, dtype=torch.int64))
    assert public_map.largest_sum <= 1 << 37
    layout = SlotLayout.of(public_map)
    for word in (0, 1, T - 1, T - 2, T // 2, (1 << 47) + 12345, (1 << 24) - 1, 1 << 24):
        slots = [np.full(DEGREE, w, np.uint64) for w in (word, T - 1 - word, word)]
        found = mapped_sums(slots, 3, layout, public_map).tolist()
        weight = weights[0] * weights[1]
        assert found == [word * weight % T, (T - 1 - word) * weight % T, word * POINTS % T]


def test_words_above_the_bound_are_drawn_again() -> None:
    stream: Any = SlowStream()
    words = uniform_words(stream, "mask", 1, T)
    assert words[:5].tolist() == [T - 5 + i for i in range(5)]
    assert words[5:16_388].max() == 3
    assert len(set(stream.drawn)) == len(stream.drawn) == 3


def test_floods_have_their_full_width_and_are_centred() -> None:
    # One flood of 8192 leaves an end of the top digit's 2048 values out with a chance of 4 %; eight do with 3e-14.
    stream = KeyStream(new_key())
    low, middle, top = map(np.concatenate, zip(*(bfv_slots.flood(stream, n) for n in range(8)), strict=True))
    assert int(low.max()) < PRIMES[2]
    assert int(middle.max()) < PRIMES[1]
    assert min(int(low.max()), int(middle.max())) > 0.99 * 2**60
    centred = np.where(top > PRIMES[0] // 2, top.astype(np.int64) - PRIMES[0], top.astype(np.int64))
    assert (int(centred.min()), int(centred.max())) == (-1024, 1023)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sums_of_spdz_are_exact_on_cuda() -> None:
    public_map = splines((90, 100), 7)
    y = torch.arange(9_000) * 7919 % 4095 - 2047
    x = (torch.arange(27_000) * 1_000_003 % 4095 - 2047).reshape(3, 9_000)
    with session("spdz", (y, public_map), device="cuda") as run:
        result = run.mapped_operand.project(x.cuda())
    assert result.is_cuda
    assert torch.equal(result.cpu(), public_map.forms(x, y[None]))
