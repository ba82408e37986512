"""A trial: the subjects of one seed, exported and proven, and any fault planted in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import genkit
from benchmarks.gate import bundle_faults, graph_faults, module_faults
from benchmarks.gate.exports import Exported, export, verify
from benchmarks.gate.faults import Fault
from benchmarks.gate.subjects import SUBJECTS


class Trial:
    """The number is the seed of everything in a trial; it also chooses where a fault is planted.

    Args:
        number: from 0.
        folder: an empty one, for bundles and files.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.folder = number, folder
        self.exported: dict[str, Exported] = {}
        for name, build in SUBJECTS.items():
            graphs = build(number)
            report = export(folder / name, graphs, number)
            assert report.ok, f"the gate refuses {name} as it is, seed {number}: {report.failures}"
            bundle = genkit.Bundle.open(folder / name)
            self.exported |= {graph.name: Exported(graph, bundle) for graph in graphs}

    def place(self, fault: Fault[Callable[..., object]]) -> str:
        """Where a fault is planted this time."""
        return fault.where[self.number % len(fault.where)]

    def graph(self, fault: Fault[graph_faults.Plant]) -> tuple[genkit.Report, Path]:
        """What the gate says about a graph with a fault, and the file."""
        exported = self.exported[self.place(fault)]
        model = exported.model()
        fault.plant(model, fault.random(self.number))
        file = self.folder / "faulty.onnx"
        return exported.prove(model, file), file

    def bundle(self, fault: Fault[bundle_faults.Plant]) -> genkit.Report:
        """What ``genkit verify`` says about a bundle with a fault."""
        copy = self.folder / "copy" / "bundle"
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(self.folder / self.place(fault), copy)
        fault.plant(copy, fault.random(self.number))
        return verify(copy)

    def module(self, fault: Fault[module_faults.Plant]) -> genkit.Report:
        """What the gate says about an export in which there is a fault."""
        with fault.plant(self.number) as graphs:
            return export(self.folder / "refused", graphs, self.number)
