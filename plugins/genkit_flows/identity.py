"""A model whose latent is the observation itself, so that the prior is all there is to learn."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.distributions import Distribution

import genkit


class IdentityEncoder(genkit.Encoder):
    """z = x. With the decoder ``identity_map``, the estimate of log p(x) by importance weights is exactly log p(z = x).

    Args:
        spec: the latent shape must be the event shape.
    """

    outputs: ClassVar[tuple[str, ...]] = ("z",)

    def __init__(self, spec: genkit.Spec) -> None:
        super().__init__()
        self.event_dims = _event_dims(spec, "encoder")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, *event_shape)`` -> the same."""
        return (x,)

    def posterior(self, *params: Tensor) -> Distribution:
        """The point mass, with a log-density of 0, which cancels with the decoder's."""
        (z,) = params
        return genkit.Delta(z, self.event_dims, log_density=0.0)


class IdentityDecoder(genkit.Decoder):
    """x = z.

    Args:
        spec: the latent shape must be the event shape.
    """

    outputs: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, spec: genkit.Spec) -> None:
        super().__init__()
        self.event_dims = _event_dims(spec, "decoder")

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(B, *latent_shape)`` -> the same."""
        return (z,)

    def likelihood(self, *params: Tensor) -> Distribution:
        """The point mass, with a log-density of 0, which cancels with the encoder's."""
        (x,) = params
        return genkit.Delta(x, self.event_dims, log_density=0.0)


class MaximumLikelihood(genkit.Loss):
    r""":math:`-\log p(x) = -\log p(x|z) - \log p(z) + \log q(z|x)` per observation, in nats.

    By Bayes' rule this holds for any z where :math:`q(z|x)` is :math:`p(z|x)`. So it is exact where the decoder undoes
    the encoder; there is a bound elsewhere, and infinity where a deterministic decoder does not give x back.
    """

    def forward(self, step: genkit.Pass) -> genkit.Terms:
        """One latent per observation."""
        if step.posterior is None:
            raise genkit.InvalidComponent(
                "the loss 'maximum_likelihood' needs the latent of x; give the recipe an encoder, e.g. 'identity_map'"
            )
        x, z = step.batch.x, step.z
        log_likelihood = step.likelihood.log_prob(x) + step.prior.log_prob(z) - step.posterior.log_prob(z)  # (K, B)
        return genkit.Terms(-log_likelihood.mean(0))


def _event_dims(spec: genkit.Spec, kind: str) -> int:
    if spec.latent_shape != spec.event_shape:
        raise genkit.InvalidOption(
            f"latent_shape = {list(spec.latent_shape)}: the {kind} 'identity_map' keeps the shape of an observation; "
            f"set latent_shape to {list(spec.event_shape)}"
        )
    return len(spec.event_shape)
