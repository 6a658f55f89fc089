"""One joint product: this package's protocols, stock CrypTen, and the paper's CKKS product, in one run.

    python benchmarks/products.py [--quick] [-o outputs/benchmarks/products.json]

Random dense rows (no zero block to skip) and a random fixed image, the same for all; every figure is measured here.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timing

CKKS_ROWS = 6  # P, as published; this package's product has P + 1 rows: the loss value travels with the gradient
RATIO_TARGET = 1000.0
UP_TARGET_BYTES = 100_000


def measure(cases: dict[str, tuple[int, int]], ckks_points: int, threads: int, repeats: int) -> list[dict[str, Any]]:
    """One entry per case and contender.

    Args:
        cases: name -> (points N, rows P + 1).
        ckks_points: pixels of the CKKS product, which costs seconds per thousand; measured beside the first case.
        threads: of every process.
        repeats: of each product, taking turns; one more before them is not counted.
    """
    import torch
    from contenders import ckks_v1, private, reference, stock_crypten

    torch.set_num_threads(threads)
    entries = []
    for number, (case, (points, count)) in enumerate(cases.items()):
        generator = torch.Generator().manual_seed(number)
        rows, fixed = torch.randn(count, points, generator=generator), torch.randn(points, generator=generator)
        open_all: list[tuple[Any, AbstractContextManager[Any]]] = [
            (reference(rows, fixed), private("bfv", rows, fixed, threads)),
            (reference(rows, fixed), private("spdz", rows, fixed, threads)),
            (reference(rows, fixed), stock_crypten("TFP", rows, fixed, threads)),
            (reference(rows, fixed), stock_crypten("TTP", rows, fixed, threads)),
        ]
        if number == 0:
            part, pixels = rows[:CKKS_ROWS, :ckks_points], fixed[:ckks_points]
            open_all.append((reference(part, pixels), ckks_v1(part, pixels, threads)))
        with ExitStack() as stack:
            ready = [(truth, stack.enter_context(manager)) for truth, manager in open_all]
            runs = timing.alternate({c.name: c.product for _, c in ready}, repeats)
            for truth, contender in ready:
                seconds = [s for s, _ in runs[contender.name]]
                error = max(float((r.double() - truth).norm() / truth.norm()) for _, r in runs[contender.name])
                entries.append(
                    {
                        "case": case,
                        "product": contender.name,
                        "points": contender.points,
                        "rows": contender.rows,
                        "processes": contender.where,
                        "seconds": timing.median(seconds),
                        "seconds_all": seconds,
                        "ns_per_pixel": timing.median(seconds) / contender.points * 1e9,
                        "bytes": asdict(contender.traffic()),
                        "relative_error": error,
                    }
                )
    return entries


def ratios(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios of medians of this run: time per pixel against ckks-v1, seconds against stock CrypTen."""
    ckks = next(e for e in entries if e["product"] == "ckks-v1")
    found = {}
    for entry in entries:
        case, name = entry["case"], entry["product"]
        if name in ("bfv", "spdz"):
            found[f"{case}: ckks-v1 / {name}, per pixel"] = ckks["ns_per_pixel"] / entry["ns_per_pixel"]
            for other in entries:
                if other["case"] == case and other["product"].startswith("crypten"):
                    found[f"{case}: {other['product']} / {name}"] = other["seconds"] / entry["seconds"]
    return found


def report(entries: list[dict[str, Any]], found: dict[str, float], facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    head = ["case", "product", "N", "rows", "s", "ns/pixel", "up", "down", "between others", "once", "error", "run as"]
    table = [
        [
            e["case"],
            f"`{e['product']}`",
            f"{e['points']:,}",
            e["rows"],
            f"{e['seconds']:.4f}",
            f"{e['ns_per_pixel']:,.0f}",
            *(_size(e["bytes"][key]) for key in ("up", "down", "others", "once")),
            f"{e['relative_error']:.1e}",
            e["processes"],
        ]
        for e in entries
    ]
    lines = [f"- {name}: **{value:.3g}x**{_verdict(name, value)}" for name, value in found.items()]
    for e in entries:
        if e["product"] == "bfv" and e["case"] == "2-D":  # the target is for P = 6
            met = "met" if e["bytes"]["up"] <= UP_TARGET_BYTES else "not met"
            lines.append(f"- {e['case']}: `bfv` up {_size(e['bytes']['up'])} (target at most 0.1 MB: {met})")
    run = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads_per_process']} thread(s) per process, "
        f"load average {facts['load_average']} at the start; {facts['repeats']} repeats, medians"
    )
    return "\n".join(["# One joint product", "", run, "", timing.markdown_table(head, table), "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and three repeats: to see that it runs")
    parser.add_argument("--repeats", type=int, default=None, help="of each product (7; 3 with --quick)")
    parser.add_argument("--threads", type=int, default=1, help="of every process (1: two parties share two cores)")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/products.json"))
    arguments = parser.parse_args()
    repeats = arguments.repeats or (3 if arguments.quick else 7)
    timing.set_threads(arguments.threads)
    facts = timing.machine(arguments.threads, ("torch", "crypten", "tenseal")) | {"repeats": repeats}
    cases = {"2-D": (10_000, 7)} if arguments.quick else {"2-D": (56_797, 7), "3-D": (902_629, 13)}
    entries = measure(cases, 512 if arguments.quick else 4096, arguments.threads, repeats)
    found = ratios(entries)
    values = {"machine": facts, "quick": arguments.quick, "ratios": found, "products": entries}
    timing.write_report(arguments.output, values, report(entries, found, facts))


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def _verdict(name: str, value: float) -> str:
    if "ckks-v1 / bfv" not in name:
        return ""
    return f" (target at least {RATIO_TARGET:,.0f}x: {'met' if value >= RATIO_TARGET else 'not met'})"


if __name__ == "__main__":
    main()
