"""One iteration of affine registration by mutual information, in 3-D: seconds as party_1 waits for them, and bytes.

    python benchmarks/information.py [--repeats 7] [--fraction 0.1] [--bins 16x8 32x32] [--protocols clear beaver ...]

T1 <- T2 of ../shared/data/09 (91 x 109 x 91 voxels of 2 mm), URS of the full level. An iteration is what a loss does
with one transform: warp, Parzen windows, the joint histogram, its derivative, gradient and Hessian. Each party (and the
dealer) is a process of its own. Bytes are those that party_1 sends and receives; "once" is each level's operand, keys
included. What a dealer sends party_2 is not in it: a word for each row and column.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timing

from ppir_torch import Affine, ClearFixed, Level, MutualInformation, load_image, open_private
from ppir_torch.registration import OperandRequest
from ppir_torch.sampling import Uniform

DATA = Path(__file__).parent.parent.parent / "shared/data/09_templates3d_multimodal"
FIXED, MOVING = DATA / "fixed_avg152_t1.nii.gz", DATA / "moving_avg152_t2.nii.gz"
PROTOCOLS = ("clear", "beaver", "spdz", "bfv", "ckks")
FULL = Level(1, 0.0)


def measure_one(
    protocol: str, measure: MutualInformation, fraction: float, repeats: int, threads: int
) -> dict[str, Any]:
    """Median seconds of an iteration, and party_1's bytes."""
    moving, settings = load_image(MOVING), measure.to_meta()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        releases = Path(folder) / "releases.sqlite"
        if protocol == "clear":
            fixed: Any = ClearFixed(load_image(FIXED))
        else:
            private = open_private(FIXED, protocol, threads=threads, releases=releases, max_values=10**6, loss=settings)
            fixed = stack.enter_context(private)
        dimension = fixed.grid.dimension
        operand = fixed.operand(
            OperandRequest(FULL, Uniform(fraction), 0, measure.most_rows(dimension), measure.columns(), measure=measure)
        )
        loss, transform = measure.loss(operand), Affine(fixed.grid)
        once = _party_1_bytes(fixed)
        loss.linearise(transform, moving)
        before, seconds = _party_1_bytes(fixed), []
        for _ in range(repeats):
            started = time.perf_counter()
            loss.linearise(transform, moving)
            seconds.append(time.perf_counter() - started)
        per_iteration = (_party_1_bytes(fixed) - before) / repeats
    points = round(fraction * fixed.grid.count)
    opened = measure.moving_bins * measure.fixed_bins + dimension * (dimension + 1)
    return {
        "protocol": protocol,
        "bins": f"{measure.moving_bins}x{measure.fixed_bins}",
        "points": points,
        "opened": opened,
        "seconds": timing.median(seconds),
        "bytes": per_iteration,
        "once": once,
    }


def _party_1_bytes(fixed: Any) -> int:
    """Sent and received by party_1 so far, on its link to party_2."""
    return (
        0 if isinstance(fixed, ClearFixed) else sum(fixed.channel.sent.values()) + sum(fixed.channel.received.values())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--bins", nargs="+", default=["16x8", "32x32"], help="of the moving x of the fixed image")
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/information.json"))
    arguments = parser.parse_args()
    if not DATA.exists():
        raise SystemExit(f"information.py: {DATA} is absent")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    timing.set_threads(arguments.threads)
    facts = timing.machine(arguments.threads, ("torch", "tenseal", "crypten"))
    entries = []
    for bins in arguments.bins:
        measure = MutualInformation(*(int(n) for n in bins.split("x")))
        for protocol in arguments.protocols:
            found = measure_one(protocol, measure, arguments.fraction, arguments.repeats, arguments.threads)
            entries.append(found)
            print(found, flush=True)
    rows = [
        [
            e["bins"],
            e["protocol"],
            f"{e['points']:,}",
            e["opened"],
            f"{e['seconds']:.3f}",
            f"{e['bytes'] / 1e6:.2f}",
            f"{e['once'] / 1e6:.2f}",
        ]
        for e in entries
    ]
    head = ["bins", "protocol", "N", "opened", "s", "MB", "MB once"]
    load = f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']} at the start, medians"
    text = f"# An iteration of mutual information, affine, 3-D\n\n{load}\n\n{timing.markdown_table(head, rows)}"
    timing.write_report(arguments.output, {"machine": facts, "iterations": entries}, text)


if __name__ == "__main__":
    main()
