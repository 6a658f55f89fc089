"""What party_2 has released about an image, over all runs, and the cap that no run passes.

Every product gives party_1 values that depend on the fixed image. One run's limit says nothing about the next run, so
the count is kept in an SQLite file of this site, by peer and image. A release is charged before it is sent: a run that
breaks off in between has spent it. Who can write the file can spend or clear the budget: it belongs to party_2 alone.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp(), "releases.sqlite")
>>> budget = ReleaseBudget(path, peer="party_1", image="5e1f", cap=100)
>>> budget.charge(60, "product")
>>> budget.spent, ReleaseBudget(path, "party_1", "5e1f", cap=100).left
(60, 40)
>>> [(row.peer, row.count, row.runs) for row in open_ledger_rows(path)]
[('party_1', 60, 1)]
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BudgetExceeded, ConfigError

if TYPE_CHECKING:
    from ..images import Image

__all__ = ["LedgerRow", "ReleaseBudget", "default_path", "image_identity", "open_ledger_rows", "utc_now"]

BUSY_TIMEOUT_S = 30.0
PART = 1 << 20  # voxels whose bytes are made at once
LARGEST_CAP = 2**62  # sums of what is below stay integers in SQLite

_TABLE = """
CREATE TABLE IF NOT EXISTS releases (
    id INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    peer TEXT NOT NULL,
    image TEXT NOT NULL,
    session TEXT NOT NULL,
    kind TEXT NOT NULL,
    count INTEGER NOT NULL CHECK (typeof(count) = 'integer' AND count > 0)
)
"""


class ReleaseBudget:
    """The released values of one image to one peer, counted over all runs up to a cap.

    Args:
        path: the SQLite file; it is made where there is none, with its folder.
        peer: who receives the values.
        image: identifier of the image, see `image_identity`.
        cap: most values that may ever be released of this image to this peer.
        session: identifier of this run in the file; a random one, where not given.

    Raises:
        ConfigError: the file cannot be written, or is not an SQLite file of releases.
        ValueError: the cap is negative or larger than 2^62.
    """

    def __init__(self, path: Path, peer: str, image: str, cap: int, session: str = "") -> None:
        if not 0 <= cap <= LARGEST_CAP:
            raise ValueError(f"cap: {cap}, 0 to 2^62 is needed")
        self.path, self.peer, self.image, self.cap = path, peer, image, cap
        self.session = session or secrets.token_hex(16)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(path, error.strerror) from None
        with _transaction(path, create=True) as ledger:
            tables = [name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if tables and "releases" not in tables:
                raise _unusable(path, "it is another program's")
            ledger.execute(_TABLE)
            # Written every time: a file that cannot be written is noticed before the run, not at its first release.
            ledger.execute("PRAGMA user_version = 1")
            _spent(ledger, peer, image)

    @property
    def spent(self) -> int:
        """Values released so far, over all runs."""
        with _transaction(self.path) as ledger:
            return _spent(ledger, self.peer, self.image)

    @property
    def left(self) -> int:
        """Values that may still be released."""
        return max(0, self.cap - self.spent)

    def charge(self, count: int, kind: str) -> None:
        """Add `count` values to the file, for good. To be called before they are released.

        Args:
            count: number of values, at least 0.
            kind: what they are, for the audit.

        Raises:
            BudgetExceeded: they would pass the cap; nothing is added, and nothing may be released.
            ConfigError: the file can no longer be written; nothing may be released.
            ValueError: the count is negative.
        """
        if count < 0:
            raise ValueError(f"count: {count}, at least 0 is needed")
        with _transaction(self.path) as ledger:
            spent = _spent(ledger, self.peer, self.image)
            if spent + count > self.cap:
                raise BudgetExceeded(
                    f"released values: {spent} of at most {self.cap} were given to {self.peer!r} for image "
                    f"{self.image[:12]}; {count} more would pass the cap. A higher cap is a decision of this site: "
                    "budget.fraction or budget.max_values"
                )
            if count:
                ledger.execute(
                    "INSERT INTO releases (time, peer, image, session, kind, count) VALUES (?, ?, ?, ?, ?, ?)",
                    (utc_now(), self.peer, self.image, self.session, kind, count),
                )


@dataclass(frozen=True)
class LedgerRow:
    """What one peer was given of one image, over all runs.

    Attributes:
        count: released values.
        first: time of the first release, UTC, ISO 8601.
        last: time of the last one.
        runs: number of runs that released any.
    """

    peer: str
    image: str
    count: int
    first: str
    last: str
    runs: int


def open_ledger_rows(path: Path) -> list[LedgerRow]:
    """The file's totals by peer and image, in this order.

    Raises:
        ConfigError: there is no such file, or it is not an SQLite file of releases.
    """
    with _transaction(path) as ledger:
        rows = ledger.execute(
            "SELECT peer, image, SUM(count), MIN(time), MAX(time), COUNT(DISTINCT session) "
            "FROM releases GROUP BY peer, image ORDER BY peer, image"
        )
        return [LedgerRow(*row) for row in rows]


def image_identity(image: Image) -> str:
    """SHA-256, in hexadecimal digits, of an image's pixels and size: the same for every run of the same image.

    Spacing, origin and direction do not count: a header that was edited gives no new cap for the same pixels.

    Pixels are taken as little-endian float32, so that a run in float64 has the identity of one in float32.
    """
    digest = hashlib.sha256(json.dumps([len(image.tensor), *image.grid.size]).encode())
    flat = image.tensor.detach().flatten()
    for start in range(0, len(flat), PART):
        pixels = flat[start : start + PART].cpu().float().numpy().astype("<f4", copy=False) + 0.0  # -0 is 0
        digest.update(pixels.data)
    return digest.hexdigest()


def default_path() -> Path:
    """Where the releases of this user are kept: $PPIR_RELEASES, or else in the user's state folder.

    Raises:
        ConfigError: the user has no home folder.
    """
    if given := os.environ.get("PPIR_RELEASES"):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        # A relative path there is to be ignored, says its specification.
        folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    except RuntimeError:
        raise ConfigError("PPIR_RELEASES: not set, and the user has no home folder; a path is needed") from None
    return folder / "ppir_torch" / "releases.sqlite"


@contextmanager
def _transaction(path: Path, create: bool = False) -> Iterator[sqlite3.Connection]:
    """An exclusive transaction of its own connection: all or nothing, one process after the other.

    Nothing stays open in between, so that threads and forked processes may use one ReleaseBudget.
    """
    ledger: sqlite3.Connection | None = None
    try:
        where = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        ledger = sqlite3.connect(where, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        # A committed release outlives a power failure: it is on the disk before the values are on the wire.
        ledger.execute("PRAGMA synchronous = EXTRA")
        ledger.execute("BEGIN IMMEDIATE")
        yield ledger
        ledger.execute("COMMIT")
    except sqlite3.Error as error:
        raise _unusable(path, str(error)) from None
    finally:
        if ledger is not None:
            ledger.close()  # without COMMIT: takes everything back


def _spent(ledger: sqlite3.Connection, peer: str, image: str) -> int:
    query = "SELECT COALESCE(SUM(count), 0) FROM releases WHERE peer = ? AND image = ?"
    return int(ledger.execute(query, (peer, image)).fetchone()[0])


def _unusable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"{path}: not a usable file of released values ({reason})")


def utc_now() -> str:
    """The time of a release, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
