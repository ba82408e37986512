"""The two seams: what the trainer consumes (``Task`` of ``Turn``) and what an exporter consumes (``Graph``).

Neither mentions encoders, priors or any kind of model, so a VAE, a GAN and a normalising flow are all the same to
the code on the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL.Image import Image

    from genkit.interfaces import Batch, Terms


class Data(NamedTuple):
    """What a dataset factory returns.

    The items of both sets are ``(x,)``, ``(x, label)`` or ``x``, with ``x`` of shape ``event_shape``: uint8, which
    becomes ``low + x / 255 * (high - low)`` of the recipe's value range, or float, which is taken as it is.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    event_shape: tuple[int, ...]
    classes: int = 0


@dataclass(frozen=True)
class Turn:
    """One optimiser's share of a step: an objective, and the parameters that it may move.

    Args:
        name: unique within the model; it prefixes the metrics of models that take several turns.
        terms: the objective and the named terms of one batch.
        parameters: the trainable parameters of this turn. Its backward pass reaches these and no others.
        optimizer: overrides of the training options for this turn: ``optimizer``, ``learning_rate``, and any keyword
            of the optimiser itself, such as ``betas``.
    """

    name: str
    terms: Callable[[Batch], Terms]
    parameters: Sequence[nn.Parameter]
    optimizer: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> Terms:
        return self.terms(batch)


@dataclass(frozen=True)
class Input:
    """One named input of a graph.

    Args:
        shape: without the batch dimension.
        dtype: of the tensor fed.
        draw: ``draw(n, generator)`` gives ``n`` realistic values, of shape ``(n, *shape)``, on the CPU.
        distribution: how those who deploy the graph draw it with numpy, or None where numpy cannot:
            ``{"kind": "normal", "parameters": [0.0, 1.0]}`` is ``numpy.random.Generator.normal(0.0, 1.0, size)``;
            the kinds are ``genkit.DRAWN``.
        calibration: as ``draw``, of all that the graph is given in use, where that is more than ``draw`` gives: a
            decoder's latents are those of posteriors as well. For reduced precision.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    draw: Callable[[int, Generator], Tensor]
    distribution: Mapping[str, Any] | None = None
    calibration: Callable[[int, Generator], Tensor] | None = None


@dataclass(frozen=True)
class Graph:
    """One exportable function: tensors in, a tuple of tensors out, nothing random inside.

    Args:
        name: the name of the exported file, without its ending.
        module: called with the inputs by position; returns the outputs as a tuple.
        inputs: by name, in the order of ``module.forward``.
        outputs: the names of what ``module`` returns, in order.
        ranges: for inputs and outputs whose values are bounded, ``(low, high)``; for the reader of the manifest.
        layouts: for inputs and outputs that are images, their dimensions: ``"NCHW"``; likewise.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NoGraph:
    """A graph that this model cannot offer, and why: said in the manifest, not skipped."""

    name: str
    reason: str


@dataclass(frozen=True)
class Task:
    """A model to train.

    Args:
        module: everything that moves to the device, is saved and is resumed.
        turns: called after placement, because sharding replaces parameters.
        graphs: what can be exported, of the module as it is when this is called.
        data: the training and the test set.
        value_range: what uint8 data is scaled to; None leaves 0..255 as float.
        pictures: by folder name, functions that draw the present state of the model for a person to look at. They
            run with a fixed random state of their own.
    """

    module: nn.Module
    turns: Callable[[], Sequence[Turn]]
    graphs: Callable[[], Sequence[Graph | NoGraph]]
    data: Data
    value_range: tuple[float, float] | None = (0.0, 1.0)
    pictures: Mapping[str, Callable[[], Image]] = field(default_factory=dict)
