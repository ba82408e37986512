"""The components of the textbook VAE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional

import genkit


class MLPEncoder(genkit.Encoder):
    r"""One hidden ReLU layer to the mean and log-variance of :math:`q(z|x) = \mathcal N(\mu, \mathrm{diag}\,\sigma^2)`.

    Args:
        spec: any event and latent shape; both are flattened.
        hidden: units of the hidden layer.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean", "log_var")

    def __init__(self, spec: genkit.Spec, *, hidden: Annotated[int, Ge(1)] = 400) -> None:
        super().__init__()
        self.latent_shape = spec.latent_shape
        self.hidden = nn.Linear(math.prod(spec.event_shape), hidden)
        self.mean = nn.Linear(hidden, math.prod(spec.latent_shape))
        self.log_var = nn.Linear(hidden, math.prod(spec.latent_shape))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, *event_shape)`` -> mean and log-variance, ``(B, *latent_shape)`` each."""
        hidden = self.hidden(x.flatten(1)).relu()
        return (
            self.mean(hidden).unflatten(1, self.latent_shape),
            self.log_var(hidden).unflatten(1, self.latent_shape),
        )

    def posterior(self, *params: Tensor) -> Distribution:
        """The factorised normal of that mean and log-variance."""
        mean, log_var = params
        return Independent(Normal(mean, (0.5 * log_var).exp()), len(self.latent_shape))


class MLPDecoder(genkit.Decoder):
    r"""One hidden ReLU layer and a tanh to the mean of :math:`p(x|z) = \mathcal N(\mu, \tfrac12 I)`.

    With the variance 1/2, :math:`-\log p(x|z)` is the summed squared error plus a constant. The tanh is scaled to
    the value range, so with the textbook's [-1, 1] it is the tanh itself.

    Args:
        spec: needs a value range.
        hidden: units of the hidden layer.
    """

    outputs: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, spec: genkit.Spec, *, hidden: Annotated[int, Ge(1)] = 400) -> None:
        super().__init__()
        if spec.value_range is None:
            raise genkit.InvalidOption(
                "value_range = None: the decoder 'mlp' ends in a tanh; give it a range, e.g. [-1, 1]"
            )
        self.event_shape = spec.event_shape
        self.low, self.high = spec.value_range
        self.hidden = nn.Linear(math.prod(spec.latent_shape), hidden)
        self.out = nn.Linear(hidden, math.prod(spec.event_shape))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(B, *latent_shape)`` -> the mean of x, ``(B, *event_shape)``."""
        mean = self.out(self.hidden(z.flatten(1)).relu()).tanh()
        if (self.low, self.high) != (-1.0, 1.0):
            mean = self.low + (mean + 1) * ((self.high - self.low) / 2)
        return (mean.unflatten(1, self.event_shape),)

    def likelihood(self, *params: Tensor) -> Distribution:
        """The normal of that mean and variance 1/2."""
        (mean,) = params
        return Independent(Normal(mean, math.sqrt(0.5)), len(self.event_shape))


class StandardNormal(genkit.Prior):
    r""":math:`\mathcal N(0, I)`."""

    loc: Tensor
    scale: Tensor

    def __init__(self, spec: genkit.Spec) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(spec.latent_shape), persistent=False)
        self.register_buffer("scale", torch.ones(spec.latent_shape), persistent=False)

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        """The same for every condition."""
        return Independent(Normal(self.loc, self.scale), self.loc.dim())


class SquaredErrorKL(genkit.Loss):
    r""":math:`\sum_i (x_i - \mathbb E[x_i|z])^2 + \mathrm{KL}(q(z|x)\,\|\,p(z))` per observation.

    With a likelihood of variance 1/2 this is the negative evidence lower bound in nats, less a constant (Kingma &
    Welling 2014, arXiv:1312.6114).
    """

    def forward(self, step: genkit.Pass) -> genkit.Terms:
        """One latent sample per observation."""
        if step.posterior is None:
            raise genkit.InvalidComponent("the loss 'squared_error_kl' needs a posterior; give the recipe an encoder")
        mean = step.likelihood.mean  # (K, B, *event)
        error = functional.mse_loss(mean, step.batch.x.expand_as(mean), reduction="none")
        squared_error = error.flatten(2).sum(2).mean(0)
        kl = genkit.divergence(step.posterior, step.prior, step.z)
        return genkit.Terms(squared_error + kl, squared_error=squared_error, kl=kl)
