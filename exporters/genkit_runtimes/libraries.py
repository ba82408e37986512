"""What all of these runtimes need: their library, and the names that a graph gives."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import onnx

import genkit


def library(module: str, package: str) -> Any:
    """The module, imported now.

    Raises:
        RuntimeMissing: where it cannot be imported, with what installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise genkit.RuntimeMissing(f"{module} is not installed: pip install {package}") from error
    except ImportError as error:  # it is there, and a library of the system that it needs is not
        raise genkit.RuntimeMissing(f"{module} cannot be imported ({error}): pip install {package}") from error


def names(path: Path) -> tuple[list[str], list[str]]:
    """Those of the inputs and of the outputs of the graph in ``path``, in its order."""
    graph = onnx.load(path, load_external_data=False).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def data_files(graph: onnx.GraphProto) -> list[str]:
    """The names of the files beside a graph's own that hold weights of it, sorted."""
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})
