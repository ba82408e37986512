"""Tools that some tests need and that do not come with Python.

Where one is missing, its tests are skipped, and the reason says what installs it. With GENKIT_REQUIRE_TOOLS=1, which
continuous integration sets, they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

NPM = {"onnxruntime-node": "1.30.0", "onnxruntime-web": "1.30.0"}
"""What is installed for one session of tests, into a directory of its own."""


def missing(tool: str, remedy: str) -> NoReturn:
    """Ends the test: it cannot do without ``tool``."""
    message = f"{tool} is missing: {remedy}"
    if os.environ.get("GENKIT_REQUIRE_TOOLS") == "1":
        pytest.fail(message)
    pytest.skip(message)


def command(*names: str, package: str) -> str:
    """The path of a program, which goes by one of ``names``."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or missing(names[0], f"apt-get install {package}, or what your system has in its place")


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's ``Browser``: the Chromium of this system, without a window."""
    program = command("chromium", "chromium-browser", "google-chrome", package="chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright", "pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


def install_npm(directory: Path) -> Path:
    """``directory/node_modules`` with the packages of ``NPM``."""
    npm = command("npm", package="npm")
    packages = [f"{name}@{version}" for name, version in NPM.items()]
    # Without the flag, and without a network beyond the registry, the package looks for CUDA libraries in vain.
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    _install([npm, "install", "--no-audit", "--no-fund", "--prefix", str(directory), *packages], environment)
    return directory / "node_modules"


def _install(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(command[-1], f"`{' '.join(command)}` fails: {done.stderr.strip()}")
