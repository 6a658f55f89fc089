"""Every exact protocol: the products are Python's, whatever the sizes, and what could leave the range is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
import torch
from joint.ends import Session, python_products, session
from torch import Tensor

from ppir_torch.config.protocols import PROTOCOLS
from ppir_torch.errors import LinkError, PeerLost, RangeError
from ppir_torch.joint.bounds import Limits, Pairs, all_pairs
from ppir_torch.protocols import load_protocol
from ppir_torch.wire.link import link_pair

EXACT = ("spdz", "beaver", "bfv", "ckks")
OPERANDS, CASES = 50, 1000
MULTIPLICATIONS = {"spdz": 20, "beaver": 20, "bfv": 8, "ckks": 8}  # with one operand; of several products each
MARGIN = 1 - 2e-9  # check_range keeps 1e-9 for its own rounding
SIZES = (1, 2, 6, 11, 11, 20, 30, 40)  # of an operand's entries, bits
SIZES_IN_36_BITS = (1, 2, 6, 11, 11, 20, 25, 30)  # that leave results of 36 bits room for rows of some size

LONGEST_ROW = ("bfv",)  # where the length of a row is bounded, beside its entries

every_protocol = pytest.mark.parametrize("protocol", EXACT)


def draw_operand(draw: random.Random, sizes: tuple[int, ...]) -> Tensor:
    """(columns, points) of any of these sizes; in one of four of one magnitude, which makes bounds tight."""
    columns, points = draw.choice((1, 1, 1, 3)), draw.choice((1, 2, 3, 7, 20, 61))
    largest = (1 << draw.choice(sizes)) - 1
    low = largest if draw.random() < 1 / 4 else 0
    rows = [[draw.choice((-1, 1)) * draw.randint(low, largest) for _ in range(points)] for _ in range(columns)]
    rows[draw.randrange(columns)][draw.randrange(points)] = largest
    return torch.tensor(rows)


def largest_entry(limits: Limits, total: int, entries: int = 1) -> int:
    """Of a row with so many entries of this size, where the operand's are at most `total` in sum."""
    by_length = limits.max_row if math.isinf(limits.max_norm) else math.floor(limits.max_norm / math.sqrt(entries))
    return min(limits.max_row, by_length, int(limits.max_result * MARGIN) // total)


def draw_rows(draw: random.Random, y: Tensor, limits: Limits, most: int) -> Tensor:
    """(1 to `most` rows, points) in range, each of any size; in one of three at the edge of the range."""
    largest, points = int(y.abs().max()), y.shape[1]
    one, every = largest_entry(limits, largest), largest_entry(limits, largest * points, points)
    rows = []
    for _ in range(draw.randint(1, most)):
        sign, kind = draw.choice((-1, 1)), draw.choice(("one", "every", "any", "any", "any", "any"))
        if kind == "one":
            row = torch.zeros(points, dtype=torch.int64)
            row[y.abs().max(0).values.argmax()] = sign * one
        elif kind == "every":
            row = sign * every * y[draw.randrange(len(y))].sign()
        else:
            size = min(every, 1 << draw.randint(0, every.bit_length()))
            row = torch.tensor([draw.randint(-size, size) for _ in range(points)])
        rows.append(row)
    return torch.stack(rows)


def draw_pairs(draw: random.Random, rows: int, columns: int) -> Pairs | None:
    pairs = all_pairs(rows, columns)
    return draw.choice((None, draw.sample(pairs, draw.randint(1, len(pairs)))))


def running(protocol: str, draw: random.Random, count: int, rows: int) -> Iterator[tuple[Session, Tensor]]:
    """Operand after operand of one session, with one key."""
    operands = [draw_operand(draw, SIZES_IN_36_BITS if protocol == "bfv" else SIZES) for _ in range(count)]
    with session(protocol, *operands, rows=rows) as run:
        for number, y in enumerate(operands):
            if number:
                run.next_operand()
            yield run, y


def test_the_protocols_exist() -> None:
    assert set(EXACT) <= set(PROTOCOLS.names())


@pytest.mark.parametrize(
    "protocol", [pytest.param(name, marks=[] if name == "beaver" else pytest.mark.slow) for name in EXACT]
)
def test_a_thousand_products_are_pythons(protocol: str) -> None:
    draw, done, at_the_edge = random.Random(protocol), 0, {"result": 0, "row": 0, "length": 0}
    for rows in (1, 8):
        for run, y in running(protocol, draw, OPERANDS // 2, rows):
            limits = run.operand.limits
            for _ in range(MULTIPLICATIONS[protocol]):
                x = draw_rows(draw, y, limits, rows)
                pairs = draw_pairs(draw, x.shape[0], y.shape[0])
                result = run.operand.multiply(x, pairs)
                assert result.dtype == torch.int64
                assert result.tolist() == python_products(x, y, pairs)
                size = max(map(abs, result.tolist()))
                at_the_edge["result"] += size > 0.99 * limits.max_result
                at_the_edge["row"] += int(x.abs().max()) > 0.99 * limits.max_row
                several = x[(x != 0).sum(1) > 1].double().norm(dim=1)
                at_the_edge["length"] += bool((several > 0.99 * limits.max_norm).any())
                done += len(result)
    assert done >= CASES
    if protocol not in LONGEST_ROW:
        assert at_the_edge.pop("length") == 0
    assert min(at_the_edge.values()) > 20, "the cases reach the edges of the range"


@every_protocol
def test_what_is_out_of_range_is_refused_before_anything_is_sent(protocol: str) -> None:
    draw, refused = random.Random(f"{protocol} out of range"), 0
    for run, y in running(protocol, draw, 40, 4):
        limits, largest, points = run.operand.limits, int(y.abs().max()), y.shape[1]
        entry = largest_entry(limits, largest)
        beyond = int(limits.max_result * (1 + 2e-9)) // largest + 1
        edge, other = torch.zeros(1, points, dtype=torch.int64), draw.choice((-1, 1))
        edge[0, int(y.abs().max(0).values.argmax())] = other * entry
        bad = [torch.where(edge != 0, other * (limits.max_row + 1), 0)]
        if beyond <= limits.max_row:
            bad.append(torch.where(edge != 0, other * beyond, 0))
        if (entry < limits.max_row or protocol in LONGEST_ROW) and points > 1:
            bad.append(torch.full_like(edge, entry))  # by Cauchy and Schwarz, and by Hoelder; or by its length
        bad += [edge[:, :-1], torch.cat([edge, edge[:, :1]], 1), edge.expand(5, -1), edge[0], edge[:0], edge.double()]
        sent = [link.bytes_sent for link in run.trio.links]
        for rows in bad:
            with pytest.raises(RangeError):
                run.operand.multiply(rows)
            refused += 1
        assert [link.bytes_sent for link in run.trio.links if link.me == "party_1"] == [
            n for n, link in zip(sent, run.trio.links, strict=True) if link.me == "party_1"
        ]
        # The session goes on, and the row at the edge is in range.
        assert run.operand.multiply(edge).tolist() == python_products(edge, y)
    assert refused > 250


@every_protocol
def test_a_row_too_long_is_refused_before_anything_is_sent_where_there_is_a_limit(protocol: str) -> None:
    """Its entries and its results are in range. Where there is no limit the same row is multiplied."""
    y = torch.tensor([[1, 0, -1, 0, 1, 0]])
    with session(protocol, y) as run:
        limits, side = run.operand.limits, run.operand
        assert math.isinf(limits.max_norm) == (protocol not in LONGEST_ROW)
        entry = min(limits.max_row, 1 << 20, int(limits.max_result * MARGIN) // 8)
        within = torch.full((1, 6), largest_entry(limits, 8, 6) if protocol in LONGEST_ROW else entry)
        sent = run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent
        if protocol in LONGEST_ROW:
            for bad in (within + 1, torch.full_like(within, entry), torch.cat([within, within + 1])):
                assert int(bad.max()) <= limits.max_row
                with pytest.raises(RangeError, match="a row of length"):
                    side.multiply(bad)
        assert (run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent) == sent
        assert side.multiply(within).tolist() == python_products(within, y)


@every_protocol
def test_bits_of_the_columns(protocol: str) -> None:
    """12, but where rounding averages out and fewer make words smaller."""
    entry, (link, _) = load_protocol(protocol), link_pair("party_2", "party_1")
    side = entry.fixed_side(link, link, "cpu")
    assert [side.column_bits(n) for n in (1, (1 << 18) - 1)] == [12, 12]
    assert {side.column_bits(n) for n in (1 << 18, 1 << 27)} == {8 if protocol == "beaver" else 12}


@every_protocol
@pytest.mark.parametrize("pairs", [[], [(0, 0), (0, 0)], [(2, 0)], [(0, 2)], [(-1, 0)], [(0, -1)]], ids=str)
def test_pairs_that_do_not_exist_are_refused_before_anything_is_sent(protocol: str, pairs: Pairs) -> None:
    y, x = torch.tensor([[3, -3], [1, 2]]), torch.tensor([[2, 1], [0, 1]])
    with session(protocol, y) as run:
        sent = run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent
        with pytest.raises(LinkError):
            run.operand.multiply(x, pairs)
        assert (run.trio.one_two.bytes_sent, run.trio.one_dealer.bytes_sent) == sent
        assert run.operand.multiply(x).tolist() == [3, 4, -3, 2]


@every_protocol
@pytest.mark.parametrize("used", [None, torch.arange(9_000, 9_500), torch.tensor([0, 8_192, 19_999]), torch.arange(1)])
def test_rows_that_are_zero_outside_some_positions(protocol: str, used: Tensor | None) -> None:
    """Encrypted products may skip what is not used; blocks of zeros that are used count as zeros."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(-2047, 2048, (2, 20_000), generator=generator)
    x = torch.zeros(3, 20_000, dtype=torch.int64)
    place = torch.arange(9_000, 9_500) if used is None else used
    x[:, place] = torch.randint(-2047, 2048, (3, len(place)), generator=generator)
    x[1] = 0
    with session(protocol, y) as run:
        for pairs in (None, [(2, 1), (1, 0)]):
            assert run.operand.multiply(x, pairs, used).tolist() == python_products(x, y, pairs)
        assert run.operand.multiply(torch.zeros_like(x), None, used).tolist() == [0] * 6


# --- what party_2 releases


@every_protocol
def test_release_is_asked_once_a_product_before_anything_is_sent(protocol: str) -> None:
    """And its noise is added exactly, for results at both ends of the range, too."""
    y, asked, sent = torch.tensor([[1 << 21, 0, 3], [5, 1, -2]]), [], []
    noise = torch.tensor([0])

    def release(count: int) -> Tensor:
        asked.append(count)
        sent.append(run.trio.two_one.bytes_sent)
        return noise

    with session(protocol, y, release=release) as run:
        # Nothing was released with the operand.
        assert asked == []
        limits, before = run.operand.limits, run.trio.two_one.bytes_sent
        edge = largest_entry(limits, 1 << 21)
        assert edge == limits.max_row or edge << 21 > 0.99 * limits.max_result
        assert edge < limits.max_row or protocol not in LONGEST_ROW
        x = torch.tensor([[edge, 0, 0], [-edge, 0, 0], [1, 2, 3]])
        pairs = [(2, 1), (0, 0), (1, 0)]
        most = limits.max_result // 32
        for values in ((most, -most, most), (-most, most, -most), (1, -1, 0)):
            noise = torch.tensor(values)
            exact = python_products(x, y, pairs)
            assert run.operand.multiply(x, pairs).tolist() == [r + n for r, n in zip(exact, values, strict=True)]
            assert sent[-1] == before, "nothing was sent since the last product when release was asked"
            before = run.trio.two_one.bytes_sent
        noise = torch.tensor([7])
        assert run.operand.multiply(x[:1], [(0, 1)]).tolist() == [5 * edge + 7]
    assert asked == [3, 3, 3, 1]


@every_protocol
def test_nothing_is_sent_where_release_refuses(protocol: str) -> None:
    y, x = torch.tensor([[3, -3]]), torch.tensor([[2, 1]])

    def release(count: int) -> Tensor:
        raise LinkError(f"not {count} values more")

    with session(protocol, y, release=release) as run:
        before = run.trio.two_one.sent.copy()
        with pytest.raises(PeerLost, match="party_2 is gone"):
            run.operand.multiply(x)
        run.trio.threads[-1].join(60)
        assert run.trio.two_one.sent == before
        assert [str(run.trio.errors.pop())] == ["not 1 values more"]


# --- sums of products, of which none is opened by itself


def draw_into(draw: random.Random, count: int) -> list[int]:
    """A result for each of `count` pairs; every result has one at least."""
    results = draw.randint(1, count)
    into = [*range(results), *(draw.randrange(results) for _ in range(count - results))]
    draw.shuffle(into)
    return into


@every_protocol
def test_sums_are_pythons(protocol: str) -> None:
    draw = random.Random(f"{protocol} sums")
    for run, y in running(protocol, draw, 8, 8):
        for _ in range(6):
            x = draw_rows(draw, y, run.operand.limits, 8)
            pairs = draw.sample(every := all_pairs(*map(len, (x, y))), draw.randint(1, len(every)))
            into = draw_into(draw, len(pairs))
            x = x.div(max(map(into.count, into)), rounding_mode="trunc")  # so many products must fit together
            products = python_products(x, y, pairs)
            expected = [
                sum(p for p, n in zip(products, into, strict=True) if n == result) for result in sorted(set(into))
            ]
            assert run.operand.multiply(x, pairs, None, into).tolist() == expected


@every_protocol
def test_a_sum_is_one_released_value(protocol: str) -> None:
    asked = []

    def release(count: int) -> Tensor:
        asked.append(count)
        return torch.arange(10, 10 + count)

    y, x = torch.tensor([[3, -3], [1, 2], [0, 1]]), torch.tensor([[2, 1], [0, 1]])
    with session(protocol, y, release=release) as run:
        result = run.operand.multiply(x, [(0, 0), (1, 1), (1, 2)], None, [1, 0, 1])
    assert (result.tolist(), asked) == ([2 + 10, 3 + 1 + 11], [2])


@every_protocol
def test_a_sum_that_may_leave_the_range_is_refused_before_anything_is_sent(protocol: str) -> None:
    y = torch.full((3, 1), 1 << 20)
    with session(protocol, y) as run:
        limits = run.operand.limits
        entry = min(limits.max_row, int(limits.max_result * MARGIN) >> 20)
        x = torch.tensor([[entry]])
        sent = run.trio.one_two.bytes_sent
        terms = limits.max_result // (entry << 20) + 1
        if terms <= 3:  # else the rows are bounded before the results are
            with pytest.raises(RangeError):
                run.operand.multiply(x, [(0, c) for c in range(terms)], None, [0] * terms)
            assert run.trio.one_two.bytes_sent == sent
        assert run.operand.multiply(x, [(0, 0), (0, 1)], None, [1, 0]).tolist() == [entry << 20] * 2


@every_protocol
@pytest.mark.parametrize("into", [[], [0], [0, 2], [1, 1], [-1, 0], [0, 0, 0]], ids=str)
def test_sums_that_do_not_exist_are_refused_before_anything_is_sent(protocol: str, into: list[int]) -> None:
    y, x = torch.tensor([[3, -3], [1, 2]]), torch.tensor([[2, 1], [0, 1]])
    with session(protocol, y) as run:
        sent = run.trio.one_two.bytes_sent
        with pytest.raises(LinkError):
            run.operand.multiply(x, [(0, 0), (1, 1)], None, into)
        assert run.trio.one_two.bytes_sent == sent
        assert run.operand.multiply(x).tolist() == [3, 4, -3, 2]
