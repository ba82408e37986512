"""A bundle in onnxruntime for JavaScript: in Node and in a browser, which compute, die, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
import onnx
import pytest
import tools
import torch
from gate_helpers import decoder, edited, encoder, export, normal, written
from helpers import Genkit, started
from torch import Tensor, nn

import genkit

RUNTIMES = ["node", "node-wasm", "browser-wasm", "browser-webgpu"]

ENDLESS = """
n = Constant<value_int=4611686018427387904>()
c = Constant<value_int=1>()
go = Cast<to=9>(c)
x = Loop(n, go, z) <body = again (int64 i, bool going, float[batch,4,4] from) => (bool go_on, float[batch,4,4] to) {
    go_on = Identity(going)
    to = Mul(from, from)
}>
"""


class CodeBook(nn.Module):
    """z -> the nearest of 16 codes to each of its 12 points, and that code's point."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Embedding(16, 3)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        codes = (z.unsqueeze(2) - self.points.weight).square().sum(3).argmin(2)
        return codes, self.points(codes)


class CodeReader(nn.Module):
    """12 codes -> x."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.out = nn.Embedding(16, 3), nn.Linear(36, 50)

    def forward(self, codes: Tensor) -> tuple[Tensor, ...]:
        return (self.out(self.points(codes).flatten(1)).tanh(),)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "bundle"
    export(path, encoder(), decoder())
    return path


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that makes whole numbers, and one that takes them."""
    torch.manual_seed(0)
    codes = genkit.Input((12,), torch.int64, lambda n, g: torch.randint(16, (n, 12), generator=g))
    path = tmp_path_factory.mktemp("coded") / "bundle"
    quantizer = genkit.Graph("encoder", CodeBook(), {"z": normal(12, 3)}, ("codes", "points"))
    assert export(path, quantizer, genkit.Graph("decoder", CodeReader(), {"codes": codes}, ("x",))).ok
    return path


@pytest.fixture(scope="module")
def offered(node_modules: Path) -> Iterator[dict[str, genkit.RuntimeInfo]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENKIT_NODE_MODULES", str(node_modules))
        yield {info.name: info for info in genkit.list_runtimes()}


@pytest.fixture
def installed(offered: dict[str, genkit.RuntimeInfo]) -> Callable[[str], str]:
    def installed(name: str) -> str:
        """The name, where all that the runtime needs is there; else the test cannot do without it."""
        if offered[name].missing:
            tools.missing(name, offered[name].problem)
        return name

    return installed


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, installed: Callable[[str], str]) -> str:
    return installed(request.param)


def made(name: str) -> genkit.Runtime:
    found: genkit.Runtime = genkit.load_plugins().registry.get("runtime", name).load()()
    return found


# What they compute


def test_a_bundle_is_verified(bundle: Path, runtime: str) -> None:
    report = genkit.verify(bundle, [runtime])
    assert report.ok, str(report)
    proofs = [c.measured for c in report.checks if (c.graph, c.subject) == ("decoder", runtime) and "rms" in c.measured]
    assert [proof["output"] for proof in proofs] == ["x", "x"]
    assert 0 < proofs[0]["rms"] < 4


def test_codes_are_exactly_right(coded: Path, runtime: str) -> None:
    report = genkit.verify(coded, [runtime])
    assert report.ok, str(report)
    (codes, *_) = [c.measured for c in report.checks if c.subject == runtime and c.measured.get("output") == "codes"]
    assert codes["wrong"] == 0


def test_an_edited_decoder_fails(bundle: Path, tmp_path: Path, runtime: str) -> None:
    path = edited(bundle, tmp_path / "copy", reseal=True)
    failed = {(check.graph, check.subject) for check in genkit.verify(path, [runtime]).failures}
    assert failed == {("decoder", "graph proof"), ("decoder", runtime)}


def test_numbers_go_there_and_back_in_every_type(tmp_path: Path, runtime: str) -> None:
    arrays = {
        "a": np.array([[0.1, -0.0, np.inf]], np.float32),
        "b": np.array([2**62 + 1, -1, 0]),
        "c": np.array([7], np.int32),
        "d": np.array([[True], [False]]),
        "e": np.zeros((0, 3), np.float32),
    }
    inputs = "float[n,3] a, int64[three] b, int32[one] c, bool[two,1] d, float[none,3] e"
    same = " ".join(f"{name}{name} = Identity({name})" for name in arrays)
    outputs = "float[n,3] aa, int64[three] bb, int32[one] cc, bool[two,1] dd, float[none,3] ee"
    found = made(runtime).load(written(tmp_path, same, inputs, outputs))(arrays)
    assert list(found) == ["aa", "bb", "cc", "dd", "ee"]
    for name, array in arrays.items():
        result = found[2 * name]
        assert (result.dtype, result.shape, result.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_weights_that_lie_beside_a_graph_are_found(bundle: Path, tmp_path: Path, runtime: str) -> None:
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(bundle / "decoder.onnx"), apart, save_as_external_data=True, location="its weights")
    assert (tmp_path / "its weights").stat().st_size > 10**6
    js, z = made(runtime), {"z": np.linspace(-2, 2, 60, dtype=np.float32).reshape(3, 20)}
    np.testing.assert_array_equal(js.load(apart)(z)["x"], js.load(bundle / "decoder.onnx")(z)["x"])


def test_the_page_on_webgpu_is_not_that_in_webassembly(bundle: Path, installed: Callable[[str], str]) -> None:
    gpu, wasm = made(installed("browser-webgpu")), made(installed("browser-wasm"))
    assert "; computed by " in gpu.precision
    assert "; computed by " not in wasm.precision
    z = genkit.Bundle.open(bundle).cases(genkit.Bundle.open(bundle).manifest.graphs[1])[-1].inputs
    ours, others = (js.load(bundle / "decoder.onnx")(z)["x"] for js in (gpu, wasm))
    np.testing.assert_allclose(ours, others, atol=1e-5)
    assert np.any(ours != others), "sums of 400 products in another order are rounded otherwise"


# What they cannot


def test_an_operator_that_is_lacking_is_said_by_the_loader(tmp_path: Path, runtime: str) -> None:
    file = written(tmp_path, "w = Cast<to=11>(z) e = Erf(w) x = Cast<to=1>(e)", outputs="float[batch,4,4] x")
    # On WebGPU, it does not even have the type.
    with pytest.raises(genkit.Unsupported, match=r"^Could not find an implementation for Erf|^Provider type for Cast"):
        made(runtime).load(file)


def test_what_fails_otherwise_is_said_and_does_no_harm(bundle: Path, tmp_path: Path, runtime: str) -> None:
    js = made(runtime)
    with pytest.raises(RuntimeError, match="No Op registered for Nonsense"):
        js.load(written(tmp_path, "x = Nonsense(z)"))
    run = js.load(written(tmp_path, "s = Constant<value_ints=[7]>() x = Reshape(z, s)", outputs="float[seven] x"))
    with pytest.raises(RuntimeError, match="Reshape"):
        run({"z": np.zeros((1, 4, 4), np.float32)})
    assert js.load(bundle / "decoder.onnx")({"z": np.zeros((2, 20), np.float32)})["x"].shape == (2, 1, 28, 28)


def test_a_browser_starts_where_temporary_files_have_long_paths(
    bundle: Path, tmp_path: Path, installed: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a" * 100)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    run = made(installed("browser-wasm")).load(bundle / "decoder.onnx")
    assert run({"z": np.zeros((1, 20), np.float32)})["x"].shape == (1, 1, 28, 28)


# What is not installed


@pytest.mark.parametrize(
    ("runtime", "package"),
    [
        ("node", "onnxruntime-node"),
        ("node-wasm", "onnxruntime-web"),
        ("browser-wasm", "onnxruntime-web"),
        ("browser-webgpu", "onnxruntime-web"),
    ],
)
def test_a_package_that_is_not_there_is_named_with_what_installs_it(
    here: Genkit, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, package: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENKIT_NODE_MODULES", raising=False)
    with pytest.raises(genkit.RuntimeMissing, match=f"^{package} is not installed: npm install {package}$"):
        made(runtime)
    monkeypatch.setenv("GENKIT_NODE_MODULES", str(tmp_path))
    asked = here("verify", bundle, "--runtime", runtime, check=False)
    said = f"{package} is not in GENKIT_NODE_MODULES={tmp_path}: npm install {package}"
    assert (asked.returncode, asked.stdout, asked.stderr) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ("node", "node is not installed: apt-get install nodejs"),
        ("node-wasm", "node is not installed: apt-get install nodejs"),
        ("browser-wasm", "chromium is not installed: apt-get install chromium"),
        ("browser-webgpu", "chromium is not installed: apt-get install chromium"),
    ],
)
def test_a_program_that_is_not_there_is_named_with_what_installs_it(
    here: Genkit, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, said: str
) -> None:
    _fake_packages(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = here("verify", bundle, "--runtime", runtime, check=False)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith(f"error: {said}")


def test_packages_are_found_where_node_finds_them(
    node_modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.command("node", package="nodejs")
    (tmp_path / "project" / "deeper").mkdir(parents=True)
    (tmp_path / "project" / "node_modules").symlink_to(node_modules)
    monkeypatch.delenv("GENKIT_NODE_MODULES", raising=False)
    monkeypatch.chdir(tmp_path / "project" / "deeper")
    assert made("node").version == tools.NPM["onnxruntime-node"]


@pytest.mark.parametrize("runtime", ["node", "browser-webgpu"])
def test_a_program_that_ends_at_once_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    _fake_packages(tmp_path, monkeypatch)
    for program in ("node", "chromium"):
        _script(tmp_path / program, "exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(genkit.RuntimeMissing, match=f"cannot be used for {runtime}: its process died, with status 3"):
        made(runtime)


def test_a_browser_without_webgpu_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Callable[[str], str]
) -> None:
    chromium = tools.command("chromium", "chromium-browser", "google-chrome", package="chromium")
    installed("browser-wasm")
    _script(tmp_path / "chromium", f'exec "{chromium}" "$@" --disable-gpu --disable-software-rasterizer')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(genkit.RuntimeMissing, match="cannot be used for browser-webgpu: it has no WebGPU adapter"):
        made("browser-webgpu")


def _fake_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in tools.NPM:
        (folder / package / "dist").mkdir(parents=True)
        (folder / package / "package.json").write_text('{"version": "0"}')
    monkeypatch.setenv("GENKIT_NODE_MODULES", str(folder))


def _script(file: Path, line: str) -> None:
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)


# What is left of them


class Marked:
    """The processes that were started with a mark in their environment, and what descends from them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._mark = str(uuid4())
        self._seen: set[int] = set()
        patch.setenv("GENKIT_TEST_MARK", self._mark)

    def __call__(self) -> dict[int, str]:
        """The command of each that lives, by number; once seen, it is known whoever adopted it."""
        commands, parents = {}, {}
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with suppress(OSError):  # it is gone, or somebody else's
                    number = int(process.name)
                    commands[number] = (process / "cmdline").read_text(errors="replace").replace("\0", " ")
                    parents[number] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                    if self._mark in (process / "environ").read_text(errors="replace"):
                        self._seen.add(number)
        # A page writes its title over its environment.
        while more := {child for child, parent in parents.items() if parent in self._seen} - self._seen:
            self._seen |= more
        return {number: command for number, command in commands.items() if number in self._seen and command}

    def all_end(self) -> bool:
        """Whether they do, given time."""
        for _ in range(600):
            if not self():
                return True
            time.sleep(0.05)
        return False


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short name: that of a socket of Chromium's in it is limited to 107 bytes."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> Marked:
    if not Path("/proc/self/environ").exists():
        pytest.skip("which processes there are is read from /proc")
    monkeypatch.setenv("TMPDIR", str(temporary))
    return Marked(monkeypatch)


def test_a_runtime_that_nobody_holds_is_gone(bundle: Path, temporary: Path, processes: Marked, runtime: str) -> None:
    run = made(runtime).load(bundle / "decoder.onnx")
    assert processes(), "a function is enough to hold it"
    assert run({"z": np.zeros((1, 20), np.float32)})["x"].shape == (1, 1, 28, 28)
    del run
    assert processes.all_end()
    assert not list(temporary.iterdir()), "the profile of a browser, or reports to the makers of onnxruntime"


@pytest.mark.parametrize(
    ("runtime", "victim"),
    [
        ("node", "javascript.mjs"),
        ("node-wasm", "javascript.mjs"),
        ("browser-wasm", "--type=renderer"),
        ("browser-wasm", "--remote-debugging-pipe"),
        ("browser-webgpu", "--type=renderer"),
    ],
)
def test_one_that_is_killed_while_it_computes_is_an_error_and_stays_one(
    tmp_path: Path, processes: Marked, installed: Callable[[str], str], runtime: str, victim: str
) -> None:
    run = made(installed(runtime)).load(written(tmp_path, ENDLESS, outputs="float[batch,4,4] x"))
    z = {"z": np.ones((1, 4, 4), np.float32)}
    victims = [n for n, command in processes().items() if victim in command and not command.startswith("sh ")]
    assert victims
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(run, z)
        for process in victims:
            os.kill(process, SIGKILL)
        with pytest.raises(RuntimeError, match="its process died"):
            answer.result()
    with pytest.raises(RuntimeError, match="its process died"):
        run(z)
    assert processes.all_end()


def test_nothing_outlives_who_asked_and_was_killed(
    tmp_path: Path, temporary: Path, processes: Marked, runtime: str
) -> None:
    code = """
import sys, numpy, pathlib, genkit
runtime, file = sys.argv[1:]
run = genkit.load_plugins().registry.get("runtime", runtime).load()().load(pathlib.Path(file))
print("asks", flush=True)
run({"z": numpy.ones((1, 4, 4), numpy.float32)})
"""
    file = written(tmp_path, ENDLESS, outputs="float[batch,4,4] x")
    command = [sys.executable, "-c", code, runtime, str(file)]
    with started(command, stdout=subprocess.PIPE) as asking:
        assert asking.stdout
        assert asking.stdout.readline() == "asks\n"
        assert len(processes()) > 1
        asking.kill()
    assert processes.all_end()
    assert not list(temporary.iterdir())
