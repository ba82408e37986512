"""The training loop: for each epoch, for each batch, for each turn. It knows of no kind of model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import Tensor

from genkit.data import take
from genkit.errors import Diverged, GenkitError, InvalidComponent, InvalidRun, SaidElsewhere
from genkit.inference import evaluating
from genkit.interfaces import Batch, Terms, unvalidated
from genkit.pictures import Picture
from genkit.random import derive, preserved, restore_states, seed_all, seeded, states_as_tensors
from genkit.recipe import TrainingOptions
from genkit.run import Checkpoint, Position, Run, require_tensors
from genkit.task import Task, Turn
from genkit.training.batches import Batches, batches_of, for_measurement
from genkit.training.device import (
    arithmetic,
    describe_device,
    memory_kept,
    peak_memory,
    require_precision,
    reset_peak_memory,
)
from genkit.training.meter import Meter, Reading, sums_of
from genkit.training.signals import Interruption
from genkit.training.step import checked_turns, optimizer_state, restore_optimizers
from genkit.training.strategies import step_for
from genkit.training.team import ALONE, Team

Notify = Callable[..., None]
"""``notify(hook, **arguments)``: calls a lifecycle hook in every plugin."""

_TRAINING, _EVALUATION = 2, 3
"""Streams of random numbers, apart from those of the data."""

_DISPLAY_INTERVAL = 0.1
"""Seconds between two calls of the hook that progress displays live on."""

_STEPS_BETWEEN_QUESTIONS = 8
"""Between two moments at which several processes ask each other whether to stop."""


class Trainer:
    """Trains one task. Whatever is wrong with the request is found here, before anything is written.

    Args:
        task: with its module in any place; it ends up on ``device``.
        options: how to train.
        device: where to train.
        notify: receives the lifecycle hooks.
        team: the processes that train it together; each has the same task.

    Raises:
        GenkitError: where the options, the turns or the data do not fit together.
    """

    run: Run

    def __init__(
        self, task: Task, options: TrainingOptions, device: torch.device, notify: Notify, team: Team = ALONE
    ) -> None:
        require_precision(device, options.precision)
        self.task, self.options, self.device, self.hooks, self.team = task, options, device, notify, team
        self.module = task.module.to(device)
        team.start_alike(self.module)
        if options.sharded and team.size > 1:
            team.shard(self.module, device)
        self.turns = checked_turns(task.turns())

        def batches(dataset: Any, seed: int | None, team: Team) -> Batches:
            return batches_of(
                task.data, dataset, options.batch_size, task.value_range, seed, device, options.workers, team
            )

        self.training = batches(task.data.train, options.seed, team)
        self.test = batches(task.data.test, None, ALONE)  # measured in whole batches, each by one process
        self.meter = Meter(device, team)
        self.step = step_for(self.module, self.turns, self.training, options, device, self.meter, team, self.warn)
        self.position = Position()
        self.seconds = 0.0
        self.test_loss: float | None = None

        self.rehearse()

    def fit(self, run: Run) -> str:
        """Trains from the last checkpoint of ``run``, or from the present weights if there is none.

        Returns:
            ``finished``, or the name of the signal that interrupted it, after which the run can be resumed.

        Raises:
            Diverged: when a loss or a weight is not finite. The last good checkpoint is intact.
        """
        self.run = run
        outcome = "failed"
        try:
            with (
                arithmetic(self.options.precision),
                memory_kept(self.device),
                unvalidated(),
                seeded(self.seed_of_training()),
                self.step.active(),
            ):
                ended_by = self.run_to_the_end()
                outcome = "finished" if ended_by == "finished" else "interrupted"
        except Diverged:
            outcome = "diverged"
            raise
        except RuntimeError as error:
            if self.team.lost_another(error):
                raise self.team.alone_now(error) from error
            raise
        finally:
            self.notify("genkit_run_ended", run=run, outcome=outcome)
        return ended_by

    def rehearse(self) -> None:
        """Every turn, there and back, on a few observations of both sets, so that what cannot work fails at once.

        The module is left as it was.
        """
        before = {name: tensor.clone() for name, tensor in require_tensors(self.module.state_dict()).items()}
        with arithmetic(self.options.precision), seeded(0), evaluating(self.module), unvalidated():
            for dataset, batches in ((self.task.data.train, self.training), (self.task.data.test, self.test)):
                x, labels = take(dataset, range(min(2, batches.size)))
                batch = batches.finish(x.to(self.device), None if labels is None else labels.to(self.device))
                with self.step.autocast, self.team.using():
                    results = [(turn, turn(batch)) for turn in self.turns]
                Meter(self.device).add(
                    [(turn.name, sums_of(turn.name, terms, len(batch.x))) for turn, terms in results]
                )
                for turn, terms in results:
                    self.require_gradient(turn, terms)
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(before[name])

    @staticmethod
    def require_gradient(turn: Turn, terms: Terms) -> None:
        """Raises ``InvalidComponent`` if the objective depends on none of the turn's parameters."""
        total = terms.total
        gradients: Sequence[Tensor | None] = []
        if total.requires_grad:
            gradients = torch.autograd.grad(total, list(turn.parameters), allow_unused=True, retain_graph=True)
        if all(gradient is None for gradient in gradients):
            raise InvalidComponent(
                f"the objective of the turn {turn.name!r} depends on none of its parameters, so there is nothing to "
                "train; compute it without detach() and no_grad()",
                culprit="loss",
            )

    def run_to_the_end(self) -> str:
        checkpoints = self.run.checkpoints()
        if checkpoints:
            self.restore(checkpoints[-1])
        self.team.once(lambda: self.run.rewind(self.position))
        if not checkpoints:
            self.save()
        self.notify(
            "genkit_run_started",
            run=self.run,
            task=self.task,
            epoch=self.position.epoch,
            epochs=self.options.epochs,
            batches=len(self.training),
            device=describe_device(self.device),
        )
        with Interruption() as interruption:
            while self.position.epoch < self.options.epochs:
                if self.train_epoch(interruption):
                    self.finish_epoch()
                stopped_by = self.team.greatest(interruption.signal or 0)
                if stopped_by and self.position.epoch < self.options.epochs:
                    self.require_finite(self.meter.read())
                    self.save()
                    return Signals(stopped_by).name
        if self.device.type != "cuda" and self.team.leads and self.run.environment:
            self.run.remember(peak_memory_bytes=peak_memory(self.device))
        return "finished"

    def train_epoch(self, interruption: Interruption) -> bool:
        """Takes the steps of the epoch that are left; whether all of them were taken."""
        self.module.train()
        epoch, batch, step = self.position.epoch, self.position.batch, self.position.step
        before, started, displayed = self.seconds, time.perf_counter(), 0.0
        for portion in self.training.epoch(epoch, batch):
            self.step(portion, step)
            batch, step = batch + 1, step + 1
            now = time.perf_counter()
            if now - displayed > _DISPLAY_INTERVAL:
                displayed = now
                self.notify(
                    "genkit_step_ended",
                    run=self.run,
                    epoch=epoch + 1,
                    batch=batch,
                    batches=len(self.training),
                    observations=self.meter.count,
                    seconds=before + now - started,
                )
            if self.interrupted(interruption, batch):
                break
        self.step.flush()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        self.seconds = before + time.perf_counter() - started
        self.position = Position(epoch, batch, step)
        return batch == len(self.training)

    def interrupted(self, interruption: Interruption, batch: int) -> bool:
        """Whether to stop after ``batch``. Several processes stop together, and ask each other now and then."""
        if self.team.size == 1:
            return interruption.signal is not None
        return batch % _STEPS_BETWEEN_QUESTIONS == 0 and self.team.greatest(interruption.signal or 0) > 0

    def finish_epoch(self) -> None:
        """Everything after the last step of an epoch. The checkpoint comes last: it says that all the rest is done."""
        epoch, step = self.position.epoch + 1, self.position.step
        reading = self.meter.read()
        self.require_finite(reading)
        row: dict[str, Any] = {"epoch": epoch, "step": step, "train": self.finite(reading.means, "training", epoch)}
        if self.options.evaluate_every and epoch % self.options.evaluate_every == 0:
            means = measure(self.task, self.turns, self.test, self.device, self.options.seed, self.team)
            row["test"] = self.finite(means, "test", epoch)
        self.test_loss = row.get("test", {}).get("loss")
        row["seconds"] = round(self.seconds, 4)
        row["images_per_second"] = round(self.training.size / self.seconds, 1)
        if self.device.type == "cuda":
            row["peak_memory_bytes"] = peak_memory(self.device)
        last = epoch == self.options.epochs
        illustrated = last or (self.options.sample_every > 0 and epoch % self.options.sample_every == 0)
        if illustrated:
            for folder, picture in self.task.pictures.items():
                self.illustrate(folder, epoch, partial(self.save_picture, folder, epoch, picture))
        if self.team.leads:
            self.run.append_metrics(row)
            if illustrated:
                self.illustrate("loss", epoch, self.run.save_loss_curves)
        self.position, self.seconds = Position(epoch, 0, step), 0.0
        self.meter.reset()
        reset_peak_memory(self.device)
        self.notify("genkit_epoch_ended", run=self.run, metrics=row)
        if illustrated or epoch % self.options.checkpoint_every == 0:
            self.save()

    def save_picture(self, folder: str, epoch: int, picture: Picture) -> Path | None:
        drawn = picture()  # by all processes, because each may hold a part of the model
        return self.run.save_picture(folder, epoch, drawn) if self.team.leads else None

    def illustrate(self, name: str, epoch: int, save: Callable[[], Path | None]) -> None:
        try:
            path = save()
        except Exception as error:  # a picture is not worth a run
            self.warn(f"the picture {name!r} of epoch {epoch} could not be made: {type(error).__name__}: {error}")
        else:
            self.notify("genkit_picture_saved", run=self.run, epoch=epoch, path=path)

    def finite(self, means: Mapping[str, float], part: str, epoch: int) -> dict[str, float | None]:
        """The means as they are written: null, with a warning, for what is not finite."""
        for name in (name for name, value in means.items() if not math.isfinite(value)):
            self.warn(f"the {part} term {name!r} of epoch {epoch} is {means[name]}; it is recorded as null")
        return {name: value if math.isfinite(value) else None for name, value in means.items()}

    def require_finite(self, reading: Reading) -> None:
        """Raises ``Diverged`` if a loss went wrong since the epoch began, or a weight is not finite now."""
        where = f"in epoch {self.position.epoch + 1}"
        if any(name == "loss" or name.endswith("/loss") for name in reading.first_bad):
            name, step = min(reading.first_bad.items(), key=lambda item: (item[1], item[0].endswith("loss")))
            raise self.diverged(f"{where}, step {step}: the term {name!r} is not finite")
        weights = dict(self.module.named_parameters())
        finite = {name: self.team.held(p).isfinite().all() for name, p in weights.items()}
        if weights and not self.team.min(torch.stack(list(finite.values())).all().int()):
            name = next((name for name in weights if not finite[name]), "of another process")
            raise self.diverged(f"{where}, by step {self.position.step}: the weight {name!r} is not finite")

    def diverged(self, what: str) -> GenkitError:
        if not self.team.leads:
            return SaidElsewhere(Diverged.status)
        checkpoint = self.run.checkpoints()[-1]
        return Diverged(
            f"training diverged {what}; the last good checkpoint is {checkpoint.path}. "
            "Try a lower --lr, or --set training.clip_norm=1"
        )

    def save(self) -> None:
        tensors, plain = optimizer_state(self.turns, self.step.optimizers)
        weights, tensors = self.team.whole(self.module.state_dict()), dict(self.team.whole(tensors))
        meter_tensors, meter_plain = self.meter.state()
        test_loss = self.test_loss if self.position.batch == 0 else None  # inside an epoch nothing was measured
        for rank, states in enumerate(self.team.gather(states_as_tensors())):
            tensors |= {_random_prefix(rank) + name: state for name, state in states.items()}
        path = self.team.once(
            lambda: self.run.save_checkpoint(
                self.position,
                weights,
                {**tensors, **meter_tensors},
                {"seconds": self.seconds, "test_loss": test_loss, "optimizer": plain, "meter": meter_plain},
                self.options.sample_every,
            )
        )
        self.notify(
            "genkit_checkpoint_saved",
            run=self.run,
            epoch=self.position.epoch,
            step=self.position.step,
            path=path,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        checkpoint.load_into(self.module, self.team.divided)
        state, tensors = checkpoint.state, checkpoint.training()
        prefix = _random_prefix(self.team.rank)
        try:
            restore_optimizers(self.turns, self.step.optimizers, tensors, state["optimizer"], self.team)
            self.meter.restore(tensors, state["meter"])
            self.position, self.seconds, self.test_loss = checkpoint.position, state["seconds"], state["test_loss"]
            random = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if random:
                restore_states(random)
            else:  # it was saved by fewer processes
                seed_all(self.seed_of_training())
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidRun(
                f"the checkpoint {checkpoint.path} cannot be resumed ({type(error).__name__}: {error}); its "
                "weights are whole: begin another run from them with --init-from"
            ) from None

    def seed_of_training(self) -> int:
        """Of the noise of training. That of the first process does not depend on how many there are."""
        own = (self.team.rank, self.position.step) if self.team.rank else ()
        return derive(self.options.seed, _TRAINING, *own)

    def notify(self, hook: str, **arguments: Any) -> None:
        if not self.team.leads:
            return
        with preserved():  # what a plugin draws, such as the name of a run, must not change what is learned
            self.hooks(hook, **arguments)

    def warn(self, message: str) -> None:
        self.notify("genkit_warning", run=self.run, message=message)


def measure(
    task: Task, turns: Sequence[Turn], batches: Batches, device: torch.device, seed: int, team: Team = ALONE
) -> Mapping[str, float]:
    """The means of every term over a dataset, in evaluation mode, with noise from ``seed``.

    Several processes take the batches in turn, each whole. Gradients stay enabled, for losses that differentiate as
    part of their value.
    """
    meter = Meter(device, team)

    def add(batch: Batch, times: int) -> None:
        results = [(turn.name, sums_of(turn.name, turn(batch), len(batch.x))) for turn in turns]
        meter.add([(turn, {name: times * value for name, value in sums.items()}) for turn, sums in results])

    own = (team.rank,) if team.rank else ()
    taken = 0
    with seeded(derive(seed, _EVALUATION, *own)), evaluating(task.module), unvalidated():
        for batch in for_measurement(batches, seed, team):
            add(batch, 1)
            taken += 1
        if taken * team.size < len(batches):  # the others have one more, and may need this process's part of the model
            add(next(for_measurement(batches, seed)), 0)
    meter.advance(0, batches.size)
    return meter.read().means


def _random_prefix(rank: int) -> str:
    """What precedes the names of a process's random states in a checkpoint."""
    return f"random.{rank}." if rank else "random."
