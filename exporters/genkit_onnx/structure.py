"""What can be said about a graph without running it: labels, shapes, operators, and that nothing else is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

import genkit
from genkit_onnx.protobuf import annotated, nodes, tensors, without_data
from genkit_onnx.reduction import longest_reduction

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
COUPLING = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
"""Operators that choose a scale for a whole batch, so that a row depends on its neighbours."""

Notes = Mapping[str, str]


def notes(
    graph: genkit.BundledGraph,
    about: Mapping[str, Any],
    precision: str = "fp32",
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Notes:
    """What a published file says about itself, so that it still can be understood when it is alone."""
    recipe = about.get("recipe") or {}
    said = {
        "format_version": "1",
        "model": recipe.get("name", ""),
        "graph": graph.name,
        "precision": precision,
        "calibrated": {v.name: ranges[v.name] for v in graph.inputs if v.name in ranges} if ranges else None,
        "inputs": [value.model_dump(mode="json") for value in graph.inputs],
        "outputs": [value.model_dump(mode="json") for value in graph.outputs],
        "prior": about.get("prior"),
        "checkpoint": about.get("checkpoint"),
        "weights_sha256": graph.weights,
    }
    return {
        f"genkit.{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in said.items()
        if value is not None
    }


def misplaced(graph: genkit.BundledGraph, model: ModelProto, folder: Path) -> Iterator[str]:
    """What is wrong with where the weights are. Unless it is nothing, no reader may follow what the model says."""
    path = None if graph.data is None else folder / graph.data
    size = path.stat().st_size if path is not None and path.is_file() else 0
    initial = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if len(initial) < sum(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors(model)):
        yield "constants that are no initialisers are in another file"
    if graph.data is not None and not initial:
        yield f"no weights are in {graph.data}"
    for tensor in initial:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if len(place) < len(tensor.external_data) or not place.keys() <= {"location", "offset", "length", "checksum"}:
            yield f"where the tensor {tensor.name} is can be read in several ways"
            continue
        if graph.data is None or place.get("location") != graph.data:
            yield f"the tensor {tensor.name} is in another file, so the graph cannot be moved"
            continue
        try:
            offset = int(place.get("offset", 0))
            needed = prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            fits = offset >= 0 and 0 < needed == int(place.get("length", needed)) <= size - offset
        except (ValueError, KeyError):
            fits = False
        if not fits:
            yield f"the tensor {tensor.name} is not inside of {graph.data}, which has {size} bytes"


def check_structure(graph: genkit.BundledGraph, model: ModelProto, promised: Notes | None) -> Iterator[genkit.Check]:
    """Holds the model against what the manifest promises: one check, or one for each problem.

    ``promised``: the notes of a published file. A file that somebody else wrote (None) may have any, and may call its
    batch dimension what it likes.
    """
    sound = True
    for problem in _problems(graph, model, promised):
        sound = False
        yield genkit.Check(graph.name, "structure", False, problem)
    if sound:
        labels = f"{_labels(graph.inputs)} -> {_labels(graph.outputs)}"
        detail = f"valid ONNX, opset {graph.opset}, {labels}, batch symbolic, self-contained, nothing random"
        if promised is None and any(True for _ in annotated(model)):
            detail += "; it carries notes of the machine that wrote it"
        yield genkit.Check(graph.name, "structure", True, detail)


def complaint(model: ModelProto) -> str | None:
    """None for valid ONNX; else what onnx's checker says, in one line."""
    try:
        onnx.checker.check_model(without_data(model), full_check=True)
    except Exception as error:  # the checker and shape inference raise several unrelated classes
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _problems(graph: genkit.BundledGraph, model: ModelProto, promised: Notes | None) -> Iterator[str]:
    if invalid := complaint(model):
        yield f"onnx's checker rejects the file: {invalid}"
    if model.training_info:
        yield "the file holds a training graph as well"
    if (found := declared_opset(model)) != graph.opset:
        yield f"opset {graph.opset} was asked for, the file says {found or 'nothing'}"
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes(model):
        if node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2):
            yield f"the operator {node.op_type} is random; noise has to be an input of the graph"
        if node.op_type in COUPLING:
            yield f"the operator {node.op_type} scales a batch as a whole, so that rows depend on one another"
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in own:
            yield f"the operator {node.op_type} is of {node.domain}, which other runtimes do not have"
    if promised is not None:
        if {entry.key: entry.value for entry in model.metadata_props} != promised:
            yield "what the file says about itself (genkit.*) is not what the manifest says"
        if strange := sum(message is not model or bool(model.doc_string) for message in annotated(model)):
            yield f"{strange} parts of the file carry notes of the exporting machine"
    yield from _interface("input", graph.inputs, model.graph.input, strict=promised is not None)
    yield from _interface("output", graph.outputs, model.graph.output, strict=promised is not None)
    if (reduction := longest_reduction(model)) != graph.reduction:
        yield f"its longest sum has {reduction} terms, where the manifest says {graph.reduction}"


def declared_opset(model: ModelProto) -> int | None:
    """The version of ONNX's own operators that the file says it uses."""
    return {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}.get("ai.onnx")


def external_file(model: ModelProto) -> str | None:
    """The file that the model says its weights are in; where it says several, one of them (see ``misplaced``)."""
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return None


def _interface(
    kind: str, promised: Sequence[genkit.Value], found: Sequence[ValueInfoProto], *, strict: bool
) -> Iterator[str]:
    names = [value.name for value in found]
    if names != [value.name for value in promised]:
        yield f"the {kind}s are {', '.join(names) or 'none'}, expected {', '.join(value.name for value in promised)}"
        return
    for value, actual in zip(promised, found, strict=True):
        tensor = actual.type.tensor_type
        dtype = _dtype(tensor.elem_type)
        if dtype != value.dtype:
            yield f"the {kind} {value.name} is {dtype}, expected {value.dtype}"
        shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        if not strict and shape and isinstance(shape[0], str):
            shape = ("batch", *shape[1:])
        if shape != value.shape:
            yield f"the {kind} {value.name} has shape {_shape(shape)}, expected {_shape(value.shape)}"


def _dtype(kind: int) -> str:
    try:
        return str(helper.tensor_dtype_to_np_dtype(kind))
    except KeyError:
        return f"of ONNX's type {kind}"


def _labels(values: Sequence[genkit.Value]) -> str:
    return ", ".join(f"{value.name} {_shape(value.shape)}" for value in values)


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
