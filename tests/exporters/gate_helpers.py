"""The textbook VAE as two graphs, and graphs that are not as they should be: faults planted, others written by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import torch
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.proof import examine
from genkit_onnx.runtime import OnnxRuntime
from genkit_onnx.structure import notes
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

import genkit
from benchmarks.gate.graph_faults import Plant


def no_fault(model: ModelProto, random: np.random.Generator) -> None:
    """The graph as it is."""


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


def gate(bundle: genkit.Bundle, name: str, fault: Plant, directory: Path, *runtimes: genkit.Runtime) -> genkit.Report:
    """What the gate of ``export`` says about a graph of a proven bundle after ``fault`` has changed it."""
    graph = entry(bundle, name)
    model = onnx.load(bundle.path / graph.file)
    fault(model, np.random.default_rng(0))
    faulty = directory / "faulty.onnx"
    faulty.write_bytes(model.SerializeToString())
    promised = notes(graph, bundle.manifest.about)
    return genkit.Report(
        tuple(examine(graph, faulty, bundle.cases(graph), runtimes or [OnnxRuntime()], promised=promised))
    )


def edited(bundle: Path, copy: Path, *, reseal: bool) -> Path:
    """A copy of which one weight of the decoder's 321,000 was doubled."""
    shutil.copytree(bundle, copy)
    model = onnx.load(copy / "decoder.onnx")
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "net.2.weight"]
    array = numpy_helper.to_array(weight).copy()
    array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= 2
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    (copy / "decoder.onnx").write_bytes(model.SerializeToString())
    if reseal:
        genkit.seal(copy, genkit.Bundle.open(copy).manifest)
    return copy


def written(folder: Path, body: str, inputs: str = "float[batch,4,4] z", outputs: str = "float[batch] x") -> Path:
    """The file of a graph."""
    text = f'<ir_version: 10, opset_import: ["" : 18]> g ({inputs}) => ({outputs}) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), folder / "written.onnx")
    return folder / "written.onnx"
