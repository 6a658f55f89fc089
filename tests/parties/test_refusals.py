"""Each party alone, against a peer that does not keep to the protocol: what it refuses, and what its figures count."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppir_torch import __version__
from ppir_torch.errors import ConfigError, LinkError, PeerLost, PpirError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.bounds import Limits, all_pairs, check_operand
from ppir_torch.joint.columns import IMAGE as JUST_J
from ppir_torch.joint.columns import Columns, columns_of
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import FixedOperand, FixedSide, MovingOperand, MovingSide, Product, Protocol, Release
from ppir_torch.joint.operands import PrivateOperand
from ppir_torch.parties import fixed as fixed_module
from ppir_torch.parties.accounting import Stopwatch, peak_memory_mb, write_json
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.parties.moving import PrivateFixed
from ppir_torch.registration import OperandRequest
from ppir_torch.sampling import Full, Permuted, Sample, Uniform
from ppir_torch.wire.channel import Channel, Received
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, link_pair
from ppir_torch.wire.payload import pack, unpack

GRID = Grid((12, 10), (1.5, 2.0), (3.0, -4.0))
IMAGE = Image(torch.arange(120, dtype=torch.float32).square().reshape(1, 10, 12), GRID)
HELLO = {"version": __version__, "protocol": "plain"}


PLAIN_LIMITS = Limits(1 << 40, 1 << 60)


class PlainFixedSide(FixedSide):
    """A protocol without secrets, to see the parties work without one."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.operands: list[tuple[OperandHeader, Tensor]] = []

    def open(self, header: OperandHeader, values: Tensor) -> FixedOperand:
        self.operands.append((header, check_operand(values, header)))
        return PlainFixedOperand(*self.operands[-1], self.channel)


class PlainFixedOperand(FixedOperand):
    def __init__(self, header: OperandHeader, values: Tensor, channel: Channel) -> None:
        super().__init__(header, PLAIN_LIMITS)
        self._values, self._channel = values, channel

    def answer(self, request: Received, release: Release) -> None:
        rows, pairs = (torch.from_numpy(array.copy()) for array in unpack(request.payload)[1])
        noise = release(len(pairs))
        products = (rows @ self._values.T)[pairs[:, 0], pairs[:, 1]] + noise
        self._channel.send(MessageKind.RESULT_SHARE, pack({}, [products.numpy()]))


class PlainMovingSide(MovingSide):
    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.headers = list[OperandHeader]()

    def open(self, header: OperandHeader) -> MovingOperand:
        self.headers.append(header)
        return PlainMovingOperand(self, header)


class PlainMovingOperand(MovingOperand):
    def __init__(self, side: MovingSide, header: OperandHeader) -> None:
        super().__init__(side, header, PLAIN_LIMITS)
        self._channel = side.channel

    def compute(self, product: Product) -> Tensor:
        self._channel.send(MessageKind.PRODUCT, pack({}, [product.rows.numpy(), np.array(product.pairs)]))
        return torch.from_numpy(unpack(self._channel.receive(MessageKind.RESULT_SHARE).payload)[1][0].copy())


# Every message that may begin a product, of some protocol.
PRODUCT_KINDS = (
    MessageKind.PRODUCT,
    MessageKind.MASKED_ROWS,
    MessageKind.REPLY_CIPHERTEXTS,
    MessageKind.NAIVE_REPLY,
    MessageKind.EXTENSION_REQUEST,
)
PLAIN = Protocol(
    "plain",
    lambda channel, *_: PlainMovingSide(channel),
    lambda channel, *_: PlainFixedSide(channel),
    product_kinds=PRODUCT_KINDS,
)


@dataclass
class Served:
    """party_2 at work in a thread; `link` is party_1's end."""

    link: Link
    side: PlainFixedSide
    outcome: list[Any]

    def error(self, *kinds: type[BaseException]) -> str:
        """The line with which party_2 stopped."""
        for _ in range(6000):
            if self.outcome:
                break
            time.sleep(0.01)
        assert isinstance(self.outcome[0], kinds or (LinkError,)), self.outcome
        return str(self.outcome[0])


@contextmanager
def served(party: FixedParty) -> Iterator[Served]:
    mine, theirs = link_pair("party_1", "party_2", timeout=60)
    run = Served(mine, PlainFixedSide(theirs), [])

    def work() -> None:
        try:
            run.outcome.append(party.serve(theirs, run.side, PLAIN))
        except PpirError as error:
            run.outcome.append(error)
            theirs.close()  # as the end of its process does

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield run
    finally:
        mine.close()
        thread.join(60)
        theirs.close()
        assert not thread.is_alive()


def greeted(run: Served) -> Served:
    run.link.send(MessageKind.HELLO, pack(HELLO))
    run.link.receive(MessageKind.HELLO)
    run.link.receive(MessageKind.GEOMETRY)
    return run


def request(**changes: Any) -> list[Any]:
    meta = {"level": {"shrink": 1, "smoothing_mm": 0.0}, "rows": 4, "choice": {"kind": "full"}}
    return pack(meta | {"columns": {"kind": "image", "transform": ""}} | changes)


# --- the two together ------------------------------------------------------------------------------------------------


def test_the_parties_agree_on_an_operand_and_its_products() -> None:
    mask = torch.ones(10, 12, dtype=torch.bool)
    mask[:, :3] = False
    with served(FixedParty(IMAGE, mask, disclose_centre_of_mass=True)) as run:
        side = PlainMovingSide(run.link)
        fixed = PrivateFixed(run.link, side, "plain")
        assert fixed.grid == GRID
        assert fixed.mask is not None
        assert torch.equal(fixed.mask, mask)
        assert torch.allclose(fixed.centre_of_mass(), IMAGE.centre_of_mass())
        operand = fixed.operand(OperandRequest(Level(1, 0.0), Full(), 0, rows=4))
        values = IMAGE.tensor[0][mask].double()
        assert operand.offset == pytest.approx(float(values.mean()))
        assert operand.mean_square == pytest.approx(float((values - values.mean()).square().mean()), rel=1e-3)
        rows = torch.rand(9, values.numel(), dtype=torch.float64)  # more than 4: several products
        _, products = operand.multiply(rows, all_pairs(9, 1))
        expected = rows @ (values - operand.offset)
        assert (products - expected).abs().max() < 1e-3 * values.norm() * rows.norm(dim=1).max()
        assert run.side.operands[0][0] == side.headers[0]
        fixed.finish()
        run.link.close()
    assert run.outcome == [None]


COLUMNS = [JUST_J, Columns("moments"), Columns("steepest_descent", "rigid")]


@pytest.mark.parametrize("choice", [Full(), Uniform(0.5, 3), Permuted(4)], ids=str)
@pytest.mark.parametrize("columns", COLUMNS, ids=str)
def test_the_parties_agree_on_columns(columns: Columns, choice: Any) -> None:
    mask = torch.ones(10, 12, dtype=torch.bool)
    mask[:, :3] = False
    with served(FixedParty(IMAGE, mask, disclose_gram=True)) as run:
        fixed = PrivateFixed(run.link, PlainMovingSide(run.link), "plain")
        operand = fixed.operand(OperandRequest(Level(1, 0.0), choice, 1, rows=4, columns=columns))
        candidates = torch.nonzero(mask.flatten()).flatten()
        expected = columns_of(IMAGE, candidates, operand.sample.index, columns).values.double()
        assert set(operand.sample.index.tolist()) <= set(candidates.tolist())
        points = expected.shape[1]
        rows = torch.rand(9, points, dtype=torch.float64) - 0.5
        pairs = [(row, column) for column in range(len(expected)) for row in (7, 2)]
        carried, products = operand.multiply(rows, pairs)
        for product, (row, column) in zip(products, pairs, strict=True):
            error = float(product - rows[row] @ expected[column])
            assert abs(error) < 1e-3 * float(rows[row].norm() * expected[column].norm())
        assert (carried - rows)[[7, 2]].abs().max() < 1e-4
        levels = expected[0].square().mean()
        assert operand.mean_square == pytest.approx(float(levels), rel=1e-3)
        # Of all points of the mask, whichever the sample has.
        whole = IMAGE.tensor[0][mask].double() - operand.offset
        assert operand.part(torch.arange(4), None).mean_square == pytest.approx(float(whole.square().mean()), rel=1e-3)
        if columns.kind == "steepest_descent":
            assert operand.gram is not None
            norms = expected.norm(dim=1)
            assert ((operand.gram - expected @ expected.T) / norms[:, None] / norms).abs().max() < 1e-3
            assert torch.allclose(operand.gram, operand.gram.T, rtol=1e-12)
        else:
            assert operand.gram is None
        fixed.finish()
        run.link.close()
    assert run.outcome == [None]


@pytest.mark.parametrize("choice", [Uniform(0.5, 3), Permuted(3), Sample(torch.arange(7, 90, 2), None)])
def test_both_parties_take_the_same_points(choice: Any) -> None:
    with served(FixedParty(IMAGE)) as run:
        fixed = PrivateFixed(run.link, PlainMovingSide(run.link), "plain")
        operand = fixed.operand(OperandRequest(Level(1, 0.0), choice, 2, rows=4))
        fixed.finish()
    assert operand.sample.index is not None
    (levels,) = run.side.operands[0][1]
    restored = operand.header.scale * levels + operand.offset
    expected = IMAGE.tensor.flatten()[operand.sample.index]
    assert torch.allclose(restored.float(), expected, atol=float(IMAGE.tensor.max()) / 2000)


def test_geometry_says_nothing_that_was_not_agreed() -> None:
    mask = torch.ones(10, 12, dtype=torch.bool)
    for party, agreed in ((FixedParty(IMAGE), False), (FixedParty(IMAGE, mask, True), True)):
        with served(party) as run:
            run.link.send(MessageKind.HELLO, pack(HELLO))
            run.link.receive(MessageKind.HELLO)
            meta, arrays = unpack(run.link.receive(MessageKind.GEOMETRY).payload)
            assert (meta["mask"], len(arrays), meta["centre_of_mass"] is not None) == (agreed, int(agreed), agreed)


# --- party_2 refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [HELLO | {"version": "0.0.1"}, HELLO | {"protocol": "bfv"}, {"x" * 900: "y"}])
def test_another_version_or_protocol_is_refused_before_anything_is_told(theirs: dict[str, str]) -> None:
    with served(FixedParty(IMAGE)) as run:
        run.link.send(MessageKind.HELLO, pack(theirs))
        line = run.error(ConfigError)
        assert "both must be the same" in line
        assert len(line) < 400
        run.link.receive(MessageKind.HELLO)
        assert run.side.channel.sent.keys() == {MessageKind.HELLO}


@pytest.mark.parametrize("kind", PRODUCT_KINDS)
def test_a_product_before_the_first_level_is_refused(kind: MessageKind) -> None:
    with served(FixedParty(IMAGE)) as run:
        greeted(run).link.send(kind, pack({}, [np.ones((1, 120), np.int64)]))
        assert run.error() == f"{kind.name} before the first level; refused"


@pytest.mark.parametrize(
    "kind", [MessageKind.GEOMETRY, MessageKind.SAMPLE, MessageKind.OPERAND, MessageKind.MASKED_RESULT, MessageKind.SEED]
)
def test_a_message_that_is_not_due_is_refused(kind: MessageKind) -> None:
    with served(FixedParty(IMAGE)) as run:
        greeted(run).link.send(kind, request())
        assert "refused" in run.error()
    assert run.side.operands == []


BAD_REQUESTS: dict[str, dict[str, Any]] = {
    "shrink 0": {"level": {"shrink": 0, "smoothing_mm": 0.0}},
    "shrink huge": {"level": {"shrink": 10**9, "smoothing_mm": 0.0}},
    "shrink infinite": {"level": {"shrink": float("inf"), "smoothing_mm": 0.0}},
    "smoothing negative": {"level": {"shrink": 1, "smoothing_mm": -1.0}},
    "smoothing NaN": {"level": {"shrink": 1, "smoothing_mm": float("nan")}},
    "smoothing missing": {"level": {"shrink": 1}},
    "level a list": {"level": [1, 0.0]},
    "rows 0": {"rows": 0},
    "rows huge": {"rows": 10**6},
    "rows a word": {"rows": "many"},
    "columns missing": {"columns": {}},
    "columns a word": {"columns": "image"},
    "columns unknown": {"columns": {"kind": "pixels", "transform": ""}},
    "columns a list": {"columns": {"kind": ["image"], "transform": ""}},
    "columns of no transform": {"columns": {"kind": "steepest_descent", "transform": ""}},
    "columns of an unknown transform": {"columns": {"kind": "steepest_descent", "transform": "spline"}},
    "columns of a list": {"columns": {"kind": "steepest_descent", "transform": ["affine"]}},
    "image columns of a transform": {"columns": {"kind": "image", "transform": "affine"}},
    "choice unknown": {"choice": {"kind": "all"}},
    "order without a seed": {"choice": {"kind": "permuted"}},
    "order with a huge seed": {"choice": {"kind": "permuted", "seed": 10**30}},
    "order with a negative seed": {"choice": {"kind": "permuted", "seed": -1}},
    "choice missing": {"choice": {}},
    "fraction 2": {"choice": {"kind": "uniform", "fraction": 2.0, "seed": 1}},
    "fraction tiny": {"choice": {"kind": "uniform", "fraction": 0.01, "seed": 1}},
    "seed missing": {"choice": {"kind": "uniform", "fraction": 0.5}},
    "seed huge": {"choice": {"kind": "uniform", "fraction": 0.5, "seed": 10**30}},
    "seed infinite": {"choice": {"kind": "uniform", "fraction": 0.5, "seed": float("inf")}},
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_level_out_of_range_is_refused(name: str) -> None:
    with served(FixedParty(IMAGE)) as run:
        greeted(run).link.send(MessageKind.LEVEL, request(**BAD_REQUESTS[name]))
        assert "\n" not in run.error()
    assert run.side.operands == []


BAD_SAMPLES: dict[str, list[Any]] = {
    "few points": [np.arange(31, dtype=np.int32)],
    "one point, many times": [np.full(64, 17, np.int32)],
    "unordered": [np.arange(64, dtype=np.int32)[::-1].copy()],
    "outside": [np.arange(100, 200, dtype=np.int32)],
    "negative": [np.arange(-1, 63, dtype=np.int32)],
    "empty": [np.zeros(0, np.int32)],
    "floating": [np.arange(64, dtype=np.float32)],
    "two-dimensional": [np.arange(64, dtype=np.int32).reshape(8, 8)],
    "no array": [],
    "two arrays": [np.arange(64, dtype=np.int32)] * 2,
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_a_sample_that_would_say_much_of_few_points_is_refused(name: str) -> None:
    """OPERAND tells mean and energy of the sample: of a single point, or of one point many times, that is its value."""
    with served(FixedParty(IMAGE)) as run:
        greeted(run).link.send(MessageKind.LEVEL, request(choice={"kind": "indices"}))
        run.link.send(MessageKind.SAMPLE, pack({}, BAD_SAMPLES[name]))
        assert "\n" not in run.error()
    assert run.side.operands == []


def test_a_mask_of_few_points_is_refused() -> None:
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[:3, :10] = True
    with served(FixedParty(IMAGE, mask)) as run:
        greeted(run).link.send(MessageKind.LEVEL, request())
        assert "at least 32 points" in run.error()


def test_an_image_of_few_points_is_refused() -> None:
    tiny = Image(torch.rand(1, 5, 6), Grid((6, 5)))
    with served(FixedParty(tiny)) as run:
        greeted(run).link.send(MessageKind.LEVEL, request())
        assert "at least 32 points" in run.error()


def test_operands_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_module, "MAX_OPERANDS", 3)
    with served(FixedParty(IMAGE)) as run:
        greeted(run)
        for _ in range(4):
            run.link.send(MessageKind.LEVEL, request())
        assert "at most 3 a session" in run.error()
    assert len(run.side.operands) == 3


def test_the_sums_of_steepest_descent_images_need_consent() -> None:
    """S^T S and S^T J are told before the first product, whatever party_1 then asks."""
    columns = {"kind": "steepest_descent", "transform": "rigid"}
    with served(FixedParty(IMAGE)) as run:
        greeted(run).link.send(MessageKind.LEVEL, request(columns=columns))
        assert "does not disclose S^T S" in run.error()
        assert MessageKind.OPERAND not in run.side.channel.sent
    assert run.side.operands == []
    with served(FixedParty(IMAGE, disclose_gram=True)) as run:
        greeted(run).link.send(MessageKind.LEVEL, request(columns=columns))
        (gram,) = unpack(run.link.receive(MessageKind.OPERAND).payload)[1]
        assert gram.shape == (4, 4)


def test_what_is_released_is_charged_before_it_is_sent() -> None:
    charged: list[tuple[int, str]] = []

    def charge(count: int, kind: str) -> None:
        charged.append((count, kind))
        if sum(n for n, _ in charged) > 30:
            raise LinkError("the cap")

    with served(FixedParty(IMAGE, disclose_gram=True, charge=charge)) as run:
        fixed = PrivateFixed(run.link, PlainMovingSide(run.link), "plain")
        assert charged == []
        fixed.operand(OperandRequest(Level(1, 0.0), rows=4))
        assert charged == [(4, "operand")]
        operand = fixed.operand(OperandRequest(Level(1, 0.0), rows=4, columns=COLUMNS[2]))
        # and the ten different entries of S^T S, S^T J, J^T J
        assert charged[1:] == [(4 + 10 + 3, "operand")]
        operand.multiply(torch.rand(2, 120), [(0, 0), (1, 0), (1, 3)])
        assert charged[2:] == [(3, "products")]
        before = run.side.channel.sent.copy()
        with pytest.raises(PeerLost):
            operand.multiply(torch.rand(3, 120), [(row, column) for row in range(3) for column in range(4)])
        assert charged[3:] == [(12, "products")]
        assert run.error() == "the cap"
        assert run.side.channel.sent == before


def test_a_lost_party_1_ends_party_2() -> None:
    with served(FixedParty(IMAGE)) as run:
        greeted(run).link.close()
        assert (
            run.error(PeerLost)
            == "party_2: party_1 is gone (the connection was closed); the run stops here and keeps what it has"
        )


# --- party_1 refuses -------------------------------------------------------------------------------------------------


@contextmanager
def peer(*answers: tuple[MessageKind, list[Any]]) -> Iterator[Link]:
    """party_1's link to a party_2 that says these, whatever it is told."""
    mine, theirs = link_pair("party_1", "party_2", timeout=60)
    for kind, payload in answers:
        theirs.send(kind, payload)
    yield mine
    mine.close()
    theirs.close()


GEOMETRY = {"grid": GRID.to_meta(), "centre_of_mass": None, "mask": False}
BAD_GEOMETRIES: dict[str, dict[str, Any]] = {
    "no grid": {"grid": {}},
    "grid a word": {"grid": "large"},
    "size 0": {"grid": GRID.to_meta() | {"size": (0, 10)}},
    "spacing 0": {"grid": GRID.to_meta() | {"spacing": (0.0, 1.0)}},
    "4-D": {"grid": {"size": (2,) * 4, "spacing": (1.0,) * 4, "origin": (0.0,) * 4, "direction": (1.0,) * 16}},
    "mask without bits": {"mask": True},
    "size a word": {"grid": GRID.to_meta() | {"size": ("many", 10)}},
    "size infinite": {"grid": GRID.to_meta() | {"size": (float("inf"), 10)}},
}


@pytest.mark.parametrize("name", BAD_GEOMETRIES)
def test_a_malformed_geometry_is_refused(name: str) -> None:
    answers = (MessageKind.HELLO, pack(HELLO)), (MessageKind.GEOMETRY, pack(GEOMETRY | BAD_GEOMETRIES[name]))
    with peer(*answers) as link, pytest.raises(LinkError, match="geometry from party_2"):
        PrivateFixed(link, PlainMovingSide(link), "plain")


HEADER = {"number": 0, "points": 120, "rows": 4, "scale": 1.0, "offset": 0.0, "max_abs": 9, "energy": 100}
HEADER |= {"row_bits": 14, "group_energy": 0, "columns": 4, "further_scales": [1.0] * 3}
HEADER |= {"sample_mean_square": 1.0, "level_mean_square": 1.0}
GRAM = np.eye(4)


def offered(header: dict[str, Any], *arrays: Any) -> PrivateOperand:
    """What party_1 makes of an operand of steepest-descent images that it asked for."""
    answers = (
        (MessageKind.HELLO, pack(HELLO)),
        (MessageKind.GEOMETRY, pack(GEOMETRY)),
        (MessageKind.OPERAND, pack(header, arrays)),
    )
    with peer(*answers) as link:
        fixed = PrivateFixed(link, PlainMovingSide(link), "plain")
        return fixed.operand(OperandRequest(Level(1, 0.0), Full(), 0, rows=4, columns=COLUMNS[2]))


@pytest.mark.parametrize(
    "changes",
    [
        {"points": 119},
        {"rows": 5},
        {"scale": 0.0},
        {"energy": -1},
        {"columns": 3, "further_scales": [1.0] * 2},
        {"columns": 5, "further_scales": [1.0] * 4},
        {"row_bits": 0},
        {"row_bits": 17},
        {"group_energy": -1},
        {"group_energy": 401},
        {"sample_mean_square": None},
        {"sample_mean_square": float("nan")},
        {"sample_mean_square": -1.0},
        {"level_mean_square": None},
        {"level_mean_square": float("inf")},
        {"level_mean_square": "1"},
        {"number": 1},
        {"number": -1},
        {"number": 1 << 20},
        {"points": 1 << 60},
        {"scale": 1e200},
        {"further_scales": [1.0, 1.0, 1e200]},
    ],
    ids=str,
)
def test_an_operand_that_was_not_asked_for_is_refused(changes: dict[str, Any]) -> None:
    assert offered(HEADER, GRAM).header.columns == 4
    with pytest.raises(LinkError):
        offered(HEADER | changes, GRAM)


@pytest.mark.parametrize(
    "arrays",
    [[], [GRAM, GRAM], [GRAM[:3]], [GRAM[0]], [GRAM.astype(np.float32)], [GRAM * np.nan], [GRAM + np.inf]],
    ids=["none", "two", "not square", "flat", "single precision", "NaN", "infinite"],
)
def test_malformed_sums_of_steepest_descent_images_are_refused(arrays: list[Any]) -> None:
    with pytest.raises(LinkError, match="sums of its columns' products"):
        offered(HEADER, *arrays)


def test_a_centre_of_mass_that_is_not_disclosed() -> None:
    with peer((MessageKind.HELLO, pack(HELLO)), (MessageKind.GEOMETRY, pack(GEOMETRY))) as link:
        fixed = PrivateFixed(link, PlainMovingSide(link), "plain")
        with pytest.raises(ConfigError, match="party_2 does not disclose it"):
            fixed.centre_of_mass()


# --- accounting ------------------------------------------------------------------------------------------------------


def test_waiting_is_not_working() -> None:
    watch = Stopwatch()
    mine, theirs = link_pair("party_1", "party_2")
    timer = threading.Timer(0.4, lambda: theirs.send(MessageKind.HELLO, b"abc"))
    timer.start()
    mine.receive(MessageKind.HELLO)
    mine.send(MessageKind.PRODUCT, b"12345")
    mine.send(MessageKind.LEVEL, b"1")
    account = watch.account([mine])
    assert 0.3 < account.waiting_seconds < 2.0
    assert account.seconds < 0.3
    assert account.messages == {"PRODUCT": 60 + 5, "LEVEL": 60 + 1}
    assert (account.bytes_sent, account.set_up_bytes, account.bytes_received) == (126, 61, 63)
    timer.join()
    mine.close()
    theirs.close()


def test_accounts_sum_over_links() -> None:
    ends = [link_pair("party_1", "party_2"), link_pair("party_1", "dealer")]
    for mine, _ in ends:
        mine.send(MessageKind.FINISH, b"12")
    account = Stopwatch().account([mine for mine, _ in ends])
    assert (account.bytes_sent, account.messages) == (2 * 62, {"FINISH": 124})
    for link in (link for pair in ends for link in pair):
        link.close()


def test_peak_memory_is_that_of_this_process() -> None:
    before = peak_memory_mb()
    block = torch.ones(40_000_000, dtype=torch.float64)  # 320 MB
    after = peak_memory_mb()
    assert float(block.sum()) > 0
    assert before > 50
    assert after >= 320
    assert after >= before


def test_json_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    write_json(path, {"account": Stopwatch().account([]), "path": Path("a")})
    assert '"path": "a"' in path.read_text()
    assert '"messages": {}' in path.read_text()
    write_json(path, {"account": Stopwatch().account([]), "numbers": [math.nan, (math.inf, 0.1)]})
    values = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert values["numbers"] == [None, [None, 0.1]]
    before = path.read_text()
    loop: dict[str, object] = {}
    loop["loop"] = loop
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, loop)
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]
