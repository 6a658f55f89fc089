"""The leakage ledger: numpy's least squares over all rows at once is the oracle."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppir_torch.joint import ledger as module
from ppir_torch.joint.exact import PART
from ppir_torch.joint.ledger import Ledger, LedgerEntry


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def ledger_of(fixed: Tensor, sketch: int = 4096, seed: int = 0, noise: float = 0.0) -> Ledger:
    return Ledger(len(fixed), float(fixed.square().sum()), sketch, seed, noise)


def entry_of(rows: Tensor, fixed: Tensor, own: Tensor | None = None, sketch: int = 4096, seed: int = 0) -> LedgerEntry:
    """All rows in one product; `own` is the last row where it is not given."""
    return ledger_of(fixed, sketch, seed).record(rows, rows @ fixed, rows[-1] if own is None else own)


def explained_by(rows: Tensor, fixed: Tensor) -> float:
    """|P J|^2 / |J|^2 from the least-norm solution."""
    solution = np.linalg.lstsq(rows.numpy(), (rows @ fixed).numpy(), rcond=1e-9)[0]
    return float(solution @ solution / (fixed @ fixed))


def cosine_square(a: Tensor, b: Tensor) -> float:
    return float((a @ b) ** 2 / ((a @ a) * (b @ b)))


def registration(points: int, start: float, end: float) -> tuple[Tensor, list[Tensor]]:
    """J and the rows of ten iterations: party_1's image, whose share of J grows from `start` to `end`, comes last."""
    fixed, other = random(2, points, seed=1) / math.sqrt(points)
    first, last = math.acos(math.sqrt(start)), math.acos(math.sqrt(end))
    products = []
    for i in range(10):
        angle = last + (first - last) * 0.3**i
        different = other + random(points, seed=30 + i) / math.sqrt(points)
        different -= (different @ fixed) / (fixed @ fixed) * fixed
        own = math.cos(angle) * fixed / fixed.norm() + math.sin(angle) * different / different.norm()
        products.append(torch.cat([random(6, points, seed=10 + i), own[None]]))
    return fixed, products


def run(fixed: Tensor, products: list[Tensor], sketch: int, seed: int = 0) -> LedgerEntry:
    ledger = ledger_of(fixed, sketch, seed)
    return [ledger.record(x, x @ fixed, x[-1]) for x in products][-1]


@given(
    points=st.integers(1, 40),
    rank=st.integers(1, 12),
    rows=st.integers(1, 25),
    products=st.integers(1, 4),
    scale=st.sampled_from([1e-8, 1.0, 1e9]),
    seed=st.integers(0, 99),
)
def test_exact_ledger_is_the_least_norm_solution(
    points: int, rank: int, rows: int, products: int, scale: float, seed: int
) -> None:
    fixed = scale * random(points, seed=seed)
    x = random(rows, rank, seed=seed + 100) @ random(rank, points, seed=seed + 200)
    ledger = ledger_of(fixed)
    entries = [ledger.record(part, part @ fixed, part[-1]) for part in x.tensor_split(products) if len(part)]
    last = entries[-1]
    # As unit rows, because a row's size says nothing of what it opens.
    unit = x / x.norm(dim=1, keepdim=True)
    assert last.opened == rows
    assert last.rank == np.linalg.matrix_rank(unit.numpy(), tol=1e-5)
    assert last.explained == pytest.approx(explained_by(unit, fixed), abs=1e-4)
    assert all(a.explained <= b.explained + 1e-9 for a, b in pairwise(entries))
    owns = [cosine_square(part[-1], fixed) for part in x.tensor_split(products) if len(part)]
    assert last.own == pytest.approx(max(owns), abs=1e-4)
    assert 0 <= last.beyond <= 1


def test_online_equals_batch() -> None:
    fixed, rows = random(300), random(60, 300, seed=1)
    ledger = ledger_of(fixed)
    for part in rows.split(7):
        online = ledger.record(part, part @ fixed, rows[-1])
    batch = entry_of(rows, fixed)
    assert (online.opened, online.rank) == (batch.opened, batch.rank) == (60, 60)
    assert online.explained == pytest.approx(batch.explained, abs=1e-8)


def test_beyond_is_the_share_of_what_the_own_image_leaves_open() -> None:
    fixed, rows = random(200), random(30, 200, seed=1)
    own = fixed + 0.5 * random(200, seed=2)
    entry = entry_of(torch.cat([rows, own[None]]), fixed)
    rest = fixed - (fixed @ own) / (own @ own) * own
    deflated = rows - ((rows @ own) / (own @ own))[:, None] * own
    assert entry.own == pytest.approx(cosine_square(own, fixed), abs=1e-6)
    assert entry.beyond == pytest.approx(explained_by(deflated, rest), abs=1e-4)


def test_an_own_image_outside_the_span_counts_as_not_known() -> None:
    fixed = random(50)
    row = torch.zeros(1, 50, dtype=torch.float64)
    row[0, 0] = 1
    own = fixed.clone()
    own[0] = 0
    entry = entry_of(row, fixed, own)
    assert entry.own < 1e-12
    assert entry.beyond == pytest.approx(entry.explained)


def test_rows_that_span_everything_open_everything() -> None:
    fixed = random(64)
    entry = entry_of(random(80, 64, seed=1), fixed)
    assert (entry.opened, entry.rank) == (80, 64)
    assert entry.explained == pytest.approx(1, abs=1e-6)
    assert entry.beyond == pytest.approx(1, abs=1e-6)


def test_repeated_and_zero_rows_are_opened_but_tell_nothing() -> None:
    fixed, rows = random(64), random(5, 64, seed=1)
    ledger = ledger_of(fixed)
    first = ledger.record(rows, rows @ fixed, rows[-1])
    mixed = random(9, 5, seed=2) @ rows
    again = ledger.record(mixed, mixed @ fixed, rows[-1])
    zeros = torch.zeros(3, 64)
    last = ledger.record(zeros, torch.zeros(3), zeros[0])
    assert (first.opened, again.opened, last.opened) == (5, 14, 17)
    assert first.rank == again.rank == last.rank == 5
    assert last.explained == pytest.approx(first.explained, abs=1e-9)
    assert last.own == pytest.approx(first.own, abs=1e-9)


def test_an_empty_ledger_and_a_constant_image() -> None:
    zeros = torch.zeros(2, 9)
    assert Ledger(9, 4.0).record(zeros, torch.zeros(2), zeros[0]) == LedgerEntry(2, 0, 0.0, 0.0, 0.0)
    assert Ledger(9, 0.0).record(torch.eye(9), torch.zeros(9), torch.ones(9)).explained == 0


@pytest.mark.parametrize("sketch", [4096, 400], ids=["exact", "sketched"])
def test_errors_of_the_results_are_not_amplified(sketch: int) -> None:
    """Rows that are nearly one row: what tells them apart, down to 1e-7 of them, would make their errors huge."""
    fixed, base = random(1000), random(1000, seed=1)
    ledger, clear = ledger_of(fixed, sketch), []
    for i in range(40):
        near = base + 10.0 ** -(i % 8) * random(4, 1000, seed=2 + i)
        error = 1e-6 * float(fixed.norm()) * near.norm(dim=1) * random(4, seed=99 + i)
        entry = ledger.record(near, near @ fixed + error, base)
        clear += [near] if i % 8 < 5 else []
    assert entry.explained == pytest.approx(explained_by(torch.cat(clear), fixed), abs=0.04)


def test_noise_is_not_counted_as_explained() -> None:
    fixed, rows = random(400), random(300, 400, seed=1)
    rows /= rows.norm(dim=1, keepdim=True)
    noisy = rows @ fixed + 0.5 * float(fixed.square().mean().sqrt()) * random(300, seed=2)
    told = ledger_of(fixed, noise=0.5).record(rows, noisy, rows[-1])
    untold = ledger_of(fixed).record(rows, noisy, rows[-1])
    assert told.explained < explained_by(rows, fixed) < untold.explained
    assert told.explained > 0.3


@pytest.mark.parametrize(("rank", "sketch"), [(40, 300), (40, 1500), (200, 300), (200, 600)])
def test_sketched_rows_that_have_nothing_to_do_with_j_explain_rank_over_points(rank: int, sketch: int) -> None:
    points, trials = 2000, 8
    found = []
    for seed in range(trials):
        rows = random(rank, points, seed=seed)
        found.append(entry_of(rows, random(points, seed=seed + 50), sketch=sketch, seed=seed))
    assert {entry.rank for entry in found} == {rank}
    chance = rank / points
    # Each trial: J's own scatter 2/rank, and the sketch's 2/(d - rank); five standard deviations of the mean.
    bound = 5 * chance * math.sqrt(2 * (1 / rank + 1 / (sketch - rank)) / trials)
    assert np.mean([entry.explained for entry in found]) == pytest.approx(chance, abs=bound)
    if rank == 200:
        assert abs(chance / (1 - rank / sketch) * (1 - rank / points) - chance) > bound, "the bias would be seen"


def test_the_sketch_sees_what_little_the_own_image_leaves_open() -> None:
    """All of J but 1 % is party_1's own image, and a plain sketch of 1000 numbers is wrong by 4 % of J."""
    fixed, products = registration(8000, start=0.97, end=0.99)
    truth = run(fixed, products, 8000)
    assert 0.2 < truth.beyond < 0.8
    for seed in range(4):
        entry = run(fixed, products, 1000, seed)
        assert entry.own == pytest.approx(truth.own, abs=1e-6)
        assert entry.beyond == pytest.approx(truth.beyond, abs=0.1)


def test_a_start_far_away_costs_the_sketch_no_more_than_documented() -> None:
    fixed, products = registration(8000, start=0.3, end=0.9)
    truth = run(fixed, products, 8000)
    errors = [run(fixed, products, 1000, seed).beyond - truth.beyond for seed in range(8)]
    far = (truth.own - 0.3) / (1 - truth.own)
    documented = 2 * math.sqrt(far * truth.beyond / 1000) + far * math.sqrt(2 * truth.rank) / 1000
    assert np.sqrt(np.mean(np.square(errors))) < documented < 0.25


def few_pixels() -> tuple[Tensor, Tensor, float]:
    """J, orthogonal rows of one bright and one faint pixel each, and what they explain."""
    pixels = torch.from_numpy(np.random.default_rng(0).permutation(3000)[:400]).reshape(2, 200)
    rows = torch.zeros(200, 3000, dtype=torch.float64)
    rows[torch.arange(200), pixels[0]] = 1
    rows[torch.arange(200), pixels[1]] = 1e-2
    fixed = random(3000, seed=3)
    return fixed, rows, float(((rows @ fixed) / rows.norm(dim=1)).square().sum() / fixed.square().sum())


def test_rows_of_few_pixels_are_kept_apart() -> None:
    fixed, rows, truth = few_pixels()
    entries = [entry_of(rows, fixed, sketch=1000, seed=seed) for seed in range(4)]
    assert {entry.rank for entry in entries} == {200}
    assert np.mean([entry.explained for entry in entries]) == pytest.approx(truth, rel=0.15)


def test_a_plain_count_sketch_would_not_keep_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP", 1)
    fixed, rows, truth = few_pixels()
    assert entry_of(rows, fixed, sketch=1000).explained > 5 * truth


def test_a_full_sketch_says_that_everything_is_known() -> None:
    fixed, rows = random(900), random(300, 900, seed=1)
    ledger = ledger_of(fixed, 200)
    entries = [ledger.record(part, part @ fixed, part[-1]) for part in rows.split(50)]
    assert [entry.rank for entry in entries] == [50, 100, 150, 200, 200, 200]
    assert [entry.opened for entry in entries] == [50, 100, 150, 200, 250, 300]
    assert entries[2].explained < 0.5
    assert [(entry.explained, entry.beyond) for entry in entries[3:]] == [(1.0, 1.0)] * 3


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 40)
    fixed, rows = random(900), random(60, 900, seed=1)
    assert entry_of(rows[:40], fixed).explained < 0.2
    assert entry_of(rows, fixed).explained == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_and_seed(dtype: torch.dtype) -> None:
    fixed, rows = random(2000).to(dtype), random(20, 2000, seed=1).to(dtype)
    before = rows.clone()
    a, b, c = (entry_of(rows, fixed, sketch=500, seed=seed) for seed in (0, 0, 1))
    assert a == b != c
    assert torch.equal(rows, before)
    assert entry_of(rows, fixed).explained == pytest.approx(explained_by(rows.double(), fixed.double()), abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sketch", [4096, 500])
def test_rows_on_the_gpu(sketch: int) -> None:
    fixed, rows = random(2000), random(20, 2000, seed=1)
    on_gpu = ledger_of(fixed, sketch).record(rows.cuda(), (rows @ fixed).cuda(), rows[-1].cuda())
    here = entry_of(rows, fixed, sketch=sketch)
    assert (on_gpu.opened, on_gpu.rank) == (here.opened, here.rank)
    assert on_gpu.explained == pytest.approx(here.explained, abs=1e-9)


@pytest.mark.parametrize(
    ("rows", "results", "own"), [((2, 8), (2,), (9,)), ((2, 9), (3,), (9,)), ((2, 9), (2,), (8,)), ((9,), (1,), (9,))]
)
def test_wrong_shapes_are_refused(rows: tuple[int, ...], results: tuple[int, ...], own: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="9 points are due"):
        Ledger(9, 1.0).record(torch.ones(rows), torch.ones(results), torch.ones(own))


@pytest.mark.parametrize(
    "wrong", [{"points": 0}, {"energy": -1.0}, {"sketch": 0}, {"noise": -0.1}, {"energy": math.nan}]
)
def test_wrong_arguments_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ledger"):
        Ledger(**{"points": 9, "energy": 1.0, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("points", [100, 2 * PART + 77])
def test_rows_in_parts_are_counted_as_rows_at_once(points: int) -> None:
    fixed = random(points, seed=1)
    whole, parts = ledger_of(fixed, sketch=500), ledger_of(fixed, sketch=500)
    for number in range(3):
        rows = (random(5, points, seed=2 + number) + fixed).float()
        entry = whole.record(rows, rows.double() @ fixed, rows[-1])
        recording = parts.begin(5, rows.device, rows.dtype)
        for part in rows.split(1001, 1):
            recording.add(part, part[-1:])
        assert recording.end(rows.double() @ fixed) == entry
