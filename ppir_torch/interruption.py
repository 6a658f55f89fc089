"""How a run is ended from outside: by Ctrl-C, by SIGTERM or SIGHUP, or because the program that started it is gone.

All of them become one exception in the main thread, a KeyboardInterrupt, which nothing that catches errors catches. Who
catches it keeps the best that there is and raises it again.

>>> stop = Interrupted(signal.SIGTERM)
>>> str(stop), stop.exit_code
('interrupted by SIGTERM', 143)
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

__all__ = [
    "Interrupted",
    "best_so_far",
    "end_with_starter",
    "leave_on_interrupts",
    "no_more_interrupts",
    "pending_interrupts",
    "raise_instead_of_leaving",
    "raise_interrupts",
    "when_closed",
]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_WORDS_S = 60.0  # a large image is written in less
T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """A run was ended from outside.

    Args:
        number: the signal; Ctrl-C is SIGINT.
        result: what there was by then, for who catches it; None where there was nothing.
        kept: where that lies, for who reads the line.
    """

    def __init__(self, number: int = signal.SIGINT, result: Any = None, kept: str = "") -> None:
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        super().__init__(f"interrupted{by}{kept and '; '}{kept}")
        self.number, self.result = number, result

    @classmethod
    def of(cls, error: KeyboardInterrupt) -> Interrupted:
        """The same of a KeyboardInterrupt of Python's own."""
        return error if isinstance(error, cls) else cls()

    @property
    def exit_code(self) -> int:
        """As shells have it: 128 and the signal's number."""
        return 128 + self.number


def raise_interrupts() -> None:
    """From now on the three signals raise `Interrupted` in the main thread, those that were held back as well.

    A signal that this process was told to ignore (`nohup`, a job in the background) stays ignored; SIGTERM does not: by
    it a process is asked to end.
    """
    for number in SIGNALS:
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)


def leave_on_interrupts() -> None:
    """From now on the three signals end the program at once, with a line: while there is nothing yet to keep.

    An exception in the middle of imports, or of another package's command line, would not always arrive.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"ppir: {Interrupted(number)}\n".encode())
    os._exit(128 + number)


def raise_instead_of_leaving() -> None:
    """The signals that would end the program at once raise `Interrupted` from now on; others are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) is _leave:
            signal.signal(number, _raise)


def no_more_interrupts(but: int | None = None) -> None:
    """From now on none of the signals that `raise_interrupts` raises does: what is being kept is kept whole.

    Args:
        but: a signal that still does: of a person who does not want to wait.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if number != but and signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def pending_interrupts() -> Iterator[None]:
    """What is started inside has the three signals held back until it says `raise_interrupts`.

    Without that a signal in the seconds in which it imports would end it with a traceback, or without a word.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def best_so_far(work: Callable[[], T]) -> tuple[T, Interrupted | None]:
    """What the work gives; where it is interrupted what it has by then, and the interruption, to be raised again.

    Another SIGTERM or SIGHUP does not hinder what follows, which is to write it down; another Ctrl-C does.

    >>> best_so_far(lambda: 3)
    (3, None)
    """
    try:
        return work(), None
    except Interrupted as stop:
        if stop.result is None:
            raise
        no_more_interrupts(but=signal.SIGINT)
        return stop.result, stop


def when_closed(descriptor: int, act: Callable[[], None]) -> None:
    """Call `act` in a thread of its own when the other end of a pipe or socket is closed; nothing is read from it."""

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # hang-ups are reported without being asked for, and nothing else is
        poll.poll()
        act()

    threading.Thread(target=watch, name=f"watch-{descriptor}", daemon=True).start()


def end_with_starter(descriptor: int) -> None:
    """End this process as SIGTERM does when the program that started it is gone, however that ended.

    Args:
        descriptor: of a pipe whose other end that program alone holds, and never closes.
    """

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_WORDS_S)
        os._exit(128 + signal.SIGTERM)

    when_closed(descriptor, end)
