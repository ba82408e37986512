"""What only lists, explains or verifies starts without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import Genkit

HEAVY = ("torch", "torchvision", "matplotlib", "tensorboard", "mlflow")
"""What only the commands need that compute."""
SLOW = (*HEAVY, "pydantic", "rich", "yaml", "numpy", "onnx", "onnxruntime", "platformdirs", "urllib.request", "asyncio")
"""What a help text can do without: together they take several times as long to import as all that it needs."""

_PROBE = """
import json, sys
from genkit.cli import main
status = main(sys.argv[2:])
print("PROBE", json.dumps([status, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))
"""


def _probe(*arguments: object, modules: Sequence[str] = HEAVY) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", _PROBE, json.dumps(modules), *map(str, arguments)]
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


def test_the_help_text_imports_nothing_slow() -> None:
    assert _probe("--help", modules=SLOW) == (0, [])


def test_the_help_text_of_a_command_imports_nothing_slow_but_what_reads_its_options() -> None:
    assert _probe("train", "--help", modules=sorted({*SLOW} - {"pydantic"})) == (0, [])


def test_the_probe_would_notice_what_is_slow() -> None:
    status, slow = _probe("models", modules=SLOW)
    assert status == 0
    assert {"pydantic", "rich", "yaml"} <= set(slow)


def test_verify_never_imports_torch(here: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    here("export", mnist_run, "--out", tmp_path / "bundle")
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
