"""OpenVINO on the CPU, which computes in bfloat16 where the processor has it, unless it is told not to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import genkit
from genkit_runtimes.libraries import library, names

_TELEMETRY = "openvino_telemetry"
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


class OpenVino:
    """OpenVINO's CPU plugin, in float32."""

    name = "openvino"
    precision = " ".join(f"{key}={value}" for key, value in _SETTINGS.items())

    def __init__(self, settings: Mapping[str, str] = _SETTINGS) -> None:
        self._settings = settings
        with _silenced():
            self._openvino = library("openvino", "openvino")
        self.version: str = self._openvino.__version__.partition("-")[0]

    def defaults(self) -> OpenVino:
        """In bfloat16, where the processor has it."""
        return OpenVino({})

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        _, outputs = names(path)
        try:
            compiled = self._openvino.Core().compile_model(path, "CPU", dict(self._settings))
        except RuntimeError as error:
            raise genkit.Unsupported(_reason(error)) from error

        def run(inputs: genkit.Arrays) -> dict[str, NDArray[Any]]:
            results = compiled(dict(inputs))
            return {name: np.array(results[name]) for name in outputs}

        return run


@contextmanager
def _silenced() -> Iterator[None]:
    """Has it import without its telemetry, which forks beside running threads, and can leave a process for ever."""
    absent = sys.modules.setdefault(_TELEMETRY, None) is None  # type: ignore[arg-type]  # None: it cannot be imported
    try:
        yield
    finally:
        if absent:
            del sys.modules[_TELEMETRY]


def _reason(error: RuntimeError) -> str:
    """The last line of what it says; those before are places in its source."""
    return str(error).strip().splitlines()[-1].strip("- ")
