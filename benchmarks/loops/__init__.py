"""Training loops that do the same work, each in a process of its own, which waits while another one is measured.

A loop is a module with ``run(work, ended)``, which trains for ever and calls ``ended`` after each epoch. So everybody's
trainer runs as it would by itself, with its own settings of torch, and none is begun anew for each epoch.
"""

from __future__ import annotations

import importlib
import multiprocessing
import warnings
from collections.abc import Callable, Mapping
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
        self.process = context.Process(target=_serve, args=(theirs, module, work))
        self.process.start()
        theirs.close()

    def epoch(self) -> Epoch:
        """The next one.

        Raises:
            Missing: where a package is not installed, or genkit refuses the work on this device.
        """
        try:
            self.connection.send(None)
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"the loop {self.module!r} failed; see above") from None
        if isinstance(answer, str):
            raise Missing(answer)
        assert isinstance(answer, Epoch)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self.connection.close()
        self.process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(connection: Connection, name: str, work: Work) -> None:
    def ended(epoch: Epoch) -> None:
        connection.send(epoch)
        connection.recv()  # until the next one is wanted

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
