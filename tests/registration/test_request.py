"""What party_1 asks party_2 to prepare: the request, and the message that it is sent as."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wire.decoding import damaged, decodes_or_refuses, joined, round_trips

from ppir_torch.errors import LinkError
from ppir_torch.grids import Grid
from ppir_torch.images import Level
from ppir_torch.joint.columns import IMAGE, Columns
from ppir_torch.losses import LocalCorrelation, Mind
from ppir_torch.registration.request import AskedOperand, OperandRequest
from ppir_torch.sampling import Full, Permuted, PointChoice, Sample, Uniform
from ppir_torch.transforms import ControlLattice
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import link_pair

GRID = Grid((12, 10))
LATTICE = ControlLattice(GRID, 4.0)
MAP = OperandRequest(Level(1, 0.0), lattice=LATTICE).public_map(GRID, Sample(None, None))
ASKED = {
    "all": AskedOperand(Level(2, 1.5), Full(), 7, IMAGE, {"kind": "ssd"}),
    "some": AskedOperand(Level(1, 0.0), Uniform(0.3, 5), 1, Columns("bins", bins=8), {"kind": "mi"}),
    "order": AskedOperand(Level(4, 4.0), Permuted(9), 16, Columns("moments"), LocalCorrelation().to_meta()),
    "axes": AskedOperand(Level((8, 8, 1), 2.5), Full(), 7, IMAGE, {"kind": "ssd"}),
    "indices": AskedOperand(Level(1, 0.0), None, 16, Columns("steepest_descent", "rigid"), {"kind": "ssd"}),
    "map": AskedOperand(Level(1, 0.0), Full(), 3, IMAGE, Mind().to_meta(), MAP),
}


@pytest.mark.parametrize("name", list(ASKED))
def test_a_request_arrives_as_it_was_sent(name: str) -> None:
    asked = ASKED[name]
    round_trips(asked)
    read = AskedOperand.decode(memoryview(joined(asked)))
    assert (read.level, read.choice, read.rows, read.columns) == (asked.level, asked.choice, asked.rows, asked.columns)
    assert read.measure == asked.measure


@pytest.mark.parametrize("name", list(ASKED))
@given(data=st.data())
def test_a_damaged_request_is_refused_in_one_line(name: str, data: st.DataObject) -> None:
    decodes_or_refuses(AskedOperand, data.draw(damaged(joined(ASKED[name]))))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_are_refused(payload: bytes) -> None:
    assert decodes_or_refuses(AskedOperand, payload) is None


@pytest.mark.parametrize(
    "choice", [Full(), Uniform(0.5, 3), Permuted(2), Sample(torch.tensor([1, 4, 9]), None)], ids=lambda c: c.kind
)
def test_party_2_takes_the_points_that_party_1_asked_for(choice: PointChoice) -> None:
    mine, theirs = link_pair("party_1", "party_2")
    OperandRequest(Level(1, 0.0), choice, rows=4).send(mine, None)
    taken = AskedOperand.receive(theirs).points(theirs).draw(20, 3)
    wanted = choice.draw(20, 3)
    assert (taken.index is None) == (wanted.index is None)
    assert taken.index is None or torch.equal(taken.index, wanted.index)
    assert taken.weights is None


def test_weights_of_told_points_are_not_sent() -> None:
    mine, theirs = link_pair("party_1", "party_2")
    sample = Sample(torch.tensor([1, 4, 9]), torch.tensor([0.1, 0.7, 0.2]))
    OperandRequest(Level(1, 0.0), sample).send(mine, None)
    assert AskedOperand.receive(theirs).points(theirs).weights is None
    assert set(mine.sent) == {MessageKind.LEVEL, MessageKind.SAMPLE}


def test_a_sample_of_all_points_is_not_a_choice() -> None:
    mine, _ = link_pair("party_1", "party_2")
    with pytest.raises(ValueError, match=r"use Full\(\)"):
        OperandRequest(Level(1, 0.0), Sample(None, None)).send(mine, None)
    assert not mine.sent


@pytest.mark.parametrize("shrink", [0, -1, 2.0, True, "8", [], [0, 1], [2, 2, 2, 2], [2, 2000], {"a": 1}, None])
def test_factors_out_of_range_are_refused(shrink: object) -> None:
    asked = AskedOperand(Level(shrink, 0.0), Full(), 7, IMAGE, {"kind": "ssd"})  # type: ignore[arg-type]
    with pytest.raises(LinkError, match="level request out of range"):
        AskedOperand.decode(memoryview(joined(asked)))


def test_a_map_takes_the_operands_points() -> None:
    sample = Sample(torch.arange(3, 60), None)
    taken = ASKED["map"].public_map(GRID, sample, 1)
    assert taken is not None
    assert taken.index is sample.index
    assert ASKED["all"].public_map(GRID, sample, 1) is None


@pytest.mark.parametrize(
    ("grid", "channels", "names"),
    [(Grid((10, 12)), 1, ("shape (10, 12)", "level of (12, 10)", "refused")), (GRID, 2, ("1 channels", "has 2"))],
    ids=["grid", "channels"],
)
def test_a_map_that_does_not_fit_is_refused(grid: Grid, channels: int, names: tuple[str, ...]) -> None:
    with pytest.raises(LinkError) as caught:
        ASKED["map"].public_map(grid, Sample(None, None), channels)
    for name in names:
        assert name in str(caught.value)
