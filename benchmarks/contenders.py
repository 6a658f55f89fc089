"""The contenders of products.py. Each is a context manager that yields a `Contender`, ready for one `Work`.

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
from ppir_torch.joint.bounds import Pairs, all_pairs
from ppir_torch.joint.columns import IMAGE, FixedColumns
from ppir_torch.joint.header import ROW_BITS, OperandHeader
from ppir_torch.joint.interface import release_all
from ppir_torch.joint.operands import PrivateOperand
from ppir_torch.joint.public_map import PublicMap
from ppir_torch.joint.quantise import quantise_columns
from ppir_torch.protocols import load_protocol
from ppir_torch.registration.request import map_of
from ppir_torch.sampling import Sample
from ppir_torch.transforms import ControlLattice
from ppir_torch.transport.wiring import link_keys
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link
from ppir_torch.wire.payload import pack, unpack

__all__ = ["CKKS_CHUNK", "Contender", "Traffic", "Work", "ckks_v1", "private", "stock_crypten"]

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
    results: int
    product: Callable[[], tuple[float, Tensor]]
    traffic: Callable[[], Traffic]


@dataclass(frozen=True)
class Work:
    """The products of one iteration: of rows X (R, n) with columns Y (C, n), for the pairs.

    `of_iteration` makes the three ways in which one affine iteration can be had: "direct" (P + 1 rows, one column),
    "moments" (the same numbers from D + 1 rows and D + 1 columns) and "inverse" (one row, P + 1 columns: the
    inverse-compositional numbers, of the fixed image's own gradient).
    """

    name: str
    rows: Tensor
    columns: Tensor
    pairs: Pairs
    public_map: PublicMap | None = None  # then the product is that of a control lattice, all rows with one column

    def exact(self) -> Tensor:
        """In float64."""
        if self.public_map is not None:
            fields = self.public_map.adjoint(self.rows[:-1] * self.columns)
            return torch.cat([fields.flatten(), (self.rows[-1:].double() @ self.columns[0].double())])
        return torch.stack([self.rows[r].double() @ self.columns[c].double() for r, c in self.pairs])

    def part(self, points: int) -> Work:
        """The same of the first points only."""
        return Work(self.name, self.rows[:, :points], self.columns[:, :points], self.pairs)

    @staticmethod
    def of_iteration(points: int, dimension: int, seed: int) -> dict[str, Work]:
        """Random gradients and images (no zero block to skip), the same for all three."""
        generator = torch.Generator().manual_seed(seed)
        moving, fixed, slopes, own = (torch.randn(n, points, generator=generator) for n in (1, 1, dimension, dimension))
        place = torch.cat([torch.ones(1, points), 2 * torch.rand(dimension, points, generator=generator) - 1])
        count = dimension + 1
        direct = torch.cat([*(slope * place for slope in slopes), moving])
        inverse = torch.cat([fixed, *(slope * place for slope in own)])
        by_moments = [(d, j) for d in range(dimension) for j in range(count)] + [(dimension, 0)]
        return {
            "direct": Work("direct", direct, fixed, all_pairs(len(direct), 1)),
            "moments": Work("moments", torch.cat([slopes, moving]), fixed * place, by_moments),
            "inverse": Work("inverse", moving, inverse, all_pairs(1, len(inverse))),
        }

    @staticmethod
    def of_lattice(grid: Grid, spacing_mm: float, seed: int) -> Work:
        """One iteration of a free-form deformation: the gradient's D rows and the warped image, mapped."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(grid.dimension + 1, grid.count, generator=generator)
        fixed = torch.randn(1, grid.count, generator=generator)
        public_map = map_of(ControlLattice(grid, spacing_mm), grid, Sample(None, None))
        return Work("lattice", rows, fixed, [], public_map)


@contextmanager
def private(name: str, work: Work, threads: int) -> Iterator[Contender]:
    """A protocol of this package; the product is what a loss calls: float rows in, float results out.

    Args:
        name: of the protocol.
        work: its rows stay in this process, its columns go to party_2's alone (over its pipe, not timed).
        threads: of each process.
    """
    entry, session = load_protocol(name), secrets.token_bytes(16)
    one, two = socket.socketpair()
    streams = {"party_1": {"party_2": one}, "party_2": {"party_1": two}, "dealer": {}}
    if entry.dealer is not None:
        for role in ("party_1", "party_2"):
            streams[role]["dealer"], streams["dealer"][role] = socket.socketpair()
    keys = link_keys(streams)
    roles = [role for role in ("party_2", "dealer") if streams[role]]
    pipes = {role: _SPAWN.Pipe() for role in roles}
    processes = [
        _SPAWN.Process(target=_serve, args=(role, name, streams[role], session, keys[role], pipes[role][1], threads))
        for role in roles
    ]
    for process in processes:
        process.start()
    for role in roles:
        for stream in streams[role].values():
            stream.close()
    links = {
        peer: Link(stream, session, keys["party_1"][peer], "party_1", peer, _TIMEOUT_S)
        for peer, stream in streams["party_1"].items()
    }
    link, dealer = links["party_2"], links.get("dealer")
    try:
        side = entry.moving_side(link, dealer, "cpu")
        public_map = None if work.public_map is None else side.carried(work.public_map)
        about_map = None if public_map is None else public_map.to_message()
        pipes["party_2"][0].send((work.columns.numpy(), work.rows.shape[0], about_map))
        header = OperandHeader.from_meta(unpack(link.receive(MessageKind.OPERAND).payload)[0])
        remote = side.open(header) if public_map is None else side.open_mapped(header, public_map)
        operand = PrivateOperand(
            grid=Grid((header.points, 1)),
            sample=Sample(None, None),
            columns=IMAGE,
            remote=remote,
            channel=link,
            sample_mean_square=0.0,
            level_mean_square=0.0,
        )
        count = 0

        def product() -> tuple[float, Tensor]:
            nonlocal count
            count += 1
            started = time.perf_counter()
            if work.public_map is None:
                _, result = operand.multiply(work.rows, work.pairs)
            else:
                _, fields, total = operand.project(work.rows)
                result = torch.cat([fields.flatten(), torch.tensor([total], dtype=torch.float64)])
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
        results = len(work.pairs) if work.public_map is None else work.public_map.results(len(work.rows))
        yield Contender(f"{name} {work.name}", where, header.points, results, product, traffic)
        for end in links.values():
            end.send(MessageKind.FINISH)
    finally:
        for end in links.values():
            end.close()
        _end(processes)


def _serve(
    role: str,
    name: str,
    streams: dict[str, socket.socket],
    session: bytes,
    keys: dict[str, bytes],
    pipe: Connection,
    threads: int,
) -> None:
    """party_2 or the dealer, in its own process; answers "count" with its bytes that party_1 cannot count."""
    import threading

    torch.set_num_threads(threads)
    entry = load_protocol(name)
    links = {peer: Link(stream, session, keys[peer], role, peer, _TIMEOUT_S) for peer, stream in streams.items()}
    if role == "dealer":
        assert entry.dealer is not None
        ends = (links["party_1"], links["party_2"])
        threading.Thread(target=_count, args=(pipe, [links["party_2"]]), daemon=True).start()
        entry.dealer(*ends)
        return
    values, rows, about_map = pipe.recv()
    public_map = None if about_map is None else PublicMap.from_message(*about_map)
    threading.Thread(target=_count, args=(pipe, [e for p, e in links.items() if p != "party_1"]), daemon=True).start()
    fixed = FixedColumns(torch.from_numpy(values), 0.0, 0.0)
    link = links["party_1"]
    side = entry.fixed_side(link, links.get("dealer"), "cpu")
    row_bits, bits = ROW_BITS, side.column_bits(values.shape[1])
    if public_map is not None:
        row_bits, bits = side.mapped_bits(public_map)
    columns, scales = quantise_columns(fixed, IMAGE, bits)
    energy = max(int(column.square().sum()) for column in columns)
    header = OperandHeader(
        number=0,
        points=columns.shape[1],
        rows=rows,
        scale=scales[0],
        offset=0.0,
        max_abs=int(columns.abs().max()),
        energy=energy,
        columns=len(scales),
        further_scales=scales[1:],
        row_bits=row_bits,
    )
    link.send(MessageKind.OPERAND, pack(header.to_meta()))
    operand = side.open(header, columns) if public_map is None else side.open_mapped(header, columns, public_map)
    while (request := link.receive()).kind is not MessageKind.FINISH:
        operand.answer(request, release_all)


def _count(pipe: Connection, links: list[Link]) -> None:
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        once = sum(link.set_up_bytes_sent for link in links)
        pipe.send((sum(link.bytes_sent for link in links) - once, once))


@contextmanager
def stock_crypten(provider: str, work: Work, threads: int) -> Iterator[Contender]:
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
            rows, fixed = work.rows, work.columns[0]
            pipes[0][0].send((rows.numpy(), tuple(fixed.shape)))
            pipes[1][0].send((tuple(rows.shape), fixed.numpy()))

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
    from ppir_torch.protocols.crypten_link import crypten  # CrypTen itself, with the alias that new torch needs

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
def ckks_v1(work: Work, threads: int) -> Iterator[Contender]:
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
    rows, fixed = work.rows, work.columns[0]
    chunks = [part.numpy() for part in torch.split(fixed.double(), CKKS_CHUNK)]
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
