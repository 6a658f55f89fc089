"""One affine registration by one tool, in a process of its own: `peer_worker.py TOOL FIXED MOVING OUTPUT THREADS`.

Run by peers.py, with the interpreter that has the tool; prints one JSON line: seconds to read both images, to register
(from loaded images to the transform), and to write transform and warped image. It imports no more than its tool.
Every tool starts from the centres of the two images and minimises the mean squared difference over several resolutions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any


def ours(fixed: str, moving: str, output: Path, threads: int) -> list[float]:
    """`register_images` with its default plan; the time includes its warped image."""
    import torch

    from ppir_torch.images import load_image, save_image
    from ppir_torch.registration import ClearFixed, register_images
    from ppir_torch.transforms import save_transform

    torch.set_num_threads(threads)
    times = [time.perf_counter()]
    a, b = load_image(fixed), load_image(moving)
    times.append(time.perf_counter())
    result = register_images(b, ClearFixed(a))
    times.append(time.perf_counter())
    save_transform(result.transform, output / "transform.tfm")
    save_image(result.warped, output / "warped.nii.gz")
    return [*times, time.perf_counter()]


def ants(
    fixed: str,
    moving: str,
    output: Path,
    threads: int,  # noqa: ARG001  (ITK reads its environment variable)
    kind: str = "Affine",
    clip: bool = True,
) -> list[float]:
    """`ants.registration` with mean squares; the time includes its warped images, which it always makes.

    It scales each image by its own extremes, which noise moves; clipping both to one range (`clip`, not timed) undoes
    that, and its error is twenty times smaller.
    """
    import ants as tool

    times = [time.perf_counter()]
    a, b = tool.image_read(fixed), tool.image_read(moving)
    times.append(time.perf_counter())
    if clip:
        low, high = max(a.min(), b.min()), min(a.max(), b.max())
        a, b = (image.new_image_like(image.numpy().clip(low, high)) for image in (a, b))
    clipped = time.perf_counter()
    result = tool.registration(a, b, type_of_transform=kind, aff_metric="meansquares", outprefix=f"{output}/")
    times.append(times[-1] + time.perf_counter() - clipped)
    resume = time.perf_counter()
    Path(result["fwdtransforms"][0]).replace(output / "transform.mat")
    tool.image_write(result["warpedmovout"], str(output / "warped.nii.gz"))
    return [*times, times[-1] + time.perf_counter() - resume]


def greedy(fixed: str, moving: str, output: Path, threads: int) -> list[float]:
    """greedy's affine with SSD, images handed over in memory; writes its own 4 x 4 matrix (RAS, fixed to moving)."""
    import numpy as np
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    tool = Greedy3D()
    times = [time.perf_counter()]
    a, b = sitk.ReadImage(fixed, sitk.sitkFloat32), sitk.ReadImage(moving, sitk.sitkFloat32)
    times.append(time.perf_counter())
    common = f"-d 3 -threads {threads} -V 0"
    tool.execute(
        f"{common} -i a b -a -dof 12 -m SSD -ia-image-centers -n 100x50x20 -float -o affine", a=a, b=b, affine=None
    )
    times.append(time.perf_counter())
    np.savetxt(output / "transform.txt", tool["affine"])
    tool.execute(f"{common} -rf a -rm b warped -r affine", warped=None)
    sitk.WriteImage(tool["warped"], str(output / "warped.nii.gz"))
    return [*times, time.perf_counter()]


def simpleitk(fixed: str, moving: str, output: Path, threads: int) -> list[float]:
    """ImageRegistrationMethod with mean squares: three levels, a fifth of the points, regular steps."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    times = [time.perf_counter()]
    a, b = sitk.ReadImage(fixed, sitk.sitkFloat32), sitk.ReadImage(moving, sitk.sitkFloat32)
    times.append(time.perf_counter())
    # Its tolerances are absolute: on images in [0, 1] it stops far too early.
    largest = max(sitk.GetArrayViewFromImage(a).max(), sitk.GetArrayViewFromImage(b).max())
    start = sitk.CenteredTransformInitializer(
        a, b, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([1.0, 0.5, 0.2])
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, relaxationFactor=0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(start, inPlace=True)
    scale = 1000.0 / float(largest)
    method.Execute(a * scale, b * scale)
    times.append(time.perf_counter())
    sitk.WriteTransform(start, str(output / "transform.tfm"))
    sitk.WriteImage(sitk.Resample(b, a, start, sitk.sitkLinear, 0.0), str(output / "warped.nii.gz"))
    return [*times, time.perf_counter()]


TOOLS: dict[str, Callable[[str, str, Path, int], list[float]]] = {
    "ours": ours,
    "ants": ants,
    "ants-fast": partial(ants, kind="AffineFast"),
    "ants-unclipped": partial(ants, clip=False),
    "greedy": greedy,
    "simpleitk": simpleitk,
}


def main() -> None:
    tool, fixed, moving, output, threads = sys.argv[1:]
    Path(output).mkdir(parents=True, exist_ok=True)
    times = TOOLS[tool](fixed, moving, Path(output), int(threads))
    steps = [b - a for a, b in pairwise(times)]
    result: dict[str, Any] = dict(zip(("read_s", "register_s", "write_s"), steps, strict=True))
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
