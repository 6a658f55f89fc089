"""docs/extending.md holds: a package beside ours adds a loss, transforms, a sampler, a protocol and a transport.

It is found through the entry points of a `.dist-info` folder on PYTHONPATH, which the parties' processes inherit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ppir_torch import Grid, load_transform, save_image
from ppir_torch.config import LOSSES, PROTOCOLS, SAMPLERS, TRANSFORMS, TRANSPORTS
from ppir_torch.metrics.registration import displacement_rmse
from ppir_torch.transforms import load_any_transform

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SITE, CONFIGS, DOCUMENT = HERE / "site", HERE / "configs", ROOT / "docs" / "extending.md"
TOY = SITE / "toy_ppir"
KINDS = {
    "loss": "edges",
    "transform": "stretch",
    "sampler": "stride",
    "backend": "pad",
    "transport": "loopback",
}
CLOSE_MM = 0.02  # private and clear runs, in the foreground


def environment(*folders: Path) -> dict[str, str]:
    """Of a program that has these folders on its PYTHONPATH, before what this one has."""
    path = [*map(str, folders), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "COLUMNS": "200"}


def python(code: str, *folders: Path, arguments: Sequence[str] = ()) -> str:
    """Standard output of a program."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=environment(*folders), capture_output=True, text=True, encoding="utf-8", check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ppir(*arguments: object, site: Path = SITE, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command line with the toy package beside ppir_torch."""
    command = [sys.executable, "-c", "from ppir_torch.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(site), capture_output=True, text=True, encoding="utf-8", check=False, cwd="/"
    )
    assert done.returncode == code, done.stderr
    return done


@dataclass(frozen=True)
class Images:
    """A pair of small images in files."""

    moving: Path
    fixed: Path
    grid: Grid
    points: Any

    @property
    def chosen(self) -> list[str]:
        """As overrides."""
        return [f"data.moving={self.moving}", f"data.fixed={self.fixed}"]


@pytest.fixture(scope="module")
def images(pair: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Images:
    made, folder = pair("translation", 2), tmp_path_factory.mktemp("images")
    save_image(made.moving, folder / "moving.nii.gz")
    save_image(made.fixed, folder / "fixed.nii.gz")
    points = made.fixed.grid.points(dtype=torch.float64)
    return Images(folder / "moving.nii.gz", folder / "fixed.nii.gz", made.fixed.grid, points)


def result_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return values


# --- found


def test_the_toys_are_not_in_this_process() -> None:
    for registry in (LOSSES, TRANSFORMS, SAMPLERS, PROTOCOLS, TRANSPORTS):
        assert not any(registry.distribution(name) for name in registry.names())


def test_every_registry_finds_its_toy_and_says_where_it_is_from() -> None:
    code = (
        "from ppir_torch.config import *\n"
        "for registry in (LOSSES, TRANSFORMS, SAMPLERS, PROTOCOLS, TRANSPORTS):\n"
        "    print(*(f'{name} {registry.distribution(name)};' for name in registry.names() if "
        "registry.distribution(name)))\n"
        "import sys\n"
        "print('torch' in sys.modules)"
    )
    assert python(code, SITE).splitlines() == [
        "edges toy-ppir 0.1;",
        "stretch toy-ppir 0.1; limited toy-ppir 0.1;",
        "stride toy-ppir 0.1;",
        "pad toy-ppir 0.1;",
        "loopback toy-ppir 0.1;",
        "False",
    ]


def test_info_and_help_name_them() -> None:
    assert "pad: one-time pads of 64 bits" in ppir("info").stdout
    shown = ppir("register", "--help").stdout
    for kind in ("edges", "stretch", "stride", "pad"):
        assert kind in shown


# --- chosen and checked


def test_they_are_chosen_in_yaml_and_on_the_command_line(images: Images) -> None:
    chosen = [f"{group}={kind}" for group, kind in KINDS.items()]
    shown = ppir("run", "--config-dir", CONFIGS, "--show", *chosen, "loss.gamma=1.5", *images.chosen).stdout
    for kind in KINDS.values():
        assert f"kind: {kind}\n" in shown
    assert "gamma: 1.5\n" in shown
    assert "step: 3\n" in shown


BAD_SETTINGS = [
    (["loss=edges", "loss.gamma=9"], "loss.gamma: 9, a number > 0 and <= 4 is needed"),
    (["sampler=stride", "sampler.stepp=2"], "sampler.stepp: unknown key, did you mean step?"),
    (["transport=loopback", "transport.timeout_s=0"], "transport.timeout_s: 0, a number >= 1 and <= 86400 is needed"),
    (["transform=stretch", "transform.spacing_mm=5"], "transform.spacing_mm: not a setting of stretch"),
    (
        ["transform=limited", "backend=pad"],
        "backend.kind: 'pad', with transform 'limited' one of clear, beaver, spdz, bfv, ckks is needed",
    ),
    (["loss.kind=edgs"], "loss.kind: 'edgs', one of ssd, ncc, ncc_squared, local_ncc, mind, cr, mi, edges is needed"),
]
# What `ppir run` does before it runs anything: many in one program, for starting one takes seconds.
REFUSED = """
import json, sys
from pathlib import Path
from ppir_torch import ConfigError
from ppir_torch.config.compose import compose_runs
for overrides in json.loads(sys.argv[1]):
    try:
        compose_runs(overrides, extra=Path(sys.argv[2]))
        print("nothing is wrong")
    except ConfigError as error:
        print(json.dumps(str(error)))
"""


def refusals(several: list[list[str]], site: Path) -> list[str]:
    """What is said of each of several lists of overrides."""
    return python(REFUSED, site, arguments=[json.dumps(several), str(CONFIGS)]).splitlines()


def test_bad_settings_are_one_line(images: Images) -> None:
    several = [[*images.chosen, *overrides] for overrides, _ in BAD_SETTINGS]
    for overrides in several:
        if not any(word.startswith("backend") for word in overrides):
            overrides.append("backend=clear")
    for said, (_, line) in zip(refusals(several, SITE), BAD_SETTINGS, strict=True):
        assert json.loads(said).startswith(line)
        assert "\n" not in json.loads(said)


def test_on_the_command_line_too(images: Images) -> None:
    arguments = ["run", "--config-dir", CONFIGS, "backend=pad", "loss=edges", "loss.gamma=9", *images.chosen]
    assert ppir(*arguments, code=2).stderr == "ppir: error: loss.gamma: 9, a number > 0 and <= 4 is needed\n"


def broken_package(folder: Path, name: str, target: str) -> None:
    """A package whose entry point leads nowhere."""
    info = folder / f"{name}_ppir-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-ppir\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[ppir_torch.losses]\n{name} = {target}\n")


def test_an_entry_point_that_is_none_is_one_line_naming_the_package(images: Images, tmp_path: Path) -> None:
    targets = {"absent": "no_such_package.entries:ABSENT", "strange": "ppir_torch.errors:PpirError"}
    for name, target in targets.items():
        broken_package(tmp_path, name, target)
    said = refusals([["backend=clear", *images.chosen, f"loss.kind={name}"] for name in (*targets, "ssd")], tmp_path)
    for (name, target), line in zip(targets.items(), said, strict=False):
        start = f"loss.kind: '{name}', {target} of {name}-ppir 2.0 cannot be used ("
        assert json.loads(line).startswith(start)
        assert "\n" not in json.loads(line)
    assert said[2] == "nothing is wrong"  # they hinder nobody who asks for something else


# --- run


@pytest.fixture(scope="module")
def linear_runs(images: Images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same registration in clear, from YAML, and privately, from the command line."""
    clear, private = tmp_path_factory.mktemp("clear"), tmp_path_factory.mktemp("private")
    chosen = ["loss=edges", "transform=stretch", "sampler=stride", "backend=clear"]
    ppir("run", "--config-dir", CONFIGS, *chosen, *images.chosen, f"output={clear}")
    options = ["--loss", "edges", "--transform", "stretch", "--sampler", "stride", "--backend", "pad"]
    options += ["--max-values", "100000", "--releases", str(private / "releases.sqlite")]
    ppir("register", images.moving, images.fixed, *options, "-o", private)
    return clear, private


@pytest.mark.slow
def test_a_private_run_of_toys_ends_where_the_clear_one_does(linear_runs: tuple[Path, Path], images: Images) -> None:
    clear, private = (load_transform(folder / "transform.tfm", images.grid) for folder in linear_runs)
    assert displacement_rmse(private, clear, images.points) < CLOSE_MM


def test_the_report_names_the_toys_and_what_they_disclose(linear_runs: tuple[Path, Path]) -> None:
    clear, private = (result_of(folder) for folder in linear_runs)
    for result, backend in ((clear, "clear"), (private, "pad")):
        assert result["complete"], result["error"]
        assert (result["loss"], result["loss_settings"]) == ("edges", {"gamma": 0.5})
        assert result["transform"]["kind"] == "stretch"
        assert result["sampler"] == "stride"
        assert result["backend"] == backend
        assert result["insecure"] is False
    party_1, party_2 = (" ".join(private["disclosed"][party]) for party in ("party_1", "party_2"))
    assert "the fixed image's gradient magnitude, not its intensities" in party_1
    assert "the opened products of each iteration" in party_1
    assert "every point whose number is a multiple of 3" in party_2
    assert "sizes and timing only; the dealer the same" in party_2


def test_only_the_kinds_for_other_packages_carry_its_products(linear_runs: tuple[Path, Path]) -> None:
    result = result_of(linear_runs[1])
    sent = {party: set(result[party]["messages"]) for party in ("party_1", "party_2", "dealer")}
    of_products = {kind for kinds in sent.values() for kind in kinds if kind.startswith("EXTENSION_")}
    assert of_products == {"EXTENSION_SET_UP", "EXTENSION_REQUEST", "EXTENSION_ANSWER", "EXTENSION_DEALER"}
    assert sent["dealer"] == {"EXTENSION_DEALER"}
    assert "MASKED_ROWS" not in sent["party_1"]


@pytest.mark.slow
def test_a_control_lattice_over_a_transport_of_another_package(images: Images, tmp_path: Path) -> None:
    clear, private = tmp_path / "clear", tmp_path / "private"
    chosen = ["loss=edges", "transform=limited", "transform.spacing_mm=16", "transform.linear=translation"]
    chosen += ["pyramid=single", "transport=loopback", *images.chosen]
    ppir("run", "--config-dir", CONFIGS, "backend=clear", *chosen, f"output={clear}")
    budget = [f"budget.file={tmp_path / 'releases.sqlite'}", "budget.max_values=1000000"]
    ppir("run", "--config-dir", CONFIGS, "backend=beaver", *chosen, *budget, f"output={private}")
    result = result_of(private)
    assert result["complete"], result["error"]
    assert result["transform"]["kind"] == "limited"
    assert result["transform"]["file"] == "transform.h5"
    maps = [load_any_transform(folder / "transform.h5", images.grid) for folder in (private, clear)]
    assert displacement_rmse(*maps, images.points) < CLOSE_MM


@pytest.mark.slow
def test_point_sets_are_aligned_by_its_protocol(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    fixed = 50 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    moving = fixed @ torch.linalg.matrix_exp(torch.tensor([[0, 0.3, 0], [-0.3, 0, 0], [0, 0, 0]]).double()) + 7
    files = []
    for name, points in (("moving", moving), ("fixed", fixed)):
        files += [f"--{name}", tmp_path / f"{name}.csv"]
        rows = "\n".join(",".join(map(repr, row)) for row in points.tolist())
        (tmp_path / f"{name}.csv").write_text(f"x,y,z\n{rows}\n")
    releases = ["--releases", tmp_path / "releases.sqlite"]
    ppir("points", *files, "--backend", "pad", *releases, "-o", tmp_path / "out")
    result = result_of(tmp_path / "out")
    assert result["complete"], result["error"]
    assert result["residual_rms_mm"] < 0.01  # mm; the sets are some 80 mm wide


def test_a_caller_that_finds_nobody_is_told_so() -> None:
    code = (
        "from ppir_torch import LinkError\n"
        "from ppir_torch.transport import load_transport\n"
        "transport = load_transport({'kind': 'loopback', 'timeout_s': 1.0})\n"
        "one, two = transport.connect('party_1', 'party_2')\n"
        "one.close()\n"
        "try:\n"
        "    transport.join(two.description, two.inherited)\n"
        "except LinkError as error:\n"
        "    print(error)"
    )
    assert python(code, SITE).startswith("transport loopback: party_1 is not there (")


# --- the document


def test_each_toy_is_at_most_two_code_files_and_one_yaml() -> None:
    points = re.findall(
        r"^(\w+) = toy_ppir\.(\w+):", (SITE / "toy_ppir-0.1.dist-info" / "entry_points.txt").read_text(), re.M
    )
    assert len(points) == 6
    for name, module in points:
        code = [path.name for path in TOY.glob(f"{module}*.py")]
        assert 1 <= len(code) <= 2, code
        assert len(list(CONFIGS.rglob(f"{name}.yaml"))) == 1


def test_the_code_in_the_document_is_the_code_in_the_files() -> None:
    blocks = re.findall(r"^`(tests/extending/[\w./-]+)`\n\n```\w+\n(.*?)```", DOCUMENT.read_text(), re.M | re.S)
    shown: dict[str, str] = {}
    for path, text in blocks:
        assert text in (ROOT / path).read_text(), f"{path} is not what docs/extending.md shows of it"
        shown[path] = shown.get(path, "") + text
    for path in [*TOY.glob("*.py"), *SITE.glob("*.dist-info/entry_points.txt")]:
        name = str(path.relative_to(ROOT))
        if path.name not in ("__init__.py", "pad_protocol.py"):
            assert shown.get(name) == path.read_text(), f"docs/extending.md does not show {name}"
    assert "def answer" in shown["tests/extending/site/toy_ppir/pad_protocol.py"]
