"""The layout is the architecture: a module imports only from the floors below its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppir_torch

PACKAGE = Path(__file__).resolve().parents[1] / "ppir_torch"

# Bottom to top. A module or folder that is not here has no place yet.
FLOORS = (
    "errors",
    "arithmetic",
    "wire",
    "config",
    "grids",
    "images",
    "histograms",
    "features",
    "transforms",
    "points",
    "warping",
    "phantoms",
    "metrics",
    "sampling",
    "joint",
    "protocols",
    "losses",
    "optimizers",
    "registration",
    "reporting",
    "parties",
    "runs",
    "cli",
)
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or not p.name.startswith("__"))


def floor_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_floors(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, floor) of every import of this package: at the top, in functions, under TYPE_CHECKING."""
    here = ["ppir_torch", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            # `from . import grids` names modules, `from .grids import Grid` does not.
            names = [[*module, alias.name] for alias in node.names] if len(module) == 1 else [module]
        else:
            continue
        yield from ((node.lineno, name[1]) for name in names if name[0] == "ppir_torch" and len(name) > 1)


def upward_imports(source: str, path: Path) -> list[str]:
    own = FLOORS.index(floor_of(path))
    return [
        f"{path.name}:{line} imports {name}, which is above {FLOORS[own]}"
        for line, name in imported_floors(source, path)
        if name in FLOORS and FLOORS.index(name) > own
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_from_the_floors_below(path: Path) -> None:
    assert floor_of(path) in FLOORS, f"{path} has no floor"
    assert upward_imports(path.read_text(), path) == []


@pytest.mark.parametrize(
    "source",
    [
        "from .runs import register",
        "from . import cli",
        "import ppir_torch.runs.open_private",
        "from ppir_torch.parties import process",
        "def f():\n    from .registration import Plan",
        "if TYPE_CHECKING:\n    from .losses.ssd import SSD",
    ],
)
def test_an_upward_import_is_seen(source: str) -> None:
    assert len(upward_imports(source, PACKAGE / "grids.py")) == 1


def test_imports_inside_a_folder_and_of_the_version_are_fine() -> None:
    source = "from .. import __version__\nfrom .protocol import Limits\nfrom ..link import Link"
    assert upward_imports(source, PACKAGE / "joint" / "operands.py") == []


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    command = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd="/")
    return set(done.stdout.split())


HEAVY = {"SimpleITK", "monai", "torchio", "crypten", "tenseal", "grpc", "nibabel", "matplotlib"}


@pytest.mark.parametrize("module", ["ppir_torch", "ppir_torch.errors", "ppir_torch.config"])
def test_light_modules_load_no_torch(module: str) -> None:
    assert loaded_by(f"import {module}") & (HEAVY | {"torch", "numpy"}) == set()


def test_the_core_loads_torch_and_no_other_heavy_package() -> None:
    loaded = loaded_by("import ppir_torch.registration.loop, ppir_torch.metrics.registration, ppir_torch.wire.link")
    assert loaded & (HEAVY | {"torch"}) == {"torch"}


@pytest.mark.parametrize("name", ppir_torch.__all__)
def test_every_public_name_is_where_the_package_says(name: str) -> None:
    assert getattr(ppir_torch, name).__name__ == name
