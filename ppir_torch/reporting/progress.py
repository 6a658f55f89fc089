"""Progress on the terminal: level, iteration, loss, bytes. On a pipe: one line a level."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from ..registration.result import LevelIteration
from .console import say_meanwhile

__all__ = ["Progress"]


class Progress:
    """Context manager whose `show` is the observer of `register_images`.

    Args:
        label: shown first; the backend's name.
        bytes_sent: the bytes this process has sent so far.
    """

    def __init__(self, label: str, bytes_sent: Callable[[], int] = lambda: 0) -> None:
        self._label, self._bytes_sent = label, bytes_sent
        self._console = Console(stderr=True)
        self._last: LevelIteration | None = None
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bar.start()
        self._task = self._bar.add_task(f"{self._label:>6}", total=None, state="setting up")
        return self

    def show(self, event: LevelIteration) -> None:
        """Called at every iteration."""
        if self._last is not None and event.level != self._last.level:
            self._print_level(self._last)
        self._last = event
        state = f"level 1/{event.shrink}  iteration {event.iteration.number}  {_figures(event, self._bytes_sent())}"
        self._bar.update(self._task, total=event.levels, completed=event.level, state=state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._bar.update(self._task, completed=self._last.level + 1)
            self._print_level(self._last)
        with suppress(OSError):  # the terminal may be gone, the result must not go with it
            self._bar.stop()

    def _print_level(self, event: LevelIteration) -> None:
        if not self._console.is_terminal:
            count = event.iteration.number
            line = f"{self._label}: level 1/{event.shrink}, {count} iterations, {_figures(event, self._bytes_sent())}"
            say_meanwhile(line)


def _figures(event: LevelIteration, sent: int) -> str:
    return f"loss {event.iteration.value:.6g}  {event.seconds:.1f} s" + (f"  {sent / 1e6:.1f} MB sent" if sent else "")
