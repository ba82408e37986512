"""The gate for everybody: any ONNX file, held against any module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from genkit.bundle import Report, Runtime
from genkit.errors import InvalidOption
from genkit.plugins import load_plugins
from genkit.task import Graph, Input


class _Tuple(nn.Module):
    """A module whose only output is a tensor, as graphs have it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Under the names of the module itself, which are those in the file."""
        return self.module.state_dict(*args, **kwargs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.module(*inputs)
        if isinstance(outputs, Tensor):
            return (outputs,)
        return tuple(outputs) if isinstance(outputs, list) else outputs  # anything else is refused, with its type


def prove(
    module: nn.Module,
    file: str | Path,
    inputs: Mapping[str, Input | Tensor] | Sequence[Input | Tensor] | Input | Tensor,
    *,
    outputs: Sequence[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    runtimes: Sequence[Runtime] = (),
    seed: int = 0,
) -> Report:
    """Holds an ONNX file against the module that it should compute, by the same proofs that an export has to pass.

    >>> module = nn.Linear(20, 3).eval()
    >>> _ = torch.onnx.export(module, (torch.randn(3, 20),), "linear.onnx", dynamic_shapes=({0: "batch"},))
    >>> genkit.prove(module, "linear.onnx", torch.randn(64, 20)).ok
    True

    Args:
        module: the truth, in evaluation mode or not: copies of it are run in evaluation mode, in float32 and float64.
        file: the ONNX file; weights that it keeps outside have to be in one file beside it.
        inputs: by name or in the order of ``module.forward``: what draws realistic values, or a tensor of examples
            ``(N, *shape)``, of which rows are drawn; give some dozens, because few measure PyTorch's own error poorly,
            and a right file into which a normalisation was folded is then refused now and then. Floats are also made
            harder: 4 and 2 times as large, a hundredth, zero, one-hot.
        outputs: the names that the file has to give, in order; as the file has them where none are given.
        ranges: of inputs that are bounded, by name: ``(low, high)``, within which the hard ones stay.
        runtimes: on which the file is run; onnxruntime where none is given.
        seed: of the inputs of the proof.

    Returns:
        What was checked, with the figures; ``report.ok`` is the answer, ``print(report)`` says why.

    Raises:
        InvalidOption: where there is no such file, or an input is of another kind.
    """
    if isinstance(inputs, Input | Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, Mapping):
        inputs = {str(position): value for position, value in enumerate(inputs)}
    drawn = {name: _input(name, value) for name, value in inputs.items()}
    graph = Graph(
        re.sub(r"[^A-Za-z0-9_-]", "_", Path(file).stem), _Tuple(module), drawn, tuple(outputs), dict(ranges or {})
    )
    exporter = load_plugins().registry.get("exporter", "onnx").load()()
    report: Report = exporter.prove(graph, Path(file), runtimes=runtimes, seed=seed)
    return report


def _input(name: str, value: Any) -> Input:
    if isinstance(value, Input):
        return value
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) == 0:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InvalidOption(
            f"input {name!r} is {kind}; give a genkit.Input, or a tensor of at least one example: (N, *shape)"
        )
    examples = value.detach().cpu()

    def draw(n: int, generator: Generator) -> Tensor:
        return examples[torch.randint(len(examples), (n,), generator=generator)]

    return Input(tuple(examples.shape[1:]), examples.dtype, draw)
