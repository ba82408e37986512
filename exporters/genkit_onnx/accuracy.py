"""How far numbers are from the truth, in units of PyTorch's own rounding error.

With y64 the untouched module in float64, y32 the same in float32, u = 2^-24, everything pooled over the batches:

    e_rms = max(rms(y32 - y64), u rms(y64))        e_max = max(max|y32 - y64|, u max|y64|)

Whole numbers (the codes of a discrete bottleneck) have no unit: they are right or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import genkit

Array = NDArray[Any]

U = 2.0**-24


class Limits(NamedTuple):
    """The largest rms and the largest single error that pass, in units of e_rms and e_max."""

    rms: float
    max: float

    def times(self, factor: float) -> Limits:
        """Both limits, scaled."""
        return Limits(self.rms * factor, self.max * factor)


GRAPH = Limits(0.5, 1.0)
"""Of the graph in float64, where no rounding of a runtime hides anything."""
BY_SIZE = GRAPH.times(4)
"""Of the graph's numbers of one size by themselves, of which there are fewer to measure PyTorch's own error by."""
RUNTIME = Limits(16.0, 32.0)
"""Of a runtime in float32 for sums of up to 512 terms; see ``runtime_limits``."""
_STEP, _FEWEST, _NOTHING = 16.0, 32, 2.0**-24
"""Numbers are of one size up to this factor, and this many at least. This far below the unit of all numbers together,
float64 has errors of its own."""
REMARKABLE = 4.0
"""The rms error of a runtime that passes, but computes some operator carelessly."""


def runtime_limits(reduction: int) -> Limits:
    """``RUNTIME`` times max(1, sqrt(K / 512)), with K the longest reduction of the graph."""
    return RUNTIME.times(max(1.0, sqrt(reduction / 512)))


def rounding_errors(cases: Sequence[genkit.Case]) -> dict[str, genkit.Errors]:
    """(e_rms, e_max) of each floating output."""
    return {
        name: _errors(_pool([case.outputs[name] for case in cases]), _pool([case.references[name] for case in cases]))
        for name, example in cases[0].references.items()
        if np.issubdtype(example.dtype, np.floating)
    }


def _errors(y32: Array, y64: Array) -> genkit.Errors:
    difference = y32 - y64
    rms, largest = max(_rms(difference), U * _rms(y64)), max(_largest(difference), U * _largest(y64))
    # Not validated: a damaged bundle may give infinities, which then differ from what its manifest says.
    return genkit.Errors.model_construct(rms=rms, max=largest)


@dataclass(frozen=True)
class Deviation:
    """How far one output is off, pooled and by batch size, in units of ``errors``; infinite where it is not finite."""

    rms: float
    max: float
    batches: dict[int, tuple[float, float]]

    @classmethod
    def between(cls, found: Sequence[Array], expected: Sequence[Array], errors: genkit.Errors) -> Deviation:
        """``found`` and ``expected``: one array a batch."""
        with np.errstate(all="ignore"):  # two infinities are as far apart as anything
            apart = [f.astype(np.float64) - e for f, e in zip(found, expected, strict=True)]
        by_batch = {len(d): (_ratio(_rms(d), errors.rms), _ratio(_largest(d), errors.max)) for d in apart}
        pooled = _pool(apart)
        return cls(_ratio(_rms(pooled), errors.rms), _ratio(_largest(pooled), errors.max), by_batch)

    def judge(self, limits: Limits, what: str) -> tuple[bool, str, dict[str, Any]]:
        """Whether it is within the limits, a sentence that begins with ``what``, and the figures."""
        within = self.rms <= limits.rms and self.max <= limits.max
        if within:
            sentence = (
                f"{what} rms error {self.rms:.2g} times PyTorch's own, limit {limits.rms:.3g}; "
                f"largest {self.max:.2g} times, limit {limits.max:.3g}"
            )
        else:
            worse = int(self.max / limits.max > self.rms / limits.rms)
            kind, size, limit = (("rms", self.rms, limits.rms), ("largest", self.max, limits.max))[worse]
            batch = max(self.batches, key=lambda rows: self.batches[rows][worse])
            sentence = f"{what} {kind} error {size:.3g} times PyTorch's own at batch {batch}, limit {limit:.3g}"
        figures = {
            "rms": _figure(self.rms),
            "rms_limit": _figure(limits.rms),
            "max": _figure(self.max),
            "max_limit": _figure(limits.max),
            "batches": {
                str(rows): {"rms": _figure(rms), "max": _figure(largest)}
                for rows, (rms, largest) in self.batches.items()
            },
        }
        return within, sentence, figures


def worst_by_size(found: Sequence[Array], cases: Sequence[genkit.Case], name: str) -> tuple[float, float]:
    """The largest excess over ``BY_SIZE`` among an output's numbers of one size, and that size.

    Without it, a few large numbers (an exponential in the tails) would excuse anything in the small ones.
    """
    y64 = _pool([case.references[name] for case in cases])
    order = np.argsort(np.abs(y64), kind="stable")
    y64, y32, y = y64[order], _pool([case.outputs[name] for case in cases])[order], _pool(found)[order]
    sizes, pooled = np.abs(y64), _errors(y32, y64)
    worst, end = (0.0, 0.0), len(order)
    while end:
        size = float(sizes[end - 1])
        start = min(int(np.searchsorted(sizes, size / _STEP, "right")), max(0, end - _FEWEST))
        if start < _FEWEST or size == 0:
            start = 0
        unit = _errors(y32[start:end], y64[start:end])
        rms = _ratio(_rms(y[start:end] - y64[start:end]), max(unit.rms, pooled.rms * _NOTHING))
        largest = _ratio(_largest(y[start:end] - y64[start:end]), max(unit.max, pooled.max * _NOTHING))
        worst = max(worst, (max(rms / BY_SIZE.rms, largest / BY_SIZE.max), size))
        end = start
    return worst


def wrong_codes(found: Sequence[Array], cases: Sequence[genkit.Case], name: str, *, exempt_ties: bool) -> int:
    """How many whole numbers differ from the float64 reference, not counting ties where those are exempt."""
    wrong = 0
    for array, case in zip(found, cases, strict=True):
        differs = array != case.references[name]
        if exempt_ties:
            differs &= array != case.ties[name]
        wrong += int(differs.sum())
    return wrong


def ties(cases: Sequence[genkit.Case], name: str) -> tuple[int, int]:
    """How many whole numbers hang on rounding, and how many may: a few, and one in ten.

    Of those, a runtime may take either of two and no third, and the graph proof exempts none: it is no laxity towards a
    graph. Networks whose weights saturate leave one code in fifteen to rounding; where it is more than one in ten, the
    scores that are compared say little, and so would the proof of the runtime.
    """
    count = sum(int((case.ties[name] != case.references[name]).sum()) for case in cases)
    return count, 3 + sum(case.references[name].size for case in cases) // 10


def _pool(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])


def _rms(values: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _largest(values: Array) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def _ratio(error: float, unit: float) -> float:
    if not isfinite(error):
        return inf
    return error / unit if unit else (inf if error else 0.0)


def _figure(value: float) -> float | None:
    """Four digits; JSON has no infinity."""
    return float(f"{value:.4g}") if isfinite(value) else None
