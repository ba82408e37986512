"""The data flow of every latent-variable model, in one place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from genkit.interfaces import Batch, Decoder, Encoder, Pass, Prior, Spec


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
        prior = self.prior(condition, self.posterior)
        if self.encoder is None:
            posterior, z = None, draw(prior, samples, len(x))
        else:
            posterior = self.posterior(x, condition)
            z = posterior.rsample((samples,))  # (K, B, *latent)
        return Pass(batch, posterior, z, self.likelihood(z, condition), prior)

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> Distribution:
        """q(z|x) for ``x`` ``(B, *event_shape)``."""
        assert self.encoder is not None
        return self.encoder.posterior(*map(full_precision, self.encoder(x, condition)))

    def decode(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(*lead, *latent_shape)`` -> the decoder's parameters, ``(*lead, ...)``; lead is (B,) or (K, B)."""
        lead = z.shape[: z.dim() - len(self.spec.latent_shape)]
        if condition is not None:
            condition = condition.expand(lead).flatten()
        params = self.decoder(z.flatten(0, len(lead) - 1), condition)
        return tuple(full_precision(p).unflatten(0, lead) for p in params)

    def likelihood(self, z: Tensor, condition: Tensor | None = None) -> Distribution:
        """p(x|z) for ``z`` as in ``decode``."""
        return self.decoder.likelihood(*self.decode(z, condition))


def draw(prior: Distribution, samples: int, batch: int) -> Tensor:
    """``(K, B, *latent_shape)`` latents from a prior of batch ``()`` or ``(B,)``, with gradients where it has any."""
    shape = torch.Size((samples,) if prior.batch_shape else (samples, batch))
    return prior.rsample(shape) if prior.has_rsample else prior.sample(shape)


def full_precision(parameter: Tensor) -> Tensor:
    """Distributions are computed in float32 or wider, also where a network ran in bfloat16."""
    if not parameter.is_floating_point():
        return parameter
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))
