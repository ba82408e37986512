"""Decoders without a density: noise goes in, an observation comes out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar

from annotated_types import Ge, MinLen
from torch import Tensor, nn
from torch.distributions import Distribution

import genkit


class Generator(genkit.Decoder):
    """A network from flat noise to observations, with a tanh scaled to the value range behind it, if there is one.

    Args:
        spec: any latent shape, which is flattened.
        net: ``(B, n)`` -> ``(B, *event_shape)``, where n is the number of latent dimensions.
    """

    outputs: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, spec: genkit.Spec, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.value_range = spec.value_range
        self.event_dims = len(spec.event_shape)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` ``(B, *latent_shape)`` -> x, ``(B, *event_shape)``."""
        x: Tensor = self.net(z.flatten(1))
        if self.value_range is not None:
            low, high = self.value_range
            x = (low + high) / 2 + (high - low) / 2 * x.tanh()
        return (x,)

    def likelihood(self, *params: Tensor) -> Distribution:
        """The point mass at x: an implicit model, which can be drawn from and has no density."""
        (x,) = params
        return genkit.Delta(x, self.event_dims)


def generator_mlp(spec: genkit.Spec, *, hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 512)) -> Generator:
    """Hidden layers with batch normalisation and ReLU.

    Args:
        spec: any event and latent shape.
        hidden: units of each hidden layer.
    """
    units = (math.prod(spec.latent_shape), *hidden)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(units):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    out = nn.Linear(units[-1], math.prod(spec.event_shape))
    return Generator(spec, nn.Sequential(*layers, out, nn.Unflatten(1, spec.event_shape)))


def generator_conv(
    spec: genkit.Spec, *, channels: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (64, 32)
) -> Generator:
    """A small image out of the noise by a linear map, then transposed convolutions that double its sides.

    Batch normalisation and ReLU stand before each of them (Radford, Metz & Chintala 2016, arXiv:1511.06434).

    Args:
        spec: an event shape ``(C, H, W)`` and any latent shape.
        channels: of the small image and of each larger one before the last, which has C. H and W are divisible by 2
            to the power of their number.

    Raises:
        genkit.InvalidOption: where the events are not such images.
    """
    factor = 2 ** len(channels)
    if len(spec.event_shape) != 3 or any(side % factor for side in spec.event_shape[1:]):
        raise genkit.InvalidOption(
            f"decoder.channels = {list(channels)}: {len(channels)} doublings make images (C, H, W) with H and W "
            f"divisible by {factor}, not events {spec.event_shape}; give another number of channels, or take "
            "'generator_mlp'"
        )
    depth, height, width = spec.event_shape
    small = (channels[0], height // factor, width // factor)
    layers: list[nn.Module] = [
        nn.Linear(math.prod(spec.latent_shape), math.prod(small), bias=False),
        nn.Unflatten(1, small),
    ]
    for inputs, outputs in pairwise((*channels, depth)):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
    return Generator(spec, nn.Sequential(*layers))
