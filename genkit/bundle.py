"""The exported bundle, and what exporters and runtimes have to offer. Nothing here imports torch.

    BUNDLE/
      <graph>.onnx                                         one file a graph
      manifest.json                                        what it is, and the sha256 of every other file
      parity.json                                          the report of the gate that let it be published
      test_data/<graph>/test_data_set_<i>/input_0.pb ...   golden vectors in ONNX's own layout
      README.md                                            how to load and run it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from genkit.task import Graph, NoGraph

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Check:
    """One thing that was held against its limit.

    Args:
        graph: the graph's name; empty for the bundle as a whole.
        subject: what was checked, e.g. ``graph proof``, ``onnxruntime``, ``structure``, ``files``.
        ok: whether it holds.
        detail: one sentence for a person: the value, the limit, the place.
        measured: figures for a program, e.g. ``{"rms": 0.1, "rms_limit": 0.5, "batch": 64}``.
    """

    graph: str
    subject: str
    ok: bool
    detail: str
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything that the gate looked at, in order."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds (and there was one)."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.ok)


class Runtime(Protocol):
    """Something that runs an exported graph: registered with ``registry.runtime(name, factory)``."""

    name: str
    version: str

    def load(self, path: Path) -> Callable[[Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        ...


class Exporter(Protocol):
    """Something that turns graphs into a bundle: registered with ``registry.exporter(name, factory)``."""

    def export(
        self,
        graphs: Sequence[Graph | NoGraph],
        destination: Path,
        *,
        about: Mapping[str, Any],
        opset: int,
        runtimes: Sequence[Runtime],
        seed: int = 0,
    ) -> Report:
        """Publishes a proven bundle at ``destination``, or raises ``ExportRefused`` and leaves it untouched."""
        ...

    def verify(self, bundle: Bundle, runtimes: Sequence[Runtime]) -> Report:
        """Checks a bundle again, without torch."""
        ...
