"""A graph in fp32 -> the same in fp16 or int8. Whether it came out right is for ``precision_proof`` to say."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import ModelProto
from onnx.external_data_helper import load_external_data_for_model
from onnx_ir.passes import common as passes
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

import genkit
from genkit_onnx.protobuf import graphs
from genkit_onnx.structure import one_line
from genkit_onnx.translate import silence
from genkit_onnx.wiring import MATRIX

_F16, _F32 = onnx_ir.DataType.FLOAT16, onnx_ir.DataType.FLOAT

_FLOAT32 = {
    *("Celu", "Elu", "Erf", "Exp", "Log", "Pow", "Reciprocal", "Softplus", "Sqrt"),  # small in, large out, or inexact
    *("LayerNormalization", "GroupNormalization", "InstanceNormalization", "LogSoftmax", "Softmax"),
    *("CumSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"),
    "ReduceSumSquare",  # like those before, a sum of many, and a float16 ends at 65504
    *("ConstantOfShape", "EyeLike", "Range"),  # which say themselves what they make
}
"""What stays in float32 inside of an fp16 graph, as in PyTorch's automatic mixed precision and for its reasons."""

_DECISIONS = {
    *("ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod"),
    *("NonMaxSuppression", "Round", "Sign", "TopK"),
}
"""Operators that jump: where a rounding makes another decision, what follows is another result, not a less exact one.
So what they decide on stays in float32 as well, back to the nearest product of matrices, whose result is rounded once.
"""

_FLOAT_INPUTS = {("Resize", 2)}
"""Inputs that are float32 by ONNX's own rules: the operator, and the position."""


class Irreducible(Exception):
    """The graph cannot be had in this precision; the message says why."""


def reduce(file: Path, precision: genkit.ReducedPrecision, batches: Sequence[genkit.Arrays]) -> onnx_ir.Model:
    """The graph in ``file``, in another precision; inputs and outputs stay as they are.

    Args:
        file: of a graph in fp32; its data file may lie beside it.
        precision: that is wanted.
        batches: of inputs, as they come in use, on which int8 chooses its scales.

    Raises:
        Irreducible: where there is nothing to reduce, or an operator that cannot be.
    """
    model = onnx.load(file, load_external_data=False)
    if sum(1 for _ in graphs(model)) > 1:
        raise Irreducible("it has loops or branches inside, which are not reduced")
    try:
        with silence():
            reduced = _to_fp16(file) if precision == "fp16" else _to_int8(model, file.parent, batches)
    except (Irreducible, OSError):
        raise
    except Exception as error:  # the converters are other people's code, which can raise anything
        raise Irreducible(f"{type(error).__name__}: {one_line(error)}") from error
    reduced.graph.sort()
    for clean in (passes.RemoveUnusedNodesPass(), passes.RemoveUnusedOpsetsPass(), passes.NameFixPass()):
        clean(reduced)
    return reduced


def quantized(model: onnx_ir.Model) -> list[str]:
    """The computed tensors that are quantized."""
    names = (node.inputs[0].name for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0])
    return list(dict.fromkeys(name for name in names if name))


def _to_fp16(file: Path) -> onnx_ir.Model:
    # onnxruntime's own converter knows no decisions, and gives two tensors one name where two operators read the same
    model: onnx_ir.Model = passes.ShapeInferencePass()(onnx_ir.load(file)).model
    graph = model.graph
    wide = _in_float32(graph)
    converted: dict[tuple[onnx_ir.Value, onnx_ir.DataType], onnx_ir.Value] = {}

    def convert(value: onnx_ir.Value, dtype: onnx_ir.DataType, reader: onnx_ir.Node) -> onnx_ir.Value:
        if (value, dtype) not in converted:
            cast = onnx_ir.node("Cast", [value], {"to": dtype})
            cast.outputs[0].type, cast.outputs[0].shape = onnx_ir.TensorType(dtype), value.shape
            graph.insert_before(reader, cast)
            converted[value, dtype] = cast.outputs[0]
        return converted[value, dtype]

    def wants(node: onnx_ir.Node, position: int) -> onnx_ir.DataType:
        return _F32 if node in wide or (node.op_type, position) in _FLOAT_INPUTS else _F16

    for tensor in list(graph.initializers.values()):
        if tensor.dtype == _F32 and any(wants(*use) == _F16 for use in tensor.uses()):
            assert tensor.const_value is not None
            with np.errstate(over="ignore"):  # what becomes infinite is refused by the proof
                half = tensor.const_value.numpy().astype(np.float16)
            tensor.const_value, tensor.dtype = onnx_ir.tensor(half, name=tensor.name), _F16
    for node in list(graph):
        for position, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_F32, _F16) and value.dtype != (dtype := wants(node, position)):
                node.replace_input_with(position, convert(value, dtype, node))
        for value in node.outputs:
            if value.dtype == _F32 and node not in wide:
                value.dtype = _F16
    for position, value in enumerate(graph.outputs):
        if value.dtype == _F16:
            cast = onnx_ir.node("Cast", [value], {"to": _F32})
            cast.outputs[0].type, cast.outputs[0].shape = onnx_ir.TensorType(_F32), value.shape
            value.name, cast.outputs[0].name = f"{value.name}_half", value.name
            graph.append(cast)
            graph.outputs[position] = cast.outputs[0]
    return model


def _in_float32(graph: onnx_ir.Graph) -> set[onnx_ir.Node]:
    """The nodes that stay in float32 in an fp16 graph."""
    deciding: set[onnx_ir.Node] = set()
    for node in reversed(list(graph)):
        float_ = next((value.dtype for value in node.inputs if value is not None), None) == _F32
        truncates = node.op_type == "Cast" and float_ and node.outputs[0].dtype != _F32
        followed = any(reader in deciding for value in node.outputs for reader, _ in value.uses())
        if node.op_type in _DECISIONS or truncates or (followed and node.op_type not in MATRIX):
            deciding.add(node)
    return deciding | {node for node in graph if node.op_type in _FLOAT32 or node.op_type == "Cast"}


def _to_int8(model: ModelProto, folder: Path, batches: Sequence[genkit.Arrays]) -> onnx_ir.Model:
    weights = {tensor.name for tensor in model.graph.initializer}
    if not any(node.op_type in MATRIX and weights & set(node.input) for node in model.graph.node):
        raise Irreducible(f"it has no weights that are read by {', '.join(MATRIX[:-1])} or {MATRIX[-1]}")
    large = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    load_external_data_for_model(model, str(folder))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "int8.onnx"
        quantize_static(
            model,
            file,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            calibrate_method=CalibrationMethod.MinMax,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Seven bits: processors without 8-bit dot products, and WebAssembly's relaxed ones, add pairs of products
            # in 16 bits, which only then cannot overflow. So every machine computes the same.
            reduce_range=True,
            per_channel=True,
            op_types_to_quantize=list(MATRIX),
            use_external_data_format=large,
            extra_options={"OpTypesToExcludeOutputQuantization": list(MATRIX)},
        )
        return onnx_ir.from_proto(onnx.load(file))


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, batches: Sequence[genkit.Arrays]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else dict(batch)
