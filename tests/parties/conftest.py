"""Pairs on disk and clear runs, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parties.harness import Files, Started, started_parties, write_pair

from ppir_torch.runs.images import run


@pytest.fixture(scope="session")
def pair(covering_pair: Callable[..., Any]) -> Callable[..., Any]:
    """Products are counted here. Where images overlap in part private runs are tested in test_private_losses.py,
    tests/losses/test_overlap_losses.py and tests/registration/test_atlas.py.
    """
    return covering_pair


@pytest.fixture(scope="session")
def site_files(
    covering_pair: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Files]:
    """Factory: `site_files(kind, dimension)`, the pair of tests/conftest.py on disk."""
    made: dict[tuple[str, int], Files] = {}

    def make(kind: str, dimension: int) -> Files:
        if (kind, dimension) not in made:
            made[kind, dimension] = write_pair(
                covering_pair(kind, dimension), tmp_path_factory.mktemp(f"{kind}-{dimension}")
            )
        return made[kind, dimension]

    return make


@pytest.fixture(scope="session")
def clear_run(
    site_files: Callable[[str, int], Files], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Factory: (result, folder) of `clear_run(kind, dimension, settings)`, the oracle of the private runs."""
    made: dict[str, tuple[dict[str, Any], Path]] = {}

    def make(kind: str, dimension: int, **settings: Any) -> tuple[dict[str, Any], Path]:
        key = repr((kind, dimension, settings))
        if key not in made:
            folder = tmp_path_factory.mktemp("clear")
            files = site_files(kind, dimension)
            made[key] = run(files.configuration("clear", kind, **settings), folder), folder
        return made[key]

    return make


@pytest.fixture
def started() -> Iterator[Started]:
    """Parties that start quickly; after the test none is left."""
    with started_parties() as parties:
        yield parties
