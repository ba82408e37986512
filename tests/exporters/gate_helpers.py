"""The textbook VAE as two graphs, and the gate run on files in which a fault was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.proof import examine
from genkit_onnx.runtime import OnnxRuntime
from genkit_onnx.structure import notes
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

import genkit

Fault = Callable[[ModelProto], object]


class Encoder(nn.Module):
    """x in [0, 1] -> mean, log_var; inside, x goes from -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 400)
        self.mean = nn.Linear(400, 20)
        self.log_var = nn.Linear(400, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.hidden((2 * x - 1).flatten(1)).relu()
        return self.mean(h), self.log_var(h)


class Decoder(nn.Module):
    """z -> x in [0, 1], the image of tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Tanh())

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return ((self.net(z).unflatten(1, (1, 28, 28)) + 1) / 2,)


def normal(*shape: int) -> genkit.Input:
    return genkit.Input(shape, torch.float32, lambda n, g: torch.randn(n, *shape, generator=g))


def image() -> genkit.Input:
    return genkit.Input((1, 28, 28), torch.float32, lambda n, g: torch.rand(n, 1, 28, 28, generator=g))


def encoder() -> genkit.Graph:
    torch.manual_seed(1)
    return genkit.Graph("encoder", Encoder(), {"x": image()}, ("mean", "log_var"), {"x": (0.0, 1.0)})


def decoder() -> genkit.Graph:
    torch.manual_seed(2)
    return genkit.Graph("decoder", Decoder(), {"z": normal(20)}, ("x",), {"x": (0.0, 1.0)})


def export(destination: Path, *graphs: genkit.Graph | genkit.NoGraph, opset: int = 18, seed: int = 0) -> genkit.Report:
    about = {
        "recipe": {"name": "textbook"},
        "prior": {"use": "standard_normal", "distribution": {"kind": "normal", "parameters": [0.0, 1.0]}},
    }
    return OnnxExporter().export(graphs, destination, about=about, opset=opset, runtimes=[OnnxRuntime()], seed=seed)


def entry(bundle: genkit.Bundle, name: str) -> genkit.BundledGraph:
    return next(graph for graph in bundle.manifest.graphs if graph.name == name)


def gate(bundle: genkit.Bundle, name: str, fault: Fault, directory: Path, *runtimes: genkit.Runtime) -> genkit.Report:
    """What the gate of ``export`` says about a graph of a proven bundle after ``fault`` has changed it."""
    graph = entry(bundle, name)
    model = onnx.load(bundle.path / graph.file)
    fault(model)
    faulty = directory / "faulty.onnx"
    faulty.write_bytes(model.SerializeToString())
    promised = notes(graph, bundle.manifest.about)
    return genkit.Report(
        tuple(examine(graph, faulty, bundle.cases(graph), runtimes or [OnnxRuntime()], promised=promised))
    )


# Faults


def scale_weight(name: str, factor: float) -> Fault:
    """The largest weight of a tensor, times ``factor``."""

    def fault(model: ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.ravel()[np.abs(array).argmax()] *= factor
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return fault


def round_weights(model: ModelProto) -> None:
    """Every weight as float16 would have it."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), tensor.name))


def retype(model: ModelProto) -> None:
    """The whole graph in float16."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def rewire(name: str, *nodes: onnx.NodeProto, **constants: object) -> Fault:
    """Puts nodes, which read ``old`` and write ``new``, between the graph input ``name`` and those who read it."""

    def fault(model: ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = ["new" if read == name else read for read in node.input]
        for node in nodes:
            node.input[:] = [name if read == "old" else read for read in node.input]
        before = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *before])
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, np.float32), key) for key, value in constants.items()
        )

    return fault


def clip() -> Fault:
    return rewire("z", helper.make_node("Clip", ["old", "low", "high"], ["new"]), low=-4, high=4)


def add_noise() -> Fault:
    return rewire(
        "z",
        helper.make_node("RandomNormalLike", ["old"], ["noise"], scale=1e-12),
        helper.make_node("Add", ["old", "noise"], ["new"]),
    )


def ignore_latent(index: int) -> Fault:
    mask = np.ones(20)
    mask[index] = 0
    return rewire("z", helper.make_node("Mul", ["old", "mask"], ["new"]), mask=mask)


def break_tails() -> Fault:
    return rewire(
        "z",
        helper.make_node("Abs", ["old"], ["size"]),
        helper.make_node("Greater", ["size", "edge"], ["far"]),
        helper.make_node("Where", ["far", "nothing", "old"], ["new"]),
        edge=3.2,
        nothing=np.nan,
    )


def couple_rows() -> Fault:
    """A little of the first row in every row, as batch statistics would do it."""
    return rewire(
        "z",
        helper.make_node("ReduceMean", ["old"], ["all"], keepdims=1),
        helper.make_node("Mul", ["all", "little"], ["leak"]),
        helper.make_node("Add", ["old", "leak"], ["new"]),
        little=1e-3,
    )


def set_batch(size: int) -> Fault:
    def fault(model: ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = size
        del model.graph.value_info[:]

    return fault


def freeze_reshape(model: ModelProto) -> None:
    """The labels say ``batch``, and the reshape inside says 64."""
    node = next(node for node in model.graph.node if node.op_type == "Reshape")
    node.input[1] = "frozen"
    model.graph.initializer.append(numpy_helper.from_array(np.array([64, 1, 28, 28]), "frozen"))


def swap_contents(model: ModelProto) -> None:
    """Mean under the name of log_var and the other way round."""
    other = {"mean": "log_var", "log_var": "mean"}
    for node in model.graph.node:
        node.output[:] = [other.get(name, name) for name in node.output]


def swap_order(model: ModelProto) -> None:
    model.graph.output.reverse()


def drop_output(model: ModelProto) -> None:
    del model.graph.output[-1]


def relabel(version: int) -> Fault:
    def fault(model: ModelProto) -> None:
        model.opset_import[0].version = version

    return fault


def annotate(model: ModelProto) -> None:
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", 'File "somewhere/model.py", line 1'


def externalise(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    place = tensor.external_data.add()
    place.key, place.value = "location", "decoder.onnx.data"
