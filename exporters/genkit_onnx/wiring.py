"""Two graphs, read side by side: is one the other, but for the precision of what flows through it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper

MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that have large weights, and take nearly all of the time."""

_CONVERSIONS = {"Cast", "QuantizeLinear", "DequantizeLinear"}
"""Operators that change the precision of a tensor, and nothing else about it."""


class Different(Exception):
    """The graphs do not compute the same; the message says where."""


@dataclass(frozen=True)
class Link:
    """What one operator reads at one of its inputs, in the graph and in its reduced copy.

    Args:
        reader: the operator; empty for an output of the graph.
        position: of the input.
        name: of the tensor in the graph.
        source: of its counterpart in the copy, before it is converted.
        conversions: that it goes through in the copy, in order.
        constant: whether it is an initialiser.
    """

    reader: str
    position: int
    name: str
    source: str
    conversions: tuple[NodeProto, ...]
    constant: bool

    @property
    def operand(self) -> bool:
        """Whether it is a factor of a product of matrices or a convolution."""
        return self.reader in MATRIX and self.position < 2


class _Wires:
    def __init__(self, model: ModelProto) -> None:
        self.makers = {name: (node, i) for node in model.graph.node for i, name in enumerate(node.output)}
        self.initializers = {tensor.name for tensor in model.graph.initializer}
        self.outputs = [value.name for value in model.graph.output]

    def source(self, name: str) -> tuple[str, tuple[NodeProto, ...]]:
        """The tensor of which ``name`` is a conversion, and the conversions."""
        found: list[NodeProto] = []
        while name in self.makers and self.makers[name][0].op_type in _CONVERSIONS and len(found) <= len(self.makers):
            found.insert(0, self.makers[name][0])
            name = found[0].input[0]
        return name, tuple(found)


def links(model: ModelProto, reduced: ModelProto) -> list[Link]:
    """Every link of the two graphs, from the outputs backwards.

    Raises:
        Different: where they are not the same operators, with the same attributes, in the same order.
    """
    full, less = _Wires(model), _Wires(reduced)
    pending = [("", i, one, other) for i, (one, other) in enumerate(zip(full.outputs, less.outputs, strict=True))]
    found, seen = [], set()
    while pending:
        reader, position, one, other = pending.pop()
        (name, _), (source, conversions) = full.source(one), less.source(other)
        constant = name in full.initializers
        if constant != (source in less.initializers):
            raise Different(f"{reader or 'an output'} reads a constant in one graph, and no constant in the other")
        found.append(Link(reader, position, name, source, conversions, constant))
        if constant or (name, source) in seen:
            continue
        seen.add((name, source))
        if name in full.makers and source in less.makers:
            (node, i), (copy, j) = full.makers[name], less.makers[source]
            if (_signature(node), i) != (_signature(copy), j) or len(node.input) != len(copy.input):
                raise Different(
                    f"{reader or 'an output'} reads a {copy.op_type} that is not the {node.op_type} of fp32"
                )
            pending += [(node.op_type, k, *names) for k, names in enumerate(zip(node.input, copy.input, strict=True))]
        elif name != source:
            raise Different(f"{reader or 'an output'} reads {source!r} in the place of {name!r}")
    return found


def _signature(node: NodeProto) -> tuple[object, ...]:
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    return node.domain, node.op_type, sorted(attributes.items(), key=lambda item: item[0])


def _attribute(attribute: AttributeProto) -> object:
    if attribute.type != AttributeProto.TENSOR:
        return attribute.SerializeToString(deterministic=True)
    value = numpy_helper.to_array(attribute.t)
    return value.astype(np.float16 if value.dtype.kind == "f" else value.dtype).tobytes()


def dequantized(
    node: NodeProto, initial: Mapping[str, NDArray[Any]], values: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What a DequantizeLinear makes of ``values``, and its scales, which are the steps between two values.

    In float64. The scales are of shape ``()``, or as ``values`` along the axis of the channels and 1 elsewhere.
    """
    scale = initial[node.input[1]].astype(np.float64)
    zero = initial[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros_like(scale)
    if scale.ndim:
        axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if dimension == axis % values.ndim else 1 for dimension in range(values.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (values.astype(np.float64) - zero) * scale, scale
