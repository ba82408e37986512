"""Graphs in fp16 and int8: beside the proven ones, as near to them as they say, and refused with any fault."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from gate_helpers import decoder, normal
from genkit_onnx import precision, reducing
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.runtime import OnnxRuntime
from genkit_onnx.translate import NEWEST_OPSET
from helpers import Genkit, tree
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

import genkit
from genkit import session
from genkit.data import take

Arrays = dict[str, NDArray[Any]]
Fault = Callable[[ModelProto], object]


class Convolutional(nn.Module):
    """A latent to a picture, by convolutions with batch norm and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(12, 32 * 4 * 4)
        self.up = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.norm, self.out = nn.BatchNorm2d(16), nn.Conv2d(16, 3, 3, padding=1)
        self.norm.running_mean.normal_()  # type: ignore[union-attr]
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        h = nn.functional.gelu(self.input(z)).unflatten(1, (32, 4, 4))
        h = nn.functional.gelu(self.norm(self.up(h)))
        return (self.out(h).sigmoid(),)


class Conditional(nn.Module):
    """A latent and a label to a picture and its spread."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.net = nn.Sequential(nn.Linear(24, 128), nn.ELU(), nn.Linear(128, 100))

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        h = self.net(torch.cat([z, self.embedding(condition)], 1))
        return h.sigmoid(), nn.functional.softplus(h)


class Quantizing(nn.Module):
    """A picture to the nearest of 32 vectors at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 8, 3, 1, 1))
        self.vectors = nn.Parameter(torch.randn(32, 8) / 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.net(x).permute(0, 2, 3, 1)
        distances = self.vectors.square().sum(1) - 2 * h @ self.vectors.T
        return distances.argmin(-1), h


def graphs() -> list[genkit.Graph]:
    torch.manual_seed(5)
    unit = {"x": (0.0, 1.0)}
    labels = genkit.Input((), torch.int64, lambda n, g: torch.randint(10, (n,), generator=g))
    image = genkit.Input((1, 8, 8), torch.float32, lambda n, g: torch.rand(n, 1, 8, 8, generator=g).round())
    return [
        decoder(),
        genkit.Graph("conv", Convolutional(), {"z": normal(12)}, ("x",), unit),
        genkit.Graph("conditional", Conditional(), {"z": normal(8), "condition": labels}, ("x", "spread"), unit),
        genkit.Graph("codes", Quantizing(), {"x": image}, ("codes", "vectors"), unit),
    ]


def export(destination: Path, *graphs: genkit.Graph, inline_limit: int | None = None, **options: Any) -> genkit.Report:
    options = {"precisions": ("fp16", "int8"), "opset": 18, **options}
    exporter = OnnxExporter(inline_limit=inline_limit)
    return exporter.export(
        graphs, destination, about={"recipe": {"name": "small"}}, runtimes=[OnnxRuntime()], **options
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> genkit.Bundle:
    """Four kinds of graphs, each in three precisions."""
    path = tmp_path_factory.mktemp("published") / "bundle"
    export(path, *graphs())
    return genkit.Bundle.open(path)


def reduced(bundle: genkit.Bundle, name: str) -> genkit.ReducedGraph:
    return next(graph for graph in bundle.manifest.reduced if graph.name == name)


def full(bundle: genkit.Bundle, name: str) -> genkit.BundledGraph:
    return next(graph for graph in bundle.manifest.graphs if graph.name == name)


def weights(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def within(bundle: genkit.Bundle, graph: genkit.ReducedGraph, inputs: genkit.Arrays, directory: Path) -> NDArray[Any]:
    """The rows that the budgets hold for: on them, no tensor is off the end of its scale by more than half a step."""
    model, rows = onnx.load(bundle.path / f"{graph.of}.onnx"), len(next(iter(inputs.values())))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in graph.ranges if name not in inputs)
    (directory / "observed.onnx").write_bytes(model.SerializeToString())
    values = {**inputs, **OnnxRuntime().load(directory / "observed.onnx")(inputs)}
    kept = np.ones(rows, bool)
    for name, (low, high) in graph.ranges.items():
        half = (high - low) / 255 / 2
        if len(values[name]) == rows:
            kept &= [bool(((row >= low - half) & (row <= high + half)).all()) for row in values[name]]
    return kept


NAMES = ["decoder", "conv", "conditional", "codes"]


# What is right passes


def test_every_graph_is_there_in_every_precision_under_a_name_that_says_so(published: genkit.Bundle) -> None:
    manifest = json.loads((published.path / "manifest.json").read_text())
    found = [(graph["of"], graph["precision"], graph["name"], graph["file"]) for graph in manifest["reduced"]]
    assert sorted(found) == sorted((n, p, f"{n}_{p}", f"{n}_{p}.onnx") for n in NAMES for p in ("fp16", "int8"))
    assert [graph["file"] for graph in manifest["graphs"]] == [f"{name}.onnx" for name in NAMES]
    for graph in published.manifest.reduced:
        said = {entry.key: entry.value for entry in onnx.load(published.path / graph.file).metadata_props}
        assert (said["genkit.precision"], said["genkit.graph"]) == (graph.precision, graph.name)
        assert graph.file in manifest["files"]


def test_a_loaded_bundle_runs_the_precision_that_was_asked_for(published: genkit.Bundle) -> None:
    z = published.cases(full(published, "decoder"))[1].inputs["z"]
    for kind in ("fp16", "int8"):
        expected = OnnxRuntime().load(published.path / f"decoder_{kind}.onnx")({"z": z})["x"]
        loaded = genkit.load_bundle(published.path, precision=kind, verify=False)
        np.testing.assert_array_equal(loaded.decode(z), expected)
    with pytest.raises(genkit.UnknownName, match=r"no precision named 'int4'.* fp16, fp32, int8"):
        genkit.load_bundle(published.path, precision="int4")


@pytest.mark.parametrize("name", NAMES)
def test_the_file_in_less_than_fp32_can_take_the_place_of_the_other(published: genkit.Bundle, name: str) -> None:
    runtime, graph = OnnxRuntime(), full(published, name)
    case = published.cases(graph)[2]
    expected = runtime.load(published.path / graph.file)(case.inputs)
    for kind in ("fp16", "int8"):
        found = runtime.load(published.path / f"{name}_{kind}.onnx")(case.inputs)
        assert [(k, v.dtype, v.shape) for k, v in found.items()] == [(k, v.dtype, v.shape) for k, v in expected.items()]
        assert any(found[key].tobytes() != expected[key].tobytes() for key in found if found[key].dtype == np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_has_the_errors_that_anybody_can_measure(
    published: genkit.Bundle, tmp_path: Path, name: str
) -> None:
    cases = published.cases(full(published, name))
    for graph in (reduced(published, f"{name}_fp16"), reduced(published, f"{name}_int8")):
        function = OnnxRuntime().load(published.path / graph.file)
        rows = [within(published, graph, case.inputs, tmp_path) for case in cases]
        assert graph.precision == "int8" or all(kept.all() for kept in rows)
        for output, said in graph.outputs.items():
            found = np.concatenate([function(c.inputs)[output][kept] for c, kept in zip(cases, rows, strict=True)])
            truth = np.concatenate([c.references[output][kept] for c, kept in zip(cases, rows, strict=True)])
            if output == "codes":
                assert said.measured.agreement == pytest.approx((found == truth).mean(), rel=1e-4)
                continue
            unit, error = {"fp16": 2**-11, "int8": 2**-8}[graph.precision], found - truth
            assert said.measured.rms == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
            assert said.measured.max == pytest.approx(abs(error).max(), rel=1e-4)
            assert said.budget.rms == pytest.approx(16 * unit * np.sqrt((truth**2).mean()))
            assert said.budget.max == pytest.approx(128 * unit * abs(truth).max())
            if output == "x":
                assert said.measured.psnr == pytest.approx(-10 * np.log10((error**2).mean()), abs=1e-3)
                assert said.budget.psnr == {"fp16": 50, "int8": 30}[graph.precision]
            else:
                assert said.measured.psnr is said.budget.psnr is None


def test_a_file_in_fp16_has_half_the_bytes_and_one_in_int8_a_quarter(published: genkit.Bundle) -> None:
    for kind, share in (("fp16", 0.51), ("int8", 0.28)):
        graph = reduced(published, f"decoder_{kind}")
        assert graph.size == (published.path / graph.file).stat().st_size
        assert graph.fp32_size == (published.path / "decoder.onnx").stat().st_size
        assert graph.size / graph.fp32_size < share


@pytest.mark.parametrize("name", NAMES)
def test_products_are_of_the_precision_that_the_file_is_called_by(published: genkit.Bundle, name: str) -> None:
    for kind, dtype in (("fp16", np.float16), ("int8", np.int8)):
        model = onnx.shape_inference.infer_shapes(onnx.load(published.path / f"{name}_{kind}.onnx"))
        made, values = {name: node for node in model.graph.node for name in node.output}, weights(model)
        products = [n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
        assert products
        for node in products:
            source = node.input[1]
            if kind == "int8":
                assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
                source, scale, _ = made[source].input
                channels = values[scale].size if source in values else 1
                assert channels == 1 or channels in values[source].shape
                assert (channels > 1) == (source in values)
            assert source not in values or values[source].dtype == dtype
        assert not [n.op_type for n in model.graph.node if "Dynamic" in n.op_type or n.domain]


def test_what_is_decided_in_a_graph_in_fp16_is_decided_in_float32(published: genkit.Bundle) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(published.path / "codes_fp16.onnx"))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    (decision,) = [node for node in model.graph.node if node.op_type == "ArgMin"]
    (scores,) = [node for node in model.graph.node if decision.input[0] in node.output]
    assert scores.op_type == "Sub"
    assert [kinds[name] for name in (*scores.input, *scores.output)] == [TensorProto.FLOAT] * 3


def test_two_exports_are_the_same_bytes_and_the_graphs_in_fp32_those_of_an_export_without(
    published: genkit.Bundle, tmp_path: Path
) -> None:
    export(tmp_path / "again", *graphs())
    assert tree(tmp_path / "again") == tree(published.path)
    export(tmp_path / "alone", *graphs(), precisions=())
    alone = genkit.Bundle.open(tmp_path / "alone")
    assert alone.manifest.graphs == published.manifest.graphs
    assert not alone.manifest.reduced
    for name in NAMES:
        assert (alone.path / f"{name}.onnx").read_bytes() == (published.path / f"{name}.onnx").read_bytes()


def test_a_reduced_graph_holds_nothing_of_the_exporting_machine(published: genkit.Bundle) -> None:
    for graph in published.manifest.reduced:
        model = onnx.load(published.path / graph.file)
        assert not model.doc_string
        assert not [node.name for node in model.graph.node if node.doc_string or node.metadata_props]
        assert all(entry.key.startswith("genkit.") for entry in model.metadata_props)
        assert b"/tmp" not in (published.path / graph.file).read_bytes()


def test_verify_checks_reduced_graphs_as_well_and_imports_no_torch(published: genkit.Bundle) -> None:
    code = (
        "import sys, pathlib, genkit\n"
        "from genkit_onnx.exporter import OnnxExporter\n"
        "from genkit_onnx.runtime import OnnxRuntime\n"
        f"bundle = genkit.Bundle.open(pathlib.Path({str(published.path)!r}))\n"
        "report = OnnxExporter().verify(bundle, [OnnxRuntime()])\n"
        "assert report.ok, report\n"
        "assert 'torch' not in sys.modules\n"
        "print(*sorted({(check.graph, check.subject) for check in report.checks}))\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    for name in NAMES:
        for kind in ("fp16", "int8"):
            for subject in ("structure", "reduction", "budget", "onnxruntime"):
                assert f"('{name}_{kind}', '{subject}')" in run.stdout


@pytest.mark.parametrize("opset", [18, NEWEST_OPSET])
def test_reduced_graphs_are_of_the_opset_that_was_asked_for(tmp_path: Path, opset: int) -> None:
    export(tmp_path / "bundle", graphs()[1], opset=opset)
    for kind in ("fp16", "int8"):
        model = onnx.load(tmp_path / "bundle" / f"conv_{kind}.onnx")
        assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]


def test_weights_that_do_not_fit_into_a_file_are_beside_it_in_every_precision(tmp_path: Path) -> None:
    export(tmp_path / "bundle", graphs()[1], inline_limit=1024)
    bundle = genkit.Bundle.open(tmp_path / "bundle")
    for kind in ("fp16", "int8"):
        graph = reduced(bundle, f"conv_{kind}")
        assert graph.data == f"conv_{kind}.onnx.data"
        sizes = [(bundle.path / file).stat().st_size for file in (graph.file, graph.data)]
        assert graph.size == sum(sizes)
        assert sizes[1] > 1024
    assert sorted(path.name for path in bundle.path.glob("*.onnx*")) == sorted(
        f"conv{kind}.onnx{data}" for kind in ("", "_fp16", "_int8") for data in ("", ".data")
    )
    assert OnnxExporter().verify(bundle, [OnnxRuntime()]).ok


# Planted faults


def tensor(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def change(name: str, fault: Callable[[NDArray[Any]], object]) -> Fault:
    """Something done to the values of one initialiser."""

    def plant(model: ModelProto) -> None:
        found = tensor(model, name)
        array = numpy_helper.to_array(found).copy()
        replaced = fault(array)
        array = array if replaced is None else np.asarray(replaced)
        assert array.tobytes() != numpy_helper.to_array(found).tobytes()
        found.CopyFrom(numpy_helper.from_array(array, name))

    return plant


def at(index: Any, factor: float = 1, shift: float = 0) -> Callable[[NDArray[Any]], None]:
    def fault(array: NDArray[Any]) -> None:
        array[index] = array[index] * factor + shift

    return fault


def largest(factor: float) -> Callable[[NDArray[Any]], None]:
    def fault(array: NDArray[Any]) -> None:
        array.ravel()[np.abs(array).argmax()] *= factor

    return fault


def scale_of(model: ModelProto, tensor: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == tensor)


def activation(tensor: str, position: int, fault: Callable[[NDArray[Any]], object]) -> Fault:
    """A fault in the scale (1) or the zero point (2) of a tensor that is computed."""
    return lambda model: change(scale_of(model, tensor).input[position], fault)(model)


def one_sided(tensor: str) -> Fault:
    """The zero point of the way in alone, which moves every number by a step."""

    def plant(model: ModelProto) -> None:
        node = scale_of(model, tensor)
        model.graph.initializer.append(
            numpy_helper.from_array(weights(model)[node.input[2]] + np.array(1, np.uint8), "moved")
        )
        node.input[2] = "moved"

    return plant


def coarser(name: str) -> Fault:
    """One channel at a fourth of its resolution, with values that fit its scale."""

    def quarter(array: NDArray[Any]) -> None:
        array[3] = np.rint(array[3] / 4)

    def plant(model: ModelProto) -> None:
        change(f"{name}_scale", at(3, 4))(model)
        change(f"{name}_quantized", quarter)(model)

    return plant


def other_operator(old: str, new: str) -> Fault:
    def plant(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == old)
        node.op_type = new

    return plant


def attribute(operator: str, name: str, value: object) -> Fault:
    def plant(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == operator)
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return plant


def insert(name: str, *nodes: NodeProto, **constants: NDArray[Any]) -> Fault:
    """Nodes, which read ``old`` and write ``new``, between a tensor and those who read it."""

    def plant(model: ModelProto) -> None:
        position = next((i + 1 for i, node in enumerate(model.graph.node) if name in node.output), 0)
        for node in model.graph.node:
            node.input[:] = ["new" if read == name else read for read in node.input]
        for node in nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [name if read == "old" else read for read in copy.input]
            model.graph.node.insert(position, copy)
            position += 1
        model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())

    return plant


def dynamic() -> Fault:
    return insert(
        "relu",
        helper.make_node("DynamicQuantizeLinear", ["old"], ["q", "s", "zp"]),
        helper.make_node("DequantizeLinear", ["q", "s", "zp"], ["new"]),
    )


def swap(one: str, other: str) -> Fault:
    def plant(model: ModelProto) -> None:
        names = {one: other, other: one}
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]

    return plant


def widen(model: ModelProto) -> None:
    """float32 arithmetic on float16 weights, which is neither."""
    for node in [node for node in model.graph.node if node.op_type == "Gemm"]:
        casts = [helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT) for name in [*node.input]] + [
            helper.make_node("Cast", [f"{node.output[0]}_wide"], [node.output[0]], to=TensorProto.FLOAT16)
        ]
        node.input[:] = [f"{name}_wide" for name in node.input]
        node.output[0] = f"{node.output[0]}_wide"
        position = list(model.graph.node).index(node)
        for i, cast in enumerate(casts[:-1]):
            model.graph.node.insert(position + i, cast)
        model.graph.node.insert(position + len(casts), casts[-1])


WEIGHT = "net.0.weight"

FAULTS: list[tuple[str, Fault, str, str]] = [
    ("decoder_int8", change(f"{WEIGHT}_scale", at(3, 2)), "reduction", f"{WEIGHT} is not the nearest in int8"),
    ("decoder_int8", change(f"{WEIGHT}_scale", at(3, 1.02)), "reduction", f"{WEIGHT} is not the nearest in int8"),
    ("decoder_int8", change(f"{WEIGHT}_scale", lambda a: a * 2), "onnxruntime", "x: rms error"),
    ("decoder_int8", change(f"{WEIGHT}_zero_point", at(3, shift=1)), "reduction", f"{WEIGHT} is not the nearest"),
    ("decoder_int8", change(f"{WEIGHT}_quantized", at((3, 7), shift=2)), "reduction", f"{WEIGHT} is not the nearest"),
    ("decoder_int8", coarser(WEIGHT), "reduction", f"{WEIGHT} has a scale that is too coarse"),
    ("decoder_int8", change("net.0.bias_quantized", at(3, shift=9)), "reduction", "net.0.bias is not the nearest"),
    ("decoder_int8", activation("relu", 1, lambda a: a * np.float32(1.01)), "reduction", "relu has the scale"),
    ("decoder_int8", activation("relu", 1, lambda a: a * np.float32(2)), "reduction", "relu has the scale"),
    ("decoder_int8", activation("z", 2, lambda a: a + np.array(1, a.dtype)), "reduction", "z has the zero point"),
    ("decoder_int8", one_sided("z"), "reduction", "z has the zero point"),
    ("decoder_int8", one_sided("relu"), "onnxruntime", "more than was measured at export"),
    ("decoder_int8", dynamic(), "structure", "DynamicQuantizeLinear scales a batch as a whole"),
    ("conv_int8", attribute("BatchNormalization", "epsilon", 0.1), "reduction", "is not the BatchNormalization of"),
    ("conv_int8", change("norm.running_var", at(3, 1.001)), "reduction", "norm.running_var is not the constant"),
    ("codes_int8", attribute("ArgMin", "axis", 1), "structure", "onnx's checker rejects the file"),
    ("codes_int8", other_operator("ArgMin", "ArgMax"), "reduction", "ArgMax that is not the ArgMin"),
    ("codes_int8", other_operator("ArgMin", "ArgMax"), "onnxruntime", "of the whole numbers, at least 0.75 needed"),
    ("decoder_fp16", change(WEIGHT, largest(1.002)), "reduction", f"{WEIGHT} is not the nearest in float16"),
    ("decoder_fp16", change(WEIGHT, at(3, 2)), "onnxruntime", "x: "),
    ("decoder_fp16", change("net.2.bias", at(3, np.inf)), "reduction", "net.2.bias is not the nearest in float16"),
    ("decoder_fp16", change("net.2.bias", at(3, np.inf)), "onnxruntime", "more than was measured at export"),
    ("decoder_fp16", change("net.2.bias", at(3, np.nan)), "onnxruntime", "x: values are not finite"),
    ("decoder_fp16", other_operator("Relu", "Elu"), "reduction", "reads a Elu that is not the Relu"),
    ("decoder_fp16", other_operator("Tanh", "Softsign"), "onnxruntime", "x: rms error"),
    ("decoder_fp16", widen, "reduction", f"{WEIGHT} is float16, expected float16, and used as such"),
    (
        "decoder_fp16",
        insert("relu", helper.make_node("Min", ["old", "top"], ["new"]), top=np.array(1, np.float16)),
        "reduction",
        "reads a Min that is not the Relu",
    ),
    ("conv_fp16", swap("norm.running_mean", "norm.bias"), "reduction", "norm.running_mean is not the nearest"),
    ("conditional_fp16", attribute("Gather", "axis", 1), "reduction", "reads a Gather that is not the Gather"),
    ("codes_fp16", change("vectors_1", at((3, 3), 1.1)), "reduction", "vectors_1 is not the nearest in float16"),
]


@pytest.mark.parametrize(("name", "fault", "subject", "reason"), FAULTS)
def test_a_planted_fault_is_refused_for_its_reason(
    published: genkit.Bundle, tmp_path: Path, name: str, fault: Fault, subject: str, reason: str
) -> None:
    path = shutil.copytree(published.path, tmp_path / "copy")
    model = onnx.load(path / f"{name}.onnx")
    fault(model)
    (path / f"{name}.onnx").write_bytes(model.SerializeToString())
    report = verified(path, only(published.manifest, name))
    assert {check.graph for check in report.failures} == {name}
    assert [check for check in report.failures if check.subject == subject and reason in check.detail], report.failures


def only(manifest: genkit.Manifest, name: str) -> genkit.Manifest:
    """Without the graphs that have nothing to do with this one."""
    graphs = [graph for graph in manifest.graphs if name.startswith(graph.name)]
    reduced = [graph for graph in manifest.reduced if graph.name == name]
    return manifest.model_copy(update={"graphs": tuple(graphs), "reduced": tuple(reduced)})


def verified(path: Path, manifest: genkit.Manifest, *runtimes: genkit.Runtime) -> genkit.Report:
    """What verify says of a bundle that was changed, with its hashes and sizes brought up to date."""
    sizes = {graph.name: (path / graph.file).stat().st_size for graph in manifest.reduced}
    updated = [graph.model_copy(update={"size": sizes[graph.name]}) for graph in manifest.reduced]
    genkit.seal(path, manifest.model_copy(update={"reduced": tuple(updated)}))
    return OnnxExporter().verify(genkit.Bundle.open(path), runtimes or [OnnxRuntime()])


def test_nothing_is_refused_where_nothing_was_changed(published: genkit.Bundle, tmp_path: Path) -> None:
    path = shutil.copytree(published.path, tmp_path / "copy")
    assert verified(path, published.manifest).ok


@pytest.mark.parametrize(
    ("file", "posing", "subject", "reason"),
    [
        ("decoder_fp16", "decoder", "reduction", f"{WEIGHT} is float32, expected float16"),
        ("decoder_int8", "decoder", "reduction", f"{WEIGHT} is float32, expected int8"),
        ("decoder_fp16", "decoder_int8", "reduction", f"{WEIGHT} is int8, expected float16"),
        ("decoder_int8", "decoder_fp16", "reduction", f"{WEIGHT} is float16, expected int8"),
        ("decoder", "decoder_fp16", "graph proof", "x: "),
        ("decoder", "decoder_int8", "onnxruntime", "x: rms error"),
        ("conv_fp16", "decoder_fp16", "structure", "the input z has shape [batch, 20], expected [batch, 12]"),
    ],
)
def test_no_precision_passes_for_another(
    published: genkit.Bundle, tmp_path: Path, file: str, posing: str, subject: str, reason: str
) -> None:
    path = shutil.copytree(published.path, tmp_path / "copy")
    model, notes = (onnx.load(path / f"{name}.onnx") for name in (posing, file))
    del model.metadata_props[:]
    model.metadata_props.extend(notes.metadata_props)  # it says what it is taken for
    (path / f"{file}.onnx").write_bytes(model.SerializeToString())
    report = verified(path, only(published.manifest, file))
    assert [check for check in report.failures if check.subject == subject and reason in check.detail], report.failures
    assert file in {check.graph for check in report.failures}


def loosened(graph: genkit.ReducedGraph) -> dict[str, Any]:
    budget = graph.outputs["x"].budget.model_copy(update={"rms": 1.0})
    return {"outputs": {"x": graph.outputs["x"].model_copy(update={"budget": budget})}}


def flattered(graph: genkit.ReducedGraph) -> dict[str, Any]:
    measured = graph.outputs["x"].measured
    measured = measured.model_copy(update={"rms": (measured.rms or 0) / 2})
    return {"outputs": {"x": graph.outputs["x"].model_copy(update={"measured": measured})}}


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (loosened, "the manifest's budget is not the one declared for int8"),
        (flattered, "x: more than was measured at export: rms error"),
        (lambda graph: {"outputs": {}}, "x: the manifest's budget is not the one"),
        (lambda graph: {"of": "nothing"}, "there is no 'nothing'"),
        (lambda graph: {"of": "conv"}, "the input z has shape [batch, 20], expected [batch, 12]"),
        (lambda graph: {"ranges": {}}, "is quantized without a calibration"),
        (lambda graph: {"ranges": {**graph.ranges, "z": (-1e-9, 1e-9)}}, "z has the scale"),
        (lambda graph: {"ranges": {**graph.ranges, "z": (5.0, 6.0)}}, "no golden vector stays within the ranges"),
        (lambda graph: {"ranges": {**graph.ranges, "nothing": (0.0, 1.0)}}, "its ranges cannot be checked"),
        (lambda graph: {"float32": ("Gemm",)}, "in float32 are"),
        (lambda graph: {"fp32_size": 1}, "bytes for"),
        (lambda graph: {"file": "../decoder_int8.onnx"}, "not in the manifest's files"),
        (lambda graph: {"data": "decoder.onnx"}, "no weights are in decoder.onnx"),
    ],
)
def test_what_the_manifest_says_of_a_reduced_graph_is_checked(
    published: genkit.Bundle, tmp_path: Path, lie: Callable[[genkit.ReducedGraph], dict[str, Any]], reason: str
) -> None:
    path = shutil.copytree(published.path, tmp_path / "copy")
    graph = reduced(published, "decoder_int8")
    changed = graph.model_copy(update=lie(graph))
    graphs = tuple(each for each in published.manifest.graphs if each.name in ("decoder", changed.of))
    genkit.seal(path, published.manifest.model_copy(update={"graphs": graphs, "reduced": (changed,)}))
    report = OnnxExporter().verify(genkit.Bundle.open(path), [OnnxRuntime()])
    assert [check for check in report.failures if reason in check.detail], report.failures


class Pretender:
    """onnxruntime, with something done to its answers."""

    name, version = "pretender", "1"

    def __init__(self, change: Callable[[Arrays, genkit.Arrays], Arrays]) -> None:
        self.change = change

    def load(self, path: Path) -> Callable[[genkit.Arrays], Arrays]:
        run = OnnxRuntime().load(path)
        return lambda inputs: self.change(run(inputs), inputs)


def noisy() -> Pretender:
    random = np.random.default_rng(0)
    return Pretender(lambda y, _: {k: v + random.normal(0, 1e-7, v.shape).astype(v.dtype) for k, v in y.items()})


def coupled() -> Pretender:
    return Pretender(lambda y, _: {k: v + (v.mean(0) - 0.5) * np.float32(2e-2) for k, v in y.items()})


def broken_outside() -> Pretender:
    """Not a number where a latent is beyond what int8 was calibrated on."""
    return Pretender(lambda y, x: {k: np.where(np.abs(x["z"]).max() > 8, np.float32("nan"), v) for k, v in y.items()})


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (noisy(), "x: a second call gives other bits"),
        (coupled(), "rows alone against rows in a batch"),
        (broken_outside(), "x: values are not finite"),
        (Pretender(lambda y, _: {"x": y["x"] + np.float32(0.003)}), "x: more than was measured at export"),
        (Pretender(lambda y, _: {"x": y["x"] * 0}), "x: rms error"),
        (Pretender(lambda y, _: {"x": y["x"].astype(np.float16)}), "x: is float16"),
    ],
)
def test_an_unfaithful_runtime_is_refused_for_its_reason(
    published: genkit.Bundle, tmp_path: Path, runtime: genkit.Runtime, reason: str
) -> None:
    path = shutil.copytree(published.path, tmp_path / "copy")
    report = verified(path, only(published.manifest, "decoder_int8"), runtime)
    failures = [check for check in report.failures if check.graph == "decoder_int8"]
    assert {check.subject for check in failures} == {"pretender"}
    assert [check for check in failures if reason in check.detail], failures


# Export refuses, or says what cannot be had


class Loud(nn.Module):
    """Beyond what a float16 can hold, and well within a float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(20, 300)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.net(1e5 * z),)


class Delicate(nn.Module):
    """Amplifies whatever it is off by."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(20, 300)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return ((1000 * self.net(z)).sin(),)


class Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4000))

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (z * self.scale,)


class Bare(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (2 * z,)


@pytest.mark.parametrize(
    ("module", "kind", "reason"),
    [
        (Loud(), "fp16", "g_fp16: fp16: y: values are not finite, the first at batch 1"),
        (Delicate(), "fp16", "g_fp16: onnxruntime: y: rms error"),
        (Delicate(), "int8", "g_int8: onnxruntime: y: rms error"),
        (Bare(), "int8", "no graph can be had in int8 (g_int8: it has no weights that are read by Conv"),
        (Bare(), "fp16", "no graph can be had in fp16 (g_fp16: it would have"),
    ],
)
def test_a_graph_that_misses_its_budget_refuses_the_whole_export(
    tmp_path: Path, module: nn.Module, kind: str, reason: str
) -> None:
    export(tmp_path / "bundle", graphs()[1], precisions=())
    before = tree(tmp_path / "bundle")
    with pytest.raises(genkit.ExportRefused) as refused:
        export(tmp_path / "bundle", genkit.Graph("g", module, {"z": normal(20)}, ("y",)), precisions=(kind,))
    assert reason in str(refused.value)
    assert "limit" in str(refused.value) or "rms" not in reason
    assert tree(tmp_path / "bundle") == before
    kept = json.loads((tmp_path / "bundle.rejected.json").read_text())
    assert not kept["ok"]


def test_what_cannot_be_reduced_is_named_with_its_reason_beside_what_can(tmp_path: Path) -> None:
    scaling = genkit.Graph("scaling", Scaling(), {"z": normal(4000)}, ("y",))
    report = export(tmp_path / "bundle", graphs()[1], scaling)
    manifest = genkit.Bundle.open(tmp_path / "bundle").manifest
    assert {graph.name for graph in manifest.reduced} == {"conv_fp16", "conv_int8", "scaling_fp16"}
    (absent,) = manifest.absent
    assert absent.name == "scaling_int8"
    assert "no weights that are read by Conv, ConvTranspose, Gemm or MatMul" in absent.reason
    assert f"There is no scaling_int8: {absent.reason}." in (tmp_path / "bundle" / "README.md").read_text()
    assert [check.detail for check in report.checks if check.graph == "scaling_int8"] == [
        f"not written: {absent.reason}"
    ]


@pytest.mark.parametrize(
    ("kind", "fault", "reason"),
    [
        ("int8", change(f"{WEIGHT}_scale", at(3, 2)), f"{WEIGHT} is not the nearest in int8"),
        ("int8", activation("relu", 1, lambda a: a * np.float32(1.5)), "relu has the scale"),
        ("int8", activation("z", 2, lambda a: a + np.array(1, a.dtype)), "z has the zero point"),
        ("fp16", change(WEIGHT, largest(1.002)), f"{WEIGHT} is not the nearest in float16"),
        ("fp16", other_operator("Tanh", "Softsign"), "x: rms error"),
    ],
)
def test_a_converter_that_errs_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: genkit.ReducedPrecision, fault: Fault, reason: str
) -> None:
    import onnx_ir

    def erring(*arguments: Any) -> onnx_ir.Model:
        proto = onnx_ir.to_proto(precision.reduce(*arguments))
        fault(proto)
        return onnx_ir.from_proto(proto)

    monkeypatch.setattr(reducing, "reduce", erring)
    with pytest.raises(genkit.ExportRefused):
        export(tmp_path / "bundle", decoder(), precisions=(kind,))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.rejected.json"]
    assert reason in (tmp_path / "bundle.rejected.json").read_text()


def test_names_that_a_reduced_graph_would_have_are_taken(tmp_path: Path) -> None:
    other = genkit.Graph("conv_fp16", Bare(), {"z": normal(20)}, ("y",))
    with pytest.raises(genkit.ExportRefused, match="conv_fp16: names have to differ"):
        export(tmp_path / "bundle", graphs()[1], other, precisions=("fp16",))


# The test loss


class Score:
    """The mean square of what the graph makes of one batch, changed by ``change`` where it is not in fp32."""

    observations = 64

    def __init__(self, change: Callable[[float], float] = lambda loss: loss) -> None:
        self.change = change
        self.calls = 0

    def __call__(self, functions: Mapping[str, genkit.Function]) -> float:
        ((name, function),) = functions.items()
        assert name == "decoder"
        z = np.random.default_rng(0).standard_normal((64, 20), dtype=np.float32)
        loss = float(np.square(function({"z": z})["x"]).sum(tuple(range(1, 4)), dtype=np.float64).mean())
        self.calls += 1
        return loss if self.calls == 1 else self.change(loss)


class NoLoss:
    observations = 1

    def __call__(self, functions: Mapping[str, genkit.Function]) -> float:
        raise genkit.GenkitError("the loss does not run it")


def test_the_change_of_the_test_loss_is_in_the_manifest_with_its_budget(tmp_path: Path) -> None:
    export(tmp_path / "bundle", decoder(), score=Score(), precisions=("int8",))
    loss = reduced(genkit.Bundle.open(tmp_path / "bundle"), "decoder_int8").loss
    assert loss is not None
    assert loss.change == loss.reduced - loss.fp32 != 0
    assert abs(loss.change) < loss.budget == pytest.approx(4 * 2**-8 * loss.fp32)
    assert loss.observations == 64


@pytest.mark.parametrize("change", [lambda loss: 1.02 * loss, lambda loss: 0.98 * loss, lambda loss: float("nan")])
def test_a_test_loss_that_changes_too_much_refuses_the_export(tmp_path: Path, change: Callable[[float], float]) -> None:
    with pytest.raises(genkit.ExportRefused, match="decoder_int8: test loss: "):
        export(tmp_path / "bundle", decoder(), score=Score(change), precisions=("int8",))


def test_where_there_is_no_test_loss_the_manifest_says_why(tmp_path: Path, published: genkit.Bundle) -> None:
    export(tmp_path / "bundle", decoder(), score=NoLoss(), precisions=("int8",))
    graph = reduced(genkit.Bundle.open(tmp_path / "bundle"), "decoder_int8")
    assert (graph.loss, graph.no_loss) == (None, "the loss does not run it")
    assert reduced(published, "decoder_int8").no_loss == "the exporter was given no test loss"


# The command


def test_the_command_measures_what_a_reduced_graph_costs_on_the_test_set(
    here: Genkit, mnist_run: Path, tmp_path: Path
) -> None:
    done = here("export", mnist_run, "--precision", "fp16", "--precision", "int8", "--out", tmp_path / "bundle")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("encoder_", "decoder_"))]
    table = {row[0]: row for row in rows if "of" in row and "MB" in row}
    assert set(table) == {"encoder_fp16", "decoder_fp16", "encoder_int8", "decoder_int8"}
    assert "dB" in table["decoder_int8"]
    loss = json.loads(here("evaluate", mnist_run, "--samples", 0, "--json").stdout)["terms"]["loss"]
    bundle = genkit.Bundle.open(tmp_path / "bundle")
    for graph in bundle.manifest.reduced:
        assert graph.loss is not None
        assert graph.loss.fp32 == pytest.approx(loss, rel=1e-5)  # PyTorch's own, on the same observations
        assert 0 < abs(graph.loss.change) < graph.loss.budget
    verified = here("verify", tmp_path / "bundle").stdout
    assert "decoder_int8  reduction" in verified


def test_a_model_of_several_losses_has_none_to_compare_and_says_so(here: Genkit, tmp_path: Path) -> None:
    run = tmp_path / "run"
    here("train", "--model", "mnist_gan", "--epochs", 1, "--set", "dataset.limit=256", "--out", run)
    done = here("export", run, "--precision", "fp16")
    assert "decoder_fp16 has no test loss: the model has several losses: discriminator, generator\n" in done.stdout
    (graph,) = genkit.Bundle.open(run / "bundle").manifest.reduced
    assert graph.loss is None


def test_calibration_is_on_the_training_set_and_on_what_is_reconstructed(mnist_run: Path) -> None:
    loaded = session.load(mnist_run, genkit.load_plugins().registry, "last", "cpu", None)
    offered = {graph.name: graph for graph in loaded.task.graphs() if isinstance(graph, genkit.Graph)}
    x = offered["encoder"].inputs["x"].draw(64, torch.Generator().manual_seed(3))
    train, _ = take(loaded.task.data.train, range(512))
    seen = {row.numpy().tobytes() for row in train}
    assert all((row * 255).round().to(torch.uint8).numpy().tobytes() in seen for row in x)
    with torch.no_grad():
        loaded.model.encoder.mean.bias += 100  # type: ignore[union-attr, operator]
    calibration = offered["decoder"].inputs["z"].calibration
    assert calibration is not None
    z = calibration(64, torch.Generator().manual_seed(3))
    assert z[0::2].abs().max() < 10 < 90 < z[1::2].min()


def test_a_precision_that_there_is_not_is_a_wrong_request(here: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    done = here("export", mnist_run, "--precision", "fp8", "--out", tmp_path / "bundle", check=False)
    assert (done.returncode, done.stderr) == (2, "error: --precision fp8: it is one of fp32, fp16, int8\n")
    assert not (tmp_path / "bundle").exists()


def test_fp32_alone_is_what_is_exported_when_nothing_else_is_asked_for(
    here: Genkit, mnist_run: Path, tmp_path: Path
) -> None:
    done = here("export", mnist_run, "--precision", "fp32", "--out", tmp_path / "bundle")
    assert "reduced" not in done.stdout
    assert not genkit.Bundle.open(tmp_path / "bundle").manifest.reduced
