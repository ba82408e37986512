"""Sums of the terms of a model, kept on the device and read once an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.errors import InvalidComponent
from genkit.interfaces import Terms

_NEVER = 2**62


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
        self.first_bad = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, step: int, size: int, results: Sequence[tuple[str, Terms]]) -> None:
        """Takes the terms of every turn of one step over ``size`` observations."""
        values = {}
        for turn, terms in results:
            prefix = f"{turn}/" if len(results) > 1 else ""
            for name, value in (("loss", terms.objective), *terms.terms.items()):
                if value.shape not in ((), (size,)):
                    raise InvalidComponent(
                        f"the term {name!r} of the turn {turn!r} has shape {list(value.shape)}; a loss gives one value "
                        f"an observation, [{size}], or a scalar for the whole batch"
                    )
                values[prefix + name] = value.detach().double().mean()
        if not self.names:
            self.names = list(values)
            self.sums = self.sums.new_zeros(len(values))
            self.first_bad = self.first_bad.new_full((len(values),), _NEVER)
        vector = torch.stack(list(values.values()))
        self.sums.add_(vector, alpha=size)
        bad = torch.where(vector.isfinite(), _NEVER, step)
        torch.minimum(self.first_bad, bad, out=self.first_bad)
        self.count += size

    def read(self) -> Reading:
        """The one synchronisation with the host."""
        sums, steps = torch.stack([self.sums, self.first_bad.double()]).tolist()
        means = {name: value / self.count for name, value in zip(self.names, sums, strict=True)}
        bad = {name: int(step) for name, step in zip(self.names, steps, strict=True) if step < _NEVER}
        if means and "loss" not in means:
            means = {"loss": math.fsum(v for name, v in means.items() if name.endswith("/loss")), **means}
        return Reading(means, bad)

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Tensors and plain values that ``restore`` takes."""
        return {"meter.sums": self.sums, "meter.first_bad": self.first_bad}, {"names": self.names, "count": self.count}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, object]) -> None:
        """Goes on from a saved state."""
        self.sums = tensors["meter.sums"].to(self.sums.device)
        self.first_bad = tensors["meter.first_bad"].to(self.first_bad.device)
        self.names = list(plain["names"])  # type: ignore[call-overload]
        self.count = int(plain["count"])  # type: ignore[call-overload]
