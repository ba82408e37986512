"""The prior of a conditional variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

import genkit
from genkit_vae.mlp import require_labels


class ClassNormal(genkit.Prior):
    r""":math:`p(z|y) = \mathcal N(\mu_y, \mathrm{diag}\,\sigma_y^2)`, learned for every label y.

    The prior network of Sohn, Lee & Yan (2015), "Learning structured output representation using deep conditional
    generative models", for a condition that is a label. All labels start from the standard normal.

    Args:
        spec: with labels; any latent shape.

    Raises:
        genkit.InvalidOption: where the data has no labels.
        genkit.InvalidComponent: when asked without a label.
    """

    def __init__(self, spec: genkit.Spec) -> None:
        super().__init__()
        self.latent_shape = spec.latent_shape
        # embeddings, because the gradient of plain indexing is summed in no fixed order on several threads
        classes = require_labels(spec, "prior = class_normal")
        self.mean, self.log_scale = (nn.Embedding(classes, math.prod(spec.latent_shape)) for _ in range(2))
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(self.log_scale.weight)

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        """Labels ``(B,)`` -> p(z|y), batch ``(B,)``."""
        if condition is None:
            raise genkit.InvalidComponent("the prior 'class_normal' was asked without labels; give it a condition")
        mean, log_scale = (e(condition).unflatten(1, self.latent_shape) for e in (self.mean, self.log_scale))
        return Independent(Normal(mean, log_scale.exp()), len(self.latent_shape))
