"""ncnn, Tencent's runtime for phones, on the CPU. A graph is converted to its own format first, by its tool pnnx."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ValueInfoProto, helper

import genkit
from genkit_runtimes.libraries import data_files, library

_SETTINGS = {"use_fp16_packed": False, "use_fp16_storage": False, "use_fp16_arithmetic": False}
_LAYER = re.compile(r"^(\S+) +\S+ +\d+ +\d+", re.MULTILINE)
_BATCH = re.compile(r"ex\.input\(.*batch_index=(\d+)")
_KINDS = {"float32": "f32", "int64": "i64", "int32": "i32"}


class Ncnn:
    """ncnn's network of one row, by one thread. It has no batches: the rows of one are so many calls."""

    name = "ncnn"
    precision = " ".join(f"{key}={value:d}" for key, value in _SETTINGS.items()) + ", and a call for each row"

    def __init__(self, settings: Mapping[str, bool] = _SETTINGS) -> None:
        self._settings = settings
        self._ncnn, self._pnnx = library("ncnn", "ncnn pnnx"), _converter()
        self.version: str = self._ncnn.__version__

    def defaults(self) -> Ncnn:
        """In float16, as far as ncnn sees fit on the processor."""
        return Ncnn({})

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        graph = onnx.load(path, load_external_data=False).graph
        inputs, outputs = list(map(_declared, graph.input)), list(map(_declared, graph.output))
        shapes = (f"[{','.join(map(str, (1, *shape)))}]{_KINDS[dtype.name]}" for _, shape, dtype in inputs)
        net, batched = self._converted(path, data_files(graph), ",".join(shapes))

        def row_of(arrays: tuple[NDArray[Any], ...]) -> list[NDArray[Any]]:
            extractor = net.create_extractor()
            for i, (array, axis) in enumerate(zip(arrays, batched, strict=True)):
                extractor.input(f"in{i}", self._ncnn.Mat(array[np.newaxis], batch_index=axis).clone())
            found = []
            for i, (name, shape, dtype) in enumerate(outputs):
                failed, blob = extractor.extract(f"out{i}")
                if failed:
                    raise RuntimeError(f"{name}: its network gives nothing")
                found.append(np.array(blob).reshape(shape).astype(dtype))
            return found

        def run(arrays: genkit.Arrays) -> dict[str, NDArray[Any]]:
            ordered = [np.ascontiguousarray(arrays[name]) for name, _, _ in inputs]
            ordered = [array.astype(np.int32) if array.dtype == np.int64 else array for array in ordered]  # it has none
            columns = zip(*map(row_of, zip(*ordered, strict=True)), strict=True)
            return {name: np.stack(column) for (name, _, _), column in zip(outputs, columns, strict=True)}

        return run

    def _converted(self, path: Path, data: list[str], shapes: str) -> tuple[Any, list[int]]:
        """The network, and which axis of each input is the batch, as pnnx sees it; it is left out of the network."""
        with tempfile.TemporaryDirectory() as folder:  # the converter leaves seven files beside the one that it reads
            for name in {path.name, *data}:
                shutil.copyfile(path.with_name(name), Path(folder, name))
            model, weights, example = (Path(folder, f"net.{ending}") for ending in ("param", "bin", "py"))
            files = [f"ncnnparam={model.name}", f"ncnnbin={weights.name}", f"ncnnpy={example.name}"]
            command = [self._pnnx, path.name, f"inputshape={shapes}", "fp16=0", *files]
            said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if not model.exists():
                raise genkit.Unsupported(f"pnnx cannot convert it (status {said.returncode})")
            layers = dict.fromkeys(_LAYER.findall(model.read_text()))
            lacking = sorted(layer for layer in layers if self._ncnn.create_layer(layer) is None)
            if lacking:
                raise genkit.Unsupported(f"it has no {', '.join(lacking)}")
            if refused := re.search(r"^.*not supported.*$", said.stderr, re.MULTILINE):
                raise genkit.Unsupported(refused.group().strip())
            net = self._ncnn.Net()
            net.opt.num_threads = 1
            for option, value in self._settings.items():
                setattr(net.opt, option, value)
            if net.load_param(str(model)) or net.load_model(str(weights)):
                raise genkit.Unsupported("it cannot read what pnnx makes of the graph")
            return net, list(map(int, _BATCH.findall(example.read_text())))


def _declared(value: ValueInfoProto) -> tuple[str, list[int], np.dtype[Any]]:
    """The name, the shape of a row, and the dtype of an input or output."""
    tensor = value.type.tensor_type
    return value.name, [d.dim_value for d in tensor.shape.dim[1:]], helper.tensor_dtype_to_np_dtype(tensor.elem_type)


def _converter() -> str:
    """The program that the package pnnx brings. Its module is not imported, because that imports torch."""
    package = find_spec("pnnx")
    folders = package.submodule_search_locations if package else None
    program = shutil.which("pnnx", path=os.pathsep.join(folders or ()))
    if program is None:
        raise genkit.RuntimeMissing("pnnx is not installed: pip install ncnn pnnx")
    return program
