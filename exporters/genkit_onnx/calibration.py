"""What the tensors inside of a graph in fp32 are, over the data that int8 chooses its scales on, and over any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ValueInfoProto

import genkit
from genkit_onnx.accuracy import Array

Ranges = Mapping[str, tuple[float, float]]


def observe(file: Path, tensors: Sequence[str], batches: Sequence[genkit.Arrays]) -> list[genkit.Arrays]:
    """These tensors of the graph in ``file``, inputs among them, for each batch of inputs."""
    model = onnx.load(file, load_external_data=False)
    computed = [name for name in tensors if name not in {value.name for value in model.graph.input}]
    if not computed:
        return [{name: batch[name] for name in tensors} for batch in batches]
    from genkit_onnx.runtime import OnnxRuntime

    del model.graph.output[:]
    model.graph.output.extend(ValueInfoProto(name=name) for name in computed)
    observed = file.with_name(f"{file.stem}.observed.onnx")  # beside its data file
    try:
        observed.write_bytes(model.SerializeToString())
        run = OnnxRuntime().load(observed)
    finally:
        observed.unlink(missing_ok=True)
    return [{name: {**batch, **found}[name] for name in tensors} for batch in batches for found in [run(batch)]]


def ranges(observed: Sequence[genkit.Arrays]) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of each tensor."""
    return {
        name: (float(min(each[name].min() for each in observed)), float(max(each[name].max() for each in observed)))
        for name in (observed[0] if observed else ())
    }


def inside(file: Path, calibrated: Ranges, cases: Sequence[genkit.Case]) -> list[Array]:
    """For each case the rows on which every tensor stays in its range: ``(rows,)``, of booleans.

    Elsewhere a tensor saturates, which is no error of the graph. Up to half a step of 8 bits beyond its range a number
    still has the end of it as its nearest step.
    """
    if not calibrated:
        return [np.ones(case.rows, dtype=bool) for case in cases]
    kept = []
    for case, found in zip(cases, observe(file, list(calibrated), [case.inputs for case in cases]), strict=True):
        rows = np.ones(case.rows, dtype=bool)
        for name, array in found.items():
            low, high = calibrated[name]
            slack = (high - low) / 510
            fits = (array >= low - slack) & (array <= high + slack)
            # what has no batch is a function of the weights, and as it was
            rows &= fits.reshape(case.rows, -1).all(1) if array.size % case.rows == 0 else fits.all()
        kept.append(rows)
    return kept
