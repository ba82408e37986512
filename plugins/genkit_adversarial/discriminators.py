"""The player that tells real from fake, its turn, and what it asks of the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

import genkit

Objective = Literal["cross_entropy", "least_squares"]
Widths = tuple[Annotated[int, Ge(1)], ...]
Rate = Annotated[float, Gt(0)]
Player = Callable[[genkit.Batch], Tensor]
"""Makes the ``(B, *shape)`` that is judged."""


class Rule(NamedTuple):
    """How a score is read.

    ``error(score, label)`` is what it costs, per observation, to give this score to what has this label, 1 (real) or
    0 (fake); ``verdict(score)`` estimates the label.
    """

    error: Callable[[Tensor, int], Tensor]
    verdict: Callable[[Tensor], Tensor]


RULES: dict[Objective, Rule] = {
    "cross_entropy": Rule(lambda score, label: functional.softplus((1 - 2 * label) * score), torch.sigmoid),
    "least_squares": Rule(lambda score, label: 0.5 * (score - label).square(), lambda score: score),
}
"""With the log-odds as the score: Goodfellow et al. (2014), arXiv:1406.2661, in nats. With the label itself as the
score: Mao et al. (2017), arXiv:1611.04076."""


class Discriminator(nn.Module):
    """Observations or latents -> one score each."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, *shape)`` -> ``(B,)``, in the precision of ``x`` also where autocast lowers it inside."""
        score: Tensor = self.net(x)
        return score.squeeze(1).to(x.dtype)


def mlp(shape: Sequence[int], widths: Widths) -> Discriminator:
    """Hidden layers of these widths, with leaky ReLUs, for any shape."""
    units = (math.prod(shape), *widths)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(units):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return Discriminator(nn.Flatten(), *layers, nn.Linear(units[-1], 1))


def conv(shape: Sequence[int], widths: Widths) -> Discriminator:
    """Convolutions to these numbers of channels that halve the sides of an image ``(C, H, W)``, with leaky ReLUs.

    Raises:
        genkit.InvalidOption: where the shape is not that of an image.
    """
    if len(shape) != 3:
        raise genkit.InvalidOption(f"loss.network = 'conv': it judges images (C, H, W), not {tuple(shape)}; take 'mlp'")
    channels = (shape[0], *widths)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), nn.LeakyReLU(0.2)]
    sides = [math.ceil(side / 2 ** len(widths)) for side in shape[1:]]
    return Discriminator(*layers, nn.Flatten(), nn.Linear(math.prod((channels[-1], *sides)), 1))


NETWORKS = {"mlp": mlp, "conv": conv}


def telling_apart(
    discriminator: Discriminator, rule: Rule, *, real: Player, fake: Player, learning_rate: float | None
) -> genkit.Turn:
    r"""The turn of the discriminator, which learns to tell ``real`` from ``fake``.

    With D the probability of being real, it minimises :math:`-\log D(x) - \log(1 - D(x'))`.

    Args:
        learning_rate: None: that of the training.
    """

    def judge(batch: genkit.Batch) -> genkit.Terms:
        with torch.no_grad():
            shown = real(batch), fake(batch)
        of_real, of_fake = (discriminator(x) for x in shown)
        return genkit.Terms(
            rule.error(of_real, 1) + rule.error(of_fake, 0), real=rule.verdict(of_real), fake=rule.verdict(of_fake)
        )

    override = {} if learning_rate is None else {"learning_rate": learning_rate}
    return genkit.Turn("discriminator", judge, list(discriminator.parameters()), override)


def deceiving(discriminator: Discriminator, rule: Rule, fake: Tensor) -> tuple[Tensor, Tensor]:
    r"""What it costs the maker of ``fake`` ``(B, *shape)`` not to be believed, and the verdicts, ``(B,)`` each.

    It is :math:`-\log D(x')` instead of :math:`\log(1 - D(x'))`, because that keeps its gradient where the
    discriminator is sure.
    """
    score = discriminator(fake)
    return rule.error(score, 1), rule.verdict(score)
