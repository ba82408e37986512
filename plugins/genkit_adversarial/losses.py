"""Losses that own a discriminator, and are played in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

import genkit
from genkit_adversarial.discriminators import NETWORKS, RULES, Objective, Rate, Widths, deceiving, mlp, telling_apart


class Adversarial(genkit.Loss):
    """A discriminator of observations, and a generator that learns from it alone.

    Goodfellow et al. (2014), arXiv:1406.2661, with the generator loss that does not saturate; least squares: Mao et al.
    (2017), arXiv:1611.04076. It uses the likelihood's mean, so the decoder needs no density.

    Args:
        spec: any event shape for ``mlp``; images ``(C, H, W)`` for ``conv``.
        objective: of both players.
        network: of the discriminator.
        widths: the units of its hidden layers, or the channels of its convolutions, each of which halves the image.
        discriminator_learning_rate: where it is not that of the training (Heusel et al. 2017, arXiv:1706.08500).
    """

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        objective: Objective = "cross_entropy",
        network: Literal["mlp", "conv"] = "mlp",
        widths: Widths = (256, 256),
        discriminator_learning_rate: Rate | None = None,
    ) -> None:
        super().__init__()
        self.rule = RULES[objective]
        self.discriminator_learning_rate = discriminator_learning_rate
        self.discriminator = NETWORKS[network](spec.event_shape, widths)

    def turns(self, model: genkit.LatentModel) -> Sequence[genkit.Turn]:
        """``discriminator``, then ``generator``, which moves the decoder and the prior."""
        if model.encoder is not None:
            raise genkit.InvalidComponent(
                "the loss 'generative_adversarial' has nothing to teach an encoder; set encoder=null, or take "
                "'latent_adversarial'"
            )

        def generated(batch: genkit.Batch) -> Tensor:
            mean: Tensor = model(batch).likelihood.mean[0]
            return mean

        def forge(batch: genkit.Batch) -> genkit.Terms:
            error, verdict = deceiving(self.discriminator, self.rule, generated(batch))
            return genkit.Terms(error, fake=verdict)

        return [
            telling_apart(
                self.discriminator,
                self.rule,
                real=lambda batch: batch.x,
                fake=generated,
                learning_rate=self.discriminator_learning_rate,
            ),
            genkit.Turn("generator", forge, list(model.parameters())),
        ]


class AdversarialLatent(genkit.Loss):
    r"""An autoencoder of squared errors, whose latents a discriminator compares with draws from the prior.

    .. math:: \sum_i (x_i - \mathbb E[x_i|z])^2 - \lambda \log D(z)

    Makhzani et al. (2016), arXiv:1511.05644. In place of the divergence of each posterior from the prior, the
    aggregate :math:`\mathbb E_{p(x)}\,q(z|x)` is drawn to the prior, of which only samples are needed. The two aims of
    the encoder are weighed in one objective, as by Tolstikhin et al. (2018), arXiv:1711.01558: in a turn of its own,
    an adaptive optimiser makes steps of the same size of a gradient that vanishes, and the game finds no end.

    Args:
        spec: any event and latent shape.
        objective: of the discriminator and of the encoder when it plays against it.
        widths: units of the discriminator's hidden layers.
        weight: lambda. The higher, the nearer the latents are to the prior, and the coarser the reconstructions.
        discriminator_learning_rate: where it is not that of the training.
    """

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        objective: Objective = "cross_entropy",
        widths: Widths = (256, 256),
        weight: Annotated[float, Ge(0)] = 10.0,
        discriminator_learning_rate: Rate | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.discriminator_learning_rate = discriminator_learning_rate
        self.rule = RULES[objective]
        self.discriminator = mlp(spec.latent_shape, widths)

    def turns(self, model: genkit.LatentModel) -> Sequence[genkit.Turn]:
        """``autoencoder`` moves the encoder and the decoder, then ``discriminator``."""
        if model.encoder is None:
            raise genkit.InvalidComponent("the loss 'latent_adversarial' needs a posterior; give the recipe an encoder")

        def reconstruct(batch: genkit.Batch) -> genkit.Terms:
            step = model(batch)
            mean = step.likelihood.mean[0]
            error = functional.mse_loss(mean, batch.x, reduction="none").flatten(1).sum(1)
            disbelief, verdict = deceiving(self.discriminator, self.rule, step.z[0])
            return genkit.Terms(error + self.weight * disbelief, reconstruction=error, fake=verdict)

        def prior(batch: genkit.Batch) -> Tensor:
            distribution = model.prior_given(batch.condition)
            return distribution.sample(() if distribution.batch_shape else (len(batch.x),))

        return [
            genkit.Turn("autoencoder", reconstruct, [*model.encoder.parameters(), *model.decoder.parameters()]),
            telling_apart(
                self.discriminator,
                self.rule,
                real=prior,
                fake=lambda batch: model.posterior(*batch).rsample(),
                learning_rate=self.discriminator_learning_rate,
            ),
        ]
