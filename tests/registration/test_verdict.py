"""The judgement of a level: what follows from what is known of it, whatever that is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ppir_torch.registration.verdict import Finding, LevelFacts, is_fatal, judge, warnings_of

GOOD = LevelFacts(
    level=2,
    stage="linear",
    shrink=1,
    iterations=7,
    limit=30,
    overlap=0.95,
    overlap_at_start=0.9,
    extent_mm=300.0,
    displacement_mm=12.0,
    explained_before=0.4,
    explained=0.9,
)
NUMBERS = (
    *("overlap", "overlap_at_start", "visible", "determinant", "determinant_at_start"),
    *("least_stretch", "most_stretch", "displacement_mm"),
)

anything = some.floats(allow_nan=True, allow_infinity=True)
shares = some.floats(0, 1)


def changed(facts: LevelFacts, changes: dict[str, Any]) -> LevelFacts:
    return replace(facts, **changes)


def kinds(facts: LevelFacts) -> set[str]:
    return {finding.kind for finding in judge(facts)}


@some.composite
def whatever(draw: Any) -> LevelFacts:
    """Facts of any numbers at all."""
    limit = draw(some.integers(1, 1000))
    maybe = some.none() | anything
    return LevelFacts(
        level=draw(some.integers(0, 20)),
        stage=draw(some.sampled_from(["linear", "deformable"])),
        shrink=draw(some.integers(1, 64)),
        iterations=draw(some.integers(0, limit)),
        limit=limit,
        **{name: draw(anything) for name in NUMBERS},
        extent_mm=draw(some.floats(1e-3, 1e6)),
        explained_before=draw(maybe),
        explained=draw(maybe),
        folding_share=draw(some.none() | shares),
    )


@some.composite
def plausible(draw: Any) -> LevelFacts:
    """Facts of a run that nothing is wrong with."""
    start = draw(some.floats(0.3, 1))
    size = draw(some.floats(0.5, 5000))
    least = draw(some.floats(0.7, 1))
    return replace(
        GOOD,
        overlap=draw(some.floats(0.55, 1)) * start,
        overlap_at_start=start,
        visible=draw(some.floats(0.3, 1)),
        determinant_at_start=draw(some.sampled_from([1.0, -1.0, 8.0])) * (scale := draw(some.floats(0.2, 5))),
        determinant=math.copysign(scale, 1.0),
        least_stretch=least,
        most_stretch=draw(some.floats(least, 1.45)),
        displacement_mm=draw(some.floats(0, 0.9)) * size,
        extent_mm=size,
        explained=draw(some.none() | some.floats(0.05, 1)),
        folding_share=draw(some.none() | some.floats(0, 0.0005)),
    )


@given(whatever())
def test_every_run_is_judged_in_whole_lines(facts: LevelFacts) -> None:
    findings = judge(facts)
    for finding in findings:
        assert finding.levels == (facts.level,)
        for line in (finding.message, finding.advice):
            assert line
            assert "\n" not in line
        assert f"level 1/{facts.shrink}" in finding.message
    assert len({finding.fatal for finding in findings}) <= 1  # of what is fatal nothing smaller is said
    assert len({finding.kind for finding in findings}) == len(findings)


@given(plausible())
def test_a_good_run_is_left_in_peace(facts: LevelFacts) -> None:
    facts = replace(facts, determinant=math.copysign(facts.determinant, facts.determinant_at_start))
    assert judge(facts) == ()
    assert warnings_of([facts]) == ()


@given(plausible(), some.sampled_from(NUMBERS), some.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_a_runaway(facts: LevelFacts, name: str, value: float) -> None:
    (finding,) = judge(changed(facts, {name: value}))
    assert (finding.kind, finding.fatal) == ("runaway", True)


@given(whatever())
def test_a_mirrored_or_flattened_image_is_always_fatal(facts: LevelFacts) -> None:
    assert is_fatal(judge(replace(facts, determinant=-1.0, determinant_at_start=1.0)))
    assert is_fatal(judge(replace(facts, determinant=0.0)))
    assert is_fatal(judge(replace(facts, least_stretch=0.0)))
    assert is_fatal(judge(replace(facts, visible=0.0)))


@given(
    plausible(),
    some.floats(0, 1),
    some.sampled_from(["overlap", "visible", "least_stretch", "explained"]),
    some.floats(0, 1),
)
def test_less_is_never_better(facts: LevelFacts, value: float, name: str, factor: float) -> None:
    """Of the overlap, of what is explained, of the least stretch: what was odd stays so, or becomes fatal."""
    one = judge(changed(facts, {name: value}))
    less = judge(changed(facts, {name: value * factor}))
    assert is_fatal(less) or {f.kind for f in one} <= {f.kind for f in less}
    assert is_fatal(less) or not is_fatal(one)


@given(
    plausible(),
    some.floats(0, 100),
    some.sampled_from(["most_stretch", "displacement_mm", "folding_share"]),
    some.floats(1, 100),
)
def test_more_is_never_better(facts: LevelFacts, value: float, name: str, factor: float) -> None:
    """Of the largest stretch, the movement, the folding."""
    one = judge(changed(facts, {name: value}))
    more = judge(changed(facts, {name: value * factor}))
    assert is_fatal(more) or {f.kind for f in one} <= {f.kind for f in more}
    assert is_fatal(more) or not is_fatal(one)


@given(whatever(), some.floats(1e-3, 1e3))
def test_the_unit_of_length_does_not_matter(facts: LevelFacts, factor: float) -> None:
    ratio = facts.displacement_mm / facts.extent_mm
    if abs(ratio - 1) < 1e-6:  # rounding decides
        return
    scaled = replace(facts, displacement_mm=facts.displacement_mm * factor, extent_mm=facts.extent_mm * factor)
    assert kinds(scaled) == kinds(facts)


@pytest.mark.parametrize(
    ("changes", "kind", "fatal"),
    [
        ({"determinant": -0.9}, "collapsed", True),
        ({"determinant": 1e-9, "least_stretch": 1e-3}, "collapsed", True),
        ({"determinant": 2e8, "most_stretch": 600.0}, "runaway", True),
        ({"displacement_mm": 301.0}, "runaway", True),
        ({"visible": 0.01, "overlap": 0.01}, "no_overlap", True),
        ({"stage": "deformable", "folding_share": 0.3}, "collapsed", True),
        ({"least_stretch": 0.4}, "stretched", False),
        ({"most_stretch": 2.5}, "stretched", False),
        ({"visible": 0.2}, "little_overlap", False),
        ({"overlap": 0.4}, "little_overlap", False),
        ({"held_back": True}, "little_overlap", False),
        ({"explained": -3.0}, "unlike", False),
        ({"explained": 0.01}, "unlike", False),
        ({"stage": "deformable", "folding_share": 0.017}, "folding", False),
    ],
    ids=str,
)
def test_what_is_found(changes: dict[str, Any], kind: str, fatal: bool) -> None:
    (finding,) = judge(changed(GOOD, changes))
    assert (finding.kind, finding.fatal) == (kind, fatal)


def test_a_slab_that_lies_inside_of_a_head_is_no_lack_of_overlap() -> None:
    assert judge(replace(GOOD, overlap=0.05, overlap_at_start=0.06, visible=0.9)) == ()


def test_what_a_coarse_level_left_odd_counts_only_at_the_end() -> None:
    coarse = replace(GOOD, level=0, shrink=4, explained=-1.0)
    assert warnings_of([coarse, GOOD]) == ()
    assert [f.kind for f in warnings_of([GOOD, coarse])] == ["unlike"]
    assert warnings_of([]) == ()


def test_levels_that_ended_at_their_limit_are_one_warning_a_stage() -> None:
    short = [replace(GOOD, level=k, shrink=n, iterations=30) for k, n in ((0, 4), (1, 2))]
    bent = replace(GOOD, level=3, stage="deformable", iterations=15, limit=15)
    linear, deformable = warnings_of([*short, GOOD, bent])
    assert (linear.kind, linear.levels, linear.fatal) == ("not_converged", (0, 1), False)
    assert linear.message == "levels 1/4, 1/2 of the linear stage did not converge within the limit of 30 iterations"
    assert "optimizer.stopping.max_iterations" in linear.advice
    assert deformable.message.startswith("level 1/1 of the deformable stage did not converge")
    assert "transform.max_iterations" in deformable.advice
    assert [facts.converged for facts in (*short, GOOD, bent)] == [False, False, True, False]


def test_of_a_run_that_went_wrong_nothing_else_is_said() -> None:
    short = replace(GOOD, level=0, shrink=4, iterations=30)
    assert [f.kind for f in warnings_of([short, replace(GOOD, determinant=-1.0)])] == ["collapsed"]


@given(whatever())
def test_facts_and_findings_are_strict_json_and_come_back(facts: LevelFacts) -> None:
    values = json.loads(json.dumps(facts.to_json(), allow_nan=False))
    back = LevelFacts.from_json(values)
    assert back.to_json() == values
    assert values["converged"] == facts.converged == back.converged
    for finding in judge(facts):
        assert Finding.from_json(json.loads(json.dumps(finding.to_json(), allow_nan=False))) == finding
