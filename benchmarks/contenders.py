"""The contenders of products.py. Each is a context manager that yields a `Contender`, ready for products X (Y - mean).

- `private`: this package's protocols, every party (and the dealer) a process of its own;
- `stock_crypten`: CrypTen as it ships, two ranks (and its third party) in processes of their own over its gloo;
- `ckks_v1`: the product of the paper's published code, in TenSEAL; both parties one after the other in this process.

The last two are baselines and leak (docs/threat-model.md): they exist here only.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppir_torch.grids import Grid
from ppir_torch.joint import load_protocol
from ppir_torch.joint.operands import PrivateOperand, quantise_fixed
from ppir_torch.joint.protocol import OperandHeader
from ppir_torch.link import Kind, Link, pack, unpack
from ppir_torch.sampling import Sample

__all__ = ["CKKS_CHUNK", "Contender", "Traffic", "ckks_v1", "private", "reference", "stock_crypten"]

CKKS_CHUNK = 128
_TIMEOUT_S = 600.0
_SPAWN = get_context("spawn")  # fresh interpreters: nothing is inherited from the other party


@dataclass(frozen=True)
class Traffic:
    """Bytes on the wire: per product from party_1 (up) and to party_1 (down) and between others; and once."""

    up: float
    down: float
    others: float
    once: int


@dataclass(frozen=True)
class Contender:
    """`product()` runs one product and gives (seconds of all parties together, R); `traffic()` counts those so far."""

    name: str
    where: str
    points: int
    rows: int
    product: Callable[[], tuple[float, Tensor]]
    traffic: Callable[[], Traffic]


def reference(rows: Tensor, fixed: Tensor) -> Tensor:
    """What every product must be, in float64: rows (R, N) times fixed (N,) less its mean."""
    exact = fixed.double()
    return rows.double() @ (exact - exact.mean())


@contextmanager
def private(name: str, rows: Tensor, fixed: Tensor, threads: int) -> Iterator[Contender]:
    """A protocol of this package ("bfv", "spdz"); the product is what a loss calls: float rows in, float results out.

    Args:
        name: of the protocol.
        rows: X float32 (R, N), party_1's, in this process.
        fixed: J float32 (N,), given to party_2's process alone (over its pipe, before anything is timed).
        threads: of each process.
    """
    entry, session = load_protocol(name), secrets.token_bytes(16)
    one, two = socket.socketpair()
    streams = {"party_1": {"party_2": one}, "party_2": {"party_1": two}, "dealer": {}}
    if entry.dealer is not None:
        for role in ("party_1", "party_2"):
            streams[role]["dealer"], streams["dealer"][role] = socket.socketpair()
    roles = [role for role in ("party_2", "dealer") if streams[role]]
    pipes = {role: _SPAWN.Pipe() for role in roles}
    processes = [_SPAWN.Process(target=_serve, args=(role, name, streams[role], session, pipes[role][1], threads))
                 for role in roles]  # fmt: skip
    for process in processes:
        process.start()
    for role in roles:
        for stream in streams[role].values():
            stream.close()
    links = {peer: Link(stream, session, "party_1", peer, _TIMEOUT_S) for peer, stream in streams["party_1"].items()}
    link, dealer = links["party_2"], links.get("dealer")
    try:
        pipes["party_2"][0].send((fixed.numpy(), rows.shape[0]))
        side = entry.moving_side(link, dealer, "cpu")
        header = OperandHeader.from_meta(unpack(link.receive(Kind.OPERAND).payload)[0])
        side.accept_operand(header)
        operand = PrivateOperand(Grid((header.points, 1)), Sample(None, None), header, 0.0, side, link)
        count = 0

        def product() -> tuple[float, Tensor]:
            nonlocal count
            count += 1
            started = time.perf_counter()
            _, result = operand.multiply(rows)
            return time.perf_counter() - started, result

        def traffic() -> Traffic:
            sent, received = ([getattr(end, way) for end in links.values()] for way in ("sent", "received"))
            up, down = (sum(n for c in ends for k, n in c.items() if not k.is_set_up) for ends in (sent, received))
            once = sum(n for c in sent + received for k, n in c.items() if k.is_set_up)
            others = 0
            for end, _ in pipes.values():
                end.send("count")
                per_product, set_up = end.recv()
                others += per_product
                once += set_up
            return Traffic(up / count, down / count, others / count, once)

        where = f"{1 + len(roles)} processes: party_1, {', '.join(roles)}"
        yield Contender(name, where, header.points, rows.shape[0], product, traffic)
        for end in links.values():
            end.send(Kind.FINISH)
    finally:
        for end in links.values():
            end.close()
        _end(processes)


def _serve(
    role: str, name: str, streams: dict[str, socket.socket], session: bytes, pipe: Connection, threads: int
) -> None:
    """party_2 or the dealer, in its own process; answers "count" with its bytes that party_1 cannot count."""
    import threading

    torch.set_num_threads(threads)
    entry = load_protocol(name)
    links = {peer: Link(stream, session, role, peer, _TIMEOUT_S) for peer, stream in streams.items()}
    if role == "dealer":
        assert entry.dealer is not None
        ends = (links["party_1"], links["party_2"])
        threading.Thread(target=_count, args=(pipe, [links["party_2"]]), daemon=True).start()
        entry.dealer(*ends)
        return
    values, rows = pipe.recv()
    threading.Thread(target=_count, args=(pipe, [e for p, e in links.items() if p != "party_1"]), daemon=True).start()
    levels, scale, offset = quantise_fixed(torch.from_numpy(values))
    most, energy = int(levels.abs().max()), int(levels.square().sum())
    header = OperandHeader(0, levels.numel(), rows, scale, offset, most, energy)
    link = links["party_1"]
    side = entry.fixed_side(link, links.get("dealer"), "cpu")
    link.send(Kind.OPERAND, pack(header.to_meta()))
    side.send_operand(header, levels)
    while (request := link.receive()).kind is not Kind.FINISH:
        side.answer(request)


def _count(pipe: Connection, links: list[Link]) -> None:
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        once = sum(link.set_up_bytes_sent for link in links)
        pipe.send((sum(link.bytes_sent for link in links) - once, once))


@contextmanager
def stock_crypten(provider: str, rows: Tensor, fixed: Tensor, threads: int) -> Iterator[Contender]:
    """CrypTen as shipped: share X, matrix product with the shared Y, `get_plain_text`; provider "TFP" or "TTP".

    The bytes are CrypTen's own count (`communicator.verbose`) of one product that is not timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{Path(folder) / 'rendezvous'}"
        ranks = range(3 if provider == "TTP" else 2)
        pipes = [_SPAWN.Pipe() for _ in ranks]
        processes = [
            _SPAWN.Process(target=_crypten_rank, args=(rank, provider, rendezvous, pipes[rank][1], threads))
            for rank in ranks
        ]
        for process in processes:
            process.start()
        try:
            # Each rank gets its own input; CrypTen wants a tensor of the same size at the other one.
            exact = fixed.double()
            pipes[0][0].send((rows.numpy(), tuple(fixed.shape)))
            pipes[1][0].send((tuple(rows.shape), (exact - exact.mean()).float().numpy()))

            def product(verbose: bool = False) -> list[Any]:
                for end, _ in pipes[:2]:
                    end.recv()  # ready
                for end, _ in pipes[:2]:
                    end.send("verbose" if verbose else "go")
                return [end.recv() for end, _ in pipes[:2]]

            counted = product(verbose=True)

            def timed() -> tuple[float, Tensor]:
                answers = product()
                return max(seconds for seconds, _, _ in answers), torch.from_numpy(answers[0][1])

            # An all_reduce counts one tensor sent and one received; between two ranks, half each way.
            up, down = (count / 2 for _, _, count in counted)
            where = f"{len(processes)} processes over gloo: 2 ranks" + (", third party" if provider == "TTP" else "")
            name = f"crypten-{provider.lower()}"
            yield Contender(name, where, fixed.numel(), rows.shape[0], timed, lambda: Traffic(up, down, 0.0, 0))
            for end, _ in pipes[:2]:
                end.recv()
                end.send("stop")
        finally:
            _end(processes)


def _crypten_rank(rank: int, provider: str, rendezvous: str, pipe: Connection, threads: int) -> None:
    """One rank of stock CrypTen; rank 2 is its third party."""
    from ppir_torch.joint.crypten_link import crypten  # CrypTen itself, with the alias that new torch needs

    torch.set_num_threads(threads)
    os.environ |= {"RENDEZVOUS": rendezvous, "WORLD_SIZE": "2", "RANK": str(rank), "DISTRIBUTED_BACKEND": "gloo"}
    crypten.cfg.mpc.provider = provider
    if rank == 2:
        crypten.mpc.provider.TTPServer()
        return
    crypten.init()
    own = [torch.zeros(v) if isinstance(v, tuple) else torch.from_numpy(v) for v in pipe.recv()]
    operand = crypten.cryptensor(own[1], src=1)
    while True:
        pipe.send("ready")
        command = pipe.recv()
        if command == "stop":
            break
        crypten.cfg.communicator.verbose = command == "verbose"
        crypten.reset_communication_stats()
        started = time.perf_counter()
        result = crypten.cryptensor(own[0], src=0).matmul(operand).get_plain_text()
        seconds = time.perf_counter() - started
        count = crypten.communicator.get().get_communication_stats()["bytes"]
        pipe.send((seconds, result.numpy(), count))
    crypten.uninit()


@contextmanager
def ckks_v1(rows: Tensor, fixed: Tensor, threads: int) -> Iterator[Contender]:
    """The published code's product: CKKS of degree 4,096, J in vectors of 128, vector times matrix by rotations, added.

    Its own parameters ([30, 24, 24, 30], scale 2^24, symmetric). Two things in its favour: J is encrypted once and not
    in every iteration, and rescaling is off, without which TenSEAL is wrong by a factor of 1 + 2^-10.
    """
    import numpy as np
    import tenseal as ts

    context = ts.context(
        ts.SCHEME_TYPE.CKKS,
        4096,
        coeff_mod_bit_sizes=[30, 24, 24, 30],
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=threads,
    )
    context.global_scale = 2.0**24
    context.auto_rescale = False
    context.generate_galois_keys()
    exact = fixed.double()
    chunks = [part.numpy() for part in torch.split(exact - exact.mean(), CKKS_CHUNK)]
    matrices = [part.T.numpy() for part in torch.split(rows.double(), CKKS_CHUNK, dim=1)]
    encrypted = [ts.ckks_vector(context, part) for part in chunks]
    keys = context.serialize(False, False, True, False)
    once = len(keys) + sum(len(vector.serialize()) for vector in encrypted)
    sizes: list[int] = []

    def product() -> tuple[float, Tensor]:
        started = time.perf_counter()
        total = encrypted[0].mm(matrices[0])
        for vector, matrix in zip(encrypted[1:], matrices[1:], strict=True):
            total = total + vector.mm(matrix)
        reply = total.serialize()  # party_1 -> party_2
        answer = np.array(ts.ckks_vector_from(context, reply).decrypt())
        seconds = time.perf_counter() - started
        sizes.append(len(reply))
        return seconds, torch.from_numpy(answer)

    def traffic() -> Traffic:
        return Traffic(sum(sizes) / len(sizes), 8.0 * rows.shape[0], 0.0, once)

    yield Contender("ckks-v1", "1 process, parties in turn", fixed.numel(), rows.shape[0], product, traffic)


def _end(processes: list[Any]) -> None:
    for process in processes:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
