"""Files that are whole or not there: written beside, synced, renamed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import platformdirs

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's <fcntl.h> and <linux/fs.h>


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
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def directory_written_atomically(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty directory beside ``path`` to fill. It becomes ``path`` when the block ends, and is gone if it raises.

    ``path`` must not exist, unless ``replace`` is given: then the directory that stands there stays until that moment.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for member in sorted(temporary.rglob("*"), reverse=True):
            _sync(member)
        _sync(temporary)
        if replace and path.exists():
            _exchange(temporary, path)
        else:
            temporary.rename(path)
    finally:
        rmtree(temporary, ignore_errors=True)
    _sync(path.parent)


def discard_directory(path: Path) -> None:
    """Removes a directory so that no half of it is ever seen under its name."""
    doomed = path.with_name(f".{os.getpid()}.{path.name}")
    path.rename(doomed)
    rmtree(doomed)


def _exchange(new: Path, path: Path) -> None:
    """Puts ``new`` where ``path`` is, in one step where the system has one for it: then no moment is without either.

    Elsewhere the old one steps aside first, and comes back if the new one cannot be put.
    """
    if _swapped(new, path):
        return
    aside = path.with_name(f".{os.getpid()}.{path.name}.replaced")
    path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    rmtree(aside, ignore_errors=True)


def _swapped(one: Path, other: Path) -> bool:
    """Exchanges two names by Linux's renameat2, of which Python has no function; False where that cannot be done."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an older C library
        return False
    failed: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return failed == 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
