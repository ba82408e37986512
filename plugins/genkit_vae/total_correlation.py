"""The bound taken apart: how much of the divergence is information, how much dependence between the latents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor
from torch.distributions import Distribution, Independent

import genkit
from genkit_vae.losses import posterior_of


class TotalCorrelation(genkit.Loss):
    r"""The negative evidence lower bound in nats, its divergence in three parts with a weight each.

    .. math::
        -\mathbb E_q[\log p(x|z)]
        + \alpha\,\underbrace{\log \tfrac{q(z|x)}{q(z)}}_\text{mutual information}
        + \beta\,\underbrace{\log \tfrac{q(z)}{\prod_j q(z_j)}}_\text{total correlation}
        + \gamma\,\underbrace{\log \tfrac{\prod_j q(z_j)}{p(z)}}_\text{dimension-wise KL},
        \qquad q(z) = \frac1N \sum_{n=1}^N q(z|x_n)

    over the N training observations; each part is an expectation over q(z|x), estimated from samples. With all
    weights 1 it is the sampled bound. Chen, Li, Grosse & Duvenaud (2018), arXiv:1802.04942. Terms:
    ``reconstruction``, ``mutual_information``, ``total_correlation`` and ``dimension_wise_kl``, before the weights.

    Args:
        spec: not used.
        alpha, beta, gamma: the weights.
        sampling: how q(z) and its marginals are estimated from the B rows of a batch, for z of one of them.
            ``stratified``: 1/N for its own posterior, and the rest in equal shares for those of the other rows, which
            is the mean of the paper's estimator over the row that it singles out. It is unbiased before the logarithm,
            which then makes it too small, most of all the joint one: in a small batch the information comes out too
            large and the total correlation too small, even below 0. ``weighted``: 1/(N B) for each. The gradient is
            that of the paper's experiments, but the parts are far too large, by about log N for each latent.

    Raises:
        genkit.InvalidComponent: in a model without an encoder, or whose posterior does not factorise over all latents.
    """

    observations: int

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        alpha: Annotated[float, Ge(0)] = 1.0,
        beta: Annotated[float, Ge(0)] = 6.0,
        gamma: Annotated[float, Ge(0)] = 1.0,
        sampling: Literal["stratified", "weighted"] = "stratified",
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.sampling = sampling

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """Keeps N. The test set is measured against it, too, with its own posteriors standing in for the training's."""
        self.observations = len(data.train)  # type: ignore[arg-type]  # Dataset declares no __len__; genkit requires one

    def forward(self, step: genkit.Pass) -> genkit.Terms:
        """One latent sample per observation, each seen by the posteriors of the whole batch."""
        posterior = posterior_of(step, "beta_tc")
        pairs = factors(posterior).log_prob(step.z.unsqueeze(2)).flatten(3)  # (K, B, B, D): z of a row, q of another
        log_weights = self.weights(step.z).log()  # (B, B)
        log_q_given_x = posterior.log_prob(step.z)  # (K, B), as are the next three
        log_q = (pairs.sum(3) + log_weights).logsumexp(2)
        log_marginals = (pairs + log_weights.unsqueeze(2)).logsumexp(2).sum(2)
        log_p = step.prior.log_prob(step.z)
        reconstruction = -step.likelihood.log_prob(step.batch.x).mean(0)  # (B,)
        mutual_information = (log_q_given_x - log_q).mean(0)
        total_correlation = (log_q - log_marginals).mean(0)
        dimension_wise_kl = (log_marginals - log_p).mean(0)
        return genkit.Terms(
            reconstruction
            + self.alpha * mutual_information
            + self.beta * total_correlation
            + self.gamma * dimension_wise_kl,
            reconstruction=reconstruction,
            mutual_information=mutual_information,
            total_correlation=total_correlation,
            dimension_wise_kl=dimension_wise_kl,
        )

    def weights(self, z: Tensor) -> Tensor:
        """``(B, B)``: of each column's posterior in the estimate for each row."""
        rows, size = z.shape[1], self.observations
        if self.sampling == "weighted":
            return z.new_full((rows, rows), 1 / (size * rows))
        others = z.new_full((rows, rows), (size - 1) / (size * max(1, rows - 1)))
        return others.fill_diagonal_(1 / size)


def factors(posterior: Distribution) -> Any:
    """The distributions of the single latents, batch ``(B, *latent_shape)``; raises where there are none."""
    base = posterior.base_dist if isinstance(posterior, Independent) else posterior
    if base.event_shape or not posterior.event_shape:
        raise genkit.InvalidComponent(
            f"the loss 'beta_tc' needs a posterior whose latents are independent given x, and this one is "
            f"{posterior}; choose an encoder with a factorised posterior, e.g. --set encoder=gaussian_mlp"
        )
    return base
