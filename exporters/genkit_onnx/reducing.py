"""From the graphs of a bundle in fp32 to the same graphs in other precisions, measured."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import onnx
import torch

import genkit
from genkit_onnx import budgets
from genkit_onnx.calibration import inside, observe, ranges
from genkit_onnx.precision import Irreducible, quantized, reduce
from genkit_onnx.precision_proof import float32_operators, judge, measure, size_of
from genkit_onnx.proof import Unusable, opened
from genkit_onnx.protobuf import initializers
from genkit_onnx.structure import external_file, notes
from genkit_onnx.translate import save
from genkit_onnx.wiring import Different, links

_CALIBRATION = 8, 64
"""The batches, and the rows of each, on which int8 chooses its scales."""


@dataclass(frozen=True)
class Reducer:
    """Writes reduced graphs into a bundle that is being built.

    Args:
        bundle: with everything in fp32.
        runtime: that measures.
        seed: of the inputs of the proof; calibration takes others.
        score: of the test loss, where there is one.
        inline_limit: as of the exporter.
    """

    bundle: genkit.Bundle
    runtime: genkit.Runtime
    seed: int
    score: genkit.Score | None
    inline_limit: int | None

    def reduce_all(
        self, graphs: Sequence[genkit.Graph], precisions: Sequence[genkit.ReducedPrecision]
    ) -> Generator[genkit.Check, None, genkit.Manifest]:
        """The manifest with what could be reduced, and with what could not and why. Checks that fail say it all."""
        made: list[genkit.ReducedGraph | genkit.Absent] = []
        for precision in precisions:
            found = []
            for graph, entry in zip(graphs, self.bundle.manifest.graphs, strict=True):
                found += yield from self._reduce(graph, entry, precision)
            absent = [each for each in found if isinstance(each, genkit.Absent)]
            if absent and len(absent) == len(found):
                reasons = "; ".join(f"{each.name}: {each.reason}" for each in absent)
                yield genkit.Check("", precision, False, f"no graph can be had in {precision} ({reasons})")
            made += found
        manifest = self.bundle.manifest
        return manifest.model_copy(
            update={
                "absent": (*manifest.absent, *(each for each in made if isinstance(each, genkit.Absent))),
                "reduced": tuple(each for each in made if isinstance(each, genkit.ReducedGraph)),
            }
        )

    def _reduce(
        self, graph: genkit.Graph, entry: genkit.BundledGraph, precision: genkit.ReducedPrecision
    ) -> Generator[genkit.Check, None, list[genkit.ReducedGraph | genkit.Absent]]:
        name, full = f"{entry.name}_{precision}", self.bundle.path / entry.file
        file = full.with_name(f"{name}.onnx")
        posing = entry.model_copy(update={"name": name, "file": file.name})
        batches = _draw(graph, self.seed + 1) if precision == "int8" else []
        try:
            model = reduce(full, precision, batches)
            inputs = [value.name for value in entry.inputs if not value.whole] if batches else []
            calibrated = ranges(observe(full, list(dict.fromkeys([*inputs, *quantized(model)])), batches))
            save(model, name, file, notes(posing, self.bundle.manifest.about, precision, calibrated), self.inline_limit)
            data = external_file(onnx.load(file, load_external_data=False))
            size, fp32_size = size_of(file, data), size_of(full, entry.data)
            if size >= fp32_size:
                for path in (file, file.with_name(data) if data else file):
                    path.unlink(missing_ok=True)
                raise Irreducible(f"it would have {size} bytes, where fp32 has {fp32_size}")
        except Irreducible as error:
            yield genkit.Check(name, precision, True, f"not written: {error}")
            return [genkit.Absent(name=name, reason=str(error))]
        cases = self.bundle.cases(entry)
        rows = inside(full, calibrated, cases)
        try:
            function = opened(self.runtime, file)
            measured = measure(entry, cases, rows, function)
            kept = _float32(full, file)
        except (Unusable, Different) as error:
            yield genkit.Check(name, precision, False, str(error))
            return []
        allowed = {value.name: budgets.budget(precision, value, cases, rows) for value in entry.outputs}
        checks = [judge(name, self.runtime.name, output, measured[output], allowed[output]) for output in allowed]
        if failures := [check for check in checks if not check.ok]:
            yield from failures
            return []
        loss, reason = yield from self._loss(name, entry.name, precision, opened(self.runtime, full), function)
        return [
            genkit.ReducedGraph(
                name=name,
                of=entry.name,
                precision=precision,
                file=file.name,
                data=data,
                size=size,
                fp32_size=fp32_size,
                outputs={o: genkit.ReducedOutput(budget=allowed[o], measured=measured[o]) for o in allowed},
                ranges=calibrated,
                float32=kept,
                loss=loss,
                no_loss=reason,
            )
        ]

    def _loss(
        self, name: str, of: str, precision: genkit.ReducedPrecision, full: genkit.Function, less: genkit.Function
    ) -> Generator[genkit.Check, None, tuple[genkit.LossChange | None, str]]:
        """How the test loss changes, or why that cannot be said."""
        if self.score is None:
            return None, "the exporter was given no test loss"
        try:
            before, after = self.score({of: full}), self.score({of: less})
        except genkit.GenkitError as error:
            return None, str(error)
        allowed, change = budgets.loss_budget(precision, before), after - before
        ok = isfinite(after) and abs(change) <= allowed
        detail = f"{before:.6g} in fp32, {after:.6g} in {precision}: change {change:+.3g}, limit {allowed:.3g}"
        yield genkit.Check(name, "test loss", ok, detail)
        if not ok:
            return None, "it changed too much"
        figures = {"fp32": before, "reduced": after, "change": change, "budget": allowed}
        return genkit.LossChange(**figures, observations=self.score.observations), ""


def _float32(full: Path, file: Path) -> tuple[str, ...]:
    original, model = (onnx.load(path, load_external_data=False) for path in (full, file))
    return float32_operators(links(original, model), initializers(model, file.parent))


def _draw(graph: genkit.Graph, seed: int) -> list[genkit.Arrays]:
    """Inputs as they come in use."""
    generator = torch.Generator().manual_seed(seed)
    batches, rows = _CALIBRATION
    draws = {name: value.calibration or value.draw for name, value in graph.inputs.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of draw functions that do not pass their generator on
        return [{name: draw(rows, generator).numpy(force=True) for name, draw in draws.items()} for _ in range(batches)]
