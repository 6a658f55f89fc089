"""Whole affine runs by size: seconds, peak memory of each party, bytes; every protocol, up to where it ends in time.

    python benchmarks/sizes.py [--quick] [--protocols clear,beaver] [--sizes 96,128x128x96] [--levels 4,2,1]

A made pair of each size (int16, 1 mm, a known affine; written once, in the folder of the report) goes through
`ppir register` with levels down to full resolution, each run a fresh process, its parties their own. A protocol goes on
to the next size while a run ends within `--limit` seconds; where it stopped is printed, nothing is extrapolated.

"volumes" is what a party's peak is above that of the smallest size, in float32 volumes of what the image grew by: what
another voxel costs. What Python and its packages take by themselves does not count in it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import timing

PROTOCOLS = ("clear", "beaver", "spdz", "bfv", "ckks")
SIZES = ("64", "128", "192", "256", "512x512x150", "512x512x300")
QUICK = ("48", "64")
ROLES = ("party_1", "party_2", "dealer")


def size_of(text: str) -> tuple[int, int, int]:
    """ "64" or "512x512x300": voxels along x, y, z."""
    numbers = [int(part) for part in text.split("x")]
    x, y, z = numbers * 3 if len(numbers) == 1 else numbers
    return x, y, z


def make_pair(folder: Path, size: tuple[int, int, int]) -> tuple[Path, Path]:
    """(moving, fixed) files of smooth structure inside a head-like ball, the moving one under a known affine."""
    import SimpleITK as sitk
    import torch
    import torch.nn.functional as F

    name = "x".join(str(n) for n in size)
    moving, fixed = folder / f"moving-{name}.mha", folder / f"fixed-{name}.mha"
    if moving.exists() and fixed.exists():
        return moving, fixed
    folder.mkdir(parents=True, exist_ok=True)
    base = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(1))
    matrix = torch.eye(3) + 0.04 * torch.tensor([[0.5, -1.0, 0.3], [1.0, -0.4, 0.2], [-0.3, 0.4, 0.6]])
    shift = torch.tensor([0.03, -0.02, 0.04])
    x, y, z = size
    for path, turned in ((fixed, False), (moving, True)):
        volume = torch.empty(z, y, x, dtype=torch.int16)
        across = torch.stack(torch.meshgrid(torch.linspace(-1, 1, y), torch.linspace(-1, 1, x), indexing="ij"), -1)
        for number, height in enumerate(torch.linspace(-1, 1, z).tolist()):
            points = torch.cat([across.flip(-1), torch.full((y, x, 1), height)], -1)[..., [1, 0, 2]]
            points = points @ matrix.T + shift if turned else points
            values = F.grid_sample(base, points[None, None], align_corners=True)[0, 0, 0]
            ball = torch.sigmoid(12 * (0.85 - points.norm(dim=-1)))
            volume[number] = (400 * ball * (1 + 0.5 * values)).to(torch.int16)
        sitk.WriteImage(sitk.GetImageFromArray(volume.numpy()), str(path))
    return moving, fixed


def run(files: tuple[Path, Path], protocol: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One entry: what result.json says, or how the run ended without one."""
    moving, fixed = files
    command = [sys.executable, "-c", "from ppir_torch.cli import main; main()", "register", str(moving), str(fixed)]
    command += [
        "--backend",
        protocol,
        "--levels",
        arguments.levels,
        "--loss",
        arguments.loss,
        "--threads",
        str(arguments.threads),
    ]
    command += ["--releases", str(folder / "releases.sqlite"), "--max-values", str(10**9), "-o", str(folder / protocol)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its parties
        process.communicate()
        return {"ended": f"not within {arguments.limit:.0f} s"}
    if process.returncode != 0:
        return {"ended": f"exit code {process.returncode}: {(said.strip().splitlines() or ['no line'])[-1]}"}
    values = json.loads((folder / protocol / "result.json").read_text())
    peaks = {"clear": values["peak_memory_mb"]} if protocol == "clear" else {}
    parties = {role: values[role] for role in ROLES if values.get(role)}
    peaks |= {role: account["peak_memory_mb"] for role, account in parties.items()}
    return {
        "seconds": time.perf_counter() - started,
        "iterations": values["iterations"],
        "peaks_mb": peaks,
        "bytes": sum(account["bytes_sent"] for account in parties.values()),
    }


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The entries of all protocols, size by size."""
    entries: list[dict[str, Any]] = []
    for protocol in arguments.protocols.split(","):
        first: dict[str, Any] | None = None
        for text in arguments.sizes.split(","):
            size = size_of(text)
            found = {"protocol": protocol, "size": size, "voxels": math.prod(size)}
            found |= run(make_pair(folder, size), protocol, arguments, folder)
            if "peaks_mb" in found and first is not None:
                volume = 4e-6 * (found["voxels"] - first["voxels"])
                found["volumes"] = {
                    role: (peak - first["peaks_mb"][role]) / volume for role, peak in found["peaks_mb"].items()
                }
            first = first or found
            entries.append(found)
            print(line_of(found), flush=True)
            if "ended" in found:
                break
    return entries


def line_of(entry: dict[str, Any]) -> str:
    """An entry as it goes by."""
    name = f"{entry['protocol']} {'x'.join(str(n) for n in entry['size'])}"
    if "ended" in entry:
        return f"{name}: stopped here, {entry['ended']}"
    peaks = ", ".join(f"{role} {peak:.0f} MB" for role, peak in entry["peaks_mb"].items())
    sent = f"{entry['bytes'] / 1e6:.0f} MB sent"
    return f"{name}: {entry['seconds']:.1f} s, {entry['iterations']} iterations, {peaks}, {sent}"


def table(entries: list[dict[str, Any]]) -> str:
    """The report's table."""
    rows = []
    for entry in entries:
        name = [entry["protocol"], " x ".join(str(n) for n in entry["size"])]
        if "ended" in entry:
            rows.append([*name, entry["ended"], "", "", ""])
            continue
        peaks = " / ".join(f"{peak:.0f}" for peak in entry["peaks_mb"].values())
        volumes = " / ".join(f"{count:.1f}" for count in entry.get("volumes", {}).values())
        rows.append([*name, f"{entry['seconds']:.0f}", peaks, volumes, f"{entry['bytes'] / 1e6:,.0f}"])
    head = ["protocol", "voxels", "s", "peak MB (party_1 / party_2 / dealer)", "volumes", "MB sent"]
    return timing.markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--sizes", default=None, help="default: " + ",".join(SIZES))
    parser.add_argument("--levels", default="4,2,1", help="shrink factors")
    parser.add_argument("--loss", default="ssd")
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of a run, after which it is ended")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/benchmarks/sizes.json"))
    arguments = parser.parse_args()
    arguments.sizes = arguments.sizes or ",".join(QUICK if arguments.quick else SIZES)
    entries = measure(arguments, arguments.output.parent / "sizes")
    values = {"machine": timing.machine(arguments.threads), "limit_s": arguments.limit, "entries": entries}
    timing.write_report(arguments.output, values, table(entries))


if __name__ == "__main__":
    main()
