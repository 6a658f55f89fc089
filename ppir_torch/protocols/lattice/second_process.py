"""A second process of party_1, for large encrypted operands: TenSEAL keeps Python's lock, so threads do not help it.

It belongs to party_1 alone: it gets party_1's rows and the ciphertexts that party_1 received, over a socket pair that
it inherits, and ends when that closes. Masks and floods of its products are drawn from a key of its own.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LinkError, PeerLost
from ...interruption import when_closed
from ...joint.bounds import Pairs
from ...joint.header import OperandHeader
from .bfv_coefficients import BfvMovingCoefficientCipher
from .coefficient_products import Covered, OwnProducts, Products
from .packing import Layout

__all__ = ["SecondProcess", "SharedProducts", "cores"]

_ENDED = "bfv: the second process of party_1 has ended"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


class SecondProcess:
    """party_1's handle on the second process. It works on several operands, and forgets those that are dropped.

    Args:
        public_key: party_2's, as SEAL wrote it.

    Attributes:
        process: that runs `main`.
    """

    def __init__(self, public_key: bytes) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "ppir_torch.protocols.lattice.second_process", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._pipe = Connection(ours.detach())
        self._numbers = itertools.count()
        self._dropped: deque[int] = deque()
        weakref.finalize(self, self._pipe.close)  # then the process ends by itself
        self._send("set_key", public_key)

    def open(self, layout: Layout) -> int:
        """Begin an operand; returns its number."""
        number = next(self._numbers)
        self._send("open", number, layout)
        return number

    def drop(self, number: int) -> None:
        """Have an operand forgotten, before anything else is done there. Sends nothing: a finalizer may call it."""
        self._dropped.append(number)

    def add(self, operand: int, number: int, file: bytes) -> None:
        """Hand over ciphertext `number` of an operand; see `Products.add`."""
        self._send("add", operand, number, file)

    def start(self, operand: int, matrix: NDArray[np.int64], pairs: Pairs, blocks: Sequence[int]) -> None:
        """Begin the products of the pairs with an operand; see `Products.covered`."""
        rows = sorted({row for row, _ in pairs})
        shifted = [(rows.index(row), column) for row, column in pairs]
        self._send("covered", operand, matrix[rows].astype(np.int32), shifted, blocks)  # bfv's rows are below 2^31

    def finish(self) -> Covered:
        """The products begun.

        Raises:
            LinkError: what party_2 had sent is not a key or not a ciphertext.
            PeerLost: the process is gone.
        """
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise PeerLost(_ENDED) from None
        if isinstance(answer, LinkError):
            raise answer
        covered: Covered = answer
        return covered

    def _send(self, *command: Any) -> None:
        try:
            while self._dropped:
                self._pipe.send(("drop", self._dropped.popleft()))
            self._pipe.send(command)
        except OSError:
            raise PeerLost(_ENDED) from None


class SharedProducts(Products):
    """The work of both processes: of one row each has its columns, else both have all columns and share the rows.

    Args:
        own: the work of this process, whose layout has one row in a polynomial.
        second: the other process.
        header: of the operand.
    """

    def __init__(self, own: OwnProducts, second: SecondProcess, header: OperandHeader) -> None:
        self.layout = own.layout
        self._own, self._second = own, second
        self._operand = second.open(own.layout)
        weakref.finalize(self, second.drop, self._operand)
        every, first = range(header.columns), (header.columns + 1) // 2
        self._by_columns = header.rows == 1
        self._ours, self._theirs = (every[:first], every[first:]) if self._by_columns else (every, every)

    def add(self, number: int, file: bytes) -> None:
        """See `Products`."""
        column = number // self.layout.blocks
        if column in self._theirs:
            self._second.add(self._operand, number, file)
        if column in self._ours:
            self._own.add(number, file)

    def covered(self, matrix: NDArray[np.int64], pairs: Pairs, blocks: Sequence[int]) -> Covered:
        """See `Products`."""
        theirs = self.share(pairs)
        mine = [number for number in range(len(pairs)) if number not in theirs]
        if not theirs:
            return self._own.covered(matrix, pairs, blocks)
        self._second.start(self._operand, matrix, [pairs[number] for number in theirs], blocks)
        if not mine:
            return self._second.finish()
        covered = self._own.covered(matrix, [pairs[number] for number in mine], blocks)
        return covered.joined(self._second.finish()).ordered(mine + theirs)

    def prepare(self) -> None:
        """See `Products`; the second process does so by itself."""
        self._own.prepare()

    def share(self, pairs: Pairs) -> list[int]:
        """The numbers of the pairs that the other process computes: its columns, or the later rows, half the work."""
        if self._by_columns:
            return [number for number, (_, column) in enumerate(pairs) if column in self._theirs]
        rows = sorted({row for row, _ in pairs})
        # A row costs the transforms of its plaintexts, about 1.7 products, beside its products.
        work = {row: 1.7 + sum(other == row for other, _ in pairs) for row in rows}
        later = [row for row in rows if 2 * sum(work[r] for r in rows if r < row) >= sum(work.values())]
        return [number for number, (row, _) in enumerate(pairs) if row in later]


class Worker:
    """What the second process does; each method is one of `SecondProcess`' commands."""

    def __init__(self) -> None:
        self._cipher = BfvMovingCoefficientCipher()
        self._operands: dict[int, OwnProducts] = {}

    def set_key(self, public_key: bytes) -> None:
        """Take party_2's public key."""
        self._cipher.set_key(public_key)

    def open(self, number: int, layout: Layout) -> None:
        """Begin an operand."""
        self._operands[number] = OwnProducts(self._cipher, layout)

    def drop(self, number: int) -> None:
        """Forget an operand."""
        del self._operands[number]

    def add(self, operand: int, number: int, file: bytes) -> None:
        """Take a ciphertext."""
        self._operands[operand].add(number, file)

    def covered(self, operand: int, matrix: NDArray[np.int32], pairs: Pairs, blocks: Sequence[int]) -> Covered:
        """The products of the pairs."""
        return self._operands[operand].covered(matrix.astype(np.int64), pairs, blocks)

    def prepare(self, operand: int) -> None:
        """Make ready what another product like the last one needs."""
        self._operands[operand].prepare()


def main() -> None:
    """The second process: do what is asked until the pipe closes."""
    descriptor = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it has nothing to keep, and nothing to say
    when_closed(descriptor, lambda: os._exit(0))  # in the middle of a product, too
    pipe, worker, problem = Connection(descriptor), Worker(), None
    while True:
        try:
            name, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if name == "covered":
                pipe.send(problem or worker.covered(*arguments))
                worker.prepare(arguments[0])
            else:
                getattr(worker, name)(*arguments)
        except LinkError as error:
            problem = error


if __name__ == "__main__":
    main()
