"""Runs from Python: `register` two images, `align_points` of two sets, in clear or privately.

Both take a configuration (as `ppir run` and `ppir points` write it beside their results), or a few shorthands, or both:
a shorthand that is given goes before what the configuration says.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..config.images import RunConfig, load_config
from ..config.points import PointsConfig, load_points_config
from ..config.protocols import PROTOCOLS
from ..config.samplers import SAMPLERS
from ..errors import ConfigError, RegistrationFailed
from ..images import Image, load_image, save_image
from ..optimizers import Iteration
from ..registration import Finding, LevelFacts, LevelIteration, Result
from ..transforms import Affine, load_transform
from .images import found_transform, run
from .points import TRANSFORM, linear_grid, run_points
from .shorthands import base_values, levels_group, merged, named, path_text, start_group, values_of

__all__ = ["PointsResult", "align_points", "register"]

log = logging.getLogger(__name__)


def register(
    moving: Image | str | Path | None = None,
    fixed: Image | str | Path | None = None,
    transform: str | Mapping[str, Any] | None = None,
    backend: str | None = None,
    sampler: str | None = None,
    fraction: float | None = None,
    seed: int | None = None,
    levels: str | Sequence[int | Sequence[int]] | None = None,
    optimizer: str | None = None,
    start: str | None = None,
    moving_mask: str | Path | None = None,
    fixed_mask: str | Path | None = None,
    disclose_mask: bool | None = None,
    truth: str | Path | None = None,
    threads: int | None = None,
    output: str | Path | None = None,
    releases: str | Path | None = None,
    max_values: int | None = None,
    noise: float | None = None,
    disclose_points: bool | None = None,
    allow_insecure: bool | None = None,
    loss: str | Mapping[str, Any] | None = None,
    preprocess: Mapping[str, Mapping[str, Any]] | None = None,
    preset: str | None = None,
    turns: float | None = None,
    *,
    config: RunConfig | Mapping[str, Any] | None = None,
) -> Result:
    """Register two images, in clear or privately (`backend` "bfv", "beaver", ...: each party a process of its own).

    What is left at None is as `config` says, or else as the configuration's own default is (named below).

    Args:
        moving: image or file of party_1.
        fixed: image or file of party_2. Give a file where this process should not hold it.
        transform: "translation", "rigid", "similarity", "affine" (the default); "bspline" or "velocity" (a linear
            stage, then deformable), or a mapping with the kind and its settings, see `DeformableConfig`.
        backend: "clear" (without a `config`, the default), "auto", "beaver", "spdz", "bfv", "ckks", or "ckks-v1" (with
            `allow_insecure`; a baseline).
        sampler: "none" (the default), "urs", "chunks" or "gms", with `fraction` (0.1) of the points.
        seed: of the sampler (0).
        levels: "auto" (the default: powers of two from the fixed image's size), or shrink factors, coarse to fine: each
            a number, or one an axis (x, y[, z]).
        optimizer: "gauss_newton", "lbfgs", "inverse_compositional" or "adam"; by default what suits the loss ("lbfgs"
            for "mi", else "gauss_newton").
        start: "centres" (the default), "identity", "centre_of_mass" (clear runs), or the path of an ITK transform.
        moving_mask: file of the moving image's voxels that count; party_1 alone reads it, nobody is told.
        fixed_mask: foreground of the fixed image; private runs tell it to party_1 and need `disclose_mask`.
        truth: known ITK transform to compare with.
        threads: of each process (2).
        output: folder for the files; a temporary one where neither this nor the configuration names one.
        releases: party_2's SQLite file of released values; by default the site's own.
        max_values: its cap, over all runs; by default 5 % of the fixed image's foreground voxels.
        noise: party_2's noise on every product, as a share of the fixed image (0).
        disclose_points: with sampler "gms": party_2 may learn the points, and the cost falls with the fraction.
        allow_insecure: let "ckks-v1" run.
        loss: "ncc_squared" (squared correlation, the default where optimiser, protocol and sampler go with it), "ssd",
            "ncc" (correlation), "local_ncc", or across modalities "mind", "cr" (correlation ratio) or "mi" (mutual
            information), or a mapping with the kind and its settings, see `ppir_torch.config.losses`. A network's
            features go with `register_images` only.
        preprocess: of the intensities, each party's own: {"moving": {"clip": (1, 99)}, "fixed": {...}}, with `clip`
            (percentiles), `rescale` (low, high) and `mask` (the file of the voxels that these are taken from),
            `window` (low, high; in the image's unit) and `equalise` (True: equal counts).
        preset: for whom: "same_person", "follow_up", "between_subjects" or "across_modalities"; what else is given goes
            before what it says (`ppir_torch.config.presets`).
        turns: degrees by which the images may lie turned to each other: the coarsest level is tried from some turns of
            the start (0).
        config: a configuration (`load_config`, or a mapping such as `config.yaml` holds), in the place of a preset.

    Returns:
        Result with transform, warped, history, `levels` and `warnings` (which are logged, too), and `metrics` (the
        values of result.json).

    Raises:
        PpirError: bad input, one clear line.
        RegistrationFailed: the run collapsed, ran away or lost all overlap; its `result` has what was found before.

    >>> import torch
    >>> from ppir_torch import Grid, Image
    >>> x = Grid((32, 32)).points() - 16
    >>> blob = Image((100 * torch.exp(-(x**2).sum(1) / 60)).reshape(1, 32, 32), Grid((32, 32)))
    >>> register(blob, blob, transform="translation").metrics["complete"]
    True
    >>> settings = {"transform": {"kind": "rigid"}, "backend": {"kind": "clear"}, "threads": 1}
    >>> register(blob, blob, levels=(2,), config=settings).metrics["transform"]["kind"]
    'rigid'
    """
    if loss is not None and not isinstance(loss, str | Mapping):
        raise ConfigError(f"loss: {type(loss).__name__}, a name or a mapping is needed; networks: register_images")
    base = base_values(config, preset)
    if config is None and backend is None:  # of a configuration a lost line never makes a private run a clear one
        backend = "clear"
    sampling = {"fraction": fraction, "disclose_points": disclose_points}
    with tempfile.TemporaryDirectory(prefix="ppir-") as scratch:
        given = {
            "transform": {"kind": transform} if isinstance(transform, str) else transform,
            "loss": {"kind": loss} if isinstance(loss, str) else loss,
            "optimizer": None if optimizer is None else {"kind": optimizer},
            "backend": named(backend, base.get("backend"), PROTOCOLS, {"allow_insecure": allow_insecure}),
            "sampler": named(sampler, base.get("sampler", {"kind": "none"}), SAMPLERS, sampling),
            "pyramid": {"levels": levels_group(levels)},
            "start": start_group(start, turns, base.get("start")),
            "data": {
                "moving": _image_file(moving, Path(scratch) / "moving.mha"),
                "fixed": _image_file(fixed, Path(scratch) / "fixed.mha"),
                "moving_mask": path_text(moving_mask),
                "fixed_mask": path_text(fixed_mask),
                "disclose_mask": disclose_mask,
                "truth": path_text(truth),
                "preprocess": preprocess,
            },
            "budget": {"file": path_text(releases), "max_values": max_values, "noise": noise},
            "seed": seed,
            "threads": threads,
            "output": path_text(output),
        }
        checked = load_config(merged(base, given))
        folder = checked.output or Path(scratch) / "run"
        try:
            result = _result(run(checked, folder), folder)
        except RegistrationFailed as failed:
            failed.result = _result(failed.values, folder)
            raise
    for warning in result.warnings:
        log.warning("%s; try %s", warning.message, warning.advice)
    return result


@dataclass(frozen=True)
class PointsResult:
    """What `align_points` gives.

    Attributes:
        transform: fixed points to moving points, mm.
        metrics: the values of result.json (docs/result-schema.md).
    """

    transform: Affine
    metrics: dict[str, Any]


def align_points(
    moving: Tensor | str | Path | None = None,
    fixed: Tensor | str | Path | None = None,
    transform: str | None = None,
    backend: str | None = None,
    correspondence: str | None = None,
    columns: str | None = None,
    truth: str | Path | None = None,
    output: str | Path | None = None,
    releases: str | Path | None = None,
    max_values: int | None = None,
    disclose_spread: bool | None = None,
    threads: int | None = None,
    figure: bool | None = None,
    *,
    config: PointsConfig | Mapping[str, Any] | None = None,
) -> PointsResult:
    """Align two point sets, in clear or privately (`backend` "beaver", ...: each party a process of its own).

    What is left at None is as `config` says, or else as the configuration's own default is (named below).

    Args:
        moving: points (n, D) mm or file of party_1.
        fixed: points (n, D) mm or file of party_2, in the same order. A file where this process should not hold it.
        transform: "rigid" (the default) or "similarity".
        backend: "clear" (without a `config`, the default), "beaver", "spdz", "bfv" or "ckks".
        correspondence: "known" (the default), or "closest" (clear only): iterative closest points.
        columns: names of the columns x, y[, z] of .csv files, with commas between them.
        truth: known ITK transform to compare with, at the fixed points.
        output: folder for the files; a temporary one where neither this nor the configuration names one.
        releases: party_2's SQLite file of released values; by default the site's own.
        max_values: its cap, over all runs; by default a quarter of the set's coordinates.
        disclose_spread: whether party_2 discloses its sum of squares (it does), without which there is no residual.
        threads: of each process (1).
        figure: draw both sets before and after (a private run's are read here, after the parties have ended).
        config: a configuration (`load_points_config`, or a mapping such as `config.yaml` holds).

    Raises:
        PpirError: bad input, one clear line.

    >>> import torch
    >>> z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> found = align_points(z + 3, z)
    >>> [round(v, 6) for v in found.metrics["transform"]["offset_mm"]]
    [3.0, 3.0]
    """
    base = values_of(config)
    if config is None and backend is None:  # of a configuration a lost line never makes a private run a clear one
        backend = "clear"
    with tempfile.TemporaryDirectory(prefix="ppir-") as scratch:
        given = {
            "moving": _points_file(moving, Path(scratch) / "moving.npy"),
            "fixed": _points_file(fixed, Path(scratch) / "fixed.npy"),
            "moving_columns": columns,
            "fixed_columns": columns,
            "transform": transform,
            "backend": None if backend is None else {"kind": backend},
            "correspondence": correspondence,
            "disclose_spread": disclose_spread,
            "budget": {"file": path_text(releases), "max_values": max_values},
            "truth": path_text(truth),
            "figure": figure,
            "threads": threads,
            "output": path_text(output),
        }
        checked = load_points_config(merged(base, given))
        folder = checked.output or Path(scratch) / "run"
        values = run_points(checked, folder)
        grid = linear_grid(len(values["transform"]["offset_mm"]))
        return PointsResult(load_transform(folder / TRANSFORM, grid), values)


def _image_file(image: Image | str | Path | None, path: Path) -> str | None:
    if not isinstance(image, Image):
        return path_text(image)
    save_image(image, path)
    return str(path)


def _points_file(points: Tensor | str | Path | None, path: Path) -> str | None:
    if not isinstance(points, Tensor):
        return path_text(points)
    np.save(path, points.detach().cpu().double().numpy())
    return str(path)


def _result(values: Mapping[str, Any], folder: Path) -> Result:
    warped = load_image(folder / "warped.nii.gz")
    history = [
        LevelIteration(
            level=h["level"],
            levels=1 + max(other["level"] for other in values["history"]),
            shrink=h["shrink"],
            points=h["points"],
            iteration=Iteration(h["iteration"], h["value"], h["accepted"], h["step_mm"], h["damping"]),
            seconds=h["seconds"],
        )
        for h in values["history"]
    ]
    transform = found_transform(folder, warped.grid)
    return Result(
        transform,
        warped,
        float("nan") if values["value"] is None else values["value"],
        history,
        seconds=values["loop_seconds"],
        complete=values["complete"],
        error=values["error"],
        metrics=dict(values),
        loss=values["loss"],
        levels=[LevelFacts.from_json(level) for level in values["levels"]],
        warnings=tuple(Finding.from_json(warning) for warning in values["warnings"]),
    )
