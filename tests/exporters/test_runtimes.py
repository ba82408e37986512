"""A bundle in other people's runtimes: those that are installed, those that are not, and those that misbehave."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import tools
import torch
from gate_helpers import decoder, edited, encoder, export, normal, written
from helpers import Genkit

import genkit
from benchmarks import matrix

OURS = ["mnn", "ncnn", "opencv", "openvino", "reference", "tract"]
JAVASCRIPT = ["browser-wasm", "browser-webgpu", "node", "node-wasm"]
"""Tested in a file of their own."""

STRANGE = """
import os, signal
import genkit
from genkit_onnx.runtime import OnnxRuntime

class Crashing:
    name, version, precision = "crashing", "1", "none"
    def load(self, path):
        if path.name == "decoder.onnx":
            os.kill(os.getpid(), signal.SIGSEGV)
        return OnnxRuntime().load(path)

class Lacking:
    name, version, precision = "lacking", "1", "none"
    def load(self, path):
        raise genkit.Unsupported("it has no Tanh")

class LackingAtFirstRun(Lacking):
    name = "lacking_at_first_run"
    def load(self, path):
        return super().load

class Rounding:
    name, version, precision = "rounding", "1", "float16, which it does not say"
    def load(self, path):
        run = OnnxRuntime().load(path)
        return lambda inputs: {name: y.astype("float16").astype("float32") for name, y in run(inputs).items()}

def needy():
    raise genkit.RuntimeMissing("needed is not installed: pip install needed")

class Careful:
    name, version, precision = "careful", "1", "half=0"
    def __init__(self, kind=OnnxRuntime):
        self.load = kind().load
    def defaults(self):
        return Careful(Rounding)

class Deadly(Careful):
    name = "deadly"
    def defaults(self):
        return Careful(Crashing)

class Elsewhere(Careful):
    name = "elsewhere"
    def defaults(self):
        raise genkit.RuntimeMissing("its defaults are elsewhere")

class Empty:
    def load(self, path):
        run = OnnxRuntime().load(path)
        return lambda inputs: {name: y * float("nan") for name, y in run(inputs).items()}

class Void(Careful):
    name = "void"
    def defaults(self):
        void = Careful(Empty)
        void.name = "void"
        return void

@genkit.hookimpl
def genkit_register(registry):
    for kind in (Crashing, Lacking, LackingAtFirstRun, Rounding, Careful, Deadly, Elsewhere, Void):
        registry.runtime(kind.name, kind)
    registry.runtime("needy", needy)
    registry.runtime("gone", "no_such_module:Runtime")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "bundle"
    export(path, encoder(), decoder())
    return path


@pytest.fixture
def strange(install: Callable[[str, str], None]) -> None:
    install("strange", STRANGE)


@pytest.fixture
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A library that is made to look as if nobody had installed it."""
    library: str = request.param
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding" / f"{library}.py").write_text(f"raise ModuleNotFoundError(name={library!r})")
    monkeypatch.syspath_prepend(str(tmp_path / "hiding"))
    return library


@cache
def offered() -> dict[str, genkit.RuntimeInfo]:
    return {info.name: info for info in genkit.list_runtimes()}


def installed(name: str) -> str:
    """The name, where its library is there; else the test cannot do without it."""
    info = offered()[name]
    if info.missing:
        tools.missing(name, info.problem)
    return name


# Installed


@pytest.mark.parametrize("runtime", OURS)
def test_a_bundle_is_verified_in_every_runtime(bundle: Path, runtime: str) -> None:
    report = genkit.verify(bundle, [installed(runtime)])
    assert report.ok, str(report)
    proofs = [c.measured for c in report.checks if (c.graph, c.subject) == ("decoder", runtime) and "rms" in c.measured]
    assert [proof["output"] for proof in proofs] == ["x", "x"]
    assert 0 < proofs[0]["rms"] < 16


@pytest.mark.parametrize("runtime", OURS)
def test_a_bundle_is_used_in_every_runtime(bundle: Path, runtime: str) -> None:
    files = sorted(bundle.rglob("*"))
    model = genkit.load_bundle(bundle, runtime=installed(runtime), verify=False)
    case = genkit.Bundle.open(bundle).cases(model.graphs["encoder"])[-1]
    mean, log_var = model.encode(case.inputs["x"])
    np.testing.assert_allclose(mean, case.references["mean"], atol=1e-5)
    np.testing.assert_allclose(log_var, case.references["log_var"], atol=1e-5)
    assert sorted(bundle.rglob("*")) == files, "what a converter writes goes elsewhere"


@pytest.mark.parametrize("runtime", ["onnxruntime", *OURS])
def test_an_edited_decoder_fails_in_each_runtime(bundle: Path, tmp_path: Path, runtime: str) -> None:
    path = edited(bundle, tmp_path / "copy", reseal=False)
    assert {check.subject for check in genkit.verify(path, [installed(runtime)]).failures} == {"files"}
    genkit.seal(path, genkit.Bundle.open(path).manifest)
    failed = {(check.graph, check.subject) for check in genkit.verify(path, [runtime]).failures}
    assert failed == {("decoder", "graph proof"), ("decoder", runtime)}


@pytest.mark.parametrize(
    ("runtime", "body", "reason"),
    [
        ("openvino", "x = Det(z)", "No conversion rule found for operations: Det-18"),
        ("tract", "x = Det(z)", "Unimplemented(Det)"),
        ("mnn", "y = OptionalGetElement(z) x = ReduceSum(y)", "Op Not Support: ONNX::Optional"),
        ("ncnn", "x = Det(z)", "it has no Det"),
        ("reference", "x = GlobalLpPool(z)", "No registered implementation for operator 'GlobalLpPool'"),
        ("opencv", "s = Constant<value_int=2>() y = STFT(z, s, , s) x = ReduceSum(z)", "parse error"),
    ],
)
def test_an_operator_that_a_runtime_lacks_is_said_by_its_loader(
    tmp_path: Path, runtime: str, body: str, reason: str
) -> None:
    file = written(tmp_path, body)
    found = genkit.load_plugins().registry.get("runtime", installed(runtime)).load()()
    with pytest.raises(genkit.Unsupported) as refused:
        found.load(file)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_fails_in_the_middle_of_a_graph_is_not_called_an_operator_that_is_lacking(tmp_path: Path) -> None:
    file = written(tmp_path, "i = Constant<value_ints=[9]>() y = Gather<axis=1>(z, i) x = ReduceSum(y)")
    run = genkit.load_plugins().registry.get("runtime", "reference").load()().load(file)
    with pytest.raises(IndexError):
        run({"z": np.zeros((1, 4, 4), np.float32)})


# Not installed


@pytest.mark.parametrize(
    ("hidden", "runtime", "remedy"),
    [
        ("openvino", "openvino", "pip install openvino"),
        ("cv2", "opencv", "pip install opencv-python-headless"),
        ("tract", "tract", "pip install tract"),
        ("MNN", "mnn", "pip install MNN"),
        ("ncnn", "ncnn", "pip install ncnn pnnx"),
        ("pnnx", "ncnn", "pip install ncnn pnnx"),
    ],
    indirect=["hidden"],
)
def test_a_runtime_that_is_not_installed_is_listed_with_what_installs_it(
    here: Genkit, bundle: Path, hidden: str, runtime: str, remedy: str
) -> None:
    said = f"{hidden} is not installed: {remedy}"
    (line,) = [line for line in here("runtimes").stdout.splitlines() if line.startswith(runtime)]
    assert line.split() == [runtime, "runtimes", "-", *said.split()]
    (entry,) = [entry for entry in json.loads(here("runtimes", "--json").stdout) if entry["name"] == runtime]
    assert (entry["missing"], entry["version"], entry["problem"]) == (True, None, said)
    asked = here("verify", bundle, "--runtime", runtime, check=False)
    assert (asked.returncode, asked.stdout, asked.stderr) == (2, "", f"error: {said}\n")


def test_openvino_is_imported_without_its_telemetry_and_nothing_stays_hidden() -> None:
    if not find_spec("openvino"):
        tools.missing("openvino", "pip install openvino")
    code = """
import sys
from genkit_runtimes.openvino import OpenVino
OpenVino()
assert not any(name.startswith("openvino_telemetry") for name in sys.modules)
import openvino_telemetry
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gpu_is_missed_where_the_library_has_cuda_and_the_machine_has_none(here: Genkit, bundle: Path) -> None:
    info = offered()["onnxruntime-cuda"]
    if not info.missing:
        pytest.skip("there is a GPU")
    assert re.fullmatch(
        r"(this onnxruntime has no CUDA|onnxruntime cannot use a GPU here): .*pip install .*", info.problem
    )
    asked = here("verify", bundle, "--runtime", "onnxruntime-cuda", check=False)
    assert (asked.returncode, asked.stdout, asked.stderr) == (2, "", f"error: {info.problem}\n")


@pytest.mark.parametrize(
    ("listed", "used", "problem"),
    [
        (["CPUExecutionProvider"], ["CPUExecutionProvider"], "this onnxruntime has no CUDA"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"], "onnxruntime cannot use a GPU"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"], None),
    ],
    ids=["a wheel without CUDA", "a machine without a GPU", "a GPU"],
)
def test_cuda_is_there_only_where_a_session_really_has_it(
    monkeypatch: pytest.MonkeyPatch, listed: list[str], used: list[str], problem: str | None
) -> None:
    asked = []

    def session(model: bytes, options: Any, providers: list[Any]) -> SimpleNamespace:
        asked.append(providers)
        return SimpleNamespace(get_providers=lambda: used)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    cuda = genkit.load_plugins().registry.get("runtime", "onnxruntime-cuda").load()
    if problem is None:
        assert cuda().name == "onnxruntime-cuda"
        assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]]
    else:
        with pytest.raises(genkit.RuntimeMissing, match=problem):
            cuda()


def test_what_is_installed_is_listed_with_its_version_and_what_keeps_it_precise(here: Genkit) -> None:
    listed = {entry["name"]: entry for entry in json.loads(here("runtimes", "--json").stdout)}
    assert {name for name, entry in listed.items() if entry["plugin"] == "runtimes"} == {*OURS, *JAVASCRIPT}
    assert listed["reference"]["version"] == onnx.__version__
    assert listed[installed("openvino")]["precision"].startswith("INFERENCE_PRECISION_HINT=f32")


def test_no_library_is_imported_before_it_is_needed() -> None:
    libraries = "{'MNN', 'ncnn', 'openvino', 'cv2', 'tract', 'onnx'}"
    code = f"import sys, genkit; genkit.load_plugins(); print({libraries} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


# All of them


def test_the_table_has_every_graph_in_every_installed_runtime(here: Genkit, bundle: Path) -> None:
    found = json.loads(here("verify", bundle, "--runtime", "all", "--json").stdout)
    there = sorted(name for name, info in offered().items() if not info.missing)
    assert found["ok"]
    assert [(c["graph"], c["runtime"]) for c in found["cells"]] == [
        (graph, runtime) for graph in ("encoder", "decoder") for runtime in there
    ]
    assert {check["subject"] for check in found["checks"]} == {"structure", "golden vectors", "graph proof", "files"}
    for cell in found["cells"]:
        assert cell["verdict"] == "ok", cell
        assert cell["version"] == offered()[cell["runtime"]].version
        assert 0 < cell["rms"] < 16
        assert 0 < cell["max"] < 32
        assert set(cell["seconds"]) == {"1", "64"}
        assert all(seconds > 0 for seconds in cell["seconds"].values())
    assert {each["name"] for each in found["missing"]} == offered().keys() - set(there)


@pytest.mark.usefixtures("strange")
def test_one_that_crashes_is_a_cell_and_what_cannot_hold_a_graph_is_no_failure(
    here: Genkit, bundle: Path, tmp_path: Path
) -> None:
    copy, page = tmp_path / "<b>odd", tmp_path / "page.html"
    shutil.copytree(bundle, copy)
    page.write_text("an earlier one")
    options = "--runtime", "all", "--disable-plugin", "runtimes", "--html", page
    asked = here("verify", copy, *options, check=False)
    assert asked.returncode == 1
    assert "does not compute everywhere what was exported: encoder: gone: no answer, the runtime 'gone'" in asked.stderr
    assert "(5 of " in asked.stderr, "of gone and rounding two each, of crashing one, of those that lack none"
    lines = {tuple(line.split()[:2]): line for line in asked.stdout.splitlines()}
    assert "no answer    the process that reads it was killed by SIGSEGV" in lines["decoder", "crashing"]
    assert lines["encoder", "crashing"].endswith(" ok")
    for name in ("lacking", "lacking_at_first_run"):
        assert "unsupported  cannot hold the graph: it has no Tanh" in lines["encoder", name]
    assert "wrong        x: rms error" in lines["decoder", "rounding"]
    assert lines["decoder", "onnxruntime"].endswith(" ok"), "what comes after a crash"
    assert "not asked: needy; needed is not installed: pip install needed" in asked.stdout

    # what a library does by default
    assert lines["graph", "runtime"].split()[7:9] == ["by", "default"]
    assert int(lines["decoder", "careful"].split()[6].replace(",", "")) > 100
    assert [lines["decoder", kind].split()[6] for kind in ("onnxruntime", "deadly")] == ["-", "none"]
    assert "by default: decoder: deadly: the process that reads it was killed by SIGSEGV" in asked.stdout

    # the page says the same, and loads nothing
    reader = Reader()
    reader.feed(page.read_text())
    assert reader.loaded == []
    assert not {"script", "link", "img", "b"} & set(reader.tags)
    assert reader.tags.count("table") == reader.tags.count("caption") == 3
    assert set(reader.scopes) == {"col", "row"}
    assert "<b>odd does not compute everywhere what was exported" in reader.text
    for said in ("crashing", "was killed by SIGSEGV", "it has no Tanh", "by default: decoder: deadly", "needy"):
        assert said in reader.text
    assert [path.name for path in tmp_path.iterdir() if page.name in path.name] == [page.name]


@pytest.mark.usefixtures("strange")
def test_what_a_library_does_by_default_is_beside_and_never_a_failure(here: Genkit, bundle: Path) -> None:
    shown = here("verify", bundle, "--runtime", "all", "--json", "--disable-plugin", "runtimes", check=False).stdout
    cells = {(cell["graph"], cell["runtime"]): cell for cell in json.loads(shown)["cells"]}
    kinds = ("careful", "deadly", "elsewhere", "void")
    assert {cells[graph, kind]["verdict"] for graph in ("encoder", "decoder") for kind in kinds} == {"ok"}
    assert cells["decoder", "onnxruntime"]["by_default"] is None
    careful, deadly, elsewhere, void = (cells["decoder", kind]["by_default"] for kind in kinds)
    assert careful["rms"] > 100
    assert careful["reason"] == ""
    assert deadly == {"rms": None, "reason": "the process that reads it was killed by SIGSEGV"}
    assert cells["decoder", "deadly"]["seconds"], "the crash came after the cell was filled"
    assert elsewhere == {"rms": None, "reason": "its defaults are elsewhere"}
    assert void["rms"] is None
    assert "values are not finite" in void["reason"]
    assert cells["encoder", "careful"]["by_default"]["rms"] > 100


@pytest.mark.parametrize("runtime", ["mnn", "ncnn", "openvino"])
def test_the_defaults_of_a_runtime_are_other_settings_of_the_same(bundle: Path, runtime: str) -> None:
    found = genkit.load_plugins().registry.get("runtime", installed(runtime)).load()()
    assert isinstance(found, genkit.TunedRuntime)
    defaults = found.defaults()
    assert (defaults.name, defaults.version) == (found.name, found.version)
    case = genkit.Bundle.open(bundle).cases(genkit.Bundle.open(bundle).manifest.graphs[1])[-1]
    given, careful = (each.load(bundle / "decoder.onnx")(case.inputs)["x"] for each in (defaults, found))
    np.testing.assert_allclose(given, careful, atol=0.1)
    if runtime == "ncnn":  # whose default does not depend on what the processor has
        assert np.abs(given - careful).max() > 1e-5


@pytest.mark.usefixtures("strange")
def test_what_cannot_hold_a_graph_is_a_failure_where_it_was_asked_for(here: Genkit, bundle: Path) -> None:
    asked = here("verify", bundle, "--runtime", "lacking", check=False)
    assert asked.returncode == 1
    assert "lacking: cannot hold the graph: it has no Tanh" in asked.stderr


def test_an_edited_decoder_is_wrong_in_the_table(here: Genkit, bundle: Path, tmp_path: Path) -> None:
    path = edited(bundle, tmp_path / "copy", reseal=True)
    asked = here("verify", path, "--runtime", "all", "--json", "--disable-plugin", "runtimes", check=False)
    cells = json.loads(asked.stdout)["cells"]
    assert asked.returncode == 1
    assert [(cell["graph"], cell["verdict"]) for cell in cells] == [("encoder", "ok"), ("decoder", "wrong")]


def test_files_that_were_changed_are_given_to_no_runtime(bundle: Path, tmp_path: Path) -> None:
    parity = genkit.compare_runtimes(edited(bundle, tmp_path / "copy", reseal=False))
    assert not parity.ok
    assert parity.cells == ()
    assert parity.failures[0].startswith("files: decoder.onnx: changed")


# Spelt so that every runtime is right


class Counting(torch.nn.Module):
    """What splines and mixtures do: count the edges below each number, and gather, or take rows, by the count.

    Its scores are an output as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 24).reshape(8, 3))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        edges = z.abs().cumsum(1)[:, None] - z.abs().sum(1)[:, None, None] / 2  # (B, 1, 16), rising
        edges = edges.expand(-1, 16, -1)
        below = (edges < z[:, :, None]).sum(-1) - 1
        found = torch.gather(edges, -1, (below % 8)[..., None]).squeeze(-1)
        logits = (found + self.table[below[:, 0] % 8].sum(1, keepdim=True)).reshape(-1, 1, 4, 4)
        return logits.sigmoid(), logits


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counted") / "bundle"
    export(path, genkit.Graph("decoder", Counting(), {"z": normal(16)}, ("x", "logits")))
    return path


@pytest.mark.parametrize("runtime", ["mnn", "opencv", "openvino", "reference"])
def test_what_splines_are_made_of_is_right_in_every_runtime(counting: Path, runtime: str) -> None:
    report = genkit.verify(counting, [installed(runtime)])
    assert report.ok, str(report)


def test_what_runtimes_are_wrong_about_is_not_in_the_graph(counting: Path) -> None:
    nodes = onnx.load(counting / "decoder.onnx").graph.node
    made = {name: node for node in nodes for name in node.output}
    kinds = {node.op_type for node in nodes}
    assert not {"Less", "Max"} & kinds
    assert {"Greater", "ReduceSum", "GatherElements"} <= kinds
    (count,) = (node for node in nodes if node.op_type == "ReduceSum" and made[node.input[0]].op_type == "Cast")
    assert made[count.input[0]].attribute[0].i == onnx.TensorProto.FLOAT
    (gather,) = (node for node in nodes if node.op_type == "GatherElements")
    assert [attribute.i for attribute in gather.attribute if attribute.name == "axis"] == [2]
    assert made["x"].op_type == "Reshape", "and the Sigmoid before it"


# The page


def test_the_tables_of_the_models_are_those_that_were_measured() -> None:
    results = json.loads(matrix.RESULTS.read_text())
    assert matrix.PAGE.read_text() == matrix.page(results)
    plugins = genkit.load_plugins()
    entries = [
        e for plugin in plugins.plugins.values() if plugin.distribution == "genkit-torch" for e in plugin.entries
    ]
    assert results.keys() == {entry.name for entry in entries if entry.kind == "model"}
    for model, content in results.items():
        asked = {cell["runtime"] for cell in content["cells"]} | {info["name"] for info in content["missing"]}
        assert asked == {entry.name for entry in entries if entry.kind == "runtime"}, model
        kept = json.loads(json.dumps(matrix.content_of(matrix.parity_of(content))))
        assert kept["cells"] == content["cells"], model
        assert content["failures"] == [], "a runtime that holds a graph is right about it"


class Reader(HTMLParser):
    """What a page loads or runs, its tables' headings, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.scopes: list[str | None] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href") or name.startswith("on")]
        if tag == "th":
            self.scopes.append(dict(attrs).get("scope"))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--html", "page.html"], "--html is the page of all runtimes: give --runtime all with it"),
        (["--runtime", "all", "--html", "nowhere/page.html"], "there is no folder nowhere"),
    ],
)
def test_a_page_that_cannot_be_is_refused_before_anything_is_checked(
    here: Genkit, bundle: Path, options: list[str], said: str
) -> None:
    asked = here("verify", bundle, *options, check=False)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert said in asked.stderr


def test_the_page_names_every_runtime() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runtimes.md").read_text()
    table = page.partition("\n| runtime |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == {
        "onnxruntime",
        "onnxruntime-cuda",
        *OURS,
        *JAVASCRIPT,
    }
