"""The `ppir` command, and `python -m ppir_torch`: ready for Ctrl-C before anything that takes time is imported."""

from __future__ import annotations

import os
import sys

from .interruption import SIGNALS, leave_on_interrupts

__all__ = ["main"]


def main() -> None:
    """Entry point; see `cli`."""
    leave_on_interrupts()
    from .cli import main as command

    try:
        command()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code - 128 in SIGNALS:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)  # all is written; taking torch apart takes seconds on a busy machine
        raise


if __name__ == "__main__":
    main()
