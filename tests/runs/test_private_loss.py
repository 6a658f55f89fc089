"""A private loss is an ordinary torch loss: autograd's values and gradients, torch's optimisers, any nn.Module."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parties.harness import Files, Started, started_parties, write_pair
from torch import Tensor, nn

from ppir_torch import SSD, ClearFixed, ConfigError, Image, Level, PeerLost, open_private, register
from ppir_torch.errors import PpirError
from ppir_torch.images import load_image
from ppir_torch.joint.columns import IMAGE, columns_of
from ppir_torch.joint.quantise import quantise_columns
from ppir_torch.metrics.registration import displacement_rmse
from ppir_torch.registration import OperandRequest
from ppir_torch.sampling import Full, Sample, Uniform
from ppir_torch.transforms import linear_transform, load_transform
from ppir_torch.warping import sample

BACKENDS = ("bfv", "ckks", "spdz", "beaver")
WITH_DEALER = ("spdz", "beaver")
# Rows have 13 to 14 bits where they are typical, or as many as beaver's narrowest words have room for, at least 11.
ROUNDING = 2e-4


class Network(nn.Module):
    """A user's own transform: x + a small perceptron of x, about a hundred parameters, no `affine_map`."""

    def __init__(self, image: Image, width: int = 20) -> None:
        super().__init__()
        generator, d = torch.Generator().manual_seed(3), image.grid.dimension
        self.register_buffer("centre", image.grid.centre)
        self.scale = image.grid.radius
        self.first, self.last = nn.Linear(d, width).double(), nn.Linear(width, d).double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)

    def forward(self, points: Tensor) -> Tensor:
        hidden = torch.tanh(self.first((points.double() - self.centre) / self.scale))
        return points + self.last(hidden).to(points)


@pytest.fixture(scope="session")
def images(pair: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Files]:
    return {d: write_pair(pair("affine", d), tmp_path_factory.mktemp(f"loss-{d}")) for d in (2, 3)}


@pytest.fixture
def started() -> Iterator[Started]:
    with started_parties() as parties:
        yield parties


def make_transform(kind: str, fixed: Image, moving: Image) -> nn.Module:
    """Off the truth by some millimetres, so that the residual is not small."""
    if kind == "network":
        return Network(fixed)
    transform = linear_transform(kind)(fixed.grid)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        transform.translation += moving.grid.centre - fixed.grid.centre
    return transform


def by_autograd(transform: nn.Module, moving: Image, fixed: Image, level: Level, choice: Any) -> tuple[Tensor, Tensor]:
    """mean (I_w - J_q)^2 in float64 with autograd through grid_sample; J_q is what party_2's integers stand for."""
    coarse = fixed.at_level(level)
    index = (choice if isinstance(choice, Sample) else choice.draw(coarse.grid.count, 0)).index
    exact = columns_of(coarse, None, index, IMAGE)
    (integers,), (scale,) = quantise_columns(exact, IMAGE)
    points = coarse.grid.points(index, dtype=torch.float64)
    difference = sample(moving, transform(points)) - (integers.double() * scale + exact.offset)
    value = difference.square().mean()
    gradients = torch.autograd.grad(value, list(transform.parameters()))
    return value.detach(), torch.cat([g.flatten() for g in gradients])


def gradient_of(transform: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in transform.parameters() if p.grad is not None])


@pytest.mark.parametrize("dimension", [2, 3], ids=["2-D", "3-D"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradient_are_those_of_autograd(
    backend: str, dimension: int, images: dict[int, Files], started: Started
) -> None:
    files = images[dimension]
    moving, fixed = load_image(files.moving, torch.float64), load_image(files.fixed)
    some = Sample(torch.arange(5, fixed.grid.count // 4, 3), None)
    cases: tuple[tuple[str, Level, Any], ...] = (
        ("affine", Level(2, 1.0), Full()),
        ("rigid", Level(2, 1.0), Uniform(0.5, 4)),
        ("affine", Level(2, 0.0), Sample(some.index, None) if dimension == 2 else Full()),
        ("network", Level(2, 1.0), Full()),
    )
    with open_private(files.fixed, backend, threads=1, max_values=100_000) as unseen:
        for kind, level, choice in cases:
            choice = (
                Sample(choice.index[: level_count(fixed, level) // 3], None) if isinstance(choice, Sample) else choice
            )
            transform = make_transform(kind, fixed, moving)
            coarse = moving.at_level(level)
            value, gradient = by_autograd(transform, coarse, fixed, level, choice)
            private = SSD(unseen.operand(OperandRequest(level, choice, 0, rows=16)))(transform, coarse)
            assert private.requires_grad
            assert private.shape == ()
            private.backward()
            assert private.item() == pytest.approx(value.item(), rel=ROUNDING)
            error = (gradient_of(transform) - gradient).norm() / gradient.norm()
            assert error < ROUNDING, (kind, float(error))
            assert gradient.norm() > 0.1
            parameters = sum(p.numel() for p in transform.parameters())
            # Nothing but ceil((P + 1) / 16) products; `backward` sends nothing.
            assert unseen.channel.iteration + 1 == -(-(parameters + 1) // 16)
            assert kind != "network" or parameters > 90
    assert {party.role for party in started} == {"party_2"} | ({"dealer"} if backend in WITH_DEALER else set())


def level_count(image: Image, level: Level) -> int:
    return image.at_level(level).grid.count


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=[] if name in ("beaver", "bfv") else pytest.mark.slow) for name in BACKENDS]
)
def test_two_operands_of_one_private_source_are_both_usable(backend: str, images: dict[int, Files]) -> None:
    """The first one's loss is the same before and after the second exists; so are those of two URS minibatches."""
    files = images[2]
    moving, fixed = load_image(files.moving, torch.float64), load_image(files.fixed)
    transform = make_transform("affine", fixed, moving)
    level = Level(2, 1.0)
    requests = [OperandRequest(level), *(OperandRequest(level, Uniform(0.3, seed)) for seed in (1, 2))]
    requests.append(OperandRequest(Level(1, 0.0)))
    with open_private(files.fixed, backend, threads=1, max_values=100_000) as unseen, torch.no_grad():
        losses, alone = [], []
        for request in requests:
            losses.append((SSD(unseen.operand(request)), moving.at_level(request.level)))
            alone.append(losses[-1][0](transform, losses[-1][1]).item())
        again = [losses[number][0](transform, losses[number][1]).item() for number in (0, 1, 2, 3, 1, 0)]
    assert again == [alone[number] for number in (0, 1, 2, 3, 1, 0)]
    assert len(set(alone)) == len(alone)


def test_a_wrong_gradient_would_be_seen(images: dict[int, Files]) -> None:
    """Control: the quantisation alone (not the clear image's own values) moves the gradient by more than the bound."""
    files, level = images[2], Level(2, 1.0)
    moving, fixed = load_image(files.moving, torch.float64), load_image(files.fixed, torch.float64)
    transform = make_transform("affine", fixed, moving)
    _, quantised = by_autograd(transform, moving.at_level(level), fixed, level, Full())
    SSD(ClearFixed(fixed).operand(OperandRequest(level)))(transform, moving.at_level(level)).backward()
    assert ROUNDING < (gradient_of(transform) - quantised).norm() / quantised.norm() < 1e-2


def test_the_gradient_goes_through_what_is_built_around_it(images: dict[int, Files], started: Started) -> None:
    """Scaled, summed with a regulariser, under no_grad, twice backward: as any scalar of torch."""
    files, level = images[2], Level(2, 1.0)
    moving, fixed = load_image(files.moving, torch.float64).at_level(level), load_image(files.fixed)
    with open_private(files.fixed, "bfv", threads=1, max_values=100_000) as unseen:
        loss, transform = SSD(unseen.operand(OperandRequest(level, rows=7))), make_transform("affine", fixed, moving)
        loss(transform, moving).backward()
        plain = gradient_of(transform).clone()
        transform.zero_grad()
        shear = transform.get_parameter("shear")
        (3 * loss(transform, moving) + 0.5 * shear.square().sum()).backward()
        extra = torch.cat([torch.zeros(2, dtype=torch.float64), shear.detach().flatten()])
        assert torch.allclose(gradient_of(transform), 3 * plain + extra, rtol=1e-9)
        with torch.no_grad():
            value = loss(transform, moving)
        assert not value.requires_grad
        assert value.item() == pytest.approx(loss(transform, moving).item(), rel=1e-6)
        shear.requires_grad_(False)
        transform.zero_grad()
        loss(transform, moving).backward()
        assert shear.grad is None
        assert torch.allclose(transform.get_parameter("translation").grad, plain[:2], rtol=1e-4)  # type: ignore[arg-type]
    assert len(started) == 1


@pytest.mark.parametrize(
    ("backend", "kind"),
    [("bfv", "affine"), ("spdz", "affine"), ("spdz", "network"), ("beaver", "affine"), ("beaver", "network")],
)
def test_ten_steps_of_adam_end_at_the_same_parameters(
    backend: str, kind: str, images: dict[int, Files], started: Started
) -> None:
    """The loop knows nothing of privacy."""

    def fit(loss: nn.Module) -> tuple[Tensor, list[float]]:
        transform = make_transform(kind, fixed, moving)
        optimizer = torch.optim.Adam(transform.parameters(), lr=0.05)
        values = []
        for _ in range(10):
            optimizer.zero_grad()
            value = loss(transform, moving)
            value.backward()
            optimizer.step()
            values.append(value.item())
        return torch.cat([p.detach().flatten() for p in transform.parameters()]), values

    files, level = images[2], Level(2, 1.0)
    moving, fixed = load_image(files.moving).at_level(level), load_image(files.fixed)
    clear, clear_values = fit(SSD(ClearFixed(fixed).operand(OperandRequest(level))))
    with open_private(files.fixed, backend, threads=1, max_values=100_000) as unseen:
        private, values = fit(SSD(unseen.operand(OperandRequest(level, rows=40))))
    assert values[-1] < 0.98 * values[0]
    assert values == pytest.approx(clear_values, rel=1e-3)
    start = torch.cat([p.detach().flatten() for p in make_transform(kind, fixed, moving).parameters()])
    assert (clear - start).abs().max() > 0.1
    assert (private - clear).abs().max() < 0.01
    assert started


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_the_context_ends_every_process(backend: str, images: dict[int, Files], started: Started) -> None:
    with open_private(images[2].fixed, backend, threads=1, max_values=100_000) as unseen:
        assert unseen.grid == load_image(images[2].fixed).grid
        assert not hasattr(unseen, "image")
        assert all(party.running for party in started)
    assert [party.process.returncode for party in started] == [0] * len(started)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_inside_the_context_ends_every_process(
    backend: str, images: dict[int, Files], started: Started
) -> None:
    with pytest.raises(ZeroDivisionError), open_private(images[2].fixed, backend, threads=1):
        raise ZeroDivisionError("the user's own")
    assert not any(party.running for party in started)
    # None had to be killed: they heard of it.
    assert all(party.process.returncode != -signal.SIGKILL for party in started)
    assert len(started) == (2 if backend in WITH_DEALER else 1)


def test_a_killed_party_2_is_one_clear_line(images: dict[int, Files], started: Started) -> None:
    moving = load_image(images[2].moving)
    with (  # noqa: PT012
        pytest.raises(PeerLost, match=r"^party_1: party_2 is gone \(.*\); the run stops here") as caught,
        open_private(images[2].fixed, "bfv", threads=1, max_values=100_000) as unseen,
    ):
        loss = SSD(unseen.operand(OperandRequest(Level(2, 0.0), rows=7)))
        started["party_2"].kill()
        loss(make_transform("affine", moving, moving), moving)
    assert "\n" not in str(caught.value)


def test_a_fixed_file_that_party_2_cannot_open(tmp_path: Path) -> None:
    """With an interpreter of its own."""
    path = tmp_path / "missing.mha"
    with started_parties(quick=False) as started:
        with pytest.raises(PeerLost) as caught, open_private(path, "bfv"):
            pass
        assert str(caught.value) == f"{path}: no such file or folder"
        assert caught.value.exit_code == 3
        assert [party.process.returncode for party in started] == [2]


def test_an_unknown_backend_starts_nothing(images: dict[int, Files], started: Started) -> None:
    for name in ("clear", "rot13"):
        with pytest.raises(ConfigError, match="spdz, beaver, bfv, ckks, ckks-v1"), open_private(images[2].fixed, name):
            pass
    assert started == []


# --- register ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_files", [True, False], ids=["files", "images"])
@pytest.mark.parametrize("backend", ["clear", "bfv"])
def test_register(backend: str, as_files: bool, images: dict[int, Files], started: Started, tmp_path: Path) -> None:
    files = images[2]
    fixed, moving = load_image(files.fixed), load_image(files.moving)
    given: tuple[Any, Any] = (str(files.moving), files.fixed) if as_files else (moving, fixed)
    output = tmp_path / "out" if as_files else None
    result = register(
        *given, backend=backend, levels=(2, 1), threads=1, truth=files.truth, output=output, max_values=100_000
    )
    truth = load_transform(files.truth, fixed.grid)
    points = fixed.grid.points(dtype=torch.float64)
    assert displacement_rmse(result.transform, truth, points) < 0.1
    assert result.metrics["rmse_to_truth_mm"] < 0.1
    assert result.complete
    assert result.metrics["backend"] == backend
    assert result.value == result.metrics["value"] < 0.05 * result.history[0].iteration.value
    assert [h.level for h in result.history] == sorted(h.level for h in result.history)
    assert {h.levels for h in result.history} == {2}
    assert result.warped.tensor.shape == fixed.tensor.shape
    assert result.warped.grid.origin == pytest.approx(fixed.grid.origin, abs=1e-3)
    assert (result.warped.tensor - fixed.tensor)[:, 4:-4, 4:-4].abs().max() < 0.1 * fixed.tensor.max()
    assert len(started) == (2 if backend == "bfv" else 0)
    if output is not None:
        assert {"warped.nii.gz", "transform.tfm", "result.json"} <= {path.name for path in output.iterdir()}


def test_register_gives_the_same_from_images_and_from_files(images: dict[int, Files]) -> None:
    files = images[3]
    one = register(files.moving, files.fixed, levels=(2,), threads=1)
    two = register(load_image(files.moving), load_image(files.fixed), levels=(2,), threads=1)
    assert one.metrics["transform"] == two.metrics["transform"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"transform": "affin"}, "transform.kind: 'affin', one of translation, rigid, similarity"),
        ({"backend": "tfp"}, "backend.kind: 'tfp', one of clear, auto, spdz, beaver, bfv, ckks, ckks-v1 is needed"),
        ({"levels": (1, 2)}, "shrink goes"),
        ({"start": "nowhere.tfm"}, "nowhere.tfm: no such transform file"),
        ({"truth": "nowhere.tfm"}, "nowhere.tfm: no such transform file"),
        ({"backend": "bfv", "fixed_mask": "mask.mha"}, "data.disclose_mask"),
    ],
    ids=str,
)
def test_register_refuses_in_one_line(settings: dict[str, Any], line: str, images: dict[int, Files]) -> None:
    with pytest.raises(PpirError) as caught:
        register(images[2].moving, images[2].fixed, **settings)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
