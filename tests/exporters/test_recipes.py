"""The README inside a bundle: its programs run as printed, in Python, Node, C++ and a browser, and give the same."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tools
import torch
from gate_helpers import decoder, export
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

import genkit

ROOT = Path(__file__).parent.parent.parent
Array = NDArray[Any]


# Bundles: images in grey; images in colour, told a label, from a learned prior; no images, whole numbers in and out


class ColourDecoder(nn.Module):
    """z, condition -> x of 3 channels and 8 by 12 pixels, log_scale."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(10, 64)
        self.hidden = nn.Linear(8, 64)
        self.mean = nn.Linear(64, 3 * 8 * 12)
        self.log_scale = nn.Linear(64, 2)

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        h = (self.hidden(z) + self.label(condition)).relu()
        return self.mean(h).unflatten(1, (3, 8, 12)).sigmoid(), self.log_scale(h)


class LabelledPrior(nn.Module):
    """noise, condition -> z."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(8, 8)
        self.location = nn.Embedding(10, 8)

    def forward(self, noise: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        return (self.scale(noise) + self.location(condition),)


class CodeReader(nn.Module):
    """Codes, condition -> a point in the plane, and for each code the one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.label = nn.Embedding(3, 8)
        self.point = nn.Linear(8, 2)
        self.scores = nn.Linear(8, 16)

    def forward(self, codes: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        h = self.embedding(codes) + self.label(condition)[:, None]  # (B, 4, 8)
        return self.point(h.mean(1)), self.scores(h).argmax(-1)


def drawn_normal(size: int) -> genkit.Input:
    distribution = {"kind": "normal", "parameters": [0.0, 1.0]}
    return genkit.Input((size,), torch.float32, lambda n, g: torch.randn(n, size, generator=g), distribution)


def whole(classes: int, *shape: int) -> genkit.Input:
    distribution = {"kind": "integers", "parameters": [0, classes]}
    return genkit.Input(shape, torch.int64, lambda n, g: torch.randint(classes, (n, *shape), generator=g), distribution)


def grey() -> list[genkit.Graph]:
    return [replace(decoder(), inputs={"z": drawn_normal(20)})]


def colour() -> list[genkit.Graph]:
    prior = {"noise": drawn_normal(8), "condition": whole(10)}
    inputs = {"z": drawn_normal(8), "condition": whole(10)}
    return [
        genkit.Graph("prior", LabelledPrior(), prior, ("z",)),
        genkit.Graph("decoder", ColourDecoder(), inputs, ("x", "log_scale"), {"x": (0.0, 1.0)}),
    ]


def codes() -> list[genkit.Graph]:
    inputs = {"codes-in": whole(16, 4), "condition": whole(3)}
    return [genkit.Graph("reader", CodeReader(), inputs, ("point", "codes-out"))]


@dataclass(frozen=True)
class Published:
    """A bundle, and beside it the programs of its README, saved as it says."""

    directory: Path
    graphs: dict[str, genkit.Graph]
    programs: dict[str, str]
    commands: dict[str, list[str]]
    """By program: the lines that the README prints after it."""

    @classmethod
    def export(cls, directory: Path, *graphs: genkit.Graph) -> Published:
        assert export(directory / "bundle", *graphs).ok
        readme = (directory / "bundle" / "README.md").read_text()
        block = r"`([\w.]+)`[^`]*```(?:python|js|html|cpp)\n(.*?)^```$"
        programs = dict(re.findall(block, readme, re.MULTILINE | re.DOTALL))
        for file, program in programs.items():
            (directory / file).write_text(program)
        after = {file: readme.split(program)[1].split("```console\n")[1] for file, program in programs.items()}
        commands = {file: text.split("```")[0].splitlines() for file, text in after.items()}
        return cls(directory, {graph.name: graph for graph in graphs}, programs, commands)

    @property
    def graph(self) -> genkit.BundledGraph:
        """The one that the programs run."""
        return genkit.Bundle.open(self.directory / "bundle").manifest.graphs[-1]

    def run(self, file: str, **environment: str) -> str:
        """What the commands print that the README gives after a program. Packages are installed already."""
        script = "\n".join(line for line in self.commands[file] if not _installs(line))
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        run = subprocess.run(
            ["bash", "-euc", script],
            cwd=self.directory,
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stderr) == (0, ""), run
        return run.stdout


def _installs(line: str) -> bool:
    """Whether a line installs packages, which then have to be those that are installed for these tests."""
    found = re.fullmatch(r"(?:\w+=skip )?(?:pip|npm) install (.*)", line)
    assert not found or set(found[1].split()) <= {*tools.NPM, "openvino", "onnxruntime", "numpy"}
    return found is not None


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    """The three bundles."""
    torch.manual_seed(0)
    return {
        graphs.__name__: Published.export(tmp_path_factory.mktemp(graphs.__name__), *graphs())
        for graphs in (grey, colour, codes)
    }


KINDS = pytest.mark.parametrize("kind", ["grey", "colour", "codes"])


# The tools


@pytest.fixture(scope="module")
def openvino() -> None:
    if not find_spec("openvino"):
        tools.missing("openvino", "pip install openvino")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with tools.chromium() as browser:
        yield browser


# What the programs show, and what they should


def golden_inputs(published: Published) -> dict[str, Array]:
    """Of 64 rows, as onnx reads them."""
    folder = published.directory / "bundle" / "test_data" / published.graph.name / "test_data_set_3"
    tensors = [onnx.load_tensor(path) for path in sorted(folder.glob("input_*.pb"))]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def outputs(published: Published, inputs: dict[str, Array]) -> list[Array]:
    """In onnxruntime."""
    session = onnxruntime.InferenceSession(published.directory / "bundle" / published.graph.file)
    found: list[Array] = session.run(None, inputs)
    return found


def assert_drawn(file: Path | BytesIO, images: Array) -> None:
    """Whether a picture is that of 64 images in [0, 1], 8 in a line, up to one grey level where rounding decides."""
    _, channels, height, width = images.shape
    expected = np.zeros((8 * height, 8 * width, channels))
    for i, image in enumerate(images):
        top, left = i // 8 * height, i % 8 * width
        expected[top : top + height, left : left + width] = 255 * np.moveaxis(image, 0, -1)
    with Image.open(file) as picture:
        found = np.asarray(picture.convert("RGB" if channels == 3 else "L"), dtype=float).reshape(expected.shape)
    assert np.ptp(expected) > 100
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def assert_printed(text: str, graph: genkit.BundledGraph, expected: list[Array]) -> None:
    """Whether it is the first row of every output, by name."""
    lines = [line.split() for line in text.splitlines()]
    assert [name for name, *_ in lines] == [value.name for value in graph.outputs]
    for (_, *row), array in zip(lines, expected, strict=True):
        np.testing.assert_allclose(np.array(row, array.dtype), array[0].ravel(), rtol=1e-5, atol=1e-6)


def check(published: Published, file: str, **environment: str) -> None:
    """Runs a program as printed and compares what it shows with onnxruntime's outputs for the golden inputs."""
    for left in published.directory.glob("image.*"):
        left.unlink()
    printed = published.run(file, **environment)
    expected = outputs(published, golden_inputs(published))
    pictures = list(published.directory.glob("image.*"))
    if published.graph.name == "decoder":
        assert printed == ""
        assert_drawn(pictures[0], expected[0])
    else:
        assert not pictures
        assert_printed(printed, published.graph, expected)


# As printed


@KINDS
def test_python(published: dict[str, Published], kind: str) -> None:
    check(published[kind], "run.py")


@KINDS
def test_node(published: dict[str, Published], kind: str, node_modules: Path) -> None:
    _link(published[kind], node_modules)
    check(published[kind], "run.mjs")


@KINDS
@pytest.mark.usefixtures("openvino")
def test_cpp(published: dict[str, Published], kind: str) -> None:
    tools.command("g++", package="g++")
    check(published[kind], "run.cpp")


@KINDS
def test_browser(published: dict[str, Published], kind: str, node_modules: Path, browser: Any) -> None:
    _link(published[kind], node_modules)
    expected = outputs(published[kind], golden_inputs(published[kind]))
    with opened(published[kind], browser) as page:
        if kind == "codes":
            assert_printed(page.inner_text("pre"), published[kind].graph, expected)
        else:
            url = page.evaluate("document.querySelector('canvas').toDataURL()")
            assert_drawn(BytesIO(b64decode(url.removeprefix("data:image/png;base64,"))), expected[0])


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("bundle/decoder.onnx", "bundle/decoder.onnx: HTTP 404"),
        ("bundle/test_data/decoder/test_data_set_3/input_0.pb", "input_0.pb: HTTP 404"),
        ("node_modules", "Failed to fetch dynamically imported module"),
    ],
)
def test_the_page_says_what_is_missing(
    published: dict[str, Published], node_modules: Path, browser: Any, tmp_path: Path, file: str, reason: str
) -> None:
    broken = replace(published["grey"], directory=tmp_path / "broken")
    shutil.copytree(published["grey"].directory, broken.directory, symlinks=True)
    _link(broken, node_modules)
    (broken.directory / file).unlink()
    with opened(broken, browser) as page:
        assert reason in page.inner_text("body")


@contextmanager
def opened(published: Published, browser: Any) -> Iterator[Any]:
    """The page ``index.html`` when it has drawn or said something, from the server that the README starts."""
    _, serve = published.commands["index.html"]
    command = [sys.executable, "-u", *serve.replace("8000", "0").split()[1:]]  # any port that is free
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=published.directory, text=True, **streams) as server:
        try:
            port = server.stdout.readline().split()[5]
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_function(
                "document.body.innerText.trim()"
                " || document.querySelector('canvas')?.getContext('2d').getImageData(0, 0, 1, 1).data[3]"
            )
            yield page
            page.close()
        finally:
            server.terminate()


def _link(published: Published, node_modules: Path) -> None:
    link = published.directory / "node_modules"
    if not link.exists():
        link.symlink_to(node_modules)


def test_samples_are_decoded_from_what_the_prior_makes_of_fresh_noise(
    published: dict[str, Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    colour = published["colour"]
    monkeypatch.chdir(colour.directory)
    shown = runpy.run_path("samples.py")
    values = {name: torch.from_numpy(array) for name, array in shown["values"].items()}
    with torch.no_grad():
        (z,) = colour.graphs["prior"].module(values["noise"], values["condition"])
        images, _ = colour.graphs["decoder"].module(z, values["condition"])
    assert len(set(values["condition"].tolist())) > 1
    assert_drawn(colour.directory / "samples.ppm", images.numpy())


def test_samples_are_drawn_as_the_manifest_says(
    published: dict[str, Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = published["grey"]
    monkeypatch.chdir(grey.directory)
    z = runpy.run_path("samples.py")["values"]["z"]
    assert (z.dtype, z.shape) == (np.float32, (64, 20))
    assert abs(z.mean()) < 0.2  # seven standard errors
    assert abs(z.std() - 1) < 0.2


def test_no_samples_are_promised_where_numpy_cannot_draw_the_inputs(tmp_path: Path) -> None:
    undrawn = Published.export(tmp_path, decoder())
    assert {*undrawn.programs} == {"run.py", "run.mjs", "index.html", "run.cpp"}


# What the programs rely on


@KINDS
def test_every_program_has_less_than_25_lines(published: dict[str, Published], kind: str) -> None:
    assert {*published[kind].programs} == {"run.py", "samples.py", "run.mjs", "index.html", "run.cpp"}
    for file, program in published[kind].programs.items():
        assert len(program.splitlines()) < 25, file


@KINDS
def test_the_files_of_golden_inputs_end_with_their_arrays(published: dict[str, Published], kind: str) -> None:
    folder = published[kind].directory / "bundle"
    bundle = genkit.Bundle.open(folder)
    for graph in bundle.manifest.graphs:
        for i, case in enumerate(bundle.cases(graph)):
            for j, array in enumerate(case.inputs.values()):
                content = (folder / f"test_data/{graph.name}/test_data_set_{i}/input_{j}.pb").read_bytes()
                assert content.endswith(array.astype(array.dtype.newbyteorder("<")).tobytes())


def test_the_docs_show_what_a_bundle_of_the_textbook_model_says(published: dict[str, Published]) -> None:
    readme = (published["grey"].directory / "bundle" / "README.md").read_text()
    assert (ROOT / "docs" / "deploy.md").read_text().endswith(readme[readme.index("## Run ") :])


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_missing_tool_is_a_reason_to_skip_and_in_continuous_integration_to_fail(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("GENKIT_REQUIRE_TOOLS", required)
    with pytest.raises(outcome, match="no-such-tool is missing: apt-get install some-package"):
        tools.command("no-such-tool", package="some-package")
