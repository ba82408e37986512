"""ONNX models as data: what is in one, wherever it hides, and the same model in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node: of the graph, of the bodies of loops and branches, and of the model's own functions."""
    for listed in (model.graph.node, *(function.node for function in model.functions)):
        yield from _nested(listed)


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The graph, then the bodies of loops and branches."""
    yield model.graph
    for node in nodes(model):
        yield from _bodies(node)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant, in whatever part of the model it is: initialisers, attributes, defaults of functions."""
    parts: list[Any] = [model]
    while parts:
        for field, value in parts.pop().ListFields():
            for part in () if field.message_type is None else value if isinstance(value, Sequence) else (value,):
                if isinstance(part, TensorProto):
                    yield part
                else:
                    parts.append(part)


def annotated(model: ModelProto) -> Iterator[Any]:
    """Everything that has a ``doc_string`` or ``metadata_props``, where an exporter leaves notes."""
    values = ((*g.input, *g.output, *g.value_info) for g in graphs(model))
    for group in ((model,), graphs(model), nodes(model), model.functions, chain.from_iterable(values), tensors(model)):
        for message in group:
            if message.doc_string or message.metadata_props:
                yield message


def annotate(model: ModelProto, notes: Mapping[str, str]) -> None:
    """Replaces what the model says about itself."""
    helper.set_model_props(model, dict(sorted(notes.items())))


def without_data(model: ModelProto) -> ModelProto:
    """A copy in which large initialisers are inputs: all that a checker needs, however many gigabytes they are."""
    bare = ModelProto()
    bare.CopyFrom(model)
    large = [tensor for tensor in bare.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    for tensor in large:
        bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        bare.graph.initializer.remove(tensor)
    return bare


def initializers(model: ModelProto, folder: Path) -> dict[str, NDArray[Any]]:
    """The values of the graph's initialisers; those of the data file beside it are mapped, not read.

    What is external has been checked by ``structure.misplaced``: this follows whatever the model says.
    """
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            found[tensor.name] = numpy_helper.to_array(tensor)
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        file, offset = folder / place["location"], int(place.get("offset", 0))
        found[tensor.name] = np.memmap(file, dtype, "r", offset, tuple(tensor.dims))
    return found


def widened(model: ModelProto) -> ModelProto:
    """A copy in which every float32 is a float64, and every initialiser an input, to be fed.

    Values are exact; narrower types stay, so their loss still shows.
    """
    wide = ModelProto()
    wide.CopyFrom(model)
    given = {value.name for value in wide.graph.input}
    for tensor in wide.graph.initializer:
        if tensor.name not in given:
            wide.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del wide.graph.initializer[:]
    for graph in graphs(wide):
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in nodes(wide):
        _widen_attributes(node)
    for tensor in tensors(wide):
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return wide


def _widen_attributes(node: NodeProto) -> None:
    """The places where an operator says float32 other than by a tensor: by default, as a number, as a type."""
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    for attribute in node.attribute:
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            number = np.array(helper.get_attribute_value(attribute), dtype=np.float64)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(number)))
        elif attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.DOUBLE


def _nested(listed: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in listed:
        yield node
        for graph in _bodies(node):
            yield from _nested(graph.node)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
