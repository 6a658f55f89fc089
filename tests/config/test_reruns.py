"""Saved configurations, run again: the command line wins over every file, and what was asked to be private is."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppir_torch.config.compose import compose, compose_runs
from ppir_torch.config.images import RunConfig, load_config
from ppir_torch.config.points import PointsConfig, load_points_config
from ppir_torch.errors import ConfigError

DATA = {"moving": "m.nii.gz", "fixed": "f.nii.gz"}
HEADER = "# @package _global_\n"


def saved_mapping(**groups: object) -> dict[str, Any]:
    """As `ppir run` saves it: every setting, with its default."""
    whole = {"data": DATA, "backend": {"kind": "clear"}, "sampler": {"kind": "urs", "fraction": 0.3}, "output": "out"}
    whole |= {"loss": {"kind": "ssd"}}  # it goes with every sampler
    return load_config(whole | groups).model_dump(mode="json")


def write(path: Path, mapping: object, header: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + yaml.safe_dump(mapping))
    return path


def one(*words: str, extra: Path | None = None, saved: Path | None = None) -> Any:
    [(_, config)] = compose_runs(words, extra=extra, saved=saved)
    return config


@pytest.fixture(params=["experiment", "--config"])
def rerun(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Runs a saved clear configuration again, with words of the command line, in either way."""
    mapping = saved_mapping(transform={"kind": "velocity", "weight": 1.5}, optimizer={"kind": "adam"})
    if request.param == "--config":
        path = write(tmp_path / "config.yaml", mapping)
        return lambda *words: one(*words, saved=path)
    write(tmp_path / "experiment" / "mine.yaml", mapping, HEADER)
    return lambda *words: one("experiment=mine", *words, extra=tmp_path)


def test_a_saved_configuration_runs_as_it_stands(rerun: Any) -> None:
    mapping = saved_mapping(transform={"kind": "velocity", "weight": 1.5}, optimizer={"kind": "adam"})
    assert rerun() == load_config(mapping)


@pytest.mark.parametrize(
    "backend", ["bfv", *(pytest.param(n, marks=pytest.mark.slow) for n in ("beaver", "spdz", "ckks", "auto"))]
)
def test_a_private_backend_on_the_command_line_wins_over_a_saved_clear_one(rerun: Any, backend: str) -> None:
    for words in ([f"backend={backend}"], [f"backend.kind={backend}"], [f"backend={{kind: {backend}}}"]):
        config = rerun(*words)
        assert config.private
        assert config.backend == load_config({"data": DATA, "backend": {"kind": backend}}).backend


def test_every_choice_on_the_command_line_wins_over_a_saved_one(rerun: Any) -> None:
    config = rerun("transform=rigid", "loss=ncc", "optimizer=gauss_newton", "sampler=none", "pyramid=single")
    chosen = (config.transform.kind, config.loss.kind, config.optimizer.kind, config.sampler.kind)
    assert chosen == ("rigid", "ncc", "gauss_newton", "none")
    assert [level.shrink for level in config.pyramid.levels] == [1]


def test_settings_of_the_old_kind_do_not_leak_into_the_new_one(rerun: Any) -> None:
    """bspline has a weight, gms a fraction, too: theirs are the defaults."""
    for words in (["transform=bspline", "sampler=gms"], ["transform.kind=bspline", "sampler.kind=gms"]):
        config = rerun(*words)
        assert (config.transform.kind, config.transform.weight) == ("bspline", None)
        assert (config.sampler.kind, config.sampler.fraction) == ("gms", 0.1)
    config = rerun("backend={kind: spdz}", "sampler={kind: gms, floor: 0.5}")
    assert (config.backend.kind, config.sampler.floor, config.sampler.fraction) == ("spdz", 0.5, 0.1)


def test_a_group_that_is_left_out_has_its_defaults(rerun: Any) -> None:
    config = rerun("~sampler", "~optimizer", "loss=mi", "transform=rigid")
    assert (config.sampler.kind, config.optimizer.kind) == ("none", "lbfgs")
    with pytest.raises(ConfigError, match=r"^backend: missing, a mapping of settings is needed$"):
        rerun("~backend")


def test_a_single_value_changes_that_value(rerun: Any) -> None:
    config = rerun("sampler.fraction=0.2", "data.moving=other.nii.gz", "pyramid.levels=[{shrink: 2}]")
    assert (config.sampler.kind, config.sampler.fraction, config.sampler.seed) == ("urs", 0.2, None)
    assert (str(config.data.moving), str(config.data.fixed)) == ("other.nii.gz", "f.nii.gz")
    assert (config.transform.weight, [level.shrink for level in config.pyramid.levels]) == (1.5, [2])
    assert rerun("sampler={fraction: 0.2}").sampler == config.sampler
    assert rerun("sampler.kind=urs").sampler.fraction == 0.3


def test_the_order_of_the_words_does_not_matter(rerun: Any) -> None:
    words = ["backend=beaver sampler.kind=gms", "sampler.fraction=0.2", "backend.device=cpu"]
    configs = [rerun(*" ".join(order).split()) for order in itertools.permutations(words)]
    assert all(config == configs[0] for config in configs)
    assert (configs[0].sampler.kind, configs[0].sampler.fraction, configs[0].backend.device) == ("gms", 0.2, "cpu")


def test_the_kind_of_a_start_is_one_too(tmp_path: Path) -> None:
    start = {"kind": "file", "path": "a.tfm"}
    path = write(tmp_path / "config.yaml", saved_mapping(start=start))
    assert one("start.kind=identity", saved=path).start.path is None


def test_a_saved_private_configuration_runs_in_clear_where_the_command_line_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", saved_mapping(backend={"kind": "spdz", "device": "cpu"}))
    assert one(saved=path).backend.kind == "spdz"
    for word in ("backend=clear", "backend.kind=clear", "backend={kind: clear}"):
        config = one(word, saved=path)
        assert (config.backend.kind, config.backend.device) == ("clear", "auto")


@pytest.mark.parametrize("backend", ["clear", "auto", "bfv"])
def test_a_file_of_kinds_only(backend: str, tmp_path: Path) -> None:
    mapping = {"data": DATA, "backend": {"kind": backend}, "loss": {"kind": "mi"}}
    assert one(saved=write(tmp_path / "config.yaml", mapping)) == load_config(mapping)
    assert load_config(mapping).optimizer.kind == "lbfgs"


def test_a_saved_configuration_of_points(tmp_path: Path) -> None:
    mapping = {"moving": "a.csv", "fixed": "b.csv", "backend": {"kind": "clear", "device": "cpu"}, "truth": "t.tfm"}
    config = load_points_config(mapping)
    path = write(tmp_path / "config.yaml", config.model_dump(mode="json"))
    assert one(saved=path) == config
    assert isinstance(config, PointsConfig)
    again = one("transform=similarity", "backend=bfv", "budget.max_values=50", "~truth", saved=path)
    assert (again.transform, again.backend.kind, again.budget.max_values, again.truth) == (
        "similarity",
        "bfv",
        50,
        None,
    )
    with pytest.raises(ConfigError, match=r"^backend\.kind: 'auto', one of clear, spdz, beaver, bfv, ckks is needed$"):
        one("backend=auto", saved=path)
    with pytest.raises(ConfigError, match=r"^pyramid: unknown key, known here: "):
        one("pyramid=single", saved=path)


def test_a_sweep_over_a_saved_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", saved_mapping())
    runs = compose_runs(["backend=bfv,clear,spdz"], sweep=True, saved=path)
    assert [config.backend.kind for _, config in runs] == ["bfv", "clear", "spdz"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["backend=BFV"], "backend: 'BFV', one of auto, beaver, bfv, ckks, ckks-v1, clear, spdz is needed"),
        (["backend.kind=BFV"], "backend.kind: 'BFV', one of clear, auto, spdz, beaver, bfv, ckks, ckks-v1 is needed"),
        (["backend=null"], "backend=null: one of auto, beaver, bfv, ckks, ckks-v1, clear, spdz is needed"),
        (["++backend=bfv"], "++backend=bfv: GROUP=NAME or GROUP.KEY=VALUE is needed with --config"),
        (["backend@x=bfv"], "backend@x=bfv: GROUP=NAME or GROUP.KEY=VALUE is needed with --config"),
        (["experiment=demo"], "experiment: goes with the groups, not with --config, whose file stands for all of them"),
        (["~backend"], "backend: missing, a mapping of settings is needed"),
        (["backnd=bfv"], "backnd: unknown key, did you mean backend?"),
        (["seed=${oc.env:HOME}"], "seed: '${oc.env:HOME}', a plain value is needed: resolvers are not run"),
        (["backend=bfv", "backend=clear"], "backend: 'bfv' was asked for, and 'clear' too; refused: name one backend "),
        (["backend=clear,bfv"], "backend=clear,bfv: several values; one is needed, or a sweep with -m"),
        (
            ["hydra.searchpath=[/tmp]"],
            "hydra.searchpath=[/tmp]: Hydra's own settings are not taken; folders of YAML go ",
        ),
    ],
)
def test_a_mistake_with_a_saved_configuration_is_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", saved_mapping())
    with pytest.raises(ConfigError) as error:
        one(*words, saved=path)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "3", "[1, 2]", "a: [", "a: 1\na: 2", "\0", "backend: clear", "%", "!!python/x y"])
def test_a_file_that_is_no_configuration_is_refused_line_by_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        one(saved=path)
    assert all(line.isprintable() for line in str(error.value).splitlines())


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(ConfigError, match=r"^--config: '.*, a YAML file that can be read is needed \(.*\)$"):
            one(saved=path)


def test_a_saved_configuration_without_a_backend_is_not_run_in_clear(tmp_path: Path) -> None:
    mapping = saved_mapping()
    del mapping["backend"]
    with pytest.raises(ConfigError, match=r"^backend: missing, a mapping of settings is needed$"):
        one(saved=write(tmp_path / "config.yaml", mapping))


def test_a_saved_configuration_in_the_place_of_an_experiment_needs_its_header(tmp_path: Path) -> None:
    write(tmp_path / "experiment" / "mine.yaml", saved_mapping())
    with pytest.raises(
        ConfigError, match=r"^experiment: its file starts with '# @package _global_'; .* --config FILE$"
    ):
        one("experiment=mine", "backend=bfv", extra=tmp_path)


def test_files_that_contradict_each_other_do_not_run_in_clear(tmp_path: Path) -> None:
    """One asks for a private backend, another (or the same one, further down) sets a clear one over it."""
    both = {"defaults": [{"override /backend": "bfv"}, "_self_"], "backend": {"kind": "clear"}, "data": DATA}
    write(tmp_path / "experiment" / "both.yaml", both, HEADER)
    write(tmp_path / "experiment" / "base.yaml", {"backend": {"kind": "beaver"}, "data": DATA}, HEADER)
    upon = {"defaults": ["base", "_self_"], "backend": {"kind": "clear"}}
    write(tmp_path / "experiment" / "upon.yaml", upon, HEADER)
    for name, asked, file in (("both", "bfv", "backend/bfv"), ("upon", "beaver", "experiment/base")):
        with pytest.raises(ConfigError) as error:
            one(f"experiment={name}", extra=tmp_path)
        assert str(error.value) == (
            f"backend: '{asked}' is asked for in {file}.yaml, but the run would be in clear; refused: say "
            f"backend={asked} or backend=clear"
        )
        assert one(f"experiment={name}", "backend=clear", extra=tmp_path).backend.kind == "clear"
        assert one(f"experiment={name}", f"backend={asked}", extra=tmp_path).backend.kind == asked


def test_a_file_of_the_users_own_cannot_turn_a_choice_into_a_clear_run(tmp_path: Path) -> None:
    """A group file elsewhere that sets the backend, and one that has a private protocol's name."""
    write(tmp_path / "backend" / "bfv.yaml", {"kind": "clear"})
    write(tmp_path / "data" / "mine.yaml", {"data": DATA, "backend": {"kind": "clear"}}, HEADER)
    write(tmp_path / "backend" / "mine.yaml", {"kind": "clear"})
    assert one("backend=bfv", "data.moving=m", "data.fixed=f", extra=tmp_path).backend.kind == "bfv"
    words = ["backend=bfv", "data=mine"]
    for order in (words, words[::-1]):
        assert one(*order, extra=tmp_path).backend.kind == "bfv"
    path = write(tmp_path / "config.yaml", saved_mapping(backend={"kind": "bfv"}))
    with pytest.raises(ConfigError, match=r"'bfv' is asked for in .*config\.yaml, but the run would be in clear"):
        one("backend=mine", extra=tmp_path, saved=path)


# --- any order of arguments and files

BACKENDS = ("clear", "auto", "beaver", "bfv")
words_about_backends = st.lists(
    st.tuples(
        st.sampled_from(
            (
                *("backend={}", "backend.kind={}", "++backend.kind={}", "+backend={}"),
                *("backend=str({})", "backend.kind=str({})"),
                *("backend={{kind: {}}}", "backend={{kind: str({})}}", "backend={{kind: {}, kind: clear}}"),
            )
        ),
        st.sampled_from(BACKENDS),
    ).map(lambda pair: pair[0].format(pair[1])),
    max_size=2,
)
other_words = st.lists(
    st.sampled_from(("backend.device=cpu", "sampler=gms", "sampler.kind=urs", "transform=rigid", "loss=mi", "seed=3")),
    max_size=2,
    unique=True,
)
orders = st.randoms(use_true_random=False)
files = st.fixed_dictionaries(
    {
        "body": st.none() | st.sampled_from(BACKENDS),  # what the file sets
        "chosen": st.none() | st.sampled_from(BACKENDS),  # the group that it chooses
        "base": st.none() | st.sampled_from(BACKENDS),  # what the file that it stands upon sets
        "whole": st.booleans(),  # every setting is in it, as a run saves them
        "data": st.none() | st.sampled_from(BACKENDS),  # what the chosen data file sets besides
        "own": st.none() | st.sampled_from(BACKENDS),  # the kind in a backend file of the user's own
    }
)


def write_files(folder: Path, made: dict[str, Any]) -> list[str]:
    """The words that choose the files."""
    body = saved_mapping(sampler={"kind": "urs"}) if made["whole"] else {"data": dict(DATA)}
    body.pop("backend", None)
    body |= {} if made["body"] is None else {"backend": {"kind": made["body"]}}
    defaults: list[Any] = [{"override /backend": made["chosen"]}] if made["chosen"] else []
    defaults += ["base"] if made["base"] else []
    write(folder / "experiment" / "mine.yaml", {"defaults": [*defaults, "_self_"], **body}, HEADER)
    write(folder / "experiment" / "base.yaml", {"backend": {"kind": made["base"]}} if made["base"] else {}, HEADER)
    content = {"data": dict(DATA)} | ({"backend": {"kind": made["data"]}} if made["data"] else {})
    write(folder / "data" / "mine.yaml", content, HEADER)
    write(folder / "backend" / "own.yaml", {"kind": made["own"] or "clear"})
    words = ["experiment=mine", "data=mine" if made["data"] else "", "backend=own" if made["own"] else ""]
    return [word for word in words if word]


def check(words: list[str], in_files: set[str | None], config: RunConfig, own: str | None = None) -> None:
    """What was asked for is what runs."""
    said = {str(own) if name == "own" else name for word in words for name in re.findall(r"\w+", word)} & {*BACKENDS}
    if said - {"clear"}:
        assert config.private
        assert config.backend.kind in said
    elif said:
        assert not config.private
    elif in_files - {None, "clear"}:
        assert config.private


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=files, about=words_about_backends, others=other_words, order=orders)
def test_private_was_asked_for_and_clear_runs_never_both(
    made: dict[str, Any], about: list[str], others: list[str], order: Any, tmp_path: Path
) -> None:
    words = write_files(tmp_path, made) + about + others
    order.shuffle(words)
    try:
        config = one(*words, extra=tmp_path)
    except ConfigError:
        return
    check(words, {made["body"], made["chosen"], made["base"], made["data"]}, config, made["own"])


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(BACKENDS),
    about=words_about_backends,
    others=other_words,
    order=st.randoms(use_true_random=False),
)
def test_the_same_of_a_saved_configuration(
    kind: str, about: list[str], others: list[str], order: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "config.yaml", saved_mapping(backend={"kind": kind}))
    words = about + others
    order.shuffle(words)
    try:
        config = one(*words, saved=path)
    except ConfigError:
        return
    check(words, {kind}, config)


def test_the_packaged_groups_ask_for_nothing_private() -> None:
    assert compose([f"data.{name}={path}" for name, path in DATA.items()])["backend"] == {"kind": "clear"}
