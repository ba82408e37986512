"""onnx's own evaluator in float32: numpy, operator by operator. Slow, and what other runtimes are measured by."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import genkit
from genkit_runtimes.libraries import library


class Reference:
    """``onnx.reference.ReferenceEvaluator``, as it comes."""

    name = "reference"
    precision = "every operator in the type that the graph says, as numpy has it"

    def __init__(self) -> None:
        self.version: str = library("onnx", "onnx").__version__

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        from onnx.reference import ReferenceEvaluator

        try:
            evaluator = ReferenceEvaluator(str(path))
        except NotImplementedError as error:
            raise genkit.Unsupported(str(error).partition("\n")[0]) from error  # what follows are all that it has

        def run(inputs: genkit.Arrays) -> dict[str, NDArray[Any]]:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an overflow is judged by what comes of it
                outputs = evaluator.run(None, dict(inputs))
            return dict(zip(evaluator.output_names, outputs, strict=True))

        return run
