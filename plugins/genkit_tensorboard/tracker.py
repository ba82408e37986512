"""The terms, the pictures, the model and the recipe of a run as TensorBoard's event files."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import genkit

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams
except ImportError as error:
    raise ImportError(f'it needs tensorboard: pip install "genkit-torch[tensorboard]" ({error})') from error

_LAST = "images_per_second"  # what is written last of an epoch, and so says that the epoch is whole


class TensorBoard:
    """Writes ``RUN/tensorboard``. The step of everything is its epoch, the number that ``--checkpoint`` takes."""

    writer: SummaryWriter | None = None

    @genkit.hookimpl
    def genkit_run_started(self, run: genkit.Run, task: genkit.Task, epoch: int) -> None:
        """Withdraws what is there of later epochs or of half an epoch, and adds what was missed of those so far."""
        folder = run.path / "tensorboard"
        told, drawn = what_is_there(folder) if folder.exists() else (0, False)
        self.writer = writer = SummaryWriter(str(folder), purge_step=min(epoch, told) + 1)
        recipe = run.recipe
        experiment, session, _ = hparams(
            {k: v if v is None or isinstance(v, (int, float)) else str(v) for k, v in recipe.flat().items()},
            dict.fromkeys(["train/loss", "test/loss"] if recipe.training.evaluate_every else ["train/loss"]),
        )
        for summary in (experiment, session):  # add_hparams() would write a run of its own beside this one
            writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]  # it is there until it is closed
        writer.add_text("recipe", f"```yaml\n{recipe.to_yaml()}```")
        if not drawn:
            add_graph(writer, task)
        for row in run.metrics():
            if row["epoch"] > told:
                add(writer, row)
        writer.flush()

    @genkit.hookimpl
    def genkit_picture_saved(self, run: genkit.Run, epoch: int, path: Path) -> None:
        """Shows a picture under the name of its folder, and not the picture of the curves, which are here already."""
        if self.writer and path.parent != run.path:
            with Image.open(path) as picture:
                self.writer.add_image(path.parent.name, np.asarray(picture.convert("RGB")), epoch, dataformats="HWC")

    @genkit.hookimpl
    def genkit_epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Has the epoch on the disk before the checkpoint that a resumed run will go on from."""
        if self.writer:
            add(self.writer, metrics)
            self.writer.flush()

    @genkit.hookimpl
    def genkit_run_ended(self) -> None:
        """Closes the file, if training got as far as opening one."""
        if self.writer:
            self.writer.close()


def what_is_there(folder: Path) -> tuple[int, bool]:
    """The last epoch that is there in whole, 0 for none, and whether the model's graph is there."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 1, "images": 1}).Reload()
    tags = events.Tags()
    return int(events.Scalars(_LAST)[-1].step) if _LAST in tags["scalars"] else 0, bool(tags["graph"])


def add(writer: SummaryWriter, metrics: Mapping[str, Any]) -> None:
    """One line of ``metrics.jsonl``; NaN where it has null, which leaves a mark in the curve."""
    scalars = {f"{part}/{term}": value for part in ("train", "test") for term, value in metrics.get(part, {}).items()}
    for name, value in {**scalars, _LAST: metrics[_LAST]}.items():
        writer.add_scalar(name, math.nan if value is None else value, metrics["epoch"])


class SideBySide(torch.nn.ModuleDict):
    """The graphs of a model as one, because TensorBoard shows one a run."""

    def forward(self, *inputs: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], ...]:
        return tuple(module(*values) for module, values in zip(self.values(), inputs, strict=True))


def add_graph(writer: SummaryWriter, task: genkit.Task) -> None:
    """Writes what can be exported of the model, traced of a copy in evaluation mode; a warning where that fails."""
    try:
        graphs = [graph for graph in task.graphs() if isinstance(graph, genkit.Graph)]
        random = torch.Generator().manual_seed(0)
        inputs = [tuple(value.draw(2, random) for value in graph.inputs.values()) for graph in graphs]
        model = copy.deepcopy(SideBySide({graph.name: graph.module for graph in graphs})).cpu().eval()
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"), torch.no_grad():
            writer.add_graph(model, inputs)  # it prints what it raises, and warns of constants
    except Exception as error:  # a picture of the model is not worth a run's curves
        reason = next(iter(str(error).strip().splitlines()), "")
        message = f"TensorBoard gets no graph of the model: {type(error).__name__}: {reason}"
        warnings.warn(message, genkit.PluginWarning, 2)
