"""What only lists, explains or verifies starts without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Genkit

_PROBE = """
import json, sys
from genkit.cli import main
status = main(sys.argv[1:])
heavy = [name for name in ("torch", "torchvision", "matplotlib", "tensorboard", "mlflow") if name in sys.modules]
print("PROBE", json.dumps([status, heavy]))
"""


def _probe(*arguments: object) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", _PROBE, *map(str, arguments)]
    lines = subprocess.check_output(command, text=True, stderr=subprocess.STDOUT).splitlines()
    status, heavy = json.loads(lines[-1].removeprefix("PROBE "))
    return status, heavy


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["models"],
        ["models", "--json"],
        ["plugins"],
        ["components"],
        ["runtimes"],
        ["new", "plugin", "--help"],
    ],
    ids=" ".join,
)
def test_listing_never_imports_torch(arguments: list[str]) -> None:
    assert _probe(*arguments) == (0, [])


def test_verify_never_imports_torch(genkit: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    genkit("export", mnist_run, "--out", tmp_path / "bundle")
    assert _probe("verify", tmp_path / "bundle") == (0, [])
    (tmp_path / "bundle" / "decoder.onnx").write_bytes(b"not a graph")
    assert _probe("verify", tmp_path / "bundle") == (1, [])


def test_the_probe_would_notice_torch(mnist_run: Path, tmp_path: Path) -> None:
    status, heavy = _probe("sample", mnist_run, "--out", tmp_path / "s.png")
    assert status == 0
    assert "torch" in heavy


def test_importing_genkit_imports_no_torch_and_every_public_name_resolves() -> None:
    script = """
import sys, genkit
assert not {"torch", "pydantic", "rich"} & set(sys.modules)
missing = [name for name in genkit.__all__ if getattr(genkit, name, None) is None]
print(missing)
"""
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
