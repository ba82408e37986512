"""The vector-quantised autoencoder: an encoder to codes, a decoder that owns their vectors, and the loss of the two.

van den Oord, Vinyals & Kavukcuoglu (2017), "Neural Discrete Representation Learning", arXiv:1711.00937.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent

import genkit
from genkit_vq.codebook import Codebook, CodebookDecoder, codebook_decoder


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width, H, W)`` -> the same shape."""
        out: Tensor = x + self.body(x)
        return out


class VQConvEncoder(genkit.Encoder):
    """Strided convolutions and residual blocks to one vector a cell of the grid, and the nearest code of each.

    q(codes|x) is a point mass.

    Args:
        spec: images ``(C, H, W)``, and a grid of codes that is smaller by a power of two.
        width: channels at the grid's resolution; half as many above it.
        blocks: residual blocks.
    """

    outputs: ClassVar[tuple[str, ...]] = ("codes", "vectors")
    codebook: Codebook

    def __init__(self, spec: genkit.Spec, *, width: Annotated[int, Ge(2)] = 32, blocks: Annotated[int, Ge(0)] = 1):
        super().__init__()
        self.grid = len(spec.latent_shape)
        self.width = width
        halvings = [
            layer
            for narrow, wide in pairwise(_widths(spec, width))
            for layer in (nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.ReLU())
        ]
        residuals = [Residual(width) for _ in range(blocks)]
        self.net = nn.Sequential(*halvings, nn.Conv2d(width, width, 3, padding=1), *residuals, nn.ReLU())
        self.net.apply(_keep_variance)

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """Shares the decoder's codebook, whose dimension the vectors get."""
        self.codebook = codebook_decoder(model).codebook
        self.vectors = nn.Conv2d(self.width, self.codebook.vectors.shape[1], 1)
        self.vectors.apply(_keep_variance)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``x`` ``(B, C, H, W)`` -> codes, int64 ``(B, *latent_shape)``, and vectors, ``(B, D, *latent_shape)``."""
        vectors = self.vectors(self.net(x))
        return self.codebook.nearest(vectors), vectors

    def posterior(self, *params: Tensor) -> Distribution:
        """The point mass at the codes."""
        codes, _ = params
        return genkit.Delta(codes, self.grid, log_density=0.0)


class VQConvDecoder(CodebookDecoder):
    r"""The codes' vectors, residual blocks and transposed convolutions to the logits of
    :math:`p(x|z) = \prod_i \mathrm{Bernoulli}(x_i)`.

    Args:
        spec: images ``(C, H, W)`` of the value range [0, 1], and a grid of codes that is smaller by a power of two.
        codes: K.
        dimension: of the codes' vectors, D.
        width: channels at the grid's resolution; half as many above it.
        blocks: residual blocks.
    """

    outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        codes: Annotated[int, Ge(2)] = 64,
        dimension: Annotated[int, Ge(1)] = 32,
        width: Annotated[int, Ge(2)] = 32,
        blocks: Annotated[int, Ge(0)] = 1,
    ) -> None:
        super().__init__()
        if spec.value_range != (0.0, 1.0):
            raise genkit.InvalidOption(
                f"value_range = {spec.value_range}: the decoder 'vq_conv' gives Bernoulli probabilities; "
                "--set value_range=[0,1]"
            )
        self.codebook = Codebook(codes, dimension)
        residuals = [Residual(width) for _ in range(blocks)]
        doublings = [
            layer
            for wide, narrow in pairwise(reversed(_widths(spec, width)))
            for layer in (nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
        ]
        self.net = nn.Sequential(nn.Conv2d(dimension, width, 3, padding=1), *residuals, *doublings)

    def decode_vectors(self, vectors: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``vectors`` ``(B, D, *latent_shape)`` -> logits ``(B, *event_shape)``."""
        return (self.net(vectors),)

    def likelihood(self, *params: Tensor) -> Distribution:
        """The Bernoulli distributions of those logits.

        A grey value counts as the probability of white: its log-likelihood is the mean over such binarizations.
        """
        (logits,) = params
        return Independent(Bernoulli(logits=logits), 3)


class VQ(genkit.Loss):
    r"""Two turns, in nats per observation. The autoencoder's, with :math:`v` of the encoder and :math:`e` its code:

    .. math:: -\log p(x|e) + \beta \sum_{\text{grid}} \|v - \mathrm{sg}(e)\|^2

    whose gradient with respect to e is given to v (straight through), while the codebook follows the encoder by
    moving averages; and the prior's, :math:`-\log p(\text{codes})` of the codes as they are. The posterior being a
    point mass, the two likelihoods make a lower bound of :math:`\log p(x)`. ``perplexity`` is the exponential of the
    entropy of a batch's codes: how many are in use.

    Args:
        spec: any.
        commitment: beta.
        decay: gamma of the codebook's moving averages.
        revival: the part of the codes' mean use below which a code is put elsewhere; see ``Codebook.update``.
    """

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        commitment: Annotated[float, Ge(0)] = 0.25,
        decay: Annotated[float, Ge(0), Le(1)] = 0.99,
        revival: Annotated[float, Ge(0), Le(1)] = 0.01,
    ) -> None:
        super().__init__()
        self.commitment = commitment
        self.decay = decay
        self.revival = revival

    def turns(self, model: genkit.LatentModel) -> Sequence[genkit.Turn]:
        """The autoencoder's, then the prior's.

        Raises:
            InvalidComponent: where the encoder or the decoder is not one of codes.
        """
        decoder, encoder = codebook_decoder(model), model.encoder
        codebook = decoder.codebook
        if encoder is None or encoder.outputs != ("codes", "vectors"):
            raise genkit.InvalidComponent(
                "the loss 'vector_quantized' needs an encoder whose outputs are codes and vectors; take the encoder "
                "'vq_conv'"
            )

        def autoencoder(batch: genkit.Batch) -> genkit.Terms:
            codes, vectors = encoder(*batch)
            quantised = codebook.lookup(codes)
            straight_through = vectors + (quantised - vectors).detach()
            likelihood = decoder.likelihood(*decoder.decode_vectors(straight_through, batch.condition))
            reconstruction = -likelihood.log_prob(batch.x)
            commitment = (vectors - quantised).square().flatten(1).sum(1)
            perplexity = Categorical(probs=codebook.usage(codes)).entropy().exp()
            if self.training:
                codebook.update(vectors, codes, self.decay, self.revival)
            return genkit.Terms(
                reconstruction + self.commitment * commitment,
                reconstruction=reconstruction,
                commitment=commitment,
                perplexity=perplexity,
            )

        def codes_alone(batch: genkit.Batch) -> genkit.Terms:
            with torch.no_grad():
                codes, _ = encoder(*batch)
            return genkit.Terms(-model.prior_given(batch.condition).log_prob(codes))

        return [
            genkit.Turn("autoencoder", autoencoder, [*encoder.parameters(), *decoder.parameters()]),
            genkit.Turn("prior", codes_alone, list(model.prior.parameters())),
        ]


def _keep_variance(module: nn.Module) -> None:
    """The initial weights of He et al. (2015, arXiv:1502.01852). With smaller ones all vectors get the same code."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _widths(spec: genkit.Spec, width: int) -> list[int]:
    """Channels at every resolution from the image down to the grid of codes.

    Raises:
        InvalidOption: where the two are not a power of two apart.
    """
    if len(spec.event_shape) == 3 and len(spec.latent_shape) == 2:
        channels, height, breadth = spec.event_shape
        factor = height // spec.latent_shape[0]
        halvings = factor.bit_length() - 1
        if halvings >= 1 and (height, breadth) == tuple(side << halvings for side in spec.latent_shape):
            return [channels, *[width // 2] * (halvings - 1), width]
    raise genkit.InvalidOption(
        f"latent_shape = {list(spec.latent_shape)}: 'vq_conv' makes of an image {list(spec.event_shape)} a grid that "
        "is smaller by 2, 4, 8, ... in both directions, e.g. [7, 7] for [1, 28, 28]"
    )
