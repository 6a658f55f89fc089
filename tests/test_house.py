"""The house rules that no linter of ours checks: sizes, copies, prints, private members, dependencies, references.

Each rule is a function of source text, and is shown to see a made-up fault.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = ROOT / "ppir_torch", ROOT / "tests"
MOST_LINES, MOST_BODY_LINES, MOST_PARAMETERS, SIMILAR_LINES = 450, 50, 8, 12


@functools.cache
def parsed(source: str) -> ast.Module:
    """Every file is looked at by several rules."""
    return ast.parse(source)


def files_of(folder: Path, pattern: str = "*.py") -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if not {"outputs", ".venv"} & set(path.parts))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions_in(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(dotted name inside its module, function) of all of them, methods and nested ones too."""
    for node in ast.iter_child_nodes(tree):
        inside = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{prefix}{node.name}."
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inside[:-1], node
        yield from functions_in(node, inside)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first after the docstring, or after the parameters, to the last."""
    first = function.body[0]
    assert function.end_lineno is not None
    assert first.end_lineno is not None
    has_docstring = ast.get_docstring(function) is not None
    return function.end_lineno - (first.end_lineno if has_docstring else first.lineno - 1)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without `self` and `cls`."""
    a = function.args
    names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def long_bodies(source: str) -> list[str]:
    return [
        f"{name} {body_lines(function)} lines"
        for name, function in functions_in(parsed(source))
        if body_lines(function) > MOST_BODY_LINES
    ]


def long_parameter_lists(source: str) -> list[str]:
    return [
        f"{name} {parameters(function)} parameters"
        for name, function in functions_in(parsed(source))
        if parameters(function) > MOST_PARAMETERS
    ]


def test_no_file_is_too_long() -> None:
    lines = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files_of(PACKAGE)}
    found = [f"{name} {count} lines" for name, count in lines.items() if count > MOST_LINES]
    assert found == []


def test_no_function_is_too_long() -> None:
    found = [f"{named(p)}:{line}" for p in files_of(PACKAGE) for line in long_bodies(p.read_text(encoding="utf-8"))]
    assert found == []


def may_have_many_parameters(item: str) -> bool:
    """The command line, and the three entry points that take a configuration object or a few shorthands."""
    file, name = item.split(" ")[0].split(":")
    entry = file.startswith("ppir_torch/runs/") and name in ("register", "align_points", "open_private")
    return entry or file == "ppir_torch/cli.py"


def test_no_parameter_list_is_too_long() -> None:
    found = [
        f"{named(p)}:{line}" for p in files_of(PACKAGE) for line in long_parameter_lists(p.read_text(encoding="utf-8"))
    ]
    assert [item for item in found if not may_have_many_parameters(item)] == []


def test_long_functions_and_parameter_lists_are_seen() -> None:
    body = "\n".join("        a = 1" for _ in range(MOST_BODY_LINES))
    docstring = '        """One line.\n\n        More.\n        """\n'
    short = f"class A:\n    def f(self, a):\n{docstring}{body}\n"
    assert long_bodies(short) == []
    assert long_bodies(f"{short}        a = 1\n") == [f"A.f {MOST_BODY_LINES + 1} lines"]
    names = ", ".join("abcdefgh")
    assert long_parameter_lists(f"class A:\n    def f(self, {names}): ...\n") == []
    assert long_parameter_lists(f"def f({names}, *, i): ...\n") == ["f 9 parameters"]
    assert not may_have_many_parameters("ppir_torch/registration/loop.py:register 9 parameters")


def duplicates(folder: Path) -> str:
    options = ["--disable=all", "--enable=duplicate-code", f"--min-similarity-lines={SIMILAR_LINES}", "--score=no"]
    command = [sys.executable, "-m", "pylint", *options, folder.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_nothing_is_written_twice() -> None:
    assert duplicates(PACKAGE) == ""


def test_what_is_written_twice_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    folder.mkdir()
    lines = "\n".join(f"value_{i} = compute({i}, {i + 1})" for i in range(SIMILAR_LINES + 1))
    for name in ("__init__", "a", "b"):
        (folder / f"{name}.py").write_text("" if name == "__init__" else f"{lines}\n")
    assert "R0801" in duplicates(folder)


# What a run says goes through the logger or is returned; these write to the terminal.
MAY_PRINT = ("ppir_torch/cli.py", "ppir_torch/reporting/console.py")


def prints(source: str) -> list[int]:
    """Lines that write to the terminal: print, a rich console's print, sys.stdout or sys.stderr, typer's echo."""
    wanted = re.compile(r"^(print|\w*[cC]onsole(\(.*\))?\.print|typer\.(echo|secho)|sys\.std(out|err)\.write)$")
    calls = (node for node in ast.walk(parsed(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if wanted.match(ast.unparse(call.func))]


def test_the_package_prints_nothing_but_at_the_command_line() -> None:
    paths = [path for path in files_of(PACKAGE) if named(path) not in MAY_PRINT]
    found = [f"{named(path)} line {line}" for path in paths for line in prints(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "statement", ["print(1)", "Console(highlight=False).print(table)", "console.print(1)", "typer.echo('')"]
)
def test_a_print_is_seen(statement: str) -> None:
    assert prints(f"def f():\n    {statement}\n") == [2]
    assert prints(f"def f():\n    logger.info({statement!r})\n") == []


def private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_uses(source: str) -> list[str]:
    """Where a file reaches for members with an underscore of objects and modules of this project that are not its own.

    Packages of others (`torch._subclasses`, `os._exit`) are their own business.
    """
    tree = parsed(source)
    others = {"os", "sys"}
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {(a.asname or a.name).split(".")[0] for a in node.names if not a.name.startswith("ppir_torch")}
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("ppir_torch"):
            first = (node.module or "").split(".")[0]
            if first and not any(TESTS.rglob(f"{first}.py")):
                others |= {a.asname or a.name for a in node.names}
                continue
        if isinstance(node, ast.ImportFrom):
            found += [f"line {node.lineno}: import {a.name}" for a in node.names if private(a.name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            root: ast.expr = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if not (isinstance(root, ast.Name) and root.id in {"self", "cls"} | others):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("setattr", "getattr", "patch"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            bad = [text for text in texts if re.fullmatch(r"[\w.]+", text) and any(map(private, text.split(".")))]
            found += [f"line {node.lineno}: {text!r}" for text in bad]
    return found


def test_tests_touch_no_private_members() -> None:
    """But those of the joint products and the attacks, which show what a party could see."""
    # torch's dispatcher, which the pretended device answers, has underscored names only.
    free = ("joint", "attacks", "pretended_device.py")
    paths = [p for p in files_of(TESTS) if p.relative_to(TESTS).parts[0] not in free]
    found = [f"{named(path)} {use}" for path in paths for use in private_uses(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "side._key",
        "f(a.b)._key.c",
        "from ppir_torch.protocols.beaver import _MASK",
        "monkeypatch.setattr(side, '_key', 1)",
        "monkeypatch.setattr('ppir_torch.runs._start', 1)",
    ],
)
def test_a_private_member_is_seen(statement: str) -> None:
    assert len(private_uses(statement)) == 1


@pytest.mark.parametrize(
    "statement", ["self._key", "a.__dict__", "import torch\ntorch._C", "import os\nos._exit(0)", "_own = 1\n_own + 1"]
)
def test_own_and_foreign_members_are_fine(statement: str) -> None:
    assert private_uses(statement) == []


def test_no_test_is_marked_by_its_name() -> None:
    """A mark stands at its test, where it is read."""
    found = [named(path) for path in files_of(TESTS, "conftest.py") if "add_marker" in path.read_text(encoding="utf-8")]
    assert found == []


# Declared for another package's sake: crypten's metadata asks for both.
FOR_OTHERS = {"torchvision", "sklearn"}
# benchmarks/README.md says how to install what ours is compared with, in environments of their own.
PEERS = {"ants", "antspyx", "picsl_greedy", "itk", "itk-core", "jax", "spu"}
# Programs and plugins that are not imported.
TOOLS = {"ruff", "mypy", "pylint", "coverage", "pytest-timeout", "pytest-benchmark", "pytest-xdist"}


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s<>=!~;\[]", line)[0].lower() for line in requirements}


def imported(folder: Path) -> set[str]:
    """Names of the distributions whose modules the files of a folder import, anywhere in them."""
    own = {"ppir_torch", "__future__"} | {path.stem for path in files_of(folder)}
    own |= {path.name for path in folder.rglob("*") if path.is_dir()}
    tops: set[str] = set()
    for path in files_of(folder):
        for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                tops.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
                name = node.args[0].value if isinstance(node.args[0], ast.Constant) else "."
                tops.add(name.split(".")[0])
    homes = packages_distributions()
    # pydantic pins its core, which is a part of it.
    tops = {"pydantic" if top == "pydantic_core" else top for top in tops}
    return {homes.get(top, [top])[0].lower() for top in tops - own - set(sys.stdlib_module_names) - {""}}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def test_what_the_package_imports_is_declared_and_nothing_else(project: dict[str, Any]) -> None:
    assert declared(project["dependencies"]) - FOR_OTHERS == imported(PACKAGE)


def test_what_the_tests_import_is_declared_and_nothing_else(project: dict[str, Any]) -> None:
    extras = {name for lines in project["optional-dependencies"].values() for name in declared(lines)}
    used = {name for folder in ("tests", "experiments", "benchmarks") for name in imported(ROOT / folder)}
    assert used - declared(project["dependencies"]) - PEERS == extras - TOOLS


DOCUMENTS = [*sorted(ROOT.glob("*.md")), *files_of(ROOT / "docs", "*.md"), *files_of(ROOT / "benchmarks", "*.md")]
WRITTEN = [*DOCUMENTS, *(p for f in ("ppir_torch", "tests", "experiments", "benchmarks") for p in files_of(ROOT / f))]
WRITTEN += [*files_of(ROOT / "configs", "*.yaml"), ROOT / "Makefile"]


def missing_documents(text: str) -> list[str]:
    """References to the documents this project was planned with, and to files that are not in the repository.

    The images beside the checkout (../shared/data) are no documents: what needs them says so and skips.
    """
    found = re.findall(r"\b(?:DESIGN|LAYOUT)\b(?:\.md)?|\bshared/(?!data)\w+", text)
    for path in re.findall(r"(?<![\w/.])((?:docs|tests|ppir_torch|experiments|benchmarks|configs)/[\w/.-]*\w)", text):
        if not (ROOT / path).exists():
            found.append(path)
    return found


def test_references_lead_to_what_is_in_the_repository() -> None:
    paths = [path for path in WRITTEN if path != Path(__file__)]
    found = [f"{named(p)} {name}" for p in paths for name in missing_documents(p.read_text(encoding="utf-8"))]
    assert found == []


def test_links_between_documents_lead_somewhere() -> None:
    found = []
    for path in DOCUMENTS:
        links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        found += [f"{named(path)} {link}" for link in links if link and not (path.parent / link).exists()]
    assert found == []


def test_modules_that_documents_name_exist() -> None:
    """`joint/columns.py`, from the package or from the repository."""
    found = []
    for path in [*DOCUMENTS, *files_of(PACKAGE)]:
        names = re.findall(r"`((?:\w+/)+\w+\.py)`", path.read_text(encoding="utf-8"))
        found += [f"{named(path)} {n}" for n in names if not (PACKAGE / n).exists() and not (ROOT / n).exists()]
    assert found == []


@pytest.mark.parametrize("text", ["(DESIGN 1)", "see ../shared/LAYOUT.md", "read docs/absent.md first"])
def test_a_reference_to_what_is_not_here_is_seen(text: str) -> None:
    assert missing_documents(text)
    assert missing_documents("docs/threat-model.md, ../shared/data/01") == []
