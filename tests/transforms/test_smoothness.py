"""Smoothness energies on the control lattice against polynomials by hand, SciPy quadrature, MONAI and hf-deepali."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from torch import Tensor

from ppir_torch.errors import ConfigError
from ppir_torch.transforms.smoothness import Regulariser, gram_matrices

KINDS = ("diffusion", "bending", "elastic")
SIZES = {2: (7, 5), 3: (5, 6, 4)}
SPACINGS = {2: (3.0, 5.0), 3: (3.0, 5.0, 2.0)}
MU, LAM = 0.7, 1.3


@pytest.fixture(params=KINDS)
def energy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rotation(dimension: int) -> Tensor:
    """An improper one: lattices may be mirrored."""
    generator = torch.Generator().manual_seed(4)
    square = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(square)[0]
    return orthonormal * -torch.det(orthonormal).sign()


def make(kind: str, dimension: int, direction: Tensor | None = None) -> Regulariser:
    turned = () if direction is None else tuple(direction.flatten().tolist())
    return Regulariser.of(kind, SIZES[dimension], SPACINGS[dimension], turned, mu=MU, lam=LAM)


def random_coefficients(size: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(size), *size[::-1], generator=generator, dtype=torch.float64).to(dtype)


def index_axes(size: tuple[int, ...]) -> list[Tensor]:
    """Control point numbers along x, y[, z] as ([z,] y, x) tensors."""
    axes = [torch.arange(n, dtype=torch.float64) for n in size[::-1]]
    return list(torch.meshgrid(*axes, indexing="ij"))[::-1]


def brute_force(kind: str, c: Tensor, spacing: tuple[float, ...], direction: Tensor, nodes: int = 7) -> Tensor:
    """Mean energy from physical derivatives at Gauss points of SciPy's splines, differentiable in c."""
    d = c.shape[0]
    t, w = np.polynomial.legendre.leggauss(nodes)
    bases, weights = [], torch.ones(1, dtype=torch.float64)
    for m in c.shape[1:]:  # [z,] y, x
        x = (np.arange(1, m - 2)[:, None] + (t + 1) / 2).ravel()
        spline = BSpline(np.arange(-2, m + 2).astype(float), np.eye(m), 3, extrapolate=False)
        bases.append([torch.from_numpy((spline.derivative(p) if p else spline)(x)) for p in range(3)])
        line = torch.from_numpy(np.tile(w / 2, m - 3)) / (m - 3)
        weights = torch.outer(weights, line).flatten()
    letters = "zyx"[-d:]

    def derivative(*lattice_axes: int) -> Tensor:
        orders = [lattice_axes.count(axis) for axis in range(d)]
        tables = [bases[d - 1 - axis][orders[axis]] for axis in reversed(range(d))]
        text = ",".join(f"{letter.upper()}{letter}" for letter in letters)
        values = torch.einsum(f"i{letters},{text}->i{letters.upper()}", c, *tables).flatten(1)
        return values / math.prod(spacing[axis] for axis in lattice_axes)

    first = torch.einsum("ain,ja->ijn", torch.stack([derivative(a) for a in range(d)]), direction)
    if kind == "bending":
        pairs = [torch.stack([derivative(a, b) for b in range(d)]) for a in range(d)]
        second = torch.einsum("abin,ja,kb->ijkn", torch.stack(pairs), direction, direction)
        density = second.square().sum((0, 1, 2))
    elif kind == "diffusion":
        density = first.square().sum((0, 1))
    else:
        strain = first + first.transpose(0, 1)
        density = MU / 4 * strain.square().sum((0, 1)) + LAM / 2 * torch.einsum("iin->n", first).square()
    return (density * weights).sum()


def test_gram_matrices_are_the_known_fractions_inside() -> None:
    table = gram_matrices(11)[:, :, 5, 5:9]
    expected = {
        (0, 0): [2416 / 5040, 1191 / 5040, 120 / 5040, 1 / 5040],
        (1, 1): [2 / 3, -1 / 8, -1 / 5, -1 / 120],
        (2, 2): [8 / 3, -3 / 2, 0, 1 / 6],
        (1, 0): [0, -49 / 144, -7 / 90, -1 / 720],
    }
    for (p, q), row in expected.items():
        torch.testing.assert_close(table[p, q], torch.tensor(row, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("count", [4, 5, 9])
def test_gram_matrices_are_scipys_integrals_and_stop_at_the_domain(count: int) -> None:
    t, w = np.polynomial.legendre.leggauss(6)
    x = (np.arange(1, count - 2)[:, None] + (t + 1) / 2).ravel()
    spline = BSpline(np.arange(-2, count + 2).astype(float), np.eye(count), 3)
    values = [(spline.derivative(p) if p else spline)(x) for p in range(3)]
    for p, q in itertools.product(range(3), repeat=2):
        expected = values[p].T @ (values[q] * np.tile(w / 2, count - 3)[:, None])
        np.testing.assert_allclose(gram_matrices(count)[p, q].numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("turned", [False, True], ids=["along the axes", "turned"])
def test_value_and_gradient_are_those_of_brute_force_quadrature(energy: str, dimension: int, turned: bool) -> None:
    direction = rotation(dimension) if turned else torch.eye(dimension, dtype=torch.float64)
    regulariser = make(energy, dimension, direction)
    c = random_coefficients(SIZES[dimension]).requires_grad_(True)
    expected = brute_force(energy, c, SPACINGS[dimension], direction)
    (gradient,) = torch.autograd.grad(expected, c)
    torch.testing.assert_close(regulariser.value(c), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(regulariser.apply(c), gradient, rtol=0, atol=1e-12 * float(gradient.abs().max()))
    (own,) = torch.autograd.grad(regulariser.value(c), c)
    torch.testing.assert_close(own, gradient, rtol=0, atol=1e-12 * float(gradient.abs().max()))


def test_a_turned_lattice_matters_to_elastic_only(energy: str, dimension: int) -> None:
    c = random_coefficients(SIZES[dimension])
    straight, turned = make(energy, dimension).value(c), make(energy, dimension, rotation(dimension)).value(c)
    assert torch.isclose(straight, turned, rtol=1e-12) == (energy != "elastic")


def test_gradcheck(energy: str, dimension: int) -> None:
    size = (5, 4) if dimension == 2 else (4, 4, 4)
    regulariser = Regulariser.of(energy, size, (1.0, 1.5, 2.0)[:dimension], mu=MU, lam=LAM)
    c = random_coefficients(size).requires_grad_(True)
    assert torch.autograd.gradcheck(regulariser.value, (c,))


@pytest.mark.parametrize("turned", [False, True], ids=["along the axes", "turned"])
def test_hessian_is_symmetric_semidefinite_and_has_its_diagonal(energy: str, dimension: int, turned: bool) -> None:
    size = SIZES[2] if dimension == 2 else (4, 5, 4)
    direction = tuple(rotation(dimension).flatten().tolist()) if turned else ()
    regulariser = Regulariser.of(energy, size, SPACINGS[dimension], direction, mu=MU, lam=LAM)
    shape = (dimension, *size[::-1])
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    dense = torch.stack([regulariser.apply(unit).flatten() for unit in units])
    largest = float(dense.abs().max())
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-14 * largest)
    assert float(torch.linalg.eigvalsh(dense).min()) > -1e-12 * largest
    diagonal = regulariser.diagonal()
    torch.testing.assert_close(diagonal.flatten(), dense.diagonal(), rtol=0, atol=1e-14 * largest)
    assert diagonal.shape == shape
    assert float(diagonal.min()) > 0


def linear_field(matrix: Tensor, direction: Tensor, size: tuple[int, ...], spacing: tuple[float, ...]) -> Tensor:
    """Coefficients of u(x) = matrix x + 1 (physical x): cubic B-splines reproduce it from its values."""
    lattice = torch.stack([k * s for k, s in zip(index_axes(size), spacing, strict=True)])
    return torch.tensordot(matrix @ direction, lattice, dims=1) + 1


def test_linear_displacements_cost_what_the_formulas_say(energy: str, dimension: int) -> None:
    generator = torch.Generator().manual_seed(2)
    direction = rotation(dimension)
    matrix = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    c = linear_field(matrix, direction, SIZES[dimension], SPACINGS[dimension])
    symmetric = matrix + matrix.T
    expected = {
        "diffusion": matrix.square().sum(),
        "bending": torch.tensor(0.0, dtype=torch.float64),
        "elastic": MU / 4 * symmetric.square().sum() + LAM / 2 * matrix.trace() ** 2,
    }[energy]
    regulariser = make(energy, dimension, direction)
    torch.testing.assert_close(regulariser.value(c), expected, rtol=1e-12, atol=1e-12)
    skew = linear_field(matrix - matrix.T, direction, SIZES[dimension], SPACINGS[dimension])
    small_rotation_is_free = abs(float(regulariser.value(skew))) < 1e-12
    assert small_rotation_is_free == (energy != "diffusion")
    assert abs(float(regulariser.value(torch.ones_like(c)))) < 1e-13


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # With s the lattice coordinate and cells of 2 x 3 mm: u_x = a s_x^2 + b s_x s_y + c s_y^3, u_y = 0, on
        # s_x in [1, 4], s_y in [1, 3]; a, b, c = 0.5, -0.25, 0.1. Means: s_x 2.5, s_x^2 7, s_y 2, s_y^2 13/3,
        # s_y^4 121/5. u_x,x = (s_x - s_y / 4) / 2 mm, u_x,y = (0.3 s_y^2 - s_x / 4) / 3 mm.
        ("diffusion", (7 - 2.5 + 13 / 48) / 4 + (0.09 * 121 / 5 - 0.15 * 13 / 3 * 2.5 + 7 / 16) / 9),
        # u_x,xx = 1 / 4, u_x,xy = -1/4 / 6, u_x,yy = 0.6 s_y / 9
        ("bending", (1 / 4) ** 2 + 2 * (0.25 / 6) ** 2 + 0.36 * 13 / 3 / 81),
        # mu / 4 (4 u_x,x^2 + 2 u_x,y^2) + lambda / 2 u_x,x^2
        (
            "elastic",
            (MU + LAM / 2) * (7 - 2.5 + 13 / 48) / 4 + MU / 2 * (0.09 * 121 / 5 - 0.15 * 13 / 3 * 2.5 + 7 / 16) / 9,
        ),
    ],
)
def test_polynomial_by_hand(kind: str, expected: float) -> None:
    kx, ky = index_axes((6, 5))
    c = torch.zeros(2, 5, 6, dtype=torch.float64)
    # x^2, x y and x^3 have the coefficients k^2 - 1/3, k l and k^3 - k.
    c[0] = 0.5 * (kx**2 - 1 / 3) - 0.25 * kx * ky + 0.1 * (ky**3 - ky)
    regulariser = Regulariser.of(kind, (6, 5), (2.0, 3.0), mu=MU, lam=LAM)
    assert float(regulariser.value(c)) == pytest.approx(expected, rel=1e-12)


def refine(c: Tensor, axis: int) -> Tensor:
    """The same field on a lattice of half the spacing: the two-scale relation of cubic B-splines, domain kept."""
    c = c.movedim(axis, 0)
    between = (c[:-1] + c[1:]) / 2
    at = (c[:-2] + 6 * c[1:-1] + c[2:]) / 8
    fine = c.new_empty(2 * len(c) - 3, *c.shape[1:])
    fine[0::2], fine[1::2] = between, at
    return fine.movedim(0, axis)


def test_energy_does_not_change_with_the_resolution(energy: str, dimension: int) -> None:
    size, spacing = SIZES[dimension], SPACINGS[dimension]
    coarse = random_coefficients(size)
    fine = coarse
    for axis in range(1, dimension + 1):
        fine = refine(fine, axis)
    finer = Regulariser.of(energy, tuple(2 * n - 3 for n in size), tuple(s / 2 for s in spacing), mu=MU, lam=LAM)
    torch.testing.assert_close(finer.value(fine), make(energy, dimension).value(coarse), rtol=1e-12, atol=0)


def test_millimetres_scale_as_they_should(energy: str, dimension: int) -> None:
    c = random_coefficients(SIZES[dimension])
    wide = Regulariser.of(energy, SIZES[dimension], tuple(2 * s for s in SPACINGS[dimension]), mu=MU, lam=LAM)
    power = 4 if energy == "bending" else 2
    torch.testing.assert_close(wide.value(c) * 2**power, make(energy, dimension).value(c), rtol=1e-12, atol=0)


def test_results_keep_dtype_and_large_shifts_cost_no_digits(energy: str, dimension: int, dtype: torch.dtype) -> None:
    regulariser = make(energy, dimension)
    c = (random_coefficients(SIZES[dimension]) + 1000).to(dtype).requires_grad_(True)
    value, applied = regulariser.value(c), regulariser.apply(c)
    value.backward()
    assert c.grad is not None
    assert (value.dtype, value.shape, c.grad.dtype, applied.dtype) == (dtype, (), dtype, dtype)
    exact = c.detach().double()
    eps = float(torch.finfo(dtype).eps)
    torch.testing.assert_close(value.double(), regulariser.value(exact), rtol=eps, atol=0)
    largest = float(applied.detach().abs().max())
    for found in (applied, c.grad):
        torch.testing.assert_close(found.double(), regulariser.apply(exact), rtol=0, atol=max(eps, 1e-11) * largest)


def test_regularisers_are_values() -> None:
    assert make("elastic", 3) == make("elastic", 3)
    assert make("elastic", 3) != make("elastic", 3, rotation(3))
    with pytest.raises(AttributeError):
        make("bending", 2).kind = "diffusion"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "curvature"}, "'curvature', one of diffusion, bending, elastic"),
        ({"size": (3, 6)}, r"\(3, 6\) points, every axis needs at least four"),
        ({"size": (6,)}, "control lattice"),
        ({"spacing_mm": (1.0, 0.0)}, "control lattice: image spacing"),
        ({"spacing_mm": (1.0,)}, "wrong number"),
        ({"direction": (1.0, 0.0, 1.0, 1.0)}, "orthonormal"),
        ({"mu": 0.0}, "mu above 0"),
        ({"lam": -0.1}, "lambda from 0 up"),
        ({"mu": math.nan}, "mu above 0"),
    ],
)
def test_bad_lattices_are_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"kind": "elastic", "size": (6, 5), "spacing_mm": (1.0, 1.0)}
    with pytest.raises(ConfigError, match=said) as caught:
        Regulariser.of(**{**good, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("c", [torch.zeros(2, 6, 5), torch.zeros(5, 6), torch.zeros(2, 5, 6, dtype=torch.int64)])
def test_bad_coefficients_are_refused(c: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"\(2, 5, 6\) floating"):
        Regulariser.of("bending", (6, 5), (1.0, 1.0)).apply(c)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    size=st.lists(st.integers(4, 7), min_size=2, max_size=3).map(tuple),
    seed=st.integers(0, 2**16),
    factor=st.floats(-100, 100),
    shift=st.floats(-100, 100),
)
def test_energy_is_quadratic_not_negative_and_blind_to_shifts(
    kind: str, size: tuple[int, ...], seed: int, factor: float, shift: float
) -> None:
    regulariser = Regulariser.of(kind, size, (2.0, 3.0, 4.0)[: len(size)])
    c = random_coefficients(size, seed=seed)
    value = float(regulariser.value(c))
    assert value > 0
    assert float(regulariser.value(factor * c)) == pytest.approx(factor**2 * value, rel=1e-9)
    assert float(regulariser.value(c + shift)) == pytest.approx(value, rel=1e-8)


def smooth_field(size: tuple[int, ...]) -> Tensor:
    """Coefficients that are 0 beyond a smooth bump, so that border rules of the oracles do not matter."""
    bump = torch.ones(size[::-1], dtype=torch.float64)
    for k, n in zip(index_axes(size), size, strict=True):
        s = ((k - (n - 1) / 2) / ((n - 1) / 2 - 2)).clamp(-1, 1)
        bump = bump * (1 - s**2) ** 3
    return torch.stack([(i + 1) * bump for i in range(len(size))])


@pytest.mark.parametrize("anisotropic", [False, True], ids=["isotropic", "anisotropic"])
def test_bending_agrees_with_deepali(dimension: int, anisotropic: bool) -> None:
    losses = pytest.importorskip("deepali.losses.functional")
    size = (14, 12, 13)[:dimension]
    spacing = (4.0, 3.0, 5.0)[:dimension] if anisotropic else (1.0,) * dimension
    c = smooth_field(size)
    sums = [losses.bending_loss(c[None], mode="bspline", stride=n, spacing=torch.tensor(spacing)) for n in (3, 6)]
    expected = (4 * float(sums[1]) - float(sums[0])) / 3  # their error falls with the square of the points a cell
    assert float(Regulariser.of("bending", size, spacing).value(c)) == pytest.approx(expected, rel=1e-4)


def test_bending_and_diffusion_agree_with_monai_on_dense_samples(dimension: int) -> None:
    from monai.losses import BendingEnergyLoss, DiffusionLoss

    size, spacing, fine = (12, 13, 11)[:dimension], 6.0, 6
    c = smooth_field(size)
    dense = c
    for axis, m in enumerate(c.shape[1:], 1):
        x = 1 + np.arange((m - 3) * fine + 1) / fine
        spline = BSpline(np.arange(-2, m + 2).astype(float), np.eye(m), 3)
        dense = torch.tensordot(dense, torch.from_numpy(spline(x)), dims=([axis], [1])).movedim(-1, axis)
    h = spacing / fine  # mm a voxel
    # MONAI means over components, and over the inner points only: outside them the field is flat.
    inner = math.prod(n - 2 for n in dense.shape[1:]) / math.prod(n - 1 for n in dense.shape[1:])
    for kind, loss, power in (("bending", BendingEnergyLoss(), 4), ("diffusion", DiffusionLoss(), 2)):
        expected = float(loss(dense[None])) * dimension * inner / h**power
        value = float(Regulariser.of(kind, size, (spacing,) * dimension).value(c))
        assert value == pytest.approx(expected, rel=0.03)
