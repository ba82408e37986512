"""MNN, Alibaba's runtime for phones, on the CPU. A graph is converted to its own format first."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

import genkit
from genkit_runtimes.libraries import library

_SETTINGS = {"precision": "high"}
_CONVERT = "import sys, MNN, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
"""What the command mnnconvert does, which also installs packages on its own and reports its use to its makers."""


class Mnn:
    """MNN's module interface, in high precision, by one thread."""

    name = "mnn"
    precision = " ".join(f"{key}={value}" for key, value in _SETTINGS.items())

    def __init__(self, settings: Mapping[str, str] = _SETTINGS) -> None:
        self._settings = settings
        self._mnn = library("MNN", "MNN")
        self.version: str = self._mnn.version()

    def defaults(self) -> Mnn:
        """In normal precision."""
        return Mnn({})

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        expr = self._mnn.expr
        graph = onnx.load(path, load_external_data=False).graph
        inputs = [value.name for value in graph.input]
        dtypes = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in graph.output}
        net = self._converted(path, inputs, list(dtypes))

        def variable(array: NDArray[Any]) -> Any:
            whole = np.issubdtype(array.dtype, np.integer)
            found = expr.placeholder(list(array.shape), expr.NCHW, expr.int if whole else expr.float)
            found.write(array.astype(np.int32) if whole else array)  # it has no int64
            return found

        def run(arrays: genkit.Arrays) -> dict[str, NDArray[Any]]:
            found = net.forward([variable(arrays[name]) for name in inputs])
            plain = (expr.convert(each, expr.NCHW) for each in found)  # what is inside may be packed by four channels
            return {n: np.array(v.read()).astype(dtypes[n], copy=False) for n, v in zip(dtypes, plain, strict=True)}

        return run

    def _converted(self, path: Path, inputs: list[str], outputs: list[str]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder, "graph.mnn")
            files = ["--modelFile", str(path), "--MNNModel", str(model)]
            command = [sys.executable, "-c", _CONVERT, "-f", "ONNX", "--bizCode", "genkit", *files]
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            if not model.exists():
                died = f"its converter dies (status {said.returncode}) after: " if said.returncode < 0 else ""
                raise genkit.Unsupported(died + _reason(said.stdout + said.stderr))
            manager = self._mnn.nn.create_runtime_manager(({"backend": "CPU", "numThread": 1, **self._settings},))
            return self._mnn.nn.load_module_from_file(str(model), inputs, outputs, runtime_manager=manager)


def _reason(said: str) -> str:
    """The line that names the operators that are lacking, or else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["its converter says nothing"]
    return next((line for line in lines if "not support" in line.lower()), lines[-1])
