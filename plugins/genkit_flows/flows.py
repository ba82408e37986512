"""Normalizing flows as posterior and as prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, Transform, constraints

import genkit

try:
    with genkit.unvalidated():  # zuko switches the checks of torch.distributions off for good; this restores them
        from zuko.flows import MAF
        from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform
except ImportError as error:
    raise ImportError(f'flows need zuko: pip install "genkit-torch[flows]" ({error})') from error

Width = Annotated[int, Ge(1)]


class Flow(Distribution):
    r"""Noise through an invertible map, :math:`z = f(\epsilon)`.

    .. math:: \log p(z) = \log p(\epsilon) - \log\left|\det \frac{\partial f}{\partial \epsilon}\right|

    A sample is drawn together with its log-density, so that asking for it afterwards costs nothing, however slow the
    inverse of :math:`f` is. Only where gradients are wanted and the sample was drawn without is it computed anew.

    Args:
        base: of the noise; event ``(D,)``.
        transform: f, from ``(D,)`` to ``(D,)``.
    """

    arg_constraints = {}  # noqa: RUF012  (as the base class declares it)
    has_rsample = True
    support = constraints.real_vector

    def __init__(self, base: Distribution, transform: Transform) -> None:
        self.base = base
        self.transform: Any = transform  # zuko gives every Transform a call_and_ladj
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """``(*sample_shape, *batch_shape, D)``."""
        noise = self.base.rsample(torch.Size(sample_shape))
        image: tuple[Tensor, Tensor] = self.transform.call_and_ladj(noise)
        z, log_volume = image
        self._drawn = z, self.base.log_prob(noise) - log_volume
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, for ``(*sample_shape, *batch_shape, D)``."""
        if self._drawn is not None:
            z, log_prob = self._drawn
            if value is z and (log_prob.requires_grad or not torch.is_grad_enabled()):
                return log_prob
        image: tuple[Tensor, Tensor] = self.transform.inv.call_and_ladj(value)
        noise, log_volume = image
        return self.base.log_prob(noise) + log_volume


class FlowMLPEncoder(genkit.Encoder):
    r"""ReLU layers to an inverse autoregressive flow.

    .. math:: z_0 = \mu + \sigma \odot \epsilon, \quad z_t = m_t + s_t \odot z_{t-1}

    where element i of :math:`m_t` and :math:`s_t` depends on the elements of :math:`z_{t-1}` before it, and on the
    context h of x; the order is reversed from one transform to the next. Kingma et al. (2016), "Improved variational
    inference with inverse autoregressive flow", arXiv:1606.04934. A sample and its log-density take one pass; the
    log-density of any other z takes as many passes as z has elements.

    Args:
        spec: any event shape; latents ``(D,)``.
        hidden: units of the layers from x.
        context: elements of h.
        transforms: T.
        flow_hidden: units of the masked layers of each transform.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean", "log_var", "context")
    """Of :math:`z_0`, and h."""

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        hidden: tuple[Width, ...] = (400,),
        context: Width = 64,
        transforms: Width = 2,
        flow_hidden: tuple[Width, ...] = (128,),
    ) -> None:
        super().__init__()
        size = _size(spec, "the encoder 'flow_mlp'")
        widths = (math.prod(spec.event_shape), *hidden)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.mean = nn.Linear(widths[-1], size)
        self.log_var = nn.Linear(widths[-1], size)
        self.context = nn.Linear(widths[-1], context)
        self.transform = MAF(size, context, transforms, hidden_features=flow_hidden).transform  # from noise to z

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, *event_shape)`` -> mean and log-variance ``(B, D)``, context ``(B, H)`` in [-1, 1]."""
        hidden = x.flatten(1)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return self.mean(hidden), self.log_var(hidden), self.context(hidden).tanh()

    def posterior(self, *params: Tensor) -> Distribution:
        """The flow from that normal, given that context."""
        mean, log_var, context = params
        return Flow(Independent(Normal(mean, (0.5 * log_var).exp()), 1), self.transform(context))

    def graphs(self, spec: genkit.Spec) -> Sequence[genkit.Graph | genkit.NoGraph]:
        """``posterior``: standard normal noise, and what the graph ``encoder`` gives -> z."""

        def normal(size: int, **drawn: Any) -> genkit.Input:
            return genkit.Input((size,), torch.float32, lambda n, g: torch.randn(n, size, generator=g), **drawn)

        def uniform(size: int) -> genkit.Input:
            return genkit.Input((size,), torch.float32, lambda n, g: 2 * torch.rand(n, size, generator=g) - 1)

        size, context = self.mean.out_features, self.context.out_features
        inputs = {
            "normal": normal(size, distribution={"kind": "normal", "parameters": [0.0, 1.0]}),
            "mean": normal(size),
            "log_var": uniform(size),
            "context": uniform(context),
        }
        return [genkit.Graph("posterior", PosteriorGraph(self), inputs, ("z",), {"context": (-1.0, 1.0)})]


class PosteriorGraph(nn.Module):
    """Standard normal noise ``(B, D)`` and the encoder's outputs -> a sample z ``(B, D)`` of q(z|x)."""

    def __init__(self, encoder: FlowMLPEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, normal: Tensor, mean: Tensor, log_var: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        return (self.encoder.transform(context)(mean + (0.5 * log_var).exp() * normal),)


class FlowPrior(genkit.Prior):
    r"""A normalizing flow: :math:`z = f(\epsilon)` with :math:`\epsilon \sim \mathcal N(0, I)`.

    Each of its transforms is a monotonic function of every element, whose parameters depend on other elements.

    Args:
        spec: latents ``(D,)``.
        kind: of the functions. ``spline``: rational-quadratic on [-5, 5] and the identity beyond (Durkan et al. 2019,
            arXiv:1906.04032). ``affine``: scale and shift (Dinh et al. 2017, arXiv:1605.08803; Papamakarios et al.
            2017, arXiv:1705.07057).
        coupling: the parameters of one half of the elements depend on the other half, and those on nothing; sampling
            takes two passes. False: they depend on all elements before, and it takes D passes.
        transforms: the number of them, in alternating order.
        hidden: units of the masked layers of each transform.
        bins: of a spline.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        kind: Literal["spline", "affine"] = "spline",
        coupling: bool = True,
        transforms: Width = 3,
        hidden: tuple[Width, ...] = (64, 64),
        bins: Annotated[int, Ge(2)] = 8,
    ) -> None:
        super().__init__()
        size = _size(spec, "the prior 'zuko_flow'")
        self.transform = MAF(  # from z to the noise
            size,
            transforms=transforms,
            passes=2 if coupling else size,
            univariate=MonotonicRQSTransform if kind == "spline" else MonotonicAffineTransform,
            shapes=[(bins,), (bins,), (bins - 1,)] if kind == "spline" else [(), ()],
            hidden_features=hidden,
        ).transform
        self.register_buffer("loc", torch.zeros(size), persistent=False)
        self.register_buffer("scale", torch.ones(size), persistent=False)

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        """The same for every condition."""
        return Flow(self.noise()["normal"], self.transform().inv)

    def noise(self) -> Mapping[str, Distribution]:
        """The standard normal."""
        return {"normal": Independent(Normal(self.loc, self.scale), 1)}

    def transport(
        self,
        *noise: Tensor,
        condition: Tensor | None = None,
        posterior: Callable[..., Distribution] | None = None,
    ) -> Tensor:
        """Noise ``(B, D)`` -> z ``(B, D)``."""
        (normal,) = noise
        z: Tensor = self.transform().inv(normal)
        return z


def _size(spec: genkit.Spec, who: str) -> int:
    if len(spec.latent_shape) != 1:
        raise genkit.InvalidOption(
            f"latent_shape = {list(spec.latent_shape)}: {who} takes vectors; "
            f"set latent_shape to [{math.prod(spec.latent_shape)}]"
        )
    return spec.latent_shape[0]
