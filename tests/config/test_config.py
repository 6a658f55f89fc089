"""The configuration: what is taken, what is refused and with which line, and what each party is given of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppir_torch.config.images import FixedPartyConfig, MovingPartyConfig, fixed_party, load_config, moving_party
from ppir_torch.config.transforms import linear_names
from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.registration.build import build_plan

SPACING = (2.0, 1.0, 3.0)
GRID = Grid((64, 64, 64), SPACING)


def mapping(**settings: object) -> dict[str, object]:
    return {"data": {"moving": "m.nii.gz", "fixed": "f.nii.gz"}, "backend": {"kind": "bfv"}} | settings


def data(**settings: object) -> dict[str, object]:
    return {"moving": "m.nii.gz", "fixed": "f.nii.gz"} | settings


def with_setting(path: str, value: object) -> dict[str, object]:
    """The mapping in which every group has its richest kind, with the value at a dotted path."""
    result: dict[str, Any] = mapping(
        backend={"kind": "spdz"}, optimizer={"kind": "gauss_newton", "stopping": {}}, sampler={"kind": "gms"}
    ) | {"pyramid": {"levels": [{"shrink": 2}]}, "transport": {"kind": "local"}, "start": {}}
    *parents, last = path.split(".")
    place: Any = result
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return result


def refused(settings: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(settings)
    return str(error.value).splitlines()


def test_defaults_are_those_of_the_library() -> None:
    from ppir_torch.optimizers import Adam, GaussNewton, Stopping
    from ppir_torch.sampling import Full, GradientMagnitude

    plan = build_plan(load_config(mapping()), GRID)
    assert plan.stopping == Stopping()
    assert plan.optimizer == GaussNewton()
    assert plan.sampler == Full()
    plan = build_plan(load_config(mapping(optimizer={"kind": "adam"}, sampler={"kind": "gms"})), GRID)
    assert plan.optimizer == Adam()
    assert plan.sampler == GradientMagnitude(0.1)


@pytest.mark.parametrize("loss", [None, "ssd", "ncc", "local_ncc", "mind", "cr", "mi"])
@pytest.mark.parametrize("given_optimizer", ["absent", None, {}, {"damping": 0.5}, {"stopping": {"max_iterations": 7}}])
def test_the_optimiser_follows_the_loss_where_none_is_named(given_optimizer: Any, loss: str | None) -> None:
    """Mutual information has L-BFGS, which stops later; settings without a kind are those of that optimiser."""
    from ppir_torch.optimizers import LBFGS, GaussNewton

    named = {} if loss is None else {"loss": {"kind": loss}}
    chosen = {} if given_optimizer == "absent" else {"optimizer": given_optimizer}
    config = load_config(mapping(**named, **chosen))
    assert config.optimizer.kind == ("lbfgs" if loss == "mi" else "gauss_newton")
    plan = build_plan(config, GRID)
    assert type(plan.optimizer) is (LBFGS if loss == "mi" else GaussNewton)
    settings = given_optimizer if isinstance(given_optimizer, dict) else {}
    assert plan.optimizer.damping == settings.get("damping", type(plan.optimizer)().damping)
    assert plan.stopping.max_iterations == settings.get("stopping", {}).get("max_iterations", 30)
    if "stopping" not in settings:
        assert plan.stopping.decrease == (1e-7 if loss == "mi" else 1e-5)
    moving = moving_party(config)
    assert MovingPartyConfig.model_validate_json(moving.model_dump_json()) == moving
    assert moving.optimizer == config.optimizer


def test_a_named_optimiser_stays() -> None:
    for loss in ("ssd", "mi"):
        for kind in ("gauss_newton", "lbfgs", "adam"):
            assert load_config(mapping(loss={"kind": loss}, optimizer={"kind": kind})).optimizer.kind == kind
    with pytest.raises(ConfigError, match=r"^optimizer\.kind: 'None', one of gauss_newton, lbfgs, "):
        load_config(mapping(loss={"kind": "mi"}, optimizer={"kind": None}))
    [line] = refused(mapping(loss={"kind": "mi"}, optimizer={"kind": "inverse_compositional"}))
    assert line.startswith("optimizer.kind: 'inverse_compositional', with loss 'mi' gauss_newton, lbfgs or adam ")
    [line] = refused(mapping(loss={"kind": "mi"}, optimizer={"learning_rate_voxels": 1}))
    assert line.startswith("optimizer.learning_rate_voxels: ")


def test_mutual_information_reaches_the_plan() -> None:
    from ppir_torch.losses import MutualInformation
    from ppir_torch.optimizers import LBFGS

    assert build_plan(load_config(mapping(loss={"kind": "mi"})), GRID).loss == MutualInformation()
    settings = {"loss": {"kind": "mi", "moving_bins": 32, "fixed_bins": 4}, "optimizer": {"memory": 3}}
    plan = build_plan(load_config(mapping(**settings)), GRID)
    assert plan.loss == MutualInformation(32, 4)
    assert plan.optimizer == LBFGS(memory=3)


@pytest.mark.parametrize("name", ["moving_bins", "fixed_bins"])
@pytest.mark.parametrize("value", [3, 65, 8.5, "8", None, True, -1])
def test_bins_out_of_range_are_one_line(name: str, value: object) -> None:
    [line] = refused(mapping(loss={"kind": "mi", name: value}))
    assert line.startswith(f"loss.{name}: ")
    assert line.endswith("an integer >= 4 and <= 64 is needed")
    for allowed in (4, 64):
        load_config(mapping(loss={"kind": "mi", name: allowed}))


@pytest.mark.parametrize("kind", ["bspline", "velocity"])
def test_mutual_information_is_for_linear_transforms(kind: str) -> None:
    [line] = refused(mapping(loss={"kind": "mi"}, transform={"kind": kind}))
    assert line == f"loss.kind: 'mi', with transform '{kind}' ssd, ncc, ncc_squared, local_ncc, mind or cr is needed"


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, "ncc_squared"),
        ({"loss": None}, "ncc_squared"),
        ({"optimizer": {"kind": "inverse_compositional"}}, "ssd"),
        ({"backend": {"kind": "ckks-v1", "allow_insecure": True}}, "ssd"),
        ({"sampler": {"kind": "gms"}}, "ncc_squared"),
        ({"sampler": {"kind": "gms"}, "transform": {"kind": "bspline"}}, "ssd"),
        ({"loss": {"kind": "ssd"}}, "ssd"),
    ],
    ids=str,
)
def test_the_default_loss_is_one_that_goes_with_the_rest(settings: dict[str, Any], loss: str) -> None:
    config = load_config(mapping(**settings))
    assert config.loss.kind == loss
    if config.backend.kind == "bfv":  # both parties have the same
        assert moving_party(config).loss == fixed_party(config).loss == config.loss


def test_plan_resolves_smoothing_and_seed() -> None:
    from ppir_torch.sampling import Uniform

    levels = [{"shrink": 4}, {"shrink": 2, "smoothing_mm": 0.5}, {"shrink": 1}, {"shrink": 1, "smoothing_mm": 2}]
    settings = mapping(pyramid={"levels": levels}, sampler={"kind": "urs", "fraction": 0.5}, seed=7)
    plan = build_plan(load_config(settings), GRID)
    found = [(level.shrink, level.smoothing_mm) for level in plan.levels or ()]
    assert found == [(4, 2.0), (2, 0.5), (1, 0.0), (1, 2.0)]
    assert plan.sampler == Uniform(0.5, 7)
    settings["sampler"] = {"kind": "urs", "fraction": 0.5, "seed": 0}
    assert build_plan(load_config(settings), GRID).sampler == Uniform(0.5, 0)


def test_plan_takes_the_loaded_start() -> None:
    from ppir_torch import Affine, Grid

    start = Affine(Grid((8, 8, 8)))
    config = load_config(mapping(start={"kind": "file", "path": "a.tfm"}))
    assert build_plan(config, GRID, start).start is start
    with pytest.raises(ConfigError, match=r"start\.kind"):
        build_plan(config, GRID)
    with pytest.raises(ConfigError, match=r"start\.kind"):
        build_plan(load_config(mapping()), GRID, start)


# dotted path, value that is refused, what the line must say is allowed
BAD = [
    ("threads", 0, ">= 1"),
    ("threads", True, "an integer"),
    ("threads", "2", "an integer"),
    ("threads", None, "an integer"),
    ("seed", -1, ">= 0"),
    ("seed", 2**32, "<= 4294967295"),
    ("dtype", "float16", "'float32' or 'float64'"),
    ("transform.kind", "spline", "affine, bspline, velocity"),
    ("loss.kind", "cc", "ssd, ncc, ncc_squared, local_ncc, mind, cr, mi"),
    ("transform", "affine", "a mapping"),
    ("optimizer.kind", "newton", "gauss_newton, lbfgs, inverse_compositional, adam"),
    ("optimizer.damping", 0, "> 0"),
    ("optimizer.damping", float("nan"), "a number"),
    ("optimizer.damping", float("inf"), "a number"),
    ("optimizer.stopping.max_iterations", 10_001, "<= 10000"),
    ("optimizer.stopping.max_iterations", 2.5, "an integer"),
    ("optimizer.stopping.decrease", -1, ">= 0"),
    ("backend.kind", "paillier", "clear, auto, spdz, beaver, bfv, ckks, ckks-v1"),
    ("backend.device", "mps", "'auto', 'cpu' or 'cuda'"),
    ("backend.provider", "trusted_first_party", "rank 0"),
    ("backend.provider", "TFP", "read the other image"),
    ("sampler.fraction", 0, "> 0 and <= 1"),
    ("sampler.fraction", 1.01, "> 0 and <= 1"),
    ("sampler.floor", 0, "> 0"),
    ("pyramid.levels", [], "1 to 10 levels"),
    ("pyramid.levels", [{"shrink": 1}] * 11, "1 to 10 levels"),
    ("pyramid.levels", [{"shrink": 1}, {"shrink": 2}], "must not increase"),
    ("pyramid.levels", 4, "a list"),
    ("pyramid.levels", "automatic", "a list"),
    ("pyramid.levels", [{"shrink": [2, 2, 1]}, {"shrink": 3}], "must not increase"),
    ("pyramid.least_voxels", 4, ">= 8"),
    ("pyramid.most_points", 100, ">= 4096"),
    ("transport.timeout_s", 0.5, ">= 1"),
    ("transport.timeout_s", 1e9, "<= 86400"),
    ("data.moving", None, "the path of a file"),
    ("data.moving", "", "the path of a file"),
    ("data.fixed", "a\0b", "the path of a file"),
    ("data.disclose_mask", "yes", "true or false"),
    ("start.kind", "center", "'centres'"),
    ("start.path", "a.tfm", "start.kind 'file'"),
]


@pytest.mark.parametrize(("path", "value", "allowed"), BAD)
def test_bad_value_is_one_line(path: str, value: object, allowed: str) -> None:
    settings = with_setting(path, value) if "." not in path or path.split(".")[0] not in ("transform", "loss") else None
    lines = refused(settings or mapping(**{path.split(".")[0]: {"kind": value}}))
    assert len(lines) == 1
    assert lines[0].startswith(path + ":")
    assert allowed in lines[0]


def test_what_cannot_be_shown_is_still_one_line() -> None:
    assert refused(mapping(seed=10**5000)) == ["seed: <int>, an integer >= 0 and <= 4294967295 is needed"]
    assert len(refused(mapping(seed="x" * 1000))[0]) < 150


def test_level_is_named_by_its_number() -> None:
    assert refused(mapping(pyramid={"levels": [{"shrink": 65}]}))[0].startswith("pyramid.levels[0].shrink: 65, ")


@pytest.mark.parametrize("shrink", [0, 65, 2.0, True, "4", [2], [2, 2, 1, 1], [2, 0, 1], [2, 2.5], None, [], {}])
def test_a_shrink_is_a_factor_or_one_an_axis(shrink: object) -> None:
    [line] = refused(mapping(pyramid={"levels": [{"shrink": shrink}]}))
    assert line.startswith(f"pyramid.levels[0].shrink: {shrink!r}, an integer >= 1 and <= 64, or a list of one an axis")


def test_what_is_automatic_does_not_go_with_levels_that_are_given() -> None:
    levels = [{"shrink": 2}]
    [line] = refused(mapping(pyramid={"levels": levels, "least_voxels": 32}))
    assert line.startswith("pyramid: ")
    assert "least_voxels: 32, goes with levels 'auto' only" in line
    load_config(mapping(pyramid={"levels": levels, "least_voxels": 16, "most_points": None}))


@pytest.mark.parametrize("levels", ["auto", [{"shrink": [4, 4, 1]}, {"shrink": 2}]])
def test_levels_survive_their_message_and_a_saved_configuration(levels: Any) -> None:
    config = load_config(mapping(pyramid={"levels": levels}))
    moving = moving_party(config)
    assert MovingPartyConfig.model_validate_json(moving.model_dump_json()) == moving
    assert load_config(config.model_dump(mode="json")) == load_config(config.model_dump()) == config
    assert config.model_dump(mode="json")["pyramid"]["levels"] in (
        "auto",
        [{"shrink": [4, 4, 1], "smoothing_mm": None}, {"shrink": 2, "smoothing_mm": None}],
    )


def test_levels_follow_from_the_size_where_none_are_given() -> None:
    config = load_config(mapping(pyramid={"least_voxels": 8, "most_points": 40_000}))
    plan = build_plan(config, GRID)
    assert [level.shrink for level in plan.levels or ()] == [8, 4]
    assert build_plan(load_config(mapping()), GRID) == build_plan(load_config(mapping()), GRID).on(GRID)


def test_missing_is_named() -> None:
    assert refused(mapping(data={"moving": "a"})) == ["data.fixed: missing, the path of a file is needed"]
    assert refused({"data": data()}) == ["backend: missing, a mapping of settings is needed"]
    assert "backend.kind: missing" in refused(mapping(backend={}))[0]
    assert len(refused({})) == 2


def test_unknown_key_suggests_the_nearest() -> None:
    assert refused(mapping(backnd={})) == ["backnd: unknown key, did you mean backend?"]
    assert refused(mapping(optimizer={"kind": "adam", "learning_rate": 1}))[0].endswith(
        "did you mean learning_rate_voxels?"
    )
    assert refused(mapping(data=data(_target_="os.system")))[0].startswith("data._target_: unknown key, known here")


@pytest.mark.parametrize(
    ("group", "settings"),
    [
        ("backend", {"kind": "bfv", "device": "cpu"}),
        ("sampler", {"kind": "none", "fraction": 0.1}),
        ("sampler", {"kind": "urs", "floor": 0.1}),
        ("optimizer", {"kind": "adam", "damping": 1}),
    ],
)
def test_setting_of_another_kind(group: str, settings: dict[str, object]) -> None:
    [line] = refused(mapping(**{group: settings}))
    assert line.startswith(f"{group}.{list(settings)[1]}: not a setting of {settings['kind']}; ")


def test_private_runs_disclose_only_what_is_allowed() -> None:
    for backend in ("spdz", "bfv"):
        settings = mapping(
            backend={"kind": backend}, start={"kind": "centre_of_mass"}, data=data(fixed_mask="mask.nii.gz")
        )
        mask, centre = refused(settings)
        assert mask.startswith("data.fixed_mask: 'mask.nii.gz', ")
        assert "data.disclose_mask=true" in mask
        assert centre.startswith("start.kind: 'centre_of_mass', ")
        assert "data.disclose_centre_of_mass=true" in centre
    settings["backend"] = {"kind": "clear"}
    load_config(settings)


@pytest.mark.parametrize("kind", linear_names())
def test_a_start_file_goes_with_every_linear_transform(kind: str) -> None:
    start = {"kind": "file", "path": "a.tfm"}
    assert load_config(mapping(start=start, transform={"kind": kind})).start.path == Path("a.tfm")
    assert refused(mapping(start={"kind": "file"}))[0].startswith("start.path: missing")


def test_each_party_is_given_its_own_part() -> None:
    names = ["moving_secret", "fixed_secret", "mask_secret", "truth_secret", "reference_secret"]
    paths = dict(zip(("moving", "fixed", "fixed_mask", "truth", "reference"), names, strict=True))
    config = load_config(mapping(data=paths | {"disclose_mask": True}, dtype="float64", threads=3, seed=5))
    moving, fixed = moving_party(config), fixed_party(config)
    assert [name in moving.model_dump_json() for name in names] == [True, False, False, False, False]
    assert [name in fixed.model_dump_json() for name in names] == [False, True, True, False, False]
    assert MovingPartyConfig.model_validate_json(moving.model_dump_json()) == moving
    assert FixedPartyConfig.model_validate_json(fixed.model_dump_json()) == fixed
    assert (moving.seed, moving.threads, fixed.threads, fixed.dtype) == (5, 3, 3, "float64")
    assert build_plan(moving, GRID) == build_plan(config, GRID)


def test_the_fixed_party_checks_consent_itself() -> None:
    config = fixed_party(load_config(mapping(data=data(fixed_mask="mask", disclose_mask=True))))
    told = json.loads(config.model_dump_json()) | {"disclose_mask": False}
    with pytest.raises(ValueError, match="disclose_mask=true"):
        FixedPartyConfig.model_validate_json(json.dumps(told))


def test_clear_runs_have_no_parties() -> None:
    config = load_config(mapping(backend={"kind": "clear"}))
    for party in (moving_party, fixed_party):
        with pytest.raises(ConfigError, match=r"backend\.kind"):
            party(config)


def test_config_is_frozen_and_round_trips() -> None:
    config = load_config(mapping(sampler={"kind": "gms"}, output="out"))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert load_config(config.model_dump(mode="json")) == config


# --- deformable transforms


def deformable(kind: str = "bspline", **settings: object) -> dict[str, object]:
    return mapping(transform={"kind": kind} | settings)


@pytest.mark.parametrize("kind", ["bspline", "velocity"])
def test_defaults_of_a_deformable_stage(kind: str) -> None:
    """Five voxels between control points; every level of the linear stage again, the finest one smoothed by a voxel."""
    from ppir_torch.registration import Deformable

    plan = build_plan(load_config(deformable(kind)), GRID)
    expected = Deformable()
    assert plan.deformable is not None
    assert plan.transform == "affine"
    assert plan.deformable.kind == kind
    assert plan.deformable.spacing_mm == 5 * min(SPACING)
    assert plan.deformable.regulariser == expected.regulariser
    assert plan.deformable.weight == pytest.approx(0.02 * (5 * min(SPACING)) ** 2)
    assert plan.deformable.jacobian_min == expected.jacobian_min
    assert plan.deformable.stopping == expected.stopping
    linear, free = plan.levels or (), plan.deformable.levels or ()
    assert [(level.shrink, level.smoothing_mm) for level in linear] == [(4, 2.0), (2, 1.0), (1, 0.0)]
    assert [(level.shrink, level.smoothing_mm) for level in free] == [(4, 2.0), (2, 1.0), (1, 1.0)]


@pytest.mark.parametrize(
    ("loss", "settings", "weight"),
    [
        ("ssd", {}, 0.02 * 64),
        ("local_ncc", {}, 0.25 * 64),
        ("local_ncc", {"stiffness": 0.5}, 0.5 * 64),
        ("ncc", {"stiffness": 0.5, "regulariser": "elastic"}, 0.5),
        ("ncc", {"stiffness": 0.5, "weight": 3.0}, 3.0),
    ],
)
def test_the_weight_follows_from_the_loss_and_the_control_spacing(
    loss: str, settings: dict[str, Any], weight: float
) -> None:
    """In mm^2 of bending: images of another unit of length are deformed alike."""
    plan = build_plan(load_config(deformable(spacing_mm=8.0, **settings) | {"loss": {"kind": loss}}), GRID)
    assert plan.deformable is not None
    assert plan.deformable.weight == pytest.approx(weight)


def test_settings_of_a_deformable_stage_reach_the_plan() -> None:
    from ppir_torch.optimizers import Stopping

    stop: dict[str, Any] = {"max_iterations": 7, "step_voxels": 0.5, "decrease": 0.25, "longest_voxels": 0.75}
    settings = deformable("velocity", linear="rigid", spacing_mm=7.5, regulariser="elastic", weight=0.0, **stop)
    settings["pyramid"] = {"levels": [{"shrink": 2, "smoothing_mm": 0.5}, {"shrink": 1, "smoothing_mm": 0.0}]}
    plan = build_plan(load_config(settings), GRID)
    assert plan.deformable is not None
    assert (plan.transform, plan.deformable.kind, plan.deformable.spacing_mm) == ("rigid", "velocity", 7.5)
    assert (plan.deformable.regulariser, plan.deformable.weight) == ("elastic", 0.0)
    assert plan.deformable.stopping == Stopping(**stop)
    # What a level says of its smoothing holds at shrink 1, too.
    assert plan.deformable.levels == plan.levels
    assert plan.stopping == Stopping()


def test_without_a_linear_stage_the_start_is_all_there_is_of_it() -> None:
    from ppir_torch import Affine, Grid

    plan = build_plan(load_config(deformable(linear="none")), GRID)
    assert (plan.transform, plan.levels) == ("affine", ())
    assert plan.deformable is not None
    assert len(plan.deformable.levels or ()) == 3
    start = Affine(Grid((8, 8, 8)))
    for linear in ("none", "affine"):
        config = load_config(deformable(linear=linear) | {"start": {"kind": "file", "path": "a.tfm"}})
        assert build_plan(config, GRID, start).start is start


def test_a_linear_transform_has_no_deformable_stage() -> None:
    assert build_plan(load_config(mapping()), GRID).deformable is None
    [line] = refused(mapping(transform={"kind": "affine", "spacing_mm": 5.0}))
    assert line.startswith("transform.spacing_mm: not a setting of ")


def test_a_setting_of_another_kind_names_the_kind_that_was_given() -> None:
    [line] = refused(mapping(transform={"kind": "affine", "spacing_mm": 5.0}))
    assert "not a setting of affine" in line


@pytest.mark.parametrize("kind", ["bspline", "velocity"])
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("linear", "spline", "'none'"),
        ("linear", None, "'affine'"),
        ("spacing_mm", 0, "> 0"),
        ("spacing_mm", -1.0, "> 0"),
        ("spacing_mm", 10_001, "<= 10000"),
        ("spacing_mm", float("inf"), "a number"),
        ("spacing_mm", "fine", "a number"),
        ("regulariser", "curvature", "'bending', 'diffusion' or 'elastic'"),
        ("weight", -0.1, ">= 0"),
        ("weight", float("nan"), "a number"),
        ("max_iterations", 0, ">= 1"),
        ("max_iterations", 10_001, "<= 10000"),
        ("step_voxels", -1, ">= 0"),
        ("decrease", 1.5, "<= 1"),
    ],
)
def test_bad_value_of_a_deformable_stage_is_one_line(kind: str, name: str, value: object, allowed: str) -> None:
    [line] = refused(deformable(kind, **{name: value}))
    assert line.startswith(f"transform.{name}: ")
    assert allowed in line
    assert line.isprintable()


def test_unknown_setting_of_a_deformable_stage_suggests_the_nearest() -> None:
    [line] = refused(deformable(spacing=5.0))
    assert line.startswith("transform.spacing: ")
    assert "spacing_mm" in line


@pytest.mark.parametrize("kind", ["bspline", "velocity"])
@pytest.mark.parametrize("backend", ["clear", "beaver", "spdz", "bfv", "auto", "ckks", "ckks-v1"])
def test_backends_of_a_deformable_stage(backend: str, kind: str) -> None:
    """Those that can open the sums of a public map; the others are refused in one line."""
    chosen = {"kind": backend} | ({"allow_insecure": True} if backend == "ckks-v1" else {})
    settings = deformable(kind) | {"backend": chosen}
    if backend == "ckks-v1":
        assert refused(settings) == [
            f"backend.kind: '{backend}', with transform '{kind}' one of clear, beaver, spdz, bfv, ckks is needed"
        ]
    else:
        assert load_config(settings).transform.kind == kind


@pytest.mark.parametrize("kind", ["bspline", "velocity"])
@pytest.mark.parametrize("sampler", ["none", "urs", "chunks", "gms"])
def test_samplers_of_a_deformable_stage(sampler: str, kind: str) -> None:
    settings = deformable(kind) | {"sampler": {"kind": sampler}}
    if sampler == "chunks":
        expected = (
            f"sampler.kind: 'chunks', with transform '{kind}' one of none, urs, gms is needed: its products keep the "
            "image's order"
        )
        assert refused(settings) == [expected]
        # Both mistakes are named at once.
        insecure = {"kind": "ckks-v1", "allow_insecure": True}
        assert refused(settings | {"backend": insecure})[1:] == [expected]
    else:
        load_config(settings)


@pytest.mark.parametrize("kind", ["bspline", "velocity"])
def test_gms_goes_with_every_deformable_loss_but_ncc(kind: str) -> None:
    """Its gradient asks for the fixed image's weighted mean; an affine stage alone needs none."""
    gms = {"sampler": {"kind": "gms"}}
    for loss in ("ssd", "local_ncc", "mind"):
        assert load_config(deformable(kind) | gms | {"loss": {"kind": loss}}).sampler.kind == "gms"
    [line] = refused(deformable(kind) | gms | {"loss": {"kind": "ncc"}})
    assert line.startswith(f"sampler.kind: 'gms', with transform '{kind}' and loss 'ncc' one of none, urs is needed")
    load_config(mapping(loss={"kind": "ncc"}, sampler={"kind": "gms"}))


@pytest.mark.parametrize("linear", ["rigid", "affine", "none"])
def test_a_start_file_goes_with_any_stage_before_a_deformable_one(linear: str) -> None:
    start = {"start": {"kind": "file", "path": "a.tfm"}}
    assert load_config(deformable(linear=linear) | start).start.kind == "file"


def test_the_deformable_stage_is_party_1s_and_survives_its_message() -> None:
    config = load_config(deformable("velocity", spacing_mm=7.5) | {"backend": {"kind": "beaver"}})
    moving, fixed = moving_party(config), fixed_party(config)
    assert MovingPartyConfig.model_validate_json(moving.model_dump_json()) == moving
    assert build_plan(moving, GRID) == build_plan(config, GRID)
    assert "velocity" not in fixed.model_dump_json()
    assert load_config(config.model_dump(mode="json")) == config


GROUPS = (
    "",
    "optimizer",
    "optimizer.stopping",
    "backend",
    "sampler",
    "pyramid",
    "pyramid.levels.0",
    "data",
    "transport",
)


@settings(max_examples=50, deadline=None)
@given(group=st.sampled_from(GROUPS), key=st.text(max_size=80), value=st.none() | st.integers() | st.text())
def test_any_unknown_key_is_one_line(group: str, key: str, value: object) -> None:
    known = load_config(with_setting("seed", 1)).model_dump()
    place: Any = known
    for part in filter(None, group.split(".")):
        place = place[int(part)] if part.isdigit() else place[part]
    if key in place:
        return
    changed = with_setting("seed", 1)
    inside: Any = changed
    for part in filter(None, group.split(".")):
        inside = inside[int(part)] if part.isdigit() else inside[part]
    inside[key] = value
    [line] = refused(changed)
    assert line.startswith(group.replace(".0", "[0]"))
    assert "unknown key" in line or "not a setting" in line
    assert line.isprintable()


NUMBERS = {
    "optimizer.damping": (0, 1e6),
    "optimizer.stopping.step_voxels": (0, 1e3),
    "sampler.fraction": (0, 1),
    "sampler.floor": (0, 1),
    "transport.timeout_s": (1, 86_400),
    "pyramid.levels.0.shrink": (1, 64),
    "threads": (1, 1024),
}


@settings(max_examples=50, deadline=None)
@given(path=st.sampled_from(sorted(NUMBERS)), value=st.floats() | st.integers() | st.text(max_size=30) | st.binary())
def test_any_number_out_of_range_is_one_line(path: str, value: Any) -> None:
    low, high = NUMBERS[path]
    if isinstance(value, int | float) and low <= value <= high:
        return
    [line] = refused(with_setting(path, value))
    assert line.startswith(path.replace(".0", "[0]") + ": ")
    assert line.endswith(" is needed")
    assert line.isprintable()


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_other_thing_is_a_config_error(thing: Any) -> None:
    for whole in (thing, mapping(data=thing), mapping(sampler=thing), mapping(backend=thing)):
        assert all(line.isprintable() for line in refused(whole))


def test_import_is_light() -> None:
    code = "import sys, ppir_torch.config.images; print('torch' in sys.modules, 'hydra' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
