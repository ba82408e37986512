"""OpenCV's DNN module on the CPU. It crashes on some spellings of a graph, so it is asked in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import genkit
from genkit_runtimes.libraries import library, names


class OpenCv:
    """``cv2.dnn``, in float32."""

    name = "opencv"
    precision = "the types of the graph; its graph engine has no other setting"

    def __init__(self) -> None:
        self._cv2 = library("cv2", "opencv-python-headless")
        self.version: str = self._cv2.__version__

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        _, outputs = names(path)
        try:
            net = self._cv2.dnn.readNetFromONNX(str(path))
        except self._cv2.error as error:
            raise genkit.Unsupported(" ".join(str(error).split())) from error

        def run(inputs: genkit.Arrays) -> dict[str, NDArray[Any]]:
            for name, array in inputs.items():
                net.setInput(array, name)
            return dict(zip(outputs, net.forward(outputs), strict=True))

        return run
