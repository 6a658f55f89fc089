"""One joint product R = X Y by SecretFlow SPU: `spu_worker.py INPUT.npz PROTOCOL REPEATS`.

Run with the python of spu_env.sh; prints one JSON line. INPUT holds X (P + 1, N) and Y (N), float32. PROTOCOL is

- semi2k: Beaver triples of which rank 0 holds all seeds (TrustedFirstParty, the default; its own source calls it
  unsafe): a baseline, for rank 0 can work out Y. The release's other providers: a third party's server, or refused;
- cheetah: two parties and nobody else, by lattice encryption and oblivious transfer.

Two ranks, each a process of its own over SPU's link on localhost, in the 64-bit ring. Rank 0 reads X alone and rank 1
Y alone, as private inputs (`experimental_enable_colocated_optimization`): no share of either is dealt. Y is handed to
the runtime once, before timing. Timed, as the slower of the two ranks from a common barrier: encode X and hand it over,
the product, the reveal to rank 0 alone (rank 1 sends its share of R). A first product is not counted. The bytes are
SPU's link statistics and the reveal's message; they leave out what the link carried before the first product. SPU's
pool has OMP_NUM_THREADS threads where that is set; its network has threads of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import sys
import tempfile
import time
from importlib import metadata
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

PROTOCOLS = ("semi2k", "cheetah")
RUN_AS = "2 processes over SPU's link (brpc) on localhost"
_TIMEOUT_MS = 3_600_000


class Failed(Exception):
    """What went wrong, in one line."""


def measure(path: str, protocol: str, repeats: int) -> dict[str, Any]:
    """Start both ranks, wait for both, and compare what rank 0 learnt with float64."""
    try:
        import numpy as np

        version = metadata.version("spu")
    except (ImportError, metadata.PackageNotFoundError):
        raise Failed(f"{sys.executable} has no spu (sh benchmarks/spu_env.sh, then its python)") from None
    x, y = read(path)
    truth = x.astype(np.float64) @ y.astype(np.float64)
    shape = x.shape
    del x, y
    with tempfile.TemporaryDirectory() as folder:
        reports = run_ranks((path, shape, protocol, repeats, free_ports(), folder))
        counted = [link_bytes(Path(folder) / f"spu{rank}.log", repeats + 1) for rank in (0, 1)]
    norm = np.linalg.norm(truth)
    errors = [float(np.linalg.norm(r - truth) / norm) for r in reports[0]["results"]] if norm else [None]
    sent: Any = None
    if all(counted):
        sent = [sum(c[1:]) / repeats + report["reveal_bytes"] for c, report in zip(counted, reports, strict=True)]
    return {
        "protocol": protocol,
        "run_as": RUN_AS,
        "points": shape[1],
        "rows": shape[0],
        "field": "FM64",
        "y_shared": "once before timing, as rank 1's private input",
        "revealed_to": "rank 0",
        "threads": int(os.environ["OMP_NUM_THREADS"]) if "OMP_NUM_THREADS" in os.environ else None,
        "seconds": [max(pair) for pair in zip(*(report["seconds"] for report in reports), strict=True)][1:],
        "of_which_encoding_x": reports[0]["encoding"][1:],
        "first_seconds": max(report["seconds"][0] for report in reports),
        "bytes_sent_per_product": sent,
        "first_bytes_sent": [c[0] for c in counted] if sent else None,
        "relative_error": max(errors) if norm else None,
        "peak_gb": [round(report["peak_gb"], 2) for report in reports],
        "version": version,
    }


def read(path: str) -> tuple[Any, Any]:
    """X and Y of the file, checked."""
    import numpy as np

    try:
        with np.load(path) as arrays:
            x, y = arrays["X"], arrays["Y"]
    except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(f"{path} is no npz file with arrays X and Y: {error}") from None
    if x.ndim != 2 or y.shape != x.shape[1:] or 0 in x.shape or x.dtype != np.float32 or y.dtype != np.float32:
        found = f"{x.dtype} {x.shape} and {y.dtype} {y.shape}"
        raise Failed(f"{path}: X must be float32 (P + 1, N) and Y float32 (N,), not {found}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise Failed(f"{path}: X and Y must be finite")
    return x, y


def run_ranks(arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Both ranks' reports; the first failure of one ends both."""
    spawn = get_context("spawn")  # fresh interpreters: nothing is inherited from the other rank
    pipes = [spawn.Pipe(duplex=False) for _ in (0, 1)]
    processes = [spawn.Process(target=rank_process, args=(rank, pipes[rank][1], *arguments)) for rank in (0, 1)]
    reports: dict[int, dict[str, Any]] = {}
    try:
        for process in processes:
            process.start()
        for _, end in pipes:
            end.close()
        while len(reports) < 2:
            waiting = {pipes[rank][0]: rank for rank in (0, 1) if rank not in reports}
            for pipe in connection.wait(list(waiting)):
                rank = waiting[pipe]
                try:
                    reports[rank] = pipe.recv()
                except EOFError:
                    processes[rank].join()
                    code = processes[rank].exitcode
                    raise Failed(f"rank {rank} ended with exit code {code}, without a result") from None
                if "error" in reports[rank]:
                    raise Failed(f"rank {rank}: {reports[rank]['error']}")
        for process in processes:
            process.join(30)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    return [reports[0], reports[1]]


def rank_process(rank: int, pipe: connection.Connection, *arguments: Any) -> None:
    """One rank; its report, or its error in one line, goes to the pipe, and what the libraries print to a file."""
    end_with_parent()
    log = os.open(Path(arguments[-1]) / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        report = products(rank, *arguments)
    except Exception as error:
        # SPU's messages go on with a stack trace.
        lines = str(error).split("stacktrace:")[0].removeprefix("what:")
        report = {"error": f"{type(error).__name__}: {' '.join(lines.split())[:500]}"}
    pipe.send(report)


def products(
    rank: int, path: str, shape: tuple[int, int], protocol: str, repeats: int, ports: list[int], folder: str
) -> dict[str, Any]:
    """One rank's products: its times, and at rank 0 the results."""
    import resource

    if "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault("YACL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import numpy as np
    import spu
    from spu import libspu
    from spu.utils import frontend

    logs = libspu.logging.LogOptions()
    logs.enable_console_logger = False
    logs.system_log_path = f"{folder}/spu{rank}.log"
    libspu.logging.setup_logging(logs)

    parties = libspu.link.Desc()
    parties.recv_timeout_ms = parties.http_timeout_ms = _TIMEOUT_MS
    for number, port in enumerate(ports):
        parties.add_party(f"rank{number}", f"127.0.0.1:{port}")
    config = spu.RuntimeConfig(protocol=spu.parse_protocol_kind(protocol.upper()), field=spu.FieldType.FM64)
    config.experimental_enable_colocated_optimization = True  # inputs stay with their owner
    config.enable_pphlo_profile = True  # logs the link's statistics after each product
    link = libspu.link.create_brpc(parties, rank)
    runtime, io = spu.Runtime(link, config), spu.Io(2, config)

    secret = spu.Visibility.VIS_SECRET
    shapes = [jax.ShapeDtypeStruct(shape, np.float32), jax.ShapeDtypeStruct(shape[1:], np.float32)]
    product, _ = frontend.compile(
        frontend.Kind.JAX, jax.numpy.dot, shapes, {}, ["x", "y"], [secret, secret], lambda _: ["r"]
    )

    def hand_over(name: str, owner: int, values: Any) -> None:
        runtime.set_var(name, io.make_shares(values, secret, owner)[rank])

    with np.load(path) as arrays:
        own = arrays["XY"[rank]]  # the other's is not read
    if rank == 0:
        hand_over("y", 1, np.zeros(shape[1:], np.float32))  # says no more than its shape
    else:
        hand_over("x", 0, np.zeros(shape, np.float32))
        hand_over("y", 1, own)

    seconds, encoding, results, message = [], [], [], b""
    for _ in range(1 + repeats):
        link.barrier()
        started = time.perf_counter()
        if rank == 0:
            hand_over("x", 0, own)
        encoding.append(time.perf_counter() - started)
        runtime.run(product)
        share = runtime.get_var("r")
        if rank == 0:
            results.append(io.reconstruct([share, pickle.loads(link.recv(1))]))
        else:
            message = pickle.dumps(share)
            link.send(0, message)
        seconds.append(time.perf_counter() - started)
    link.barrier()
    link.stop_link()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "seconds": seconds,
        "encoding": encoding,
        "results": results[1:],
        "reveal_bytes": len(message),
        "peak_gb": peak,
    }


def end_with_parent() -> None:
    """Let the kernel end this process with its parent, however that one ends."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def free_ports() -> list[int]:
    """Two ports of localhost that are free now."""
    sockets = [socket.socket() for _ in (0, 1)]
    try:
        for end in sockets:
            end.bind(("127.0.0.1", 0))
        return [end.getsockname()[1] for end in sockets]
    finally:
        for end in sockets:
            end.close()


def link_bytes(log: Path, count: int) -> list[int]:
    """Bytes that a rank sent in each product, as its runtime logged them; none if there are not `count` lines."""
    found = re.findall(r"Link details: total send bytes (\d+)", log.read_text()) if log.exists() else []
    return [int(number) for number in found] if len(found) == count else []


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[2] not in PROTOCOLS or not sys.argv[3].isdecimal() or int(sys.argv[3]) < 1:
        raise SystemExit(f"usage: spu_worker.py INPUT.npz {'|'.join(PROTOCOLS)} REPEATS (at least 1)")
    try:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    except (Failed, MemoryError) as error:
        raise SystemExit(f"spu_worker.py: {str(error) or 'out of memory'}") from None


if __name__ == "__main__":
    main()
