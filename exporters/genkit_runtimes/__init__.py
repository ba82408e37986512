"""Other people's runtimes, each told to compute float32 in float32, for ``genkit verify --runtime NAME``."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the runtimes, whether or not their libraries are installed."""
    registry.runtime("reference", "genkit_runtimes.reference:Reference")
    registry.runtime("openvino", "genkit_runtimes.openvino:OpenVino")
    registry.runtime("opencv", "genkit_runtimes.opencv:OpenCv")
    registry.runtime("mnn", "genkit_runtimes.mnn:Mnn")
    registry.runtime("ncnn", "genkit_runtimes.ncnn:Ncnn")
    registry.runtime("tract", "genkit_runtimes.tract:Tract")
    registry.runtime("node", "genkit_runtimes.javascript:node")
    registry.runtime("node-wasm", "genkit_runtimes.javascript:node_wasm")
    registry.runtime("browser-wasm", "genkit_runtimes.javascript:browser_wasm")
    registry.runtime("browser-webgpu", "genkit_runtimes.javascript:browser_webgpu")
