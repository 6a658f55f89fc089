"""Private runs end where the clear run ends, write what the documentation says, and count what they sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import SimpleITK
import torch
from parties.harness import Files, Started, started_parties, write_pair
from torch import Tensor

from ppir_torch.config.images import fixed_party, moving_party
from ppir_torch.errors import ConfigError
from ppir_torch.images import Image, load_image, save_image
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.runs.images import run
from ppir_torch.runs.processes import run_parties
from ppir_torch.transforms import Translation, load_transform

BACKENDS = ("bfv", "ckks", "spdz", "beaver")
# `make test` has the whole runs of beaver and bfv, `make test-all` the others' as well.
WHOLE_RUNS = [pytest.param(name, marks=pytest.mark.slow if name in ("spdz", "ckks") else []) for name in BACKENDS]
WITH_DEALER = ("spdz", "beaver")
SAMPLERS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "urs": {"kind": "urs", "fraction": 0.4, "seed": 5},
    "chunks": {"kind": "chunks", "fraction": 0.4, "seed": 5},
    "gms": {"kind": "gms", "fraction": 0.4, "seed": 5},
    "gms disclosed": {"kind": "gms", "fraction": 0.4, "seed": 5, "disclose_points": True},
}
# The default optimiser at every size and sampler that differ; the inverse-compositional one where it applies.
RUNS = [
    *((kind, d, sampler, "gauss_newton") for kind, d in (("rigid", 2), ("affine", 3)) for sampler in ("none", "gms")),
    *(("affine", 2, sampler, "gauss_newton") for sampler in SAMPLERS),
    ("affine", 3, "urs", "gauss_newton"),
    ("affine", 3, "none", "inverse_compositional"),
    ("rigid", 2, "urs", "inverse_compositional"),
]
KEYS = {
    "schema",
    "transform",
    "loss",
    "backend",
    "sampler",
    "iterations",
    "ssd",
    "rmse_to_truth_mm",
    "rmse_to_clear_mm",
    "seconds",
    "party_1",
    "party_2",
    "disclosed",
    "complete",
    "error",
}
PARTY_KEYS = {"seconds", "bytes_sent", "set_up_bytes", "peak_memory_mb"}
# Sent once a session or level, not once a product.
SET_UP = {"HELLO", "GEOMETRY", "LEVEL", "OPERAND", "FINISH", "SAMPLE", "SEED", "ZERO_SEED", "PUBLIC_KEY"}
SET_UP |= {"OPERAND_CIPHERTEXTS", "OPENED_OPERAND"}


def rmse_over_grid(first: Path, second: Path, fixed: Image) -> float:
    """mm, over every point of the fixed grid."""
    a, b = (load_transform(folder / "transform.tfm", fixed.grid) for folder in (first, second))
    return displacement_rmse(a, b, fixed.grid.points(dtype=torch.float64))


@pytest.mark.parametrize(("kind", "dimension", "sampler", "optimizer"), RUNS)
@pytest.mark.parametrize("backend", WHOLE_RUNS)
def test_a_private_run_equals_the_clear_run(
    backend: str,
    kind: str,
    dimension: int,
    sampler: str,
    optimizer: str,
    site_files: Callable[..., Files],
    clear_run: Callable[..., Any],
    started: Started,
    tmp_path: Path,
) -> None:
    files = site_files(kind, dimension)
    settings = {"sampler": SAMPLERS[sampler], "optimizer": {"kind": optimizer}}
    clear, clear_folder = clear_run(kind, dimension, **settings)
    result = run(files.configuration(backend, kind, **settings), tmp_path)
    dealer = {"dealer"} if backend in WITH_DEALER else set()
    assert {party.role for party in started} == {"party_1", "party_2"} | dealer
    fixed, moving = load_image(files.fixed), load_image(files.moving)
    assert rmse_over_grid(tmp_path, clear_folder, fixed) <= 0.01
    # It started far off (both start with the centres on each other): to end together is no accident.
    start, found = Translation(fixed.grid), load_transform(tmp_path / "transform.tfm", fixed.grid)
    start.translation.data.copy_(moving.grid.centre - fixed.grid.centre)
    assert displacement_rmse(start, found, fixed.grid.points(dtype=torch.float64)) > 1.0
    # One J^T J for the level and a sum over a sample do not make a mean square: compare how far the loss fell.
    fell, clear_fell = (run["history"][0]["value"] - run["history"][-1]["value"] for run in (result, clear))
    assert fell == pytest.approx(clear_fell, rel=0.05)
    # A point whose probability is on the edge may be in one sample and not in the other.
    for h in (0, -1):
        assert result["history"][h]["points"] == pytest.approx(clear["history"][h]["points"], rel=0.01)
    if sampler == "none":
        assert result["ssd"] == pytest.approx(clear["ssd"], abs=0.01)


def test_the_seed_of_the_sampler_matters(clear_run: Callable[..., Any], site_files: Callable[..., Files]) -> None:
    """Control of the test above: another seed is another sample, and the runs do not end together."""
    fixed = load_image(site_files("affine", 2).fixed)
    folders = [clear_run("affine", 2, sampler={"kind": "urs", "fraction": 0.1, "seed": seed})[1] for seed in (5, 6)]
    assert rmse_over_grid(*folders, fixed) > 0.01


@pytest.fixture(scope="module", params=BACKENDS)
def finished(
    request: pytest.FixtureRequest,
    site_files: Callable[..., Files],
    clear_run: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Files, dict[str, Any], Path, Started]:
    """One 2-D affine run of each protocol with a known truth and the clear run to compare with."""
    files, folder = site_files("affine", 2), tmp_path_factory.mktemp(request.param)
    reference = clear_run("affine", 2)[1] / "transform.tfm"
    data = {"truth": str(files.truth), "reference": str(reference)}
    with started_parties() as started:
        result = run(files.configuration(request.param, data=data), folder)
    return files, result, folder, started


def test_result_has_the_documented_keys(finished: tuple[Files, dict[str, Any], Path, Started]) -> None:
    _, result, folder, _ = finished
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result) >= KEYS
    assert (result["schema"], result["loss"], result["complete"], result["error"]) == (1, "ssd", True, "")
    assert set(result["transform"]) == {"kind", "file", "matrix", "offset_mm"}
    assert result["iterations"] == len(result["history"]) > 5
    assert result["seconds"] > result["loop_seconds"] > 0
    for party in ("party_1", "party_2"):
        account = result[party]
        assert set(account) >= PARTY_KEYS
        assert 0 < account["seconds"] < result["seconds"]
        assert 50 < account["peak_memory_mb"] < 4000
        assert 0 < account["set_up_bytes"] < account["bytes_sent"]


def test_rmse_is_that_inside_the_fixed_foreground(finished: tuple[Files, dict[str, Any], Path, Started]) -> None:
    files, result, folder, _ = finished
    fixed = load_image(files.fixed)
    found, truth = (load_transform(path, fixed.grid) for path in (folder / "transform.tfm", files.truth))
    expected = displacement_rmse(found, truth, foreground_points(fixed))
    assert result["rmse_to_truth_mm"] == pytest.approx(expected, rel=1e-9)
    assert result["rmse_to_truth_mm"] < 0.1
    assert result["rmse_to_clear_mm"] < 0.01


def test_transform_and_warped_agree_for_simpleitk(finished: tuple[Files, dict[str, Any], Path, Started]) -> None:
    files, result, folder, _ = finished
    warped = SimpleITK.ReadImage(str(folder / "warped.nii.gz"))
    transform = SimpleITK.ReadTransform(str(folder / "transform.tfm"))
    fixed, moving = (SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32) for path in (files.fixed, files.moving))
    for mine, theirs in ((warped.GetSpacing(), fixed.GetSpacing()), (warped.GetDirection(), fixed.GetDirection())):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert warped.GetOrigin() == pytest.approx(fixed.GetOrigin(), abs=1e-3)
    values = torch.from_numpy(SimpleITK.GetArrayFromImage(warped))
    resampled = resample(moving, fixed, transform)
    # Inside the centres of the border voxels: within half a voxel outside them ITK repeats the border.
    grid = load_image(files.fixed).grid
    to_moving = load_transform(folder / "transform.tfm", grid)
    matrix, offset = load_image(files.moving).grid.physical_to_normalised()
    mapped = to_moving(grid.points(dtype=torch.float64)).detach() @ matrix.T + offset
    inside = (mapped.abs() <= 1).all(1).reshape(grid.shape)
    assert inside.float().mean() > 0.6
    assert (values - resampled)[inside].abs().max() < 1e-4 * values.max()
    # A transform that is off by a voxel would be seen.
    moved = SimpleITK.TranslationTransform(2, [1.5, 0.0])
    off = resample(moving, fixed, SimpleITK.CompositeTransform([transform, moved]))
    assert (values - off)[inside].abs().max() > 0.05 * values.max()
    matrix = torch.tensor(result["transform"]["matrix"], dtype=torch.float64)
    point = torch.tensor([7.0, -3.0], dtype=torch.float64)
    mapped = matrix @ point + torch.tensor(result["transform"]["offset_mm"], dtype=torch.float64)
    assert transform.TransformPoint(point.tolist()) == pytest.approx(mapped.tolist(), abs=1e-9)


def resample(moving: Any, fixed: Any, transform: Any) -> Tensor:
    """The moving image on the fixed grid, by SimpleITK alone."""
    values = SimpleITK.Resample(moving, fixed, transform, SimpleITK.sitkLinear, 0.0)
    return torch.from_numpy(SimpleITK.GetArrayFromImage(values))


def test_bytes_are_counted_where_they_are_sent(finished: tuple[Files, dict[str, Any], Path, Started]) -> None:
    _, result, folder, _ = finished
    paths = [path for path in folder.glob("*.json") if path.stem != "result"]
    reports = {path.stem: json.loads(path.read_text())["account"] for path in paths}
    for role, account in reports.items():
        assert sum(account["messages"].values()) == account["bytes_sent"], role
        set_up = {kind: n for kind, n in account["messages"].items() if kind in SET_UP}
        assert sum(set_up.values()) == account["set_up_bytes"], role
        assert result.get(role) == account
    if result["backend"] in ("bfv", "ckks"):
        assert set(reports) == {"party_1", "party_2"}
        assert reports["party_1"]["bytes_sent"] == reports["party_2"]["bytes_received"]
        assert reports["party_2"]["bytes_sent"] == reports["party_1"]["bytes_received"]
        # Keys and the encrypted image are far more than the answers: they must not be forgotten.
        assert reports["party_2"]["set_up_bytes"] > 0.99 * reports["party_2"]["bytes_sent"]
    sent, received = (sum(a[way] for a in reports.values()) for way in ("bytes_sent", "bytes_received"))
    if result["backend"] == "beaver":
        # The dealer's part of the next product, which the run's end left unread.
        assert 0 < sent - received < 200
    else:
        assert sent == received


def test_no_party_is_told_of_the_others_file(finished: tuple[Files, dict[str, Any], Path, Started]) -> None:
    files, _, folder, started = finished
    hidden = {
        "party_1": (files.fixed, files.truth),
        "party_2": (files.moving, files.truth),
        "dealer": (files.moving, files.fixed, files.truth),
    }
    assert str(files.moving) in started.configs["party_1"]
    assert str(files.fixed) in started.configs["party_2"]
    for role, config in started.configs.items():
        for path in hidden[role]:
            assert str(path) not in config
            assert path.name not in (folder / f"{role}.json").read_text()


def test_party_configurations_name_one_image(site_files: Callable[..., Files]) -> None:
    files = site_files("affine", 2)
    data = {"truth": str(files.truth), "reference": str(files.truth), "fixed_mask": "mask.mha", "disclose_mask": True}
    config = files.configuration("bfv", data=data)
    one, two = moving_party(config).model_dump_json(), fixed_party(config).model_dump_json()
    assert str(files.moving) in one
    assert str(files.fixed) in two
    for text, others in ((one, (files.fixed, "mask.mha", files.truth)), (two, (files.moving, files.truth))):
        for path in others:
            assert str(path) not in text


def mask_of(fixed: Image) -> Image:
    """The brighter half of the image, cut straight at one side."""
    keep = (fixed.tensor > fixed.tensor.median()).float()
    keep[..., : fixed.grid.size[0] // 4] = 0
    return Image(keep, fixed.grid)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_disclosed_mask(
    backend: str,
    site_files: Callable[..., Files],
    clear_run: Callable[..., Any],
    started: Started,
    tmp_path: Path,
) -> None:
    files = site_files("affine", 2)
    fixed, mask = load_image(files.fixed), files.fixed.with_name("mask.mha")
    save_image(mask_of(fixed), mask)
    data = {"fixed_mask": str(mask), "disclose_mask": True}
    clear, clear_folder = clear_run("affine", 2, data=data)
    result = run(files.configuration(backend, data=data), tmp_path)
    assert rmse_over_grid(tmp_path, clear_folder, fixed) <= 0.01
    assert result["history"][-1]["points"] == int(mask_of(fixed).tensor.sum()) == clear["history"][-1]["points"]
    assert "the shape of the fixed image's mask" in result["disclosed"]["party_1"]
    assert started.configs["party_1"].find(mask.name) == -1
    # It is used as a mask, not multiplied in: what lies outside it does not matter.
    spoiled = torch.where(mask_of(fixed).tensor > 0, fixed.tensor, 1e4)
    other = Files(files.moving, tmp_path / "spoiled.mha", files.truth)
    save_image(Image(spoiled, fixed.grid), other.fixed)
    config = other.configuration(backend, data=data, pyramid={"levels": [{"shrink": 1}]})
    same = run(config, tmp_path / "spoiled")
    config = files.configuration(backend, data=data, pyramid={"levels": [{"shrink": 1}]})
    assert run(config, tmp_path / "clean")["transform"] == same["transform"]


def test_an_undisclosed_mask_is_refused(site_files: Callable[..., Files]) -> None:
    with pytest.raises(ConfigError, match=r"allow it with data\.disclose_mask"):
        site_files("affine", 2).configuration("bfv", data={"fixed_mask": "mask.mha"})


@pytest.mark.parametrize("share", [False, True])
def test_party_2_gets_the_transform_only_if_it_is_shared(
    share: bool, site_files: Callable[..., Files], started: Started, tmp_path: Path
) -> None:
    config = site_files("rigid", 2).configuration("bfv", "rigid", share_transform=share)
    result = run(config, tmp_path)
    report = json.loads((tmp_path / "party_2.json").read_text())
    assert len(started) == 2
    assert ("the final transform" in result["disclosed"]["party_2"]) is share
    if share:
        assert report["transform"] == {k: result["transform"][k] for k in ("matrix", "offset_mm")}
    else:
        assert report["transform"] is None


@pytest.mark.parametrize("disclosed", [False, True])
def test_gms_says_what_it_disclosed(
    disclosed: bool, site_files: Callable[..., Files], started: Started, tmp_path: Path
) -> None:
    sampler = SAMPLERS["gms disclosed" if disclosed else "gms"]
    result = run(site_files("rigid", 2).configuration("bfv", "rigid", sampler=sampler), tmp_path)
    lines = result["disclosed"]["party_2"]
    assert any("where the moving image has edges" in line for line in lines) is disclosed
    assert any("the chosen points stay with party_1" in line for line in lines) is not disclosed
    assert (result["party_1"]["messages"].get("SAMPLE", 0) > 4 * result["history"][0]["points"]) is disclosed
    assert ("SAMPLE" in result["party_1"]["messages"]) is disclosed
    assert len(started) == 2


def test_inverse_compositional_sends_one_row_and_says_what_it_costs(
    pair: Callable[..., Any], wide: Callable[..., Any], started: Started, tmp_path: Path
) -> None:
    """About a fourth of the rows that moments of a 3-D affine need, and of the bytes that follow them."""
    images = pair("affine", 3)
    files = write_pair(replace(images, moving=wide(images.moving, 16)), tmp_path)  # every fixed point maps inside
    results = {
        kind: run(files.configuration("beaver", optimizer={"kind": kind}), tmp_path / kind)
        for kind in ("gauss_newton", "inverse_compositional")
    }
    up = {kind: r["party_1"]["messages"]["MASKED_ROWS"] / r["iterations"] for kind, r in results.items()}
    assert up["inverse_compositional"] < 0.35 * up["gauss_newton"]
    told = [any("S^T S" in line for line in r["disclosed"]["party_1"]) for r in results.values()]
    assert told == [False, True]
    assert len(started) == 6


def test_the_fixed_centre_of_mass_needs_consent(
    site_files: Callable[..., Files], clear_run: Callable[..., Any], started: Started, tmp_path: Path
) -> None:
    files, start = site_files("rigid", 2), {"kind": "centre_of_mass"}
    with pytest.raises(ConfigError, match=r"allow it with data\.disclose_centre_of_mass"):
        files.configuration("bfv", "rigid", start=start)
    config = files.configuration("bfv", "rigid", start=start, data={"disclose_centre_of_mass": True})
    result = run(config, tmp_path)
    assert "the fixed image's centre of mass" in result["disclosed"]["party_1"]
    assert rmse_over_grid(tmp_path, clear_run("rigid", 2, start=start)[1], load_image(files.fixed)) <= 0.01
    # Each party judges by its own configuration: party_2 did not agree, so party_1 cannot have it.
    unwilling = fixed_party(config).model_copy(update={"disclose_centre_of_mass": False})
    reports = run_parties("images", moving_party(config), unwilling, tmp_path / "unwilling")
    assert reports["party_1"].exit_code == 2
    assert "does not disclose" in reports["party_1"].error
    assert len(started) == 4


def test_two_runs_are_bit_equal(site_files: Callable[..., Files], started: Started, tmp_path: Path) -> None:
    """Masks differ in every run; what is opened does not."""
    config = site_files("affine", 2).configuration("spdz", sampler=SAMPLERS["gms"])
    first, second = (run(config, tmp_path / name) for name in "ab")
    assert [h["value"] for h in first["history"]] == [h["value"] for h in second["history"]]
    assert (tmp_path / "a" / "warped.nii.gz").exists()
    images = [load_image(tmp_path / name / "warped.nii.gz").tensor for name in "ab"]
    assert torch.equal(*images)
    assert len(started) == 6


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_real_brain_in_3d(backend: str, tmp_path: Path) -> None:
    """The demo, with the finest level left out: 0.01 mm from the clear run, and near the truth."""
    pytest.importorskip("nilearn")
    from ppir_torch.phantoms import brain_pair, save_pair

    moving, fixed, truth = save_pair(brain_pair(), tmp_path)
    files, levels = Files(moving, fixed, truth), {"levels": [{"shrink": 4}, {"shrink": 2}]}
    run(files.configuration("clear", pyramid=levels, threads=2), tmp_path / "clear")
    data = {"truth": str(truth), "reference": str(tmp_path / "clear" / "transform.tfm")}
    result = run(files.configuration(backend, pyramid=levels, threads=2, data=data), tmp_path / backend)
    assert result["rmse_to_clear_mm"] <= 0.01
    assert result["rmse_to_truth_mm"] < 0.2
