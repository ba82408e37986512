"""Damage to graphs and golden vectors, with the digests right again: only structure and numbers can tell."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.fuzz.damages import damage
from benchmarks.fuzz.manifests import NAMES
from benchmarks.fuzz.victims import Inapplicable, Victim

FLOATS = ("mlp", "conv", "labelled", "external", "reduced")
"""Every output of these is a float, to which something can be added."""

Array = np.ndarray[Any, Any]


def _constant(model: ModelProto, name: str, value: Any, dtype: Any = np.int64) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name


def _initializer(victim: Victim, model: ModelProto, *, inside: bool = True) -> TensorProto:
    """Any weight; only one whose values are in the file, if it is to be ``inside``."""
    found = [t for t in model.graph.initializer if not inside or t.data_location != TensorProto.EXTERNAL]
    if not found:
        raise Inapplicable
    return victim.random.choice(found)


def _burden(model: ModelProto, *nodes: NodeProto) -> None:
    """Adds the largest of what the last node gives to the first output of the graph: nothing, if all of it is zero."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["unburdened" if name == output else name for name in node.output]
    model.graph.node.extend(nodes)
    model.graph.node.append(helper.make_node("ReduceMax", [nodes[-1].output[0]], ["burden"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["unburdened", "burden"], [output]))


def _node(victim: Victim, model: ModelProto, *kinds: str) -> NodeProto:
    found = [node for node in model.graph.node if not kinds or node.op_type in kinds]
    if not found:
        raise Inapplicable
    return victim.random.choice(found)


def _set(node: NodeProto, name: str, value: Any) -> None:
    for attribute in [attribute for attribute in node.attribute if attribute.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


# Bytes


@damage(sealed=True, random=True)
def flip_sealed_bits(victim: Victim) -> None:
    file = victim.random.choice([file for file in victim.files() if file.suffix in (".onnx", ".data", ".pb")])
    content = bytearray(victim.read(file))
    for _ in range(victim.random.choice([1, 1, 2, 16])):
        if content:
            content[victim.random.randrange(len(content))] ^= 1 << victim.random.randrange(8)
    file.write_bytes(content)
    victim.reseal()


@damage(sealed=True)
def truncate_sealed(victim: Victim) -> None:
    file = victim.random.choice([file for file in victim.files() if file.suffix in (".onnx", ".data", ".pb")])
    os.truncate(file, victim.random.randrange(max(1, file.stat().st_size)))
    victim.reseal()


@damage(sealed=True)
def no_text(victim: Victim) -> None:
    """A name that is no UTF-8."""
    file = victim.path / victim.graph()["file"]
    content = victim.read(file)
    model = ModelProto.FromString(content)
    name = victim.random.choice([model.graph.input[0].name, model.graph.output[0].name, model.graph.node[0].op_type])
    file.write_bytes(content.replace(name.encode(), b"\xff" * len(name)))
    victim.reseal()


@damage(sealed=True)
def nested_beyond_the_reader(victim: Victim) -> None:
    """Bodies within bodies, deeper than protocol buffers may be."""
    body = b""
    for _ in range(victim.random.choice([40, 300, 5000])):
        for tag in (0x32, 0x2A, 0x0A):  # AttributeProto.g, in NodeProto.attribute, in GraphProto.node
            body = bytes([tag]) + _varint(len(body)) + body
    file = victim.path / victim.graph()["file"]
    file.write_bytes(victim.read(file) + b"\x3a" + _varint(len(body)) + body)
    victim.reseal()


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


# Labels


@damage(sealed=True)
def other_ir_version(victim: Victim) -> None:
    version = victim.random.choice([0, 1, 2, -1, 10**9, 2**63 - 1])
    victim.rewrite(lambda model: setattr(model, "ir_version", version))


@damage(sealed=True)
def other_opset(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        kind = victim.random.choice(["one", "none", "two", "domain"])
        if kind == "one":
            model.opset_import[0].version = victim.random.choice([0, -1, 1, 7, 10**9, 2**63 - 1])
        elif kind == "none":
            del model.opset_import[:]
        elif kind == "two":
            model.opset_import.add(domain="", version=victim.random.choice([1, 13, 10**9]))
        else:
            model.opset_import[0].domain = victim.random.choice(["ai.onnx.ml", "com.microsoft", "x" * 10**5])

    victim.rewrite(change)


@damage(sealed=True)
def other_notes(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        kind = victim.random.choice(["lost", "changed", "more", "documented"])
        if kind == "lost":
            del model.metadata_props[:]
        elif kind == "changed":
            victim.random.choice(model.metadata_props).value += " "
        elif kind == "more":
            model.metadata_props.add(key="k" * 10**6, value="\x1b[2J")
        else:
            model.graph.doc_string = "d" * 10**6

    victim.rewrite(change)


@damage(sealed=True)
def other_label(victim: Victim) -> None:
    """What the graph says that its inputs and outputs are."""

    def change(model: ModelProto) -> None:
        value = victim.random.choice([*model.graph.input, *model.graph.output])
        tensor = value.type.tensor_type
        kind = victim.random.choice(["dims", "rank", "dtype", "name", "type", "nothing", "batch"])
        if kind == "dims":
            dims = tensor.shape.dim or [tensor.shape.dim.add()]
            victim.random.choice(dims).dim_value = victim.random.choice([0, -1, 10**12, 2**63 - 1])
        elif kind == "rank":
            tensor.shape.dim.add().dim_value = 1
        elif kind == "dtype":
            tensor.elem_type = victim.random.choice([0, 2, 8, 11, 16, 22, 99, -1, 2**31 - 1])
        elif kind == "name":
            value.name = victim.random.choice(["", "\n", "n" * 10**6, "../x"])
        elif kind == "type":
            value.type.CopyFrom(
                helper.make_sequence_type_proto(helper.make_optional_type_proto(helper.make_tensor_type_proto(1, None)))
            )
        elif kind == "nothing":
            value.ClearField("type")
        else:
            tensor.shape.dim[0].dim_param = victim.random.choice(["rows", "", "\x00", "b" * 10**6])

    victim.rewrite(change)


# Nodes


@damage(sealed=True)
def missing_input(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        node = victim.random.choice(model.graph.node)
        node.input[victim.random.randrange(len(node.input))] = victim.random.choice(["", "nowhere", "x" * 10**6, "\n"])

    victim.rewrite(change)


@damage(sealed=True)
def lost_node(victim: Victim) -> None:
    victim.rewrite(lambda model: model.graph.node.remove(victim.random.choice(model.graph.node)))


@damage(sealed=True)
def lost_inputs(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        del victim.random.choice(model.graph.node).input[:]

    victim.rewrite(change)


@damage(sealed=True)
def lost_weight(victim: Victim) -> None:
    victim.rewrite(lambda model: model.graph.initializer.remove(victim.random.choice(model.graph.initializer)))


@damage(sealed=True)
def nothing_left(victim: Victim) -> None:
    parts = ("node", "initializer", "input", "output")
    victim.rewrite(lambda model: model.graph.ClearField(victim.random.choice(parts)))


@damage(sealed=True)
def cycle(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        first, last = model.graph.node[0], model.graph.node[-1]
        first.input[0] = last.output[0]

    victim.rewrite(change)


@damage(sealed=True)
def repeated_node(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        model.graph.node.extend([victim.random.choice(model.graph.node)] * victim.random.choice([1, 1000]))

    victim.rewrite(change)


@damage(sealed=True)
def repeated_weight(victim: Victim) -> None:
    """A second value under the same name."""

    def change(model: ModelProto) -> None:
        tensor = _initializer(victim, model)
        array = numpy_helper.to_array(tensor)
        model.graph.initializer.append(numpy_helper.from_array(array + array.dtype.type(1), tensor.name))

    victim.rewrite(change)


@damage(sealed=True)
def unknown_operator(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        node = victim.random.choice(model.graph.node)
        node.op_type = victim.random.choice(
            ["", "Explode", "tanh", "\n\x1b[1m", "O" * 10**6, "If", "Loop", "Scan", "Optional"]
        )

    victim.rewrite(change)


@damage(sealed=True)
def unknown_domain(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        domain = victim.random.choice(["com.microsoft", "ai.onnx.ml", "ai.onnx.training", "my\n", "d" * 10**6])
        victim.random.choice(model.graph.node).domain = domain
        model.opset_import.add(domain=domain, version=1)

    victim.rewrite(change)


@damage(*FLOATS, sealed=True)
def native_operator(victim: Victim) -> None:
    """One that only a runtime has, with inputs that it does not expect."""

    def change(model: ModelProto) -> None:
        kinds = [
            "FusedMatMul",
            "Attention",
            "BiasGelu",
            "QLinearConv",
            "MatMulNBits",
            "GroupQueryAttention",
            "NhwcConv",
        ]
        kind = victim.random.choice(kinds)
        inputs = [victim.random.choice(model.graph.initializer).name for _ in range(victim.random.randint(1, 8))]
        model.opset_import.add(domain="com.microsoft", version=1)
        _burden(model, helper.make_node(kind, inputs, ["heavy"], domain="com.microsoft"))

    victim.rewrite(change)


@damage(*FLOATS, sealed=True)
def another_operator(victim: Victim) -> None:
    others = {
        "Tanh": ["Sin", "Relu", "Erf", "Softsign"],
        "Sigmoid": ["Tanh", "HardSigmoid", "Softplus"],
        "Erf": ["Tanh", "Identity"],
    }

    def change(model: ModelProto) -> None:
        node = _node(victim, model, *others)
        node.op_type = victim.random.choice(others[node.op_type])

    victim.rewrite(change)


@damage(sealed=True, random=True)
def hostile_attribute(victim: Victim) -> None:
    """On any operator: those it has, with values that make no sense, and types that do not go together."""

    def change(model: ModelProto) -> None:
        with_attributes = [node for node in model.graph.node if node.attribute]
        node = victim.random.choice(with_attributes or list(model.graph.node))
        name = victim.random.choice([a.name for a in node.attribute] or ["axis"])
        values = [-(2**63), 2**63 - 1, 0.5, "text", [2**62] * 4, [-1] * 4, [], "s" * 10**6, list(range(10**5))]
        values += [[1.5], ["a"], numpy_helper.from_array(np.zeros(3)), GraphProto(), float("nan")]
        for attribute in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(attribute)
        value = victim.random.choice(values)
        kind = AttributeProto.INTS if value == [] else None
        node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
        if victim.random.random() < 0.3:
            node.attribute[-1].type = victim.random.randrange(15)

    victim.rewrite(change)


@damage("conv", sealed=True)
def hostile_convolution(victim: Victim) -> None:
    """Zero strides, kernels that do not fit, groups that divide nothing: what native code divides by."""

    def change(model: ModelProto) -> None:
        node = _node(victim, model, "Conv", "ConvTranspose")
        name = victim.random.choice(["strides", "dilations", "pads", "kernel_shape", "group", "output_padding"])
        if name == "group":
            _set(node, name, victim.random.choice([0, -1, 2, 10**12]))
        else:
            size = 4 if name == "pads" else 2
            value = victim.random.choice([0, -1, -(10**9), 7, 10**6, 10**12, 2**62])
            if name == "pads" and value == 0:
                value = 3
            _set(node, name, [value] * victim.random.choice([size, size, size + 1]))
        if name == "output_padding":  # which a convolution does not have
            node.op_type = "ConvTranspose"

    victim.rewrite(change)


@damage("conv", sealed=True)
def hostile_pool(victim: Victim) -> None:
    """Strides of zero and the like once more, and what it gives is added to the output."""

    def change(model: ModelProto) -> None:
        kind = victim.random.choice(["MaxPool", "AveragePool", "LpPool"])
        node = helper.make_node(kind, ["x"], ["heavy"], kernel_shape=[1, 1])
        name = victim.random.choice(["strides", "dilations", "pads", "kernel_shape", "storage_order", "p"])
        value = victim.random.choice([0, -1, 10**12, 2**62])
        _set(node, name, value if name in ("storage_order", "p") else [value] * (4 if name == "pads" else 2))
        _burden(model, node)

    victim.rewrite(change)


@damage(*FLOATS, sealed=True)
def division_by_zero(victim: Victim) -> None:
    """Of whole numbers, for which a processor has no answer."""

    def change(model: ModelProto) -> None:
        low, zero = _constant(model, "low", [-(2**63)]), _constant(model, "zero", [victim.random.choice([0, -1])])
        divide = helper.make_node(victim.random.choice(["Div", "Mod"]), [low, zero], ["quotient"])
        constant = helper.make_node("Cast", ["quotient"], ["heavy"], to=TensorProto.FLOAT)
        less = helper.make_node("Sub", ["heavy", "one"], ["less"])
        _constant(model, "one", [1.0], np.float32)
        _burden(model, divide, constant, less)

    victim.rewrite(change)


@damage(*FLOATS, sealed=True)
def hostile_indices(victim: Victim) -> None:
    """Far beyond the end of a weight."""

    def change(model: ModelProto) -> None:
        tensor = _initializer(victim, model)
        if not np.any(numpy_helper.to_array(tensor)):  # zeros do no harm, wherever they are from
            raise Inapplicable
        index = victim.random.choice([2**62, -(2**62), -(2**63), 2**63 - 1, 10**6, 2**31])
        kind = victim.random.choice(["Gather", "GatherElements", "GatherND", "Slice", "ScatterElements", "OneHot"])
        rank = len(tensor.dims)
        if kind == "Slice":
            parts = [_constant(model, name, [value]) for name, value in zip("sea", (index, ~index, 0), strict=True)]
            parts.append(_constant(model, "p", [victim.random.choice([0, index, -1])]))
            nodes = [helper.make_node("Slice", [tensor.name, *parts], ["heavy"])]
        elif kind == "OneHot":
            parts = [
                _constant(model, "i", [0]),
                _constant(model, "d", 10**12),
                _constant(model, "v", [0, 0], np.float32),
            ]
            nodes = [helper.make_node("OneHot", parts, ["heavy"])]
        else:
            shape = [1] if kind in ("Gather", "GatherND") else [1] * rank
            indices = _constant(model, "i", np.full(shape, index))
            more = [_constant(model, "u", np.zeros(shape), np.float32)] if kind == "ScatterElements" else []
            nodes = [helper.make_node(kind, [tensor.name, indices, *more], ["heavy"])]
        _burden(model, *nodes)

    victim.rewrite(change)


# Terabytes, and what does not end


@damage(*FLOATS, sealed=True)
def terabytes(victim: Victim) -> None:
    """A graph of a few bytes whose values are zeros, more of them than there is memory."""

    def change(model: ModelProto) -> None:
        most = victim.random.choice([10**11, 10**12, 10**15, 2**62])
        size = _constant(model, "size", [most])
        zero, ones = _constant(model, "zero", [0.0], np.float32), _constant(model, "ones", [1, 1])
        vast = helper.make_node("ConstantOfShape", [size], ["heavy"])
        kind = victim.random.choice(["ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "EyeLike", "outer"])
        nodes = [vast]
        if kind == "Expand":
            nodes = [helper.make_node("Expand", [zero, size], ["heavy"])]
        elif kind == "Tile":
            nodes = [helper.make_node("Tile", [zero, size], ["heavy"])]
        elif kind == "Range":
            ends = [
                _constant(model, name, value, np.float64) for name, value in (("a", -float(most)), ("b", 0), ("c", 1))
            ]
            rise = helper.make_node("Range", ends, ["rise"])
            nodes = [rise, helper.make_node("Cast", ["rise"], ["heavy"], to=TensorProto.FLOAT)]
        elif kind == "Pad":
            pads = _constant(model, "pads", [most // 2, most // 2])
            nodes = [helper.make_node("Pad", [zero, pads], ["heavy"])]
        elif kind == "Resize":
            scales = _constant(model, "scales", [1e12], np.float32)
            nodes = [helper.make_node("Resize", [zero, "", scales], ["heavy"])]
        elif kind == "EyeLike":
            square = _constant(model, "square", [10**6, 10**6])
            nodes = [
                helper.make_node("ConstantOfShape", [square], ["vast"]),
                helper.make_node("EyeLike", ["vast"], ["heavy"], k=10**7),
            ]
        elif kind == "outer":
            _constant(model, "row", np.zeros((1, 10**5)), np.float32)
            nodes = [
                helper.make_node("Transpose", ["row"], ["column"]),
                helper.make_node("MatMul", ["column", "row"], ["product"]),
                helper.make_node("Tile", ["product", ones], ["heavy"]),
            ]
        _burden(model, *nodes)

    victim.rewrite(change)


@damage(*FLOATS, sealed=True, rare=True)
def endless_loop(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        body = GraphProto(name="body")
        for name, kind, shape in (("i", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), ("v", 1, [1])):
            body.input.append(helper.make_tensor_value_info(name, kind, shape))
        body.node.append(helper.make_node("Identity", ["going"], ["on"]))
        body.node.append(helper.make_node("Identity", ["v"], ["w"]))
        body.output.append(helper.make_tensor_value_info("on", TensorProto.BOOL, []))
        body.output.append(helper.make_tensor_value_info("w", 1, [1]))
        trips, start = _constant(model, "trips", 2**62), _constant(model, "start", True, np.bool_)
        zero = _constant(model, "zero", [0.0], np.float32)
        _burden(model, helper.make_node("Loop", [trips, start, zero], ["heavy"], body=body))

    victim.rewrite(change)


@damage(*FLOATS, sealed=True)
def nested_bodies(victim: Victim) -> None:
    """Branches within branches, as deep as a protocol buffer may be, with an unknown name at the bottom."""

    def change(model: ModelProto) -> None:
        yes = _constant(model, "yes", True, np.bool_)
        inner = helper.make_node("Relu", ["nowhere"], ["heavy"])
        output = [helper.make_tensor_value_info("heavy", 1, None)]
        end = helper.make_graph([inner], "end", [], output)
        for _ in range(victim.random.choice([5, 20, 28])):
            body = helper.make_graph([inner], "body", [], output)
            inner = helper.make_node("If", [yes], ["heavy"], then_branch=body, else_branch=end)
        _burden(model, inner)

    victim.rewrite(change)


@damage(*FLOATS, sealed=True)
def recursive_function(victim: Victim) -> None:
    """Functions that call themselves, or each other."""

    def change(model: ModelProto) -> None:
        names = victim.random.choice([["f"], ["f", "g"], [f"f{i}" for i in range(50)]])
        opset = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        for name, following in zip(names, [*names[1:], names[0]], strict=True):
            call = helper.make_node(following, ["a"], ["b"], domain="own")
            model.functions.append(helper.make_function("own", name, ["a"], ["b"], [call], opset))
        model.opset_import.add(domain="own", version=1)
        zero = _constant(model, "zero", [0.0], np.float32)
        _burden(model, helper.make_node(names[0], [zero], ["heavy"], domain="own"))

    victim.rewrite(change)


@damage(*FLOATS, sealed=True, rare=True)
def exploding_functions(victim: Victim) -> None:
    """Each calls the next one twice, 40 deep: a trillion nodes for whoever inlines them."""

    def change(model: ModelProto) -> None:
        opset = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        deep = victim.random.choice([40, 200])
        for i in range(deep):
            calls = [helper.make_node(f"f{i + 1}", ["a"], [out], domain="own") for out in ("b", "c")]
            model.functions.append(
                helper.make_function(
                    "own", f"f{i}", ["a"], ["d"], [*calls, helper.make_node("Add", ["b", "c"], ["d"])], opset
                )
            )
        end = helper.make_node("Identity", ["a"], ["d"])
        model.functions.append(helper.make_function("own", f"f{deep}", ["a"], ["d"], [end], opset))
        model.opset_import.add(domain="own", version=1)
        zero = _constant(model, "zero", [0.0], np.float32)
        _burden(model, helper.make_node("f0", [zero], ["heavy"], domain="own"))

    victim.rewrite(change)


@damage(*FLOATS, sealed=True)
def long_chain(victim: Victim) -> None:
    """Deeper than a recursive sort survives, for a number that is not zero; or with a link missing."""

    def change(model: ModelProto) -> None:
        length = victim.random.choice([1001, 10_001])
        one = _constant(model, "one", [1.0], np.float32)
        nodes = [helper.make_node("Neg", [one if i == 0 else f"c{i}"], [f"c{i + 1}"]) for i in range(length)]
        if victim.random.random() < 0.5:
            victim.random.choice(nodes[1:]).input[0] = "nowhere"
        _burden(model, *nodes)

    victim.rewrite(change)


# Weights


@damage(sealed=True)
def hostile_dims(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        tensor = _initializer(victim, model, inside=False)
        dims = victim.random.choice(
            [[10**12], [-1], [0], [2**32, 2**32], [2**63 - 1], [1] * 100, [-6, -1], [2**62, 4], [7]]
        )
        tensor.dims[:] = dims

    victim.rewrite(change)


@damage(sealed=True)
def short_weights(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        tensor = _initializer(victim, model)
        data = tensor.raw_data
        tensor.raw_data = victim.random.choice([data[:-1], data[:1], data + b"\x00", data * 1000])

    victim.rewrite(change)


@damage(sealed=True)
def retyped_weights(victim: Victim) -> None:
    def change(model: ModelProto) -> None:
        tensor = _initializer(victim, model, inside=False)
        others = [kind for kind in (0, 2, 3, 6, 8, 9, 10, 11, 12, 14, 16, 17, 22, 23, 99) if kind != tensor.data_type]
        tensor.data_type = victim.random.choice(others)

    victim.rewrite(change)


@damage(sealed=True)
def misplaced_weights(victim: Victim) -> None:
    """In the field of another type, or of several at once."""

    def change(model: ModelProto) -> None:
        tensor = _initializer(victim, model)
        if victim.random.random() < 0.5:
            tensor.ClearField("raw_data")
        tensor.string_data.extend([b"x"] * 3)
        tensor.double_data.extend([1.0] * 3)
        tensor.uint64_data.extend([2**64 - 1] * 3)
        if tensor.HasField("raw_data"):
            tensor.raw_data = tensor.raw_data[::-1] + b"\x01"

    victim.rewrite(change)


@damage(*FLOATS, sealed=True)
def other_weights(victim: Victim) -> None:
    """One of them is not finite, or twice as large."""

    def change(model: ModelProto) -> None:
        tensor = _initializer(victim, model)
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype != np.float32 or tensor.name == "labels.weight":  # labels that were not drawn have no effect
            raise Inapplicable
        place = np.abs(array).argmax()
        array.ravel()[place] = victim.random.choice([np.nan, np.inf, -np.inf, 3e38, array.ravel()[place] * 2])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    victim.rewrite(change)


@damage("external", sealed=True)
def other_external_weights(victim: Victim) -> None:
    file = victim.path / "decoder.onnx.data"
    weights = np.frombuffer(victim.read(file), np.float32).copy()
    weights[victim.random.randrange(len(weights))] += victim.random.choice([np.nan, np.inf, 3e38, 2.0])
    weights.tofile(file)
    victim.reseal()


@damage("mlp", sealed=True)
def excused_damage(victim: Victim) -> None:
    """The graph no longer reads an input, and the manifest says that PyTorch does not either."""

    def change(model: ModelProto) -> None:
        _constant(model, "nothing", np.zeros(model.graph.input[0].type.tensor_type.shape.dim[1].dim_value), np.float32)
        first = model.graph.node[0]
        model.graph.node.insert(0, helper.make_node("Mul", [first.input[0], "nothing"], ["silence"]))
        model.graph.node[1].input[0] = "silence"

    victim.rewrite(change)
    content = victim.content()
    for graph in content["graphs"]:
        outputs = {value["name"]: list(range(256)) for value in graph["outputs"]}
        graph["ignores"] = {value["name"]: outputs for value in graph["inputs"]}
    victim.write(content, sealed=True)


# Elsewhere


def _external(tensor: TensorProto, **place: str) -> None:
    for field in ("raw_data", "float_data", "int64_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)


@damage(sealed=True)
def weights_elsewhere(victim: Victim) -> None:
    """Where an initialiser is to be read: beyond the bundle, or at no place at all."""
    links = victim.random.choice([None, victim.outside / "weights.data", "/etc/passwd"])
    location = victim.random.choice([*NAMES, str(victim.outside / "weights.data"), "link", "manifest.json", "folder"])
    sizes = ["0", "-1", "1", str(2**63), str(2**64), "1e9", "", "x", "9" * 5000, "٣"]

    def change(model: ModelProto) -> None:
        place = {"location": location, "offset": victim.random.choice(sizes), "length": victim.random.choice(sizes)}
        if victim.random.random() < 0.4:
            del place["offset"], place["length"]
        _external(_initializer(victim, model, inside=False), **place)

    victim.rewrite(change)
    if links and location == "link":
        (victim.path / "link").symlink_to(links)


@damage(sealed=True)
def constants_elsewhere(victim: Victim) -> None:
    """The same for constants in every other place that a file has for them."""
    location = victim.random.choice(["../outside/weights.data", str(victim.outside / "weights.data"), "README.md"])
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1])
    _external(tensor, location=location, offset="0", length="4")
    sparse = onnx.SparseTensorProto(
        values=tensor, indices=helper.make_tensor("i", TensorProto.INT64, [1], [0]), dims=[1]
    )
    kinds = [
        "value",
        "sparse_value",
        "values",
        "sparse",
        "body",
        "function",
        "default",
        "training",
        "annotation",
        "untyped",
    ]
    kind = victim.random.choice(kinds)

    def change(model: ModelProto) -> None:
        node = helper.make_node("Constant", [], ["far"])
        if kind in ("value", "body", "function", "untyped", "training"):
            node.attribute.add(name="value", type=AttributeProto.TENSOR).t.CopyFrom(tensor)
        if kind == "sparse_value":
            node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse)
        if kind == "values":
            node.attribute.add(name="value", type=AttributeProto.TENSORS).tensors.append(tensor)
        if kind == "untyped":
            node.attribute[0].type = victim.random.choice([AttributeProto.FLOAT, AttributeProto.UNDEFINED])
        if kind == "annotation":
            node.attribute.add(name="value", type=AttributeProto.FLOAT, f=1.0).t.CopyFrom(tensor)
        if kind == "sparse":
            sparse.values.name = "far"
            model.graph.sparse_initializer.append(sparse)
        elif kind == "body":
            body = helper.make_graph([node], "body", [], [helper.make_tensor_value_info("far", 1, [1])])
            yes = _constant(model, "yes", True, np.bool_)
            model.graph.node.append(helper.make_node("If", [yes], ["any"], then_branch=body, else_branch=body))
        elif kind in ("function", "default"):
            function = helper.make_function("own", "f", [], ["far"], [node], [helper.make_opsetid("", 18)])
            if kind == "default":
                node.attribute.add(name="value", type=AttributeProto.TENSOR, ref_attr_name="value")
                function.node[0].CopyFrom(node)
                function.attribute_proto.add(name="value", type=AttributeProto.TENSOR).t.CopyFrom(tensor)
            model.functions.append(function)
            model.opset_import.add(domain="own", version=1)
            model.graph.node.append(helper.make_node("f", [], ["any"], domain="own"))
        elif kind == "training":
            model.training_info.add().algorithm.node.append(node)
        else:
            model.graph.node.append(node)

    victim.rewrite(change)


@damage("external", sealed=True)
def hostile_offsets(victim: Victim) -> None:
    """Beyond the end of the data file, before its start, or around the integers."""
    sizes = [
        "-1",
        "-4",
        "3",
        "4796",
        "4800",
        str(2**31),
        str(2**63),
        str(2**64 - 4),
        str(2**64),
        "-0",
        "9" * 5000,
        "x",
        "0x0",
    ]

    def change(model: ModelProto) -> None:
        tensor = victim.random.choice([t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL])
        key = victim.random.choice(["offset", "length", "location", "prepacked"])
        if key in ("offset", "length"):
            size = victim.random.choice(sizes)
            kept = [(entry.key, entry.value) for entry in tensor.external_data if entry.key != key]
            if key == "offset" and size == "-0":
                size = "-8"
            _external(tensor, **dict(kept), **{key: size})
        elif key == "location":
            where = [onnx.StringStringEntryProto(key="location", value="../outside/weights.data")]
            others = list(tensor.external_data)
            del tensor.external_data[:]
            tensor.external_data.extend(victim.random.choice([[*where, *others], [*others, *where]]))
        else:
            tensor.external_data.add(key="prepacked_0", value="key|0;4;x")

    victim.rewrite(change)


@damage("external", sealed=True)
def linked_weights(victim: Victim) -> None:
    """The data file is a link to the very weights, or to others."""
    file = victim.path / "decoder.onnx.data"
    file.rename(victim.outside / "weights.data")
    file.symlink_to(victim.random.choice([victim.outside / "weights.data", "/etc/passwd", "/dev/zero", "/dev/stdin"]))
    content = victim.content()
    if victim.random.random() < 0.5:
        content["files"].pop("decoder.onnx.data")
    victim.write(content, sealed=True)


@damage(sealed=True)
def training_graph(victim: Victim) -> None:
    victim.rewrite(lambda model: model.training_info.add().algorithm.CopyFrom(model.graph))


# Golden vectors


def _with_vector(victim: Victim, change: Callable[[TensorProto], object], *kinds: str) -> None:
    file = victim.random.choice(victim.vectors(*(kinds or ("input", "output", "reference", "ties"))))
    tensor = TensorProto.FromString(victim.read(file))
    change(tensor)
    file.write_bytes(tensor.SerializeToString())
    victim.reseal()


@damage(sealed=True)
def vector_dims(victim: Victim) -> None:
    shapes: Sequence[list[int]] = [[10**12], [-1], [0], [], [2**32, 2**32], [1] * 200, [2**62, 4], [-2, -3], [7, 0]]
    _with_vector(victim, lambda tensor: tensor.dims.__setitem__(slice(None), victim.random.choice(shapes)))


@damage(sealed=True)
def vector_dtype(victim: Victim) -> None:
    kinds = [0, 2, 3, 8, 9, 10, 14, 16, 17, 21, 22, 23, 99]
    _with_vector(victim, lambda tensor: setattr(tensor, "data_type", victim.random.choice(kinds)))


@damage(sealed=True)
def vector_of_strings(victim: Victim) -> None:
    def change(tensor: TensorProto) -> None:
        count = int(np.prod(tensor.dims))
        tensor.ClearField("raw_data")
        tensor.data_type = TensorProto.STRING
        tensor.string_data.extend([b"\xff"] * count)

    _with_vector(victim, change)


@damage(sealed=True)
def vector_elsewhere(victim: Victim) -> None:
    location = victim.random.choice([*NAMES, str(victim.outside / "weights.data")])
    _with_vector(victim, lambda tensor: _external(tensor, location=location))


@damage(sealed=True)
def vector_values(victim: Victim) -> None:
    """Not finite, infinite when squared, or simply others."""

    def change(tensor: TensorProto) -> None:
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype == np.int64:
            array.ravel()[0] = victim.random.choice([2**62, -(2**63), 77])
        else:
            array.ravel()[:] = victim.random.choice([np.nan, np.inf, np.finfo(array.dtype).max, 5.0])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    _with_vector(victim, change, "output", "reference")


@damage(*FLOATS, sealed=True)
def vector_of_inputs(victim: Victim) -> None:
    """One that cannot have been among the inputs."""

    def change(tensor: TensorProto) -> None:
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype == np.int64:
            array.ravel()[0] = victim.random.choice([2**62, -(2**63), 77])
        else:
            array.ravel()[0] = victim.random.choice([np.nan, np.inf, 1e30])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    _with_vector(victim, change, "input")


@damage("codes", sealed=True)
def everything_tied(victim: Victim) -> None:
    """Rounding is said to decide everywhere, so that any code would do."""
    for file in victim.vectors("ties"):
        tensor = TensorProto.FromString(victim.read(file))
        tensor.CopyFrom(numpy_helper.from_array(1 + numpy_helper.to_array(tensor), tensor.name))
        file.write_bytes(tensor.SerializeToString())
    victim.reseal()


@damage(sealed=True)
def swap_vectors(victim: Victim) -> None:
    one, other = victim.random.sample(victim.vectors("input", "output", "reference", "ties"), 2)
    first, second = victim.read(one), victim.read(other)
    if first == second:
        raise Inapplicable
    one.write_bytes(second)
    other.write_bytes(first)
    victim.reseal()


@damage(sealed=True)
def lost_vector(victim: Victim) -> None:
    victim.random.choice(victim.vectors("input", "output", "reference", "ties")).unlink()
    victim.reseal()


@damage(sealed=True)
def renamed_vector(victim: Victim) -> None:
    name = victim.random.choice(["", "\n", "n" * 10**6])
    _with_vector(victim, lambda tensor: setattr(tensor, "name", name))


@damage(sealed=True)
def vector_of_a_model(victim: Victim) -> None:
    """A message of another kind."""
    file = victim.random.choice(victim.vectors("input", "output", "reference", "ties"))
    file.write_bytes(victim.random.choice([victim.read(victim.path / victim.graph()["file"]), json.dumps({}).encode()]))
    victim.reseal()
