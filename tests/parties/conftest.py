"""Pairs on disk and clear runs, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parties.harness import Files, Started, started_parties, write_pair

from ppir_torch.runs.images import run


@pytest.fixture(scope="session")
def pair(pair: Callable[..., Any], wide: Callable[..., Any]) -> Callable[..., Any]:
    """As everywhere, but for a moving image that holds every fixed point: a level is one round.

    So each product is one of an iteration, which is what these tests count. Where images overlap in part, private runs
    are tested in tests/losses/test_overlap_losses.py and tests/registration/test_atlas.py.
    """

    def make(*arguments: Any, **settings: Any) -> Any:
        images = pair(*arguments, **settings)
        return replace(images, moving=wide(images.moving, 24))

    return make


@pytest.fixture(scope="session")
def site_files(pair: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Files]:
    """Factory: `site_files(kind, dimension)`, the pair of tests/conftest.py on disk."""
    made: dict[tuple[str, int], Files] = {}

    def make(kind: str, dimension: int) -> Files:
        if (kind, dimension) not in made:
            made[kind, dimension] = write_pair(pair(kind, dimension), tmp_path_factory.mktemp(f"{kind}-{dimension}"))
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
