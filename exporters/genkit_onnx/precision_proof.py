"""Is a reduced graph what it says, and as near to the module as its precision allows?

What can be known exactly is held exactly, against the proven graph in fp32 beside it: the same operators in the same
order, every weight the nearest that the precision has, every scale the one that its calibration gives. A fault in one
of hundreds of channels, for which any budget is too wide, is found there. What is left, the errors of correct rounding,
has a budget (see ``budgets``). All of it is repeated by ``verify``, without torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

import genkit
from genkit_onnx import budgets
from genkit_onnx.accuracy import Array
from genkit_onnx.calibration import inside
from genkit_onnx.proof import Unusable, alone, ask, guarded, open_elsewhere, opened, repeated
from genkit_onnx.protobuf import initializers
from genkit_onnx.structure import Notes, check_structure, complaint, one_line
from genkit_onnx.wiring import Different, Link, dequantized, links

Initial = Mapping[str, Array]

_HALF = 0.5 * (1 + 1e-3)
"""Of a step, that a number may be from the nearest one; scales are rounded to float32 themselves."""
_FEWEST_STEPS = 48
"""From zero to the largest weight of a channel, of the 64 there are: a scale that leaves less is a wrong one."""


def examine_reduced(
    reduced: genkit.ReducedGraph,
    graph: genkit.BundledGraph,
    files: tuple[Path, Path],
    cases: Sequence[genkit.Case],
    runtimes: Sequence[genkit.Runtime],
    *,
    promised: Notes,
) -> Iterator[genkit.Check]:
    """Everything that can be held against a reduced graph. Never raises for what is in it.

    Args:
        reduced: what the manifest promises of it.
        graph: that it stands for.
        files: of the one and of the other.
        cases: the golden vectors of both.
        runtimes: each is proven on all cases.
        promised: the notes that the file has to carry.
    """
    posing = in_the_place_of(graph, reduced)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        try:
            moved, model = open_elsewhere(posing, files[0], Path(one))
            full, original = open_elsewhere(graph, files[1], Path(other))
            if invalid := complaint(original):
                raise Unusable(f"{graph.file}, that it stands for, is not valid ONNX: {invalid}")
        except Unusable as error:
            yield genkit.Check(reduced.name, "structure", False, str(error))
            return
        yield from guarded(posing, "structure", check_structure(posing, model, promised))
        if complaint(model) is not None:  # native code is not to be trusted with what the checker rejects
            return
        yield from guarded(posing, "reduction", _check_reduction(reduced, original, full.parent, model, moved.parent))
        try:
            rows = inside(full, reduced.ranges, cases)
        except Exception as error:  # of a runtime, for a tensor that there is not, or of its shape
            yield genkit.Check(reduced.name, "budget", False, f"its ranges cannot be checked: {one_line(error)}")
            return
        yield from guarded(posing, "budget", _check_promises(reduced, graph, cases, rows, (moved, full)))
        for runtime in runtimes:
            yield from guarded(posing, runtime.name, _check_runtime(reduced, graph, cases, rows, moved, runtime))


def in_the_place_of(graph: genkit.BundledGraph, reduced: genkit.ReducedGraph) -> genkit.BundledGraph:
    """The graph with the reduced one's name and files: all that may differ in what can be said without running it."""
    return graph.model_copy(update={"name": reduced.name, "file": reduced.file, "data": reduced.data})


def size_of(file: Path, data: str | None) -> int:
    """The bytes of a graph and of its data file."""
    return sum(path.stat().st_size for path in (file, file.with_name(data) if data else None) if path)


# Without running it


def _check_promises(
    reduced: genkit.ReducedGraph,
    graph: genkit.BundledGraph,
    cases: Sequence[genkit.Case],
    rows: Sequence[Array],
    files: tuple[Path, Path],
) -> Iterator[genkit.Check]:
    """Whether the manifest's sizes are the files', and its budgets those that are declared."""
    problems = []
    sizes = size_of(files[0], reduced.data), size_of(files[1], graph.data)
    if sizes != (reduced.size, reduced.fp32_size):
        problems.append(f"has {sizes[0]} bytes for {sizes[1]}, not {reduced.size} for {reduced.fp32_size}")
    for value in graph.outputs:
        promise = reduced.outputs.get(value.name)
        if promise is None or not budgets.same(promise.budget, budgets.budget(reduced.precision, value, cases, rows)):
            problems.append(f"{value.name}: the manifest's budget is not the one declared for {reduced.precision}")
    if strange := reduced.outputs.keys() - {value.name for value in graph.outputs}:
        problems.append(f"{', '.join(sorted(strange))}: no output of {graph.name}")
    loss = reduced.loss
    if loss and not abs(loss.change) <= loss.budget <= budgets.loss_budget(reduced.precision, loss.fp32) * (1 + 1e-6):
        problems.append(f"the test loss changed by {loss.change:+.3g}, which is not within what is declared")
    for problem in problems:
        yield genkit.Check(reduced.name, "budget", False, problem)
    if not problems:
        counted = f"{sum(int(kept.sum()) for kept in rows)} of {sum(map(len, rows))} rows"
        yield genkit.Check(reduced.name, "budget", True, f"as declared for {reduced.precision}, on {counted}")


def _check_reduction(
    reduced: genkit.ReducedGraph, original: ModelProto, original_folder: Path, model: ModelProto, folder: Path
) -> Iterator[genkit.Check]:
    """Holds it against the graph in fp32: one check, or one for each problem."""
    try:
        found = links(original, model)
    except Different as error:
        yield genkit.Check(reduced.name, "reduction", False, str(error))
        return
    weights, narrow = initializers(original, original_folder), initializers(model, folder)
    problems = []
    for link in found:
        if not link.constant:
            problems += _activation(reduced, link, narrow)
        elif weights[link.name].dtype != np.float32:
            same = _bits(narrow[link.source]) == _bits(weights[link.name])
            problems += [] if same else [f"{link.name} is not the constant of the graph in fp32"]
        elif reduced.precision == "fp16":
            problems += _half(link, weights[link.name], narrow[link.source])
        else:
            problems += _whole(link, weights[link.name], narrow)
    if (wide := float32_operators(found, narrow)) != reduced.float32:
        problems.append(f"in float32 are {', '.join(wide) or 'none'}, not {', '.join(reduced.float32) or 'none'}")
    for problem in dict.fromkeys(problems):
        yield genkit.Check(reduced.name, "reduction", False, problem)
    if not problems:
        kept = f"; in float32: {', '.join(wide)}" if wide else ""
        detail = f"the operators of {reduced.of}, each weight the nearest in {reduced.precision}{kept}"
        yield genkit.Check(reduced.name, "reduction", True, detail)


def float32_operators(found: Sequence[Link], initial: Initial) -> tuple[str, ...]:
    """The operators that keep a weight in float32, or are given a tensor that was converted to it."""
    return tuple(
        sorted(
            {
                link.reader
                for link in found
                if link.reader
                and (
                    (link.constant and not link.conversions and initial[link.source].dtype == np.float32)
                    or (link.conversions and _widens(link))
                )
            }
        )
    )


def _widens(link: Link) -> bool:
    last = link.conversions[-1]
    return last.op_type == "Cast" and helper.get_node_attr_value(last, "to") == TensorProto.FLOAT


def _half(link: Link, wide: Array, narrow: Array) -> list[str]:
    if link.operand and (narrow.dtype != np.float16 or link.conversions):
        return [f"the weight {link.name} is {narrow.dtype}, expected float16, and used as such"]
    if any(node.op_type != "Cast" for node in link.conversions):
        return [f"the weight {link.name} is quantized"]
    if narrow.dtype == np.float32:
        return [] if _bits(narrow) == _bits(wide) else [f"{link.name} is not the constant of the graph in fp32"]
    # Half a step: 2^-11 of a number, or 2^-25 next to zero, where the converter keeps the sign of what would vanish.
    step = np.abs(wide.astype(np.float64)) * 2.0**-11 + 2.0**-24
    if narrow.shape != wide.shape or not (np.abs(narrow.astype(np.float64) - wide) <= step).all():
        return [f"the weight {link.name} is not the nearest in float16"]
    return []


def _whole(link: Link, wide: Array, initial: Initial) -> list[str]:
    narrow = initial[link.source]
    if not link.conversions:
        if link.operand:
            return [f"the weight {link.name} is {narrow.dtype}, expected int8"]
        return [] if _bits(narrow) == _bits(wide) else [f"{link.name} is not the constant of the graph in fp32"]
    if [node.op_type for node in link.conversions] != ["DequantizeLinear"] or narrow.shape != wide.shape:
        return [f"the weight {link.name} is converted in a way that is not this exporter's"]
    values, step = dequantized(link.conversions[0], initial, narrow)
    problems = []
    if not (np.abs(values - wide) <= _HALF * step).all():
        problems.append(f"the weight {link.name} is not the nearest in {narrow.dtype} at its scale")
    if link.operand:
        scales = initial[link.conversions[0].input[1]]
        if narrow.dtype != np.int8 or scales.ndim != 1:
            found = f"{narrow.dtype} with {scales.size} scales"
            problems.append(f"the weight {link.name} is {found}, expected int8 by the channel")
        tops = np.abs(wide).max(axis=tuple(i for i, size in enumerate(step.shape) if size == 1), keepdims=True)
        if ((step * _FEWEST_STEPS > tops) & (tops > 0)).any():
            problems.append(f"the weight {link.name} has a scale that is too coarse for its channel")
    return problems


def _activation(reduced: genkit.ReducedGraph, link: Link, initial: Initial) -> list[str]:
    """What is wrong with the conversions of a tensor that is computed."""
    quantizers = [node for node in link.conversions if node.op_type != "Cast"]
    if reduced.precision == "fp16":
        if quantizers:
            return [f"{link.name} is quantized"]
        return [f"{link.reader} reads {link.name} in float32"] if link.operand and _widens_at_last(link) else []
    if not quantizers:
        return [f"{link.reader} reads {link.name} in float32"] if link.operand else []
    if [node.op_type for node in quantizers] != ["QuantizeLinear", "DequantizeLinear"]:
        return [f"{link.name} is quantized in a way that is not this exporter's"]
    tensor = quantizers[0].input[0]
    scales, zeros = ([initial[node.input[i]] for node in quantizers] for i in (1, 2))
    if tensor not in reduced.ranges:
        return [f"{tensor} is quantized without a calibration"]
    low, high = min(reduced.ranges[tensor][0], 0.0), max(reduced.ranges[tensor][1], 0.0)
    step = (high - low) / 255 or 1.0  # of a tensor that is zero throughout
    for scale, zero in zip(scales, zeros, strict=True):
        if scale.ndim or (high > low and abs(float(scale) - step) > 1e-3 * step):
            return [f"{tensor} has the scale {scale.ravel()[0]:.6g}, where its calibration gives {step:.6g}"]
        if zero.dtype != np.uint8 or abs(float(zero) + low / step) > _HALF + 1e-2:
            return [f"{tensor} has the zero point {zero}, where its calibration gives {-low / step:.4g}"]
    return []


def _widens_at_last(link: Link) -> bool:
    return bool(link.conversions) and _widens(link)


def _bits(array: Array) -> tuple[object, ...]:
    return array.dtype, array.shape, array.tobytes()


# By running it


def measure(
    graph: genkit.BundledGraph, cases: Sequence[genkit.Case], rows: Sequence[Array], function: genkit.Function
) -> dict[str, genkit.Accuracy]:
    """How far each output is off, on the rows that count.

    Raises:
        Unusable: where an answer is none, or is not finite on any row, or where no row counts.
    """
    return _measure(graph, cases, rows, [ask(function, case.inputs, case.outputs) for case in cases])


def _measure(
    graph: genkit.BundledGraph,
    cases: Sequence[genkit.Case],
    rows: Sequence[Array],
    answers: Sequence[Mapping[str, Array]],
) -> dict[str, genkit.Accuracy]:
    if not any(kept.any() for kept in rows):
        raise Unusable("no golden vector stays within the ranges that it was calibrated on")
    measured = {}
    for value in graph.outputs:
        found = [answer[value.name] for answer in answers]
        if broken := [len(array) for array in found if not np.isfinite(array).all()]:
            raise Unusable(f"{value.name}: values are not finite, the first at batch {broken[0]}")
        references = [case.references[value.name] for case in cases]
        measured[value.name] = budgets.measure(value, found, references, rows)
    return measured


def judge(
    name: str, subject: str, output: str, found: genkit.Accuracy, allowed: genkit.Accuracy, what: str = ""
) -> genkit.Check:
    """One output against what it may miss."""
    misses = budgets.missed(found, allowed)
    if misses:
        detail = f"{output}: {what}{misses[0]}"
    elif found.agreement is not None:
        detail = f"{output}: {what}{found.agreement:.2%} of the whole numbers agree, {allowed.agreement:.2%} needed"
    else:
        detail = f"{output}: {what}rms error {found.rms:.3g}, limit {allowed.rms:.3g}"
        detail += f"; largest {found.max:.3g}, limit {allowed.max:.3g}"
        if found.psnr is not None and allowed.psnr is not None:
            detail += f"; PSNR {found.psnr:.1f} dB, at least {allowed.psnr:g} needed"
    measured = found.model_dump(exclude_none=True)
    limits = {f"{kind}_limit": limit for kind, limit in allowed.model_dump(exclude_none=True).items()}
    return genkit.Check(name, subject, not misses, detail, {"output": output, **measured, **limits})


def _check_runtime(
    reduced: genkit.ReducedGraph,
    graph: genkit.BundledGraph,
    cases: Sequence[genkit.Case],
    rows: Sequence[Array],
    file: Path,
    runtime: genkit.Runtime,
) -> Iterator[genkit.Check]:
    function = opened(runtime, file)
    answers = [ask(function, case.inputs, case.outputs) for case in cases]
    for name, found in _measure(graph, cases, rows, answers).items():
        promise = reduced.outputs[name]
        yield judge(reduced.name, runtime.name, name, found, promise.budget)
        if budgets.missed(found, allowed := budgets.faithful(promise.measured)):
            what = "more than was measured at export: "
            yield judge(reduced.name, runtime.name, name, found, allowed, what)
    yield repeated(reduced.name, runtime.name, function, cases, answers)
    rows_alone = [alone(function, case) for case in cases]
    for value in graph.outputs:
        found_alone, together = ([each[value.name] for each in several] for several in (rows_alone, answers))
        apart = budgets.measure(value, found_alone, together, rows)
        allowed = budgets.uncoupled(reduced.outputs[value.name].measured)
        yield judge(reduced.name, runtime.name, value.name, apart, allowed, "rows alone against rows in a batch, ")
