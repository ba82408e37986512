"""Every random state that a model, a loss or a dataset may use, in one place: set, saved, restored, isolated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive(*keys: int) -> int:
    """One seed from several numbers, so that streams of one run share nothing."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_all(seed: int) -> None:
    """Seeds torch (every device), numpy and Python."""
    torch.manual_seed(seed)
    seed_cpu(seed)


def seed_cpu(seed: int) -> None:
    """Seeds what is drawn on the CPU, as ``seed_all`` does, but fast enough for each item of a dataset.

    For a device that is not in use yet, torch keeps the seed together with a traceback, which takes 0.3 ms.
    """
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def preserved() -> Iterator[None]:
    """Leaves every random state as it found it, whatever the block draws."""
    states = states_as_tensors()
    try:
        yield
    finally:
        restore_states(states)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Runs the block from ``seed`` and leaves every random state as it found it."""
    with preserved():
        seed_all(seed)
        yield


def states_as_tensors() -> dict[str, Tensor]:
    """The state of every generator, by name."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    assert name == "MT19937"
    version, internal, gauss_next = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy.keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "python.internal": torch.tensor([version, *internal], dtype=torch.int64),
        "python.gauss": torch.tensor([] if gauss_next is None else [gauss_next], dtype=torch.float64),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_states(states: dict[str, Tensor]) -> None:
    """Puts back what ``states_as_tensors`` saw. States of devices that are not here are passed over."""
    torch.set_rng_state(states["torch"])
    position, has_gauss, gauss = states["numpy.rest"].tolist()
    keys: Any = states["numpy.keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    version, *internal = states["python.internal"].tolist()
    random.setstate((version, tuple(internal), *(states["python.gauss"].tolist() or [None])))
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{i}"], i)
