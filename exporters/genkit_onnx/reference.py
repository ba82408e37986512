"""The truth that a graph is held against: the untouched module itself, in float32 and in float64, on hard inputs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import log, prod, sqrt
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

import genkit
from genkit_onnx.accuracy import GRAPH, RUNTIME, Array, U, rounding_errors
from genkit_onnx.probes import inert, probes
from genkit_onnx.structure import one_line

BATCHES = (1, 2, 7, 64)

_FACTORS = (4.0, 1.0, 2.0, 0.01, 0.0, None)
"""What row i, i + 6, ... of a floating input is multiplied by; None: a one-hot instead. The first batch is one row."""


_ROUNDING = RUNTIME.max * U
_TRIALS = 8
"""How far, relative to themselves, and how often weights and inputs are moved to find ties between codes."""

_INVISIBLE = 2.0**-40
"""An effect in float64, relative to the number that it changes, that is none in float32, whose numbers are 2^16 times
as far apart. To a shift that a norm takes out again, float64 reacts with its rounding, and a graph need not."""

_SAMPLES = 2**15
"""How many numbers of an input are compared with the distribution that it is said to have."""


def _rms_norm(
    input: Tensor,  # noqa: A002  # PyTorch's name
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    return torch.rms_norm(input, normalized_shape, weight, torch.finfo(torch.float32).eps if eps is None else eps)


def _selu(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002  # PyTorch's name
    scaled: Tensor = torch.ops.aten.elu(input, *_SELU)
    return input.copy_(scaled) if inplace else scaled


_SELU = tuple(float(np.float32(constant)) for constant in (1.6732632423543772, 1.0507009873554805))
"""Its alpha and scale: Klambauer et al. (2017), arXiv:1706.02515."""
_OWN_CONSTANTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.selu: _selu,
    torch.selu: _selu,
}
"""Functions with constants in the dtype of their input, and the same with those that they have in float32."""


class _Float32Constants(TorchFunctionMode):
    """Python's numbers as they are in a float32 computation, inside a float64 one.

    ``x / 0.3081`` divides a float32 tensor by the float32 nearest to 0.3081, in PyTorch and in every exported graph: it
    is a parameter like any weight, and its rounding is no error of the graph. A wider constant in the reference would
    make it one, and the only one where the rest of a graph is exact. The same holds for constants that PyTorch itself
    has in the dtype of an input.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        func = _OWN_CONSTANTS.get(func, func)
        return func(*map(_as_float32, args), **{key: _as_float32(value) for key, value in (kwargs or {}).items()})


def _as_float32(value: Any) -> Any:
    if type(value) is not float or abs(value) > torch.finfo(torch.float32).max:
        return value
    return float(np.float32(value))


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes, with weights of which digest: golden vectors, and probes to which it does not react."""

    inputs: tuple[genkit.Value, ...]
    outputs: tuple[genkit.Value, ...]
    cases: tuple[genkit.Case, ...]
    ignores: Mapping[str, Mapping[str, tuple[int, ...]]]
    weights: str


def compute_reference(graph: genkit.Graph, seed: int) -> Reference:
    """Draws the gate's inputs from ``seed`` and runs copies of the module in evaluation mode on the CPU.

    Raises:
        ExportRefused: for a module that draws noise, couples its rows, does not return its outputs, or does not run in
            float64, and for inputs that are not drawn as their graph says.
    """
    generator, weights = Generator().manual_seed(seed), digest(graph.module)
    with genkit.unvalidated(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of draw functions that do not pass their generator on
        try:
            single = copy.deepcopy(graph.module).cpu().eval()
            double = copy.deepcopy(single).double()
        except Exception as error:  # tensors that are part of a computation, handles that cannot be copied
            raise genkit.ExportRefused(f"the module cannot be copied: {one_line(error)}") from error
        cases = []
        for inputs in [_draw(graph, rows, generator) for rows in BATCHES]:
            torch.manual_seed(0)
            outputs = _run(graph, single, inputs)
            torch.manual_seed(1)
            again = _run(graph, single, inputs)
            noisy = [name for name in outputs if outputs[name].tobytes() != again[name].tobytes()]
            if noisy:
                remedy = "take the noise as an input of the graph"
                raise genkit.ExportRefused(f"{noisy[0]}: the module gives other numbers for the same inputs; {remedy}")
            cases.append(genkit.Case(inputs, outputs, _run(graph, double, inputs, wide=True)))
        _check_rows(graph, double, cases)
        cases = _with_ties(graph, double, cases)
        values = _values(graph, cases[0].inputs, cases), _values(graph, cases[0].outputs, cases)
        for value in values[0]:
            _check_distribution(graph.inputs[value.name], value, seed)
        ignores = {}
        for name, batch in probes(values[0], cases).items():
            still = inert(partial(_run, graph, single), batch)
            still_wide = inert(partial(_run, graph, double, wide=True), batch, _INVISIBLE)
            ignores[name] = {output: tuple(sorted(still[output] | still_wide[output])) for output in still}
    return Reference(*values, tuple(cases), ignores, weights)


def _with_ties(graph: genkit.Graph, double: nn.Module, cases: Sequence[genkit.Case]) -> list[genkit.Case]:
    """The cases with the numbers between which rounding decides, where an output is whole.

    A code is the place of the best of several scores. Where the best two are as close as rounding is large, no float32
    computation can be held to either. There, PyTorch's float32 differs from its float64, or the code changes when all
    weights and inputs are moved by about as much as a runtime may be off.
    """
    whole = [name for name, example in cases[0].references.items() if not np.issubdtype(example.dtype, np.floating)]
    if not whole:
        return list(cases)
    ties = [{name: case.outputs[name].copy() for name in whole} for case in cases]
    for _ in range(_TRIALS):
        moved = copy.deepcopy(double)
        for value in (*moved.parameters(), *moved.buffers()):
            if value.is_floating_point():
                value.mul_(1 + _ROUNDING * torch.randn_like(value))
        for case, found in zip(cases, ties, strict=True):
            inputs = {name: _jittered(array) for name, array in case.inputs.items()}
            outputs = _run(graph, moved, inputs, wide=True)
            for name in whole:
                open_ = found[name] == case.references[name]
                found[name][open_] = outputs[name][open_]
    return [replace(case, ties=found) for case, found in zip(cases, ties, strict=True)]


def _jittered(array: Array) -> Array:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    return array * (1 + _ROUNDING * torch.randn(array.shape, dtype=torch.float64).numpy())


def digest(module: nn.Module) -> str:
    """The sha256 of a module's state: names, dtypes, shapes and bits."""
    found = hashlib.sha256()
    for name, value in sorted(_state(module).items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(_bits(value))
    return found.hexdigest()


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def compare_weights(graph: genkit.Graph, initial: genkit.Arrays) -> genkit.Check:
    """Whether every initialiser that has a name of the checkpoint has its bits; and which names are not there."""
    state = _state(graph.module)
    found = {name: array for name, array in initial.items() if name in state}
    for name, array in found.items():
        if (array.shape, array.tobytes()) != (state[name].shape, _bits(state[name])):
            return genkit.Check(graph.name, "weights", False, f"{name} does not have the bits of the checkpoint")
    folded = sorted(state.keys() - found.keys())
    rest = f"; folded, shared or unused: {', '.join(folded)}" if folded else ""
    return genkit.Check(graph.name, "weights", True, f"{len(found)} tensors have the bits of the checkpoint{rest}")


def _bits(value: Tensor) -> bytes:
    content: bytes = value.cpu().flatten().view(torch.uint8).numpy().tobytes()  # numpy does not have every dtype
    return content


def _draw(graph: genkit.Graph, rows: int, generator: Generator) -> dict[str, Array]:
    """As drawn, and made hard: tails, nearly zero, zero, one-hot; within the range where the graph has one."""
    batch = {}
    for name in graph.inputs:
        x = _drawn(graph, name, rows, generator)
        if x.is_floating_point():
            x = torch.stack([_harden(row, _FACTORS[i % len(_FACTORS)], generator) for i, row in enumerate(x)])
            x = x.clamp(*graph.ranges[name]) if name in graph.ranges else x
        batch[name] = x.numpy(force=True)
    return batch


def _drawn(graph: genkit.Graph, name: str, rows: int, generator: Generator) -> Tensor:
    """What the draw function gives, which has to be what the graph says of it."""
    spec, shape = graph.inputs[name], (rows, *graph.inputs[name].shape)
    try:
        x = spec.draw(rows, generator)
    except Exception as error:  # a plugin's own code, which can raise anything
        raise genkit.ExportRefused(f"{name}: its draw function fails: {one_line(error)}") from error
    given = None
    if x.dtype != spec.dtype or x.shape != shape:
        given = f"{_name(x.dtype)} {tuple(x.shape)}, expected {_name(spec.dtype)} {shape}"
    elif not x.isfinite().all():
        given = "numbers that are not finite"
    elif rows == max(BATCHES) and x.is_floating_point() and not x.any():
        given = "nothing but zeros, which show nothing of the rest"
    if given:
        raise genkit.ExportRefused(f"{name}: its draw function gives {given}")
    return x


def _bounds(graph: genkit.Graph, name: str, cases: Sequence[genkit.Case]) -> tuple[float, float] | None:
    """The range that the graph gives, unless an output is seen outside of it by more than scaling to it may round."""
    if name not in graph.ranges or name in graph.inputs:
        return graph.ranges.get(name)
    low, high = graph.ranges[name]
    slack = 1e-6 * (high - low)
    extremes = [number for case in cases for number in (case.references[name].min(), case.references[name].max())]
    return (low, high) if low - slack <= min(extremes) <= max(extremes) <= high + slack else None


def _check_rows(graph: genkit.Graph, double: nn.Module, cases: Sequence[genkit.Case]) -> None:
    """Refuses a module whose rows depend on one another, in float64, where a small dependence cannot drown."""
    errors = rounding_errors(cases)
    for case in (case for case in cases if 1 < case.rows <= BATCHES[2]):
        for row in range(case.rows):
            alone = _run(graph, double, {name: x[row : row + 1] for name, x in case.inputs.items()}, wide=True)
            for name, error in errors.items():
                together = case.references[name][row : row + 1]
                if alone[name].shape != together.shape or np.abs(alone[name] - together).max() > GRAPH.max * error.max:
                    reason = f"in PyTorch, a row by itself gives other numbers than in a batch of {case.rows}"
                    raise genkit.ExportRefused(f"{name}: {reason}; let no row depend on another")


def _check_distribution(spec: genkit.Input, value: genkit.Value, seed: int) -> None:
    """Refuses an input that is drawn otherwise than those who deploy the graph are told to draw it.

    By the two-sample statistic of Kolmogorov and Smirnov, all elements pooled, at a level of one in a billion.
    """
    if value.distribution is None:
        return
    rows = -(-_SAMPLES // max(1, prod(spec.shape)))
    ours = np.sort(spec.draw(rows, Generator().manual_seed(seed)).numpy(force=True), axis=None)
    told = np.sort(value.draw(np.random.default_rng(seed), rows), axis=None)
    grid = np.concatenate([ours, told])
    apart = np.abs(np.searchsorted(ours, grid, "right") - np.searchsorted(told, grid, "right")).max() / len(ours)
    if apart > sqrt(log(2e9) / len(ours)):
        reason = f"its draw function does not give what its distribution says, {value.distribution.kind}"
        raise genkit.ExportRefused(f"{value.name}: {reason}")


def _harden(row: Tensor, factor: float | None, generator: Generator) -> Tensor:
    if factor is not None:
        return row * factor + 0.0  # no negative zeros
    hot = torch.zeros_like(row).flatten()
    hot[torch.randint(hot.numel(), (), generator=generator)] = 1
    return hot.reshape(row.shape)


def _run(graph: genkit.Graph, module: nn.Module, inputs: genkit.Arrays, *, wide: bool = False) -> dict[str, Array]:
    """One call, its outputs by name. ``wide``: the module is the float64 copy, and gets float64."""
    rows, precision = len(next(iter(inputs.values()))), torch.float64 if wide else torch.float32
    tensors = [torch.from_numpy(array.copy()) for array in inputs.values()]
    try:
        with _Float32Constants() if wide else nullcontext():
            outputs = module(*(x.to(precision) if x.is_floating_point() else x for x in tensors))
    except Exception as error:  # the module's own code, which can raise anything
        remedy = "; make its constants in the dtype of its input" if wide else ""
        place = f"the module fails in {_name(precision)} at batch {rows}"
        raise genkit.ExportRefused(f"{place}: {one_line(error)}{remedy}") from error
    if not isinstance(outputs, tuple) or len(outputs) != len(graph.outputs):
        given = f"{len(outputs)} outputs" if isinstance(outputs, tuple) else f"a {type(outputs).__name__}"
        raise genkit.ExportRefused(f"the module returns {given}, expected a tuple of {', '.join(graph.outputs)}")
    for name, y in zip(graph.outputs, outputs, strict=True):
        problem = _problem(y, rows, precision)
        if problem:
            raise genkit.ExportRefused(f"{name}: PyTorch's own {problem}")
    return {name: y.numpy(force=True) for name, y in zip(graph.outputs, outputs, strict=True)}


def _problem(y: object, rows: int, precision: torch.dtype) -> str | None:
    if not isinstance(y, Tensor):
        return f"is a {type(y).__name__}; an output has to be a tensor"
    if y.dim() == 0 or len(y) != rows:
        return f"has shape {tuple(y.shape)} for {rows} rows; its first dimension has to be the batch"
    if y.is_floating_point() and y.dtype != precision:
        return f"is {_name(y.dtype)} where its inputs are {_name(precision)}; do not cast inside the module"
    if not y.isfinite().all():
        return f"{_name(precision)} is not finite at batch {rows}; bound it, or give the input a range"
    return None


def _values(graph: genkit.Graph, arrays: genkit.Arrays, cases: Sequence[genkit.Case]) -> tuple[genkit.Value, ...]:
    for name, value in graph.inputs.items():
        try:
            genkit.Drawn.model_validate(value.distribution or {"kind": "normal", "parameters": ()})
        except ValueError as error:
            raise genkit.ExportRefused(
                f"{name}: its distribution {value.distribution!r} is none that the manifest can say: a kind of "
                f"{', '.join(genkit.DRAWN)} and its parameters, or None"
            ) from error
    return tuple(
        genkit.Value(
            name=name,
            dtype=str(array.dtype),
            shape=("batch", *array.shape[1:]),
            range=_bounds(graph, name, cases),
            layout=graph.layouts.get(name),
            distribution=graph.inputs[name].distribution if name in graph.inputs else None,
        )
        for name, array in arrays.items()
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
