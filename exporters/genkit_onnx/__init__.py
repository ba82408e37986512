"""ONNX export: graphs whose numbers are proven, on their bytes, to be those of the PyTorch module."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the ONNX exporter and the runtime that proves its graphs."""
    registry.exporter("onnx", "genkit_onnx.exporter:OnnxExporter")
    registry.runtime("onnxruntime", "genkit_onnx.runtime:OnnxRuntime")
