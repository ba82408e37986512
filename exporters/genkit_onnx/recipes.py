"""Programs that run one graph on its golden inputs, in four languages, each complete in under 25 lines.

All do the same: where the first output is an image they draw it, elsewhere they print the first row of every output.
What a graph calls its inputs and outputs is only ever in strings, because it need not be a name in any language.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps
from math import isqrt, prod

import numpy as np

import genkit


@dataclass(frozen=True)
class Language:
    """How a program is written: the whole, its line about an input, and two ways to show what came out.

    ``grey`` and ``colour`` are what differs between images of one and of three channels. Some languages need lines of
    their own for each output that is printed.
    """

    program: str
    each_input: str
    show_images: str
    show_rows: str
    grey: str = ""
    colour: str = ""
    each_output: str = ""


PYTHON = Language(
    program="""\
from pathlib import Path

import numpy as np
import onnxruntime

golden = Path("bundle/@folder")
# @layout
inputs = {
@inputs
}
session = onnxruntime.InferenceSession("bundle/@file")
@show
""",
    each_input='    @name: np.frombuffer((golden / "@golden").read_bytes()[-@bytes:], "@order").reshape(@shape),',
    show_images="""\
[images] = session.run([@first], @feeds)

grid = images.reshape(@lines, @columns, @channels, @height, @width).transpose(0, 3, 1, 4, 2)  # channels last
pixels = (255 * grid.astype(float) + 0.5).astype(np.uint8)
Path("@picture").write_bytes(b"@header" + pixels.tobytes())""",
    show_rows="""\
names = [@names]
for name, values in zip(names, session.run(names, @feeds)):
    print(name, *values[0].ravel())""",
)

PYTHON_SAMPLES = Language(
    program="""\
from pathlib import Path

import numpy as np
import onnxruntime

random = np.random.default_rng()
values = {
@inputs
}
@{earlier}session = onnxruntime.InferenceSession("bundle/@file")
@show
""",
    each_input="    @name: random.@draw.astype(np.@dtype),",
    show_images=PYTHON.show_images,
    show_rows=PYTHON.show_rows,
)

NODE = Language(
    program="""\
import fs from "node:fs";
import * as ort from "onnxruntime-node";

const folder = "bundle/@folder/";
// @layout
const golden = (file, size) => new Uint8Array(fs.readFileSync(folder + file)).slice(-size).buffer;
const inputs = {
@inputs
};
const session = await ort.InferenceSession.create("bundle/@file");
@show
""",
    each_input='  @name: new ort.Tensor("@dtype", new @typed_array(golden("@golden", @bytes)), [@shape]),',
    show_images="""\
const { data } = (await session.run(inputs))[@first];

const pixels = [];
for (let line = 0; line < @lines; line++) for (let y = 0; y < @height; y++)
  for (let column = 0; column < @columns; column++) for (let x = 0; x < @width; x++)@per_channel
    pixels.push(255 * data[@index] + 0.5);
fs.writeFileSync("@picture", Buffer.concat([Buffer.from("@header"), Uint8Array.from(pixels)]));""",
    colour=" for (let c = 0; c < 3; c++)",
    show_rows="""\
for (const [name, { data, size }] of Object.entries(await session.run(inputs)))
  console.log(name, data.slice(0, size / @rows).join(" "));""",
)

BROWSER = Language(
    program="""\
<!doctype html>
<title>@file</title>
@element
<script type="module">
  addEventListener("error", (event) => document.body.append(event.message)); // say what goes wrong
  const ort = await import("./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1; // more need a cross-origin isolated page
  const load = (file) =>
    fetch(file).then((found) => (found.ok ? found.arrayBuffer() : Promise.reject(`${file}: HTTP ${found.status}`)));
  // @layout
  const golden = async (file, size) => (await load(`bundle/@folder/${file}`)).slice(-size);
  const inputs = {
@inputs
  };
  const session = await ort.InferenceSession.create(await load("bundle/@file"));
@show
</script>
""",
    each_input='    @name: new ort.Tensor("@dtype", new @typed_array(await golden("@golden", @bytes)), [@shape]),',
    show_images="""\
  const { data } = (await session.run(inputs))[@first];
  const canvas = document.querySelector("canvas").getContext("2d");
  for (let n = 0; n < @rows; n++) {
    const image = new ImageData(@width, @height);
    for (let i = 0; i < @area; i++) image.data.set(@per_channel.concat(255), 4 * i);
    canvas.putImageData(image, (n % @columns) * @width, Math.floor(n / @columns) * @height);
  }""",
    grey="Array(3).fill(255 * data[n * @area + i])",
    colour="[0, 1, 2].map((c) => 255 * data[(n * 3 + c) * @area + i])",
    show_rows="""\
  for (const [name, { data, size }] of Object.entries(await session.run(inputs)))
    document.querySelector("pre").append(`${name} ${data.slice(0, size / @rows).join(" ")}\\n`);""",
)

CPP = Language(
    program="""\
#include <fstream>
@{include}#include <openvino/openvino.hpp>

// @layout
void load(ov::Tensor input, const ov::Shape& shape, const std::string& file) {
  input.set_shape(shape);
  std::ifstream stream("bundle/@folder/" + file, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(stream), {});
  bytes.copy(static_cast<char*>(input.data()), input.get_byte_size(), bytes.size() - input.get_byte_size());
}

int main() {
  auto f32 = ov::hint::inference_precision(ov::element::f32);  // the default is bfloat16 where the processor has it
  auto request = ov::Core().compile_model("bundle/@file", "CPU", f32).create_infer_request();
@inputs
  request.infer();
@show
}
""",
    each_input='  load(request.get_tensor(@name), {@shape}, "@golden");',
    show_images="""\
  const float* images = request.get_tensor(@first).data<float>();
  std::ofstream picture("@picture", std::ios::binary);
  picture << "@header";
  for (int line = 0; line < @lines; ++line) for (int y = 0; y < @height; ++y)
    for (int column = 0; column < @columns; ++column) for (int x = 0; x < @width; ++x)@per_channel
      picture.put(static_cast<unsigned char>(255.0 * images[@index] + 0.5));""",
    colour=" for (int c = 0; c < 3; ++c)",
    show_rows="@outputs",
    each_output="""\
  std::cout << @name << ' ';
  for (int i = 0; i < @size; ++i) std::cout << request.get_tensor(@name).data<@cpp_type>()[i] << " \\n"[i == @last];""",
)

_EARLIER = """\
session = onnxruntime.InferenceSession("bundle/@file")
[@results] = session.run([@names], @feeds)
"""

_LAYOUT = "raw_data is the last field of these TensorProtos: each file ends with its array, little endian"
_TYPED_ARRAYS = {"int64": "BigInt64Array", "uint64": "BigUint64Array", "bool": "Uint8Array"}
_CPP_TYPES = {"float32": "float", "float64": "double", "bool": "bool"}


@dataclass(frozen=True)
class Grid:
    """The images of a batch as one picture, in lines and columns."""

    lines: int
    columns: int
    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, value: genkit.Value, rows: int) -> Grid | None:
        """How ``rows`` of an output are drawn; None where it is no image in [0, 1]."""
        match value.dtype, value.range, value.shape:
            case "float32", (0.0, 1.0), ("batch", 1 | 3 as channels, int(height), int(width)):
                lines = max(n for n in range(1, isqrt(rows) + 1) if rows % n == 0)
                return cls(lines, rows // lines, channels, height, width)
        return None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        return self.columns * self.width, self.lines * self.height

    def show(self, language: Language, picture: str, **fields: object) -> str:
        """The part of a program that draws; ``picture`` is the file that it may write, without its ending."""
        grey, sizes = self.channels == 1, {**asdict(self), "area": self.height * self.width}
        plane = f"(line * {self.columns} + column)" if grey else f"((line * {self.columns} + column) * 3 + c)"
        return _fill(
            language.show_images,
            **sizes,
            **fields,
            per_channel=_fill(language.grey if grey else language.colour, **sizes),
            index=f"({plane} * {self.height} + y) * {self.width} + x",
            picture=f"{picture}.{'pgm' if grey else 'ppm'}",
            header=rf"{'P5' if grey else 'P6'} {self.size[0]} {self.size[1]} 255\n",
        )


def golden(graph: genkit.BundledGraph) -> tuple[str, int]:
    """The folder of a graph's largest golden set, and its rows."""
    rows = max(graph.batches)
    return f"test_data/{graph.name}/test_data_set_{graph.batches.index(rows)}", rows


def recipe(graph: genkit.BundledGraph, language: Language) -> str:
    """A program that runs a graph on its largest golden set, and finds the bundle in a folder of this name."""
    folder, rows = golden(graph)
    inputs = [
        _fill(language.each_input, golden=f"input_{i}.pb", **_fields(value, rows))
        for i, value in enumerate(graph.inputs)
    ]
    return _fill(
        language.program,
        file=graph.file,
        folder=folder,
        layout=_LAYOUT,
        inputs="\n".join(inputs),
        **_shown(graph, language, rows, feeds="inputs", picture="image"),
    )


def samples(graphs: Sequence[genkit.BundledGraph]) -> str | None:
    """Python that runs graphs one after the other on fresh inputs: what one gives, the next takes under the same name.

    None where numpy cannot draw the inputs.
    """
    *earlier, last = graphs
    _, rows = golden(last)
    given = {value.name for graph in earlier for value in graph.outputs}
    drawn = {value.name: value for graph in graphs for value in graph.inputs if value.name not in given}
    if any(value.distribution is None for value in drawn.values()):
        return None
    return _fill(
        PYTHON_SAMPLES.program,
        file=last.file,
        inputs="\n".join(_fill(PYTHON_SAMPLES.each_input, **_fields(value, rows)) for value in drawn.values()),
        earlier="".join(
            _fill(_EARLIER, file=graph.file, names=_names(graph), feeds=_feeds(graph), results=_results(graph))
            for graph in earlier
        ),
        **_shown(last, PYTHON_SAMPLES, rows, feeds=_feeds(last), picture="samples"),
    )


def _shown(graph: genkit.BundledGraph, language: Language, rows: int, *, feeds: str, picture: str) -> dict[str, str]:
    """What depends on whether the first output is an image."""
    grid = Grid.of(graph.outputs[0], rows)
    if grid:
        return {
            "element": '<canvas width="{}" height="{}"></canvas>'.format(*grid.size),
            "include": "",
            "show": grid.show(language, picture, rows=rows, feeds=feeds, first=dumps(graph.outputs[0].name)),
        }
    outputs = "\n".join(_fill(language.each_output, **_fields(value, 1)) for value in graph.outputs)
    return {
        "element": "<pre></pre>",
        "include": "#include <iostream>\n",
        "show": _fill(language.show_rows, rows=rows, feeds=feeds, names=_names(graph), outputs=outputs),
    }


def _fields(value: genkit.Value, rows: int) -> dict[str, object]:
    """What a line about ``rows`` of an input or output may say."""
    shape = (rows, *(size for size in value.shape if size != "batch"))
    dtype, drawn = np.dtype(value.dtype), value.distribution
    return {
        "name": dumps(value.name),
        "dtype": value.dtype,
        "shape": ", ".join(map(str, shape)),
        "size": prod(shape),
        "last": prod(shape) - 1,
        "bytes": prod(shape) * dtype.itemsize,
        "order": dtype.newbyteorder("<").str,
        "typed_array": _TYPED_ARRAYS.get(value.dtype, f"{value.dtype.title()}Array"),
        "cpp_type": _CPP_TYPES.get(value.dtype, f"{value.dtype}_t"),
        "draw": drawn and f"{drawn.kind}({', '.join(map(_literal, drawn.parameters))}, size={shape})",
    }


def _literal(parameter: object) -> str:
    return f"np.array({parameter})" if isinstance(parameter, list) else str(parameter)


def _names(graph: genkit.BundledGraph) -> str:
    return ", ".join(dumps(value.name) for value in graph.outputs)


def _results(graph: genkit.BundledGraph) -> str:
    return ", ".join(f"values[{dumps(value.name)}]" for value in graph.outputs)


def _feeds(graph: genkit.BundledGraph) -> str:
    return "{" + ", ".join(f"{dumps(value.name)}: values[{dumps(value.name)}]" for value in graph.inputs) + "}"


class _Template(string.Template):
    delimiter = "@"  # $ is JavaScript's; this sign is nobody's


def _fill(template: str, **fields: object) -> str:
    return _Template(template).substitute(fields)
