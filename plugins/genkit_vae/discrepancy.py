"""An autoencoder whose codes as a whole, not each by itself, are held against the prior."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

import genkit
from genkit_vae.losses import SquaredError, posterior_of


class MaximumMeanDiscrepancy(genkit.Loss):
    r""":math:`\|x - \mathbb E[x|z]\|^2 + \lambda\,\mathrm{MMD}^2(q(z), p(z))`, the Wasserstein autoencoder's loss.

    Tolstikhin, Bousquet, Gelly & Schoelkopf (2018), arXiv:1711.01558. The discrepancy is the unbiased estimate from one
    latent an observation and as many draws from the prior; it can be negative. It is one value for the whole batch,
    and 0 for a batch of one, in which there is nothing to compare. A test set whose neighbours are alike (in MNIST's
    they are by the same writer) has a larger one than the shuffled training set. Terms: ``squared_error`` and ``mmd``.

    Args:
        spec: of any latent shape; the kernel's scales expect a prior of unit variance.
        weight: of the discrepancy. 200 is what the authors train MNIST with: their code takes 0.05 of the squared
            error and 10 of the discrepancy.

    Raises:
        genkit.InvalidComponent: in a model without an encoder.
    """

    def __init__(self, spec: genkit.Spec, *, weight: Annotated[float, Ge(0)] = 200.0) -> None:
        super().__init__()
        self.weight = weight
        self.error = SquaredError()

    def forward(self, step: genkit.Pass) -> genkit.Terms:
        """One latent sample per observation, and one of the prior."""
        posterior_of(step, "wae_mmd")
        (z,) = step.z  # (B, *latent)
        draws = step.prior.sample(torch.Size(() if step.prior.batch_shape else z.shape[:1]))
        squared_error = self.error(step).objective  # (B,)
        mmd = squared_discrepancy(z.flatten(1), draws.flatten(1))  # ()
        return genkit.Terms(squared_error + self.weight * mmd, squared_error=squared_error, mmd=mmd)


def squared_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    r"""The unbiased estimate of :math:`\mathrm{MMD}^2` from ``a`` and ``b``, ``(B, D)`` each; 0 for B = 1.

    .. math:: \frac{1}{B (B-1)} \sum_{i \ne j} k(a_i, a_j) + k(b_i, b_j) - \frac{2}{B^2} \sum_{i, j} k(a_i, b_j)
    """
    rows = len(a)
    if rows == 1:
        return a.new_zeros(())
    within = sum(kernel(c, c).fill_diagonal_(0).sum() for c in (a, b)) / (rows * (rows - 1))
    return within - 2 * kernel(a, b).mean()


def kernel(a: Tensor, b: Tensor) -> Tensor:
    r"""Inverse multiquadratics of seven scales: :math:`\sum_s \frac{2 D s}{2 D s + \|a_i - b_j\|^2}`, ``(B, B)``.

    2 D is the mean squared distance of two draws from a standard normal distribution.
    """
    distance = (a.unsqueeze(1) - b).square().sum(2)
    widths = [2 * a.shape[1] * scale for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
    return torch.stack([width / (width + distance) for width in widths]).sum(0)
