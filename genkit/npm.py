"""Packages of npm, which parts of genkit run or copy and never fetch."""

from __future__ import annotations

import os
from pathlib import Path

from genkit.errors import RuntimeMissing

NODE_MODULES = "GENKIT_NODE_MODULES"
"""Environment variable: the folder that packages are looked for in, and no other."""


def npm_package(name: str) -> Path:
    """The folder of a package: in ``GENKIT_NODE_MODULES`` where that is set, else in ``node_modules`` here or above.

    Raises:
        RuntimeMissing: where it is not there, with what installs it.
    """
    named, here = os.environ.get(NODE_MODULES), Path.cwd()
    folders = [Path(named)] if named else [folder / "node_modules" for folder in (here, *here.parents)]
    for folder in folders:
        if (folder / name / "package.json").is_file():
            return (folder / name).resolve()
    place = f"in {NODE_MODULES}={named}" if named else "installed"
    raise RuntimeMissing(f"{name} is not {place}: npm install {name}")
