"""tract, Sonos' runtime in Rust, for small devices and WebAssembly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import genkit
from genkit_runtimes.libraries import library, names


class Tract:
    """tract's optimised plan of a graph."""

    name = "tract"
    precision = "the types of the graph; it has no other setting"

    def __init__(self) -> None:
        self._tract = library("tract", "tract")
        self.version: str = self._tract.version()

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        inputs_of, outputs = names(path)
        try:
            plan = self._tract.onnx().load(path).into_model().into_runnable()
        except self._tract.TractError as error:
            raise genkit.Unsupported(_reason(error)) from error

        def run(inputs: genkit.Arrays) -> dict[str, NDArray[Any]]:
            tensors = plan.run([inputs[name] for name in inputs_of])
            return {name: tensor.to_numpy() for name, tensor in zip(outputs, tensors, strict=True)}

        return run


def _reason(error: Exception) -> str:
    """What it says before it shows where in its source."""
    return " ".join(str(error).partition("Stack backtrace")[0].split())
