"""Signals as one exception; a process that ends with the one that started it. Processes here import nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ppir_torch.interruption import Interrupted, best_so_far, when_closed

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def python(code: str, **options: Any) -> subprocess.Popen[str]:
    """An interpreter that runs `code`; what it prints can be read."""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_every_signal_is_one_exception(number: int, code: int) -> None:
    process = python(
        """
import time
from ppir_torch.interruption import Interrupted, raise_interrupts
raise_interrupts()
try:
    print("ready", flush=True)
    time.sleep(100)
except KeyboardInterrupt as error:
    stop = Interrupted.of(error)
    print(stop)
    raise SystemExit(stop.exit_code)
"""
    )
    assert line_of(process) == "ready"
    process.send_signal(number)
    said = line_of(process)
    assert process.wait(60) == code
    assert said == ("interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}")


def test_what_was_ignored_stays_ignored_but_sigterm() -> None:
    """`nohup ppir ...` and `ppir ... &` in a script."""
    ignored = (
        "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]"
    )
    process = python(
        f"""
{ignored}
import os, time
from ppir_torch.interruption import raise_interrupts
raise_interrupts()
for number in (signal.SIGINT, signal.SIGHUP):
    os.kill(os.getpid(), number)
try:
    print("still here", flush=True)
    time.sleep(100)
except KeyboardInterrupt as error:
    print(error)
"""
    )
    assert line_of(process) == "still here"
    process.send_signal(signal.SIGTERM)
    assert line_of(process) == "interrupted by SIGTERM"
    assert process.wait(60) == 0


def test_signals_wait_for_a_process_that_is_not_ready_yet() -> None:
    process = python(
        """
import subprocess, sys
from ppir_torch.interruption import pending_interrupts
CHILD = '''
import os, sys
print("started", flush=True)
sys.stdin.readline()  # the signal has come by then
from ppir_torch.interruption import raise_interrupts
try:
    raise_interrupts()
    print("nothing came")
except KeyboardInterrupt as error:
    print(error)
'''
with pending_interrupts():
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
child.terminate()
child.stdin.write("\\n")
child.stdin.flush()
print(child.stdout.readline().strip(), child.wait(60))
"""
    )
    assert line_of(process) == "interrupted by SIGTERM 0"
    assert process.wait(60) == 0


def test_while_something_is_kept_nothing_interrupts_but_a_second_ctrl_c() -> None:
    process = python(
        """
import os, signal
from ppir_torch.interruption import Interrupted, best_so_far, no_more_interrupts, raise_interrupts
raise_interrupts()
def work():
    raise Interrupted(signal.SIGTERM, result="the best")
print(best_so_far(work)[0])
for number in (signal.SIGTERM, signal.SIGHUP):
    os.kill(os.getpid(), number)
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("not interrupted")
except KeyboardInterrupt as error:
    print(error)
no_more_interrupts()
os.kill(os.getpid(), signal.SIGINT)
print("kept")
"""
    )
    assert [line_of(process) for _ in range(3)] == ["the best", "interrupted", "kept"]
    assert process.wait(60) == 0


def test_an_interruption_without_a_result_is_raised_on() -> None:
    def work() -> int:
        raise Interrupted(signal.SIGHUP)

    with pytest.raises(KeyboardInterrupt, match="interrupted by SIGHUP"):
        best_so_far(work)
    assert Interrupted.of(KeyboardInterrupt()).exit_code == 130
    assert str(Interrupted(signal.SIGTERM, kept="it is there")) == "interrupted by SIGTERM; it is there"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_process_ends_with_the_one_that_started_it(how: int | None, tmp_path: Path) -> None:
    """Killed, ended, or at its own end: nothing it could do at its end is needed."""
    starter = python(
        f"""
import subprocess, sys
CHILD = '''
import os, sys, time
from pathlib import Path
from ppir_torch.interruption import end_with_starter, raise_interrupts
raise_interrupts()
try:
    end_with_starter(sys.stdin.fileno())
    Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
    time.sleep(100)
except KeyboardInterrupt as error:
    Path({str(tmp_path / "said")!r}).write_text(str(error))
'''
child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, start_new_session=True)
import os, time
while not os.path.exists({str(tmp_path / "pid")!r}):
    time.sleep(0.01)
print("started", flush=True)
sys.stdin.readline()
""",
        stdin=subprocess.PIPE,
    )
    assert line_of(starter) == "started"
    if how is None:
        assert starter.stdin is not None
        starter.stdin.close()
    else:
        starter.send_signal(how)
    starter.wait(60)
    end = time.monotonic() + 60
    while not (tmp_path / "said").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "said").read_text() == "interrupted by SIGTERM"


def test_the_other_end_is_watched_and_nothing_is_read() -> None:
    reading, writing = os.pipe()
    closed = threading.Event()
    when_closed(reading, closed.set)
    os.write(writing, b"words")
    assert not closed.wait(0.05)
    assert os.read(reading, 10) == b"words"
    os.close(writing)
    assert closed.wait(60)
    os.close(reading)


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_the_command_is_ready_before_it_imports_anything(number: int, code: int) -> None:
    """A signal while a module is imported, where an exception could be caught by it or leave a traceback."""
    program = f"""
import os, sys
import ppir_torch.__main__ as entry
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), {int(number)})
            while True:
                pass
sys.meta_path.insert(0, Interrupting())
entry.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"ppir: interrupted{by}\n")
