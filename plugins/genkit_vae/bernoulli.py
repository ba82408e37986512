"""The Bernoulli distribution, with a density that costs little to evaluate and to differentiate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli


class LogitBernoulli(Bernoulli):
    r"""``Bernoulli(logits=...)``, for decoders whose density is asked of every pixel of every latent sample.

    .. math:: \log p(x) = x\,\ell - \max(\ell, 0) + \log \sigma(|\ell|)

    It is minus the binary cross-entropy, finite for every logit. torch's own takes a ``log1p`` for each pixel, which on
    a CPU takes longer than the decoder's products.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, elementwise; ``value`` may be grey."""
        log_prob: Tensor = _LogProb.apply(*torch.broadcast_tensors(self.logits, value))
        return log_prob


class _LogProb(torch.autograd.Function):
    """Of logits and values of one shape. Its derivative needs one pass, where that of its formula needs eight."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        return logits.abs().sigmoid_().log_().addcmul_(logits, value).sub_(logits.relu())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, value = ctx.saved_tensors
        of_value = gradient * logits if ctx.needs_input_grad[1] else None
        return gradient * (value - logits.sigmoid()), of_value
