"""A distribution over grids of codes, one code after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, constraints
from torch.nn import functional

import genkit
from genkit_vq.codebook import codebook_decoder


class GatedLayer(nn.Module):
    """One layer of a gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328), gated by a linear unit.

    A vertical stack has seen the rows above a cell, and a horizontal one also what is left of it in its row. There are
    no masks: the stacks begin with codes shifted down and right, and every convolution ends at its cell.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        reach = kernel // 2
        self.above, self.left = (reach, reach, reach, 0), (reach, 0, 0, 0)
        self.vertical = nn.Conv2d(width, 2 * width, (reach + 1, kernel))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, reach + 1))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        """Both ``(B, width, H, W)``, before and after."""
        above = self.vertical(functional.pad(vertical, self.above))
        here = self.horizontal(functional.pad(horizontal, self.left)) + self.link(above)
        return functional.glu(above, 1), horizontal + self.out(functional.glu(here, 1))


class GatedPixelCNN(nn.Module):
    """Codes ``(B, H, W)`` -> logits ``(B, H, W, K)``, each of them a function of the codes before it in raster order.

    The first rows of a grid can be given alone: nothing depends on the rows below.
    """

    def __init__(self, shape: tuple[int, int], codes: int, width: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.place = nn.Parameter(torch.zeros(width, *shape))
        self.layers = nn.ModuleList(GatedLayer(width, kernel) for _ in range(layers))
        self.logits = nn.Linear(width, codes)

    def forward(self, codes: Tensor) -> Tensor:
        """``(B, H, W)`` -> ``(B, H, W, K)``."""
        embedded, place = self.embedding(codes).movedim(-1, 1), self.place[:, : codes.shape[1]]
        vertical = functional.pad(embedded, (0, 0, 1, -1)) + place
        horizontal = functional.pad(embedded, (1, -1)) + place
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal)
        logits: Tensor = self.logits(horizontal.movedim(1, -1).relu())
        return logits


class Autoregressive(Distribution):
    r""":math:`p(c) = \prod_i p(c_i | c_{<i})` over grids of codes in raster order, with batch ``()``.

    Args:
        logits: codes ``(N, H, W)``, or their first rows, -> the logits of every factor, ``(N, H, W, K)``.
        shape: ``(H, W)``.
        device: of samples.
    """

    arg_constraints = {}  # noqa: RUF012  (as the base class declares it)

    def __init__(self, logits: Callable[[Tensor], Tensor], shape: Sequence[int], device: torch.device) -> None:
        self.logits = logits
        self.device = device
        super().__init__(event_shape=torch.Size(shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Whole numbers from 0, as far as checks go."""
        return constraints.independent(constraints.nonnegative_integer, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Codes ``(*lead, H, W)`` -> nats ``(*lead)``."""
        codes = value.reshape(-1, *self.event_shape)
        each = Categorical(logits=self.logits(codes)).log_prob(codes)
        total: Tensor = each.flatten(1).sum(1).reshape(value.shape[: -len(self.event_shape)])
        return total

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Int64 ``(*sample_shape, H, W)``, code by code."""
        lead = torch.Size(sample_shape)
        height, width = self.event_shape
        codes = torch.zeros(math.prod(lead), height, width, dtype=torch.int64, device=self.device)
        for i in range(height):
            for j in range(width):
                codes[:, i, j] = Categorical(logits=self.logits(codes[:, : i + 1])[:, i, j]).sample()
        return codes.reshape(lead + self.event_shape)


class AutoregressiveCodes(genkit.Prior):
    """A gated PixelCNN over a grid of codes, the prior of van den Oord et al. (2017, arXiv:1711.00937).

    Args:
        spec: a latent of two dimensions.
        codes: K, as the decoder has it.
        width: channels.
        layers: each sees ``kernel // 2`` cells further.
        kernel: side of the square whose upper half a convolution sees; odd.
    """

    def __init__(
        self,
        spec: genkit.Spec,
        *,
        codes: Annotated[int, Ge(2)] = 64,
        width: Annotated[int, Ge(1)] = 32,
        layers: Annotated[int, Ge(1)] = 3,
        kernel: Annotated[int, Ge(3)] = 5,
    ) -> None:
        super().__init__()
        if len(spec.latent_shape) != 2:
            raise genkit.InvalidOption(
                f"latent_shape = {list(spec.latent_shape)}: the prior 'autoregressive_codes' is of grids; give it two "
                "dimensions, e.g. [7, 7]"
            )
        if kernel % 2 == 0:
            raise genkit.InvalidOption(f"prior.kernel = {kernel}: a square around a cell has an odd side, e.g. 3 or 5")
        height, breadth = spec.latent_shape
        self.codes = codes
        self.shape = (height, breadth)
        self.net = GatedPixelCNN(self.shape, codes, width, layers, kernel)

    def prepare(self, model: genkit.LatentModel, data: genkit.Data) -> None:
        """Raises ``InvalidOption`` where the decoder has another number of codes."""
        codes = len(codebook_decoder(model).codebook.vectors)
        if codes != self.codes:
            raise genkit.InvalidOption(
                f"prior.codes = {self.codes}: the decoder's codebook has {codes}; --set prior.codes={codes}"
            )

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        """The same for every condition."""
        return Autoregressive(self.net, self.shape, self.net.place.device)

    def graphs(self, spec: genkit.Spec) -> Sequence[genkit.Graph | genkit.NoGraph]:
        """None: a sample takes as many evaluations as there are codes."""
        return [genkit.NoGraph("prior", "autoregressive: each code is drawn given the codes before it")]
