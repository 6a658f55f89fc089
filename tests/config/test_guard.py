"""What the command line and the files ask for, and what runs: a private backend asked for is never a run in clear."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from test_reruns import DATA, HEADER, one, saved_mapping, write

from ppir_torch.config.compose import compose
from ppir_torch.config.guard import (
    asked_backends,
    is_private_name,
    kinds_in,
    refuse_clear,
    refuse_clear_files,
    refuse_mixture,
)
from ppir_torch.errors import ConfigError

MIXTURES = [
    ["backend.kind=clear", "backend=fast"],
    ["backend={kind: clear}", "backend=fast"],
    ["backend=fast", "backend=clear"],
    ["backend=fast", "~backend.kind", "+backend.kind=clear"],
    ["backend=bfv", "backend=slow"],
    ["backend.kind=bfv", "backend=clear"],
    ["backend=str(bfv)", "backend.kind=clear"],
    ["backend=str(fast)", "backend.kind=clear"],
    ["backend.kind=str(bfv)", "backend.kind=clear"],
    ["backend={kind: str(bfv)}", "backend={kind: clear}"],
    ["backend={kind: str(bfv), kind: clear}"],
    ["backend={kind: str( value = 'bfv' ), kind: clear}"],
]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A --config-dir with a private and a clear backend, experiment and data file, and a saved private run."""
    bfv = {"backend": {"kind": "bfv"}}
    write(tmp_path / "backend" / "fast.yaml", {"kind": "beaver"})
    write(tmp_path / "backend" / "slow.yaml", {"kind": "clear"})
    write(tmp_path / "data" / "private.yaml", {"data": DATA} | bfv, HEADER)
    write(tmp_path / "experiment" / "private.yaml", {"defaults": [{"override /backend": "bfv"}, "_self_"]}, HEADER)
    write(tmp_path / "experiment" / "clear.yaml", {"data": DATA}, HEADER)
    write(tmp_path / "config.yaml", {"data": DATA} | bfv)
    return tmp_path


def refused(*words: str, extra: Path, saved: Path | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        one(*words, extra=extra, saved=saved)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


SOME_SLOW = [*MIXTURES[:2], *(pytest.param(words, marks=pytest.mark.slow) for words in MIXTURES[2:])]


@pytest.mark.parametrize("words", SOME_SLOW, ids=" ".join)
def test_a_private_and_a_clear_backend_on_one_command_line_are_refused_in_any_order(
    words: list[str], own: Path
) -> None:
    line = "and 'clear' too; refused: name one backend only"
    for order in itertools.permutations(words):
        assert refused(*order, "experiment=clear", extra=own).endswith(line)
    assert refused(*words, "experiment=private", extra=own).endswith(line)
    assert refused(*words, extra=own, saved=own / "config.yaml").endswith(line)
    with pytest.raises(ConfigError, match="refused: name one backend only"):
        compose(words, extra=own)


def test_the_guard_is_in_every_way_to_compose() -> None:
    with pytest.raises(ConfigError, match=r"^backend: 'bfv' was asked for, and 'clear' too; "):
        compose(["backend=bfv", "backend.kind=clear", "data.moving=m", "data.fixed=f"])


def test_a_file_of_the_users_own_is_what_its_kind_is(own: Path) -> None:
    assert one("backend=fast", "experiment=clear", extra=own).backend.kind == "beaver"
    assert one("backend=fast", extra=own, saved=own / "config.yaml").backend.kind == "beaver"
    assert one("backend=slow", "experiment=clear", extra=own).backend.kind == "clear"
    assert one("backend=clear", "experiment=private", "data=private", extra=own).backend.kind == "clear"
    assert "'bfv' is asked for in " in refused("backend=slow", "experiment=private", "data=private", extra=own)


def test_a_choice_that_is_replaced_is_not_forgotten(own: Path) -> None:
    for words in (
        ["experiment=private", "experiment=clear"],
        ["experiment=clear", "experiment=private"],
        ["experiment=private", "~experiment"],
        ["~experiment", "experiment=private"],
    ):
        line = f"experiment: {' '.join(words)}, one experiment=NAME or none is needed"
        assert refused(*words, "data.moving=m", "data.fixed=f", extra=own) == line
    for words in (["data=private", "data=files"], ["data=private", "~data"]):
        line = refused(*words, "data.moving=m", "data.fixed=f", extra=own)
        assert line.startswith("backend: 'bfv' is asked for in data/private.yaml, but the run would be in clear")
    clear = write(own / "clear.yaml", saved_mapping())
    assert "'bfv' is asked for in data/private.yaml" in refused("data=private", extra=own, saved=clear)


def test_a_backend_that_is_interpolated_is_refused(own: Path) -> None:
    """Its name would stand elsewhere, out of the guard's sight."""
    for number, backend in enumerate(({"kind": "${output}"}, "${data}")):
        hidden = {"data": DATA, "output": "bfv", "backend": backend}
        write(own / "experiment" / f"hidden{number}.yaml", hidden, HEADER)
        line = r"^backend: '\$\{.*\}' in .*yaml, a plain name is needed$"
        for words in ([], ["backend.kind=clear"], ["backend=clear"]):
            with pytest.raises(ConfigError, match=line):
                one(f"experiment=hidden{number}", *words, extra=own)
            with pytest.raises(ConfigError, match=line):
                one(*words, saved=write(own / "hidden.yaml", hidden))
    for word in ("backend=${output}", "backend.kind=${output}", "backend={kind: '${output}'}"):
        line = refused(word, "output=bfv", "backend.kind=clear", "experiment=clear", extra=own)
        assert line == "backend: '${output}', a plain name is needed"


def test_a_list_of_defaults_does_not_read_the_environment(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPIR_TEST_BACKEND", "bfv")
    defaults = [{"override /backend": "${oc.env:PPIR_TEST_BACKEND}"}, "_self_"]
    write(own / "experiment" / "env.yaml", {"defaults": defaults, "data": DATA}, HEADER)
    write(own / "experiment" / "upon.yaml", {"defaults": ["env", "_self_"]}, HEADER)
    for word in ("experiment=env", "experiment=upon", "experiment=str(env)"):
        assert "'${oc.env:PPIR_TEST_BACKEND}', a plain value is needed: resolvers" in refused(word, extra=own)
    monkeypatch.setenv("PPIR_TEST_BACKEND", "secret")
    assert "secret" not in refused("experiment=env", extra=own)


# --- the guard by itself


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["backend=bfv"], ["bfv"]),
        (["+backend=bfv", "++backend.kind=spdz"], ["bfv", "spdz"]),
        (["backend='bfv'", 'backend.kind="ckks"'], ["bfv", "ckks"]),
        (["backend={kind:bfv,x:1}", "backend={x: 1, 'kind': auto}"], ["bfv", "auto"]),
        (["backend@backend=bfv"], ["bfv"]),
        (["backend=str(bfv)", "backend.kind=str( 'spdz' )"], ["bfv", "spdz"]),
        (["backend={kind: str(value=bfv), x: {kind: clear}}"], ["bfv", "clear"]),
        (["backend.device=cpu", "seed=1", "data.moving=backend=bfv", "~backend"], []),
    ],
)
def test_the_guard_reads_the_words_by_itself(words: list[str], names: list[str]) -> None:
    assert asked_backends(words) == names


def test_the_guard_refuses_only_a_clear_run() -> None:
    refuse_clear(["bfv"], "bfv")
    refuse_clear(["clear"], "clear")
    refuse_clear([], "clear")
    refuse_clear(["mine"], "clear")  # a file of the user's own; what it holds has been read
    for name in ("auto", "spdz", "ckks-v1"):
        assert is_private_name(name)
        with pytest.raises(ConfigError, match=f"^backend: '{name}' was asked for, but the run would be in clear"):
            refuse_clear(["clear", name], "clear")
    refuse_clear_files({"a.yaml": "clear", "b.yaml": ""}, [], "clear")
    refuse_clear_files({"a.yaml": "bfv"}, ["clear"], "clear")
    refuse_clear_files({"a.yaml": "bfv"}, [], "spdz")
    with pytest.raises(ConfigError):
        refuse_clear_files({"a.yaml": "bfv"}, ["mine"], "clear")
    refuse_mixture(["bfv", "spdz", "mine"])
    for names in (["clear", "bfv"], ["bfv", "clear"]):
        with pytest.raises(ConfigError, match=r"^backend: 'bfv' was asked for, and 'clear' too; refused: "):
            refuse_mixture(names)


def test_the_kinds_in_a_value() -> None:
    assert kinds_in({"kind": "bfv", "x": {"kind": "clear", "y": "spdz"}}) == ["bfv", "clear"]
    assert (kinds_in("bfv"), kinds_in(None), kinds_in(["bfv"])) == (["bfv"], [], [])
