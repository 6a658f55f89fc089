"""The main job on a real image: one brain pair, registered in clear and privately. Run by `make demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ppir_torch import Affine, PpirError, load_image, warp
from ppir_torch.config.compose import compose_runs
from ppir_torch.phantoms import brain_pair, save_pair
from ppir_torch.reporting.figures import comparison_figure
from ppir_torch.reporting.tables import comparison, print_table, write_markdown
from ppir_torch.runs.images import run

OUTPUT = Path("outputs/demo")
NEXT = """
Look at      outputs/demo/comparison.png, outputs/demo/<backend>/result.json, warped.nii.gz and transform.tfm
Your images  .venv/bin/ppir register MOVING FIXED --transform affine --backend bfv -o outputs/mine
With YAML    .venv/bin/ppir run experiment=demo backend=bfv sampler=urs sampler.fraction=0.1
A sweep      .venv/bin/ppir run -m experiment=demo backend=clear,bfv transform=rigid,affine
In Python    .venv/bin/python experiments/training_loop.py
The table    .venv/bin/python experiments/affine_table.py
"""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["clear", "beaver", "spdz", "bfv"])
    backends = parser.parse_args().backends
    print("The MNI152 T1 brain (2 mm, 902,629 voxels) and the same brain moved by a known affine, with 2 % noise.")
    pair = brain_pair()
    save_pair(pair, OUTPUT / "data")
    results, warped = {}, {}
    for backend in backends:
        overrides = ["experiment=demo", f"backend={backend}"]
        reference = OUTPUT / "clear" / "transform.tfm"
        if "clear" in results:
            overrides.append(f"data.reference={reference}")
        [(_, config)] = compose_runs(overrides)
        results[backend] = run(config, OUTPUT / backend)
        warped[backend] = load_image(OUTPUT / backend / "warped.nii.gz")
    before = warp(pair.moving, Affine(pair.fixed.grid), pair.fixed.grid)
    comparison_figure(OUTPUT / "comparison.png", pair.fixed, before, warped, results)
    headers, rows = comparison(results)
    write_markdown(OUTPUT / "table.md", "The demo: one brain pair, clear and private", headers, rows)
    print_table(headers, rows, "Affine registration of a real brain, clear and private")
    for backend, values in results.items():
        if values["party_1"] is not None:
            for party, lines in values["disclosed"].items():
                print(f"{backend}: {party} learned {'; '.join(lines)}")
    print(NEXT)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PpirError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
