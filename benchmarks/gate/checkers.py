"""What other people check after an export, each with its own thresholds on its usual input.

Each is made for a graph and a seed, takes a file, and says whether it would have warned whoever exported it. All of
them get what they usually get: one batch as the graph's inputs draw it, with no row made hard.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from genkit_onnx.translate import silence
from torch import Tensor, nn
from torch.onnx.verification import verify_onnx_program

import genkit

Checker = Callable[[Path], bool]
"""Whether the file is refused."""


def _batch(graph: genkit.Graph, rows: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(value.draw(rows, generator) for value in graph.inputs.values())


def _session(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# torch.onnx.export(..., verify=True)


def torch_verify(graph: genkit.Graph, seed: int) -> Checker:
    """``torch.onnx.export(verify=True)``: onnx's checker, then the example input of three rows.

    The comparison is torch's own ``verify_onnx_program``, on torch's own program of the module, into which the faulty
    model is put. That an error of 5e-3, or of 0.1 relative to the output, is too large is what ``export`` itself says
    (in its ``_core.py``). It prints that and returns: what counts here as refused is in truth a line in a log.
    """
    with silence():
        program = torch.onnx.export(
            graph.module,
            _batch(graph, 3, seed),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamo=True,
            dynamic_shapes=tuple({0: "batch"} for _ in graph.inputs),
            verbose=False,
        )
    assert program is not None

    def check(file: Path) -> bool:
        with silence():
            try:
                program.model = onnx_ir.load(file)
                onnx.checker.check_model(onnx.load(file))
                program.initialize_inference_session(_session)
                found = verify_onnx_program(program)
            except Exception:  # it catches everything, and prints that there was an error
                return True
        return any(info.max_abs_diff >= 5e-3 or info.max_rel_diff >= 1e-1 for info in found)

    return check


# The PyTorch tutorial


def tutorial(graph: genkit.Graph, seed: int, rtol: float = 1e-3, atol: float = 1e-5) -> Checker:
    """PyTorch's tutorial "Exporting a model to ONNX and running it with ONNX Runtime": onnx's checker, then
    ``np.testing.assert_allclose(rtol=1e-3, atol=1e-5)`` on one random batch of 64, here on all outputs.
    """
    inputs = _batch(graph, 64, seed)
    with torch.no_grad():
        expected = graph.module(*inputs)

    def check(file: Path) -> bool:
        try:
            onnx.checker.check_model(onnx.load(file))
            session = _session(str(file))
            feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
            for y, actual in zip(expected, session.run(None, feeds), strict=True):
                np.testing.assert_allclose(actual, y.numpy(), rtol=rtol, atol=atol)
        except Exception:  # AssertionError, or whatever the checker and the runtime raise
            return True
        return False

    return check


# optimum


class _Named(nn.Module):
    """The module with named inputs and outputs, as transformers have them."""

    def __init__(self, graph: genkit.Graph) -> None:
        super().__init__()
        self.module, self.names, self.outputs = graph.module, tuple(graph.inputs), graph.outputs

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.outputs, self.module(*(inputs[name] for name in self.names)), strict=True))


def optimum(graph: genkit.Graph, seed: int) -> Checker:
    """The ``validate_model_outputs`` of optimum itself, with the tolerance (atol 1e-5, and numpy's rtol 1e-5) and the
    batch of two that are its defaults.
    """
    from optimum.exporters.base import ExporterConfig
    from optimum.exporters.onnx.base import OnnxConfig
    from optimum.exporters.onnx.convert import validate_model_outputs
    from optimum.utils.input_generators import DEFAULT_DUMMY_SHAPES

    class Config(OnnxConfig):
        """What optimum has to know of a model."""

        def __init__(self) -> None:
            """Without a configuration of transformers, from which the rest would be read."""

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {name: {0: "batch"} for name in graph.inputs}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {name: {0: "batch"} for name in graph.outputs}

        @property
        def torch_to_onnx_output_map(self) -> dict[str, str]:
            return {}

        def rename_ambiguous_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return inputs

        def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Tensor]:
            return dict(zip(graph.inputs, _batch(graph, DEFAULT_DUMMY_SHAPES["batch_size"], seed), strict=True))

        def patch_model_for_export(self, model: nn.Module, **_: Any) -> Any:
            return nullcontext()

    def check(file: Path) -> bool:
        with silence():
            try:
                validate_model_outputs(
                    Config(),
                    _Named(graph),
                    file,
                    list(graph.outputs),
                    atol=ExporterConfig.ATOL_FOR_VALIDATION,
                    use_subprocess=False,
                )
            except Exception:  # AtolError, ShapeError, OutputMatchError, or whatever the runtime raises
                return True
        return False

    return check


CHECKERS: Mapping[str, Callable[[genkit.Graph, int], Checker]] = {
    "torch verify": torch_verify,
    "tutorial": tutorial,
    "tutorial, atol 1e-5": partial(tutorial, rtol=0.0, atol=1e-5),
    "optimum": optimum,
}
"""By the names that the table has for them."""


def versions() -> dict[str, str]:
    """Of everything that takes part."""
    names = ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "onnxscript", "numpy", "optimum", "optimum-onnx")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
