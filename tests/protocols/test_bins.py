"""Bins and sums of products: SciPy's B-splines, Python's integers, and clear operands are the oracles."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from joint.ends import header_of, private_fixed, python_products
from scipy.interpolate import BSpline as SciPySpline
from torch import Tensor

from ppir_torch.errors import ConfigError, ImageError, LinkError, RangeError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint import opened
from ppir_torch.joint.bounds import Limits, all_pairs, check_range, check_sum_index, check_sums, largest_sum
from ppir_torch.joint.columns import BIN_PEAK, Columns, columns_of, functionals, table_of
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import FixedOperand
from ppir_torch.joint.operands import Operand, PrivateOperand
from ppir_torch.joint.quantise import SUMMED_ROW_BITS, dithered, quantise_columns, quantise_summed_rows, row_norm
from ppir_torch.joint.rows import HeldRows
from ppir_torch.losses import MutualInformation
from ppir_torch.optimizers import LBFGS
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.protocols.beaver import BeaverFixedSide
from ppir_torch.registration import ClearFixed, FixedSource, OperandRequest, Plan, register_images
from ppir_torch.sampling import Full, Permuted, PointChoice, Uniform
from ppir_torch.transforms import linear_transform

Make = Callable[..., Any]
LEVEL = Level(1, 0.0)
PROTOCOLS = ("beaver", "spdz", "bfv", "ckks")


def noise(grid: Grid, dtype: torch.dtype = torch.float64, seed: int = 2) -> Image:
    """Every voxel different: a wrong neighbour or axis shows at once."""
    values = torch.randn(1, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Image(30 * values.to(dtype) + 5, grid)


def windows(values: Tensor, low: float, high: float, bins: int) -> Any:
    """(bins, n) by SciPy: `low` is one bin in, `high` at the last but one."""
    cubic = SciPySpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    place = 1 + (values.double().numpy() - low) / (high - low) * (bins - 3)
    return np.nan_to_num(cubic(place - np.arange(bins)[:, None]))


# --- columns


@pytest.mark.parametrize("bins", [4, 8, 64])
def test_columns_are_scipys_splines_times_coordinates(
    bins: int, dimension: int, dtype: torch.dtype, oblique_grid: Make
) -> None:
    image = noise(oblique_grid(dimension), dtype)
    grid, values = image.grid, image.tensor.flatten()
    fixed = columns_of(image, None, None, wanted := Columns("bins", bins=bins))
    assert fixed.values.shape == (wanted.count(grid), grid.count) == (bins * (1 + dimension), grid.count)
    assert (fixed.values.dtype, fixed.offset, fixed.level_mean_square) == (dtype, 0.0, 0.0)
    close = 1e-6 if dtype == torch.float32 else 1e-12
    table = windows(values, float(values.min()), float(values.max()), bins)
    indices = np.indices(grid.shape)[::-1]  # x, y[, z]
    factors = [np.ones(grid.count)]
    factors += [(2 * indices[a] / (n - 1) - 1).reshape(-1) for a, n in enumerate(grid.size)]
    for factor, columns in zip(factors, fixed.values.split(bins), strict=True):
        np.testing.assert_allclose(columns.numpy(), table * factor, rtol=0, atol=close)
        np.testing.assert_allclose(columns.sum(0).numpy(), factor, rtol=0, atol=10 * close)
    assert float(fixed.values[:bins].max()) <= BIN_PEAK + close


def test_bins_divide_the_range_of_the_mask(dimension: int, oblique_grid: Make) -> None:
    """And not that of the points of one sample, or of the whole image."""
    image = noise(oblique_grid(dimension))
    values = image.tensor.flatten()
    candidates = torch.nonzero((values > 0) & (values < 20)).flatten()
    some = candidates[Permuted(1).draw(len(candidates), 0).index[:50]]  # type: ignore[index]
    assert float(values[some].max()) < float(values[candidates].max())
    got = columns_of(image, candidates, some, Columns("bins", bins=9)).values[:9]
    expected = windows(values[some], float(values[candidates].min()), float(values[candidates].max()), 9)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)


def test_a_constant_image_has_no_bins(oblique_grid: Make) -> None:
    image = noise(oblique_grid(2))
    with pytest.raises(ImageError, match="constant over the level's points, its mutual information is not defined"):
        columns_of(image, torch.tensor([7]), torch.tensor([7]), Columns("bins", bins=8))


@pytest.mark.parametrize(
    ("kind", "bins"), [("bins", 0), ("bins", 3), ("bins", 65), ("bins", -8), ("image", 8), ("moments", 4)]
)
def test_other_numbers_of_bins_are_refused(kind: Any, bins: int) -> None:
    with pytest.raises(ConfigError, match=rf"^columns: {bins} bins with '{kind}', 4 to 64 with 'bins' are needed$"):
        Columns(kind, bins=bins)
    with pytest.raises(ConfigError, match="do not go together"):
        Columns("bins", "affine", 8)


def test_products_with_bins_are_no_equations_on_j(oblique_grid: Make) -> None:
    grid = oblique_grid(2)
    with pytest.raises(ValueError, match="not linear in J"):
        functionals(torch.ones(1, grid.count), [(0, 0)], Columns("bins", bins=8), grid, None)


@pytest.mark.parametrize("sampler", [Full(), Uniform(0.5, 1)])
def test_no_run_takes_them_for_equations(sampler: Any, pair: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Tensor:
        raise AssertionError("functionals of bins")

    monkeypatch.setattr(opened, "functionals", wrong)
    images = pair("rigid", 2)
    plan = Plan("rigid", (Level(4, 2.0),), sampler, LBFGS(), loss=MutualInformation())
    with private_fixed("beaver", FixedParty(images.fixed, measure=MutualInformation())) as source:
        assert register_images(images.moving, source, plan).complete
        assert source.ledgers[0].last is not None


# --- rounding by chance


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    rows=st.integers(1, 3),
    single=st.booleans(),
    seed=st.integers(0, 3),
)
def test_rounding_by_chance_is_within_a_step_and_the_same_again(
    values: list[float], rows: int, single: bool, seed: int
) -> None:
    given_values = torch.tensor([values] * rows, dtype=torch.float32 if single else torch.float64)
    before = given_values.clone()
    rounded = dithered(given_values, seed)
    assert rounded.dtype == torch.int64
    assert torch.equal(rounded, dithered(given_values, seed))
    assert torch.equal(given_values, before)
    # A float32 of a million has steps of a sixteenth.
    assert float((rounded - given_values.double()).abs().max()) <= 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("whole", [0, -3, 1000])
def test_rounding_by_chance_is_right_on_average(whole: int, share: float, dtype: torch.dtype) -> None:
    """One set of numbers, the same in each run: the bound is six deviations of a mean of 4 x 100,000."""
    rounded = dithered(torch.full((4, 100_000), whole + share, dtype=dtype)).double()
    deviation = math.sqrt(share * (1 - share) / 400_000)
    assert float(rounded.mean()) == pytest.approx(whole + share, abs=6 * deviation + 1e-4 * (dtype == torch.float32))
    if share == 0 and abs(whole) < 1000:  # there a float32 less than 1 above may be rounded to 1 by the sum itself
        assert bool((rounded == whole).all())


def test_rows_and_factors_are_rounded_by_numbers_of_their_own() -> None:
    """Else errors would not average out in a product, or in a sum of them."""
    half = torch.full((6, 100_000), 0.5)
    errors = torch.cat([dithered(half), dithered(half, seed=1)]).double() - 0.5
    correlation = (errors @ errors.T) / 25_000
    assert float((correlation - torch.eye(12).double()).abs().max()) < 6 / math.sqrt(100_000)


# --- what sums may be


def sums_of(draw: random.Random, rows: int, columns: int, most: int = 12) -> tuple[list[tuple[int, int]], list[int]]:
    """(pairs, sum_index): every row is in some pair, every result has a pair, and no column is twice in one."""
    every = all_pairs(rows, columns)
    pairs = [(row, draw.randrange(columns)) for row in range(rows)]
    pairs += draw.sample([p for p in every if p not in pairs], min(draw.randint(0, most), len(every) - rows))
    draw.shuffle(pairs)
    sum_index: list[int] = []
    taken: list[set[int]] = []
    for _, column in pairs:
        free = [n for n, columns_of_it in enumerate(taken) if column not in columns_of_it]
        if not free or draw.random() < 0.3:
            taken.append(set())
            free = [len(taken) - 1]
        sum_index.append(draw.choice(free))
        taken[sum_index[-1]].add(column)
    return pairs, sum_index


def python_sums(x: Tensor, y: Tensor, pairs: list[tuple[int, int]], sum_index: list[int]) -> list[int]:
    sums = [0] * (max(sum_index) + 1)
    for number, product in zip(sum_index, python_products(x, y, pairs), strict=True):
        sums[number] += product
    return sums


def together_of(y: Tensor, pairs: list[tuple[int, int]], sum_index: list[int]) -> int:
    """The largest sum of Y^2 over the columns of one result, in Python's integers."""
    squares = [sum(v * v for v in column) for column in y.tolist()]
    return max(sum(squares[c] for (_, c), n in zip(pairs, sum_index, strict=True) if n == k) for k in set(sum_index))


def aligned(draw: random.Random, count: int, points: int, largest: int) -> Tensor:
    """Integers of any size, or all of one sign, which come nearest to the bound."""
    low = draw.choice([-largest, 0, largest])
    return torch.tensor([[draw.randint(low, largest) for _ in range(points)] for _ in range(count)])


@given(seed=st.integers(0, 10**6), knows_together=st.booleans())
def test_largest_sum_bounds_every_sum(seed: int, knows_together: bool) -> None:
    draw = random.Random(seed)
    points, rows, columns = draw.randint(1, 12), draw.randint(1, 5), draw.randint(1, 6)
    x, y = (aligned(draw, n, points, draw.choice([1, 100, 2**20])) for n in (rows, columns))
    pairs, sum_index = sums_of(draw, rows, columns)
    header = header_of(y)
    if knows_together:
        header = replace(header, group_energy=together_of(y, pairs, sum_index))
    norms = torch.linalg.vector_norm(x.double(), dim=1)
    bound = largest_sum(norms, header, pairs, sum_index)
    assert max(abs(s) for s in python_sums(x, y, pairs, sum_index)) <= bound
    without = largest_sum(norms, replace(header, group_energy=0), pairs, sum_index)
    assert bound <= without * (1 + 1e-12)


def test_largest_sum_is_reached() -> None:
    """One column, or a sum of columns, along the rows: nothing smaller would do."""
    y = torch.tensor([[3, 4], [5, 12]])
    one = largest_sum(torch.tensor([5.0]), header_of(y[:1]), [(0, 0)], [0])
    assert one == pytest.approx(25)
    header = replace(header_of(y), group_energy=25 + 169)
    assert largest_sum(torch.tensor([5.0, 13.0]), header, [(0, 0), (1, 1)], [0, 0]) == pytest.approx(25 + 169)


@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-9, 1.0, 1e7]),
    result_bits=st.integers(30, 62),
    row_bits=st.integers(16, 62),
    single=st.booleans(),
    knows_together=st.booleans(),
)
def test_rows_that_are_quantised_together_use_the_range_and_stay_in_it(
    seed: int, size: float, result_bits: int, row_bits: int, single: bool, knows_together: bool
) -> None:
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    points, rows, columns = draw.randint(1, 40), draw.randint(1, 5), draw.randint(1, 6)
    x = torch.randn(rows, points, generator=generator, dtype=torch.float64) * size
    x *= torch.exp(3 * torch.randn(rows, 1, generator=generator, dtype=torch.float64))
    x = x.float() if single else x
    y = aligned(draw, columns, points, 2047)
    assume(bool(y.any()))
    pairs, sum_index = sums_of(draw, rows, columns)
    header = replace(header_of(y), group_energy=together_of(y, pairs, sum_index) if knows_together else 0)
    norm = draw.choice([math.inf, 1e4 * math.sqrt(points)])
    limits = Limits(1 << row_bits, (1 << result_bits) - (1 << result_bits - 4), norm)
    integers, scale = quantise_summed_rows(x, header, limits, pairs, sum_index)
    held = HeldRows(integers)
    check_sums(held, check_range(held, header, limits), header, limits, pairs, sum_index)
    assert max(abs(s) for s in python_sums(integers, y, pairs, sum_index)) <= limits.max_result
    assert float((integers / scale - x.double()).abs().max()) <= (1 + 1e-6) / scale + 1e-6 * float(x.abs().max())
    # One of the limits is more than half used.
    norms = torch.linalg.vector_norm(x.double(), dim=1) * scale
    longest = min(2.0**SUMMED_ROW_BITS * math.sqrt(points), limits.max_norm)
    used = (
        largest_sum(norms, header, pairs, sum_index) / limits.max_result,
        float(norms.max()) / longest,
        float(x.abs().max()) * scale / limits.max_row,
    )
    assert 0.5 < max(used) <= 1
    # What party_2 sizes its noise by is not less than any row.
    if knows_together:
        of_integers = torch.linalg.vector_norm(integers.double(), dim=1)
        assert float(of_integers.max()) <= row_norm(header, limits) * (1 + 1e-9)


def test_rows_without_room_are_refused() -> None:
    y = torch.full((2, 100), 2047)
    with pytest.raises(RangeError, match="100 points leave no room in sums of at most 100000"):
        quantise_summed_rows(torch.ones(1, 100), header_of(y), Limits(1 << 20, 100_000), [(0, 0), (0, 1)], [0, 0])
    with pytest.raises(RangeError, match="not finite"):
        quantise_summed_rows(torch.full((1, 100), math.nan), header_of(y), Limits(1 << 20, 1 << 40), [(0, 0)], [0])
    integers, _ = quantise_summed_rows(torch.zeros(1, 100), header_of(y), Limits(1 << 20, 1 << 40), [(0, 0)], [0])
    assert not integers.any()


def test_a_sum_for_each_pair() -> None:
    assert check_sum_index(None, 3) == [0, 1, 2]
    assert check_sum_index([1, 0, 1], 3) == [1, 0, 1]
    for sum_index, count in [([], 0), ([], 1), ([0], 2), ([0, 1], 1), ([1, 2], 2), ([-1, 0], 2), ([0, 2], 2)]:
        if (sum_index, count) == ([], 0):
            continue  # no product at all is refused by its pairs
        with pytest.raises(LinkError, match=r"a number for each is due; refused$"):
            check_sum_index(sum_index, count)


# --- what party_2 says of bins


def header(**fields: Any) -> OperandHeader:
    values = {"number": 0, "points": 9, "rows": 2, "scale": 1.0, "offset": 0.0, "max_abs": 8, "energy": 100}
    return OperandHeader(**(values | {"columns": 3, "further_scales": (1.0, 1.0)} | fields))


def test_header_of_bins_is_read_as_it_was_written() -> None:
    for written in (header(), header(row_bits=6, group_energy=300), header(row_bits=1, group_energy=0)):
        assert OperandHeader.from_meta(json.loads(json.dumps(written.to_meta()))) == written


@pytest.mark.parametrize(
    "wrong",
    [
        {"row_bits": 0},
        {"row_bits": -1},
        {"row_bits": 17},
        {"group_energy": -1},
        {"group_energy": 301},
        {"group_energy": 10**30},
    ],
    ids=str,
)
def test_header_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(LinkError, match="operand header out of range"):
        OperandHeader.from_meta(header(**wrong).to_meta())


@pytest.mark.parametrize("field", ["row_bits", "group_energy"])
@pytest.mark.parametrize("value", [None, "many", float("nan"), float("inf"), [1]], ids=str)
def test_header_that_is_no_number_is_refused(field: str, value: Any) -> None:
    with pytest.raises(LinkError, match="operand header"):
        OperandHeader.from_meta(header().to_meta() | {field: value})
    with pytest.raises(LinkError, match="operand header"):
        OperandHeader.from_meta({k: v for k, v in header().to_meta().items() if k != field})


@pytest.mark.parametrize("bits", [8, 12, 14])
@given(seed=st.integers(0, 10**6), bins=st.integers(4, 64))
def test_bounds_of_bins_hold_for_every_image(bits: int, seed: int, bins: int) -> None:
    """Entries, the energy of a column, and that of all bins together: by the splines alone, whatever J is."""
    draw = random.Random(seed)
    grid = Grid((draw.randint(2, 9), draw.randint(2, 9)))
    # Values on the bins' centres, where the squares of the weights have their largest sum, and anywhere.
    spread = draw.choice([bins - 3, 10 * bins, 10**6])
    values = torch.tensor([draw.randint(0, spread) for _ in range(grid.count)], dtype=torch.float64)
    values[:2] = torch.tensor([0.0, spread])
    wanted = Columns("bins", bins=bins)
    fixed = columns_of(Image(values.reshape(1, *grid.shape), grid), None, None, wanted)
    integers, scales = quantise_columns(fixed, wanted, bits)
    assert set(scales) == {BIN_PEAK / (2 ** (bits - 1) - 1)}
    peak = 2 ** (bits - 1)
    assert int(integers.abs().max()) <= peak
    assert int(integers.square().sum(1).max()) <= grid.count * peak**2
    for columns in integers.split(bins):
        assert int(columns.square().sum()) <= math.ceil(1.1 * grid.count * peak**2 / 2 / BIN_PEAK**2)


def test_party_2_keeps_its_word(dimension: int, pair: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of the operand, and the operand."""
    sent: list[tuple[OperandHeader, Tensor]] = []
    opens = BeaverFixedSide.open

    def recorded(side: BeaverFixedSide, header: OperandHeader, values: Tensor) -> FixedOperand:
        sent.append((header, values))
        return opens(side, header, values)

    monkeypatch.setattr(BeaverFixedSide, "open", recorded)
    image, measure = pair("affine", dimension).fixed, MutualInformation(16, 8)
    with private_fixed("beaver", FixedParty(image, measure=measure)) as source:
        for level in (Level(2, 1.0), LEVEL):
            source.operand(OperandRequest(level, rows=24, columns=measure.columns(), measure=measure))
    for said, values in sent:
        assert values.shape == (8 * (1 + dimension), said.points)
        assert int(values.abs().max()) <= said.max_abs
        assert int(values.square().sum(1).max()) <= said.energy
        for columns in values.split(8):
            assert int(columns.square().sum()) <= said.group_energy
        assert said.group_energy < 2 * said.energy, "or nothing is gained"
        assert values[:8].sum(0).double().numpy() * said.scale == pytest.approx(
            np.ones(said.points), abs=8 * said.scale
        )


# --- private sums are the clear ones


def operand_of(source: FixedSource, sampler: str, measure: MutualInformation, rows: int) -> Operand:
    choices: dict[str, PointChoice] = {"urs": Uniform(0.5, 3), "chunks": Permuted(3)}
    choice = choices.get(sampler, Full())
    operand = source.operand(OperandRequest(LEVEL, choice, 0, rows, measure.columns(), measure=measure))
    count = source.grid.count
    if sampler == "chunks":
        return operand.part(torch.arange(count // 3, count), None)
    if sampler == "gms":
        positions = torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 2].sort().values
        weights = torch.rand(len(positions), generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
        return operand.part(positions, weights / count)
    return operand


@pytest.mark.parametrize(
    "sampler", ["full", *(pytest.param(name, marks=pytest.mark.slow) for name in ("urs", "chunks")), "gms"]
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_private_sums_are_the_clear_ones_up_to_rounding(protocol: str, sampler: str, dimension: int) -> None:
    grid = Grid((18, 15) if dimension == 2 else (8, 7, 6))
    image, bins = noise(grid, torch.float32), 5
    measure = MutualInformation(6, bins)
    clear = operand_of(ClearFixed(image), sampler, measure, dimension * bins)
    index, weights = clear.sample.index, clear.sample.weights
    other = noise(grid, torch.float32, 9).tensor.flatten()
    other = other if index is None else other[index]
    factors = torch.ones_like(other) if weights is None else weights.to(other)
    table = table_of(other, float(other.min()), float(other.max()), 6) * factors
    slopes = torch.randn(dimension * bins, len(other), generator=torch.Generator().manual_seed(4)) * factors
    histogram = all_pairs(6, bins)
    asked = [
        ((b * dimension + d, j * bins + b), d * (dimension + 1) + j)
        for d in range(dimension)
        for j in range(dimension + 1)
        for b in range(bins)
    ]
    with private_fixed(protocol, FixedParty(image, measure=measure)) as source:
        private = operand_of(source, sampler, measure, dimension * bins)
        assert isinstance(private, PrivateOperand)
        for rows, pairs, sum_index in (
            (table, histogram, list(range(len(histogram)))),
            (slopes, [pair for pair, _ in asked], [result for _, result in asked]),
        ):
            expected, found = (operand.sums(rows, pairs, sum_index) for operand in (clear, private))
            assert found.shape == expected.shape == (max(sum_index) + 1,)
            # Rounding of the columns (half a step), eight deviations; that of the rows is less.
            terms = max(map(sum_index.count, sum_index))
            deviation = math.sqrt(terms) * float(rows.norm(dim=1).max()) * private.header.scale / 2
            assert 0 < float((found - expected).abs().max()) < 8 * 1.5 * deviation
            assert torch.equal(found, private.sums(rows, pairs, sum_index)), "the same rounding each time"


# --- the ledger


def one_iteration(moving: Image, fixed: Image, bins: tuple[int, int] = (16, 8)) -> Any:
    """The ledger's entry after one iteration where the images lie on each other."""
    measure = MutualInformation(*bins)
    with private_fixed("beaver", FixedParty(fixed, measure=measure)) as source:
        rows = measure.most_rows(fixed.grid.dimension)
        operand = source.operand(OperandRequest(LEVEL, Full(), 0, rows, measure.columns(), measure=measure))
        measure.loss(operand).linearise(linear_transform("affine")(fixed.grid), moving)
        [kept] = source.ledgers
    assert kept.last is not None
    return kept.last


@pytest.mark.parametrize("remap", ["as it is", "inverted"])
def test_ledger_says_that_an_image_that_determines_j_explains_it(remap: str, dimension: int, pair: Make) -> None:
    """The warped image's windows span J, and its own share of them says nearly as much: nothing is news."""
    fixed = pair("rigid", dimension).fixed
    moving = Image(fixed.tensor if remap == "as it is" else 500 - 3 * fixed.tensor, fixed.grid)
    entry = one_iteration(moving, fixed)
    assert entry.opened == 16 * 8 + dimension * (dimension + 1)
    assert 4 < entry.rank <= 16
    assert entry.own > 0.97
    assert entry.explained > 0.99


def test_ledger_says_that_images_without_anything_in_common_explain_rank_over_points(dimension: int) -> None:
    """One pair of images of noise: five standard deviations of the mean square of `rank` such cosines."""
    grid = Grid((50, 40) if dimension == 2 else (14, 13, 12))
    entry = one_iteration(noise(grid, torch.float32, 5), noise(grid, torch.float32, 6))
    assert 8 < entry.rank <= 16
    chance = entry.rank / grid.count
    assert entry.explained == pytest.approx(chance, abs=5 * chance * math.sqrt(2 / entry.rank))
    assert entry.own < 0.01
