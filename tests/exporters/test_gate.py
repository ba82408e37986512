"""The gate of the ONNX exporter: it accepts what is right, refuses each planted fault for its reason, and publishes
nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from gate_helpers import Decoder, decoder, encoder, entry, export, gate, image, no_fault, normal
from genkit_onnx.accuracy import rounding_errors
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.proof import examine
from genkit_onnx.protobuf import initializers
from genkit_onnx.reference import compare_weights, compute_reference
from genkit_onnx.runtime import OnnxRuntime
from genkit_onnx.structure import notes
from genkit_onnx.translate import NEWEST_OPSET, OLDEST_OPSET
from helpers import tree
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

import genkit
from benchmarks.gate import graph_faults as faults


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> genkit.Bundle:
    """One proven bundle of the textbook encoder and decoder."""
    path = tmp_path_factory.mktemp("published") / "bundle"
    absent = genkit.NoGraph("flow", "the model has no flow")
    report = export(path, encoder(), decoder(), absent)
    assert report.ok
    return genkit.Bundle.open(path)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Thousands of small calls are faster without a pool of threads, most of all where tests share their cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What is right passes


@pytest.mark.usefixtures("one_thread")
def test_a_true_graph_passes_with_a_hundred_different_draws_of_the_inputs(published: genkit.Bundle) -> None:
    runtime = OnnxRuntime()
    for graph in (encoder(), decoder()):
        exported = entry(published, graph.name)
        said = notes(exported, published.manifest.about)
        for seed in range(100):
            reference = compute_reference(graph, seed)
            update = {"errors": rounding_errors(reference.cases), "ignores": reference.ignores}
            promised = exported.model_copy(update=update)
            checks = list(examine(promised, published.path / exported.file, reference.cases, [runtime], promised=said))
            assert not [check for check in checks if not check.ok], f"{graph.name}, seed {seed}"


def test_a_published_bundle_verifies_again(published: genkit.Bundle) -> None:
    report = OnnxExporter().verify(published, [OnnxRuntime()])
    assert report.ok
    assert {check.subject for check in report.checks} == {
        "files",
        "structure",
        "golden vectors",
        "graph proof",
        "onnxruntime",
    }


def test_every_batch_size_has_hard_rows_and_seven_rows_have_one_of_each(published: genkit.Bundle) -> None:
    (graph,) = [graph for graph in published.manifest.graphs if graph.name == "decoder"]
    cases = published.cases(graph)
    assert [case.rows for case in cases] == [1, 2, 7, 64]
    z = cases[2].inputs["z"]
    assert not z[4].any()
    assert sorted(z[5]) == [0.0] * 19 + [1.0]
    assert 0 < np.abs(z[3]).max() < 0.1
    sizes = [float(np.sqrt(np.mean(np.square(case.inputs["z"][0])))) for case in cases]
    assert min(sizes) > 2


def test_inputs_with_a_range_stay_in_it(published: genkit.Bundle) -> None:
    for case in published.cases(entry(published, "encoder")):
        x = case.inputs["x"]
        assert x.min() >= 0
        assert x.max() <= 1


def test_two_exports_of_one_module_are_the_same_bytes(published: genkit.Bundle, tmp_path: Path) -> None:
    export(tmp_path / "again", encoder(), decoder(), genkit.NoGraph("flow", "the model has no flow"))
    assert tree(tmp_path / "again") == tree(published.path)


def test_a_bundle_holds_nothing_of_the_exporting_machine(published: genkit.Bundle) -> None:
    here = [Path.home(), Path.cwd(), Path(sys.prefix), published.path.parent, Path(__file__).parent]
    for name in tree(published.path):
        content = (published.path / name).read_bytes()
        for trace in (*map(str, here), "stack_trace", "site-packages", "gate_helpers"):
            assert trace.encode() not in content, (name, trace)


def test_the_manifest_says_what_there_is_and_what_there_is_not(published: genkit.Bundle) -> None:
    manifest = json.loads((published.path / "manifest.json").read_text())
    graph = manifest["graphs"][1]
    assert (manifest["format"], manifest["recipe"]) == ("onnx", {"name": "textbook"})
    assert manifest["absent"] == [{"name": "flow", "reason": "the model has no flow"}]
    assert (graph["name"], graph["file"], graph["opset"], graph["reduction"]) == ("decoder", "decoder.onnx", 18, 400)
    unsaid = {"layout": None, "distribution": None}
    z = {"name": "z", "dtype": "float32", "shape": ["batch", 20], "range": None, **unsaid}
    x = {"name": "x", "dtype": "float32", "shape": ["batch", 1, 28, 28], "range": [0.0, 1.0], **unsaid}
    assert (graph["inputs"], graph["outputs"]) == ([z], [x])
    assert 0 < graph["errors"]["x"]["rms"] < graph["errors"]["x"]["max"] < 1e-6


def test_the_report_that_travels_has_the_errors_and_limits_by_batch(published: genkit.Bundle) -> None:
    parity = json.loads((published.path / "parity.json").read_text())
    assert parity["ok"]
    (proof,) = [
        c for c in parity["checks"] if (c["graph"], c["subject"]) == ("decoder", "graph proof") and c["measured"]
    ]
    assert proof["measured"]["rms"] <= proof["measured"]["rms_limit"] == 0.5
    assert set(proof["measured"]["batches"]) == {"1", "2", "7", "64"}


def test_golden_vectors_can_be_read_by_onnx_test_tools(published: genkit.Bundle) -> None:
    model = onnx.load(published.path / "encoder.onnx")
    evaluator = onnx.reference.ReferenceEvaluator(model)
    sets = sorted((published.path / "test_data" / "encoder").glob("test_data_set_*"))
    assert len(sets) == 4
    for directory in sets:
        inputs = [onnx.load_tensor(p) for p in sorted(directory.glob("input_*.pb"))]
        outputs = [onnx.load_tensor(p) for p in sorted(directory.glob("output_*.pb"))]
        assert [tensor.name for tensor in outputs] == ["mean", "log_var"]
        found = evaluator.run(None, {tensor.name: numpy_helper.to_array(tensor) for tensor in inputs})
        for expected, actual in zip(outputs, found, strict=True):
            np.testing.assert_allclose(actual, numpy_helper.to_array(expected), rtol=1e-4, atol=1e-5)


def test_verify_imports_no_torch(published: genkit.Bundle) -> None:
    code = (
        "import sys, pathlib, genkit\n"
        "from genkit_onnx.exporter import OnnxExporter\n"
        "from genkit_onnx.runtime import OnnxRuntime\n"
        f"bundle = genkit.Bundle.open(pathlib.Path({str(published.path)!r}))\n"
        "assert OnnxExporter().verify(bundle, [OnnxRuntime()]).ok\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_export_says_nothing_and_disturbs_neither_the_module_nor_the_random_state(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = decoder()
    graph.module.train()
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    export(tmp_path / "bundle", graph)
    assert torch.equal(torch.get_rng_state(), state)
    assert graph.module.training
    assert all(torch.equal(value, before[name]) for name, value in graph.module.state_dict().items())
    assert capfd.readouterr() == ("", "")


# Planted faults


@pytest.mark.parametrize(
    ("name", "fault", "subject", "reason"),
    [
        ("decoder", faults.nudged_weight, "graph proof", "times PyTorch's own"),
        ("encoder", faults.nudged_weight, "graph proof", "times PyTorch's own"),
        ("encoder", faults.swapped_contents, "graph proof", "mean: rms error"),
        ("decoder", faults.static_batch_in_the_middle, "graph proof", "fails at batch 1"),
        ("decoder", faults.ignored_latent, "graph proof", "x does not react to z["),
        ("decoder", faults.clipped_latent, "onnxruntime", "x: rms error"),
        ("decoder", faults.leak_between_rows, "onnxruntime", "rows alone against rows in a batch"),
        ("decoder", faults.missing_external_data, "structure", "is in another file"),
    ],
)
def test_a_planted_fault_is_refused_for_its_reason(
    published: genkit.Bundle, tmp_path: Path, name: str, fault: faults.Plant, subject: str, reason: str
) -> None:
    report = gate(published, name, fault, tmp_path)
    assert [check for check in report.failures if check.subject == subject and reason in check.detail], report.failures


def test_the_gate_passes_the_same_file_without_a_fault(published: genkit.Bundle, tmp_path: Path) -> None:
    assert gate(published, "decoder", no_fault, tmp_path).ok


@pytest.mark.parametrize("fault", [faults.nudged_weight, faults.clipped_latent, faults.not_a_number_in_the_tails])
def test_verify_refuses_a_fault_whose_sha256_was_brought_up_to_date(
    published: genkit.Bundle, tmp_path: Path, fault: faults.Plant
) -> None:
    path = shutil.copytree(published.path, tmp_path / "copy")
    model = onnx.load(path / "decoder.onnx")
    fault(model, np.random.default_rng(0))
    (path / "decoder.onnx").write_bytes(model.SerializeToString())
    genkit.seal(path, published.manifest)
    report = OnnxExporter().verify(genkit.Bundle.open(path), [])
    assert {check.subject for check in report.failures} == {"graph proof"}


def overwrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


def spoil(array: NDArray[Any]) -> NDArray[Any]:
    spoilt = array.copy()
    spoilt.ravel()[-1] = np.nan
    return spoilt


def replace_vector(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Path], object]:
    def damage(content: bytes) -> bytes:
        tensor = onnx.TensorProto.FromString(content)
        changed: bytes = numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name).SerializeToString()
        return changed

    return overwrite(f"test_data/decoder/test_data_set_2/{name}", damage)


@pytest.mark.parametrize("reseal", [False, True])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (overwrite("decoder.onnx", lambda b: b[: len(b) // 2]), "decoder.onnx cannot be read"),
        (overwrite("decoder.onnx", lambda b: b"not a graph"), "decoder.onnx cannot be read"),
        (overwrite("decoder.onnx", lambda b: b""), "onnx's checker rejects the file"),
        (overwrite("decoder.onnx", lambda b: b.replace(b"Relu", b"R\xe5lu")), "cannot be checked, "),
        (lambda path: (path / "decoder.onnx").unlink(), "decoder.onnx: not in the manifest's files"),
        (overwrite("test_data/decoder/test_data_set_2/input_0.pb", lambda b: b[:-9]), "input_0.pb: cannot be read"),
        (lambda path: shutil.rmtree(path / "test_data"), "test_data_set_0/input_0.pb: cannot be read"),
        (replace_vector("reference_0.pb", spoil), "reference_0.pb: holds values that are not finite"),
        (replace_vector("reference_0.pb", lambda a: a * 1e308), "the manifest's errors are not those"),
        (replace_vector("output_0.pb", lambda a: a * np.float32(1.01)), "the manifest's errors are not those"),
        (replace_vector("input_0.pb", lambda a: a * np.float32(1.01)), "x: rms error"),
        (lambda path: shutil.copy(path / "encoder.onnx", path / "decoder.onnx"), "the inputs are x, expected z"),
    ],
)
def test_verify_reports_whatever_is_damaged_and_never_raises(
    published: genkit.Bundle, tmp_path: Path, damage: Callable[[Path], object], reason: str, reseal: bool
) -> None:
    path = shutil.copytree(published.path, tmp_path / "copy")
    damage(path)
    if reseal:
        genkit.seal(path, published.manifest)
    report = OnnxExporter().verify(genkit.Bundle.open(path), [OnnxRuntime()])
    assert all(check.detail and "\n" not in check.detail for check in report.checks)
    if reseal:
        assert [check for check in report.failures if reason in check.detail], report.failures
    else:  # what is not what was exported is not read any further
        assert {check.subject for check in report.checks} == {"files"}
        assert not report.ok


# Runtimes


class Pretender:
    """onnxruntime, with something done to its answers."""

    name = "pretender"
    version = "1"

    def __init__(self, change: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]) -> None:
        self.change = change

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        run = OnnxRuntime().load(path)
        return lambda inputs: self.change(run(inputs))


def noisy() -> Pretender:
    random = np.random.default_rng(0)
    return Pretender(lambda y: {k: v + random.normal(0, 1e-8, v.shape).astype(v.dtype) for k, v in y.items()})


def brain_float(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {k: (v.view(np.uint32) & 0xFFFF0000).view(np.float32) for k, v in values.items()}


def crash(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    raise RuntimeError("out of registers\nand a long trace")


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (Pretender(brain_float), "x: rms error"),
        (noisy(), "x: a second call gives other bits"),
        (Pretender(crash), "fails at batch 1: out of registers"),
        (Pretender(lambda y: {"image": y["x"]}), "gives image at batch 1, expected x"),
        (Pretender(lambda y: {"x": y["x"].astype(np.float64)}), "x: is float64"),
        (Pretender(lambda y: {"x": y["x"][..., :1]}), "x: is float32 (1, 1, 28, 1) at batch 1"),
        (Pretender(lambda y: {"x": np.zeros_like(y["x"])}), "x: rms error"),
        (Pretender(lambda y: {"x": y["x"] * np.float32("inf")}), "values are not finite, the first at batch 1"),
        (
            Pretender(lambda y: {"x": y["x"] + np.float32(1e-3 * (len(y["x"]) > 1))}),
            "rows alone against rows in a batch",
        ),
    ],
)
def test_an_unfaithful_runtime_is_refused_for_its_reason(
    published: genkit.Bundle, tmp_path: Path, runtime: Pretender, reason: str
) -> None:
    report = gate(published, "decoder", no_fault, tmp_path, runtime)
    assert {check.subject for check in report.failures} == {"pretender"}
    assert [check for check in report.failures if reason in check.detail], report.failures


def test_a_careless_runtime_passes_with_its_operators_named(published: genkit.Bundle, tmp_path: Path) -> None:
    unit = entry(published, "decoder").errors["x"].rms
    careless = Pretender(lambda y: {"x": y["x"] + np.float32(8 * unit)})
    report = gate(published, "decoder", no_fault, tmp_path, careless)
    assert report.ok
    assert any("suspect Tanh" in check.detail for check in report.checks if check.subject == "pretender")


# Export refuses, and leaves everything as it was


class Branching(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (z * 2 if z.isnan().any() else z,)


class Overflowing(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return ((40 * z).exp(),)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Branching(), "translation: "),
        (Overflowing(), "float32 is not finite at batch"),
        (nn.Sequential(nn.Linear(3, 3)), "the module fails in float32 at batch 1"),
    ],
)
def test_a_module_that_cannot_be_exported_is_refused_in_two_lines(
    tmp_path: Path, module: nn.Module, reason: str
) -> None:
    graph = genkit.Graph("g", module, {"z": normal(4)}, ("y",))
    with pytest.raises(genkit.ExportRefused) as refused:
        export(tmp_path / "bundle", graph)
    message = str(refused.value)
    assert refused.value.status == 1
    assert reason in message
    assert len(message.splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.rejected.json"]
    kept = json.loads((tmp_path / "bundle.rejected.json").read_text())
    assert not kept["ok"]
    assert str(tmp_path / "bundle.rejected.json") in message


class Noisy(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (z + torch.randn_like(z),)


def test_a_failing_export_leaves_an_earlier_bundle_as_it_was_and_a_passing_one_replaces_it(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    export(target, decoder())
    before = tree(target)
    with pytest.raises(genkit.ExportRefused):
        export(target, genkit.Graph("g", Overflowing(), {"z": normal(4)}, ("y",)))
    assert tree(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.rejected.json"]

    export(target, encoder())
    assert genkit.Bundle.open(target).check_files()[0].ok
    assert not (target / "decoder.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("opset", [7, 17, NEWEST_OPSET + 1, 99])
def test_an_opset_that_the_translator_does_not_write_is_a_wrong_request(tmp_path: Path, opset: int) -> None:
    with pytest.raises(genkit.InvalidOption, match=f"opset = {opset}: this exporter writes 18 to {NEWEST_OPSET}"):
        export(tmp_path / "bundle", decoder(), opset=opset)
    assert list(tmp_path.iterdir()) == []


class Convolutional(nn.Module):
    """What opsets differ in: GELU, group norm, a reduction, a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(5, 8 * 4)
        self.norm, self.conv = nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        h = nn.functional.gelu(self.norm(self.input(z).unflatten(1, (8, 2, 2))))
        h = nn.functional.interpolate(h, scale_factor=2)
        return self.conv(h).sigmoid(), nn.functional.gelu(h).amax(1).mean((1, 2))


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST_OPSET + 1))
def test_any_opset_can_be_asked_for_and_gelu_is_spelt_portably_in_all(tmp_path: Path, opset: int) -> None:
    export(tmp_path / "bundle", genkit.Graph("g", Convolutional(), {"z": normal(5)}, ("x", "y")), opset=opset)
    model = onnx.load(tmp_path / "bundle" / "g.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", opset)]
    assert not {"Gelu", "GroupNormalization"} & {node.op_type for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    erfs = [node for node in model.graph.node if node.op_type == "Erf"]
    readers = [[node for node in model.graph.node if erf.output[0] in node.input] for erf in erfs]
    assert len(readers) == 2
    for (product,) in readers:
        (total,) = [node for node in model.graph.node if product.output[0] in node.input]
        half = makers[product.input[0]]
        assert [node.op_type for node in (product, total, half)] == ["Mul", "Add", "Mul"]
        assert half.output[0] in total.input, "h + h * erf(x / sqrt(2))"


def test_a_model_without_any_graph_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(genkit.ExportRefused, match="decoder: it is implicit"):
        export(tmp_path / "bundle", genkit.NoGraph("decoder", "it is implicit"))


@pytest.mark.parametrize("names", [("a", "a"), ("../a",), ("a b",)])
def test_graph_names_that_cannot_be_file_names_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    graphs = [dataclasses.replace(decoder(), name=name) for name in names]
    with pytest.raises(genkit.ExportRefused, match="names have to differ"):
        export(tmp_path / "bundle", *graphs)


def test_a_bundle_can_be_written_into_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(genkit.ExportRefused):
        export(Path(), genkit.Graph("g", Overflowing(), {"z": normal(4)}, ("y",)))
    assert (tmp_path / "here.rejected.json").exists()
    assert export(Path(), decoder()).ok


def test_weights_that_are_not_those_of_the_checkpoint_are_noticed(published: genkit.Bundle) -> None:
    graph = decoder()
    initial = initializers(onnx.load(published.path / "decoder.onnx"), published.path)
    assert compare_weights(graph, initial).ok
    with torch.no_grad():
        next(graph.module.parameters())[0, 0] *= 1 + 2**-23
    check = compare_weights(graph, initial)
    assert not check.ok
    assert "net.0.weight" in check.detail


# Other kinds of graph


class Conditional(nn.Module):
    """Labels go in, codes come out, batch norm stays as it was trained, and one input is not used at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.mix = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ELU(), nn.Linear(16, 8))
        self.codebook = nn.Parameter(torch.randn(32, 8))

    def forward(self, z: Tensor, condition: Tensor, spare: Tensor) -> tuple[Tensor, ...]:
        h = self.mix(torch.cat([z, self.embedding(condition)], 1))
        return h.softmax(1), (h[:, None] - self.codebook).square().sum(2).argmin(1)


def test_labels_codes_and_unused_inputs_pass_and_are_described(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Conditional()
    with torch.no_grad():
        module(torch.randn(64, 6), torch.randint(10, (64,)), torch.randn(64, 2))  # the statistics of batch norm
    labels = genkit.Input((), torch.int64, lambda n, g: torch.randint(10, (n,), generator=g))
    inputs = {"z": normal(6), "condition": labels, "spare": normal(2)}
    export(tmp_path / "bundle", genkit.Graph("g", module, inputs, ("probabilities", "code")))
    bundle = genkit.Bundle.open(tmp_path / "bundle")
    (graph,) = bundle.manifest.graphs
    assert [(v.name, v.dtype, v.shape) for v in graph.inputs][1] == ("condition", "int64", ("batch",))
    assert [(v.name, v.dtype, v.shape) for v in graph.outputs][1] == ("code", "int64", ("batch",))
    assert set(graph.errors) == {"probabilities"}
    assert graph.ignores["spare"]["probabilities"] == (0, 1)
    assert not graph.ignores["condition"]["probabilities"]
    kept = {tensor.name for tensor in onnx.load(bundle.path / graph.file).graph.initializer}
    assert {"mix.0.weight", "mix.1.running_var"} <= kept

    wrong = Pretender(lambda y: {**y, "code": y["code"] + (np.arange(len(y["code"])) == 5)})
    report = OnnxExporter().verify(bundle, [wrong])
    assert [check.detail for check in report.failures] == ["code: 2 of 74 whole numbers are wrong, limit 0"]


class Picky(nn.Module):
    """Takes its inputs as they come."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(1)[:, :3] - inputs[1],)


def test_a_module_may_take_its_inputs_as_a_list(tmp_path: Path) -> None:
    graph = genkit.Graph("g", Picky(), {"x": image(), "shift": normal(3)}, ("y",))
    assert export(tmp_path / "bundle", graph).ok


class Normalising(nn.Module):
    """Nothing but constants that float32 has to round, and an output that is an input."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x - 0.1307) / 0.3081, x


def test_the_rounding_of_constants_is_no_error_of_the_graph(tmp_path: Path) -> None:
    report = export(tmp_path / "bundle", genkit.Graph("g", Normalising(), {"x": normal(5)}, ("y", "same")))
    (proof, same) = [check for check in report.checks if check.subject == "graph proof" and check.measured]
    assert proof.measured["rms"] < 1e-6
    assert same.measured["rms"] == 0
    model = onnx.load(tmp_path / "bundle" / "g.onnx")
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "y", "same"]


def test_the_decoder_of_the_tests_is_the_textbook_one() -> None:
    assert sum(p.numel() for p in Decoder().parameters()) == 20 * 400 + 400 + 400 * 784 + 784


class Lookup(nn.Module):
    """Gathers along the last axis, from more elements than onnx's own evaluator can choose among."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(3, 5)
        self.table = nn.Linear(3, 40)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        index = (self.scores(z) > 0).long() * torch.tensor([39, 7, 0, 21, 12])
        table = self.table(z)
        return table.gather(-1, index), table.unflatten(1, (8, 5)).gather(-1, index[:, None, :2] % 5)


def test_gathers_along_the_last_axis_and_of_fewer_rows_are_proven(tmp_path: Path) -> None:
    export(tmp_path / "bundle", genkit.Graph("g", Lookup(), {"z": normal(3)}, ("y", "fewer")))
    assert [value.shape for value in genkit.Bundle.open(tmp_path / "bundle").manifest.graphs[0].outputs] == [
        ("batch", 5),
        ("batch", 1, 2),
    ]


class Learned(nn.Module):
    """What is computed from weights alone, as the scale of a learned prior is."""

    def __init__(self, positive: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.loc, self.raw = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.positive = positive

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.loc + self.positive(self.raw) * z,)


@pytest.mark.parametrize("positive", [torch.exp, nn.functional.softplus])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_computed_from_weights_is_not_rounded_on_the_way(
    tmp_path: Path, positive: Callable[[Tensor], Tensor], seed: int
) -> None:
    torch.manual_seed(seed)
    report = export(tmp_path / "bundle", genkit.Graph("g", Learned(positive), {"z": normal(6)}, ("y",)))
    (proof,) = [c.measured for c in report.checks if c.subject == "graph proof" and "rms" in c.measured]
    assert proof["rms"] < 1e-3
    assert any("2 tensors have the bits of the checkpoint" in check.detail for check in report.checks)


class Certain(nn.Module):
    """The logarithm of probabilities, many of which are nearly 1."""

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.logsigmoid(10 + z),)


def test_the_logarithm_of_a_sigmoid_keeps_its_digits(tmp_path: Path) -> None:
    report = export(tmp_path / "bundle", genkit.Graph("g", Certain(), {"z": normal(50)}, ("y",)))
    (runtime,) = [c.measured for c in report.checks if c.subject == "onnxruntime" and "rows alone" not in c.detail][:1]
    assert runtime["rms"] < 4


class Nearest(nn.Module):
    """The nearer of -1 and 1 to z + shift, for each shift; where z + shift is 0, rounding decides."""

    def __init__(self, shifts: Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.tensor([-1.0, 1.0]))
        self.register_buffer("shifts", shifts)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (((z + self.shifts).unsqueeze(2) - self.codes).square().argmin(2),)


class Undecided:
    """onnxruntime, with another choice of the first code where z is 0."""

    name = "undecided"
    version = "1"

    def __init__(self, choose: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        self.choose = choose

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        run = OnnxRuntime().load(path)

        def answer(inputs: genkit.Arrays) -> dict[str, NDArray[Any]]:
            code, zero = run(inputs)["code"].copy(), inputs["z"][:, 0] == 0
            code[zero, 0] = self.choose(code[zero, 0])
            return {"code": code}

        return answer


def test_where_rounding_decides_between_two_codes_a_runtime_may_take_either_and_no_third(tmp_path: Path) -> None:
    shifts = torch.cat([torch.zeros(1), torch.linspace(0.3, 0.7, 99)])
    export(tmp_path / "bundle", genkit.Graph("g", Nearest(shifts), {"z": normal(1)}, ("code",)))
    bundle = genkit.Bundle.open(tmp_path / "bundle")
    (graph,) = bundle.manifest.graphs
    tied = sum(int((case.ties["code"] != case.references["code"]).sum()) for case in bundle.cases(graph))
    assert 10 <= tied <= 20, "the rows of zeros"

    assert OnnxExporter().verify(bundle, [Undecided(lambda code: 1 - code)]).ok
    report = OnnxExporter().verify(bundle, [Undecided(lambda code: code + 5)])
    assert any(f"code: {tied} of 7400 whole numbers are wrong, limit 0" in check.detail for check in report.failures)


def test_one_code_in_twenty_may_hang_on_rounding(tmp_path: Path) -> None:
    report = export(
        tmp_path / "bundle", genkit.Graph("g", Nearest(torch.tensor([0.0, 0.4, 0.7])), {"z": normal(1)}, ("code",))
    )
    (proof,) = [check.measured for check in report.checks if check.subject == "graph proof" and check.measured]
    assert proof["wrong"] == 0
    assert 10 <= proof["ties"] <= 15, "of 222"


def test_codes_of_which_many_hang_on_rounding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(genkit.ExportRefused, match=r"hang on rounding, limit"):
        export(tmp_path / "bundle", genkit.Graph("g", Nearest(torch.zeros(3)), {"z": normal(1)}, ("code",)))


def test_a_distribution_that_the_manifest_cannot_say_is_refused(tmp_path: Path) -> None:
    z = genkit.Input((20,), torch.float32, normal(20).draw, {"kind": "exponential", "parameters": [1.0]})
    graph = genkit.Graph("decoder", Decoder(), {"z": z}, ("x",), {"x": (0.0, 1.0)})
    with pytest.raises(genkit.ExportRefused, match=r"'exponential'.* a kind of normal, laplace, gumbel, uniform"):
        export(tmp_path / "bundle", graph)
