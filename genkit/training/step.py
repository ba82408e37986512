"""How one step is executed: one operation after another, or in kernels that were compiled for it.

Both draw the same random numbers in the same order (the latter from torch 2.13 on), so their results differ by rounding
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from genkit.compiling import compiled, many_kernels, not_compiled
from genkit.errors import InvalidComponent
from genkit.interfaces import Batch, divided
from genkit.recipe import TrainingOptions
from genkit.task import Turn
from genkit.training.batches import Batches, Portion
from genkit.training.meter import Meter, sums_of
from genkit.training.optimizers import learning_rate_factor, optimizer_for
from genkit.training.team import ALONE, Team


class EagerStep:
    """Load, and for each turn: terms, backward confined to the turn's parameters, optimiser step.

    Args:
        turns: in the order in which they are taken.
        batches: where the portions come from.
        options: of the training.
        meter: takes the terms.
        states: gives the buffers that are saved, which are averaged over the processes.
        recorded: whether the steps are made to be recorded: learning rates on the device, and optimisers that allow it.
    """

    def __init__(
        self,
        turns: Sequence[Turn],
        batches: Batches,
        options: TrainingOptions,
        device: torch.device,
        meter: Meter,
        *,
        team: Team = ALONE,
        states: Callable[[], Sequence[Tensor]] = tuple,
        recorded: bool = False,
    ) -> None:
        self.turns, self.batches, self.options = turns, batches, options
        self.meter, self.team, self.states = meter, team, states
        self.optimizers = [optimizer_for(turn, options, recorded=recorded) for turn in turns]
        self.steps = options.epochs * len(batches)
        self.peaks: list[float] = []
        """Of the learning rates, where they move."""
        if options.schedule != "constant" or options.warmup_steps:
            self.peaks = [float(group["lr"]) for group in self.groups()]
            if recorded:
                for group in self.groups():
                    group["lr"] = torch.tensor(float(group["lr"]), device=device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    def active(self) -> AbstractContextManager[None]:
        """What has to be in force while steps are taken."""
        return nullcontext()

    def __call__(self, portion: Portion, step: int) -> None:
        """Takes step number ``step`` (from 0)."""
        self.set_rates(self.rates(step))
        self.work(portion)
        self.meter.advance(step + 1, portion.size)

    def flush(self) -> None:
        """No step is ever put off."""

    def groups(self) -> list[dict[str, Any]]:
        """The optimisers' groups of parameters, which are others after a state was restored."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def rates(self, step: int) -> list[float]:
        """The learning rate of each group in a step; none where they stay as they are."""
        if not self.peaks:
            return []
        factor = learning_rate_factor(self.options, step, self.steps)
        return [peak * factor for peak in self.peaks]

    def set_rates(self, rates: Sequence[float | Tensor]) -> None:
        """Sets what ``rates`` gave, or tensors that hold it."""
        if not rates:
            return
        for group, rate in zip(self.groups(), rates, strict=True):
            if isinstance(group["lr"], Tensor) and not isinstance(rate, Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def work(self, portion: Portion) -> None:
        """Everything that a step does on the device."""
        batch = self.load(portion.items)
        parts = divided(batch, self.options.accumulate)
        own = self.team.size * portion.own / portion.size  # of this process, in units of the others' mean
        results = []
        for turn, optimizer in zip(self.turns, self.optimizers, strict=True):
            optimizer.zero_grad()
            sums: dict[str, Tensor] = {}
            for part in parts:
                total, values = self.forward(turn, part)
                share = own * (len(part.x) / len(batch.x))
                # Sharded parameters are not those that a layer computes with, so it reaches all of them; what it leaves
                # with those of other turns is cleared before their own.
                inputs = None if self.options.sharded else turn.parameters
                (total if share == 1 else total * share).backward(inputs=inputs)
                sums = {name: sums[name] + value for name, value in values.items()} if sums else values
            self.team.average(turn.parameters, self.states() if turn is self.turns[-1] else (), own)
            if self.options.clip_norm is not None:
                clip_grad_norm_(turn.parameters, self.options.clip_norm)
            optimizer.step()
            results.append((turn.name, sums if portion.own else {name: v * 0 for name, v in sums.items()}))
        self.meter.add(results)

    def load(self, items: Any) -> Batch:
        """The observations of a portion, on the device."""
        return self.batches.load(items)

    def forward(self, turn: Turn, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What a turn minimises on a batch, and the sums for the meter."""
        return forward(turn, batch, self.autocast)


class CompiledStep(EagerStep):
    """Loading and the forward and backward passes in kernels of ``torch.compile``. Arguments as of ``EagerStep``.

    They are made for whole batches; the last, partial one of an epoch is taken as ``EagerStep`` takes it.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._load, self._forward = compiled(self.batches.load), compiled(forward)
        self.compiling = False

    def work(self, portion: Portion) -> None:
        """Everything that a step does on the device."""
        self.compiling = portion.size == self.batches.batch_size
        super().work(portion)

    def active(self) -> AbstractContextManager[None]:
        """What has to be in force while steps are taken."""
        return many_kernels()

    def load(self, items: Any) -> Batch:
        """The observations of a portion, on the device."""
        return self._compiled(self._load, items) if self.compiling else super().load(items)

    def forward(self, turn: Turn, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What a turn minimises on a batch, and the sums for the meter."""
        if not self.compiling:
            return super().forward(turn, batch)
        result: tuple[Tensor, dict[str, Tensor]] = self._compiled(self._forward, turn, batch, self.autocast)
        return result

    def _compiled(self, function: Callable[..., Any], *arguments: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return function(*arguments)
        except TorchDynamoException as error:
            raise not_compiled(self.options.step, error) from error


def forward(turn: Turn, batch: Batch, autocast: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """What ``turn`` minimises on ``batch``, and the sums for the meter."""
    with autocast:
        terms = turn(batch)
    return terms.total, sums_of(turn.name, terms, len(batch.x))


def checked_turns(turns: Sequence[Turn]) -> list[Turn]:
    """The turns of a step, each with the list of its trainable parameters, none of them twice.

    Raises:
        InvalidComponent: if there are none, two share a name, or one has nothing to train.
    """
    names = [turn.name for turn in turns]
    if not turns or len(set(names)) < len(names):
        raise InvalidComponent(
            f"the loss gave turns named {names}; a step needs one turn or more, each with its own name",
            culprit="loss",
        )
    trainable = []
    for turn in turns:
        parameters = list(dict.fromkeys(p for p in turn.parameters if p.requires_grad))
        if not parameters:
            raise InvalidComponent(
                f"the turn {turn.name!r} has no trainable parameter; give it some, or leave it out", culprit="loss"
            )
        trainable.append(Turn(turn.name, turn.terms, parameters, turn.optimizer))
    return trainable


def optimizer_state(turns: Sequence[Turn], optimizers: Sequence[Optimizer]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The optimisers' states as named tensors and plain values."""
    tensors: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for turn, optimizer in zip(turns, optimizers, strict=True):
        for index, parameter in enumerate(turn.parameters):
            for key, value in optimizer.state.get(parameter, {}).items():
                place = tensors if isinstance(value, torch.Tensor) else plain
                place[f"optimizer.{turn.name}.{index}.{key}"] = value
    return tensors, plain


def restore_optimizers(
    turns: Sequence[Turn],
    optimizers: Sequence[Optimizer],
    tensors: dict[str, Any],
    plain: dict[str, Any],
    team: Team = ALONE,
) -> None:
    """Puts back what ``optimizer_state`` gave."""
    values = {**tensors, **plain}
    for turn, optimizer in zip(turns, optimizers, strict=True):
        prefix = f"optimizer.{turn.name}."
        order = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
        state: dict[int, dict[str, Any]] = {}
        for name in (name for name in values if name.startswith(prefix)):
            index, _, key = name.removeprefix(prefix).partition(".")
            value = values[name]
            parameter = turn.parameters[int(index)]
            if isinstance(value, Tensor):
                # A checkpoint's file says where its tensors lie in memory, which is not where kernels are fastest.
                value = team.divided(value.clone(), parameter)
            state.setdefault(order[parameter], {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
