"""What ``torch.distributions`` does not have."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints

from genkit.errors import NoDensity


class Delta(Distribution):
    r"""The point mass at ``value``: a deterministic encoder's posterior, or the likelihood of a model without one.

    Args:
        value: ``(*batch_shape, *event_shape)``, of any dtype. Samples carry its gradient.
        event_dims: how many of its last dimensions make up one event.
        log_density: of ``value`` itself, in nats. 0 is right where events are discrete, and where two point masses
            cancel, as in a model whose decoder undoes its encoder. None: there is no density.
    """

    arg_constraints = {}  # noqa: RUF012  (as the base class declares it)

    def __init__(self, value: Tensor, event_dims: int, log_density: float | None = None) -> None:
        self.value = value
        self.log_density = log_density
        lead = value.dim() - event_dims
        super().__init__(value.shape[:lead], value.shape[lead:], validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # a class attribute there; here it depends on the dtype
        """Whether samples carry gradients."""
        return self.value.is_floating_point()

    @property
    def support(self) -> Any:
        """Any tensor, as far as checks go."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """The value."""
        return self.value

    @property
    def mode(self) -> Tensor:
        """The value."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same value for every element of a larger batch."""
        shape = torch.Size(batch_shape) + self.event_shape
        return type(self)(self.value.expand(shape), len(self.event_shape), self.log_density)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The value, ``(*sample_shape, *batch_shape, *event_shape)``."""
        return self.value.expand(torch.Size(sample_shape) + self.value.shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The value without its gradient."""
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """``log_density`` where ``value`` is the value, and minus infinity elsewhere.

        Raises:
            NoDensity: where there is none.
        """
        if self.log_density is None:
            raise NoDensity("a point mass over continuous values has no density")
        same = value == self.value  # with the larger batch of the two
        same = same.flatten(same.dim() - len(self.event_shape)).all(-1)
        return torch.where(same, self.log_density, -torch.inf)


def log_density(distribution: Distribution, value: Tensor) -> Tensor:
    r"""``distribution.log_prob(value)`` in nats, up to rounding, in few passes over memory where that is possible.

    A normal distribution with one standard deviation for all its elements needs nothing but a distance:

    .. math:: \log \mathcal N(x; \mu, \sigma^2 I) = -\frac{\|x - \mu\|^2}{2 \sigma^2} - D \log(\sqrt{2 \pi}\,\sigma)

    Its ``log_prob`` makes a dozen passes over the ``(K, B, *event_shape)`` numbers of the means of images, and takes
    longer than the decoder that computes them.

    Args:
        value: ``(*batch, *event_shape)``, for a batch that broadcasts against that of the distribution.

    Raises:
        NotImplementedError: where there is no density.
    """
    if isinstance(distribution, Independent) and type(distribution.base_dist) is Normal:
        normal, dims = distribution.base_dist, distribution.reinterpreted_batch_ndims
        if dims and not any(normal.scale.stride()):  # one number, expanded
            sigma = normal.scale[(0,) * normal.scale.dim()]
            distance = (value - normal.loc).square_().flatten(-dims).sum(-1)
            elements = math.prod(distribution.event_shape)
            return distance / (-2 * sigma.square()) - elements * (sigma.log() + 0.5 * math.log(2 * math.pi))
    density: Tensor = distribution.log_prob(value)
    return density
