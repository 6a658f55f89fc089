"""One run from its configuration to its files, clear or private; and `register`, the same from Python.

A private run starts every party as a process of its own; this process opens neither image, unless the configuration
names a known truth or a reference transform: then it is an experiment, and the evaluation (not a party) reads the
fixed image after the parties have ended.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config.images import RunConfig, fixed_party, load_config, moving_party
from ..config.protocols import PROTOCOLS, AutoConfig
from ..errors import ConfigError, PeerLost, PpirError
from ..grids import Grid
from ..images import Image, image_size, load_image, load_mask, save_image
from ..joint.interface import compute_device
from ..metrics.registration import displacement_rmse, foreground_points
from ..optimizers import Iteration
from ..parties.accounting import peak_memory_mb, write_json
from ..protocols.chooser import choose
from ..registration import ClearFixed, LevelIteration, Result, register_images
from ..registration.build import build_measure, build_plan, build_sampler, preprocessed
from ..reporting.files import save_result, summary
from ..reporting.progress import Progress
from ..transforms import LINEAR_TRANSFORMS, load_any_transform, load_transform
from ..warping import warp
from .open_private import run_parties

__all__ = ["register", "run"]

FILES = (
    *("result.json", "transform.tfm", "transform.h5", "displacement.nii.gz", "warped.nii.gz", "warped.png"),
    *("party_1.json", "party_2.json", "dealer.json"),
)


def run(config: RunConfig, output: Path) -> dict[str, Any]:
    """Run a configuration and write `warped.nii.gz`, `transform.tfm` and `result.json` into `output`.

    Returns the values of `result.json` (docs/result-schema.md).

    Raises:
        PpirError: bad input (exit code 2).
        PeerLost: a party was lost; what party_1 had by then is in `output` (exit code 3).
    """
    for path in (config.data.truth, config.data.reference):
        if path is not None and not path.exists():
            raise ConfigError(f"{path}: no such transform file (data.truth or data.reference)")
    _prepare(config, output)
    started = time.perf_counter()
    config, reason = _choose_backend(config)
    values = _run_private(config, output) if config.private else _run_clear(config, output)
    values = {
        "schema": 1,
        "transform": values.pop("transform"),
        "loss": config.loss.kind,
        "loss_settings": config.loss.model_dump(exclude={"kind"}),
        "backend": config.backend.kind,
        "backend_reason": reason,
        "insecure": config.backend.kind == "ckks-v1",
        "sampler": config.sampler.kind,
        "seconds": time.perf_counter() - started,
        **values,
        "disclosed": _disclosed(config),
    }
    values |= _evaluate(config, output)
    write_json(output / "result.json", values)
    if not values["complete"]:
        raise PeerLost(f"{values['error']} (the best transform so far is in {output})")
    return values


def register(
    moving: Image | str | Path,
    fixed: Image | str | Path,
    transform: str | Mapping[str, Any] = "affine",
    backend: str = "clear",
    sampler: str = "none",
    fraction: float = 0.1,
    seed: int = 0,
    levels: tuple[int, ...] = (4, 2, 1),
    optimizer: str | None = None,
    start: str = "centres",
    fixed_mask: str | Path | None = None,
    disclose_mask: bool = False,
    truth: str | Path | None = None,
    threads: int = 2,
    output: str | Path | None = None,
    releases: str | Path | None = None,
    max_values: int | None = None,
    noise: float = 0.0,
    disclose_points: bool = False,
    allow_insecure: bool = False,
    loss: str | Mapping[str, Any] = "ssd",
    preprocess: Mapping[str, Mapping[str, Any]] | None = None,
) -> Result:
    """Register two images, in clear or privately (`backend` "bfv", "beaver", ...: each party a process of its own).

    Args:
        moving: image or file of party_1.
        fixed: image or file of party_2. Give a file where this process should not hold it.
        transform: "translation", "rigid", "similarity", "affine"; "bspline" or "velocity" (a linear stage, then
            deformable), or a mapping with the kind and its settings, see `DeformableConfig`.
        backend: "clear", "auto", "beaver", "spdz", "bfv", "ckks", or "ckks-v1" (with `allow_insecure`; a baseline).
        sampler: "none", "urs", "chunks" or "gms", with `fraction` of the points.
        seed: of the sampler.
        levels: shrink factors, coarse to fine.
        optimizer: "gauss_newton", "lbfgs", "inverse_compositional" or "adam"; None: what suits the loss ("lbfgs" for
            "mi", else "gauss_newton").
        start: "centres", "identity", "centre_of_mass" (clear runs), or the path of an ITK transform.
        fixed_mask: foreground of the fixed image; private runs tell it to party_1 and need `disclose_mask`.
        truth: known ITK transform to compare with.
        threads: of each process.
        output: folder for the files; a temporary one where None.
        releases: party_2's SQLite file of released values; None: the site's own.
        max_values: its cap, over all runs; None: 5 % of the fixed image's foreground voxels.
        noise: party_2's noise on every product, as a share of the fixed image.
        disclose_points: with sampler "gms": party_2 may learn the points, and the cost falls with the fraction.
        allow_insecure: let "ckks-v1" run.
        loss: "ssd", "ncc" (correlation), "local_ncc", "mind" or "mi" (mutual information; both across modalities),
            or a mapping with the kind and its settings, see `ppir_torch.losses.measures`. A network's features go with
            `register_images` only.
        preprocess: of the intensities, each party's own: {"moving": {"clip": (1, 99)}, "fixed": {...}}, with `clip`
            (percentiles), `rescale` (low, high) and `mask` (the file of the voxels that these are taken from).

    Returns:
        Result with transform, warped, history and `metrics` (the values of result.json).

    Raises:
        PpirError: bad input, one clear line.

    >>> from ppir_torch import Grid, Image
    >>> x = Grid((32, 32)).points() - 16
    >>> blob = Image((100 * torch.exp(-(x**2).sum(1) / 60)).reshape(1, 32, 32), Grid((32, 32)))
    >>> register(blob, blob, transform="translation").metrics["complete"]
    True
    """
    with tempfile.TemporaryDirectory(prefix="ppir-") as scratch:
        folder = Path(output) if output is not None else Path(scratch) / "run"
        if not isinstance(loss, str | Mapping):
            raise ConfigError(f"loss: {type(loss).__name__}, a name or a mapping is needed; networks: register_images")
        named = start in ("centres", "centre_of_mass", "identity")
        config = load_config(
            {
                "transform": {"kind": transform} if isinstance(transform, str) else dict(transform),
                "loss": {"kind": loss} if isinstance(loss, str) else dict(loss),
                **({} if optimizer is None else {"optimizer": {"kind": optimizer}}),
                "backend": {"kind": backend} | ({"allow_insecure": allow_insecure} if backend == "ckks-v1" else {}),
                "sampler": {"kind": sampler}
                | ({} if sampler == "none" else {"fraction": fraction})
                | ({"disclose_points": disclose_points} if sampler == "gms" else {}),
                "pyramid": {"levels": [{"shrink": n} for n in levels]},
                "start": {"kind": start} if named else {"kind": "file", "path": start},
                "data": {
                    "moving": _as_file(moving, Path(scratch) / "moving.mha"),
                    "fixed": _as_file(fixed, Path(scratch) / "fixed.mha"),
                    "fixed_mask": None if fixed_mask is None else str(fixed_mask),
                    "disclose_mask": disclose_mask,
                    "truth": None if truth is None else str(truth),
                    "preprocess": dict(preprocess or {}),
                },
                "budget": {
                    "file": None if releases is None else str(releases),
                    "max_values": max_values,
                    "noise": noise,
                },
                "seed": seed,
                "threads": threads,
            }
        )
        values = run(config, folder)
        return _result(values, folder)


def _choose_backend(config: RunConfig) -> tuple[RunConfig, str]:
    """The configuration with a protocol in the place of `auto`, and why this one; only image headers are read."""
    chosen = config.backend
    if not isinstance(chosen, AutoConfig):
        return config, ""
    size = image_size(config.data.fixed)
    parameters = sum(
        p.numel()
        for p in LINEAR_TRANSFORMS.get(config.transform.linear, LINEAR_TRANSFORMS["affine"])(Grid(size)).parameters()
    )
    points = math.prod(size) * build_measure(config.loss).channels(len(size))
    choice = choose(points, parameters, len(size), chosen.bandwidth_mbit, chosen.dealer)
    print(f"backend auto: {choice.reason}", file=sys.stderr, flush=True)
    settings = {"kind": choice.name} | ({} if choice.name == "bfv" else {"device": chosen.device})
    return load_config(config.model_dump() | {"backend": settings}), choice.reason


def _prepare(config: RunConfig, output: Path) -> None:
    """Make the folder and take the files of an earlier run out of it, unless this run reads one of them."""
    start, data = config.start.path, config.data
    read = {"data.moving": data.moving, "data.fixed": data.fixed, "data.fixed_mask": data.fixed_mask}
    read |= {f"data.preprocess.{name}.mask": getattr(data.preprocess, name).mask for name in ("moving", "fixed")}
    read |= {"data.truth": data.truth, "data.reference": data.reference, "start.path": start}
    written = [output / name for name in FILES]
    taken = {path.resolve() for path in written}
    for field, path in read.items():
        if path is not None and path.resolve() in taken:
            raise ConfigError(f"{field}: '{path}', the run would overwrite it; take another output folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        for path in written:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"output: '{output}', a folder that can be written is needed ({error.strerror})") from None


def _run_clear(config: RunConfig, output: Path) -> dict[str, Any]:
    device, dtype = compute_device(getattr(config.backend, "device", "cpu")), getattr(torch, config.dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        original, wanted = load_image(config.data.moving, dtype), config.data.preprocess
        moving = preprocessed(original, wanted.moving).to(device)
        image = preprocessed(load_image(config.data.fixed, dtype), wanted.fixed).to(device)
        mask = load_mask(config.data.fixed_mask, image.grid) if config.data.fixed_mask else None
        start = load_transform(config.start.path, image.grid) if config.start.path else None
        plan = build_plan(config, image.grid.spacing, start)
        with Progress("clear") as progress:
            result = register_images(moving, ClearFixed(image, mask), plan, progress.show)
        if wanted.moving.changes:  # the file that is written has the intensities of the one that was read
            result = replace(result, warped=warp(original.to(device), result.transform, image.grid))
    finally:
        torch.set_num_threads(threads)
    save_result(result, output)
    return summary(result) | {
        "complete": True,
        "error": "",
        "peak_memory_mb": peak_memory_mb(),
        "party_1": None,
        "party_2": None,
        "ledger": None,
        "budget": None,
    }


def _run_private(config: RunConfig, output: Path) -> dict[str, Any]:
    reports = run_parties(moving_party(config), fixed_party(config), output)
    errors = [(r["exit_code"], r["error"]) for r in reports.values() if r["exit_code"] != 0]
    own_fault = next((text for code, text in errors if code == 2), None)
    if own_fault is not None:
        raise PpirError(own_fault)
    party_1 = reports["party_1"]
    if "run" not in party_1:
        raise PeerLost("; ".join(dict.fromkeys(text for _, text in errors)) or "party_1 ended without a result")
    accounts = {role: report.get("account") for role, report in reports.items()}
    # party_1 is told that the cap is reached; how far, stands in party_2's own report.
    reached = reports["party_2"]["error"] if reports["party_2"].get("cap_reached") else ""
    outcome = {"complete": party_1["complete"], "error": reached or party_1["error"]}
    kept = {"ledger": party_1.get("ledger"), "budget": reports["party_2"].get("budget")}
    return {**party_1["run"], **outcome, **accounts, **kept}


def _disclosed(config: RunConfig) -> dict[str, list[str]]:
    """What each party learned of the other's image in such a run; nothing else crosses the Link."""
    if config.backend.kind == "clear":
        return {"party_1": ["everything: a clear run holds both images"], "party_2": ["everything"]}
    entry = PROTOCOLS[config.backend.kind]
    party_1 = ["the geometry of the fixed image", entry.party_1_learns]
    party_2 = ["the number of levels and iterations", entry.party_2_learns]
    party_1 += _OF_LOSS[config.loss.kind]
    if config.data.fixed_mask is not None:
        party_1.append("the shape of the fixed image's mask")
    if config.data.disclose_centre_of_mass:
        party_1.append("the fixed image's centre of mass")
    if config.share_transform:
        party_2.append("the final transform")
    if config.optimizer.kind == "inverse_compositional":
        party_1.append("per level S^T S and S^T J of the fixed image's steepest-descent images S")
    sampler = build_sampler(config)
    party_1.append(f"from sampler {config.sampler.kind}: {sampler.discloses_to_party_1}")
    party_2.append(f"from sampler {config.sampler.kind}: {sampler.discloses_to_party_2}")
    return {"party_1": party_1, "party_2": party_2}


# What "J" stands for in the lines of a protocol, where it is not the image itself.
_OF_LOSS: dict[str, list[str]] = {
    "ssd": [],
    "ncc": ["with loss ncc J is the fixed image at zero mean and unit variance: neither is told"],
    "local_ncc": ["with loss local_ncc J is the locally normalised fixed image, not its intensities"],
    "mi": [
        "with loss mi it learns the joint histogram of the two images' bins and D (D + 1) moments of its derivative at "
        "each iteration; no range, mean, scale or energy of J is told"
    ],
    "mind": ["with loss mind J is the fixed image's MIND descriptors (12 channels, 4 in 2-D), not its intensities"],
}


def _evaluate(config: RunConfig, output: Path) -> dict[str, Any]:
    """Displacement RMSE in mm inside the fixed foreground, to the known truth and to the clear run, where given."""
    values: dict[str, Any] = {"rmse_to_truth_mm": None, "rmse_to_clear_mm": None}
    given = {"rmse_to_truth_mm": config.data.truth, "rmse_to_clear_mm": config.data.reference}
    if any(path is not None for path in given.values()):
        fixed = load_image(config.data.fixed)
        points = foreground_points(fixed)
        found = _found(output, fixed.grid)
        for name, path in given.items():
            if path is not None:
                values[name] = displacement_rmse(found, load_any_transform(path, fixed.grid), points)
    return values


def _found(folder: Path, grid: Grid) -> Any:
    """The transform of a run's folder."""
    linear = folder / "transform.tfm"
    return load_transform(linear, grid) if linear.exists() else load_any_transform(folder / "transform.h5", grid)


def _as_file(image: Image | str | Path, path: Path) -> str:
    if not isinstance(image, Image):
        return str(image)
    save_image(image, path)
    return str(path)


def _result(values: dict[str, Any], folder: Path) -> Result:
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
    transform = _found(folder, warped.grid)
    seconds, kind = values["loop_seconds"], values["loss"]
    return Result(transform, warped, values["value"], history, seconds, metrics=values, loss=kind)
