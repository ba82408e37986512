"""What is published: notes inside the graphs, weights beside them, the same bytes each time; and how it fails."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from gate_helpers import decoder, encoder, export
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.runtime import OnnxRuntime
from helpers import tree

import genkit


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> genkit.Bundle:
    path = tmp_path_factory.mktemp("published") / "bundle"
    export(path, encoder(), decoder())
    return genkit.Bundle.open(path)


# Notes inside the graphs


def test_a_graph_that_is_alone_says_what_it_is(published: genkit.Bundle) -> None:
    manifest = json.loads((published.path / "manifest.json").read_text())
    for graph in manifest["graphs"]:
        model = onnx.load(published.path / graph["file"])
        notes = {entry.key: entry.value for entry in model.metadata_props}
        assert notes["genkit.model"] == "textbook"
        assert notes["genkit.graph"] == graph["name"]
        assert json.loads(notes["genkit.inputs"]) == graph["inputs"]
        assert json.loads(notes["genkit.outputs"]) == graph["outputs"]
        assert json.loads(notes["genkit.prior"]) == manifest["prior"]
        assert notes["genkit.weights_sha256"] == graph["weights"]
    session = onnxruntime.InferenceSession(published.path / "decoder.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["genkit.graph"] == "decoder"


def test_the_weights_digest_tells_checkpoints_apart(tmp_path: Path, published: genkit.Bundle) -> None:
    graph = decoder()
    graph.module.net[0].bias.data[0] += 1
    export(tmp_path / "bundle", graph)
    changed = genkit.Bundle.open(tmp_path / "bundle").manifest.graphs[0].weights
    same = next(g for g in published.manifest.graphs if g.name == "decoder").weights
    assert len({changed, same}) == 2


# The schema


def test_the_schema_in_the_package_is_that_of_the_manifest() -> None:
    file = Path(genkit.__file__).with_name("manifest.schema.json")
    remedy = 'python -c "import genkit; print(genkit.manifest_schema(), end=str())" > genkit/manifest.schema.json'
    assert file.read_text() == genkit.manifest_schema(), remedy


def test_anybody_can_check_a_manifest_by_the_schema(published: genkit.Bundle) -> None:
    schema = json.loads(Path(genkit.__file__).with_name("manifest.schema.json").read_text())
    manifest = json.loads((published.path / "manifest.json").read_text())
    jsonschema.validate(manifest, schema, jsonschema.Draft202012Validator)
    manifest["graphs"][0]["opset"] = "eighteen"
    with pytest.raises(jsonschema.ValidationError, match="eighteen"):
        jsonschema.validate(manifest, schema, jsonschema.Draft202012Validator)


# Weights beyond what one file can hold


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose weights are beside its graphs, as they are above 2 GB."""
    path = tmp_path_factory.mktemp("split") / "bundle"
    about = {"recipe": {"name": "textbook"}}
    exporter = OnnxExporter(inline_limit=10_000)
    exporter.export([encoder(), decoder()], path, about=about, opset=18, runtimes=[OnnxRuntime()])
    return path


def test_large_weights_lie_in_one_hashed_file_beside_their_graph(split: Path) -> None:
    manifest = genkit.Bundle.open(split).manifest
    assert [graph.data for graph in manifest.graphs] == ["encoder.onnx.data", "decoder.onnx.data"]
    assert {"encoder.onnx.data", "decoder.onnx.data"} <= manifest.files.keys()
    assert (split / "decoder.onnx").stat().st_size < 10_000
    assert (split / "decoder.onnx.data").stat().st_size >= 4 * (20 * 400 + 400 * 784)
    assert sorted(path.name for path in split.iterdir() if path.suffix in (".onnx", ".data")) == [
        "decoder.onnx", "decoder.onnx.data", "encoder.onnx", "encoder.onnx.data",
    ]  # fmt: skip


def test_weights_in_another_file_are_proven_and_used(split: Path, published: genkit.Bundle) -> None:
    assert genkit.verify(split).ok
    z = np.random.default_rng(0).standard_normal((3, 20))
    np.testing.assert_array_equal(genkit.load_bundle(split).decode(z), genkit.load_bundle(published.path).decode(z))


def test_a_changed_weight_in_the_other_file_is_noticed_by_its_digest_and_by_its_numbers(
    split: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(split, tmp_path / "copy")
    weights = np.memmap(path / "decoder.onnx.data", np.float32, "r+")
    weights[np.abs(weights).argmax()] *= 1.01
    weights.flush()
    assert any("decoder.onnx.data: changed" in check.detail for check in genkit.verify(path).failures)
    genkit.seal(path, genkit.Bundle.open(path).manifest)
    assert "graph proof" in {check.subject for check in genkit.verify(path).failures}


def test_a_data_file_that_is_cut_short_is_not_read(split: Path, tmp_path: Path) -> None:
    path = shutil.copytree(split, tmp_path / "copy")
    os.truncate(path / "decoder.onnx.data", 1000)
    genkit.seal(path, genkit.Bundle.open(path).manifest)
    (failure, *_) = genkit.verify(path).failures
    assert "is not inside of decoder.onnx.data, which has 1000 bytes" in failure.detail


# The same bytes


def test_another_process_in_another_place_writes_the_same_bytes(
    published: genkit.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user, another home, another hash seed, another time zone, another working directory."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from gate_helpers import decoder, encoder, export\n"
        "export(Path('elsewhere') / 'bundle', encoder(), decoder())\n"
    )
    variables = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "HOME": str(tmp_path), "USER": "somebody", "LANG": "C"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **variables}, check=True)
    assert tree(tmp_path / "elsewhere" / "bundle") == tree(published.path)


# Failing


EXPORT = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from gate_helpers import decoder, encoder, export
import genkit
try:
    export(Path(sys.argv[1]), encoder(), decoder())
except genkit.GenkitError as error:
    print(error)
    sys.exit(error.status)
"""


def begun(target: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", EXPORT, str(target)], stdout=subprocess.PIPE, text=True)


def staged(target: Path) -> list[Path]:
    return [path for path in target.parent.iterdir() if path.name.endswith(target.name) and path != target]


@pytest.mark.parametrize("marker", ["decoder.onnx", "manifest.json"])
def test_an_export_that_is_killed_leaves_the_destination_as_it_was(
    published: genkit.Bundle, tmp_path: Path, marker: str
) -> None:
    """A real SIGKILL, as soon as the file ``marker`` of the new bundle exists."""
    target = shutil.copytree(published.path, tmp_path / "bundle")
    (target / "mine.txt").write_text("an earlier bundle, with a file of my own")
    before = tree(target)
    with begun(target) as process:
        while process.poll() is None and not any((folder / marker).exists() for folder in staged(target)):
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert tree(target) == before
    export(target, decoder())  # and is in nobody's way afterwards
    assert genkit.verify(target).ok


def test_killed_at_any_moment_of_the_exchange_there_is_one_whole_bundle_or_the_other(
    published: genkit.Bundle, tmp_path: Path
) -> None:
    """The last moments of an export, over and over, each killed a little later."""
    target = shutil.copytree(published.path, tmp_path / "bundle")
    source = tmp_path / "source"
    shutil.copytree(published.path, source)
    code = (
        "import shutil, sys, genkit\n"
        "from pathlib import Path\n"
        "source, target = map(Path, sys.argv[1:])\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    with genkit.stage(target) as staging:\n"
        "        shutil.copytree(source, staging, dirs_exist_ok=True)\n"
    )
    for delay in np.linspace(0, 0.05, 10):
        command = [sys.executable, "-c", code, str(source), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.kill()
        assert tree(target) == tree(source)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=False, capture_output=True
    ).returncode
    if mounted != 0:
        pytest.skip("mounting a small file system takes root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_the_destination_as_it_was_and_is_said(small_disk: Path) -> None:
    target = small_disk / "bundle"
    target.mkdir()
    with (small_disk / "filling").open("wb") as stream:
        stream.write(bytes(200_000))
    with begun(target) as process:
        said, _ = process.communicate()
    assert process.returncode == 2
    assert said == f"cannot write the bundle {target}: No space left on device; choose another place with --out\n"
    assert sorted(path.name for path in small_disk.iterdir()) == ["bundle", "filling"]
    assert list(target.iterdir()) == []


def test_a_file_that_may_not_grow_is_like_a_full_disk(published: genkit.Bundle, tmp_path: Path) -> None:
    """The limit on file sizes that administrators set; it needs no root."""
    target = shutil.copytree(published.path, tmp_path / "bundle")
    before = tree(target)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command: list[Any] = [sys.executable, "-B", "-c", EXPORT, target]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.startswith(f"cannot write the bundle {target}: ")) == (2, True), done
    assert tree(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
