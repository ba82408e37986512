"""onnxruntime in honest float32: on the CPU, which is what exports are proven on, and on a GPU by CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx.parser
import onnxruntime
from numpy.typing import NDArray

import genkit

onnxruntime.disable_telemetry_events()  # on Linux, too, it reports sessions to its makers since 1.29

_FATAL = 4  # what fails is raised as well, so that nothing need be printed
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_SETTINGS = {"use_tf32": "0"}
_SMALLEST = '<ir_version: 8, opset_import: ["": 18]> smallest (float[1] x) => (float[1] y) { y = Neg(x) }'


class OnnxRuntime:
    """onnxruntime's CPU provider with every optimisation that keeps float32 what it is."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__
    precision = "no bfloat16 products, no approximate GELU, denormals as they are"

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        return _function(_session(path, [_CPU]))


class OnnxRuntimeCuda:
    """onnxruntime's CUDA provider without TensorFloat-32; what it has no kernel for runs on the CPU.

    The wheel with CUDA lists the provider on a machine that has no GPU as well, and a session there falls back to the
    CPU without an error. So what a session really has is asked here, before a CPU can pose as a GPU.
    """

    name = "onnxruntime-cuda"
    version: str = onnxruntime.__version__
    precision = " ".join(f"{key}={value}" for key, value in _SETTINGS.items())

    def __init__(self, settings: Mapping[str, str] = _SETTINGS) -> None:
        self._providers = [(_CUDA, dict(settings)), _CPU]
        if _CUDA not in onnxruntime.get_available_providers():
            raise genkit.RuntimeMissing("this onnxruntime has no CUDA: pip install onnxruntime-gpu")
        with contextlib.redirect_stdout(None):  # it prints what it does not find
            onnxruntime.preload_dlls()  # CUDA and cuDNN may have come with wheels, such as PyTorch's
        model = onnx.parser.parse_model(_SMALLEST).SerializeToString()
        if _CUDA not in _session(model, self._providers).get_providers():
            raise genkit.RuntimeMissing(
                "onnxruntime cannot use a GPU here: it needs one of NVIDIA's with its driver, and CUDA and cuDNN: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )

    def defaults(self) -> OnnxRuntimeCuda:
        """In TensorFloat-32, where the GPU has it."""
        return OnnxRuntimeCuda({})

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        return _function(_session(path, self._providers))


def _session(model: Path | bytes, providers: list[Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.load_model_format", "ONNX")  # and not what the name or bytes suggest
    # These are off by default on most machines. Said here, so that none of them can pose as float32.
    options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
    options.add_session_config_entry("optimization.enable_gelu_approximation", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "0")
    # A proof is thousands of small calls, between which waiting threads would take the cores from everybody else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=providers)


def _function(session: Any) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = _FATAL
    names = [output.name for output in session.get_outputs()]

    def run(inputs: genkit.Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(names, dict(inputs), quiet), strict=True))

    return run
