"""Does a graph react to every input, and to every element of a latent?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

import genkit
from genkit_onnx.accuracy import Array

_SINGLY = 256
"""An input of up to this many elements (a latent, a label) is probed element by element."""
_BLOCKS = 8
"""A larger one (an image) in so many blocks."""


def probes(inputs: Sequence[genkit.Value], cases: Sequence[genkit.Case]) -> dict[str, genkit.Arrays]:
    """For each input, a batch in which row 0 is an observation and every further row moves one element of that input.

    A float moves by 1, or to the far end of its range; a whole number takes another value that was drawn. All of it
    follows from the golden vectors, so that a bundle is probed again exactly as it was at export.
    """
    case = max((case for case in cases if case.rows <= 7), key=lambda case: case.rows, default=cases[0])
    base = {name: array[min(1, case.rows - 1)] for name, array in case.inputs.items()}  # row 0 may be the zero latent
    batches: dict[str, genkit.Arrays] = {}
    for value in inputs:
        row, moved = base[value.name], _moved(value, base[value.name], cases)
        groups = np.array_split(np.arange(row.size), row.size if row.size <= _SINGLY else _BLOCKS)
        probe = np.repeat(row.reshape(1, -1), 1 + len(groups), axis=0)
        for i, group in enumerate(groups, start=1):
            probe[i, group] = moved.ravel()[group]
        batch = {name: np.repeat(array[None], len(probe), axis=0) for name, array in base.items()}
        batches[value.name] = {**batch, value.name: probe.reshape(len(probe), *row.shape)}
    return batches


def inert(
    function: Callable[[genkit.Arrays], Mapping[str, Array]], batch: genkit.Arrays, noise: float = 0.0
) -> dict[str, set[int]]:
    """For each output, the probes (counted from 0) that leave it as it is where nothing moves, but for ``noise``.

    Rows are compared at the same place of two batches: kernels treat the last rows of a batch otherwise than the rest.
    ``noise`` is relative to each number by itself.
    """
    moved = function(batch)
    still = function({name: np.repeat(array[:1], len(array), axis=0) for name, array in batch.items()})
    rows = range(1, len(next(iter(batch.values()))))
    return {
        name: {row - 1 for row in rows if np.allclose(array[row], still[name][row], rtol=noise, atol=0)}
        for name, array in moved.items()
    }


def _moved(value: genkit.Value, row: Array, cases: Sequence[genkit.Case]) -> Array:
    moved: Array
    if not np.issubdtype(row.dtype, np.floating):
        drawn = np.unique(np.concatenate([np.ravel(case.inputs[value.name]) for case in cases]))
        moved = np.where(row == drawn[0], drawn[-1], drawn[0])
    elif value.range is None:
        moved = row + np.where(row > 0, -1, 1)
    else:
        low, high = value.range
        moved = np.where(row - low > high - row, low, high)
    return moved.astype(row.dtype)
