"""Steps recorded once and replayed: everything that a step does on the device, without the Python that said so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from genkit.errors import GenkitError, InvalidOption
from genkit.training.batches import Portion
from genkit.training.step import EagerStep

Replay = Callable[[], None]


class Recorder(Protocol):
    """What records work on a device."""

    def ready(self, step: int, taken: int) -> bool:
        """Whether step number ``step`` (from 0) can be recorded, ``taken`` whole batches after the start or resume."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Where work is done that is to be recorded later."""
        ...

    def record(self, work: Callable[[], None]) -> Replay:
        """Notes the operations of ``work``, without effect; gives what carries them out on the same memory."""
        ...


class CUDARecorder:
    """A CUDA graph."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def ready(self, step: int, taken: int) -> bool:
        """Three steps make what is made once: the optimisers' states, kernels, workspaces."""
        return taken >= 3

    def aside(self) -> AbstractContextManager[None]:
        """Another stream than the default one, as the recording will be; torch makes its handles and plans there."""
        return _Aside(self.stream)

    def record(self, work: Callable[[], None]) -> Replay:
        """Torch registers its random generator with the graph, which then draws what eager operations would draw."""
        graph = torch.cuda.CUDAGraph()
        # readers of streamed data pin memory in a thread of theirs, which is no part of the recording
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        replay: Replay = graph.replay
        return replay


class _Aside:
    """A block on ``stream`` that begins after, and ends before, what is on the present one."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.block = stream, torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        self.block.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.block.__exit__(*exception)
        torch.cuda.current_stream().wait_stream(self.stream)


class GraphStep:
    """The steps of ``inner``, replayed as soon as the recorder is ready.

    Those before are steps like all others. So are those of partial batches, which are never recorded. What a step does
    on the device must not depend on what changes in Python between steps; learning rates are tensors for this reason.

    Args:
        inner: made to be recorded.
        recorder: of the device.
        otherwise: called with the reason where the step cannot be recorded and ``inner`` goes on by itself; None: that
            is an error.
    """

    def __init__(self, inner: EagerStep, recorder: Recorder, otherwise: Callable[[str], None] | None = None) -> None:
        self.inner, self.recorder, self.otherwise = inner, recorder, otherwise
        self.optimizers, self.autocast = inner.optimizers, inner.autocast
        self.taken = 0
        self.slots: list[Tensor] = []
        """Where the recorded step finds its portion; empty until one was recorded, or could not be."""
        self.replay: Replay | None = None

    def active(self) -> AbstractContextManager[None]:
        """What has to be in force while steps are taken."""
        return self.inner.active()

    def __call__(self, portion: Portion, step: int) -> None:
        """Takes step number ``step`` (from 0)."""
        whole = portion.size == self.inner.batches.batch_size
        if not whole or (not self.slots and not self.recorder.ready(step, self.taken)):
            self.taken += whole
            with self.recorder.aside():
                self.inner(portion, step)
            return
        if not self.slots:
            self.replay = self.recorded(portion)
        if self.replay is None:
            self.inner(portion, step)
            return
        self.inner.schedule(step)
        for own, given in zip(self.slots, _tensors(portion.items), strict=True):
            own.copy_(given, non_blocking=True)
        self.replay()
        self.inner.meter.advance(step + 1, portion.size)

    def recorded(self, portion: Portion) -> Replay | None:
        """A step on items that are put where those of ``portion`` were put, or None where it cannot be recorded."""
        device = self.inner.meter.sums.device
        items = tree_map_only(Tensor, lambda tensor: tensor.to(device, copy=True), portion.items)
        self.slots = _tensors(items)
        try:
            return self.recorder.record(lambda: self.inner.work(portion._replace(items=items)))
        except GenkitError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            if self.otherwise is None:
                raise InvalidOption(
                    f"step = {self.inner.options.step!r}: a step of this model cannot be recorded ({reason}); "
                    "use --step eager or compiled"
                ) from error
            self.otherwise(f"a step cannot be recorded as a CUDA graph ({reason}); training goes on without")
            return None


def _tensors(items: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(items) if isinstance(leaf, Tensor)]
