"""The README.md inside a bundle, written from what its manifest says."""

from __future__ import annotations

import genkit
from genkit_onnx.recipes import BROWSER, CPP, NODE, PYTHON, Grid, golden, recipe, samples


def readme(manifest: genkit.Manifest) -> str:
    """What the files are, and how to run one graph (the decoder, where there is one) in four languages."""
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
            _GENKIT.format(deployment=genkit.DEPLOYMENT, use="\n".join(_use(manifest))),
            recipes(manifest),
        ]
    )


def recipes(manifest: genkit.Manifest) -> str:
    """The part of the README that runs one graph on its golden inputs."""
    graph = next((graph for graph in manifest.graphs if graph.name == "decoder"), manifest.graphs[0])
    prior = [other for other in manifest.graphs if other.name == "prior" and graph.name == "decoder"]
    folder, rows = golden(graph)
    grid = Grid.of(graph.outputs[0], rows)
    result = f"draws the {rows} images, {grid.columns} in a line" if grid else "prints the first row of every output"
    fresh = samples([*prior, graph])
    sections = [
        _BEFORE.format(file=graph.file, folder=folder, rows=rows, result=result),
        _PYTHON.format(recipe(graph, PYTHON)),
        *([_SAMPLES.format(fresh)] if fresh else []),
        _NODE.format(recipe(graph, NODE)),
        _BROWSER.format(recipe(graph, BROWSER)),
        _CPP.format(recipe(graph, CPP)),
    ]
    return "\n".join(sections)


_FILES = [
    "| file | what it is |",
    "| --- | --- |",
    "| `manifest.json` | the graphs, the prior, the recipe, and the sha256 of every file |",
    "| `parity.json` | what was measured before this was published, with the limits |",
    "| `test_data/` | inputs with PyTorch's float32 answers (`output_*.pb`) and float64 answers (`reference_*.pb`) |",
]

_GENKIT = """\
## With genkit

Without PyTorch, in a fraction of its size:

```console
{deployment}
genkit verify bundle
```

That checks everything again: the files, the graphs in float64, and the numbers of the runtime on this machine.

```python
import genkit

model = genkit.load_bundle("bundle")  # proven first, in a second or so
{use}
```
"""

_BEFORE = """\
## Run `{file}`

Each of these programs runs `{file}` on the {rows} inputs in `{folder}` and
{result}. Some of the inputs are extreme or zero on purpose. PyTorch's own answers lie beside them.

Save a program next to this directory, not in it, where `genkit verify` would report it. It looks for the directory
under the name `bundle`.
"""

_PYTHON = """\
### Python

`run.py`:

```python
{}```

```console
pip install onnxruntime numpy
python run.py
```
"""

_SAMPLES = """\
The same with fresh inputs, `samples.py`:

```python
{}```
"""

_NODE = """\
### Node

`run.mjs`:

```js
{}```

`skip` leaves out what only a GPU needs:

```console
ONNXRUNTIME_NODE_INSTALL=skip npm install onnxruntime-node
node run.mjs
```
"""

_BROWSER = """\
### Browser

`index.html`, which needs a server, because a page may not read files by itself:

```html
{}```

```console
npm install onnxruntime-web
python -m http.server --bind 127.0.0.1 8000
```

Then open <http://127.0.0.1:8000/>.
"""

_CPP = """\
### C++

`run.cpp`, with OpenVINO, whose Python package brings the headers and the libraries:

```cpp
{}```

```console
pip install openvino
OV=$(python -c "import openvino; print(openvino.__path__[0])")
g++ -std=c++17 -O2 run.cpp -o run -I"$OV/include" "$OV"/libs/libopenvino.so.* -Wl,-rpath,"$OV/libs"
./run
```
"""


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


def _use(manifest: genkit.Manifest) -> list[str]:
    """A line for each graph that can be run on what the lines before it gave."""
    graphs = {graph.name: graph for graph in manifest.graphs}
    if "decoder" not in graphs or not samples([graphs[name] for name in ("prior", "decoder") if name in graphs]):
        return ["print(model.graphs)"]
    lines, known = ["x = model.sample(16, seed=0)  # a numpy array"], {"x"}
    for graph in (graph for graph in manifest.graphs if {value.name for value in graph.inputs} <= known):
        feeds = ", ".join(f"{value.name}={value.name}" for value in graph.inputs)
        results = ", ".join(value.name for value in graph.outputs) + ("," if len(graph.outputs) == 1 else "")
        lines.append(f'{results} = model.run("{graph.name}", {feeds})')
        known |= {value.name for value in graph.outputs}
    return lines


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
