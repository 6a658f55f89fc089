"""The products of one affine iteration: this package's protocols, stock CrypTen, the paper's CKKS product, in one run.

    python benchmarks/products.py [--quick] [-o outputs/benchmarks/products.json]

Random dense rows (no zero block to skip) and a random fixed image, the same for all; every figure is measured here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timing

UP_TARGET_BYTES = 100_000
CASES = {"2-D": (56_797, 2), "3-D": (902_629, 3)}
# protocol, and the ways of one affine iteration that it is measured with (contenders.Work)
PRIVATE = (
    ("beaver", ("moments", "inverse")),
    ("spdz", ("moments", "inverse")),
    ("bfv", ("direct", "moments", "inverse")),
    ("ckks", ("direct", "moments", "inverse")),
)


def measure(cases: dict[str, tuple[int, int]], ckks_points: int, threads: int, repeats: int) -> list[dict[str, Any]]:
    """One entry per case and contender.

    Args:
        cases: name -> (points N, dimension D); P = D (D + 1).
        ckks_points: pixels of the published CKKS product, which costs seconds per thousand; measured in the first case.
        threads: of every process.
        repeats: of each product, taking turns; one more before them is not counted.
    """
    import torch
    from contenders import Work, ckks_v1, private, stock_crypten

    torch.set_num_threads(threads)
    entries = []
    for number, (case, (points, dimension)) in enumerate(cases.items()):
        works = Work.of_iteration(points, dimension, seed=number)
        open_all: list[tuple[Work, AbstractContextManager[Any]]] = []
        for name, ways in PRIVATE:
            # Under encryption a large product goes by moments, a small one does not (`prefers_moments`).
            unused = "direct" if dimension == 3 else "moments"
            used = [way for way in ways if name not in ("bfv", "ckks") or way != unused]
            open_all += [(works[way], private(name, works[way], threads)) for way in used]
        open_all += [(works["direct"], stock_crypten(kind, works["direct"], threads)) for kind in ("TFP", "TTP")]
        if number == 0 and dimension == 2:
            part = works["direct"].part(ckks_points)
            open_all.append((part, ckks_v1(part, threads)))
        with ExitStack() as stack:
            ready = [(work.exact(), stack.enter_context(manager)) for work, manager in open_all]
            runs = timing.alternate({c.name: c.product for _, c in ready}, repeats)
            for truth, contender in ready:
                seconds = [s for s, _ in runs[contender.name]]
                error = max(float((r.double() - truth).norm() / truth.norm()) for _, r in runs[contender.name])
                entries.append(
                    {
                        "case": case,
                        "product": contender.name,
                        "points": contender.points,
                        "results": contender.results,
                        "processes": contender.where,
                        "seconds": timing.median(seconds),
                        "seconds_all": seconds,
                        "ns_per_pixel": timing.median(seconds) / contender.points * 1e9,
                        "bytes": asdict(contender.traffic()),
                        "relative_error": error,
                    }
                )
        entries += spu_entries(case, works["direct"], min(repeats, 3))
    return entries


def spu_entries(case: str, work: Any, repeats: int) -> list[dict[str, Any]]:
    """SecretFlow SPU in its own environment (spu_env.sh), after the others; nothing where it is not installed."""
    python = Path("outputs/benchmarks/spu-env/bin/python")
    if not python.exists():
        print("products: SecretFlow SPU is not installed (sh benchmarks/spu_env.sh); skipped")
        return []
    import numpy as np

    entries = []
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "in.npz", X=work.rows.numpy(), Y=work.columns[0].numpy())
        for protocol in ("semi2k", "cheetah"):
            command = [
                python,
                Path(__file__).with_name("spu_worker.py"),
                Path(folder) / "in.npz",
                protocol,
                str(repeats),
            ]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                print(f"products: spu {protocol}: {done.stderr.strip().splitlines()[-1:]}; skipped")
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            up, down = found["bytes_sent_per_product"] or (0.0, 0.0)
            seconds = timing.median(found["seconds"])
            entries.append(
                {
                    "case": case,
                    "product": f"spu-{protocol}",
                    "points": found["points"],
                    "results": found["rows"],
                    "processes": f"SPU {found['version']}, {found['run_as']}; after the others",
                    "seconds": seconds,
                    "seconds_all": found["seconds"],
                    "ns_per_pixel": seconds / found["points"] * 1e9,
                    "bytes": {"up": up, "down": down, "others": 0.0, "once": 0},
                    "relative_error": found["relative_error"],
                }
            )
    return entries


def ratios(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios of medians of this run: against stock CrypTen in time and bytes, against ckks-v1 in time per pixel."""
    ckks = next((e for e in entries if e["product"] == "ckks-v1"), None)
    found = {}
    for entry in entries:
        case, name = entry["case"], entry["product"]
        if not name.startswith(("crypten", "ckks-v1", "spu")):
            if ckks is not None:
                found[f"{case}: ckks-v1 / {name}, per pixel"] = ckks["ns_per_pixel"] / entry["ns_per_pixel"]
            stock = next(e for e in entries if e["case"] == case and e["product"] == "crypten-ttp")
            found[f"{case}: crypten-ttp / {name}, time"] = stock["seconds"] / entry["seconds"]
            found[f"{case}: crypten-ttp / {name}, bytes"] = _wire(stock) / _wire(entry)
    return found


def _wire(entry: dict[str, Any]) -> float:
    """Bytes of one product between all processes."""
    return float(sum(entry["bytes"][key] for key in ("up", "down", "others")))


def targets(entries: list[dict[str, Any]], found: dict[str, float]) -> list[str]:
    """What was aimed at, and whether this run has it."""
    seconds = {(e["case"], e["product"]): e["seconds"] for e in entries}
    up = {(e["case"], e["product"]): e["bytes"]["up"] for e in entries}
    aims = []
    if ("2-D", "bfv direct") in seconds:
        aims += [
            (
                "2-D `bfv direct` per pixel against ckks-v1",
                found["2-D: ckks-v1 / bfv direct, per pixel"],
                1000,
                "x",
                True,
            ),
            ("2-D `bfv direct` MB up", up["2-D", "bfv direct"] / 1e6, 0.1, " MB", False),
        ]
    if ("3-D", "beaver inverse") in seconds:
        aims += [
            (
                "3-D `beaver inverse` against CrypTen",
                found["3-D: crypten-ttp / beaver inverse, time"],
                50,
                "x",
                True,
            ),
            ("the same in bytes", found["3-D: crypten-ttp / beaver inverse, bytes"], 10, "x", True),
            ("3-D `bfv moments` (forward)", seconds["3-D", "bfv moments"], 1.0, " s", False),
            ("3-D `bfv inverse`", seconds["3-D", "bfv inverse"], 0.35, " s", False),
        ]
    lines = []
    for name, value, aim, unit, at_least in aims:
        met = value >= aim if at_least else value <= aim
        word = "at least" if at_least else "at most"
        lines.append(f"- {name}: **{value:.3g}{unit}** (target {word} {aim:g}{unit}: {'met' if met else 'not met'})")
    return lines


def report(entries: list[dict[str, Any]], found: dict[str, float], facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    head = [
        "case",
        "product",
        "N",
        "results",
        "s",
        "ns/pixel",
        "up",
        "down",
        "others",
        "once",
        "error",
        "run as",
    ]
    table = [
        [
            e["case"],
            f"`{e['product']}`",
            f"{e['points']:,}",
            e["results"],
            f"{e['seconds']:.4f}",
            f"{e['ns_per_pixel']:,.0f}",
            *(_size(e["bytes"][key]) for key in ("up", "down", "others", "once")),
            f"{e['relative_error']:.1e}",
            e["processes"],
        ]
        for e in entries
    ]
    lines = [*targets(entries, found), "", "Ratios of this run:", ""]
    lines += [f"- {name}: {value:.3g}x" for name, value in found.items()]
    run = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads_per_process']} thread(s) per process, "
        f"load average {facts['load_average']} at the start; {facts['repeats']} repeats, medians"
    )
    return "\n".join(["# One joint product", "", run, "", timing.markdown_table(head, table), "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and three repeats: to see that it runs")
    parser.add_argument("--case", choices=tuple(CASES), default=None, help="one of them only (ckks-v1 goes with 2-D)")
    parser.add_argument("--repeats", type=int, default=None, help="of each product (7; 3 with --quick)")
    parser.add_argument("--threads", type=int, default=1, help="of every process (1: two parties share two cores)")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/products.json"))
    arguments = parser.parse_args()
    repeats = arguments.repeats or (3 if arguments.quick else 7)
    timing.set_threads(arguments.threads)
    facts = timing.machine(arguments.threads, ("torch", "crypten", "tenseal")) | {"repeats": repeats}
    cases = {"2-D": (10_000, 2)} if arguments.quick else CASES
    cases = {name: size for name, size in cases.items() if arguments.case in (None, name)}
    entries = measure(cases, 512 if arguments.quick else 4096, arguments.threads, repeats)
    found = ratios(entries)
    values = {"machine": facts, "quick": arguments.quick, "ratios": found, "products": entries}
    timing.write_report(arguments.output, values, report(entries, found, facts))


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
