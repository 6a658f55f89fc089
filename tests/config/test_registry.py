"""Registries: entries of ours and of other packages, found through entry points in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from ppir_torch.config import LOSSES, OPTIMIZERS, PROTOCOLS, SAMPLERS, TRANSFORMS, TRANSPORTS
from ppir_torch.config.base import KindSettings
from ppir_torch.config.protocols import AUTO, CLEAR
from ppir_torch.config.registry import Entry, Registry, words
from ppir_torch.errors import ConfigError

REGISTRIES = [LOSSES, TRANSFORMS, OPTIMIZERS, SAMPLERS, PROTOCOLS, TRANSPORTS]

ENTRIES = """
from typing import Literal
from ppir_torch.config.base import KindSettings
from ppir_torch.config.losses import LossEntry
from ppir_torch.config.transforms import LinearConfig, TransformEntry

class ToyConfig(KindSettings):
    kind: Literal["toy"] = "toy"
    power: float = 2.0

class ShearConfig(LinearConfig):
    kind: Literal["shear"] = "shear"

class SsdConfig(KindSettings):
    kind: Literal["ssd"] = "ssd"

TOY = LossEntry(ToyConfig, "a toy", "toykit.nowhere:Toy", discloses=(), deforms=False)
SHEAR = TransformEntry(ShearConfig, "a shear", "math:pi")
SSD = LossEntry(SsdConfig, "not ours", "math:pi", discloses=())
NUMBER = 3
"""


def write_package(folder: Path, name: str, entries: str, points: str) -> None:
    """A package of one module `entries`, with a .dist-info that names its entry points: no build, no network."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    (folder / name / "entries.py").write_text(entries)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


def python(folder: Path, code: str) -> list[str]:
    """The lines that a fresh interpreter prints, with the folder's packages installed."""
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LOAD = """
from ppir_torch.config import load_config
from ppir_torch.errors import ConfigError
def show(**groups):
    try:
        config = load_config({"data": {"moving": "m", "fixed": "f"}, "backend": {"kind": "beaver"}} | groups)
        print(*(getattr(config, name) for name in groups))
    except ConfigError as error:
        print(error)
"""


@pytest.fixture
def toykit(tmp_path: Path) -> Path:
    points = "[ppir_torch.losses]\ntoy = toykit.entries:TOY\n[ppir_torch.transforms]\nshear = toykit.entries:SHEAR\n"
    write_package(tmp_path, "toykit", ENTRIES, points)
    return tmp_path


def test_a_kind_of_another_package_is_validated_as_ours_are(toykit: Path) -> None:
    code = """
show(loss={"kind": "toy", "power": 3.0})
show(loss={"kind": "toy", "power": "3"})
show(loss={"kind": "toy", "powr": 3.0})
show(loss={"kind": "cc"})
show(loss={"kind": "toy"}, transform={"kind": "bspline"})
show(transform={"kind": "shear"})
show(transform={"kind": "spline"})
show(transform={"kind": "velocity", "linear": "shear"}, loss={"kind": "ncc"})
show(transform={"kind": "velocity", "linear": "toy"})
show(loss={"kind": "Toy"})
"""
    lines = python(toykit, LOAD + code)
    assert lines[0] == "kind='toy' power=3.0"
    assert lines[1] == "loss.power: '3', a number is needed"
    assert lines[2] == "loss.powr: unknown key, did you mean power?"
    assert lines[3] == "loss.kind: 'cc', one of ssd, ncc, ncc_squared, local_ncc, mind, cr, mi, toy is needed"
    assert (
        lines[4] == "loss.kind: 'toy', with transform 'bspline' ssd, ncc, ncc_squared, local_ncc, mind or cr is needed"
    )
    assert lines[5] == "kind='shear'"
    kinds = "translation, rigid, similarity, affine, bspline, velocity, shear"
    assert lines[6] == f"transform.kind: 'spline', one of {kinds} is needed"
    assert "linear='shear'" in lines[7]
    assert lines[8].endswith("'translation', 'rigid', 'similarity', 'affine', 'shear' or 'none' is needed")
    assert lines[9] == "loss.kind: 'Toy', one of ssd, ncc, ncc_squared, local_ncc, mind, cr, mi, toy is needed"


@pytest.mark.parametrize("name", ["clear", "auto", "none", "ssd"])
def test_no_package_takes_a_name_that_means_something_of_ours(name: str, tmp_path: Path) -> None:
    entries = f"""
from typing import Literal
from ppir_torch.config import KindSettings, LinearConfig, LossEntry, ProtocolEntry, TransformEntry

class Taken(KindSettings):
    kind: Literal["{name}"] = "{name}"

class TakenShift(LinearConfig):
    kind: Literal["{name}"] = "{name}"

PROTOCOL = ProtocolEntry(Taken, "not ours", "math:pi", "nothing", "nothing")
SHIFT = TransformEntry(TakenShift, "not ours", "math:pi")
LOSS = LossEntry(Taken, "not ours", "math:pi", discloses=())
"""
    groups = {"clear": ("protocols", "PROTOCOL"), "none": ("transforms", "SHIFT"), "ssd": ("losses", "LOSS")}
    group, entry = groups.get(name, groups["clear"])
    write_package(tmp_path, "taker", entries, f"[ppir_torch.{group}]\n{name} = taker.entries:{entry}\n")
    code = """
from ppir_torch.config.protocols import PROTOCOLS
from ppir_torch.config.transforms import TRANSFORMS
from ppir_torch.config.losses import LOSSES
show(backend={"kind": "auto"})
show(backend={"kind": "clear"})
show(transform={"kind": "velocity", "linear": "none"})
print(*(registry.distribution(name) for registry in (PROTOCOLS, TRANSFORMS, LOSSES) for name in registry.names()))
"""
    lines = python(tmp_path, LOAD + code)
    assert lines[0].startswith("kind='auto' bandwidth_mbit=")
    assert lines[1] == "kind='clear' device='auto'"
    assert "linear='none'" in lines[2]
    assert "taker" not in lines[3]


def test_a_package_that_ends_the_interpreter_hinders_nobody(tmp_path: Path) -> None:
    entries = "import sys\nsys.exit(3)\n"
    write_package(tmp_path, "script", entries, "[ppir_torch.losses]\nscripted = script.entries:TOY\n")
    lines = python(tmp_path, LOAD + 'show(loss={"kind": "ncc"})\nshow(loss={"kind": "scripted"})\n')
    assert lines[0] == "kind='ncc'"
    assert "script.entries:TOY of script 1.0 cannot be used (SystemExit" in lines[1]


def test_a_kind_of_another_package_needs_no_file_among_the_groups(toykit: Path) -> None:
    code = """
from ppir_torch.config.compose import compose_runs
def run(*words):
    try:
        [(_, config)] = compose_runs(["data.moving=m", "data.fixed=f", *words])
        print(config.loss)
    except ConfigError as error:
        print(error)
run("loss=toy")
run("loss.power=3.0", "loss=toy", "backend=bfv")
run("loss=cc")
run("loss=toy", "loss=ncc")
run("experiment=between_subjects", "loss=toy", "transform=shear")
"""
    lines = python(toykit, LOAD + code)
    assert lines == [
        "kind='toy' power=2.0",
        "kind='toy' power=3.0",
        "loss: 'cc', one of cr, local_ncc, mi, mind, ncc, ncc_squared, ssd, toy is needed",
        "kind='ncc'",
        "kind='toy' power=2.0",
    ]


def test_info_and_help_name_what_comes_from_another_package(toykit: Path) -> None:
    code = "from typer.testing import CliRunner\nfrom ppir_torch.cli import app\n"
    text = "\n".join(python(toykit, code + "print(CliRunner().invoke(app, ['info']).output)"))
    assert "loss toy: a toy (of toykit 1.0)" in text
    assert "transform shear: a shear (of toykit 1.0)" in text
    text = "\n".join(python(toykit, code + "print(CliRunner().invoke(app, ['register', '--help']).output)"))
    assert "cr, mi or toy" in " ".join(text.replace("\u2502", " ").split())


def test_both_parties_take_a_kind_of_another_package(toykit: Path) -> None:
    code = """
from ppir_torch.config import FixedPartyConfig, MovingPartyConfig, fixed_party, moving_party
whole = {"data": {"moving": "m", "fixed": "f"}, "backend": {"kind": "beaver"}, "loss": {"kind": "toy", "power": 4.0}}
config = load_config(whole)
for part, kind in ((moving_party(config), MovingPartyConfig), (fixed_party(config), FixedPartyConfig)):
    print(kind.model_validate_json(part.model_dump_json()) == part, part.loss)
print(load_config(config.model_dump(mode="json")) == config)
"""
    assert python(toykit, LOAD + code) == ["True kind='toy' power=4.0"] * 2 + ["True"]


def test_packages_are_read_when_a_configuration_is_checked(toykit: Path) -> None:
    code = "import sys, ppir_torch.config\nprint('toykit' in sys.modules)\n"
    code += "ppir_torch.config.LOSSES.names()\nprint('toykit' in sys.modules, 'torch' in sys.modules)"
    assert python(toykit, code) == ["False", "True False"]
    assert python(
        toykit, "import toykit.entries as e; from ppir_torch.config import LOSSES; print(LOSSES['toy'] is e.TOY)"
    ) == ["True"]


def test_code_that_cannot_be_imported_is_one_line(toykit: Path) -> None:
    code = """
from ppir_torch.config import LOSSES
try:
    LOSSES["toy"].load()
except ConfigError as error:
    print(error)
"""
    [line] = python(toykit, LOAD + code)
    assert line.startswith("toy: toykit.nowhere:Toy cannot be imported (ModuleNotFoundError: No module named")


BROKEN = {
    "missing": "nowhere.at.all:TOY",
    "raises": "badkit.raises:TOY",
    "absent": "badkit.entries:ABSENT",
    "number": "badkit.entries:NUMBER",
    "other": "badkit.entries:TOY",
    "ssd": "badkit.entries:SSD",
    "shear": "badkit.entries:SHEAR",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_named_where_its_kind_is_asked_for_and_only_there(name: str, tmp_path: Path) -> None:
    write_package(tmp_path, "badkit", ENTRIES, f"[ppir_torch.losses]\n{name} = {BROKEN[name]}\n")
    (tmp_path / "badkit" / "raises.py").write_text("1 / 0\n")
    code = f"""
show(loss={{"kind": "ncc"}})
show(loss={{"kind": {name!r}}})
show(loss={{"kind": "cc"}})
show(sampler={{"kind": "x"}})
"""
    lines = python(tmp_path, LOAD + code)
    assert len(lines) == 4
    assert lines[0] == "kind='ncc'"
    broken = f"{BROKEN[name]} of badkit 1.0 cannot be used ("
    if name == "ssd":  # ours stays
        assert lines[1] == "kind='ssd'"
        assert "there is a loss 'ssd' already" in lines[2]
    else:
        assert lines[1].startswith(f"loss.kind: '{name}', {broken}")
    assert lines[2].startswith(
        f"loss.kind: 'cc', one of ssd, ncc, ncc_squared, local_ncc, mind, cr, mi is needed; {name}: {broken}"
    )
    assert "badkit" not in lines[3]


# --- ours


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.noun)
def test_every_entry_is_whole(registry: Registry[Entry]) -> None:
    """A line of help, settings with documentation, and (but for what other helpers' packages hold) code at its home."""
    for entry in registry:
        assert entry.title
        assert entry.title == entry.title.splitlines()[0]
        assert entry.settings.__doc__
        assert entry.name in registry
        assert registry[entry.name] is entry
        assert registry.distribution(entry.name) == ""


@pytest.mark.parametrize("registry", REGISTRIES[:5], ids=lambda registry: registry.noun)
def test_every_entry_has_its_code(registry: Registry[Entry]) -> None:
    for entry in registry:
        assert entry.load() is not None


def test_clear_and_auto_have_theirs() -> None:
    from ppir_torch import ClearFixed
    from ppir_torch.protocols.chooser import choose

    assert CLEAR.load() is ClearFixed
    assert AUTO.load() is choose


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.noun)
def test_an_unknown_name_is_one_line(registry: Registry[Entry]) -> None:
    with pytest.raises(ConfigError) as error:
        registry["x" * 1000]
    assert str(error.value).startswith(f"{registry.noun}: 'xxx")
    assert str(error.value).endswith(f"one of {', '.join(registry.names())} is needed")
    assert len(str(error.value)) < 300


def test_facts_of_the_entries() -> None:
    """What the checks of a configuration and the lines on disclosure are made of."""
    assert {entry.name for entry in PROTOCOLS if entry.dealer} == {"spdz", "beaver"}
    assert {entry.name for entry in PROTOCOLS if entry.device} == {"spdz", "beaver"}
    assert {entry.name for entry in PROTOCOLS if entry.insecure} == {"ckks-v1"}
    assert {entry.name for entry in TRANSFORMS if entry.lattice} == {"bspline", "velocity"}
    assert {entry.name for entry in LOSSES if not entry.deforms} == {"mi"}
    assert {entry.name for entry in OPTIMIZERS if entry.by_party_2} == {"inverse_compositional"}
    assert all(entry.optimizer in OPTIMIZERS for entry in LOSSES)


def test_settings_reach_the_object() -> None:
    class RootConfig(KindSettings):
        kind: Literal["root"] = "root"
        x: float = 4.0

    class Root:
        def __init__(self, x: float) -> None:
            self.x = x

    entry = Entry(RootConfig, "a root", f"{__name__}:_Home.made")
    _Home.made = Root
    assert entry.make(RootConfig(x=2.0)).x == 2.0


class _Home:
    made: object


def test_words() -> None:
    assert words(["a"]) == "a"
    assert words(x for x in ("a", "b")) == "a or b"
