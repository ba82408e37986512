"""Convolutional encoders and decoders of images of any size from 8 x 8 on."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional

import genkit
from genkit_vae.bernoulli import LogitBernoulli
from genkit_vae.mlp import ACTIVATIONS, Activation, require_unit_range

Size = tuple[int, int]
"""Height and width."""

_STARTING = 100
"""Images whose statistics a decoder starts from; there may be millions of pixels in each."""


class GaussianConvEncoder(genkit.Encoder):
    r"""Strided convolutions to the mean and log-variance of :math:`q(z|x) = \mathcal N(\mu, \mathrm{diag}\,\sigma^2)`.

    Each convolution halves the image (rounding down) until its shorter side is below 8, doubles the channels, up to
    four times ``width``, and is followed by batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Args:
        spec: images ``(C, H, W)``, H and W of 8 or more; any latent shape, which is flattened.
        width: channels after the first convolution.
        hidden: units of a fully connected layer between the convolutions and the latent.
        activation: after each normalisation, and after the hidden layer.

    Raises:
        genkit.InvalidOption: for other event shapes.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean", "log_var")

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        width: Annotated[int, Ge(1)] = 32,
        hidden: Annotated[int, Ge(1)] = 256,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        *_, smallest = sizes = halvings(spec, "gaussian_conv")
        widths = [spec.event_shape[0], *channels(width, len(sizes) - 1)]
        self.latent_shape = spec.latent_shape
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(n, m, 4, 2, 1, bias=False), nn.BatchNorm2d(m), ACTIVATIONS[activation]())
                for n, m in pairwise(widths)
            )
        )
        self.hidden = nn.Sequential(nn.Linear(widths[-1] * math.prod(smallest), hidden), ACTIVATIONS[activation]())
        self.mean = nn.Linear(hidden, math.prod(spec.latent_shape))
        self.log_var = nn.Linear(hidden, math.prod(spec.latent_shape))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, C, H, W)`` -> mean and log-variance, ``(B, *latent_shape)`` each."""
        hidden = self.hidden(self.convolutions(x).flatten(1))
        return (
            self.mean(hidden).unflatten(1, self.latent_shape),
            self.log_var(hidden).unflatten(1, self.latent_shape),
        )

    def posterior(self, *params: Tensor) -> Distribution:
        """The factorised normal of that mean and log-variance."""
        mean, log_var = params
        return Independent(Normal(mean, (0.5 * log_var).exp()), len(self.latent_shape))


class Upsampler(nn.Module):
    """The encoder's convolutions the other way round: z ``(B, *latent_shape)`` -> ``(B, C, H, W)``, unbounded."""

    def __init__(self, spec: genkit.Spec, width: int, hidden: int, activation: Activation, decoder: str) -> None:
        super().__init__()
        smallest, *sizes = reversed(halvings(spec, decoder))
        widths = [*reversed(channels(width, len(sizes))), spec.event_shape[0]]
        self.shape = (widths[0], *smallest)
        self.hidden = nn.Sequential(nn.Linear(math.prod(spec.latent_shape), hidden), ACTIVATIONS[activation]())
        self.linear = nn.Linear(hidden, math.prod(self.shape), bias=False)
        layers: list[nn.Module] = []
        for (n, m), (rows, columns) in zip(pairwise(widths), sizes, strict=True):
            layers += [nn.BatchNorm2d(n), ACTIVATIONS[activation]()]
            layers += [nn.ConvTranspose2d(n, m, 4, 2, 1, output_padding=(rows % 2, columns % 2), bias=False)]
        self.layers = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(spec.event_shape[0], 1, 1))

    def start_at(self, mean: Tensor) -> None:
        """Lets the sigmoid of the output begin around ``mean`` ``(C,)``, in [0, 1]."""
        with torch.no_grad():
            self.bias.copy_(mean.logit(eps=1e-3)[:, None, None])

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.layers(self.linear(self.hidden(z.flatten(1))).unflatten(1, self.shape)) + self.bias
        return x


class BernoulliConvDecoder(genkit.Decoder):
    r"""Transposed convolutions to the logits of :math:`p(x|z) = \prod_i \mathrm{Bernoulli}(x_i; \sigma(\ell_i))`.

    The mirror image of the encoder 'gaussian_conv'. The log-likelihood is minus the binary cross-entropy in nats, as
    of the decoder 'bernoulli_mlp'.

    Args:
        spec: images ``(C, H, W)``, H and W of 8 or more, with the value range [0, 1]; any latent shape.
        width: channels before the last convolution.
        hidden: units of a fully connected layer between the latent and the convolutions.
        activation: after the hidden layer, and before each convolution, after a batch normalisation.

    Raises:
        genkit.InvalidOption: for other event shapes or another value range.
    """

    outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        width: Annotated[int, Ge(1)] = 32,
        hidden: Annotated[int, Ge(1)] = 256,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        require_unit_range(spec, "bernoulli_conv")
        self.upsampler = Upsampler(spec, width, hidden, activation, "bernoulli_conv")

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """Starts the output from the mean of every channel."""
        self.upsampler.start_at(genkit.observations(model.spec, data, _STARTING).mean((0, 2, 3)))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(B, *latent_shape)`` -> the logits of x, ``(B, C, H, W)``."""
        return (self.upsampler(z),)

    def likelihood(self, *params: Tensor) -> Distribution:
        """Independent pixels, white with the probability of the logit."""
        (logits,) = params
        return Independent(LogitBernoulli(logits=logits), 3)


class GaussianConvDecoder(genkit.Decoder):
    r"""Transposed convolutions to the mean of :math:`p(x|z) = \mathcal N(\mu, \sigma^2 I)`, with one learned noise.

    The mean is a sigmoid, scaled to the value range. That one :math:`\sigma`, shared by all pixels, is learned along
    with the rest balances the two terms of the bound, which otherwise takes a beta (Rybkin, Daniilidis & Levine 2021,
    arXiv:2006.13202). As there, it stays above :math:`e^{-6}` of the range.

    Args:
        spec: images ``(C, H, W)``, H and W of 8 or more, with a value range; any latent shape.
        width: channels before the last convolution.
        hidden: units of a fully connected layer between the latent and the convolutions.
        activation: after the hidden layer, and before each convolution, after a batch normalisation.

    Raises:
        genkit.InvalidOption: for other event shapes, or without a value range.
    """

    outputs: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        width: Annotated[int, Ge(1)] = 32,
        hidden: Annotated[int, Ge(1)] = 256,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if spec.value_range is None:
            raise genkit.InvalidOption(
                "value_range = None: the decoder 'gaussian_conv' ends in a sigmoid; give it a range, e.g. [0, 1]"
            )
        self.low, high = spec.value_range
        self.extent = high - self.low
        self.upsampler = Upsampler(spec, width, hidden, activation, "gaussian_conv")
        self.log_scale = nn.Parameter(torch.zeros(()))

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """Starts the mean from the mean of every channel, and the noise from the deviation of all values."""
        x = (genkit.observations(model.spec, data, _STARTING) - self.low) / self.extent
        self.upsampler.start_at(x.mean((0, 2, 3)))
        with torch.no_grad():
            self.log_scale.copy_(x.std().clamp(min=0.01).log())

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(B, *latent_shape)`` -> the mean of x, ``(B, C, H, W)``, in the value range."""
        return (self.low + self.extent * self.upsampler(z).sigmoid(),)

    def likelihood(self, *params: Tensor) -> Distribution:
        """The normal of that mean and of the learned scale."""
        (mean,) = params
        return Independent(Normal(mean, self.scale), 3)

    @property
    def scale(self) -> Tensor:
        r""":math:`\sigma`, in the units of the value range; a softplus keeps it from vanishing."""
        return self.extent * (functional.softplus(self.log_scale + 6) - 6).exp()


def halvings(spec: genkit.Spec, component: str) -> list[Size]:
    """(H, W) and its halves, rounded down, until the shorter side is below 8.

    Raises:
        genkit.InvalidOption: where it is so from the start, or where there are no such sides.
    """
    if len(spec.event_shape) != 3 or min(spec.event_shape[1:]) < 8:
        raise genkit.InvalidOption(
            f"event_shape = {list(spec.event_shape)}: {component!r} needs images [C, H, W] with H and W of 8 or more; "
            "choose one of the mlp components"
        )
    _, height, width = spec.event_shape
    sizes = [(height, width)]
    while min(sizes[-1]) >= 8:
        height, width = sizes[-1]
        sizes.append((height // 2, width // 2))
    return sizes


def channels(width: int, stages: int) -> list[int]:
    """``width``, doubled at every stage, but no more than four times."""
    return [width * min(2**stage, 4) for stage in range(stages)]
