"""Deformable private runs: they end where the clear run ends, write what others read, and stop where they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from joint.ends import private_fixed
from parties.harness import Files, Started, started_parties, write_pair
from torch import Tensor

from ppir_torch.config.images import RunConfig, load_config
from ppir_torch.errors import BudgetExceeded, ConfigError, LinkError, PeerLost
from ppir_torch.images import Image, Level, load_image
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import FixedOperand
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.metrics.registration import displacement_rmse, folding_share, foreground_points, jacobian_determinant
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.parties.moving import PrivateFixed
from ppir_torch.protocols.beaver import BeaverFixedSide
from ppir_torch.registration import OperandRequest
from ppir_torch.registration.request import map_of
from ppir_torch.runs.images import run
from ppir_torch.sampling import Full, Sample, Uniform
from ppir_torch.transforms import BSpline, Composite, ControlLattice, load_any_transform, load_displacement
from ppir_torch.warping import warp
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.payload import pack, unpack

CLOSE_MM = 0.05  # of the clear run, in the foreground
URS = {"kind": "urs", "fraction": 0.4, "seed": 5}
GMS = {"kind": "gms", "fraction": 0.4, "seed": 5}
# Control points 12 mm apart on 48 x 40 voxels of 1.5 x 2 mm.
DEFORMABLE = {"spacing_mm": 12.0, "weight": 0.1}
CONTROL_POINTS = [9, 10]
RESULTS = 2 * 9 * 10 + 1  # of one product at the finest level


@pytest.fixture(scope="module")
def files(pair: Callable[..., Any], random_transform: Callable[..., Any], tmp_path_factory: Any) -> Files:
    """A pair related by a smooth displacement, then an affine map; of fine texture, which tells points apart."""
    made = pair("affine", 2)
    fixed, moving = made.fixed.grid, made.moving.grid
    generator = torch.Generator().manual_seed(100)
    extent = torch.tensor([n * s for n, s in zip(fixed.size, fixed.spacing, strict=True)], dtype=torch.float64)
    where = (torch.rand(40, 2, generator=generator, dtype=torch.float64) - 0.5) * 0.65 * extent
    phantom = replace(
        made.phantom,
        centres=fixed.centre + where @ torch.tensor(fixed.direction, dtype=torch.float64).reshape(2, 2).T,
        widths=extent.min() * (0.04 + 0.04 * torch.rand(40, generator=generator, dtype=torch.float64)),
        heights=40 + 80 * torch.rand(40, generator=generator, dtype=torch.float64),
    )
    bend = BSpline(ControlLattice(fixed, 16.0))
    random = torch.randn(bend.coefficients.shape, generator=generator.manual_seed(7), dtype=torch.float64)
    bend.coefficients.data.copy_(1.5 * random)
    outer = random_transform("affine", fixed, 1.0)
    with torch.no_grad():
        outer.translation += moving.centre - fixed.centre
    truth = Composite([bend, outer])
    images = {"fixed": phantom.image(fixed, before=truth), "moving": phantom.image(moving)}
    return write_pair(replace(made, truth=truth, phantom=phantom, **images), tmp_path_factory.mktemp("bent"))


def configuration(files: Files, backend: str, kind: str = "bspline", linear: str = "affine", **more: Any) -> RunConfig:
    settings = files.configuration("clear", **more).model_dump(mode="json")
    chosen = {"kind": backend} | ({"allow_insecure": True} if backend == "ckks-v1" else {})
    transform = {"kind": kind, "linear": linear} | DEFORMABLE
    return load_config(settings | {"backend": chosen, "transform": transform})


@dataclass
class Finished:
    """A private run and the clear one with the same settings."""

    files: Files
    kind: str
    result: dict[str, Any]
    folder: Path
    clear: dict[str, Any]
    clear_folder: Path
    started: Started


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bspline": ("bspline", {}),
    "bspline URS": ("bspline", {"sampler": URS}),
    "bspline GMS": ("bspline", {"sampler": GMS}),
    "velocity": ("velocity", {}),
}


@pytest.fixture(scope="module", params=CASES)
def finished(request: pytest.FixtureRequest, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    kind, settings = CASES[request.param]
    folder, clear_folder = tmp_path_factory.mktemp("private"), tmp_path_factory.mktemp("clear")
    clear = run(configuration(files, "clear", kind, **settings), clear_folder)
    data = {"truth": str(files.truth), "reference": str(clear_folder / "transform.h5")}
    budget = {"file": str(folder / "releases.sqlite"), "max_values": 100_000}
    with started_parties() as started:
        result = run(configuration(files, "beaver", kind, data=data, budget=budget, **settings), folder)
    return Finished(files, kind, result, folder, clear, clear_folder, started)


def test_a_private_run_equals_the_clear_run(finished: Finished) -> None:
    fixed = load_image(finished.files.fixed)
    points = foreground_points(fixed)
    found, clear = (
        load_any_transform(f / "transform.h5", fixed.grid) for f in (finished.folder, finished.clear_folder)
    )
    apart = displacement_rmse(found, clear, points)
    assert apart <= CLOSE_MM
    assert finished.result["rmse_to_clear_mm"] == pytest.approx(apart, rel=1e-6)
    assert {party.role for party in finished.started} == {"party_1", "party_2", "dealer"}
    # And both are near the truth, nearer than an affine map comes.
    truth = load_any_transform(finished.files.truth, fixed.grid)
    error = displacement_rmse(found, truth, points)
    assert finished.result["rmse_to_truth_mm"] == pytest.approx(error, rel=1e-6)
    linear = found.get_submodule("parts.1")
    assert error < 0.6 * displacement_rmse(linear, truth, points)
    # The gradient's points follow the transform so far, which is rounded: a few others are drawn, of other sums.
    by_gradient = finished.result["sampler"] == "gms"
    used, expected = ({h["level"]: h["points"] for h in r["history"]} for r in (finished.result, finished.clear))
    assert used == (pytest.approx(expected, rel=0.01) if by_gradient else expected)
    abs_error = 0.02 * float(fixed.tensor.var()) if by_gradient else 0.05
    assert finished.result["ssd"] == pytest.approx(finished.clear["ssd"], rel=0.05, abs=abs_error)


def test_the_files_are_one_map_for_simpleitk(finished: Finished) -> None:
    """transform.h5, displacement.nii.gz, and what our own reader makes of both."""
    fixed = load_image(finished.files.fixed)
    points = fixed.grid.points(torch.arange(0, fixed.grid.count, 7), dtype=torch.float64)
    ours = load_any_transform(finished.folder / "transform.h5", fixed.grid)
    mapped = ours(points).detach()
    theirs = SimpleITK.ReadTransform(str(finished.folder / "transform.h5"))
    by_file = torch.tensor([theirs.TransformPoint(p) for p in points.tolist()], dtype=torch.float64)
    image = SimpleITK.ReadImage(str(finished.folder / "displacement.nii.gz"), SimpleITK.sitkVectorFloat64)
    assert image.GetSize() == fixed.grid.size
    field = SimpleITK.DisplacementFieldTransform(image)
    by_field = torch.tensor([field.TransformPoint(p) for p in points.tolist()], dtype=torch.float64)
    inside = away_from_the_border(fixed, 7)
    torch.testing.assert_close(by_file[inside], mapped[inside], rtol=0, atol=1e-6)
    torch.testing.assert_close(by_field[inside], mapped[inside], rtol=0, atol=1e-3)  # NIfTI's float32
    again = load_displacement(finished.folder / "displacement.nii.gz")
    assert displacement_rmse(again, ours, points[inside]) < 1e-3
    assert float((mapped - points).norm(dim=1).max()) > 1


def away_from_the_border(image: Image, step: int) -> Tensor:
    keep = torch.zeros(image.grid.shape, dtype=torch.bool)
    keep[tuple(slice(1, -1) for _ in image.grid.shape)] = True
    return keep.flatten()[::step]


def test_the_warped_image_is_that_of_the_file(finished: Finished) -> None:
    fixed, moving = load_image(finished.files.fixed), load_image(finished.files.moving)
    warped = load_image(finished.folder / "warped.nii.gz")
    again = warp(moving, load_any_transform(finished.folder / "transform.h5", fixed.grid), fixed.grid)
    inside = away_from_the_border(fixed, 1)
    difference = (warped.tensor - again.tensor).flatten()[inside].abs()
    assert float(difference.max()) < 1e-3 * float(fixed.tensor.max())
    assert (finished.folder / "warped.png").exists()
    assert not (finished.folder / "transform.tfm").exists()


def test_the_result_says_what_was_found(finished: Finished) -> None:
    result, fixed = finished.result, load_image(finished.files.fixed)
    assert json.loads((finished.folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (result["complete"], result["error"], result["backend"]) == (True, "", "beaver")
    about = result["transform"]
    assert set(about) == {
        *("kind", "linear", "file", "matrix", "offset_mm", "control_spacing_mm", "control_points"),
        *("jacobian_min", "jacobian_max", "folding_share"),
    }
    assert (about["kind"], about["linear"], about["file"]) == (finished.kind, "affine", "transform.h5")
    assert list(about["control_points"]) == CONTROL_POINTS
    assert list(about["control_spacing_mm"]) == [12.0, 12.0]
    found = load_any_transform(finished.folder / "transform.h5", fixed.grid)
    points = fixed.grid.points(dtype=torch.float64).reshape(*fixed.grid.shape, 2)[2:-2, 2:-2].reshape(-1, 2)
    determinant = jacobian_determinant(found, fixed.grid, points)
    assert about["folding_share"] == folding_share(determinant) == 0
    assert about["jacobian_min"] <= float(determinant.min()) + 1e-3
    assert about["jacobian_max"] >= float(determinant.max()) - 1e-3
    levels = {h["level"] for h in result["history"]}
    assert levels == {0, 1, 2, 3}
    assert [h["shrink"] for h in result["history"] if h["iteration"] == 1] == [2, 1, 2, 1]


def test_every_opened_value_is_in_the_ledger_and_the_budget(finished: Finished) -> None:
    """D M + 1 a product, M of the level's lattice, and four an operand."""
    result, expected = finished.result, 0
    coarse = ControlLattice(load_image(finished.files.fixed).grid, 24.0).count
    opened = {2: 2 * coarse + 1, 3: RESULTS}
    for entry in result["ledger"]:
        products = sum(h["level"] == entry["operand"] for h in result["history"])
        if entry["operand"] > 1:
            assert entry["opened"] == products * opened[entry["operand"]]
        assert 0 < entry["rank"] <= min(entry["opened"], entry["points"])
        assert 0 <= entry["explained"] <= 1
        assert 0 <= entry["beyond"] <= 1
        expected += entry["opened"] + 4
    assert [entry["operand"] for entry in result["ledger"]] == [0, 1, 2, 3]
    assert result["budget"]["spent"] == expected
    disclosed = " ".join(result["disclosed"]["party_1"])
    assert "opened products" in disclosed


def test_messages_hold_sums_and_no_force_of_a_voxel(finished: Finished) -> None:
    """What party_2 answers with is as long as the opened values, 64 bits at most for each."""
    sent = finished.result["party_2"]["messages"]["RESULT_SHARE"]
    opened = sum(entry["opened"] for entry in finished.result["ledger"])
    assert sent <= 8 * opened + 60 * finished.result["iterations"]
    assert "PUBLIC_MAP" in finished.result["party_1"]["messages"]
    assert "PUBLIC_MAP" not in finished.result["party_2"]["messages"]


def test_gms_keeps_its_points(files: Files, tmp_path: Path) -> None:
    """As many bytes of each kind go out in a product as of all points, and no list of points but with consent."""
    seen, stop = {}, {"max_iterations": 2, "decrease": 0.0, "step_voxels": 0.0}
    for name, sampler in {"all": {"kind": "none"}, "kept": GMS, "told": GMS | {"disclose_points": True}}.items():
        config = configuration(files, "beaver", sampler=sampler, optimizer={"kind": "gauss_newton", "stopping": stop})
        settings = config.model_dump(mode="json")
        config = load_config(settings | {"transform": settings["transform"] | stop})
        with started_parties():
            result = run(config, tmp_path / name)
        seen[name] = {k: v for k, v in result["party_1"]["messages"].items() if k not in ("HELLO", "FINISH")}
        lines = " ".join(result["disclosed"]["party_2"])
        assert ("where the moving image has edges" in lines) is (name == "told")
        assert ("the chosen points stay with party_1" in lines) is (name == "kept")
        # Two products a level, each of as many rows.
        assert [h["iteration"] for h in result["history"]] == [1, 2] * 4
    assert seen["kept"] == seen["all"]
    assert "SAMPLE" not in seen["kept"]
    assert seen["told"]["SAMPLE"] > 0
    assert seen["told"]["MASKED_ROWS"] < 0.6 * seen["all"]["MASKED_ROWS"]


@pytest.mark.parametrize(
    "protocol", [pytest.param("spdz", marks=pytest.mark.slow), "bfv", pytest.param("ckks", marks=pytest.mark.slow)]
)
def test_every_protocol_follows_the_clear_run_with_gms(protocol: str, files: Files, tmp_path: Path) -> None:
    fixed = load_image(files.fixed)
    budget = {"file": str(tmp_path / "releases.sqlite"), "max_values": 100_000}
    found = []
    for backend in ("clear", protocol):
        more = {} if backend == "clear" else {"budget": budget}
        settings = configuration(files, backend, sampler=GMS, **more).model_dump(mode="json")
        settings["transform"] |= {"decrease": 1e-5, "step_voxels": 1e-3}  # both to their minimum, not one step apart
        with started_parties():
            run(load_config(settings), tmp_path / backend)
        found.append(load_any_transform(tmp_path / backend / "transform.h5", fixed.grid))
    assert displacement_rmse(*found, foreground_points(fixed)) <= CLOSE_MM


# --- where a run stops


@pytest.fixture
def started() -> Iterator[Started]:
    with started_parties() as parties:
        yield parties


def test_at_the_cap_party_2_stops_and_party_1_keeps_the_best_transform(
    files: Files, started: Started, tmp_path: Path
) -> None:
    fixed = load_image(files.fixed)
    coarse = 2 * ControlLattice(fixed.grid, 24.0).count + 1
    cap = 200 + 4 * coarse  # the linear stage, and some products of the coarse lattice
    budget = {"file": str(tmp_path / "releases.sqlite"), "max_values": cap}
    with pytest.raises(PeerLost) as stopped:
        run(configuration(files, "beaver", budget=budget), tmp_path / "run")
    text = str(stopped.value)
    assert "\n" not in text
    assert f"of at most {cap} were given to 'party_1'" in text
    assert "budget.fraction or budget.max_values" in text
    assert stopped.value.exit_code == 3
    values = json.loads((tmp_path / "run" / "result.json").read_text())
    assert not values["complete"]
    assert values["budget"]["spent"] <= cap < values["budget"]["spent"] + RESULTS
    assert values["transform"]["kind"] == "bspline"
    truth, points = load_any_transform(files.truth, fixed.grid), foreground_points(fixed)
    kept = load_any_transform(tmp_path / "run" / "transform.h5", fixed.grid)
    assert displacement_rmse(kept, truth, points) < displacement_rmse(torch.nn.Identity(), truth, points)
    party_1 = json.loads((tmp_path / "run" / "party_1.json").read_text())
    assert "cap on released values" in party_1["error"]
    assert len(started) == 3


def test_the_ledger_stops_a_run_that_says_too_much(files: Files, started: Started, tmp_path: Path) -> None:
    """Without a linear stage: what stops it are the sums of control points."""
    config = configuration(files, "beaver", linear="none", ledger={"most": 0.01})
    with pytest.raises(PeerLost, match=r"more than ledger\.most = 1\.00%; the run stops here and keeps what it has"):
        run(config, tmp_path)
    values = json.loads((tmp_path / "result.json").read_text())
    assert not values["complete"]
    [entry] = values["ledger"]
    assert entry["explained"] - entry["own"] > 0.01
    one_product = 2 * ControlLattice(load_image(files.fixed).grid, 24.0).count + 1
    assert entry["opened"] == (len(values["history"]) + 1) * one_product
    assert values["transform"]["kind"] == "bspline"
    assert (tmp_path / "transform.h5").exists()
    assert len(started) == 3


@pytest.mark.parametrize("kind", ["bspline", "velocity"])
def test_a_backend_without_maps_is_refused_before_any_process_starts(kind: str, files: Files, started: Started) -> None:
    with pytest.raises(ConfigError) as refused:
        configuration(files, "ckks-v1", kind)
    line = str(refused.value)
    assert line == f"backend.kind: 'ckks-v1', with transform '{kind}' one of clear, beaver, spdz, bfv, ckks is needed"
    assert refused.value.exit_code == 2
    assert list(started) == []


# --- party_2 judges for itself

FULL = Level(1, 0.0)


@pytest.fixture(scope="module")
def image(pair: Callable[..., Any]) -> Image:
    made: Image = pair("affine", 2).fixed
    return made


def ask(source: PrivateFixed, public_map: Any, **changes: Any) -> None:
    """LEVEL as party_1 sends it, but for the changes."""
    about, weights = (None, []) if public_map is None else public_map.to_message()
    request: dict[str, Any] = {
        "level": {"shrink": 1, "smoothing_mm": 0.0},
        "rows": 3,
        "choice": {"kind": "full"},
        "columns": {"kind": "image", "transform": ""},
        "measure": {"kind": "ssd"},
        "map": about,
    }
    source.channel.at(0, -1)
    source.channel.send(MessageKind.LEVEL, pack(request | changes, weights))


def good_map(image: Image) -> PublicMap:
    return map_of(ControlLattice(image.grid, 12.0), image.grid, Sample(None, None))


def one_by_one(*shape: int) -> PublicMap:
    return PublicMap(shape, tuple(np.eye(n, dtype=np.int64) for n in shape), 1.0)


SMUGGLED: dict[str, Callable[[Image], tuple[Any, dict[str, Any]]]] = {
    "another grid": lambda image: (one_by_one(*image.grid.size), {}),
    "a larger grid": lambda image: (one_by_one(*(n + 1 for n in image.grid.shape)), {}),
    "another dimension": lambda image: (one_by_one(*image.grid.shape, 1), {}),
    "the grid of another level": lambda image: (good_map(image), {"level": {"shrink": 2, "smoothing_mm": 0.0}}),
    "more channels": lambda image: (replace(good_map(image), channels=2), {}),
    "fewer rows": lambda image: (good_map(image), {"rows": 2}),
    "more rows": lambda image: (good_map(image), {"rows": 4}),
    "moments": lambda image: (good_map(image), {"columns": {"kind": "moments", "transform": ""}}),
    "large weights": lambda image: (replace(good_map(image), matrices=(np.full((40, 2), 1 << 17),) * 2), {}),
    "no unit": lambda image: (replace(good_map(image), unit=0.0), {}),
    "no map": lambda image: (good_map(image), {"map": {}}),
    "a list": lambda image: (good_map(image), {"map": [40, 48]}),
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_party_1_cannot_smuggle_another_map(name: str, image: Image) -> None:
    """party_2 refuses before it says anything of its image, and charges nothing."""
    charged: list[int] = []
    party = FixedParty(image, charge=lambda count, _: charged.append(count))
    public_map, changes = SMUGGLED[name](image)

    def smuggle() -> None:
        with private_fixed("beaver", party) as source:
            ask(source, public_map, **changes)
            with pytest.raises(PeerLost, match="party_2 cannot go on"):
                source.channel.receive(MessageKind.OPERAND)

    with pytest.raises(LinkError, match="refused"):
        smuggle()
    assert charged == []


def test_the_points_of_a_map_are_those_that_party_2_draws(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that is smuggled in with the map (one voxel, of which each sum would tell) is not used."""
    maps: list[PublicMap] = []
    opens = BeaverFixedSide.open_mapped

    def recorded(side: BeaverFixedSide, header: OperandHeader, values: Tensor, public_map: PublicMap) -> FixedOperand:
        maps.append(public_map)
        return opens(side, header, values, public_map)

    monkeypatch.setattr(BeaverFixedSide, "open_mapped", recorded)
    with private_fixed("beaver", FixedParty(image)) as source:
        ask(source, replace(good_map(image), index=torch.tensor([777])))
        meta, _ = unpack(source.channel.receive(MessageKind.OPERAND).payload)
        assert meta["points"] == image.grid.count
        source.channel.receive(MessageKind.OPENED_OPERAND)
    assert [public_map.index for public_map in maps] == [None]


@pytest.mark.parametrize("choice", [Full(), Uniform(0.4, 3)], ids=["all", "URS"])
def test_a_map_as_fine_as_the_voxels_is_charged_for_every_sum(choice: Full | Uniform, image: Image) -> None:
    """party_1 may choose the lattice; what it opens, it is charged for, and the cap holds before anything is sent."""
    lattice = ControlLattice(image.grid, 1.0)
    count = 2 * lattice.count + 1
    assert count > 2 * image.grid.count
    charged: list[tuple[int, str]] = []

    def charge(number: int, kind: str) -> None:
        charged.append((number, kind))
        if sum(n for n, _ in charged) > 4 + count:
            raise BudgetExceeded("not more")

    def two_products() -> None:
        with private_fixed("beaver", FixedParty(image, charge=charge)) as source:
            operand = source.operand(OperandRequest(FULL, choice, 0, 3, lattice=lattice))
            rows = torch.ones(3, operand.header.points)
            operand.project(rows)
            assert charged == [(4, "operand"), (count, "products")]
            answered = source.channel.received[MessageKind.RESULT_SHARE]
            with pytest.raises(PeerLost):
                operand.project(rows)
            assert source.channel.received[MessageKind.RESULT_SHARE] == answered

    with pytest.raises(BudgetExceeded, match="not more"):
        two_products()


def test_a_protocol_without_maps_says_so_itself(image: Image) -> None:
    """Where the configuration did not: in one line, before anything of the image is sent."""

    def ask_for_it() -> None:
        with private_fixed("ckks-v1", FixedParty(image)) as source, pytest.raises((ConfigError, PeerLost)):
            source.operand(OperandRequest(FULL, Full(), 0, 3, lattice=ControlLattice(image.grid, 12.0)))

    with pytest.raises(ConfigError, match="backend ckks-v1: no deformable transforms"):
        ask_for_it()


# --- noise


def opened_with_noise(image: Image, noise: float) -> tuple[Tensor, float, Tensor, float]:
    """(fields, sum) of one product with noise, and without."""
    generator = torch.Generator().manual_seed(0)
    smooth = Image(image.tensor + 5 * torch.randn(image.tensor.shape, generator=generator), image.grid)
    values = []
    for share in (noise, 0.0):
        with private_fixed("beaver", FixedParty(image, noise=share)) as source:
            operand = source.operand(OperandRequest(FULL, Full(), 0, 3, lattice=ControlLattice(image.grid, 12.0)))
            warped = smooth.tensor.flatten() - operand.offset
            rows = torch.stack([*torch.gradient(smooth.tensor[0]), warped.reshape(image.grid.shape)]).flatten(1)
            _, fields, total = operand.project(rows)
            values.append((fields, total))
    return *values[0], *values[1]


def test_noise_on_the_fields_is_a_share_of_what_they_are(image: Image) -> None:
    noisy, _, exact, _ = opened_with_noise(image, 0.003)
    error = (noisy - exact).double()
    assert float(error.norm()) > 0
    assert float(error.norm()) < 0.1 * float(exact.norm())
    # Drawn for each value on its own.
    assert len(set(error.flatten().tolist())) > 0.9 * error.numel()


def test_noise_leaves_the_value_of_the_loss_usable(image: Image) -> None:
    """As if J had noise of this share in every voxel: then I . J would be off by noise |I| |J| / sqrt(N)."""
    _, noisy, _, exact = opened_with_noise(image, 0.003)
    assert abs(noisy - exact) < 0.01 * abs(exact)
