"""A process that has imported everything and opened nothing, and forks one party for each request.

A party's process takes seconds to import torch and CrypTen, and milliseconds to fork. What it forks runs the same
`main()` of `ppir_torch.parties.process`, with arguments, standard input, sockets and exit code of its own; the tests
that start real interpreters (test_isolation.py, and one run of each protocol) show that nothing else matters.

    python zygote.py CONTROL_DESCRIPTOR
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any


def serve(control: socket.socket) -> None:
    """Answer requests until the tests close their end."""
    import SimpleITK  # noqa: F401
    import tenseal.sealapi  # noqa: F401

    import ppir_torch.images
    import ppir_torch.parties.process
    import ppir_torch.parties.tasks.fixed_images
    import ppir_torch.parties.tasks.fixed_points
    import ppir_torch.parties.tasks.moving_images
    import ppir_torch.parties.tasks.moving_points
    import ppir_torch.protocols.crypten_link
    import ppir_torch.protocols.lattice.bfv
    import ppir_torch.protocols.spdz
    import ppir_torch.transport  # noqa: F401

    codes: dict[int, int] = {}
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 8)
        if not data:
            return
        request = json.loads(data)
        if "wait" in request:
            pid = request["wait"]
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                codes.update({pid: os.waitstatus_to_exitcode(status)} if done else {})
            answer: Any = codes.get(pid)
        else:
            answer = os.fork()
            if answer == 0:
                control.close()
                _become_party(request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        control.sendall(json.dumps(answer).encode())


def _become_party(request: dict[str, Any], descriptors: list[int]) -> None:
    code = 1
    try:
        from ppir_torch.parties.process import main

        signal.signal(signal.SIGINT, signal.SIG_DFL)
        role, flag, links, *rest = request["arguments"]
        # The descriptors have other numbers here than in the process that asked.
        here = iter(descriptors)
        numbers = {peer: [next(here) for _ in theirs] for peer, theirs in json.loads(links).items()}
        sys.argv = ["process", role, flag, json.dumps(numbers), *rest]
        # Its standard input stays open, as that of a party whose starter lives.
        reading, writing = os.pipe()
        os.write(writing, f"{request['stdin']}\n".encode())
        sys.stdin = os.fdopen(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
