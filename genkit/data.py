"""From a dataset's items to what models see, and back to what people see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from genkit.errors import DataUnavailable, InvalidComponent, PluginWarning
from genkit.interfaces import Spec
from genkit.task import Data

UNIT = (0.0, 1.0)
"""The range of x outside a model, where the model has a value range at all."""


class Transformed(Dataset[Any]):
    """A dataset whose observations are changed whenever they are read, many at a time.

    A training or test set of this class is as fast as the one inside: what is resident on a device stays there, and is
    transformed there, before it is scaled. What ``transform`` draws comes from torch's random state. So a training set
    is drawn anew in every epoch, while everything is measured on one and the same draw of the test set.

    Args:
        dataset: with items ``(x,)``, ``(x, label)`` or ``x``.
        transform: ``(B, *event_shape)`` -> the same shape, on any device.
    """

    def __init__(self, dataset: Dataset[Any], transform: Callable[[Tensor], Tensor]) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return length(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        item = self.dataset[index]
        x, *labels = [item] if isinstance(item, Tensor) else item
        return (self.transform(x.unsqueeze(0))[0], *labels)


def scale(x: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """uint8 -> float32 ``low + x / 255 * (high - low)``, or 0..255 where the range is None. Floats stay as they are."""
    if x.dtype != torch.uint8:
        return x.float()
    x = x.float()
    if value_range is None:
        return x
    low, high = value_range
    return x.div_(255).mul_(high - low).add_(low)


def from_unit(x: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """[0, 1] -> the model's range; where it is None, x as it is."""
    if value_range is None or value_range == UNIT:
        return x
    low, high = value_range
    return low + x * (high - low)


def to_unit(x: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """The model's range -> [0, 1]; where it is None, x as it is."""
    if value_range is None or value_range == UNIT:
        return x
    low, high = value_range
    return (x - low) / (high - low)


def split(items: Any) -> tuple[Tensor, Tensor | None]:
    """A collated batch of items ``(x,)``, ``(x, label)`` or ``x`` -> x and the labels, if any."""
    if isinstance(items, Tensor):
        return items, None
    x, *rest = items
    return x, rest[0] if rest else None


def length(dataset: Dataset[Any]) -> int:
    """The number of observations, at least one."""
    try:
        size = len(dataset)  # type: ignore[arg-type]  # Dataset declares no __len__; its subclasses have one
    except TypeError:
        raise InvalidComponent(
            f"the dataset {type(dataset).__name__} has no length; genkit needs one that is indexed by position",
            culprit="dataset",
        ) from None
    if size == 0:
        raise InvalidComponent(
            f"the dataset {type(dataset).__name__} is empty; it needs one observation or more", culprit="dataset"
        )
    return size


def hold_out(name: str, dataset: Dataset[Any], fraction: float | None) -> tuple[Subset[Any], Subset[Any]]:
    """A training and a test set out of one that comes undivided, each in its order; the same whenever it is asked.

    The test set is drawn once and for all, because all measurements of a model are to be of the same observations.

    Args:
        name: of the dataset, in messages.
        dataset: all observations.
        fraction: how much of them to test on. None: a tenth, which a warning says.

    Raises:
        DataUnavailable: if there are fewer than two observations.
    """
    size = length(dataset)
    if size < 2:
        raise DataUnavailable(f"{name} has one observation and no test set; two or more are needed")
    if fraction is None:
        fraction = 0.1
        warnings.warn(
            f"{name} has no test set: a tenth of it is held out to test on; say how much with dataset.test_fraction",
            PluginWarning,
            stacklevel=3,
        )
    count = min(max(round(size * fraction), 1), size - 1)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
    return Subset(dataset, sorted(order[count:])), Subset(dataset, sorted(order[:count]))


def observations(spec: Spec, data: Data, limit: int) -> Tensor:
    """Up to ``limit`` training observations ``(n, *event_shape)``, spread over the whole set, as models see them.

    For a component that starts from statistics of its data (see ``Component.prepare``).
    """
    size = length(data.train)
    n = min(limit, size)
    x, _ = take(data.train, [i * size // n for i in range(n)])
    return scale(x, spec.value_range)


def take(dataset: Dataset[Any], indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
    """The observations at ``indices``, unscaled, and their labels, if any; on the CPU."""
    if isinstance(dataset, Transformed):
        x, labels = take(dataset.dataset, indices)
        return dataset.transform(x), labels
    if type(dataset) is TensorDataset:
        return split(dataset[torch.as_tensor(indices)])
    return split(default_collate([dataset[int(i)] for i in indices]))
