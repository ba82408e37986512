"""Are the numbers right? Two questions, which one tolerance would mix up: is the graph right, is the runtime faithful?

The graph is run in float64 by onnx's reference evaluator, where rounding is out of the picture and the limit can be
sharp. A runtime is run in float32, where the limit is a small multiple of the rounding error that PyTorch itself has.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

import genkit
from genkit_onnx.accuracy import (
    GRAPH,
    REMARKABLE,
    Array,
    Deviation,
    Limits,
    rounding_errors,
    runtime_limits,
    ties,
    worst_by_size,
    wrong_codes,
)
from genkit_onnx.evaluator import reference_evaluator
from genkit_onnx.probes import inert, probes
from genkit_onnx.protobuf import initializers, nodes, widened
from genkit_onnx.structure import Notes, check_structure, complaint, misplaced, one_line

_CARELESS = {"Celu", "Elu", "Erf", "Exp", "Gelu", "Log", "LogSoftmax", "Mish", "Pow", "Selu", "Sigmoid", "Softmax"}
_CARELESS |= {"Softplus", "Swish", "Tanh"}
"""Operators that runtimes approximate; named where a runtime's error is large and still correct."""


class Unusable(Exception):
    """Answers that cannot be compared; the message says why."""


def examine(
    graph: genkit.BundledGraph,
    file: Path,
    cases: Sequence[genkit.Case],
    runtimes: Sequence[genkit.Runtime],
    *,
    promised: Notes | None,
    rows: int | None = None,
) -> Iterator[genkit.Check]:
    """Everything that can be held against the graph in ``file``. Never raises for what is in it.

    Args:
        graph: what the manifest promises.
        file: copied into an empty directory first, with its data file, so that it has to be whole by itself.
        cases: the golden vectors.
        runtimes: each is proven on all cases.
        promised: the notes that the file has to carry; None: it is somebody else's and may carry any.
        rows: the largest case for the graph proof, which is slow for convolutions; None: all of them.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            moved, model = open_elsewhere(graph, file, Path(elsewhere))
        except Unusable as error:
            yield genkit.Check(graph.name, "structure", False, str(error))
            return
        yield from guarded(graph, "structure", check_structure(graph, model, promised))
        yield from guarded(graph, "golden vectors", _check_vectors(graph, cases))
        yield from guarded(graph, "graph proof", _graph_proof(graph, model, moved.parent, cases, rows))
        if complaint(model) is None:  # native code is not to be trusted with what the checker rejects
            for runtime in runtimes:
                yield from guarded(graph, runtime.name, _runtime_proof(graph, model, moved, cases, runtime))


def faithful(
    graph: genkit.BundledGraph, file: Path, cases: Sequence[genkit.Case], runtimes: Sequence[genkit.Runtime]
) -> bool:
    """Whether the graph in ``file`` passes the proof of every runtime."""
    model = onnx.load(file, load_external_data=False)
    proofs = (guarded(graph, r.name, _runtime_proof(graph, model, file, cases, r)) for r in runtimes)
    return all(check.ok for proof in proofs for check in proof)


def examine_on(
    graph: genkit.BundledGraph, file: Path, cases: Sequence[genkit.Case], runtime: genkit.Runtime
) -> Iterator[genkit.Check]:
    """The part of ``examine`` that is about one runtime. Never raises for what is in the file."""
    with tempfile.TemporaryDirectory() as elsewhere:
        yield from guarded(graph, runtime.name, _alone_on(graph, file, cases, runtime, Path(elsewhere)))


def _alone_on(
    graph: genkit.BundledGraph, file: Path, cases: Sequence[genkit.Case], runtime: genkit.Runtime, folder: Path
) -> Iterator[genkit.Check]:
    moved, model = open_elsewhere(graph, file, folder)
    if invalid := complaint(model):
        raise Unusable(f"is not given what the checker rejects: {invalid}")
    yield from _runtime_proof(graph, model, moved, cases, runtime)


def open_elsewhere(graph: genkit.BundledGraph, file: Path, folder: Path) -> tuple[Path, ModelProto]:
    """A copy in an empty folder, and what is in it; its weights are where any reader may follow them.

    Raises:
        Unusable: for a file that cannot be read, or is not whole by itself.
    """
    moved = folder / file.name  # under any other name, the data file could take its place
    try:
        shutil.copyfile(file, moved)
        if graph.data is not None:
            shutil.copyfile(file.with_name(graph.data), moved.with_name(graph.data))
        model = onnx.load(moved, format="protobuf", load_external_data=False)
        outside = next(misplaced(graph, model, folder), None)
    except Exception as error:  # protobuf has classes of its own
        raise Unusable(f"{graph.file} cannot be read: {one_line(error)}") from error
    if outside:
        raise Unusable(outside)
    return moved, model


def guarded(graph: genkit.BundledGraph, subject: str, checks: Iterator[genkit.Check]) -> Iterator[genkit.Check]:
    """The checks; one that cannot be carried out counts as failed."""
    try:
        yield from checks
    except Unusable as error:
        yield genkit.Check(graph.name, subject, False, str(error))
    except genkit.Unsupported as error:
        yield genkit.Check(graph.name, subject, False, f"cannot hold the graph: {error}", {"unsupported": True})
    except Exception as error:  # a damaged file can make any reader raise anything: whatever it is, the answer is no
        yield genkit.Check(graph.name, subject, False, f"cannot be checked, {type(error).__name__}: {one_line(error)}")


def _check_vectors(graph: genkit.BundledGraph, cases: Sequence[genkit.Case]) -> Iterator[genkit.Check]:
    """Whether PyTorch's float32 goes with its float64, by the errors in the manifest, the units of everything else."""
    for value in graph.outputs:
        if value.whole and wrong_codes(
            [case.outputs[value.name] for case in cases], cases, value.name, exempt_ties=True
        ):
            detail = f"{value.name}: PyTorch's float32 gives numbers that are neither its float64's nor ties"
            yield genkit.Check(graph.name, "golden vectors", False, detail)
            return
    found = rounding_errors(cases)
    for name in found.keys() | graph.errors.keys():
        unit, promised = found.get(name), graph.errors.get(name)
        if not (unit and promised and _agree(unit, promised)):
            detail = f"{name}: the manifest's errors are not those of the golden vectors"
            yield genkit.Check(graph.name, "golden vectors", False, detail)
            return
    batches = ", ".join(str(case.rows) for case in cases)
    units = "; ".join(f"{name}: PyTorch's own rms error is {unit.rms:.2g}" for name, unit in found.items())
    yield genkit.Check(graph.name, "golden vectors", True, f"batches of {batches}; {units or 'whole numbers alone'}")


def _agree(one: genkit.Errors, other: genkit.Errors) -> bool:
    # Machines differ in the order in which they add up an rms.
    return isclose(one.rms, other.rms, rel_tol=1e-6) and isclose(one.max, other.max, rel_tol=1e-6)


def _graph_proof(
    graph: genkit.BundledGraph, model: ModelProto, folder: Path, cases: Sequence[genkit.Case], rows: int | None
) -> Iterator[genkit.Check]:
    try:
        weights = _wide(initializers(model, folder))
        evaluator = reference_evaluator(widened(model))
    except Exception as error:  # an operator that onnx cannot evaluate, or a model that makes no sense
        raise Unusable(f"onnx cannot evaluate the graph: {one_line(error)}") from error

    def function(inputs: genkit.Arrays) -> Mapping[str, Array]:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an overflow is judged by what comes of it
            return dict(zip(evaluator.output_names, evaluator.run(None, weights | _wide(inputs)), strict=True))

    small = [case for case in cases if rows is None or case.rows <= rows]
    # Where rounding is said to decide, a runtime is let off; so the large cases are proven there, too.
    small += [tied for case in cases if rows is not None and case.rows > rows and (tied := _tied(case)).rows]
    small = small or list(cases)
    answers = [ask(function, case.inputs, case.references) for case in small]
    yield from _accuracy(graph, "graph proof", small, answers, GRAPH)
    yield from _reaction(graph, function, cases)


def _tied(case: genkit.Case) -> genkit.Case:
    """The rows of which some whole number hangs on rounding."""
    chosen = np.zeros(case.rows, dtype=bool)
    for name, tie in case.ties.items():
        chosen |= (tie != case.references[name]).reshape(case.rows, -1).any(axis=1)
    kinds = case.inputs, case.outputs, case.references, case.ties
    return genkit.Case(*({name: array[chosen] for name, array in arrays.items()} for arrays in kinds))


def _wide(arrays: genkit.Arrays) -> dict[str, Array]:
    return {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in arrays.items()}


def _runtime_proof(
    graph: genkit.BundledGraph, model: ModelProto, file: Path, cases: Sequence[genkit.Case], runtime: genkit.Runtime
) -> Iterator[genkit.Check]:
    function = opened(runtime, file)
    limits = runtime_limits(graph.reduction)
    answers = [ask(function, case.inputs, case.outputs) for case in cases]
    yield from _accuracy(graph, runtime.name, cases, answers, limits, suspects=_suspects(model))
    yield repeated(graph.name, runtime.name, function, cases, answers)
    yield from _rows_alone(graph, runtime.name, function, cases, answers, limits.times(2))


def opened(runtime: genkit.Runtime, file: Path) -> genkit.Function:
    """The graph in ``file``, as a runtime runs it.

    Raises:
        Unsupported: where the runtime cannot hold it, and says so.
        Unusable: where the runtime cannot open it.
    """
    try:
        return runtime.load(file)
    except genkit.Unsupported:
        raise
    except Exception as error:  # each runtime has classes of its own
        raise Unusable(f"{runtime.version} cannot open the graph: {one_line(error)}") from error


def repeated(
    name: str,
    subject: str,
    function: genkit.Function,
    cases: Sequence[genkit.Case],
    answers: Sequence[Mapping[str, Array]],
) -> genkit.Check:
    """Whether a second call gives the bits of the first."""
    again = [ask(function, case.inputs, case.outputs) for case in cases]
    pairs = [(first, second, output) for first, second in zip(answers, again, strict=True) for output in first]
    changed = sorted({output for first, second, output in pairs if first[output].tobytes() != second[output].tobytes()})
    what = f"{', '.join(changed)}: a second call gives other bits" if changed else "a second call gives the same bits"
    return genkit.Check(name, subject, not changed, what)


def alone(function: genkit.Function, case: genkit.Case) -> dict[str, Array]:
    """The outputs of each row by itself, put together."""
    single = [
        ask(function, {name: array[i : i + 1] for name, array in case.inputs.items()}, case.outputs)
        for i in range(case.rows)
    ]
    return {name: np.concatenate([row[name] for row in single]) for name in case.outputs}


def ask(function: genkit.Function, inputs: genkit.Arrays, like: genkit.Arrays) -> Mapping[str, Array]:
    """One call. Its outputs must have the names, order, dtypes and shapes of ``like``, but for the number of rows."""
    rows = len(next(iter(inputs.values())))
    try:
        found = {name: np.array(array) for name, array in function(inputs).items()}  # runtimes may reuse a buffer
    except genkit.Unsupported:
        raise
    except Exception as error:
        raise Unusable(f"fails at batch {rows}: {one_line(error)}") from error
    if list(found) != list(like):
        raise Unusable(f"gives {', '.join(found) or 'nothing'} at batch {rows}, expected {', '.join(like)}")
    for name, array in found.items():
        shape, dtype = (rows, *like[name].shape[1:]), like[name].dtype
        if (array.shape, array.dtype) != (shape, dtype):
            raise Unusable(f"{name}: is {array.dtype} {array.shape} at batch {rows}, expected {dtype} {shape}")
    return found


def _accuracy(
    graph: genkit.BundledGraph,
    subject: str,
    cases: Sequence[genkit.Case],
    answers: Sequence[Mapping[str, Array]],
    limits: Limits,
    suspects: str = "",
) -> Iterator[genkit.Check]:
    """Every output against the float64 reference. ``suspects``: what to name where a runtime is right but careless."""
    for value in graph.outputs:
        name = value.name
        found = [answer[name] for answer in answers]
        broken = {len(array): int((~np.isfinite(array)).sum()) for array in found}
        if any(broken.values()):
            rows = next(rows for rows, count in broken.items() if count)
            detail = f"{name}: {sum(broken.values())} values are not finite, the first at batch {rows}"
            yield genkit.Check(graph.name, subject, False, detail)
        elif name in graph.errors:
            deviation = Deviation.between(found, [case.references[name] for case in cases], graph.errors[name])
            ok, detail, measured = deviation.judge(limits, f"{name}:")
            if ok and subject == "graph proof":
                excess, size = worst_by_size(found, cases, name)
                if excess > 1:
                    ok = False
                    detail = f"{name}: numbers up to {size:.2g} are off by {excess:.3g} times what PyTorch's own allow"
            if suspects and ok and deviation.rms >= REMARKABLE:
                detail += f"; large for rounding, suspect {suspects}"
                measured["suspects"] = suspects
            yield genkit.Check(graph.name, subject, ok, detail, {"output": name, **measured})
        else:
            wrong = wrong_codes(found, cases, name, exempt_ties=subject != "graph proof")
            tied, most = ties(cases, name)
            detail = f"{name}: {wrong} of {sum(map(np.size, found))} whole numbers are wrong, limit 0"
            detail += f"; {tied} hang on rounding, limit {most}" if tied else ""
            measured = {"output": name, "wrong": wrong, "ties": tied, "ties_limit": most}
            yield genkit.Check(graph.name, subject, not wrong and tied <= most, detail, measured)


def _rows_alone(
    graph: genkit.BundledGraph,
    subject: str,
    function: genkit.Function,
    cases: Sequence[genkit.Case],
    answers: Sequence[Mapping[str, Array]],
    limits: Limits,
) -> Iterator[genkit.Check]:
    """Each row by itself against the same row inside its batch: nothing may leak from row to row."""
    rows_alone = [alone(function, case) for case in cases]
    for value in graph.outputs:
        name = value.name
        found, together = [rows[name] for rows in rows_alone], [answer[name] for answer in answers]
        if name in graph.errors:
            deviation = Deviation.between(found, together, graph.errors[name])
            ok, detail, measured = deviation.judge(limits, f"{name}: rows alone against rows in a batch,")
            yield genkit.Check(graph.name, subject, ok, detail, {"output": name, "alone": True, **measured})
        else:
            wrong = wrong_codes(found, cases, name, exempt_ties=True)
            detail = f"{name}: {wrong} whole numbers are wrong in rows alone, limit 0"
            yield genkit.Check(graph.name, subject, not wrong, detail, {"output": name, "alone": True, "wrong": wrong})


def _reaction(
    graph: genkit.BundledGraph, function: genkit.Function, cases: Sequence[genkit.Case]
) -> Iterator[genkit.Check]:
    """Whether every output reacts to every element of every input to which PyTorch's float32 reacts.

    It is asked in float64, where an effect that float32 can see at all cannot drown.
    """
    deaf = []
    for name, batch in probes(graph.inputs, cases).items():
        excused = graph.ignores.get(name, {})
        for output, still in inert(lambda b: ask(function, b, cases[0].references), batch).items():
            deaf += [f"{output} does not react to {name}[{i}]" for i in sorted(still - set(excused.get(output, ())))]
    if deaf:
        more = f" (and {len(deaf) - 1} more)" if len(deaf) > 1 else ""
        yield genkit.Check(graph.name, "graph proof", False, f"{deaf[0]}, to which PyTorch does react{more}")
    else:
        yield genkit.Check(graph.name, "graph proof", True, "every output reacts to every input as PyTorch does")


def _suspects(model: ModelProto) -> str:
    found = {node.op_type for node in nodes(model)}
    return ", ".join(sorted(found & _CARELESS or found))
