"""The run directory: the recipe, the metrics, the checkpoints and the pictures of one training run.

Whatever moment the process dies at, each file in it is whole, the last good checkpoint is there, and what lies beyond
that checkpoint is made again, bit for bit, by the resumed run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genkit.errors import InvalidComponent, InvalidOption, InvalidRun
from genkit.files import directory_written_atomically, discard_directory, write_atomically
from genkit.pictures import loss_curves
from genkit.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

_REMEDY = "restore it, name another with --checkpoint, or remove its folder to resume from the one before"

_LEFTOVER = re.compile(r"\.\d+\..+")
"""What an interrupted atomic write leaves beside its target."""


@dataclass(frozen=True, order=True)
class Position:
    """A moment inside a run: ``epoch`` finished epochs, ``batch`` finished steps of the next one, ``step`` in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        """``epoch_0020``, or ``epoch_0020_step_0009504`` inside the next one."""
        return f"epoch_{self.epoch:04d}" + (f"_step_{self.step:07d}" if self.batch else "")


@dataclass(frozen=True)
class Checkpoint:
    """A directory with ``weights.safetensors``, ``training.safetensors`` and ``state.json``."""

    path: Path

    @cached_property
    def state(self) -> dict[str, Any]:
        """The position, and everything else that is not a tensor."""
        try:
            state: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise self._damaged("state.json", error) from None
        return state

    @property
    def position(self) -> Position:
        """Where in the run it was taken."""
        try:
            return Position(**self.state["position"])
        except (KeyError, TypeError) as error:
            raise self._damaged("state.json", error) from None

    def weights(self) -> dict[str, Tensor]:
        """The module's state, on the CPU."""
        return self._tensors("weights.safetensors")

    def training(self) -> dict[str, Tensor]:
        """The optimisers', the random generators' and the metrics' tensors, on the CPU."""
        return self._tensors("training.safetensors")

    def load_into(self, module: nn.Module, divided: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """Gives ``module`` these weights, or raises ``InvalidRun`` if they are another model's.

        ``divided``, where a module is sharded, makes of a weight what it is beside the module's own.
        """
        weights, own = self.weights(), module.state_dict()
        differences = [f"{name} is missing" for name in own.keys() - weights.keys()]
        differences += [f"{name} is unknown" for name in weights.keys() - own.keys()]
        differences += [
            f"{name} is {list(weights[name].shape)}, not {list(own[name].shape)}"
            for name in own.keys() & weights.keys()
            if weights[name].shape != own[name].shape
        ]
        if differences:
            raise InvalidRun(
                f"the checkpoint {self.path} holds another model: {min(differences)} "
                f"({len(differences)} such differences); use the run of the recipe that it was trained with"
            )
        if divided is not None:
            weights = {name: divided(weight, own[name]) for name, weight in weights.items()}
        module.load_state_dict(weights)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: Exception) -> InvalidRun:
        path = self.path / name
        if not path.exists():
            return InvalidRun(f"the checkpoint file {path} is missing; {_REMEDY}")
        return InvalidRun(f"the checkpoint file {path} is damaged ({path.stat().st_size} bytes; {error}); {_REMEDY}")


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file, or ``InvalidOption`` that says what is wrong with it."""
    if not path.is_file():
        raise InvalidOption(f"--recipe {path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidOption(f"{path}: this is not text; give the YAML of a recipe, e.g. RUN/recipe.yaml") from None
    return Recipe.from_yaml(text, str(path))


class Run:
    """One run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, recipe: Recipe, environment: Mapping[str, Any]) -> Self:
        """Begins a run in a folder that is absent or empty.

        Raises:
            InvalidRun: if there is something in it, or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            cls.require_vacant(path)
            run = cls(path)
            run._clear_leftovers()
            write_atomically(path / "environment.json", (json.dumps(environment, indent=2) + "\n").encode())
            write_atomically(path / "recipe.yaml", recipe.to_yaml().encode())  # from here on it is a run
        except OSError as error:
            raise InvalidRun(f"the folder {path} cannot be written ({error.strerror}); choose another --out") from None
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens an existing run.

        Raises:
            InvalidRun: if there is none at ``path``.
        """
        if not (path / "recipe.yaml").is_file():
            why = "it has no recipe.yaml" if path.is_dir() else "there is no such folder"
            raise InvalidRun(f"{path} is not a run: {why}; give the folder that `genkit train` wrote")
        return cls(path)

    @staticmethod
    def vacant(path: Path) -> bool:
        """Whether nothing was begun at ``path``: it is absent, empty, or holds an interrupted first write."""
        if path.is_dir():
            return all(_LEFTOVER.fullmatch(p.name) or p.name == "environment.json" for p in path.iterdir())
        return not path.exists()

    @classmethod
    def require_vacant(cls, path: Path) -> None:
        """Raises ``InvalidRun`` if there is anything at ``path`` that a new run would mix with."""
        if not cls.vacant(path):
            raise InvalidRun(f"{path} is not empty; choose another --out, or go on with the run in it with --resume")

    @staticmethod
    def fresh_path(model: str) -> Path:
        """``runs/<model>-<time>`` in the working directory, not taken yet."""
        stem = f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
        candidates = (Path("runs", stem + suffix) for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
        return next(path for path in candidates if not path.exists())

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe that it was made with."""
        return read_recipe(self.path / "recipe.yaml")

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        write_atomically(self.path / "recipe.yaml", recipe.to_yaml().encode())

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What it was made with, and where."""
        try:
            environment: dict[str, Any] = json.loads((self.path / "environment.json").read_text())
        except (OSError, ValueError):
            return {}
        return environment

    def remember(self, **facts: Any) -> None:
        """Changes what ``environment`` says."""
        self.environment.update(facts)
        write_atomically(self.path / "environment.json", (json.dumps(self.environment, indent=2) + "\n").encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, without one that was cut off."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise InvalidRun(
                f"{path} is damaged ({error}); restore it, or remove it to go on without its past"
            ) from None

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one epoch's line, and waits until it is on the disk."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, position: Position) -> None:
        """Forgets what was written after ``position``, which is about to be done again."""
        self._clear_leftovers()
        rows = [row for row in self.metrics() if row["epoch"] <= position.epoch]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.path / "metrics.jsonl", text.encode())

    def save_picture(self, folder: str, epoch: int, picture: Image) -> Path:
        """Writes ``<folder>/epoch_0020.png``."""
        path = self.path / folder / f"epoch_{epoch:04d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, picture.save)
        return path

    def save_loss_curves(self) -> Path:
        """Draws ``loss.png`` anew from the metrics."""
        path = self.path / "loss.png"
        write_atomically(path, loss_curves(self.metrics()).save)
        return path

    def checkpoints(self) -> list[Checkpoint]:
        """From the oldest to the newest."""
        return [Checkpoint(path) for path in sorted((self.path / "checkpoints").glob("epoch_*"), key=_age)]

    def checkpoint(self, which: str = "last") -> Checkpoint:
        """The checkpoint ``last``, ``best`` (lowest test loss), or of a number of finished epochs.

        Raises:
            InvalidRun: if it was not kept or never made.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise InvalidRun(
                f"the run {self.path} has no checkpoint yet; train it: genkit train --out {self.path} --resume"
            )
        if which == "last":
            return checkpoints[-1]
        if which == "best":
            best = _best(checkpoints)
            if best is None:
                raise InvalidRun(
                    f"the run {self.path} never measured a test loss, so it has no best checkpoint; use last"
                )
            return best
        finished = {c.position.epoch: c for c in checkpoints if c.position.batch == 0}
        if not which.isdecimal() or int(which) not in finished:
            kept = ", ".join(map(str, finished))
            raise InvalidRun(
                f"the run {self.path} has no checkpoint {which!r}; it has last, best and the epochs {kept}"
            )
        return finished[int(which)]

    def save_checkpoint(
        self,
        position: Position,
        weights: Mapping[str, Tensor],
        training: Mapping[str, Tensor],
        state: Mapping[str, Any],
        milestone_every: int,
    ) -> Path:
        """Writes a checkpoint whole; then, and only then, removes those that are no longer wanted.

        What stays: the last, the best, and those of every ``milestone_every`` epochs (0: of the start only).
        """
        path = self.path / "checkpoints" / position.name
        if not path.exists():
            with directory_written_atomically(path) as folder:
                save_file(portable(weights), folder / "weights.safetensors")
                save_file(portable(training), folder / "training.safetensors")
                (folder / "state.json").write_text(json.dumps({"position": vars(position), **state}, indent=2) + "\n")
        checkpoints = self.checkpoints()
        keep = {checkpoints[-1], _best(checkpoints)}
        for checkpoint in checkpoints:
            at = checkpoint.position
            milestone = at.batch == 0 and (at.epoch % milestone_every == 0 if milestone_every else at.epoch == 0)
            if checkpoint not in keep and not milestone:
                discard_directory(checkpoint.path)
        return path

    def _clear_leftovers(self) -> None:
        for path in [p for p in self.path.rglob(".*") if _LEFTOVER.fullmatch(p.name)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _age(checkpoint: Path) -> list[int]:
    """Sorts checkpoints by time: the epoch, then the step inside it, if any."""
    return [int(number) for number in re.findall(r"\d+", checkpoint.name)]


def _best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The checkpoint of the lowest test loss; the earliest of equals."""
    measured = [c for c in checkpoints if c.state.get("test_loss") is not None]
    return min(measured, key=lambda c: c.state["test_loss"], default=None)


def portable(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as the file format wants them."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in require_tensors(tensors).items()}


def require_tensors(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """``state``, of which nothing is anything else than a tensor, or ``InvalidComponent``."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InvalidComponent(f"the state {name!r} is a {type(value).__name__}; only tensors can be saved")
    return state
