"""From a dataset's items to what models see, and back to what people see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from genkit.errors import InvalidComponent
from genkit.task import Data

UNIT = (0.0, 1.0)
"""The range of x outside a model, where the model has a value range at all."""


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
            f"the dataset {type(dataset).__name__} has no length; genkit needs one that is indexed by position"
        ) from None
    if size == 0:
        raise InvalidComponent(f"the dataset {type(dataset).__name__} is empty; it needs one observation or more")
    return size


def observe(data: Data, dataset: Dataset[Any], indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
    """As ``take``, with the data's transform applied. It draws from torch's random state."""
    x, labels = take(dataset, indices)
    return x if data.transform is None else data.transform(x), labels


def take(dataset: Dataset[Any], indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
    """The observations at ``indices``, unscaled, and their labels, if any; on the CPU."""
    if type(dataset) is TensorDataset:
        return split(dataset[torch.as_tensor(indices)])
    return split(default_collate([dataset[int(i)] for i in indices]))
