"""What can be said about a graph without running it: labels, shapes, operators, and that nothing else is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

import genkit
from genkit_onnx.protobuf import annotated, nodes, tensors
from genkit_onnx.reduction import longest_reduction

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def check_structure(graph: genkit.BundledGraph, model: ModelProto) -> Iterator[genkit.Check]:
    """Holds the model against what the manifest promises: one check, or one for each problem."""
    sound = True
    for problem in _problems(graph, model):
        sound = False
        yield genkit.Check(graph.name, "structure", False, problem)
    if sound:
        labels = f"{_labels(graph.inputs)} -> {_labels(graph.outputs)}"
        detail = f"valid ONNX, opset {graph.opset}, {labels}, batch symbolic, self-contained, nothing random"
        yield genkit.Check(graph.name, "structure", True, detail)


def complaint(model: ModelProto) -> str | None:
    """None for valid ONNX; else what onnx's checker says, in one line."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise several unrelated classes
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _problems(graph: genkit.BundledGraph, model: ModelProto) -> Iterator[str]:
    if invalid := complaint(model):
        yield f"onnx's checker rejects the file: {invalid}"
    opsets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    if opsets.get("ai.onnx") != graph.opset:
        yield f"opset {graph.opset} was asked for, the file says {opsets.get('ai.onnx', 'nothing')}"
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes(model):
        if node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2):
            yield f"the operator {node.op_type} is random; noise has to be an input of the graph"
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in own:
            yield f"the operator {node.op_type} is of {node.domain}, which other runtimes do not have"
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield f"the tensor {tensor.name} is in another file, so the graph cannot be moved"
    if notes := len(list(annotated(model))):
        yield f"{notes} parts of the file carry notes of the exporting machine"
    yield from _interface("input", graph.inputs, model.graph.input)
    yield from _interface("output", graph.outputs, model.graph.output)
    if (reduction := longest_reduction(model)) != graph.reduction:
        yield f"its longest sum has {reduction} terms, where the manifest says {graph.reduction}"


def _interface(kind: str, promised: Sequence[genkit.Value], found: Sequence[ValueInfoProto]) -> Iterator[str]:
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
