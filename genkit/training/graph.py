"""Steps recorded once and replayed: everything that a step does on the device, without the Python that said so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

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
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def ready(self, step: int, taken: int) -> bool:
        """Three steps make what is made once: the optimisers' states, kernels, workspaces."""
        return taken >= 3

    def aside(self) -> AbstractContextManager[None]:
        """Another stream than the default one, as the recording will be; torch makes its handles and plans there."""
        return _Aside(self.stream)

    def record(self, work: Callable[[], None]) -> Replay:
        """Torch registers its random generator with the graph, which then draws what eager operations would draw.

        Recordings share their memory: nothing in it is needed from one replay to the next.
        """
        graph = torch.cuda.CUDAGraph()
        # readers of streamed data pin memory in a thread of theirs, which is no part of the recording
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
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


class _Recording(NamedTuple):
    """Consecutive steps as one, and where each of them looks for its portion and its learning rates."""

    replay: Replay
    items: list[list[Tensor]]
    rates: list[list[Tensor]]


class GraphStep:
    """The steps of ``inner``, replayed as soon as the recorder is ready.

    Those before are steps like all others. So are those of partial batches, which are never recorded. What a step does
    on the device must not depend on what changes in Python between steps; learning rates are tensors for this reason.

    Args:
        inner: made to be recorded.
        recorder: of the device.
        otherwise: called with the reason where the step cannot be recorded and ``inner`` goes on by itself; None: that
            is an error.
        at_once: steps in one replay. They are put off until there are as many, or ``flush`` is called.
    """

    def __init__(
        self,
        inner: EagerStep,
        recorder: Recorder,
        otherwise: Callable[[str], None] | None = None,
        at_once: int = 1,
    ) -> None:
        self.inner, self.recorder, self.otherwise, self.at_once = inner, recorder, otherwise, at_once
        self.optimizers, self.autocast = inner.optimizers, inner.autocast
        self.taken = 0
        self.waiting: list[tuple[Portion, int]] = []
        self.recordable = True
        """Until it turned out otherwise."""
        self.recordings: dict[int, _Recording] = {}
        """By the number of steps in it."""

    def active(self) -> AbstractContextManager[None]:
        """What has to be in force while steps are taken."""
        return self.inner.active()

    def __call__(self, portion: Portion, step: int) -> None:
        """Takes step number ``step`` (from 0), or puts it off."""
        whole = portion.size == self.inner.batches.batch_size
        if whole and self.recordable and self.recorder.ready(step, self.taken):
            self.waiting.append((portion, step))
            if len(self.waiting) == self.at_once:
                self.flush()
            return
        self.flush()
        self.taken += whole
        with self.recorder.aside() if self.recordable else nullcontext():
            self.inner(portion, step)

    def flush(self) -> None:
        """Takes the steps that were put off."""
        waiting, self.waiting = self.waiting, []
        if len(waiting) == self.at_once:
            self.take(waiting)
        else:
            for one in waiting:
                self.take([one])

    def take(self, steps: Sequence[tuple[Portion, int]]) -> None:
        """Replays ``steps``, after recording them where no so many have been recorded before."""
        if self.recordable and len(steps) not in self.recordings:
            self.record([portion for portion, _ in steps])
        if not self.recordable:
            for portion, step in steps:
                self.inner(portion, step)
            return
        recording = self.recordings[len(steps)]
        for (portion, step), items, rates in zip(steps, recording.items, recording.rates, strict=True):
            for place, given in zip(items, _tensors(portion.items), strict=True):
                place.copy_(given, non_blocking=True)
            for place, rate in zip(rates, self.inner.rates(step), strict=True):
                place.fill_(rate)
        recording.replay()
        for portion, step in steps:
            self.inner.meter.advance(step + 1, portion.size)

    def record(self, portions: Sequence[Portion]) -> None:
        """Records as many steps, on items that are put where those of ``portions`` were put."""
        device = self.inner.meter.sums.device
        inputs = [
            tree_map_only(Tensor, lambda tensor: tensor.to(device, copy=True), portion.items) for portion in portions
        ]
        rates = [[torch.tensor(rate, device=device) for rate in self.inner.rates(0)] for _ in portions]

        def work() -> None:
            for portion, items, values in zip(portions, inputs, rates, strict=True):
                self.inner.set_rates(values)
                self.inner.work(portion._replace(items=items))

        try:
            replay = self.recorder.record(work)
        except GenkitError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            if self.otherwise is None:
                raise InvalidOption(
                    f"step = {self.inner.options.step!r}: a step of this model cannot be recorded ({reason}); "
                    "use --step eager or compiled"
                ) from error
            self.recordable = False
            self.recordings.clear()
            self.otherwise(f"a step cannot be recorded as a CUDA graph ({reason}); training goes on without")
        else:
            self.recordings[len(portions)] = _Recording(replay, [_tensors(items) for items in inputs], rates)


def _tensors(items: Any) -> list[Tensor]:
    if isinstance(items, Tensor):  # most often; what follows takes longer than a kernel
        return [items]
    return [leaf for leaf in tree_leaves(items) if isinstance(leaf, Tensor)]
