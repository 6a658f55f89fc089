"""Cost of one product against the number of points N and of parameters P, for every secure protocol, in one run.

    python benchmarks/scaling.py [--quick] [-o outputs/benchmarks/scaling.json]

N from 10^4 to 10^7 with P = 6 (one affine iteration in 2-D, each protocol its own way); P from 6 to 100 with
N = 56,797 (P + 1 rows, one column). Seconds of all parties together, and bytes between all of them; the figure beside
the JSON (`.png`) shows both. Stock CrypTen is measured up to 10^6 points.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timing

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
PARAMETERS = (6, 12, 25, 50, 100)
POINTS = 56_797
PROTOCOLS = ("beaver", "spdz", "bfv", "ckks")
STOCK_POINTS = 1_000_000
LARGE = 1 << 18  # points above which the encrypted protocols go by moments


def measure(sizes: tuple[int, ...], parameters: tuple[int, ...], threads: int, repeats: int) -> list[dict[str, Any]]:
    """One entry per protocol and size; each is opened alone, for memory."""
    import torch
    from contenders import Work

    torch.set_num_threads(threads)
    entries = []
    for points in sizes:
        works = Work.of_iteration(points, 2, seed=0)
        for name in (*PROTOCOLS, "crypten-ttp"):
            if name == "crypten-ttp" and points > STOCK_POINTS:
                continue
            encrypted = name in ("bfv", "ckks")
            way = "direct" if name == "crypten-ttp" or (encrypted and points <= LARGE) else "moments"
            entries.append(
                {"against": "N", "points": points, "parameters": 6} | _one(name, works[way], threads, repeats)
            )
    for count in parameters:
        work = _dense(POINTS, count + 1)
        entries += [
            {"against": "P", "points": POINTS, "parameters": count} | _one(name, work, threads, repeats)
            for name in (*PROTOCOLS, "crypten-ttp")
        ]
    return entries


def _dense(points: int, rows: int) -> Any:
    import torch
    from contenders import Work

    from ppir_torch.joint.bounds import all_pairs

    generator = torch.Generator().manual_seed(1)
    matrix, fixed = (torch.randn(n, points, generator=generator) for n in (rows, 1))
    return Work("direct", matrix, fixed, all_pairs(rows, 1))


def _one(name: str, work: Any, threads: int, repeats: int) -> dict[str, Any]:
    from contenders import private, stock_crypten

    opened = stock_crypten("TTP", work, threads) if name == "crypten-ttp" else private(name, work, threads)
    with opened as contender:
        runs = timing.alternate({name: contender.product}, repeats)[name]
        traffic = asdict(contender.traffic())
    seconds = timing.median([s for s, _ in runs])
    exact = work.exact()
    error = max(float((r.double() - exact).norm() / exact.norm()) for _, r in runs)
    print(f"{name} {work.name} N={contender.points:,} {contender.results} results: {seconds:.4f} s", flush=True)
    wire = sum(traffic[key] for key in ("up", "down", "others"))
    return {"protocol": name, "seconds": seconds, "bytes": wire, "once": traffic["once"], "relative_error": error}


def plot(entries: list[dict[str, Any]], path: Path) -> None:
    """Seconds and bytes against N and against P, logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for column, (against, key, label) in enumerate((("N", "points", "points N (P = 6)"), ("P", "parameters", "P"))):
        for row, (value, unit) in enumerate((("seconds", "seconds a product"), ("bytes", "bytes a product"))):
            axis = axes[row][column]
            for name in (*PROTOCOLS, "crypten-ttp"):
                chosen = [e for e in entries if e["against"] == against and e["protocol"] == name]
                style = "--" if name == "crypten-ttp" else "-"
                axis.plot([e[key] for e in chosen], [e[value] for e in chosen], style, marker="o", label=name)
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel=unit)
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/scaling.json"))
    arguments = parser.parse_args()
    timing.set_threads(arguments.threads)
    facts = timing.machine(arguments.threads, ("torch", "crypten", "tenseal")) | {"repeats": arguments.repeats}
    sizes, parameters = (SIZES[:2], PARAMETERS[:2]) if arguments.quick else (SIZES, PARAMETERS)
    entries = measure(sizes, parameters, arguments.threads, arguments.repeats)
    head = ["against", "N", "P", "protocol", "s", "MB a product", "MB once"]
    table = [
        [
            e["against"],
            f"{e['points']:,}",
            e["parameters"],
            f"`{e['protocol']}`",
            f"{e['seconds']:.4f}",
            f"{e['bytes'] / 1e6:.3f}",
            f"{e['once'] / 1e6:.2f}",
        ]
        for e in entries
    ]
    plot(entries, arguments.output.with_suffix(".png"))
    run = f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']} at the start; medians"
    text = "\n".join(["# Cost of one product", "", run, "", timing.markdown_table(head, table)])
    timing.write_report(arguments.output, {"machine": facts, "entries": entries}, text)


if __name__ == "__main__":
    main()
