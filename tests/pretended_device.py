"""A device that is none: its tensors hold their values on the CPU and refuse to be mixed with tensors that lie there.

What CUDA refuses is refused in the ordinary suite, on any machine, and what is computed is what the CPU computes:

- operations on tensors of both devices; a CPU tensor without dimensions may be an operand of an element-wise one, an
  index may lie on the CPU, and values are copied from device to device where that is asked for (`to`, `copy_`);
- `numpy()`, products of integer matrices, and random numbers from a generator of the CPU.

It stands in for a GPU where code asks for a device by name, and so also where it asks whether a tensor is on the CPU.

>>> on_device = torch.ones(3).to(PRETENDED)
>>> (on_device + torch.tensor(1.0)).device.type, (on_device + 1).tolist()
('pretended', [2.0, 2.0, 2.0])
>>> on_device + torch.ones(3)
Traceback (most recent call last):
    ...
RuntimeError: aten.add.Tensor: tensors on the pretended device and on the CPU; all on one device are needed
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["PRETENDED", "PretendedTensor", "copies_between_devices"]

# CUDA tensors have a numbered device, and autograd asks for the number.
PRETENDED = "pretended:0"

_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
_ALSO_POINTWISE = {_aten.fill_.Tensor, _aten.fill.Tensor}  # not tagged as such
_INTEGER_PRODUCTS = {
    _aten.mm.default,
    _aten.bmm.default,
    _aten.mv.default,
    _aten.dot.default,
    _aten.addmm.default,
    _aten.addmv.default,
    _aten.baddbmm.default,
}


_WATCHING: list[list[int]] = []


@contextmanager
def copies_between_devices() -> Iterator[list[int]]:
    """The number of values of every copy from one device to the other, in the order of the copies.

    >>> with copies_between_devices() as copies:
    ...     _ = torch.ones(3).to(PRETENDED)[1:].cpu()
    >>> copies
    [3, 2]
    """
    copies: list[int] = []
    _WATCHING.append(copies)
    try:
        yield copies
    finally:
        _WATCHING.remove(copies)


class PretendedTensor(Tensor):
    """A tensor on the pretended device; its values are those of `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedTensor:
        made: PretendedTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=PRETENDED,
        )
        made.inner = inner
        return made

    @property
    def is_cuda(self) -> bool:
        """True: CrypTen asks for it, and takes its way through matrices of floating numbers."""
        return True

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, kwargs or {})

    def numpy(self, *, force: bool = False) -> Any:
        """As of a CUDA tensor."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert pretended device type tensor to numpy; use Tensor.cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        return self.numpy()  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        """As of any tensor; like `item` it waits for the device and copies."""
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inner!r} on the pretended device"


@dataclass(frozen=True)
class _Rule:
    """What is known of an operation, worked out once."""

    any_device: bool
    indexed: bool
    pointwise: bool
    integer_product: bool
    written: tuple[tuple[int, str], ...]  # arguments that it writes to: place and name

    @classmethod
    @functools.cache
    def of(cls, func: Any) -> _Rule:
        arguments = enumerate(func._schema.arguments)
        written = tuple((place, a.name) for place, a in arguments if a.alias_info is not None and a.alias_info.is_write)
        pointwise = torch.Tag.pointwise in func.tags or func in _ALSO_POINTWISE
        return cls(func in _COPIES, func in _INDEXED, pointwise, func in _INTEGER_PRODUCTS, written)

    def outputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The arguments that are written to."""
        return [args[place] if place < len(args) else kwargs[name] for place, name in self.written]


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation: refused, or run on the values."""
    rule = _Rule.of(func)
    if any(tensor.is_meta for tensor in _tensors(args)):
        # Shapes alone, with which torch tries its forward-mode derivatives.
        return func(*(_inner(arg).to("meta") if isinstance(arg, Tensor) else arg for arg in args), **kwargs)
    _check(func, rule, args, kwargs)
    device = kwargs.get("device")
    plain = {name: _inner(value) for name, value in kwargs.items()} | ({} if device is None else {"device": "cpu"})
    result = func(*map(_inner, args), **plain)
    leaves = device is not None and torch.device(device).type == "cpu"
    if _WATCHING and rule.any_device and (leaves or len({isinstance(t, PretendedTensor) for t in _tensors(args)}) > 1):
        for copies in _WATCHING:
            copies.append(result.numel())
    if leaves:
        return result
    if not rule.written:
        return _wrapped(result)
    if torch.Tag.inplace_view in func.tags and func is not _aten.set_.source_Tensor:
        # squeeze_ and the like: the shape outside follows that of the values.
        with no_dispatch():
            func(*args, **kwargs)
    # The very tensors that were written to, as autograd expects.
    outputs = rule.outputs(args, kwargs)
    for tensor in outputs:
        if isinstance(tensor, PretendedTensor) and tensor.shape != tensor.inner.shape:
            raise RuntimeError(f"{func}: resizes a tensor, which the pretended device cannot")
    return outputs[0] if len(outputs) == 1 and len(func._schema.returns) <= 1 else tuple(outputs)


def _inner(value: Any) -> Any:
    if isinstance(value, PretendedTensor):
        return value.inner
    return type(value)(map(_inner, value)) if type(value) in (list, tuple) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return PretendedTensor(value)
    return type(value)(map(_wrapped, value)) if type(value) in (list, tuple) else value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from _tensors(value)


def _check(func: Any, rule: _Rule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what CUDA refuses."""
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU for numbers on the pretended device")
    if rule.any_device:
        return
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    if rule.integer_product and not any(t.is_floating_point() or t.is_complex() for t in tensors):
        raise RuntimeError(f"{func}: not of integers on the pretended device, as on CUDA")
    here = tensors
    if rule.indexed:
        subject, indices, *values = args[:3]
        # An index may lie on the CPU, and so may a single value.
        here = [subject, *(value for value in values if value.ndim > 0)]
        here += [] if isinstance(subject, PretendedTensor) else [index for index in indices if index is not None]
    elif rule.pointwise:
        # An operand without dimensions may lie on the CPU; what is written to, and one on the device, count.
        outputs = [id(tensor) for tensor in rule.outputs(args, kwargs)]
        here = [t for t in tensors if t.ndim > 0 or id(t) in outputs or isinstance(t, PretendedTensor)]
    if len({isinstance(tensor, PretendedTensor) for tensor in here}) > 1:
        raise RuntimeError(f"{func}: tensors on the pretended device and on the CPU; all on one device are needed")


def _factory(name: str) -> Callable[..., PretendedTensor]:
    """Makes tensors on the device as the CPU makes them; without their own, torch would resize empty ones."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(_aten, packet), overload or "default")

    def make(*args: Any, **kwargs: Any) -> PretendedTensor:
        if kwargs.get("generator") is not None or any(isinstance(arg, torch.Generator) for arg in args):
            raise RuntimeError(f"{name}: a generator of the CPU for numbers on the pretended device")
        known = {argument.name for argument in operation._schema.arguments}
        chosen = {key: value for key, value in kwargs.items() if key != "device"}
        return PretendedTensor(operation(*args, **chosen, **({"device": "cpu"} if "device" in known else {})))

    return make


def _zeros(size: Any, **kwargs: Any) -> PretendedTensor:
    """Of forward-mode derivatives; torch's own have no storage."""
    return PretendedTensor(torch.zeros(size, dtype=kwargs.get("dtype")))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: ARG001
    """What `torch.tensor(list, device=...)` ends in."""
    values = source.inner if isinstance(source, PretendedTensor) else source
    (target.inner if isinstance(target, PretendedTensor) else target).copy_(values)
    return target


_setup_privateuseone_for_python_backend("pretended")
_LIBRARY = torch.library.Library("aten", "IMPL")
for _name in (
    "empty.memory_format",
    "empty_strided",
    "eye",
    "eye.m",
    "arange",
    "arange.start",
    "arange.start_step",
    "randperm",
    "randperm.generator",
):
    _LIBRARY.impl(_name, _factory(_name), "PrivateUse1")
_LIBRARY.impl("_efficientzerotensor", _zeros, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
