"""onnxruntime on the CPU, in honest float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

import genkit

_FATAL = 4  # what fails is raised as well, so that nothing need be printed


class OnnxRuntime:
    """onnxruntime's CPU provider with every optimisation that keeps float32 what it is."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__
    precision = "no bfloat16 products, no approximate GELU, denormals as they are"

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.add_session_config_entry("session.load_model_format", "ONNX")  # and not what the name or bytes suggest
        # These are off by default on most machines. Said here, so that none of them can pose as float32.
        options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
        options.add_session_config_entry("optimization.enable_gelu_approximation", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "0")
        # A proof is thousands of small calls, between which waiting threads would take the cores from everybody else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = _FATAL
        names = [output.name for output in session.get_outputs()]

        def run(inputs: genkit.Arrays) -> dict[str, NDArray[Any]]:
            return dict(zip(names, session.run(names, dict(inputs), quiet), strict=True))

        return run
