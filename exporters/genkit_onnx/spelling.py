"""Operators spelt otherwise than torch.onnx spells them, so that every runtime computes them and float32 is enough.

PyTorch computes exp(x) - 1 without cancellation, there and in ELU, CELU and SELU. ONNX has no such operator, and
runtimes take the difference: for x of 0.01 ten times as far off as PyTorch, for 1e-4 a thousand times, so that a
network of small activations would be refused. But exp(x) - 1 = tanh(x / 2) (exp(x) + 1), which loses nothing anywhere.

The rest is for runtimes that are wrong about one spelling and right about another with the same bits; docs/runtimes.md
has each of these faults in its smallest form.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from onnx import TensorProto, defs, helper
from onnxscript.rewriter import RewriteRule

_SELU_ALPHA, _SELU_GAMMA = (
    helper.get_attribute_value(defs.get_schema("Selu").attributes[name].default_value) for name in ("alpha", "gamma")
)


def _gelu(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Mul(0.5, op.Add(op.Erf(op.Div(x, sqrt(2))), 1.0)))


def _portable_gelu(op: Any, x: Any) -> Any:
    """The one spelling that no runtime was seen to crash on or to replace by an approximation."""
    half = op.Mul(x, _number(op, 0.5))
    return op.Add(half, op.Mul(half, op.Erf(op.Div(x, _number(op, sqrt(2))))))


def _log_sigmoid(op: Any, x: Any) -> Any:
    return op.Log(op.Sigmoid(x))


def _exact_log_sigmoid(op: Any, x: Any) -> Any:
    """As PyTorch computes it: the logarithm of a sigmoid near 1 has no digits left in float32."""
    return op.Neg(op.Softplus(op.Neg(x)))


def _expm1(op: Any, x: Any) -> Any:
    power = op.Exp(x)
    return op.Sub(power, op.CastLike(1, power))


def _exact_expm1(op: Any, x: Any) -> Any:
    return op.Mul(op.Tanh(op.Mul(x, _number(op, 0.5))), op.Add(op.Exp(x), _number(op, 1.0)))


def _elu(op: Any, x: Any, alpha: Any) -> Any:
    return op.Elu(x, alpha=alpha)


def _exact_elu(op: Any, x: Any, alpha: Any) -> Any:
    return _exact(op, x, alpha.as_float())


def _celu(op: Any, x: Any, alpha: Any) -> Any:
    return op.Celu(x, alpha=alpha)


def _exact_celu(op: Any, x: Any, alpha: Any) -> Any:
    return _exact(op, x, alpha.as_float(), alpha.as_float())


def _selu(op: Any, x: Any) -> Any:
    return op.Selu(x, _allow_other_attributes=False)  # PyTorch has none but the defaults


def _exact_selu(op: Any, x: Any) -> Any:
    return _scaled(op, _exact(op, x, _SELU_ALPHA), _SELU_GAMMA)


def _exact(op: Any, x: Any, alpha: float, width: float = 1.0) -> Any:
    """max(x, 0) + alpha (exp(min(x, 0) / width) - 1)."""
    below = op.Min(x, _number(op, 0.0))
    below = below if width == 1 else op.Div(below, _number(op, width))
    return op.Add(op.Relu(x), _scaled(op, _exact_expm1(op, below), alpha))


def _scaled(op: Any, x: Any, factor: float) -> Any:
    return x if factor == 1 else op.Mul(x, _number(op, factor))


def _number(op: Any, value: float) -> Any:
    return op.Constant(value_float=value)


def _sigmoid(op: Any, x: Any) -> Any:
    return op.Sigmoid(x)


def _exact_sigmoid(op: Any, x: Any) -> Any:
    return op.Reciprocal(op.Add(op.Exp(op.Neg(x)), _number(op, 1.0)))


def _less(op: Any, x: Any, y: Any) -> Any:
    return op.Less(x, y)


def _greater(op: Any, x: Any, y: Any) -> Any:
    """MNN gives other answers for Less where it broadcasts."""
    return op.Greater(y, x)


def _max_of_one(op: Any, x: Any) -> Any:
    return op.Max(x)


def _itself(op: Any, x: Any) -> Any:
    """MNN's converter dies of the Max of one input, with which PyTorch's exporter writes x[indices]."""
    return op.Identity(x)


def _count(op: Any, x: Any, axes: Any) -> Any:
    return op.ReduceSum(op.Cast(x, to=TensorProto.INT64), axes, _outputs=["count"])


def _counts(op: Any, x: Any, axes: Any, count: Any) -> Any:
    """OpenVINO loses an integer sum over many rows that another operator follows. One of float32 is exact to 2^24."""
    given = count.producer().attributes
    same = {name: given.get_int(name, default) for name, default in (("keepdims", 1), ("noop_with_empty_axes", 0))}
    return op.Cast(op.ReduceSum(op.Cast(x, to=TensorProto.FLOAT), axes, **same), to=TensorProto.INT64)


def _is_boolean(_: Any, x: Any, **__: Any) -> bool:
    return bool(x.dtype == TensorProto.BOOL)


def _sigmoid_of_reshaped(op: Any, x: Any, shape: Any) -> Any:
    return op.Sigmoid(op.Reshape(x, shape, _allow_other_attributes=True, _outputs=["reshaped"]))


def _reshaped_sigmoid(op: Any, x: Any, shape: Any, reshaped: Any) -> Any:
    """MNN gives an output that is a Reshape in the shape before it, if an elementwise operator reads it, too."""
    allowzero = reshaped.producer().attributes.get_int("allowzero", 0)
    return op.Reshape(op.Sigmoid(x), shape, allowzero=allowzero)


def _gathered(op: Any, x: Any, indices: Any) -> Any:
    return op.GatherElements(x, indices, _allow_other_attributes=True, _outputs=["gathered"])


def _axis_from_the_front(op: Any, x: Any, indices: Any, gathered: Any) -> Any:
    """The evaluator of onnx does not know negative axes here."""
    return op.GatherElements(x, indices, axis=len(x.shape) + _axis(gathered))


def _has_negative_axis(_: Any, x: Any, gathered: Any, **__: Any) -> bool:
    return x.shape is not None and _axis(gathered) < 0


def _axis(gathered: Any) -> int:
    return int(gathered.producer().attributes.get_int("axis", 0))


SPELLINGS = [
    RewriteRule(_gelu, _portable_gelu),
    RewriteRule(_log_sigmoid, _exact_log_sigmoid),
    RewriteRule(_expm1, _exact_expm1),
    RewriteRule(_elu, _exact_elu),
    RewriteRule(_celu, _exact_celu),
    RewriteRule(_selu, _exact_selu),
    RewriteRule(_less, _greater),
    RewriteRule(_max_of_one, _itself),
    RewriteRule(_count, _counts, _is_boolean),
    RewriteRule(_sigmoid_of_reshaped, _reshaped_sigmoid, remove_nodes=False),
    RewriteRule(_gathered, _axis_from_the_front, _has_negative_axis),
]

CAREFUL_SPELLINGS = {"Sigmoid": RewriteRule(_sigmoid, _exact_sigmoid)}
"""By operator, for graphs that a runtime fails with it: onnxruntime's Sigmoid is off by up to 1e-7 whatever it is of,
so that below -12 no digit of it is right. Everywhere else the operator stays, which runtimes are fast at."""
