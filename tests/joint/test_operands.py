"""Mapped products of a part of an operand's points: the direct sums, and nothing of which points these are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from joint.ends import private_fixed
from torch import Tensor

from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.bounds import Limits, check_mapped
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.operands import ClearOperand, Operand, PrivateOperand
from ppir_torch.joint.public_map import FEW_BITS, PublicMap
from ppir_torch.joint.quantise import quantise_mapped_rows
from ppir_torch.losses import Measure, Mind, SquaredDifference
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.protocols.lattice.slots import MAX_RESULT, MAX_ROW
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.registration.request import map_of
from ppir_torch.sampling import Full, Sample, Uniform
from ppir_torch.transforms import ControlLattice
from ppir_torch.wire.kinds import MessageKind

LEVEL = Level(1, 0.0)
MAPPED = ("beaver", "spdz", "bfv", "ckks")
MEASURES: dict[str, Measure] = {"one channel": SquaredDifference(), "channels": Mind(1, 1)}
SHAPES = {2: (14, 17), 3: (8, 9, 10)}
every_measure = pytest.mark.parametrize("measure", MEASURES)


def image_of(dimension: int, seed: int = 0) -> Image:
    """Smooth enough that descriptors differ from voxel to voxel."""
    grid = Grid(tuple(reversed(SHAPES[dimension])), (1.5,) * dimension)
    generator = torch.Generator().manual_seed(seed)
    return Image(100 * torch.rand(1, *grid.shape, generator=generator), grid).smoothed(1.0)


def chosen(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(a third of the positions below `count`, weights of some orders of magnitude)."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(count, generator=generator)[: count // 3].sort().values
    return positions, torch.exp(4 * torch.rand(len(positions), generator=generator, dtype=torch.float64)) / count


def rows_of(dimension: int, operand: Operand, weights: Tensor) -> Tensor:
    """(D + 1, C n) floating, of any sign, weighted as the losses weight theirs."""
    assert operand.sample.index is not None
    n = operand.channels * operand.sample.index.numel()
    rows = torch.randn(dimension + 1, n, generator=torch.Generator().manual_seed(1))
    return rows * weights.to(rows).repeat(operand.channels)


def direct_sums(public_map: PublicMap, index: Tensor, fields: Tensor) -> Any:
    """B^T of fields (rows, C n) at grid positions (n,), by NumPy and one dense matrix: (rows, M)."""
    dense = np.ones((1, 1))
    for matrix in public_map.matrices:
        dense = np.kron(dense, matrix.T.astype(float))
    summed = fields.double().numpy().reshape(len(fields), -1, len(index)).sum(1)
    return summed @ dense[:, index.numpy()].T / public_map.unit


def agree(operand: ClearOperand | PrivateOperand, values: Tensor, rows: Tensor) -> None:
    """`project` and `adjoint` of a part are sums over its points; values (C n,) are the fixed image's there."""
    assert operand.public_map is not None
    assert operand.sample.index is not None
    carried, fields, total = operand.project(rows)
    assert carried.shape == rows.shape
    exact = carried.double() * values.double()
    expected = direct_sums(operand.public_map, operand.sample.index, exact[:-1])
    np.testing.assert_allclose(fields.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert total == pytest.approx(float(exact[-1].sum()), abs=1e-5 * float(exact[-1].abs().sum()))
    own = operand.adjoint(rows[:-1])
    np.testing.assert_allclose(own.numpy(), direct_sums(operand.public_map, operand.sample.index, rows[:-1]), atol=1e-9)


def values_of(image: Image, measure: Measure, operand: Operand) -> Tensor:
    """What J stands for, less the offset, at the sample's points: channels one after the other."""
    features = measure.features(image, image.grid).tensor.flatten(1)
    assert operand.sample.index is not None
    return (features[:, operand.sample.index] - operand.offset).flatten()


@every_measure
@pytest.mark.parametrize("first", [Full(), Uniform(0.5, 3)], ids=["all", "URS"])
def test_a_clear_part_gives_the_direct_sums(first: Full | Uniform, measure: str, dimension: int) -> None:
    """Of all points, and of a public sample's, where positions count the sample's points."""
    image = image_of(dimension)
    lattice, wanted = ControlLattice(image.grid, 4.0), MEASURES[measure]
    whole = ClearFixed(image).operand(OperandRequest(LEVEL, first, 0, dimension + 1, lattice=lattice, measure=wanted))
    count = image.grid.count if whole.sample.index is None else whole.sample.index.numel()
    positions, weights = chosen(count)
    part = whole.part(positions, weights)
    assert isinstance(part, ClearOperand)
    agree(part, values_of(image, wanted, part), rows_of(dimension, part, weights))


def test_a_clear_part_within_a_mask(dimension: int) -> None:
    """Positions count the mask's voxels, indices the grid's."""
    image = image_of(dimension)
    mask = image.tensor[0] > image.tensor.mean()
    whole = ClearFixed(image, mask).operand(
        OperandRequest(LEVEL, Full(), 0, dimension + 1, lattice=ControlLattice(image.grid, 4.0))
    )
    positions, weights = chosen(int(mask.sum()))
    part = whole.part(positions, weights)
    assert isinstance(part, ClearOperand)
    assert part.sample.index is not None
    assert bool(mask.flatten()[part.sample.index].all())
    agree(part, values_of(image, SquaredDifference(), part), rows_of(dimension, part, weights))


@every_measure
@pytest.mark.parametrize("protocol", MAPPED)
def test_a_private_part_gives_the_direct_sums(protocol: str, measure: str, dimension: int) -> None:
    image, wanted = image_of(dimension), MEASURES[measure]
    with private_fixed(protocol, FixedParty(image, measure=wanted)) as source:
        whole = source.operand(
            OperandRequest(LEVEL, Full(), 0, dimension + 1, lattice=ControlLattice(image.grid, 4.0), measure=wanted)
        )
        positions, weights = chosen(image.grid.count)
        part = whole.part(positions, weights)
        rows = rows_of(dimension, part, weights)
        values = values_of(image, wanted, part)
        # As party_2 rounds them; it is the sums that are exact.
        rounded = (values.double() / part.header.scale).round() * part.header.scale
        agree(part, rounded, rows)
        [kept] = source.ledgers
        assert kept.last is not None
        assert kept.last.opened == part.public_map.results(dimension + 1)  # type: ignore[union-attr]


def test_the_ledger_takes_a_parts_equations_where_its_points_are() -> None:
    """The same equations as of a run of all points whose rows are zero elsewhere; own image without the weights."""
    image = image_of(2)
    entries = []
    for whole_rows in (False, True):
        with private_fixed("beaver", FixedParty(image)) as source:
            operand = source.operand(OperandRequest(LEVEL, Full(), 0, 3, lattice=ControlLattice(image.grid, 8.0)))
            positions, weights = chosen(image.grid.count)
            part = operand.part(positions, weights)
            own = image.tensor.flatten()[positions] - operand.offset
            rows = rows_of(2, part, weights)
            rows[-1] = own * weights
            if whole_rows:
                scattered = torch.zeros(3, image.grid.count)
                scattered[:, positions] = rows
                operand.project(scattered)
            else:
                part.project(rows)
            entries.append(source.ledgers[0].last)
    one, other = entries
    assert one is not None
    assert other is not None
    assert (one.opened, one.rank) == (other.opened, other.rank)
    # party_1's image is J itself at a third of the points: it explains that third, and the weighted one less.
    assert one.own > other.own
    assert math.isclose(one.own, 1 / 3, abs_tol=0.1)


@pytest.mark.parametrize("protocol", MAPPED)
def test_party_2_sees_the_same_traffic_for_any_part(protocol: str) -> None:
    """MessageKind by kind and message by message: nothing says how many points count, or which."""
    image = image_of(2)
    seen = []
    for part_of in (None, 0.01, 0.5):
        with private_fixed(protocol, FixedParty(image)) as source:
            operand = source.operand(OperandRequest(LEVEL, Full(), 0, 3, lattice=ControlLattice(image.grid, 6.0)))
            count = image.grid.count
            if part_of is not None:
                positions = torch.arange(max(2, int(part_of * count)))
                operand = operand.part(positions, torch.full((len(positions),), 1 / count))
            n = count if operand.sample.index is None else operand.sample.index.numel()
            for _ in range(2):
                operand.project(torch.randn(3, n))
            # SEAL's compressed public key has a size of its own in each session.
            received = {
                kind: size for kind, size in source.channel.received.items() if kind is not MessageKind.PUBLIC_KEY
            }
            seen.append((source.channel.bytes_sent, dict(source.channel.sent), received))
    assert seen[0] == seen[1] == seen[2]
    assert MessageKind.SAMPLE not in seen[0][1]
    assert len(seen[0][1]) >= 3


def test_disclosed_points_are_those_of_the_map(dimension: int) -> None:
    """A sample with weights that party_2 is told: its points alone are in the operand, the weights stay."""
    image = image_of(dimension)
    positions, weights = chosen(image.grid.count)
    with private_fixed("beaver", FixedParty(image)) as source:
        lattice = ControlLattice(image.grid, 4.0)
        operand = source.operand(OperandRequest(LEVEL, Sample(positions, weights), 0, dimension + 1, lattice=lattice))
        assert operand.header.points == len(positions)
        assert torch.equal(operand.sample.weights, weights)  # type: ignore[arg-type]
        values = values_of(image, SquaredDifference(), operand)
        rounded = (values.double() / operand.header.scale).round() * operand.header.scale
        agree(operand, rounded, rows_of(dimension, operand, weights))


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
def test_rows_with_few_bits_are_scaled_by_what_their_sums_come_to(dimension: int, sparse: bool) -> None:
    """Within every limit; finer than by their largest entry, by several bits where that is rare."""
    grid = Grid((40,) * dimension)
    public_map = map_of(ControlLattice(grid, (5.0,) * dimension), grid, Sample(None, None))
    row_bits, column_bits = public_map.bits_within(MAX_RESULT)
    largest = 2 ** (column_bits - 1) - 1
    header = OperandHeader(0, public_map.points, dimension + 1, 1.0, 0.0, largest, 1, row_bits=row_bits)
    limits = Limits(max_row=MAX_ROW, max_result=MAX_RESULT)
    rows = torch.randn(dimension + 1, public_map.points, generator=torch.Generator().manual_seed(0)).abs()
    if sparse:
        rows *= torch.arange(public_map.points) % 97 == 0
    assert row_bits < FEW_BITS
    by_entry, coarse = quantise_mapped_rows(rows, header, limits, public_map.largest_sum)
    by_sums, fine = quantise_mapped_rows(
        rows, header, limits, public_map.largest_sum, public_map.largest_sums(rows.double())
    )
    assert int(by_entry.max()) <= 2**row_bits
    assert (fine >= coarse * (8 if sparse else 1)).all()
    for integers in (by_entry, by_sums):
        check_mapped(integers, header, public_map, limits)
        bound = public_map.apply(integers[:-1].double()).max() * largest
        assert float(bound) <= limits.max_result
    assert float((by_sums / fine[:, None] - rows).abs().max()) <= 0.5 / float(fine.min())
