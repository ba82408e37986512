"""How far a reduced graph may be from the module in float64. Declared here alone, and the same for every model.

The unit is u, the rounding of one number: 2^-11 for fp16, whose significand has 11 bits, and 2^-8 for int8, which has
256 steps for the whole range of a tensor. With y64 the untouched module in float64, per output:

    rms <= 16 u rms(y64)      largest <= 128 u max|y64|      PSNR >= 50 dB (fp16), 30 dB (int8)

A layer rounds its weights and its input. Roundings are as good as independent, so L layers make an error of sqrt(2 L)
of them. One is 0.3 u of the numbers themselves in fp16 (uniform in half a step, 1 / sqrt(12) of it); in int8 about 1 u,
because the range of a tensor is some 8 times its rms, and 2 u for weights, of which 7 bits are used (see
``precision``). So ten layers come to 1.3 u in fp16 and 7 u in int8; the rest of the 16 is for models that amplify. The
largest of many errors that are alike is five times their rms, and eight times where they are not, as at the edges of
strokes. The two PSNR are where nobody sees a difference in 8-bit pictures (their own rounding is at 59 dB), and where
people begin to.

Codes, as all whole numbers, change where two scores are nearer than the error is large: for scores whose gaps are
spread as widely as they are themselves, a share of a few errors, and at most 4 x 16 u. The mean of the test loss may
change by 4 u of itself: errors of either sign cancel in it, and what is left is as the square of an error.

The arithmetic came first but for two things: typical errors of two models were known by then, and the limit of the
loss was 16 u until the first losses had been measured, which had no need of it.

What these are too wide to see, such as one channel of hundreds with another scale, is not left to them: see
``precision_proof``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose, log10
from typing import NamedTuple

import numpy as np

import genkit
from genkit_onnx.accuracy import Array


class _Precision(NamedTuple):
    unit: float
    psnr: float


_PRECISIONS: Mapping[genkit.ReducedPrecision, _Precision] = {
    "fp16": _Precision(2.0**-11, 50.0),
    "int8": _Precision(2.0**-8, 30.0),
}
_RMS, _LARGEST, _CODES, _LOSS = 16, 128, 4 * 16, 4
_AT_LEAST = ("psnr", "agreement")

FAITHFUL = 1.5
"""A runtime's rms error, and its share of wrong codes, may be this many times what was measured at export. Integers are
the same everywhere and float16 is rounded alike, so that what differs is the order of sums, and now and then a step."""
FAITHFUL_LARGEST = 2.0
"""The same for the largest error, which hangs on a single number."""
COUPLED = 0.5
"""A row alone and in its batch may differ by this share of the measured error, as one order of sums from another."""


class Missed(NamedTuple):
    """One budget that was missed."""

    kind: str
    found: float
    limit: float

    def __str__(self) -> str:
        if self.kind in _AT_LEAST:
            unit = " dB" if self.kind == "psnr" else " of the whole numbers"
            return f"{self.kind} {self.found:.4g}{unit}, at least {self.limit:.4g} needed"
        return f"{self.kind} error {self.found:.3g}, limit {self.limit:.3g}"


def budget(
    precision: genkit.ReducedPrecision, value: genkit.Value, cases: Sequence[genkit.Case], rows: Sequence[Array]
) -> genkit.Accuracy:
    """What an output may miss on these rows of the golden vectors."""
    unit, psnr = _PRECISIONS[precision]
    if value.whole:
        return genkit.Accuracy(agreement=1 - _CODES * unit)
    y64 = _pooled([case.references[value.name] for case in cases], rows)
    return genkit.Accuracy(
        rms=_RMS * unit * _rms(y64), max=_LARGEST * unit * _largest(y64), psnr=psnr if value.range else None
    )


def loss_budget(precision: genkit.ReducedPrecision, loss: float) -> float:
    """How much the test loss may change."""
    return _LOSS * _PRECISIONS[precision].unit * abs(loss)


def measure(
    value: genkit.Value, found: Sequence[Array], expected: Sequence[Array], rows: Sequence[Array]
) -> genkit.Accuracy:
    """How far an output, which has to be finite, is off on these rows; six digits."""
    if value.whole:
        same = _pooled([f == e for f, e in zip(found, expected, strict=True)], rows)
        return genkit.Accuracy(agreement=_figure(float(same.mean())))
    error = _pooled(found, rows) - _pooled(expected, rows)
    rms = _rms(error)
    width = value.range[1] - value.range[0] if value.range else 0.0
    psnr = 20 * log10(width / rms) if rms and width else None
    return genkit.Accuracy(rms=_figure(rms), max=_figure(_largest(error)), psnr=psnr and _figure(psnr))


def missed(found: genkit.Accuracy, allowed: genkit.Accuracy) -> list[Missed]:
    """What is not within the budget; nothing where all is."""
    pairs = {kind: (getattr(found, kind), getattr(allowed, kind)) for kind in ("rms", "max", "psnr", "agreement")}
    return [
        Missed(kind, value, limit)
        for kind, (value, limit) in pairs.items()
        if value is not None and limit is not None and (value < limit if kind in _AT_LEAST else value > limit)
    ]


def faithful(measured: genkit.Accuracy) -> genkit.Accuracy:
    """What another run of the same file may miss: a little more than was measured at export."""
    return _loosened(measured, FAITHFUL, FAITHFUL_LARGEST)


def uncoupled(measured: genkit.Accuracy) -> genkit.Accuracy:
    """How far a row alone may be from the same row in its batch."""
    return _loosened(measured, COUPLED, 1.0)


def same(one: genkit.Accuracy, other: genkit.Accuracy) -> bool:
    """Whether two budgets are the same, but for the order in which an rms was added up."""
    kinds = one.model_dump(), other.model_dump()
    return all(
        (a is None and b is None) or (a is not None and b is not None and isclose(a, b, rel_tol=1e-6))
        for a, b in zip(*(kind.values() for kind in kinds), strict=True)
    )


def _loosened(measured: genkit.Accuracy, factor: float, factor_of_the_largest: float) -> genkit.Accuracy:
    return genkit.Accuracy(
        rms=None if measured.rms is None else factor * measured.rms,
        max=None if measured.max is None else factor_of_the_largest * measured.max,
        # one in a hundred, because a share of few numbers is a matter of luck
        agreement=None if measured.agreement is None else max(0.0, 1 - factor * (1 - measured.agreement) - 0.01),
    )


def _pooled(arrays: Sequence[Array], rows: Sequence[Array]) -> Array:
    return np.concatenate([np.ravel(array[kept]).astype(np.float64) for array, kept in zip(arrays, rows, strict=True)])


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _largest(values: Array) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def _figure(value: float) -> float:
    return float(f"{value:.6g}")
