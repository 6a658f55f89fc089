"""Everything that is computed of one image alone, on a device that is not the CPU: the same values, where the image is.

Tests of whole runs are in `registration/test_device_runs.py`, of what the parties compute for each other in
`joint/test_device_products.py`. The device is pretended (`pretended_device.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from pretended_device import PRETENDED, copies_between_devices
from torch import Tensor, nn

from ppir_torch.features import apply_module, local_normalised, mind_ssc, preprocess, turned_towards
from ppir_torch.grids import Grid
from ppir_torch.histograms import bin_slopes, bin_weights, information
from ppir_torch.images import Image, Level
from ppir_torch.joint.placement import select_points
from ppir_torch.losses import Correlation, Measure, Mind, MutualInformation, SquaredDifference
from ppir_torch.metrics import registration as metrics
from ppir_torch.metrics import similarity
from ppir_torch.phantoms import deformed
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.sampling import Full, GradientMagnitude, Uniform
from ppir_torch.transforms import (
    Affine,
    BSpline,
    Composite,
    ControlLattice,
    Displacement,
    LinearTransform,
    Rigid,
    VelocityField,
)
from ppir_torch.transforms.smoothness import Regulariser
from ppir_torch.warping import (
    grid_gradient,
    resampled_along,
    sample,
    sample_with_gradient,
    steepest_descent,
    warp,
)

DEVICES = ("cpu", PRETENDED)


class Swirl(nn.Module):
    """Anyone's transform: what the library knows of it is that it maps points to points."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))

    def forward(self, points: Tensor) -> Tensor:
        amount = self.amount.to(points)
        return points + amount[0] * torch.sin(points.flip(-1) / 5) + amount[1]


def grid_of(dimension: int) -> Grid:
    c, s = math.cos(0.3), math.sin(0.3)
    turn = (c, s, s, -c) if dimension == 2 else (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, -1.0)
    return Grid((14, 12, 10)[:dimension], (1.5, 2.0, 1.75)[:dimension], (5.0, -3.0, 2.0)[:dimension], turn)


def image_of(dimension: int, device: str = "cpu", channels: int = 1) -> Image:
    grid = grid_of(dimension)
    values = torch.rand(channels, *grid.shape, generator=torch.Generator().manual_seed(dimension))
    return Image(values, grid).smoothed(2.0).to(device)


def filled(transform: nn.Module, size: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return transform


TRANSFORMS: dict[str, Callable[[Grid], nn.Module]] = {
    "affine": lambda grid: filled(Affine(grid)),
    "rigid": lambda grid: filled(Rigid(grid)),
    "bspline": lambda grid: filled(BSpline(ControlLattice(grid, 12.0))),
    "velocity": lambda grid: filled(VelocityField(ControlLattice(grid, 12.0))),
    "displacement": lambda grid: filled(Displacement(grid), 0.1),
    "composite": lambda grid: Composite([filled(BSpline(ControlLattice(grid, 12.0))), filled(Affine(grid))]),
    "one's own": lambda _: Swirl(),
}
every_transform = pytest.mark.parametrize("name", TRANSFORMS)
parameters_on = pytest.mark.parametrize("parameters", DEVICES, ids=["parameters on the CPU", "on the device"])


def values_of(results: Any) -> list[Tensor]:
    results = results.tensor if isinstance(results, Image) else results
    return [results] if isinstance(results, Tensor) else list(results)


def assert_equal_on_device(compute: Callable[[str], Any], device: str = PRETENDED) -> None:
    """`compute(where the image is)` gives the CPU's values, on `device`."""
    for found, wanted in zip(values_of(compute(PRETENDED)), values_of(compute("cpu")), strict=True):
        assert found.device == torch.device(device)
        assert torch.allclose(found.cpu(), wanted, rtol=1e-6, atol=1e-7)


def network(dimension: int) -> nn.Module:
    module = (nn.Conv2d if dimension == 2 else nn.Conv3d)(1, 3, 3, padding=1)
    return filled(module).eval()


def half(image: Image) -> Tensor:
    return image.tensor[0] > image.tensor[0].median()


OF_AN_IMAGE: dict[str, Callable[[Image], Any]] = {
    "a level": lambda image: image.at_level(Level(2, 1.5)),
    "mind": lambda image: mind_ssc(image, 1),
    "local normalisation": lambda image: local_normalised(image, 3.0),
    "turned": lambda image: turned_towards(image, Grid((8,) * image.grid.dimension)),
    "a network": lambda image: apply_module(network(image.grid.dimension).to(image.tensor.device), image),
    "preprocessing": lambda image: preprocess(image, (0.0, 1.0), (5, 95)),
    "preprocessing in a mask": lambda image: preprocess(image, (0.0, 1.0), mask=half(image)),
    "preprocessing in a mask on the CPU": lambda image: preprocess(image, (0.0, 1.0), mask=half(image).cpu()),
    "the gradient at voxels": grid_gradient,
    "resampled": lambda image: resampled_along(image, 1.1 * torch.eye(image.grid.dimension), grid_of_level(image)),
    "bins": lambda image: bin_weights(image.tensor.flatten(), 0.2, 0.8, 8),
    "bins' slopes": lambda image: bin_slopes(image.tensor.flatten(), 0.2, 0.8, 8),
    "information": lambda image: information(image.tensor.reshape(-1, image.grid.size[0])),
    "correlation": lambda image: similarity.ncc(image.tensor, image.tensor.flip(1)),
    "local correlation": lambda image: similarity.local_ncc(image.tensor[0], image.tensor[0].flip(0), 2),
    "mutual information": lambda image: similarity.mutual_information(image.tensor, image.tensor.flip(1)),
}


def grid_of_level(image: Image) -> Grid:
    return image.at_level(Level(2, 0.0)).grid


@pytest.mark.parametrize("compute", OF_AN_IMAGE.values(), ids=OF_AN_IMAGE)
def test_what_is_made_of_an_image_lies_where_the_image_does(compute: Callable[[Image], Any], dimension: int) -> None:
    assert_equal_on_device(lambda device: compute(image_of(dimension, device)))


def test_what_transforms_start_from_and_are_compared_at_lies_on_the_cpu(dimension: int) -> None:
    assert_equal_on_device(lambda device: image_of(dimension, device).centre_of_mass(), device="cpu")
    assert_equal_on_device(lambda device: metrics.foreground_points(image_of(dimension, device), 0.5), device="cpu")


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_samples(mode: str, dimension: int) -> None:
    def compute(device: str) -> list[Tensor]:
        image = image_of(dimension, device)
        points = image.grid.points(device=device) + 0.3
        return [sample(image, points, mode), *sample_with_gradient(image, 0.1, points)]

    assert_equal_on_device(compute)


@parameters_on
@every_transform
def test_a_warped_image(name: str, parameters: str, dimension: int) -> None:
    transform = TRANSFORMS[name](grid_of(dimension)).to(parameters)
    places = [p.device for p in transform.parameters()]

    def warped(mode: str, device: str) -> Image:
        return warp(image_of(dimension, device), transform, grid_of(dimension), mode)

    for mode in ("bilinear", "nearest"):
        assert_equal_on_device(partial(warped, mode))
    assert [p.device for p in transform.parameters()] == places


def test_a_flow_is_worked_out_where_the_image_is() -> None:
    image = image_of(2, PRETENDED)
    transform = TRANSFORMS["velocity"](image.grid)
    with copies_between_devices() as copies:
        warp(image, transform, image.grid)
    points = 2 * image.grid.count
    assert copies.count(points) == 1  # the points that are warped to, and no field
    assert all(copy < points for copy in copies if copy != points)


@parameters_on
@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in ("velocity", "displacement")])
def test_steepest_descent_images(name: str, parameters: str, dimension: int) -> None:
    transform = TRANSFORMS[name](grid_of(dimension))

    def compute(device: str) -> Tensor:
        image = image_of(dimension, device)
        points = image.grid.points(device=device)[:40]
        transform.to(parameters if device != "cpu" else "cpu")
        return steepest_descent(transform, points, torch.ones_like(points))

    assert_equal_on_device(compute)


@parameters_on
@every_transform
def test_points_are_mapped_where_they_are(name: str, parameters: str, dimension: int) -> None:
    transform = TRANSFORMS[name](grid_of(dimension)).to(parameters)
    assert_equal_on_device(lambda device: transform(grid_of(dimension).points(device=device)).detach())


@pytest.mark.parametrize("name", ["affine", "bspline", "velocity", "displacement", "composite"])
def test_an_inverse_lies_where_the_transform_does(name: str) -> None:
    points = grid_of(2).points(dtype=torch.float64)[:30]

    def compute(device: str) -> Iterable[Tensor]:
        inverse: nn.Module = TRANSFORMS[name](grid_of(2)).to(device).inverse()  # type: ignore[operator]
        return [*(p.detach() for p in inverse.parameters()), inverse(points.to(device)).detach()]

    assert_equal_on_device(compute)


@pytest.mark.parametrize("name", ["bspline", "velocity"])
def test_a_refined_lattice_lies_where_the_coarse_one_does(name: str) -> None:
    def compute(device: str) -> list[Tensor]:
        transform: Any = TRANSFORMS[name](grid_of(3)).to(device)
        finer = transform.refined(6.0)
        return [finer.coefficients.detach(), finer.displacement(grid_of_level(image_of(3))).detach()]

    assert_equal_on_device(compute)


@pytest.mark.parametrize("kind", ["bending", "diffusion", "elastic"])
def test_smoothness(kind: str, dimension: int) -> None:
    def compute(device: str) -> list[Tensor]:
        transform: Any = TRANSFORMS["bspline"](grid_of(dimension)).to(device)
        lattice = transform.lattice
        regulariser = Regulariser.of(kind, lattice.size, lattice.control_spacing, lattice.grid.direction)
        return [f(transform.coefficients.detach()) for f in (regulariser.value, regulariser.apply)]

    assert_equal_on_device(compute)


def test_linear_steps(kind: str, random_transform: Callable[..., LinearTransform], dimension: int) -> None:
    def compute(device: str) -> list[Tensor]:
        transform = random_transform(kind, grid_of(dimension)).to(device)
        count = sum(p.numel() for p in transform.parameters())
        transform.step_back(torch.linspace(-0.1, 0.2, count, dtype=torch.float64, device=device))
        return [p.detach() for p in transform.parameters()]

    assert_equal_on_device(compute)


@every_transform
def test_jacobians(name: str) -> None:
    transform = TRANSFORMS[name](grid_of(2))

    def compute(device: str) -> Tensor:
        return metrics.jacobian_determinant(transform.to(device), grid_of(2))

    assert_equal_on_device(compute)


def test_points_of_a_mask_are_counted_on_the_cpu() -> None:
    grid = grid_of(2)
    mask = half(image_of(2))
    chosen = GradientMagnitude(0.5).draw(torch.rand(grid.count), 0)
    for choice in (Full(), Uniform(0.4)):
        found, wanted = (select_points(grid, m, Level(1, 0.0), choice, 0) for m in (mask.to(PRETENDED), mask))
        assert found[1].index is not None
        assert found[1].index.device.type == "cpu"
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1].index, wanted[1].index)
    assert GradientMagnitude(0.5).draw(torch.rand(grid.count).to(PRETENDED), 0).index.device == chosen.index.device


def test_a_phantom_is_deformed_where_it_lies() -> None:
    def compute(device: str) -> Tensor:
        pair = deformed(image_of(2, device), Affine(grid_of(2)), 1.0, 8.0, 0.1, 3)
        return pair.moving.tensor

    assert_equal_on_device(compute)


@parameters_on
@pytest.mark.parametrize("name", ["affine", "bspline", "one's own"])
@pytest.mark.parametrize("measure", [SquaredDifference(), Correlation(), Mind(1)], ids=lambda m: m.kind)
def test_a_loss_has_its_gradient_where_the_parameters_are(measure: Measure, name: str, parameters: str) -> None:
    grid = grid_of(2)
    transform = TRANSFORMS[name](grid)

    def compute(device: str) -> list[Tensor]:
        transform.to(parameters if device != "cpu" else "cpu")
        image = image_of(2, device)
        fixed = ClearFixed(Image(image.tensor.flip(1), grid))
        loss = measure.loss(fixed.operand(OperandRequest(Level(1, 0.0), measure=measure)))
        transform.zero_grad()
        value = loss(transform, measure.features(image, grid))
        value.backward()
        with torch.no_grad():
            again = loss(transform, measure.features(image, grid))
        assert float(again) == pytest.approx(float(value.detach()), rel=1e-5)
        assert value.device.type == "cpu"
        return [p.grad for p in transform.parameters() if p.grad is not None]

    assert_equal_on_device(compute, device=parameters)


def test_mutual_information_has_its_gradient_where_the_parameters_are() -> None:
    grid, measure = grid_of(2), MutualInformation(8, 6)

    def compute(device: str) -> list[Tensor]:
        transform, image = filled(Affine(grid)), image_of(2, device)
        request = OperandRequest(Level(1, 0.0), columns=measure.columns(), measure=measure)
        measure.loss(ClearFixed(image).operand(request))(transform, image).backward()
        return [p.grad for p in transform.parameters() if p.grad is not None]

    assert_equal_on_device(compute, device="cpu")
