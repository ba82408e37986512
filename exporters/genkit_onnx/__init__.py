"""ONNX export: graphs whose numbers are proven, on their bytes, to be those of the PyTorch module."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the ONNX exporter and its runtime, on the CPU, where graphs are proven, and on GPUs."""
    registry.exporter("onnx", "genkit_onnx.exporter:OnnxExporter")
    registry.runtime("onnxruntime", "genkit_onnx.runtime:OnnxRuntime")
    registry.runtime("onnxruntime-cuda", "genkit_onnx.runtime:OnnxRuntimeCuda")
