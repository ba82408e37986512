"""Changing an ONNX model in place, in ONNX's own text form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx.parser
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def splice(model: ModelProto, value: str, code: str, /, **constants: ArrayLike) -> None:
    """Puts ``code``, which reads ``old`` and writes ``new``, between ``value`` and whoever reads it.

    What else it names is its own, or else the graph's.

    Args:
        model: is changed.
        value: the name of an input, an output, or anything between.
        code: a node a line, such as ``new = Add(old, noise)``.
        constants: by the names that ``code`` uses; floats become float32, whole numbers int64.
    """
    nodes = list(model.graph.node)
    place = next((i for i, node in enumerate(nodes) if value in node.output), None)
    tag = f"fault{len(nodes)}"
    if place is None:
        names = {"old": value, "new": f"{tag}_new"}
        for node in nodes:
            node.input[:] = [names["new"] if name == value else name for name in node.input]
    else:
        names = {"old": f"{tag}_old", "new": value}
        nodes[place].output[:] = [names["old"] if name == value else name for name in nodes[place].output]
    _insert(model, 0 if place is None else place + 1, code, names, tag, constants)


def replace(model: ModelProto, node: NodeProto, code: str, /, **constants: ArrayLike) -> None:
    """Puts ``code``, which reads ``a``, ``b``, ... and writes ``new``, in the place of ``node``."""
    place = list(model.graph.node).index(node)
    tag = f"fault{len(model.graph.node)}"
    names = {**dict(zip("abcde", node.input, strict=False)), "new": node.output[0]}
    del model.graph.node[place]
    _insert(model, place, code, names, tag, constants)


def _insert(
    model: ModelProto, place: int, code: str, names: dict[str, str], tag: str, constants: dict[str, ArrayLike]
) -> None:
    nodes = list(model.graph.node)
    added = [onnx.parser.parse_node(line) for line in code.splitlines() if line.strip()]
    own = {*constants, *(name for node in added for name in node.output)}
    names = {**{name: f"{tag}_{name}" for name in own}, **names}
    for node in added:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *added, *nodes[place:]])
    del model.graph.value_info[:]
    for name, constant in constants.items():
        array = np.asarray(constant)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        model.graph.initializer.append(numpy_helper.from_array(array, f"{tag}_{name}"))


def nodes_of(model: ModelProto, *kinds: str) -> list[NodeProto]:
    """The nodes of some operators, in order."""
    return [node for node in model.graph.node if node.op_type in kinds]


def set_attribute(node: NodeProto, name: str, value: object) -> None:
    """Replaces or adds one attribute."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def weights(model: ModelProto, dims: int = 2) -> list[TensorProto]:
    """The float32 initialisers of that many dimensions or more: what was learnt, and no constants of the code."""
    return [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) >= dims]


def reweight(tensor: TensorProto, change: Callable[[NDArray[np.float32]], ArrayLike]) -> None:
    """Gives an initialiser the values that ``change`` makes of (a copy of) its own."""
    changed = np.asarray(change(numpy_helper.to_array(tensor).copy()), np.float32)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
