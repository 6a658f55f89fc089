"""The layout is the architecture: a module imports only from the floors below its own, and never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import ppir_torch

PACKAGE = Path(__file__).resolve().parents[1] / "ppir_torch"

# Bottom to top: folders and modules, named from the package. The longest name that begins a module's own is its floor;
# a module that none begins has no place yet.
FLOORS = (
    "errors",
    "interruption",
    "arithmetic",
    "wire",
    "config",
    "planes",
    "grids",
    "levels",
    "imagefiles",
    "images",
    "histograms",
    "intensities",
    "features",
    "transforms",
    "points",
    "warping",
    "overlap",
    "phantoms",
    "metrics",
    "sampling",
    "joint",
    "protocols.lattice",
    "protocols",
    "losses",
    "transport",
    "optimizers",
    "registration",
    "reporting",
    "parties",
    "runs",
    "cli",
)


def module_name(path: Path) -> str:
    """`protocols.lattice.bfv`; a folder's `__init__` has the folder's name, the package's own the empty one."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {module: (PACKAGE / file).read_text(encoding="utf-8") for module, file in FILES.items()}
FOLDERS = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
# The package's own `__init__` names everything that is public; nobody takes from it but the version.
MODULES = sorted(SOURCES.keys() - {"", "__main__"})


def floor_of(module: str) -> int | None:
    """The index of its floor, the lowest is 0; None where it has none."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((FLOORS.index(name) for name in names if name in FLOORS), None)


def imported_names(node: ast.AST, folder: list[str]) -> Iterator[list[str]]:
    """Every dotted name that a statement may take a module by, `ppir_torch` first; relative ones from `folder`."""
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = folder[: len(folder) - node.level + 1] if node.level else []
        module = base + (node.module.split(".") if node.module else [])
        yield from ([*module, alias.name] for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        name = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
        level = len(name) - len(name.lstrip("."))
        yield (folder[: len(folder) - level + 1] if level else []) + name[level:].split(".")


def imported_modules(source: str, module: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of this package: at the top, in functions, under TYPE_CHECKING.

    `from .grids import Grid` takes the module grids, `from . import grids` as well; what a folder's `__init__` hands on
    counts as the folder's.
    """
    folder = ["ppir_torch", *module.split(".")]
    folder = folder if module in FOLDERS else folder[:-1]
    for node in ast.walk(ast.parse(source)):
        for name in imported_names(node, folder):
            if name[0] != "ppir_torch":
                continue
            target = next((t for length in range(len(name), 1, -1) if (t := ".".join(name[1:length])) in SOURCES), None)
            if target is not None:
                yield node.lineno, target


def upward_imports(source: str, module: str) -> list[str]:
    own = floor_of(module)
    assert own is not None, f"{module} has no floor"
    return [
        f"{module}:{line} imports {target}, which is above it"
        for line, target in imported_modules(source, module)
        if (floor_of(target) or 0) > own
    ]


def names_of_the_root(source: str, module: str) -> set[str]:
    """What a module takes from the package's own `__init__`: names that are no modules."""
    folder = ["ppir_torch", *module.split(".")]
    folder = folder if module in FOLDERS else folder[:-1]
    names = [name for node in ast.walk(ast.parse(source)) for name in imported_names(node, folder)]
    return {name[1] for name in names if len(name) == 2 and name[0] == "ppir_torch" and name[1] not in SOURCES}


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other, by Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(imports.get(module, ())):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1 or module in imports.get(module, ()):
                found.append(sorted(group))

    for module in sorted(imports):
        if module not in index:
            visit(module)
    return found


def imports_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    return {name: {target for _, target in imported_modules(text, name)} for name, text in sources.items() if name}


@pytest.mark.parametrize("module", MODULES, ids=FILES.__getitem__)
def test_modules_import_only_from_the_floors_below(module: str) -> None:
    assert floor_of(module) is not None, f"{module} has no floor"
    assert upward_imports(SOURCES[module], module) == []


@pytest.mark.parametrize(
    "source",
    [
        "from .runs import register",
        "from . import cli",
        "import ppir_torch.runs.open_private",
        "from ppir_torch.parties import process",
        "def f():\n    from .registration import Plan",
        "if TYPE_CHECKING:\n    from .losses.ssd import SSD",
        "import importlib\nimportlib.import_module('.protocols.lattice.bfv', __package__)",
    ],
)
def test_an_upward_import_is_seen(source: str) -> None:
    assert len(upward_imports(source, "grids")) == 1


def test_an_upward_import_inside_a_folder_is_seen() -> None:
    assert len(upward_imports("from ..beaver import PROTOCOL", "protocols.lattice.bfv")) == 1
    assert upward_imports("from .lattice import bfv", "protocols.chooser") == []


def test_imports_inside_a_folder_and_of_the_version_are_fine() -> None:
    source = "from .. import __version__\nfrom .interface import Limits\nfrom ..wire.link import Link"
    assert upward_imports(source, "joint.operands") == []


def test_nothing_is_taken_from_the_root_but_the_version() -> None:
    """It names what is everywhere, so whatever took from it would stand above all floors."""
    taken = {module: names_of_the_root(SOURCES[module], module) - {"__version__"} for module in MODULES}
    assert {module: names for module, names in taken.items() if names} == {}
    assert names_of_the_root("from .. import Grid, joint\nfrom ppir_torch import warp", "joint.operands") == {
        "Grid",
        "warp",
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(imports_of(SOURCES)) == []


@pytest.mark.parametrize(
    ("module", "source", "circle"),
    [
        ("errors", "from .grids import Grid", ["errors", "grids"]),
        ("grids", "def f():\n    from .images import Image", ["grids", "images"]),
        ("wire.kinds", "if TYPE_CHECKING:\n    from .link import Link", ["wire.kinds", "wire.link"]),
        ("transforms.linear", "from . import Affine", ["transforms", "transforms.linear"]),
    ],
    ids=["top", "function", "TYPE_CHECKING", "handed on"],
)
def test_a_circle_is_seen(module: str, source: str, circle: list[str]) -> None:
    found = circles(imports_of(SOURCES | {module: f"{SOURCES[module]}\n{source}\n"}))
    assert any(set(circle) <= set(group) for group in found)


def test_circles_of_made_up_modules_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}) == [["b", "c"], ["d"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


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
    loaded = loaded_by("import ppir_torch.registration, ppir_torch.metrics.registration, ppir_torch.wire.link")
    assert loaded & (HEAVY | {"torch"}) == {"torch"}


@pytest.mark.parametrize("name", ppir_torch.__all__)
def test_every_public_name_is_where_the_package_says(name: str) -> None:
    assert getattr(ppir_torch, name).__name__ == name


def test_type_checkers_see_every_public_name() -> None:
    """Names that are loaded where they are first used are also imported, under their own names, for type checkers."""
    block = next(node for node in ast.parse(SOURCES[""]).body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert sorted(seen) == ppir_torch.__all__
    for name, module in seen.items():  # a folder hands on what one of its modules has
        assert f"{getattr(ppir_torch, name).__module__}.".startswith(f"ppir_torch.{module}.")


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").read_text() == ""


@pytest.mark.slow
def test_a_type_checker_knows_what_a_public_name_is(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import ppir_torch\n\nsize: int = ppir_torch.Grid((4, 4))\nplan: int = ppir_torch.Plan()\n")
    # With the settings of `make check`, whose cache spares a minute of reading torch.
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    mistakes = [line for line in done.stdout.splitlines() if "program.py" in line]  # cached under an older path
    assert [f'"{name}"' in line for name, line in zip(("Grid", "Plan"), mistakes, strict=True)] == [True, True]
