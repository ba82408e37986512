"""Two stochastic layers: a latent that is drawn given another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints

import genkit
from genkit_vae.mlp import Activation, BernoulliMLP, GaussianMLP, Widths

Layers = tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]]
"""Units of z1, next to the observation, and of z2 above it; z is the two, one after the other."""


class Chain(Distribution):
    r""":math:`p(a)\,p(b|a)` over the concatenation of a and b, or of b and a.

    Its mean has no closed form, and is not the dependent part's at the ancestor's mean.

    Args:
        ancestor: p(a), with events of one dimension.
        dependent: a ``(*, A)`` -> p(b|a) with batch ``(*)`` and events of one dimension.
        units: of b.
        ancestor_last: whether the concatenation is of b and a.
    """

    arg_constraints = {}  # noqa: RUF012  (as the base class declares it)
    has_rsample = True
    support = constraints.real_vector

    def __init__(
        self,
        ancestor: Distribution,
        dependent: Callable[[Tensor], Distribution],
        units: int,
        *,
        ancestor_last: bool = False,
    ) -> None:
        self.ancestor = ancestor
        self.dependent = dependent
        self.ancestor_last = ancestor_last
        self.units = (ancestor.event_shape[0], units)
        super().__init__(ancestor.batch_shape, torch.Size([sum(self.units)]), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """``(*sample_shape, *batch_shape, A + B)``."""
        a = self.ancestor.rsample(torch.Size(sample_shape))
        b = self.dependent(a).rsample()
        return torch.cat([b, a] if self.ancestor_last else [a, b], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, ``(*sample_shape, *batch_shape)``."""
        if self.ancestor_last:
            b, a = value.split(self.units[::-1], dim=-1)
        else:
            a, b = value.split(self.units, dim=-1)
        return self.ancestor.log_prob(a) + self.dependent(a).log_prob(b)


class HierarchicalGaussianMLP(genkit.Encoder):
    r""":math:`q(z_1|x)\,q(z_2|z_1)`, each a normal distribution whose parameters a perceptron gives.

    Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519, section 5. What is exported is the first of the two.

    Args:
        spec: its latents are the units of both layers.
        layers: units of z1 and of z2.
        hidden: units of each hidden layer between x and z1.
        hidden_above: units of each hidden layer between z1 and z2.
        activation: after each of them.

    Raises:
        genkit.InvalidOption: where the latent shape is not the sum of the layers.
    """

    outputs: ClassVar[tuple[str, ...]] = ("z1_mean", "z1_log_var")

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        layers: Layers = (100, 50),
        hidden: Widths = (200, 200),
        hidden_above: Widths = (100, 100),
        activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        self.layers = checked(spec, layers, "encoder")
        first, second = layers
        self.first = GaussianMLP(replace(spec, latent_shape=(first,)), hidden=hidden, activation=activation)
        self.second = between(first, second, hidden_above, activation)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, *event_shape)`` -> mean and log-variance of z1, ``(B, layers[0])`` each."""
        params: tuple[Tensor, ...] = self.first(x)
        return params

    def posterior(self, *params: Tensor) -> Distribution:
        """Over z1 and z2, one after the other."""
        return Chain(self.first.posterior(*params), conditional(self.second), self.layers[1])


class HierarchicalNormal(genkit.Prior):
    r""":math:`p(z_2)\,p(z_1|z_2)`: standard normal at the top, and below it as a perceptron says.

    Args:
        spec: its latents are the units of both layers.
        layers: units of z1 and of z2.
        hidden: units of each hidden layer between z2 and z1.
        activation: after each of them.

    Raises:
        genkit.InvalidOption: where the latent shape is not the sum of the layers, or the encoder or the decoder has
            other layers.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        layers: Layers = (100, 50),
        hidden: Widths = (100, 100),
        activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        self.layers = checked(spec, layers, "prior")
        first, second = layers
        self.first = between(second, first, hidden, activation)
        self.register_buffer("loc", torch.zeros(first + second), persistent=False)
        self.register_buffer("scale", torch.ones(first + second), persistent=False)

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """Checks that all speak of the same layers, because another division of the same sum fits as well."""
        for kind, part in (("encoder", model.encoder), ("decoder", model.decoder)):
            if isinstance(part, HierarchicalGaussianMLP | HierarchicalBernoulliMLP) and part.layers != self.layers:
                raise genkit.InvalidOption(
                    f"prior.layers = {list(self.layers)}, but {kind}.layers = {list(part.layers)}; make them the same"
                )

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        """The same for every condition."""
        first, _ = self.layers
        above = Independent(Normal(self.loc[first:], self.scale[first:]), 1)
        return Chain(above, conditional(self.first), first, ancestor_last=True)

    def noise(self) -> Mapping[str, Distribution]:
        """A standard normal draw for each latent."""
        return {"normal": Independent(Normal(self.loc, self.scale), 1)}

    def transport(
        self,
        *noise: Tensor,
        condition: Tensor | None = None,
        posterior: Callable[..., Distribution] | None = None,
    ) -> Tensor:
        """``normal`` ``(B, D)`` -> z1 and z2, ``(B, D)``; z2 is the noise itself."""
        (normal,) = noise
        below, z2 = normal.split(self.layers, dim=1)
        mean, log_var = self.first(z2)
        return torch.cat([mean + (0.5 * log_var).exp() * below, z2], dim=1)


class HierarchicalBernoulliMLP(genkit.Decoder):
    """:math:`p(x|z_1)` as ``bernoulli_mlp``; z2 has no say in it.

    Args:
        spec: its latents are the units of both layers; with the value range [0, 1].
        layers: units of z1 and of z2.
        hidden: units of each hidden layer.
        activation: after each of them.

    Raises:
        genkit.InvalidOption: where the latent shape is not the sum of the layers, or for another value range.
    """

    outputs: ClassVar[tuple[str, ...]] = BernoulliMLP.outputs

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        layers: Layers = (100, 50),
        hidden: Widths = (200, 200),
        activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        self.layers = checked(spec, layers, "decoder")
        self.first = BernoulliMLP(replace(spec, latent_shape=layers[:1]), hidden=hidden, activation=activation)

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """As of ``bernoulli_mlp``."""
        self.first.prepare(model, data)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(B, D)`` -> the logits of x, ``(B, *event_shape)``."""
        params: tuple[Tensor, ...] = self.first(z[:, : self.layers[0]])
        return params

    def likelihood(self, *params: Tensor) -> Distribution:
        """Independent pixels, white with the probability of the logit."""
        return self.first.likelihood(*params)


def checked(spec: genkit.Spec, layers: Layers, kind: str) -> Layers:
    """The layers; raises where they are not what the latent is made of."""
    if spec.latent_shape != (sum(layers),):
        raise genkit.InvalidOption(
            f"{kind}.layers = {list(layers)}, but latent_shape = {list(spec.latent_shape)}: z is all layers in a row; "
            f"--set latent_shape=[{sum(layers)}]"
        )
    return layers


def between(above: int, below: int, hidden: Widths, activation: Activation) -> GaussianMLP:
    """The perceptron from one layer's value to the other's mean and log-variance."""
    return GaussianMLP(genkit.Spec((above,), (below,), value_range=None), hidden=hidden, activation=activation)


def conditional(network: GaussianMLP) -> Callable[[Tensor], Distribution]:
    """A value ``(*, D)`` -> the normal distribution, of batch ``(*)``, that ``network`` makes of it."""

    def given(value: Tensor) -> Distribution:
        params = network(value.reshape(-1, value.shape[-1]))
        # of the value's own precision, which autocast would lower
        return network.posterior(*(p.reshape(*value.shape[:-1], p.shape[-1]).to(value.dtype) for p in params))

    return given
