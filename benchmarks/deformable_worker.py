"""One deformable registration by one tool, in a process of its own: `deformable_worker.py TOOL FIXED MOVING OUTPUT`.

Run by deformable.py, with the interpreter that has the tool; prints one JSON line with the seconds from loaded images
to the transform, the affine stage included, and writes OUTPUT/displacement.nii.gz: LPS mm on the fixed grid. What
follows OUTPUT are settings of ours, in the grammar of `ppir run`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


def ours(fixed: str, moving: str, output: Path, kind: str) -> float:
    """The linear stage, then control points, with the configuration's defaults but for the settings given."""
    import torch

    from ppir_torch.config.compose import compose
    from ppir_torch.config.images import load_config
    from ppir_torch.images import load_image
    from ppir_torch.registration import ClearFixed, register_images
    from ppir_torch.registration.build import build_plan
    from ppir_torch.transforms import save_displacement

    torch.set_num_threads(THREADS)
    given = [*sys.argv[5:], "backend=clear", f"transform={kind}", f"data.moving='{moving}'", f"data.fixed='{fixed}'"]
    config = load_config(compose(given))
    a, b = load_image(fixed), load_image(moving)
    started = time.perf_counter()
    result = register_images(b, ClearFixed(a), build_plan(config, a.grid))
    seconds = time.perf_counter() - started
    save_displacement(result.transform, a.grid, output / "displacement.nii.gz")
    return seconds


def ants(fixed: str, moving: str, output: Path, metric: str) -> float:
    """`ants.registration` with SyN after its affine: mattes (its default) or mean squares."""
    import ants as tool

    a, b = tool.image_read(fixed), tool.image_read(moving)
    started = time.perf_counter()
    result = tool.registration(a, b, type_of_transform="SyN", syn_metric=metric, outprefix=f"{output}/")
    seconds = time.perf_counter() - started
    field = tool.apply_transforms(a, b, result["fwdtransforms"], compose=f"{output}/whole_")
    Path(field).replace(output / "displacement.nii.gz")
    return seconds


def elastix(fixed: str, moving: str, output: Path, metric: str) -> float:
    """Affine and B-spline with the default parameter maps (10 mm between control points), 500 steps a level."""
    import itk

    a, b = itk.imread(fixed, itk.F), itk.imread(moving, itk.F)
    started = time.perf_counter()
    maps = itk.ParameterObject.New()
    for number, kind in enumerate(("affine", "bspline")):
        chosen = maps.GetDefaultParameterMap(kind, 3, 10.0) if number else maps.GetDefaultParameterMap(kind, 3)
        chosen["Metric"] = [metric]
        chosen["MaximumNumberOfIterations"] = ["500"]
        maps.AddParameterMap(chosen)
    method = itk.ElastixRegistrationMethod[type(a), type(b)].New(a, b)
    method.SetParameterObject(maps)
    method.SetLogToConsole(False)
    method.Update()
    seconds = time.perf_counter() - started
    found = itk.TransformixFilter.New(b)
    found.SetTransformParameterObject(method.GetTransformParameterObject())
    found.SetComputeDeformationField(True)
    found.Update()
    itk.imwrite(found.GetOutputDeformationField(), str(output / "displacement.nii.gz"))
    return seconds


def greedy(fixed: str, moving: str, output: Path, metric: str) -> float:
    """greedy's affine with SSD, then its deformable stage."""
    from picsl_greedy import Greedy3D

    tool, common = Greedy3D(), f"-d 3 -threads {THREADS} -V 0"
    affine, warp = output / "affine.mat", output / "warp.nii.gz"
    started = time.perf_counter()
    tool.execute(f"{common} -i {fixed} {moving} -a -dof 12 -m SSD -ia-image-centers -n 100x50x20 -o {affine}")
    tool.execute(f"{common} -i {fixed} {moving} -it {affine} -m {metric} -n 100x50x20 -o {warp}")
    seconds = time.perf_counter() - started
    tool.execute(f"{common} -rf {fixed} -rc {output / 'displacement.nii.gz'} -r {warp} {affine}")
    return seconds


TOOLS: dict[str, Callable[[str, str, Path], float]] = {
    "ours bspline": partial(ours, kind="bspline"),
    "ours velocity": partial(ours, kind="velocity"),
    "ants SyN": partial(ants, metric="mattes"),
    "ants SyN meansquares": partial(ants, metric="meansquares"),
    "elastix MI": partial(elastix, metric="AdvancedMattesMutualInformation"),
    "elastix SSD": partial(elastix, metric="AdvancedMeanSquares"),
    "greedy NCC": partial(greedy, metric="NCC 2x2x2"),
}


def main() -> None:
    tool, fixed, moving, output = sys.argv[1:5]
    Path(output).mkdir(parents=True, exist_ok=True)
    print("\n" + json.dumps({"seconds": TOOLS[tool](fixed, moving, Path(output))}))


if __name__ == "__main__":
    main()
