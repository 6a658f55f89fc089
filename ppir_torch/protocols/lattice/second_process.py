"""A second process of party_1, for large encrypted operands: TenSEAL keeps Python's lock, so threads do not help it.

It belongs to party_1 alone: it gets party_1's rows and the ciphertexts that party_1 received, over a socket pair that
it inherits, and ends when that closes. Masks and floods of its products are drawn from a key of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LinkError
from ...joint.interface import OperandHeader, Pairs

if TYPE_CHECKING:
    from .bfv import Reply

__all__ = ["BfvHelper", "cores"]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


class BfvHelper:
    """party_1's handle on the second process; the same calls as `BfvProducts`, `reply` in two halves."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "ppir_torch.protocols.lattice.second_process", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._pipe = Connection(ours.detach())
        weakref.finalize(self, self._pipe.close)  # then the process ends by itself

    def set_key(self, public_key: bytes) -> None:
        """See `BfvProducts.set_key`."""
        self._send("set_key", public_key)

    def set_operand(self, header: OperandHeader) -> None:
        """See `BfvProducts.set_operand`."""
        self._send("set_operand", header)

    def add(self, number: int, file: bytes) -> None:
        """See `BfvProducts.add`."""
        self._send("add", number, file)

    def start(self, matrix: NDArray[np.int64], pairs: Pairs, blocks: Sequence[int]) -> None:
        """Begin the products of the pairs; see `BfvProducts.reply`."""
        rows = sorted({row for row, _ in pairs})
        # bfv's rows are below 2^31
        shifted = [(rows.index(row), column) for row, column in pairs]
        self._send("reply", matrix[rows].astype(np.int32), shifted, blocks)

    def finish(self) -> Reply:
        """The products begun.

        Raises:
            LinkError: what party_2 had sent is not a key or not a ciphertext; or the process is gone.
        """
        try:
            reply = self._pipe.recv()
        except (EOFError, OSError):
            raise LinkError("bfv: the second process of party_1 has ended") from None
        if isinstance(reply, LinkError):
            raise reply
        found: Reply = reply
        return found

    def _send(self, *command: Any) -> None:
        try:
            self._pipe.send(command)
        except OSError:
            raise LinkError("bfv: the second process of party_1 has ended") from None


def main() -> None:
    """The second process: do what is asked until the pipe closes."""
    from .bfv import BfvProducts

    pipe, work, problem = Connection(int(sys.argv[1])), BfvProducts(), None
    while True:
        try:
            name, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if name == "reply":
                matrix, pairs, blocks = arguments
                reply = problem or work.reply(matrix.astype(np.int64), pairs, blocks)
                pipe.send(reply)
                work.prepare(len(pairs))
            else:
                getattr(work, name)(*arguments)
        except LinkError as error:
            problem = error


if __name__ == "__main__":
    main()
