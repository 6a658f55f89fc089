"""Every loss, privately: ends where the clear run ends, with features that no party sends in clear."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from config.test_config import refused
from joint.ends import private_fixed
from parties.harness import Files, Started, started_parties, tapped_wires
from torch import Tensor, nn

from ppir_torch.config.images import fixed_party, load_config, moving_party
from ppir_torch.errors import ConfigError, LinkError, PpirError
from ppir_torch.images import Image, Level, load_image, save_image
from ppir_torch.joint.columns import Columns
from ppir_torch.losses import (
    Correlation,
    CorrelationRatio,
    LocalCorrelation,
    Measure,
    Mind,
    ModuleFeatures,
    MutualInformation,
    Smoothness,
    SquaredDifference,
)
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.optimizers import LBFGS, Stopping
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.registration import ClearFixed, Deformable, OperandRequest, Plan, register_images
from ppir_torch.runs.api import register
from ppir_torch.runs.images import run
from ppir_torch.sampling import Chunks, Full, GradientMagnitude, Uniform
from ppir_torch.transforms import BSpline, ControlLattice, linear_transform
from ppir_torch.transforms.smoothness import Regulariser

Make = Callable[..., Any]
PROTOCOLS = ("beaver", "spdz", "bfv", "ckks")
# `make test` has the whole runs of beaver and bfv, `make test-all` the others' as well.
WHOLE_RUNS = [pytest.param(name, marks=pytest.mark.slow if name in ("spdz", "ckks") else []) for name in PROTOCOLS]
LEVELS = (Level(2, 1.0), Level(1, 0.0))
BOUND_MM = 0.015
"""Between the private and the clear transform, everywhere on the fixed grid: rows of 11 to 14 bits, soft edges."""


@pytest.fixture(scope="session")
def pair(overlapping_pair: Make) -> Make:
    """Images that overlap in part, unlike in the rest of this folder."""
    return overlapping_pair


class Smooth(nn.Module):
    """Two channels: a blur, and what it takes away."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.pool = (nn.AvgPool2d if dimension == 2 else nn.AvgPool3d)(3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([self.pool(image), image - self.pool(image)], 1)


MEASURES: dict[str, Callable[[int], Measure]] = {
    "ncc": lambda _: Correlation(),
    "local_ncc": lambda _: LocalCorrelation(),
    "mind": lambda _: Mind(1, 1),
    "cr": lambda _: CorrelationRatio(12),
    "module": lambda dimension: ModuleFeatures(Smooth(dimension).eval(), 2),
}
SAMPLERS = {"full": Full(), "urs": Uniform(0.4, 3), "chunks": Chunks(0.4, 3), "gms": GradientMagnitude(0.4, 3)}
RUNS = [
    *(
        pytest.param(name, 2, sampler, *protocol.values, marks=protocol.marks)
        for name in MEASURES
        for sampler in ("full", "urs")
        for protocol in WHOLE_RUNS
    ),
    *((name, 2, sampler, "beaver") for name in MEASURES for sampler in ("chunks", "gms")),
    ("mind", 2, "chunks", "bfv"),
    ("ncc", 2, "gms", "bfv"),
    *((name, 3, "full", "beaver") for name in ("ncc", "local_ncc", "cr", "module")),
    *((name, 3, "full", "bfv") for name in ("ncc", "cr", "module")),
    *(pytest.param("mind", 3, "full", protocol, marks=pytest.mark.slow) for protocol in PROTOCOLS),
]


def apart(a: Any, b: Any, fixed: Image) -> float:
    """mm, over every point of the fixed grid."""
    return displacement_rmse(a.transform, b.transform, fixed.grid.points(dtype=torch.float64))


@pytest.mark.parametrize(("name", "dimension", "sampler", "protocol"), RUNS)
def test_a_private_run_ends_where_the_clear_run_ends(
    protocol: str, sampler: str, dimension: int, name: str, pair: Make
) -> None:
    images, measure = pair("affine", dimension), MEASURES[name](dimension)
    plan = Plan(loss=measure, sampler=SAMPLERS[sampler], levels=LEVELS)
    clear = register_images(images.moving, ClearFixed(images.fixed), plan)
    with private_fixed(protocol, FixedParty(images.fixed, measure=MEASURES[name](dimension))) as source:
        private = register_images(images.moving, source, plan)
        ledgers = source.ledger_rows()
    assert private.complete, private.error
    # A spline of the intensities more to choose leaves a phantom's few points less to hold on to.
    assert apart(private, clear, images.fixed) <= (5 if name == "cr" and sampler != "full" else 1) * BOUND_MM
    assert private.history[0].iteration.value == pytest.approx(clear.history[0].iteration.value, rel=0.02)
    points = measure.channels(dimension) * images.fixed.at_level(LEVELS[0]).grid.count
    assert ledgers[0]["points"] == (
        round(0.4 * points / measure.channels(dimension)) * measure.channels(dimension) if sampler == "urs" else points
    )
    assert all(0 <= row["explained"] <= 1 and row["opened"] > 0 for row in ledgers)


INFORMATION_RUNS = [
    *(("beaver", 2, sampler) for sampler in SAMPLERS),
    *(pytest.param("spdz", 2, sampler, marks=pytest.mark.slow) for sampler in ("full", "urs")),
    ("bfv", 2, "full"),
    pytest.param("ckks", 2, "full", marks=pytest.mark.slow),
    *(pytest.param(protocol, 2, "urs", marks=pytest.mark.slow) for protocol in ("bfv", "ckks")),
    ("beaver", 3, "full"),
]
INFORMATION_BOUND_MM = {"bfv": 0.06}
"""Where it is not `BOUND_MM`. Words of bfv leave rows of 11 bits: 0.003 to 0.044 mm, voxels are 1.5 and 2 mm."""


@pytest.mark.parametrize(("protocol", "dimension", "sampler"), INFORMATION_RUNS)
def test_a_private_run_of_mutual_information_ends_where_the_clear_run_ends(
    protocol: str, dimension: int, sampler: str, pair: Make
) -> None:
    """0.001 to 0.007 mm apart. party_2 is charged K_m K_f + D (D + 1) values an iteration, and four an operand."""
    images, measure, charged = (
        pair("affine", dimension),
        MutualInformation(16, 8),
        dict.fromkeys(("products", "operand"), 0),
    )

    def charge(count: int, kind: str) -> None:
        charged[kind] += count

    stopping = Stopping(max_iterations=60, decrease=1e-7)
    plan = Plan("affine", LEVELS, SAMPLERS[sampler], LBFGS(), stopping, loss=measure)
    clear = register_images(images.moving, ClearFixed(images.fixed), plan)
    with private_fixed(protocol, FixedParty(images.fixed, charge=charge, measure=measure)) as source:
        private = register_images(images.moving, source, plan)
        ledgers = source.ledger_rows()
    assert private.complete, private.error
    assert apart(private, clear, images.fixed) <= INFORMATION_BOUND_MM.get(protocol, BOUND_MM)
    assert private.history[0].iteration.value == pytest.approx(clear.history[0].iteration.value, rel=1e-3)
    an_iteration = 16 * 8 + dimension * (dimension + 1)
    assert charged == {"products": an_iteration * len(private.history), "operand": 4 * len(LEVELS)}
    for ledger in ledgers:
        iterations = sum(h.level == ledger["operand"] for h in private.history)
        assert ledger["opened"] == an_iteration * iterations
        assert 0 < ledger["rank"] <= 16 * iterations
        assert 0 <= ledger["own"] <= ledger["explained"] <= 1


def test_nothing_of_j_is_in_what_party_2_says_of_its_bins(dimension: int, pair: Make) -> None:
    """Two images of one grid: no range, mean, energy or histogram is told."""
    images, measure, said = pair("affine", dimension), MutualInformation(), []
    noise = torch.rand(images.fixed.tensor.shape, generator=torch.Generator().manual_seed(0))
    for fixed in (images.fixed, Image(1e4 * noise - 3e5, images.fixed.grid)):
        with private_fixed("beaver", FixedParty(fixed, measure=measure)) as source:
            operand = source.operand(OperandRequest(Level(1, 0.0), rows=24, columns=measure.columns(), measure=measure))
            said.append((operand.header, operand.sample_mean_square, operand.level_mean_square, operand.gram))
    assert said[0] == said[1]
    assert said[0][0].offset == said[0][1] == said[0][2] == 0.0


@pytest.mark.parametrize(
    ("agreed", "asked", "columns"),
    [
        (SquaredDifference(), MutualInformation(), Columns("bins", bins=8)),
        (MutualInformation(), SquaredDifference(), Columns()),
        (MutualInformation(16, 8), MutualInformation(16, 9), Columns("bins", bins=9)),
        (MutualInformation(16, 8), MutualInformation(15, 8), Columns("bins", bins=8)),
        # The agreed loss, and other columns for it: values, mean and energy of J itself, or a finer histogram.
        (MutualInformation(), MutualInformation(), Columns()),
        (MutualInformation(), MutualInformation(), Columns("moments")),
        (MutualInformation(), MutualInformation(), Columns("bins", bins=64)),
        (SquaredDifference(), SquaredDifference(), Columns("bins", bins=8)),
    ],
    ids=str,
)
def test_party_2_makes_the_bins_it_agreed_to_and_no_others(
    agreed: Measure, asked: Measure, columns: Columns, pair: Make
) -> None:
    with (
        pytest.raises(LinkError, match=r"(was asked for, this party agreed to .*|bins of loss '\w+'); refused"),
        private_fixed("beaver", FixedParty(pair("affine", 2).fixed, measure=agreed)) as source,
        pytest.raises(PpirError),
    ):
        source.operand(OperandRequest(Level(1, 0.0), rows=24, columns=columns, measure=asked))


@pytest.mark.parametrize("kind", ["bspline", pytest.param("velocity", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("protocol", WHOLE_RUNS)
def test_a_deformable_run_ends_where_the_clear_run_ends(protocol: str, name: str, kind: str, pair: Make) -> None:
    images, measure = pair("affine", 2), MEASURES[name](2)
    deformable = Deformable(kind, 12.0, levels=(Level(2, 1.0),))
    plan = Plan("translation", loss=measure, levels=(Level(2, 1.0),), sampler=Uniform(0.6, 1), deformable=deformable)
    clear = register_images(images.moving, ClearFixed(images.fixed), plan)
    with private_fixed(protocol, FixedParty(images.fixed, measure=measure)) as source:
        private = register_images(images.moving, source, plan)
    assert private.complete, private.error
    points = foreground_points(images.fixed)
    assert displacement_rmse(private.transform, clear.transform, points) <= 0.25, "a twelfth of the level's voxel"
    assert private.history[-1].iteration.value < 0.5 * private.history[0].iteration.value


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_t1_and_pd_privately(protocol: str, shared_data: Path) -> None:
    """Two modalities at full size, affine: 1e-5 to 3e-4 mm were measured between the private and the clear run."""
    folder = shared_data / "01_itk2d_brain_known"
    fixed, moving = (load_image(folder / f"{n}.png") for n in ("fixed_t1_border20", "moving_pd_R10X13Y17S12"))
    plan = Plan(loss=Mind(), levels=tuple(Level(n, 0.0 if n == 1 else n / 2) for n in (4, 2, 1)))
    clear = register_images(moving, ClearFixed(fixed), plan)
    with private_fixed(protocol, FixedParty(fixed, measure=Mind())) as source:
        assert apart(register_images(moving, source, plan), clear, fixed) <= BOUND_MM


DEFORMABLE_RUNS = [
    *((name, protocol, 2) for name in MEASURES for protocol in PROTOCOLS),
    *((name, protocol, 3) for name in MEASURES if name != "mind" for protocol in ("beaver", "spdz")),
    *(pytest.param("mind", protocol, 3, marks=pytest.mark.slow) for protocol in ("beaver", "spdz")),
]


@pytest.mark.parametrize(("name", "protocol", "dimension"), DEFORMABLE_RUNS)
def test_a_deformable_gradient_is_that_of_the_clear_loss(protocol: str, name: str, dimension: int, pair: Make) -> None:
    """One linearisation off the optimum: rows of 11 bits, columns of 12, weights of 1/256."""
    images, measure, level = pair("affine", dimension), MEASURES[name](dimension), Level(2, 1.0)
    lattice = ControlLattice(images.fixed.grid, 12.0 if dimension == 2 else 24.0)
    outer = linear_transform("translation")(images.fixed.grid)
    outer.translation.data.copy_(images.moving.grid.centre - images.fixed.grid.centre)
    smooth = Smoothness(Regulariser.of("bending", lattice.size, lattice.control_spacing, lattice.grid.direction), 1.0)
    rows = dimension + 1
    with private_fixed(protocol, FixedParty(images.fixed, measure=measure)) as source:
        found = []
        for fixed in (ClearFixed(images.fixed), source):
            asked = OperandRequest(level, Uniform(0.7, 2), 0, rows, lattice=lattice, measure=measure)
            operand = fixed.operand(replace(asked, rows_beside=measure.rows_beside()))
            features = measure.features(images.moving.at_level(level), operand.grid)
            loss = measure.deformable_loss(operand, BSpline(lattice), outer, smooth)
            found.append(loss.linearise(features))
    clear, private = found
    assert (private.gradient - clear.gradient).norm() < 0.01 * clear.gradient.norm()
    assert private.value == pytest.approx(clear.value, rel=0.02)
    v = torch.randn(clear.gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert private.curvature(v) == pytest.approx(clear.curvature(v), rel=0.01)


def test_moments_and_rows_say_the_same(dimension: int, pair: Make) -> None:
    """Both kinds of product, over features: the gradients agree to the rounding."""
    images = pair("affine", dimension)
    transform = linear_transform("affine")(images.fixed.grid)
    transform.translation.data.copy_(images.moving.grid.centre - images.fixed.grid.centre)
    for make in MEASURES.values():
        measure = make(dimension)
        features = measure.features(images.moving, images.fixed.grid)
        clear = measure.loss(ClearFixed(images.fixed).operand(OperandRequest(Level(1, 0.0), measure=measure)))
        expected = clear.linearise(transform, features).gradient
        with private_fixed("beaver", FixedParty(images.fixed, measure=measure)) as source:
            for columns in (Columns(), Columns("moments")):
                operand = source.operand(OperandRequest(Level(1, 0.0), rows=16, columns=columns, measure=measure))
                found = measure.loss(operand).linearise(transform, features).gradient
                # Of J itself: 12 bits of its largest entry.
                assert (found - expected).norm() < 0.01 * expected.norm(), (measure, columns)


# --- what was agreed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agreed", "asked"),
    [
        (SquaredDifference(), Mind()),
        (Mind(), SquaredDifference()),
        (Mind(2, 2), Mind(1, 2)),
        (SquaredDifference(), Correlation()),
        (LocalCorrelation(4.0), LocalCorrelation(0.5)),
        (
            ModuleFeatures(nn.Conv2d(1, 2, 3, padding=1).eval(), 2),
            ModuleFeatures(nn.Conv2d(1, 2, 3, padding=1).eval(), 2),
        ),
    ],
    ids=lambda m: m.kind,
)
def test_party_2_makes_what_it_agreed_to_and_nothing_else(agreed: Measure, asked: Measure, pair: Make) -> None:
    images = pair("affine", 2)
    with (
        pytest.raises(LinkError, match=r"was asked for, this party agreed to .*; refused"),
        private_fixed("beaver", FixedParty(images.fixed, measure=agreed)) as source,
        pytest.raises(PpirError),
    ):
        source.operand(OperandRequest(Level(1, 0.0), measure=asked))


def test_steepest_descent_images_of_features_are_refused(pair: Make) -> None:
    party = FixedParty(pair("affine", 2).fixed, measure=Correlation(), disclose_gram=True)
    with (
        pytest.raises(LinkError, match="steepest-descent images of loss 'ncc'"),
        private_fixed("beaver", party) as source,
        pytest.raises(PpirError),
    ):
        source.operand(
            OperandRequest(Level(1, 0.0), columns=Columns("steepest_descent", "rigid"), measure=Correlation())
        )


def test_mean_and_variance_are_not_told_of_a_correlation(pair: Make) -> None:
    """All that party_1 has of the operand is the same for J and for an affine image of J."""
    images = pair("affine", 2)
    headers = []
    for fixed in (images.fixed, Image(40 + 0.5 * images.fixed.tensor, images.fixed.grid)):
        with private_fixed("beaver", FixedParty(fixed, measure=Correlation())) as source:
            operand = source.operand(OperandRequest(Level(1, 0.0), rows=7, measure=Correlation()))
            headers.append((operand.header, operand.sample_mean_square, operand.level_mean_square))
    assert headers[0][0].offset == 0.0
    assert replace(headers[0][0], scale=1.0, energy=0) == replace(headers[1][0], scale=1.0, energy=0)
    assert headers[0][0].scale == pytest.approx(headers[1][0].scale, rel=1e-5)
    assert headers[0][1] == pytest.approx(headers[1][1], rel=1e-5)


# --- whole runs, each party a process ---------------------------------------------------------------------------------

LOSSES: dict[str, dict[str, Any]] = {
    "ncc": {"kind": "ncc"},
    "local_ncc": {"kind": "local_ncc", "radius_mm": 9.0, "floor": 0.2, "noise": 0.0},
    "mind": {"kind": "mind", "radius": 1, "dilation": 2},
    "cr": {"kind": "cr", "windows": 12},
}
J_IS = {
    "ncc": "zero mean and unit variance",
    "local_ncc": "locally normalised",
    "mind": "MIND descriptors",
    "cr": "J's sums over the windows",
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_configured_run(name: str, site_files: Make, clear_run: Make, tmp_path: Path) -> None:
    files = site_files("affine", 2)
    preprocess = {"moving": {"clip": [0, 99], "rescale": [0, 1000]}, "fixed": {"rescale": [-1.0, 1.0]}}
    settings = {"loss": LOSSES[name], "data": {"preprocess": preprocess}}
    clear, folder = clear_run("affine", 2, **settings)
    settings["data"] = settings["data"] | {"reference": str(folder / "transform.tfm")}
    with started_parties():
        result = run(files.configuration("beaver", **settings), tmp_path)
    assert result["complete"], result["error"]
    assert result["rmse_to_clear_mm"] <= BOUND_MM
    for values in (result, clear):
        assert values["loss"] == name
        assert {"kind": name} | values["loss_settings"] == LOSSES[name]
        assert "ssd" not in values
        assert values["value"] == [h for h in values["history"] if h["accepted"]][-1]["value"]
    assert any(J_IS[name] in line for line in result["disclosed"]["party_1"])
    # The file that is written has the intensities of the one that was read.
    moving, warped = load_image(files.moving), load_image(tmp_path / "warped.nii.gz")
    assert float(warped.tensor.max()) > 0.7 * float(moving.tensor.max())
    assert float(warped.tensor.max()) <= float(moving.tensor.max()) + 1e-3


def test_preprocessing_is_each_partys_own(site_files: Make, started: Started, tmp_path: Path) -> None:
    files: Files = site_files("rigid", 2)
    masks = {name: tmp_path / f"{name}-own-mask.mha" for name in ("moving", "fixed")}
    for name, path in masks.items():
        image = load_image(getattr(files, name))
        save_image(Image((image.tensor > image.tensor.median()).float(), image.grid), path)
    preprocess = {"moving": {"clip": [1.25, 98.75], "mask": str(masks["moving"])}}
    preprocess["fixed"] = {"rescale": [3.5, 77.125], "mask": str(masks["fixed"])}
    config = files.configuration("beaver", "rigid", loss={"kind": "ncc"}, data={"preprocess": preprocess})
    result = run(config, tmp_path / "run")
    assert result["complete"], result["error"]
    own = {"party_1": ("1.25", "98.75", masks["moving"].name), "party_2": ("3.5", "77.125", masks["fixed"].name)}
    for role, others in (("party_1", "party_2"), ("party_2", "party_1"), ("dealer", "party_1"), ("dealer", "party_2")):
        assert all(text in started.configs[others] for text in own[others])
        assert not any(text in started.configs[role] for text in own[others])
    one, two = moving_party(config), fixed_party(config)
    assert (one.preprocess.clip, one.preprocess.rescale) == ((1.25, 98.75), None)
    assert (two.preprocess.clip, two.preprocess.rescale) == (None, (3.5, 77.125))
    # Not told, but the same cap: the image is that of the file.
    plain = run(files.configuration("beaver", "rigid", loss={"kind": "ncc"}), tmp_path / "plain")
    assert plain["budget"]["image"] == result["budget"]["image"]


def test_no_wire_holds_features(site_files: Make, tmp_path: Path) -> None:
    """Values of either image's descriptors, as floats or as the integers of the operand: none in the streams."""
    files: Files = site_files("affine", 2)
    config = files.configuration("beaver", loss={"kind": "mind"}, pyramid={"levels": [{"shrink": 1}]})
    with started_parties(), tapped_wires() as taps:
        assert run(config, tmp_path)["complete"]
    wires = b"".join(taps.streams.values())
    grid = load_image(files.fixed).grid
    for path in (files.fixed, files.moving):
        channels = Mind().features(load_image(path), grid).tensor.flatten(1).double()
        integers = (
            (channels - float(channels.mean())) / float((channels - channels.mean()).abs().max()) * 2047
        ).round()
        for values, kinds in ((channels, ("<f4", "<f8")), (integers, ("<i4", "<i8", "<i2"))):
            for channel in values.numpy():
                middle = channel[channel.size // 2 : channel.size // 2 + 6]
                for kind in kinds:
                    pattern = np.ascontiguousarray(middle.astype(kind)).tobytes()
                    assert len(set(middle.tolist())) < 4 or pattern not in wires
    # Control: what is sent in clear would be found.
    matrix = np.asarray(grid.direction, "<f8")
    assert json.dumps(matrix.tolist()[0])[:8].encode() in wires


# --- refusals ---------------------------------------------------------------------------------------------------------


def settings(**more: Any) -> dict[str, Any]:
    return {
        "data": {"moving": "m.nii.gz", "fixed": "f.nii.gz"} | more.pop("data", {}),
        "backend": {"kind": "bfv"},
    } | more


KINDS = "ssd, ncc, ncc_squared, local_ncc, mind, cr, mi"


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        (
            settings(loss={"kind": "cc"}),
            f"loss.kind: 'cc', one of {KINDS} is needed",
        ),
        (
            settings(loss={"kind": "module"}),
            f"loss.kind: 'module', one of {KINDS} is needed",
        ),
        (settings(loss={"kind": "mind", "radius": -1}), "loss.radius: -1, an integer >= 0 and <= 16 is needed"),
        (settings(loss={"kind": "mind", "dilation": 0}), "loss.dilation: 0, an integer >= 1 and <= 16 is needed"),
        (settings(loss={"kind": "mind", "radius": 1.5}), "loss.radius: 1.5, an integer >= 0 and <= 16 is needed"),
        (
            settings(loss={"kind": "local_ncc", "radius_mm": 0}),
            "loss.radius_mm: 0, a number > 0 and <= 1000 (or null) is needed",
        ),
        (settings(loss={"kind": "local_ncc", "floor": 0}), "loss.floor: 0, a number >= 0.001 and <= 10 is needed"),
        (
            settings(loss={"kind": "ncc", "radius": 2}),
            "loss.radius: not a setting of ncc; beside kind it takes nothing else",
        ),
        (
            settings(loss={"kind": "mind"}, optimizer={"kind": "inverse_compositional"}),
            "optimizer.kind: 'inverse_compositional', with loss 'mind' gauss_newton, lbfgs or adam is needed: "
            "party_2's steepest-descent images are those of ssd",
        ),
        (
            settings(loss={"kind": "ncc"}, backend={"kind": "ckks-v1", "allow_insecure": True}),
            "loss.kind: 'ncc', with backend 'ckks-v1' (the published protocol) ssd is needed",
        ),
        (
            settings(data={"preprocess": {"moving": {"clip": [50, 50]}}}),
            "data.preprocess.moving.clip: [50, 50], two percentiles [low, high] with 0 <= low < high <= 100 are needed "
            "(or null)",
        ),
        (
            settings(data={"preprocess": {"fixed": {"rescale": [1]}}}),
            "data.preprocess.fixed.rescale: [1], two numbers [low, high] with low < high, of magnitude 1e9 at most, "
            "are needed (or null)",
        ),
        (
            settings(data={"preprocess": {"fixed": {"clip": "1,99"}}}),
            "data.preprocess.fixed.clip: '1,99', two percentiles [low, high] with 0 <= low < high <= 100 are needed "
            "(or null)",
        ),
        (
            settings(data={"preprocess": {"fixed": {"gamma": 2}}}),
            "data.preprocess.fixed.gamma: unknown key, known here: rescale, clip, mask, window, equalise",
        ),
    ],
)
def test_bad_settings_are_one_line(mapping: dict[str, Any], line: str) -> None:
    assert refused(mapping) == [line]


def test_a_mask_alone_preprocesses_nothing() -> None:
    [line] = refused(settings(data={"preprocess": {"fixed": {"mask": "mask.mha"}}}))
    assert line.startswith("data.preprocess.fixed: ")
    assert line.endswith("mask goes with rescale, clip or equalise, whose values are taken over its voxels")


def test_register_takes_losses_by_name_and_settings(pair: Make, tmp_path: Path) -> None:
    images = pair("rigid", 2)
    how = {"transform": "rigid", "levels": (2,)}
    for loss in ("ncc", {"kind": "mind", "radius": 1}):
        result = register(images.moving, images.fixed, loss=loss, preprocess={"moving": {"clip": (1, 99)}}, **how)
        assert result.loss == (loss if isinstance(loss, str) else "mind")
        assert result.metrics["value"] == result.value
    with pytest.raises(ConfigError, match="networks: register_images"):
        register(images.moving, images.fixed, loss=Smooth(2), **how)  # type: ignore[arg-type]
    mask = tmp_path / "mask.mha"
    save_image(Image(torch.zeros_like(images.fixed.tensor), images.fixed.grid), mask)
    with pytest.raises(PpirError, match="empty mask"):
        register(images.moving, images.fixed, preprocess={"fixed": {"clip": (1, 99), "mask": str(mask)}}, **how)


def test_yaml_never_names_a_module() -> None:
    """A configuration comes from others: no kind of loss in it loads code."""
    kinds = ["ssd", "ncc", "local_ncc", "mind", "cr", "mi"]
    assert [load_config(settings(loss={"kind": kind})).loss.kind for kind in kinds] == kinds
    with pytest.raises(ConfigError):
        load_config(settings(loss={"kind": "ssd", "_target_": "os.system"}))


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_a_map_of_another_number_of_channels_is_refused(channels: int, pair: Make) -> None:
    """Points and channels are public; party_2 compares what party_1 says of them with its own."""
    images = pair("affine", 2)

    lattice = ControlLattice(images.fixed.grid, 12.0)

    class Lying(Mind):
        def channels(self, dimension: int) -> int:  # noqa: ARG002
            return channels

    with (
        pytest.raises(LinkError, match=f"map: of {channels} channels, the operand has 4; refused"),
        private_fixed("beaver", FixedParty(images.fixed, measure=Mind())) as source,
        pytest.raises(PpirError),
    ):
        source.operand(OperandRequest(Level(1, 0.0), rows=3, lattice=lattice, measure=Lying()))
