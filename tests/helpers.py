"""What several tests ask."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

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
