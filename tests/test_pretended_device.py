"""The pretended device: it refuses what CUDA refuses, and computes what the CPU computes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretended_device import PRETENDED, PretendedTensor, copies_between_devices
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import jvp, vmap


def on(tensor: Tensor) -> Tensor:
    return tensor.to(PRETENDED)


def here() -> Tensor:
    return torch.arange(1.0, 5.0)


def scalar() -> Tensor:
    return torch.tensor(2.0)


def places() -> Tensor:
    return torch.tensor([3, 1])


def written(target: Tensor, index: Tensor, values: Tensor) -> None:
    target[index] = values


REFUSED: dict[str, Callable[[], object]] = {
    "a sum": lambda: on(here()) + here(),
    "a sum, the other way round": lambda: here() + on(here()),
    "a scalar on the device in a sum": lambda: here() + on(scalar()),
    "in place on the device": lambda: on(here()).add_(here()),
    "in place on the CPU": lambda: here().add_(on(here())),
    "in place on the CPU, of a scalar": lambda: scalar().add_(on(scalar())),
    "a matrix product": lambda: on(torch.ones(2, 2)) @ torch.ones(2, 2),
    "a chosen part": lambda: torch.where(on(here()) > 2, here(), 0.0),
    "a condition": lambda: torch.where(here() > 2, on(here()), 0.0),
    "one after the other": lambda: torch.cat([on(here()), here()]),
    "a stack of scalars": lambda: torch.stack([on(scalar()), scalar()]),
    "index_select": lambda: on(here()).index_select(0, places()),
    "index_add_": lambda: on(here()).index_add_(0, places(), on(torch.ones(2))),
    "index_copy_": lambda: on(here()).index_copy_(0, on(places()), torch.ones(2)),
    "gather": lambda: on(here()).gather(0, places()),
    "scatter_": lambda: on(here()).scatter_(0, places(), on(torch.ones(2))),
    "an index on the device": lambda: here()[on(places())],
    "values for places": lambda: written(on(here()), places(), torch.ones(2)),
    "values for places on the CPU": lambda: written(here(), places(), on(torch.ones(2))),
    "grid_sample": lambda: F.grid_sample(on(torch.ones(1, 1, 3, 3)), torch.zeros(1, 2, 2, 2), align_corners=True),
    "a tensor product": lambda: torch.tensordot(on(here()), here(), dims=1),
    "einsum": lambda: torch.einsum("i,j->ij", on(here()), here()),
    "solve": lambda: torch.linalg.solve(on(torch.eye(4)), here()),
    "equal": lambda: torch.equal(on(here()), here()),
    "into a given tensor": lambda: torch.add(on(here()), 1.0, out=here()),
}
ALLOWED: dict[str, Callable[[], object]] = {
    "a scalar on the CPU in a sum": lambda: on(here()) + scalar(),
    "a scalar in place": lambda: on(here()).mul_(scalar()),
    "scalars of both": lambda: on(scalar()) + scalar(),
    "a chosen scalar": lambda: torch.where(on(here()) > 2, on(here()), scalar()),
    "an index on the CPU": lambda: on(here())[places()],
    "a condition on the CPU as an index": lambda: on(here())[here() > 2],
    "values for places on the CPU": lambda: written(on(here()), places(), on(torch.ones(2))),
    "a scalar for places": lambda: written(on(here()), places(), scalar()),
    "a copy to the device": lambda: on(here()).copy_(here()),
    "a copy from the device": lambda: here().copy_(on(here())),
    "a copy to a part": lambda: on(torch.zeros(2, 4))[0].copy_(here()),
    "as another": lambda: here().to(on(torch.ones(1, dtype=torch.float64))),
    "back": lambda: on(here()).cpu() + here(),
    "new from the CPU": lambda: on(here()) + here().new_zeros(4, device=PRETENDED),
}
# Where torch's fake tensors say nothing: they let the index pass, do not know how many values a condition keeps, and
# have no sum of scalars for a backend that is written in Python.
UNKNOWN_TO_FAKE = {"an index on the device", "a condition on the CPU as an index", "scalars of both"}


@pytest.mark.parametrize("operation", REFUSED.values(), ids=REFUSED)
def test_tensors_of_two_devices_are_refused(operation: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="on the pretended device and on the CPU; all on one device are needed"):
        operation()


@pytest.mark.parametrize("operation", ALLOWED.values(), ids=ALLOWED)
def test_what_cuda_takes_is_taken(operation: Callable[[], object]) -> None:
    operation()


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in UNKNOWN_TO_FAKE])
def test_torchs_own_fake_tensors_refuse_it_too(name: str) -> None:
    """They know the rules of devices and have no values: an oracle for the rules alone."""
    with FakeTensorMode(), pytest.raises(RuntimeError):
        REFUSED[name]()


@pytest.mark.parametrize("name", [name for name in ALLOWED if name not in UNKNOWN_TO_FAKE])
def test_torchs_own_fake_tensors_take_it_too(name: str) -> None:
    with FakeTensorMode():
        ALLOWED[name]()


@pytest.mark.parametrize("take", [lambda t: t.numpy(), np.asarray], ids=["numpy", "asarray"])
def test_no_array_is_made_of_it_but_by_way_of_the_cpu(take: Callable[[Tensor], object]) -> None:
    with pytest.raises(TypeError, match=r"use Tensor.cpu\(\) first"):
        take(on(here()))
    assert on(here()).cpu().numpy().tolist() == here().tolist()


def test_no_products_of_integer_matrices() -> None:
    ones = torch.ones(2, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="not of integers on the pretended device, as on CUDA"):
        on(ones) @ on(ones)


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: torch.rand(3, generator=g, device=PRETENDED),
        lambda g: torch.randperm(3, generator=g, device=PRETENDED),
        lambda g: on(torch.zeros(3)).normal_(generator=g),
    ],
    ids=["rand", "randperm", "in place"],
)
def test_a_generator_of_the_cpu_draws_on_the_cpu(draw: Callable[[torch.Generator], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="a generator of the CPU"):
        draw(torch.Generator().manual_seed(1))


MADE: dict[str, Callable[[str], Tensor]] = {
    "zeros": lambda d: torch.zeros(2, 3, device=d),
    "full": lambda d: torch.full((2,), 3.5, device=d),
    "eye": lambda d: torch.eye(3, dtype=torch.float64, device=d),
    "arange": lambda d: torch.arange(4, device=d),
    "arange from": lambda d: torch.arange(1.0, 4.0, 0.5, device=d),
    "linspace": lambda d: torch.linspace(-1, 1, 5, device=d),
    "a list": lambda d: torch.tensor([[1, 2], [3, 4]], device=d),
    "new_zeros": lambda d: torch.ones(2).to(d).new_zeros(3, 2),
    "new_tensor": lambda d: torch.ones(2).to(d).new_tensor([1.0, 2.0]),
    "zeros_like": lambda d: torch.zeros_like(torch.ones(2, 3).to(d)),
    "ones_like, from the CPU": lambda d: torch.ones_like(torch.zeros(2, 3), device=d),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_tensors_are_made_on_the_device(make: Callable[[str], Tensor]) -> None:
    made, wanted = make(PRETENDED), make("cpu")
    assert made.device == torch.device(PRETENDED)
    assert not made.is_cpu
    assert (made.shape, made.dtype) == (wanted.shape, wanted.dtype)
    assert torch.equal(made.cpu(), wanted)


def test_values_are_those_of_the_cpu() -> None:
    values = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    table = on(values)
    assert isinstance(table, PretendedTensor)
    assert torch.equal((table @ table.T).cpu(), values @ values.T)
    assert float(table[1, 2]) == float(values[1, 2])
    assert table.argmax().item() == values.argmax().item()
    assert table[0].tolist() == values[0].tolist()


def test_a_view_shares_what_it_is_a_view_of() -> None:
    whole = torch.zeros(2, 5, device=PRETENDED)
    part = whole[:, 1:3]
    part += 1
    whole[1, torch.tensor([0, 4])] = 2.0
    assert whole.tolist() == [[0, 1, 1, 0, 0], [2, 1, 1, 0, 2]]


def test_a_shape_that_is_changed_in_place_is_seen() -> None:
    row, table = here(), torch.arange(8.0).reshape(4, 2)
    product = on(row) @ on(table)  # torch takes a dimension away in place
    assert (product.shape, product.tolist()) == ((2,), (row @ table).tolist())
    with pytest.raises(RuntimeError, match="resizes a tensor"):
        torch.add(on(row), 1, out=on(torch.empty(0)))


def test_autograd_gives_the_derivatives_of_the_cpu() -> None:
    volume = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    where = torch.linspace(-0.9, 0.8, 20).reshape(1, 1, 10, 2)

    def slope(device: str) -> Tensor:
        at = where.to(device).requires_grad_()
        values = F.grid_sample(volume.to(device), at, align_corners=True)
        return torch.autograd.grad(values.square().sum(), at)[0]

    assert slope(PRETENDED).device.type == "pretended"
    assert torch.equal(slope(PRETENDED).cpu(), slope("cpu"))


def test_a_module_moves_with_its_parameters() -> None:
    module = nn.Linear(3, 2).to(PRETENDED)
    points = torch.ones(4, 3)
    with pytest.raises(RuntimeError, match="all on one device"):
        module(points)
    module(points.to(PRETENDED)).sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.device.type == "pretended"
    assert module.cpu()(points).shape == (4, 2)


def test_forward_mode_and_batches_work() -> None:
    matrix, vector = torch.arange(12.0).reshape(3, 4), torch.tensor([1.0, -2.0, 0.5, 0.0])

    def jacobian(device: str) -> Tensor:
        inner = matrix.to(device)

        def along(tangent: Tensor) -> Tensor:
            slope: Tensor = jvp(lambda v: (inner * v).sin().sum(1), (vector.to(device),), (tangent,))[1]
            return slope

        result: Tensor = vmap(along)(torch.eye(4, device=device))
        return result

    assert torch.equal(jacobian(PRETENDED).cpu(), jacobian("cpu"))


def test_it_works_in_threads() -> None:
    found: list[object] = []

    def work() -> None:
        found.append((on(here()) * 2).tolist())
        try:
            on(here()) + here()
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == [2, 4, 6, 8]
    assert isinstance(found[1], RuntimeError)


def test_copies_between_devices_are_counted() -> None:
    on_device, on_cpu = on(torch.ones(2, 3)), torch.ones(7)
    with copies_between_devices() as copies:
        on_device.double()
        on_device[0].cpu()
        on_device.new_zeros(7).copy_(on_cpu)
        on_cpu.copy_(on_cpu + 1)
        on_cpu[:2].copy_(on_device[1, :2])
        on_cpu.to(on_device)
        on_device.sum().item()
    on_device.cpu()
    assert copies == [3, 7, 2, 7]
