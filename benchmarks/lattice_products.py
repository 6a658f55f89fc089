"""One product of a free-form deformation's iteration, every protocol: seconds of all parties together and bytes.

    python benchmarks/lattice_products.py [--repeats 7] [-o outputs/benchmarks/lattice_products.json]

2-D: the size of ../shared/data/03 (216 x 291) with 5 mm between control points; 3-D: the MNI grid at 2 mm (902,629
voxels) with 8 mm. Random rows and images: no zero block to skip. Each party (and the dealer) is a process of its own;
the product is what the loss calls, quantisation included. The error is relative to the sum in float64 without rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timing
from contenders import Work, private

from ppir_torch.grids import Grid
from ppir_torch.phantoms import MNI_GRID

CASES = {"2-D": (Grid((216, 291)), 5.0), "3-D": (MNI_GRID, 8.0)}
PROTOCOLS = ("beaver", "spdz", "bfv", "ckks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/lattice_products.json"))
    arguments = parser.parse_args()
    timing.set_threads(arguments.threads)
    facts = timing.machine(arguments.threads, ("torch", "tenseal", "crypten"))
    entries = []
    for case in arguments.cases:
        work = Work.of_lattice(*CASES[case], seed=0)
        exact = work.exact()
        for name in arguments.protocols:
            with private(name, work, arguments.threads) as contender:
                contender.product()
                runs = [contender.product() for _ in range(arguments.repeats)]
                traffic = contender.traffic()
            error = float((runs[-1][1] - exact).norm() / exact.norm())
            entries.append(
                {
                    "case": case,
                    "protocol": name,
                    "points": contender.points,
                    "opened": contender.results,
                    "seconds": timing.median([seconds for seconds, _ in runs]),
                    "error": error,
                    "up": traffic.up,
                    "down": traffic.down,
                    "others": traffic.others,
                    "once": traffic.once,
                }
            )
    rows = [
        [
            e["case"],
            e["protocol"],
            f"{e['points']:,}",
            f"{e['opened']:,}",
            f"{1e3 * e['seconds']:.1f}",
            f"{e['error']:.1e}",
            f"{e['up'] / 1e6:.3f}",
            f"{e['down'] / 1e6:.3f}",
            f"{e['others'] / 1e6:.3f}",
            f"{e['once'] / 1e6:.2f}",
        ]
        for e in entries
    ]
    head = ["case", "protocol", "N", "opened", "ms", "error", "MB up", "MB down", "MB others", "MB once"]
    load = f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']} at the start, medians"
    text = f"# Products of a control lattice\n\n{load}\n\n{timing.markdown_table(head, rows)}"
    timing.write_report(arguments.output, {"machine": facts, "products": entries}, text)


if __name__ == "__main__":
    main()
