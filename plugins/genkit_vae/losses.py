"""Bounds on the likelihood, and the squared error of an autoencoder."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional

import genkit


class NegativeELBO(genkit.Loss):
    r""":math:`-\mathbb E_q[\log p(x|z)] + \beta\,\mathrm{KL}(q(z|x)\,\|\,p(z))` in nats per observation.

    Kingma & Welling (2014), arXiv:1312.6114; beta: Higgins et al. (2017). Terms: ``reconstruction`` and ``kl``.

    Args:
        spec: not used.
        beta: the weight of the divergence; 1 is the bound itself.
        warmup_steps: training steps over which the weight rises linearly to beta (Bowman et al. 2016,
            arXiv:1511.06349); 0: none. What is measured on the test set has the full weight from the start, so that
            epochs can be compared.

    Raises:
        genkit.InvalidComponent: in a model without an encoder.
        genkit.NoDensity: where the posterior is a point mass.
    """

    steps: Tensor

    def __init__(
        self, spec: genkit.Spec, *, beta: Annotated[float, Ge(0)] = 1.0, warmup_steps: Annotated[int, Ge(0)] = 0
    ) -> None:
        super().__init__()
        self.beta = beta
        self.warmup_steps = warmup_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, step: genkit.Pass) -> genkit.Terms:
        """One latent sample per observation; the divergence in closed form where there is one."""
        reconstruction = -step.likelihood.log_prob(step.batch.x).mean(0)  # (B,)
        kl = genkit.divergence(posterior_of(step, "negative_elbo"), step.prior, step.z)  # (B,)
        return genkit.Terms(reconstruction + self.weight() * kl, reconstruction=reconstruction, kl=kl)

    def weight(self) -> float | Tensor:
        """Beta, or the part of it that the warm-up has reached. Counts the training step."""
        if not self.training or not self.warmup_steps:
            return self.beta
        self.steps += 1
        return self.beta * (self.steps / self.warmup_steps).clamp(max=1)


class ImportanceWeighted(genkit.Loss):
    r""":math:`-\log \frac1K \sum_{k=1}^K \frac{p(x|z_k)\,p(z_k)}{q(z_k|x)}`, :math:`z_k \sim q(z|x)`, in nats.

    Its expectation bounds :math:`-\log p(x)` from above, tighter the larger K; K = 1 is the negative evidence lower
    bound with a sampled divergence. Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519. The terms
    ``reconstruction`` and ``kl`` are the means over the samples, whose sum is the bound for K = 1.

    Args:
        spec: not used.
        samples: K.

    Raises:
        genkit.InvalidComponent: in a model without an encoder.
        genkit.NoDensity: where the posterior is a point mass.
    """

    def __init__(self, spec: genkit.Spec, *, samples: Annotated[int, Ge(1)] = 50) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, step: genkit.Pass) -> genkit.Terms:
        """The gradient goes through the reparametrised weights."""
        reconstruction = -step.likelihood.log_prob(step.batch.x)  # (K, B)
        kl = posterior_of(step, "importance_weighted_elbo").log_prob(step.z) - step.prior.log_prob(step.z)  # (K, B)
        bound = (-reconstruction - kl).logsumexp(0) - math.log(len(step.z))  # (B,)
        return genkit.Terms(-bound, reconstruction=reconstruction.mean(0), kl=kl.mean(0))


class SquaredError(genkit.Loss):
    r""":math:`\sum_i (x_i - \mathbb E[x_i|z])^2` per observation: an autoencoder's loss, without any prior."""

    def forward(self, step: genkit.Pass) -> genkit.Terms:
        """One latent per observation."""
        mean = step.likelihood.mean  # (K, B, *event)
        error = functional.mse_loss(mean, step.batch.x.expand_as(mean), reduction="none")
        return genkit.Terms(error.flatten(2).sum(2).mean(0))


def posterior_of(step: genkit.Pass, loss: str) -> Distribution:
    """q(z|x); raises ``InvalidComponent`` where the model has none."""
    if step.posterior is None:
        raise genkit.InvalidComponent(f"the loss {loss!r} needs a posterior; give the recipe an encoder")
    return step.posterior
