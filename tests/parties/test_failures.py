"""A lost party and bad input: every party ends soon, with one clear line, and what party_1 had is kept."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from parties.harness import Files, Started, started_parties, tapped_wires

from ppir_torch.errors import PeerLost, PpirError
from ppir_torch.images import Image, load_image, save_image
from ppir_torch.runs.images import run
from ppir_torch.transforms import load_transform
from ppir_torch.wire.kinds import MessageKind

PRODUCTS = 4  # at the first level, before the loss
LAST_WORDS = {  # of each party in each product
    ("bfv", "party_2"): ("party_2", "party_1", MessageKind.MASKED_RESULT),
    ("ckks", "party_2"): ("party_2", "party_1", MessageKind.MASKED_RESULT),
    ("spdz", "party_2"): ("party_2", "party_1", MessageKind.RESULT_SHARE),
    ("beaver", "party_2"): ("party_2", "party_1", MessageKind.RESULT_SHARE),
    ("bfv", "party_1"): ("party_1", "party_2", MessageKind.REPLY_CIPHERTEXTS),
    ("ckks", "party_1"): ("party_1", "party_2", MessageKind.REPLY_CIPHERTEXTS),
    ("spdz", "party_1"): ("party_1", "party_2", MessageKind.PRODUCT),
    ("beaver", "party_1"): ("party_1", "party_2", MessageKind.MASKED_ROWS),
    ("spdz", "dealer"): ("dealer", "party_2", MessageKind.TRIPLE_CORRECTION),
    ("beaver", "dealer"): ("dealer", "party_2", MessageKind.TRIPLE_CORRECTION),
}
BACKENDS = ("bfv", "ckks", "spdz", "beaver")
WITH_DEALER = ("spdz", "beaver")


class Loss:
    """One run in which `victim` is killed (kill -9) when it has said all it has to say in product PRODUCTS."""

    def __init__(self, backend: str, victim: str, files: Files, folder: Path) -> None:
        self.folder = folder
        source, target, kind = LAST_WORDS[backend, victim]

        def watch(*passing: Any) -> None:
            if passing == (source, target, kind, PRODUCTS):
                os.kill(started[victim].process.pid, signal.SIGKILL)

        with started_parties() as started, tapped_wires(watch), pytest.raises(PeerLost) as caught:
            run(files.configuration(backend), folder)
        # A party that does not end by itself is killed, too.
        self.killed = {party.role for party in started if party.process.returncode == -signal.SIGKILL}
        self.error = caught.value

    def report(self, role: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{role}.json").read_text()))


def is_one_clear_line(text: str) -> bool:
    return 10 < len(text) < 400 and "\n" not in text and "Traceback" not in text


@pytest.mark.parametrize("backend", BACKENDS)
def test_party_2_is_killed(backend: str, site_files: Callable[..., Files], tmp_path: Path) -> None:
    files = site_files("affine", 2)
    loss = Loss(backend, "party_2", files, tmp_path)
    assert loss.error.exit_code == 3
    assert is_one_clear_line(str(loss.error))
    assert "party_2 is gone" in str(loss.error)
    assert str(tmp_path) in str(loss.error)
    assert loss.killed == {"party_2"}
    assert loss.report("party_1")["exit_code"] == 3
    # What is kept is the best of the products that came to an end: where the clear run was after as many.
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["complete"], result["iterations"]) == (False, PRODUCTS)
    assert "party_2 is gone" in result["error"]
    assert result["party_2"] is None
    assert result["party_1"]["bytes_sent"] > 0
    levels = {"levels": [{"shrink": 2}]}
    fewer = {"optimizer": {"kind": "gauss_newton", "stopping": {"max_iterations": PRODUCTS}}, "pyramid": levels}
    folder = tmp_path / "clear"
    clear = run(files.configuration("clear", **fewer), folder)
    assert clear["iterations"] == PRODUCTS
    assert result["ssd"] == pytest.approx(clear["ssd"], abs=0.01)
    grid = load_image(files.fixed).grid
    found, wanted = (load_transform(path / "transform.tfm", grid).affine_map() for path in (tmp_path, folder))
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=0.03)  # before it converged a rounding moves it more
    warped, clear_warped = (load_image(path / "warped.nii.gz").tensor for path in (tmp_path, folder))
    assert (warped - clear_warped).abs().max() < 0.01 * clear_warped.max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_party_1_is_killed(backend: str, site_files: Callable[..., Files], tmp_path: Path) -> None:
    loss = Loss(backend, "party_1", site_files("affine", 2), tmp_path)
    assert loss.error.exit_code == 3
    assert is_one_clear_line(str(loss.error))
    assert "party_1 ended without a report" in str(loss.error)
    assert loss.killed == {"party_1"}
    report = loss.report("party_2")
    assert (report["exit_code"], report["complete"]) == (3, False)
    # The dealer ends with party_1, too, and party_2 may notice that first.
    assert "party_1 is gone" in report["error"] or (backend in WITH_DEALER and "dealer is gone" in report["error"])
    assert report["account"]["bytes_sent"] > 0
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("backend", WITH_DEALER)
def test_the_dealer_is_killed(backend: str, site_files: Callable[..., Files], tmp_path: Path) -> None:
    loss = Loss(backend, "dealer", site_files("affine", 2), tmp_path)
    assert loss.error.exit_code == 3
    assert is_one_clear_line(str(loss.error))
    assert loss.killed == {"dealer"}
    one, two = loss.report("party_1"), loss.report("party_2")
    assert (one["exit_code"], two["exit_code"]) == (3, 3)
    assert "dealer is gone" in two["error"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["complete"] is False
    if backend == "spdz":
        assert "party_2" in one["error"]
        assert result["iterations"] == PRODUCTS
    else:
        # party_1 may notice first, as it asks for the next triple while it waits for the last product.
        assert "party_2" in one["error"] or "dealer is gone" in one["error"]
        assert result["iterations"] in (PRODUCTS - 1, PRODUCTS)
    assert (tmp_path / "warped.nii.gz").exists()
    assert (tmp_path / "transform.tfm").exists()


@pytest.mark.slow
def test_a_silent_party_2_is_lost_after_the_timeout(site_files: Callable[..., Files], tmp_path: Path) -> None:
    """It is stopped, not killed: no connection breaks. A slow machine must not be silent for as long before that."""

    def watch(source: str, _target: str, kind: MessageKind, count: int) -> None:
        if source == "party_2" and kind is MessageKind.MASKED_RESULT and count == PRODUCTS:
            os.kill(started["party_2"].process.pid, signal.SIGSTOP)

    config = site_files("affine", 2).configuration("bfv", transport={"kind": "local", "timeout_s": 10.0})
    with started_parties() as started, tapped_wires(watch), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppir_torch.runs.processes.GRACE_S", 1.0)
        with pytest.raises(PeerLost, match="nothing arrived for 10 s"):
            run(config, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["complete"], result["iterations"]) == (False, PRODUCTS)


def test_lost_before_the_first_product(site_files: Callable[..., Files], tmp_path: Path) -> None:
    """party_2 is killed when it has sent the geometry: there is no loss value yet, and result.json stays valid JSON."""

    def watch(_source: str, _target: str, kind: MessageKind, _count: int) -> None:
        if kind is MessageKind.OPERAND:
            os.kill(started["party_2"].process.pid, signal.SIGKILL)

    with started_parties() as started, tapped_wires(watch), pytest.raises(PeerLost) as caught:
        run(site_files("affine", 2).configuration("bfv"), tmp_path)
    assert is_one_clear_line(str(caught.value))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert (result["complete"], result["iterations"], result["ssd"]) == (False, 0, None)


def test_a_failed_run_leaves_no_result_of_the_run_before(site_files: Callable[..., Files], tmp_path: Path) -> None:
    files = site_files("rigid", 2)
    with started_parties():
        run(files.configuration("bfv", "rigid"), tmp_path)
        assert (tmp_path / "result.json").exists()
        missing = Files(files.moving, tmp_path / "missing.mha", files.truth)
        with pytest.raises(PpirError):
            run(missing.configuration("bfv", "rigid"), tmp_path)
    for name in ("result.json", "warped.nii.gz", "transform.tfm"):
        assert not (tmp_path / name).exists()


# --- bad input --------------------------------------------------------------------------------------------------------


def with_header(path: Path, good: Path, **fields: str) -> Path:
    """A copy of a MetaImage file with other header fields."""
    head, pixels = good.read_bytes().split(b"ElementDataFile = LOCAL\n")
    lines = [line for line in head.decode().splitlines() if line.split(" = ")[0] not in fields]
    lines[-1:-1] = [f"{name} = {value}" for name, value in fields.items()]
    path.write_bytes("\n".join([*lines, ""]).encode() + b"ElementDataFile = LOCAL\n" + pixels)
    return path


def with_values(path: Path, image: Image, change: Callable[[Any], Any]) -> Path:
    """A copy of an image with other values, written without our own checks."""
    result = SimpleITK.GetImageFromArray(change(image.tensor[0].numpy().copy()))
    result.SetSpacing(image.grid.spacing)
    result.SetOrigin(image.grid.origin)
    result.SetDirection(image.grid.direction)
    SimpleITK.WriteImage(result, str(path))
    return path


def with_nan(values: Any) -> Any:
    values[3, 4] = math.nan
    return values


def write_text(path: Path) -> Path:
    path.write_text("not an image")
    return path


Bad = tuple[Files, dict[str, Any], str, str]


def missing_fixed(files: Files, _other: Files, folder: Path) -> Bad:
    path = folder / "missing.mha"
    return Files(files.moving, path, files.truth), {}, f"{path}: no such file or folder", "party_2"


def unreadable_moving(files: Files, _other: Files, folder: Path) -> Bad:
    path = write_text(folder / "broken.mha")
    return Files(path, files.fixed, files.truth), {}, f"{path}: cannot be read as an image", "party_1"


def other_dimension(files: Files, other: Files, _folder: Path) -> Bad:
    return Files(other.moving, files.fixed, files.truth), {}, "moving image is 3-D, fixed image 2-D", "party_1"


def nan_in_moving(files: Files, _other: Files, folder: Path) -> Bad:
    path = with_values(folder / "nan.mha", load_image(files.moving), with_nan)
    return Files(path, files.fixed, files.truth), {}, f"{path}: image: 1 voxels are NaN or infinite", "party_1"


def nan_in_fixed(files: Files, _other: Files, folder: Path) -> Bad:
    path = with_values(folder / "nan.mha", load_image(files.fixed), with_nan)
    return Files(files.moving, path, files.truth), {}, f"{path}: image: 1 voxels are NaN or infinite", "party_2"


def constant_fixed(files: Files, _other: Files, folder: Path) -> Bad:
    path = with_values(folder / "constant.mha", load_image(files.fixed), lambda v: np.full_like(v, 321.5))
    return Files(files.moving, path, files.truth), {}, f"{path}: constant image (every voxel is 321.5)", "party_2"


def constant_moving(files: Files, _other: Files, folder: Path) -> Bad:
    path = with_values(folder / "constant.mha", load_image(files.moving), lambda v: np.full_like(v, 321.5))
    return Files(path, files.fixed, files.truth), {}, f"{path}: constant image (every voxel is 321.5)", "party_1"


def no_overlap(files: Files, _other: Files, folder: Path) -> Bad:
    image = load_image(files.moving)
    away = Image(image.tensor, type(image.grid)(image.grid.size, image.grid.spacing, (9e3, 9e3), image.grid.direction))
    save_image(away, folder / "away.mha")
    settings = {"start": {"kind": "identity"}}
    return Files(folder / "away.mha", files.fixed, files.truth), settings, "no overlap", "party_1"


def empty_mask(files: Files, _other: Files, folder: Path) -> Bad:
    path = with_values(folder / "empty.mha", load_image(files.fixed), np.zeros_like)
    settings = {"data": {"fixed_mask": str(path), "disclose_mask": True}}
    return files, settings, f"{path}: empty mask", "party_2"


def mask_of_another_size(files: Files, _other: Files, folder: Path) -> Bad:
    path = with_values(folder / "small.mha", load_image(files.fixed), lambda v: v)
    cut = SimpleITK.ReadImage(str(path))[:-3, :]
    cut.SetSpacing((1.0, 1.0))  # with its header it would be the part that a cropped mask covers
    SimpleITK.WriteImage(cut, str(path))
    settings = {"data": {"fixed_mask": str(path), "disclose_mask": True}}
    return files, settings, f"{path}: mask of size", "party_2"


def zero_spacing_of_fixed(files: Files, _other: Files, folder: Path) -> Bad:
    path = with_header(folder / "flat.mha", files.fixed, ElementSpacing="0 2")
    return Files(files.moving, path, files.truth), {}, f"{path}: ", "party_2"


def zero_spacing_of_moving(files: Files, _other: Files, folder: Path) -> Bad:
    path = with_header(folder / "flat.mha", files.moving, ElementSpacing="0 2")
    return Files(path, files.fixed, files.truth), {}, f"{path}: ", "party_1"


def missing_start(files: Files, _other: Files, folder: Path) -> Bad:
    path = folder / "start.tfm"
    return files, {"start": {"kind": "file", "path": str(path)}}, f"{path}: no such transform file", "party_1"


BAD = (
    missing_fixed,
    unreadable_moving,
    other_dimension,
    nan_in_moving,
    nan_in_fixed,
    constant_fixed,
    constant_moving,
    no_overlap,
    empty_mask,
    mask_of_another_size,
    zero_spacing_of_fixed,
    zero_spacing_of_moving,
    missing_start,
)


@pytest.mark.parametrize("backend", ["clear", "bfv"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_one_clear_line(
    bad: Callable[..., Bad], backend: str, site_files: Callable[..., Files], started: Started, tmp_path: Path
) -> None:
    given, settings, line, owner = bad(site_files("affine", 2), site_files("affine", 3), tmp_path)
    folder = tmp_path / "output"
    with pytest.raises(PpirError) as caught:
        run(given.configuration(backend, **settings), folder)
    assert caught.value.exit_code == 2
    assert is_one_clear_line(str(caught.value))
    assert line in str(caught.value)
    for name in ("result.json", "warped.nii.gz", "transform.tfm"):
        assert not (folder / name).exists()
    if backend == "clear":
        assert not started
        return
    assert [party.role for party in started if party.running] == []
    # The owner is told what is wrong with its input; the other party that the run is over, and why in one word.
    other = {"party_1": "party_2", "party_2": "party_1"}[owner]
    own, told = (json.loads((folder / f"{role}.json").read_text()) for role in (owner, other))
    assert (own["error"], own["exit_code"]) == (str(caught.value), 2)
    assert told["exit_code"] == 3
    assert f"{owner} cannot go on" in told["error"]
    assert told["error"].endswith("see its own report")
    for word in (str(tmp_path), "mha", "tfm", "321.5", "voxel", "size"):
        assert word not in told["error"]


def test_both_parties_have_bad_input(site_files: Callable[..., Files], tmp_path: Path) -> None:
    """The first fault is told, nobody is left."""
    files = site_files("affine", 2)
    given = Files(write_text(tmp_path / "broken.mha"), tmp_path / "missing.mha", files.truth)
    with started_parties() as started, pytest.raises(PpirError) as caught:
        run(given.configuration("bfv"), tmp_path / "output")
    assert caught.value.exit_code == 2
    assert is_one_clear_line(str(caught.value))
    assert str(caught.value).startswith(str(tmp_path))
    assert [party.process.returncode for party in started] == [2, 2]


def test_a_bug_in_a_party_is_a_lost_party_not_a_hang(site_files: Callable[..., Files], tmp_path: Path) -> None:
    """A party that dies of an exception leaves no report: its exit code is told, the other ends by itself."""
    config = site_files("affine", 2).configuration("bfv")
    with started_parties() as started, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppir_torch.runs.images.fixed_party", lambda _config: _Broken(config))
        with pytest.raises(PeerLost) as caught:
            run(config, tmp_path)
    assert is_one_clear_line(str(caught.value))
    assert "party_2" in str(caught.value)
    assert len(started) == 2


class _Broken:
    """A configuration that no party understands."""

    def __init__(self, config: Any) -> None:
        self.backend = config.backend

    def model_dump_json(self) -> str:
        return "{}"
