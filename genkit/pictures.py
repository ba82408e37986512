"""Pictures for a person to look at: grids of images, scatters of points, rows of anything else, and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from genkit.data import length, scale, take, to_unit
from genkit.errors import InvalidOption
from genkit.inference import reconstruct, sample
from genkit.latent import LatentModel
from genkit.random import seeded
from genkit.task import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Picture = Callable[[], "Image"]
"""Draws something as it is now."""

_COLUMNS = 8
_MINIMUM_WIDTH = 480
"""Pixels; smaller grids are enlarged by a whole factor, so that digits can be seen."""


def of(model: LatentModel, data: Data) -> Mapping[str, Picture]:
    """The pictures of a latent-variable model, by folder name."""
    pictures: dict[str, Picture] = {"samples": lambda: samples(model, 64)}
    if model.encoder is not None:
        pictures["reconstructions"] = lambda: reconstructions(model, data, 32)
    return pictures


def picture(*groups: ArrayLike) -> Image:
    """Draws observations: images as a grid, points as a scatter, anything else as rows of colours.

    >>> genkit.picture(model.sample(16))
    >>> genkit.picture(x, model.reconstruct(x))

    Args:
        groups: arrays of one shape ``(n, *event_shape)``; corresponding observations are drawn one above the other.
            Images are ``(1 or 3, H, W)`` or ``(H, W)``, uint8 or floats in [0, 1].

    Raises:
        InvalidOption: for arrays of different shapes, or none.
    """
    tensors = [torch.as_tensor(group) for group in groups]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) != 1 or len(shapes[0]) < 2:
        raise InvalidOption(f"picture: arrays of shapes {shapes}; it takes one or more, all of one shape (n, ...)")
    return draw_rows([t / 255 if t.dtype == torch.uint8 else t.float() for t in tensors])


def samples(model: LatentModel, n: int, *, seed: int = 0, condition: int | None = None) -> Image:
    """``n`` draws from the prior, decoded."""
    return draw_rows([sample(model, n, seed=seed, condition=condition)])


def reconstructions(model: LatentModel, data: Data, n: int, *, seed: int = 0) -> Image:
    """The first ``n`` test observations, over their reconstructions."""
    with seeded(seed):
        x, labels = take(data.test, range(min(n, length(data.test))))
    originals = to_unit(scale(x, model.spec.value_range), model.spec.value_range)
    return draw_rows([originals, reconstruct(model, x, labels, seed=seed)])


def draw_rows(groups: Sequence[Tensor]) -> Image:
    """Corresponding observations of every group, one above the other.

    Args:
        groups: tensors of one shape ``(N, *event_shape)``: images ``(1 or 3, H, W)`` or ``(H, W)`` with values in
            [0, 1], points ``(2,)``, or anything else, which is drawn as one row of colours an observation.
    """
    event = groups[0].shape[1:]
    if event == (2,):
        return _scatter(groups)
    if len(event) == 2:
        return draw_rows([group.unsqueeze(1) for group in groups])
    if len(event) == 3 and event[0] in (1, 3):
        return _grid(groups)
    return _heat_map(groups)


def loss_curves(metrics: Sequence[Mapping[str, Any]]) -> Image:
    """Every term over the epochs, for the training and the test set."""
    figure = _figure(9, 4.5)
    names = list(metrics[-1]["train"])
    axes = figure.subplots(1, min(2, len(names)), squeeze=False)[0]
    for axis, group in zip(axes, (names[:1], names[1:]), strict=False):
        for i, name in enumerate(group):
            for part, style in (("train", "-"), ("test", "--")):
                points = [(m["epoch"], m[part][name]) for m in metrics if m.get(part, {}).get(name) is not None]
                if points:
                    marker = "o" if len(points) == 1 else ""
                    axis.plot(*zip(*points, strict=True), style, marker=marker, color=f"C{i}", label=f"{name}, {part}")
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("per observation")
    return _rendered(figure)


def _grid(groups: Sequence[Tensor]) -> Image:
    from PIL import Image
    from torchvision.utils import make_grid

    rows = [group[i : i + _COLUMNS] for i in range(0, len(groups[0]), _COLUMNS) for group in groups]
    blank = rows[0].new_ones(1, *rows[0].shape[1:])
    full = [torch.cat([row, blank.expand(_COLUMNS - len(row), -1, -1, -1)]) for row in rows]
    columns = _COLUMNS if len(groups[0]) >= _COLUMNS else len(groups[0])
    images = torch.cat([row[:columns] for row in full]).float().nan_to_num(0).clamp(0, 1)
    grid = make_grid(images, nrow=columns, padding=2, pad_value=1.0)
    picture = Image.fromarray(grid.mul(255).round().byte().permute(1, 2, 0).numpy())
    factor = max(1, -(-_MINIMUM_WIDTH // picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _scatter(groups: Sequence[Tensor]) -> Image:
    figure = _figure(5, 5)
    axis = figure.subplots()
    for group, label in zip(groups, ("original", "model")[-len(groups) :], strict=True):
        axis.scatter(group[:, 0].numpy(), group[:, 1].numpy(), s=8, alpha=0.7, label=label)
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend()
    return _rendered(figure)


def _heat_map(groups: Sequence[Tensor]) -> Image:
    figure = _figure(8, 5)
    for axis, group, label in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups, ("original", "model")[-len(groups) :], strict=True
    ):
        mesh = axis.imshow(group.flatten(1).numpy(), aspect="auto", interpolation="nearest")
        axis.set(xlabel="dimension", ylabel="observation", title=label)
        figure.colorbar(mesh, ax=axis)
    return _rendered(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _rendered(figure: Figure) -> Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
