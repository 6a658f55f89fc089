"""Affine registrations from many starts by one tool, in one process: `capture_worker.py TOOL FOLDER THREADS NN ...`.

Run by capture_range.py, with the interpreter that has the tool; imports no more than its tool. FOLDER has fixed.nii.gz
and start-NN.nii.gz, the moving image in another pose each. Every tool begins at the identity, with the loss that it
takes by default. Each start gives a line `NN CPU-seconds [4 x 4 matrix]`: fixed points to moving points, LPS mm;
`NN seconds null` where the tool gave up.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Found = list[list[float]] | None


def homogeneous(transform: Any) -> list[list[float]]:
    """The matrix of a linear map of points, given as a function of a tuple."""
    offset = transform((0.0, 0.0, 0.0))
    columns = [transform(tuple(float(i == j) for j in range(3))) for i in range(3)]
    return [[columns[j][i] - offset[i] for j in range(3)] + [offset[i]] for i in range(3)] + [[0.0, 0.0, 0.0, 1.0]]


def ours(fixed: str, moving: str, threads: int, loss: str | None = None, start: dict[str, Any] | None = None) -> Found:
    """`register_images` with a plan of the configuration's defaults."""
    import torch

    from ppir_torch.config.images import load_config
    from ppir_torch.images import load_image
    from ppir_torch.registration import ClearFixed, register_images
    from ppir_torch.registration.build import build_plan

    torch.set_num_threads(threads)
    a, b = load_image(fixed), load_image(moving)
    settings = {"data": {"moving": moving, "fixed": fixed}, "backend": {"kind": "clear"}}
    settings |= {"start": {"kind": "identity"} | (start or {})} | ({"loss": {"kind": loss}} if loss else {})
    result = register_images(b, ClearFixed(a), build_plan(load_config(settings), a.grid))
    matrix, offset = (part.detach() for part in result.transform.affine_map())  # type: ignore[union-attr]
    return [[*row, shift] for row, shift in zip(matrix.tolist(), offset.tolist(), strict=True)] + [[0.0, 0.0, 0.0, 1.0]]


def ants(fixed: str, moving: str, threads: int) -> Found:  # noqa: ARG001  (ITK reads its environment variable)
    """`ants.registration`, type "Affine", with its default metric (Mattes' mutual information)."""
    import ants as tool

    a, b = tool.image_read(fixed), tool.image_read(moving)
    with tempfile.TemporaryDirectory() as scratch:
        found = tool.registration(
            a, b, type_of_transform="Affine", initial_transform="Identity", outprefix=f"{scratch}/", random_seed=1
        )
        read = tool.read_transform(found["fwdtransforms"][0])
        return homogeneous(lambda p: list(read.apply_to_point(p)))


def greedy(fixed: str, moving: str, threads: int, search: str = "") -> Found:
    """greedy's affine with local correlation, its manual's example; its matrix is between RAS coordinates."""
    import numpy as np
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    tool = Greedy3D()
    a, b = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (fixed, moving))
    tool.execute(
        f"-d 3 -threads {threads} -V 0 -i a b -a -dof 12 -m NCC 2x2x2 -ia-identity {search} -n 100x50x10 -float "
        "-o affine",
        a=a,
        b=b,
        affine=None,
    )
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return [[float(v) for v in row] for row in flip @ np.asarray(tool["affine"]) @ flip]


def elastix(fixed: str, moving: str, threads: int) -> Found:
    """elastix's default affine parameter map (Mattes' mutual information)."""
    import itk

    parameters = itk.ParameterObject.New()
    wanted = parameters.GetDefaultParameterMap("affine", 4)
    wanted["AutomaticTransformInitialization"] = ["false"]
    parameters.AddParameterMap(wanted)
    a, b = (itk.imread(path, itk.F) for path in (fixed, moving))
    _, found = itk.elastix_registration_method(
        a, b, parameter_object=parameters, log_to_console=False, number_of_threads=threads
    )
    numbers = [float(v) for v in found.GetParameterMap(0)["TransformParameters"]]
    centre = [float(v) for v in found.GetParameterMap(0)["CenterOfRotationPoint"]]
    rows = [numbers[3 * i : 3 * i + 3] for i in range(3)]
    shifts = [numbers[9 + i] + centre[i] - sum(r * c for r, c in zip(rows[i], centre, strict=True)) for i in range(3)]
    return [[*row, shift] for row, shift in zip(rows, shifts, strict=True)] + [[0.0, 0.0, 0.0, 1.0]]


TOOLS: dict[str, Callable[[str, str, int], Found]] = {
    "ours": ours,
    "ours, ssd": partial(ours, loss="ssd"),
    "ours, ncc": partial(ours, loss="ncc"),
    "ours, ncc_squared": partial(ours, loss="ncc_squared"),
    "ours, mi": partial(ours, loss="mi"),
    "ours, turns": partial(ours, start={"turns": 45.0}),
    "ants": ants,
    "greedy": greedy,
    "greedy, search": partial(greedy, search="-search 500 30 30"),
    "elastix": elastix,
}


def main() -> None:
    tool, folder, threads, *numbers = sys.argv[1:]
    fixed = str(Path(folder) / "fixed.nii.gz")
    for number in numbers:
        path = Path(folder) / f"start-{number}.nii.gz"
        started, found = time.process_time(), None
        try:
            found = TOOLS[tool](fixed, str(path), int(threads))
        except Exception as error:
            print(f"{tool}: {path.name}: {str(error).splitlines()[-1:]}", file=sys.stderr)
        print(f"\n#{number} {time.process_time() - started:.2f} {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
