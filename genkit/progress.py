"""What a person sees while a model trains: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from genkit import hookimpl

if TYPE_CHECKING:
    from genkit.run import Run


def for_console(console: Console) -> PlainLines | LiveLines:
    """The display that suits where the output goes."""
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
        parts = [f"epoch {metrics['epoch']}/{self.epochs}", *_terms(metrics["train"])]
        if "test" in metrics:
            parts.append(f"test {_terms(metrics['test'])[0]}")
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
        self.terms = "  ".join(_terms(metrics["train"]))
        if "test" in metrics:
            self.terms += f"  test {_terms(metrics['test'])[0]}"
        speed = f"{metrics['images_per_second']:,.0f} images/s"
        total = self.bar.tasks[0].total or 0
        self.bar.update(self.task, speed=speed, completed=total * metrics["epoch"] / self.epochs)

    @hookimpl
    def genkit_run_ended(self) -> None:
        """Leaves the last state of the display on the screen."""
        self.live.stop()


def _terms(means: Mapping[str, float | None]) -> list[str]:
    return [f"{name} {'nan' if value is None else format(value, '.2f')}" for name, value in means.items()]
