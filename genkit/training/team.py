"""The processes that train one model together, as ``torchrun`` starts them; mostly there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from genkit.errors import GenkitError, InvalidOption, ProcessLost, SaidElsewhere
from genkit.training.shared import SharedSum, shared_sum

T = TypeVar("T")

_PATIENCE = timedelta(minutes=30)
"""How long one process waits for another, which may be fetching a dataset."""
_OF_THE_NETWORK = ("closed by peer", "reset by peer", "gloo", "Gloo", "NCCL", "Broken pipe")
"""What errors of collectives say where the other side is gone; gloo has no class of errors for it."""
_OF_THE_MACHINE = (ConnectionError, TimeoutError)
"""Errors of the connections within one machine."""
_SHARDED = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)
"""Modules whose parameters are used in their own ``forward`` alone, so that sharding can gather them there."""
_WORTH_SHARDING = 2**14
"""Numbers in a module from which on its parameters are sharded; smaller ones cost more to gather than to keep."""


@dataclass(frozen=True)
class Team:
    """One process's place among ``size``. With one, nothing here costs or changes anything.

    A batch is divided among the processes, and what they make of it is put together again: the gradients of a turn in
    one all-reduce, the metrics when they are read. Every process has to call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1
    shared_sum: SharedSum | None = None
    """The way of gradients on a CPU, where one machine has all the processes."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, indices: Tensor) -> tuple[Tensor, int]:
        """The part of a batch that is this process's, and how many of these observations count.

        Where there are fewer observations than processes, some get one that does not count: collectives need everybody.
        """
        if self.size == 1:
            return indices, len(indices)
        own = indices.tensor_split(self.size)[self.rank]
        return (own, len(own)) if len(own) else (indices[:1], 0)

    def average(self, gradients: Sequence[nn.Parameter], states: Sequence[Tensor] = (), share: float = 1.0) -> None:
        """The means over the processes: of the gradients, and of ``states`` weighted with this process's ``share``.

        Sharded parameters have been averaged by then. A parameter that got no gradient here gets that of the others,
        where they have one.
        """
        if self.size == 1:
            return
        from torch.distributed.tensor import DTensor

        own = [p for p in gradients if not isinstance(p, DTensor)]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        parts += [state * share for state in states]
        if not parts:
            return
        present = torch.tensor([float(p.grad is not None) for p in own], device=parts[0].device)
        flat = torch.cat([*(part.detach().flatten().float() for part in parts), present])
        if self.shared_sum and flat.device.type == "cpu":
            self._collective(self.shared_sum, flat)
        else:
            self._all_reduce(flat)
        flat /= self.size
        means = flat.split([*(part.numel() for part in parts), len(own)])
        somewhere = [True] * len(own) if all(p.grad is not None for p in own) else means[-1].tolist()
        for parameter, mean, found in zip(own, means, somewhere, strict=False):
            parameter.grad = mean.view_as(parameter).to(parameter.dtype) if found else None
        for state, mean in zip(states, means[len(own) :], strict=False):
            state.copy_(mean.view_as(state))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def min(self, values: Tensor) -> Tensor:
        """The least of the processes, element by element."""
        return self._reduced(values, distributed.ReduceOp.MIN)

    def greatest(self, number: int) -> int:
        """The greatest of the processes' numbers."""
        if self.size == 1:
            return number
        return int(self._reduced(torch.tensor(number), distributed.ReduceOp.MAX))

    def gather(self, value: T) -> list[T]:
        """What each process has, in order, for all of them."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            self._collective(distributed.all_gather_object, values, value)
        return values

    def once(self, function: Callable[[], T]) -> T:
        """What ``function`` gives in the process that leads; it is called there alone.

        Raises:
            SaidElsewhere: in the others, where it raised a ``GenkitError`` in the one that leads.
        """
        if self.size == 1:
            return function()
        made: Any = None
        if self.leads:
            try:
                made = function()
            except GenkitError as error:
                self._broadcast(SaidElsewhere(error.status))
                raise
        made = self._broadcast(made)
        if isinstance(made, SaidElsewhere):
            raise made
        return made  # type: ignore[no-any-return]  # what crosses processes has lost its type

    @contextmanager
    def one_after_another(self) -> Iterator[None]:
        """The first process of each machine goes first, so that it fetches for the others what is kept on the disk."""
        first = self.size == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
        if not first:
            self.gather(None)
        yield
        if first:
            self.gather(None)

    def shard(self, module: nn.Module, device: torch.device) -> None:
        """Divides the large layers of ``module`` among the processes (FSDP2). Before optimisers are made."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.size,))
        for layer in [m for m in module.modules() if isinstance(m, _SHARDED)]:
            if sum(p.numel() for p in layer.parameters(recurse=False)) >= _WORTH_SHARDING:
                fully_shard(layer, mesh=mesh)

    @contextmanager
    def using(self) -> Iterator[None]:
        """Says of a block in which a sharded layer is used in a way that sharding does not allow what to do instead.

        Raises:
            InvalidOption: where the block computed with weights that are not gathered.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or "DTensor" not in str(error):
                raise
            raise InvalidOption(
                "sharded = True: the weights of a large layer are used elsewhere than in its own forward, where they "
                f"are not gathered ({str(error).strip().splitlines()[0]}); train this model with training.sharded=false"
            ) from error

    def whole(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values of which those that are sharded are put together."""
        if self.size == 1:
            return tensors
        from torch.distributed.tensor import DTensor

        return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}

    def divided(self, tensor: Tensor, own: Tensor) -> Tensor:
        """A tensor that is the same everywhere, sharded as ``own`` is, where ``own`` is sharded and of its shape."""
        if self.size == 1:
            return tensor
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(own, DTensor) or own.shape != tensor.shape:
            return tensor
        return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)

    def held(self, tensor: Tensor) -> Tensor:
        """What of a tensor lies in this process."""
        if self.size == 1:
            return tensor
        from torch.distributed.tensor import DTensor

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def start_alike(self, module: nn.Module) -> None:
        """Gives every process the weights and buffers of the first."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                self._collective(distributed.broadcast, tensor.detach(), 0)

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        if self.size == 1:
            return values
        reduced = values.clone()
        self._all_reduce(reduced, operation)
        return reduced

    def _all_reduce(self, values: Tensor, operation: Any = distributed.ReduceOp.SUM) -> None:
        self._collective(distributed.all_reduce, values, operation)

    def _broadcast(self, value: Any) -> Any:
        values = [value]
        self._collective(distributed.broadcast_object_list, values, 0)
        return values[0]

    def _collective(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except (RuntimeError, *_OF_THE_MACHINE) as error:
            if self.lost_another(error):
                raise self.alone_now(error) from error
            raise

    def lost_another(self, error: Exception) -> bool:
        """Whether an error is that of a process that waited for another in vain."""
        if self.size == 1:
            return False
        return isinstance(error, _OF_THE_MACHINE) or any(word in str(error) for word in _OF_THE_NETWORK)

    def alone_now(self, error: Exception) -> ProcessLost:
        """What such a process has to say."""
        return ProcessLost(
            f"process {self.rank} of {self.size}: another process of this run has ended, and it cannot go on alone "
            f"({str(error).strip().splitlines()[0]}). The last checkpoint is kept: start them all again with --resume"
        )


ALONE = Team()


def launched() -> bool:
    """Whether ``torchrun`` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[Team]:
    """The team that this process belongs to, by the variables that ``torchrun`` sets.

    Raises:
        InvalidOption: where a machine with GPUs has fewer of them than it was given processes.
    """
    if not launched():
        yield ALONE
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ["LOCAL_RANK"])
    if gpus:
        if local >= gpus:
            raise InvalidOption(f"--nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine has {gpus} GPUs")
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)
    team = Team(distributed.get_rank(), distributed.get_world_size())
    try:
        if not gpus and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            team = replace(team, shared_sum=shared_sum(team, _PATIENCE.total_seconds()))
        yield team
        if not gpus:
            # A thread of gloo lets go of the tensors of the last collective when it comes to it. Where sharded layers
            # keep the group, and its threads, that may be while Python ends, which aborts. Here the others are waited
            # for once more, without tensors, which gives it the time.
            with suppress(RuntimeError):  # the others may have failed
                distributed.barrier()
    finally:
        if team.shared_sum:
            team.shared_sum.close()
        distributed.destroy_process_group()
