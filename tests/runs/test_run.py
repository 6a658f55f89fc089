"""`run` and `register` in clear: the files, the values of result.json, what is compared, refused and restored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK
import torch
from parties.harness import Files, started_parties, write_pair

from ppir_torch import ClearFixed, Image, Plan, PpirError, load_image, register, register_images
from ppir_torch.config.images import RunConfig
from ppir_torch.config.protocols import ClearConfig
from ppir_torch.errors import ConfigError, ImageError
from ppir_torch.images import Level, save_image
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.overlap import content, weights_at
from ppir_torch.runs.disclosed import disclosed_of_images
from ppir_torch.runs.images import run
from ppir_torch.transforms import load_transform

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "result-schema.md"


@pytest.fixture(scope="module")
def files(pair: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_pair(pair("affine", 2), tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def clear(files: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("clear")
    return run(files.configuration("clear", data={"truth": str(files.truth)}), folder), folder


def documented(heading: str) -> set[str]:
    """The fields of the table in docs/result-schema.md whose header row starts so."""
    text = SCHEMA.read_text().split(heading)[1].split("\n\n")[0]
    first_column = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return {name for cell in first_column for name in re.findall(r"`(\w+)`", cell)}


# --- result.json ------------------------------------------------------------------------------------------------------


def test_result_json_is_what_run_returns(clear: tuple[dict[str, Any], Path]) -> None:
    values, folder = clear
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(values))
    assert {path.name for path in folder.iterdir()} == {"result.json", "transform.tfm", "warped.nii.gz", "warped.png"}


def test_result_json_has_the_documented_fields(
    clear: tuple[dict[str, Any], Path], files: Files, tmp_path: Path
) -> None:
    """All of them and no other, for each backend."""
    run_fields, party_fields = documented("| field | type | meaning |"), documented("| field | meaning |")
    assert len(run_fields) > 15
    assert len(party_fields) == 7
    assert set(clear[0]["levels"][0]) == documented("| of a level | meaning |")
    assert set(clear[0]) == run_fields - {"dealer"}
    with started_parties():
        for backend in ("bfv", "spdz"):
            values = run(files.configuration(backend, pyramid={"levels": [{"shrink": 2}]}), tmp_path / backend)
            parties = {"party_1", "party_2"} | ({"dealer"} if backend == "spdz" else set())
            assert set(values) == run_fields - {"peak_memory_mb", "dealer"} | parties
            for party in parties:
                assert set(values[party]) == party_fields


def test_values_of_a_clear_run(clear: tuple[dict[str, Any], Path], files: Files) -> None:
    values, folder = clear
    fixed = load_image(files.fixed)
    found, truth = (load_transform(path, fixed.grid) for path in (folder / "transform.tfm", files.truth))
    assert (values["backend"], values["sampler"], values["complete"], values["error"]) == ("clear", "none", True, "")
    assert (values["party_1"], values["party_2"]) == (None, None)
    assert values["rmse_to_truth_mm"] == displacement_rmse(found, truth, foreground_points(fixed))
    assert values["rmse_to_truth_mm"] < 0.05
    assert values["rmse_to_clear_mm"] is None
    matrix, offset = found.affine_map()
    assert values["transform"]["kind"] == "affine"
    assert torch.allclose(torch.tensor(values["transform"]["matrix"], dtype=torch.float64), matrix, atol=1e-12)
    assert torch.allclose(torch.tensor(values["transform"]["offset_mm"], dtype=torch.float64), offset, atol=1e-9)
    assert values["iterations"] == len(values["history"])
    kept = [h for h in values["history"] if h["accepted"]]
    assert values["ssd"] == kept[-1]["value"]
    warped = load_image(folder / "warped.nii.gz")
    moving, points = load_image(files.moving), fixed.grid.points(dtype=torch.float64)
    weights = weights_at(content(moving.grid, moving.tensor), found(points)).detach()  # the mean is over the overlap
    square = (warped.tensor - fixed.tensor).double().square().flatten()
    assert values["ssd"] == pytest.approx(float((weights * square).sum() / weights.sum()), rel=0.01)
    assert [h["shrink"] for h in values["history"]] == sorted((h["shrink"] for h in values["history"]), reverse=True)
    assert 50 < values["peak_memory_mb"] < 16_000
    assert values["disclosed"]["party_1"] == ["everything: a clear run holds both images"]


def test_the_transform_maps_fixed_points_to_moving_points_for_itk(
    clear: tuple[dict[str, Any], Path], files: Files
) -> None:
    transform = SimpleITK.ReadTransform(str(clear[1] / "transform.tfm"))
    moving, fixed = (SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32) for path in (files.moving, files.fixed))
    resampled = torch.from_numpy(SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, fixed, transform)))
    warped = load_image(clear[1] / "warped.nii.gz").tensor[0]
    assert (resampled - warped)[4:-4, 4:-4].abs().max() < 1e-3 * warped.max()
    back = torch.from_numpy(SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, fixed, transform.GetInverse())))
    assert (back - warped)[4:-4, 4:-4].abs().max() > 0.1 * warped.max()


def test_run_is_register_images_with_files(clear: tuple[dict[str, Any], Path], files: Files) -> None:
    """The runner adds files and figures; the registration is the library's."""
    moving, fixed = load_image(files.moving), load_image(files.fixed)
    smallest = min(fixed.grid.spacing)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = register_images(moving, ClearFixed(fixed), Plan(levels=(Level(2, smallest), Level(1, 0.0))))
    finally:
        torch.set_num_threads(threads)
    assert [h.iteration.value for h in result.history] == [h["value"] for h in clear[0]["history"]]


def test_two_clear_runs_are_bit_equal(clear: tuple[dict[str, Any], Path], files: Files, tmp_path: Path) -> None:
    values = run(files.configuration("clear"), tmp_path)
    assert [h["value"] for h in values["history"]] == [h["value"] for h in clear[0]["history"]]
    for name in ("transform.tfm", "warped.png"):
        assert (tmp_path / name).read_bytes() == (clear[1] / name).read_bytes()


def test_a_mask_restricts_the_loss_and_is_not_multiplied_in(files: Files, tmp_path: Path) -> None:
    fixed = load_image(files.fixed)
    mask = (fixed.tensor > fixed.tensor.median()).float()
    save_image(Image(mask, fixed.grid), tmp_path / "mask.mha")
    save_image(Image(torch.where(mask > 0, fixed.tensor, 1e4), fixed.grid), tmp_path / "spoiled.mha")
    spoiled = Files(files.moving, tmp_path / "spoiled.mha", files.truth)
    settings: dict[str, Any] = {"data": {"fixed_mask": str(tmp_path / "mask.mha")}}
    settings["pyramid"] = {"levels": [{"shrink": 1}]}
    first = run(files.configuration("clear", **settings), tmp_path / "a")
    second = run(spoiled.configuration("clear", **settings), tmp_path / "b")
    assert first["transform"] == second["transform"]
    assert first["history"][0]["points"] == int(mask.sum())


def test_the_reference_is_compared_with(clear: tuple[dict[str, Any], Path], files: Files, tmp_path: Path) -> None:
    data = {"reference": str(files.truth)}
    values = run(files.configuration("clear", data=data), tmp_path)
    assert values["rmse_to_clear_mm"] == clear[0]["rmse_to_truth_mm"]
    assert values["rmse_to_truth_mm"] is None


@pytest.mark.parametrize("kind", ["identity", "centres", "centre_of_mass", "file"])
def test_starts(kind: str, files: Files, clear: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    start = {"kind": kind} | ({"path": str(files.truth)} if kind == "file" else {})
    values = run(files.configuration("clear", start=start, data={"truth": str(files.truth)}), tmp_path)
    assert values["rmse_to_truth_mm"] < 0.1
    if kind == "file":  # the truth: nothing is left to be done
        assert values["history"][0]["value"] < 0.05 * clear[0]["history"][0]["value"]


def test_the_number_of_threads_is_given_back(files: Files, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(files.configuration("clear", threads=1), tmp_path)
        assert torch.get_num_threads() == 2
        with pytest.raises(ImageError):
            run(Files(files.moving, tmp_path / "no.mha", files.truth).configuration("clear", threads=1), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["truth", "reference"])
def test_a_missing_transform_is_refused_before_the_run(
    field: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppir_torch.runs.images.register_images", lambda *_: pytest.fail("the run was started"))
    config = files.configuration("clear", data={field: str(tmp_path / "no.tfm")})
    with pytest.raises(ConfigError, match=r"no\.tfm: no such transform file \(data\.truth or data\.reference\)"):
        run(config, tmp_path / "out")


def test_a_truth_that_is_no_transform(files: Files, tmp_path: Path) -> None:
    (tmp_path / "broken.tfm").write_text("hello")
    with pytest.raises(PpirError, match="cannot be read as an ITK transform"):
        run(files.configuration("clear", data={"truth": str(tmp_path / "broken.tfm")}), tmp_path / "out")


def test_a_failed_clear_run_leaves_no_result_of_the_run_before(files: Files, tmp_path: Path) -> None:
    run(files.configuration("clear", pyramid={"levels": [{"shrink": 2}]}), tmp_path)
    with pytest.raises(ImageError):
        run(Files(files.moving, tmp_path / "no.mha", files.truth).configuration("clear"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["data.moving", "data.fixed", "data.reference", "start.path"])
def test_a_run_does_not_overwrite_what_it_reads(field: str, files: Files, tmp_path: Path) -> None:
    run(files.configuration("clear", pyramid={"levels": [{"shrink": 2}]}), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    image, transform = tmp_path / "warped.nii.gz", tmp_path / "." / "transform.tfm"
    given, settings = files, dict[str, Any]()
    match field:
        case "data.moving":
            given = Files(image, files.fixed, files.truth)
        case "data.fixed":
            given = Files(files.moving, image, files.truth)
        case "data.reference":
            settings["data"] = {"reference": str(transform)}
        case _:
            settings["start"] = {"kind": "file", "path": str(transform)}
    with pytest.raises(ConfigError, match=rf"^{field}: .* would overwrite it; take another output folder$"):
        run(given.configuration("clear", **settings), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_output_that_is_a_file(files: Files, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match=r"output: .* a folder that can be written is needed"):
        run(files.configuration("clear"), tmp_path / "out")


def test_cuda_where_there_is_none(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = files.configuration("clear").model_copy(update={"backend": ClearConfig(device="cuda")})
    with pytest.raises(ConfigError, match=r"backend\.device: 'cuda', but this machine has no CUDA device"):
        run(config, tmp_path)


# --- what is told to have been disclosed ------------------------------------------------------------------------------


def disclosed(config: RunConfig) -> tuple[str, str]:
    lines = disclosed_of_images(config)
    return "; ".join(lines["party_1"]), "; ".join(lines["party_2"])


@pytest.mark.parametrize("backend", ["bfv", "spdz"])
def test_disclosed_follows_the_configuration(backend: str, files: Files) -> None:
    one, two = disclosed(files.configuration(backend))
    assert "geometry of the fixed image" in one
    assert "opened products" in one
    assert "mask" not in one
    assert "centre of mass" not in one
    assert "sizes and timing" in two
    assert "transform" not in two
    assert "edges" not in two
    data = {"fixed_mask": "mask.mha", "disclose_mask": True, "disclose_centre_of_mass": True}
    one, two = disclosed(
        files.configuration(
            backend, data=data, share_transform=True, sampler={"kind": "gms", "fraction": 0.1, "disclose_points": True}
        )
    )
    assert "the shape of the fixed image's mask" in one
    assert "the fixed image's centre of mass" in one
    assert "the final transform" in two
    assert "edges" in two
    _, two = disclosed(files.configuration(backend, sampler={"kind": "gms"}))
    assert "edges" not in two
    assert "the chosen points stay with party_1" in two
    one, _ = disclosed(files.configuration(backend, optimizer={"kind": "inverse_compositional"}))
    assert "S^T S and S^T J" in one


# --- register ---------------------------------------------------------------------------------------------------------


def test_register_returns_what_run_wrote(files: Files, tmp_path: Path) -> None:
    result = register(files.moving, files.fixed, levels=(2, 1), threads=1, truth=files.truth, output=tmp_path)
    values = json.loads((tmp_path / "result.json").read_text())
    assert result.metrics["rmse_to_truth_mm"] == values["rmse_to_truth_mm"] < 0.05
    assert result.value == values["value"]
    assert [h.iteration.value for h in result.history] == [h["value"] for h in values["history"]]
    grid = load_image(files.fixed).grid
    points = grid.points(dtype=torch.float64)
    assert displacement_rmse(result.transform, load_transform(tmp_path / "transform.tfm", grid), points) < 1e-4


def test_register_keeps_no_folder(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = register(files.moving, files.fixed, levels=(2,), threads=1)
    assert result.warped.tensor.shape == (1, 40, 48)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimizer", ["gauss_newton", "adam"])
@pytest.mark.parametrize("kind", ["translation", "rigid", "similarity", "affine"])
def test_register_of_an_image_with_itself_is_the_identity(kind: str, optimizer: str, files: Files) -> None:
    image = load_image(files.fixed)
    result = register(image, image, transform=kind, optimizer=optimizer, levels=(2, 1), threads=1)
    matrix, offset = result.transform.affine_map()
    assert torch.allclose(matrix, torch.eye(2, dtype=torch.float64), atol=1e-6)
    assert offset.abs().max() < 1e-3
    assert result.metrics["transform"]["kind"] == kind
