"""onnx's reference evaluator, with operators of ours where its own are not what the standard says, or float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

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
    """onnx's own, up to 1.23, takes other weights and channels than those of the group, and each value by itself.

    Here each place of the kernel is a product of matrices, for the whole batch.
    """

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        *,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,  # that of w
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        size, kernel = np.array(x.shape[2:]), w.shape[2:]
        step, spread = np.array(strides or [1] * size.size), np.array(dilations or [1] * size.size)
        full = step * (size - 1) + spread * (np.array(kernel) - 1) + 1
        before, after = np.array(pads or [0] * 2 * size.size).reshape(2, -1)
        shape = full + (output_padding or 0) - before - after
        if output_shape is not None or auto_pad.startswith("SAME"):
            shape = size * step if output_shape is None else np.array(output_shape)
            cut = np.maximum(full + (output_padding or 0) - shape, 0)
            before = cut // 2 if auto_pad == "SAME_UPPER" else cut - cut // 2
        images = x.reshape(len(x), group, -1, size.prod())
        weights = w.reshape(group, -1, *w.shape[1:])
        out = np.zeros((len(x), group, w.shape[1], *np.maximum(full, before + shape)), x.dtype)
        for place in np.ndindex(*kernel):
            values = weights[(..., *place)].swapaxes(1, 2) @ images
            first = spread * place
            reached: Any = (..., *map(slice, first, first + step * (size - 1) + 1, step))
            out[reached] += values.reshape(*out.shape[:3], *size)
        kept: Any = (..., *map(slice, before, before + shape))
        out = out.reshape(len(x), -1, *out.shape[3:])[kept]
        return (out if b is None else out + b.reshape(-1, *[1] * size.size),)


def reference_evaluator(model: ModelProto) -> ReferenceEvaluator:
    """Runs ``model`` in the precision that it is written in."""
    return ReferenceEvaluator(model, new_ops=[GatherElements, Erf, LogSoftmax, ConvTranspose])
