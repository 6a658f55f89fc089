"""SSD over a joint product: torch's mse_loss and autograd through grid_sample are the oracles, clear and quantised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from joint import ends
from joint.ends import python_products
from torch import Tensor, nn

from ppir_torch.errors import LinkError, RangeError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, Level
from ppir_torch.joint.bounds import Limits, Pairs, SumIndex, all_pairs, check_range, check_rows
from ppir_torch.joint.columns import IMAGE, Columns, columns_of
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import MovingOperand, Product
from ppir_torch.joint.operands import ClearOperand, Operand, PrivateOperand
from ppir_torch.joint.quantise import quantise_columns, quantise_rows, row_norm
from ppir_torch.joint.rows import HeldRows
from ppir_torch.losses import SSD
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.sampling import Chunks, Full, GradientMagnitude, Permuted, Sample, Uniform
from ppir_torch.transforms import linear_transform
from ppir_torch.warping import parameters_of, warp
from ppir_torch.wire.link import link_pair
from ppir_torch.wire.payload import pack, unpack

Make = Callable[..., Any]
FULL = Level(1, 0.0)


class Shear(nn.Module):
    """A user's own transform, in single precision, with a name and a shape of its own."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.register_buffer("centre", grid.centre.float())
        self.amount = nn.Parameter(torch.full((1, 1), 0.02))
        self.shift = nn.Parameter(torch.zeros(grid.dimension))

    def forward(self, points: Tensor) -> Tensor:
        x = points - self.centre.to(points)
        slid = torch.cat([x[:, :1] + self.amount.to(x) * x[:, 1:2], x[:, 1:]], 1)
        return slid + self.centre.to(points) + self.shift.to(points)


@dataclass
class Counting:
    """An operand that records how many rows every product had."""

    inner: Operand
    rows: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        self.rows.append(rows.shape[0])
        return self.inner.multiply(rows, pairs)


class LocalExact(MovingOperand):
    """The products themselves, in Python integers; refuses nothing, so that the caller's checks are what is tested."""

    def __init__(self, header: OperandHeader, values: Tensor, limits: Limits) -> None:
        self.header, self.values, self.limits = header, values.reshape(-1, values.shape[-1]), limits

    def multiply(
        self,
        rows: Tensor,
        pairs: Pairs | None = None,
        nonzero_positions: Tensor | None = None,
        sum_index: SumIndex | None = None,
    ) -> Tensor:
        assert pairs is not None
        assert sum_index is None
        if nonzero_positions is not None:
            others = torch.ones(rows.shape[1], dtype=torch.bool)
            others[nonzero_positions] = False
            assert not rows[:, others].any()
        return torch.tensor(python_products(rows, self.values, pairs))

    def compute(self, product: Product) -> Tensor:
        raise NotImplementedError


def header_of(values: Tensor, rows: int = 16, scales: tuple[float, ...] = (1.0,), offset: float = 0.0) -> OperandHeader:
    said = {"scale": scales[0], "further_scales": scales[1:], "offset": offset}
    return replace(ends.header_of(values, rows), **said)


def warped_values(transform: nn.Module, moving: Image, points: Tensor) -> Tensor:
    """I(T(x)) through torch's grid_sample, differentiable in the parameters."""
    matrix, origin = moving.grid.index_to_physical()
    index = torch.linalg.solve(matrix.to(points), (transform(points) - origin.to(points)).T).T
    normalised = 2 * index / (torch.tensor(moving.grid.size).to(points) - 1) - 1
    d = points.shape[1]
    where = normalised.reshape(1, *([1] * (d - 1)), -1, d)
    values = F.grid_sample((moving.tensor - moving.outside)[None], where, align_corners=True)
    return values.flatten() + moving.outside


def autograd_gradient(value: Tensor, transform: nn.Module) -> Tensor:
    parts = torch.autograd.grad(value, list(parameters_of(transform).values()))
    return torch.cat([part.flatten() for part in parts])


def test_value_is_the_mean_squared_difference_of_the_warped_image(
    kind: str, dimension: int, dtype: torch.dtype, pair: Make
) -> None:
    images = pair(kind, dimension, dtype)
    transform = linear_transform(kind)(images.fixed.grid)
    expected = F.mse_loss(warp(images.moving, transform, images.fixed.grid).tensor, images.fixed.tensor).item()
    loss = SSD(ClearFixed(images.fixed).operand(OperandRequest(FULL)))
    rel = 1e-5 if dtype == torch.float32 else 1e-9
    for value in (loss(transform, images.moving).item(), loss.linearise(transform, images.moving).value):
        assert value == pytest.approx(expected, rel=rel)
    with torch.no_grad():
        assert loss(transform, images.moving).item() == pytest.approx(expected, rel=rel)


def test_gradient_and_hessian_are_those_of_autograd(kind: str, dimension: int, pair: Make) -> None:
    images = pair(kind, dimension, torch.float64)
    transform = linear_transform(kind)(images.fixed.grid)
    points = images.fixed.grid.points(dtype=torch.float64)
    expected = autograd_gradient(
        F.mse_loss(warped_values(transform, images.moving, points), images.fixed.tensor.flatten()), transform
    )
    at = SSD(ClearFixed(images.fixed).operand(OperandRequest(FULL))).linearise(transform, images.moving)
    torch.testing.assert_close(at.gradient, expected, rtol=1e-9, atol=1e-9)

    def residual(*values: Tensor) -> Tensor:
        given_values = dict(zip(parameters_of(transform), values, strict=True))
        moved = torch.func.functional_call(transform, given_values, (points,))
        return warped_values(lambda _: moved, images.moving, points)  # type: ignore[arg-type]

    # S by central differences: autograd has no forward mode through grid_sample, and N reverse passes take long.
    parameters = [p.detach() for p in parameters_of(transform).values()]
    columns = []
    for number, parameter in enumerate(parameters):
        for entry in range(parameter.numel()):
            ends = []
            for sign in (1, -1):
                moved = [p.clone() for p in parameters]
                moved[number].view(-1)[entry] += sign * 1e-6
                ends.append(residual(*moved))
            columns.append((ends[0] - ends[1]) / 2e-6)
    images_s = torch.stack(columns)
    expected_hessian = 2 * images_s @ images_s.T / points.shape[0]
    # A point that sits on a voxel has two slopes; the differences average them.
    assert float((at.hessian - expected_hessian).norm() / expected_hessian.norm()) < 0.02
    torch.testing.assert_close(at.hessian, at.hessian.T)


@pytest.mark.parametrize("module", ["affine", "user"])
def test_points_in_several_chunks_are_all_points(module: str, pair: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pair("affine", 3, torch.float64)
    transform = images.truth if module == "affine" else Shear(images.fixed.grid)
    loss = SSD(ClearFixed(images.fixed).operand(OperandRequest(FULL)))
    whole = loss.linearise(transform, images.moving)
    monkeypatch.setattr("ppir_torch.losses.rows.CHUNK", 1000)
    parts = loss.linearise(transform, images.moving)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    torch.testing.assert_close(parts.gradient, whole.gradient)
    torch.testing.assert_close(parts.hessian, whole.hessian)


def test_hessian_is_two_s_s_over_n(pair: Make) -> None:
    from ppir_torch.warping import sample_with_gradient, steepest_descent

    images = pair("affine", 3, torch.float64)
    points = images.fixed.grid.points(dtype=torch.float64)
    with torch.no_grad():
        mapped = images.truth(points)
    _, gradient = sample_with_gradient(images.moving, images.moving.outside, mapped)
    s = steepest_descent(images.truth, points, gradient)
    at = SSD(ClearFixed(images.fixed).operand(OperandRequest(FULL))).linearise(images.truth, images.moving)
    torch.testing.assert_close(at.hessian, 2 * s @ s.T / len(points), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", ["mask", "uniform", "gradient magnitude"])
def test_gradient_on_chosen_points_is_autograds_on_those_points(sampler: str, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension, torch.float64)
    grid = images.fixed.grid
    mask = (torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)) < 0.4) if sampler == "mask" else None
    choice = {
        "mask": None,
        "uniform": Uniform(0.3, 1),
        "gradient magnitude": GradientMagnitude(0.3, 1).draw(images.fixed.tensor.flatten(), 0),
    }[sampler]
    operand = ClearFixed(images.fixed, mask).operand(OperandRequest(FULL, choice or Full()))
    assert operand.sample.index is not None
    points = grid.points(operand.sample.index, torch.float64)
    square = (
        warped_values(images.truth, images.moving, points) - images.fixed.tensor.flatten()[operand.sample.index]
    ).square()
    weights = operand.sample.weights
    value = square.mean() if weights is None else (weights * square).sum()
    at = SSD(operand).linearise(images.truth, images.moving)
    torch.testing.assert_close(at.gradient, autograd_gradient(value, images.truth), rtol=1e-8, atol=1e-9)
    if sampler == "mask":
        assert at.value == pytest.approx(value.item(), rel=1e-9)


def test_a_level_compares_the_smoothed_images_at_the_coarse_points(dimension: int, pair: Make) -> None:
    images = pair("rigid", dimension, torch.float64)
    level = Level(2, 2.0)
    fixed, moving = images.fixed.at_level(level), images.moving.at_level(level)
    value = SSD(ClearFixed(images.fixed).operand(OperandRequest(level)))(images.truth, moving).item()
    expected = F.mse_loss(warp(moving, images.truth, fixed.grid).tensor, fixed.tensor).item()
    assert value == pytest.approx(expected, rel=1e-9)


def test_backward_fills_the_gradients_of_the_parameters(
    kind: str, dimension: int, dtype: torch.dtype, pair: Make
) -> None:
    images = pair(kind, dimension, dtype)
    transform = linear_transform(kind)(images.fixed.grid)
    loss = SSD(ClearFixed(images.fixed).operand(OperandRequest(FULL)))
    (3 * loss(transform, images.moving)).backward()
    filled = torch.cat([p.grad.flatten() for p in transform.parameters()])
    torch.testing.assert_close(filled, 3 * loss.linearise(transform, images.moving).gradient, rtol=1e-6, atol=1e-9)


def test_a_users_module_is_trained_like_ours(dimension: int, dtype: torch.dtype, pair: Make) -> None:
    images = pair("translation", dimension, dtype)
    module = Shear(images.fixed.grid)
    points = images.fixed.grid.points(dtype=dtype)
    warped = warped_values(module, images.moving, points)
    expected = autograd_gradient(F.mse_loss(warped, images.fixed.tensor.flatten()), module)
    SSD(ClearFixed(images.fixed).operand(OperandRequest(FULL)))(module, images.moving).backward()
    assert module.amount.grad.shape == (1, 1)
    filled = torch.cat([module.amount.grad.flatten(), module.shift.grad])
    torch.testing.assert_close(filled, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    "SGD": lambda parameters, curvature: torch.optim.SGD(parameters, lr=1 / curvature),
    "Adam": lambda parameters, curvature: torch.optim.Adam(parameters, lr=0.2),  # noqa: ARG005
    "LBFGS": lambda parameters, curvature: torch.optim.LBFGS(  # noqa: ARG005
        parameters, max_iter=5, line_search_fn="strong_wolfe"
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_torch_optimizer_lowers_the_loss(optimizer: Callable[..., Any], pair: Make) -> None:
    images = pair("rigid", 2, torch.float64)
    transform = linear_transform("rigid")(images.fixed.grid)
    with torch.no_grad():
        transform.translation += images.moving.grid.centre - images.fixed.grid.centre
    loss = SSD(ClearFixed(images.fixed).operand(OperandRequest(FULL)))
    first = loss.linearise(transform, images.moving)
    steps = optimizer(list(transform.parameters()), float(torch.linalg.eigvalsh(first.hessian)[-1]))

    def closure() -> Tensor:
        steps.zero_grad()
        value = loss(transform, images.moving)
        value.backward()
        return value

    for _ in range(25):
        steps.step(closure)
    with torch.no_grad():
        assert loss(transform, images.moving).item() < 0.1 * first.value


def test_without_gradients_one_row_is_sent_and_backward_sends_nothing(pair: Make) -> None:
    images = pair("affine", 2)
    operand = Counting(ClearFixed(images.fixed).operand(OperandRequest(FULL)))
    loss = SSD(operand)
    with torch.no_grad():
        loss(images.truth, images.moving)
    assert operand.rows == [1]
    loss(images.truth, images.moving).backward()
    assert operand.rows == [1, 7]
    loss.linearise(images.truth, images.moving)
    assert operand.rows == [1, 7, 7]


def test_frozen_parameters_cost_no_row(pair: Make) -> None:
    images = pair("affine", 2)
    images.truth.shear.requires_grad_(False)
    operand = Counting(ClearFixed(images.fixed).operand(OperandRequest(FULL)))
    SSD(operand)(images.truth, images.moving).backward()
    assert operand.rows == [3]
    assert images.truth.shear.grad is None


def test_a_second_derivative_is_refused(pair: Make) -> None:
    # Only the gradient was opened; torch would take it for a constant and return a wrong second derivative.
    images = pair("translation", 2)
    value = SSD(ClearFixed(images.fixed).operand(OperandRequest(FULL)))(images.truth, images.moving)
    (gradient,) = torch.autograd.grad(value.square(), [images.truth.translation], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --- the quantised path, against a local exact product

LIMITS = Limits(max_row=2**24, max_result=2**50)


def private_and_clear(
    fixed: Image, sample: Sample | None = None, columns: Columns = IMAGE
) -> tuple[PrivateOperand, ClearOperand]:
    """Two operands of the same quantised J: behind an integer protocol, and in the clear."""
    sample = sample or Sample(None, None)
    exact = columns_of(fixed, None, sample.index, columns)
    integers, scales = quantise_columns(exact, columns)
    values = integers.double() * torch.tensor(scales, dtype=torch.float64)[:, None]
    stands_for = replace(exact, own=values, grid=None, squares=False)
    header = header_of(integers, 4, scales, exact.offset)
    means = float(stands_for.values[0].square().mean()), exact.level_mean_square
    link, _ = link_pair("party_1", "party_2")
    private = PrivateOperand(fixed.grid, sample, columns, LocalExact(header, integers, LIMITS), link, *means)
    return private, ClearOperand(fixed.grid, sample, columns, stands_for)


@pytest.mark.parametrize("columns", [IMAGE, Columns("moments"), Columns("steepest_descent", "affine")], ids=str)
def test_a_private_product_is_the_clear_one_on_the_quantised_data(columns: Columns, dimension: int, pair: Make) -> None:
    images = pair("affine", dimension, torch.float64)
    private, clear = private_and_clear(images.fixed, columns=columns)
    # More rows than the protocol takes at once, of very different size.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, images.fixed.grid.count, generator=generator, dtype=torch.float64)
    rows *= 10.0 ** torch.arange(-3, 4)[:, None]
    everything = all_pairs(7, columns.count(images.fixed.grid))
    some = [everything[n] for n in torch.randperm(len(everything), generator=generator)[:6]]
    for pairs in (everything, some):
        carried, products = private.multiply(rows, pairs)
        used = sorted({row for row, _ in pairs})
        assert products.shape == (len(pairs),)
        _, expected = clear.multiply(carried, pairs)
        # As large as each product may be: rows and columns differ by many orders of magnitude.
        size = torch.stack([carried[row].norm() * clear.fixed.values[column].norm() for row, column in pairs])
        assert float(((products - expected) / size).abs().max()) < 1e-9
        error = (carried - rows)[used].abs().amax(1) / rows[used].abs().amax(1)
        assert float(error.max()) < 1e-4


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_a_part_is_the_same_operand_with_rows_that_are_zero_elsewhere(
    fraction: float, dimension: int, pair: Make
) -> None:
    images = pair("affine", dimension, torch.float64)
    private, clear = private_and_clear(images.fixed, columns=Columns("moments"))
    count = images.fixed.grid.count
    positions = Uniform(fraction, 1).draw(count, 0).index
    rows = torch.randn(3, positions.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = []

    class Watched(LocalExact):
        def multiply(self, rows: Tensor, *more: Any) -> Tensor:
            seen.append(rows)
            return super().multiply(rows, *more)

    assert isinstance(private.remote, LocalExact)
    watched = replace(private, remote=Watched(private.header, private.remote.values, LIMITS))
    part, clear_part = watched.part(positions, None), clear.part(positions, None)
    carried, products = part.multiply(rows, all_pairs(3, 1 + dimension))
    torch.testing.assert_close(products, clear_part.multiply(carried, all_pairs(3, 1 + dimension))[1])
    whole = torch.zeros(3, count, dtype=torch.float64)
    whole[:, positions] = carried
    torch.testing.assert_close(products, clear.multiply(whole, all_pairs(3, 1 + dimension))[1])
    assert seen[0].shape == (3, count)
    outside = torch.ones(count, dtype=torch.bool)
    outside[positions] = False
    assert not seen[0][:, outside].any()
    assert seen[0][:, positions].any(0).all()
    # Its points and weights are not party_2's to know, so the mean square is that of the level.
    assert part.mean_square == clear_part.mean_square == pytest.approx(private.mean_square, rel=1e-3)
    assert torch.equal(part.sample.index, positions)


@pytest.mark.parametrize("columns", ["image", "moments"])
@pytest.mark.parametrize("sampler", ["full", "uniform", "chunks", "gradient magnitude", "hidden gradient magnitude"])
def test_private_value_gradient_and_hessian_are_the_clear_ones(
    sampler: str, columns: Literal["image", "moments"], dimension: int, pair: Make
) -> None:
    images = pair("affine", dimension, torch.float64)
    count, by_gradient = images.fixed.grid.count, GradientMagnitude(0.3, 1).draw(images.fixed.tensor.flatten(), 0)
    sample = {
        "uniform": Uniform(0.3, 1).draw(count, 0),
        "chunks": Permuted(1).draw(count, 0),
        "gradient magnitude": by_gradient,
    }.get(sampler, Sample(None, None))
    private, clear = private_and_clear(images.fixed, sample, Columns(columns))
    if sampler == "chunks":
        private, clear = (operand.part(Chunks(0.3, 1).window(count, 0), None) for operand in (private, clear))
    if sampler == "hidden gradient magnitude":
        private, clear = (operand.part(by_gradient.index, by_gradient.weights) for operand in (private, clear))
    transform = linear_transform("affine")(images.fixed.grid)
    got, expected = (SSD(operand).linearise(transform, images.moving) for operand in (private, clear))
    assert got.value == pytest.approx(expected.value, rel=1e-4)
    scale = float(expected.gradient.abs().max())
    torch.testing.assert_close(got.gradient, expected.gradient, rtol=0, atol=1e-4 * scale)
    assert torch.equal(got.hessian, expected.hessian), "the Hessian is party_1's alone"
    with torch.no_grad():
        assert SSD(private)(transform, images.moving).item() == pytest.approx(expected.value, rel=1e-4)


def quantise_image(values: Tensor) -> tuple[Tensor, float, float]:
    """(integers, scale, offset) of an image with one row of voxels."""
    fixed = columns_of(Image(values.reshape(1, 1, -1), Grid((values.numel(), 1))), None, None, IMAGE)
    integers, (scale,) = quantise_columns(fixed, IMAGE)
    return integers[0], scale, fixed.offset


def test_quantising_the_fixed_image_centres_it_and_keeps_12_bits(dtype: torch.dtype) -> None:
    values = torch.linspace(-3, 900, 1000, dtype=dtype)
    levels, scale, offset = quantise_image(values)
    assert levels.dtype == torch.int64
    assert int(levels.abs().max()) < 2**11
    assert offset == pytest.approx(448.5, rel=1e-6)
    assert float((levels * scale + offset - values).abs().max()) <= 0.5001 * scale


@given(value=st.floats(-1e6, 1e6))
def test_quantising_a_flat_image_gives_it_back(value: float) -> None:
    levels, scale, offset = quantise_image(torch.full((5,), value, dtype=torch.float64))
    assert scale > 0
    assert int(levels.abs().max()) < 2**11
    assert (levels * scale + offset).tolist() == pytest.approx([value] * 5)


FLOATS = st.one_of(st.just(0.0), st.floats(-1e6, 1e6), st.floats(-1e30, 1e30), st.floats(-1e-40, 1e-40))


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(st.lists(FLOATS, min_size=6, max_size=6), min_size=1, max_size=3),
    values=st.lists(st.integers(-2047, 2047), min_size=6, max_size=6),
    row_bits=st.integers(2, 40),
    result_bits=st.integers(16, 62),
    single=st.booleans(),
)
def test_quantised_rows_are_always_within_the_limits(
    rows: list[list[float]], values: list[int], row_bits: int, result_bits: int, single: bool
) -> None:
    column = torch.tensor(values)
    header, limits = header_of(column), Limits(2**row_bits - 1, 2**result_bits - 1)
    exact = torch.tensor(rows, dtype=torch.float32 if single else torch.float64)
    integers, scale = quantise_rows(exact, header, limits)
    check_range(HeldRows(integers), header, limits)
    assert max(abs(x) for row in integers.tolist() for x in row) <= limits.max_row
    for row in integers.tolist():
        assert abs(sum(x * y for x, y in zip(row, values, strict=True))) <= limits.max_result
    assert bool((scale > 0).all())
    # What is carried is the row to half a step.
    step = 1 / scale[:, None]
    assert bool(((integers * step - exact.double()).abs() <= 0.5001 * step).all())


LARGEST = 2**14  # of a typical entry: more precision than the residual needs would only widen the words


def test_rows_are_quantised_as_finely_as_the_limits_allow() -> None:
    column = torch.full((100,), 2000)
    rows = torch.linspace(-1, 1, 100, dtype=torch.float64)[None]
    bound_by = set()
    for limits in (Limits(2**11, 2**62), Limits(2**62, 2**30), Limits(2**62, 2**62)):
        integers, _ = quantise_rows(rows, header_of(column), limits)
        norm = float(integers.double().norm())
        used = {
            "row": int(integers.abs().max()) / limits.max_row,
            "result": norm * float(column.double().norm()) / limits.max_result,
            "bits": norm / (LARGEST * 10),
        }
        assert 0.4 < max(used.values()) <= 1
        bound_by.add(max(used, key=lambda name: used[name]))
        assert norm <= row_norm(header_of(column), limits)
    assert bound_by == {"row", "result", "bits"}


def test_limits_that_leave_no_room_are_refused() -> None:
    column = torch.full((64,), 2000)
    private = PrivateOperand(
        Grid((8, 8)),
        Sample(None, None),
        IMAGE,
        LocalExact(header_of(column), column, Limits(2**20, 2**10)),
        link_pair("party_1", "party_2")[0],
        1.0,
        1.0,
    )
    with pytest.raises(RangeError):
        private.multiply(torch.ones(1, 64), [(0, 0)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(value: float) -> None:
    rows = torch.ones(2, 5)
    rows[1, 3] = value
    with pytest.raises(RangeError, match="finite"):
        quantise_rows(rows, header_of(torch.arange(5)), LIMITS)


# --- check_range: whatever passes is in range, by Python's integers


@settings(deadline=None, max_examples=300)
@given(
    row=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=8),
    bits=st.integers(0, 40),
    aligned=st.booleans(),
    slack=st.integers(-3, 3),
    seed=st.integers(0, 1000),
)
def test_what_check_range_lets_pass_is_in_range(
    row: list[int], bits: int, aligned: bool, slack: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    magnitudes = torch.randint(0, 2**bits, (len(row),), generator=generator).tolist()
    # Aligned signs make the product as large as the magnitudes allow; equal magnitudes make the bounds tight.
    values = [(magnitudes[0] if aligned else m) * (-1 if x < 0 else 1) for x, m in zip(row, magnitudes, strict=True)]
    result = sum(x * y for x, y in zip(row, values, strict=True))
    limits = Limits(max_row=2**62, max_result=max(abs(result) + slack, 0))
    energy, largest = sum(y * y for y in values), max(abs(y) for y in values)
    header = OperandHeader(0, len(row), 1, 1.0, 0.0, largest, energy)
    try:
        check_range(HeldRows(torch.tensor([row])), header, limits)
    except RangeError:
        return
    assert abs(result) <= limits.max_result


@settings(deadline=None)
@given(x=st.integers(1, 2**40), y=st.integers(1, 2**20), share=st.floats(0.0, 0.99))
def test_check_range_refuses_what_could_leave_the_range(x: int, y: int, share: float) -> None:
    assume(x * y * share < x * y)
    header = OperandHeader(0, 1, 1, 1.0, 0.0, y, y * y)
    with pytest.raises(RangeError, match="product"):
        check_range(HeldRows(torch.tensor([[-x]])), header, Limits(2**62, int(x * y * share)))


@settings(deadline=None)
@given(limit=st.integers(1, 2**40), above=st.integers(1, 1000), sign=st.sampled_from([-1, 1]))
def test_check_range_refuses_a_large_entry(limit: int, above: int, sign: int) -> None:
    header = header_of(torch.tensor([1, 1]))
    check_range(HeldRows(torch.tensor([[sign * limit, 0]])), header, Limits(limit, 2**62))
    with pytest.raises(RangeError, match="entry"):
        check_range(HeldRows(torch.tensor([[sign * (limit + above), 0]])), header, Limits(limit, 2**62))


def test_check_range_knows_the_most_negative_word() -> None:
    with pytest.raises(RangeError, match="9223372036854775808"):
        check_range(HeldRows(torch.tensor([[-(2**63)]])), header_of(torch.tensor([1])), Limits(2**62, 2**63 - 1))


@pytest.mark.parametrize(
    "rows",
    [torch.zeros(1, 3), torch.zeros(1, 4, dtype=torch.int64), torch.zeros(3, dtype=torch.int64),
     torch.zeros(0, 3, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int32)],
    ids=["floating", "other length", "no axis", "no row", "more than agreed", "other integers"],
)  # fmt: skip
def test_check_range_refuses_another_shape_or_type(rows: Tensor) -> None:
    with pytest.raises(RangeError):
        check_rows(rows, header_of(torch.tensor([1, 2, 3]), rows=2))


# --- the header that party_2 sends with an operand

META = header_of(torch.tensor([1, -2, 3])).to_meta()
COLUMNS_META = header_of(torch.tensor([[1, -2, 3], [2, 1, 0]]), scales=(0.5, 0.25)).to_meta()


def test_a_header_survives_its_message() -> None:
    assert OperandHeader.from_meta(META) == header_of(torch.tensor([1, -2, 3]))
    sent = unpack(b"".join(pack(COLUMNS_META)))[0]
    assert OperandHeader.from_meta(sent) == header_of(torch.tensor([[1, -2, 3], [2, 1, 0]]), scales=(0.5, 0.25))
    assert OperandHeader.from_meta(sent).scales == (0.5, 0.25)


@pytest.mark.parametrize(
    "change",
    [
        {"points": 0},
        {"points": None},
        {"points": "many"},
        {"points": float("inf")},
        {"rows": 0},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"scale": float("inf")},
        {"scale": 10**400},
        {"offset": float("nan")},
        {"max_abs": -1},
        {"max_abs": 2**62},
        {"energy": -1},
        {"energy": 28},
        {"energy": 10**400},
        {"energy": float("inf")},
        {"columns": 0},
        {"columns": 1},
        {"columns": 3},
        {"columns": None},
        {"further_scales": None},
        {"further_scales": []},
        {"further_scales": [0.0]},
        {"further_scales": [-1.0]},
        {"further_scales": [float("nan")]},
        {"further_scales": ["wide"]},
        {"further_scales": [1.0, 1.0]},
    ],
    ids=str,
)
def test_a_header_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(LinkError, match="operand header"):
        OperandHeader.from_meta({**COLUMNS_META, **change})


@pytest.mark.parametrize("name", META)
def test_a_header_without_a_field_is_refused(name: str) -> None:
    with pytest.raises(LinkError, match=name):
        OperandHeader.from_meta({k: v for k, v in META.items() if k != name})
