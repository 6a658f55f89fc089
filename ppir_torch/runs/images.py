"""One run of two images from its configuration to its files, clear or private.

A private run starts every party as a process of its own; this process opens neither image, unless the configuration
names a known truth or a reference transform: then it is an experiment, and the evaluation (not a party) reads the
fixed image after the parties have ended.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config.images import RunConfig, fixed_party, load_config, moving_party
from ..config.protocols import PROTOCOLS, AutoConfig
from ..errors import ConfigError, PeerLost, RegistrationFailed
from ..grids import Grid
from ..images import image_size, load_image, load_mask
from ..interruption import Interrupted, best_so_far
from ..joint.interface import compute_device
from ..metrics.registration import displacement_rmse, foreground_points
from ..parties.accounting import peak_memory_mb
from ..protocols.chooser import choose
from ..registration import ClearFixed, register_images
from ..registration.atlas import loaded_start, to_atlas
from ..registration.build import build_measure, build_plan, preprocessed
from ..reporting.files import save_result, summary
from ..reporting.progress import Progress
from ..transforms import linear_transform, load_any_transform, load_transform
from ..warping import warp
from .disclosed import disclosed_of_images
from .folder import made_folder, refuse_overwriting
from .needs import check_memory
from .outcome import ImagesReport, Outcome
from .processes import refuse_own_fault, run_parties

__all__ = ["found_transform", "run"]

FILES = (
    *("result.json", "transform.tfm", "transform.h5", "displacement.nii.gz", "displacement.nrrd"),
    *("warped.nii.gz", "warped.png"),
    *("party_1.json", "party_2.json", "dealer.json"),
)
log = logging.getLogger(__name__)


def run(config: RunConfig, output: Path) -> dict[str, Any]:
    """Run a configuration and write `warped.nii.gz`, `transform.tfm` and `result.json` into `output`.

    Returns the values of `result.json` (docs/result-schema.md).

    Raises:
        PpirError: bad input (exit code 2).
        PeerLost: a party was lost; what party_1 had by then is in `output` (exit code 3).
        RegistrationFailed: it collapsed, ran away or lost all overlap; what was found before is there (exit code 4).
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP; the best by then is in `output` (exit code 128 and the signal).
    """
    _check_files(config, output)
    made_folder(output, without=FILES)
    started = time.perf_counter()
    config, reason = _choose_backend(config)
    check_memory(config)
    disclosed = disclosed_of_images(config)  # before any party is started: nothing runs of which this is not known
    outcome = _run_private(config, output) if config.private else _run_clear(config, output)
    seconds = time.perf_counter() - started
    report = ImagesReport(
        backend=config.backend.kind,
        seconds=seconds,
        disclosed=disclosed,
        outcome=outcome,
        loss=config.loss.kind,
        loss_settings=config.loss.model_dump(exclude={"kind"}),
        backend_reason=reason,
        insecure=config.backend.kind in PROTOCOLS and PROTOCOLS[config.backend.kind].insecure,
        sampler=config.sampler.kind,
        rmse_to_truth_mm=_distance(config, outcome, config.data.truth, output),
        rmse_to_clear_mm=_distance(config, outcome, config.data.reference, output),
    )
    report.write(output)
    if outcome.interrupted is not None:
        raise Interrupted(outcome.interrupted.number, kept=f"the best transform so far is in {output}")
    if outcome.failed:
        raise RegistrationFailed(f"{outcome.error} (the transform before that is in {output})", report.to_json())
    if not outcome.complete:
        raise PeerLost(f"{outcome.error} (the best transform so far is in {output})")
    return report.to_json()


def found_transform(folder: Path, grid: Grid) -> Any:
    """The transform of a run's folder, on a fixed image's grid."""
    linear = folder / "transform.tfm"
    return load_transform(linear, grid) if linear.exists() else load_any_transform(folder / "transform.h5", grid)


def _check_files(config: RunConfig, output: Path) -> None:
    data = config.data
    for path in (data.truth, data.reference):
        if path is not None and not path.exists():
            raise ConfigError(f"{path}: no such transform file (data.truth or data.reference)")
    read: dict[str, Path | None] = {"data.moving": data.moving, "data.fixed": data.fixed}
    read |= {"data.moving_mask": data.moving_mask, "data.fixed_mask": data.fixed_mask}
    read |= {f"data.preprocess.{name}.mask": getattr(data.preprocess, name).mask for name in ("moving", "fixed")}
    read |= {"data.truth": data.truth, "data.reference": data.reference, "start.path": config.start.path}
    refuse_overwriting(output, FILES, read)


def _choose_backend(config: RunConfig) -> tuple[RunConfig, str]:
    """The configuration with a protocol in the place of `auto`, and why this one; only image headers are read."""
    chosen = config.backend
    if not isinstance(chosen, AutoConfig):
        return config, ""
    size = image_size(config.data.fixed)
    transform = linear_transform("affine" if config.transform.linear == "none" else config.transform.linear)(Grid(size))
    parameters = sum(p.numel() for p in transform.parameters())
    points = math.prod(size) * build_measure(config.loss).channels(len(size))
    choice = choose(points, parameters, len(size), chosen.bandwidth_mbit, chosen.dealer)
    log.info("backend auto: %s", choice.reason)
    settings = {"kind": choice.name} | ({"device": chosen.device} if PROTOCOLS[choice.name].device else {})
    return load_config(config.model_dump() | {"backend": settings}), choice.reason


def _run_clear(config: RunConfig, output: Path) -> Outcome:
    device, dtype = compute_device(getattr(config.backend, "device", "cpu")), getattr(torch, config.dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        wanted = config.data.preprocess
        fixed, loaded = load_image(config.data.fixed, dtype), load_image(config.data.moving, dtype)
        image = preprocessed(fixed.precise(loaded.grid), wanted.fixed).to(device)
        own = load_mask(config.data.moving_mask, loaded.grid).to(device) if config.data.moving_mask else None
        original = loaded.precise(image.grid).seen_from(image.grid)
        moving = preprocessed(original, wanted.moving).to(device)
        mask = load_mask(config.data.fixed_mask, image.grid) if config.data.fixed_mask else None
        start = loaded_start(config.start, moving, image.grid, partial(to_atlas, image))
        plan = build_plan(config, image.grid, start)
        with Progress("clear") as progress:
            result, interrupted = best_so_far(
                lambda: register_images(moving, ClearFixed(image, mask), plan, progress.show, own)
            )
        if wanted.moving.changes:  # the file that is written has the intensities of the one that was read
            result = replace(result, warped=warp(original.to(device), result.transform, image.grid))
    finally:
        torch.set_num_threads(threads)
    save_result(result, output, original.grid)
    return Outcome(
        summary(result), result.complete, result.error, peak_memory_mb=peak_memory_mb(), interrupted=interrupted
    )


def _run_private(config: RunConfig, output: Path) -> Outcome:
    moving, fixed = moving_party(config), fixed_party(config)
    reports, interrupted = best_so_far(lambda: run_parties(config.task, moving, fixed, output))
    if interrupted is None:
        refuse_own_fault(reports)
    return Outcome.of(reports, interrupted)


def _distance(config: RunConfig, outcome: Outcome, other: Path | None, output: Path) -> float | None:
    """Displacement RMSE in mm inside the fixed foreground to another transform, where one is given."""
    if other is None or outcome.interrupted is not None:  # who interrupts does not wait for that
        return None
    fixed = load_image(config.data.fixed)
    points = foreground_points(fixed)
    return displacement_rmse(found_transform(output, fixed.grid), load_any_transform(other, fixed.grid), points)
