"""The public map: numpy's Kronecker product in Python's integers is the oracle, and what is no map is refused."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch import Tensor

from ppir_torch.errors import LinkError
from ppir_torch.grids import Grid
from ppir_torch.images import Level, level_grid
from ppir_torch.joint.public_map import (
    ENOUGH_BITS,
    LEAST_UNIT,
    MAX_CONTROL_POINTS,
    MAX_WEIGHT,
    ROUNDED_UNIT,
    PublicMap,
)
from ppir_torch.registration.request import map_of
from ppir_torch.sampling import Sample, Uniform
from ppir_torch.transforms import ControlLattice, expand
from ppir_torch.wire.payload import pack, unpack

SHAPES = {2: (6, 7), 3: (4, 5, 3)}
every_dimension = pytest.mark.parametrize("shape", SHAPES.values(), ids=["2-D", "3-D"])
every_choice = pytest.mark.parametrize(
    ("fraction", "channels"), [(None, 1), (0.4, 1), (None, 3), (0.4, 2)], ids=["all", "URS", "channels", "URS channels"]
)


def index_of(shape: tuple[int, ...], fraction: float | None) -> Tensor | None:
    return None if fraction is None else Uniform(fraction, 3).draw(math.prod(shape), 0).index


def random_map(
    shape: tuple[int, ...], fraction: float | None = None, channels: int = 1, largest: int = 9, seed: int = 0
) -> PublicMap:
    """Weights of either sign, a third of them zero, one of them the largest."""
    draw = random.Random(seed)
    matrices = []
    for n in shape:
        m = draw.randint(min(2, n), n)
        weights = [draw.choice((0, draw.randint(-largest, -1), draw.randint(1, largest))) for _ in range(n * m)]
        weights[draw.randrange(n * m)] = largest
        matrices.append(np.array(weights, np.int64).reshape(n, m))
    unit = float(draw.choice((1, 6, 750, 65536)))
    return PublicMap(shape, tuple(matrices), unit, index_of(shape, fraction), channels)


def lattice_of(voxels: int | tuple[int, ...], shape: tuple[int, ...]) -> ControlLattice:
    """Control points so many voxels apart, on a grid whose voxels are no cubes."""
    size = shape[::-1]
    spacing = (1.5, 2.0, 0.75)[: len(size)]
    each = (voxels,) * len(size) if isinstance(voxels, int) else voxels[::-1]
    return ControlLattice(Grid(size, spacing), tuple(k * s for k, s in zip(each, spacing, strict=True)))


def dense_of(public_map: PublicMap) -> Any:
    """(M, points) of Python's integers: numpy's kron, the columns of the points, once for each channel."""
    dense = np.ones((1, 1), object)
    for matrix in public_map.matrices:
        dense = np.kron(dense, matrix.T.astype(object))
    if public_map.index is not None:
        dense = dense[:, public_map.index.numpy()]
    return np.tile(dense, (1, public_map.channels))


def wrapped(values: Any, bits: int) -> list[Any]:
    """Python's integers as the signed words that they are modulo 2^bits."""
    half = 1 << (bits - 1)
    return ((values + half) % (1 << bits) - half).tolist()  # type: ignore[no-any-return]


def words(seed: int, bits: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.int32 if bits == 32 else torch.int64
    info = torch.iinfo(kind)
    return torch.randint(info.min, info.max, shape, generator=generator, dtype=kind)


# --- what it computes


@every_dimension
@every_choice
def test_apply_is_the_kronecker_product(shape: tuple[int, ...], fraction: float | None, channels: int) -> None:
    for seed in range(5):
        public_map = random_map(shape, fraction, channels, seed=seed)
        fields = torch.randint(-1000, 1001, (3, public_map.points), generator=torch.Generator().manual_seed(seed))
        result = public_map.apply(fields)
        assert result.dtype == torch.int64
        assert result.tolist() == (fields.numpy().astype(object) @ dense_of(public_map).T).tolist()


@every_dimension
@every_choice
@pytest.mark.parametrize("bits", [32, 64])
def test_words_wrap(bits: int, shape: tuple[int, ...], fraction: float | None, channels: int) -> None:
    """Modulo 2^64 or 2^32, whatever the weights: it is linear in the ring, so it may be applied to shares."""
    public_map = random_map(shape, fraction, channels, largest=MAX_WEIGHT)
    fields = words(1, bits, 3, public_map.points)
    exact = fields.numpy().astype(object) @ dense_of(public_map).T
    result = public_map.apply(fields)
    assert result.dtype == fields.dtype
    assert result.tolist() == wrapped(exact, bits)
    assert result.tolist() != exact.tolist()
    mask = words(2, bits, 3, public_map.points)
    assert torch.equal(public_map.apply(fields - mask) + public_map.apply(mask), result)


@every_dimension
@every_choice
@pytest.mark.parametrize("bits", [32, 64])
def test_forms_are_the_whole_product(bits: int, shape: tuple[int, ...], fraction: float | None, channels: int) -> None:
    """B^T (X[d] * Y) of all rows but the last, row by row, then X[-1] . Y; bilinear in the ring."""
    public_map = random_map(shape, fraction, channels)
    rows, values = len(shape) + 1, words(2, bits, 1, public_map.points)
    left = words(1, bits, rows, public_map.points)
    fields = left.numpy().astype(object) * values.numpy().astype(object)
    exact = np.append((fields[:-1] @ dense_of(public_map).T).flatten(), fields[-1].sum())
    result = public_map.forms(left, values)
    assert result.dtype == left.dtype
    assert result.shape == (public_map.results(rows),)
    assert result.tolist() == wrapped(exact, bits)
    a, b = words(3, bits, rows, public_map.points), words(4, bits, 1, public_map.points)
    shares = public_map.forms(left - a, values) + public_map.forms(a, values - b) + public_map.forms(a, b)
    assert torch.equal(shares, result)


@every_dimension
@every_choice
def test_adjoint_is_apply_over_the_unit(shape: tuple[int, ...], fraction: float | None, channels: int) -> None:
    public_map = random_map(shape, fraction, channels)
    integers = torch.randint(-1000, 1001, (2, public_map.points), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        result = public_map.adjoint(integers.to(dtype))
        assert result.dtype == torch.float64
        assert torch.equal(result, public_map.apply(integers).double() / public_map.unit)
    fields = torch.randn(2, public_map.points, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = torch.from_numpy(dense_of(public_map).astype(np.float64)) / public_map.unit
    torch.testing.assert_close(public_map.adjoint(fields), fields @ dense.T)
    assert torch.equal(public_map.adjoint_of_points(), dense)


@every_dimension
@every_choice
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functionals_are_the_equations_that_forms_computes(
    dtype: torch.dtype, shape: tuple[int, ...], fraction: float | None, channels: int
) -> None:
    """F J is the product with J in place of Y, in the floating units of an operand, whatever J is."""
    public_map, rows = random_map(shape, fraction, channels), len(shape) + 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-50, 51, (rows, public_map.points), generator=generator)
    equations = public_map.functionals(x.to(dtype))
    assert equations.dtype == dtype
    assert equations.shape == (public_map.results(rows), public_map.points)
    for _ in range(3):
        j = torch.randint(-50, 51, (1, public_map.points), generator=generator)
        expected = public_map.forms(x, j).double()
        expected[:-1] /= public_map.unit
        found = equations.double() @ j[0].double()
        torch.testing.assert_close(found, expected, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-3)


def test_results_are_counted() -> None:
    """D fields of M control points and one sum; points are those of all channels."""
    public_map = random_map((6, 7), 0.4, channels=3)
    assert public_map.index is not None
    assert public_map.points == 3 * public_map.index.numel()
    assert public_map.count == math.prod(public_map.control_shape) == math.prod(m.shape[1] for m in public_map.matrices)
    for rows in (2, 3, 4):
        assert public_map.results(rows) == (rows - 1) * public_map.count + 1
        x, y = words(0, 64, rows, public_map.points), words(1, 64, 1, public_map.points)
        assert public_map.forms(x, y).numel() == public_map.results(rows)


def test_one_row_is_a_product_without_fields() -> None:
    public_map = random_map((6, 7), channels=2)
    x, y = words(0, 64, 1, public_map.points), words(1, 64, 1, public_map.points)
    assert public_map.forms(x, y).tolist() == [(x * y).sum().item()]


@pytest.mark.parametrize("size", [(1, 8), (8, 1), (1, 8, 8), (8, 1, 8), (8, 8, 1)], ids=str)
def test_equations_of_an_image_of_one_slice(size: tuple[int, ...]) -> None:
    """An axis may have one voxel, and has four control points then."""
    lattice = ControlLattice(Grid(size), 4.0)
    public_map = map_of(lattice, lattice.grid, Sample(None, None))
    x = torch.arange(2.0 * public_map.points).reshape(2, -1)
    assert public_map.functionals(x).shape == (public_map.results(2), public_map.points)


# --- whole weights


@every_dimension
@pytest.mark.parametrize("voxels", range(1, 6))
def test_weights_are_exact_where_control_points_are_1_to_5_voxels_apart(voxels: int, shape: tuple[int, ...]) -> None:
    """Cubic B-splines at multiples of 1/k are multiples of 1 / (6 k^3)."""
    lattice = lattice_of(voxels, shape)
    public_map = map_of(lattice, lattice.grid, Sample(None, None))
    wanted = lattice.matrices(lattice.grid)[::-1]
    units = []
    for matrix, weights in zip(public_map.matrices, wanted, strict=True):
        assert matrix.dtype == np.int64
        unit = round(float(matrix.max()) / float(weights.max()))
        assert (6 * voxels**3) % unit == 0
        np.testing.assert_allclose(matrix / unit, weights.numpy(), atol=1e-14)
        units.append(unit)
    assert public_map.unit == math.prod(units)
    # Partition of unity, exactly: B of ones is one everywhere.
    assert [set(m.sum(1).tolist()) for m in public_map.matrices] == [{unit} for unit in units]


@pytest.mark.parametrize("shrink", [2, 4])
@pytest.mark.parametrize("voxels", [1, 2, 3, 4, 5])
def test_a_coarse_level_has_exact_weights_where_its_own_voxels_divide_the_spacing(voxels: int, shrink: int) -> None:
    """Here the level keeps the first voxel; the lattice is that of the full grid."""
    grid = Grid((4 * 10 + 1, 4 * 8 + 1), (1.5, 1.5))
    lattice = ControlLattice(grid, 1.5 * voxels * shrink)
    coarse, _ = level_grid(grid, Level(shrink, 0.0))
    public_map = map_of(lattice, coarse, Sample(None, None))
    assert public_map.shape == coarse.shape
    dense = torch.kron(*(m.contiguous() for m in lattice.matrices(coarse)[::-1])).T
    torch.testing.assert_close(public_map.adjoint_of_points(), dense, rtol=0, atol=1e-14)


@every_dimension
@pytest.mark.parametrize("voxels", [6, 7, 9, 11])
def test_other_weights_are_rounded_to_1_in_256(voxels: int, shape: tuple[int, ...]) -> None:
    shape = tuple(3 * n for n in shape)
    lattice = lattice_of(voxels, shape)
    public_map = map_of(lattice, lattice.grid, Sample(None, None))
    assert public_map.unit == ROUNDED_UNIT ** len(shape) == 256 ** len(shape)
    for matrix, weights in zip(public_map.matrices, lattice.matrices(lattice.grid)[::-1], strict=True):
        error = np.abs(matrix / 256 - weights.numpy())
        assert 0 < error.max() <= 1 / 512
        assert np.array_equal(matrix != 0, weights.numpy() > 1 / 512)
    # Of the product of D weights, each at most 2/3.
    exact = torch.ones(1, 1, dtype=torch.float64)
    for weights in lattice.matrices(lattice.grid)[::-1]:
        exact = torch.kron(exact, weights.T.contiguous())
    worst = float((public_map.adjoint_of_points() - exact).abs().max())
    assert 0 < worst <= (2 / 3 + 1 / 512) ** len(shape) - (2 / 3) ** len(shape)


def test_each_axis_has_a_unit_of_its_own() -> None:
    public_map = map_of(lattice := lattice_of((2, 7, 1), (9, 15, 4)), lattice.grid, Sample(None, None))
    assert public_map.unit == 48 * 256 * 6
    assert [m.shape for m in public_map.matrices] == [(9, 7), (15, 5), (4, 6)]


@every_dimension
@every_choice
@pytest.mark.parametrize("voxels", [2, 6])
def test_the_map_is_the_transpose_of_the_splines(
    voxels: int, shape: tuple[int, ...], fraction: float | None, channels: int
) -> None:
    """<B c, y> = <c, B^T y>, summed over the chosen points of all channels; where weights are rounded, nearly."""
    lattice = lattice_of(voxels, shape)
    index = index_of(shape, fraction)
    public_map = map_of(lattice, lattice.grid, Sample(index, None), channels)
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(lattice.shape, generator=generator, dtype=torch.float64)
    y = torch.rand(1, public_map.points, generator=generator, dtype=torch.float64)
    moved = expand(c, lattice.matrices(lattice.grid)).flatten()
    moved = (moved if index is None else moved[index]).repeat(channels)
    assert public_map.control_shape == lattice.shape
    other = float(public_map.adjoint(y)[0] @ c.flatten())
    assert other == pytest.approx(float(moved @ y[0]), rel=1e-12 if voxels == 2 else 0.01)


# --- bounds


@every_dimension
@every_choice
def test_the_bounds_of_sums_hold_and_are_tight(shape: tuple[int, ...], fraction: float | None, channels: int) -> None:
    """Of the least number that is right for any sample: where all points are used, by brute force."""
    for seed in range(5):
        public_map = random_map(shape, fraction, channels, seed=seed)
        dense = np.abs(dense_of(public_map))
        sums, lengths = dense.sum(1).max(), math.sqrt((dense**2).sum(1).max())
        assert max(sums, public_map.points) <= public_map.largest_sum
        assert lengths <= public_map.largest_length * (1 + 1e-12)
        if fraction is None:
            assert public_map.largest_sum == max(sums, channels * math.prod(shape))
            assert public_map.largest_length == pytest.approx(lengths)
        # No product of words up to X and Y is above X Y largest_sum; of these signs one is as large as it can be.
        worst = torch.from_numpy(np.sign(dense_of(public_map)[dense.sum(1).argmax()].astype(np.int64)))
        rows = torch.stack([7 * worst, 7 * torch.ones_like(worst)])
        largest = int(public_map.forms(rows, torch.full_like(worst, 11)[None]).abs().max())
        assert largest <= 77 * public_map.largest_sum
        assert largest >= 77 * sums


def test_the_largest_sum_is_at_least_the_number_of_points() -> None:
    """For the plain product of the last row, where the weights are small."""
    public_map = PublicMap((5, 4), (np.eye(5, dtype=np.int64), np.eye(4, dtype=np.int64)), 1.0, channels=2)
    assert public_map.largest_sum == 40


# --- its message

BASE = random_map((5, 4), 0.5, channels=2)


def sent(meta: Any, arrays: Any) -> tuple[dict[str, Any], list[Any]]:
    return unpack(b"".join(bytes(part) for part in pack(meta, arrays)))


MAPS = st.builds(
    random_map,
    st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple),
    st.none() | st.floats(0.1, 1),
    st.integers(1, 1024),
    st.sampled_from((1, 9, MAX_WEIGHT)),
    st.integers(0, 1000),
)


@given(MAPS)
@settings(max_examples=50)
def test_a_map_survives_its_message(public_map: PublicMap) -> None:
    again = PublicMap.from_message(*sent(*public_map.to_message()))
    assert (again.shape, again.unit, again.channels) == (public_map.shape, public_map.unit, public_map.channels)
    assert all(np.array_equal(a, b) for a, b in zip(again.matrices, public_map.matrices, strict=True))
    assert [m.dtype for m in again.matrices] == [np.int64] * len(public_map.shape)
    assert (again.index is None) == (public_map.index is None)
    if again.index is not None and public_map.index is not None:
        assert torch.equal(again.index, public_map.index)
    x, y = words(0, 64, 2, public_map.points), words(1, 64, 1, public_map.points)
    assert torch.equal(again.forms(x, y), public_map.forms(x, y))


def one(n: int, m: int, value: int = 1) -> Any:
    return np.full((n, m), value, np.int32)


META = {"shape": [5, 4], "unit": 36.0, "channels": 2}
GOOD = [one(5, 3), one(4, 2)]
NO_SETTINGS: tuple[Any, ...] = (None, "much", [], {}, -1, 0)
MALFORMED: dict[str, tuple[Any, list[Any]]] = {
    "nothing": ({}, []),
    **{f"no {name}": ({k: v for k, v in META.items() if k != name}, GOOD) for name in META},
    **{f"{name} {value!r}": (META | {name: value}, GOOD) for name in META for value in NO_SETTINGS},
    "shape of another grid": (META | {"shape": [4, 5]}, GOOD),
    "1-D": (META | {"shape": [5]}, GOOD[:1]),
    "4-D": (META | {"shape": [5, 4, 1, 1]}, [*GOOD, one(1, 1), one(1, 1)]),
    "negative shape": (META | {"shape": [-5, -4]}, GOOD),
    "shape of words": (META | {"shape": ["five", "four"]}, GOOD),
    "shape without end": (META | {"shape": [float("inf"), 4]}, GOOD),
    "unit not finite": (META | {"unit": float("inf")}, GOOD),
    "unit not a number": (META | {"unit": float("nan")}, GOOD),
    "unit too large for a number": (META | {"unit": 10**400}, GOOD),
    "many channels": (META | {"channels": 1025}, GOOD),
    "no matrix": (META, []),
    "one matrix": (META, GOOD[:1]),
    "one matrix of three": (META | {"shape": [5, 4, 3]}, GOOD),
    "two indices": (META, [*GOOD, np.zeros(3, np.int32), np.zeros(3, np.int32)]),
    "a vector": (META, [one(5, 3), np.ones(4, np.int32)]),
    "a cube": (META, [one(5, 3), np.ones((4, 2, 1), np.int32)]),
    "empty": (META, [one(5, 3), one(4, 0)]),
    "floating": (META, [one(5, 3), np.ones((4, 2), np.float32)]),
    "not a number": (META, [one(5, 3), np.full((4, 2), np.nan, np.float32)]),
    "wide words": (META, [one(5, 3), np.ones((4, 2), np.int64)]),
    "unsigned words": (META, [one(5, 3), np.ones((4, 2), np.uint32)]),
    "other byte order": (META, [one(5, 3), np.ones((4, 2), ">i4")]),
    "too few rows": (META, [one(4, 3), one(4, 2)]),
    "too many rows": (META, [one(5, 3), one(5, 2)]),
    "large weight": (META, [one(5, 3), one(4, 2, MAX_WEIGHT + 1)]),
    "most negative weight": (META, [one(5, 3), one(4, 2, -(1 << 31))]),
    "many control points": (META, [one(5, 2049), one(4, 2048)]),
    "no indices": (META, [*GOOD, np.zeros(0, np.int32)]),
    "floating indices": (META, [*GOOD, np.zeros(3, np.float32)]),
    "wide indices": (META, [*GOOD, np.zeros(3, np.int64)]),
    "matrix of indices": (META, [*GOOD, np.zeros((3, 1), np.int32)]),
    "index beyond the grid": (META, [*GOOD, np.array([3, 20], np.int32)]),
    "index before the grid": (META, [*GOOD, np.array([-1, 3], np.int32)]),
}


def test_the_message_that_the_malformed_ones_are_made_of_is_taken() -> None:
    assert PublicMap.from_message(*sent(META, GOOD)).count == 6
    assert PublicMap.from_message(*sent(META, [*GOOD, np.array([0, 19], np.int32)])).points == 4
    largest = [one(5, 2048, MAX_WEIGHT), one(4, 2048, -MAX_WEIGHT)]
    assert PublicMap.from_message(*sent(META | {"channels": 1024}, largest)).count == MAX_CONTROL_POINTS


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_map_is_refused(name: str) -> None:
    with pytest.raises(LinkError, match="map: "):
        PublicMap.from_message(*sent(*MALFORMED[name]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SIDES = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
ARRAYS = st.sampled_from(["<i4", "<i8", "<u4", "|u1", "<f4", "<f8"]).flatmap(
    lambda name: arrays_of.arrays(np.dtype(name), SIDES)
)


@given(
    change=st.dictionaries(st.sampled_from(["shape", "unit", "channels", "index"]), JSON),
    arrays=st.tuples(st.sampled_from([[], GOOD]), st.lists(ARRAYS, max_size=3)).map(lambda both: both[0] + both[1]),
)
def test_anything_else_is_a_map_or_a_link_error(change: dict[str, Any], arrays: list[Any]) -> None:
    """And what is taken for a map can be applied: no index is out of range, no size contradicts another."""
    try:
        public_map = PublicMap.from_message(*sent(META | change, arrays))
    except LinkError:
        return
    assert public_map.points > 0
    assert math.isfinite(public_map.unit)
    assert public_map.unit > 0
    x, y = words(0, 64, 2, public_map.points), words(1, 64, 1, public_map.points)
    assert public_map.forms(x, y).numel() == public_map.results(2)
    assert public_map.largest_sum >= public_map.channels * math.prod(public_map.shape)


@pytest.mark.parametrize(("largest", "bits"), [(62, (16, 16)), (30, (15, 16)), (23, (11, 13)), (9, (4, 6))])
def test_rows_and_columns_of_these_bits_stay_within_a_bound(largest: int, bits: tuple[int, int]) -> None:
    """Rows of all 16 bits where there is room; else they share it, J with a little more."""
    public_map = PublicMap((4, 4), (np.full((4, 1), 2), np.full((4, 1), 4)), 1.0)
    assert public_map.largest_sum == 128
    bound = 128 << largest
    assert public_map.bits_within(bound) == bits
    row, column = bits
    assert 2**row * (2 ** (column - 1) - 1) * public_map.largest_sum <= bound
    assert public_map.bits_within(2 * bound - 1) == bits


# --- what protocols have room for


@every_dimension
@every_choice
def test_the_largest_sum_is_that_of_the_points_that_count(
    shape: tuple[int, ...], fraction: float | None, channels: int
) -> None:
    for seed in range(5):
        public_map = random_map(shape, fraction, channels, seed=seed)
        exact = max(int(abs(dense_of(public_map)).sum(1).max()), public_map.points)
        assert public_map.largest_sum == exact


@pytest.mark.parametrize("voxels", [3, 4, 5, 7])
@pytest.mark.parametrize("shape", [(50, 61), (40, 33, 47)], ids=["2-D", "3-D"])
def test_coarser_weights_add_up_to_one_and_leave_enough_bits(shape: tuple[int, ...], voxels: int) -> None:
    grid = Grid(shape[::-1])
    spline = map_of(ControlLattice(grid, (float(voxels),) * len(shape)), grid, Sample(None, None))
    largest = 1 << 40
    coarse = spline.within(largest)
    for fine, found in zip(spline.matrices, coarse.matrices, strict=True):
        assert len(set(found.sum(1).tolist())) == 1
        assert found.min() >= 0
        assert np.abs(fine / fine.sum(1)[:, None] - found / found.sum(1)[:, None]).max() <= 1 / LEAST_UNIT
    assert coarse.unit == math.prod(int(m[0].sum()) for m in coarse.matrices)
    assert sum(coarse.bits_within(largest)) - 1 >= min(
        ENOUGH_BITS, sum(replace(spline, matrices=tuple(at_least(m) for m in spline.matrices)).bits_within(largest)) - 2
    )
    # Where there is room the splines stay as they are.
    assert spline.within(1 << 62) is spline


def at_least(matrix: Any) -> Any:
    """Weights as small as the coarsest that are allowed, rounded down."""
    return matrix * LEAST_UNIT // int(matrix[0].sum())


@pytest.mark.parametrize("dropped", [0, 1, 4, 5])
@pytest.mark.parametrize("bits", [32, 64])
def test_repeating_weights_that_begin_anywhere(dropped: int, bits: int) -> None:
    """Lattices begin before the image; a map that is sent to us need not."""
    grid = Grid((37,) * 2)
    whole = map_of(ControlLattice(grid, (4.0,) * 2), grid, Sample(None, None))
    matrices = (whole.matrices[0][:, dropped:], whole.matrices[1][:, : whole.matrices[1].shape[1] - dropped])
    public_map = PublicMap(whole.shape, matrices, whole.unit)
    assert public_map._patterns[0] is not None
    fields = words(3, bits, 2, public_map.points)
    exact = fields.numpy().astype(object) @ dense_of(public_map).T
    assert public_map.apply(fields).tolist() == wrapped(exact, bits)
