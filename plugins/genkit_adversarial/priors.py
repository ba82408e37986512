"""Bounded noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform

import genkit


class UniformNoise(genkit.Prior):
    r""":math:`\mathcal U(\mathrm{low}, \mathrm{high})`, independently in every dimension.

    Args:
        spec: any latent shape.
        low: the smallest value.
        high: the largest value.
    """

    low: Tensor
    high: Tensor

    def __init__(self, spec: genkit.Spec, *, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if not 0 < high - low < math.inf:
            raise genkit.InvalidOption(f"low = {low}, high = {high}: give two finite numbers, the lower one first")
        self.register_buffer("low", torch.full(spec.latent_shape, low), persistent=False)
        self.register_buffer("high", torch.full(spec.latent_shape, high), persistent=False)

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        """The same for every condition."""
        return Independent(Uniform(self.low, self.high), self.low.dim())
