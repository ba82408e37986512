"""Training loops that do the same work, each in a process of its own, which stands still while another one is measured.

A loop is a module with ``run(work, ended)``, which trains for ever and calls ``ended`` after each epoch. So everybody's
trainer runs as it would by itself, with its own settings of torch, and none is begun anew for each epoch. It can be
halted anywhere, and ``time.perf_counter`` in its process does not count that time.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from genkit.errors import GenkitError

BATCH = 128
RATE = 1e-3


@dataclass(frozen=True)
class Work:
    """What is trained on: the first ``images`` of MNIST. ``options`` are of the one loop, ``folder`` is its own."""

    device: str
    images: int
    folder: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.images // BATCH)

    def read(self) -> Tensor:
        """uint8, (images, 1, 28, 28)."""
        from torchvision.datasets import MNIST

        from genkit import cache_directory

        images: Tensor = MNIST(str(cache_directory() / "data")).data[: self.images].unsqueeze(1)
        return images.contiguous()


class Epoch(NamedTuple):
    """Seconds of training, the mean loss where there is one, and seconds of other things, by name."""

    seconds: float
    loss: float | None = None
    parts: Mapping[str, float] = {}


Ended = Callable[[Epoch], None]


class Missing(Exception):
    """What a loop needs, and is not installed or not of this device."""


class Loop:
    """A loop in its process.

    Args:
        module: its name in this package.
        work: what it does.
    """

    def __init__(self, module: str, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.module = module
        self.connection, theirs = context.Pipe()
        self.halted = context.RawValue("d", 0.0)
        """Seconds in all. Without a lock: a process that is halted while it holds one would never be resumed."""
        self.process = context.Process(target=_serve, args=(theirs, self.halted, module, work))
        self.process.start()
        theirs.close()
        self.since: float | None = None
        """When it was halted, if it is."""

    def epoch(self) -> Epoch:
        """The next one.

        Raises:
            Missing: where a package is not installed, or genkit refuses the work on this device.
        """
        self.begin()
        epoch = self.go_on(None)
        assert epoch is not None
        return epoch

    def begin(self) -> None:
        """Asks for the next epoch."""
        with suppress(ConnectionError):  # which is said when the epoch is looked for
            self.connection.send(None)

    def go_on(self, seconds: float | None) -> Epoch | None:
        """Lets it run so long, or to the end of the epoch, which it gives; otherwise it is halted.

        Raises:
            Missing: as ``epoch``.
        """
        self.resume()
        try:
            if not self.connection.poll(seconds):
                self.halt()
                return None
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"the loop {self.module!r} failed; see above") from None
        if isinstance(answer, str):
            raise Missing(answer)
        assert isinstance(answer, Epoch)
        return answer

    def halt(self) -> None:
        """Has all of its threads stand still."""
        pid = self.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):  # otherwise it has ended, which is said when the epoch is looked for
            self.since = time.perf_counter()

    def resume(self) -> None:
        """Has them go on, if they stand still."""
        if self.since is None:
            return
        assert self.process.pid is not None
        self.halted.value += time.perf_counter() - self.since
        self.since = None
        os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends the process."""
        self.resume()
        self.connection.close()
        self.process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def taken_together(loops: Mapping[str, Loop], slices: Mapping[str, float | None]) -> Iterator[tuple[str, Epoch]]:
    """An epoch of each. ``slices``: the seconds after which it is the next one's turn; None: at the end of the epoch.

    So what disturbs a machine for seconds or minutes, as other programs do, disturbs all of them alike.

    Raises:
        Missing: as ``Loop.epoch``.
    """
    for loop in loops.values():
        loop.begin()
        loop.halt()
    going = dict(loops)
    while going:
        for name, loop in list(going.items()):
            epoch = loop.go_on(slices[name])
            if epoch is not None:
                del going[name]
                yield name, epoch


def _serve(connection: Connection, halted: Any, name: str, work: Work) -> None:
    clock = time.perf_counter

    def running() -> float:
        """Seconds, without those in which the process was halted."""
        while True:
            before, now = halted.value, clock()
            if halted.value == before:  # not halted in between
                return now - before

    def ended(epoch: Epoch) -> None:
        connection.send(epoch)
        connection.recv()  # until the next one is wanted

    time.perf_counter = running
    warnings.simplefilter("ignore")  # other people's, about their use of torch
    try:
        connection.recv()
        try:
            loop = importlib.import_module(f"benchmarks.loops.{name}")
        except ImportError as error:
            connection.send(f"{error.name or error} is not installed: pip install 'genkit-torch[bench]'")
            return
        loop.run(work, ended)
    except EOFError:  # enough
        return
    except GenkitError as error:  # a way to train that this device does not have
        connection.send(str(error))


def synchronize(device: torch.device) -> None:
    """Waits for what a GPU still has to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
