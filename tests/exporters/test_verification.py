"""Whatever is in a bundle, and whatever a runtime does, the process that asks goes on and gets an answer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from gate_helpers import decoder, encoder, export
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.runtime import OnnxRuntime

import genkit

MISBEHAVING = """
import os, signal, time
import numpy as np
import genkit

class Crashing:
    name, version = "crashing", "1"
    def load(self, path):
        os.kill(os.getpid(), signal.SIGSEGV)

class Leaving:
    name, version = "leaving", "1"
    def load(self, path):
        os._exit(3)

class Endless:
    name, version = "endless", "1"
    def load(self, path):
        while True:
            time.sleep(1)

class Hungry:
    name, version = "hungry", "1"
    def load(self, path):
        return lambda inputs: {"x": np.ones(2**36, np.float32)}

class Chatty:
    name, version = "chatty", "1"
    def load(self, path):
        from genkit_onnx.runtime import OnnxRuntime
        os.write(1, b"{} native chatter\\n")
        return OnnxRuntime().load(path)

@genkit.hookimpl
def genkit_register(registry):
    for kind in (Crashing, Leaving, Endless, Hungry, Chatty):
        registry.runtime(kind.name, kind)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "bundle"
    export(path, encoder(), decoder())
    return path


@pytest.fixture
def misbehaving(install: Callable[[str, str], None]) -> None:
    install("misbehaving", MISBEHAVING)


def test_the_answer_of_the_child_is_that_of_the_exporter(bundle: Path) -> None:
    there = genkit.verify(bundle)
    here = OnnxExporter().verify(genkit.Bundle.open(bundle), [OnnxRuntime()])
    assert there.ok
    assert str(there) == str(here)


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize(
    ("runtime", "seconds", "reason"),
    [
        ("crashing", 60, "the process that reads it was killed by SIGSEGV"),
        ("leaving", 60, "the process that reads it ended with status 3"),
        ("endless", 5, "it was not checked within 5 s; give it more with --time-limit"),
        ("hungry", 60, "fails at batch 1: Unable to allocate 256. GiB"),
    ],
)
def test_a_runtime_that_takes_its_process_down_is_a_failed_check(
    bundle: Path, runtime: str, seconds: float, reason: str
) -> None:
    report = genkit.verify(bundle, [runtime], seconds=seconds)
    assert not report.ok
    assert [check for check in report.failures if reason in check.detail], str(report)
    assert genkit.verify(bundle).ok, "the next one is read by another process"


@pytest.mark.usefixtures("misbehaving")
def test_what_native_code_prints_does_not_disturb_the_answer(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert genkit.verify(bundle, ["chatty"]).ok
    assert capfd.readouterr() == ("", "")


def test_a_reader_that_is_killed_in_the_middle_is_said(bundle: Path, tmp_path: Path) -> None:
    """A real SIGKILL, as the system sends it when memory is short."""
    code = (
        "import os, signal, sys, threading, genkit.verification as v\n"
        "def kill():\n"
        "    while v._child._process is None: pass\n"
        "    os.kill(v._child._process.pid, signal.SIGKILL)\n"
        "threading.Thread(target=kill).start()\n"
        f"print(v.verify({str(bundle)!r}))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "FAILED process: the process that reads it was killed by SIGKILL\n"


def test_the_child_ends_with_its_parent(bundle: Path) -> None:
    code = (
        "import genkit, genkit.verification as v\n"
        f"assert genkit.verify({str(bundle)!r}).ok\n"
        "print(v._child._process.pid)"
    )
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    with pytest.raises(ProcessLookupError):
        os.kill(child, signal.SIG_DFL)


def test_a_forked_process_has_a_child_of_its_own(bundle: Path) -> None:
    code = (
        "import os, genkit\n"
        f"path = {str(bundle)!r}\n"
        "assert genkit.verify(path).ok\n"
        "if os.fork() == 0:\n"
        "    os._exit(0 if genkit.verify(path).ok else 1)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]), genkit.verify(path).ok)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 True\n"


def test_a_manifest_that_was_changed_is_not_followed_at_all(bundle: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle, tmp_path / "copy")
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": "onnx"', '"format": "other"'))
    report = genkit.verify(path)
    assert [check.detail for check in report.failures] == ["manifest.json: changed after it was written"]


def test_weights_that_lie_elsewhere_are_not_read(bundle: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle, tmp_path / "copy")
    outside = tmp_path / "outside.data"
    outside.write_bytes(bytes(784 * 400 * 4))
    model = onnx.load(path / "decoder.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "net.2.weight":
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../outside.data")
    (path / "decoder.onnx").write_bytes(model.SerializeToString())
    genkit.seal(path, genkit.Bundle.open(path).manifest)
    report = genkit.verify(path)
    assert [check.detail for check in report.failures] == [
        "the tensor net.2.weight is in another file, so the graph cannot be moved"
    ]


@pytest.mark.parametrize(("arguments", "message"), [({"seconds": 0}, "seconds = 0"), ({"runtimes": ["no"]}, "'no'")])
def test_a_wrong_request_is_an_error(bundle: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(genkit.GenkitError, match=message) as refused:
        genkit.verify(bundle, **arguments)  # type: ignore[arg-type]
    assert refused.value.status == 2
