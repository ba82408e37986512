"""K: the longest sum that a graph computes, with which the rounding error of a correct float32 runtime grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

from genkit_onnx.protobuf import graphs, nodes

Shape = Sequence[int]
Attributes = Mapping[str, Any]


def longest_reduction(model: ModelProto) -> int:
    """The most terms that any operator of the graph adds up for one number of its output; at least 1.

    Dimensions that are not known count as 1, which errs towards a tighter limit.
    """
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # not valid ONNX, which is for the checker to say
        return 1
    shapes: dict[str, Shape] = {}
    constants: dict[str, list[int]] = {}
    for graph in graphs(inferred):
        for value in (*graph.input, *graph.value_info, *graph.output):
            shapes[value.name] = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for tensor in graph.initializer:
            shapes[tensor.name] = list(tensor.dims)
            if prod(tensor.dims) <= 8:
                constants[tensor.name] = np.ravel(numpy_helper.to_array(tensor)).tolist()
    return max([1, *(_terms(node, shapes, constants) for node in nodes(inferred))])


def _terms(node: NodeProto, shapes: Mapping[str, Shape], constants: Mapping[str, list[int]]) -> int:
    rule = _REDUCE if node.op_type.startswith("Reduce") else _RULES.get(node.op_type)
    if rule is None:
        return 1
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type.startswith("Reduce") and len(node.input) > 1:  # since opset 18 (ReduceSum: 13) an input
        attributes["axes"] = constants.get(node.input[1])
    try:
        return rule([shapes.get(name, []) for name in node.input], attributes)
    except IndexError:  # a shape that is not known
        return 1


def _reduce(shapes: Sequence[Shape], attributes: Attributes) -> int:
    return prod(shapes[0][int(axis)] for axis in attributes.get("axes") or range(len(shapes[0])))


def _einsum(shapes: Sequence[Shape], attributes: Attributes) -> int:
    terms, _, result = attributes["equation"].decode().replace(" ", "").partition("->")
    sizes = {
        name: size
        for term, shape in zip(terms.split(","), shapes, strict=True)
        for name, size in zip(term, shape, strict=False)
    }
    return prod(size for name, size in sizes.items() if name not in result)


_REDUCE: Callable[[Sequence[Shape], Attributes], int] = _reduce
_RULES: Mapping[str, Callable[[Sequence[Shape], Attributes], int]] = {
    "Gemm": lambda s, a: s[0][0 if a.get("transA") else 1],
    "MatMul": lambda s, a: s[0][-1],
    "Einsum": _einsum,
    "Conv": lambda s, a: prod(s[1][1:]),
    "ConvTranspose": lambda s, a: s[1][0] // a.get("group", 1) * prod(s[1][2:]),
    "RNN": lambda s, a: s[1][2] + s[2][2],
    "GRU": lambda s, a: s[1][2] + s[2][2],
    "LSTM": lambda s, a: s[1][2] + s[2][2],
    "LayerNormalization": lambda s, a: prod(s[0][a.get("axis", -1) :]),
    "RMSNormalization": lambda s, a: prod(s[0][a.get("axis", -1) :]),
    "InstanceNormalization": lambda s, a: prod(s[0][2:]),
    "GroupNormalization": lambda s, a: prod(s[0][1:]) // a["num_groups"],
    "Softmax": lambda s, a: s[0][a.get("axis", -1)],
    "LogSoftmax": lambda s, a: s[0][a.get("axis", -1)],
    "AveragePool": lambda s, a: prod(a["kernel_shape"]),
    "GlobalAveragePool": lambda s, a: prod(s[0][2:]),
    "CumSum": lambda s, a: max(s[0]),
}
