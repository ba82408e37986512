"""What a fault is, and when the gate has named it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

import genkit

Plant = TypeVar("Plant", bound=Callable[..., object])

Says = dict[str, str]
"""By subject of a check, words of the detail with which it has to fail."""

NUMBERS: Says = {"graph proof": "PyTorch's own"}
WEIGHTS: Says = {"weights": "does not have the bits of the checkpoint"}
ROWS: Says = {"onnxruntime": "rows alone against rows in a batch"}


@dataclass(frozen=True)
class Fault(Generic[Plant]):
    """One way in which an export can be wrong.

    Args:
        plant: makes the fault; what it takes depends on the kind.
        where: the names of the graphs, or of the subjects, in which it can be planted.
        says: what the report must say, all of it.
    """

    plant: Plant
    where: tuple[str, ...]
    says: Says

    @property
    def name(self) -> str:
        """In the words of the function that plants it."""
        return self.plant.__name__.replace("_", " ")

    @property
    def what(self) -> str:
        """One sentence."""
        return " ".join((self.plant.__doc__ or "").split())

    def random(self, trial: int) -> np.random.Generator:
        """What decides upon the place of the fault."""
        return np.random.default_rng([trial, zlib.crc32(self.name.encode())])

    def named_by(self, report: genkit.Report) -> bool:
        """Whether the report refuses the export for this fault's own reason.

        A fault in what is computed has to be planted in a graph that is sound in every other respect.
        """
        failures = report.failures
        named = all(
            any(check.subject == subject and words in check.detail for check in failures)
            for subject, words in self.says.items()
        )
        computed = "structure" not in self.says and self.says.keys() & {"graph proof", "onnxruntime", "weights"}
        return named and not (computed and any(check.subject == "structure" for check in failures))


def collector(kind: list[Fault[Plant]]) -> Callable[..., Callable[[Plant], Plant]]:
    """A decorator that makes a function one of the faults of a kind: ``@fault("mlp_decoder", says=NUMBERS)``."""

    def fault(*where: str, says: Says) -> Callable[[Plant], Plant]:
        def collect(plant: Plant) -> Plant:
            kind.append(Fault(plant, where, says))
            return plant

        return collect

    return fault
