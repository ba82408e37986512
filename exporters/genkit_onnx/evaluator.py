"""onnx's reference evaluator, with operators of ours where its own are not what the standard says, or float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import repeat
from typing import Any

import numpy as np
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose as UngroupedConvTranspose

from genkit_onnx.accuracy import Array


class GatherElements(OpRun):
    """onnx's own, up to 1.23, fails for a negative axis and for 33 elements and more along it."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int | None = None) -> tuple[Array]:
        along = (axis or 0) % data.ndim
        rows = tuple(
            slice(None if d == along else n) for d, n in enumerate(indices.shape)
        )  # there may be fewer indices
        return (np.take_along_axis(data[rows], indices, along),)


class Erf(OpRun):
    """onnx's own, up to 1.23, rounds to float32 whatever it is given."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype),)


class LogSoftmax(OpRun):
    """onnx's own, up to 1.23, is the logarithm of its softmax, which underflows."""

    op_domain = ""

    def _run(self, x: Array, axis: int = -1) -> tuple[Array]:
        below = x - x.max(axis=axis, keepdims=True)
        return (below - np.log(np.exp(below).sum(axis=axis, keepdims=True)),)


class ConvTranspose(OpRun):
    """onnx's own, up to 1.23, takes other weights and channels than those of the group, and fails or is wrong."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, *, group: int = 1, **attributes: Any) -> tuple[Array]:
        biases = repeat(None) if b is None else np.split(b, group)
        parts = zip(np.split(x, group, axis=1), np.split(w, group), biases, strict=False)
        ungrouped: Callable[..., tuple[Array]] = UngroupedConvTranspose._run
        of_group = [ungrouped(self, *part, group=1, **attributes)[0] for part in parts]
        return (np.concatenate(of_group, axis=1),)


def reference_evaluator(model: ModelProto) -> ReferenceEvaluator:
    """Runs ``model`` in the precision that it is written in."""
    return ReferenceEvaluator(model, new_ops=[GatherElements, Erf, LogSoftmax, ConvTranspose])
