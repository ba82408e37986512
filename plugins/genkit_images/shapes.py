"""Drawn discs, squares and triangles in colour: a dataset that needs no file and no network."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor
from torch.utils.data import TensorDataset

import genkit

_CHUNK = 100
"""Images drawn at a time: as many as the processor's cache holds."""

_NORMALS = 2 * math.pi * torch.tensor([[0.0] * 4, [0, 1 / 4, 2 / 4, 3 / 4], [0, 1 / 3, 2 / 3, 2 / 3]])
"""Directions of the sides: a disc has none, a square four, a triangle three, of which the last is there twice."""

_APOTHEMS = torch.tensor([1.0, math.cos(math.pi / 4), math.cos(math.pi / 3)])
"""How far from the centre the sides of the same shapes are, or the disc's edge, where the corners' radius is 1."""


def shapes(
    *,
    size: Annotated[int, Ge(8), Le(256)] = 32,
    train_size: Annotated[int, Ge(1)] = 20_000,
    test_size: Annotated[int, Ge(1)] = 2_000,
    seed: Annotated[int, Ge(0), Lt(2**62)] = 0,
) -> genkit.Data:
    """uint8 images of shape (n, 3, size, size) of one shape each, and int64 labels: 0 disc, 1 square, 2 triangle.

    Bright on dark, with antialiased edges: kind, position, radius (of the circumscribed circle), tilt, colour and
    background are independent of each other. The same seed gives the same images; a larger set begins with those of a
    smaller one.

    Args:
        size: of an image, in pixels.
        train_size: how many to train on.
        test_size: how many to test on.
        seed: of all that is drawn.
    """
    sets = []
    for number, count in enumerate((train_size, test_size)):
        generator = torch.Generator().manual_seed(2 * seed + number)
        chances = torch.rand(count, 11, generator=generator)
        pieces = [draw(chunk, size) for chunk in chances.split(_CHUNK)]
        sets.append(TensorDataset(*(torch.cat(column) for column in zip(*pieces, strict=True))))
    return genkit.Data(sets[0], sets[1], event_shape=(3, size, size), classes=3)


def draw(chances: Tensor, size: int) -> tuple[Tensor, Tensor]:
    r"""Eleven uniform numbers an image, ``(n, 11)`` -> the images ``(n, 3, size, size)`` and their labels ``(n,)``.

    With :math:`d` the signed distance of a pixel's centre from the edge, in pixels, :math:`\min(\max(1/2 - d, 0), 1)`
    of the pixel is covered. Of a polygon, :math:`d = \max_k n_k \cdot p - a` over the normals of its sides.
    """
    kind = (chances[:, 0] * 3).long()
    radius = size * (0.2 + 0.2 * chances[:, 1:2])
    centre = radius + (size - 2 * radius) * chances[:, 2:4]
    tilt = math.pi / 3 * (chances[:, 4:5] - 0.5)  # less than what brings a polygon back to itself
    background = 0.4 * chances[:, 5:8]
    colour = chances[:, 8:11] / chances[:, 8:11].amax(1, keepdim=True)

    middles = torch.arange(size) + 0.5
    x, y = ((middles - c).unsqueeze(1) for c in centre.split(1, 1))  # (n, 1, size) each
    normals = (tilt + _NORMALS[kind]).unsqueeze(2)  # (n, 4, 1)
    polygon = ((normals.cos() * x).unsqueeze(2) + (normals.sin() * y).unsqueeze(3)).amax(1)  # (n, size, size)
    disc = (x.square() + y.mT.square()).sqrt()
    edge = (radius[:, 0] * _APOTHEMS[kind])[:, None, None]
    distance = torch.where(kind[:, None, None] == 0, disc, polygon) - edge
    cover = (0.5 - distance).clamp(0, 1).unsqueeze(1)

    background, colour = (255 * c[..., None, None] for c in (background, colour))
    return torch.lerp(background, colour, cover).round_().byte(), kind
