"""Whether a level of a run went right: pure functions of what is known at its end, all of it party_1's own.

What is measured (`facts.py`) and what follows from it are apart, so that the judgement can be tested by itself. The
limits stand here, once. They are far beyond what two people differ by: who passes them looks at a picture, not at a
registration.

>>> facts = LevelFacts(level=0, stage="linear", shrink=4, iterations=7, limit=30, overlap=0.98, overlap_at_start=1.0)
>>> facts.converged, judge(facts)
(True, ())
>>> from dataclasses import replace
>>> [finding.kind for finding in judge(replace(facts, least_stretch=0.01, determinant=1e-6))]
['collapsed']
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "LevelFacts", "is_fatal", "judge", "warnings_of"]

Stage = Literal["linear", "deformable"]
Kind = Literal[
    "collapsed", "runaway", "no_overlap", "little_overlap", "stretched", "unlike", "folding", "not_converged"
]

# Linear maps, against the start: adults' heads differ by 0.85 to 1.15, an infant's from an adult's by 0.6.
MOST_STRETCH, ODD_STRETCH = 5.0, 1.5
# Share of the smaller image that the other one shows.
NO_OVERLAP, LITTLE_OVERLAP = 0.02, 0.25
# Of the overlap at the start: a run that loses most of it has found a way to compare less.
LOST_OVERLAP = 0.5
# Share of the fixed image that the warped one explains; chance alone gives some tenths of a percent.
LITTLE_EXPLAINED = 0.02
# Share of a deformation with a Jacobian determinant that is not positive.
ODD_FOLDING, MOST_FOLDING = 0.001, 0.2


@dataclass(frozen=True, kw_only=True)
class LevelFacts:
    """What is known of a level at its end; the images' volumes, grids and points are in physical space.

    Attributes:
        level: its number in the run, both stages counted together.
        stage: "linear" or "deformable".
        shrink: of the level.
        iterations: how many there were.
        limit: most iterations of the level.
        overlap: share of the fixed image's points (of its mask's, where there is one) that map inside the moving image.
        overlap_at_start: the same before the first level.
        visible: share of the smaller image that the other one shows: 1 where a slab lies wholly inside of a head.
        determinant: of the linear map's matrix; negative where it mirrors.
        determinant_at_start: the same before the first level.
        least_stretch: by which the linear map scales any direction, at least, against the start.
        most_stretch: the same, at most.
        displacement_mm: root mean square distance by which points moved since the start.
        extent_mm: diagonal of the larger image.
        explained_before: share of the fixed image that the warped one explains at the level's first iteration, see
            `Measure.explained`; below 0 where no image at all would do better. None where that is not known.
        explained: the same at the last iteration that was kept.
        folding_share: of a deformation, the share of points where it folds; None of a linear map.
        held_back: the level ended because the images came apart, and the steps that led there were taken back.
    """

    level: int
    stage: Stage
    shrink: int
    iterations: int
    limit: int
    overlap: float
    overlap_at_start: float
    visible: float = 1.0
    determinant: float = 1.0
    determinant_at_start: float = 1.0
    least_stretch: float = 1.0
    most_stretch: float = 1.0
    displacement_mm: float = 0.0
    extent_mm: float = math.inf
    explained_before: float | None = None
    explained: float | None = None
    folding_share: float | None = None
    held_back: bool = False

    @property
    def converged(self) -> bool:
        """Whether the level ended by a rule of its own: not at the limit of its iterations, and not held back."""
        return self.iterations < self.limit and not self.held_back

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"level 1/{self.shrink} of the {self.stage} stage"

    def to_json(self) -> dict[str, Any]:
        """As JSON values; what is not finite is null."""
        values = {name: _plain(value) for name, value in asdict(self).items()}
        return values | {"converged": self.converged}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LevelFacts:
        """Of the values that `to_json` gave."""
        numbers = {name: value for name, value in values.items() if name != "converged"}
        unknown = {name: math.nan for name in _NUMBERS if numbers.get(name, 0.0) is None}
        return cls(**(numbers | unknown))


_NUMBERS = tuple(name for name, kind in LevelFacts.__annotations__.items() if kind == "float")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a run, and what to try.

    Attributes:
        kind: one word, for programs.
        message: one line.
        advice: one line.
        levels: numbers of the levels that it is said of.
        fatal: the transform is of no use; the run ends, and keeps the one before.
    """

    kind: Kind
    message: str
    advice: str
    levels: tuple[int, ...]
    fatal: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"levels": list(self.levels)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Finding:
        """Of the values that `to_json` gave."""
        return cls(**(values | {"levels": tuple(values["levels"])}))


def judge(facts: LevelFacts) -> tuple[Finding, ...]:
    """What is wrong at the end of a level: what is fatal, or else what is odd, the worst first; empty where nothing is.

    That it did not converge is said of the whole run, see `warnings_of`.
    """
    fatal = tuple(_map_gone(facts) or _overlap_gone(facts))
    return fatal or (*_odd_map(facts), *_odd_overlap(facts), *_unlike(facts), *_folding(facts))


def is_fatal(findings: Iterable[Finding]) -> bool:
    """Whether one of them makes the transform useless."""
    return any(finding.fatal for finding in findings)


def warnings_of(levels: Sequence[LevelFacts]) -> tuple[Finding, ...]:
    """What is to be said of a run, of its levels so far.

    What a coarse level leaves odd a finer one may mend: the last level counts. That iterations were too few is said of
    all levels together.
    """
    if not levels:
        return ()
    last = judge(levels[-1])
    return last if is_fatal(last) else (*last, *_not_converged(levels))


def _map_gone(facts: LevelFacts) -> list[Finding]:
    numbers = [getattr(facts, name) for name in _NUMBERS if name != "extent_mm"]
    if not all(math.isfinite(number) for number in numbers):
        return [_fatal(facts, "runaway", "the transform is not finite")]
    if facts.least_stretch < 1 / MOST_STRETCH:
        how = f"the linear map shrinks a direction to {facts.least_stretch:.3g} of what it was"
        return [_fatal(facts, "collapsed", f"{how} (determinant {facts.determinant:.3g})")]
    if facts.most_stretch > MOST_STRETCH:
        how = f"the linear map stretches a direction to {facts.most_stretch:.3g} times what it was"
        return [_fatal(facts, "runaway", f"{how} (determinant {facts.determinant:.3g})")]
    if facts.determinant * facts.determinant_at_start <= 0:
        before = f"{facts.determinant_at_start:.3g} at the start"
        return [_fatal(facts, "collapsed", f"the linear map mirrors (determinant {facts.determinant:.3g}, {before})")]
    if facts.displacement_mm > facts.extent_mm:
        how = f"points moved by {facts.displacement_mm:.4g} mm, the larger image is {facts.extent_mm:.4g} mm across"
        return [_fatal(facts, "runaway", how)]
    if (facts.folding_share or 0.0) > MOST_FOLDING:
        return [_fatal(facts, "collapsed", f"{facts.folding_share:.1%} of the deformation folds")]
    return []


def _overlap_gone(facts: LevelFacts) -> list[Finding]:
    if facts.visible >= NO_OVERLAP:
        return []
    return [_fatal(facts, "no_overlap", f"no overlap is left: {_seen(facts)}")]


def _fatal(facts: LevelFacts, kind: Kind, what: str) -> Finding:
    advice = (
        "another loss where the images' brightness or contrast are unlike (ncc_squared; across modalities cr, mi or "
        "mind), a rigid transform first, or a better start (start: centre_of_mass, or a transform file)"
    )
    return Finding(kind, f"{facts.name}: {what}", advice, (facts.level,), fatal=True)


def _odd_map(facts: LevelFacts) -> list[Finding]:
    if facts.least_stretch >= 1 / ODD_STRETCH and facts.most_stretch <= ODD_STRETCH:
        return []
    by = f"by {facts.least_stretch:.3g} to {facts.most_stretch:.3g} against the start"
    advice = "look at the warped image; a rigid or similarity transform where the sizes are known to agree"
    return [Finding("stretched", f"{facts.name}: the linear map scales {by}", advice, (facts.level,))]


def _odd_overlap(facts: LevelFacts) -> list[Finding]:
    if facts.held_back:
        what = f"the images came apart and the steps that led there were taken back: {_seen(facts)}"
    elif facts.visible < LITTLE_OVERLAP or facts.overlap < LOST_OVERLAP * facts.overlap_at_start:
        what = f"little overlap: {_seen(facts)}"
    else:
        return []
    advice = "look at the warped image; a better start (start: centre_of_mass, or a transform file) where it is wrong"
    return [Finding("little_overlap", f"{facts.name}: {what}", advice, (facts.level,))]


def _seen(facts: LevelFacts) -> str:
    here, before = _percent(facts.overlap), _percent(facts.overlap_at_start)
    return f"{here} of the fixed image lie inside the moving one, {before} at the start"


def _unlike(facts: LevelFacts) -> list[Finding]:
    if facts.explained is None or facts.explained >= LITTLE_EXPLAINED:
        return []
    if facts.explained < -LITTLE_EXPLAINED:
        what = "the warped image explains nothing of the fixed one; no image at all would be nearer to it"
    else:
        what = f"the warped image explains {abs(facts.explained):.1%} of the fixed one, no more than chance would"
    advice = (
        "look at the warped image; another loss where brightness or contrast are unlike (ncc_squared; across "
        "modalities cr, mi or mind), or a better start"
    )
    return [Finding("unlike", f"{facts.name}: {what}", advice, (facts.level,))]


def _folding(facts: LevelFacts) -> list[Finding]:
    if (facts.folding_share or 0.0) <= ODD_FOLDING:
        return []
    advice = "a larger transform.weight, control points further apart (transform.spacing_mm), or transform velocity"
    what = f"{facts.folding_share:.2%} of the deformation folds"
    return [Finding("folding", f"{facts.name}: {what}", advice, (facts.level,))]


def _not_converged(levels: Sequence[LevelFacts]) -> list[Finding]:
    found = []
    for stage, field in (("linear", "optimizer.stopping.max_iterations"), ("deformable", "transform.max_iterations")):
        short = [facts for facts in levels if facts.stage == stage and facts.iterations >= facts.limit]
        if not short:
            continue
        names, plural = ", ".join(f"1/{facts.shrink}" for facts in short), "s" if len(short) > 1 else ""
        where = f"level{plural} {names} of the {stage} stage"
        message = f"{where} did not converge within the limit of {short[-1].limit} iterations"
        numbers = tuple(facts.level for facts in short)
        found.append(Finding("not_converged", message, f"more iterations ({field})", numbers))
    return found


def _percent(share: float) -> str:
    return f"{share:.0%}" if abs(share) >= 0.095 or share == 0 else f"{share:.1%}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
