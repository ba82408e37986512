"""How one step is executed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from genkit.errors import InvalidComponent
from genkit.interfaces import Terms
from genkit.recipe import TrainingOptions
from genkit.task import Turn
from genkit.training.batches import Batches
from genkit.training.optimizers import learning_rate_factor, optimizer_for


class EagerStep:
    """Load, and for each turn: terms, backward confined to the turn's parameters, optimiser step.

    Args:
        turns: in the order in which they are taken.
        batches: where the portions come from.
        options: of the training.
    """

    def __init__(self, turns: Sequence[Turn], batches: Batches, options: TrainingOptions, device: torch.device) -> None:
        self.turns = turns
        self.batches = batches
        self.options = options
        self.optimizers = [optimizer_for(turn, options) for turn in turns]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.scheduled = options.schedule != "constant" or options.warmup_steps > 0
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    def __call__(self, portion: Any, step: int) -> tuple[int, list[tuple[str, Terms]]]:
        """Takes step number ``step`` (from 0); gives the number of observations and the terms of every turn."""
        batch = self.batches.load(portion)
        results = []
        for turn, optimizer, rates in zip(self.turns, self.optimizers, self.rates, strict=True):
            if self.scheduled:
                factor = learning_rate_factor(self.options, step, self.options.epochs * len(self.batches))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            optimizer.zero_grad()
            with self.autocast:
                terms = turn(batch)
            terms.total.backward(inputs=turn.parameters)
            if self.options.clip_norm is not None:
                clip_grad_norm_(turn.parameters, self.options.clip_norm)
            optimizer.step()
            results.append((turn.name, terms))
        return len(batch.x), results


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
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                place = tensors if isinstance(value, torch.Tensor) else plain
                place[f"optimizer.{turn.name}.{index}.{key}"] = value
    return tensors, plain


def restore_optimizers(
    turns: Sequence[Turn], optimizers: Sequence[Optimizer], tensors: dict[str, Any], plain: dict[str, Any]
) -> None:
    """Puts back what ``optimizer_state`` gave."""
    values = {**tensors, **plain}
    for turn, optimizer in zip(turns, optimizers, strict=True):
        prefix = f"optimizer.{turn.name}."
        state: dict[int, dict[str, Any]] = {}
        for name in (name for name in values if name.startswith(prefix)):
            index, _, key = name.removeprefix(prefix).partition(".")
            value = values[name]
            # A checkpoint's file says where its tensors lie in memory, which is not where kernels are fastest.
            state.setdefault(int(index), {})[key] = value.clone() if isinstance(value, torch.Tensor) else value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
