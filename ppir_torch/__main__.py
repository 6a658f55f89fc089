"""The `ppir` command, and `python -m ppir_torch`: ready for Ctrl-C before anything that takes time is imported."""

from __future__ import annotations

import sys

from .interruption import Interrupted, raise_interrupts

__all__ = ["main"]


def main() -> None:
    """Entry point; see `cli`."""
    raise_interrupts()
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt as error:  # while `cli` was imported: a command has lines of its own
        stop = Interrupted.of(error)
        print(f"ppir: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
