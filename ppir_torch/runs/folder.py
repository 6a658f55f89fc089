"""The folder of a run: what it will write there must not be what it reads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError

__all__ = ["made_folder", "refuse_overwriting", "scratch_folder"]


def refuse_overwriting(output: Path, written: Iterable[str], read: Mapping[str, Path | None]) -> None:
    """Refuse a folder in which the run would overwrite one of its own inputs.

    Args:
        output: the folder.
        written: names of the files that the run writes there.
        read: field of the configuration -> the file that it names.

    Raises:
        ConfigError: one of them would be overwritten.
    """
    taken = {(output / name).resolve() for name in written}
    for field, path in read.items():
        if path is not None and path.resolve() in taken:
            raise ConfigError(f"{field}: '{path}', the run would overwrite it; take another output folder")


def made_folder(output: Path, without: Iterable[str] = ()) -> Path:
    """The folder, made where there is none, without these files of an earlier run.

    Raises:
        ConfigError: it cannot be written.
    """
    with _writable(output):
        output.mkdir(parents=True, exist_ok=True)
        for name in without:
            (output / name).unlink(missing_ok=True)
    return output


def scratch_folder(output: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder inside of the run's, for files that are not whole yet; it goes with the context that it is entered in.

    Raises:
        ConfigError: the run's folder cannot be written.
    """
    with _writable(output):
        return tempfile.TemporaryDirectory(prefix=".run-", dir=made_folder(output))


@contextmanager
def _writable(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"output: '{output}', a folder that can be written is needed ({error.strerror})") from None
