"""What a person sees while a model trains: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from genkit import hookimpl

if TYPE_CHECKING:
    from genkit.run import Run


def for_console(console: Console) -> PlainLines:
    """The display that suits where the output goes."""
    if console.is_jupyter:
        return NotebookLines(console)
    return LiveLines(console) if console.is_terminal else PlainLines(console)


class PlainLines:
    """One line an epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.epochs = 0

    @hookimpl
    def genkit_run_started(self, run: Run, epoch: int, epochs: int, batches: int, device: str) -> None:
        """Says what is trained, where, and from which epoch on."""
        self.epochs = epochs
        self.say(f"training {run.recipe.name} in {run.path}: {epochs - epoch} epochs of {batches} steps on {device}")

    @hookimpl
    def genkit_epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """The epoch's terms, the test loss and the speed."""
        parts = [f"epoch {metrics['epoch']}/{self.epochs}", *_epoch(metrics)]
        parts += [f"{metrics['images_per_second']:,.0f} images/s", f"{metrics['seconds']:.1f} s"]
        self.say("  ".join(parts))

    @hookimpl
    def genkit_picture_saved(self, path: Path) -> None:
        """Where to look."""
        self.say(f"picture {path}")

    @hookimpl
    def genkit_warning(self, message: str) -> None:
        """Something went less than well."""
        self.say(f"warning: {message}")

    def say(self, text: str) -> None:
        """One line, whole whatever its length."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


class LiveLines(PlainLines):
    """A bar over the whole run with the speed and the time left, and under it the terms of the last epoch."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self.task = TaskID(0)
        self.terms = ""
        self.live = Live(console=console, get_renderable=lambda: Group(self.bar, Text(self.terms)))

    @hookimpl
    def genkit_run_started(self, run: Run, epoch: int, epochs: int, batches: int, device: str) -> None:
        """Shows the bar."""
        super().genkit_run_started(run, epoch, epochs, batches, device)
        self.task = self.bar.add_task(
            "", total=epochs * batches, completed=epoch * batches, epoch=min(epoch + 1, epochs), epochs=epochs, speed=""
        )
        self.live.start()

    @hookimpl
    def genkit_step_ended(self, epoch: int, batch: int, batches: int, observations: int, seconds: float) -> None:
        """Moves the bar."""
        speed = f"{observations / max(seconds, 1e-9):,.0f} images/s"
        self.bar.update(self.task, completed=(epoch - 1) * batches + batch, epoch=epoch, speed=speed)

    @hookimpl
    def genkit_epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Shows the terms of the epoch that is over."""
        self.terms = "  ".join(_epoch(metrics))
        speed = f"{metrics['images_per_second']:,.0f} images/s"
        total = self.bar.tasks[0].total or 0
        self.bar.update(self.task, speed=speed, completed=total * metrics["epoch"] / self.epochs)

    @hookimpl
    def genkit_run_ended(self) -> None:
        """Leaves the last state of the display on the screen."""
        self.live.stop()


class NotebookLines(PlainLines):
    """In a notebook: a bar with the terms of the last epoch, and the last picture of each kind, redrawn in place."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        from IPython import display

        self.display: Any = display  # its functions have no types
        self.cells: dict[str, Any] = {}
        self.terms = ""
        self.began = self.at_first = 0.0

    @hookimpl
    def genkit_run_started(self, run: Run, epoch: int, epochs: int, batches: int, device: str) -> None:
        """Shows the bar."""
        self.epochs, self.began, self.at_first = epochs, time.monotonic(), epoch / epochs
        self._draw(epoch, 0.0, f"{run.recipe.name} in {run.path}, on {device}")

    @hookimpl
    def genkit_step_ended(self, epoch: int, batch: int, batches: int, observations: int, seconds: float) -> None:
        """Moves the bar."""
        speed = f"{observations / max(seconds, 1e-9):,.0f} images/s"
        self._draw(epoch, (epoch - 1 + batch / batches) / self.epochs, speed)

    @hookimpl
    def genkit_epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Shows the terms of the epoch that is over."""
        self.terms = "  ".join(_epoch(metrics))
        epoch = metrics["epoch"]
        self._draw(epoch, epoch / self.epochs, f"{metrics['images_per_second']:,.0f} images/s")

    @hookimpl
    def genkit_picture_saved(self, path: Path) -> None:
        """Shows it, in the place of the one before."""
        self._show(path.parent.name, self.display.Image(filename=str(path), alt=str(path)))

    def _draw(self, epoch: int, done: float, more: str) -> None:
        spent = time.monotonic() - self.began
        if done > self.at_first:
            more += f", {timedelta(seconds=round(spent * (1 - done) / (done - self.at_first)))} left"
        text = f"epoch {epoch}/{self.epochs}, {more}"
        bar = f'<progress max="1" value="{done:.4f}" aria-label="training"></progress>'
        self._show("", self.display.HTML(f"<div>{bar} {escape(text)}</div><div>{escape(self.terms)}</div>"))

    def _show(self, cell: str, content: object) -> None:
        if cell in self.cells:
            self.cells[cell].update(content)
        else:
            self.cells[cell] = self.display.display(content, display_id=True)


def _epoch(metrics: Mapping[str, Any]) -> list[str]:
    """The means of the training terms, and of the loss over the test set where it was measured."""
    terms = _terms(metrics["train"])
    return [*terms, f"test {_terms(metrics['test'])[0]}"] if "test" in metrics else terms


def _terms(means: Mapping[str, float | None]) -> list[str]:
    return [f"{name} {'nan' if value is None else format(value, '.2f')}" for name, value in means.items()]
