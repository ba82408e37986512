"""Multi-layer perceptrons as encoders and decoders, with or without the label as a further input."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

import genkit
from genkit_vae.bernoulli import LogitBernoulli

Activation = Literal["tanh", "relu", "elu", "silu"]
"""Names in ``ACTIVATIONS``."""

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}

_STARTING = 2000
"""Observations whose mean a decoder starts from."""

Widths = tuple[Annotated[int, Ge(1)], ...]
"""Units of each hidden layer, from the input on."""


class Perceptron(nn.Module):
    """``inputs`` -> each width in turn, each followed by the activation; the label, if wanted, is a one-hot input."""

    def __init__(self, inputs: int, widths: Widths, activation: Activation, labels: int) -> None:
        super().__init__()
        self.labels = labels
        sizes = [inputs + labels, *widths]
        layers = [(nn.Linear(n, m), ACTIVATIONS[activation]()) for n, m in pairwise(sizes)]
        self.layers = nn.Sequential(*(module for layer in layers for module in layer))
        self.width = sizes[-1]

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = x.flatten(1)
        if self.labels:
            x = torch.cat([x, one_hot(condition, self.labels).to(x.dtype)], dim=1)
        hidden: Tensor = self.layers(x)
        return hidden


class GaussianMLP(genkit.Encoder):
    r"""Hidden layers to the mean and log-variance of :math:`q(z|x) = \mathcal N(\mu, \mathrm{diag}\,\sigma^2)`.

    Kingma & Welling (2014), arXiv:1312.6114. The defaults are those of Burda, Grosse & Salakhutdinov (2016),
    arXiv:1509.00519. With ``conditional``, :math:`q(z|x, y)` (Sohn, Lee & Yan 2015).

    Args:
        spec: any event and latent shape; both are flattened.
        hidden: units of each hidden layer.
        activation: after each of them.
        conditional: whether the label is an input, too.

    Raises:
        genkit.InvalidOption: for ``conditional`` where the data has no labels.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean", "log_var")

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        hidden: Widths = (200, 200),
        activation: Activation = "tanh",
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.latent_shape = spec.latent_shape
        labels = require_labels(spec, "conditional = True") if conditional else 0
        self.hidden = Perceptron(math.prod(spec.event_shape), hidden, activation, labels)
        self.mean = nn.Linear(self.hidden.width, math.prod(spec.latent_shape))
        self.log_var = nn.Linear(self.hidden.width, math.prod(spec.latent_shape))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, *event_shape)`` -> mean and log-variance, ``(B, *latent_shape)`` each."""
        hidden = self.hidden(x, condition)
        return (
            self.mean(hidden).unflatten(1, self.latent_shape),
            self.log_var(hidden).unflatten(1, self.latent_shape),
        )

    def posterior(self, *params: Tensor) -> Distribution:
        """The factorised normal of that mean and log-variance."""
        mean, log_var = params
        return Independent(Normal(mean, (0.5 * log_var).exp()), len(self.latent_shape))


class DeterministicMLP(genkit.Encoder):
    """Hidden layers to one latent: the encoder of an autoencoder, whose posterior is a point mass.

    Args:
        spec: any event and latent shape; both are flattened.
        hidden: units of each hidden layer.
        activation: after each of them.
    """

    outputs: ClassVar[tuple[str, ...]] = ("z",)

    def __init__(self, spec: genkit.Spec, *, hidden: Widths = (200, 200), activation: Activation = "tanh") -> None:
        super().__init__()
        self.latent_shape = spec.latent_shape
        self.hidden = Perceptron(math.prod(spec.event_shape), hidden, activation, labels=0)
        self.out = nn.Linear(self.hidden.width, math.prod(spec.latent_shape))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, *event_shape)`` -> z ``(B, *latent_shape)``."""
        return (self.out(self.hidden(x, condition)).unflatten(1, self.latent_shape),)

    def posterior(self, *params: Tensor) -> Distribution:
        """The point mass at z."""
        (z,) = params
        return genkit.Delta(z, len(self.latent_shape))


class BernoulliMLP(genkit.Decoder):
    r"""Hidden layers to the logits of :math:`p(x|z) = \prod_i \mathrm{Bernoulli}(x_i; \sigma(\ell_i))`.

    The log-likelihood is minus the binary cross-entropy in nats. It is one of binary pixels; of grey ones in [0, 1] it
    is an unnormalised score (Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845). With ``conditional``,
    :math:`p(x|z, y)` (Sohn, Lee & Yan 2015).

    Args:
        spec: with the value range [0, 1].
        hidden: units of each hidden layer.
        activation: after each of them.
        conditional: whether the label is an input, too.

    Raises:
        genkit.InvalidOption: for another value range, or for ``conditional`` where the data has no labels.
    """

    outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        hidden: Widths = (200, 200),
        activation: Activation = "tanh",
        conditional: bool = False,
    ) -> None:
        super().__init__()
        require_unit_range(spec, "bernoulli_mlp")
        self.event_shape = spec.event_shape
        labels = require_labels(spec, "conditional = True") if conditional else 0
        self.hidden = Perceptron(math.prod(spec.latent_shape), hidden, activation, labels)
        self.out = nn.Linear(self.hidden.width, math.prod(spec.event_shape))

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """Starts the output from the mean of every pixel, as Burda et al. do: it saves the first epochs."""
        with torch.no_grad():
            self.out.bias.copy_(genkit.observations(model.spec, data, _STARTING).mean(0).logit(eps=1e-3).flatten())

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(B, *latent_shape)`` -> the logits of x, ``(B, *event_shape)``."""
        return (self.out(self.hidden(z, condition)).unflatten(1, self.event_shape),)

    def likelihood(self, *params: Tensor) -> Distribution:
        """Independent pixels, white with the probability of the logit."""
        (logits,) = params
        return Independent(LogitBernoulli(logits=logits), len(self.event_shape))


def require_labels(spec: genkit.Spec, option: str) -> int:
    """How many labels the data has. Raises ``InvalidOption``, which names the option that needs them, if none."""
    if not spec.classes:
        raise genkit.InvalidOption(f"{option}: this data has no labels; choose a dataset that has, or another option")
    return spec.classes


def one_hot(condition: Tensor | None, classes: int) -> Tensor:
    """``(B,)`` -> bool ``(B, classes)``. Unlike torch's own it never waits for the device to look at the values."""
    if condition is None:
        raise genkit.InvalidComponent("a conditional component was asked without labels; give it a condition")
    return condition[:, None] == torch.arange(classes, device=condition.device)


def require_unit_range(spec: genkit.Spec, decoder: str) -> None:
    """Raises ``InvalidOption`` unless x is in [0, 1]."""
    if spec.value_range != (0.0, 1.0):
        given = None if spec.value_range is None else list(spec.value_range)
        raise genkit.InvalidOption(
            f"value_range = {given}: the decoder {decoder!r} gives probabilities; --set value_range=[0,1]"
        )
