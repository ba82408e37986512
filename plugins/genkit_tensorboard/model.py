"""The computations of a model as the graph that TensorBoard draws."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import genkit

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class SideBySide(nn.Module):
    """The graphs of a model as one, because TensorBoard shows one a run."""

    def __init__(self, graphs: Sequence[genkit.Graph]) -> None:
        super().__init__()
        self.sizes = {graph.name: len(graph.inputs) for graph in graphs}
        for graph in graphs:
            self.add_module(graph.name, graph.module)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        rest = iter(values)
        return tuple(out for name, size in self.sizes.items() for out in self.get_submodule(name)(*islice(rest, size)))


def add_graph(writer: SummaryWriter, task: genkit.Task) -> None:
    """Writes what can be exported of the model, traced in evaluation mode; a warning where that fails.

    Every module is left in the mode that it was in.
    """
    modes = {module: module.training for module in task.module.modules()}
    device = next((parameter.device for parameter in task.module.parameters()), torch.device("cpu"))
    try:
        graphs = [graph for graph in task.graphs() if isinstance(graph, genkit.Graph)]
        generator = torch.Generator().manual_seed(0)
        values = [value.draw(2, generator).to(device) for graph in graphs for value in graph.inputs.values()]
        task.module.eval()  # or batch norms would count the example
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"), torch.no_grad():
            writer.add_graph(SideBySide(graphs), values)  # it prints what it raises, and warns of constants
    except Exception as error:  # a picture of the model is not worth a run's curves
        reason = next(iter(str(error).strip().splitlines()), "")
        warnings.warn(
            f"TensorBoard gets no graph of the model: {type(error).__name__}: {reason}", genkit.PluginWarning, 2
        )
    finally:
        for module, training in modes.items():
            module.training = training
