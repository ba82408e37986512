"""Faults of a bundle on disk: each changes the files of a bundle that has passed.

Some are found by a hash. The others bring all hashes up to date, as somebody would who wants them to be believed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from genkit_onnx.accuracy import rounding_errors
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

import genkit
from benchmarks.gate.faults import NUMBERS, Fault, collector
from benchmarks.gate.surgery import reweight, weights

Random = np.random.Generator
Plant = Callable[[Path, Random], None]

BUNDLE_FAULTS: list[Fault[Plant]] = []
fault = collector(BUNDLE_FAULTS)

EVERYWHERE = ("mlp", "conv", "vq", "conditional")


def _pick(random: Random, paths: list[Path]) -> Path:
    return sorted(paths)[random.integers(len(paths))]


def _graph(path: Path, random: Random) -> Path:
    return _pick(random, list(path.glob("*.onnx")))


def _golden(path: Path, random: Random, kind: str) -> Path:
    """A file of the largest set of golden vectors."""
    return _pick(random, list(path.glob(f"test_data/*/test_data_set_3/{kind}_*.pb")))


def _manifest(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return content


def _reseal(path: Path, manifest: dict[str, Any] | None = None) -> None:
    """All hashes as the files are now."""
    genkit.seal(path, genkit.Manifest.model_validate(manifest or _manifest(path)))


def _revector(file: Path, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    tensor = TensorProto.FromString(file.read_bytes())
    array = change(numpy_helper.to_array(tensor).copy())
    file.write_bytes(numpy_helper.from_array(array, tensor.name).SerializeToString())


# Found by a hash


@fault(*EVERYWHERE, says={"files": "changed, sha256"})
def flipped_bit(path: Path, random: Random) -> None:
    """One bit of one file."""
    file = _pick(random, [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"])
    content = bytearray(file.read_bytes())
    content[random.integers(len(content))] ^= 1 << int(random.integers(8))
    file.write_bytes(content)


@fault(*EVERYWHERE, says={"files": "manifest.json: changed after it was written"})
def edited_manifest(path: Path, random: Random) -> None:
    """Another recipe in the manifest."""
    manifest = _manifest(path)
    manifest["recipe"]["name"] = "other"
    (path / "manifest.json").write_text(json.dumps(manifest))


@fault(*EVERYWHERE, says={"bundle": "is damaged"})
def half_a_manifest(path: Path, random: Random) -> None:
    """A manifest that ends in the middle."""
    file = path / "manifest.json"
    content = file.read_text()
    file.write_text(content[: random.integers(len(content) - 2)])


@fault(*EVERYWHERE, says={"bundle": "has no manifest.json"})
def missing_manifest(path: Path, random: Random) -> None:
    """Everything but the manifest."""
    (path / "manifest.json").unlink()


@fault(*EVERYWHERE, says={"files": "not a file of this bundle"})
def stowaway(path: Path, random: Random) -> None:
    """A file that nobody exported."""
    (path / "test_data" / "model.onnx.data").write_bytes(random.bytes(64))


@fault(*EVERYWHERE, says={"files": "missing"})
def missing_readme(path: Path, random: Random) -> None:
    """No README."""
    (path / "README.md").unlink()


@fault(*EVERYWHERE, says={"files": "parity.json: changed"})
def polished_report(path: Path, random: Random) -> None:
    """Better figures in the report than were measured."""
    file = path / "parity.json"
    file.write_text(file.read_text().replace('"rms": ', '"rms": 0'))


@fault(*EVERYWHERE, says={"files": "is a symbolic link"})
def symbolic_link(path: Path, random: Random) -> None:
    """A graph that is somewhere else."""
    file = _graph(path, random)
    elsewhere = path.with_name("elsewhere.onnx")
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)


# With all hashes brought up to date


@fault(*EVERYWHERE, says={"structure": "cannot be read"})
def half_a_graph(path: Path, random: Random) -> None:
    """A graph whose file ends in the middle."""
    file = _graph(path, random)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    _reseal(path)


@fault(*EVERYWHERE, says={"files": "not in the manifest's files"})
def missing_graph(path: Path, random: Random) -> None:
    """The manifest promises a graph that is not there."""
    _graph(path, random).unlink()
    _reseal(path)


@fault("mlp", "vq", says={"structure": "the inputs are "})
def swapped_graphs(path: Path, random: Random) -> None:
    """The decoder in the place of the encoder and the other way round."""
    one, other = sorted(path.glob("*.onnx"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    _reseal(path)


@fault("mlp", "conv", "conditional", says=NUMBERS)
def stale_graph(path: Path, random: Random) -> None:
    """A graph of the same network from a little earlier in its training."""
    file = _graph(path, random)
    model = onnx.load(file)
    for tensor in weights(model):
        reweight(tensor, lambda array: array + 1e-5 * random.standard_normal(array.shape))
    file.write_bytes(model.SerializeToString())
    _reseal(path)


@fault(*EVERYWHERE, says={"files": "not in the manifest's files"})
def graph_outside_of_the_bundle(path: Path, random: Random) -> None:
    """The manifest names a file that is not in the bundle."""
    manifest = _manifest(path)
    manifest["graphs"][0]["file"] = "../" * int(random.integers(1, 5)) + "graph.onnx"
    _reseal(path, manifest)


@fault(*EVERYWHERE, says={"structure": "opset 21 was asked for, the file says 18"})
def promise_of_another_opset(path: Path, random: Random) -> None:
    """The manifest says opset 21."""
    manifest = _manifest(path)
    manifest["graphs"][0]["opset"] = 21
    _reseal(path, manifest)


@fault(*EVERYWHERE, says={"structure": "terms, where the manifest says"})
def longer_sums_than_there_are(path: Path, random: Random) -> None:
    """A longest sum of a million terms, with which the limits of a runtime would be wide."""
    manifest = _manifest(path)
    manifest["graphs"][0]["reduction"] = 10**6
    _reseal(path, manifest)


@fault("mlp", "conv", "conditional", says={"golden vectors": "errors are not those of the golden vectors"})
def wider_units(path: Path, random: Random) -> None:
    """PyTorch's own rounding error ten times as large as it was, in the manifest."""
    manifest = _manifest(path)
    for errors in manifest["graphs"][0]["errors"].values():
        errors |= {kind: 10 * error for kind, error in errors.items()}
    _reseal(path, manifest)


@fault("mlp", "conv", "conditional", says={"golden vectors": "errors are not those of the golden vectors"})
def noisy_golden_outputs(path: Path, random: Random) -> None:
    """Golden outputs that are a ten-thousandth off, so that the unit of all errors grows."""
    noise = np.float32(1e-4)
    _revector(_golden(path, random, "output"), lambda y: y * (1 + noise * random.standard_normal(y.shape, np.float32)))
    _reseal(path)


@fault("mlp", "conv", "conditional", says=NUMBERS)
def float32_for_float64(path: Path, random: Random) -> None:
    """PyTorch's float32 as the reference, and a manifest that agrees: the truth shares the rounding of a graph."""
    bundle = genkit.Bundle.open(path)
    manifest = _manifest(path)
    for promised, graph in zip(manifest["graphs"], bundle.manifest.graphs, strict=True):
        for file in path.glob(f"test_data/{graph.name}/*/reference_*.pb"):
            output = numpy_helper.to_array(onnx.load_tensor(file.with_name(file.name.replace("reference", "output"))))
            _revector(file, lambda _, output=output: output.astype(np.float64))
        errors = rounding_errors(bundle.cases(graph))
        promised["errors"] = {name: error.model_dump() for name, error in errors.items()}
    _reseal(path, manifest)


@fault("mlp", "conv", "conditional", says=NUMBERS)
def golden_vectors_of_another_model(path: Path, random: Random) -> None:
    """Golden vectors whose inputs are not those of their outputs."""
    file = next(path.glob("test_data/*/test_data_set_2/input_0.pb"))
    _revector(file, lambda x: np.roll(x, 1, axis=0))
    _reseal(path)


@fault(*EVERYWHERE, says={"golden vectors": "cannot be read"})
def missing_golden_vectors(path: Path, random: Random) -> None:
    """A set of golden vectors is not there."""
    shutil.rmtree(_pick(random, list(path.glob("test_data/*/*"))))
    _reseal(path)


@fault("mlp", "conv", "conditional", says={"golden vectors": "holds values that are not finite"})
def not_a_number_in_the_golden_vectors(path: Path, random: Random) -> None:
    """A NaN, with which every comparison is false."""

    def spoilt(y: NDArray[Any]) -> NDArray[Any]:
        y.flat[random.integers(y.size)] = np.nan
        return y

    _revector(_golden(path, random, "reference"), spoilt)
    _reseal(path)


@fault("vq", says={"onnxruntime": "hang on rounding, limit"})
def ties_everywhere(path: Path, random: Random) -> None:
    """Codes that are all said to hang on rounding, so that none can be wrong."""
    file = next(path.glob("test_data/vq_encoder/test_data_set_3/ties_0.pb"))
    _revector(file, lambda codes: (codes + 1) % 16)
    _reseal(path)


@fault("vq", says={"graph proof": "whole numbers are wrong, limit 0"})
def one_wrong_golden_code(path: Path, random: Random) -> None:
    """One code of 1184 is another."""

    def other(codes: NDArray[Any]) -> NDArray[Any]:
        index = random.integers(codes.size)
        codes.flat[index] = (codes.flat[index] + 1) % 16
        return codes

    _revector(next(path.glob("test_data/vq_encoder/test_data_set_2/reference_0.pb")), other)
    _reseal(path)
