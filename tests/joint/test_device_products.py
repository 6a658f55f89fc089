"""What the parties compute for each other, on a device that is not the CPU: columns, rows, products, ledger.

The device is pretended (`tests/pretended_device.py`): nothing is mixed, the values are those of the CPU, and nothing
as long as a row leaves the device but what goes into a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from joint.ends import header_of, python_products, serving, session
from pretended_device import PRETENDED, copies_between_devices
from torch import Tensor

from ppir_torch.arithmetic.words import pack_words, word_products
from ppir_torch.grids import Grid
from ppir_torch.images import Image
from ppir_torch.joint.bounds import Limits
from ppir_torch.joint.columns import Columns, columns_of, functionals
from ppir_torch.joint.exact import exact_products
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.ledger import Ledger
from ppir_torch.joint.placement import scattered
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.joint.quantise import quantise_columns, quantise_mapped_rows, quantise_rows, quantise_summed_rows
from ppir_torch.transforms import ControlLattice

GRID = Grid((24, 20), (1.5, 2.0))
POINTS = GRID.count
CHOSEN = torch.arange(0, POINTS, 3)
DEVICES = ("cpu", PRETENDED)
PROTOCOLS = ("beaver", "spdz", "bfv", "ckks")
LIMITS = Limits(max_row=1 << 30, max_result=1 << 50)
COLUMNS = (Columns(), Columns("moments"), Columns("steepest_descent", "affine"), Columns("bins", bins=6))

on_the_device = pytest.mark.parametrize("protocol", PROTOCOLS)


def integers_of(count: int, points: int = POINTS, largest: int = 2000, seed: int = 1) -> Tensor:
    return torch.randint(-largest, largest + 1, (count, points), generator=torch.Generator().manual_seed(seed))


ROWS = {d: torch.randn(3, POINTS, generator=torch.Generator().manual_seed(1)).to(d) for d in DEVICES}
WORDS = {d: integers_of(3, largest=2**61).to(d) for d in DEVICES}
IMAGES = {d: Image(torch.rand(1, *GRID.shape, generator=torch.Generator().manual_seed(2)).to(d), GRID) for d in DEVICES}


def header(**changed: Any) -> OperandHeader:
    known = {"number": 0, "points": POINTS, "rows": 3, "scale": 1.0, "offset": 0.0, "max_abs": 2000, "energy": 1 << 27}
    return OperandHeader(**(known | changed))  # type: ignore[arg-type]


def splines(channels: int = 1, index: Tensor | None = None) -> PublicMap:
    return PublicMap.of(GRID.shape, ControlLattice(GRID, 8.0).matrices(GRID)[::-1], index, channels)


MAPS = {
    "all points": splines(),
    "channels": splines(channels=3),
    "chosen points": splines(index=CHOSEN),
    "chosen points of channels": splines(3, CHOSEN),
}
every_map = pytest.mark.parametrize("public_map", MAPS.values(), ids=MAPS)


def assert_equal_on_device(compute: Callable[[str], Any], comes_back: bool = True) -> None:
    """`compute(device)` gives the CPU's values, and nothing as long as a row is copied (the second time).

    Args:
        compute: gives tensors, of which the first lies on the device, and public numbers.
        comes_back: False: what the CPU draws is copied to the device, once a row or less.
    """
    compute(PRETENDED)
    with copies_between_devices() as copies:
        found = compute(PRETENDED)
    long = [count for count in copies if count >= len(CHOSEN)]
    assert len(long) <= (0 if comes_back else 1), copies
    wanted = compute("cpu")
    found, wanted = (value if isinstance(value, tuple) else (value,) for value in (found, wanted))
    assert found[0].device.type == "pretended"
    for ours, theirs in zip(found, wanted, strict=True):
        if isinstance(theirs, Tensor):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.cpu(), theirs)
        else:
            assert ours == theirs


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_products_of_words(dtype: torch.dtype) -> None:
    assert_equal_on_device(lambda d: word_products(WORDS[d].to(dtype), WORDS[d][:2].to(dtype)))


@pytest.mark.parametrize("width", [32, 40, 48, 64])
def test_words_leave_the_device_as_bytes(width: int) -> None:
    dtype = torch.int32 if width == 32 else torch.int64
    found, wanted = (b"".join(pack_words(WORDS[d].to(dtype), width)) for d in (PRETENDED, "cpu"))
    assert found == wanted


@every_map
def test_maps_of_words_and_of_numbers(public_map: PublicMap) -> None:
    def rows(device: str, like: dict[str, Tensor]) -> Tensor:
        return like[device].repeat(1, public_map.channels)[:, : public_map.points]

    assert_equal_on_device(lambda d: public_map.apply(rows(d, WORDS)))
    assert_equal_on_device(lambda d: public_map.forms(rows(d, WORDS), rows(d, WORDS)[:1]))
    assert_equal_on_device(lambda d: public_map.adjoint(rows(d, ROWS)))
    assert_equal_on_device(lambda d: public_map.largest_sums(rows(d, ROWS)))


def test_functionals_of_a_map() -> None:
    small = PublicMap((4, 5), tuple(torch.ones(n, 2, dtype=torch.int64).numpy() for n in (4, 5)), 1.0)
    assert_equal_on_device(lambda d: small.functionals(ROWS[d][:, :20]))


def test_sums_in_float64() -> None:
    assert_equal_on_device(lambda d: exact_products(ROWS[d], ROWS[d][:2]))


@pytest.mark.parametrize("wanted", COLUMNS, ids=lambda columns: columns.kind)
@pytest.mark.parametrize("index", [None, CHOSEN], ids=["all points", "chosen points"])
def test_columns_and_their_integers(wanted: Columns, index: Tensor | None) -> None:
    def compute(device: str) -> tuple[Any, ...]:
        columns = columns_of(IMAGES[device], CHOSEN, index, wanted)
        return *quantise_columns(columns, wanted), columns.values, columns.offset, columns.level_mean_square

    found, expected = compute(PRETENDED), compute("cpu")
    assert found[0].device.type == found[2].device.type == "pretended"
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.equal(found[2].cpu(), expected[2])
    assert found[1] == expected[1]
    assert found[3:] == expected[3:]


@pytest.mark.parametrize("wanted", COLUMNS[:3], ids=lambda columns: columns.kind)
@pytest.mark.parametrize("index", [None, CHOSEN], ids=["all points", "chosen points"])
def test_equations_of_the_ledger(wanted: Columns, index: Tensor | None) -> None:
    pairs = [(0, 0), (2, wanted.count(GRID) - 1)]
    count = POINTS if index is None else len(index)
    found, expected = (functionals(ROWS[d][:, :count], pairs, wanted, GRID, index) for d in (PRETENDED, "cpu"))
    assert found.device.type == "pretended"
    assert torch.equal(found.cpu(), expected)


def test_rows_are_rounded_where_they_are() -> None:
    assert_equal_on_device(lambda d: quantise_rows(ROWS[d], header(), LIMITS))


def test_rows_of_sums_are_rounded_where_they_are() -> None:
    pairs, sums = [(0, 0), (1, 0), (2, 0)], [0, 0, 1]
    assert_equal_on_device(lambda d: quantise_summed_rows(ROWS[d], header(), LIMITS, pairs, sums), comes_back=False)


def test_mapped_rows_are_rounded_where_they_are() -> None:
    sums = MAPS["all points"].largest_sums(ROWS["cpu"])
    assert_equal_on_device(lambda d: quantise_mapped_rows(ROWS[d], header(), LIMITS, 100))
    assert_equal_on_device(lambda d: quantise_mapped_rows(ROWS[d], header(row_bits=10), LIMITS, 100, sums))


def test_rows_of_a_sample_are_spread_where_they_are() -> None:
    # Its places are the public index of the sample, which lies on the CPU.
    found, wanted = (scattered(WORDS[d][:, : len(CHOSEN)], CHOSEN, POINTS) for d in (PRETENDED, "cpu"))
    assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("sketch", [128, 4096], ids=["sketched", "exact"])
def test_the_ledger_sketches_where_the_rows_are(sketch: int) -> None:
    fixed = IMAGES["cpu"].tensor.flatten().double()

    def entries(device: str) -> list[Any]:
        ledger = Ledger(POINTS, float(fixed.square().sum()), sketch)
        rows = ROWS[device]
        return [ledger.record(r, r.cpu().double() @ fixed, r[-1]) for r in (rows, rows.flip(1), rows.roll(7, 1))]

    assert entries(PRETENDED) == entries("cpu")


@pytest.mark.parametrize("device", DEVICES, ids=["computed on the CPU", "computed on the device"])
@on_the_device
def test_products_of_a_session(protocol: str, device: str) -> None:
    """bfv and ckks compute on the CPU alone; rows may come from anywhere."""
    values, rows = integers_of(2, seed=3), integers_of(3, largest=500, seed=4)
    pairs, sums = [(2, 1), (0, 0), (1, 1)], [0, 0, 1]
    with session(protocol, values.to(device), device=device) as run:
        found = run.operand.multiply(rows.to(PRETENDED))
        assert found.tolist() == python_products(rows, values)
        assert run.operand.multiply(rows.to(PRETENDED), pairs).tolist() == python_products(rows, values, pairs)
        products = python_products(rows, values, pairs)
        added = run.operand.multiply(rows.to(PRETENDED), pairs, None, sums)
    assert added.tolist() == [products[0] + products[1], products[2]]


@pytest.mark.parametrize("device", DEVICES, ids=["computed on the CPU", "computed on the device"])
@every_map
@on_the_device
def test_mapped_products_of_a_session(protocol: str, public_map: PublicMap, device: str) -> None:
    values = integers_of(1, public_map.points, largest=100, seed=5)
    rows = integers_of(3, public_map.points, largest=50, seed=6)
    with serving(protocol, (header_of(values, 3), values.to(device), public_map), device=device) as run:
        run.next_operand()
        carried = run.mapped_operand.public_map
        assert torch.equal(run.mapped_operand.project(rows.to(PRETENDED)).cpu(), carried.forms(rows, values))
