"""The command line shows the package's log; the package itself prints nothing."""

from __future__ import annotations

import logging

import pytest

from ppir_torch.reporting.console import show_log


def test_the_log_is_shown_once_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("ppir_torch")
    before, level = list(log.handlers), log.level
    try:
        show_log()
        show_log()
        logging.getLogger("ppir_torch.runs.images").info("backend auto: %s", "bfv")
        logging.getLogger("ppir_torch.runs.images").debug("too much")
        assert tuple(capsys.readouterr()) == ("", "backend auto: bfv\n")
    finally:
        log.handlers[:] = before
        log.setLevel(level)
