"""Every hook that a plugin can implement. Mark an implementation with ``@genkit.hookimpl``.

A hook may take fewer arguments than it is offered. The lifecycle hooks are called in the training process, between
steps; one that raises is reported and not called again, and training goes on. A module's are called in every run, those
of a tracker (``Registry.tracker``) in the runs that were asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from genkit.registry import Registry

if TYPE_CHECKING:
    from genkit.run import Run
    from genkit.task import Task

API_VERSION = (1, 0)
"""Of what plugins use: the hooks, the registry, and every name in ``genkit``. The second number grows with what is new,
the first with what no longer works. A plugin's module may say the least that it needs: ``GENKIT_API = "1.0"``.
"""

hookspec = pluggy.HookspecMarker("genkit")


@hookspec
def genkit_register(registry: Registry) -> None:
    """Contribute components, models, exporters, runtimes and trackers.

    Called once, before anything else; import no torch.
    """


@hookspec
def genkit_run_started(run: Run, task: Task, epoch: int, epochs: int, batches: int, device: str) -> None:
    """Training of ``task`` begins, after ``epoch`` finished epochs of ``epochs``, each of ``batches`` steps."""


@hookspec
def genkit_step_ended(run: Run, epoch: int, batch: int, batches: int, observations: int, seconds: float) -> None:
    """A few times a second: ``batch`` of ``batches`` is done, after ``observations`` in ``seconds`` of this epoch.

    With ``training.steps_per_replay``, a few of them may be put off, until there are as many.
    """


@hookspec
def genkit_epoch_ended(run: Run, metrics: Mapping[str, Any]) -> None:
    """An epoch is over; ``metrics`` is its line of ``metrics.jsonl``."""


@hookspec
def genkit_picture_saved(run: Run, epoch: int, path: Path) -> None:
    """A picture of the model after ``epoch`` epochs lies at ``path``."""


@hookspec
def genkit_checkpoint_saved(run: Run, epoch: int, step: int, path: Path) -> None:
    """A checkpoint is complete and safe at ``path``."""


@hookspec
def genkit_warning(run: Run, message: str) -> None:
    """Something that the user should know of, and that does not stop the run."""


@hookspec
def genkit_run_ended(run: Run, outcome: str) -> None:
    """Training is over: ``finished``, ``interrupted`` (and saved), ``diverged`` or ``failed``."""
