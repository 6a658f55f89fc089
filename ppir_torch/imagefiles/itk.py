"""SimpleITK, loaded where it is used, and what it says when it cannot read.

>>> reason("Exception thrown in SimpleITK ReadImage\\nsitk::ERROR: no such thing")
'no such thing'
"""

from __future__ import annotations

from typing import Any

from ..errors import MissingExtra

__all__ = ["reason", "simpleitk"]


def simpleitk() -> Any:
    """The SimpleITK module, loaded where it is used; the core imports without it."""
    try:
        import SimpleITK
    except ImportError:
        raise MissingExtra("SimpleITK is not installed; `pip install SimpleITK` reads and writes image files") from None
    return SimpleITK


def reason(text: str) -> str:
    """The last line of one of its errors."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ") if lines else "unknown reason"
