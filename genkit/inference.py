"""What a trained model is asked: samples, reconstructions, latent parameters, likelihoods. No gradients here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genkit.compiling import compiled, many_kernels
from genkit.data import scale, to_unit
from genkit.distributions import Delta, log_density
from genkit.errors import InvalidOption
from genkit.interfaces import Batch, divided, named, unvalidated
from genkit.latent import LatentModel, draw
from genkit.random import seeded

_CHUNK = 1000
"""Decoder evaluations at a time, which bounds the memory of large requests."""

_AT_ONCE = 2**21
"""Numbers in one tensor of observations, on a CPU, over which what surrounds the evaluation of a decoder is spread."""

_CACHED = 2**19
"""Of these, as many as a CPU's caches hold from one operation to the next."""

_WORTH_COMPILING = 2**23
"""Decoder evaluations in one request, from which on a compiler gains the seconds that it takes, even of a small one."""

_DENSITY_OPTIONS = {"cpp.use_decompose_tanh": True}
"""tanh by way of exp, in half the time on AVX2. Wrong by 2e-7 at most, and so in every digit of smaller values.

That is nothing to log p(x). To training it may be something, by way of a quotient or a sign.
"""

ACTIVE = 0.01
"""The variance over the data, of a latent's posterior mean, from which on it counts as active."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every submodule has the mode that it had."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


@contextmanager
def asking(module: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, no validation, and random numbers from ``seed`` inside the block."""
    with seeded(seed), evaluating(module), torch.no_grad(), unvalidated():
        yield


def device_of(module: nn.Module) -> torch.device:
    """Where the module lives."""
    tensor = next(module.parameters(), next(module.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def sample(model: LatentModel, n: int, *, seed: int = 0, condition: int | None = None) -> Tensor:
    """The means of p(x|z) for ``n`` latents drawn from the prior.

    Args:
        condition: the label of all of them; None: where the data has labels, each label in turn.

    Returns:
        ``(n, *event_shape)`` in [0, 1], or unscaled where the model has no value range; on the CPU.

    Raises:
        InvalidOption: for a label that the data does not have, or that the model does not look at.
    """
    classes = model.spec.classes
    if condition is not None and not 0 <= condition < classes:
        limit = f"the labels go from 0 to {classes - 1}" if classes else "this model has no labels"
        raise InvalidOption(f"condition = {condition}: {limit}")
    device = device_of(model)
    if condition is not None and classes > 1 and not _takes_labels(model, seed):
        raise InvalidOption(f"condition = {condition}: this model takes no label; leave it out")
    labels = None
    if classes:
        labels = torch.arange(n) % classes if condition is None else torch.full((n,), condition)
    pieces = []
    with asking(model, seed):
        for start in range(0, n, _CHUNK):
            size = min(_CHUNK, n - start)
            label = None if labels is None else labels[start : start + size].to(device)
            z = draw(model.prior_given(label), 1, size)
            pieces.append(to_unit(model.likelihood(z, label).mean[0], model.spec.value_range).cpu())
    return torch.cat(pieces)


def _takes_labels(model: LatentModel, seed: int) -> bool:
    """Whether one draw comes out otherwise for another label."""
    draws = []
    for label in torch.arange(2, device=device_of(model)).split(1):
        with asking(model, seed):
            z = draw(model.prior_given(label), 1, 1)
            draws.append((z, model.likelihood(z, label).mean))
    return any(not torch.equal(one, other) for one, other in zip(*draws, strict=True))


def to_batch(model: LatentModel, x: Tensor, labels: Tensor | None) -> Batch:
    """Unscaled observations as the model sees them, on its device."""
    device = device_of(model)
    condition = labels.to(device, torch.int64) if labels is not None and model.spec.classes else None
    return Batch(scale(x.to(device), model.spec.value_range), condition)


def reconstruct(model: LatentModel, x: Tensor, labels: Tensor | None = None, *, seed: int = 0) -> Tensor:
    """X -> a sample of q(z|x) -> the mean of p(x|z).

    Args:
        x: unscaled, ``(B, *event_shape)``.

    Returns:
        ``(B, *event_shape)`` as of ``sample``.
    """
    with asking(model, seed):
        step = model(to_batch(model, x, labels))
        return to_unit(step.likelihood.mean[0], model.spec.value_range).cpu()


def decode(model: LatentModel, z: Tensor, labels: Tensor | None = None, *, seed: int = 0) -> Tensor:
    """The means of p(x|z) for ``z`` ``(B, *latent_shape)``, as of ``sample``."""
    device = device_of(model)
    pieces = []
    with asking(model, seed):
        for start in range(0, len(z), _CHUNK):
            rows = slice(start, start + _CHUNK)
            label = None if labels is None else labels[rows].to(device, torch.int64)
            likelihood = model.likelihood(z[rows].to(device), label)
            pieces.append(to_unit(likelihood.mean, model.spec.value_range).cpu())
    return torch.cat(pieces)


def encode(model: LatentModel, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
    """The encoder's outputs by name, ``(B, ...)`` each, for unscaled ``x`` ``(B, *event_shape)``."""
    if model.encoder is None:
        raise InvalidOption("encoder = None: this model has no encoder, so nothing can be encoded; try `genkit sample`")
    with asking(model, 0):
        pieces = []
        for start in range(0, len(x), _CHUNK):
            rows = slice(start, start + _CHUNK)
            batch = to_batch(model, x[rows], None if labels is None else labels[rows])
            pieces.append(named(model.encoder, model.encoder(*batch), len(batch.x)))
    return {
        name: torch.cat(values).cpu()
        for name, values in zip(model.encoder.outputs, zip(*pieces, strict=True), strict=True)
    }


class Density:
    r""":math:`\log p(x|z)` in nats, up to rounding, as fast as a request of that size allows.

    Args:
        model: in evaluation mode, as whatever is asked of it here.
        evaluations: of the decoder, in the whole request. Many are worth compiling it, for the shape that comes first;
            other shapes, and what no compiler takes or finds no compiler, are evaluated as they are.
    """

    def __init__(self, model: LatentModel, evaluations: int) -> None:
        self.model = model
        self.shape: torch.Size | None = None
        self.compiled: Callable[..., Tensor] | None = None
        if evaluations >= _WORTH_COMPILING:
            self.compiled = compiled(self.evaluate, _DENSITY_OPTIONS)

    def evaluate(self, z: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
        """By torch, operator by operator, of some of the observations after another."""
        parts = divided(Batch(x, condition), _parts(len(z) * x.numel(), x.device))
        latents = z.split([len(part.x) for part in parts], 1)
        found = [
            log_density(self.model.likelihood(latent, part.condition), part.x)
            for latent, part in zip(latents, parts, strict=True)
        ]
        return torch.cat(found, 1)

    def __call__(self, z: Tensor, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``z`` ``(K, B, *latent_shape)`` and ``x`` ``(B, *event_shape)``, in the model's range -> ``(K, B)``."""
        self.shape = self.shape or z.shape
        if self.compiled is not None and z.shape == self.shape:
            try:
                with many_kernels():
                    return self.compiled(z, x, condition)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # a compiler's; if it is the model's, it is raised again
                self.compiled = None
        return self.evaluate(z, x, condition)


def log_likelihood(model: LatentModel, batch: Batch, samples: int, density: Density | None = None) -> Tensor:
    r"""The importance-weighted estimate of :math:`\log p(x)`, ``(B,)``, in nats, in the units of the value range.

    .. math:: \log \frac1K \sum_{k=1}^K \frac{p(x|z_k)\,p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    A lower bound in expectation, tight as K grows (Burda et al. 2016, arXiv:1509.00519).

    Args:
        samples: K. They are taken as many at a time as the memory holds.
        density: of the model, where this batch is one of many in a request.

    Raises:
        NotImplementedError: by a distribution that has no density.
    """
    x, condition = batch
    posterior = model.posterior(x, condition)
    prior = model.prior_given(condition)
    density = density or Density(model, 0)
    if isinstance(posterior, Delta):
        samples = 1  # they are all the same
    total = torch.full((len(x),), -torch.inf, device=x.device)
    at_once = max(1, _numbers_at_once(x.device) // x.numel())
    done = 0
    while done < samples:
        now = min(at_once, samples - done)
        try:
            z = posterior.sample((now,))
            weights = density(z, x, condition) + prior.log_prob(z) - posterior.log_prob(z)
        except torch.OutOfMemoryError:
            if now == 1:
                raise
            at_once = (now + 1) // 2
            continue
        total = torch.logaddexp(total, weights.logsumexp(0))
        done += now
    return total - math.log(samples)


def posterior_means(model: LatentModel, batch: Batch, samples: int) -> tuple[Tensor, Tensor]:
    """Two estimates of the posterior's mean, ``(B, D)`` each, D the latent's elements, with independent errors.

    Where the distribution knows its mean they are the same and exact; otherwise each is the mean of ``samples`` draws.
    """
    posterior = model.posterior(*batch)
    try:
        mean = posterior.mean.flatten(1)
    except NotImplementedError:
        one, other = (posterior.sample((samples,)).mean(0).flatten(1) for _ in range(2))
        return one, other
    return mean, mean


def variance_of_means(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """For each latent element, the variance over the data of the posterior's mean (Burda et al. 2016, section 5.2).

    The covariance of the two estimates of ``posterior_means``, so that the noise of sampled means adds nothing to it.
    """
    one, other = (torch.cat(parts).double() for parts in zip(*pairs, strict=True))
    return ((one - one.mean(0)) * (other - other.mean(0))).sum(0) / max(1, len(one) - 1)


def squared_errors(model: LatentModel, batch: Batch) -> Tensor:
    """``(B,)``: the squared error, summed over the elements, of the mean of p(x|z) for a sample z of q(z|x).

    It is measured outside of the model's value range, in [0, 1], where the model has one.
    """
    bounds = model.spec.value_range
    return (to_unit(model(batch).likelihood.mean[0], bounds) - to_unit(batch.x, bounds)).square().flatten(1).sum(1)


def _numbers_at_once(device: torch.device) -> int:
    """How many numbers one tensor may have: a small part of the memory, because there are several, and weights."""
    if device.type != "cuda":
        return _AT_ONCE
    # of all of it, not of what is free now, on which the random numbers would then depend
    return torch.cuda.get_device_properties(device).total_memory // 256


def _parts(numbers: int, device: torch.device) -> int:
    """In how many parts as many numbers are computed: a GPU is fastest with all of them."""
    return 1 if device.type == "cuda" else math.ceil(numbers / _CACHED)
