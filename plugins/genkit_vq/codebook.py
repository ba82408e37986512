"""The codebook: vectors that stand for codes, how they follow the encoder's outputs, and the decoders that own one."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

import genkit

_EPSILON = 1e-5
"""Of the Laplace smoothing of cluster sizes."""
_INITIAL_SIZE = 0.01
"""Little enough that one batch moves a code to its vectors."""


class Codebook(nn.Module):
    r"""K vectors :math:`e_i` of D dimensions. It is moved by averages instead of gradients, so it holds buffers alone.

    Throughout, vectors are ``(B, D, *grid)`` and codes int64 ``(B, *grid)`` in [0, K).

    Args:
        codes: K.
        dimension: D.
    """

    vectors: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(self, codes: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.randn(codes, dimension))
        self.register_buffer("sizes", torch.full((codes,), _INITIAL_SIZE))
        self.register_buffer("sums", _INITIAL_SIZE * self.vectors)

    def nearest(self, vectors: Tensor) -> Tensor:
        r""":math:`\arg\min_i \|v - e_i\|^2` for every vector. The term :math:`\|v\|^2` is the same for all i."""
        products = vectors.detach().movedim(1, -1) @ self.vectors.T  # (B, *grid, K)
        return (self.vectors.square().sum(1) - 2 * products).argmin(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors of the codes."""
        return functional.embedding(codes, self.vectors).movedim(-1, 1)

    def usage(self, codes: Tensor) -> Tensor:
        """How often each code occurs, ``(K,)``."""
        return self._one_hot(codes).sum(0)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor, decay: float, revival: float = 0.0) -> None:
        r"""One step of the moving averages (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1):

        .. math::
            N_i \leftarrow \gamma N_i + (1 - \gamma) n_i, \quad
            m_i \leftarrow \gamma m_i + (1 - \gamma) \sum_j v_{i,j}, \quad
            e_i = m_i / \hat N_i

        with the :math:`n_i` vectors :math:`v_{i,j}` whose code is i, and
        :math:`\hat N_i = \frac{N_i + \epsilon}{\sum_k N_k + K\epsilon} \sum_k N_k`, which is never zero.

        Args:
            vectors: of the encoder.
            codes: the nearest code of each.
            decay: :math:`\gamma`.
            revival: a code whose N is below this fraction of the mean begins anew at one of ``vectors``, drawn with a
                probability that is proportional to its squared error, as k-means++ does (Arthur & Vassilvitskii 2007).
        """
        with torch.autocast(self.vectors.device.type, enabled=False):  # sums of thousands of terms need float32
            rows = vectors.to(self.vectors.dtype).movedim(1, -1).flatten(0, -2)
            member = self._one_hot(codes)
            self.sizes.lerp_(member.sum(0), 1 - decay)
            self.sums.lerp_(member.T @ rows, 1 - decay)
            total = self.sizes.sum()
            smoothed = (self.sizes + _EPSILON) / (total + len(self.sizes) * _EPSILON) * total
            self.vectors.copy_(self.sums / smoothed[:, None])
            if revival:
                self._revive(rows, member @ self.vectors, revival)

    def _revive(self, rows: Tensor, quantised: Tensor, revival: float) -> None:
        least = revival * self.sizes.mean()
        dead = self.sizes < least
        errors = (rows - quantised).square().sum(1)
        # The largest of errors / exponential noise are a draw without replacement. It waits for no device, and what is
        # not finite passes through it to the loss, where it is noticed.
        order = (errors / torch.empty_like(errors).exponential_()).argsort(descending=True)
        drawn = rows[order[(dead.cumsum(0) - 1) % len(rows)]]
        self.vectors.copy_(torch.where(dead[:, None], drawn, self.vectors))
        self.sizes.copy_(torch.where(dead, least, self.sizes))
        self.sums.copy_(torch.where(dead[:, None], drawn * least, self.sums))

    def _one_hot(self, codes: Tensor) -> Tensor:
        return functional.one_hot(codes.flatten(), len(self.vectors)).to(self.vectors.dtype)


class CodebookDecoder(genkit.Decoder):
    """Codes -> their vectors -> the parameters of p(x|codes)."""

    codebook: Codebook

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """``z`` int64 ``(B, *latent_shape)`` in [0, K)."""
        return self.decode_vectors(self.codebook.lookup(z), condition)

    @abstractmethod
    def decode_vectors(self, vectors: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """As ``forward`` for vectors ``(B, D, *latent_shape)``, which carry gradients where codes cannot."""


def codebook_decoder(model: genkit.LatentModel) -> CodebookDecoder:
    """The model's decoder, whose codebook the other components share.

    Raises:
        InvalidComponent: for a decoder without one.
    """
    if not isinstance(model.decoder, CodebookDecoder):
        raise genkit.InvalidComponent(
            f"the decoder {type(model.decoder).__name__} has no codebook, which the encoder, the prior and the loss of "
            "a model of codes need; take one that is a CodebookDecoder, such as 'vq_conv'"
        )
    return model.decoder
