"""A graph in fp32 -> the same in fp16 or int8. Whether it came out right is for ``precision_proof`` to say."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
from onnx import ModelProto, ValueInfoProto, shape_inference
from onnx.external_data_helper import load_external_data_for_model
from onnx_ir.passes import common as passes
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers import float16

import genkit
from genkit_onnx.protobuf import graphs
from genkit_onnx.runtime import OnnxRuntime
from genkit_onnx.translate import silence
from genkit_onnx.wiring import MATRIX

_FLOAT32 = {
    *float16.DEFAULT_OP_BLOCK_LIST,  # operators of which runtimes have no fp16 version
    *("Celu", "Elu", "Erf", "Exp", "Log", "Pow", "Reciprocal", "Softplus", "Sqrt"),  # small in, large out, or inexact
    *("LayerNormalization", "GroupNormalization", "InstanceNormalization", "LogSoftmax", "Softmax"),
    *("ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),  # sums of many, which end at 65504 in fp16
}
"""What stays in float32 inside of an fp16 graph, as in PyTorch's automatic mixed precision and for its reasons."""


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
            reduced = _to_fp16(model, file.parent) if precision == "fp16" else _to_int8(model, file.parent, batches)
    except Irreducible:
        raise
    except Exception as error:  # the converters are other people's code, which can raise anything
        raise Irreducible(f"{type(error).__name__}: {error}") from error
    found = onnx_ir.from_proto(reduced)
    found.graph.sort()
    onnx_ir.passes.Sequential(passes.RemoveUnusedNodesPass(), passes.RemoveUnusedOpsetsPass())(found)
    return found


def quantized(model: onnx_ir.Model) -> list[str]:
    """The computed tensors that are quantized."""
    names = (node.inputs[0].name for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0])
    return list(dict.fromkeys(name for name in names if name))


def ranges(file: Path, tensors: Sequence[str], batches: Sequence[genkit.Arrays]) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of each tensor of a graph in fp32, inputs among them, over the batches."""
    model = onnx.load(file, load_external_data=False)
    inputs = {value.name for value in model.graph.input}
    del model.graph.output[:]
    model.graph.output.extend(ValueInfoProto(name=name) for name in tensors if name not in inputs)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".onnx") as observed:  # beside its data file
        Path(observed.name).write_bytes(model.SerializeToString())
        run = OnnxRuntime().load(Path(observed.name)) if model.graph.output else lambda inputs: {}
        found = [{**batch, **run(batch)} for batch in batches]
    return {
        name: (float(min(each[name].min() for each in found)), float(max(each[name].max() for each in found)))
        for name in tensors
    }


def _to_fp16(model: ModelProto, folder: Path) -> ModelProto:
    model = shape_inference.infer_shapes(model)  # before the weights are in it, with which it may be too large
    load_external_data_for_model(model, str(folder))
    converted: ModelProto = float16.convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, op_block_list=sorted(_FLOAT32)
    )
    return converted


def _to_int8(model: ModelProto, folder: Path, batches: Sequence[genkit.Arrays]) -> ModelProto:
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
        return onnx.load(file)


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, batches: Sequence[genkit.Arrays]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else dict(batch)
