"""The main program of one party's process: `python -m ppir_torch.parties.process ROLE --links ... < given.json`.

It knows its own configuration and the keys of its own links (standard input: {"config": {...}, "keys": {peer: 32
hexadecimal digits}}), its ends of the links (inherited sockets), and nothing else. The keys are not arguments, because
every user of a machine can read the arguments of its processes.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BudgetExceeded, PpirError
from .accounting import Stopwatch, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from ..config.groups import BudgetConfig
    from ..images import Image
    from .budget import ReleaseBudget

DEALER_TIMEOUT_S = 7 * 86400.0  # an idle dealer costs nothing; it ends when a party's link closes


class End(NamedTuple):
    """What makes one end of a link: the inherited socket, and the key that only this end and the other have."""

    stream: socket.socket
    key: bytes


def main() -> int:
    """Run one role; returns its exit code (0, or the error's: 2 for its own input, 3 for a lost peer)."""
    parser = argparse.ArgumentParser(prog="ppir_torch.parties.process")
    parser.add_argument("role", choices=("party_1", "party_2", "dealer"))
    parser.add_argument("--links", required=True, help="JSON: peer -> inherited socket descriptor")
    parser.add_argument("--session", required=True, help="32 hexadecimal digits, the same for all")
    parser.add_argument("--report", required=True, type=Path, help="JSON file that this process writes at its end")
    arguments = parser.parse_args()
    given = json.loads(sys.stdin.read())
    config = json.dumps(given["config"])
    ends = {
        peer: End(socket.socket(fileno=number), bytes.fromhex(given["keys"][peer]))
        for peer, number in json.loads(arguments.links).items()
    }
    report: dict[str, Any] = {"role": arguments.role, "error": "", "exit_code": 0}
    try:
        roles = {"party_1": _party_1, "party_2": _party_2, "dealer": _dealer}
        if given["config"].get("task") == "points":
            from .points_task import ROLES

            roles |= ROLES
        run = roles[arguments.role]
        report |= run(config, ends, bytes.fromhex(arguments.session), arguments.report.parent)
    except PpirError as error:
        report |= {"error": str(error), "exit_code": error.exit_code}
    except KeyboardInterrupt:
        report |= {"error": f"{arguments.role}: interrupted", "exit_code": 130}
    write_json(arguments.report, report)
    return int(report["exit_code"])


def _party_1(text: str, ends: dict[str, End], session: bytes, output: Path) -> dict[str, Any]:
    from dataclasses import replace

    import torch

    from ..config.images import MovingPartyConfig
    from ..images import load_image
    from ..joint.interface import compute_device
    from ..protocols import load_protocol
    from ..registration.build import build_plan, preprocessed
    from ..registration.loop import register_images
    from ..reporting.files import save_result, summary
    from ..reporting.progress import Progress
    from ..transforms import load_transform
    from ..warping import warp
    from ..wire.messages import Finish
    from .moving import PrivateFixed

    config = MovingPartyConfig.model_validate_json(text)
    torch.set_num_threads(config.threads)
    links = _links("party_1", ends, session, config.transport.timeout_s)
    link = links["party_2"]
    watch = Stopwatch()
    try:
        entry = load_protocol(config.backend.kind)
        device = compute_device(getattr(config.backend, "device", "cpu"))
        original = load_image(config.moving, getattr(torch, config.dtype))
        moving = preprocessed(original, config.preprocess).to(device)
        side = entry.moving_side(link, links.get("dealer"), device)
        fixed = PrivateFixed(link, side, entry.name, config.ledger.enabled, config.ledger.most)
        start = load_transform(config.start.path, fixed.grid) if config.start.path else None
        with Progress(config.backend.kind, lambda: sum(end.bytes_sent for end in links.values())) as progress:
            plan = build_plan(config, fixed.grid.spacing, start)
            result = register_images(moving, fixed, plan, progress.show)
            if config.preprocess.changes:  # the file that is written has the intensities of the one that was read
                result = replace(result, warped=warp(original.to(device), result.transform, fixed.grid))
        if result.complete:
            fixed.finish(result.transform if config.share_transform else None)
            if "dealer" in links:
                Finish().send(links["dealer"])
    except PpirError as error:
        # party_2 is told that the run is over, not what party_1's files look like.
        link.abort(f"party_1 cannot go on ({type(error).__name__}); see its own report")
        raise
    account = watch.account(list(links.values()))
    save_result(result, output)
    report = {"complete": result.complete, "error": result.error, "exit_code": 0 if result.complete else 3}
    for end in links.values():
        end.close()
    return report | {"account": account, "run": summary(result), "ledger": fixed.ledger_rows()}


def _party_2(text: str, ends: dict[str, End], session: bytes, output: Path) -> dict[str, Any]:  # noqa: ARG001
    import torch

    from ..config.images import FixedPartyConfig
    from ..images import load_image, load_mask
    from ..joint.interface import compute_device
    from ..protocols import load_protocol
    from ..registration.build import build_measure, preprocessed
    from .fixed import FixedParty
    from .reports import shared_values

    config = FixedPartyConfig.model_validate_json(text)
    torch.set_num_threads(config.threads)
    links = _links("party_2", ends, session, config.transport.timeout_s)
    link = links["party_1"]
    watch = Stopwatch()
    report: dict[str, Any] = {"complete": True}
    try:
        image = load_image(config.fixed, getattr(torch, config.dtype))
        mask = load_mask(config.fixed_mask, image.grid) if config.fixed_mask else None
        entry = load_protocol(config.backend.kind)
        budget = _open_budget(config.budget, image, mask, report)
        party = FixedParty(
            image=preprocessed(image, config.preprocess),  # the cap is of the image as it lies in its file
            mask=mask,
            disclose_centre_of_mass=config.disclose_centre_of_mass,
            disclose_gram=config.disclose_gram,
            charge=budget.charge,
            noise=config.budget.noise,
            measure=build_measure(config.loss),
        )
        device = compute_device(getattr(config.backend, "device", "cpu"))
        shared = party.serve(link, entry.fixed_side(link, links.get("dealer"), device), entry.name)
        report["transform"] = shared_values(shared)
    except PpirError as error:
        if isinstance(error, BudgetExceeded):
            link.abort("its site's cap on released values of this image is reached")
            report["cap_reached"] = True
        else:
            link.abort(f"party_2 cannot go on ({type(error).__name__}); see its own report")
        report |= {"complete": False, "error": str(error), "exit_code": error.exit_code}
    if "budget" in report:
        report["budget"]["spent"] = budget.spent
    report["account"] = watch.account(list(links.values()))
    for end in links.values():
        end.close()
    return report


def _open_budget(config: BudgetConfig, image: Image, mask: Tensor | None, report: dict[str, Any]) -> ReleaseBudget:
    """This site's cap on what may be released of the image; the report names it."""
    from ..metrics.registration import foreground_points
    from .budget import ReleaseBudget, default_path, image_identity

    foreground = int(mask.sum()) if mask is not None else len(foreground_points(image))
    cap = int(config.fraction * foreground) if config.max_values is None else config.max_values
    budget = ReleaseBudget(config.file or default_path(), config.peer, image_identity(image), cap)
    report["budget"] = {
        "file": str(budget.path),
        "peer": budget.peer,
        "image": budget.image,
        "foreground_voxels": foreground,
        "cap": cap,
        "spent_before": budget.spent,
    }
    return budget


def _dealer(text: str, ends: dict[str, End], session: bytes, output: Path) -> dict[str, Any]:  # noqa: ARG001
    from ..protocols import load_protocol

    entry = load_protocol(json.loads(text)["kind"])
    if entry.dealer is None:
        raise PpirError(f"backend {entry.name} has no dealer")
    links = _links("dealer", ends, session, DEALER_TIMEOUT_S)
    watch = Stopwatch()
    entry.dealer(links["party_1"], links["party_2"])
    return {"complete": True, "account": watch.account(list(links.values()))}


def _links(me: str, ends: dict[str, End], session: bytes, timeout: float) -> dict[str, Any]:
    from ..wire.link import Link

    return {peer: Link(end.stream, session, end.key, me, peer, timeout) for peer, end in ends.items()}


if __name__ == "__main__":
    sys.exit(main())
