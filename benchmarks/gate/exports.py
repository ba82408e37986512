"""The campaign's only way to the gate: exports, single files and bundles go in, reports come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import onnx_ir
from genkit_onnx import exporter, translate
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.proof import examine
from genkit_onnx.protobuf import initializers
from genkit_onnx.reference import compare_weights
from genkit_onnx.runtime import OnnxRuntime
from genkit_onnx.structure import notes
from onnx import ModelProto

import genkit

OPSET = 18


def export(destination: Path, graphs: Sequence[genkit.Graph], seed: int, *runtimes: genkit.Runtime) -> genkit.Report:
    """What the gate says about an export; the bundle is at ``destination`` if all is well."""
    about = {"recipe": {"name": "subject"}}
    try:
        return OnnxExporter().export(
            graphs, destination, about=about, opset=OPSET, runtimes=runtimes or [OnnxRuntime()], seed=seed
        )
    except genkit.ExportRefused:
        kept = json.loads(destination.with_name(f"{destination.name}.rejected.json").read_text())
        return genkit.Report(tuple(genkit.Check(**check) for check in kept["checks"]))


def verify(path: Path) -> genkit.Report:
    """What ``genkit verify`` says about the bundle at ``path``."""
    try:
        return OnnxExporter().verify(genkit.Bundle.open(path), [OnnxRuntime()])
    except genkit.GenkitError as error:
        return genkit.Report((genkit.Check("", "bundle", False, str(error)),))


@dataclass(frozen=True)
class Exported:
    """A graph of a bundle that has passed, in which a fault can be planted."""

    graph: genkit.Graph
    bundle: genkit.Bundle

    @property
    def promised(self) -> genkit.BundledGraph:
        """What the manifest says about it."""
        return next(graph for graph in self.bundle.manifest.graphs if graph.name == self.graph.name)

    def model(self) -> ModelProto:
        """A copy of the graph to be changed."""
        return onnx.load(self.bundle.path / self.promised.file)

    def prove(self, model: ModelProto, file: Path) -> genkit.Report:
        """What the gate of ``export`` says about ``model``, written to ``file``, in the place of the graph."""
        file.write_bytes(model.SerializeToString())
        cases, said = self.bundle.cases(self.promised), notes(self.promised, self.bundle.manifest.about)
        proof = examine(self.promised, file, cases, [OnnxRuntime()], promised=said)
        return genkit.Report((*_weights(self.graph, model, file.parent), *proof))


def _weights(graph: genkit.Graph, model: ModelProto, folder: Path) -> Iterator[genkit.Check]:
    if all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer):
        yield compare_weights(graph, initializers(model, folder))


Translate = Callable[..., onnx_ir.Model]  # of a graph, an opset, a seed, and ``careful``


@contextmanager
def translator(change: Callable[[Translate], Translate]) -> Iterator[None]:
    """Exports by another translator, made of the real one."""
    with patch.object(translate, "translate", change(translate.translate)):
        yield


@contextmanager
def after_the_proof(act: Callable[[Path], None]) -> Iterator[None]:
    """Does something to each file of a graph when all has been said about it."""

    def examined(graph: genkit.BundledGraph, file: Path, *arguments: Any, **options: Any) -> Iterator[genkit.Check]:
        yield from examine(graph, file, *arguments, **options)
        act(file)

    with patch.object(exporter, "examine", examined):
        yield
