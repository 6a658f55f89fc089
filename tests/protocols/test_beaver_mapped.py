"""beaver through a public map: exact in words of every width, refusals before sending, one mask for one product."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from joint.ends import (
    OVERHEAD,
    Prepared,
    Session,
    Trio,
    answer_all,
    header_of,
    keys_of_streams,
    python_products,
    serving,
)
from torch import Tensor

from ppir_torch.arithmetic.csprng import KeyStream
from ppir_torch.arithmetic.words import WIDTHS, word_type
from ppir_torch.errors import LinkError, PeerLost, RangeError
from ppir_torch.grids import Grid
from ppir_torch.joint.bounds import Limits, check_mapped
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import FixedOperand, Release, release_all
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.protocols.beaver import BeaverFixedSide, mapped_width, serve_dealer, width_of
from ppir_torch.registration.request import map_of
from ppir_torch.sampling import Sample
from ppir_torch.transforms import ControlLattice
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, Received, link_pair
from ppir_torch.wire.payload import pack

# (weight, entry of Y) for which the words of a product over PLAIN_POINTS are this wide.
WEIGHTS = {32: (1, 255), 40: (8, 2047), 48: (90, 2047), 64: (1500, 2047)}
every_width = pytest.mark.parametrize("width", WIDTHS)
SHAPES = {2: (5, 6), 3: (3, 4, 5)}
every_dimension = pytest.mark.parametrize("shape", SHAPES.values(), ids=["2-D", "3-D"])


def flat_map(shape: tuple[int, ...], weight: int) -> PublicMap:
    """Two control points along each axis, all weights alike: a sum can be as large as the bound."""
    return PublicMap(shape, tuple(np.full((n, 2), weight, np.int64) for n in shape), 1.0)


def random_map(
    draw: random.Random, shape: tuple[int, ...], largest: int, index: Tensor | None = None, channels: int = 1
) -> PublicMap:
    matrices = []
    for n in shape:
        rows = [[draw.choice((0, draw.randint(-largest, largest))) for _ in range(draw.randint(2, 4))]] * n
        matrices.append(np.array([[draw.choice((0, draw.randint(-largest, largest))) for _ in row] for row in rows]))
        matrices[-1][draw.randrange(n), 0] = largest
    return PublicMap(shape, tuple(m.astype(np.int64) for m in matrices), 1.0, index, channels)


def python_forms(rows: Tensor, values: Tensor, public_map: PublicMap) -> list[int]:
    """The oracle: numpy's Kronecker product of Python's integers."""
    dense = np.ones((1, 1), object)
    for matrix in public_map.matrices:
        dense = np.kron(dense, matrix.T.astype(object))
    if public_map.index is not None:
        dense = dense[:, public_map.index.numpy()]
    fields = rows.numpy().astype(object) * values.numpy().astype(object)
    return [*(fields[:-1] @ np.tile(dense, (1, public_map.channels)).T).flatten().tolist(), fields[-1].sum()]


def uniform(draw: random.Random, most: int, *shape: int) -> Tensor:
    return torch.tensor([draw.randint(-most, most) for _ in range(math.prod(shape))]).reshape(shape)


Operand = tuple[Tensor, PublicMap | None]


@contextmanager
def session(
    *operands: Operand, release: Release = release_all, dealer: Callable[[Link, Link], None] = serve_dealer
) -> Iterator[Session]:
    """A session of these operands, the first of which is there; no party ends with an error."""
    prepared: list[Prepared] = []
    for number, (values, public_map) in enumerate(operands):
        header = header_of(values, 4 if public_map is None else len(public_map.shape) + 1, number)
        prepared.append((header, values) if public_map is None else (header, values, public_map))
    with serving("beaver", *prepared, release=release, dealer=dealer) as run:
        run.next_operand()
        yield run


def edge_of(run: Session) -> int:
    """The largest entry of rows that is in range, of the operand with a map that was opened last."""
    operand = run.mapped_operand
    largest = operand.header.max_abs * operand.public_map.largest_sum
    return min(operand.limits.max_row, operand.limits.max_result // largest)


# --- width


@every_width
def test_the_width_leaves_rows_of_their_bits_in_the_ring(width: int) -> None:
    weight, entry = WEIGHTS[width]
    public_map = flat_map(SHAPES[2], weight)
    header = header_of(torch.full((30,), entry), 3)
    assert mapped_width(header, public_map) == width
    largest = (1 << header.row_bits) * entry * public_map.largest_sum
    assert largest < 1 << (width - 1)
    if width > 32:
        assert 4 * largest > 1 << (WIDTHS[WIDTHS.index(width) - 1] - 2)


@pytest.mark.parametrize(
    ("size", "voxels", "bits"),
    [((181, 217), 5, (16, 16)), ((16, 16), 2, (16, 16)), ((91, 109, 91), 4, (15, 16)), ((91, 109, 91), 5, (12, 15))],
    ids=str,
)
def test_rows_and_columns_of_an_image_fill_the_ring(size: tuple[int, ...], voxels: int, bits: tuple[int, int]) -> None:
    """Of 16 bits in 2-D, of what there is room for in 3-D; nothing wraps, with the largest noise."""
    grid = Grid(size)
    public_map = map_of(ControlLattice(grid, float(voxels)), grid, Sample(None, None))
    link, _ = link_pair("party_2", "party_1")
    assert BeaverFixedSide(link, link).mapped_bits(public_map) == bits
    row_bits, largest = bits[0], (1 << (bits[1] - 1)) - 1
    header = OperandHeader(0, public_map.points, len(size) + 1, 1.0, 0.0, largest, 1, row_bits=row_bits)
    assert (width := mapped_width(header, public_map)) == (64 if max(size) > 16 else 48)
    assert (1 << row_bits) * largest * public_map.largest_sum < (1 << (width - 1)) - (1 << (width - 5))


# --- exactness


@every_width
@every_dimension
@pytest.mark.parametrize("sign", [1, -1])
def test_exact_at_the_edges_of_the_ring_with_the_largest_noise(sign: int, shape: tuple[int, ...], width: int) -> None:
    weight, entry = WEIGHTS[width]
    if len(shape) == 3:  # three weights, twice as many points
        weight = max(1, round((weight**2 / 2) ** (1 / 3)))
    public_map = flat_map(shape, weight)
    y = torch.full((public_map.points,), entry)
    noise = 0
    with session((y, public_map), release=lambda count: torch.full((count,), noise)) as run:
        limits, x = run.mapped_operand.limits, sign * edge_of(run)
        assert mapped_width(run.headers[0], public_map) == width
        for factor in (-1, 1):
            noise = factor * (limits.max_result // 32)  # the most that party_2 adds
            rows = torch.full((len(shape) + 1, len(y)), x)
            result, exact = run.mapped_operand.project(rows), python_forms(rows, y, public_map)
            assert result.dtype == torch.int64
            assert result.tolist() == [r + noise for r in exact]
        assert abs(x) == limits.max_row or max(map(abs, exact)) > 0.99 * limits.max_result
        assert limits.max_result + abs(noise) < 1 << (width - 1)


@every_dimension
@pytest.mark.parametrize(("sampled", "channels"), [(False, 1), (True, 1), (False, 3), (True, 2)])
def test_exact_on_random_cases_of_every_width(shape: tuple[int, ...], sampled: bool, channels: int) -> None:
    """All points or a sample, one channel or several, maps of any sign; rows of any size up to the edge."""
    draw, widths = random.Random(str((shape, sampled, channels))), set()
    operands: list[Operand] = []
    count = math.prod(shape)
    for number in range(16):
        index = torch.tensor(sorted(draw.sample(range(count), draw.randint(1, count - 1)))) if sampled else None
        largest = round((1, 9, 200, 2000)[number % 4] ** (2 / len(shape)))
        public_map = random_map(draw, shape, largest, index, channels)
        y = uniform(draw, (1 << draw.choice((1, 8, 11))) - 1, public_map.points)
        y[draw.randrange(len(y))] = draw.choice((-1, 1)) * (1 if number % 4 == 0 else 2047)
        operands.append((y, public_map))
    with session(*operands) as run:
        for number, (y, given) in enumerate(operands):
            if number:
                run.next_operand()
            assert given is not None
            public_map = given
            widths.add(mapped_width(run.headers[number], public_map))
            for most in (edge_of(run), draw.randint(0, edge_of(run)), 3):
                x = uniform(draw, most, len(shape) + 1, len(y))
                x[draw.randrange(len(x)), draw.randrange(len(y))] = most
                result = run.mapped_operand.project(x)
                assert result.shape == (public_map.results(len(x)),)
                assert result.tolist() == python_forms(x, y, public_map)
    assert widths >= {48, 64}


def test_rows_of_other_strides() -> None:
    public_map = flat_map((4, 5), 3)
    y, x = torch.arange(20), torch.arange(60).reshape(20, 3).T
    with session((y, public_map)) as run:
        assert run.mapped_operand.project(x).tolist() == python_forms(x, y, public_map)
        assert run.mapped_operand.project(x.flip(0)).tolist() == python_forms(x.flip(0), y, public_map)


@pytest.mark.parametrize("order", ["mapped first", "mapped second", "mapped twice"])
def test_operands_with_and_without_a_map_in_one_session(order: str) -> None:
    draw = random.Random(order)
    first, second = random_map(draw, (5, 6), 9), random_map(draw, (4, 3, 2), 99)
    mapped = [(uniform(draw, 2047, 30), first), (uniform(draw, 2047, 24), second)]
    plain = [(uniform(draw, 2047, 30), None), (uniform(draw, 2047, 2, 11), None)]
    operands: list[Operand] = {
        "mapped first": [mapped[0], plain[0], mapped[1], plain[1]],
        "mapped second": [plain[1], mapped[1], plain[0], mapped[0]],
        "mapped twice": [mapped[0], mapped[1], mapped[0], plain[1]],
    }[order]
    with session(*operands) as run:
        for number, (y, public_map) in enumerate(operands):
            if number:
                run.next_operand()
            for _ in range(2):
                if public_map is None:
                    x = uniform(draw, 2047, 3, y.shape[-1])
                    assert run.operand.multiply(x).tolist() == python_products(x, y)
                    assert not hasattr(run.operand, "project")
                else:
                    x = uniform(draw, 2047, len(public_map.shape) + 1, len(y))
                    assert run.mapped_operand.project(x).tolist() == python_forms(x, y, public_map)


def test_multiply_is_no_product_of_an_operand_with_a_map() -> None:
    with session((torch.arange(20), flat_map((4, 5), 3))) as run:
        assert not hasattr(run.mapped_operand, "multiply")


# --- refusals before anything is sent


@pytest.mark.parametrize("products", [0, 1], ids=["first product", "later product"])
@every_width
def test_out_of_range_is_refused_before_anything_is_sent(width: int, products: int) -> None:
    weight, entry = WEIGHTS[width]
    public_map = flat_map((5, 6), weight)
    y = torch.full((30,), entry)
    with session((y, public_map)) as run:
        good = torch.zeros(3, 30, dtype=torch.int64)
        good[1] = -edge_of(run)  # at every point: the map's largest sum is reached
        for _ in range(products):
            assert run.mapped_operand.project(good).tolist() == python_forms(good, y, public_map)
        bad = [good - (good < 0).long(), good * 2, good[:2], good[0], torch.cat([good, good]), good[:, :-1]]
        bad += [torch.cat([good, good[:, :1]], 1), good.double(), good.to(torch.int32)]
        bad += [good.sign() * (run.mapped_operand.limits.max_row + 1), torch.where(good == 0, good, -(1 << 63))]
        before = run.sent
        for rows in bad:
            with pytest.raises(RangeError) as refused:
                run.mapped_operand.project(rows)
            assert "\n" not in str(refused.value)
        assert run.sent == before
        assert run.mapped_operand.project(good).tolist() == python_forms(good, y, public_map)


def test_what_check_mapped_lets_pass_is_in_range() -> None:
    """And no less passes: Hoelder's bound is reached by rows of one sign."""
    public_map = flat_map((4, 5), 3)
    header = header_of(torch.full((20,), -7), 3)
    for limit in (10, 1000, 123_457):
        limits = Limits(max_row=1 << 40, max_result=limit)
        edge = limit // (7 * public_map.largest_sum)
        if edge:
            rows = torch.full((3, 20), edge)
            check_mapped(rows, header, public_map, limits)
            assert max(map(abs, python_forms(rows, torch.full((20,), -7), public_map))) <= limit
        with pytest.raises(RangeError, match=f"at most {limit} can be carried"):
            check_mapped(torch.full((3, 20), edge + 1), header, public_map, limits)


def test_products_before_an_operand_are_refused() -> None:
    one, two = link_pair("party_1", "party_2")
    one.send(MessageKind.MASKED_ROWS, masked_rows(3, 360))
    with pytest.raises(LinkError, match="before the first operand"):
        answer_all(two, BeaverFixedSide(two, two), [])
    assert two.bytes_sent == 0


# --- what party_2 releases


def test_noise_is_added_once_to_each_result_and_charged_before_sending() -> None:
    draw = random.Random(2)
    public_map = random_map(draw, (5, 6), 9)
    y, count = uniform(draw, 2047, 30), public_map.results(3)
    noise = uniform(draw, 1000, count)
    asked: list[int] = []
    sent: list[dict[MessageKind, int]] = []

    def release(wanted: int) -> Tensor:
        asked.append(wanted)
        sent.append(dict(run.trio.two_one.sent))
        return noise

    with session((y, public_map), release=release) as run:
        assert asked == [], "nothing was released with the operand"
        for number in range(3):
            x = uniform(draw, 2047, 3, 30)
            before = dict(run.trio.two_one.sent)
            exact = python_forms(x, y, public_map)
            assert run.mapped_operand.project(x).tolist() == [r + n for r, n in zip(exact, noise.tolist(), strict=True)]
            assert sent[number] == before
    assert asked == [count] * 3


def test_nothing_is_sent_where_release_refuses() -> None:
    def release(count: int) -> Tensor:
        raise LinkError(f"not {count} values more")

    public_map = flat_map((4, 5), 3)
    with session((torch.arange(20), public_map), release=release) as run:
        before = run.trio.two_one.sent.copy()
        with pytest.raises(PeerLost, match="party_2 is gone"):
            run.mapped_operand.project(torch.ones(3, 20, dtype=torch.int64))
        run.trio.threads[-1].join(60)
        assert run.trio.two_one.sent == before
        assert [str(run.trio.errors.pop())] == [f"not {2 * 4 + 1} values more"]


# --- where messages go


@every_width
def test_messages_go_only_where_the_protocol_sends_them(width: int) -> None:
    weight, entry = WEIGHTS[width]
    public_map = flat_map((5, 6), weight)
    y, x = torch.full((30,), entry), torch.arange(90).reshape(3, 30)
    with session((y, public_map)) as run:
        for _ in range(2):
            assert run.mapped_operand.project(x).tolist() == python_forms(x, y, public_map)
    trio, word, drawn = run.trio, width // 8, 4 if width == 32 else 8
    assert set(trio.two_one.received) == {MessageKind.LEVEL, MessageKind.MASKED_ROWS, MessageKind.FINISH}
    assert trio.one_two.received == {
        MessageKind.OPENED_OPERAND: OVERHEAD + 30 * word,
        MessageKind.RESULT_SHARE: 2 * (OVERHEAD + public_map.results(3) * word),
    }
    head = trio.two_one.received[MessageKind.MASKED_ROWS] - 2 * (OVERHEAD + 3 * 30 * word)
    assert 0 < head < 2 * 150
    # The dealer hears map and sizes from party_1, and nothing from party_2.
    assert set(trio.dealer_one.received) == {MessageKind.PUBLIC_MAP, MessageKind.TRIPLE, MessageKind.FINISH}
    assert trio.dealer_one.received[MessageKind.PUBLIC_MAP] == OVERHEAD + len(b"".join(pack(*public_map.to_message())))
    assert not trio.dealer_two.received
    assert trio.one_dealer.received == {MessageKind.SEED: OVERHEAD + 16}
    assert set(trio.two_dealer.received) == {MessageKind.SEED, MessageKind.TRIPLE_CORRECTION}
    # No force of a voxel in it: as many words as there are results.
    assert trio.two_dealer.received[MessageKind.TRIPLE_CORRECTION] == 2 * (OVERHEAD + drawn * public_map.results(3))


def test_map_and_shape_are_all_that_the_dealer_hears() -> None:
    """Whatever the rows and the operand are."""
    public_map, heard = flat_map((4, 5), 3), []
    for factor in (1, 3):
        requests: list[tuple[MessageKind, bytes]] = []

        def listen(link_1: Link, link_2: Link, requests: list[tuple[MessageKind, bytes]] = requests) -> None:
            receive = link_1.receive

            def record(*kinds: MessageKind) -> Received:
                requests.append(((message := receive(*kinds)).kind, bytes(message.payload)))
                return message

            link_1.receive = record  # type: ignore[method-assign]
            serve_dealer(link_1, link_2)

        with session((factor * torch.arange(20), public_map), dealer=listen) as run:
            run.mapped_operand.project(torch.full((3, 20), factor))
        heard.append(requests)
    assert heard[0] == heard[1]
    assert [kind for kind, _ in heard[0]] == [
        MessageKind.PUBLIC_MAP,
        MessageKind.TRIPLE,
        MessageKind.TRIPLE,
        MessageKind.FINISH,
    ]


# --- every mask once


@every_width
def test_equal_rows_and_operands_look_different_each_time(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[MessageKind, list[bytes]] = {}
    receive = Link.receive

    def record(link: Link, *due: MessageKind) -> Received:
        message = receive(link, *due)
        heard.setdefault(message.kind, []).append(bytes(message.payload))
        return message

    monkeypatch.setattr(Link, "receive", record)
    weight, entry = WEIGHTS[width]
    public_map = PublicMap((20, 25), (np.full((20, 3), 1), np.full((25, 3), 1)), 1.0)
    y, x = torch.full((500,), 7), torch.full((3, 500), 11)
    y[0] = min(entry * weight**2 // 20, 1 << 30)  # what makes the words wide
    with session((y, public_map), (y, public_map), (y, public_map)) as run:
        assert mapped_width(run.headers[0], public_map) == width
        for number in range(3):
            if number:
                run.next_operand()
            for _ in range(3):
                assert run.mapped_operand.project(x).tolist() == python_forms(x, y, public_map)
    # The low 32 bits of every word come first.
    for kind, count, times in ((MessageKind.MASKED_ROWS, 1500, 9), (MessageKind.OPENED_OPERAND, 500, 3)):
        start = [len(payload) - count * width // 8 for payload in heard[kind]]
        if width in (40, 48):
            seen = np.stack([np.frombuffer(p, np.uint32, count, s) for p, s in zip(heard[kind], start, strict=True)])
        else:
            words = np.uint32 if width == 32 else np.uint64
            seen = np.stack([np.frombuffer(p, words, count, s) for p, s in zip(heard[kind], start, strict=True)])
        assert seen.shape == (times, count)
        # About 0.02 pairs of equal words are expected, five with a chance of 4e-11; a repeated mask makes hundreds.
        assert len(np.unique(seen)) > seen.size - 5
        # Uniform: mean within seven standard deviations.
        share = seen.astype(np.float64) / 2.0 ** (8 * seen.itemsize)
        assert abs(share.mean() - 0.5) < 7 / (12 * seen.size) ** 0.5
    for kind in (MessageKind.TRIPLE_CORRECTION, MessageKind.RESULT_SHARE):
        assert len(set(heard[kind])) == len(heard[kind]) >= 9


@pytest.mark.parametrize("width", [32, 64])
def test_no_mask_is_drawn_twice(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each A, c and b one party and the dealer draw the same words, once each."""
    drawn: dict[bytes, list[tuple[str, int, tuple[int, ...]]]] = {}
    words, keys = KeyStream.words, keys_of_streams(monkeypatch)

    def record(stream: KeyStream, purpose: str, counter: int, shape: tuple[int, ...], bits: int) -> Any:
        drawn.setdefault(keys[id(stream)], []).append((purpose, counter, tuple(shape)))
        assert bits == width
        return words(stream, purpose, counter, shape, bits)

    monkeypatch.setattr(KeyStream, "words", record)
    weight, entry = WEIGHTS[width]
    public_map = flat_map((5, 6), weight)
    y = torch.full((30,), entry)
    plain = torch.full((7,), 1 if width == 32 else 1 << 45)
    with session((y, public_map), (plain, None), (y, public_map)) as run:
        assert width_of(run.headers[1]) == width
        for _ in range(3):
            run.mapped_operand.project(torch.ones(3, 30, dtype=torch.int64))
        run.next_operand()
        run.operand.multiply(torch.ones(3, 7, dtype=torch.int64))
        run.next_operand()
        run.mapped_operand.project(torch.ones(3, 30, dtype=torch.int64))
    rows, operands = sorted(drawn.values(), key=len, reverse=True)
    results = public_map.results(3)
    # One for each product and one that was made ready for each operand and never used.
    shapes = [((3, 30), (results,))] * 4 + [((3, 7), (3, 1))] * 2 + [((3, 30), (results,))] * 2
    expected = [("A", n, a) for n, (a, _) in enumerate(shapes)] + [("c", n, c) for n, (_, c) in enumerate(shapes)]
    assert sorted(rows) == sorted(2 * expected)
    assert sorted(operands) == sorted(2 * [("b", 0, (1, 30)), ("b", 1, (1, 7)), ("b", 2, (1, 30))])


# --- the dealer and party_2 refuse

SHAPE = {"operand": 0, "rows": 3, "columns": 1, "points": 20, "width": 48, "mapped": True}
OTHER = PublicMap((4, 6), (np.ones((4, 2), np.int64), np.ones((6, 2), np.int64)), 1.0)
BAD_SHAPES: dict[str, tuple[PublicMap | None, dict[str, Any]]] = {
    "no map": (None, {}),
    "a map of other points": (OTHER, {}),
    "more points": (flat_map((4, 5), 3), {"points": 21}),
    "another number of channels": (PublicMap((4, 5), flat_map((4, 5), 3).matrices, 1.0, channels=2), {}),
    "fewer points of a sample": (PublicMap((4, 5), flat_map((4, 5), 3).matrices, 1.0, torch.arange(7)), {}),
    "two columns": (flat_map((4, 5), 3), {"columns": 2}),
    "mapped a number": (flat_map((4, 5), 3), {"mapped": 1}),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_the_dealer_refuses_maps_and_shapes_that_do_not_go_together(name: str) -> None:
    public_map, change = BAD_SHAPES[name]
    trio = Trio()
    if public_map is not None:
        trio.one_dealer.send(MessageKind.PUBLIC_MAP, pack(*public_map.to_message()))
    trio.one_dealer.send(MessageKind.TRIPLE, pack(SHAPE | change))
    with pytest.raises(LinkError, match="refused"):
        serve_dealer(trio.dealer_one, trio.dealer_two)
    assert set(trio.dealer_two.sent) == {MessageKind.SEED}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        pack({}, []),
        pack({"shape": [4, 5], "unit": 1.0, "channels": 1}, []),
        pack({"shape": [4, 5], "unit": 1.0, "channels": 1}, [np.ones((4, 2), np.int32), np.ones((4, 2), np.int32)]),
        pack({"shape": [4, 5], "unit": 1.0, "channels": 1}, [np.ones((4, 2)), np.ones((5, 2))]),
    ],
    ids=["nothing", "empty", "no matrices", "of another grid", "floating"],
)
def test_the_dealer_refuses_what_is_no_map(payload: Any) -> None:
    trio = Trio()
    trio.one_dealer.send(MessageKind.PUBLIC_MAP, payload)
    with pytest.raises(LinkError):
        serve_dealer(trio.dealer_one, trio.dealer_two)
    assert set(trio.dealer_two.sent) == {MessageKind.SEED}


def test_the_dealer_keeps_to_the_last_map() -> None:
    """Control: with a map that goes with the shape it deals as many words as there are results."""
    trio, public_map = Trio(), flat_map((4, 5), 3)
    for each in (OTHER, public_map):
        trio.one_dealer.send(MessageKind.PUBLIC_MAP, pack(*each.to_message()))
    trio.one_dealer.send(MessageKind.TRIPLE, pack(SHAPE))
    trio.one_dealer.send(MessageKind.PUBLIC_MAP, pack(*OTHER.to_message()))
    trio.one_dealer.send(MessageKind.TRIPLE, pack(SHAPE))
    with pytest.raises(LinkError, match="does not go with the map before it"):
        serve_dealer(trio.dealer_one, trio.dealer_two)
    assert trio.dealer_two.sent[MessageKind.TRIPLE_CORRECTION] == OVERHEAD + 8 * public_map.results(3)


def alone(public_map: PublicMap) -> tuple[FixedOperand, Link, Link, Link]:
    """party_2's operand, its own end of the link to party_1, that of party_1, and that of the dealer."""
    one, two = link_pair("party_1", "party_2")
    dealer, mine = link_pair("dealer", "party_2")
    dealer.send(MessageKind.SEED, bytes(16))
    y = torch.full((public_map.points,), 2047)
    operand = BeaverFixedSide(two, mine).open_mapped(header_of(y, len(public_map.shape) + 1), y, public_map)
    return operand, two, one, dealer


def masked_rows(rows: int, words: int) -> bytes:
    head = b"".join(bytes(part) for part in pack({"product": 0, "rows": rows}, [np.zeros((1, 2), np.uint16)]))
    return len(head).to_bytes(4, "little") + head + bytes(words)


@pytest.mark.parametrize(
    ("rows", "words", "corrected"),
    [(2, 2 * 20 * 6, 5), (1, 20 * 6, 1), (3, 3 * 20 * 6 - 1, 9), (3, 3 * 19 * 6, 9), (3, 3 * 20 * 8, 9), (3, 360, 13)],
    ids=["two rows", "one row", "a byte too few", "other points", "other width", "a map of more control points"],
)
def test_party_2_refuses_a_product_of_another_shape(rows: int, words: int, corrected: int) -> None:
    """Before it releases anything; the dealer's words are those of another map where their number differs."""
    operand, two, one, dealer = alone(flat_map((4, 5), 90))
    dealer.send(MessageKind.TRIPLE_CORRECTION, bytes(8 * corrected))
    before = two.bytes_sent
    one.send(MessageKind.MASKED_ROWS, masked_rows(rows, words))
    with pytest.raises(LinkError, match=r"refused"):
        operand.answer(two.receive(), lambda _: pytest.fail("released"))
    assert two.bytes_sent == before


def test_the_request_that_the_others_are_made_of_is_answered() -> None:
    """Control; and z = B^T (E * Y) + c2 with E = 0."""
    operand, two, one, dealer = alone(public_map := flat_map((4, 5), 90))
    assert mapped_width(header_of(torch.full((20,), 2047), 3), public_map) == 48
    assert word_type(48) == torch.int64
    c2 = torch.arange(9)
    dealer.send(MessageKind.TRIPLE_CORRECTION, c2.numpy().data)
    one.send(MessageKind.MASKED_ROWS, masked_rows(3, 360))
    asked: list[int] = []

    def release(count: int) -> Tensor:
        asked.append(count)
        return release_all(count)

    operand.answer(two.receive(), release)
    assert asked == [9]
    one.receive(MessageKind.OPENED_OPERAND)
    answer = np.frombuffer(one.receive(MessageKind.RESULT_SHARE).payload, np.uint32, 9)
    assert answer.tolist() == c2.tolist()
