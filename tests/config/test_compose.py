"""Composition: the groups and experiments as shipped, the order of precedence, sweeps, and one line per mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppir_torch.config.compose import compose, compose_runs, config_folder
from ppir_torch.config.images import RunConfig
from ppir_torch.errors import ConfigError

DATA = ["data.moving=m.nii.gz", "data.fixed=f.nii.gz"]
GROUPS = {
    "transform": ["affine", "bspline", "rigid", "similarity", "translation", "velocity"],
    "loss": ["cr", "local_ncc", "mi", "mind", "ncc", "ncc_squared", "ssd"],
    "optimizer": ["adam", "gauss_newton", "inverse_compositional", "lbfgs"],
    "backend": ["auto", "beaver", "bfv", "ckks", "ckks-v1", "clear", "spdz"],
    "sampler": ["chunks", "gms", "none", "urs"],
    "pyramid": ["auto", "five", "single", "three"],
    "data": ["files"],
    "transport": ["local"],
    "experiment": ["across_modalities", "between_subjects", "demo", "follow_up", "itk2d", "same_person"],
}


def one(*overrides: str, extra: Path | None = None) -> RunConfig:
    [(_, config)] = compose_runs(overrides, extra=extra)
    return config


def test_groups_are_all_there() -> None:
    found = {f.name: sorted(p.stem for p in f.iterdir()) for f in config_folder().iterdir() if f.is_dir()}
    assert {name: found.get(name, []) for name in GROUPS} == GROUPS
    assert not [p for p in config_folder().rglob("*.yaml") if "_target_" in p.read_text()]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in GROUPS.items() for name in names])
def test_every_group_file_is_valid(group: str, name: str) -> None:
    consent = ["backend.allow_insecure=true"] if name == "ckks-v1" else []
    config = one(f"{group}={name}", *consent, *([] if name in ("demo", "itk2d") else DATA))
    if group not in ("pyramid", "data", "experiment"):
        assert getattr(config, group).kind == name


def test_the_published_protocol_runs_only_where_its_insecurity_is_accepted() -> None:
    with pytest.raises(ConfigError, match=r"backend\.allow_insecure: False, true is needed: ckks-v1 is the published"):
        one("backend=ckks-v1", *DATA)


def test_yaml_says_what_the_models_default_to() -> None:
    groups = ("optimizer=adam", "sampler=gms", "sampler=urs", "sampler=chunks", "backend=spdz", "backend=auto")
    for overrides in ([], *([group] for group in groups)):
        config = one(*DATA, *overrides)
        bare = {name: {"kind": getattr(config, name).kind} for name in ("optimizer", "sampler", "backend")}
        from ppir_torch.config.images import load_config

        assert load_config({**bare, "data": {"moving": "m.nii.gz", "fixed": "f.nii.gz"}}) == config


def test_pyramids() -> None:
    levels = {name: one(*DATA, f"pyramid={name}").pyramid.levels for name in GROUPS["pyramid"]}
    shrinks = {name: said and [level.shrink for level in said] for name, said in levels.items()}
    assert shrinks == {"auto": None, "five": [16, 8, 4, 2, 1], "single": [1], "three": [4, 2, 1]}
    assert one(*DATA).pyramid == one(*DATA, "pyramid=auto").pyramid


def test_experiment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    assert one("experiment=itk2d").transform.kind == "similarity"
    assert one("experiment=itk2d", "transform=rigid", "backend=bfv").transform.kind == "rigid"
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /backend: bfv\n  - _self_\nseed: 5\nthreads: 4\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    config = one("experiment=mine", "threads=1", *DATA, extra=tmp_path)
    assert (config.backend.kind, config.seed, config.threads) == ("bfv", 5, 1)


def test_itk2d_names_files_beside_the_repository() -> None:
    data = one("experiment=itk2d").data
    if not Path("../shared/data").is_dir():
        pytest.skip("shared/data is not here")
    assert data.moving.is_file()
    assert data.fixed.is_file()


def test_sweep_is_every_combination() -> None:
    runs = compose_runs([*DATA, "backend=bfv,clear", "seed=range(0,2)"], sweep=True)
    assert [(c.backend.kind, c.seed) for _, c in runs] == [("bfv", 0), ("bfv", 1), ("clear", 0), ("clear", 1)]
    assert runs[1][0] == [*DATA, "backend=bfv", "seed=1"]
    kinds = [c.sampler.kind for _, c in compose_runs([*DATA, "sampler=glob(*)"], sweep=True)]
    assert kinds == ["chunks", "gms", "none", "urs"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("backend=foo", "backend: 'foo', one of auto, beaver, bfv, ckks, ckks-v1, clear, spdz is needed"),
        ("backend=null", "backend=null: one of auto, beaver, bfv, ckks, ckks-v1, clear, spdz is needed"),
        ("backend=[bfv,clear]", "backend=[bfv,clear]: one of auto, beaver, bfv, ckks, ckks-v1, clear, spdz is needed"),
        ("backend=bfv,clear", "backend=bfv,clear: several values; one is needed, or a sweep with -m"),
        ("~backend", "backend: missing, a mapping of settings is needed"),
        ("backnd=bfv", "backnd: unknown key, did you mean backend?"),
        ("+backnd=bfv", "backnd: unknown key, did you mean backend?"),
        ("sampler.fraction=0.1", "sampler.fraction: not a setting of none; beside kind it takes nothing else"),
        ("backend@x=bfv", "configuration: Could not override 'backend@x'."),
        ("~nothing", "configuration: Could not delete from config. 'nothing' does not exist."),
        (
            "experiment=mine",
            "experiment: 'mine', one of across_modalities, between_subjects, demo, follow_up, itk2d, same_person is "
            "needed",
        ),
        ("seed=${oc.env:HOME}", "seed: '${oc.env:HOME}', a plain value is needed: resolvers are not run"),
        ("seed=${nothing}", "configuration: Interpolation key 'nothing' not found"),
        ("seed=-1", "seed: -1, an integer >= 0 and <= 4294967295 is needed"),
    ],
)
def test_a_mistake_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_runs([*DATA, override])
    assert str(error.value) == line


@pytest.mark.parametrize("override", ["", "a", "=3", "a=b=c", "x='", "a b=3", "data.moving=a(1).nii"])
def test_bad_syntax_is_one_line(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_runs([*DATA, override])
    assert str(error.value).startswith(f"{override!r}: key=value is needed")
    assert len(str(error.value).splitlines()) == 1


def test_missing_data_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        compose([])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["data.fixed", "data.moving"]


def test_bad_yaml_and_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bad.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"^configuration: .*$"):
        compose(["experiment=bad"], extra=tmp_path)
    with pytest.raises(ConfigError, match="--config-dir"):
        compose(DATA, extra=tmp_path / "none")


def test_paths_with_spaces_and_quotes() -> None:
    assert one("data.moving='a (1).nii'", "data.fixed=b c.nii").data.moving == Path("a (1).nii")
