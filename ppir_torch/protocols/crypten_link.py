"""CrypTen over our Link: its communicator and its tuple provider, replaced. Imports CrypTen: load this module lazily.

CrypTen (Knott et al., NeurIPS 2021) finds its communicator through the class `crypten.communicator` names as
`DistributedCommunicator`, and its triples through the provider that `crypten.cfg.mpc.provider` names; `install` sets
both. Nothing here needs gloo, a process group or `crypten.init()`, so CrypTen's generators are never created.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..wire.channel import Channel
from ..wire.kinds import MessageKind
from .dealing import ResultShare, WordsMessage

__all__ = ["DealerProvider", "LinkCommunicator", "Opening", "check_provider", "install", "shared"]


DrawTriple = Callable[[tuple[int, ...], tuple[int, ...]], tuple[Tensor, Tensor, Tensor]]
PROVIDER = "PPIR"


@dataclass(frozen=True, eq=False)
class Opening(WordsMessage):
    """Both ways: this party's shares of the masked differences x - a and y - b."""

    kind = MessageKind.OPENING


def _crypten() -> Any:
    """CrypTen itself; 0.4.1 imports a torch module by the name it had before torch 2.9, so alias the new one."""
    old = "torch.onnx._internal.registration"
    try:
        importlib.import_module(old)
    except ModuleNotFoundError:
        sys.modules[old] = importlib.import_module("torch.onnx._internal.torchscript_exporter.registration")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside CrypTen, nothing a user can act on
        return importlib.import_module("crypten")


crypten = _crypten()


class LinkCommunicator(crypten.communicator.Communicator):  # type: ignore[misc, name-defined]
    """CrypTen's collectives between two parties over one Link; what the product does not need is refused.

    Args:
        rank: 0 (party_1) or 1 (party_2).
        channel: to the other party.
        draw_triple: this party's shares (a, b, c) of the next triple, for the sizes of a and b.

    CrypTen sees it inside a `with` block, in the thread that entered it.
    """

    BYTES_PER_ELEMENT = 8
    _entered = threading.local()

    def __init__(self, rank: int, channel: Channel, draw_triple: DrawTriple) -> None:
        self.rank, self.channel, self.draw_triple = rank, channel, draw_triple

    def __enter__(self) -> LinkCommunicator:
        self._entered.communicator = self
        return self

    def __exit__(self, *exc: object) -> None:
        del self._entered.communicator

    @classmethod
    def is_initialized(cls) -> bool:
        """True inside the `with` block."""
        return hasattr(cls._entered, "communicator")

    @classmethod
    def get(cls) -> LinkCommunicator:
        """The communicator of this thread's `with` block."""
        communicator: LinkCommunicator = cls._entered.communicator
        return communicator

    def get_world_size(self) -> int:
        """Two parties; the dealer is not one of them."""
        return 2

    def get_rank(self) -> int:
        """0 for party_1, 1 for party_2."""
        return self.rank

    def all_reduce(self, shares: Any, op: Any = None, batched: bool = False) -> list[Any]:
        """Open the masked differences [x - a, y - b] to both parties; opens nothing else to both.

        Raises:
            LinkError: the peer's shares are not as long as ours.
        """
        if not batched or op is not None:
            raise NotImplementedError("only masked differences are opened to both parties; use reveal(dst=0)")
        mine = [_words_of(share) for share in shares]
        Opening([m.data for m in mine]).send(self.channel)
        theirs = Opening.receive(self.channel).words(sum(m.size for m in mine), 64)
        parts = torch.split(theirs, [m.size for m in mine])
        return [s + p.view(tuple(s.shape)).to(s.device) for s, p in zip(shares, parts, strict=True)]

    def reduce(self, share: Any, dst: int, op: Any = None, batched: bool = False) -> Any:
        """Open a result to party_1: party_2 sends its share and gets None.

        Raises:
            LinkError: party_2's share is not as long as ours.
        """
        if dst != 0 or batched or op is not None:
            raise NotImplementedError("results are opened to party_1 only: reveal(dst=0)")
        if self.rank == 1:
            ResultShare([_words_of(share).data]).send(self.channel)
            return None
        theirs = ResultShare.receive(self.channel).words(share.nelement(), 64)
        return share + theirs.view(tuple(share.shape)).to(share.device)


class DealerProvider(crypten.mpc.provider.provider.TupleProvider):  # type: ignore[misc, name-defined]
    """CrypTen's source of Beaver triples: the shares that this party draws from the dealer's seed."""

    NAME = PROVIDER

    def generate_additive_triple(
        self,
        size0: tuple[int, ...],
        size1: tuple[int, ...],
        op: str,
        device: torch.device | None = None,
    ) -> tuple[Any, Any, Any]:
        """Shares of a (size0), b (size1) and c = a b; no other operation is dealt."""
        if op != "matmul":
            raise NotImplementedError(f"the dealer deals triples for matmul, not for {op}")
        a, b, c = LinkCommunicator.get().draw_triple(tuple(size0), tuple(size1))
        return shared(a, device), shared(b, device), shared(c, device)


def install() -> None:
    """Make CrypTen use our communicator and provider in this process.

    Raises:
        ConfigError: CrypTen was already started (`crypten.init()`), so other code here relies on its own communicator.
    """
    found = crypten.communicator.DistributedCommunicator
    if found is LinkCommunicator:
        return
    if found.is_initialized():
        raise ConfigError("spdz: crypten.init() was called in this process; run the party in a process of its own")
    crypten.communicator.DistributedCommunicator = LinkCommunicator
    crypten.mpc.__SUPPORTED_PROVIDERS[PROVIDER] = DealerProvider()
    crypten.cfg.mpc.provider = PROVIDER


def check_provider() -> None:
    """Refuse a product on any triples but the dealer's.

    Raises:
        ConfigError: CrypTen's configuration was changed after `install`.
    """
    provider = crypten.mpc.get_default_provider()
    if not isinstance(provider, DealerProvider):
        why = ", which lets party_1 read the other image" if provider.NAME == "TFP" else ""
        raise ConfigError(f"spdz: crypten.cfg.mpc.provider is {provider.NAME}{why}; {PROVIDER} is needed")
    if crypten.cfg.mpc.protocol != "beaver" or crypten.cfg.mpc.active_security:
        raise ConfigError("spdz: crypten.cfg.mpc must have protocol 'beaver' and active_security false")


def shared(share: Tensor, device: torch.device | None) -> Any:
    """An ArithmeticSharedTensor of plain integers (precision 0: exact mod 2^64, never truncated) from our own share."""
    return crypten.mpc.primitives.ArithmeticSharedTensor.from_shares(share, precision=0, device=device)


def _words_of(share: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The words of a share in host memory: share is a Tensor, or CrypTen's CUDALongTensor around one."""
    words: np.ndarray[Any, np.dtype[np.int64]] = share.data.cpu().contiguous().numpy()
    return words
