"""A prior made of posteriors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal, Uniform

import genkit

_NEAR_THE_EDGE = 0.01
"""How near to the ends of its range a pixel starts, in parts of it: at the end itself it could not move."""


class VampPrior(genkit.Prior):
    r""":math:`p(z) = \frac1K \sum_k q(z|u_k)`, with pseudo-inputs :math:`u_k` that are learned with the model.

    Tomczak & Welling (2018), arXiv:1705.07120. The pseudo-inputs start as training observations, and a sigmoid keeps
    them in the value range.

    Args:
        spec: any.
        components: K.

    Raises:
        genkit.InvalidComponent: in a model without an encoder.
    """

    thresholds: Tensor

    def __init__(self, spec: genkit.Spec, *, components: Annotated[int, Ge(1)] = 500) -> None:
        super().__init__()
        self.latent_shape = spec.latent_shape
        self.value_range = spec.value_range
        self.unconstrained = nn.Parameter(torch.zeros(components, *spec.event_shape))
        # each component's lower end in [0, 1): compared with, not multiplied by, so that all precisions choose alike
        self.register_buffer("thresholds", torch.arange(components) / components, persistent=False)

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """Starts the pseudo-inputs as training observations, the same one twice only where there are too few."""
        if model.encoder is None:
            raise _without_encoder()
        x = genkit.observations(model.spec, data, len(self.unconstrained))
        if self.value_range is not None:
            low, high = self.value_range
            x = ((x - low) / (high - low)).logit(eps=_NEAR_THE_EDGE)
        with torch.no_grad():
            self.unconstrained.copy_(x[torch.arange(len(self.unconstrained)) % len(x)])

    @property
    def pseudo_inputs(self) -> Tensor:
        """``(K, *event_shape)``, in the value range."""
        if self.value_range is None:
            return self.unconstrained
        low, high = self.value_range
        return low + (high - low) * self.unconstrained.sigmoid()

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        """The same for every condition."""
        return MixtureSameFamily(
            Categorical(logits=torch.zeros_like(self.thresholds)), self.posteriors(posterior), validate_args=False
        )

    def noise(self) -> Mapping[str, Distribution]:
        """A number that chooses the component, and a standard normal draw for the place in it."""
        zeros = self.unconstrained.new_zeros(self.latent_shape)
        normal = Independent(Normal(zeros, zeros + 1), len(self.latent_shape))
        return {"choice": Uniform(self.unconstrained.new_zeros(()), self.unconstrained.new_ones(())), "normal": normal}

    def transport(
        self,
        *noise: Tensor,
        condition: Tensor | None = None,
        posterior: Callable[..., Distribution] | None = None,
    ) -> Tensor:
        """``choice`` ``(B,)`` and ``normal`` ``(B, *latent_shape)`` -> z, ``(B, *latent_shape)``.

        Raises:
            genkit.InvalidComponent: where the posterior is not a factorised normal distribution.
        """
        choice, normal = noise
        posteriors = self.posteriors(posterior)
        base = posteriors.base_dist if isinstance(posteriors, Independent) else None
        if not isinstance(base, Normal):
            raise genkit.InvalidComponent(
                f"the prior 'vamp' maps noise to latents where the posterior is a factorised normal distribution, and "
                f"this one is {posteriors}; choose another encoder, e.g. --set encoder=gaussian_mlp"
            )
        component = (choice.unsqueeze(1) >= self.thresholds).sum(1) - 1
        return base.loc[component] + base.scale[component] * normal

    def posteriors(self, posterior: Callable[..., Distribution] | None) -> Distribution:
        """:math:`q(z|u_k)`, batch ``(K,)``."""
        if posterior is None:
            raise _without_encoder()
        return posterior(self.pseudo_inputs)


def _without_encoder() -> genkit.InvalidComponent:
    return genkit.InvalidComponent(
        "the prior 'vamp' is a mixture of posteriors, and this model has none; give the recipe an encoder"
    )
