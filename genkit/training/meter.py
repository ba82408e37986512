"""Sums of the terms of a model, kept on the device and read once an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genkit.errors import InvalidComponent
from genkit.interfaces import Terms
from genkit.training.team import ALONE, Team


@dataclass(frozen=True)
class Reading:
    """The means over the observations so far, and the first step at which each name was not finite (or None)."""

    means: Mapping[str, float]
    first_bad: Mapping[str, int]


def sums_of(turn: str, terms: Terms, size: int) -> dict[str, Tensor]:
    """The ``loss`` and every term of a turn by name, each summed over the ``size`` observations, in float64.

    Raises:
        InvalidComponent: for what is no ``Terms``, or a term that has neither a value an observation nor one in all.
    """
    if not isinstance(terms, Terms):
        raise InvalidComponent(
            f"the turn {turn!r} gave a {type(terms).__name__}; a loss returns genkit.Terms(objective, name=term, ...)",
            culprit="loss",
        )
    values = {"loss": terms.objective, **terms.terms}
    for name, value in values.items():
        if value.shape not in ((), (size,)):
            raise InvalidComponent(
                f"the term {name!r} of the turn {turn!r} has shape {list(value.shape)}; a loss gives one value "
                f"an observation, [{size}], or a scalar for the whole batch",
                culprit="loss",
            )
    sums = torch.stack([value.detach().expand(size) for value in values.values()]).sum(1, dtype=torch.float64)
    return dict(zip(values, sums.unbind(), strict=True))


class Meter:
    """Accumulates per-observation means without ever making the host wait for the device.

    The metrics of one turn are ``loss`` and its terms. With several turns they carry the turn's name, as in
    ``generator/loss``, and ``loss`` is the sum of the turns' losses.

    What is added lies where it lay, so that the addition can be recorded and replayed.
    """

    def __init__(self, device: torch.device, team: Team = ALONE) -> None:
        self.team = team
        self.names: list[str] = []
        self.sums = torch.zeros(0, dtype=torch.float64, device=device)
        self.finite_steps = torch.zeros(0, dtype=torch.float64, device=device)
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.count = self.first_step = self.steps = 0
        self.sums.zero_()
        self.finite_steps.zero_()

    def add(self, results: Sequence[tuple[str, Mapping[str, Tensor]]]) -> None:
        """Takes what ``sums_of`` gave of every turn of one step."""
        several = len(results) > 1
        names = [f"{turn}/{name}" if several else name for turn, sums in results for name in sums]
        if not self.names:
            self.names = names
            self.sums = self.sums.new_zeros(len(names))
            self.finite_steps = self.sums.new_zeros(len(names))
        elif self.names != names:
            raise InvalidComponent(
                f"the terms were {self.names} and are now {names}; a loss gives the same terms at every step",
                culprit="loss",
            )
        self.sums += torch.stack([value for _, sums in results for value in sums.values()])
        self.finite_steps += self.sums.isfinite()  # a sum that is not finite stays so, so this counts up to that step

    def advance(self, step: int, size: int) -> None:
        """Counts step number ``step`` (from 1), over ``size`` observations in all processes."""
        if not self.steps:
            self.first_step = step
        self.count += size
        self.steps += 1

    def read(self) -> Reading:
        """The one synchronisation with the host, and with the other processes."""
        if not self.steps:
            return Reading({}, {})
        sums, finite = torch.stack(self._together()).tolist()
        means = {name: value / self.count for name, value in zip(self.names, sums, strict=True)}
        bad = {
            n: self.first_step + int(steps) for n, steps in zip(self.names, finite, strict=True) if steps < self.steps
        }
        if means and "loss" not in means:
            means = {"loss": math.fsum(v for name, v in means.items() if name.endswith("/loss")), **means}
        return Reading(means, bad)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that ``restore`` takes, of all processes together."""
        plain = {"names": self.names, "count": self.count, "steps": self.steps, "first_step": self.first_step}
        sums, finite_steps = self._together()
        return {"meter.sums": sums, "meter.finite_steps": finite_steps}, plain

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.sums = tensors["meter.sums"].to(self.sums.device, copy=True)
        self.finite_steps = tensors["meter.finite_steps"].to(self.sums.device, copy=True)
        if not self.team.leads:  # the first process has the sums of all
            self.sums.zero_()
        self.names = plain["names"]
        self.count, self.steps, self.first_step = plain["count"], plain["steps"], plain["first_step"]

    def _together(self) -> tuple[Tensor, Tensor]:
        return self.team.sum(self.sums), self.team.min(self.finite_steps)
