"""The data flow of every latent-variable model, in one place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from genkit.interfaces import Batch, Decoder, Encoder, Pass, Prior, Spec, fitting, named


class LatentModel(nn.Module):
    """x -> q(z|x) -> z -> p(x|z), against p(z). Without an encoder, z comes from the prior."""

    def __init__(self, spec: Spec, encoder: Encoder | None, decoder: Decoder, prior: Prior) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior

    def forward(self, batch: Batch, samples: int = 1) -> Pass:
        x, condition = batch
        posterior = self.posterior(x, condition) if self.encoder is not None else None
        prior = self.prior_given(condition)
        z = draw(posterior if posterior is not None else prior, samples, len(x))  # (K, B, *latent)
        return Pass(batch, posterior, z, self.likelihood(z, condition), prior)

    def prior_given(self, condition: Tensor | None = None) -> Distribution:
        """p(z), or p(z|condition)."""
        prior = self.prior(condition, self.proposal)
        batches = [()] if condition is None else [(), (condition.shape[0],)]
        return fitting(self.prior.forward, prior, self.spec.latent_shape, *batches)

    @property
    def proposal(self) -> Callable[..., Distribution] | None:
        """What a prior gets as its ``posterior``: the function x -> q(z|x), where there is an encoder."""
        return None if self.encoder is None else self.posterior

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> Distribution:
        """q(z|x) for ``x`` ``(B, *event_shape)``."""
        assert self.encoder is not None
        posterior = self.encoder.posterior(*named(self.encoder, self.encoder(x, condition), x.shape[0]))
        return fitting(self.encoder.posterior, posterior, self.spec.latent_shape, (x.shape[0],))

    def decode(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(*lead, *latent_shape)`` -> the decoder's parameters, ``(*lead, ...)``; lead is (B,) or (K, B)."""
        lead = self._lead(z)
        if condition is not None:
            condition = condition.expand(lead).flatten()
        rows = z.flatten(0, len(lead) - 1)
        return tuple(p.unflatten(0, lead) for p in named(self.decoder, self.decoder(rows, condition), rows.shape[0]))

    def likelihood(self, z: Tensor, condition: Tensor | None = None) -> Distribution:
        """p(x|z) for ``z`` as in ``decode``."""
        likelihood = self.decoder.likelihood(*self.decode(z, condition))
        return fitting(self.decoder.likelihood, likelihood, self.spec.event_shape, self._lead(z))

    def _lead(self, z: Tensor) -> tuple[int, ...]:
        return tuple(z.shape[: z.dim() - len(self.spec.latent_shape)])


def draw(distribution: Distribution, samples: int, batch: int) -> Tensor:
    """``(K, B, *latent_shape)`` from a distribution of batch ``()`` or ``(B,)``, with gradients where it has any."""
    shape = torch.Size((samples,) if distribution.batch_shape else (samples, batch))
    return distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)
