"""The README.md inside a bundle, written from what its manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import genkit

_ROWS = 16


def readme(manifest: genkit.Manifest) -> str:
    """What the files are, and how to run one graph (the decoder, where there is one) in four languages."""
    graph = next((graph for graph in manifest.graphs if graph.name == "decoder"), manifest.graphs[0])
    prior = [other for other in manifest.graphs if other.name == "prior" and graph.name == "decoder"]
    return "\n".join(
        [
            f"# {_title(manifest)}",
            "",
            "Graphs in ONNX whose numbers are proven to be those of the PyTorch model that they were exported from.",
            "",
            *_interface(manifest),
            "",
            *_FILES,
            *_reduced(manifest),
            "",
            "`genkit verify .` in this directory checks all of it again, without PyTorch.",
            "",
            "## Python",
            "",
            "`pip install onnxruntime numpy`, then in this directory:",
            "",
            *_python([*prior, graph]),
            "",
            "## Node",
            "",
            "`npm install onnxruntime-node`, then in a file that ends in `.mjs`:",
            "",
            *_javascript(graph, "onnxruntime-node", f'"{graph.file}"'),
            "",
            "## Browser",
            "",
            "With onnxruntime-web; serve this directory, because a page may not read files by itself:",
            "",
            *_javascript(graph, "onnxruntime-web", f'"{graph.file}", {{ executionProviders: ["wasm"] }}'),
            "",
            "## C++",
            "",
            "With the onnxruntime release for your platform; link with `-lonnxruntime`:",
            "",
            *_cpp(graph),
            "",
        ]
    )


_FILES = [
    "| file | what it is |",
    "| --- | --- |",
    "| `manifest.json` | the graphs, the prior, the recipe, and the sha256 of every file |",
    "| `parity.json` | what was measured before this was published, with the limits |",
    "| `test_data/` | inputs with PyTorch's float32 answers (`output_*.pb`) and float64 answers (`reference_*.pb`) |",
]


def _reduced(manifest: genkit.Manifest) -> list[str]:
    """Rows of the files: functions of the graphs, smaller and less exact."""
    inputs = {graph.name: [value.name for value in graph.inputs] for graph in manifest.graphs}
    rows = []
    for graph in manifest.reduced:
        ranges = {name: graph.ranges[name] for name in inputs[graph.of] if name in graph.ranges}
        within = "".join(f", for `{name}` from {low:.3g} to {high:.3g}" for name, (low, high) in ranges.items())
        errors = "; ".join(f"`{name}`: {output.measured}" for name, output in graph.outputs.items())
        rows.append(f"| `{graph.file}` | `{graph.of}.onnx` in {graph.precision}{within}; {errors} |")
    return rows


def _title(manifest: genkit.Manifest) -> str:
    recipe = manifest.about.get("recipe")
    return str(recipe["name"]) if isinstance(recipe, dict) and "name" in recipe else "Exported graphs"


def _interface(manifest: genkit.Manifest) -> list[str]:
    lines = ["| graph | | name | dtype | shape | range |", "| --- | --- | --- | --- | --- | --- |"]
    for graph in manifest.graphs:
        for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
            for value in values:
                shape = f"[{', '.join(map(str, value.shape))}]"
                bounds = "any" if value.range is None else f"[{value.range[0]:g}, {value.range[1]:g}]"
                lines.append(f"| `{graph.file}` | {kind} | `{value.name}` | {value.dtype} | {shape} | {bounds} |")
    lines += [f"\nThere is no {absent.name}: {absent.reason}." for absent in manifest.absent]
    return lines


def _python(graphs: Sequence[genkit.BundledGraph]) -> list[str]:
    """The graphs one after the other: what one gives, the next takes under the same name; the rest is drawn."""
    lines: list[str] = []
    known: set[str] = set()
    for graph in graphs:
        for value in graph.inputs:
            if value.name not in known:
                lines.append(f"{value.name} = {_numpy(value)}")
        known |= {value.name for value in (*graph.inputs, *graph.outputs)}
        names = ", ".join(f'"{value.name}"' for value in graph.outputs)
        feeds = ", ".join(f'"{value.name}": {value.name}' for value in graph.inputs)
        results = ", ".join(value.name for value in graph.outputs)
        lines += [
            f'session = onnxruntime.InferenceSession("{graph.file}", providers=["CPUExecutionProvider"])',
            f"[{results}] = session.run([{names}], {{{feeds}}})",
        ]
    return [
        "```python",
        "import numpy as np",
        "import onnxruntime",
        "",
        "random = np.random.default_rng(0)",
        *lines,
        *(f'print("{value.name}", {value.name}.shape)' for value in graphs[-1].outputs),
        "```",
    ]


def _numpy(value: genkit.Value) -> str:
    """How one draws an input; where numpy cannot, one that is typical enough to try the graph."""
    shape = str((_ROWS, *value.shape[1:]))
    cast = f".astype(np.{value.dtype})"
    if value.distribution is not None:
        parameters = [f"np.array({p})" if isinstance(p, list) else str(p) for p in value.distribution.parameters]
        return f"random.{value.distribution.kind}({', '.join(parameters)}, {shape}){cast}"
    if value.dtype != "float32":
        return f"np.zeros({shape}, dtype=np.{value.dtype})"
    if value.range is not None:
        return f"random.uniform({value.range[0]:g}, {value.range[1]:g}, {shape}){cast}"
    return f"random.standard_normal({shape}, dtype=np.float32)"


def _javascript(graph: genkit.BundledGraph, package: str, arguments: str) -> list[str]:
    feeds = []
    for value in graph.inputs:
        # int64 is BigInt64Array in JavaScript, and so on.
        kind = {"float32": "Float32Array", "int64": "BigInt64Array"}.get(value.dtype, f"{value.dtype.title()}Array")
        shape = ", ".join(map(str, (_ROWS, *value.shape[1:])))
        size = _ROWS * _elements(value)
        feeds.append(f'  {value.name}: new ort.Tensor("{value.dtype}", new {kind}({size}), [{shape}]),')
    return [
        "```js",
        f'import * as ort from "{package}";',
        "",
        f"const session = await ort.InferenceSession.create({arguments});",
        "const outputs = await session.run({",
        *feeds,
        "});",
        "for (const [name, value] of Object.entries(outputs)) console.log(name, value.dims, value.data);",
        "```",
    ]


def _cpp(graph: genkit.BundledGraph) -> list[str]:
    lines = [
        "```cpp",
        "#include <cstdint>",
        "#include <iostream>",
        "#include <vector>",
        "",
        "#include <onnxruntime_cxx_api.h>",
        "",
        "int main() {",
        "  Ort::Env env;",
        f'  Ort::Session session(env, ORT_TSTR("{graph.file}"), Ort::SessionOptions());',
        "  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);",
        "  std::vector<Ort::Value> inputs;",
    ]
    for value in graph.inputs:
        kind = "float" if value.dtype == "float32" else f"std::{value.dtype}_t"
        shape = ", ".join(map(str, (_ROWS, *value.shape[1:])))
        name = value.name
        lines += [
            f"  std::vector<{kind}> {name}({_ROWS * _elements(value)});",
            f"  std::vector<int64_t> {name}_shape{{{shape}}};",
            f"  inputs.push_back(Ort::Value::CreateTensor<{kind}>(memory, {name}.data(), {name}.size(),",
            f"                                                    {name}_shape.data(), {name}_shape.size()));",
        ]
    input_names = ", ".join(f'"{value.name}"' for value in graph.inputs)
    output_names = ", ".join(f'"{value.name}"' for value in graph.outputs)
    return [
        *lines,
        f"  const char* input_names[] = {{{input_names}}};",
        f"  const char* output_names[] = {{{output_names}}};",
        "  auto outputs = session.Run(Ort::RunOptions(), input_names, inputs.data(), inputs.size(), output_names,",
        f"                             {len(graph.outputs)});",
        "  for (auto& output : outputs)",
        '    std::cout << output.GetTensorTypeAndShapeInfo().GetElementCount() << " numbers\\n";',
        "}",
        "```",
    ]


def _elements(value: genkit.Value) -> int:
    return prod(size for size in value.shape if size != "batch")
