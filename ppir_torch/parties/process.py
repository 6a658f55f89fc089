"""The main program of one party's process: `python -m ppir_torch.parties.process ROLE --links ... < given.json`.

It knows its own configuration, its ends of the links and their keys (standard input, see `given`), and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path

from ..errors import PpirError
from ..interruption import Interrupted, end_with_starter, no_more_interrupts, raise_interrupts
from .given import Given
from .reports import PartyReport

__all__ = ["main"]


def main() -> int:
    """Run one role; returns its exit code (0, or the error's: 2 for its own input, 3 for a lost peer).

    It ends when its standard input is closed: the program that started it is gone then.
    """
    parser = argparse.ArgumentParser(prog="ppir_torch.parties.process")
    parser.add_argument("role", choices=("party_1", "party_2", "dealer"))
    parser.add_argument("--links", required=True, help="JSON: peer -> descriptors of the sockets that are inherited")
    parser.add_argument("--session", required=True, help="32 hexadecimal digits, the same for all")
    parser.add_argument("--report", required=True, type=Path, help="JSON file that this process writes at its end")
    arguments = parser.parse_args()
    sockets = {
        peer: tuple(socket.socket(fileno=number) for number in numbers)
        for peer, numbers in json.loads(arguments.links).items()
    }
    try:
        raise_interrupts()  # one that came while this process was starting is raised here
        given, session = Given.from_text(sys.stdin.readline()), bytes.fromhex(arguments.session)
        end_with_starter(sys.stdin.fileno())
        report = run_role(arguments.role, given, sockets, session, arguments.report.parent)
    except PpirError as error:
        report = PartyReport(arguments.role, str(error), error.exit_code, complete=False)
    except KeyboardInterrupt as error:
        stop = Interrupted.of(error)
        report = PartyReport(arguments.role, f"{arguments.role}: {stop}", stop.exit_code, complete=False)
    no_more_interrupts()
    report.write(arguments.report)
    return report.exit_code


def run_role(
    name: str, given: Given, sockets: dict[str, tuple[socket.socket, ...]], session: bytes, folder: Path
) -> PartyReport:
    """Run one role of a run in this process.

    Args:
        name: "party_1", "party_2" or "dealer".
        given: its part of the run.
        sockets: peer -> the inherited sockets of this role's end.
        session: 16 bytes, the same for all roles.
        folder: for its results.

    Raises:
        PpirError: a peer cannot be reached, or the results cannot be written.
    """
    # Here, not above: an interpreter that is started for `--help` loads no torch.
    from ..transport import load_transport
    from ..transport.interface import LinkEnd
    from ..transport.wiring import open_links
    from .session import run_session
    from .tasks import load_role

    role = load_role(given.task, name)(json.dumps(given.config))
    transport = load_transport(given.transport)
    ends = {peer: LinkEnd(description, sockets.get(peer, ())) for peer, description in given.links.items()}
    timeout_s = transport.timeout_s if role.patience_s is None else role.patience_s
    return run_session(role, open_links(transport, name, ends, given.keys, session, timeout_s), folder)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # All is written and closed. Taking torch apart would hold up the others: seconds on a busy machine.
    os._exit(code)
