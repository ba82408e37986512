"""Two interleaved half circles in the plane."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Generator, Tensor
from torch.utils.data import TensorDataset

import genkit


def two_moons(
    *,
    train: Annotated[int, Ge(1)] = 20_000,
    test: Annotated[int, Ge(1)] = 5_000,
    noise: Annotated[float, Ge(0)] = 0.1,
    seed: Annotated[int, Ge(0)] = 0,
) -> genkit.Data:
    r"""Points :math:`(\cos\phi, \sin\phi)` and :math:`(1 - \cos\phi, \tfrac12 - \sin\phi)`, with normal noise.

    :math:`\phi` is uniform on :math:`[0, \pi]`, and either moon is as likely as the other. float32 of shape (n, 2), of
    mean (1/2, 1/4).

    Args:
        train: points of the training set.
        test: points of the test set, which do not depend on ``train``.
        noise: standard deviation of the noise.
        seed: of the points, which have a random state of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    test_set, train_set = (TensorDataset(_points(n, noise, generator)) for n in (test, train))
    return genkit.Data(train_set, test_set, event_shape=(2,))


def _points(n: int, noise: float, generator: Generator) -> Tensor:
    angle = math.pi * torch.rand(n, generator=generator)
    moons = torch.where(
        torch.rand(n, 1, generator=generator) < 0.5,
        torch.stack([angle.cos(), angle.sin()], dim=1),
        torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1),
    )
    return moons + noise * torch.randn(n, 2, generator=generator)
