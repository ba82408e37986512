"""Where batches come from: data that is resident on the device, or data that is streamed to it.

A source hands out *portions* in the order of an epoch, cheaply, and turns a portion into a ``Batch`` on the device as
part of the step. The order of an epoch, and whatever is random in an item, depend on the seed, the epoch and the
item's index alone, so that a run can be taken up in the middle of an epoch and repeats itself exactly.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from genkit.data import Transformed, length, scale, split
from genkit.errors import GenkitError, InvalidComponent
from genkit.interfaces import Batch
from genkit.random import derive, seed_all, seed_cpu, seeded
from genkit.task import Data
from genkit.training.team import ALONE, Team

_ORDER, _ITEMS = 0, 1
"""Streams of random numbers, apart from each other."""


class Portion(NamedTuple):
    """What this process gets of one batch."""

    items: Any
    """What ``Batches.load`` takes."""
    size: int
    """Observations in the whole batch, over all processes."""
    own: int
    """How many of this process's observations count."""


class Batches(Protocol):
    """A source of batches of one dataset."""

    size: int
    """Observations in an epoch."""
    batch_size: int
    """Observations in a batch, but for the last of an epoch."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Portion]:
        """The portions of an epoch's batches ``start``, ``start + every``, ..."""
        ...

    def load(self, items: Any) -> Batch:
        """The items of a portion as models see them, on the device."""
        ...

    def finish(self, x: Tensor, labels: Tensor | None) -> Batch:
        """Observations on the device, unscaled, as models see them."""
        ...


class _Shaped:
    """What both sources share: the epoch's order, and the last touch to a batch."""

    def __init__(
        self,
        data: Data,
        dataset: Dataset[Any],
        batch_size: int,
        value_range: Any,
        seed: int | None,
        device: torch.device,
        transform: Callable[[Tensor], Tensor] | None,
        team: Team,
    ) -> None:
        self.size = length(dataset)
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.event_shape = tuple(data.event_shape)
        self.classes = data.classes
        self.value_range = value_range
        self.transform = transform
        self.team = team

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """The indices of an epoch, shuffled unless the seed is None; on the CPU."""
        if self.seed is None:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(derive(self.seed, _ORDER, epoch))
        return torch.randperm(self.size, generator=generator)

    def cut(self, order: Tensor, start: int, every: int) -> Iterator[tuple[Tensor, int, int]]:
        """Of each batch: this process's indices, how many of them count, and the size over all processes."""
        for begin in range(start * self.batch_size, self.size, every * self.batch_size):
            indices = order[begin : begin + self.batch_size]
            yield *self.team.share(indices), len(indices)

    def read(self, x: Tensor, labels: Tensor | None) -> Batch:
        """Observations on the device as they are stored -> as models see them."""
        return self.finish(x if self.transform is None else self.transform(x), labels)

    def finish(self, x: Tensor, labels: Tensor | None) -> Batch:
        """Checks the shape, scales the values and keeps the labels only where the data declares classes."""
        if tuple(x.shape[1:]) != self.event_shape:
            raise InvalidComponent(
                f"the dataset gave observations of shape {list(x.shape[1:])}, but declares event_shape = "
                f"{list(self.event_shape)}; make its factory return one shape for both",
                culprit="dataset",
            )
        x = scale(x, self.value_range)
        if not self.classes:
            return Batch(x)
        if labels is None:
            raise InvalidComponent(
                f"the dataset declares classes = {self.classes}, but its items have no label; give items (x, label)",
                culprit="dataset",
            )
        return Batch(x, labels.long())


class Resident(_Shaped):
    """A ``TensorDataset``, moved to the device once as it is, gathered and converted there."""

    def __init__(self, data: Data, dataset: TensorDataset, *args: Any) -> None:
        super().__init__(data, dataset, *args)
        self.tensors = [tensor.to(self.device) for tensor in dataset.tensors[: 2 if self.classes else 1]]

    def epoch(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Portion]:
        """Index tensors on the device."""
        for indices, own, size in self.cut(self.order(epoch).to(self.device), start, every):
            yield Portion(indices, size, own)

    def load(self, items: Tensor) -> Batch:
        """Gathers the rows of these indices."""
        return self.read(*split([tensor.index_select(0, items) for tensor in self.tensors]))


class Streamed(_Shaped):
    """Any other dataset, read by worker processes, in pinned memory where the device is not the CPU."""

    def __init__(self, data: Data, dataset: Dataset[Any], *args: Any, workers: int | None) -> None:
        super().__init__(data, dataset, *args)
        self.dataset = dataset
        self.workers = min(4, os.cpu_count() or 1) if workers is None else workers

    def epoch(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Portion]:
        """Collated items on the CPU."""
        order = self.order(epoch)
        loader = DataLoader(
            _Reproducible(self.dataset, derive(self.seed or 0, _ITEMS, epoch)),
            batch_sampler=(indices.tolist() for indices, _, _ in self.cut(order, start, every)),
            num_workers=self.workers,
            pin_memory=self.device.type != "cpu",
            worker_init_fn=_leave_signals_to_the_trainer,
            generator=torch.Generator(),  # or it would draw from the training's own, once more after each resume
            collate_fn=_collate,
        )
        for items, (_, own, size) in zip(loader, self.cut(order, start, every), strict=True):
            if isinstance(items, GenkitError):
                raise items
            yield Portion(items, size, own)

    def load(self, items: Any) -> Batch:
        """Moves the items to the device."""
        x, labels = split(items)
        labels = None if labels is None else labels.to(self.device, non_blocking=True)
        return self.read(x.to(self.device, non_blocking=True), labels)


def batches_of(
    data: Data,
    dataset: Dataset[Any],
    batch_size: int,
    value_range: tuple[float, float] | None,
    seed: int | None,
    device: torch.device,
    workers: int | None,
    team: Team = ALONE,
) -> Batches:
    """The source that suits a dataset. ``seed=None``: in the dataset's own order, always the same.

    ``batch_size`` is that of a batch as a whole, which ``team`` divides.
    """
    transform = None
    if isinstance(dataset, Transformed):
        transform, dataset = dataset.transform, dataset.dataset
    if type(dataset) is TensorDataset:  # a subclass may give other items than its tensors
        return Resident(data, dataset, batch_size, value_range, seed, device, transform, team)
    return Streamed(data, dataset, batch_size, value_range, seed, device, transform, team, workers=workers)


def for_measurement(batches: Batches, seed: int, team: Team = ALONE) -> Iterator[Batch]:
    """All batches of a dataset, or this process's: each whole, in turn.

    What is random in one depends on the seed and its place alone, not on who measures.
    """
    places = range(team.rank, len(batches), team.size)
    for place, portion in zip(places, batches.epoch(0, team.rank, team.size), strict=True):
        with seeded(derive(seed, _ITEMS, place)):
            batch = batches.load(portion.items)
        yield batch


class _Reproducible(Dataset[Any]):
    """A dataset whose random transforms depend on a seed and the index, not on which process reads what before."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitems__(self, indices: list[int]) -> list[Any]:
        items = []
        seed = seed_all if torch.cuda.is_initialized() else seed_cpu  # in a reading process, a GPU never is
        with seeded(self.seed):
            for index in indices:
                seed(derive(self.seed, index))
                try:
                    items.append(self.dataset[index])
                except GenkitError as error:  # raised in a worker, it would arrive as the text of a traceback
                    return [error]
        return items


def _collate(items: list[Any]) -> Any:
    return items[0] if isinstance(items[0], GenkitError) else default_collate(items)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the trainer decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
