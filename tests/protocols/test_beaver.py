"""beaver: exact in words of every width, refusals before sending, where messages go, one mask for one use."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from joint.ends import (
    OVERHEAD,
    Session,
    Trio,
    answer_all,
    header_of,
    keys_of_streams,
    private_fixed,
    python_products,
    serving,
    session,
)
from torch import Tensor

from ppir_torch.arithmetic.csprng import KeyStream
from ppir_torch.arithmetic.words import WIDTHS, signed_words, unpack_words, word_type
from ppir_torch.errors import ConfigError, LinkError, PeerLost, RangeError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.bounds import Pairs, all_pairs
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import release_all
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.protocols import load_protocol, word_parts
from ppir_torch.protocols.beaver import BeaverFixedSide, BeaverMovingSide, serve_dealer, width_of
from ppir_torch.protocols.beaver_messages import MaskedRows
from ppir_torch.registration import OperandRequest
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, Received, link_pair
from ppir_torch.wire.payload import pack

# Of a product, as the dealer hears it.
SHAPE = {"operand": 0, "rows": 2, "columns": 3, "points": 5, "width": 40, "mapped": False}
# The largest entry of an operand of two points whose words are this wide.
ENTRIES = {32: 1 << 17, 40: 1 << 25, 48: 1 << 33, 64: 1 << 45}
every_width = pytest.mark.parametrize(("width", "entry"), ENTRIES.items())


def random_table(draw: random.Random, bits: int, *shape: int) -> Tensor:
    words = [draw.randint(-(1 << bits), 1 << bits) for _ in range(int(np.prod(shape)))]
    return torch.tensor(words).reshape(shape)


# --- width


def one_value(entry: int, points: int) -> OperandHeader:
    """Of an operand that is zero but for one entry."""
    return OperandHeader(0, points, 8, 1.0, 0.0, entry, entry**2)


# From 2^18 points on the rows have eight bits less: sqrt(2) 2^12 and sqrt(2^18) 2^4 are about the same.
@every_width
@pytest.mark.parametrize(("points", "row_bits"), [(2, 12), (1 << 18, 4)])
def test_the_width_is_the_narrowest_with_its_bits_for_the_rows(
    points: int, row_bits: int, width: int, entry: int
) -> None:
    header = one_value(entry, points)
    assert width_of(header) == width
    # Rows of this typical size: |X|_2 |Y|_2 stays below half of the ring.
    typical = 2**row_bits * (header.points * header.energy) ** 0.5
    assert typical < 2 ** (width - 1)
    if width > 32:
        narrower = WIDTHS[WIDTHS.index(width) - 1]
        assert 2 * typical > 2 ** (narrower - 2)
    assert width_of(one_value(2 * entry, points)) > width or width == 64


def column_bits(points: int) -> int:
    link, _ = link_pair("party_2", "party_1")
    return BeaverFixedSide(link, link).column_bits(points)


@pytest.mark.parametrize(
    ("points", "bits", "width"),
    [
        (1_500, 12, 40),
        (56_797, 12, 40),
        ((1 << 18) - 1, 12, 40),
        (1 << 18, 8, 32),
        (902_629, 8, 32),
        (5_000_000, 8, 32),
        (10_000_000, 8, 40),
        (200_000_000, 8, 40),
    ],
)
def test_the_width_of_an_image(points: int, bits: int, width: int) -> None:
    """A tenth of the largest value of J as its root mean square."""
    assert column_bits(points) == bits
    largest = 2 ** (bits - 1) - 1
    assert width_of(OperandHeader(0, points, 13, 1.0, 0.0, largest, points * round(largest / 10) ** 2)) == width


@pytest.mark.parametrize(("height", "bits", "width"), [(511, 12, 40), (512, 8, 32)])
def test_an_operand_of_2_to_18_points_takes_8_bits_and_words_of_32(height: int, bits: int, width: int) -> None:
    """Between real parties, from the image to the bytes on the wire; of one row less 12 bits and 40."""
    grid = Grid((512, height))
    points = grid.count
    draw = torch.Generator().manual_seed(height)
    image = Image(torch.randn(1, *grid.shape, generator=draw, dtype=torch.float64), grid)
    image.tensor[0, 0, 0] = 10  # of which the root mean square is a tenth
    with private_fixed("beaver", FixedParty(image)) as fixed:
        operand = fixed.operand(OperandRequest(Level(1, 0.0), rows=2))
        header, limits = operand.header, operand.remote.limits
        assert (header.points, header.max_abs) == (points, 2 ** (bits - 1) - 1)
        assert width_of(header) == width
        assert fixed.channel.received[MessageKind.OPENED_OPERAND] == OVERHEAD + points * width // 8
        # Entries of the typical size that the width was chosen for are in range.
        row = (2 << row_bits_of(points)) * torch.randint(0, 2, (2, points), generator=draw) - (1 << row_bits_of(points))
        values = (image.tensor.reshape(-1) - header.offset) / header.scale
        assert operand.remote.multiply(row).tolist() == (row @ values.round().to(torch.int64)).tolist()
        assert row_bits_of(points) + math.log2(points * header.energy) / 2 < math.log2(limits.max_result)


def row_bits_of(points: int) -> int:
    return 4 if points >= 1 << 18 else 12


@every_width
def test_exact_at_the_edges_of_the_ring_with_the_largest_noise(width: int, entry: int) -> None:
    noise = 0
    with session("beaver", torch.tensor([entry, 0]), release=lambda n: torch.full((n,), noise)) as run:
        limits = run.operand.limits
        x = min(limits.max_row, int(limits.max_result * (1 - 2e-9)) // entry)  # check_range keeps a margin
        assert x == limits.max_row or (x + 2) * entry > limits.max_result * (1 - 2e-9)
        for factor in (-1, 1):
            noise = factor * (limits.max_result // 32)  # the most that party_2 adds
            result = run.operand.multiply(torch.tensor([[x, 0], [-x, 0]]))
            assert result.dtype == torch.int64
            assert result.tolist() == [x * entry + noise, -x * entry + noise]
    assert limits.max_result + limits.max_result // 32 < 1 << (width - 1)


@pytest.mark.parametrize("y", [1, -1])
def test_exact_at_the_largest_row(y: int) -> None:
    """In wider words the operand's entries are so large that the result is at its edge first."""
    with session("beaver", torch.tensor([y, 0])) as run:
        largest = run.operand.limits.max_row
        assert largest == 1 << 30
        assert run.operand.multiply(torch.tensor([[largest, 0], [-largest, 7]])).tolist() == [y * largest, -y * largest]
        with pytest.raises(RangeError, match="entry of magnitude"):
            run.operand.multiply(torch.tensor([[largest + 1, 0]]))


# --- exactness


def test_exact_on_random_cases_with_rows_and_pairs_that_change() -> None:
    draw = random.Random(5)
    operands, reached = [], set()
    for _ in range(60):
        columns, points, bits = draw.randint(1, 5), draw.randint(1, 40), draw.choice((3, 11, 20, 30, 40))
        operands.append(random_table(draw, bits, columns, points))
    with session("beaver", *operands) as run:
        for number, y in enumerate(operands):
            if number:
                run.next_operand()
            reached.add(width_of(run.headers[number]))
            for _ in range(4):
                x = random_table(draw, draw.randint(1, 12), draw.randint(1, 8), y.shape[1])
                pairs: Pairs = all_pairs(x.shape[0], y.shape[0])
                pairs = draw.sample(pairs, draw.randint(1, len(pairs)))
                result = run.operand.multiply(x, pairs)
                assert result.dtype == torch.int64
                assert result.tolist() == python_products(x, y, pairs)
                assert run.operand.multiply(-x).tolist() == python_products(-x, y)
    assert reached == set(WIDTHS)


def test_rows_of_other_strides() -> None:
    y, x = torch.arange(40).reshape(2, 20), torch.arange(60).reshape(20, 3).T
    with session("beaver", y) as run:
        assert run.operand.multiply(x).tolist() == python_products(x, y)
        assert run.operand.multiply(x[:, ::1].flip(0)).tolist() == python_products(x.flip(0), y)


OUT_OF_RANGE = ([[1 << 30, 0]], [[1 << 33, 1]], [[-(1 << 63), 0]], [[0, 0, 0]], [[0, 0]] * 9, [[0.0, 0.0]])


@pytest.mark.parametrize("rows", [torch.tensor(rows) for rows in OUT_OF_RANGE], ids=str)
@pytest.mark.parametrize("products", [0, 1], ids=["first product", "later product"])
def test_out_of_range_is_refused_before_anything_is_sent(rows: Tensor, products: int) -> None:
    with session("beaver", torch.tensor([3, -3])) as run:
        for _ in range(products):
            run.operand.multiply(torch.tensor([[2, 1]]))
        before = run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent
        with pytest.raises(RangeError):
            run.operand.multiply(rows)
        assert (run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent) == before
        assert run.operand.multiply(torch.tensor([[2, 1]])).tolist() == [3]


@pytest.mark.parametrize("pairs", [[], [(0, 0), (0, 0)], [(1, 0)], [(0, 1)], [(-1, 0)], [(0, -1)]], ids=str)
def test_pairs_that_do_not_exist_are_refused_before_anything_is_sent(pairs: Pairs) -> None:
    with session("beaver", torch.tensor([3, -3])) as run:
        before = run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent
        with pytest.raises(LinkError):
            run.operand.multiply(torch.tensor([[2, 1]]), pairs)
        assert (run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent) == before


@pytest.mark.parametrize(
    ("values", "match"),
    [(torch.zeros(3), "float"), (torch.tensor([1, 2]), r"\(2,\)"), (torch.tensor([1, 2, -9]), "-9")],
)
def test_operand_that_does_not_fit_its_header_is_refused(values: Tensor, match: str) -> None:
    link, _ = link_pair("party_2", "party_1")
    with pytest.raises(RangeError, match=match):
        BeaverFixedSide(link, link).open(OperandHeader(0, 3, 2, 1.0, 0.0, 5, 30), values)
    assert link.bytes_sent == 0


# --- what is much goes in parts


@every_width
@pytest.mark.parametrize("few", [False, True], ids=["masks made again", "masks kept"])
def test_what_is_much_goes_in_several_messages(
    width: int, entry: int, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, openings and masks in parts, whose edges are at none of the others'."""
    monkeypatch.setattr(word_parts, "MESSAGE_WORDS", 40)
    monkeypatch.setattr(word_parts, "KEPT_WORDS", 1000 if few else 0)
    monkeypatch.setattr(word_parts, "ALIGNED", 1)
    monkeypatch.setattr(word_parts, "CPU_POINTS", 7)
    draw = torch.Generator().manual_seed(width)
    y = torch.randint(-3, 4, (3, 50), generator=draw)
    y[:, 7] = entry // 8
    with session("beaver", y, y[:1]) as run:
        assert width_of(run.headers[0]) == width
        for rows in (2, 2, 5):
            x = torch.randint(-100, 100, (rows, 50), generator=draw)
            assert run.operand.multiply(x).tolist() == python_products(x, y)
        run.next_operand()
        x = torch.randint(-100, 100, (1, 50), generator=draw)
        assert run.operand.multiply(x).tolist() == python_products(x, y[:1])
    heard = run.trio.two_one.received[MessageKind.MASKED_ROWS]
    assert heard > (2 * 2 * 50 + 5 * 50 + 50) * width // 8 + (2 * 3 + 7 + 2) * OVERHEAD


def test_rows_of_another_product_amid_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_parts, "MESSAGE_WORDS", 4)
    monkeypatch.setattr(word_parts, "ALIGNED", 1)
    send, numbers = MaskedRows.send, iter((0, 1))

    def confuse(message: MaskedRows, channel: Link) -> None:
        send(replace(message, number=next(numbers)), channel)

    monkeypatch.setattr(MaskedRows, "send", confuse)
    trio, found = Trio(), load_protocol("beaver")
    assert found.dealer is not None
    trio.start(found.dealer, trio.dealer_one, trio.dealer_two)
    values = torch.tensor([1, 2, 3, 4, 5, 6])
    trio.start(
        answer_all, trio.two_one, found.fixed_side(trio.two_one, trio.two_dealer, "cpu"), [(header_of(values), values)]
    )
    trio.one_two.send(MessageKind.LEVEL)
    operand = found.moving_side(trio.one_two, trio.one_dealer, "cpu").open(header_of(values))
    with pytest.raises(PeerLost):
        operand.multiply(torch.ones(1, 6, dtype=torch.int64))
    trio.stop()
    assert [str(error) for error in trio.errors] == ["MASKED_ROWS: rows of product 1, 0 is not whole; refused"]


# --- where messages go


@every_width
def test_messages_go_only_where_the_protocol_sends_them(width: int, entry: int) -> None:
    y, x = torch.zeros(3, 50, dtype=torch.int64), torch.arange(100).reshape(2, 50)
    y[:, 7] = entry // 8
    pairs = [(0, 0), (1, 0), (1, 2)]
    with session("beaver", y) as run:
        assert width_of(run.headers[0]) == width
        for _ in range(2):
            assert run.operand.multiply(x, pairs).tolist() == python_products(x, y, pairs)
    trio, word = run.trio, width // 8
    assert set(trio.two_one.received) == {MessageKind.LEVEL, MessageKind.MASKED_ROWS, MessageKind.FINISH}
    assert set(trio.one_two.received) == {MessageKind.OPENED_OPERAND, MessageKind.RESULT_SHARE}
    assert trio.one_two.received[MessageKind.OPENED_OPERAND] == OVERHEAD + 3 * 50 * word
    assert trio.one_two.received[MessageKind.RESULT_SHARE] == 2 * (OVERHEAD + len(pairs) * word)
    head = trio.two_one.received[MessageKind.MASKED_ROWS] - 2 * (OVERHEAD + 2 * 50 * word)
    assert 0 < head < 2 * 150
    # The dealer hears sizes from party_1 and nothing from party_2; party_1 hears a key from it.
    assert set(trio.dealer_one.received) == {MessageKind.TRIPLE, MessageKind.FINISH}
    shape = SHAPE | {"points": 50, "width": width}
    assert trio.dealer_one.received[MessageKind.TRIPLE] == 3 * (OVERHEAD + len(b"".join(pack(shape))))
    assert not trio.dealer_two.received
    assert trio.one_dealer.received == {MessageKind.SEED: OVERHEAD + 16}
    assert set(trio.two_dealer.received) == {MessageKind.SEED, MessageKind.TRIPLE_CORRECTION}
    drawn = 4 if width == 32 else 8  # bytes of what the masks are drawn in
    assert trio.two_dealer.received[MessageKind.TRIPLE_CORRECTION] == 2 * (OVERHEAD + drawn * 2 * 3)


def test_the_shape_is_all_that_the_dealer_hears() -> None:
    """Whatever the rows, the operand and the pairs are."""
    heard = []
    for factor, pairs in ((1, None), (3, [(1, 0)])):
        requests: list[bytes] = []

        def listen(link_1: Link, link_2: Link, requests: list[bytes] = requests) -> None:
            receive = link_1.receive

            def record(*kinds: MessageKind) -> Received:
                requests.append(bytes((message := receive(*kinds)).payload))
                return message

            link_1.receive = record  # type: ignore[method-assign]
            serve_dealer(link_1, link_2)

        values = factor * torch.tensor([[3, -3], [1, 2]])
        with serving("beaver", (header_of(values), values), dealer=listen) as run:
            run.next_operand()
            run.operand.multiply(factor * torch.tensor([[2, 1], [1, 1]]), pairs)
        heard.append(requests)
    assert heard[0] == heard[1]
    assert len(heard[0]) == 3  # the product, the next one, FINISH


def test_no_generator_of_torch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a predictable generator was used")

    for name in ("randint", "rand", "randn", "randperm", "Generator", "manual_seed"):
        monkeypatch.setattr(torch, name, refuse)
    for name in ("default_rng", "randint", "bytes"):
        monkeypatch.setattr(np.random, name, refuse)
    state = torch.get_rng_state()
    y, x = torch.arange(50) - 25, torch.arange(150).reshape(3, 50)
    with session("beaver", y) as run:
        assert run.operand.multiply(x).tolist() == python_products(x, y)
    assert torch.equal(torch.get_rng_state(), state)


# --- every mask once


def wiretap(monkeypatch: pytest.MonkeyPatch, *kinds: MessageKind) -> list[tuple[MessageKind, bytes]]:
    """Every message of these kinds that is received on any link from now on."""
    heard: list[tuple[MessageKind, bytes]] = []
    receive = Link.receive

    def record(link: Link, *due: MessageKind) -> Received:
        message = receive(link, *due)
        if message.kind in kinds:
            heard.append((message.kind, bytes(message.payload)))
        return message

    monkeypatch.setattr(Link, "receive", record)
    return heard


def test_equal_rows_and_operands_look_different_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = wiretap(monkeypatch, MessageKind.MASKED_ROWS, MessageKind.OPENED_OPERAND, MessageKind.TRIPLE_CORRECTION)
    y, x = torch.full((1, 500), 7), torch.full((2, 500), 11)
    with session("beaver", y, y, y) as run:
        assert width_of(run.headers[0]) == 32
        for number in range(3):
            if number:
                run.next_operand()
            for _ in range(3):
                assert run.operand.multiply(x).tolist() == python_products(x, y)
    for kind, count, times in ((MessageKind.MASKED_ROWS, 1000, 9), (MessageKind.OPENED_OPERAND, 500, 3)):
        seen = np.stack([np.frombuffer(payload[-4 * count :], np.uint32) for k, payload in heard if k is kind])
        assert seen.shape == (times, count)
        # About 0.01 pairs of equal words are expected, five with a chance below 1e-12; a repeated mask makes hundreds.
        assert len(np.unique(seen)) > seen.size - 5
        # Uniform in [0, 2^32): mean within seven standard deviations.
        assert abs(seen.mean() - 2**31) < 7 * 2**32 / (12 * seen.size) ** 0.5
    corrections = [payload for kind, payload in heard if kind is MessageKind.TRIPLE_CORRECTION]
    assert len(set(corrections)) == len(corrections) >= 9


@pytest.mark.parametrize(("factor", "width"), [(1, 32), (1 << 20, 40), (1 << 40, 64)])
def test_words_are_drawn_once_and_where_they_belong(factor: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A and c1 in party_1 and the dealer, one number for each product; b in party_2 and the dealer, one per operand.

    Words of 32 bits in 32 bits, all others in 64.
    """
    drawn: dict[bytes, list[tuple[str, int, tuple[int, ...]]]] = {}
    words, keys = KeyStream.words, keys_of_streams(monkeypatch)

    def record(stream: KeyStream, purpose: str, counter: int, shape: tuple[int, ...], bits: int) -> Any:
        drawn.setdefault(keys[id(stream)], []).append((purpose, counter, tuple(shape)))
        assert bits == (32 if width == 32 else 64)
        return words(stream, purpose, counter, shape, bits)

    monkeypatch.setattr(KeyStream, "words", record)
    first, second = factor * torch.arange(10).reshape(2, 5), factor * torch.arange(7)
    with session("beaver", first, second) as run:
        assert [width_of(header) for header in run.headers] == [width, width]
        run.operand.multiply(torch.ones(3, 5, dtype=torch.int64))
        run.operand.multiply(torch.ones(3, 5, dtype=torch.int64), [(1, 0)])
        run.next_operand()
        run.operand.multiply(torch.ones(4, 7, dtype=torch.int64))
    rows, operands = sorted(drawn.values(), key=len, reverse=True)
    assert {purpose for purpose, *_ in rows} == {"A", "c"}
    # Three products, one made ready for the first operand that never came, one for the second.
    shapes = [(3, 5), (3, 5), (3, 5), (4, 7), (4, 7)]
    assert sorted(set(rows)) == sorted(
        [("A", n, shape) for n, shape in enumerate(shapes)]
        + [("c", n, (shape[0], 2 if shape[1] == 5 else 1)) for n, shape in enumerate(shapes)]
    )
    assert sorted(operands) == 2 * [("b", 0, (2, 5))] + 2 * [("b", 1, (1, 7))]
    assert all(rows.count(one) == 2 for one in rows)


# --- products made ready before they are asked for


def triples(run: Session) -> float:
    """How many were asked for."""
    shape = SHAPE | {"points": 12, "width": 32}
    return run.trio.one_dealer.sent[MessageKind.TRIPLE] / (OVERHEAD + len(b"".join(pack(shape))))


def test_the_next_product_is_made_ready_and_given_up_when_rows_change() -> None:
    y = torch.arange(24).reshape(2, 12) - 9
    with session("beaver", y, 2 * y) as run:
        asked = []

        def multiply(rows: int, pairs: Pairs | None = None) -> None:
            x = torch.arange(12 * rows).reshape(rows, 12)
            values = len(run.operands) * y
            assert run.operand.multiply(x, pairs).tolist() == python_products(x, values, pairs)
            asked.append(triples(run))

        for rows in (2, 2, 2, 3, 3, 1, 2):
            multiply(rows)
        multiply(2, [(1, 1)])  # other pairs need no other triple
        run.next_operand()
        multiply(2)
    # One for each product and one ahead; one more where what was made ready was of another shape or operand.
    # What is made ready is of the rows that last followed a product of so many: after 2 came 3 once.
    assert asked == [2, 3, 4, 6, 7, 9, 11, 13, 15]


def test_products_that_take_turns_are_made_ready_in_turn() -> None:
    y = torch.arange(24).reshape(2, 12) - 9
    with session("beaver", y) as run:
        asked = []
        for rows in (2, 3, 2, 3, 2, 3):
            x = torch.arange(12 * rows).reshape(rows, 12)
            assert run.operand.multiply(x).tolist() == python_products(x, y)
            asked.append(triples(run))
    assert asked == [2, 4, 6, 7, 8, 9]


# --- party_2 refuses


class Alone:
    """party_2 with an operand of two columns and three points, for products of at most eight rows."""

    def __init__(self, width: int = 32) -> None:
        self.one, self.two = link_pair("party_1", "party_2")
        dealer, mine = link_pair("dealer", "party_2")
        self.dealer = dealer
        dealer.send(MessageKind.SEED, bytes(16))
        self.side = BeaverFixedSide(self.two, mine)
        values = torch.tensor([[3, -3, 1], [0, 2, 5]]) * (ENTRIES[width] // 8)
        assert width_of(header_of(values)) == width
        self.operand = self.side.open(header_of(values), values)
        self.sent = self.two.bytes_sent
        self.released: list[int] = []

    def ask(self, payload: bytes | list[Any], kind: MessageKind = MessageKind.MASKED_ROWS) -> None:
        self.one.send(kind, payload)
        self.operand.answer(self.two.receive(), self.release)

    def release(self, count: int) -> Tensor:
        self.released.append(count)
        return release_all(count)

    def refuses(
        self, payload: bytes | list[Any], kind: MessageKind = MessageKind.MASKED_ROWS, match: str = "."
    ) -> None:
        before, released = self.two.bytes_sent, list(self.released)
        with pytest.raises(LinkError, match=match):
            self.ask(payload, kind)
        assert (self.two.bytes_sent, self.released) == (before, released)


PAIRS = np.array([[0, 0], [1, 1]], np.uint16)


def asking(meta: Any = None, arrays: Any = None, words: int = 4 * 2 * 3, **changes: Any) -> bytes:
    """MASKED_ROWS of product 0 with two rows, or what the arguments make of it."""
    meta = {"product": 0, "rows": 2} | changes if meta is None else meta
    head = b"".join(pack(meta, [PAIRS] if arrays is None else arrays))
    return len(head).to_bytes(4, "little") + head + bytes(words)


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "three bytes": b"\0\0\0",
    "no head": bytes(4),
    "head that never ends": b"\xff\xff\xff\xff" + asking()[4:],
    "head that ends too soon": (5).to_bytes(4, "little") + asking()[4:],
    "a word too few": asking(words=20),
    "a word too many": asking(words=28),
    "a byte too many": asking(words=25),
    "other width": asking(words=5 * 2 * 3),
    "no number": asking({"rows": 2}),
    "number a word": asking(product="0"),
    "number a fraction": asking(product=0.0),
    "number true": asking(product=True),
    "number negative": asking(product=-1),
    "no rows": asking({"product": 0}),
    "rows a list": asking(rows=[2]),
    "rows true": asking(rows=True, arrays=[PAIRS[:1]], words=12),
    "0 rows": asking(rows=0, words=0),
    "9 rows": asking(rows=9, words=9 * 12),
    "meta a list": asking([0, 2]),
    "no pairs": asking(arrays=[]),
    "two arrays": asking(arrays=[PAIRS, PAIRS]),
    "empty pairs": asking(arrays=[PAIRS[:0]]),
    "one pair twice": asking(arrays=[PAIRS[[0, 0]]]),
    "pairs of three": asking(arrays=[np.zeros((1, 3), np.uint16)]),
    "flat pairs": asking(arrays=[PAIRS[0]]),
    "signed pairs": asking(arrays=[PAIRS.astype(np.int16)]),
    "floating pairs": asking(arrays=[np.full((1, 2), np.nan)]),
    "beyond the rows": asking(arrays=[np.array([[2, 0]], np.uint16)]),
    "beyond the columns": asking(arrays=[np.array([[0, 2]], np.uint16)]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_refused(name: str) -> None:
    Alone().refuses(MALFORMED[name])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_request_that_the_malformed_ones_are_made_of_is_answered(width: int) -> None:
    """Control; and z = E Y^T + c2 with E = 0."""
    alone = Alone(width)
    c2 = torch.tensor([[1, 2], [3, -4]], dtype=word_type(width))
    alone.dealer.send(MessageKind.TRIPLE_CORRECTION, c2.numpy().data)
    alone.ask(asking(words=2 * 3 * width // 8))
    assert alone.released == [2]
    alone.one.receive(MessageKind.OPENED_OPERAND)
    answer = unpack_words(alone.one.receive(MessageKind.RESULT_SHARE).payload, 2, width)
    assert signed_words(answer, width).tolist() == [1, -4]


@pytest.mark.parametrize(
    "kind", [MessageKind.PRODUCT, MessageKind.REPLY_CIPHERTEXTS, MessageKind.OPENING, MessageKind.TRIPLE]
)
def test_other_kinds_are_refused(kind: MessageKind) -> None:
    Alone().refuses(asking(), kind, match=f"{kind.name} is not due")


def test_a_product_is_answered_once() -> None:
    """With one c2 for two products party_1 would have the difference of two shares, and R of an A of its own choice."""
    alone = Alone()
    for _ in range(4):
        alone.dealer.send(MessageKind.TRIPLE_CORRECTION, bytes(4 * 4))
    alone.ask(asking())
    alone.refuses(asking(), match="product 0 was answered before")
    alone.ask(asking(product=2))  # product 1 was made ready and not used
    for number in (0, 1, 2):
        alone.refuses(asking(product=number), match=f"product {number} was answered before")
    alone.ask(asking(product=3))
    assert alone.released == [2, 2, 2]


@pytest.mark.parametrize(("width", "bits"), [(32, 32), (40, 64), (48, 64), (64, 64)])
def test_a_product_of_other_rows_than_the_dealers_is_refused(width: int, bits: int) -> None:
    alone = Alone(width)
    alone.dealer.send(MessageKind.TRIPLE_CORRECTION, bytes(bits // 8 * 2 * 2))
    match = f"{bits // 2} bytes where 6 words of {bits} bits are due"
    alone.refuses(asking(rows=3, words=9 * width // 8), match=match)


@pytest.mark.parametrize(("width", "drawn", "due"), [(32, 64, 32), (40, 32, 64), (64, 32, 64)])
def test_a_correction_of_another_ring_than_the_operands_is_refused(width: int, drawn: int, due: int) -> None:
    """Where party_1 told the dealer another width than the operand's header has."""
    alone = Alone(width)
    alone.dealer.send(MessageKind.TRIPLE_CORRECTION, bytes(drawn // 8 * 2 * 2))
    match = f"{drawn // 2} bytes where 4 words of {due} bits are due"
    alone.refuses(asking(words=6 * width // 8), match=match)


def test_products_before_an_operand_are_refused() -> None:
    one, two = link_pair("party_1", "party_2")
    one.send(MessageKind.MASKED_ROWS, asking())
    with pytest.raises(LinkError, match="before the first operand"):
        answer_all(two, BeaverFixedSide(two, two), [])
    assert two.bytes_sent == 0


# --- the dealer refuses


@pytest.mark.parametrize(
    "meta",
    [
        *(SHAPE | {name: value} for name in SHAPE for value in (-1, None, True, 2.0, "2")),
        *(SHAPE | {"width": width} for width in (1, 8, 16, 31, 33, 36, 44, 56, 63, 65, 128, "40", [40], -40)),
        *(SHAPE | {name: value} for name in SHAPE if name != "operand" for value in (0, 1 << 40)),
        *({k: v for k, v in SHAPE.items() if k != name} for name in SHAPE),
        SHAPE | {"seed": 1},
        [0, 2, 3, 5],
    ],
    ids=str,
)
def test_the_dealer_refuses_what_is_no_shape(meta: Any) -> None:
    trio = Trio()
    trio.one_dealer.send(MessageKind.TRIPLE, pack(meta))
    with pytest.raises(LinkError, match=r"refused|malformed payload"):
        serve_dealer(trio.dealer_one, trio.dealer_two)
    assert set(trio.dealer_two.sent) == {MessageKind.SEED}


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        (SHAPE, {"columns": 2}),
        (SHAPE, {"points": 6}),
        *((SHAPE | {"width": width}, {"width": 32}) for width in (40, 48, 64)),
        *((SHAPE | {"width": 32}, {"width": width}) for width in (40, 48, 64)),
    ],
)
def test_the_dealer_keeps_to_the_operands_shape(shape: dict[str, int], change: dict[str, int]) -> None:
    trio = Trio()
    trio.one_dealer.send(MessageKind.TRIPLE, pack(shape))
    trio.one_dealer.send(MessageKind.TRIPLE, pack(shape | change))
    with pytest.raises(LinkError, match="is not the operand's shape"):
        serve_dealer(trio.dealer_one, trio.dealer_two)


def test_the_dealer_draws_the_mask_of_an_operand_again_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands take turns: each has the same b whenever it comes, and never one of another shape; no A comes twice."""
    drawn: list[tuple[str, int, bytes]] = []
    words = KeyStream.words

    def record(stream: KeyStream, purpose: str, counter: int, shape: tuple[int, ...], bits: int) -> Any:
        found = words(stream, purpose, counter, shape, bits)
        drawn.append((purpose, counter, found.tobytes()))
        return found

    monkeypatch.setattr(KeyStream, "words", record)
    trio = Trio()
    for operand in (0, 1, 0, 1, 1):
        trio.one_dealer.send(MessageKind.TRIPLE, pack(SHAPE | {"operand": operand}))
    trio.one_dealer.send(MessageKind.TRIPLE, pack(SHAPE | {"columns": 4}))
    with pytest.raises(LinkError, match="is not the operand's shape"):
        serve_dealer(trio.dealer_one, trio.dealer_two)
    masks = [(counter, found) for purpose, counter, found in drawn if purpose == "b"]
    assert [counter for counter, _ in masks] == [0, 1, 0, 1]
    assert (masks[0], masks[1]) == (masks[2], masks[3])
    assert masks[0][1] != masks[1][1]
    fresh = [found for purpose, _, found in drawn if purpose != "b"]
    assert len(set(fresh)) == len(fresh) == 2 * 5


# --- party_1 refuses


def test_keys_operands_and_shares_of_another_length_are_refused() -> None:
    trio, values = Trio(), torch.tensor([[3, -3], [1, 1]])
    moving, header = BeaverMovingSide(trio.one_two, trio.one_dealer), header_of(values)
    for size in (0, 15, 17, 32):
        trio.two_one.send(MessageKind.OPENED_OPERAND, bytes(size))
        with pytest.raises(LinkError, match=f"{size} bytes where 4 words of 32 bits are due"):
            moving.open(header)
    trio.two_one.send(MessageKind.OPENED_OPERAND, bytes(16))
    operand = moving.open(header)
    trio.dealer_one.send(MessageKind.SEED, bytes(15))
    with pytest.raises(LinkError, match="SEED: 15 bytes where a key of 16 is due"):
        operand.multiply(torch.tensor([[2, 1]]))
    trio.dealer_one.send(MessageKind.SEED, bytes(16))
    for size in (0, 4, 7, 12, 16):
        trio.two_one.send(MessageKind.RESULT_SHARE, bytes(size))
        with pytest.raises(LinkError, match=f"{size} bytes where 2 words of 32 bits are due"):
            operand.multiply(torch.tensor([[2, 1]]))


def test_without_a_dealer_it_does_not_start() -> None:
    link, _ = link_pair("party_1", "party_2")
    for side in (load_protocol("beaver").moving_side, load_protocol("beaver").fixed_side):
        with pytest.raises(ConfigError, match="no link to the dealer"):
            side(link, None, "cpu")


# --- lost parties


def test_a_lost_dealer_ends_both_parties() -> None:
    def vanish(link_1: Link, link_2: Link) -> None:
        for link in (link_1, link_2):
            link.send(MessageKind.SEED, bytes(16))
        link_1.receive(MessageKind.TRIPLE)
        for link in (link_1, link_2):
            link.close()

    trio, values = Trio(), torch.tensor([3, -3])
    trio.start(vanish, trio.dealer_one, trio.dealer_two)
    fixed = BeaverFixedSide(trio.two_one, trio.two_dealer)
    trio.start(answer_all, trio.two_one, fixed, [(header_of(values), values)])
    moving = BeaverMovingSide(trio.one_two, trio.one_dealer)
    trio.one_two.send(MessageKind.LEVEL)
    operand = moving.open(header_of(values))
    with pytest.raises(PeerLost, match=r"(party_2|dealer) is gone"):
        operand.multiply(torch.tensor([[2, 1]]))
    trio.one_two.close()
    trio.threads[1].join(60)
    assert [type(e) for e in trio.errors] == [PeerLost]


def test_the_dealer_ends_with_either_party() -> None:
    for lost in ("one_dealer", "two_dealer"):
        trio = Trio()
        trio.start(serve_dealer, trio.dealer_one, trio.dealer_two)
        getattr(trio, lost).close()
        if lost == "two_dealer":  # noticed at the latest when party_1 leaves
            trio.one_dealer.send(MessageKind.TRIPLE, pack(SHAPE))
            trio.one_dealer.close()
        trio.threads[0].join(60)
        assert not trio.threads[0].is_alive()
        assert trio.errors == []


def test_a_lost_party_2_ends_party_1() -> None:
    trio, values = Trio(), torch.tensor([3, -3])

    def leave(link: Link, fixed: BeaverFixedSide) -> None:
        link.receive(MessageKind.LEVEL)
        fixed.open(header_of(values), values)
        link.receive(MessageKind.MASKED_ROWS)
        link.close()

    trio.start(serve_dealer, trio.dealer_one, trio.dealer_two)
    trio.start(leave, trio.two_one, BeaverFixedSide(trio.two_one, trio.two_dealer))
    moving = BeaverMovingSide(trio.one_two, trio.one_dealer)
    trio.one_two.send(MessageKind.LEVEL)
    operand = moving.open(header_of(values))
    with pytest.raises(PeerLost, match="party_2 is gone"):
        operand.multiply(torch.tensor([[2, 1]]))
    trio.one_dealer.close()
    trio.threads[0].join(60)
    assert trio.errors == []


# --- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("on", [lambda x: x, lambda x: x.cuda()], ids=["rows on the CPU", "rows on the GPU"])
@pytest.mark.parametrize(("largest", "row_bits", "width"), [(3000, 20, 40), (30, 12, 32)])
def test_exact_on_cuda(largest: int, row_bits: int, width: int, on: Callable[[Tensor], Tensor]) -> None:
    y = torch.stack([torch.arange(-3000, 3000) % (2 * largest) - largest, torch.arange(6000) % 7])
    x = (torch.arange(18_000) * 1_000_003 % 2**row_bits - 2 ** (row_bits - 1)).reshape(3, 6000)
    with session("beaver", y, device="cuda") as run:
        assert width_of(run.headers[0]) == width
        for pairs in (None, [(2, 1), (0, 0)]):
            result = run.operand.multiply(on(x), pairs)
            assert not result.is_cuda
            assert result.tolist() == python_products(x, y, pairs)
