"""What several tests ask."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

Genkit = Callable[..., subprocess.CompletedProcess[str]]
"""``genkit("train", "--model", ...)`` as a process of its own; raises unless ``check=False``."""


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a whole, readable picture."""
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def tree(path: Path) -> dict[str, str]:
    """The digest of every file below ``path``."""
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block, so that a test that fails in it ends."""
    with subprocess.Popen([*map(str, command)], text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()
