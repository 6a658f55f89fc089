"""A whole 3-D affine registration in clear, ours and other tools, taking turns in one run.

    sh benchmarks/peers_env.sh
    python benchmarks/peers.py [--quick] [-o outputs/benchmarks/peers.json]

The demo's brain pair (2 mm, 902,629 voxels, known affine), with 2 % noise in the moving image, and again with 2 % in
both. Every run is a fresh process with its number of threads set. The error is the RMSE in mm of the transform that the
tool wrote, to the truth, inside the fixed brain.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timing

if TYPE_CHECKING:
    from ppir_torch.images import Image
    from ppir_torch.phantoms import BrainPair
    from ppir_torch.transforms import Affine

WORKER = Path(__file__).parent / "peer_worker.py"
PEERS = {  # name in the table and in peer_worker.py -> module that must import
    "ants": "ants",
    "ants-fast": "ants",
    "ants-unclipped": "ants",
    "greedy": "picsl_greedy",
    "simpleitk": "SimpleITK",
}
CASES = {"noise in the moving image": False, "noise in both images": True}
NOISE = 0.02


def available(python: Path, peers: dict[str, str]) -> list[str]:
    """The names of the peers whose module imports in that environment; one line for each that does not."""
    found = []
    for name, module in peers.items():
        check = [str(python), "-c", f"import {module}"]
        if python.exists() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
            found.append(name)
        else:
            print(f"{name}: skipped, {python} cannot import {module} (sh benchmarks/peers_env.sh)", file=sys.stderr)
    return found


def pair_with_noise(both: bool) -> BrainPair:
    """The demo's pair; `both`: the same share of noise in the fixed image."""
    import dataclasses

    import torch

    from ppir_torch.images import Image
    from ppir_torch.phantoms import brain_pair

    pair = brain_pair(NOISE)
    if not both:
        return pair
    clean = pair.fixed.tensor
    noise = NOISE * float(clean.max()) * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(pair, fixed=Image(clean + noise, pair.fixed.grid))


def run_once(python: str, tool: str, folder: Path, threads: int) -> dict[str, float]:
    """One registration in a process of its own: its own times and the wall time of the process, imports included."""
    command = [python, str(WORKER), tool, str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    started = time.perf_counter()
    done = subprocess.run([*command, str(folder / tool), str(threads)], capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"peers.py: {tool} failed: {done.stderr[-500:]}")
    times = json.loads(done.stdout.strip().splitlines()[-1])
    return {"register_s": times["register_s"], "files_s": sum(times.values()), "process_s": wall}


def written_transform(folder: Path, fixed: Image) -> Affine:
    """What a tool wrote, as a map from fixed to moving points in LPS mm."""
    import numpy as np
    import torch

    from ppir_torch.transforms import affine_from_map, load_transform

    matrix_file = folder / "transform.txt"  # greedy: a 4 x 4 matrix between RAS coordinates, fixed to moving
    if not matrix_file.exists():
        return load_transform(next(folder.glob("transform.*")), fixed.grid)
    flip = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    matrix = flip @ torch.from_numpy(np.loadtxt(matrix_file)) @ flip
    return affine_from_map(fixed.grid, matrix[:3, :3], matrix[:3, 3])


def measure(
    case: str, tools: dict[str, str], scratch: Path, threads: int, repeats: int, warm_up: int
) -> list[dict[str, Any]]:
    """One entry per tool; `tools` maps names to interpreters, and "ours" comes first."""
    from ppir_torch.metrics.registration import displacement_rmse, foreground_points
    from ppir_torch.phantoms import brain_pair, save_pair

    pair, clean = pair_with_noise(CASES[case]), brain_pair(NOISE).fixed
    folder = scratch / case.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    save_pair(pair, folder)
    points = foreground_points(clean)
    truth = pair.truth

    def contender(tool: str, python: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            times = run_once(python, tool, folder, threads)
            found = written_transform(folder / tool, clean)
            return times | {"rmse_mm": displacement_rmse(found, truth, points)}

        return run

    runs = timing.alternate({tool: contender(tool, python) for tool, python in tools.items()}, repeats, warm_up)
    entries: list[dict[str, Any]] = []
    for tool, results in runs.items():
        middle = {key: timing.median([r[key] for r in results]) for key in results[0]}
        first = entries[0] if entries else middle
        ratios = {f"{key}_over_ours": middle[key] / first[key] for key in ("register_s", "files_s", "rmse_mm")}
        entries.append({"case": case, "tool": tool, **middle, **ratios, "all": results})
    return entries


def report(entries: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    head = ["tool", "RMSE mm", "worst", "register s", "/ ours", "files to files s", "/ ours", "process s"]
    lines = [
        "# Affine 3-D in clear, ours and peers",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads_per_process']} threads, load average "
        f"{facts['load_average']} at the start; {facts['repeats']} repeats, medians",
    ]
    for case in dict.fromkeys(e["case"] for e in entries):
        rows = [
            [
                e["tool"],
                f"{e['rmse_mm']:.4f}",
                f"{max(r['rmse_mm'] for r in e['all']):.4f}",
                f"{e['register_s']:.2f}",
                f"{e['register_s_over_ours']:.2f}x",
                f"{e['files_s']:.2f}",
                f"{e['files_s_over_ours']:.2f}x",
                f"{e['process_s']:.2f}",
            ]
            for e in entries
            if e["case"] == case
        ]
        lines += ["", f"## {case[0].upper()}{case[1:]}", "", timing.markdown_table(head, rows)]
    if facts["skipped"]:
        lines += ["", f"Not installed, so not measured: {', '.join(facts['skipped'])}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat of the first case: to see that it runs")
    parser.add_argument("--repeats", type=int, default=None, help="of each tool (3; 1 with --quick)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-env", type=Path, default=Path("outputs/benchmarks/peers-env"))
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/peers.json"))
    arguments = parser.parse_args()
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    timing.set_threads(arguments.threads)
    python = arguments.peers_env / "bin" / "python"
    peers = available(python, PEERS)
    facts = timing.machine(arguments.threads, ("torch",))
    facts |= {"repeats": repeats, "skipped": [name for name in PEERS if name not in peers]}
    facts["versions"] |= _versions(python)
    tools = {"ours": sys.executable} | dict.fromkeys(peers, os.path.abspath(python))
    scratch = arguments.output.parent / "peers"
    entries = []
    for case in list(CASES)[: 1 if arguments.quick else None]:
        entries += measure(case, tools, scratch, arguments.threads, repeats, warm_up=int(not arguments.quick))
    timing.write_report(arguments.output, {"machine": facts, "tools": entries}, report(entries, facts))


def _versions(python: Path) -> dict[str, str]:
    """Of the peers in their environment."""
    if not python.exists():
        return {}
    code = (
        "import importlib.metadata as m, json; names = ('antspyx', 'picsl-greedy', 'SimpleITK');"
        "print(json.dumps({d.name: d.version for d in m.distributions() if d.name in names}))"
    )
    return dict(json.loads(subprocess.run([str(python), "-c", code], capture_output=True, check=True).stdout))


if __name__ == "__main__":
    main()
