"""Point sets: private runs end where the clear run and SciPy end, release what they say, and see one file each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from joint.ends import Trio, python_products
from parties.harness import Started, Taps, started_parties, tapped_wires
from parties.test_isolation import separate_sites, unshare_command
from scipy.spatial.transform import Rotation
from torch import Tensor

from ppir_torch.config.points import PointsConfig, load_points_config
from ppir_torch.errors import BudgetExceeded, ConfigError, LinkError, PeerLost, PpirError, RangeError
from ppir_torch.grids import Grid
from ppir_torch.joint.bounds import Limits
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import FixedOperand, FixedSide, MovingOperand, MovingSide, Product, Protocol, Release
from ppir_torch.joint.quantise_points import quantise_fixed, quantise_moving
from ppir_torch.parties.budget import open_ledger_rows
from ppir_torch.parties.fixed_points import FixedPoints, point_set_identity
from ppir_torch.parties.handshake import greet
from ppir_torch.parties.moving_points import MovingPoints
from ppir_torch.parties.points import UnequalSets, released_values
from ppir_torch.protocols import load_protocol
from ppir_torch.runs.api import align_points
from ppir_torch.runs.points import run_points
from ppir_torch.transforms import load_transform
from ppir_torch.wire.channel import Channel, Received
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, link_pair
from ppir_torch.wire.payload import pack, unpack

BACKENDS = ("bfv", "ckks", "spdz", "beaver")
# `make test` has the whole runs of beaver and bfv, `make test-all` the others' as well.
WHOLE_RUNS = [pytest.param(name, marks=pytest.mark.slow if name in ("spdz", "ckks") else []) for name in BACKENDS]
WITH_DEALER = ("spdz", "beaver")
MOST_MM = 1e-4


def result_bits(protocol: str) -> int:
    return (PLAIN if protocol == "plain" else load_protocol(protocol)).result_bits


def made_sets(dimension: int, count: int = 60, noise: float = 1.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """(fixed, moving) with a known order, turned, shifted and noisy; centimetres apart and off the origin."""
    generator = torch.Generator().manual_seed(count + dimension)
    spread = torch.tensor([40.0, 25.0, 15.0], dtype=torch.float64)[:dimension]
    fixed = torch.randn(count, dimension, generator=generator, dtype=torch.float64) * spread + 80
    skew = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    turn = torch.linalg.matrix_exp(skew - skew.T)
    away = noise * torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    return fixed, scale * fixed @ turn.T + torch.arange(dimension) * 20.0 - 30 + away


@dataclass(frozen=True)
class PointFiles:
    """Two sets at their two sites."""

    moving: Path
    fixed: Path

    def configuration(self, backend: str, **more: Any) -> PointsConfig:
        files: dict[str, Any] = {"moving": str(self.moving), "fixed": str(self.fixed)}
        files |= {"budget": {"file": str(self.fixed.parent / "releases.sqlite")}}
        return load_points_config(files | {"backend": {"kind": backend}} | more)


def write_sets(folder: Path, fixed: Tensor, moving: Tensor) -> PointFiles:
    files = PointFiles(folder / "site_1" / "moving.csv", folder / "site_2" / "fixed.csv")
    for path, points in ((files.moving, moving), (files.fixed, fixed)):
        path.parent.mkdir()
        lines = [",".join("xyz"[: points.shape[1]]), *(",".join(map(repr, row)) for row in points.tolist())]
        path.write_text("\n".join(lines) + "\n")
    return files


def apart_mm(result: dict[str, Any], other: dict[str, Any], points: Tensor) -> float:
    """RMS distance of the two runs' images of points."""
    maps = [
        [torch.tensor(r["transform"][k], dtype=torch.float64) for k in ("matrix", "offset_mm")] for r in (result, other)
    ]
    (a, b), (c, d) = maps
    return float((points @ (a - c).T + b - d).square().sum(1).mean().sqrt())


@pytest.mark.parametrize(("dimension", "transform"), [(2, "rigid"), (3, "rigid"), (3, "similarity")])
@pytest.mark.parametrize("backend", WHOLE_RUNS)
def test_a_private_run_ends_where_the_clear_run_ends(
    backend: str, dimension: int, transform: str, started: Started, tmp_path: Path
) -> None:
    fixed, moving = made_sets(dimension, scale=1.3 if transform == "similarity" else 1.0)
    files = write_sets(tmp_path, fixed, moving)
    clear = run_points(files.configuration("clear", transform=transform), tmp_path / "clear")
    assert list(started) == []
    result = run_points(files.configuration(backend, transform=transform), tmp_path / "out")
    dealer = {"dealer"} if backend in WITH_DEALER else set()
    assert {party.role for party in started} == {"party_1", "party_2"} | dealer
    assert apart_mm(result, clear, fixed) <= MOST_MM
    assert result["residual_rms_mm"] == pytest.approx(clear["residual_rms_mm"], abs=1e-3)
    assert clear["residual_rms_mm"] > 0.5
    # They start tens of millimetres apart: to end together is no accident.
    still = {"transform": {"matrix": torch.eye(dimension).tolist(), "offset_mm": [0.0] * dimension}}
    assert apart_mm(result, still, fixed) > 10
    # What it wrote: the documented values, the same transform, and nothing else.
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(result))
    loaded = load_transform(tmp_path / "out" / "transform.tfm", Grid((4,) * dimension))
    matrix, offset = loaded.affine_map()
    assert matrix.tolist() == [pytest.approx(row, abs=1e-12) for row in result["transform"]["matrix"]]
    assert offset.tolist() == pytest.approx(result["transform"]["offset_mm"], abs=1e-9)
    reports = {f"{role}.json" for role in ("party_1", "party_2", *dealer)}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"result.json", "transform.tfm"} | reports
    # What it cost, and what party_2 released.
    for role in ("party_1", "party_2"):
        assert result[role]["seconds"] > 0
        assert 0 < result[role]["set_up_bytes"] < result[role]["bytes_sent"] < 2_000_000
    budget = result["budget"]
    assert budget["spent"] - budget["spent_before"] == released_values(dimension)
    assert budget["cap"] == int(0.25 * fixed.numel())
    text = " ".join(result["disclosed"]["party_1"])
    for word in ("number of party_2's points", "centre", "sum of squares", "cross-covariance"):
        assert word in text


def test_the_rotation_is_scipys(started: Started, tmp_path: Path) -> None:
    fixed, moving = made_sets(3, noise=4.0)
    result = run_points(write_sets(tmp_path, fixed, moving).configuration("beaver"), tmp_path / "out")
    oracle, distance = Rotation.align_vectors((moving - moving.mean(0)).numpy(), (fixed - fixed.mean(0)).numpy())
    np.testing.assert_allclose(result["transform"]["matrix"], oracle.as_matrix(), rtol=0, atol=1e-6)
    assert result["residual_rms_mm"] == pytest.approx(distance / math.sqrt(len(fixed)), abs=1e-4)
    centre = torch.tensor(result["transform"]["matrix"], dtype=torch.float64) @ fixed.mean(0)
    expected = (moving.mean(0) - centre).tolist()
    assert result["transform"]["offset_mm"] == pytest.approx(expected, abs=1e-9)
    assert len(started) == 3


def test_the_truth_is_compared_and_the_figure_drawn_where_asked(started: Started, tmp_path: Path) -> None:
    fixed, moving = made_sets(2, noise=0.0)
    clear = align_points(moving, fixed, output=tmp_path / "clear")
    assert (tmp_path / "clear" / "points.png").stat().st_size > 5000
    truth = tmp_path / "clear" / "transform.tfm"
    options: dict[str, Any] = {"truth": truth, "figure": True, "releases": tmp_path / "releases.sqlite"}
    found = align_points(moving, fixed, backend="beaver", output=tmp_path / "out", **options)
    assert clear.metrics["rmse_to_truth_mm"] is None
    assert 0 < found.metrics["rmse_to_truth_mm"] < MOST_MM
    assert found.metrics["residual_rms_mm"] < MOST_MM
    assert (tmp_path / "out" / "points.png").stat().st_size > 5000
    assert len(started) == 3
    with torch.no_grad():
        torch.testing.assert_close(found.transform(fixed), moving, rtol=0, atol=1e-3)


def test_no_residual_is_disclosed_and_the_transform_is_shared_where_said(started: Started, tmp_path: Path) -> None:
    fixed, moving = made_sets(2)
    files = write_sets(tmp_path, fixed, moving)
    result = run_points(files.configuration("beaver", disclose_spread=False, share_transform=True), tmp_path / "out")
    assert result["residual_rms_mm"] is None
    assert "a bound within 19 % of it" in " ".join(result["disclosed"]["party_1"])
    assert "the transform" in result["disclosed"]["party_2"]
    shared = json.loads((tmp_path / "out" / "party_2.json").read_text())["transform"]
    assert shared == {name: result["transform"][name] for name in ("matrix", "offset_mm")}
    clear = run_points(files.configuration("clear"), tmp_path / "clear")
    assert apart_mm(result, clear, fixed) <= MOST_MM
    assert len(started) == 3


# --- each party alone -------------------------------------------------------------------------------------------------


class RecordedSide(MovingSide):
    """A protocol's side whose last operand keeps what went in and came out."""

    def __init__(self, side: MovingSide) -> None:
        super().__init__(side.channel)
        self._side = side

    def open(self, header: OperandHeader) -> MovingOperand:
        self.operand = RecordedOperand(self, self._side.open(header))
        return self.operand


class RecordedOperand(MovingOperand):
    def __init__(self, side: MovingSide, operand: MovingOperand) -> None:
        super().__init__(side, operand.header, operand.limits)
        self._operand = operand

    def compute(self, product: Product) -> Tensor:
        self.rows, self.result = product.rows, self._operand.multiply(product.rows, product.pairs)
        return self.result


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_moments_are_exact_integers(backend: str, dimension: int) -> None:
    fixed, moving = made_sets(dimension, count=400)
    trio, entry = Trio(), load_protocol(backend)
    if entry.dealer is not None:
        trio.start(entry.dealer, trio.dealer_one, trio.dealer_two)
    charged: list[tuple[int, str]] = []
    party = FixedPoints(fixed, charge=lambda count, kind: charged.append((count, kind)))
    served = entry.fixed_side(trio.two_one, trio.two_dealer, "cpu")
    trio.start(party.serve, trio.two_one, served, entry)
    side = RecordedSide(entry.moving_side(trio.one_two, trio.one_dealer, "cpu"))
    MovingPoints(moving).align(trio.one_two, side, backend)
    trio.one_dealer.send(MessageKind.FINISH)
    for thread in trio.threads:
        thread.join(60)
    assert trio.errors == []
    assert charged == [(released_values(dimension), "points")]
    values = quantise_fixed(fixed - fixed.mean(0), result_bits(backend), True)[1]
    assert side.operand.result.tolist() == python_products(side.operand.rows, values)
    # Both as fine as hundredths of a millimetre, at the least.
    assert int(side.operand.rows.abs().max()) > 4000
    assert int(values.abs().max()) > 4000
    bound = float(side.operand.rows.double().norm(dim=1).max() * values.double().norm())
    assert bound <= side.operand.limits.max_result


PLAIN_LIMITS = Limits(1 << 40, 1 << 60)


class PlainFixedSide(FixedSide):
    """A protocol without secrets, to see the parties work without one."""

    def open(self, header: OperandHeader, values: Tensor) -> FixedOperand:
        return PlainFixedOperand(header, values, self.channel)


class PlainFixedOperand(FixedOperand):
    def __init__(self, header: OperandHeader, values: Tensor, channel: Channel) -> None:
        super().__init__(header, PLAIN_LIMITS)
        self._values, self._channel = values, channel

    def answer(self, request: Received, release: Release) -> None:
        rows = torch.from_numpy(unpack(request.payload)[1][0].copy())
        products = (rows @ self._values.T).flatten()
        self._channel.send(MessageKind.RESULT_SHARE, pack({}, [(products + release(len(products))).numpy()]))


class PlainMovingSide(MovingSide):
    def open(self, header: OperandHeader) -> MovingOperand:
        return PlainMovingOperand(self, header)


class PlainMovingOperand(MovingOperand):
    def __init__(self, side: MovingSide, header: OperandHeader) -> None:
        super().__init__(side, header, PLAIN_LIMITS)
        self._channel = side.channel

    def compute(self, product: Product) -> Tensor:
        self._channel.send(MessageKind.PRODUCT, pack({}, [product.rows.numpy()]))
        return torch.from_numpy(unpack(self._channel.receive(MessageKind.RESULT_SHARE).payload)[1][0].copy())


PLAIN = Protocol(
    "plain",
    lambda channel, *_: PlainMovingSide(channel),
    lambda channel, *_: PlainFixedSide(channel),
    product_kinds=(MessageKind.PRODUCT,),
)


@contextmanager
def rogue_party_1(points: Tensor, **more: Any) -> Iterator[tuple[Link, list[BaseException]]]:
    """party_1's end of a link to a party_2 in a thread, greeted, and the errors with which this ends."""
    trio = Trio()
    party = FixedPoints(points, **more)
    trio.start(party.serve, trio.two_one, PlainFixedSide(trio.two_one), PLAIN)
    greet(trio.one_two, "points, plain")
    yield trio.one_two, trio.errors
    for thread in trio.threads:
        thread.join(60)
        assert not thread.is_alive()


def product_of(*rows: list[int]) -> list[Any]:
    return pack({}, [np.array(rows, np.int64)])


def test_one_product_is_answered_and_no_more() -> None:
    fixed, _ = made_sets(2)
    unit = [1] + [0] * (len(fixed) - 1)
    with rogue_party_1(fixed) as (link, errors):
        link.send(MessageKind.LEVEL, pack({"points": len(fixed), "dimension": 2}))
        link.receive(MessageKind.OPERAND)
        link.send(MessageKind.PRODUCT, product_of(unit, unit))
        link.receive(MessageKind.RESULT_SHARE)
        link.send(MessageKind.PRODUCT, product_of(unit, unit))
    assert [type(error) for error in errors] == [LinkError]


def test_more_values_than_agreed_are_refused() -> None:
    fixed, _ = made_sets(2)
    rows = np.eye(3, len(fixed)).astype(int).tolist()
    with rogue_party_1(fixed) as (link, errors):
        link.send(MessageKind.LEVEL, pack({"points": len(fixed), "dimension": 2}))
        link.receive(MessageKind.OPERAND)
        link.send(MessageKind.PRODUCT, product_of(*rows))
    assert "6 values, 4 are due" in str(errors[0])


@pytest.mark.parametrize("meta", [{}, {"points": 60}, *({"points": n, "dimension": 2} for n in (60.0, "a", True))])
def test_a_malformed_request_is_refused(meta: dict[str, Any]) -> None:
    with rogue_party_1(made_sets(2)[0]) as (link, errors):
        link.send(MessageKind.LEVEL, pack(meta))
    assert isinstance(errors[0], LinkError)
    assert "number and dimension" in str(errors[0])


def test_a_cap_that_is_too_small_sends_nothing() -> None:
    def charge(count: int, kind: str) -> None:
        raise BudgetExceeded(f"{count} {kind}")

    with rogue_party_1(made_sets(3)[0], charge=charge) as (link, errors):
        sent = link.received.copy()
        link.send(MessageKind.LEVEL, pack({"points": 60, "dimension": 3}))
    assert str(errors[0]) == "13 points"
    assert link.received == sent


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"points": 61}, "were asked for"),
        ({"columns": 3, "further_scales": [1.0, 1.0]}, "were asked for"),
        ({"further_scales": [2.0]}, "one scale"),
        ({"centre": [1.0]}, "2 numbers are due"),
        ({"centre": [1.0, "b"]}, "2 numbers are due"),
        ({"centre": [1.0, math.nan]}, "out of range"),
        ({"centre": [1.0, 1e300]}, "out of range"),
        ({"spread": 7}, "spread"),
        ({"energy": -1}, "out of range"),
    ],
)
def test_a_malformed_operand_is_refused(change: dict[str, Any], said: str) -> None:
    fixed, moving = made_sets(2)
    mine, theirs = link_pair("party_1", "party_2", timeout=60)
    header = quantise_fixed(fixed - fixed.mean(0), result_bits("plain"), True)[0]
    meta = {**header.to_meta(), "centre": [1.0, 2.0], "spread": True}
    meta["further_scales"] = list(header.further_scales)
    if "further_scales" in change:
        meta["scale"] = 1.0
    theirs.send(MessageKind.HELLO, pack(hello()))
    theirs.send(MessageKind.OPERAND, pack(meta | change))
    with pytest.raises(LinkError, match=said):
        MovingPoints(moving).align(mine, PlainMovingSide(mine), "plain")
    mine.close()
    theirs.close()


def hello() -> dict[str, str]:
    from ppir_torch import __version__

    return {"version": __version__, "protocol": "points, plain"}


def test_an_image_party_and_a_points_party_do_not_meet() -> None:
    mine, theirs = link_pair("party_1", "party_2", timeout=60)
    theirs.send(MessageKind.HELLO, pack(hello() | {"protocol": "plain"}))
    with pytest.raises(ConfigError, match="both must be the same"):
        MovingPoints(made_sets(2)[1]).align(mine, PlainMovingSide(mine), "plain")
    mine.close()
    theirs.close()


@pytest.mark.parametrize("protocol", BACKENDS)
@pytest.mark.parametrize("count", [10, 400, 50_000])
def test_integers_are_exact_within_the_scale_and_the_energy(protocol: str, count: int) -> None:
    fixed = made_sets(3, count)[0]
    z = fixed - fixed.mean(0)
    for disclosed in (True, False):
        header, values = quantise_fixed(z, result_bits(protocol), disclosed)
        assert float((values.T.double() * header.scale - z).abs().max()) <= header.scale * (1 + 1e-9)
        assert OperandHeader.from_meta(json.loads(json.dumps(header.to_meta()))) == header
        assert int(values.abs().max()) <= header.max_abs
        assert max(sum(v * v for v in column) for column in values.tolist()) <= header.energy


@pytest.mark.parametrize("step_mm", [0.0, 1.3], ids=["anywhere", "on a lattice"])
def test_rounding_leaves_the_moments_of_a_set_as_they_are(step_mm: float, dimension: int) -> None:
    """Plain rounding of keypoints on a voxel lattice is the same at thousands of points, and does not average out."""
    fixed = made_sets(dimension, 1500)[0]
    if step_mm:
        fixed = (fixed / step_mm).round() * step_mm
    z = fixed - fixed.mean(0)
    header, values = quantise_fixed(z, result_bits("bfv"), True)
    rounded = values.T.double() * header.scale
    assert torch.equal(values, quantise_fixed(z, result_bits("bfv"), True)[1])

    def moved(other: Tensor) -> float:
        return float((z.T @ (other - z)).abs().max() / (z.T @ z).abs().max())

    plain = (z / header.scale).round() * header.scale
    assert moved(rounded) < 1e-7
    assert moved(rounded) < moved(plain) / 5


def test_without_the_spread_the_header_says_what_is_public_and_a_bound() -> None:
    """Two sets of one size step have one header: nothing else of them is in it."""
    one, two = (made_sets(3, 100)[0], made_sets(3, 100, noise=2.0)[1])
    sets = [points - points.mean(0) for points in (one, two)]
    sets = [z * (size / float(z.norm())) for z, size in zip(sets, (500.0, 480.0), strict=True)]
    for disclosed in (False, True):
        headers = [quantise_fixed(z, result_bits("beaver"), disclosed)[0] for z in sets]
        assert (headers[0] == headers[1]) != disclosed
    assert headers[0].scale == headers[1].scale


def test_rows_stay_within_every_limit_and_refuse_where_there_is_no_room() -> None:
    fixed, moving = made_sets(3, 300)
    header = quantise_fixed(fixed - fixed.mean(0), result_bits("bfv"), True)[0]
    q = moving - moving.mean(0)
    for limits in (Limits(1 << 14, 1 << 60), Limits(1 << 40, 1 << 36), Limits(1 << 40, 1 << 60, 5e4)):
        rows, scale = quantise_moving(q, header, limits)
        assert float((rows.T.double() / scale - q).abs().max()) <= 1 / scale * (1 + 1e-9)
        assert int(rows.abs().max()) <= limits.max_row
        longest = float(rows.double().norm(dim=1).max())
        assert longest <= limits.max_norm
        assert longest * math.sqrt(header.energy) <= limits.max_result
    with pytest.raises(RangeError, match="no room"):
        quantise_moving(q, header, Limits(1 << 40, 1 << 20))


def test_one_set_in_any_order_has_one_identity() -> None:
    fixed, moving = made_sets(3)
    assert point_set_identity(fixed) == point_set_identity(fixed.flip(0)) != point_set_identity(moving)
    assert len(point_set_identity(fixed)) == 64


# --- what is refused --------------------------------------------------------------------------------------------------


def spoilt(name: str) -> Callable[[PointFiles], None]:
    """Makes one file bad."""
    lines = {
        "nan": "x,y\n" + "1,2\n3,5\n" * 30 + "nan,1\n",
        "words": "x,y\n" + "1,2\n3,5\n" * 30 + "here,1\n",
        "huge": "x,y\n" + "1,2\n3,5\n" * 30 + "1e12,1\n",
        "one place": "x,y\n" + "1,2\n" * 60,
        "few": "x,y\n1,2\n3,5\n8,8\n9,1\n",
        "3-D": "x,y,z\n" + "1,2,3\n3,5,9\n8,7,1\n" * 20,
    }

    def spoil(files: PointFiles) -> None:
        side, what = name.split(": ")
        path = files.moving if side == "moving" else files.fixed
        path.unlink() if what == "absent" else path.write_text(lines[what])

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoilt(f"{side}: {what}"), said)
        for side in ("moving", "fixed")
        for what, said in (
            ("absent", f"{side}.csv: cannot be read"),
            ("nan", f"{side}.csv: point 61 is NaN or infinite"),
            ("words", f"{side}.csv: point 61: 'here,1' is not read as numbers"),
            ("huge", "a coordinate of 1e+12 mm, at most 1e+09 mm is allowed"),
            ("one place", "all in one place"),
            ("few", "4 points, at least 7 2-D ones are needed in private"),
            ("3-D", "the same number, in the same order, is needed"),
        )
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_files_are_one_clear_line_and_send_nothing_of_the_points(
    spoil: Callable[[PointFiles], None], said: str, started: Started, tmp_path: Path
) -> None:
    fixed, moving = made_sets(2)
    files = write_sets(tmp_path, fixed, moving)
    output = tmp_path / "out"
    before = run_points(files.configuration("clear"), output)
    kept = {path.name: path.read_bytes() for path in output.iterdir()}
    spoil(files)
    with tapped_wires() as taps, pytest.raises(PpirError) as caught:
        run_points(files.configuration("beaver"), output)
    assert caught.value.exit_code == 2
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    # Nothing of a set was sent, and what an earlier run left is as it was.
    assert set().union(*taps.kinds.values()) <= {
        MessageKind.HELLO,
        MessageKind.LEVEL,
        MessageKind.ABORT,
        MessageKind.SEED,
    }
    assert {path.name: path.read_bytes() for path in output.iterdir()} == kept
    assert before["complete"]
    assert len(started) == 3


def test_unequal_numbers_are_told_to_both() -> None:
    fixed, moving = made_sets(2)
    with rogue_party_1(fixed) as (link, errors):
        link.send(MessageKind.LEVEL, pack({"points": 59, "dimension": 2}))
    assert isinstance(errors[0], UnequalSets)
    assert str(errors[0]).startswith("point sets: party_1 has 59 2-D points and party_2 60 2-D points;")
    assert moving.shape == fixed.shape


def test_a_line_in_3d_leaves_the_rotation_open(started: Started, tmp_path: Path) -> None:
    line = torch.outer(torch.linspace(0, 90, 40, dtype=torch.float64), torch.tensor([1.0, 2.0, -1.0]).double())
    for backend in ("clear", "beaver"):
        with pytest.raises(PpirError, match="rotation is not determined") as caught:
            align_points(line + 3, line, backend=backend, releases=tmp_path / "releases.sqlite")
        assert caught.value.exit_code == 2
    assert len(started) == 3


def test_the_cap_holds_over_runs_and_a_refused_run_spends_nothing(started: Started, tmp_path: Path) -> None:
    fixed, moving = made_sets(2)
    releases = tmp_path / "releases.sqlite"
    options: dict[str, Any] = {"backend": "beaver", "releases": releases, "max_values": 13}
    align_points(moving, fixed, **options)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    with pytest.raises(BudgetExceeded, match="7 of at most 13 were given") as caught:
        align_points(moving[shuffled], fixed[shuffled], **options)
    assert caught.value.exit_code == 3
    [row] = open_ledger_rows(releases)
    assert (row.image, row.count, row.runs) == (point_set_identity(fixed), 7, 1)
    assert len(started) == 6


def test_a_party_that_dies_is_one_clear_line(tmp_path: Path) -> None:
    fixed, moving = made_sets(2)
    files = write_sets(tmp_path, fixed, moving)
    killed: list[str] = []

    def watch(source: str, target: str, kind: MessageKind, count: int) -> None:  # noqa: ARG001
        if kind is MessageKind.OPERAND:
            killed.append(source)
            started["party_2"].kill()

    with started_parties() as started, tapped_wires(watch), pytest.raises(PeerLost) as caught:
        run_points(files.configuration("beaver"), tmp_path / "out")
    assert killed == ["party_2"]
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (3, False)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"correspondence": "closest"},
            "correspondence: 'closest', with backend 'beaver' 'known' is needed: to find the closest points takes "
            "every distance between one party's points and the other's, which is all that there is to hide; use "
            "backend clear, or register images of the shapes",
        ),
        (
            {"correspondence": "closest", "transform": "similarity", "backend": {"kind": "clear"}},
            "transform: 'similarity', with correspondence 'closest' 'rigid' is needed",
        ),
        ({"backend": {"kind": "ckks-v1"}}, "backend.kind: 'ckks-v1', one of clear, spdz, beaver, bfv, ckks is needed"),
        ({"backend": {}}, "backend.kind: missing, one of clear, spdz, beaver, bfv, ckks is needed"),
        ({"transform": "affine"}, "transform: 'affine', 'rigid' or 'similarity' is needed"),
        (
            {"moving_columns": "x"},
            "moving_columns: 'x', two or three names of columns, none twice, with commas between them are needed",
        ),
        (
            {"budget": {"max_values": 0}},
            "budget.max_values: 0, an integer >= 1 and <= 4.611686018e+18 (or null) is needed",
        ),
        ({"outputs": "x,y"}, "outputs: unknown key, did you mean output?"),
    ],
)
def test_a_configuration_is_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    files = {"moving": "a.csv", "fixed": "b.csv", "backend": {"kind": "beaver"}}
    with pytest.raises(ConfigError) as caught:
        load_points_config(files | settings)
    assert str(caught.value) == line


def test_a_run_does_not_overwrite_what_it_reads(tmp_path: Path) -> None:
    fixed, moving = made_sets(2)
    files = write_sets(tmp_path, fixed, moving)
    truth = tmp_path / "transform.tfm"
    run_points(files.configuration("clear"), tmp_path)
    with pytest.raises(ConfigError, match="the run would overwrite it"):
        run_points(files.configuration("clear", truth=str(truth)), tmp_path)
    assert truth.exists()
    with pytest.raises(ConfigError, match="no such transform file"):
        run_points(files.configuration("clear", truth=str(tmp_path / "absent.tfm")), tmp_path / "out")


def test_without_an_order_closest_points_are_found_in_clear() -> None:
    fixed, _ = made_sets(2, 300)
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    found = align_points((fixed + 0.3)[shuffled], fixed, correspondence="closest")
    assert found.metrics["residual_rms_mm"] < 1e-6
    assert found.metrics["correspondence"] == "closest"


# --- isolation --------------------------------------------------------------------------------------------------------

ALLOWED = {
    ("party_1", "party_2"): {MessageKind.HELLO, MessageKind.LEVEL, MessageKind.MASKED_ROWS, MessageKind.FINISH},
    ("party_2", "party_1"): {
        MessageKind.HELLO,
        MessageKind.OPERAND,
        MessageKind.OPENED_OPERAND,
        MessageKind.RESULT_SHARE,
    },
    ("party_1", "dealer"): {MessageKind.TRIPLE, MessageKind.FINISH},
    ("dealer", "party_1"): {MessageKind.SEED},
    ("party_2", "dealer"): set(),
    ("dealer", "party_2"): {MessageKind.SEED, MessageKind.TRIPLE_CORRECTION},
}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run with interpreters of their own, where each party finds the other site's folder empty."""
    folder = tmp_path_factory.mktemp("points-observed")
    fixed, moving = made_sets(3)
    files = write_sets(folder, fixed, moving)
    with started_parties(quick=False) as started, tapped_wires() as taps, separate_sites(files):  # type: ignore[arg-type]
        result = run_points(files.configuration("beaver"), folder / "out")
    return SimpleNamespace(files=files, result=result, taps=taps, started=started, fixed=fixed, moving=moving)


def test_parties_that_cannot_see_the_other_file_end_where_the_clear_run_ends(observed: Any, tmp_path: Path) -> None:
    if not unshare_command():
        pytest.skip("mount namespaces are not permitted here (unshare --mount)")
    clear = run_points(observed.files.configuration("clear"), tmp_path)
    assert apart_mm(observed.result, clear, observed.fixed) <= MOST_MM


def test_each_party_is_given_its_own_file_only(observed: Any) -> None:
    configs = observed.started.configs
    assert str(observed.files.moving) in configs["party_1"]
    assert "site_2" not in configs["party_1"]
    assert str(observed.files.fixed) in configs["party_2"]
    assert "site_1" not in configs["party_2"]
    assert "site_" not in configs["dealer"]


def test_every_byte_belongs_to_a_declared_message_and_is_counted(observed: Any) -> None:
    taps: Taps = observed.taps
    for way, stream in taps.streams.items():
        messages = taps.messages(*way)
        assert {MessageKind(m.kind) for m in messages} == ALLOWED[way], way
        assert sum(m.size for m in messages) == len(stream)
    for role in ("party_1", "party_2", "dealer"):
        sent = sum(len(stream) for (source, _), stream in taps.streams.items() if source == role)
        assert observed.result[role]["bytes_sent"] == sent


def test_party_2_says_its_centre_and_spread_and_nothing_else_in_clear(observed: Any) -> None:
    [operand] = [m for m in observed.taps.messages("party_2", "party_1") if m.kind == MessageKind.OPERAND]
    meta, arrays = unpack(operand.payload)
    header, values = quantise_fixed(observed.fixed - observed.fixed.mean(0), result_bits("beaver"), True)
    assert arrays == []
    assert meta == json.loads(
        json.dumps({**header.to_meta(), "centre": observed.fixed.mean(0).tolist(), "spread": True})
    )
    assert header.energy == int(values.square().sum())
    # Neither set's numbers are in what crossed: not as coordinates, not as the integers they become.
    crossed = b"".join(observed.taps.streams.values())
    for points in (observed.fixed, observed.moving):
        for number in (points.numpy(), (points - points.mean(0)).numpy()):
            assert all(value.tobytes() not in crossed for value in number.ravel())
    assert all(v.tobytes() not in crossed for v in values.flatten().numpy() if abs(v) > 1 << 16)
