"""torch.onnx -> a clean ONNX model: self-contained, symbolic in the batch, of the opset asked for, portable."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx_ir.passes import common as passes
from onnxscript import version_converter
from onnxscript.rewriter import RewriteRule
from onnxscript.rewriter.rules import common
from torch import nn

import genkit
from genkit_onnx.protobuf import annotate, annotated
from genkit_onnx.spelling import CAREFUL_SPELLINGS, SPELLINGS

OLDEST_OPSET = 18
"""What is traced: PyTorch's own, and the oldest that it writes."""
NEWEST_OPSET = version_converter._version_converter.SUPPORTED_MAX_ONNX_OPSET
"""What onnxscript converts a graph to."""

_INLINE_LIMIT = 2**31 - 2**24
"""The bytes of weights that a file holds itself: a protocol buffer ends at 2 GB, and the graph needs some of them."""
_WORTH_A_PLACE = 1024
"""The bytes from which on a tensor goes to the data file, where there is one. Shapes and axes stay in the graph."""

_EXAMPLE_ROWS = 3  # 0 and 1 are special to the tracer, which would take them for constants

# The default rules but those that fold a batch norm into the weights before it: folding rounds every weight once more,
# and leaves values under the checkpoint's names that are not the checkpoint's. Runtimes fold by themselves.
_RULES = [
    getattr(common, f"{name}_rule")
    for name in (
        "cast_cast",
        "no_op_cast",
        "cast_constant_of_shape",
        "cast_constant_of_shape_without_value",
        "collapse_slice",
        "collapse_slice2",
        "materialize_reshape_shape",
        "no_op_expand",
        "no_op_transpose",
        "reshape_reshape",
        "squeeze_reshape_1d",
        "transpose_transpose",
        "unsqueeze_unsqueeze",
        "add_0",
        "sub_0",
        "mul_by_1",
        "div_by_1",
    )
    if hasattr(common, f"{name}_rule")  # older versions of onnxscript have fewer
] + SPELLINGS


def translate(graph: genkit.Graph, opset: int, seed: int, *, careful: bool = False) -> onnx_ir.Model:
    """The graph's module as an ONNX model.

    It is traced for the oldest opset and converted upwards, so that operators of newer opsets which runtimes treat
    freely (such as Gelu) do not appear. ``careful``: nor do those of ``CAREFUL_SPELLINGS``.

    Raises:
        ExportRefused: where torch.onnx cannot translate the module; the message is the cause, in one line.
    """
    generator = torch.Generator().manual_seed(seed)
    example = tuple(value.draw(_EXAMPLE_ROWS, generator) for value in graph.inputs.values())
    try:
        with genkit.unvalidated(), silence(), torch.no_grad():
            module = copy.deepcopy(graph.module).cpu().eval()
            program = torch.onnx.export(
                module,
                example,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                opset_version=OLDEST_OPSET,
                dynamo=True,
                dynamic_shapes=_symbolic(module, len(example)),
                external_data=False,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            _clean(program.model, graph, opset, [*_RULES, *CAREFUL_SPELLINGS.values()] if careful else _RULES)
            return program.model
    except Exception as error:  # the tracer runs the module's own code, which can raise anything
        raise genkit.ExportRefused(_cause(error)) from error


def _symbolic(module: nn.Module, inputs: int) -> tuple[object, ...]:
    """``dynamic_shapes`` for ``forward``. The name is a string because a ``Dim`` may become static in silence."""
    dims = tuple({0: "batch"} for _ in range(inputs))
    for position, parameter in enumerate(inspect.signature(module.forward).parameters.values()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return (*dims[:position], dims[position:])
    return dims


def save(model: onnx_ir.Model, name: str, file: Path, notes: Mapping[str, str], limit: int | None) -> None:
    """Writes the model with ``notes`` and no others; weights of more than ``limit`` bytes go to ``<file>.data``."""
    limit = _INLINE_LIMIT if limit is None else limit
    if sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value) > limit:
        onnx_ir.external_data.unload_from_model(
            model, file.parent, f"{file.name}.data", size_threshold_bytes=_WORTH_A_PLACE
        )
    proto = onnx_ir.to_proto(model)
    proto.graph.name = name
    for message in annotated(proto):
        message.ClearField("doc_string")
        del message.metadata_props[:]
    annotate(proto, notes)
    file.write_bytes(proto.SerializeToString(deterministic=True))


def _clean(model: onnx_ir.Model, graph: genkit.Graph, opset: int, rules: Sequence[RewriteRule]) -> None:
    """Brings it to its opset, folds what is constant, removes what is unused, and gives everything a name."""
    passes.InlinePass()(model)
    if opset != OLDEST_OPSET:
        version_converter.convert_version(model, opset, fallback=False)
    for _ in range(2):  # what a rule rewrites may be foldable
        onnxscript.optimizer.fold_constants(model, should_fold=_without_weights)
        onnxscript.rewriter.rewrite(model, rules)
    onnx_ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
    )(model)
    # An output that is an input as it is has lost one of its two names by now.
    for values, names in (model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs):
        for value, name in zip(values, names, strict=True):
            value.name = name
    passes.NameFixPass()(model)


def _without_weights(node: onnx_ir.Node) -> bool | None:
    """None, for the default, where nothing is read but constants of the code; else no.

    What is computed from weights would be rounded to float32 on the way, an error of the graph that its float64 shows.
    """
    reads_weights = any(value is not None and value.is_initializer() for value in node.inputs)
    return False if reads_weights else None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The tracer prints, logs and warns about its own progress; what matters it raises."""
    level = logging.root.manager.disable
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def _cause(error: BaseException) -> str:
    """What the error at the bottom of the chain says, in one line: its first sentence, not its advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    sentence = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
