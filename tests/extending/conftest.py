"""The toy package is seen by programs that are started with it on PYTHONPATH, and by nothing in this process."""

from __future__ import annotations

collect_ignore = ["site"]
