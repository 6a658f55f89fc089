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

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["PRETENDED", "PretendedTensor"]

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


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation: refused, or run on the values."""
    _check(func, args, kwargs)
    device = kwargs.get("device")
    plain_args, plain = _pytree.tree_map_only(PretendedTensor, lambda tensor: tensor.inner, (args, kwargs))
    result = func(*plain_args, **(plain if device is None else plain | {"device": "cpu"}))
    if device is not None and torch.device(device).type == "cpu":
        return result
    if not func._schema.is_mutable:
        return _pytree.tree_map_only(Tensor, PretendedTensor, result)
    # The very tensors that were written to, as autograd expects; they keep the shape that they have.
    written = list(_written(func, args, kwargs))
    for tensor in written:
        if isinstance(tensor, PretendedTensor) and tensor.shape != tensor.inner.shape:
            raise RuntimeError(f"{func}: changes a tensor's shape, which the pretended device cannot")
    return written[0] if len(written) == 1 and len(func._schema.returns) <= 1 else tuple(written)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs[argument.name]


def _check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what CUDA refuses."""
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU for numbers on the pretended device")
    tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if func in _INTEGER_PRODUCTS and not any(t.is_floating_point() or t.is_complex() for t in tensors):
        raise RuntimeError(f"{func}: not of integers on the pretended device, as on CUDA")
    if func in _COPIES:
        return
    if func in _INDEXED:
        subject, indices, *values = args[:3]
        here = [subject, *(value for value in values if value.ndim > 0)]
        if not isinstance(subject, PretendedTensor):
            here += [index for index in indices if index is not None]
    elif torch.Tag.pointwise in func.tags or func in _ALSO_POINTWISE:
        written = [id(tensor) for tensor in _written(func, args, kwargs)] if func._schema.is_mutable else []
        here = [tensor for tensor in tensors if tensor.ndim > 0 or id(tensor) in written]
        if any(isinstance(t, PretendedTensor) for t in tensors) and all(t.ndim == 0 for t in tensors) and not written:
            return
        if here and not any(isinstance(tensor, PretendedTensor) for tensor in here):
            here = tensors  # a scalar on the device among tensors of the CPU
    else:
        here = tensors
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
