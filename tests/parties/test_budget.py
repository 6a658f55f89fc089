"""The count of released values: kept over runs, processes and crashes, and never above the cap."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppir_torch.errors import BudgetExceeded, ConfigError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, load_image, save_image
from ppir_torch.parties import budget as budget_module
from ppir_torch.parties.budget import ReleaseBudget, default_path, image_identity, open_ledger_rows

IMAGE = "0123456789abcdef" * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "releases.sqlite"


def one_line(error: BaseException, *words: str) -> None:
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


# --- the count --------------------------------------------------------------------------------------------------------


def test_what_is_charged_is_spent(path: Path) -> None:
    budget = ReleaseBudget(path, "party_1", IMAGE, 100)
    assert (budget.spent, budget.left) == (0, 100)
    budget.charge(7, "product")
    budget.charge(0, "nothing")
    budget.charge(5, "mean")
    assert (budget.spent, budget.left) == (12, 88)


def test_the_last_value_may_be_released_and_no_more(path: Path) -> None:
    budget = ReleaseBudget(path, "party_1", IMAGE, 1250)
    budget.charge(1240, "product")
    with pytest.raises(BudgetExceeded) as caught:
        budget.charge(11, "product")
    one_line(
        caught.value,
        "1240 of at most 1250 were given to 'party_1' for image 0123456789ab; 11 more would pass the cap",
        "A higher cap is a decision of this site: budget.fraction or budget.max_values",
    )
    assert caught.value.exit_code == 3
    budget.charge(10, "product")
    budget.charge(0, "product")
    assert (budget.spent, budget.left) == (1250, 0)
    with pytest.raises(BudgetExceeded):
        budget.charge(1, "product")
    assert budget.spent == 1250


def test_a_refused_charge_adds_nothing(path: Path) -> None:
    budget = ReleaseBudget(path, "party_1", IMAGE, 10)
    with pytest.raises(BudgetExceeded):
        budget.charge(11, "product")
    assert budget.spent == 0
    assert open_ledger_rows(path) == []


def test_the_count_outlives_a_run(path: Path) -> None:
    for run in range(5):
        budget = ReleaseBudget(path, "party_1", IMAGE, 100)
        assert budget.spent == 20 * run
        budget.charge(20, "product")
    with pytest.raises(BudgetExceeded):
        ReleaseBudget(path, "party_1", IMAGE, 100).charge(1, "product")


def test_a_smaller_cap_leaves_nothing_and_a_larger_one_more(path: Path) -> None:
    ReleaseBudget(path, "party_1", IMAGE, 100).charge(80, "product")
    smaller = ReleaseBudget(path, "party_1", IMAGE, 50)
    assert (smaller.spent, smaller.left) == (80, 0)
    with pytest.raises(BudgetExceeded):
        smaller.charge(1, "product")
    assert ReleaseBudget(path, "party_1", IMAGE, 200).left == 120


def test_peers_and_images_are_counted_apart(path: Path) -> None:
    budgets = [ReleaseBudget(path, peer, image, 10) for peer in ("north", "south") for image in ("a" * 64, "b" * 64)]
    for number, budget in enumerate(budgets):
        budget.charge(number + 1, "product")
    assert [budget.spent for budget in budgets] == [1, 2, 3, 4]
    with pytest.raises(BudgetExceeded, match="4 of at most 10 were given to 'south'"):
        budgets[3].charge(7, "product")
    budgets[0].charge(9, "product")


def test_a_killed_run_has_spent_what_it_charged(path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom ppir_torch.parties.budget import ReleaseBudget\n"
        "ReleaseBudget(Path(sys.argv[1]), 'party_1', sys.argv[2], 100).charge(30, 'product')\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), IMAGE], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert ReleaseBudget(path, "party_1", IMAGE, 100).spent == 30


@pytest.mark.parametrize("cap", [-1, 2**62 + 1])
def test_a_cap_out_of_range_is_a_mistake(cap: int, path: Path) -> None:
    with pytest.raises(ValueError, match="cap"):
        ReleaseBudget(path, "party_1", IMAGE, cap)


def test_a_negative_count_is_a_mistake(path: Path) -> None:
    budget = ReleaseBudget(path, "party_1", IMAGE, 2**62)
    with pytest.raises(ValueError, match="count: -1"):
        budget.charge(-1, "product")
    with pytest.raises(BudgetExceeded):
        budget.charge(2**80, "product")
    budget.charge(2**62, "product")
    assert (budget.spent, budget.left) == (2**62, 0)


CHARGES = st.tuples(st.sampled_from(["north", "south"]), st.sampled_from(["a", "b"]), st.integers(0, 40))


@given(caps=st.tuples(st.integers(0, 60), st.integers(0, 60)), charges=st.lists(CHARGES, max_size=12))
@settings(deadline=None, max_examples=30)
def test_any_charges_are_those_of_a_counter(caps: tuple[int, int], charges: list[tuple[str, str, int]]) -> None:
    """The model: one integer a peer and image. Every charge is a run of its own; the cap may change between runs."""
    model: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "releases.sqlite"
        for number, (peer, image, count) in enumerate(charges):
            cap = caps[number % 2]
            budget = ReleaseBudget(path, peer, image, cap)
            fits = model[peer, image] + count <= cap
            if fits:
                budget.charge(count, "product")
                model[peer, image] += count
            else:
                with pytest.raises(BudgetExceeded):
                    budget.charge(count, "product")
            assert budget.spent == model[peer, image]
            assert budget.left == max(0, cap - model[peer, image])
        if charges:
            assert {(row.peer, row.image): row.count for row in open_ledger_rows(path)} == dict(+model)


# --- several at once --------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# Waits for the start, charges 3 values at a time until it is refused, and prints how many it was granted. Between the
# check and the addition it takes its time, so that a charge that is not atomic would pass the cap; and a little
# after it, so that the other one has its turn.
_SPENDER = """
import sys, time
from pathlib import Path
from ppir_torch.errors import BudgetExceeded
from ppir_torch.parties import budget as module
from ppir_torch.parties.budget import ReleaseBudget
now = module.utc_now
module.utc_now = lambda: time.sleep(0.005) or now()
print("ready", flush=True)
sys.stdin.readline()
budget, granted = ReleaseBudget(Path(sys.argv[1]), "party_1", sys.argv[2], 200), 0
try:
    while True:
        budget.charge(3, "product")
        granted += 3
        time.sleep(0.002)
except BudgetExceeded:
    print(granted, flush=True)
"""


def test_processes_that_charge_at_once_never_pass_the_cap(path: Path) -> None:
    """They start on a file that is not there yet, too: each makes it."""
    command = [sys.executable, "-c", _SPENDER, str(path), IMAGE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()}
    spenders = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        for spender in spenders:
            assert spender.stdout.readline() == "ready\n"
        for spender in spenders:
            spender.stdin.write("go\n")
            spender.stdin.flush()
        granted = [int(spender.communicate(timeout=120)[0]) for spender in spenders]
    finally:
        for spender in spenders:
            spender.kill()
            spender.wait()
    assert sum(granted) == 198
    assert ReleaseBudget(path, "party_1", IMAGE, 200).spent == 198
    (row,) = open_ledger_rows(path)
    assert (row.count, row.runs) == (198, sum(count > 0 for count in granted))


def test_a_charge_waits_for_the_one_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has been checked and is not yet added when the second begins: there is room for one."""
    budget, checked, now = ReleaseBudget(path, "party_1", IMAGE, 10), threading.Event(), budget_module.utc_now

    def late() -> str:
        checked.set()
        time.sleep(0.3)
        return now()

    monkeypatch.setattr(budget_module, "utc_now", late)
    first = threading.Thread(target=budget.charge, args=(10, "product"))
    first.start()
    assert checked.wait(60)
    with pytest.raises(BudgetExceeded, match="10 of at most 10"):
        ReleaseBudget(path, "party_1", IMAGE, 10).charge(10, "product")
    first.join()
    assert budget.spent == 10


def test_threads_may_share_a_budget(path: Path) -> None:
    budget, granted = ReleaseBudget(path, "party_1", IMAGE, 30), []

    def spend() -> None:
        try:
            while True:
                budget.charge(1, "product")
                granted.append(1)
        except BudgetExceeded:
            pass

    threads = [threading.Thread(target=spend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(granted), budget.spent) == (30, 30)


def test_a_file_that_stays_locked_is_one_clear_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = ReleaseBudget(path, "party_1", IMAGE, 30)
    monkeypatch.setattr(budget_module, "BUSY_TIMEOUT_S", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConfigError) as caught:
        budget.charge(1, "product")
    one_line(caught.value, str(path), "locked")
    other.execute("ROLLBACK")
    other.close()
    budget.charge(1, "product")
    assert budget.spent == 1


# --- the file ---------------------------------------------------------------------------------------------------------


def with_text(path: Path) -> None:
    path.write_text("these are no releases, and this is no database file\n" * 100)


def with_a_damaged_page(path: Path) -> None:
    ReleaseBudget(path, "party_1", IMAGE, 100).charge(1, "product")
    data = bytearray(path.read_bytes())
    data[100:4096] = bytes(3996)
    path.write_bytes(data)


def with_a_folder(path: Path) -> None:
    path.mkdir()


def with_another_programs_tables(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.commit()
    other.close()


def with_other_columns(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE releases (version TEXT)")
    other.commit()
    other.close()


UNUSABLE = [with_text, with_a_damaged_page, with_a_folder, with_another_programs_tables, with_other_columns]


@pytest.mark.parametrize("make", UNUSABLE)
def test_an_unusable_file_is_one_clear_line(make: Callable[[Path], None], path: Path) -> None:
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    for use in (lambda: ReleaseBudget(path, "party_1", IMAGE, 100), lambda: open_ledger_rows(path)):
        with pytest.raises(ConfigError) as caught:
            use()
        one_line(caught.value, f"{path}: not a usable file of released values (")
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        ReleaseBudget(tmp_path / "file" / "releases.sqlite", "party_1", IMAGE, 100)
    one_line(caught.value, str(tmp_path / "file" / "releases.sqlite"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_without_permission_to_write_is_noticed_at_the_start(path: Path) -> None:
    ReleaseBudget(path, "party_1", IMAGE, 100).charge(1, "product")
    path.chmod(0o400)
    with pytest.raises(ConfigError) as caught:
        ReleaseBudget(path, "party_1", IMAGE, 100)
    one_line(caught.value, str(path))
    assert open_ledger_rows(path)[0].count == 1


def test_a_file_that_cannot_be_written_is_noticed_at_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for root: the file is opened read-only."""
    ReleaseBudget(path, "party_1", IMAGE, 100)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda where, **more: connect(f"{where.split('?')[0]}?mode=ro", **more))
    with pytest.raises(ConfigError) as caught:
        ReleaseBudget(path, "party_1", IMAGE, 100)
    one_line(caught.value, str(path), "readonly")


def test_a_file_that_is_gone_is_not_made_anew_in_a_run(path: Path) -> None:
    budget = ReleaseBudget(path, "party_1", IMAGE, 100)
    path.unlink()
    with pytest.raises(ConfigError):
        budget.charge(1, "product")
    assert not path.exists()


def test_a_strange_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a ?mode=memory#%41 b" / "ä.sqlite"
    ReleaseBudget(path, "party_1", IMAGE, 100).charge(3, "product")
    assert path.is_file()
    assert open_ledger_rows(path)[0].count == 3


def test_the_audit_of_no_file_is_one_clear_line(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_ledger_rows(path)
    one_line(caught.value, str(path))
    assert not path.exists()


def test_the_audit_has_totals_by_peer_and_image(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = (f"2025-01-0{day}T10:00:00+00:00" for day in range(1, 9))
    monkeypatch.setattr(budget_module, "utc_now", lambda: next(times))
    first = ReleaseBudget(path, "south", "b", 100, session="one")
    first.charge(3, "product")
    first.charge(4, "mean")
    ReleaseBudget(path, "north", "a", 100).charge(5, "product")
    ReleaseBudget(path, "south", "b", 100, session="two").charge(6, "product")
    rows = [(row.peer, row.image, row.count, row.first[:10], row.last[:10], row.runs) for row in open_ledger_rows(path)]
    assert rows == [("north", "a", 5, "2025-01-03", "2025-01-03", 1), ("south", "b", 13, "2025-01-01", "2025-01-04", 2)]


def test_the_file_says_when_which_run_released_what(path: Path) -> None:
    budget = ReleaseBudget(path, "party_1", IMAGE, 100)
    budget.charge(3, "product")
    budget.charge(4, "mean")
    ledger = sqlite3.connect(path)
    rows = ledger.execute("SELECT id, time, peer, image, session, kind, count FROM releases").fetchall()
    ledger.close()
    assert [(row[0], *row[2:]) for row in rows] == [
        (1, "party_1", IMAGE, budget.session, "product", 3),
        (2, "party_1", IMAGE, budget.session, "mean", 4),
    ]
    for row in rows:
        assert timedelta(0) <= datetime.now(timezone.utc) - datetime.fromisoformat(row[1]) < timedelta(minutes=1)
    assert len(budget.session) == 32


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PPIR_RELEASES", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_path() == tmp_path / ".local" / "state" / "ppir_torch" / "releases.sqlite"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_path() == tmp_path / ".local" / "state" / "ppir_torch" / "releases.sqlite"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_path() == Path("/var/state/ppir_torch/releases.sqlite")
    monkeypatch.setenv("PPIR_RELEASES", "/srv/releases.sqlite")
    assert default_path() == Path("/srv/releases.sqlite")


def test_no_home_folder_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPIR_RELEASES", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="PPIR_RELEASES"):
        default_path()


# --- which image it is ------------------------------------------------------------------------------------------------

GRID = Grid((5, 4), (0.9, 1.25), (-31.0625, 10.0), (0.6, -0.8, 0.8, 0.6))
PICTURE = Image(torch.arange(20.0).reshape(1, 4, 5).sqrt(), GRID)


def test_one_image_has_one_identity(tmp_path: Path) -> None:
    identity = image_identity(PICTURE)
    assert len(identity) == 64
    assert set(identity) <= set("0123456789abcdef")
    save_image(PICTURE, tmp_path / "image.mha")
    save_image(PICTURE, tmp_path / "image.nii.gz")  # keeps the geometry in float32
    tensor = PICTURE.tensor
    same = {
        "float64": PICTURE.to(dtype=torch.float64),
        "another memory layout": replace(PICTURE, tensor=tensor.mT.contiguous().mT),
        "minus zero": replace(PICTURE, tensor=torch.where(tensor == 0, -0.0, tensor)),
        "gradients": replace(PICTURE, tensor=tensor.clone().requires_grad_()),
        "MetaImage": load_image(tmp_path / "image.mha"),
        "MetaImage in float64": load_image(tmp_path / "image.mha", torch.float64),
        "NIfTI": load_image(tmp_path / "image.nii.gz"),
        # an edited header buys no new cap
        "another spacing": replace(PICTURE, grid=replace(GRID, spacing=(0.9, 1.5))),
        "another origin": replace(PICTURE, grid=replace(GRID, origin=(-31.0625, 11.0))),
        "another direction": replace(PICTURE, grid=replace(GRID, direction=(1.0, 0.0, 0.0, 1.0))),
    }
    assert {name: image_identity(image) for name, image in same.items()} == dict.fromkeys(same, identity)


def test_other_images_have_other_identities() -> None:
    tensor = PICTURE.tensor
    changed = tensor.clone()
    changed[0, 3, 4] = torch.nextafter(changed[0, 3, 4], torch.tensor(10.0))
    images = [
        PICTURE,
        replace(PICTURE, tensor=changed),
        replace(PICTURE, tensor=tensor.flip(-1)),
        replace(PICTURE, tensor=tensor.expand(2, -1, -1)),
        Image(tensor.reshape(1, 5, 4), replace(GRID, size=(4, 5))),
    ]
    assert len({image_identity(image) for image in images}) == len(images)


def test_the_identity_is_as_written_here() -> None:
    """It is kept for years: another way of computing it would forget all that was released."""
    image = Image(torch.tensor([[[0.0, 1.5], [-2.0, 3.0]]]), Grid((2, 2), (1.0, 2.0)))
    canonical = b"[1, 2, 2]" + struct.pack("<4f", 0.0, 1.5, -2.0, 3.0)
    assert image_identity(image) == hashlib.sha256(canonical).hexdigest()
