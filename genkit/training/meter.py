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


@dataclass(frozen=True)
class Reading:
    """The means over the observations so far, and the first step at which each name was not finite (or None)."""

    means: Mapping[str, float]
    first_bad: Mapping[str, int]


class Meter:
    """Accumulates per-observation means without ever making the host wait for the device.

    The metrics of one turn are ``loss`` and its terms. With several turns they carry the turn's name, as in
    ``generator/loss``, and ``loss`` is the sum of the turns' losses.
    """

    def __init__(self, device: torch.device) -> None:
        self.names: list[str] = []
        self.count = 0
        self.sums = torch.zeros(0, dtype=torch.float64, device=device)
        self.finite_steps = torch.zeros(0, dtype=torch.float64, device=device)
        self.first_step = 0
        self.steps = 0

    def add(self, step: int, size: int, results: Sequence[tuple[str, Terms]]) -> None:
        """Takes the terms of every turn of one step over ``size`` observations."""
        values: dict[str, Tensor] = {}
        for turn, terms in results:
            if not isinstance(terms, Terms):
                raise InvalidComponent(
                    f"the turn {turn!r} gave a {type(terms).__name__}; a loss returns "
                    "genkit.Terms(objective, name=term, ...)",
                    culprit="loss",
                )
            prefix = f"{turn}/" if len(results) > 1 else ""
            for name, value in (("loss", terms.objective), *terms.terms.items()):
                if value.shape not in ((), (size,)):
                    raise InvalidComponent(
                        f"the term {name!r} of the turn {turn!r} has shape {list(value.shape)}; a loss gives one value "
                        f"an observation, [{size}], or a scalar for the whole batch",
                        culprit="loss",
                    )
                values[prefix + name] = value.detach().expand(size)
        if not self.names:
            self.names = list(values)
            self.first_step = step
            self.sums = self.sums.new_zeros(len(values))
            self.finite_steps = self.sums.new_zeros(len(values))
        elif self.names != list(values):
            raise InvalidComponent(
                f"the terms were {self.names} and are now {list(values)}; a loss gives the same terms at every step",
                culprit="loss",
            )
        self.sums += torch.stack(list(values.values())).sum(1, dtype=torch.float64)
        self.finite_steps += self.sums.isfinite()  # a sum that is not finite stays so, so this counts up to that step
        self.count += size
        self.steps += 1

    def read(self) -> Reading:
        """The one synchronisation with the host."""
        sums, finite = torch.stack([self.sums, self.finite_steps]).tolist()
        means = {name: value / self.count for name, value in zip(self.names, sums, strict=True)}
        bad = {
            n: self.first_step + int(steps) for n, steps in zip(self.names, finite, strict=True) if steps < self.steps
        }
        if means and "loss" not in means:
            means = {"loss": math.fsum(v for name, v in means.items() if name.endswith("/loss")), **means}
        return Reading(means, bad)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that ``restore`` takes."""
        plain = {"names": self.names, "count": self.count, "steps": self.steps, "first_step": self.first_step}
        return {"meter.sums": self.sums, "meter.finite_steps": self.finite_steps}, plain

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.sums = tensors["meter.sums"].to(self.sums.device)
        self.finite_steps = tensors["meter.finite_steps"].to(self.sums.device)
        self.names = plain["names"]
        self.count, self.steps, self.first_step = plain["count"], plain["steps"], plain["first_step"]
