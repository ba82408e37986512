"""Files that are whole or not there: written beside, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import platformdirs


def cache_directory() -> Path:
    """Where genkit keeps what it fetched: ``GENKIT_HOME``, else the platform's cache directory."""
    home = os.environ.get("GENKIT_HOME")
    return Path(home) if home else Path(platformdirs.user_cache_dir("genkit"))


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Makes ``path`` hold ``content``, or leaves it as it was.

    ``content`` is the bytes themselves, or a function that writes them to the path that it is given (which has the
    same ending). The directory must exist.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def directory_written_atomically(path: Path) -> Iterator[Path]:
    """An empty directory beside ``path`` to fill. It becomes ``path``, which must not exist, when the block ends."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for member in sorted(temporary.rglob("*"), reverse=True):
            _sync(member)
        _sync(temporary)
        os.rename(temporary, path)
    finally:
        rmtree(temporary, ignore_errors=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
